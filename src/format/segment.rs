//! Segments: immutable sorted files of metadata entries `(key, epoch) -> value or tombstone`.
//!
//! All of history is in these files, so they are read from anywhere by range (a local file, an object
//! far away) and nothing is believed before its checksum. What keys and values mean may not enter
//! here; neither may the choice of which segments are live, which is the epoch record's. Entries are
//! ordered by key, and within a key from the newest epoch to the oldest: the first entry of a key
//! that is old enough is the answer. The bytes are specified in docs/format/segment.md.
//!
//! In reading order: [`scope`] what a segment is about, [`name`] its object name, [`frame`] the
//! checksummed envelope, [`block`] sorted entries in one, [`index`] where the blocks are, [`footer`];
//! then [`writer`], and [`source`], [`cache`], [`reader`], [`cursor`], [`verify`].

mod block;
mod cache;
mod cursor;
mod footer;
mod frame;
mod index;
mod name;
mod reader;
mod scope;
mod source;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use std::cmp::Ordering;

use crate::error::Error;
use crate::types::Epoch;

pub use cache::{BlockCache, CacheCounts};
pub use cursor::{CacheUse, Cursor, Entry, Range};
pub use footer::SegmentSummary;
pub use name::SegmentName;
pub use reader::{Found, Segment};
pub use scope::SegmentScope;
pub use source::{FileSource, MemorySource, RangeRead};
pub use writer::SegmentWriter;

/// The longest key.
pub const KEY_LEN_MAX: usize = 4096;
/// The longest value.
pub const VALUE_LEN_MAX: usize = 4 << 20;

/// The order of entries in a segment: keys ascend, and within a key epochs descend.
pub fn entry_order(left: (&[u8], Epoch), right: (&[u8], Epoch)) -> Ordering {
    left.0.cmp(right.0).then_with(|| right.1.cmp(&left.1))
}

/// Bytes that are not what they should be, before anyone has said of which object.
#[derive(Debug, PartialEq, Eq)]
struct Damage {
    offset: u64,
    reason: String,
}

impl Damage {
    fn new(offset: u64, reason: impl Into<String>) -> Damage {
        let reason = reason.into();
        Damage { offset, reason }
    }

    /// Names the object, which only the reader knows.
    fn of(self, object: &str) -> Error {
        Error::corrupt(object, self.offset, self.reason)
    }
}
