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
use crate::restore::name::{SafeName, beside};
use crate::restore::report::Obstacle;
use crate::types::{Epoch, FileKind, Ino};
use crate::volume::history::locate::{Standing, standing_of};
use crate::volume::history::names;
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
    /// The epoch as of which it was last, if it is one that was deleted.
    pub(super) state: Option<Epoch>,
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
    /// The epoch as of which it was last, if it is one that was deleted.
    pub(super) state: Option<Epoch>,
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
    pub(super) state: Option<Epoch>,
}

/// The moment, and what of it is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment<'a> {
    pub(super) view: &'a View,
    /// Also what was deleted before it.
    pub(super) with_deleted: bool,
}

/// A name of a directory.
struct Listed {
    name: Bytes,
    target: EntryTarget,
    gone: Option<Gone>,
}

/// What was deleted.
struct Gone {
    in_epoch: Epoch,
    /// The epoch of its last state.
    state: Epoch,
    inode: Inode,
    /// Something else had its name after it.
    is_beside: bool,
}

struct Frame {
    node: Arc<DirNode>,
    /// The newest moment at which the directory was there.
    view: View,
    standing: Standing,
    after: Option<Bytes>,
    pending: VecDeque<Listed>,
    is_read: bool,
}

impl Frame {
    fn new(node: Arc<DirNode>, view: &View, standing: Standing) -> Frame {
        let view = match standing {
            Standing::Present => view.clone(),
            Standing::Deleted { in_epoch } => view.as_of(in_epoch),
        };
        Frame {
            node,
            view,
            standing,
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
    fn next(&mut self, with_deleted: bool) -> Result<Option<Listed>> {
        while self.pending.is_empty() && !self.is_read {
            if with_deleted {
                self.list_all()?;
            } else {
                self.list_present()?;
            }
        }
        Ok(self.pending.pop_front())
    }

    fn list_present(&mut self) -> Result<()> {
        let entries = namespace::entries(&self.view, self.node.ino, self.after.as_deref(), STEP)?;
        self.is_read = entries.len() < STEP;
        self.after = entries.last().map(|(name, _)| name.clone());
        let listed = entries.into_iter().map(|(name, target)| Listed {
            name,
            target,
            gone: None,
        });
        self.pending.extend(listed);
        Ok(())
    }

    fn list_all(&mut self) -> Result<()> {
        let names = names::names_of(&self.view, self.node.ino, self.after.as_deref(), STEP)?;
        self.is_read = names.len() < STEP;
        self.after = names.last().map(|name| name.name.clone());
        for name in names {
            let former = name.former_dirs.iter().map(|span| (span, true));
            for (span, is_beside) in std::iter::once((&name.newest, false)).chain(former) {
                let gone = match standing_of(&self.view, span, self.standing)? {
                    // It goes on under another name.
                    None => continue,
                    Some(Standing::Present) => None,
                    Some(Standing::Deleted { in_epoch }) => {
                        let last = names::last_inode(&self.view.as_of(in_epoch), span.target.ino)?;
                        let Some((state, inode)) = last else { continue };
                        Some(Gone {
                            in_epoch,
                            state,
                            inode,
                            is_beside,
                        })
                    }
                };
                self.pending.push_back(Listed {
                    name: name.name.clone(),
                    target: span.target,
                    gone,
                });
            }
        }
        Ok(())
    }
}

/// Walks the tree below `root`, which `here` has open, depth first.
pub(super) fn walk<W: Walked>(
    moment: Moment<'_>,
    root: Arc<DirNode>,
    here: W::Dir,
    walked: &mut W,
) {
    let mut visited = HashSet::from([root.ino]);
    let mut stack = vec![Frame::new(root, moment.view, Standing::Present)];
    let mut here = here;
    let mut batch = Batch::default();
    loop {
        let depth = stack.len();
        let Some(frame) = stack.last_mut() else { break };
        if !walked.goes_on() {
            return;
        }
        let next = frame.next(moment.with_deleted).unwrap_or_else(|error| {
            walked.failed(&frame.node, b"", &error.into());
            frame.end();
            None
        });
        if let Some(listed) = next {
            let node = Arc::clone(&frame.node);
            match find(&frame.view, &node, &listed, &mut visited, depth) {
                Ok(Found::Leaf(leaf)) => batch.add(leaf),
                Ok(Found::Dir(found)) => {
                    if let Some((child, dir)) = walked.enter(&node, &here, found) {
                        here = dir;
                        let below = Frame::new(child, &frame.view, listed.standing());
                        stack.push(below);
                    }
                }
                Err(why) => walked.failed(&node, &listed.name, &why),
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

impl Listed {
    fn standing(&self) -> Standing {
        match &self.gone {
            None => Standing::Present,
            Some(Gone { in_epoch, .. }) => Standing::Deleted {
                in_epoch: *in_epoch,
            },
        }
    }
}

fn find(
    view: &View,
    dir: &Arc<DirNode>,
    listed: &Listed,
    visited: &mut HashSet<Ino>,
    depth: usize,
) -> Result<Found, Obstacle> {
    let refused = |text: &str| Obstacle::Refused(text.to_owned());
    let mut name = SafeName::parse(&listed.name)?;
    let ino = listed.target.ino;
    let (inode, state) = if let Some(gone) = &listed.gone {
        if gone.is_beside {
            name = beside(name.bytes(), gone.in_epoch);
        }
        (gone.inode.clone(), Some(gone.state))
    } else {
        let inode = namespace::inode_of(view, ino).map_err(|error| match error {
            Error::Posix(_) => refused("the volume has no inode of it: it is damaged"),
            error => error.into(),
        })?;
        (inode, None)
    };
    if inode.kind != FileKind::Dir {
        let dir = Arc::clone(dir);
        return Ok(Found::Leaf(Leaf {
            ino,
            inode,
            state,
            places: vec![Place { dir, name }],
            has_xattrs: state.is_some(),
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
    Ok(Found::Dir(Entered {
        name,
        ino,
        inode,
        state,
    }))
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
            // Of what was deleted they are looked for where it was.
            leaf.has_xattrs = leaf.state.is_some() || tagged.binary_search(&leaf.ino).is_ok();
            at += 1;
        }
    }
    Ok(())
}
