//! What the source says of one item: one system call each, relative to an open directory.
//!
//! Nothing here follows a symbolic link, wakes an automount, or makes a path that could be too long.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::types::{FileKind, Timestamp};

/// What `stat` tells of an item of the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u16,
    /// Names it has, in the account or elsewhere.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file, as the kernel writes it into 32 bits.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Units of 512 bytes that it takes up.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// When it was made, where the file system knows.
    pub born: Option<Timestamp>,
    /// Number of its inode.
    pub number: u64,
    /// The file system it is on, until it is mounted anew.
    pub device: u64,
    /// Whether a file system begins here, be it the same one again.
    pub is_mount: bool,
}

/// Looks at the item `name` of a directory.
pub fn look(dir: impl AsFd, name: &[u8]) -> io::Result<Seen> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(dir, name, flags, wanted())?;
    seen(&found).ok_or_else(unknown_kind)
}

/// Looks at what is open.
pub fn look_at(file: impl AsFd) -> io::Result<Seen> {
    let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted())?;
    seen(&found).ok_or_else(unknown_kind)
}

fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME
}

fn unknown_kind() -> io::Error {
    io::Error::other("it is of a kind that this program does not know")
}

fn seen(found: &Statx) -> Option<Seen> {
    let kind = match u32::from(found.stx_mode) & 0o170_000 {
        0o100_000 => FileKind::File,
        0o040_000 => FileKind::Dir,
        0o120_000 => FileKind::Symlink,
        0o010_000 => FileKind::Fifo,
        0o140_000 => FileKind::Socket,
        0o020_000 => FileKind::CharDevice,
        0o060_000 => FileKind::BlockDevice,
        _ => return None,
    };
    let time = |time: rustix::fs::StatxTimestamp| Timestamp {
        secs: time.tv_sec,
        nanos: time.tv_nsec,
    };
    let (major, minor) = (found.stx_rdev_major, found.stx_rdev_minor);
    let rdev = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
    let is_born = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    Some(Seen {
        kind,
        mode: found.stx_mode & 0o7777,
        nlink: found.stx_nlink,
        uid: found.stx_uid,
        gid: found.stx_gid,
        rdev,
        size: found.stx_size,
        blocks: found.stx_blocks,
        atime: time(found.stx_atime),
        mtime: time(found.stx_mtime),
        ctime: time(found.stx_ctime),
        born: is_born.then(|| time(found.stx_btime)),
        number: found.stx_ino,
        device: (u64::from(found.stx_dev_major) << 32) | u64::from(found.stx_dev_minor),
        is_mount: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

/// Opens a directory below an open one.
pub fn open_dir(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    open(dir, name, OFlags::DIRECTORY)
}

/// Opens a file for reading: no terminal is made ours, and a pipe that took its place does not hold us up.
pub fn open_file(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    open(dir, name, OFlags::NONBLOCK | OFlags::NOCTTY)
}

/// Access times are left alone where that is allowed: of our own files, and as root.
fn open(dir: impl AsFd, name: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir.as_fd(), name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?),
        opened => Ok(opened?),
    }
}

/// The target of a symbolic link.
pub fn target(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
    Ok(target.into_bytes())
}

/// Attributes of the file system's own, which nobody could set elsewhere.
const NOT_KEPT: [&[u8]; 2] = [b"user.tidefs.", b"system.nfs4_acl"];
/// As Linux has it.
const LIST_LEN_MAX: usize = 64 << 10;

/// All extended attributes of the item `name` of a directory, in order of their names. ACLs are among them.
pub fn xattrs(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // The only way that works for a link itself and opens nothing. The path stays short.
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let list = match rustix::fs::llistxattr_query(&path) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(_) => {
            let mut list = vec![0; LIST_LEN_MAX];
            let len = rustix::fs::llistxattr(&path, list.as_mut_slice())?;
            list.truncate(len);
            list
        }
        Err(errno) => return Err(errno.into()),
    };
    let mut found = Vec::new();
    for name in list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if NOT_KEPT.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let mut value = vec![0; LIST_LEN_MAX];
        match rustix::fs::lgetxattr(&path, name, value.as_mut_slice()) {
            Ok(len) => {
                value.truncate(len);
                found.push((name.to_vec(), value));
            }
            // It went meanwhile, or the file system lists what it does not tell.
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    found.sort();
    Ok(found)
}
