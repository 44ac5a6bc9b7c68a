//! What a take-over needs, fetched and verified beside the backup path before anything of it is touched.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vfs::ObjectKey;

use super::packs::Packs;
use super::switch::remove_dir;
use super::{BLOCK_CACHE_BYTES, OnStep, Scene, THREADS, write_whole};
use crate::error::{Error, Result};
use crate::format::record::{EPOCHS_PREFIX, IDENTITY_NAME, Identity, SegmentEntry};
use crate::format::segment::{BlockCache, FileSource, Segment};
use crate::journal;
use crate::pack::ledger::Ledger;
use crate::upload::fork::claims;
use crate::volume::archive::{SEGMENTS_DIR, check_segment};

/// Below the backup path, so that renames suffice.
pub(super) const STAGE_DIR: &str = "take-over.stage";
/// Bytes of a segment that are fetched at once.
const PIECE_LEN: u64 = 8 << 20;

/// The place where everything is made ready.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) dir: PathBuf,
}

impl Stage {
    /// Begins anew: what an earlier attempt has left is fetched again.
    pub(super) fn begin(root: &Path) -> Result<Stage> {
        let dir = root.join(STAGE_DIR);
        remove_dir(&dir)?;
        for name in [
            EPOCHS_PREFIX,
            "server/claims",
            SEGMENTS_DIR,
            journal::DIR,
            "items",
        ] {
            let dir = dir.join(name);
            fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        }
        Ok(Stage { dir })
    }

    /// Keeps `bytes` under the object's name.
    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_whole(&self.dir.join(name), bytes)
    }

    /// Identity, claims, the newest record and its segments.
    pub(super) fn metadata(&self, scene: &Scene<'_>, progress: OnStep<'_>) -> Result<()> {
        let identity = Identity {
            store: None,
            ..scene.there.clone()
        };
        self.put(IDENTITY_NAME, &identity.encode())?;
        self.link_claims(scene)?;
        // Older records are of no use here: the segments of the newest have all of history.
        self.put(scene.newest.meta.key.as_str(), &scene.record_bytes)?;
        let cache = Arc::new(BlockCache::new(BLOCK_CACHE_BYTES));
        let all: u64 = scene.record.segments.iter().map(|entry| entry.len).sum();
        let mut done = 0;
        for entry in &scene.record.segments {
            progress("fetching metadata", done, all);
            self.segment(scene, entry, &cache)?;
            done += entry.len;
        }
        Ok(())
    }

    /// The claims that are there: each of them must be here too, or we would refuse ourselves.
    pub(super) fn link_claims(&self, scene: &Scene<'_>) -> Result<()> {
        for (key, claim) in claims(&*scene.external, "")? {
            self.put(key.as_str(), &claim.encode())?;
        }
        Ok(())
    }

    fn segment(
        &self,
        scene: &Scene<'_>,
        entry: &SegmentEntry,
        cache: &Arc<BlockCache>,
    ) -> Result<()> {
        let (here, path) = (scene.root.join(&entry.name), self.dir.join(&entry.name));
        if here.exists() && is_whole(&here, entry, cache) {
            return fs::hard_link(&here, &path).map_err(Error::io("link", &here));
        }
        let key = ObjectKey::new(entry.name.clone())?;
        let mut file = File::create(&path).map_err(Error::io("create", &path))?;
        let mut offset = 0;
        while offset < entry.len {
            let end = (offset + PIECE_LEN).min(entry.len);
            let piece = scene.external.get(&key, offset..end)?;
            file.write_all(&piece).map_err(Error::io("write", &path))?;
            offset = end;
        }
        drop(file);
        verify(&path, entry, cache)
    }

    /// What is known of each pack from here on: what the listing showed, and nothing of before.
    pub(super) fn ledger(&self, scene: &Scene<'_>, packs: &Packs, now_secs: u64) -> Result<()> {
        let ledger = Ledger::open(&self.dir.join(journal::DIR), scene.store.copy_uuid())?;
        packs.enter(&ledger, now_secs, scene.is_our_past)?;
        ledger.archived(scene.record.epoch, now_secs)?;
        ledger.sync()
    }

    /// Makes all of it durable.
    pub(super) fn settle(&self) -> Result<()> {
        let dir = File::open(&self.dir).map_err(Error::io("open", &self.dir))?;
        nix::unistd::syncfs(&dir).map_err(Error::nix("sync", &self.dir))
    }
}

fn is_whole(path: &Path, entry: &SegmentEntry, cache: &Arc<BlockCache>) -> bool {
    verify(path, entry, cache).is_ok()
}

fn verify(path: &Path, entry: &SegmentEntry, cache: &Arc<BlockCache>) -> Result<()> {
    let source = Arc::new(FileSource::open(path)?);
    let segment = Arc::new(Segment::open(source, Arc::clone(cache))?);
    check_segment(&segment, &entry.name, entry, entry.parsed_name()?)?;
    segment.verify()
}

/// Does `work` for each, several at a time; the first error ends it.
pub(super) fn each<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS.min(items.len()))
            .map(|_| {
                scope.spawn(|| {
                    while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                        work(item).inspect_err(|_| next.store(items.len(), Ordering::Relaxed))?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(Error::Poisoned("a thread panicked".into())))
        })
    })
}
