//! The door for changes that do not come through the mount: scan, restore, undelete.
//!
//! The kernel keeps names, attributes and pages for a day, because it sees every change it makes
//! itself; what it does not see must be told here, after the change.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, Result};
use crate::types::Ino;

use super::convert;

/// Tells one mount's kernel side to forget.
///
/// **Call it from a thread that holds no engine lock and does not answer FUSE requests**: the kernel
/// waits for requests under way on the same directory or file, and those may wait for that lock.
#[derive(Clone, Debug)]
pub struct Notifier {
    /// `None` once the session is over.
    kernel: Arc<RwLock<Option<fuser::Notifier>>>,
    mountpoint: PathBuf,
}

impl Notifier {
    pub(super) fn new(kernel: fuser::Notifier, mountpoint: PathBuf) -> Notifier {
        Notifier {
            kernel: Arc::new(RwLock::new(Some(kernel))),
            mountpoint,
        }
    }

    pub(super) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Lets go of the connection, for all clones.
    pub(super) fn close(&self) {
        let mut kernel = self.kernel.write().unwrap_or_else(PoisonError::into_inner);
        *kernel = None;
    }

    /// A name came, went, or names something else. Also the directory's own attributes are asked anew.
    pub fn invalidate_entry(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let name = OsStr::from_bytes(name);
        self.tell(|kernel| kernel.inval_entry(convert::number(parent), name))
    }

    /// Content and attributes of an inode changed.
    pub fn invalidate_inode(&self, ino: Ino) -> Result<()> {
        self.tell(|kernel| kernel.inval_inode(convert::number(ino), 0, 0))
    }

    /// Only attributes of an inode changed.
    pub fn invalidate_attr(&self, ino: Ino) -> Result<()> {
        self.tell(|kernel| kernel.inval_inode(convert::number(ino), -1, 0))
    }

    /// After the end there is nothing to forget.
    fn tell(&self, send: impl FnOnce(&fuser::Notifier) -> io::Result<()>) -> Result<()> {
        // A clone, so that no lock is held while the kernel waits for others.
        let kernel = self
            .kernel
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match kernel {
            Some(kernel) => send(&kernel).map_err(Error::io("notify", &self.mountpoint)),
            None => Ok(()),
        }
    }
}
