//! A file that holds room for an emergency: when the disk is full in spite of the reserve, because others
//! write to it too, the journal still takes deletes, and what was accepted still finds its place
//! (invariant 8). It is given up at once, and made again when there is room.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::error::{Error, Result};

/// Name of the file in a backup path.
pub const NAME: &str = "ballast";
/// Enough for a pack, a frame and a segment at the same time.
const LEN_MAX: u64 = 64 << 20;
/// It is given up when less than this share of its own length is free beside it.
const EMERGENCY_SHARE: u64 = 4;

/// The file.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    /// How long it shall be: a part of the reserve.
    wanted_len: AtomicU64,
    /// How long it is. Changed with the lock held.
    len: AtomicU64,
    changing: Mutex<()>,
}

impl Ballast {
    /// The ballast of the backup path `root`, within a reserve of `reserve` bytes. Made at the first [`Ballast::tend`].
    pub fn new(root: &Path, reserve: u64) -> Ballast {
        let path = root.join(NAME);
        let len = fs::metadata(&path).map_or(0, |found| found.len());
        let ballast = Ballast {
            path,
            wanted_len: AtomicU64::new(0),
            len: AtomicU64::new(len),
            changing: Mutex::new(()),
        };
        ballast.set_reserve(reserve);
        ballast
    }

    /// The reserve is of this size from now on.
    pub fn set_reserve(&self, reserve: u64) {
        let len = (reserve / 4).min(LEN_MAX) / 4096 * 4096;
        self.wanted_len.store(len, Ordering::Relaxed);
    }

    /// How much it holds now.
    pub fn held_bytes(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether it was given up, and not made again yet.
    pub fn is_given_up(&self) -> bool {
        self.held_bytes() < self.wanted_len.load(Ordering::Relaxed)
    }

    /// Gives up what it holds. Says whether that was anything.
    pub fn give_up(&self) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.held_bytes() == 0 {
            return false;
        }
        let cut = OpenOptions::new().write(true).open(&self.path);
        match cut.and_then(|file| file.set_len(0)) {
            Ok(()) => {
                self.len.store(0, Ordering::Relaxed);
                tracing::warn!(path = %self.path.display(), "the disk is full: the ballast is given up");
                true
            }
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "the ballast cannot be given up");
                false
            }
        }
    }

    /// With `free` bytes free beside it: gives it up in an emergency, makes it when there is room.
    pub fn tend(&self, free: u64) -> Result<()> {
        let wanted = self.wanted_len.load(Ordering::Relaxed);
        let len = self.held_bytes();
        if len > 0 && free < len / EMERGENCY_SHARE {
            self.give_up();
        } else if len > wanted || (len < wanted && free >= 2 * wanted) {
            self.resize(wanted)?;
        }
        Ok(())
    }

    fn resize(&self, wanted: u64) -> Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted == 0 {
            self.len.store(0, Ordering::Relaxed);
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io("remove", &self.path)(error))
                }
                _ => Ok(()),
            };
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(Error::io("create", &self.path))?;
        match fallocate(&file, FallocateFlags::empty(), 0, wanted.cast_signed()) {
            Ok(()) => self.len.store(wanted, Ordering::Relaxed),
            // Somebody was faster: tried again later.
            Err(Errno::ENOSPC | Errno::EDQUOT) => {
                self.len.store(0, Ordering::Relaxed);
                file.set_len(0).map_err(Error::io("cut", &self.path))?;
            }
            // A file system that cannot hold room back: then there is none.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                self.len.store(0, Ordering::Relaxed);
                self.wanted_len.store(0, Ordering::Relaxed);
            }
            Err(errno) => return Err(Error::nix("allocate", &self.path)(errno)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_holds_room_gives_it_up_in_an_emergency_and_takes_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::new(dir.path(), 16 * MIB);
        let held = || fs::metadata(dir.path().join(NAME)).map_or(0, |found| found.blocks() * 512);
        assert!(ballast.is_given_up());
        ballast.tend(7 * MIB).unwrap();
        assert_eq!(
            (ballast.held_bytes(), held()),
            (0, 0),
            "there is no room for it"
        );
        ballast.tend(8 * MIB).unwrap();
        assert_eq!((ballast.held_bytes(), held()), (4 * MIB, 4 * MIB));
        ballast.tend(2 * MIB).unwrap();
        assert!(!ballast.is_given_up(), "that is no emergency yet");
        ballast.tend(MIB - 1).unwrap();
        assert_eq!((ballast.held_bytes(), held()), (0, 0));
        assert!(ballast.is_given_up() && !ballast.give_up());
        // Another process finds what this one left.
        ballast.tend(100 * MIB).unwrap();
        let ballast = Ballast::new(dir.path(), 0);
        assert_eq!(ballast.held_bytes(), 4 * MIB);
        ballast.tend(100 * MIB).unwrap();
        assert_eq!((ballast.held_bytes(), held()), (0, 0));
        assert!(!dir.path().join(NAME).exists() && !ballast.is_given_up());
    }
}
