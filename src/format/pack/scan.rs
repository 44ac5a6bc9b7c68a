//! Reading a pack forward without its index, and finding the way again after damage.

use super::{ALIGN, BLOCK_LEN, RECORD_HEADER_LEN, RecordHeader, index, record};
use crate::types::PackId;

/// What a scan comes upon, in the order of the bytes. Pads are passed over in silence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found<'a> {
    /// A record whose header and payload are what was written.
    Record {
        /// Where it begins.
        offset: u32,
        /// What it says of itself.
        header: RecordHeader,
        /// Its payload.
        stored: &'a [u8],
    },
    /// A record whose header is sound and whose payload is not.
    Broken {
        /// Where it begins.
        offset: u32,
        /// What it says of itself; the blob it names is not here.
        header: RecordHeader,
        /// A block of it is nothing but zeros: it was punched, or not fetched, or its write was lost.
        absent: bool,
    },
    /// Whole zeros where there should be something: punched, not fetched, preallocated, or lost.
    Zeros {
        /// Where they begin.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Bytes that are nothing this format knows; what they were cannot be said.
    Damage {
        /// Where they begin.
        offset: u32,
        /// How many were passed over to find the way again.
        len: u32,
    },
    /// The index of a sealed pack: the records end here, and so does the scan.
    Index {
        /// Where it begins.
        offset: u32,
    },
}

/// Walks over the bytes of one pack.
#[derive(Debug)]
pub struct Scanner<'a> {
    pack: PackId,
    bytes: &'a [u8],
    at: u32,
    end: u32,
}

impl<'a> Scanner<'a> {
    /// Scans `bytes`, which are `pack` from its first byte on, behind the header block.
    /// Bytes above 4 GiB, which no pack has, are not looked at.
    pub fn new(pack: PackId, bytes: &'a [u8]) -> Scanner<'a> {
        // Leaves room to round up without an overflow.
        let end = u32::try_from(bytes.len())
            .unwrap_or(u32::MAX)
            .min(u32::MAX - BLOCK_LEN);
        Scanner {
            pack,
            bytes,
            at: BLOCK_LEN,
            end,
        }
    }

    fn from(&self, at: u32) -> &'a [u8] {
        self.bytes
            .get(at as usize..self.end as usize)
            .unwrap_or_default()
    }

    /// The record at `self.at`, if a sound header that fits is there.
    fn record(&mut self) -> Option<Found<'a>> {
        let offset = self.at;
        let bytes = self.from(offset);
        let header = RecordHeader::decode(self.pack, offset, bytes).ok()?;
        let len = RECORD_HEADER_LEN + header.stored_len;
        let stored = bytes.get(RECORD_HEADER_LEN as usize..len as usize)?;
        // The filling up to the next multiple of eight may be missing at the very end.
        self.at = offset
            .saturating_add(record::record_len(header.stored_len))
            .min(self.end);
        if crc32c::crc32c(stored) == header.stored_crc {
            return Some(Found::Record {
                offset,
                header,
                stored,
            });
        }
        let absent = zero_block(offset, bytes.get(..len as usize).unwrap_or_default());
        Some(Found::Broken {
            offset,
            header,
            absent,
        })
    }

    /// Whether something known begins at `at`.
    fn known(&self, at: u32) -> bool {
        let bytes = self.from(at);
        record::is_pad(self.pack, at, bytes)
            || index::index_len_at(self.pack, at, bytes).is_some()
            || RecordHeader::decode(self.pack, at, bytes)
                .is_ok_and(|header| bytes.len() >= (RECORD_HEADER_LEN + header.stored_len) as usize)
    }

    /// Zeros up to the end or to the next thing that is known.
    fn zeros(&mut self) -> Option<Found<'a>> {
        let bytes = self.from(self.at);
        let run = bytes
            .iter()
            .position(|&byte| byte != 0)
            .unwrap_or(bytes.len());
        let whole = u32::try_from(run).unwrap_or(u32::MAX);
        let len = if run == bytes.len() {
            whole
        } else {
            whole - whole % ALIGN
        };
        let offset = self.at;
        self.at = self.at.saturating_add(len);
        (len > 0).then_some(Found::Zeros { offset, len })
    }

    /// Goes on to the next thing that is known, or to zeros that fill at least a block.
    fn resynchronise(&mut self) -> Found<'a> {
        let offset = self.at;
        self.at = self.at.saturating_add(ALIGN).min(self.end);
        while self.at < self.end && !self.known(self.at) {
            let at_hole = self.at.is_multiple_of(BLOCK_LEN)
                && zero_block(
                    self.at,
                    self.from(self.at)
                        .get(..BLOCK_LEN as usize)
                        .unwrap_or_default(),
                );
            if at_hole {
                break;
            }
            self.at = self.at.saturating_add(ALIGN).min(self.end);
        }
        Found::Damage {
            offset,
            len: self.at - offset,
        }
    }
}

impl<'a> Iterator for Scanner<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        while self.at < self.end && record::is_pad(self.pack, self.at, self.from(self.at)) {
            self.at = self.at.next_multiple_of(BLOCK_LEN);
        }
        if self.at >= self.end {
            return None;
        }
        if index::index_len_at(self.pack, self.at, self.from(self.at)).is_some() {
            let offset = self.at;
            self.at = self.end;
            return Some(Found::Index { offset });
        }
        if let Some(found) = self.record() {
            return Some(found);
        }
        if let Some(found) = self.zeros() {
            return Some(found);
        }
        Some(self.resynchronise())
    }
}

/// Whether a block of the pack is, as far as `bytes` (found at `offset`) show it, nothing but zeros.
///
/// Holes are punched and ranges are fetched in whole blocks, so a record that is partly absent has
/// such a block. Asked only about bytes whose checksum is wrong: a blob may well hold zeros.
pub fn zero_block(offset: u32, bytes: &[u8]) -> bool {
    let first_len = (BLOCK_LEN - offset % BLOCK_LEN) as usize;
    let (first, rest) = bytes.split_at(first_len.min(bytes.len()));
    std::iter::once(first)
        .chain(rest.chunks(BLOCK_LEN as usize))
        .any(|block| !block.is_empty() && block.iter().all(|&byte| byte == 0))
}
