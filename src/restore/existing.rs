//! What stands in the destination already: the same, another, or nothing.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, SFlag, major, minor};

use crate::format::inode::Inode;
use crate::restore::attributes::{Rights, Xattrs, has_xattrs};
use crate::restore::dest::{handle, stat};
use crate::restore::name::SafeName;
use crate::types::FileKind;
use crate::volume::tree::MODE_BITS;

/// What stands at a name.
#[derive(Debug)]
pub(super) enum Existing {
    Nothing,
    /// What the volume has, as far as size, times and attributes tell.
    Same(FileStat),
    Other(FileStat),
}

/// Looks at `name`. The attributes of the volume are asked for only where the rest is the same.
pub(super) fn look(
    dir: &OwnedFd,
    name: &SafeName,
    inode: &Inode,
    rights: Rights,
    xattrs: impl FnOnce() -> crate::error::Result<Xattrs>,
) -> Result<Existing, super::report::Obstacle> {
    let look = super::report::Obstacle::call("look at what is there");
    let Some(found) = stat(dir, name).map_err(&look)? else {
        return Ok(Existing::Nothing);
    };
    if !is_same(&found, inode, rights) || !has_target(dir, name, inode).map_err(&look)? {
        return Ok(Existing::Other(found));
    }
    let xattrs = xattrs()?;
    let has_all = xattrs.is_empty() || has_xattrs(&handle(dir, name).map_err(&look)?, &xattrs);
    Ok(if has_all {
        Existing::Same(found)
    } else {
        Existing::Other(found)
    })
}

/// The bits of a mode that say what it is.
pub(super) fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The same for an inode.
pub(super) fn flag_of(kind: FileKind) -> SFlag {
    match kind {
        FileKind::File => SFlag::S_IFREG,
        FileKind::Dir => SFlag::S_IFDIR,
        FileKind::Symlink => SFlag::S_IFLNK,
        FileKind::Fifo => SFlag::S_IFIFO,
        FileKind::Socket => SFlag::S_IFSOCK,
        FileKind::CharDevice => SFlag::S_IFCHR,
        FileKind::BlockDevice => SFlag::S_IFBLK,
    }
}

/// Major and minor number in the form that FUSE and `stat` of the kernel's 32 bits have.
pub(super) fn device_of(rdev: u32) -> (u64, u64) {
    let major = (rdev & 0xfff00) >> 8;
    let minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00);
    (major.into(), minor.into())
}

/// Kind, size, time, owner and mode.
pub(super) fn is_same(stat: &FileStat, inode: &Inode, rights: Rights) -> bool {
    let time = (stat.st_mtime, stat.st_mtime_nsec);
    let mode = u16::try_from(stat.st_mode & u32::from(MODE_BITS)).unwrap_or(u16::MAX);
    let is_device = matches!(inode.kind, FileKind::CharDevice | FileKind::BlockDevice);
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    let len = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    kind_of(stat) == flag_of(inode.kind)
        && (inode.kind != FileKind::File || len == inode.size)
        && (!is_device || device == device_of(inode.rdev))
        && time == (inode.mtime.secs, inode.mtime.nanos.into())
        && (inode.kind == FileKind::Symlink || mode == rights.mode_of(inode))
        && (!rights.is_root() || (stat.st_uid, stat.st_gid) == (inode.uid, inode.gid))
}

fn has_target(dir: &OwnedFd, name: &SafeName, inode: &Inode) -> nix::Result<bool> {
    if inode.kind != FileKind::Symlink {
        return Ok(true);
    }
    match readlinkat(dir, name.bytes()) {
        Ok(target) => Ok(target.as_bytes() == inode.target),
        // Replaced since it was seen.
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::makedev;

    #[test]
    fn a_device_number_comes_apart_as_the_kernel_put_it_together() {
        for (major, minor) in [(1, 3), (7, 200), (259, 70_000), (0xfff, 0xf_ffff)] {
            let packed = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
            assert_eq!(
                device_of(u32::try_from(packed & 0xffff_ffff).unwrap()),
                (major, minor)
            );
            let device = makedev(major, minor);
            assert_eq!(
                (nix::sys::stat::major(device), nix::sys::stat::minor(device)),
                (major, minor)
            );
        }
    }
}
