//! A restore from its begin to its end: one thread walks and makes directories, some write, in the order in which
//! the content lies in packs, and directories get their times when all below them is written.
//!
//! It can be stopped at any moment and be begun again: what is complete has its name, and is passed over then.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::error::{Error, Result};
use crate::format::inode::Extent;
use crate::restore::attributes::Rights;
use crate::restore::dirs::Walking;
use crate::restore::leaf::Hand;
use crate::restore::links::Links;
use crate::restore::name::SafeName;
use crate::restore::plan::{Batch, DirNode, Leaf, Moment, Place, note_xattrs, walk};
use crate::restore::report::{Obstacle, Reporting, RestoreReport};
use crate::restore::target::{Marker, lock, mark, open_dest};
use crate::restore::write::{Writer, view_of};
use crate::types::{BlobLocation, FileKind, Ino};
use crate::volume::extents;
use crate::volume::history::locate::Located;
use crate::volume::view_tree::ViewTree;

/// Threads that write, at most: more wait for the same disk.
const WRITERS_MAX: usize = 8;
/// Between two looks at how far it is.
const TICK: Duration = Duration::from_millis(100);

/// What is done about what stands at the place of an item already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Overwrite {
    /// It stays.
    Never,
    /// It is replaced if its size, times, owner, mode or attributes are others.
    #[default]
    Changed,
    /// It is replaced.
    Always,
}

/// How to restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// What is done about what is there.
    pub overwrite: Overwrite,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Also what was deleted, as it was last.
    pub with_deleted: bool,
    /// Whether all content comes from the external volume: then nothing goes on without it.
    pub is_alone: bool,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SoFar {
    /// Items dealt with.
    pub items: u64,
    /// Items in all, once all were seen.
    pub items_total: Option<u64>,
    /// Bytes of content written.
    pub bytes: u64,
    /// The same in all.
    pub bytes_total: Option<u64>,
}

/// Restores `item` into the directory `to`, which is made if it is not there: the content of a directory, or one item
/// under its own name. `tree` shows the newest moment at which it was there. `progress` says whether to go on.
pub fn restore(
    tree: &ViewTree,
    item: &Located,
    to: &Path,
    options: Options,
    progress: &mut dyn FnMut(SoFar) -> bool,
) -> Result<RestoreReport> {
    let inode = item.inode.clone();
    let is_dir = inode.kind == FileKind::Dir;
    let (dest, is_ours) = open_dest(to, options.dry_run)?;
    let dest = dest.as_ref();
    let _lock = dest.map(lock).transpose()?;
    let marker = match dest.filter(|_| !options.dry_run) {
        Some(dest) => mark(dest, is_ours && is_dir)?,
        None => None,
    };
    let rights = Rights::own();
    let run = Run {
        tree,
        writer: dest.map(|dest| Writer { tree, dest, rights }),
        rights,
        options,
        report: Reporting::default(),
        links: Links::default(),
        stop: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
        totals: Mutex::default(),
    };
    let root = Arc::new(DirNode {
        parent: None,
        name: None,
        ino: item.ino,
        inode,
        state: None,
        is_new: dest.is_none(),
    });
    let single = (!is_dir).then(|| single(&root, item)).transpose()?;
    run.run(&root, single, progress)?;
    if !run.is_stopped() {
        marker.map_or(Ok(()), Marker::remove)?;
        if is_dir {
            run.finish_root(&root, is_ours);
        }
    }
    if let Some(dest) = dest.filter(|_| !options.dry_run) {
        dest.sync()?;
    }
    Ok(run.into_report())
}

fn single(root: &Arc<DirNode>, item: &Located) -> Result<Leaf> {
    let name = item.path.rsplit(|byte| *byte == b'/').next();
    let name = SafeName::parse(name.unwrap_or_default());
    let name = name.map_err(|bad| Error::Refused(bad.to_string()))?;
    Ok(Leaf {
        ino: item.ino,
        inode: root.inode.clone(),
        state: None,
        places: vec![Place {
            dir: Arc::clone(root),
            name,
        }],
        has_xattrs: false,
    })
}

/// A restore at work.
pub(super) struct Run<'a> {
    pub(super) tree: &'a ViewTree,
    /// `None` where nothing is written, because nothing is there and nothing is to be.
    pub(super) writer: Option<Writer<'a>>,
    pub(super) rights: Rights,
    pub(super) options: Options,
    pub(super) report: Reporting,
    pub(super) links: Links,
    stop: AtomicBool,
    bytes: AtomicU64,
    totals: Mutex<Totals>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    items: u64,
    bytes: u64,
    is_all: bool,
}

