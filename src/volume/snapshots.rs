//! `/.snapshots/<moment>/`: the live tree with every closed epoch beside it.
//!
//! The directory is reachable by name and not listed, so that a tool which walks the volume does not walk
//! every moment of it. Its inodes have numbers of their own, above all accounts, given out by use and taken
//! back when the kernel forgets them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::Result;
use crate::types::{AccountId, Epoch, Ino, Timestamp};
use crate::volume::engine::{EpochEntry, Volume};
use crate::volume::namespace::SNAPSHOTS_NAME;
use crate::volume::tree::{
    Answer, Attr, Caller, DirEntry, Fallocate, NewNode, OpenMode, RenameMode, SeekFor, SetAttr,
    Space, Tree, XattrMode,
};
use crate::volume::view_tree::ViewTree;

/// First number of an inode of this tree: above the largest account's last.
const FIRST: u64 = ((AccountId::MAX as u64) + 1) << 40;
/// The `.snapshots` directory itself.
const DIR: Ino = Ino(FIRST);

/// The live tree with its moments.
#[derive(Debug)]
pub struct SnapshotsTree {
    live: Arc<Volume>,
    moments: Mutex<Moments>,
}

#[derive(Debug, Default)]
struct Moments {
    trees: HashMap<Epoch, Arc<ViewTree>>,
    by_number: HashMap<Ino, (Place, u64)>,
    by_place: HashMap<Place, Ino>,
    next: u64,
}

/// An inode of a moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Place {
    epoch: Epoch,
    ino: Ino,
}

/// Where an inode number leads.
enum Target {
    Live,
    Dir,
    Moment(Arc<ViewTree>, Place),
}

impl Moments {
    /// The number of a place, counted as one more use.
    fn number(&mut self, place: Place) -> Ino {
        let next = Ino(FIRST + 1 + self.next);
        let ino = *self.by_place.entry(place).or_insert(next);
        if ino == next {
            self.next += 1;
        }
        self.by_number.entry(ino).or_insert((place, 0)).1 += 1;
        ino
    }
}

impl SnapshotsTree {
    /// Over the live tree of `volume`.
    pub fn new(volume: Arc<Volume>) -> Arc<SnapshotsTree> {
        Arc::new(SnapshotsTree {
            live: volume,
            moments: Mutex::default(),
        })
    }

    fn moments(&self) -> MutexGuard<'_, Moments> {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(&self, ino: Ino) -> Result<Target> {
        if ino.0 < FIRST {
            return Ok(Target::Live);
        }
        if ino == DIR {
            return Ok(Target::Dir);
        }
        let moments = self.moments();
        let (place, _) = moments.by_number.get(&ino).ok_or(Errno::ESTALE)?;
        let tree = moments.trees.get(&place.epoch).ok_or(Errno::ESTALE)?;
        Ok(Target::Moment(Arc::clone(tree), *place))
    }

    fn moment(&self, epoch: Epoch) -> Arc<ViewTree> {
        let tree = self.moments().trees.get(&epoch).cloned();
        tree.unwrap_or_else(|| {
            let tree = Arc::new(self.live.view_tree(epoch));
            Arc::clone(self.moments().trees.entry(epoch).or_insert(tree))
        })
    }

    /// A moment's attributes under this tree's numbers.
    fn renumbered(&self, epoch: Epoch, attr: Attr) -> Attr {
        Attr {
            ino: self.moments().number(Place {
                epoch,
                ino: attr.ino,
            }),
            ..attr
        }
    }

    fn dir_attr(&self) -> Result<Attr> {
        let root = self.live.getattr(Ino::ROOT)?;
        Ok(Attr {
            ino: DIR,
            mode: 0o555,
            nlink: 2,
            ..root
        })
    }

    fn entry(&self, entry: &EpochEntry) -> Result<DirEntry> {
        let root = self.moment(entry.epoch).getattr(Ino::ROOT)?;
        Ok(DirEntry {
            name: moment_name(entry).into(),
            attr: self.renumbered(entry.epoch, root),
        })
    }

    /// The moment called `name`: its time, its snapshot name, or its number.
    fn find(&self, name: &[u8]) -> Result<EpochEntry> {
        let text = std::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        let is_meant = |entry: &EpochEntry| {
            moment_name(entry) == text
                || entry.name.as_deref() == Some(text)
                || entry.epoch.to_string() == text
        };
        let found = self.live.closed_epochs()?.into_iter().find(is_meant);
        found.ok_or_else(|| Errno::ENOENT.into())
    }
}

