//! The read cache: records of evicted packs that were fetched again, put back into the holes they left.
//!
//! Only holes are filled, and only of packs that the external volume holds: a byte whose only copy is here is
//! never touched (invariants 1 and 8). Bytes once synced are never rewritten in place, so that a power cut in
//! the middle cannot take what was acknowledged; a hole has nothing to take. Hence no fsync: whatever a crash
//! leaves of a fill, all, parts, or pages in any order, each record proves itself when it is read (crc, place
//! and name), and one that does not is fetched once more.
//!
//! What is refilled has a budget of its own: unsent data never displaces it, nor the other way round, except
//! that it goes first when the disk is nearly full. The least recently used pack goes first, and goes whole. No
//! fetching here: records come in from `fetch`.
//!
//! Locks: a pack's own, held across its writes or its punching, then the table's, which is a leaf.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::ledger::{Ledger, PackState};
use super::punch::punch;
use super::read::{LocalPack, PackIndex, ReadAt, is_record, read_index, record_read_len};
use crate::error::{Error, Result};
use crate::format::pack::BLOCK_LEN;
use crate::types::{BlobHash, BlobLocation, PackId};

/// What an evicted pack may take without being looked at more closely when the cache is measured: its header
/// and index. One that has a little more counts as empty until it is filled again.
const EMPTY_BYTES_MAX: u64 = 64 << 10;
/// Uses since the opening are numbered from here: below is room for those that came before.
const FIRST_USE: u64 = 1 << 32;

/// How much the read cache may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadCacheLimits {
    /// Bytes of records; zero for no read cache on disk.
    pub bytes_max: u64,
    /// Nothing is put back while the file system has less than this free.
    pub free_bytes_min: u64,
}

/// A record that was fetched and checked.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Where it belongs.
    pub location: BlobLocation,
    /// Which blob it is.
    pub blob: BlobHash,
    /// Header and payload.
    pub bytes: Bytes,
}

/// The read cache of a backup path.
#[derive(Debug)]
pub struct ReadCache {
    root: PathBuf,
    ledger: Arc<Ledger>,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    limits: ReadCacheLimits,
    packs: HashMap<PackId, Cached>,
    by_use: BTreeMap<u64, PackId>,
    next_use: u64,
    bytes: u64,
    /// Promised to fills that are being written.
    reserved: u64,
}

#[derive(Debug)]
struct Cached {
    bytes: u64,
    used: u64,
    /// Held by whoever writes into the pack or punches it.
    lock: Arc<Mutex<()>>,
}

impl Table {
    fn touch(&mut self, pack: PackId) {
        let used = self.next_use;
        let Some(cached) = self.packs.get_mut(&pack) else {
            return;
        };
        self.by_use.remove(&cached.used);
        cached.used = used;
        self.by_use.insert(used, pack);
        self.next_use += 1;
    }

    /// Notes that `pack` has `bytes` of records now. It may have been emptied and left out since it was begun.
    fn set(&mut self, pack: PackId, bytes: u64) {
        let Some(cached) = self.packs.get_mut(&pack) else {
            return self.insert_now(pack, bytes);
        };
        self.bytes = self.bytes - cached.bytes + bytes;
        cached.bytes = bytes;
    }

    fn insert_now(&mut self, pack: PackId, bytes: u64) {
        let used = self.next_use;
        self.next_use += 1;
        self.insert(pack, bytes, used);
    }

    fn insert(&mut self, pack: PackId, bytes: u64, used: u64) {
        let lock = Arc::default();
        self.packs.insert(pack, Cached { bytes, used, lock });
        self.by_use.insert(used, pack);
        self.bytes += bytes;
    }

    fn remove(&mut self, pack: PackId) {
        if let Some(cached) = self.packs.remove(&pack) {
            self.by_use.remove(&cached.used);
            self.bytes -= cached.bytes;
        }
    }

    /// The least recently used pack but `spared`.
    fn oldest(&self, spared: Option<PackId>) -> Option<PackId> {
        let mut packs = self.by_use.values().copied();
        packs.find(|pack| Some(*pack) != spared)
    }
}

