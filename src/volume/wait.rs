//! Waiting until what is there now is safe: all of it, or a file or directory.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::pack::ledger::PackState;
use crate::types::{FileKind, Ino, PackId};
use crate::upload::UploadState;
use crate::volume::engine::{Durability, Status, Volume};
use crate::volume::settings::Store;
use crate::volume::tree::Tree;

/// Entries of a directory looked at in one step: a commit comes in between.
const STEP: usize = 256;
/// A volume that is away is looked for so often while somebody waits for it.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Progress is told after so many inodes.
const TELL_AFTER: u64 = 10_000;

/// Says whether to go on waiting.
pub type OnWait<'a> = &'a mut dyn FnMut(&Status) -> bool;

/// What must arrive before the wait is over.
#[derive(Debug, Default)]
struct Missing {
    /// Packs that are not on the external volume.
    packs: BTreeSet<PackId>,
    /// Some metadata is not.
    metadata: bool,
}

impl Volume {
    /// Waits until what was done so far is as safe as `level`; tells `progress` what is missing, twice
    /// a second. Gives up when `progress` says so.
    pub fn wait(&self, level: Durability, progress: OnWait<'_>) -> Result<()> {
        self.wait_for(level, None, progress)
    }

    /// The same for the file or directory `below`, with all that is in it, as it is now.
    pub fn wait_for(
        &self,
        level: Durability,
        below: Option<Ino>,
        progress: OnWait<'_>,
    ) -> Result<()> {
        if level <= Durability::Local {
            return self.commit();
        }
        if self.settings().store == Store::Local {
            return Err(Error::Refused(
                "there is no external volume to wait for: set one with tidefs store set dir PATH"
                    .into(),
            ));
        }
        let mut missing = Missing::default();
        if let Some(below) = below {
            // What is not in a pack yet is in one after this.
            self.commit()?;
            missing = self.missing_below(below, progress)?;
            let is_all_there =
                missing.packs.is_empty() && (level < Durability::Archived || !missing.metadata);
            if is_all_there {
                return Ok(());
            }
        }
        let epoch = self.close_epoch(None)?;
        if below.is_none() {
            let unsent = self.ledger.to_upload(usize::MAX);
            missing.packs = unsent.into_iter().map(|(pack, _)| pack).collect();
        }
        self.uploader.wake();
        let mut looked = None::<Instant>;
        loop {
            if looked.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL) {
                self.uploader.look_now();
                looked = Some(Instant::now());
            }
            let is_there = match level {
                Durability::Archived => self.ledger.archived_epoch() >= epoch,
                _ => !self
                    .ledger
                    .is_any_unsent(|pack| missing.packs.contains(&pack)),
            };
            if is_there {
                return Ok(());
            }
            if let UploadState::Refused { reason } = self.uploader.state() {
                return Err(Error::Refused(reason));
            }
            self.health.check()?;
            if !progress(&self.status()) {
                return Err(stopped());
            }
            self.uploader.wait_for_round(Duration::from_millis(500));
        }
    }

    /// Walks the tree below `top`.
    fn missing_below(&self, top: Ino, progress: OnWait<'_>) -> Result<Missing> {
        let mut missing = Missing::default();
        let mut dirs = Vec::new();
        self.look_at(top, self.getattr(top)?.kind, &mut missing, &mut dirs)?;
        let mut seen = 0_u64;
        while let Some(dir) = dirs.pop() {
            let mut after = None;
            loop {
                let entries = match self.readdir(dir, after.as_deref(), STEP) {
                    // Removed meanwhile: there is nothing to wait for.
                    Err(Error::Posix(_)) => break,
                    entries => entries?,
                };
                let Some(last) = entries.last() else { break };
                after = Some(last.name.to_vec());
                for entry in &entries {
                    self.look_at(entry.attr.ino, entry.attr.kind, &mut missing, &mut dirs)?;
                    seen += 1;
                    if seen.is_multiple_of(TELL_AFTER) && !progress(&self.status()) {
                        return Err(stopped());
                    }
                }
            }
        }
        Ok(missing)
    }

    fn look_at(
        &self,
        ino: Ino,
        kind: FileKind,
        missing: &mut Missing,
        dirs: &mut Vec<Ino>,
    ) -> Result<()> {
        let is_unsent = |pack: PackId| {
            let entry = self.ledger.get(pack);
            !entry.is_some_and(|entry| matches!(entry.state, PackState::Uploaded { .. }))
        };
        if kind == FileKind::File {
            let packs = match self.packs_of(ino) {
                Err(Error::Posix(_)) => return Ok(()),
                packs => packs?,
            };
            missing
                .packs
                .extend(packs.into_iter().filter(|pack| is_unsent(*pack)));
        }
        // One is enough to know.
        missing.metadata = missing.metadata || !self.is_metadata_archived(ino)?;
        if kind == FileKind::Dir {
            dirs.push(ino);
        }
        Ok(())
    }
}

fn stopped() -> Error {
    Error::Refused("stopped waiting".into())
}
