//! Which reads follow each other through a pack, and what they will need next.
//!
//! Blobs lie in packs in the order in which they were written, and are mostly read in that order again, also
//! where it goes from one small file to the next. So sequences are looked for in packs, not in files. A
//! sequence that goes on gets a window, which doubles each time that the reads come to the begin of the newest
//! one; at the end of a pack it goes on in the next one of the same session. No I/O here.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::pack::{BLOCK_LEN, record_len};
use crate::types::{BlobLocation, PackId};

/// First and longest window.
const WINDOW_MIN: u32 = 1 << 20;
const WINDOW_MAX: u32 = 8 << 20;
/// A window is fetched in ranges of at most this, several at the same time.
pub(super) const RANGE_LEN_MAX: u32 = 2 << 20;
/// A read counts as the next one if at most this was passed over.
const GAP_MAX: u32 = 128 << 10;
/// A first read that is not followed by a second one within so many records was one here and there.
const FIRST_AGE_MAX: u64 = 16;
/// The same where a sequence is known: workers put blobs into the pack side by side, a little out of order.
const JITTER_MAX: u32 = 1 << 20;
/// Sequences at the same time. More readers than that take each other's places.
const STREAMS_MAX: usize = 16;

/// A part of a pack that will be needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    /// Which pack.
    pub(super) pack: PackId,
    /// Records that begin within it; it may end behind the pack.
    pub(super) range: Range<u32>,
}

#[derive(Debug)]
struct Stream {
    pack: PackId,
    /// The end of the last record that was read.
    position: u32,
    /// Up to here it was asked for.
    asked: u32,
    /// The last window; zero before there was a second read.
    window: u32,
    /// A read from here on asks for the next window.
    mark: u32,
    /// Where the pack's records end, once that is known.
    end: Option<u32>,
    used: u64,
}

/// The sequences.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// How many there are, so that a tree that reads nothing from far away pays no lock.
    count: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    streams: Vec<Stream>,
    next_use: u64,
}

/// Takes what is wanted, or says that it cannot be taken now.
pub(super) type OnWanted<'a> = &'a mut dyn FnMut(Wanted) -> bool;

impl Streams {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a read of these records, in this order. Only one that missed something may begin a sequence: what is
    /// here needs no read-ahead.
    pub(super) fn read<'a>(
        &self,
        records: impl Iterator<Item = &'a BlobLocation>,
        missed: bool,
        wanted: OnWanted<'_>,
    ) {
        if !missed && self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut table = self.lock();
        let mut moved: Vec<PackId> = Vec::new();
        for location in records {
            if table.note(location, missed) && !moved.contains(&location.pack) {
                moved.push(location.pack);
            }
        }
        for pack in moved {
            table.go_ahead(pack, wanted);
        }
        self.count.store(table.streams.len(), Ordering::Relaxed);
    }

    /// The records of `pack` end here.
    pub(super) fn ends_at(&self, pack: PackId, end: u32) {
        let mut table = self.lock();
        let streams = table.streams.iter_mut();
        for stream in streams.filter(|stream| stream.pack == pack) {
            stream.end = Some(end);
        }
    }

    /// There is no such pack, or it cannot be read now: its sequences begin anew with the next read.
    pub(super) fn forget(&self, pack: PackId) {
        let mut table = self.lock();
        table.streams.retain(|stream| stream.pack != pack);
        self.count.store(table.streams.len(), Ordering::Relaxed);
    }
}

impl Stream {
    fn new(pack: PackId, position: u32) -> Stream {
        Stream {
            pack,
            position,
            asked: position,
            window: 0,
            mark: position,
            end: None,
            used: 0,
        }
    }

