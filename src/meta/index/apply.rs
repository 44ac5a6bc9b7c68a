//! Changing the index: sorted batches, and the bulk load of a refill.
//!
//! A batch is walked once from left to right; each page that it touches is rewritten once. Applying a batch again
//! changes nothing, so that a crash in the middle of one is mended by applying it again.

use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::page::{KEY_LEN_MAX, PAGE_MERGE, PAGE_SPLIT, Page, VALUE_LEN_MAX};
use super::shelf::{Sheet, Shelf};
use super::{Index, IndexDoubt, IndexError, Writer, refused};
use crate::error::Result;

/// One replacement holds at most this much of the batch in memory.
const GROUP_LEN_MAX: usize = 1 << 20;
/// One replacement takes at most this many pages out.
const GROUP_PAGES_MAX: usize = 64;

/// A key, and its new value or that it goes.
pub type Change<'b> = (&'b [u8], Option<&'b [u8]>);

/// What an apply wrote.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Pages written.
    pub written: u64,
    /// Pages taken out.
    pub removed: u64,
}

impl Index {
    /// Puts (`Some`) and removes (`None`) the values of the keys of `batch`, which ascend strictly.
    ///
    /// Not atomic for readers: the caller's overlay holds the batch until this returns. After an error a part
    /// of it is in.
    pub fn apply<'b>(
        &self,
        batch: impl IntoIterator<Item = Change<'b>>,
    ) -> Result<Applied, IndexError> {
        let mut writer = self.writer();
        let mut batch = Batch {
            changes: batch.into_iter().peekable(),
            last: None,
        };
        let mut applied = Applied::default();
        while let Some(key) = batch.peek() {
            let first = self.page_to_change(key)?;
            let mut group = Group::default();
            group.take_page(first, &mut batch)?;
            while let Some(next) = self.page_to_join(&group)? {
                group.take_page(next, &mut batch)?;
            }
            if group.changed {
                let done = self.replace(&mut writer, &group.old, group.shelf.finish())?;
                applied.written += done.written;
                applied.removed += done.removed;
            }
        }
        Ok(applied)
    }

    /// The right neighbour of a group whose last page has become small, if it is cheap to join.
    fn page_to_join(&self, group: &Group) -> Result<Option<Arc<Page>>, IndexError> {
        let small = group.changed && group.shelf.open_len() < PAGE_MERGE;
        let room = group.old.len() < GROUP_PAGES_MAX && group.taken_len < GROUP_LEN_MAX;
        let Some(fence) = group
            .old
            .last()
            .and_then(|page| page.upper.as_ref())
            .filter(|_| small && room)
        else {
            return Ok(None);
        };
        Ok(Some(self.page_to_change(fence)?).filter(|page| page.len() <= PAGE_SPLIT))
    }

    /// The page of `key`, which must not be hidden in part by a page that came back from an earlier time: what is put
    /// there would not be found.
    fn page_to_change(&self, key: &[u8]) -> Result<Arc<Page>, IndexDoubt> {
        let page = self.page_for(key, false)?;
        let lower = self
            .store
            .fence_below(page.upper.as_deref())
            .map_err(|doubt| self.doubt(doubt))?;
        if lower.as_ref() == Some(&page.lower) {
            return Ok(page);
        }
        Err(self.doubt(IndexDoubt::new(format!(
            "two pages overlap at key {}",
            key.escape_ascii()
        ))))
    }

    /// Fills an index that is new and empty with `entries`, which ascend strictly, in bounded memory.
    ///
    /// After an error, or a crash, the index is to be created anew: it has no checkpoint and so does not open.
    pub fn load<E: Into<IndexError>>(
        &mut self,
        entries: impl IntoIterator<Item = Result<(Bytes, Bytes), E>>,
    ) -> Result<(), IndexError> {
        let first = self.page_for(b"", false)?;
        let mut writer = self.writer();
        if first.upper.is_some() || first.entry_count() > 0 || writer.sealed.serial > 0 {
            return Err(refused(
                "only an index that is new and empty can be loaded: create another",
            ));
        }
        self.cache.forget(b"", None);
        // Until all is in, nothing may bless it.
        self.doubted.store(true, Ordering::Release);
        let mut shelf = Shelf::default();
        let mut loading = Loading {
            index: self,
            writer: &mut writer,
            pending: None,
        };
        let mut last: Option<Bytes> = None;
        for entry in entries {
            let (key, value) = entry.map_err(Into::<IndexError>::into)?;
            check_change(last.as_deref(), &key, Some(&value))?;
            last = Some(key.clone());
            shelf.push(key, value);
            while let Some(sheet) = shelf.pop_full() {
                loading.put(sheet)?;
            }
        }
        for sheet in shelf.finish() {
            loading.put(sheet)?;
        }
        loading.finish(&first)?;
        self.doubted.store(false, Ordering::Release);
        Ok(())
    }
}

