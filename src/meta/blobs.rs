//! Where each blob is, by its hash: local, and rebuilt from pack indexes whenever in doubt (invariant 4).
//!
//! Hashes are random keys, which neither page nor compress: so they do not go to the store but to sorted
//! immutable *runs* (`run`) with a Bloom filter each, and the recent ones to a map in memory. What is answered
//! is a hint that the record itself proves right or wrong; an entry may be missing, and dedupe then only
//! misses (invariant 9).
//!
//! Only packs whose blobs are all committed ([`BlobIndex::pack_complete`]) reach the disk: what is in flight dies with
//! the process, and a pack that a crash cut short is never named by an entry behind the cut (invariant 9).
//!
//! Memory: two maps of [`RECENT_MAX`] entries (8 MiB each), and 10.7 bits per entry on disk.
//!
//! Recovery: [`BlobIndex::covers`] tells the packs whose blobs are all in the runs; those of others are to be
//! inserted again.

mod bloom;
mod manifest;
mod merge;
mod packs;
mod run;

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::manifest::Manifest;
use self::packs::PackSet;
use self::run::Run;
use crate::error::{Error, Result};
use crate::types::{BlobHash, BlobLocation, PackId};

/// More entries than this are not kept in memory: then inserting writes a run itself. 7/8 of a power of two, where the
/// map would grow.
const RECENT_MAX: usize = 114_688;
/// From here on a flush is worth its while.
const RECENT_GOOD: usize = RECENT_MAX / 2;
/// More runs than this are to be merged.
const RUNS_MAX: usize = 8;

type Recent = HashMap<BlobHash, BlobLocation, BuildHasherDefault<FirstBytes>>;

/// Hash of a blob -> where it is, perhaps.
pub struct BlobIndex {
    dir: PathBuf,
    /// Held for map and list operations only, never across I/O.
    state: RwLock<State>,
    /// One flush, merge or forgetting at a time; held across their I/O. Taken before `state`.
    maintenance: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    recent: Recent,
    /// Being written to a run.
    frozen: Arc<Recent>,
    /// Newest last.
    runs: Vec<Arc<Run>>,
    /// Packs whose blobs have all been inserted, and with the next flush are durable here.
    complete: PackSet,
    /// Packs of which entries had to be dropped: they never become complete in this process.
    spilled: PackSet,
    covered: PackSet,
    dropped: PackSet,
    seq_next: u64,
}

/// What opening found.
#[derive(Debug)]
pub struct OpenedBlobs {
    /// Always usable, at worst empty.
    pub index: BlobIndex,
    /// What was thrown away, and why. No pack is covered then.
    pub discarded: Vec<String>,
}