    /// Whether a read of `location`, at this time, is one of this sequence.
    fn has(&self, location: &BlobLocation, now: u64) -> bool {
        if self.pack != location.pack {
            return false;
        }
        let is_old = now - self.used > FIRST_AGE_MAX;
        let (back, ahead) = match self.window {
            0 if is_old => (0, 0),
            0 => (0, GAP_MAX),
            _ => (JITTER_MAX, JITTER_MAX),
        };
        let near = self.position.saturating_sub(back)..=self.position.saturating_add(ahead);
        near.contains(&location.offset) || end_of(location) == self.position
    }
}

fn end_of(location: &BlobLocation) -> u32 {
    let len = record_len(location.stored_len);
    location.offset.saturating_add(len)
}

impl Table {
    /// Returns whether a sequence went on.
    fn note(&mut self, location: &BlobLocation, may_begin: bool) -> bool {
        let used = self.next_use;
        self.next_use += 1;
        let end = end_of(location);
        let mut streams = self.streams.iter_mut();
        if let Some(stream) = streams.find(|stream| stream.has(location, used)) {
            stream.used = used;
            let went_on = end > stream.position;
            stream.position = stream.position.max(end);
            return went_on;
        }
        if may_begin {
            self.begin(Stream {
                used,
                ..Stream::new(location.pack, end)
            });
        }
        false
    }

    fn begin(&mut self, stream: Stream) {
        if self.streams.len() >= STREAMS_MAX {
            let oldest = (0..self.streams.len()).min_by_key(|at| self.streams[*at].used);
            oldest.map(|at| self.streams.swap_remove(at));
        }
        self.streams.push(stream);
    }

    /// Asks for the next window of the sequence in `pack` that was read last, if it is time.
    fn go_ahead(&mut self, pack: PackId, wanted: OnWanted<'_>) {
        let in_pack = self.streams.iter_mut().filter(|stream| stream.pack == pack);
        let Some(stream) = in_pack.max_by_key(|stream| stream.used) else {
            return;
        };
        if stream.position < stream.mark {
            return;
        }
        let window = (stream.window * 2).clamp(WINDOW_MIN, WINDOW_MAX);
        let begin = stream.asked.max(stream.position);
        let target = begin.saturating_add(window);
        stream.window = window;
        stream.mark = begin;
        stream.asked = ask(
            pack,
            begin..target.min(stream.end.unwrap_or(u32::MAX)),
            wanted,
        );
        let used = stream.used;
        if let Some(end) = stream.end
            && target > end
        {
            let beyond = (target - end.max(begin)).max(window / 2);
            self.follow(pack.successor(), beyond, window, used, wanted);
        }
    }

    /// The sequence goes on in the next pack.
    fn follow(&mut self, pack: PackId, len: u32, window: u32, used: u64, wanted: OnWanted<'_>) {
        let is_known = self.streams.iter().any(|stream| stream.pack == pack);
        if is_known {
            return;
        }
        self.begin(Stream {
            asked: ask(pack, BLOCK_LEN..BLOCK_LEN + len, wanted),
            window,
            used,
            ..Stream::new(pack, BLOCK_LEN)
        });
    }
}

