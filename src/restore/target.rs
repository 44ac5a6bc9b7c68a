//! The destination as a whole: made, held against a second restore, and marked until it is complete.

use std::fs::{self, File};
use std::path::Path;

use crate::clock;
use crate::error::{Error, Result};
use crate::restore::dest::{self, Dest, make_file, sweep};
use crate::restore::name::SafeName;

/// Opens the destination; with it, whether its own owner, mode and times are ours to set: it is new, empty, or an
/// earlier run made it and did not come to its end.
pub(super) fn open_dest(to: &Path, dry_run: bool) -> Result<(Option<Dest>, bool)> {
    let is_there = match fs::symlink_metadata(to) {
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io("look at", to)(error)),
    };
    if !is_there {
        if dry_run {
            return Ok((None, true));
        }
        fs::create_dir_all(to).map_err(Error::io("create", to))?;
    }
    let run = u64::from_le_bytes(clock::random()?);
    let dest = Dest::open(to, run)?;
    let is_ours = !is_there || dest::is_unfinished(dest.root()).map_err(Error::io("list", to))?;
    Ok((Some(dest), is_ours))
}

/// One restore at a time in a directory: each would take the other's unfinished files for left ones.
pub(super) fn lock(dest: &Dest) -> Result<File> {
    let file = dest.root().try_clone().map(File::from);
    let file = file.map_err(Error::io("open", dest.path()))?;
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Err(Error::Refused(format!(
            "another restore is at work in {}: wait for its end",
            dest.path().display()
        ))),
        // File systems without locks have none to wait for.
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(file),
    }
}

/// A file that says, for as long as it is there, that the destination is not complete.
#[derive(Debug)]
pub(super) struct Marker<'a> {
    dest: &'a Dest,
    name: SafeName,
}

/// Removes what an earlier run left at the top, and marks the destination if it is ours.
pub(super) fn mark(dest: &Dest, is_ours: bool) -> Result<Option<Marker<'_>>> {
    sweep(dest.root()).map_err(Error::io("clean up", dest.path()))?;
    if !is_ours {
        return Ok(None);
    }
    let name = dest.temporary();
    make_file(dest.root(), &name).map_err(Error::nix("write to", dest.path()))?;
    Ok(Some(Marker { dest, name }))
}

impl Marker<'_> {
    /// The destination is complete.
    pub(super) fn remove(self) -> Result<()> {
        let path = self.dest.path();
        dest::remove(self.dest.root(), &self.name).map_err(Error::nix("remove a file of", path))
    }
}
