//! A whole file system in memory behind `trait Tree`: what the FUSE adapter is tested and measured with.
//!
//! Correct rather than fast, one lock for everything. Names that begin with `panic` make the calls on
//! them panic; files whose names begin with `slow` are answered from another thread; a write to one
//! whose name begins with `gated` happens only after the next read of it (or a second).

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nix::errno::Errno;
use tidefs::error::{Error, Result};
use tidefs::types::{Ino, Timestamp};
use tidefs::volume::tree::{
    Answer, Attr, Caller, DirEntry, Fallocate, FileKind, NewNode, OpenMode, RenameMode, SeekFor,
    SetAttr, SetTime, Space, Tree, XattrMode,
};

const PAGE: u64 = 4096;

/// The tree.
pub(crate) struct MemoryTree {
    state: Arc<Mutex<State>>,
    /// Signalled at each read.
    read: Arc<Condvar>,
    /// Written bytes are dropped and read as zeros: for measuring.
    discard: bool,
    /// How many lookups, getattrs and syncs there were.
    pub(crate) lookups: AtomicU64,
    pub(crate) getattrs: AtomicU64,
    pub(crate) sync_writes: AtomicU64,
    pub(crate) fsyncs: AtomicU64,
    /// Every call fails as a full disk does.
    pub(crate) full: AtomicBool,
}

struct State {
    nodes: HashMap<u64, Node>,
    last: u64,
}

struct Node {
    attr: Attr,
    parent: u64,
    names: BTreeMap<Vec<u8>, u64>,
    pages: BTreeMap<u64, Box<[u8]>>,
    target: Bytes,
    xattrs: BTreeMap<Vec<u8>, Bytes>,
    opens: u64,
    panics: bool,
    slow: bool,
    gated: bool,
    reads: u64,
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp {
        secs: since.as_secs() as i64,
        nanos: since.subsec_nanos(),
    }
}

fn posix<T>(errno: Errno) -> Result<T> {
    Err(Error::Posix(errno))
}

impl Node {
    fn new(ino: u64, kind: FileKind, mode: u16, parent: u64) -> Node {
        let time = now();
        Node {
            attr: Attr {
                ino: Ino(ino),
                kind,
                mode,
                nlink: if kind == FileKind::Dir { 2 } else { 1 },
                uid: 0,
                gid: 0,
                rdev: 0,
                size: 0,
                blocks: 0,
                atime: time,
                mtime: time,
                ctime: time,
            },
            parent,
            names: BTreeMap::new(),
            pages: BTreeMap::new(),
            target: Bytes::new(),
            xattrs: BTreeMap::new(),
            opens: 0,
            panics: false,
            slow: false,
            gated: false,
            reads: 0,
        }
    }

    fn touch(&mut self) {
        self.attr.mtime = now();
        self.attr.ctime = self.attr.mtime;
    }

    fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let end = self.attr.size.min(offset.saturating_add(len));
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        let mut at = offset;
        while at < end {
            let within = (at % PAGE) as usize;
            let take = (PAGE - at % PAGE).min(end - at) as usize;
            if let Some(page) = self.pages.get(&(at / PAGE)) {
                let to = (at - offset) as usize;
                out[to..to + take].copy_from_slice(&page[within..within + take]);
            }
            at += take as u64;
        }
        out
    }

    fn write(&mut self, offset: u64, bytes: &[u8], discard: bool) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() && !discard {
            let within = (at % PAGE) as usize;
            let take = rest.len().min(PAGE as usize - within);
            let page = self
                .pages
                .entry(at / PAGE)
                .or_insert_with(|| vec![0; PAGE as usize].into());
            page[within..within + take].copy_from_slice(&rest[..take]);
            rest = &rest[take..];
            at += take as u64;
        }
        self.attr.size = self.attr.size.max(offset + bytes.len() as u64);
        self.attr.blocks = self.pages.len() as u64 * (PAGE / 512);
        self.touch();
    }

    fn zero(&mut self, offset: u64, end: u64) {
        let mut at = offset;
        while at < end {
            let within = (at % PAGE) as usize;
            let take = (PAGE - at % PAGE).min(end - at) as usize;
            if take == PAGE as usize {
                self.pages.remove(&(at / PAGE));
            } else if let Some(page) = self.pages.get_mut(&(at / PAGE)) {
                page[within..within + take].fill(0);
            }
            at += take as u64;
        }
        self.attr.blocks = self.pages.len() as u64 * (PAGE / 512);
    }

    fn resize(&mut self, size: u64) {
        if size < self.attr.size {
            let partial = size.next_multiple_of(PAGE).min(self.attr.size);
            self.zero(size, partial);
            self.pages.split_off(&size.div_ceil(PAGE));
        }
        self.attr.size = size;
        self.attr.blocks = self.pages.len() as u64 * (PAGE / 512);
        self.touch();
    }
}

