//! The one interface between a tree of files and whoever shows it: FUSE, restore, check, find.
//!
//! Two trees implement it: the live volume (all of it) and a view of a moment (the reading half).
//! Nothing here knows FUSE; names are bytes, because file names are.

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::{Error, Result};
pub use crate::types::FileKind;
use crate::types::{Ino, Timestamp};

/// Permission bits of a mode, with set-uid, set-gid and sticky.
pub const MODE_BITS: u16 = 0o7777;

/// What `stat` tells of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Which inode.
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits ([`MODE_BITS`]).
    pub mode: u16,
    /// How many names it has.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes that are not holes, in units of 512.
    pub blocks: u64,
    /// Last access, as far as it was ever set (reads do not change it).
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
}

/// One name in a directory, with the attributes of what it names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// The name.
    pub name: Bytes,
    /// What it names.
    pub attr: Attr,
}

/// Who asks: the owner of what is created, and who may override permissions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The present, as the engine's clock has it.
    Now,
    /// This one.
    At(Timestamp),
}

/// What `chmod`, `chown`, `truncate` and `utimensat` change; `None` leaves a field as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length: the file is cut, or grows by a hole.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
    /// Last change of attributes: only ever sent by the kernel's own writeback.
    pub ctime: Option<Timestamp>,
}

/// What to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewNode<'a> {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, the umask already applied.
    pub mode: u16,
    /// Device number of a device file, else 0.
    pub rdev: u32,
    /// Target of a symbolic link, else empty.
    pub target: &'a [u8],
}

/// How two names change places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// What stands at the new name is replaced.
    Replace,
    /// EEXIST if the new name is taken (`RENAME_NOREPLACE`).
    NoReplace,
    /// Both exist and change places (`RENAME_EXCHANGE`).
    Exchange,
}

/// How a file is opened. Only what the tree needs: permission checks are the kernel's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenMode {
    /// Bytes may be read.
    pub read: bool,
    /// Bytes may be written.
    pub write: bool,
    /// Cut to nothing at open (`O_TRUNC`).
    pub truncate: bool,
    /// Each write is durable before it is answered (`O_SYNC`, `O_DSYNC`).
    pub sync: bool,
}

/// How an attribute is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XattrMode {
    /// Created or replaced.
    Any,
    /// EEXIST if it is there.
    Create,
    /// ENODATA if it is not.
    Replace,
}

/// What `fallocate` does to a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallocate {
    /// Make sure that writes will find room.
    Allocate {
        /// Leave the length alone (`FALLOC_FL_KEEP_SIZE`).
        keep_size: bool,
    },
    /// Make a hole; the length stays.
    PunchHole,
    /// Read as zeros from here on.
    ZeroRange {
        /// Leave the length alone.
        keep_size: bool,
    },
}

/// What `lseek` looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekFor {
    /// The next byte that is not in a hole.
    Data,
    /// The next hole; the end of the file is one.
    Hole,
}

/// What `statfs` tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Unit of the block counts, in bytes.
    pub block_len: u32,
    /// All blocks.
    pub blocks: u64,
    /// Blocks that can still be written.
    pub blocks_free: u64,
    /// All inodes.
    pub files: u64,
    /// Inodes that can still be made.
    pub files_free: u64,
}

/// Called once with the answer, from whatever thread has it.
pub type Answer<T> = Box<dyn FnOnce(Result<T>) + Send>;

fn read_only<T>() -> Result<T> {
    Err(Error::Posix(Errno::EROFS))
}

/// A tree of files. Every method may be called from any thread. Errors are [`Error::Posix`] where
/// the answer is a refusal, anything else where the engine failed.
///
/// The writing half refuses with `EROFS` unless a tree implements it.
pub trait Tree: Send + Sync {
    /// The attributes behind a name; `ENOENT`, `ENOTDIR`, `ENAMETOOLONG` (over 255 bytes).
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr>;

    /// The attributes of an inode.
    fn getattr(&self, ino: Ino) -> Result<Attr>;

    /// The target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Bytes>;

