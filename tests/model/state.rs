//! The reference: a POSIX tree in memory, and which refusals POSIX allows for an operation.
//!
//! It shares no code with the engine. Where several rules forbid an operation, each of their errors is
//! right: POSIX leaves the order open.

use std::collections::BTreeMap;
use std::sync::Arc;

use nix::errno::Errno;
use tidefs::types::{FileKind, Ino, Timestamp};
use tidefs::volume::tree::{Caller, RenameMode};

pub type NodeId = u32;
pub const ROOT: NodeId = 0;
const SET_GID: u16 = 0o2000;
const NAME_LEN_MAX: usize = 255;

/// An earlier content of a file that the engine may still have instead of the newest, because nothing
/// has made it settle the file since.
#[derive(Clone, Debug)]
pub struct Version {
    pub content: Arc<Vec<u8>>,
    pub mtime: Timestamp,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub ino: Ino,
    pub account: u32,
    pub kind: FileKind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// Names of what is not a directory.
    pub names: u32,
    /// Of a directory.
    pub parent: NodeId,
    pub entries: BTreeMap<Vec<u8>, NodeId>,
    pub content: Arc<Vec<u8>>,
    pub pending: Vec<Version>,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl Node {
    fn touch(&mut self, now: Timestamp) {
        self.mtime = now;
        self.ctime = now;
    }
}

/// A whole tree. Cheap to clone: nodes are shared until they change.
#[derive(Clone, Debug)]
pub struct State {
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    next_node: NodeId,
    next_account: u32,
    pub now: Timestamp,
}

pub struct Made<'a> {
    pub kind: FileKind,
    pub mode: u16,
    pub rdev: u32,
    pub target: &'a [u8],
    pub caller: Caller,
}

