//! The states of an item: what its path led to, epoch by epoch, and what became of it.
//!
//! An item is known by its path. A program that replaces a file by renaming a new one over it makes a new state of
//! the path, as one that writes into the file does; a path that was renamed has a state that says where to.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::error::Result;
use crate::format::inode::{EntryTarget, Extent, Inode};
use crate::format::keys;
use crate::format::segment::CacheUse;
use crate::meta::view::View;
use crate::types::{BlobHash, Epoch, FileKind, Ino};
use crate::volume::history::accounts;
use crate::volume::history::locate::parts;
use crate::volume::history::names::{self, End, Span};
use crate::volume::history::whereabouts::Whereabouts;

/// Why a state is not the one before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// It was made.
    Created,
    /// Its content changed, or its length.
    Content,
    /// Only attributes changed, or, of a directory, what is in it.
    Attributes,
    /// Another item has its name now.
    Replaced,
    /// It had another path before.
    Renamed {
        /// That path.
        from: Vec<u8>,
    },
    /// It has this path beside another one from now on: a hard link.
    Linked {
        /// The other one.
        from: Vec<u8>,
    },
    /// It goes on under another path.
    Moved {
        /// That path.
        to: Vec<u8>,
    },
    /// The path is gone, and the item has another one still: a hard link.
    Unlinked {
        /// The other one.
        still_at: Vec<u8>,
    },
    /// It is gone.
    Deleted,
}

/// A state of an item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ItemState {
    /// 1 for the oldest that is kept.
    pub number: u64,
    /// The epoch that has it first.
    pub epoch: Epoch,
    /// How it came to be.
    pub event: Event,
    /// The inode; of a state without one, the one before.
    pub ino: Ino,
    /// The item as it was; `None` if it was gone.
    pub inode: Option<Inode>,
}

impl ItemState {
    /// SHA-256 of the content, where the volume has it: of a file that is one blob.
    pub fn digest(&self) -> Option<BlobHash> {
        self.inode.as_ref().and_then(digest)
    }
}

/// SHA-256 of a file's content, if the volume has it: of a file that is one blob.
pub fn digest(inode: &Inode) -> Option<BlobHash> {
    let [extent] = &inode.extents[..] else {
        return None;
    };
    let is_whole = extent.start == 0
        && extent.blob_offset == 0
        && u64::from(extent.len) == inode.size
        && extent.len == extent.location.plain_len;
    is_whole.then_some(extent.blob)
}

/// The states of `path` up to the moment of `view`, oldest first; empty if it never led to anything.
pub fn states_of(view: &View, path: &[u8]) -> Result<Vec<ItemState>> {
    let spans = path_spans(view, path)?;
    let mut states = States {
        view,
        found: Vec::new(),
    };
    let mut spans = spans.iter().peekable();
    while let Some(span) = spans.next() {
        states.span(span)?;
        let next = spans.peek().map(|next| next.since);
        states.end(span, next)?;
    }
    Ok(states.found)
}

/// Which inodes a path led to, and when, oldest first.
fn path_spans(view: &View, path: &[u8]) -> Result<Vec<Span>> {
    let root = Span {
        target: EntryTarget {
            ino: Ino::ROOT,
            kind: FileKind::Dir,
        },
        since: Epoch(0),
        until: None,
    };
    let mut spans = vec![root];
    for (depth, name) in parts(path).enumerate() {
        let mut below = Vec::new();
        for dir in &spans {
            let found = names::spans_of(view, dir.target.ino, name)?;
            below.extend(found.into_iter().filter_map(|span| within(&span, dir)));
        }
        if depth == 0
            && below.is_empty()
            && let Some(account) = accounts::by_uuid(view, name)?
        {
            below = names::spans_of(view, Ino::ROOT, &account.name)?;
            below.retain(|span| span.target.ino == Ino::account_root(account.id));
        }
        spans = below;
    }
    spans.sort_by_key(|span| span.since);
    Ok(spans)
}

/// The part of a span in which its directory had its own path.
fn within(span: &Span, dir: &Span) -> Option<Span> {
    let since = span.since.max(dir.since);
    let until = match (span.until, dir.until) {
        (Some(own), Some(above)) => Some(own.min(above)),
        (own, above) => own.or(above),
    };
    let is_empty = until.is_some_and(|until| until <= since);
    (!is_empty).then_some(Span {
        since,
        until,
        ..*span
    })
}

struct States<'a> {
    view: &'a View,
    found: Vec<ItemState>,
}

fn before(epoch: Epoch) -> Epoch {
    Epoch(epoch.0.saturating_sub(1))
}

