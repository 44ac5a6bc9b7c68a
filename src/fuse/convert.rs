//! The one errno table, and every translation between fuser's words and the tree's. Pure functions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use nix::errno::Errno;

use crate::error::Error;
use crate::types::{Ino, Timestamp};
use crate::volume::tree::{
    Attr, Fallocate, FileKind, MODE_BITS, OpenMode, RenameMode, SeekFor, SetTime, XattrMode,
};

/// The longest name, of a file or an attribute.
pub(super) const NAME_LEN_MAX: u32 = 255;
/// The longest value of an extended attribute, as Linux has it.
pub(super) const XATTR_LEN_MAX: usize = 64 << 10;
/// What `st_blksize` tells: programs that size their buffers by it ask 16 times less often than at 4 KiB.
const BLOCK_LEN: u32 = 64 << 10;

/// The errno that answers a request.
pub(super) fn errno(error: &Error) -> Errno {
    match error {
        Error::Posix(errno) => *errno,
        Error::NoSpace { .. } => Errno::ENOSPC,
        Error::Io { source, .. } => match source.raw_os_error() {
            Some(libc::ENOSPC) => Errno::ENOSPC,
            Some(libc::EDQUOT) => Errno::EDQUOT,
            _ => Errno::EIO,
        },
        Error::Refused(_) => Errno::EPERM,
        Error::External(error) if error.case() == vfs::ErrorCase::NoSpace => Errno::ENOSPC,
        Error::Corrupt { .. } | Error::External(_) | Error::Poisoned(_) | Error::Locked { .. } => {
            Errno::EIO
        }
    }
}

/// For the reply.
pub(super) fn reply_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno as i32)
}

/// The kernel's inode number is the engine's.
pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// The other way.
pub(super) fn number(ino: Ino) -> INodeNo {
    INodeNo(ino.0)
}

/// Attributes as the kernel wants them.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    let ctime = system_time(attr.ctime);
    FileAttr {
        ino: number(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime,
        crtime: ctime,
        kind: file_type(attr.kind),
        perm: attr.mode & MODE_BITS,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_LEN,
        flags: 0,
    }
}

/// The kind of an inode.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// What `mknod` is to make; `None` for what it cannot.
pub(super) fn node_kind(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

/// The permission bits of a mode.
pub(super) fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & u32::from(MODE_BITS)).unwrap_or(MODE_BITS)
}

/// A time for the kernel; what `SystemTime` cannot hold becomes 1970.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(u64::from(time.nanos))))
        .unwrap_or(UNIX_EPOCH)
}

/// A time from the kernel. fuser 0.18 reads seconds `-s` with fraction `f` as `-(s + f)` where the
/// kernel means `-s + f`; that is undone here, exactly (a negative `s` is never 0).
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let (secs, nanos) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let secs = i64::try_from(before.as_secs()).map(|secs| -secs);
            (Ok(secs.unwrap_or(i64::MIN)), before.subsec_nanos())
        }
    };
    Timestamp {
        secs: secs.unwrap_or(i64::MAX),
        nanos,
    }
}

/// A time to set.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// `open`'s flags, as far as the tree needs them.
pub(super) fn open_mode(flags: i32) -> OpenMode {
    let access = flags & libc::O_ACCMODE;
    OpenMode {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        sync: is_sync(flags),
    }
}

/// Whether a write is to be durable before it is answered. `O_SYNC` contains `O_DSYNC`.
pub(super) fn is_sync(flags: i32) -> bool {
    flags & libc::O_DSYNC != 0
}

