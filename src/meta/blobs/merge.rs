//! Merging runs, so that a lookup asks few: the newest, and older ones only where they are not much longer, so that
//! an entry is rewritten a logarithmic number of times.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use super::run::{Run, RunWriter};
use super::{BlobIndex, RUNS_MAX};
use crate::error::{Error, Result};
use crate::types::{BlobHash, BlobLocation, PackId};

/// A merge takes at least this many runs, ...
const MERGE_MIN: usize = 4;
/// ... and every further one that is not longer than so many times those taken.
const MERGE_RATIO: u64 = 2;

impl BlobIndex {
    /// Merges some runs into one if there are too many, leaving out entries of packs that were forgotten or that are not to
    /// be kept. Whether it did.
    pub fn merge_if_needed(&self, keep: impl Fn(PackId) -> bool) -> Result<bool> {
        let _one_at_a_time = self.maintenance();
        let runs = self.read().runs.clone();
        if runs.len() <= RUNS_MAX {
            return Ok(false);
        }
        self.merge(choose(&runs), &keep)?;
        Ok(true)
    }

    /// Merges all runs into one; with it, the list of forgotten packs becomes empty.
    pub fn merge_all(&self, keep: impl Fn(PackId) -> bool) -> Result<()> {
        let _one_at_a_time = self.maintenance();
        let runs = self.read().runs.clone();
        self.merge(&runs, &keep)
    }

    fn merge(&self, old: &[Arc<Run>], keep: &dyn Fn(PackId) -> bool) -> Result<()> {
        let (seq, dropped) = {
            let mut state = self.write();
            (state.take_seq(), state.dropped.clone())
        };
        let count = old.iter().map(|run| run.entry_count()).sum::<u64>();
        let mut writer =
            RunWriter::create(&self.dir, seq, usize::try_from(count).unwrap_or(usize::MAX))?;
        let kept = |pack: PackId| !dropped.contains(pack) && keep(pack);
        if let Err((bad, error)) = merge_into(&mut writer, old, &kept) {
            if let Some(run) = bad {
                self.discard_run(run, &error);
                self.save()?;
            }
            return Err(error);
        }
        let merged = writer.finish()?;
        {
            let mut state = self.write();
            let is_old = |run: &Arc<Run>| old.iter().any(|other| Arc::ptr_eq(run, other));
            let newest = state.runs.iter().rposition(is_old).map_or(0, |at| at + 1);
            let all = state.runs.iter().all(is_old);
            if merged.entry_count() > 0 {
                state.runs.insert(newest, Arc::new(merged));
            }
            state.runs.retain(|run| !is_old(run));
            if all {
                // Nothing is left that names them.
                state
                    .recent
                    .retain(|_, location| !dropped.contains(location.pack));
                state.dropped.subtract(&dropped);
            }
        }
        self.save()?;
        for run in old {
            fs::remove_file(run.path()).map_err(Error::io("remove", run.path()))?;
        }
        Ok(())
    }
}

/// The newest runs. Only neighbours in age may be merged: else an entry would come to hide a newer one.
fn choose(runs: &[Arc<Run>]) -> &[Arc<Run>] {
    let (mut first, mut sum) = (runs.len(), 0);
    for (at, run) in runs.iter().enumerate().rev() {
        if runs.len() - first >= MERGE_MIN && run.entry_count() > sum * MERGE_RATIO {
            break;
        }
        (first, sum) = (at, sum + run.entry_count());
    }
    &runs[first..]
}

type Damage<'r> = (Option<&'r Arc<Run>>, Error);

/// Writes the newest entry of each hash. `old` is in order of age.
fn merge_into<'r>(
    writer: &mut RunWriter,
    old: &'r [Arc<Run>],
    keep: &dyn Fn(PackId) -> bool,
) -> Result<(), Damage<'r>> {
    let mut scans: Vec<_> = old.iter().map(|run| run.scan()).collect();
    // The next entry of each run, by hash and then by age.
    let mut heads: BTreeMap<(BlobHash, usize), BlobLocation> = BTreeMap::new();
    let mut next =
        |at: usize, heads: &mut BTreeMap<(BlobHash, usize), BlobLocation>| match scans[at].next() {
            Some(Ok((hash, location))) => {
                heads.insert((hash, at), location);
                Ok(())
            }
            Some(Err(error)) => Err((Some(&old[at]), error)),
            None => Ok(()),
        };
    for at in 0..old.len() {
        next(at, &mut heads)?;
    }
    while let Some(((hash, at), mut location)) = heads.pop_first() {
        let mut kept = keep(location.pack);
        next(at, &mut heads)?;
        while let Some(entry) = heads.first_entry()
            && entry.key().0 == hash
        {
            let ((_, newer_at), newer) = entry.remove_entry();
            if keep(newer.pack) {
                (kept, location) = (true, newer);
            }
            next(newer_at, &mut heads)?;
        }
        if kept {
            writer
                .push(&hash, &location)
                .map_err(|error| (None, error))?;
        }
    }
    Ok(())
}
