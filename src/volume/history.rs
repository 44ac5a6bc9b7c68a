//! Everything a volume ever was, for whoever looks: the segments, and the journal's epochs as segments in memory.
//!
//! Opened beside the process that has the backup path, without its lock and without asking it for anything: what is
//! read never changes once it is written. So a look at a million items takes the memory and the time of whoever
//! looks, and works the same where the daemon hangs, where there is none, and on an external volume alone.
//!
//! - `names`: which inode a name led to, and when; `locate`: a path at a moment; `walk`: what is below it, also what is gone;
//! - `states`: what an item was, epoch by epoch; `whereabouts`: the names of an inode;
//! - `accounts`: the tenants, and what they take up.
//!
//! A moment is a [`View`]: with [`History::view`] all of `namespace` reads it, and [`History::tree`] shows it as files.

pub mod accounts;
pub mod locate;
pub mod names;
pub mod states;
pub mod walk;
mod whereabouts;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::fetch::Fetch;
use crate::fetch::external::ExternalPacks;
use crate::format::record::Identity;
use crate::format::segment::{BlockCache, MemorySource, Segment, SegmentScope, SegmentWriter};
use crate::journal::{self, replay};
use crate::meta::view::View;
use crate::types::{Epoch, Lsn, SessionId, Timestamp};
use crate::volume::archive::{Archive, newest_local_record};
use crate::volume::engine::{EpochEntry, epochs_of};
use crate::volume::external::ExternalVolume;
use crate::volume::init::read_identity;
use crate::volume::moment;
use crate::volume::view_tree::ViewTree;

/// Memory for decoded segment blocks.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// Memory for plain blobs.
const BLOB_CACHE_BYTES: usize = 48 << 20;
/// An epoch may close, and segments may be merged, while we look: then we look again.
const LOOKS: usize = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// All moments of a volume.
#[derive(Debug)]
pub struct History {
    view: View,
    epochs: Vec<EpochEntry>,
    packs: Packs,
}

/// Where content comes from. A look at names needs none, and then nothing is connected.
#[derive(Debug)]
enum Packs {
    Path(PathBuf, Mutex<Option<Arc<Fetch>>>),
    Open(Arc<Fetch>),
}

impl History {
    /// Of the backup path `root`: every closed epoch, and what of the open one is in the journal. Who wants to see what
    /// was written just now has it committed first.
    pub fn of_path(root: &Path) -> Result<History> {
        let identity = read_identity(root)?;
        let mut outcome = look(root, &identity);
        for _ in 1..LOOKS {
            if outcome.is_ok() {
                break;
            }
            thread::sleep(BETWEEN_LOOKS);
            outcome = look(root, &identity);
        }
        let view = outcome?;
        Ok(History {
            epochs: epochs_of(&view)?,
            view,
            packs: Packs::Path(root.to_owned(), Mutex::default()),
        })
    }

    /// Of an external volume alone.
    pub fn of_external(external: &ExternalVolume) -> Result<History> {
        Ok(History {
            view: external.view().clone(),
            epochs: external.epochs()?,
            packs: Packs::Open(Arc::clone(external.fetch())),
        })
    }

    /// The closed epochs, in order.
    pub fn epochs(&self) -> &[EpochEntry] {
        &self.epochs
    }

    /// When `epoch` was closed; `None` for one that is not closed yet.
    pub fn time_of(&self, epoch: Epoch) -> Option<Timestamp> {
        let found = self
            .epochs
            .binary_search_by_key(&epoch, |entry| entry.epoch);
        let entry = found.ok().and_then(|at| self.epochs.get(at))?;
        Some(Timestamp {
            secs: entry.time,
            nanos: entry.nanos,
        })
    }

    /// The metadata as of `at`, or as it is now.
    pub fn view(&self, at: Option<Epoch>) -> View {
        match at {
            Some(at) => self.view.as_of(at),
            None => self.view.clone(),
        }
    }

    /// The same as a tree of files.
    pub fn tree(&self, at: Option<Epoch>) -> Result<Arc<ViewTree>> {
        Ok(Arc::new(ViewTree::new(self.view(at), self.fetch()?)))
    }

    fn fetch(&self) -> Result<Arc<Fetch>> {
        let (root, slot) = match &self.packs {
            Packs::Open(fetch) => return Ok(Arc::clone(fetch)),
            Packs::Path(root, slot) => (root, slot),
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fetch) = &*slot {
            return Ok(Arc::clone(fetch));
        }
        let objects = moment::objects(root, &read_identity(root)?)?;
        let fetch = Arc::new(Fetch::start(BLOB_CACHE_BYTES, None)?);
        fetch.set_external(Some(ExternalPacks::new(objects)));
        *slot = Some(Arc::clone(&fetch));
        Ok(fetch)
    }
}

/// The journal first, then the newest record: an epoch that closes in between is in both, and counts once.
fn look(root: &Path, identity: &Identity) -> Result<View> {
    let volume = identity
        .uuid()
        .ok_or_else(|| Error::corrupt(root.display().to_string(), 0, "no volume UUID"))?;
    let journal_dir = root.join(journal::DIR);
    let covered = newest_local_record(root)?.map_or((Epoch(0), Lsn(0)), |record| {
        (record.epoch, record.last_lsn())
    });
    // What a take-over set aside has none.
    let replayed = if journal_dir.is_dir() {
        replay::replay(&journal_dir, volume.0, covered.0, covered)?.epochs
    } else {
        Vec::new()
    };
    let cache = Arc::new(BlockCache::new(BLOCK_CACHE_BYTES));
    let closed = Archive::open(root, volume, SessionId([0; 8]), Arc::clone(&cache))?.newest();
    let closed_at = closed.record.map_or(Epoch(0), |record| record.epoch);
    let mut segments = closed.view.segments().to_vec();
    let mut newest = closed_at;
    for epoch in replayed.into_iter().filter(|epoch| epoch.epoch > closed_at) {
        newest = epoch.epoch;
        segments.push(in_memory(volume.0, epoch, &cache)?);
    }
    View::new(newest, segments)
}

/// An epoch of the journal as the segment that it will be.
fn in_memory(
    volume: [u8; 16],
    replayed: replay::ReplayedEpoch,
    cache: &Arc<BlockCache>,
) -> Result<Arc<Segment>> {
    let epoch = replayed.epoch;
    let scope = SegmentScope {
        volume,
        session: SessionId([0; 8]),
        first: epoch,
        last: epoch,
    };
    let name = format!("epoch {epoch} of the journal");
    let mut writer = SegmentWriter::new(Vec::new(), &name, scope)?;
    for (key, value) in &replayed.changes {
        writer.add(key, epoch, value.as_deref())?;
    }
    let (_, bytes) = writer.finish()?;
    let source = MemorySource::new(name, bytes);
    Ok(Arc::new(Segment::open(
        Arc::new(source),
        Arc::clone(cache),
    )?))
}
