//! One account of a tree as a tree of its own: its directory is the root, and nothing leads out of it.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::types::{AccountId, Ino};
use crate::volume::tree::{
    Answer, Attr, Caller, DirEntry, Fallocate, NewNode, OpenMode, RenameMode, SeekFor, SetAttr,
    Space, Tree, XattrMode,
};

/// The tree of one account, of the live volume or of a moment.
#[derive(Debug)]
pub struct AccountTree<T> {
    whole: Arc<T>,
    root: Ino,
}

impl<T: Tree> AccountTree<T> {
    /// Shows `account` of `whole`.
    pub fn new(whole: Arc<T>, account: AccountId) -> Arc<AccountTree<T>> {
        Arc::new(AccountTree {
            whole,
            root: Ino::account_root(account),
        })
    }

    /// The inode in the whole tree.
    fn inner(&self, ino: Ino) -> Ino {
        if ino == Ino::ROOT { self.root } else { ino }
    }

    /// Its number here.
    fn outer(&self, ino: Ino) -> Ino {
        if ino == self.root { Ino::ROOT } else { ino }
    }

    fn shown(&self, attr: Attr) -> Attr {
        let ino = self.outer(attr.ino);
        Attr { ino, ..attr }
    }
}

impl<T: Tree> Tree for AccountTree<T> {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.whole.lookup(self.inner(parent), name)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.shown(self.whole.getattr(self.inner(ino))?))
    }

    fn readlink(&self, ino: Ino) -> Result<Bytes> {
        self.whole.readlink(ino)
    }

    fn readdir(&self, ino: Ino, after: Option<&[u8]>, count_max: usize) -> Result<Vec<DirEntry>> {
        self.whole.readdir(self.inner(ino), after, count_max)
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        if ino == Ino::ROOT {
            return Ok(Ino::ROOT);
        }
        Ok(self.outer(self.whole.parent(ino)?))
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        self.whole.getxattr(self.inner(ino), name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>> {
        self.whole.listxattr(self.inner(ino))
    }

    fn open(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        self.whole.open(ino, mode)
    }

    fn read(&self, ino: Ino, offset: u64, len: u32, answer: Answer<Bytes>) {
        self.whole.read(ino, offset, len, answer);
    }

    fn seek(&self, ino: Ino, offset: u64, seek: SeekFor) -> Result<u64> {
        self.whole.seek(ino, offset, seek)
    }

    fn release(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        self.whole.release(ino, mode)
    }

    fn space(&self) -> Result<Space> {
        self.whole.space()
    }

    fn setattr(&self, ino: Ino, change: SetAttr) -> Result<Attr> {
        Ok(self.shown(self.whole.setattr(self.inner(ino), change)?))
    }

    fn create(&self, parent: Ino, name: &[u8], node: NewNode<'_>, caller: Caller) -> Result<Attr> {
        self.whole.create(self.inner(parent), name, node, caller)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.whole.unlink(self.inner(parent), name)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.whole.rmdir(self.inner(parent), name)
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        let (from, to) = ((self.inner(from.0), from.1), (self.inner(to.0), to.1));
        self.whole.rename(from, to, mode)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.whole.link(ino, self.inner(parent), name)
    }

    fn write(&self, ino: Ino, offset: u64, bytes: &[u8], sync: bool, answer: Answer<()>) {
        self.whole.write(ino, offset, bytes, sync, answer);
    }

    fn flush(&self, ino: Ino) -> Result<()> {
        self.whole.flush(ino)
    }

    fn fsync(&self, ino: Ino, answer: Answer<()>) {
        self.whole.fsync(self.inner(ino), answer);
    }

    fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: Fallocate) -> Result<()> {
        self.whole.fallocate(ino, offset, len, mode)
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        self.whole.copy_range(from, to, len)
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.whole.setxattr(self.inner(ino), name, value, mode)
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.whole.removexattr(self.inner(ino), name)
    }
}

/// The number that a mount of `account` alone shows for an inode of the whole tree.
pub fn number_in(account: Option<AccountId>, ino: Ino) -> Ino {
    match account {
        Some(account) if ino == Ino::account_root(account) => Ino::ROOT,
        _ => ino,
    }
}
