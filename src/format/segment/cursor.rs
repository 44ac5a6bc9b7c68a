//! Walks a range of a segment, reading several neighbouring blocks at once.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::block::{Block, Entries};
use super::index::Place;
use super::reader::Segment;
use crate::error::Result;
use crate::types::Epoch;

/// A walk that goes on gets at least this much with its second read.
const READ_AHEAD_FIRST_LEN: usize = 64 << 10;

/// Whether a walk leaves its blocks in the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheUse {
    /// It does: someone may come back.
    Fill,
    /// It takes what is there and adds nothing: a merge or a check passes once.
    Bypass,
}

/// A position in a segment, on no entry before the first step. Reads nothing before that.
#[derive(Debug)]
pub struct Cursor {
    segment: Arc<Segment>,
    cache_use: CacheUse,
    /// Where to begin; taken by the first step.
    from: Option<Vec<u8>>,
    to: Bound<Vec<u8>>,
    entries: Option<Entries>,
    /// The next block to go to, and the one before which to stop.
    next: usize,
    stop: usize,
    ahead_at: u64,
    ahead: Bytes,
    window_len: usize,
}

/// An entry of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its key.
    pub key: Bytes,
    /// When it was written.
    pub epoch: Epoch,
    /// Its value; nothing for a tombstone. Shares the memory of its block.
    pub value: Option<Bytes>,
}

impl Segment {
    /// A cursor over the entries from `from` to `to`, all versions of each key.
    pub fn cursor(
        self: &Arc<Segment>,
        from: &[u8],
        to: Bound<&[u8]>,
        cache_use: CacheUse,
    ) -> Cursor {
        let blocks = self.index().blocks();
        let smallest = &*self.summary().smallest;
        // The first block beyond which nothing is wanted.
        let stop = match to {
            Bound::Included(key) if key < smallest => 0,
            Bound::Excluded(key) if key <= smallest => 0,
            Bound::Included(key) => self.index().find(key, Epoch(0)) + 1,
            Bound::Excluded(key) => self.index().find(key, Epoch(u64::MAX)) + 1,
            Bound::Unbounded => blocks,
        };
        let window_len = match cache_use {
            CacheUse::Fill => 0,
            CacheUse::Bypass => self.read_ahead_len(),
        };
        Cursor {
            segment: self.clone(),
            cache_use,
            from: Some(from.to_vec()),
            to: to.map(<[u8]>::to_vec),
            entries: None,
            next: self.index().find(from, Epoch(u64::MAX)),
            stop: stop.min(blocks),
            ahead_at: 0,
            ahead: Bytes::new(),
            window_len,
        }
    }

    /// The entries from `from` to `to`, all versions of each key. Ends after an error.
    pub fn range(self: &Arc<Segment>, from: &[u8], to: Bound<&[u8]>) -> Range {
        let cursor = self.cursor(from, to, CacheUse::Fill);
        Range { cursor }
    }
}

impl Cursor {
    /// Steps to the next entry; false at the end, and for ever after an error.
    pub fn advance(&mut self) -> Result<bool> {
        let stepped = self.step();
        if !matches!(stepped, Ok(true)) {
            self.next = self.stop;
            self.entries = None;
            self.ahead = Bytes::new();
        }
        stepped
    }

    fn step(&mut self) -> Result<bool> {
        loop {
            if let Some(entries) = &mut self.entries {
                let more = match self.from.take() {
                    Some(from) => entries.seek(&from, Epoch(u64::MAX)),
                    None => entries.advance(),
                };
                if more.map_err(|bad| self.segment.bad(self.next - 1, &bad))? {
                    return Ok(self.is_within());
                }
            }
            if self.next >= self.stop {
                return Ok(false);
            }
            let block = self.load(self.next)?;
            self.next += 1;
            match &mut self.entries {
                Some(entries) => entries.restart_in(block),
                None => self.entries = Some(Entries::new(block)),
            }
        }
    }

    /// Only the last block of the walk can reach beyond its end.
    fn is_within(&self) -> bool {
        self.next < self.stop
            || match &self.to {
                Bound::Included(to) => self.key() <= &**to,
                Bound::Excluded(to) => self.key() < &**to,
                Bound::Unbounded => true,
            }
    }

    fn load(&mut self, number: usize) -> Result<Arc<Block>> {
        let cache_key = self.segment.cache_key(number);
        if let Some(block) = self.segment.cache().get(cache_key) {
            return Ok(block);
        }
        let place = self.segment.place(number)?;
        let frame = match self.read_before(place) {
            Some(frame) => frame,
            None => self.read_on(number, place)?,
        };
        let block = self.segment.decode_block(&frame, place.offset)?;
        if self.cache_use == CacheUse::Fill {
            self.segment.cache().insert(cache_key, block.clone());
        }
        Ok(block)
    }

    /// The frame, if an earlier read took it along.
    fn read_before(&self, place: Place) -> Option<Bytes> {
        let start = usize::try_from(place.offset.checked_sub(self.ahead_at)?).ok()?;
        let len = usize::try_from(place.len).ok()?;
        let frame = self.ahead.get(start..)?.get(..len)?;
        Some(self.ahead.slice_ref(frame))
    }

    /// Reads the frame and, the longer the walk the more, those behind it.
    fn read_on(&mut self, number: usize, place: Place) -> Result<Bytes> {
        let mut end = place.end();
        for next in number + 1..self.stop {
            let next = self.segment.place(next)?;
            if next.end() - place.offset > self.window_len as u64 {
                break;
            }
            end = next.end();
        }
        let grown = (self.window_len * 2).max(READ_AHEAD_FIRST_LEN);
        self.window_len = grown.min(self.segment.read_ahead_len());
        self.ahead_at = place.offset;
        self.ahead = self.segment.read(Place {
            offset: place.offset,
            len: end - place.offset,
        })?;
        Ok(self.read_before(place).unwrap_or_default())
    }

    /// The key of the entry it is on; empty before the first and after the last.
    pub fn key(&self) -> &[u8] {
        self.entries.as_ref().map_or(&[], Entries::key)
    }

    /// The epoch of the entry it is on.
    pub fn epoch(&self) -> Epoch {
        self.entries.as_ref().map_or(Epoch(0), Entries::epoch)
    }

    /// The value of the entry it is on; nothing for a tombstone.
    pub fn value(&self) -> Option<Bytes> {
        self.entries.as_ref().and_then(Entries::value)
    }

    /// The entry it is on.
    pub fn entry(&self) -> Entry {
        Entry {
            key: Bytes::copy_from_slice(self.key()),
            epoch: self.epoch(),
            value: self.value(),
        }
    }
}

/// The entries of a range; made by [`Segment::range`].
#[derive(Debug)]
pub struct Range {
    cursor: Cursor,
}

impl Iterator for Range {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        match self.cursor.advance() {
            Ok(true) => Some(Ok(self.cursor.entry())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
