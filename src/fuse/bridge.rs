//! The raw objects of an external volume as a tree, so that the one adapter shows them too.
//!
//! What a file is and what may be done with it is decided in [`vfs::bridge`]; here it is only put into the words of
//! [`Tree`]. An object has no owner, mode or time of its own: setting them succeeds and changes nothing, for `cp -p` and
//! `rsync -a` would fail otherwise at files that are perfectly well.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};
use vfs::bridge::{Bridge, Fault, Node, Outcome};

use crate::error::{Error, Result};
use crate::types::{FileKind, Ino, Timestamp};
use crate::volume::tree::{
    Answer, Attr, Caller, DirEntry, Fallocate, NewNode, OpenMode, RenameMode, SeekFor, SetAttr,
    Space, Tree, XattrMode,
};

const BLOCK_LEN: u32 = 4096;
/// Room in a store that does not know any: more than enough, as programs that find none do not begin.
const BLOCKS_UNKNOWN: u64 = 1 << 38;
/// Objects have no number to run out of.
const FILES: u64 = 1 << 40;

/// A bridge as a tree.
#[derive(Debug)]
pub struct BridgeTree {
    bridge: Arc<Bridge>,
    /// Others may read.
    shared: bool,
}

impl BridgeTree {
    /// Shows `bridge`. These are backups: `shared` lets others than the owner read.
    pub fn new(bridge: Arc<Bridge>, shared: bool) -> Arc<BridgeTree> {
        Arc::new(BridgeTree { bridge, shared })
    }

    fn attr(&self, node: &Node) -> Attr {
        let time = timestamp(node.modified);
        let mode = match (node.is_directory, self.shared) {
            (true, true) => 0o755,
            (true, false) => 0o700,
            (false, true) => 0o644,
            (false, false) => 0o600,
        };
        Attr {
            ino: Ino(node.number),
            kind: if node.is_directory {
                FileKind::Dir
            } else {
                FileKind::File
            },
            mode,
            // Of a directory too: `find` takes 1 for "not counted".
            nlink: 1,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            rdev: 0,
            size: node.len,
            blocks: node.len.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
        }
    }

    fn shown(&self, outcome: Outcome<Node>) -> Result<Attr> {
        outcome.map(|node| self.attr(&node)).map_err(error)
    }
}

impl Drop for BridgeTree {
    fn drop(&mut self) {
        for path in self.bridge.left_behind() {
            tracing::warn!(
                "{path} was never renamed to a name that an object can have, and is gone"
            );
        }
    }
}