/// `renameat2`'s flags; `None` for what is not offered (whiteouts, and two at once).
pub(super) fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    if flags.is_empty() {
        Some(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Some(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Some(RenameMode::Exchange)
    } else {
        None
    }
}

/// `setxattr`'s flags.
pub(super) fn xattr_mode(flags: i32) -> Option<XattrMode> {
    match flags {
        0 => Some(XattrMode::Any),
        libc::XATTR_CREATE => Some(XattrMode::Create),
        libc::XATTR_REPLACE => Some(XattrMode::Replace),
        _ => None,
    }
}

/// `fallocate`'s mode; `None` for what is not offered (collapse, insert, unshare).
pub(super) fn fallocate(mode: i32) -> Option<Fallocate> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match mode {
        0 | KEEP => Some(Fallocate::Allocate {
            keep_size: mode == KEEP,
        }),
        PUNCH => Some(Fallocate::PunchHole),
        ZERO | ZERO_KEEP => Some(Fallocate::ZeroRange {
            keep_size: mode == ZERO_KEEP,
        }),
        _ => None,
    }
}

/// `lseek`'s whence; the kernel does the others itself.
pub(super) fn seek_for(whence: i32) -> Option<SeekFor> {
    match whence {
        libc::SEEK_DATA => Some(SeekFor::Data),
        libc::SEEK_HOLE => Some(SeekFor::Hole),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// What fuser 0.18 makes of a time of the kernel's (its `system_time_from_time`).
    fn as_fuser_decodes(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_on_both_sides_of_1970_keep_their_fraction() {
        for (secs, nanos) in [
            (0, 0),
            (5, 7),
            (-1, 0),
            (-1, 500_000_000),
            (-62_135_596_800, 1),
        ] {
            let time = timestamp(as_fuser_decodes(secs, nanos));
            assert_eq!(time, Timestamp { secs, nanos });
            let shown = system_time(time);
            let exact = if secs < 0 {
                UNIX_EPOCH - Duration::from_secs(secs.unsigned_abs())
            } else {
                UNIX_EPOCH + Duration::from_secs(secs.unsigned_abs())
            };
            assert_eq!(shown, exact + Duration::from_nanos(u64::from(nanos)));
        }
        for secs in [i64::MAX, i64::MIN] {
            let _ = system_time(Timestamp {
                secs,
                nanos: 999_999_999,
            });
        }
    }

    #[test]
    fn a_full_disk_is_enospc_and_damage_is_eio() {
        let io = |code| Error::io("write", "/x")(io::Error::from_raw_os_error(code));
        assert_eq!(errno(&io(libc::ENOSPC)), Errno::ENOSPC);
        assert_eq!(errno(&io(libc::EDQUOT)), Errno::EDQUOT);
        assert_eq!(errno(&io(libc::EROFS)), Errno::EIO);
        assert_eq!(errno(&Error::corrupt("pack", 1, "bad")), Errno::EIO);
        assert_eq!(errno(&Error::Poisoned("sync".into())), Errno::EIO);
        assert_eq!(
            errno(&Error::Refused("read-only account".into())),
            Errno::EPERM
        );
        assert_eq!(errno(&Error::Posix(Errno::ENOTEMPTY)), Errno::ENOTEMPTY);
        assert_eq!(reply_errno(Errno::ENOTEMPTY).code(), libc::ENOTEMPTY);
    }

    #[test]
    fn only_what_is_offered_is_understood() {
        assert_eq!(
            rename_mode(RenameFlags::RENAME_EXCHANGE),
            Some(RenameMode::Exchange)
        );
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), None);
        assert_eq!(
            rename_mode(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE),
            None
        );
        assert_eq!(fallocate(libc::FALLOC_FL_COLLAPSE_RANGE), None);
        assert_eq!(fallocate(libc::FALLOC_FL_PUNCH_HOLE), None);
        assert_eq!(xattr_mode(libc::XATTR_CREATE | libc::XATTR_REPLACE), None);
        assert_eq!(node_kind(libc::S_IFDIR | 0o755), None);
        assert!(open_mode(libc::O_RDWR | libc::O_SYNC).sync);
        assert!(is_sync(libc::O_DSYNC));
        assert!(!is_sync(libc::O_APPEND | libc::O_WRONLY));
    }
}
