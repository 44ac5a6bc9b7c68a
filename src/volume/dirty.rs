//! Bytes of an open file that were written and are not yet cut into blobs.
//!
//! Disjoint runs by offset; a write that touches a run joins it, so that a sequential writer has one run
//! that grows. Nothing here knows blobs or packs.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::chunk::Chunker;

/// The runs.
#[derive(Debug, Default)]
pub struct DirtyRanges {
    runs: BTreeMap<u64, Vec<u8>>,
    len_bytes: usize,
}

/// A cut piece of a file: one blob to be.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Where in the file it begins.
    pub start: u64,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Piece {
    /// First byte behind it.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl DirtyRanges {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes in all runs.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// How many runs.
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// Writes `bytes` at `offset` over whatever is there. Returns by how much the bytes held grew.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> usize {
        let before = self.len_bytes;
        let end = offset + bytes.len() as u64;
        let joined = self
            .runs
            .range_mut(..=offset)
            .next_back()
            .filter(|(start, run)| *start + run.len() as u64 >= offset);
        let start = if let Some((&start, run)) = joined {
            let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
            let overlap = (run.len() - at).min(bytes.len());
            let (over, behind) = bytes.split_at(overlap);
            if let Some(target) = run.get_mut(at..at + overlap) {
                target.copy_from_slice(over);
            }
            run.extend_from_slice(behind);
            self.len_bytes += behind.len();
            start
        } else {
            self.runs.insert(offset, bytes.to_vec());
            self.len_bytes += bytes.len();
            offset
        };
        self.join_following(start, end);
        self.len_bytes.saturating_sub(before)
    }

    /// Lets the run at `start`, whose newest bytes end at `end`, swallow the runs it now touches.
    fn join_following(&mut self, start: u64, end: u64) {
        while let Some((&next, _)) = self.runs.range(start + 1..=end).next() {
            let Some(swallowed) = self.runs.remove(&next) else {
                return;
            };
            let covered = usize::try_from(end - next)
                .unwrap_or(usize::MAX)
                .min(swallowed.len());
            self.len_bytes -= covered;
            if let Some(run) = self.runs.get_mut(&start) {
                run.extend_from_slice(swallowed.get(covered..).unwrap_or_default());
            }
        }
    }

    /// The parts of the runs that lie in `start..end`.
    pub fn overlapping(&self, start: u64, end: u64) -> Vec<Piece> {
        let before = self
            .runs
            .range(..=start)
            .next_back()
            .map_or(start, |(run, _)| *run);
        let runs = self.runs.range(before..end);
        runs.filter_map(|(&run_start, run)| {
            let from = start.max(run_start);
            let to = end.min(run_start + run.len() as u64);
            let range = usize::try_from(from - run_start).ok()?
                ..usize::try_from(to.checked_sub(run_start)?).ok()?;
            let bytes = run.get(range).filter(|part| !part.is_empty())?;
            Some(Piece {
                start: from,
                bytes: Bytes::copy_from_slice(bytes),
            })
        })
        .collect()
    }

    /// Cuts blobs off the runs that are long enough for their ends to be decided by content. With
    /// `all`, everything is cut and nothing stays: the end of a run ends a blob.
    pub fn cut(&mut self, chunker: &Chunker, all: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let ready: Vec<u64> = self
            .runs
            .iter()
            .filter(|(start, run)| all || run.len() >= 2 * chunker.max_len(**start))
            .map(|(start, _)| *start)
            .collect();
        for start in ready {
            let Some(run) = self.runs.remove(&start) else {
                continue;
            };
            let run = Bytes::from(run);
            let mut at = 0;
            while at < run.len() {
                let Some(len) = chunker.cut(start + at as u64, &run[at..], all) else {
                    break;
                };
                pieces.push(Piece {
                    start: start + at as u64,
                    bytes: run.slice(at..at + len),
                });
                at += len;
            }
            self.len_bytes -= at;
            if at < run.len() {
                self.runs.insert(start + at as u64, run[at..].to_vec());
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkerParams;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is written, the runs hold the newest bytes, never touch each other, and what is cut
        /// is what was written.
        #[test]
        fn runs_hold_the_newest_bytes(writes in proptest::collection::vec((0_u64..300, 1_usize..60, any::<u8>()), 1..40)) {
            let mut dirty = DirtyRanges::default();
            let mut model = vec![None; 400];
            for (offset, len, byte) in writes {
                let before = dirty.len_bytes();
                let grown = dirty.write(offset, &vec![byte; len]);
                prop_assert_eq!(dirty.len_bytes(), before + grown);
                model[offset as usize..offset as usize + len].fill(Some(byte));
            }
            let check = |pieces: Vec<Piece>| {
                let mut seen = vec![None; 400];
                for piece in pieces {
                    for (at, byte) in (piece.start..).zip(&piece.bytes) {
                        assert_eq!(seen[at as usize], None);
                        seen[at as usize] = Some(*byte);
                    }
                }
                seen
            };
            prop_assert_eq!(&check(dirty.overlapping(0, 400)), &model);
            let inner = check(dirty.overlapping(100, 150));
            prop_assert_eq!(&inner[100..150], &model[100..150]);
            prop_assert!(inner[..100].iter().chain(&inner[150..]).all(Option::is_none));
            prop_assert_eq!(dirty.len_bytes(), model.iter().flatten().count());
            let chunker = Chunker::new(&ChunkerParams::new(1)).unwrap();
            prop_assert_eq!(&check(dirty.cut(&chunker, true)), &model);
            prop_assert!(dirty.is_empty() && dirty.len_bytes() == 0);
        }
    }
}