impl BlobIndex {
    /// Opens or creates the index in `dir`, which is all its own.
    pub fn open(dir: &Path) -> Result<OpenedBlobs> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let mut discarded = Vec::new();
        let manifest = Manifest::read(dir).unwrap_or_else(|error| {
            discarded.push(error.chain());
            Some(Manifest::default())
        });
        let manifest = manifest.unwrap_or_default();
        let mut runs = Vec::new();
        for seq in &manifest.runs {
            match Run::open(dir, *seq) {
                Ok(run) => runs.push(Arc::new(run)),
                Err(error) => discarded.push(error.chain()),
            }
        }
        let seq_next = remove_strays(dir, &runs)?.max(manifest.seq_next);
        // Which packs a lost run was about is not known: all are to be added again.
        let covered = if discarded.is_empty() {
            manifest.covered
        } else {
            PackSet::default()
        };
        let state = State {
            runs,
            covered,
            dropped: manifest.dropped,
            seq_next,
            ..State::default()
        };
        let index = BlobIndex {
            dir: dir.to_owned(),
            state: RwLock::new(state),
            maintenance: Mutex::new(()),
        };
        if !discarded.is_empty() {
            index.save()?;
        }
        Ok(OpenedBlobs { index, discarded })
    }

    /// Notes where a blob is; a later place replaces an earlier one.
    ///
    /// When too much is in memory it writes a run first; call [`BlobIndex::flush`] in the background as soon as
    /// [`BlobIndex::wants_flush`], and it never does. If that does not help, what is in memory is dropped: dedupe
    /// misses, and the packs concerned do not count as covered.
    pub fn insert(&self, hash: BlobHash, location: BlobLocation) {
        let full = self.read().recent.len() >= RECENT_MAX;
        if full {
            if let Err(error) = self.flush_from(RECENT_MAX) {
                tracing::warn!("the blob index cannot be written: {}", error.chain());
            }
            self.write().spill();
        }
        self.write().recent.insert(hash, location);
    }

    /// Where the blob may be. A hint: the record there proves it.
    pub fn get(&self, hash: &BlobHash) -> Option<BlobLocation> {
        let runs = {
            let state = self.read();
            let found = state.recent.get(hash).or_else(|| state.frozen.get(hash));
            if let Some(location) = found.filter(|location| !state.dropped.contains(location.pack))
            {
                return Some(*location);
            }
            let with_hash = |run: &&Arc<Run>| run.may_contain(hash);
            state
                .runs
                .iter()
                .rev()
                .filter(with_hash)
                .cloned()
                .collect::<Vec<_>>()
        };
        runs.iter().find_map(|run| match run.get(hash) {
            Ok(found) => found.filter(|location| !self.read().dropped.contains(location.pack)),
            Err(error) => {
                self.discard_run(run, &error);
                None
            }
        })
    }

    /// All blobs of `pack` have been inserted and are committed, and it is sealed: from the next flush on it is covered.
    pub fn pack_complete(&self, pack: PackId) {
        let mut state = self.write();
        if !state.spilled.contains(pack) {
            state.complete.insert(pack);
        }
    }

    /// Whether all blobs of `pack` are durably in here.
    pub fn covers(&self, pack: PackId) -> bool {
        self.read().covered.contains(pack)
    }

    /// The pack is gone, or soon will be: no answer names it from now on, also after a crash once this has returned.
    pub fn forget_pack(&self, pack: PackId) -> Result<()> {
        self.forget_packs([pack])
    }

    /// The same for many at the price of one.
    pub fn forget_packs(&self, packs: impl IntoIterator<Item = PackId>) -> Result<()> {
        let _one_at_a_time = self.maintenance();
        {
            let mut state = self.write();
            for pack in packs {
                state.dropped.insert(pack);
                state.covered.remove(pack);
                state.complete.remove(pack);
            }
        }
        self.save()
    }

    /// Whether there is enough in memory, and of complete packs, to be worth a run.
    pub fn wants_flush(&self) -> bool {
        let state = self.read();
        state.recent.len() >= RECENT_GOOD && !state.complete.is_empty()
    }

    /// Makes all entries of complete packs durable.
    pub fn flush(&self) -> Result<()> {
        self.flush_from(0)
    }

    /// Flushes if, once it is our turn, there are still this many entries.
    fn flush_from(&self, count_min: usize) -> Result<()> {
        let _one_at_a_time = self.maintenance();
        let (frozen, seq, complete) = {
            let mut state = self.write();
            if state.recent.len() < count_min {
                return Ok(());
            }
            state.freeze();
            if state.frozen.is_empty() && state.complete.is_empty() {
                return Ok(());
            }
            let frozen = Arc::clone(&state.frozen);
            (
                frozen,
                state.take_seq(),
                std::mem::take(&mut state.complete),
            )
        };
        let written = self.write_run(&frozen, seq);
        {
            let mut state = self.write();
            let frozen = std::mem::take(&mut state.frozen);
            if let Ok(run) = &written {
                state.runs.extend(run.clone());
                state.covered.extend(&complete);
            } else {
                // What came since is newer.
                let newer = std::mem::replace(&mut state.recent, Arc::unwrap_or_clone(frozen));
                state.recent.extend(newer);
                state.complete.extend(&complete);
            }
        }
        written?;
        self.save()
    }

    fn write_run(&self, entries: &Recent, seq: u64) -> Result<Option<Arc<Run>>> {
        let dropped = self.read().dropped.clone();
        let mut sorted: Vec<(BlobHash, BlobLocation)> = entries
            .iter()
            .filter(|(_, location)| !dropped.contains(location.pack))
            .map(|(hash, location)| (*hash, *location))
            .collect();
        if sorted.is_empty() {
            return Ok(None);
        }
        sorted.sort_unstable_by_key(|(hash, _)| *hash);
        let mut writer = run::RunWriter::create(&self.dir, seq, sorted.len())?;
        for (hash, location) in &sorted {
            writer.push(hash, location)?;
        }
        Ok(Some(Arc::new(writer.finish()?)))
    }

    /// Writes the manifest. Call with `maintenance` held.
    fn save(&self) -> Result<()> {
        let manifest = {
            let state = self.read();
            Manifest {
                seq_next: state.seq_next,
                runs: state.runs.iter().map(|run| run.seq()).collect(),
                covered: state.covered.clone(),
                dropped: state.dropped.clone(),
            }
        };
        manifest.write(&self.dir)
    }

    /// A damaged run is no longer asked; its file goes at the next opening.
    fn discard_run(&self, run: &Arc<Run>, error: &Error) {
        tracing::warn!("the blob index drops a run: {}", error.chain());
        let mut state = self.write();
        state.runs.retain(|other| !Arc::ptr_eq(other, run));
        state.covered = PackSet::default();
    }

    /// Entries in memory and in runs; one that is in several counts each time.
    pub fn entry_count(&self) -> u64 {
        let state = self.read();
        let in_memory = u64::try_from(state.recent.len() + state.frozen.len()).unwrap_or(u64::MAX);
        in_memory + state.runs.iter().map(|run| run.entry_count()).sum::<u64>()
    }

    /// How many runs there are.
    pub fn run_count(&self) -> usize {
        self.read().runs.len()
    }

    /// Bytes of the runs.
    pub fn len_on_disk(&self) -> Result<u64> {
        crate::meta::atomic::len_on_disk(&self.dir)
    }

    fn maintenance(&self) -> MutexGuard<'_, ()> {
        self.maintenance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    // A panic under this lock can only come from an allocation; at worst an entry is missing.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sets the entries apart that may reach the disk.
    fn freeze(&mut self) {
        let State {
            recent,
            complete,
            covered,
            ..
        } = self;
        let ready = |_: &BlobHash, at: &mut BlobLocation| {
            complete.contains(at.pack) || covered.contains(at.pack)
        };
        self.frozen = Arc::new(recent.extract_if(ready).collect());
    }

    /// Drops what is in memory if it is still too much: it is of packs not yet complete, or could not be written.
    fn spill(&mut self) {
        if self.recent.len() < RECENT_MAX {
            return;
        }
        tracing::warn!(
            "the blob index forgets {} entries: dedupe may miss them",
            self.recent.len()
        );
        for (_, location) in self.recent.drain() {
            self.spilled.insert(location.pack);
            self.complete.remove(location.pack);
            self.covered.remove(location.pack);
        }
    }

    fn take_seq(&mut self) -> u64 {
        let seq = self.seq_next;
        self.seq_next += 1;
        seq
    }
}

impl fmt::Debug for BlobIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.read();
        write!(
            f,
            "BlobIndex({}, {} in memory, {} runs)",
            self.dir.display(),
            state.recent.len(),
            state.runs.len()
        )
    }
}

/// Removes runs of an unfinished flush or merge and damaged ones; gives a number above all that were ever seen.
fn remove_strays(dir: &Path, runs: &[Arc<Run>]) -> Result<u64> {
    let known: BTreeSet<u64> = runs.iter().map(|run| run.seq()).collect();
    let mut seq_next = 0;
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let Some(seq) = run::seq_of(&path) else {
            continue;
        };
        seq_next = seq_next.max(seq.saturating_add(1));
        if !known.contains(&seq) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(seq_next)
}

/// A SHA-256 is random already: its first eight bytes are its hash.
#[derive(Debug, Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    // The length of the array, which says nothing.
    fn write_usize(&mut self, _len: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
