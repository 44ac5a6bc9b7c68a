//! An external volume as it is *now*, while its owner writes: a view that a newer one takes the place of.
//!
//! The root leads to the newest view. What was looked up below it stays in the view it was found in: an open file, a
//! directory that somebody is in, a walk under way see one moment to their end, and never half of another. So an inode
//! has a number for each view that the kernel remembers it from: its own where that is free, else one above all
//! accounts, taken back when the kernel forgets it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::types::{AccountId, Epoch, Ino};
use crate::volume::external::ExternalVolume;
use crate::volume::tree::{Answer, Attr, DirEntry, OpenMode, SeekFor, Space, Tree};
use crate::volume::view_tree::ViewTree;

/// First of the numbers that no account has.
const FIRST: u64 = ((AccountId::MAX as u64) + 1) << 40;
/// Names of the root that are asked for at once.
const NAMES_LEN: usize = 1000;

/// The newest view of an external volume, and those before it that are still in use.
#[derive(Debug)]
pub struct FollowTree {
    shown: Mutex<Shown>,
    /// What the root leads to: the volume's root, or an account's.
    base: Ino,
}

#[derive(Debug)]
struct Shown {
    external: Arc<ExternalVolume>,
    newest: Arc<ViewTree>,
    /// Of the views with a number below, by epoch.
    views: HashMap<Epoch, Arc<ViewTree>>,
    by_number: HashMap<Ino, (Place, u64)>,
    by_place: HashMap<Place, Ino>,
    next: u64,
}

/// An inode of a view. Two views are never of one epoch: a newer record has a higher one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Place {
    epoch: Epoch,
    ino: Ino,
}

impl Shown {
    fn epoch(&self) -> Epoch {
        self.external.record().epoch
    }

    /// The number of a place, counted as one more use.
    fn number(&mut self, place: Place, view: &Arc<ViewTree>) -> Ino {
        if let Some(ino) = self.by_place.get(&place)
            && let Some((_, uses)) = self.by_number.get_mut(ino)
        {
            *uses += 1;
            return *ino;
        }
        let ino = if self.by_number.contains_key(&place.ino) {
            self.next += 1;
            Ino(FIRST + self.next)
        } else {
            place.ino
        };
        self.by_place.insert(place, ino);
        self.by_number.insert(ino, (place, 1));
        self.views
            .entry(place.epoch)
            .or_insert_with(|| Arc::clone(view));
        ino
    }

    fn forget(&mut self, ino: Ino, count: u64) {
        let Some((place, uses)) = self.by_number.get_mut(&ino) else {
            return;
        };
        *uses = uses.saturating_sub(count);
        if *uses > 0 {
            return;
        }
        let place = *place;
        self.by_number.remove(&ino);
        self.by_place.remove(&place);
        let is_in_use = place.epoch == self.external.record().epoch
            || self.by_place.keys().any(|other| other.epoch == place.epoch);
        if !is_in_use {
            self.views.remove(&place.epoch);
        }
    }
}

impl FollowTree {
    /// Shows the newest epoch of `external`; with `account`, of that account alone.
    pub fn new(external: ExternalVolume, account: Option<AccountId>) -> Result<Arc<FollowTree>> {
        let newest = external.tree(None)?;
        Ok(Arc::new(FollowTree {
            base: account.map_or(Ino::ROOT, Ino::account_root),
            shown: Mutex::new(Shown {
                external: Arc::new(external),
                newest,
                views: HashMap::new(),
                by_number: HashMap::new(),
                by_place: HashMap::new(),
                next: 0,
            }),
        }))
    }

    /// The epoch that the root shows.
    pub fn epoch(&self) -> Epoch {
        self.shown().epoch()
    }