impl State {
    fn node(&self, ino: Ino) -> Result<&Node> {
        let node = self.nodes.get(&ino.0).ok_or(Errno::ENOENT)?;
        assert!(!node.panics, "asked to panic");
        Ok(node)
    }

    fn node_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        Ok(self.nodes.get_mut(&ino.0).ok_or(Errno::ENOENT)?)
    }

    fn dir_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        let node = self.node_mut(ino)?;
        if node.attr.kind != FileKind::Dir {
            return posix(Errno::ENOTDIR);
        }
        Ok(node)
    }

    fn child(&self, parent: Ino, name: &[u8]) -> Result<u64> {
        if name.len() > 255 {
            return posix(Errno::ENAMETOOLONG);
        }
        let dir = self.node(parent)?;
        if dir.attr.kind != FileKind::Dir {
            return posix(Errno::ENOTDIR);
        }
        Ok(*dir.names.get(name).ok_or(Errno::ENOENT)?)
    }

    fn is_dir(&self, ino: u64) -> bool {
        self.nodes[&ino].attr.kind == FileKind::Dir
    }

    /// Takes a name away, and the inode with its last name unless it is open.
    fn drop_name(&mut self, parent: Ino, name: &[u8]) -> Result<()> {
        let ino = self.child(parent, name)?;
        let is_dir = self.is_dir(ino);
        let dir = self.dir_mut(parent)?;
        dir.names.remove(name);
        dir.touch();
        if is_dir {
            dir.attr.nlink -= 1;
        }
        let node = self.node_mut(Ino(ino))?;
        node.attr.nlink = if is_dir { 0 } else { node.attr.nlink - 1 };
        node.attr.ctime = now();
        self.reap(ino);
        Ok(())
    }

    fn reap(&mut self, ino: u64) {
        let node = &self.nodes[&ino];
        if node.attr.nlink == 0 && node.opens == 0 {
            self.nodes.remove(&ino);
        }
    }

    fn add_name(&mut self, parent: Ino, name: &[u8], ino: u64) -> Result<()> {
        let is_dir = self.is_dir(ino);
        let dir = self.dir_mut(parent)?;
        dir.names.insert(name.to_vec(), ino);
        dir.touch();
        if is_dir {
            dir.attr.nlink += 1;
            self.node_mut(Ino(ino))?.parent = parent.0;
        }
        Ok(())
    }

    fn is_below(&self, mut ino: u64, ancestor: u64) -> bool {
        while ino != ancestor {
            if ino == Ino::ROOT.0 {
                return false;
            }
            ino = self.nodes[&ino].parent;
        }
        true
    }

    fn replace(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> Result<()> {
        let moved = self.child(from.0, from.1)?;
        if let Ok(old) = self.child(to.0, to.1) {
            if old == moved {
                return Ok(());
            }
            match (self.is_dir(moved), self.is_dir(old)) {
                (true, false) => return posix(Errno::ENOTDIR),
                (false, true) => return posix(Errno::EISDIR),
                (true, true) if !self.nodes[&old].names.is_empty() => {
                    return posix(Errno::ENOTEMPTY);
                }
                _ => self.drop_name(to.0, to.1)?,
            }
        }
        self.move_name(from, to, moved)
    }

    fn move_name(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8]), ino: u64) -> Result<()> {
        if self.is_dir(ino) {
            self.dir_mut(from.0)?.attr.nlink -= 1;
        }
        let dir = self.dir_mut(from.0)?;
        dir.names.remove(from.1);
        dir.touch();
        self.add_name(to.0, to.1, ino)?;
        self.node_mut(Ino(ino))?.attr.ctime = now();
        Ok(())
    }

    fn exchange(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> Result<()> {
        let (one, two) = (self.child(from.0, from.1)?, self.child(to.0, to.1)?);
        for (dir, ino) in [(from.0, one), (to.0, two)] {
            if self.is_dir(ino) {
                self.dir_mut(dir)?.attr.nlink -= 1;
            }
        }
        self.add_name(from.0, from.1, two)?;
        self.add_name(to.0, to.1, one)
    }
}

