//! Reading entries in order, page by page, while pages are being replaced.
//!
//! A page is taken as it is when it is read, and the next one is looked up at its upper fence: so nothing is skipped
//! or repeated, whatever was split or joined meanwhile. The first page after a join may begin
//! before that fence; what is below it was already given.

use std::sync::Arc;

use bytes::Bytes;

use super::page::Page;
use super::{Index, IndexDoubt};

/// Entries in order. After an error there is nothing more.
#[derive(Debug)]
pub struct Range<'a> {
    index: &'a Index,
    to: Option<Bytes>,
    at: At,
}

#[derive(Debug)]
enum At {
    /// The next entry is the first one at or after this key.
    Key(Bytes),
    /// The next entry is this one of the page.
    Entry(Arc<Page>, usize),
    End,
}

impl<'a> Range<'a> {
    pub(super) fn new(index: &'a Index, from: &[u8], to: Option<&[u8]>) -> Range<'a> {
        let empty = to.is_some_and(|to| to <= from);
        let at = if empty {
            At::End
        } else {
            At::Key(Bytes::copy_from_slice(from))
        };
        Range {
            index,
            to: to.map(Bytes::copy_from_slice),
            at,
        }
    }

    fn is_past(&self, key: &Bytes) -> bool {
        self.to.as_ref().is_some_and(|to| key >= to)
    }
}

impl Iterator for Range<'_> {
    type Item = Result<(Bytes, Bytes), IndexDoubt>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match std::mem::replace(&mut self.at, At::End) {
                At::Key(key) if self.is_past(&key) => return None,
                At::Key(key) => match self.index.page_for(&key, true) {
                    Ok(page) => {
                        let first = page.position(&key);
                        self.at = At::Entry(page, first);
                    }
                    Err(doubt) => return Some(Err(doubt)),
                },
                At::Entry(page, at) => match page.entry(at) {
                    Some((key, _)) if self.is_past(&key) => return None,
                    Some(entry) => {
                        self.at = At::Entry(page, at + 1);
                        return Some(Ok(entry));
                    }
                    None => self.at = At::Key(page.upper.clone()?),
                },
                At::End => return None,
            }
        }
    }
}

impl std::iter::FusedIterator for Range<'_> {}