    /// Looks whether there is a newer epoch, and shows it from now on. Returns the names of the root that may lead
    /// elsewhere now: what remembers them must be told. On an error everything stays as it was.
    pub fn advance(&self) -> Result<Option<Vec<Bytes>>> {
        let (external, before) = {
            let shown = self.shown();
            (Arc::clone(&shown.external), Arc::clone(&shown.newest))
        };
        let Some(newer) = external.newer()? else {
            return Ok(None);
        };
        let view = newer.tree(None)?;
        // All that could fail was done before anything is swapped.
        let mut names = root_names(&before, self.base)?;
        names.extend(root_names(&view, self.base)?);
        let mut shown = self.shown();
        shown.external = Arc::new(newer);
        shown.newest = view;
        Ok(Some(names.into_iter().collect()))
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view that a number leads into, and where.
    fn target(&self, ino: Ino) -> Result<(Arc<ViewTree>, Place)> {
        let shown = self.shown();
        if ino == Ino::ROOT {
            let (epoch, ino) = (shown.epoch(), self.base);
            return Ok((Arc::clone(&shown.newest), Place { epoch, ino }));
        }
        let (place, _) = shown.by_number.get(&ino).ok_or(Errno::ESTALE)?;
        let view = shown.views.get(&place.epoch).ok_or(Errno::ESTALE)?;
        Ok((Arc::clone(view), *place))
    }

    fn numbered(&self, view: &Arc<ViewTree>, epoch: Epoch, attr: Attr) -> Attr {
        let place = Place {
            epoch,
            ino: attr.ino,
        };
        Attr {
            ino: self.shown().number(place, view),
            ..attr
        }
    }
}

fn root_names(view: &ViewTree, base: Ino) -> Result<BTreeSet<Bytes>> {
    let mut names = BTreeSet::new();
    let mut after: Option<Bytes> = None;
    loop {
        let entries = match view.readdir(base, after.as_deref(), NAMES_LEN) {
            // The account is deleted: there is nothing in it.
            Err(Error::Posix(Errno::ENOENT)) => return Ok(names),
            entries => entries?,
        };
        let Some(last) = entries.last() else {
            return Ok(names);
        };
        after = Some(last.name.clone());
        names.extend(entries.into_iter().map(|entry| entry.name));
    }
}

impl Tree for FollowTree {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let (view, place) = self.target(parent)?;
        let attr = view.lookup(place.ino, name)?;
        Ok(self.numbered(&view, place.epoch, attr))
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let (view, place) = self.target(ino)?;
        let attr = view.getattr(place.ino)?;
        Ok(Attr { ino, ..attr })
    }

    fn readlink(&self, ino: Ino) -> Result<Bytes> {
        let (view, place) = self.target(ino)?;
        view.readlink(place.ino)
    }

    fn readdir(&self, ino: Ino, after: Option<&[u8]>, count_max: usize) -> Result<Vec<DirEntry>> {
        let (view, place) = self.target(ino)?;
        // Under their own numbers: `listed` gives those of this tree.
        view.readdir(place.ino, after, count_max)
    }

    fn listed(&self, dir: Ino, ino: Ino, counted: bool) -> Ino {
        let Ok((view, Place { epoch, .. })) = self.target(dir) else {
            return ino;
        };
        let place = Place { epoch, ino };
        let mut shown = self.shown();
        if counted {
            return shown.number(place, &view);
        }
        shown.by_place.get(&place).copied().unwrap_or(ino)
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        if ino == Ino::ROOT {
            return Ok(ino);
        }
        let (view, place) = self.target(ino)?;
        let parent = view.parent(place.ino)?;
        let place = Place {
            ino: parent,
            ..place
        };
        Ok(self
            .shown()
            .by_place
            .get(&place)
            .copied()
            .unwrap_or(Ino::ROOT))
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        let (view, place) = self.target(ino)?;
        view.getxattr(place.ino, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>> {
        let (view, place) = self.target(ino)?;
        view.listxattr(place.ino)
    }

    fn open(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        let (view, place) = self.target(ino)?;
        view.open(place.ino, mode)
    }

    fn read(&self, ino: Ino, offset: u64, len: u32, answer: Answer<Bytes>) {
        match self.target(ino) {
            Ok((view, place)) => view.read(place.ino, offset, len, answer),
            Err(error) => answer(Err(error)),
        }
    }

    fn seek(&self, ino: Ino, offset: u64, seek: SeekFor) -> Result<u64> {
        let (view, place) = self.target(ino)?;
        view.seek(place.ino, offset, seek)
    }

    fn release(&self, _: Ino, _: OpenMode) -> Result<()> {
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        let newest = Arc::clone(&self.shown().newest);
        newest.space()
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.shown().forget(ino, count);
    }
}
