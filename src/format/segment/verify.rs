//! Reads a whole segment and holds it against everything it says of itself.

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::cursor::CacheUse;
use super::entry_order;
use super::index::Place;
use super::reader::Segment;
use super::scope::HEADER_LEN;
use crate::error::{Error, Result};
use crate::types::Epoch;

/// Read at once: little to keep, and few requests to a source far away.
const CHUNK_LEN: u64 = 1 << 20;

/// What a pass over the entries has counted.
#[derive(Default)]
struct Counted {
    entries: u64,
    tombstones: u64,
    keys: u64,
    last: Option<(Vec<u8>, Epoch)>,
}

impl Segment {
    /// Checks digest, header, every block, the order and number of entries, and the filter.
    pub fn verify(self: &Arc<Segment>) -> Result<()> {
        self.verify_digest()?;
        let header = self.read(Place {
            offset: 0,
            len: HEADER_LEN,
        })?;
        let header = self.summary().scope().check_header(&header);
        header.map_err(|damage| damage.of(self.source_name()))?;
        self.verify_entries()
    }

    fn verify_digest(&self) -> Result<()> {
        let summary = self.summary();
        // Digest, length, checksum and magic are the end of the file.
        let digested_len = summary.len - 48;
        let mut sha256 = Sha256::new();
        let mut offset = 0;
        while offset < digested_len {
            let len = CHUNK_LEN.min(digested_len - offset);
            sha256.update(&self.read(Place { offset, len })?);
            offset += len;
        }
        let computed: [u8; 32] = sha256.finalize().into();
        if computed != summary.sha256 {
            return Err(self.contradiction("its digest is not the one in its footer"));
        }
        Ok(())
    }

    fn verify_entries(self: &Arc<Segment>) -> Result<()> {
        let summary = self.summary();
        let filter = self.checked_filter()?;
        let mut cursor = self.cursor(&[], Bound::Unbounded, CacheUse::Bypass);
        let mut counted = Counted::default();
        while cursor.advance()? {
            let (key, epoch) = (cursor.key(), cursor.epoch());
            let last = counted.last.as_ref();
            let ascends = last.is_none_or(|(last, last_epoch)| {
                entry_order((last, *last_epoch), (key, epoch)) == Ordering::Less
            });
            if !ascends || epoch < summary.first || epoch > summary.last {
                return Err(self.contradiction("an entry is not in its place"));
            }
            if !filter.may_contain(key) {
                return Err(self.contradiction("the filter denies a key that is there"));
            }
            counted.keys += u64::from(last.is_none_or(|(last, _)| last != key));
            counted.entries += 1;
            counted.tombstones += u64::from(cursor.value().is_none());
            counted.last = Some((key.to_vec(), epoch));
        }
        let largest = counted.last.map(|(key, _)| key).unwrap_or_default();
        let counts = (counted.entries, counted.tombstones, counted.keys);
        if counts != (summary.entries, summary.tombstones, summary.keys)
            || largest != summary.largest
        {
            return Err(self.contradiction("it does not hold the entries that its footer counts"));
        }
        Ok(())
    }

    fn contradiction(&self, reason: &str) -> Error {
        Error::corrupt(self.source_name(), self.summary().len, reason)
    }
}
