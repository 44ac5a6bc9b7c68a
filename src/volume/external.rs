//! A volume read from its external copy alone: no backup path, nothing downloaded up front.
//!
//! The newest epoch record names the segments; they are read by range, as are the packs. The start costs
//! one listing and one small read for each segment, however big the backup is.

use std::sync::Arc;

use bytes::Bytes;
use vfs::{Guarded, ObjectKey, Volume, VolumeExt};

use crate::error::{Error, Result};
use crate::fetch::Fetch;
use crate::fetch::external::ExternalPacks;
use crate::format::record::{EpochRecord, Identity, SegmentEntry};
use crate::format::segment::{BlockCache, RangeRead, Segment};
use crate::meta::view::View;
use crate::types::{Epoch, SessionId};
pub use crate::upload::fork::RECORD_LEN_MAX;
use crate::upload::fork::{RecordObject, newest_records, records_from};
use crate::volume::archive::check_segment;
use crate::volume::engine::{EpochEntry, epochs_of};
use crate::volume::init::external_identity;
use crate::volume::view_tree::ViewTree;

/// Memory for decoded blocks of external segments.
const BLOCK_CACHE_BYTES: usize = 64 << 20;
/// Memory for plain blobs.
const BLOB_CACHE_BYTES: usize = 96 << 20;
/// Bytes of a segment fetched at once where a listing walks through it.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// A volume as its external copy has it.
#[derive(Debug)]
pub struct ExternalVolume {
    external: Arc<dyn Volume>,
    cache: Arc<BlockCache>,
    identity: Identity,
    record: EpochRecord,
    view: View,
    fetch: Arc<Fetch>,
}

/// An object of an external volume, read by range.
#[derive(Debug)]
struct ExternalObject {
    volume: Arc<dyn Volume>,
    key: ObjectKey,
    len: u64,
}

impl RangeRead for ExternalObject {
    fn name(&self) -> String {
        self.key.to_string()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        Ok(self.volume.get(&self.key, offset..offset + len as u64)?)
    }
}

/// Opens the newest epoch of an external volume.
pub fn open_external(external: Arc<dyn Volume>) -> Result<ExternalVolume> {
    let packs = ExternalPacks::new(Arc::clone(&external));
    open_with(external, packs)
}

/// The same of one of which it is known whether it answers: no read waits for one that does not.
pub fn open_guarded(external: Guarded) -> Result<ExternalVolume> {
    let volume = Arc::clone(&external.volume);
    open_with(volume, ExternalPacks::guarded(external))
}

fn open_with(external: Arc<dyn Volume>, packs: ExternalPacks) -> Result<ExternalVolume> {
    let identity = external_identity(&*external)?.ok_or_else(|| {
        Error::Refused(format!("{external} holds no tidefs volume (there is no server/volume.json): check the address, and that it is mounted"))
    })?;
    let record = newest_record(&*external)?;
    refuse_stranger(&*external, &identity, &record)?;
    let cache = Arc::new(BlockCache::new(BLOCK_CACHE_BYTES));
    let view = open_view(&external, &record, &cache, &[])?;
    let fetch = Fetch::start(BLOB_CACHE_BYTES, None)?;
    fetch.set_external(Some(packs));
    Ok(ExternalVolume {
        external,
        cache,
        identity,
        record,
        view,
        fetch: Arc::new(fetch),
    })
}

/// Opens what `record` names; segments that are open already are used again.
fn open_view(
    external: &Arc<dyn Volume>,
    record: &EpochRecord,
    cache: &Arc<BlockCache>,
    open: &[(SegmentEntry, Arc<Segment>)],
) -> Result<View> {
    let mut segments = Vec::new();
    for entry in &record.segments {
        let known = open.iter().find(|(other, _)| other == entry);
        segments.push(match known {
            Some((_, segment)) => Arc::clone(segment),
            None => open_segment(external, entry, cache)?,
        });
    }
    View::new(record.epoch, segments)
}