impl MemoryTree {
    pub(crate) fn new() -> MemoryTree {
        MemoryTree::with(false)
    }

    pub(crate) fn discarding() -> MemoryTree {
        MemoryTree::with(true)
    }

    fn with(discard: bool) -> MemoryTree {
        let root = Node::new(1, FileKind::Dir, 0o755, 1);
        MemoryTree {
            state: Arc::new(Mutex::new(State {
                nodes: HashMap::from([(1, root)]),
                last: 1,
            })),
            read: Arc::default(),
            discard,
            lookups: AtomicU64::new(0),
            getattrs: AtomicU64::new(0),
            sync_writes: AtomicU64::new(0),
            fsyncs: AtomicU64::new(0),
            full: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_behind_a_read(&self, ino: Ino, offset: u64, bytes: Vec<u8>, answer: Answer<()>) {
        let (state, read) = (Arc::clone(&self.state), Arc::clone(&self.read));
        let reads = self.state().nodes[&ino.0].reads;
        std::thread::spawn(move || {
            let state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = read.wait_timeout_while(state, Duration::from_secs(1), |state| {
                state.nodes[&ino.0].reads == reads
            });
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let written = state
                .node_mut(ino)
                .map(|node| node.write(offset, &bytes, false));
            drop(state);
            answer(written);
        });
    }

    /// How often a file was read.
    pub(crate) fn reads(&self, ino: u64) -> u64 {
        self.state().nodes[&ino].reads
    }

    /// How many openings there are in all.
    pub(crate) fn opens(&self) -> u64 {
        self.state().nodes.values().map(|node| node.opens).sum()
    }

    /// Gives the root directory to a user.
    pub(crate) fn own_root(&self, uid: u32) {
        self.state().node_mut(Ino::ROOT).unwrap().attr.uid = uid;
    }

    /// Changes a file as no request of the mount does.
    pub(crate) fn change_behind_the_kernel(&self, ino: u64, bytes: &[u8]) {
        self.state()
            .node_mut(Ino(ino))
            .unwrap()
            .write(0, bytes, false);
    }

    /// Adds a file as no request of the mount does.
    pub(crate) fn create_behind_the_kernel(&self, parent: u64, name: &[u8]) {
        let mut state = self.state();
        state.last += 1;
        let ino = state.last;
        state
            .nodes
            .insert(ino, Node::new(ino, FileKind::File, 0o644, parent));
        state.add_name(Ino(parent), name, ino).unwrap();
    }
}

fn answer_from<T: Send + 'static>(slow: bool, answer: Answer<T>, outcome: Result<T>) {
    if slow {
        std::thread::spawn(move || answer(outcome));
    } else {
        answer(outcome);
    }
}

impl Tree for MemoryTree {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let state = self.state();
        let ino = state.child(parent, name)?;
        Ok(state.nodes[&ino].attr)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.getattrs.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        Ok(state.node_mut(ino)?.attr)
    }

    fn readlink(&self, ino: Ino) -> Result<Bytes> {
        let state = self.state();
        let node = state.node(ino)?;
        if node.attr.kind != FileKind::Symlink {
            return posix(Errno::EINVAL);
        }
        Ok(node.target.clone())
    }

