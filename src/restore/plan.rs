//! What there is to restore, in batches: a walk of the tree of a moment, which makes the directories as it goes.
//!
//! The walk believes nothing: names are checked, a directory is entered once, and an entry that cannot be read is
//! one item of the report and no more. What it holds is one batch, and the names of the directories it is in.

use std::collections::{HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::format::inode::{self, EntryTarget, Inode};
use crate::format::keys;
use crate::meta::view::View;
use crate::restore::name::SafeName;
use crate::restore::report::Obstacle;
use crate::types::{FileKind, Ino};
use crate::volume::namespace;

/// Items of a batch: enough that the packs they need are read once, and some 30 MB of memory.
const BATCH_LEN_MAX: usize = 50_000;
/// Memory for their names, extents and link targets.
const BATCH_BYTES_MAX: usize = 24 << 20;
/// Entries of a directory read in one step.
const STEP: usize = 256;
/// Levels of directories: what is deeper has no use, and a chain of names must end.
const DEPTH_MAX: usize = 4096;

/// A directory that is being restored.
#[derive(Debug)]
pub(super) struct DirNode {
    pub(super) parent: Option<Arc<DirNode>>,
    /// `None` for the destination itself.
    pub(super) name: Option<SafeName>,
    pub(super) ino: Ino,
    pub(super) inode: Inode,
    /// Made by this run: nothing in it can stand in the way.
    pub(super) is_new: bool,
}

impl DirNode {
    /// The names from the destination down to it.
    pub(super) fn names(&self) -> Vec<&SafeName> {
        let mut names = Vec::new();
        let mut at = Some(self);
        while let Some(node) = at {
            names.extend(&node.name);
            at = node.parent.as_deref();
        }
        names.reverse();
        names
    }

    /// For the report.
    pub(super) fn path(&self) -> String {
        let names: Vec<String> = self.names().iter().map(ToString::to_string).collect();
        if names.is_empty() {
            ".".into()
        } else {
            names.join("/")
        }
    }

    /// The same of something in it.
    pub(super) fn path_of(&self, name: &str) -> String {
        match self.name {
            None => name.to_owned(),
            Some(_) => format!("{}/{name}", self.path()),
        }
    }
}

/// A name of an item that is no directory.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) dir: Arc<DirNode>,
    pub(super) name: SafeName,
}

impl Place {
    pub(super) fn path(&self) -> String {
        self.dir.path_of(&self.name.to_string())
    }
}

/// Something to write that is no directory.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) ino: Ino,
    pub(super) inode: Inode,
    /// One, or several where it has several names in this batch.
    pub(super) places: Vec<Place>,
    pub(super) has_xattrs: bool,
}

/// A part of the work.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) leaves: Vec<Leaf>,
    /// Directories that are complete when this batch is written, those below before those above.
    pub(super) finished: Vec<Arc<DirNode>>,
    bytes: usize,
}

impl Batch {
    /// This one item.
    pub(super) fn of(leaf: Leaf) -> Batch {
        let mut batch = Batch::default();
        batch.add(leaf);
        batch
    }

    fn add(&mut self, leaf: Leaf) {
        let extents = leaf.inode.extents.len() * size_of::<inode::Extent>();
        self.bytes += size_of::<Leaf>() + leaf.inode.target.len() + extents + 128;
        self.leaves.push(leaf);
    }

    fn is_full(&self) -> bool {
        self.leaves.len() + self.finished.len() >= BATCH_LEN_MAX || self.bytes >= BATCH_BYTES_MAX
    }
}

/// What the walk asks of whoever restores.
pub(super) trait Walked {
    /// An open directory of the destination.
    type Dir;

    /// Makes the directory that was found in `parent`, which `here` has open. `None`: nothing below it can be restored,
    /// which was told.
    fn enter(
        &mut self,
        parent: &Arc<DirNode>,
        here: &Self::Dir,
        found: Entered,
    ) -> Option<(Arc<DirNode>, Self::Dir)>;

    /// Opens a directory again that was entered before. `None`: nothing more can be restored there, which was told.
    fn reenter(&mut self, node: &Arc<DirNode>) -> Option<Self::Dir>;

    /// An entry of `dir` that cannot be restored; without a name, all that was not walked yet.
    fn failed(&mut self, dir: &DirNode, name: &[u8], why: &Obstacle);

    /// A full batch. `false`: no more is wanted.
    fn batch(&mut self, batch: Batch) -> bool;

    /// Whether to go on.
    fn goes_on(&self) -> bool;
}

/// A directory that was found.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) name: SafeName,
    pub(super) ino: Ino,
    pub(super) inode: Inode,
}

struct Frame {
    node: Arc<DirNode>,
    after: Option<Bytes>,
    pending: VecDeque<(Bytes, EntryTarget)>,
    is_read: bool,
}

impl Frame {
    fn new(node: Arc<DirNode>) -> Frame {
        Frame {
            node,
            after: None,
            pending: VecDeque::new(),
            is_read: false,
        }
    }

