//! The door for changes that do not come through the mount: scan, restore, undelete.
//!
//! The kernel keeps names, attributes and pages for a day, because it sees every change it makes
//! itself; what it does not see must be told here, after the change.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::types::Ino;

use super::convert;

/// Tells one mount's kernel side to forget.
///
/// **Call it from a thread that holds no engine lock and does not answer FUSE requests**: the kernel
/// waits for requests under way on the same directory or file, and those may wait for that lock.
#[derive(Clone, Debug)]
pub struct Notifier {
    kernel: fuser::Notifier,
    mountpoint: PathBuf,
}

impl Notifier {
    pub(super) fn new(kernel: fuser::Notifier, mountpoint: PathBuf) -> Notifier {
        Notifier { kernel, mountpoint }
    }

    /// A name came, went, or names something else. Also the directory's own attributes are asked anew.
    pub fn invalidate_entry(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.kernel
            .inval_entry(convert::number(parent), OsStr::from_bytes(name))
            .map_err(Error::io("notify", &self.mountpoint))
    }

    /// Content and attributes of an inode changed.
    pub fn invalidate_inode(&self, ino: Ino) -> Result<()> {
        self.kernel
            .inval_inode(convert::number(ino), 0, 0)
            .map_err(Error::io("notify", &self.mountpoint))
    }

    /// Only attributes of an inode changed.
    pub fn invalidate_attr(&self, ino: Ino) -> Result<()> {
        self.kernel
            .inval_inode(convert::number(ino), -1, 0)
            .map_err(Error::io("notify", &self.mountpoint))
    }
}
