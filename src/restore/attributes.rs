//! Owner, mode, extended attributes and times of what was restored, always through its open descriptor: a name may
//! have been given to something else meanwhile.
//!
//! A file gets rights that its owner's files do not have by themselves (set-user-ID, capabilities) only together with
//! that owner, and only from root.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};
use rustix::fs::XattrFlags;

use crate::error::Result;
use crate::format::inode::Inode;
use crate::meta::view::View;
use crate::restore::dest::way_to;
use crate::restore::report::Obstacle;
use crate::types::{FileKind, Ino, escape};
use crate::volume::namespace;
use crate::volume::tree::MODE_BITS;

const SET_IDS: u16 = 0o6000;
/// Rights of a program, bound to its file as set-user-ID is.
const CAPABILITY: &[u8] = b"security.capability";
/// `chown` takes it for "leave it as it is".
const NO_ID: u32 = u32::MAX;

/// Who restores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights {
    uid: u32,
    gid: u32,
}

/// Extended attributes, names and values.
pub(super) type Xattrs = Vec<(Bytes, Bytes)>;

/// Those of an inode of the volume.
pub(super) fn xattrs_of(view: &View, ino: Ino) -> Result<Xattrs> {
    let names = namespace::xattr_names(view, ino)?;
    names
        .into_iter()
        .map(|name| Ok((name.clone(), namespace::xattr(view, ino, &name)?)))
        .collect()
}

impl Rights {
    /// Of this process.
    pub(super) fn own() -> Rights {
        Rights {
            uid: Uid::effective().as_raw(),
            gid: Gid::effective().as_raw(),
        }
    }

    /// Whether owners can be given.
    pub(super) fn is_root(self) -> bool {
        self.uid == 0
    }

    /// The mode that an item has when all went well.
    pub(super) fn mode_of(self, inode: &Inode) -> u16 {
        let keeps = self.is_root() && inode.uid != NO_ID && inode.gid != NO_ID;
        allowed(inode, keeps)
    }

    /// Gives what `fd` is open for all that the inode has. Returns what it does not get.
    pub(super) fn give(
        self,
        fd: &OwnedFd,
        inode: &Inode,
        xattrs: &[(Bytes, Bytes)],
    ) -> Result<Vec<String>, Obstacle> {
        let mut lacks = Vec::new();
        let is_owned = self.give_owner(fd, inode, &mut lacks)?;
        let way = way_to(fd);
        if inode.kind != FileKind::Symlink {
            let mode = allowed(inode, is_owned);
            if mode != inode.mode & MODE_BITS {
                lacks.push("set-user-ID or set-group-ID".into());
            }
            let mode = Mode::from_bits_truncate(mode.into());
            fchmodat(AT_FDCWD, &way, mode, FchmodatFlags::FollowSymlink)
                .map_err(Obstacle::call("set its mode"))?;
        }
        for (name, value) in xattrs {
            let is_refused = name == CAPABILITY && !is_owned;
            let set = || rustix::fs::setxattr(&way, &name[..], value, XattrFlags::empty());
            if is_refused || set().is_err() {
                lacks.push(format!("the attribute {}", escape(name)));
            }
        }
        let time = |time: crate::types::Timestamp| TimeSpec::new(time.secs, time.nanos.into());
        let (atime, mtime) = (time(inode.atime), time(inode.mtime));
        utimensat(
            AT_FDCWD,
            &way,
            &atime,
            &mtime,
            UtimensatFlags::FollowSymlink,
        )
        .map_err(Obstacle::call("set its times"))?;
        Ok(lacks)
    }

    /// Whether it has its owner and group, given by root.
    fn give_owner(
        self,
        fd: &OwnedFd,
        inode: &Inode,
        lacks: &mut Vec<String>,
    ) -> Result<bool, Obstacle> {
        let change = |uid: Option<u32>, gid: Option<u32>| {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            fchownat(fd, "", uid, gid, AtFlags::AT_EMPTY_PATH)
        };
        let is_id = inode.uid != NO_ID && inode.gid != NO_ID;
        if self.is_root() && is_id {
            match change(Some(inode.uid), Some(inode.gid)) {
                Ok(()) => return Ok(true),
                // Root of a container, or of an NFS client whose root is nobody.
                Err(Errno::EPERM | Errno::EINVAL) => {}
                Err(errno) => return Err(Obstacle::call("set its owner")(errno)),
            }
        }
        if self.is_root() || inode.uid != self.uid {
            lacks.push(format!("its owner {}", inode.uid));
        }
        // A group of their own anybody can give.
        if inode.gid == NO_ID || (inode.gid != self.gid && change(None, Some(inode.gid)).is_err()) {
            lacks.push(format!("its group {}", inode.gid));
        }
        Ok(false)
    }
}

/// The mode without what goes only with the owner.
fn allowed(inode: &Inode, is_owned: bool) -> u16 {
    let mode = inode.mode & MODE_BITS;
    // On a directory set-group-ID gives no right to anybody.
    if is_owned || inode.kind == FileKind::Dir {
        mode
    } else {
        mode & !SET_IDS
    }
}

/// Whether what `fd` is open for has these attributes, whatever else it has.
pub(super) fn has_xattrs(fd: &OwnedFd, xattrs: &[(Bytes, Bytes)]) -> bool {
    let way = way_to(fd);
    xattrs.iter().all(|(name, value)| {
        let mut found = vec![0; value.len() + 1];
        let len = rustix::fs::getxattr(&way, &name[..], &mut found[..]);
        len.is_ok_and(|len| found.get(..len) == Some(value))
    })
}
