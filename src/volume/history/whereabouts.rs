//! The names of an inode. No key leads from an inode to its names, so this passes once over all names of its account.

use std::collections::BTreeSet;
use std::ops::Bound;

use bytes::Bytes;

use crate::error::Result;
use crate::format::inode::{self, Inode};
use crate::format::keys::{self, Kind};
use crate::format::segment::CacheUse;
use crate::meta::view::View;
use crate::types::{AccountId, Epoch, Ino};
use crate::volume::history::locate::push;
use crate::volume::history::names::{self, Span};

/// Levels of directories beyond which we believe in a cycle.
const DEPTH_MAX: usize = 100_000;

/// Every name that ever led to an inode, up to a moment.
#[derive(Debug)]
pub(super) struct Whereabouts {
    view: View,
    names: Vec<(Ino, Bytes, Span)>,
}

impl Whereabouts {
    /// Of `ino`, up to the moment of `view`.
    pub(super) fn of(view: &View, ino: Ino) -> Result<Whereabouts> {
        // An account's own directory has its name in the root.
        let account = if ino.local() == Ino::ROOT_LOCAL {
            AccountId::SERVER
        } else {
            ino.account()
        };
        let first = keys::dir_entry(Ino::new(account, 0), b"");
        let end = keys::kind_end(account, Kind::DirEntry);
        let mut found = BTreeSet::new();
        for segment in view.segments() {
            let mut cursor = segment.cursor(&first, Bound::Excluded(&end), CacheUse::Bypass);
            while cursor.advance()? {
                let target = cursor.value().and_then(|value| inode::decode_entry(&value));
                if target.is_some_and(|target| target.ino == ino) {
                    found.insert(Bytes::copy_from_slice(cursor.key()));
                }
            }
        }
        let mut names = Vec::new();
        for key in found {
            let Some(dir) = keys::ino_of(&key) else {
                continue;
            };
            let name = key.slice_ref(keys::name_of(&key));
            for span in names::spans_of(view, dir, &name)? {
                if span.target.ino == ino {
                    names.push((dir, name.clone(), span));
                }
            }
        }
        Ok(Whereabouts {
            view: view.clone(),
            names,
        })
    }

    /// The paths that led to it at epoch `at`.
    pub(super) fn paths_at(&self, at: Epoch) -> Result<Vec<Vec<u8>>> {
        let view = self.view.as_of(at);
        let mut paths = Vec::new();
        for (dir, name, span) in &self.names {
            let is_over = span.until.is_some_and(|until| until <= at);
            if span.since > at || is_over {
                continue;
            }
            if let Some(mut path) = dir_path(&view, *dir)? {
                push(&mut path, name);
                paths.push(path);
            }
        }
        Ok(paths)
    }
}

/// The path of a directory at the moment of `view`; `None` if it cannot be reached.
fn dir_path(view: &View, dir: Ino) -> Result<Option<Vec<u8>>> {
    let mut upwards = Vec::new();
    let mut at = dir;
    while at != Ino::ROOT && upwards.len() < DEPTH_MAX {
        let inode = view.get(&keys::inode(at))?;
        let parent = inode.and_then(|bytes| Inode::decode(&bytes)?.parent);
        let Some(parent) = parent else {
            return Ok(None);
        };
        let Some(name) = name_in(view, parent, at)? else {
            return Ok(None);
        };
        upwards.push(name);
        at = parent;
    }
    let mut path = Vec::new();
    for name in upwards.iter().rev() {
        push(&mut path, name);
    }
    Ok(Some(path))
}

/// What `dir` calls `ino`.
fn name_in(view: &View, dir: Ino, ino: Ino) -> Result<Option<Bytes>> {
    let to = keys::dir_entries_end(dir);
    for entry in view.range(&keys::dir_entry(dir, b""), Bound::Excluded(&to)) {
        let (key, value) = entry?;
        if inode::decode_entry(&value).is_some_and(|target| target.ino == ino) {
            return Ok(Some(key.slice_ref(keys::name_of(&key))));
        }
    }
    Ok(None)
}