    /// Nothing more of it.
    fn end(&mut self) {
        self.is_read = true;
        self.pending.clear();
    }

    /// The next entry.
    fn next(&mut self, view: &View) -> Result<Option<(Bytes, EntryTarget)>> {
        if self.pending.is_empty() && !self.is_read {
            let entries = namespace::entries(view, self.node.ino, self.after.as_deref(), STEP)?;
            self.is_read = entries.len() < STEP;
            self.after = entries.last().map(|(name, _)| name.clone());
            self.pending = entries.into();
        }
        Ok(self.pending.pop_front())
    }
}

/// Walks the tree below `root`, which `here` has open, depth first.
pub(super) fn walk<W: Walked>(view: &View, root: Arc<DirNode>, here: W::Dir, walked: &mut W) {
    let mut visited = HashSet::from([root.ino]);
    let mut stack = vec![Frame::new(root)];
    let mut here = here;
    let mut batch = Batch::default();
    while let Some(frame) = stack.last_mut() {
        if !walked.goes_on() {
            return;
        }
        let next = frame.next(view).unwrap_or_else(|error| {
            walked.failed(&frame.node, b"", &error.into());
            frame.end();
            None
        });
        if let Some((name, target)) = next {
            let node = Arc::clone(&frame.node);
            match find(view, &node, &name, target, &mut visited, stack.len()) {
                Ok(Found::Leaf(leaf)) => batch.add(leaf),
                Ok(Found::Dir(found)) => {
                    if let Some((child, dir)) = walked.enter(&node, &here, found) {
                        here = dir;
                        stack.push(Frame::new(child));
                    }
                }
                Err(why) => walked.failed(&node, &name, &why),
            }
        } else {
            batch.finished.extend(stack.pop().map(|frame| frame.node));
            if let Some(above) = stack.last_mut() {
                match walked.reenter(&above.node) {
                    Some(dir) => here = dir,
                    None => above.end(),
                }
            }
        }
        if batch.is_full() && !walked.batch(std::mem::take(&mut batch)) {
            return;
        }
    }
    walked.batch(batch);
}

enum Found {
    Leaf(Leaf),
    Dir(Entered),
}

fn find(
    view: &View,
    dir: &Arc<DirNode>,
    name: &[u8],
    target: EntryTarget,
    visited: &mut HashSet<Ino>,
    depth: usize,
) -> Result<Found, Obstacle> {
    let refused = |text: &str| Obstacle::Refused(text.to_owned());
    let name = SafeName::parse(name)?;
    let ino = target.ino;
    let inode = namespace::inode_of(view, ino).map_err(|error| match error {
        Error::Posix(_) => refused("the volume has no inode of it: it is damaged"),
        error => error.into(),
    })?;
    if inode.kind != FileKind::Dir {
        let dir = Arc::clone(dir);
        return Ok(Found::Leaf(Leaf {
            ino,
            inode,
            places: vec![Place { dir, name }],
            has_xattrs: false,
        }));
    }
    if depth >= DEPTH_MAX {
        return Err(refused(
            "it is more than 4096 directories deep; nothing below it was restored",
        ));
    }
    // A directory with two names would be a tree without an end, or one as large as they like.
    if !visited.insert(ino) {
        return Err(refused("it is a directory that has another name already"));
    }
    Ok(Found::Dir(Entered { name, ino, inode }))
}

/// Notes which leaves have extended attributes: one pass, in place of a search for each.
pub(super) fn note_xattrs(view: &View, leaves: &mut [Leaf]) -> Result<()> {
    let mut order: Vec<usize> = (0..leaves.len()).collect();
    order.sort_unstable_by_key(|at| leaves.get(*at).map(|leaf| leaf.ino));
    let mut at = 0;
    while let Some(first) = order.get(at).and_then(|n| leaves.get(*n)) {
        let account = first.ino.account();
        let end = keys::kind_end(account, keys::Kind::Xattr);
        let from = keys::xattr(first.ino, b"");
        let mut tagged: Vec<Ino> = Vec::new();
        let last = order
            .get(at..)
            .unwrap_or_default()
            .iter()
            .filter_map(|n| leaves.get(*n))
            .take_while(|leaf| leaf.ino.account() == account)
            .last()
            .map_or(first.ino, |leaf| leaf.ino);
        for entry in view.range(&from, Bound::Excluded(&*end)) {
            let (key, _) = entry?;
            match keys::ino_of(&key) {
                Some(ino) if ino > last => break,
                Some(ino) if tagged.last() != Some(&ino) => tagged.push(ino),
                _ => {}
            }
        }
        while let Some(leaf) = order.get(at).and_then(|n| leaves.get_mut(*n)) {
            if leaf.ino.account() != account {
                break;
            }
            leaf.has_xattrs = tagged.binary_search(&leaf.ino).is_ok();
            at += 1;
        }
    }
    Ok(())
}