impl Run<'_> {
    fn run(
        &self,
        root: &Arc<DirNode>,
        single: Option<Leaf>,
        progress: &mut dyn FnMut(SoFar) -> bool,
    ) -> Result<()> {
        thread::scope(|scope| {
            let (batches, queue) = bounded(1);
            let (done, ended) = bounded::<()>(1);
            let walker = spawn(scope, "restore-walk", || match single {
                Some(leaf) => self.send_single(leaf, batches),
                None => self.walk(root, batches),
            })?;
            let writing = spawn(scope, "restore-order", || {
                // Dropped at the end, however it comes.
                let _done = done;
                self.write_all(queue)
            })?;
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if !progress(self.so_far()) {
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
            let _ = progress(self.so_far());
            let walked = walker.join();
            let wrote = writing.join();
            match (walked, wrote) {
                (Ok(()), Ok(outcome)) => outcome,
                _ => Err(Error::Poisoned("a thread of the restore panicked".into())),
            }
        })
    }

    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn so_far(&self) -> SoFar {
        let items = self.report.items();
        let totals = *self.totals();
        SoFar {
            items,
            items_total: totals.is_all.then_some(totals.items),
            bytes: self.bytes.load(Ordering::Relaxed),
            bytes_total: totals.is_all.then_some(totals.bytes),
        }
    }

    /// Whether nothing more is to be done.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || (self.options.is_alone && self.report.is_unreachable())
    }

    /// Notes that so much was written, and says whether to go on.
    pub(super) fn goes_on_after(&self, bytes: u64) -> bool {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        !self.is_stopped()
    }

    fn into_report(self) -> RestoreReport {
        let mut report = self.report.into_report();
        report.is_stopped = self.stop.into_inner();
        report
    }

    pub(super) fn count(&self, batch: &Batch) {
        let mut totals = self.totals();
        totals.items += (batch.leaves.len() + batch.finished.len()) as u64;
        let bytes = batch.leaves.iter().map(|leaf| leaf.inode.allocated);
        totals.bytes = bytes.fold(totals.bytes, u64::saturating_add);
    }

    fn counted_all(&self) {
        self.totals().is_all = true;
    }

    fn send_single(&self, leaf: Leaf, batches: Sender<Batch>) {
        let batch = Batch::of(leaf);
        self.count(&batch);
        self.counted_all();
        // Gone only with the whole restore.
        let _ = batches.send(batch);
    }

    fn walk(&self, root: &Arc<DirNode>, batches: Sender<Batch>) {
        let here = match self
            .writer
            .as_ref()
            .map(|writer| writer.dest.dir([].into_iter()))
        {
            Some(Ok(dir)) => Some(dir),
            Some(Err(errno)) => {
                let obstacle = Obstacle::call("open it")(errno);
                return self.report.failed(|| root.path(), &obstacle);
            }
            None => None,
        };
        let mut walking = Walking { run: self, batches };
        let moment = Moment {
            view: self.tree.view(),
            with_deleted: self.options.with_deleted,
        };
        walk(moment, Arc::clone(root), here, &mut walking);
        self.counted_all();
    }

    /// Writes batch after batch.
    fn write_all(&self, queue: Receiver<Batch>) -> Result<()> {
        for mut batch in queue {
            if self.is_stopped() {
                break;
            }
            note_xattrs(self.tree.view(), &mut batch.leaves)?;
            let leaves = self.in_order(batch.leaves);
            self.write_leaves(&leaves)?;
            if self.is_stopped() {
                break;
            }
            for node in batch.finished.iter().filter(|node| node.name.is_some()) {
                self.finish(node);
            }
        }
        Ok(())
    }

    /// By pack and place in it; several names of one item together.
    fn in_order(&self, leaves: Vec<Leaf>) -> Vec<Leaf> {
        let mut ordered: Vec<Leaf> = Vec::with_capacity(leaves.len());
        let mut linked: HashMap<Ino, usize> = HashMap::new();
        for leaf in leaves {
            if leaf.inode.nlink > 1 {
                if let Some(first) = linked.get(&leaf.ino).and_then(|at| ordered.get_mut(*at)) {
                    first.places.extend(leaf.places);
                    continue;
                }
                linked.insert(leaf.ino, ordered.len());
            }
            ordered.push(leaf);
        }
        ordered.sort_by_cached_key(|leaf| self.first_location(leaf).map(|at| (at.pack, at.offset)));
        ordered
    }

    fn first_location(&self, leaf: &Leaf) -> Option<BlobLocation> {
        if !leaf.inode.has_leaves {
            return leaf.inode.extents.first().map(|extent| extent.location);
        }
        // What cannot be read now is told when the file is written.
        let found =
            extents::some_from(&*view_of(self.tree, leaf.state), leaf.ino, &leaf.inode, 0).ok()?;
        found.first().map(|extent: &Extent| extent.location)
    }

    fn write_leaves(&self, leaves: &[Leaf]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let threads = thread::available_parallelism().map_or(1, usize::from) * 2;
        thread::scope(|scope| {
            let mut writers = Vec::new();
            for n in 0..threads.min(WRITERS_MAX).min(leaves.len()) {
                let next = &next;
                writers.push(spawn(scope, &format!("restore-{n}"), move || {
                    let mut hand = Hand::default();
                    while let Some(leaf) = leaves.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if self.is_stopped() {
                            return;
                        }
                        self.restore_leaf(leaf, &mut hand);
                    }
                })?);
            }
            let panicked = writers.into_iter().any(|writer| writer.join().is_err());
            if panicked {
                return Err(Error::Poisoned("a thread of the restore panicked".into()));
            }
            Ok(())
        })
    }
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    body: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, body)
        .map_err(Error::io("start", "a thread of the restore"))
}