/// What a moment is called: its time in UTC, to the second, and its number, so that two within one second differ.
fn moment_name(entry: &EpochEntry) -> String {
    let time = crate::clock::civil(Timestamp {
        secs: entry.time,
        nanos: entry.nanos,
    });
    format!("{time}.{}", entry.epoch)
}

/// Sends a reading operation to the tree it is about.
macro_rules! routed {
    ($self:ident, $ino:ident, dir => $dir:expr, |$tree:ident, $at:ident| $op:expr) => {
        match $self.target($ino)? {
            Target::Live => {
                let ($tree, $at): (&dyn Tree, Ino) = (&*$self.live, $ino);
                $op
            }
            Target::Dir => $dir,
            Target::Moment(moment, place) => {
                let ($tree, $at): (&dyn Tree, Ino) = (&*moment, place.ino);
                $op
            }
        }
    };
}

/// Lets a changing operation through to the live tree only.
macro_rules! live_only {
    ($self:ident, [$($ino:expr),+], $op:expr) => {
        if [$($ino),+].iter().any(|ino: &Ino| ino.0 >= FIRST) { Err(Errno::EROFS.into()) } else { $op }
    };
}

impl Tree for SnapshotsTree {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        match self.target(parent)? {
            Target::Live if parent == Ino::ROOT && name == SNAPSHOTS_NAME => self.dir_attr(),
            Target::Live => self.live.lookup(parent, name),
            Target::Dir => Ok(self.entry(&self.find(name)?)?.attr),
            Target::Moment(tree, place) => {
                Ok(self.renumbered(place.epoch, tree.lookup(place.ino, name)?))
            }
        }
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let attr = routed!(self, ino, dir => self.dir_attr(), |tree, at| tree.getattr(at))?;
        Ok(Attr { ino, ..attr })
    }

    fn readlink(&self, ino: Ino) -> Result<Bytes> {
        routed!(self, ino, dir => Err(Errno::EINVAL.into()), |tree, at| tree.readlink(at))
    }

    fn readdir(&self, ino: Ino, after: Option<&[u8]>, count_max: usize) -> Result<Vec<DirEntry>> {
        match self.target(ino)? {
            Target::Live => self.live.readdir(ino, after, count_max),
            Target::Dir => {
                let mut entries = self.live.closed_epochs()?;
                entries.retain(|entry| {
                    after.is_none_or(|after| moment_name(entry).as_bytes() > after)
                });
                entries.sort_by_key(moment_name);
                entries
                    .iter()
                    .take(count_max)
                    .map(|entry| self.entry(entry))
                    .collect()
            }
            Target::Moment(tree, place) => {
                let entries = tree.readdir(place.ino, after, count_max)?;
                let renumber = |entry: DirEntry| DirEntry {
                    attr: self.renumbered(place.epoch, entry.attr),
                    ..entry
                };
                Ok(entries.into_iter().map(renumber).collect())
            }
        }
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        match self.target(ino)? {
            Target::Live => self.live.parent(ino),
            Target::Dir => Ok(Ino::ROOT),
            Target::Moment(_, place) if place.ino == Ino::ROOT => Ok(DIR),
            Target::Moment(tree, place) => {
                let parent = Place {
                    epoch: place.epoch,
                    ino: tree.parent(place.ino)?,
                };
                Ok(self.moments().by_place.get(&parent).copied().unwrap_or(DIR))
            }
        }
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        routed!(self, ino, dir => Err(Errno::ENODATA.into()), |tree, at| tree.getxattr(at, name))
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>> {
        routed!(self, ino, dir => Ok(Vec::new()), |tree, at| tree.listxattr(at))
    }

    fn open(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        routed!(self, ino, dir => Err(Errno::EISDIR.into()), |tree, at| tree.open(at, mode))
    }

    fn read(&self, ino: Ino, offset: u64, len: u32, answer: Answer<Bytes>) {
        match self.target(ino) {
            Ok(Target::Live) => self.live.read(ino, offset, len, answer),
            Ok(Target::Dir) => answer(Err(Errno::EISDIR.into())),
            Ok(Target::Moment(tree, place)) => tree.read(place.ino, offset, len, answer),
            Err(error) => answer(Err(error)),
        }
    }

    fn seek(&self, ino: Ino, offset: u64, seek: SeekFor) -> Result<u64> {
        routed!(self, ino, dir => Err(Errno::EINVAL.into()), |tree, at| tree.seek(at, offset, seek))
    }

    fn release(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        routed!(self, ino, dir => Ok(()), |tree, at| tree.release(at, mode))
    }

    fn space(&self) -> Result<Space> {
        self.live.space()
    }

    fn forget(&self, ino: Ino, count: u64) {
        if ino.0 <= FIRST {
            return;
        }
        let mut moments = self.moments();
        if let Some((place, uses)) = moments.by_number.get_mut(&ino) {
            *uses = uses.saturating_sub(count);
            if *uses == 0 {
                let place = *place;
                moments.by_number.remove(&ino);
                moments.by_place.remove(&place);
                if !moments
                    .by_place
                    .keys()
                    .any(|other| other.epoch == place.epoch)
                {
                    moments.trees.remove(&place.epoch);
                }
            }
        }
    }

    fn setattr(&self, ino: Ino, change: SetAttr) -> Result<Attr> {
        live_only!(self, [ino], self.live.setattr(ino, change))
    }

    fn create(&self, parent: Ino, name: &[u8], node: NewNode<'_>, caller: Caller) -> Result<Attr> {
        live_only!(self, [parent], self.live.create(parent, name, node, caller))
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        live_only!(self, [parent], self.live.unlink(parent, name))
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        if parent == Ino::ROOT && name == SNAPSHOTS_NAME {
            return Err(Errno::EPERM.into());
        }
        live_only!(self, [parent], self.live.rmdir(parent, name))
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        live_only!(self, [from.0, to.0], self.live.rename(from, to, mode))
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        if ino.0 >= FIRST && parent.0 < FIRST {
            return Err(Errno::EXDEV.into());
        }
        live_only!(self, [ino, parent], self.live.link(ino, parent, name))
    }

    fn write(&self, ino: Ino, offset: u64, bytes: &[u8], sync: bool, answer: Answer<()>) {
        if ino.0 >= FIRST {
            return answer(Err(Errno::EROFS.into()));
        }
        self.live.write(ino, offset, bytes, sync, answer);
    }

    fn flush(&self, ino: Ino) -> Result<()> {
        if ino.0 >= FIRST {
            Ok(())
        } else {
            self.live.flush(ino)
        }
    }

    fn fsync(&self, ino: Ino, answer: Answer<()>) {
        if ino.0 >= FIRST {
            return answer(Ok(()));
        }
        self.live.fsync(ino, answer);
    }

    fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: Fallocate) -> Result<()> {
        live_only!(self, [ino], self.live.fallocate(ino, offset, len, mode))
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        if from.0.0 >= FIRST && to.0.0 < FIRST {
            return Err(Errno::EXDEV.into());
        }
        live_only!(self, [from.0, to.0], self.live.copy_range(from, to, len))
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        live_only!(self, [ino], self.live.setxattr(ino, name, value, mode))
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        live_only!(self, [ino], self.live.removexattr(ino, name))
    }
}
