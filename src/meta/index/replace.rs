//! Replacing neighbouring pages by others that answer for the same range: rewriting, splitting and joining are
//! this one operation, made of single idempotent writes.
//!
//! Why no key is ever without a page, for a reader or after a crash between any two writes: a key is answered by the page
//! with the greatest lower fence at or below it.
//! 1. *New pages are put from right to left.* So the upper fence of a new page is always the lower fence of a page that is
//!    there; and the upper fence of an old page stays one, since an old page only goes when a new one with the same
//!    lower fence takes its place.
//! 2. *Only then are the old pages removed that are left over, from left to right.* A page's range then falls to a
//!    new page, never to an old one, since all old ones to its left are gone.
//!
//! In between some keys are in two pages. The *plan*, a note in the store written before, says which range was being replaced, so
//! that opening after a crash brings it back to one page per key ([`Index::settle`]): the first new page is put last, so if
//! it is there the rest of step 2 is done, and if not, each page is cut to what it effectively answers for. Each key
//! then has its old or its new value, and applying the batch again makes all new.
//!
//! The share of the last checkpoint's digest goes along: a new page in the place of an old one takes over that
//! one's share, the first new page those of all that will be removed.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use super::apply::Applied;
use super::page::{Draft, Page};
use super::shelf::Sheet;
use super::{Index, IndexDoubt, Writer, decode, digest, open};

/// Name of the note with the plan.
const PLAN: &str = "plan";
const REPLACE: u8 = 1;
const CUT: u8 = 2;

/// Which range is being replaced, and the number of the first write of it.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    kind: u8,
    first_seq: u64,
    lower: Bytes,
    upper: Option<Bytes>,
}

impl Index {
    /// Puts `sheets` in the place of `old`, neighbours in order.
    pub(super) fn replace(
        &self,
        writer: &mut Writer,
        old: &[Arc<Page>],
        sheets: VecDeque<Sheet>,
    ) -> Result<Applied, IndexDoubt> {
        let (Some(first), Some(last)) = (old.first(), old.last()) else {
            return Ok(Applied::default());
        };
        self.replace_pages(writer, old, sheets, &first.lower, last.upper.as_ref())
            .map_err(|doubt| self.doubt(doubt))
    }

    fn replace_pages(
        &self,
        writer: &mut Writer,
        old: &[Arc<Page>],
        sheets: VecDeque<Sheet>,
        lower: &Bytes,
        upper: Option<&Bytes>,
    ) -> Result<Applied, IndexDoubt> {
        self.mark_dirty(writer)?;
        let _shape = self.shape.lock().unwrap_or_else(PoisonError::into_inner);
        if old.len() + sheets.len() > 2 {
            let plan = Plan {
                kind: REPLACE,
                first_seq: writer.seq + 1,
                lower: lower.clone(),
                upper: upper.cloned(),
            };
            self.store.set_note(PLAN, &plan.encode())?;
        }
        let mut left_over: VecDeque<&Arc<Page>> = old.iter().skip(1).collect();
        let mut applied = Applied::default();
        let mut fence = upper.cloned();
        for sheet in sheets.into_iter().rev() {
            let (page_lower, share) = match sheet.lower {
                None => (
                    lower.clone(),
                    self.shares(writer, old.iter().take(1).chain(left_over.iter().copied())),
                ),
                Some(page_lower) => {
                    let same = left_over.iter().position(|page| page.lower == page_lower);
                    let replaced = same.and_then(|at| left_over.remove(at));
                    (page_lower, self.shares(writer, replaced.into_iter()))
                }
            };
            self.write_page(writer, &page_lower, fence.as_deref(), share, &sheet.entries)?;
            applied.written += 1;
            fence = Some(page_lower);
        }
        for page in left_over {
            self.store.remove(&page.lower)?;
            applied.removed += 1;
        }
        if let Some(tally) = &mut writer.tally {
            for page in old {
                tally.take(page.digest);
            }
        }
        self.publish_tally(writer.tally);
        self.cache.forget(lower, upper.map(AsRef::as_ref));
        Ok(applied)
    }

