//! Decoded pages in front of the store, so that a hot lookup neither asks sled nor decodes.
//!
//! Bounded by bytes; evicts by second chance, so that a long scan, which asks for each page once, does not
//! wash out what is used again and again.
//!
//! Never stale: the applier writes the store first and then forgets the range, which moves the generation on;
//! a reader brings the generation from before its read, and a page of an earlier generation is not taken.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::page::Page;

pub(super) struct PageCache {
    /// Held for map operations only, never across I/O or decoding.
    inner: Mutex<Inner>,
    len_max: usize,
}

#[derive(Default)]
struct Inner {
    pages: BTreeMap<Bytes, Slot>,
    len: usize,
    generation: u64,
    /// Where the eviction went on last time.
    hand: Bytes,
}

struct Slot {
    page: Arc<Page>,
    used: bool,
}

/// When a read began, as the cache counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u64);

impl PageCache {
    pub(super) fn new(len_max: usize) -> PageCache {
        PageCache {
            inner: Mutex::default(),
            len_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic in here can only come from an allocation: the map is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page that covers `key`, or the generation to offer it with after reading it.
    pub(super) fn get(&self, key: &[u8]) -> Result<Arc<Page>, Generation> {
        let mut inner = self.lock();
        let generation = Generation(inner.generation);
        let range = (Bound::Unbounded, Bound::Included(key));
        match inner.pages.range_mut::<[u8], _>(range).next_back() {
            Some((_, slot)) if slot.page.covers(key) => {
                slot.used = true;
                Ok(Arc::clone(&slot.page))
            }
            _ => Err(generation),
        }
    }

    /// Takes a page that was read from the store since `generation`.
    pub(super) fn offer(&self, page: &Arc<Page>, generation: Generation) {
        let mut inner = self.lock();
        if inner.generation != generation.0 || page.footprint() > self.len_max / 4 {
            return;
        }
        let slot = Slot {
            page: Arc::clone(page),
            used: false,
        };
        inner.len += page.footprint();
        if let Some(before) = inner.pages.insert(page.lower.clone(), slot) {
            inner.len -= before.page.footprint();
        }
        inner.evict(self.len_max);
    }

    /// Drops what touches `[lower, upper)`, after the store has been changed there.
    pub(super) fn forget(&self, lower: &[u8], upper: Option<&[u8]>) {
        let mut inner = self.lock();
        inner.generation += 1;
        let first = inner
            .pages
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(lower)))
            .next_back();
        let from = match first {
            Some((fence, slot)) if slot.page.covers(lower) => fence.clone(),
            _ => Bytes::copy_from_slice(lower),
        };
        let to = upper.map_or(Bound::Unbounded, Bound::Excluded);
        let range = inner
            .pages
            .range::<[u8], _>((Bound::Included(&from[..]), to));
        let fences: Vec<Bytes> = range.map(|(fence, _)| fence.clone()).collect();
        for fence in fences {
            inner.remove(&fence);
        }
    }
}

impl Inner {
    fn remove(&mut self, fence: &Bytes) {
        if let Some(slot) = self.pages.remove(fence) {
            self.len -= slot.page.footprint();
        }
    }

    fn evict(&mut self, len_max: usize) {
        while self.len > len_max {
            let range = (Bound::Excluded(&self.hand[..]), Bound::Unbounded);
            let Some((fence, slot)) = self.pages.range_mut::<[u8], _>(range).next() else {
                // Round the end; the first page, whose fence is empty, is not above an empty hand.
                self.hand = Bytes::new();
                match self.pages.first_entry() {
                    Some(mut first) if first.get().used => first.get_mut().used = false,
                    Some(first) => self.len -= first.remove().page.footprint(),
                    None => self.len = 0,
                }
                continue;
            };
            let fence = fence.clone();
            if !std::mem::take(&mut slot.used) {
                self.remove(&fence);
            }
            self.hand = fence;
        }
    }
}

impl fmt::Debug for PageCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        write!(
            f,
            "PageCache({} pages, {} bytes)",
            inner.pages.len(),
            inner.len
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::page::Draft;
    use super::*;

    fn page(lower: u8, upper: u8) -> Arc<Page> {
        let entries = [(Bytes::from(vec![lower, 0]), Bytes::from(vec![lower; 100]))];
        let draft = Draft {
            lower: &[lower],
            upper: Some(&[upper]),
            seq: 1,
            stands_for: 0,
            entries: &entries,
        };
        Arc::new(Page::decode(draft.encode().unwrap().into()).unwrap())
    }

    fn fill(cache: &PageCache, range: std::ops::Range<u8>) {
        for n in range {
            let generation = cache.get(&[n]).unwrap_err();
            cache.offer(&page(n, n + 1), generation);
        }
    }

    #[test]
    fn a_page_read_before_a_change_is_not_taken_after_it() {
        let cache = PageCache::new(1 << 20);
        let generation = cache.get(&[5]).unwrap_err();
        cache.forget(&[5], Some(&[6]));
        cache.offer(&page(5, 6), generation);
        assert!(cache.get(&[5]).is_err());
    }

    #[test]
    fn a_change_drops_every_page_that_it_touches_and_no_other() {
        let cache = PageCache::new(1 << 20);
        fill(&cache, 0..10);
        cache.forget(&[3, 7], Some(&[6]));
        let left: Vec<u8> = (0..10).filter(|n| cache.get(&[*n]).is_ok()).collect();
        assert_eq!(left, [0, 1, 2, 6, 7, 8, 9]);
    }

    #[test]
    fn the_bound_holds_and_what_is_asked_for_again_stays() {
        let one = page(0, 1).footprint();
        let cache = PageCache::new(one * 10);
        fill(&cache, 0..1);
        for n in 1..200 {
            assert!(cache.get(&[0, 0]).is_ok(), "after {n}");
            fill(&cache, n..n + 1);
        }
        let inner = cache.lock();
        assert!(inner.len <= one * 10 && inner.pages.len() == 10);
        assert_eq!(
            inner.len,
            inner
                .pages
                .values()
                .map(|slot| slot.page.footprint())
                .sum::<usize>()
        );
    }
}