impl ReadCache {
    /// The read cache of `root`. Empty, and without a budget, until it is told otherwise.
    pub fn new(root: &Path, ledger: Arc<Ledger>) -> ReadCache {
        ReadCache {
            root: root.to_owned(),
            ledger,
            table: Mutex::new(Table {
                limits: ReadCacheLimits {
                    bytes_max: 0,
                    free_bytes_min: 0,
                },
                packs: HashMap::new(),
                by_use: BTreeMap::new(),
                next_use: FIRST_USE,
                bytes: 0,
                reserved: 0,
            }),
        }
    }

    // A panic under this lock can only come from an allocation; at worst a count is wrong.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, pack: PackId) -> PathBuf {
        self.root.join(pack.object_name())
    }

    /// Bytes of records that were put back.
    pub fn bytes(&self) -> u64 {
        self.table().bytes
    }

    /// Sets the budget, and gives back what is above it.
    pub fn set_limits(&self, limits: ReadCacheLimits) {
        let above = {
            let mut table = self.table();
            table.limits = limits;
            table.bytes.saturating_sub(limits.bytes_max)
        };
        if above > 0 {
            self.give_back(above);
        }
    }

    /// A record of `pack` was read here.
    pub fn touch(&self, pack: PackId) {
        self.table().touch(pack);
    }

    /// Whether `pack` may be filled: emptied here, and on the external volume (invariant 8).
    fn is_evicted(&self, pack: PackId) -> bool {
        self.ledger
            .get(pack)
            .is_some_and(|entry| entry.evicted && matches!(entry.state, PackState::Uploaded { .. }))
    }

    /// Puts records back into `pack`, whose own index is `index`. Returns whether they are there now: not when
    /// the pack is not an evicted one, or there is no room for them.
    pub fn fill(&self, pack: PackId, index: &PackIndex, records: &[Fetched]) -> Result<bool> {
        let len: u64 = records.iter().map(|record| record.bytes.len() as u64).sum();
        let needed = len + 2 * u64::from(BLOCK_LEN);
        if !self.is_evicted(pack) || self.is_disk_short()? || !self.reserve(pack, needed) {
            return Ok(false);
        }
        let written = self.write(pack, index, records);
        self.table().reserved -= needed;
        written.map(|()| true)
    }

    fn is_disk_short(&self) -> Result<bool> {
        let stat =
            nix::sys::statvfs::statvfs(&self.root).map_err(Error::nix("statvfs", &self.root))?;
        let free = stat.blocks_available() * stat.fragment_size();
        Ok(free < self.table().limits.free_bytes_min)
    }

    /// Promises `needed` bytes for `pack`, at the cost of packs that were used longer ago.
    fn reserve(&self, pack: PackId, needed: u64) -> bool {
        loop {
            let victim = {
                let mut table = self.table();
                if table.bytes + table.reserved + needed <= table.limits.bytes_max {
                    table.reserved += needed;
                    return true;
                }
                match table.oldest(Some(pack)) {
                    Some(victim) if needed <= table.limits.bytes_max => victim,
                    _ => return false,
                }
            };
            self.empty(victim);
        }
    }

    fn write(&self, pack: PackId, index: &PackIndex, records: &[Fetched]) -> Result<()> {
        let lock = self.lock_of(pack);
        let _one_at_a_time = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let local = LocalPack::open_writable(&self.path(pack))?;
        // Not beyond what this very index was read from.
        if local.len()? != u64::from(index.pack_len) {
            let reason = "its length is not the one of its index";
            return Err(Error::corrupt(local.name(), 0, reason));
        }
        let mut outcome = Ok(());
        for record in records {
            outcome = put_back(&local, index, record);
            if outcome.is_err() {
                break;
            }
        }
        let bytes = local.allocated_bytes()?.saturating_sub(index.kept_bytes());
        self.table().set(pack, bytes);
        outcome
    }

    /// The lock of a pack that is about to be filled, which counts as a use.
    fn lock_of(&self, pack: PackId) -> Arc<Mutex<()>> {
        let mut table = self.table();
        if !table.packs.contains_key(&pack) {
            table.insert_now(pack, 0);
        }
        table.touch(pack);
        let cached = table.packs.get(&pack);
        cached
            .map(|cached| Arc::clone(&cached.lock))
            .unwrap_or_default()
    }

    /// Gives back at least `bytes`, if there are so many, of what was used longest ago. Returns how many.
    pub fn give_back(&self, bytes: u64) -> u64 {
        let mut given = 0;
        while given < bytes {
            let Some(victim) = self.table().oldest(None) else {
                break;
            };
            given += self.empty(victim);
        }
        given
    }

    /// Makes holes of what was put back into `pack`. Returns how many bytes that were.
    fn empty(&self, pack: PackId) -> u64 {
        let (lock, bytes) = match self.table().packs.get(&pack) {
            Some(cached) => (Arc::clone(&cached.lock), cached.bytes),
            None => return 0,
        };
        let _one_at_a_time = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let punched = if self.is_evicted(pack) {
            punch(&self.path(pack), pack, 0..u32::MAX)
        } else {
            Ok(0)
        };
        self.table().remove(pack);
        match punched {
            Ok(_) => bytes,
            Err(error) => {
                tracing::warn!(error = %error.chain(), "a pack in the read cache could not be emptied");
                0
            }
        }
    }

    /// Finds what earlier sessions put back, from the blocks that the files of evicted packs have. Until it is
    /// done the cache may take that much more than its budget.
    pub fn measure(&self, stop: &AtomicBool) {
        let mut found = Vec::new();
        for (pack, entry) in self.ledger.all() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if entry.evicted
                && let Some((filled, bytes)) = refilled(&self.path(pack), pack)
            {
                found.push((filled, pack, bytes));
            }
        }
        found.sort_unstable();
        let above = {
            let mut table = self.table();
            for (used, (_, pack, bytes)) in (0..FIRST_USE).zip(found) {
                if !table.packs.contains_key(&pack) {
                    table.insert(pack, bytes, used);
                }
            }
            table.bytes.saturating_sub(table.limits.bytes_max)
        };
        if above > 0 {
            self.give_back(above);
        }
    }
}

