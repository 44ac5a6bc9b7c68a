//! One item that is no directory, under each of its names: passed over, left, written, or linked.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use crate::error::Result;
use crate::restore::attributes::{Xattrs, xattrs_of};
use crate::restore::dest;
use crate::restore::existing::{Existing, kind_of, look};
use crate::restore::plan::{DirNode, Leaf, Place};
use crate::restore::report::Obstacle;
use crate::restore::run::{Overwrite, Run};
use crate::restore::write::view_of;

/// How a name was dealt with.
enum Done {
    /// The item has it.
    Is,
    /// Something else keeps it.
    Kept,
    /// It was told to stop.
    Stopped,
}

/// The directory a thread has open: items that follow each other are mostly in one.
#[derive(Debug, Default)]
pub(super) struct Hand(Option<(Arc<DirNode>, OwnedFd)>);

impl Hand {
    /// The open directory `node`.
    fn open(&mut self, node: &Arc<DirNode>, dest: &dest::Dest) -> Result<&OwnedFd, Obstacle> {
        if !matches!(&self.0, Some((open, _)) if Arc::ptr_eq(open, node)) {
            let dir = dest.dir(node.names().into_iter());
            let dir = dir.map_err(Obstacle::call("open its directory"))?;
            self.0 = Some((Arc::clone(node), dir));
        }
        match &self.0 {
            Some((_, dir)) => Ok(dir),
            None => Err(Obstacle::call("open its directory")(Errno::ENOENT)),
        }
    }
}

impl Run<'_> {
    /// Restores `leaf` under all its names.
    pub(super) fn restore_leaf(&self, leaf: &Leaf, hand: &mut Hand) {
        let has_more = leaf.inode.nlink > 1;
        let mut original = has_more.then(|| self.links.first(leaf.ino)).flatten();
        for place in &leaf.places {
            let outcome = match &original {
                Some(first) => self.link(leaf, first, place, hand),
                None => self.write(leaf, place, hand),
            };
            match outcome {
                Ok(Done::Is) => {
                    original.get_or_insert_with(|| place.clone());
                }
                Ok(Done::Kept) => {}
                Ok(Done::Stopped) => return,
                Err(obstacle) => self.report.failed(|| place.path(), &obstacle),
            }
        }
        if let Some(original) = original.filter(|_| has_more) {
            self.links
                .seen(leaf.ino, &original, leaf.places.len(), leaf.inode.nlink);
        }
    }

    fn xattrs(&self, leaf: &Leaf) -> Result<Xattrs> {
        if leaf.has_xattrs {
            xattrs_of(&view_of(self.tree, leaf.state), leaf.ino)
        } else {
            Ok(Vec::new())
        }
    }

    /// Whether the name is to be written; if not, how it was dealt with.
    fn judge(&self, found: &Existing, place: &Place) -> Result<Option<Done>, Obstacle> {
        match (found, self.options.overwrite) {
            (Existing::Nothing, _) => Ok(None),
            (Existing::Same(_), Overwrite::Never | Overwrite::Changed) => {
                self.report.skipped();
                Ok(Some(Done::Is))
            }
            (Existing::Other(_), Overwrite::Never) => {
                self.report.kept(|| place.path());
                Ok(Some(Done::Kept))
            }
            (Existing::Same(stat) | Existing::Other(stat), _) => {
                if kind_of(stat) == nix::sys::stat::SFlag::S_IFDIR {
                    let text = "a directory stands there; move it away";
                    return Err(Obstacle::Refused(text.into()));
                }
                Ok(None)
            }
        }
    }

    fn write(&self, leaf: &Leaf, place: &Place, hand: &mut Hand) -> Result<Done, Obstacle> {
        let Some(writer) = self.writer.as_ref().filter(|_| !place.is_imagined(self)) else {
            self.report.restored(leaf.inode.allocated);
            return Ok(Done::Is);
        };
        let dir = hand.open(&place.dir, writer.dest)?;
        if !place.dir.is_new {
            let found = look(dir, &place.name, &leaf.inode, self.rights, || {
                self.xattrs(leaf)
            })?;
            if let Some(done) = self.judge(&found, place)? {
                return Ok(done);
            }
        }
        if self.options.dry_run {
            self.report.restored(leaf.inode.allocated);
            return Ok(Done::Is);
        }
        let xattrs = self.xattrs(leaf)?;
        let on_bytes = |bytes| self.goes_on_after(bytes);
        match writer.write(leaf, &xattrs, (dir, &place.name), &on_bytes)? {
            Some(written) => {
                self.report.restored(written.bytes);
                self.report.stripped(|| place.path(), &written.lacks);
                Ok(Done::Is)
            }
            None => Ok(Done::Stopped),
        }
    }

    /// Gives the item that is restored as `first` one more name.
    fn link(
        &self,
        leaf: &Leaf,
        first: &Place,
        place: &Place,
        hand: &mut Hand,
    ) -> Result<Done, Obstacle> {
        let Some(writer) = self.writer.as_ref().filter(|_| !place.is_imagined(self)) else {
            self.report.restored(0);
            return Ok(Done::Is);
        };
        let from = writer.dest.dir(first.dir.names().into_iter());
        let from = from.map_err(Obstacle::call("open the directory of its other name"))?;
        let dir = hand.open(&place.dir, writer.dest)?;
        let mut is_free = place.dir.is_new;
        if !is_free {
            let stat = |dir: &OwnedFd, name| {
                dest::stat(dir, name).map_err(Obstacle::call("look at what is there"))
            };
            let there = stat(dir, &place.name)?;
            let original = stat(&from, &first.name)?;
            let found = match (there, original) {
                (None, _) => Existing::Nothing,
                (Some(there), Some(original)) if is_one(&there, &original) => Existing::Same(there),
                (Some(there), _) => Existing::Other(there),
            };
            // One file is linked to itself as it is.
            if let (Existing::Same(_), Overwrite::Always) = (&found, self.options.overwrite) {
                self.report.restored(0);
                return Ok(Done::Is);
            }
            is_free = matches!(found, Existing::Nothing);
            if let Some(done) = self.judge(&found, place)? {
                return Ok(done);
            }
        }
        if self.options.dry_run {
            self.report.restored(0);
            return Ok(Done::Is);
        }
        match writer.link((&from, &first.name), (dir, &place.name), is_free) {
            // No hard links here, or no more of them.
            Err(Obstacle::Call {
                errno: Errno::EPERM | Errno::EMLINK | Errno::EOPNOTSUPP,
                ..
            }) => {
                let lacks = [format!("its link to {}", first.path())];
                let done = self.write(leaf, place, hand)?;
                self.report.stripped(|| place.path(), &lacks);
                Ok(done)
            }
            Err(obstacle) => Err(obstacle),
            Ok(()) => {
                self.report.restored(0);
                Ok(Done::Is)
            }
        }
    }
}

impl Place {
    /// Whether its directory is only one that would be made.
    fn is_imagined(&self, run: &Run<'_>) -> bool {
        run.options.dry_run && self.dir.is_new
    }
}

fn is_one(one: &nix::sys::stat::FileStat, other: &nix::sys::stat::FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
