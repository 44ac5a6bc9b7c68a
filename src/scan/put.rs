//! An item into the volume: what has its name so far makes room, and what is known of it already is used.
//!
//! Names are added before others are taken away, whatever the order in which they are found: a file that was moved has
//! two names for a while, and its old one goes at the end of the account. So nothing is read again that is there.

use crate::error::Result;
use crate::format::inode::Inode;
use crate::types::{FileKind, Ino};
use crate::volume::feed::{FeedTx, Item};

/// What became of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// It was there and is what it shall be now.
    Changed(Ino),
    /// It is new.
    Made(Ino),
    /// It was there under another name, which it may still have.
    Moved(Ino),
    /// A directory has its name, and must go first.
    Blocked(Ino),
    /// It would have been taken over from another name, but is not there any more: it has to be read.
    Unknown,
}

/// What is done, and which inode lost its last name by it.
pub type Done = (Put, Option<Ino>);

/// Puts what is no directory. Without content only an inode that is there will do.
pub fn put(feed: &mut FeedTx<'_, '_>, at: (Ino, &[u8]), item: &Item) -> Result<Done> {
    let (parent, name) = at;
    let entry = feed.entry(parent, name)?;
    let known = known(feed, parent, item)?;
    let needs_content = item.kind == FileKind::File && item.content.is_none();
    match (entry, known) {
        (Some(entry), Some((ino, _))) if entry.ino == ino => {
            feed.change(ino, item)?;
            Ok((Put::Changed(ino), None))
        }
        (Some(entry), _) if entry.kind == FileKind::Dir => Ok((Put::Blocked(entry.ino), None)),
        (_, None) if needs_content => Ok((Put::Unknown, None)),
        (entry, known) => {
            let mut parked = None;
            if let Some(entry) = entry {
                parked = feed.park(parent, name)?.then_some(entry.ino);
            }
            let Some((ino, _)) = known else {
                return Ok((Put::Made(feed.make(parent, name, item)?), parked));
            };
            feed.link(ino, parent, name)?;
            feed.change(ino, item)?;
            Ok((Put::Moved(ino), parked))
        }
    }
}

/// Puts a directory. One that has its name becomes it; one that is known elsewhere moves here.
pub fn put_dir(feed: &mut FeedTx<'_, '_>, at: (Ino, &[u8]), item: &Item) -> Result<Done> {
    let (parent, name) = at;
    let mut parked = None;
    match feed.entry(parent, name)? {
        Some(entry) if entry.kind == FileKind::Dir => {
            feed.change(entry.ino, item)?;
            return Ok((Put::Changed(entry.ino), None));
        }
        Some(entry) => parked = feed.park(parent, name)?.then_some(entry.ino),
        None => {}
    }
    if let Some((ino, _)) = known(feed, parent, item)?
        && ino != Ino::account_root(parent.account())
        && let Some((old_parent, old_name)) = feed.name_of_dir(ino)?
        && !feed.is_below(parent, ino)?
    {
        feed.move_dir((old_parent, &old_name), at)?;
        feed.change(ino, item)?;
        return Ok((Put::Moved(ino), parked));
    }
    Ok((Put::Made(feed.make(parent, name, item)?), parked))
}

/// The inode that was copied from the same inode of the source, if it is of the same kind.
fn known(feed: &FeedTx<'_, '_>, parent: Ino, item: &Item) -> Result<Option<(Ino, Inode)>> {
    let origin = item.origin;
    let found = feed.by_origin(parent.account(), origin.place, origin.number)?;
    Ok(found.filter(|(_, inode)| inode.kind == item.kind))
}
