//! One short method per FUSE request: translate, ask the tree, translate the answer.
//!
//! No decisions about files are made here, with two exceptions that are the kernel's to ask for:
//! clearing set-uid and set-gid bits where it leaves that to the file system, and opening the file
//! that a `create` lost a race to.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;

use crate::error::Result;
use crate::fetch::WAITING_MAX;
use crate::types::Ino;
use crate::volume::tree::{Answer, Attr, Caller, FileKind, NewNode, OpenMode, SetAttr, Tree};

use super::convert::{self, NAME_LEN_MAX, XATTR_LEN_MAX};
use super::dirs::Dirs;
use super::guard::Guard;
use super::opens::Opens;
use super::options::{Lifetimes, MountOptions};
use super::reply;

/// What we ask the kernel for, where it offers it. Nothing else: fuser 0.18 accepts capabilities
/// that it cannot honour.
const CAPABILITIES: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
/// The largest request, both ways.
const REQUEST_LEN_MAX: u32 = 1 << 20;
/// Requests that nobody waits for (read-ahead) in flight at once: enough to fill a slow line, and four times as many as
/// may wait for the external volume.
const BACKGROUND_MAX: u16 = 4 * WAITING_MAX;
/// One `copy_file_range` reply counts in 32 bits; the kernel asks again for the rest.
const COPY_LEN_MAX: u64 = 1 << 30;
/// Inode numbers are never reused, so there is only one generation.
const GENERATION: Generation = Generation(0);
const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o0010;
/// POSIX ACLs are refused: stored but not enforced they would only look like protection.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// Shows a tree to fuser.
pub(super) struct Adapter {
    tree: Arc<dyn Tree>,
    guard: Arc<Guard>,
    opens: Opens,
    dirs: Dirs,
    lifetimes: Lifetimes,
    /// Dropped with the adapter, which tells whoever waits for the end.
    _alive: Sender<()>,
}

impl Adapter {
    pub(super) fn new(tree: Arc<dyn Tree>, options: &MountOptions, alive: Sender<()>) -> Adapter {
        Adapter {
            _alive: alive,
            tree,
            guard: Arc::default(),
            opens: Opens::new(options.direct_io),
            dirs: Dirs::default(),
            lifetimes: options.lifetimes,
        }
    }

    fn ask<T>(
        &self,
        op: &'static str,
        call: impl FnOnce(&dyn Tree) -> Result<T>,
    ) -> Result<T, fuser::Errno> {
        self.guard.call(op, || call(&*self.tree))
    }