/// A page is written when its upper fence is known: one sheet late.
struct Loading<'a> {
    index: &'a Index,
    writer: &'a mut Writer,
    pending: Option<Sheet>,
}

impl Loading<'_> {
    fn put(&mut self, sheet: Sheet) -> Result<(), IndexError> {
        if let Some(before) = self.pending.take() {
            let lower = before.lower.unwrap_or_default();
            self.index.write_page(
                self.writer,
                &lower,
                sheet.lower.as_deref(),
                0,
                &before.entries,
            )?;
        }
        self.pending = Some(sheet);
        Ok(())
    }

    fn finish(mut self, empty: &Page) -> Result<(), IndexError> {
        if let Some(last) = self.pending.take() {
            let lower = last.lower.unwrap_or_default();
            self.index
                .write_page(self.writer, &lower, None, 0, &last.entries)?;
        }
        if let Some(tally) = &mut self.writer.tally {
            tally.take(empty.digest);
        }
        self.index.publish_tally(self.writer.tally);
        Ok(())
    }
}

/// The changes that are still to be made, checked as they come.
struct Batch<'b, I: Iterator<Item = Change<'b>>> {
    changes: Peekable<I>,
    last: Option<&'b [u8]>,
}

impl<'b, I: Iterator<Item = Change<'b>>> Batch<'b, I> {
    fn peek(&mut self) -> Option<&'b [u8]> {
        self.changes.peek().map(|(key, _)| *key)
    }

    /// The next change if it is below `upper`.
    fn next_below(&mut self, upper: Option<&Bytes>) -> Result<Option<Change<'b>>, IndexError> {
        let Some((key, value)) = self
            .changes
            .next_if(|(key, _)| upper.is_none_or(|upper| key < upper))
        else {
            return Ok(None);
        };
        check_change(self.last, key, value)?;
        self.last = Some(key);
        Ok(Some((key, value)))
    }
}

fn check_change(last: Option<&[u8]>, key: &[u8], value: Option<&[u8]>) -> Result<(), IndexError> {
    if last.is_some_and(|last| last >= key) {
        return Err(refused(format!(
            "the keys for the index do not ascend at {}",
            key.escape_ascii()
        )));
    }
    if key.len() > KEY_LEN_MAX || value.is_some_and(|value| value.len() > VALUE_LEN_MAX) {
        return Err(refused(format!(
            "an entry is too long for the index: {}",
            key.escape_ascii()
        )));
    }
    Ok(())
}

/// Neighbouring pages, taken together, and what shall stand in their place.
#[derive(Default)]
struct Group {
    old: Vec<Arc<Page>>,
    shelf: Shelf,
    changed: bool,
    /// Bytes of the batch in here.
    taken_len: usize,
}

impl Group {
    /// Merges the entries of the next page with the changes to them.
    fn take_page<'b>(
        &mut self,
        page: Arc<Page>,
        batch: &mut Batch<'b, impl Iterator<Item = Change<'b>>>,
    ) -> Result<(), IndexError> {
        let mut at = 0;
        while self.taken_len < GROUP_LEN_MAX
            && let Some((key, value)) = batch.next_below(page.upper.as_ref())?
        {
            let mut before = None;
            while let Some((old_key, old_value)) =
                page.entry(at).filter(|(old_key, _)| old_key <= key)
            {
                at += 1;
                if old_key == key {
                    before = Some(old_value);
                } else {
                    self.shelf.push(old_key, old_value);
                }
            }
            self.changed |= before.as_deref() != value;
            self.taken_len += key.len() + value.map_or(0, <[u8]>::len);
            if let Some(value) = value {
                self.shelf
                    .push(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            }
        }
        while let Some((key, value)) = page.entry(at) {
            at += 1;
            self.shelf.push(key, value);
        }
        self.old.push(page);
        Ok(())
    }
}