/// When an evicted pack was last filled, and its bytes; `None` if it is as empty as it should be.
fn refilled(path: &Path, pack: PackId) -> Option<((i64, i64), u64)> {
    let meta = std::fs::metadata(path).ok()?;
    if meta.blocks() * 512 <= EMPTY_BYTES_MAX {
        return None;
    }
    let local = LocalPack::open(path).ok()?;
    // Without an index it cannot be filled or emptied; what it holds is served all the same.
    let kept = read_index(&local, pack).ok()?.kept_bytes();
    let bytes = (meta.blocks() * 512).saturating_sub(kept);
    (bytes > 0).then_some(((meta.mtime(), meta.mtime_nsec()), bytes))
}

/// Writes a record where the index has it, unless it is there already.
fn put_back(local: &LocalPack, index: &PackIndex, record: &Fetched) -> Result<()> {
    let Fetched {
        location,
        blob,
        bytes,
    } = record;
    let is_named = index
        .entry_at(location.offset)
        .is_some_and(|entry| entry.hash == *blob && entry.location(location.pack) == *location);
    if !is_named || !is_record(bytes, location, *blob) {
        let reason = "a record was fetched that the local index does not name";
        return Err(Error::corrupt(
            local.name(),
            u64::from(location.offset),
            reason,
        ));
    }
    let (offset, len) = (u64::from(location.offset), record_read_len(location));
    if !local.is_hole(offset..offset + len as u64) {
        let here = local.read_at(offset, len)?;
        if is_record(&here, location, *blob) {
            return Ok(());
        }
    }
    let bytes = bytes.get(..len).unwrap_or(bytes);
    local
        .file
        .write_all_at(bytes, offset)
        .map_err(Error::io("write", &local.path))
}

#[cfg(test)]
mod tests;
