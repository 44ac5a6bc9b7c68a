//! Deleted items back in place: in the account they were deleted from, by reference, without reading their content.
//!
//! Each comes back as it was last. A directory that is gone too comes back with it. Where another item has the name by
//! now, the old one comes back beside it; one that is here again already is passed over, so that a second run has
//! nothing to do.

use std::collections::HashMap;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::format::inode::Inode;
use crate::meta::view::View;
use crate::restore::name::{SafeName, beside};
use crate::restore::report::{Obstacle, Reporting, RestoreReport};
use crate::restore::run::SoFar;
use crate::types::{Epoch, FileKind, Ino, escape};
use crate::volume::Volume;
use crate::volume::history::locate::{Located, Standing, expect, locate};
use crate::volume::history::walk::{Wanted, walk};
use crate::volume::revive::{Past, Revived};
use crate::volume::tree::{Attr, Tree};

/// What to bring back, and where.
#[derive(Clone, Debug)]
pub struct Undelete {
    /// `ACCOUNT[/PATH]`: what is below it.
    pub item: Vec<u8>,
    /// What was deleted after this epoch,
    pub after: Epoch,
    /// and not after this one.
    pub until: Epoch,
    /// A directory of the account, named from its top, in place of where they were.
    pub into: Option<Vec<u8>>,
    /// Only tell what would come back.
    pub dry_run: bool,
}

/// Brings back what was deleted. `progress` says whether to go on.
pub fn undelete(
    volume: &Volume,
    what: &Undelete,
    progress: &mut dyn FnMut(SoFar) -> bool,
) -> Result<RestoreReport> {
    // What was deleted until now is in an epoch. What got a new one of its name later is looked for as of before.
    let newest = volume.close_epoch(None)?;
    let tree = volume.view_tree(newest.min(what.until));
    let view = tree.view();
    let top = expect(view, &what.item)?;
    if top.path.is_empty() {
        return Err(Error::Refused("name the account".into()));
    }
    let mut reviving = Reviving::new(volume, view, what, &top)?;
    let mut so_far = SoFar::default();
    for found in walk(view, &top, Wanted::Deleted) {
        let found = found?;
        reviving.visit(&found);
        so_far.items += 1;
        if !progress(so_far) {
            reviving.is_stopped = true;
            break;
        }
    }
    if !what.dry_run {
        volume.commit()?;
        if let Some(witness) = volume.witness() {
            witness.settle();
        }
    }
    let mut report = reviving.report.into_report();
    report.is_stopped = reviving.is_stopped;
    Ok(report)
}

/// A directory of the live volume, as far as it is one.
#[derive(Clone, Copy, Debug)]
enum Home {
    Is(Ino),
    /// Only in a dry run: it would be made.
    Imagined,
}

struct Reviving<'a> {
    volume: &'a Volume,
    view: &'a View,
    what: &'a Undelete,
    /// The account's directory or the one below it where all comes, and how much of a path leads to it.
    base: Home,
    base_len: usize,
    /// Deleted directories above what is visited: by path, as they were.
    gone: HashMap<Vec<u8>, Located>,
    homes: HashMap<Vec<u8>, Home>,
    revived: Revived,
    report: Reporting,
    is_stopped: bool,
}

