//! The live volume as a tree: what FUSE shows of a volume that is open for writing.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fetch::ReadPlan;
use crate::format::inode::Inode;
use crate::types::{FileKind, Ino};
use crate::volume::ack::Ack;
use crate::volume::commit::ACTIVE_LEN_MAX;
use crate::volume::engine::Volume;
use crate::volume::files::OpenFile;
use crate::volume::namespace;
use crate::volume::tree::{
    Answer, Attr, Caller, DirEntry, Fallocate, MODE_BITS, NewNode, OpenMode, RenameMode, SeekFor,
    SetAttr, SetTime, Space, Tree, XattrMode,
};
use crate::volume::view_tree::seek_in;
use crate::volume::{extents, xattrs};

/// Largest offset of a file, as Linux has it.
const SIZE_MAX: u64 = i64::MAX as u64;
/// Inodes that `statfs` claims: an account has 2^40, and no tool needs to know better.
const INODES: u64 = 1 << 40;

/// Bytes that a process may still write below `path`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(Error::nix("statvfs", path))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

impl Volume {
    /// What `stat` shows: where an open file is ahead of the overlay, its own state.
    fn attr(&self, ino: Ino) -> Result<Attr> {
        let (inode, ahead) = self
            .files
            .look_ahead(ino, || namespace::inode_of(&self.overlay.read(), ino))?;
        let mut attr = namespace::attr_of(ino, &inode);
        if let Some(ahead) = ahead {
            attr.size = ahead.size;
            attr.mtime = ahead.modified;
            attr.ctime = attr.ctime.max(ahead.modified);
            attr.blocks += ahead.unplaced.div_ceil(512);
        }
        Ok(attr)
    }

    /// Before any change: refuses after a failure, and waits while too much is uncommitted.
    pub(super) fn admit(&self) -> Result<()> {
        self.health.check()?;
        while self.overlay.len().active > 2 * ACTIVE_LEN_MAX {
            self.queue.press();
            self.queue.wait_for_commit();
            self.health.check()?;
        }
        if self.overlay.len().active > ACTIVE_LEN_MAX {
            self.queue.press();
        }
        Ok(())
    }

    /// Before something new gets a name.
    pub(super) fn admit_name(&self) -> Result<()> {
        self.admit()?;
        self.backlog.admit_name()
    }

    /// Runs `work` on a file that is held open for it.
    fn with_file<T>(&self, ino: Ino, work: impl FnOnce(&Arc<OpenFile>) -> Result<T>) -> Result<T> {
        let file = self.files.open(ino)?;
        let outcome = work(&file);
        let released = self.files.release(ino);
        let answer = outcome?;
        released?;
        Ok(answer)
    }

    fn settle_if_open(&self, ino: Ino) -> Result<()> {
        self.files
            .get(ino)
            .map_or(Ok(()), |file| self.files.settle(&file))
    }