    fn readdir(&self, ino: Ino, after: Option<&[u8]>, count_max: usize) -> Result<Vec<DirEntry>> {
        let state = self.state();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = &state.node(ino)?.names;
        let found = names.range::<[u8], _>((from, Bound::Unbounded));
        let entry = |(name, ino): (&Vec<u8>, &u64)| DirEntry {
            name: Bytes::copy_from_slice(name),
            attr: state.nodes[ino].attr,
        };
        Ok(found.take(count_max).map(entry).collect())
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        Ok(Ino(self.state().node(ino)?.parent))
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        let state = self.state();
        Ok(state
            .node(ino)?
            .xattrs
            .get(name)
            .cloned()
            .ok_or(Errno::ENODATA)?)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>> {
        let state = self.state();
        let names = state.node(ino)?.xattrs.keys();
        Ok(names.map(|name| Bytes::copy_from_slice(name)).collect())
    }

    fn open(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        let mut state = self.state();
        let node = state.node_mut(ino)?;
        node.opens += 1;
        if mode.truncate {
            node.resize(0);
        }
        Ok(())
    }

    fn read(&self, ino: Ino, offset: u64, len: u32, answer: Answer<Bytes>) {
        let mut state = self.state();
        let outcome = state.node(ino).map(|node| {
            let bytes = node.read(offset, u64::from(len));
            (Bytes::from(bytes), node.slow)
        });
        if let Ok(node) = state.node_mut(ino) {
            node.reads += 1;
        }
        drop(state);
        self.read.notify_all();
        match outcome {
            Ok((bytes, slow)) => answer_from(slow, answer, Ok(bytes)),
            Err(error) => answer(Err(error)),
        }
    }

    fn seek(&self, ino: Ino, offset: u64, seek: SeekFor) -> Result<u64> {
        let state = self.state();
        let node = state.node(ino)?;
        if offset >= node.attr.size {
            return posix(Errno::ENXIO);
        }
        let is_data = |at: u64| node.pages.contains_key(&(at / PAGE));
        let mut at = offset;
        while at < node.attr.size {
            if is_data(at) == (seek == SeekFor::Data) {
                return Ok(at);
            }
            at = (at / PAGE + 1) * PAGE;
        }
        match seek {
            SeekFor::Data => posix(Errno::ENXIO),
            SeekFor::Hole => Ok(node.attr.size),
        }
    }

    fn release(&self, ino: Ino, _mode: OpenMode) -> Result<()> {
        let mut state = self.state();
        state.node_mut(ino)?.opens -= 1;
        state.reap(ino.0);
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        Ok(Space {
            block_len: 4096,
            blocks: 1 << 28,
            blocks_free: 1 << 27,
            files: 1 << 30,
            files_free: (1 << 30) - self.state().nodes.len() as u64,
        })
    }

    fn setattr(&self, ino: Ino, change: SetAttr) -> Result<Attr> {
        let mut state = self.state();
        let node = state.node_mut(ino)?;
        let set = |time: SetTime| match time {
            SetTime::Now => now(),
            SetTime::At(time) => time,
        };
        if let Some(size) = change.size {
            node.resize(size);
        }
        let attr = &mut node.attr;
        attr.mode = change.mode.unwrap_or(attr.mode);
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        attr.atime = change.atime.map_or(attr.atime, set);
        attr.mtime = change.mtime.map_or(attr.mtime, set);
        attr.ctime = now();
        Ok(*attr)
    }

    fn create(&self, parent: Ino, name: &[u8], node: NewNode<'_>, caller: Caller) -> Result<Attr> {
        if self.full.load(Ordering::Relaxed) {
            return Err(Error::NoSpace { path: "/".into() });
        }
        let mut state = self.state();
        match state.child(parent, name) {
            Ok(_) => return posix(Errno::EEXIST),
            Err(Error::Posix(Errno::ENOENT)) => {}
            Err(error) => return Err(error),
        }
        state.last += 1;
        let ino = state.last;
        let mut made = Node::new(ino, node.kind, node.mode, parent.0);
        let dir = state.node(parent)?.attr;
        made.attr.uid = caller.uid;
        made.attr.gid = if dir.mode & 0o2000 != 0 {
            dir.gid
        } else {
            caller.gid
        };
        made.attr.rdev = node.rdev;
        made.attr.size = node.target.len() as u64;
        made.target = Bytes::copy_from_slice(node.target);
        made.panics = name.starts_with(b"panic");
        made.slow = name.starts_with(b"slow");
        made.gated = name.starts_with(b"gated");
        let attr = made.attr;
        state.nodes.insert(ino, made);
        state.add_name(parent, name, ino)?;
        Ok(attr)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let mut state = self.state();
        let ino = state.child(parent, name)?;
        if state.is_dir(ino) {
            return posix(Errno::EISDIR);
        }
        state.drop_name(parent, name)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let mut state = self.state();
        let ino = state.child(parent, name)?;
        if !state.is_dir(ino) {
            return posix(Errno::ENOTDIR);
        }
        if !state.nodes[&ino].names.is_empty() {
            return posix(Errno::ENOTEMPTY);
        }
        state.drop_name(parent, name)
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        let mut state = self.state();
        let moved = state.child(from.0, from.1)?;
        let taken = state.child(to.0, to.1).is_ok();
        if state.is_dir(moved) && state.is_below(to.0.0, moved) {
            return posix(Errno::EINVAL);
        }
        match mode {
            RenameMode::NoReplace if taken => posix(Errno::EEXIST),
            RenameMode::Exchange => state.exchange(from, to),
            _ => state.replace(from, to),
        }
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let mut state = self.state();
        if state.child(parent, name).is_ok() {
            return posix(Errno::EEXIST);
        }
        let node = state.node_mut(ino)?;
        if node.attr.kind == FileKind::Dir {
            return posix(Errno::EPERM);
        }
        node.attr.nlink += 1;
        node.attr.ctime = now();
        let attr = node.attr;
        state.add_name(parent, name, ino.0)?;
        Ok(attr)
    }

    fn write(&self, ino: Ino, offset: u64, bytes: &[u8], sync: bool, answer: Answer<()>) {
        self.sync_writes
            .fetch_add(u64::from(sync), Ordering::Relaxed);
        let mut state = self.state();
        if state.nodes.get(&ino.0).is_some_and(|node| node.gated) {
            drop(state);
            return self.write_behind_a_read(ino, offset, bytes.to_vec(), answer);
        }
        let outcome = state.node_mut(ino).map(|node| {
            assert!(!node.panics, "asked to panic");
            node.write(offset, bytes, self.discard);
            node.slow
        });
        drop(state);
        match outcome {
            Ok(slow) => answer_from(slow, answer, Ok(())),
            Err(error) => answer(Err(error)),
        }
    }

    fn fsync(&self, _ino: Ino, answer: Answer<()>) {
        self.fsyncs.fetch_add(1, Ordering::Relaxed);
        answer(Ok(()));
    }

    fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: Fallocate) -> Result<()> {
        let mut state = self.state();
        let node = state.node_mut(ino)?;
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        let (zero, keep_size) = match mode {
            Fallocate::Allocate { keep_size } => (false, keep_size),
            Fallocate::PunchHole => (true, true),
            Fallocate::ZeroRange { keep_size } => (true, keep_size),
        };
        if zero {
            node.zero(offset, end.min(node.attr.size.next_multiple_of(PAGE)));
        }
        if !keep_size && end > node.attr.size {
            node.resize(end);
        }
        Ok(())
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        let mut state = self.state();
        let bytes = state.node(from.0)?.read(from.1, len);
        state.node_mut(to.0)?.write(to.1, &bytes, self.discard);
        Ok(bytes.len() as u64)
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let mut state = self.state();
        let xattrs = &mut state.node_mut(ino)?.xattrs;
        match (mode, xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return posix(Errno::EEXIST),
            (XattrMode::Replace, false) => return posix(Errno::ENODATA),
            _ => {}
        }
        xattrs.insert(name.to_vec(), Bytes::copy_from_slice(value));
        Ok(())
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let mut state = self.state();
        let removed = state.node_mut(ino)?.xattrs.remove(name);
        removed.map(drop).ok_or(Error::Posix(Errno::ENODATA))
    }
}