impl<'a> Reviving<'a> {
    fn new(
        volume: &'a Volume,
        view: &'a View,
        what: &'a Undelete,
        top: &Located,
    ) -> Result<Reviving<'a>> {
        let account = top
            .path
            .split(|byte| *byte == b'/')
            .next()
            .unwrap_or_default();
        let root = volume.lookup(Ino::ROOT, account).map_err(|_| {
            Error::Refused(format!(
                "the account '{}' is not there any more: restore it into a directory (tidefs restore --at)",
                escape(account)
            ))
        })?;
        let is_disabled = volume
            .accounts()?
            .iter()
            .any(|entry| entry.id == root.ino.account() && entry.record.disabled.is_some());
        if is_disabled {
            return Err(Error::Refused(format!(
                "the account '{0}' is disabled: tidefs account enable {0}",
                escape(account)
            )));
        }
        let mut base = root.ino;
        for name in what
            .into
            .iter()
            .flat_map(|path| path.split(|byte| *byte == b'/'))
        {
            if !name.is_empty() {
                base = volume
                    .lookup(base, name)
                    .map_err(|_| no_directory(what.into.as_deref()))?
                    .ino;
            }
        }
        Ok(Reviving {
            volume,
            view,
            what,
            base: Home::Is(base),
            base_len: account.len() + 1,
            gone: HashMap::new(),
            homes: HashMap::new(),
            revived: Revived::new(),
            report: Reporting::default(),
            is_stopped: false,
        })
    }

    fn visit(&mut self, found: &Located) {
        let Standing::Deleted { in_epoch } = found.standing else {
            return;
        };
        if found.inode.kind == FileKind::Dir {
            self.gone.insert(found.path.clone(), found.clone());
        }
        if in_epoch <= self.what.after || in_epoch > self.what.until {
            return;
        }
        let outcome = match found.inode.kind {
            FileKind::Dir => self.home(&found.path).map(drop),
            _ => self.bring(found, in_epoch),
        };
        if let Err(obstacle) = outcome {
            self.report.failed(|| escape(&found.path), &obstacle);
        }
    }

    /// The live directory that `path` is, made anew if it was deleted.
    fn home(&mut self, path: &[u8]) -> Result<Home, Obstacle> {
        if path.len() < self.base_len {
            return Ok(self.base);
        }
        if let Some(known) = self.homes.get(path) {
            return Ok(*known);
        }
        let (above, name) = split(path);
        let above = self.home(above)?;
        let home = match self.standing(above, name)? {
            Some(there) if there.kind == FileKind::Dir => Home::Is(there.ino),
            there => {
                let gone = self.former(path)?;
                let name = match (&there, gone.standing) {
                    (Some(_), Standing::Deleted { in_epoch }) => beside(name, in_epoch),
                    _ => SafeName::parse(name)?,
                };
                self.make_dir(above, &name, &gone)?
            }
        };
        self.homes.insert(path.to_vec(), home);
        Ok(home)
    }

    /// The directory `path` as it was, of one that has to be made.
    fn former(&self, path: &[u8]) -> Result<Located, Obstacle> {
        if let Some(gone) = self.gone.get(path) {
            return Ok(gone.clone());
        }
        // Elsewhere those that are still there are made as well.
        let is_elsewhere = self.what.into.is_some();
        let found = is_elsewhere
            .then(|| locate(self.view, path, true))
            .transpose()?;
        found.flatten().ok_or_else(|| {
            Obstacle::Refused("the directory it was in goes on under another name".into())
        })
    }

    fn make_dir(&mut self, above: Home, name: &SafeName, gone: &Located) -> Result<Home, Obstacle> {
        // Beside another one it may be here again already.
        if let Some(there) = self.standing(above, name.bytes())?
            && there.kind == FileKind::Dir
        {
            return Ok(Home::Is(there.ino));
        }
        let home = self.make(above, name, gone)?;
        self.report.restored(0);
        Ok(home)
    }

    fn make(&mut self, above: Home, name: &SafeName, gone: &Located) -> Result<Home, Obstacle> {
        let Home::Is(parent) = above else {
            return Ok(Home::Imagined);
        };
        if self.what.dry_run {
            return Ok(Home::Imagined);
        }
        let past = Past::read(&self.view.as_of(gone.state), gone.ino, &gone.inode)?;
        let place = (parent, name.bytes());
        let ino = self
            .volume
            .revive(place, (gone.ino, &past), &mut self.revived)?;
        Ok(Home::Is(ino))
    }

    fn bring(&mut self, found: &Located, in_epoch: Epoch) -> Result<(), Obstacle> {
        let (above, name) = split(&found.path);
        let home = self.home(above)?;
        let mut name = SafeName::parse(name)?;
        for _ in 0..2 {
            match self.standing(home, name.bytes())? {
                None => {
                    self.make(home, &name, found)?;
                    self.report.restored(found.inode.allocated);
                    return Ok(());
                }
                Some(there) if is_same(&there, &found.inode) => {
                    self.report.skipped();
                    return Ok(());
                }
                Some(_) => name = beside(name.bytes(), in_epoch),
            }
        }
        let text = format!("{name} is there already, and another");
        Err(Obstacle::Refused(text))
    }

    /// What has the name in the live directory.
    fn standing(&self, home: Home, name: &[u8]) -> Result<Option<Attr>, Obstacle> {
        let Home::Is(dir) = home else {
            return Ok(None);
        };
        match self.volume.lookup(dir, name) {
            Ok(attr) => Ok(Some(attr)),
            Err(Error::Posix(Errno::ENOENT)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn no_directory(into: Option<&[u8]>) -> Error {
    let shown = escape(into.unwrap_or_default());
    Error::Refused(format!(
        "there is no directory '{shown}' in the account: make it, or name another one"
    ))
}

fn is_same(there: &Attr, inode: &Inode) -> bool {
    there.kind == inode.kind
        && there.mtime == inode.mtime
        && (inode.kind != FileKind::File || there.size == inode.size)
}

/// The path of the directory, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (
            path.get(..at).unwrap_or_default(),
            path.get(at + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}