/// Asks for `range` in parts. Returns up to where they were taken.
fn ask(pack: PackId, range: Range<u32>, wanted: OnWanted<'_>) -> u32 {
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at.saturating_add(RANGE_LEN_MAX));
        let range = at..end;
        if !wanted(Wanted { pack, range }) {
            break;
        }
        at = end;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;

    const RECORD: u32 = 64 << 10;

    fn pack(n: u64) -> PackId {
        PackId::new(SessionId([7; 8]), n)
    }

    fn location(n: u64, offset: u32) -> BlobLocation {
        BlobLocation {
            pack: pack(n),
            offset,
            stored_len: RECORD - 88,
            plain_len: RECORD,
        }
    }

    fn read(streams: &Streams, location: BlobLocation, missed: bool) -> Vec<Wanted> {
        let mut all = Vec::new();
        streams.read([location].iter(), missed, &mut |wanted| {
            all.push(wanted);
            true
        });
        all
    }

    /// Reads `records` in a row; returns what was asked for and how far ahead of the reads it reached at most.
    fn run(streams: &Streams, offsets: impl Iterator<Item = u32>) -> (Vec<Wanted>, u32) {
        let (mut all, mut distance) = (Vec::new(), 0);
        for offset in offsets {
            for wanted in read(streams, location(1, offset), true) {
                if wanted.pack == pack(1) {
                    distance = distance.max(wanted.range.end - offset);
                }
                all.push(wanted);
            }
        }
        (all, distance)
    }

    #[test]
    fn a_sequence_gets_windows_that_grow_to_a_bound_and_leave_nothing_out() {
        let streams = Streams::default();
        let (all, distance) = run(&streams, (0..400).map(|n| BLOCK_LEN + n * RECORD));
        assert_eq!(
            all[0].range,
            BLOCK_LEN + 2 * RECORD..BLOCK_LEN + 2 * RECORD + WINDOW_MIN
        );
        for pair in all.windows(2) {
            assert_eq!(pair[0].range.end, pair[1].range.start);
        }
        assert!(
            all.iter()
                .all(|one| one.range.len() <= RANGE_LEN_MAX as usize)
        );
        assert!(
            distance > WINDOW_MAX && distance <= 2 * WINDOW_MAX + RECORD,
            "{distance}"
        );
    }

    #[test]
    fn reads_here_and_there_ask_for_nothing() {
        let streams = Streams::default();
        let mut state = 1_u32;
        let scattered = (0..1000).map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            BLOCK_LEN + state % 512 * RECORD
        });
        let (all, _) = run(&streams, scattered);
        // By chance one of them follows another.
        assert!(all.len() < 200, "{}", all.len());
        let again = (0..50).flat_map(|_| read(&Streams::default(), location(1, BLOCK_LEN), true));
        assert_eq!(again.count(), 0, "one record, again and again");
    }

    #[test]
    fn what_is_here_begins_no_sequence_and_carries_one_on() {
        let streams = Streams::default();
        for n in 0..100 {
            assert!(read(&streams, location(1, BLOCK_LEN + n * RECORD), false).is_empty());
        }
        read(&streams, location(1, BLOCK_LEN), true);
        let carried =
            (1..100).flat_map(|n| read(&streams, location(1, BLOCK_LEN + n * RECORD), false));
        assert!(carried.count() > 2);
    }

    #[test]
    fn a_sequence_goes_on_in_the_next_pack_and_not_behind_the_end() {
        let streams = Streams::default();
        let end = BLOCK_LEN + 64 * RECORD;
        run(&streams, (0..2).map(|n| BLOCK_LEN + n * RECORD));
        streams.ends_at(pack(1), end);
        let (all, _) = run(&streams, (2..64).map(|n| BLOCK_LEN + n * RECORD));
        let in_next: Vec<_> = all.iter().filter(|one| one.pack == pack(2)).collect();
        assert_eq!(in_next[0].range.start, BLOCK_LEN);
        assert!(
            all.iter()
                .all(|one| one.pack == pack(2) || one.range.end <= end)
        );
        let asked = in_next.last().unwrap().range.end;
        let next = read(&streams, location(2, BLOCK_LEN), false);
        assert_eq!(
            next[0].range.start, asked,
            "it goes on where the guess ended"
        );
        streams.forget(pack(2));
        assert!(read(&streams, location(2, BLOCK_LEN + RECORD), false).is_empty());
    }

    #[test]
    fn what_cannot_be_taken_now_is_asked_for_later() {
        let streams = Streams::default();
        read(&streams, location(1, BLOCK_LEN), true);
        let refuse = &mut |_: Wanted| false;
        streams.read([location(1, BLOCK_LEN + RECORD)].iter(), true, refuse);
        let later = read(&streams, location(1, BLOCK_LEN + 2 * RECORD), true);
        assert_eq!(later[0].range.start, BLOCK_LEN + 3 * RECORD);
    }
}
