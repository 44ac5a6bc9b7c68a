//! Which inode a name in a directory led to, and when.

use std::ops::Bound;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::format::inode::{self, EntryTarget, Inode};
use crate::format::keys;
use crate::format::segment::{CacheUse, Entry};
use crate::meta::view::View;
use crate::types::{Epoch, FileKind, Ino};
use crate::volume::account::AccountRecord;

/// The time in which a name led to one inode: from epoch `since` on, up to but without epoch `until`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Where it led.
    pub target: EntryTarget,
    /// The first epoch that has it.
    pub since: Epoch,
    /// The first epoch that no longer has it; `None` if the moment looked at has it.
    pub until: Option<Epoch>,
}

/// A name of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// The name.
    pub name: Bytes,
    /// Where it leads, or led last.
    pub newest: Span,
    /// Directories that it led to before: other files that had the name were states of it, but what was in another
    /// directory is found nowhere else.
    pub former_dirs: Vec<Span>,
}

/// What became of the inode of a span that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It is gone.
    Removed,
    /// Its account was deleted, with all that was in it.
    AccountDeleted,
    /// It goes on under another name.
    Elsewhere,
}

fn decode(entry: &Entry, value: &[u8]) -> Result<EntryTarget> {
    inode::decode_entry(value).ok_or_else(|| {
        let name = keys::name_of(&entry.key).escape_ascii();
        Error::corrupt(
            format!("the directory entry \"{name}\""),
            0,
            "not in the format",
        )
    })
}

/// Puts the versions of one name, newest first, together to spans. A version that says the same as the one before it
/// is no new span.
#[derive(Debug, Default)]
struct Spans {
    newest_first: Vec<Span>,
    /// When what comes next, which is older, was over.
    until: Option<Epoch>,
    is_replaced: bool,
}

impl Spans {
    fn add(&mut self, entry: &Entry) -> Result<()> {
        if let Some(value) = &entry.value {
            let target = decode(entry, value)?;
            match self.newest_first.last_mut() {
                Some(span) if span.target == target && self.is_replaced => span.since = entry.epoch,
                _ => self.newest_first.push(Span {
                    target,
                    since: entry.epoch,
                    until: self.until,
                }),
            }
        }
        self.is_replaced = entry.value.is_some();
        self.until = Some(entry.epoch);
        Ok(())
    }
}

/// The spans of the name `name` in `dir` up to the moment of `view`, oldest first.
pub fn spans_of(view: &View, dir: Ino, name: &[u8]) -> Result<Vec<Span>> {
    let mut spans = Spans::default();
    for entry in view.versions_of(&keys::dir_entry(dir, name))? {
        spans.add(&entry)?;
    }
    spans.newest_first.reverse();
    Ok(spans.newest_first)
}

/// Up to `count_max` names that `dir` has or had up to the moment of `view`, in order, those after the name `after`.
pub fn names_of(
    view: &View,
    dir: Ino,
    after: Option<&[u8]>,
    count_max: usize,
) -> Result<Vec<Name>> {
    let mut from = keys::dir_entry(dir, after.unwrap_or_default()).to_vec();
    if after.is_some() {
        from.push(0); // the least key above `after`
    }
    let to = keys::dir_entries_end(dir);
    let mut names = Vec::new();
    let mut key = Bytes::new();
    let mut spans = Spans::default();
    for entry in view.versions(&from, Bound::Excluded(&to), CacheUse::Fill) {
        let entry = entry?;
        if entry.key != key {
            names.extend(name(&key, std::mem::take(&mut spans)));
            if names.len() >= count_max {
                return Ok(names);
            }
            key = entry.key.clone();
        }
        spans.add(&entry)?;
    }
    names.extend(name(&key, spans));
    Ok(names)
}

/// A name that came and went within one epoch has no span: nobody saw it.
fn name(key: &Bytes, spans: Spans) -> Option<Name> {
    let mut spans = spans.newest_first.into_iter();
    let newest = spans.next()?;
    let is_other_dir =
        |span: &Span| span.target.kind == FileKind::Dir && span.target.ino != newest.target.ino;
    Some(Name {
        name: key.slice_ref(keys::name_of(key)),
        newest,
        former_dirs: spans.filter(is_other_dir).collect(),
    })
}

/// What became of `ino` at the end of a span.
pub fn end_of(view: &View, ino: Ino, until: Epoch) -> Result<End> {
    let then = view.as_of(until);
    if ino.local() == Ino::ROOT_LOCAL
        && let Some(bytes) = then.get(&keys::account(ino.account()))?
        && AccountRecord::decode(&bytes)?.deleted.is_some()
    {
        return Ok(End::AccountDeleted);
    }
    let Some(bytes) = then.get(&keys::inode(ino))? else {
        return Ok(End::Removed);
    };
    let nlink = Inode::decode(&bytes).map_or(0, |inode| inode.nlink);
    Ok(if nlink > 0 {
        End::Elsewhere
    } else {
        End::Removed
    })
}

/// The inode at the moment of `view`, and the epoch of that state.
pub fn inode_at(view: &View, ino: Ino) -> Result<(Epoch, Inode)> {
    let found = view.newest(&keys::inode(ino))?;
    let value = found.as_ref().and_then(|found| found.value.as_ref());
    let (Some(found), Some(value)) = (&found, value) else {
        let reason = "a name leads to it, and it is not there";
        return Err(Error::corrupt(format!("inode {ino}"), 0, reason));
    };
    Ok((found.epoch, decode_inode(ino, value)?))
}

/// The inode as it was last, up to the moment of `view`.
pub fn last_inode(view: &View, ino: Ino) -> Result<Option<(Epoch, Inode)>> {
    for entry in view.versions_of(&keys::inode(ino))? {
        let Some(value) = &entry.value else { continue };
        let inode = decode_inode(ino, value)?;
        // One that is only open has no name, and its last state is the one that had.
        if inode.nlink > 0 {
            return Ok(Some((entry.epoch, inode)));
        }
    }
    Ok(None)
}

pub(super) fn decode_inode(ino: Ino, value: &[u8]) -> Result<Inode> {
    Inode::decode(value)
        .ok_or_else(|| Error::corrupt(format!("inode {ino}"), 0, "not in the format"))
}