impl ExternalVolume {
    /// The same volume as of a newer epoch, if its owner has archived one since; `None` if not. It shares with this
    /// one what both have.
    pub fn newer(&self) -> Result<Option<ExternalVolume>> {
        // One listing, of what is there since.
        let record = match newest_of(&*self.external, self.record.epoch)? {
            Some(record) if record.epoch > self.record.epoch => record,
            _ => return Ok(None),
        };
        refuse_stranger(&*self.external, &self.identity, &record)?;
        let entries = self.record.segments.iter().cloned();
        let open: Vec<_> = entries.zip(self.view.segments().iter().cloned()).collect();
        let view = open_view(&self.external, &record, &self.cache, &open)?;
        Ok(Some(ExternalVolume {
            external: Arc::clone(&self.external),
            cache: Arc::clone(&self.cache),
            identity: self.identity.clone(),
            record,
            view,
            fetch: Arc::clone(&self.fetch),
        }))
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The newest epoch's record.
    pub fn record(&self) -> &EpochRecord {
        &self.record
    }

    /// Its segments, oldest first.
    pub fn segments(&self) -> &[Arc<Segment>] {
        self.view.segments()
    }

    /// Its metadata as of the newest epoch.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Where its blobs come from.
    pub fn fetch(&self) -> &Arc<Fetch> {
        &self.fetch
    }

    /// The epochs it can show.
    pub fn epochs(&self) -> Result<Vec<EpochEntry>> {
        epochs_of(&self.view)
    }

    /// The volume as of `at`, or as of its newest epoch.
    pub fn tree(&self, at: Option<Epoch>) -> Result<Arc<ViewTree>> {
        let at = at.unwrap_or(self.record.epoch);
        Ok(Arc::new(ViewTree::new(
            self.view.as_of(at),
            Arc::clone(&self.fetch),
        )))
    }
}

fn refuse_stranger(external: &dyn Volume, identity: &Identity, record: &EpochRecord) -> Result<()> {
    if record.volume == identity.volume {
        return Ok(());
    }
    let name = record_name(record)?;
    Err(Error::corrupt(
        format!("{external}/{name}"),
        0,
        "it is another volume's record",
    ))
}

fn record_name(record: &EpochRecord) -> Result<String> {
    let session = SessionId::parse(&record.session)
        .ok_or_else(|| Error::corrupt("an epoch record", 0, "its session is not in the format"))?;
    Ok(EpochRecord::name(record.epoch, session))
}

/// The newest record. Two of the same epoch are a fork: then a person must say which one is meant.
fn newest_record(external: &dyn Volume) -> Result<EpochRecord> {
    the_one(external, &newest_records(external, "")?)?.ok_or_else(|| {
        Error::Refused(format!(
            "{external} holds no complete epoch yet: its owner has not archived one (tidefs wait --until archived)"
        ))
    })
}

/// The same where it is known to be of epoch `from` or later.
fn newest_of(external: &dyn Volume, from: Epoch) -> Result<Option<EpochRecord>> {
    let mut records = records_from(external, "", from)?;
    let newest = records.iter().map(|record| record.epoch).max();
    records.retain(|record| Some(record.epoch) == newest);
    the_one(external, &records)
}

fn the_one(external: &dyn Volume, newest: &[RecordObject]) -> Result<Option<EpochRecord>> {
    match newest {
        [] => Ok(None),
        [record] => {
            let key = &record.meta.key;
            let bytes = external.get_whole(key, RECORD_LEN_MAX)?;
            EpochRecord::parse(key.as_str(), &bytes).map(Some)
        }
        [one, other, ..] => Err(Error::Refused(format!(
            "{external} has two records of epoch {}: {} and {}. Two servers wrote to it; move one of them away",
            one.epoch, one.meta.key, other.meta.key
        ))),
    }
}

/// Opens an external segment and checks that it is the one its record means.
pub fn open_segment(
    external: &Arc<dyn Volume>,
    entry: &SegmentEntry,
    cache: &Arc<BlockCache>,
) -> Result<Arc<Segment>> {
    let name = entry.parsed_name()?;
    let key = ObjectKey::new(entry.name.clone())?;
    let source = ExternalObject {
        volume: Arc::clone(external),
        key,
        len: entry.len,
    };
    let segment = Segment::open(Arc::new(source), Arc::clone(cache))?;
    check_segment(&segment, &format!("{external}/{}", entry.name), entry, name)?;
    Ok(Arc::new(segment.with_read_ahead(READ_AHEAD_BYTES)))
}