impl State {
    pub fn new(now: Timestamp) -> State {
        let root = Node {
            ino: Ino::ROOT,
            account: 0,
            kind: FileKind::Dir,
            mode: 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            names: 0,
            parent: ROOT,
            entries: BTreeMap::new(),
            content: Arc::default(),
            pending: Vec::new(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            mtime: now,
            ctime: now,
        };
        State {
            nodes: BTreeMap::from([(ROOT, Arc::new(root))]),
            next_node: 1,
            next_account: 1,
            now,
        }
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    pub fn change(&mut self, id: NodeId) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&id).unwrap())
    }

    pub fn of_kind(&self, is_meant: impl Fn(&Node) -> bool) -> Vec<NodeId> {
        let meant = self.nodes.iter().filter(|(_, node)| is_meant(node));
        meant.map(|(id, _)| *id).collect()
    }

    pub fn is_dir(&self, id: NodeId) -> bool {
        self.node(id).kind == FileKind::Dir
    }

    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.node(dir).entries.get(name).copied()
    }

    pub fn nlink(&self, id: NodeId) -> u32 {
        let node = self.node(id);
        if node.kind != FileKind::Dir {
            return node.names;
        }
        let dirs = node.entries.values().filter(|child| self.is_dir(**child));
        2 + u32::try_from(dirs.count()).unwrap()
    }

    /// Whether `id` is `ancestor` or below it.
    fn is_below(&self, mut id: NodeId, ancestor: NodeId) -> bool {
        loop {
            if id == ancestor {
                return true;
            }
            if id == ROOT {
                return false;
            }
            id = self.node(id).parent;
        }
    }

    /// Every path of the tree and its node, the root as the empty path.
    pub fn paths(&self) -> BTreeMap<Vec<u8>, NodeId> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = waiting.pop() {
            for (name, child) in &self.node(id).entries {
                let mut below = path.clone();
                below.push(b'/');
                below.extend_from_slice(name);
                waiting.push((below, *child));
            }
            found.insert(path, id);
        }
        found
    }

    fn refuse_names(&self, dir: NodeId, name: &[u8]) -> Vec<Errno> {
        let mut refusals = Vec::new();
        if name.len() > NAME_LEN_MAX {
            refusals.push(Errno::ENAMETOOLONG);
        }
        if !self.is_dir(dir) {
            refusals.push(Errno::ENOTDIR);
        }
        refusals
    }

    fn refuse_existing(&self, dir: NodeId, name: &[u8]) -> Vec<Errno> {
        let mut refusals = self.refuse_names(dir, name);
        if self.child(dir, name).is_some() {
            refusals.push(Errno::EEXIST);
        }
        refusals
    }

    fn refuse_missing(&self, dir: NodeId, name: &[u8]) -> Vec<Errno> {
        let mut refusals = self.refuse_names(dir, name);
        if refusals.is_empty() && self.child(dir, name).is_none() {
            refusals.push(Errno::ENOENT);
        }
        refusals
    }

    pub fn refuse_create(&self, dir: NodeId, name: &[u8]) -> Vec<Errno> {
        self.refuse_existing(dir, name)
    }

    pub fn create(&mut self, dir: NodeId, name: &[u8], made: Made<'_>, ino: Ino) -> NodeId {
        let (id, now) = (self.next_node, self.now);
        self.next_node += 1;
        let is_dir = made.kind == FileKind::Dir;
        let parent = Arc::clone(&self.nodes[&dir]);
        let inherits = parent.mode & SET_GID != 0;
        let account = if is_dir && dir == ROOT {
            self.next_account += 1;
            self.next_account - 1
        } else {
            parent.account
        };
        let node = Node {
            ino,
            account,
            kind: made.kind,
            mode: made.mode | if inherits && is_dir { SET_GID } else { 0 },
            uid: made.caller.uid,
            gid: if inherits {
                parent.gid
            } else {
                made.caller.gid
            },
            rdev: made.rdev,
            names: u32::from(!is_dir),
            parent: dir,
            entries: BTreeMap::new(),
            content: Arc::default(),
            pending: Vec::new(),
            target: made.target.to_vec(),
            xattrs: BTreeMap::new(),
            mtime: now,
            ctime: now,
        };
        self.nodes.insert(id, Arc::new(node));
        let dir = self.change(dir);
        dir.entries.insert(name.to_vec(), id);
        dir.touch(now);
        id
    }

    pub fn refuse_unlink(&self, dir: NodeId, name: &[u8]) -> Vec<Errno> {
        let mut refusals = self.refuse_missing(dir, name);
        if self
            .child(dir, name)
            .is_some_and(|target| self.is_dir(target))
        {
            refusals.push(Errno::EISDIR);
        }
        refusals
    }

    pub fn unlink(&mut self, dir: NodeId, name: &[u8], is_open: impl Fn(NodeId) -> bool) {
        let now = self.now;
        let parent = self.change(dir);
        let target = parent.entries.remove(name).unwrap();
        parent.touch(now);
        self.drop_name(target, is_open);
    }

    fn drop_name(&mut self, id: NodeId, is_open: impl Fn(NodeId) -> bool) {
        let now = self.now;
        let node = self.change(id);
        node.names -= 1;
        node.ctime = now;
        if node.names == 0 && !is_open(id) {
            self.nodes.remove(&id);
        }
    }

    /// A file without a name goes when nobody has it open.
    pub fn closed(&mut self, id: NodeId) {
        if self.node(id).kind != FileKind::Dir && self.node(id).names == 0 {
            self.nodes.remove(&id);
        }
    }

    pub fn refuse_rmdir(&self, dir: NodeId, name: &[u8]) -> Vec<Errno> {
        let mut refusals = self.refuse_missing(dir, name);
        if let Some(target) = self.child(dir, name) {
            if !self.is_dir(target) {
                refusals.push(Errno::ENOTDIR);
            } else if !self.node(target).entries.is_empty() {
                refusals.push(Errno::ENOTEMPTY);
            }
        }
        refusals
    }

    pub fn rmdir(&mut self, dir: NodeId, name: &[u8]) {
        let now = self.now;
        let parent = self.change(dir);
        let target = parent.entries.remove(name).unwrap();
        parent.touch(now);
        self.nodes.remove(&target);
    }

    pub fn refuse_link(&self, id: NodeId, dir: NodeId, name: &[u8]) -> Vec<Errno> {
        let mut refusals = self.refuse_existing(dir, name);
        if self.is_dir(id) {
            refusals.push(Errno::EPERM);
        }
        if self.node(id).account != self.node(dir).account {
            refusals.push(Errno::EXDEV);
        }
        if !self.is_dir(id) && self.node(id).names == 0 {
            refusals.push(Errno::ENOENT);
        }
        refusals
    }

    pub fn link(&mut self, id: NodeId, dir: NodeId, name: &[u8]) {
        let now = self.now;
        let node = self.change(id);
        node.names += 1;
        node.ctime = now;
        let dir = self.change(dir);
        dir.entries.insert(name.to_vec(), id);
        dir.touch(now);
    }

    pub fn refuse_rename(
        &self,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        mode: RenameMode,
    ) -> Vec<Errno> {
        let mut refusals = self.refuse_missing(from.0, from.1);
        refusals.extend(self.refuse_names(to.0, to.1));
        if self.node(from.0).account != self.node(to.0).account {
            refusals.push(Errno::EXDEV);
        }
        let Some(moved) = self.child(from.0, from.1) else {
            return refusals;
        };
        if self.is_dir(moved) && self.is_below(to.0, moved) {
            refusals.push(Errno::EINVAL);
        }
        let Some(there) = self.child(to.0, to.1) else {
            if mode == RenameMode::Exchange {
                refusals.push(Errno::ENOENT);
            }
            return refusals;
        };
        match mode {
            RenameMode::NoReplace => refusals.push(Errno::EEXIST),
            RenameMode::Exchange => {
                if self.is_dir(there) && self.is_below(from.0, there) {
                    refusals.push(Errno::EINVAL);
                }
            }
            RenameMode::Replace if moved == there => {}
            RenameMode::Replace => {
                match (self.is_dir(moved), self.is_dir(there)) {
                    (true, false) => refusals.push(Errno::ENOTDIR),
                    (false, true) => refusals.push(Errno::EISDIR),
                    _ => {}
                }
                if self.is_dir(there) && !self.node(there).entries.is_empty() {
                    refusals.push(Errno::ENOTEMPTY);
                }
            }
        }
        refusals
    }

    pub fn rename(
        &mut self,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        mode: RenameMode,
        is_open: impl Fn(NodeId) -> bool,
    ) {
        let now = self.now;
        let moved = self.child(from.0, from.1).unwrap();
        let there = self.child(to.0, to.1);
        if there == Some(moved) {
            return;
        }
        if mode == RenameMode::Exchange {
            let other = there.unwrap();
            self.change(from.0).entries.insert(from.1.to_vec(), other);
            self.moved(other, from.0);
        } else {
            self.change(from.0).entries.remove(from.1);
            match there {
                Some(other) if self.is_dir(other) => drop(self.nodes.remove(&other)),
                Some(other) => self.drop_name(other, is_open),
                None => {}
            }
        }
        self.change(to.0).entries.insert(to.1.to_vec(), moved);
        self.moved(moved, to.0);
        self.change(from.0).touch(now);
        self.change(to.0).touch(now);
    }

    fn moved(&mut self, id: NodeId, to: NodeId) {
        let now = self.now;
        let node = self.change(id);
        node.ctime = now;
        if node.kind == FileKind::Dir {
            node.parent = to;
        }
    }

    /// New content, at the present.
    pub fn set_content(&mut self, id: NodeId, change: impl FnOnce(&mut Vec<u8>)) {
        let now = self.now;
        let node = self.change(id);
        change(Arc::make_mut(&mut node.content));
        node.touch(now);
    }

    /// Notes that the engine may keep the present content of a file for a while.
    pub fn keep_version(&mut self, id: NodeId) {
        let node = self.change(id);
        let (content, mtime) = (Arc::clone(&node.content), node.mtime);
        node.pending.push(Version { content, mtime });
    }

    pub fn settle(&mut self, id: NodeId) {
        if !self.node(id).pending.is_empty() {
            self.change(id).pending.clear();
        }
    }

    pub fn settle_all(&mut self) {
        for id in self.of_kind(|node| !node.pending.is_empty()) {
            self.settle(id);
        }
    }

    /// What a stop leaves: files that only an open handle kept are gone.
    pub fn without_handles(mut self) -> State {
        for id in self.of_kind(|node| node.kind != FileKind::Dir && node.names == 0) {
            self.nodes.remove(&id);
        }
        self
    }
}

/// Puts `bytes` at `offset`, over zeros where the content ended before.
pub fn overwrite(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}