    /// Up to `count_max` entries of a directory in name order, those after the name `after`;
    /// without `.` and `..`. Empty at the end. Names that exist during the whole reading are
    /// returned exactly once.
    fn readdir(&self, ino: Ino, after: Option<&[u8]>, count_max: usize) -> Result<Vec<DirEntry>>;

    /// The directory that holds this directory (`..`); the root's is the root.
    fn parent(&self, ino: Ino) -> Result<Ino>;

    /// The value of an extended attribute; `ENODATA`.
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes>;

    /// The names of the extended attributes.
    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>>;

    /// Opens a file and counts the opening. Answers must be matched by [`Tree::release`].
    fn open(&self, ino: Ino, mode: OpenMode) -> Result<()>;

    /// Up to `len` bytes from `offset`, short only at the end of the file. The answer comes on this
    /// thread when the bytes are at hand, else on another one: no caller waits for the network.
    fn read(&self, ino: Ino, offset: u64, len: u32, answer: Answer<Bytes>);

    /// The next data or hole at or after `offset`; `ENXIO` beyond the end.
    fn seek(&self, ino: Ino, offset: u64, seek: SeekFor) -> Result<u64>;

    /// An opening ends.
    fn release(&self, ino: Ino, mode: OpenMode) -> Result<()>;

    /// Space and inode counts.
    fn space(&self) -> Result<Space>;

    /// The number to show for the inode `ino` that a listing of `dir` gave; with `counted`, as one more
    /// lookup of it. For trees that number their inodes by use; others need nothing.
    fn listed(&self, dir: Ino, ino: Ino, counted: bool) -> Ino {
        let _ = (dir, counted);
        ino
    }

    /// The kernel was told of the inode once more: [`Tree::forget`] will count it. For trees that number their inodes by
    /// use and count exactly.
    fn hold(&self, ino: Ino) {
        let _ = ino;
    }

    /// The kernel forgot the inode: `count` of the lookups that named it are over. For trees that
    /// number their inodes by use; others need nothing.
    fn forget(&self, ino: Ino, count: u64) {
        let _ = (ino, count);
    }

    /// Changes attributes and returns what they are now.
    fn setattr(&self, ino: Ino, change: SetAttr) -> Result<Attr> {
        let _ = (ino, change);
        read_only()
    }

    /// Makes a file, directory, link or special file.
    fn create(&self, parent: Ino, name: &[u8], node: NewNode<'_>, caller: Caller) -> Result<Attr> {
        let _ = (parent, name, node, caller);
        read_only()
    }

    /// Removes a name that is not a directory's.
    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let _ = (parent, name);
        read_only()
    }

    /// Removes an empty directory.
    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let _ = (parent, name);
        read_only()
    }

    /// Moves a name.
    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        let _ = (from, to, mode);
        read_only()
    }

    /// Gives an inode one more name.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let _ = (ino, parent, name);
        read_only()
    }

    /// Writes all of `bytes` at `offset`. With `sync`, answered when durable. The answer may come on
    /// another thread.
    fn write(&self, ino: Ino, offset: u64, bytes: &[u8], sync: bool, answer: Answer<()>) {
        let _ = (ino, offset, bytes, sync);
        answer(read_only());
    }

    /// A descriptor is closed (there may be others): what was written through it joins the order
    /// of operations, and an error of it is told here.
    fn flush(&self, ino: Ino) -> Result<()> {
        let _ = ino;
        Ok(())
    }

    /// Answers when everything done to the inode so far survives a power cut.
    fn fsync(&self, ino: Ino, answer: Answer<()>) {
        let _ = ino;
        answer(Ok(()));
    }

    /// Changes the allocation of a range.
    fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: Fallocate) -> Result<()> {
        let _ = (ino, offset, len, mode);
        read_only()
    }

    /// Copies a range by reference (reflink): no data moves. Returns the bytes copied.
    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        let _ = (from, to, len);
        read_only()
    }

    /// Sets an extended attribute.
    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let _ = (ino, name, value, mode);
        read_only()
    }

    /// Removes an extended attribute.
    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let _ = (ino, name);
        read_only()
    }
}