fn error(fault: Fault) -> Error {
    match fault {
        Fault::Refused(errno) => Error::Posix(errno),
        Fault::Failed(error) => Error::External(error),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

impl Tree for BridgeTree {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.shown(self.bridge.lookup(parent.0, name))
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.shown(self.bridge.node(ino.0))
    }

    fn readlink(&self, _: Ino) -> Result<Bytes> {
        Err(Errno::EINVAL.into())
    }

    /// In the order of keys, see [`vfs::bridge`].
    fn readdir(&self, ino: Ino, after: Option<&[u8]>, count_max: usize) -> Result<Vec<DirEntry>> {
        let listed = self.bridge.list(ino.0, after, count_max).map_err(error)?;
        let entry = |(name, node): (Arc<str>, Node)| DirEntry {
            name: Bytes::copy_from_slice(name.as_bytes()),
            attr: self.attr(&node),
        };
        Ok(listed.into_iter().map(entry).collect())
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        self.bridge.parent(ino.0).map(Ino).map_err(error)
    }

    fn getxattr(&self, _: Ino, _: &[u8]) -> Result<Bytes> {
        Err(Errno::ENODATA.into())
    }

    fn listxattr(&self, _: Ino) -> Result<Vec<Bytes>> {
        Ok(Vec::new())
    }

    fn open(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        let opened = self.bridge.open(ino.0, mode.write, mode.truncate);
        opened.map_err(error)
    }

    fn read(&self, ino: Ino, offset: u64, len: u32, answer: Answer<Bytes>) {
        let answer = Box::new(|outcome: Outcome<Bytes>| answer(outcome.map_err(error)));
        self.bridge.read(ino.0, offset, len, answer);
    }

    fn seek(&self, ino: Ino, offset: u64, seek: SeekFor) -> Result<u64> {
        let node = self.bridge.node(ino.0).map_err(error)?;
        match seek {
            _ if offset >= node.len => Err(Errno::ENXIO.into()),
            SeekFor::Data => Ok(offset),
            SeekFor::Hole => Ok(node.len),
        }
    }

    fn release(&self, ino: Ino, _: OpenMode) -> Result<()> {
        self.bridge.release(ino.0);
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        let space = self.bridge.space().map_err(error)?;
        let blocks = |bytes: u64| bytes / u64::from(BLOCK_LEN);
        Ok(Space {
            block_len: BLOCK_LEN,
            blocks: space.map_or(BLOCKS_UNKNOWN, |space| blocks(space.total_bytes)),
            blocks_free: space.map_or(BLOCKS_UNKNOWN, |space| blocks(space.available_bytes)),
            files: FILES,
            files_free: FILES - 1,
        })
    }

    fn listed(&self, _: Ino, ino: Ino, counted: bool) -> Ino {
        if counted {
            self.hold(ino);
        }
        ino
    }

    fn hold(&self, ino: Ino) {
        self.bridge.hold(ino.0);
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.bridge.forget(ino.0, count);
    }

    fn setattr(&self, ino: Ino, change: SetAttr) -> Result<Attr> {
        match change.size {
            Some(len) => self.shown(self.bridge.set_len(ino.0, len)),
            None => self.getattr(ino),
        }
    }

    fn create(&self, parent: Ino, name: &[u8], node: NewNode<'_>, _: Caller) -> Result<Attr> {
        match node.kind {
            FileKind::File => self.shown(self.bridge.create_file(parent.0, name)),
            FileKind::Dir => self.shown(self.bridge.create_directory(parent.0, name)),
            _ => Err(Errno::EPERM.into()),
        }
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.bridge.remove_file(parent.0, name).map_err(error)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.bridge.remove_directory(parent.0, name).map_err(error)
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        if mode == RenameMode::Exchange {
            return Err(Errno::EINVAL.into());
        }
        let (from, to) = ((from.0.0, from.1), (to.0.0, to.1));
        let is_exclusive = mode == RenameMode::NoReplace;
        self.bridge.rename(from, to, is_exclusive).map_err(error)
    }

    fn link(&self, _: Ino, _: Ino, _: &[u8]) -> Result<Attr> {
        Err(Errno::EPERM.into())
    }

    fn write(&self, ino: Ino, offset: u64, bytes: &[u8], sync: bool, answer: Answer<()>) {
        let written = self.bridge.write(ino.0, offset, bytes);
        let stored = written.and_then(|()| {
            if sync {
                self.bridge.flush(ino.0)
            } else {
                Ok(())
            }
        });
        answer(stored.map_err(error));
    }

    fn flush(&self, ino: Ino) -> Result<()> {
        self.bridge.flush(ino.0).map_err(error)
    }

    fn fsync(&self, ino: Ino, answer: Answer<()>) {
        answer(self.flush(ino));
    }

    fn fallocate(&self, _: Ino, _: u64, _: u64, _: Fallocate) -> Result<()> {
        Err(Errno::EOPNOTSUPP.into())
    }

    /// The kernel copies by reading and writing then.
    fn copy_range(&self, _: (Ino, u64), _: (Ino, u64), _: u64) -> Result<u64> {
        Err(Errno::EOPNOTSUPP.into())
    }

    fn setxattr(&self, _: Ino, _: &[u8], _: &[u8], _: XattrMode) -> Result<()> {
        Err(Errno::EOPNOTSUPP.into())
    }

    fn removexattr(&self, _: Ino, _: &[u8]) -> Result<()> {
        Err(Errno::ENODATA.into())
    }
}
