//! The directories that inotify watches, as a tree: a watch is a number, and the paths change under it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use nix::sys::inotify::WatchDescriptor;

/// No path has more names; a chain that is longer leads in a circle.
const DEPTH_MAX: usize = 1 << 16;

/// All watches of one source.
#[derive(Debug)]
pub(super) struct Nodes {
    top: WatchDescriptor,
    by_watch: HashMap<WatchDescriptor, Node>,
    /// Moved away, and not seen elsewhere yet.
    orphans: HashSet<WatchDescriptor>,
}

#[derive(Debug)]
struct Node {
    /// `None` for the root, and for an orphan.
    parent: Option<(WatchDescriptor, OsString)>,
    children: BTreeMap<OsString, WatchDescriptor>,
}

impl Nodes {
    /// The root alone.
    pub(super) fn new(top: WatchDescriptor) -> Nodes {
        let root = Node {
            parent: None,
            children: BTreeMap::new(),
        };
        Nodes {
            top,
            by_watch: HashMap::from([(top, root)]),
            orphans: HashSet::new(),
        }
    }

    pub(super) fn top(&self) -> WatchDescriptor {
        self.top
    }

    pub(super) fn len(&self) -> u64 {
        self.by_watch.len() as u64
    }

    /// Where a watched directory is below the root; `None` if it is not watched, or nobody knows where it is.
    pub(super) fn path(&self, watch: WatchDescriptor) -> Option<PathBuf> {
        let mut names = Vec::new();
        let mut here = watch;
        while here != self.top {
            let (parent, name) = self.by_watch.get(&here)?.parent.as_ref()?;
            names.push(name);
            if names.len() > DEPTH_MAX {
                return None;
            }
            here = *parent;
        }
        Some(names.into_iter().rev().collect())
    }

    /// Enters a directory, or moves it here: the kernel gives one directory one number, wherever it goes.
    pub(super) fn put(&mut self, watch: WatchDescriptor, parent: WatchDescriptor, name: OsString) {
        if watch == self.top {
            return;
        }
        self.detach(watch);
        self.orphans.remove(&watch);
        if let Some(other) = self.child(parent, &name) {
            // Another was here before: what became of it will be told.
            self.orphan_node(other);
        }
        let node = self.by_watch.entry(watch).or_insert_with(|| Node {
            parent: None,
            children: BTreeMap::new(),
        });
        node.parent = Some((parent, name.clone()));
        if let Some(parent) = self.by_watch.get_mut(&parent) {
            parent.children.insert(name, watch);
        }
    }

    /// A directory was moved away from here.
    pub(super) fn orphan(&mut self, parent: WatchDescriptor, name: &OsStr) {
        if let Some(watch) = self.child(parent, name) {
            self.orphan_node(watch);
        }
    }

    /// The kernel gave up a watch.
    pub(super) fn remove(&mut self, watch: WatchDescriptor) {
        if watch == self.top {
            return;
        }
        self.detach(watch);
        self.orphans.remove(&watch);
        let Some(node) = self.by_watch.remove(&watch) else {
            return;
        };
        // A directory goes last, so there are none left, unless their end is still to be told.
        for child in node.children.into_values() {
            if let Some(child_node) = self.by_watch.get_mut(&child) {
                child_node.parent = None;
                self.orphans.insert(child);
            }
        }
    }

    /// Forgets the orphans, with all below them, and names their watches.
    pub(super) fn take_orphans(&mut self) -> Vec<WatchDescriptor> {
        let mut taken = Vec::new();
        let mut waiting: Vec<WatchDescriptor> = self.orphans.drain().collect();
        while let Some(watch) = waiting.pop() {
            if let Some(node) = self.by_watch.remove(&watch) {
                waiting.extend(node.children.into_values());
                taken.push(watch);
            }
        }
        taken
    }

    fn child(&self, parent: WatchDescriptor, name: &OsStr) -> Option<WatchDescriptor> {
        self.by_watch.get(&parent)?.children.get(name).copied()
    }

    fn orphan_node(&mut self, watch: WatchDescriptor) {
        self.detach(watch);
        self.orphans.insert(watch);
    }

    /// Takes it out of the directory it was in.
    fn detach(&mut self, watch: WatchDescriptor) {
        let parent = self
            .by_watch
            .get_mut(&watch)
            .and_then(|node| node.parent.take());
        if let Some((parent, name)) = parent
            && let Some(parent) = self.by_watch.get_mut(&parent)
        {
            parent.children.remove(&name);
        }
    }
}