    /// Names of a moved or linked file must not be durable before its bytes: they join the order first.
    fn settle_named(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let target = namespace::lookup(&self.overlay.read(), parent, name);
        match target {
            Ok(target) => self.settle_if_open(target.ino),
            Err(Error::Posix(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn change_attr(&self, inode: &mut Inode, change: &SetAttr) {
        let now = self.clock.now();
        let time = |set: SetTime| match set {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        inode.mode = change.mode.map_or(inode.mode, |mode| mode & MODE_BITS);
        inode.uid = change.uid.unwrap_or(inode.uid);
        inode.gid = change.gid.unwrap_or(inode.gid);
        inode.atime = change.atime.map_or(inode.atime, time);
        inode.mtime = change.mtime.map_or(inode.mtime, time);
        inode.ctime = change.ctime.unwrap_or(now);
    }

    fn set_size(&self, file: &Arc<OpenFile>, size: u64) -> Result<()> {
        if size > SIZE_MAX {
            return Err(Errno::EFBIG.into());
        }
        let (ino, now) = (file.ino(), self.clock.now());
        self.files.change(file, |tx, inode| {
            if size < inode.size {
                extents::truncate(tx, ino, inode, size)?;
            }
            inode.size = size;
            inode.mtime = now;
            inode.ctime = now;
            Ok(())
        })
    }

    fn file_of(&self, ino: Ino) -> Result<Arc<OpenFile>> {
        self.files.get(ino).ok_or_else(|| Errno::EBADF.into())
    }
}

impl Tree for Volume {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let reading = self.overlay.read();
        let target = namespace::lookup(&reading, parent, name)?;
        if !self.files.is_open(target.ino) {
            let inode = namespace::inode_of(&reading, target.ino)?;
            return Ok(namespace::attr_of(target.ino, &inode));
        }
        drop(reading);
        self.attr(target.ino)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr(ino)
    }

    fn readlink(&self, ino: Ino) -> Result<Bytes> {
        let inode = namespace::inode_of(&self.overlay.read(), ino)?;
        if inode.kind == FileKind::Symlink {
            Ok(inode.target.into())
        } else {
            Err(Errno::EINVAL.into())
        }
    }

    fn readdir(&self, ino: Ino, after: Option<&[u8]>, count_max: usize) -> Result<Vec<DirEntry>> {
        let mut entries = namespace::read_dir(&self.overlay.read(), ino, after, count_max)?;
        for entry in &mut entries {
            if self.files.is_open(entry.attr.ino) {
                match self.attr(entry.attr.ino) {
                    // Its last name went after the listing saw it.
                    Err(Error::Posix(Errno::ENOENT)) => {}
                    attr => entry.attr = attr?,
                }
            }
        }
        Ok(entries)
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        Ok(namespace::inode_of(&self.overlay.read(), ino)?
            .parent
            .unwrap_or(Ino::ROOT))
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        match xattrs::own(name) {
            Some(own) => self.own_xattr(ino, own),
            None => namespace::xattr(&self.overlay.read(), ino, name),
        }
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>> {
        namespace::xattr_names(&self.overlay.read(), ino)
    }

    fn open(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        if mode.write || mode.truncate {
            self.refuse_fed(ino)?;
        }
        let file = self.files.open(ino)?;
        if mode.truncate {
            let cut = self.admit().and_then(|()| self.set_size(&file, 0));
            if let Err(error) = cut {
                self.files.release(ino)?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn read(&self, ino: Ino, offset: u64, len: u32, answer: Answer<Bytes>) {
        let plan = match self.files.get(ino) {
            Some(file) => self.files.plan_read(&file, offset, len),
            None => self.with_file(ino, |file| self.files.plan_read(file, offset, len)),
        };
        match plan {
            Ok(plan) if plan.len == 0 => answer(Ok(Bytes::new())),
            Ok(plan) => self.fetch.read(ReadPlan { offset, ..plan }, answer),
            Err(error) => answer(Err(error)),
        }
    }

    fn seek(&self, ino: Ino, offset: u64, seek: SeekFor) -> Result<u64> {
        self.settle_if_open(ino)?;
        let reading = self.overlay.read();
        let inode = namespace::inode_of(&reading, ino)?;
        let extents = extents::read(&reading, ino, &inode, offset..inode.size)?;
        seek_in(&extents, offset, inode.size, seek)
    }

    fn release(&self, ino: Ino, _: OpenMode) -> Result<()> {
        self.files.release(ino)
    }

    fn space(&self) -> Result<Space> {
        let stat =
            nix::sys::statvfs::statvfs(&self.root).map_err(Error::nix("statvfs", &self.root))?;
        let block_len = u32::try_from(stat.fragment_size()).unwrap_or(4096).max(512);
        let left = self.backlog.left_for_writers() / u64::from(block_len);
        Ok(Space {
            block_len,
            blocks: stat.blocks(),
            blocks_free: stat.blocks_available().min(left),
            files: INODES,
            files_free: INODES - 1,
        })
    }

    fn setattr(&self, ino: Ino, change: SetAttr) -> Result<Attr> {
        self.refuse_fed(ino)?;
        self.admit()?;
        let is_open = self.files.is_open(ino);
        if change.size.is_some() || is_open {
            let kind = namespace::inode_of(&self.overlay.read(), ino)?.kind;
            if change.size.is_some() && kind != FileKind::File {
                let errno = if kind == FileKind::Dir {
                    Errno::EISDIR
                } else {
                    Errno::EINVAL
                };
                return Err(errno.into());
            }
            return self.with_file(ino, |file| {
                if let Some(size) = change.size {
                    self.set_size(file, size)?;
                }
                self.files.change(file, |_, inode| {
                    let ctime_only = SetAttr {
                        size: None,
                        ..change
                    };
                    self.change_attr(inode, &ctime_only);
                    Ok(namespace::attr_of(ino, inode))
                })
            });
        }
        self.overlay.transact(|tx| {
            let mut inode = namespace::inode_of(tx, ino)?;
            self.change_attr(&mut inode, &change);
            namespace::put_inode(tx, ino, &inode);
            Ok(namespace::attr_of(ino, &inode))
        })
    }

    fn create(&self, parent: Ino, name: &[u8], node: NewNode<'_>, caller: Caller) -> Result<Attr> {
        self.refuse_fed(parent)?;
        self.admit_name()?;
        let now = self.clock.now();
        let uuid: [u8; 16] = if parent == Ino::ROOT {
            crate::clock::random()?
        } else {
            [0; 16]
        };
        self.overlay
            .transact(|tx| namespace::create(tx, parent, name, node, caller, now, || uuid))
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.refuse_fed(parent)?;
        self.admit()?;
        let now = self.clock.now();
        self.overlay
            .transact(|tx| namespace::unlink(tx, parent, name, now, &|ino| self.files.is_open(ino)))
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.refuse_fed_name(parent, name)?;
        self.admit()?;
        let now = self.clock.now();
        self.overlay
            .transact(|tx| namespace::rmdir(tx, parent, name, now))
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        self.refuse_fed_name(from.0, from.1)?;
        self.refuse_fed_name(to.0, to.1)?;
        self.admit()?;
        self.settle_named(from.0, from.1)?;
        if mode == RenameMode::Exchange {
            self.settle_named(to.0, to.1)?;
        }
        let now = self.clock.now();
        self.overlay.transact(|tx| {
            namespace::rename(tx, from, to, mode, now, &|ino| self.files.is_open(ino))
        })
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.refuse_fed(ino)?;
        self.admit_name()?;
        self.settle_if_open(ino)?;
        let now = self.clock.now();
        self.overlay
            .transact(|tx| namespace::link(tx, ino, parent, name, now))
    }

    fn write(&self, ino: Ino, offset: u64, bytes: &[u8], sync: bool, answer: Answer<()>) {
        let len = bytes.len() as u64;
        let admitted = self
            .health
            .check()
            .and_then(|()| self.refuse_fed(ino))
            .and_then(|()| self.backlog.admit(len));
        let written = admitted.and_then(|()| {
            let file = self.file_of(ino)?;
            self.files
                .write(&file, offset, bytes, self.clock.now(), &|| {
                    self.queue.press();
                })
        });
        match written {
            Ok(()) if sync => {
                let hold = self.pacer.hold_later();
                let held = Box::new(move |outcome| hold.answer(len, outcome, answer));
                self.fsync(ino, held);
            }
            Ok(()) => self.pacer.hold(len, answer),
            Err(error) => answer(Err(error)),
        }
    }

    fn flush(&self, ino: Ino) -> Result<()> {
        self.files
            .get(ino)
            .map_or(Ok(()), |file| self.files.flush(&file))
    }

    fn fsync(&self, ino: Ino, answer: Answer<()>) {
        if let Err(error) = self.flush(ino).and_then(|()| self.health.check()) {
            return answer(Err(error));
        }
        match self.acks.mode() {
            Ack::PageCache => answer(Ok(())),
            Ack::Local => self.queue.commit(answer),
            Ack::Remote => {
                let acks = Arc::clone(&self.acks);
                let closed = Box::new(move |closed| match closed {
                    Ok(epoch) => acks.when_archived(epoch, answer),
                    Err(error) => answer(Err(error)),
                });
                self.queue.close_epoch(None, closed);
            }
        }
    }

    fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: Fallocate) -> Result<()> {
        self.refuse_fed(ino)?;
        self.admit()?;
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= SIZE_MAX)
            .ok_or(Errno::EFBIG)?;
        if matches!(mode, Fallocate::Allocate { .. }) && !self.backlog.fits(len) {
            return Err(Error::NoSpace {
                path: self.root.clone(),
            });
        }
        let now = self.clock.now();
        self.with_file(ino, |file| {
            self.files.change(file, |tx, inode| {
                if inode.kind != FileKind::File {
                    return Err(Errno::ENODEV.into());
                }
                let keep_size = match mode {
                    Fallocate::PunchHole => true,
                    Fallocate::Allocate { keep_size } | Fallocate::ZeroRange { keep_size } => {
                        keep_size
                    }
                };
                if !matches!(mode, Fallocate::Allocate { .. }) {
                    extents::replace(tx, ino, inode, offset..end, &[])?;
                    inode.mtime = now;
                }
                if !keep_size {
                    inode.size = inode.size.max(end);
                }
                inode.ctime = now;
                Ok(())
            })
        })
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        self.refuse_fed(to.0)?;
        self.admit()?;
        self.settle_if_open(from.0)?;
        let (size, found) = {
            let reading = self.overlay.read();
            let inode = namespace::inode_of(&reading, from.0)?;
            let end = inode.size.min(from.1.saturating_add(len));
            (
                inode.size,
                extents::read(&reading, from.0, &inode, from.1..end)?,
            )
        };
        let count = len.min(size.saturating_sub(from.1));
        let end =
            to.1.checked_add(count)
                .filter(|end| *end <= SIZE_MAX)
                .ok_or(Errno::EFBIG)?;
        if count == 0 {
            return Ok(0);
        }
        let moved: Vec<_> = found
            .into_iter()
            .map(|extent| crate::format::inode::Extent {
                start: extent.start - from.1 + to.1,
                ..extent
            })
            .collect();
        let now = self.clock.now();
        self.with_file(to.0, |file| {
            self.files.change(file, |tx, inode| {
                extents::replace(tx, to.0, inode, to.1..end, &moved)?;
                inode.size = inode.size.max(end);
                inode.mtime = now;
                inode.ctime = now;
                Ok(count)
            })
        })
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.refuse_fed(ino)?;
        self.admit_name()?;
        if xattrs::own(name).is_some() {
            return Err(Errno::EPERM.into());
        }
        let now = self.clock.now();
        self.overlay
            .transact(|tx| namespace::set_xattr(tx, ino, name, value, mode, now))
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.refuse_fed(ino)?;
        self.admit()?;
        if xattrs::own(name).is_some() {
            return Err(Errno::EPERM.into());
        }
        let now = self.clock.now();
        self.overlay
            .transact(|tx| namespace::remove_xattr(tx, ino, name, now))
    }
}