    /// Wraps a reply that may be sent from any thread.
    fn answer<T: 'static>(
        &self,
        op: &'static str,
        send: impl FnOnce(Result<T, fuser::Errno>) + Send + 'static,
    ) -> Answer<T> {
        let guard = Arc::clone(&self.guard);
        Box::new(move |outcome| send(guard.outcome(op, outcome)))
    }

    fn make(
        &self,
        request: &Request,
        op: &'static str,
        parent: INodeNo,
        name: &OsStr,
        node: NewNode<'_>,
        reply: ReplyEntry,
    ) {
        let made = self.ask(op, |tree| {
            tree.create(convert::ino(parent), name.as_bytes(), node, caller(request))
        });
        self.reply_entry(made, reply);
    }

    fn reply_entry(&self, found: Result<Attr, fuser::Errno>, reply: ReplyEntry) {
        match found {
            Ok(attr) => {
                self.tree.hold(attr.ino);
                reply.entry(
                    &self.lifetimes.known,
                    &convert::file_attr(&attr),
                    GENERATION,
                );
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Opens what `create` has made or, where somebody was faster, found.
    fn make_and_open(
        &self,
        request: &Request,
        parent: Ino,
        name: &[u8],
        node: NewNode<'_>,
        flags: i32,
    ) -> Result<(Attr, FileHandle, FopenFlags), fuser::Errno> {
        let mut mode = convert::open_mode(flags);
        let made = self.ask("create", |tree| {
            tree.create(parent, name, node, caller(request))
        });
        let (attr, created) = match made {
            Ok(attr) => {
                mode.truncate = false;
                (attr, true)
            }
            Err(fuser::Errno::EEXIST) if flags & libc::O_EXCL == 0 => {
                (self.ask("lookup", |tree| tree.lookup(parent, name))?, false)
            }
            Err(errno) => return Err(errno),
        };
        if attr.kind != FileKind::File {
            return Err(fuser::Errno::EEXIST);
        }
        let (handle, how) = self.open_counted(attr.ino, mode, created)?;
        Ok((attr, handle, how))
    }

    fn open_counted(
        &self,
        ino: Ino,
        mode: OpenMode,
        created: bool,
    ) -> Result<(FileHandle, FopenFlags), fuser::Errno> {
        self.ask("open", |tree| tree.open(ino, mode))?;
        Ok(self.opens.add(ino, mode, created))
    }

    /// A write or cut by someone who may not keep set-uid and set-gid. The kernel does this itself
    /// for cached writes, and leaves it to us for direct ones and for `O_TRUNC`.
    fn drop_privileges(&self, ino: Ino) -> Result<(), fuser::Errno> {
        let attr = self.ask("getattr", |tree| tree.getattr(ino))?;
        let mut mode = attr.mode & !S_ISUID;
        if mode & S_IXGRP != 0 {
            mode &= !S_ISGID;
        }
        if mode == attr.mode {
            return Ok(());
        }
        let change = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        self.ask("setattr", |tree| tree.setattr(ino, change))
            .map(drop)
    }

    fn sync_to_reply(&self, op: &'static str, ino: INodeNo, reply: ReplyEmpty) {
        let answer = self.answer(op, move |outcome| reply::empty(outcome, reply));
        self.guard
            .start(op, || self.tree.fsync(convert::ino(ino), answer));
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities() & CAPABILITIES;
        // Neither the capabilities, all offered, nor the numbers, all in range, can be refused.
        let _ = config.add_capabilities(offered);
        let _ = config.set_max_write(REQUEST_LEN_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(BACKGROUND_MAX / 4 * 3);
        self.opens
            .set_maps_direct(offered.contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP));
        tracing::debug!("FUSE {}, {offered:?}", config.kernel_abi());
        Ok(())
    }

    fn destroy(&mut self) {
        for (ino, mode) in self.opens.drain() {
            let _ = self.ask("release", |tree| tree.release(ino, mode));
        }
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.ask("lookup", |tree| {
            tree.lookup(convert::ino(parent), name.as_bytes())
        });
        match found {
            Err(fuser::Errno::ENOENT) if !self.lifetimes.missing.is_zero() => {
                reply.entry(&self.lifetimes.missing, &reply::NOBODY, GENERATION);
            }
            found => self.reply_entry(found, reply),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        self.guard
            .start("forget", || self.tree.forget(convert::ino(ino), nlookup));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.ask("getattr", |tree| tree.getattr(convert::ino(ino)));
        reply::attr(self.lifetimes.known, found, reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            mode: mode.map(convert::permissions),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            ctime: ctime.map(convert::timestamp),
        };
        let changed = self.ask("setattr", |tree| tree.setattr(convert::ino(ino), change));
        reply::attr(self.lifetimes.known, changed, reply);
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        reply::data(
            self.ask("readlink", |tree| tree.readlink(convert::ino(ino))),
            reply,
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = convert::node_kind(mode) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        let node = NewNode {
            kind,
            mode: convert::permissions(mode & !umask),
            rdev: if is_device { rdev } else { 0 },
            target: b"",
        };
        self.make(request, "mknod", parent, name, node, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let node = NewNode {
            kind: FileKind::Dir,
            mode: convert::permissions(mode & !umask),
            rdev: 0,
            target: b"",
        };
        self.make(request, "mkdir", parent, name, node, reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = convert::ino(parent);
        reply::empty(
            self.ask("unlink", |tree| tree.unlink(parent, name.as_bytes())),
            reply,
        );
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = convert::ino(parent);
        reply::empty(
            self.ask("rmdir", |tree| tree.rmdir(parent, name.as_bytes())),
            reply,
        );
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let node = NewNode {
            kind: FileKind::Symlink,
            mode: 0o777,
            rdev: 0,
            target: target.as_os_str().as_bytes(),
        };
        self.make(request, "symlink", parent, name, node, reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = convert::rename_mode(flags) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        let from = (convert::ino(parent), name.as_bytes());
        let to = (convert::ino(newparent), newname.as_bytes());
        reply::empty(
            self.ask("rename", |tree| tree.rename(from, to, mode)),
            reply,
        );
    }

    fn link(
        &self,
        _request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let (ino, parent) = (convert::ino(ino), convert::ino(newparent));
        let linked = self.ask("link", |tree| tree.link(ino, parent, newname.as_bytes()));
        self.reply_entry(linked, reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (ino, mode) = (convert::ino(ino), convert::open_mode(flags.0));
        if mode.truncate
            && request.uid() != 0
            && let Err(errno) = self.drop_privileges(ino)
        {
            return reply.error(errno);
        }
        match self.open_counted(ino, mode, false) {
            Ok((handle, how)) => reply.opened(handle, how),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let node = NewNode {
            kind: FileKind::File,
            mode: convert::permissions(mode & !umask),
            rdev: 0,
            target: b"",
        };
        let parent = convert::ino(parent);
        match self.make_and_open(request, parent, name.as_bytes(), node, flags) {
            Ok((attr, handle, how)) => {
                self.tree.hold(attr.ino);
                let attr = convert::file_attr(&attr);
                reply.created(&self.lifetimes.known, &attr, GENERATION, handle, how);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let answer = self.answer("read", move |outcome| reply::data(outcome, reply));
        let ino = convert::ino(ino);
        self.guard
            .start("read", || self.tree.read(ino, offset, size, answer));
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        bytes: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let ino = convert::ino(ino);
        if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
            && let Err(errno) = self.drop_privileges(ino)
        {
            return reply.error(errno);
        }
        // Requests are at most REQUEST_LEN_MAX long.
        let written = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let answer = self.answer("write", move |outcome| match outcome {
            Ok(()) => reply.written(written),
            Err(errno) => reply.error(errno),
        });
        let sync = convert::is_sync(flags.0);
        self.guard.start("write", || {
            self.tree.write(ino, offset, bytes, sync, answer);
        });
    }

    fn flush(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply::empty(
            self.ask("flush", |tree| tree.flush(convert::ino(ino))),
            reply,
        );
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let ino = convert::ino(ino);
        match self.opens.remove(ino, fh) {
            Some(mode) => {
                reply::empty(self.ask("release", |tree| tree.release(ino, mode)), reply);
            }
            None => reply.error(fuser::Errno::EBADF),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync_to_reply("fsync", ino, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync_to_reply("fsyncdir", ino, reply);
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(self.dirs.open(convert::ino(ino)), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let dir = convert::ino(ino);
        let read = self.ask("readdir", |tree| {
            self.dirs.read(tree, fh, offset, &mut |name, attr, behind| {
                let shown = if is_dot(name) {
                    attr.ino
                } else {
                    tree.listed(dir, attr.ino, false)
                };
                let (ino, kind) = (convert::number(shown), convert::file_type(attr.kind));
                reply.add(ino, behind, kind, OsStr::from_bytes(name))
            })
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (dir, known) = (convert::ino(ino), self.lifetimes.known);
        let read = self.ask("readdir", |tree| {
            self.dirs.read(tree, fh, offset, &mut |name, attr, behind| {
                // The kernel counts a lookup for each entry that it gets, but for the dots.
                let is_counted = !is_dot(name);
                let ino = if is_counted {
                    tree.listed(dir, attr.ino, true)
                } else {
                    attr.ino
                };
                let shown = convert::file_attr(&Attr { ino, ..*attr });
                let name = OsStr::from_bytes(name);
                let is_full = reply.add(shown.ino, behind, name, &known, &shown, GENERATION);
                if is_full && is_counted {
                    tree.forget(ino, 1);
                }
                is_full
            })
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.dirs.close(fh);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.ask("statfs", |tree| tree.space()) {
            Ok(space) => reply.statfs(
                space.blocks,
                space.blocks_free,
                space.blocks_free,
                space.files,
                space.files_free,
                space.block_len,
                NAME_LEN_MAX,
                space.block_len,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let set = self.ask("setxattr", |tree| {
            let mode = convert::xattr_mode(flags).ok_or(Errno::EINVAL)?;
            let name = xattr_name(name)?;
            if value.len() > XATTR_LEN_MAX {
                return Err(Errno::E2BIG.into());
            }
            tree.setxattr(convert::ino(ino), name, value, mode)
        });
        reply::empty(set, reply);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let found = self.ask("getxattr", |tree| {
            tree.getxattr(convert::ino(ino), xattr_name(name)?)
        });
        reply::xattr(found.as_deref().map_err(|errno| *errno), size, reply);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.ask("listxattr", |tree| tree.listxattr(convert::ino(ino)));
        let list = names.map(|names| {
            let mut list = Vec::new();
            for name in names {
                list.extend_from_slice(&name);
                list.push(0);
            }
            list
        });
        reply::xattr(list.as_deref().map_err(|errno| *errno), size, reply);
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.ask("removexattr", |tree| {
            tree.removexattr(convert::ino(ino), xattr_name(name)?)
        });
        reply::empty(removed, reply);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _sent: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = convert::fallocate(mode) else {
            return reply.error(fuser::Errno::EOPNOTSUPP);
        };
        let ino = convert::ino(ino);
        let done = self.ask("fallocate", |tree| {
            tree.fallocate(ino, offset, length, mode)
        });
        reply::empty(done, reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(seek) = convert::seek_for(whence) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        let found = self.ask("lseek", |tree| {
            let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            let found = tree.seek(convert::ino(ino), offset, seek)?;
            i64::try_from(found).map_err(|_| Errno::EOVERFLOW.into())
        });
        match found {
            Ok(found) => reply.offset(found),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = (convert::ino(ino_in), offset_in);
        let to = (convert::ino(ino_out), offset_out);
        let copied = self.ask("copy_file_range", |tree| {
            let copied = tree.copy_range(from, to, len.min(COPY_LEN_MAX))?;
            u32::try_from(copied).map_err(|_| Errno::EOVERFLOW.into())
        });
        match copied {
            Ok(copied) => reply.written(copied),
            Err(errno) => reply.error(errno),
        }
    }
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn xattr_name(name: &OsStr) -> Result<&[u8], Errno> {
    let name = name.as_bytes();
    if name.len() > NAME_LEN_MAX as usize {
        return Err(Errno::ERANGE);
    }
    if name.starts_with(ACL_PREFIX) {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(name)
}