impl States<'_> {
    fn push(&mut self, epoch: Epoch, event: Event, ino: Ino, inode: Option<Inode>) {
        self.found.push(ItemState {
            number: self.found.len() as u64 + 1,
            epoch,
            event,
            ino,
            inode,
        });
    }

    /// The states within one span: each version of the inode is one.
    fn span(&mut self, span: &Span) -> Result<()> {
        let ino = span.target.ino;
        let mut versions = Vec::new();
        for entry in self.view.versions_of(&keys::inode(ino))? {
            let is_later = span.until.is_some_and(|until| entry.epoch >= until);
            if let (false, Some(value)) = (is_later, &entry.value) {
                versions.push((entry.epoch, names::decode_inode(ino, value)?));
            }
        }
        versions.reverse();
        let first = versions.partition_point(|(epoch, _)| *epoch <= span.since);
        let existed = versions
            .first()
            .is_some_and(|(epoch, _)| *epoch < span.since);
        let leaves = self.leaf_epochs(ino, &versions)?;
        let mut older: Option<(Epoch, Inode)> = None;
        for (epoch, inode) in versions.into_iter().skip(first.saturating_sub(1)) {
            let epoch = epoch.max(span.since);
            let event = match &older {
                None => self.first_event(span, existed)?,
                Some(older) if is_same(older, (epoch, &inode), &leaves) => Event::Attributes,
                Some(_) => Event::Content,
            };
            older = Some((epoch, inode.clone()));
            self.push(epoch, event, ino, Some(inode));
        }
        Ok(())
    }

    /// The epochs in which extents of the file changed that are not in its inode.
    fn leaf_epochs(&self, ino: Ino, versions: &[(Epoch, Inode)]) -> Result<BTreeSet<Epoch>> {
        let mut epochs = BTreeSet::new();
        if versions.len() > 1 && versions.iter().any(|(_, inode)| inode.has_leaves) {
            let (from, to) = (keys::extents(ino, 0), keys::extents_end(ino));
            for entry in self
                .view
                .versions(&from, Bound::Excluded(&to), CacheUse::Bypass)
            {
                epochs.insert(entry?.epoch);
            }
        }
        Ok(epochs)
    }

    fn first_event(&self, span: &Span, existed: bool) -> Result<Event> {
        if existed {
            let whereabouts = Whereabouts::of(self.view, span.target.ino)?;
            let now = whereabouts.paths_at(span.since)?;
            let mut earlier = whereabouts.paths_at(before(span.since))?;
            if let Some(at) = earlier.iter().position(|path| now.contains(path)) {
                let from = earlier.swap_remove(at);
                return Ok(Event::Linked { from });
            }
            if let Some(from) = earlier.pop() {
                return Ok(Event::Renamed { from });
            }
        }
        let is_taken = self
            .found
            .last()
            .is_some_and(|state| state.inode.is_some() && state.epoch < span.since);
        Ok(if is_taken {
            Event::Replaced
        } else {
            Event::Created
        })
    }

    /// What became of the item at the end of a span; nothing is said if it is gone and another one has its name.
    fn end(&mut self, span: &Span, next: Option<Epoch>) -> Result<()> {
        let Some(until) = span.until else {
            return Ok(());
        };
        let ino = span.target.ino;
        let mut event = Event::Deleted;
        if names::end_of(self.view, ino, until)? == End::Elsewhere {
            let whereabouts = Whereabouts::of(self.view, ino)?;
            let earlier = whereabouts.paths_at(before(until))?;
            let mut now = whereabouts.paths_at(until)?;
            if let Some(at) = now.iter().position(|path| earlier.contains(path)) {
                let still_at = now.swap_remove(at);
                event = Event::Unlinked { still_at };
            } else if let Some(to) = now.pop() {
                event = Event::Moved { to };
            }
        }
        if event != Event::Deleted || next != Some(until) {
            self.push(until, event, ino, None);
        }
        Ok(())
    }
}

/// Whether two states of one inode have the same content.
fn is_same(older: &(Epoch, Inode), newer: (Epoch, &Inode), leaves: &BTreeSet<Epoch>) -> bool {
    let (was, is) = (&older.1, newer.1);
    if was.size != is.size || was.target != is.target || was.has_leaves != is.has_leaves {
        return false;
    }
    if is.has_leaves {
        return leaves
            .range(Epoch(older.0.0 + 1)..=newer.0)
            .next()
            .is_none();
    }
    are_alike(&was.extents, &is.extents)
}

/// Whether extents have the same content; where it lies does not matter.
fn are_alike(some: &[Extent], others: &[Extent]) -> bool {
    let of = |extent: &Extent| (extent.start, extent.len, extent.blob, extent.blob_offset);
    some.iter().map(of).eq(others.iter().map(of))
}