    #[expect(clippy::unused_self, reason = "reads as what it is at its callers")]
    fn shares<'p>(&self, writer: &Writer, pages: impl Iterator<Item = &'p Arc<Page>>) -> u64 {
        pages.fold(0, |sum, page| {
            sum.wrapping_add(writer.share_of_checkpoint(page))
        })
    }

    /// Encodes and puts one page, and counts it.
    pub(super) fn write_page(
        &self,
        writer: &mut Writer,
        lower: &[u8],
        upper: Option<&[u8]>,
        stands_for: u64,
        entries: &[(Bytes, Bytes)],
    ) -> Result<(), IndexDoubt> {
        let draft = Draft {
            lower,
            upper,
            seq: writer.next_seq(),
            stands_for,
            entries,
        };
        let bytes = draft
            .encode()
            .ok_or_else(|| IndexDoubt::new("a page has become too long to be written"))?;
        self.store.insert(lower, &bytes)?;
        if let Some(tally) = &mut writer.tally {
            tally.add(digest::digest(&bytes));
        }
        Ok(())
    }

    /// The store itself knows that it is ahead of the checkpoint, before it is.
    fn mark_dirty(&self, writer: &mut Writer) -> Result<(), IndexDoubt> {
        if !writer.dirty {
            self.store
                .set_note(open::STATE, &open::state_note(writer.sealed.serial, true))?;
            writer.dirty = true;
        }
        Ok(())
    }

    /// After a crash: ends a replacement that was under way.
    pub(super) fn settle(&self, writer: &mut Writer) -> Result<(), IndexDoubt> {
        let Some(note) = self.store.note(PLAN)? else {
            return Ok(());
        };
        let plan = Plan::decode(&note)
            .ok_or_else(|| IndexDoubt::new("the plan in the store is damaged"))?;
        let mut pages = Vec::new();
        for raw in self.store.scan(&plan.lower)? {
            let page = decode(raw?)?;
            if plan
                .upper
                .as_ref()
                .is_some_and(|upper| page.lower >= *upper)
            {
                break;
            }
            pages.push(page);
        }
        let all_put = pages
            .first()
            .is_some_and(|page| page.lower == plan.lower && page.seq >= plan.first_seq);
        if plan.kind == REPLACE && all_put {
            for page in pages.iter().filter(|page| page.seq < plan.first_seq) {
                self.store.remove(&page.lower)?;
            }
            return Ok(());
        }
        self.store
            .set_note(PLAN, &Plan { kind: CUT, ..plan }.encode())?;
        for pair in pages.windows(2).rev() {
            let [page, next] = pair else { continue };
            if page.upper.as_ref().is_none_or(|upper| *upper > next.lower) {
                let entries: Vec<_> = (0..page.position(&next.lower))
                    .filter_map(|at| page.entry(at))
                    .collect();
                let share = writer.share_of_checkpoint(page);
                self.write_page(writer, &page.lower, Some(&next.lower), share, &entries)?;
            }
        }
        Ok(())
    }
}

impl Plan {
    fn encode(&self) -> Vec<u8> {
        let mut note = vec![self.kind, u8::from(self.upper.is_some())];
        note.extend_from_slice(&self.first_seq.to_le_bytes());
        note.extend_from_slice(
            &u32::try_from(self.lower.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        note.extend_from_slice(&self.lower);
        note.extend_from_slice(self.upper.as_deref().unwrap_or_default());
        note
    }

    fn decode(note: &[u8]) -> Option<Plan> {
        let (&[kind, has_upper], rest) = note.split_first_chunk()?;
        let (first_seq, rest) = rest.split_first_chunk()?;
        let (lower_len, rest) = rest.split_first_chunk()?;
        let lower_len = usize::try_from(u32::from_le_bytes(*lower_len)).ok()?;
        let (lower, upper) = rest.split_at_checked(lower_len)?;
        let known = kind == REPLACE || kind == CUT;
        known.then(|| Plan {
            kind,
            first_seq: u64::from_le_bytes(*first_seq),
            lower: Bytes::copy_from_slice(lower),
            upper: (has_upper == 1).then(|| Bytes::copy_from_slice(upper)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_back_and_arbitrary_notes_do_not_break_it() {
        for upper in [None, Some(Bytes::from_static(b"u"))] {
            let plan = Plan {
                kind: CUT,
                first_seq: 5,
                lower: Bytes::from_static(b"abc"),
                upper,
            };
            let note = plan.encode();
            assert_eq!(Plan::decode(&note), Some(plan));
            (0..note.len()).for_each(|len| drop(Plan::decode(&note[..len])));
        }
    }
}
