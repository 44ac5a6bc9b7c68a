//! What makes appended records durable, apart from the writer, so that nobody waits for a disk with
//! the writer's lock in hand.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use crate::error::{Error, Result};

/// What all tickets of one pack and its writer share.
#[derive(Debug)]
pub(super) struct SyncState {
    path: PathBuf,
    /// Why nothing more may be acknowledged.
    poison: OnceLock<String>,
    /// The file is durable up to here; above zero, so are its directory entries.
    ///
    /// Held across fdatasync, on purpose: the kernel reports a failed write-back to one caller only,
    /// so of two concurrent calls the second would return Ok for bytes that are lost.
    synced_len: Mutex<u32>,
}

impl SyncState {
    pub(super) fn new(path: PathBuf) -> SyncState {
        SyncState {
            path,
            poison: OnceLock::new(),
            synced_len: Mutex::new(0),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails for ever after the first failure: a second fsync after a failed one says Ok and lies.
    pub(super) fn check(&self) -> Result<()> {
        self.poison
            .get()
            .map_or(Ok(()), |reason| Err(Error::Poisoned(reason.clone())))
    }

    /// Passes an outcome on, and remembers a failure.
    pub(super) fn keep<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            // Only the first reason counts; the later ones follow from it.
            let _ = self.poison.set(error.chain());
        }
        outcome
    }
}

/// The promise that everything up to a length has been handed to the file system, to be redeemed by
/// [`SyncTicket::sync`]. May be redeemed by any thread, in any order, more than once, or never.
#[derive(Clone, Debug)]
#[must_use = "nothing is durable before sync()"]
pub struct SyncTicket {
    pub(super) file: Arc<File>,
    pub(super) len: u32,
    pub(super) state: Arc<SyncState>,
}

impl SyncTicket {
    /// The length of the pack that will be durable: a whole number of blocks, and so a length that a
    /// committed frame may name and recovery may cut at.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Never: a pack has a header.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes the pack up to [`SyncTicket::len`] survive a power cut, its directory entries included
    /// (invariants 1 and 2). Does nothing when a sync *that has returned* already did.
    pub fn sync(&self) -> Result<()> {
        let Ok(mut synced_len) = self.state.synced_len.lock() else {
            return Err(Error::Poisoned(
                "a thread died while it synced a pack".to_owned(),
            ));
        };
        self.state.check()?;
        if *synced_len >= self.len {
            return Ok(());
        }
        let path = self.state.path();
        let mut outcome = self.file.sync_data().map_err(Error::io("sync", path));
        if outcome.is_ok() && *synced_len == 0 {
            outcome = sync_parents(path);
        }
        self.state.keep(outcome)?;
        *synced_len = self.len;
        Ok(())
    }
}

/// Syncs the shard directory of a pack, `items` and the backup path.
///
/// All three, whoever made them: a directory may have been made by a process that was killed before
/// it synced, and nothing tells that from one that is durable.
pub(super) fn sync_parents(path: &Path) -> Result<()> {
    for dir in path.ancestors().skip(1).take(3) {
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::io("sync", dir))?;
    }
    Ok(())
}
