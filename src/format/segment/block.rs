//! Sorted entries in one frame: prefix-compressed keys, with restart points to search from.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;

use super::{KEY_LEN_MAX, VALUE_LEN_MAX, entry_order};
use crate::format::wire::{Reader, put_bytes, put_len, put_u32, put_varint};
use crate::types::Epoch;

/// Plain bytes of a block after which the next entry starts another.
pub(super) const BLOCK_LEN_TARGET: usize = 32 << 10;
/// The longest plain block: one entry of the greatest size, with room to spare.
pub(super) const BLOCK_LEN_MAX: u32 = (4 << 20) + 4096 + 1024;
const _: () = assert!(BLOCK_LEN_MAX as usize == VALUE_LEN_MAX + KEY_LEN_MAX + 1024);
/// Every so many entries the key is written whole.
const RESTART_INTERVAL: u32 = 16;
/// The most an entry takes beside its key and value: four varints.
const ENTRY_OVERHEAD_MAX: usize = 40;

/// Collects the entries of one block. The writer sees to order and limits.
#[derive(Debug, Default)]
pub(super) struct BlockBuilder {
    plain: Vec<u8>,
    restarts: Vec<u32>,
    last_key: Vec<u8>,
    since_restart: u32,
}

impl BlockBuilder {
    pub(super) fn is_empty(&self) -> bool {
        self.plain.is_empty()
    }

    /// Whether an entry of this size should rather start a new block.
    pub(super) fn is_full_for(&self, key: &[u8], value: Option<&[u8]>) -> bool {
        let more = key.len() + value.map_or(0, <[u8]>::len) + ENTRY_OVERHEAD_MAX;
        !self.is_empty() && self.plain.len() + more > BLOCK_LEN_TARGET
    }

    pub(super) fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Appends an entry; `age` is its epoch counted from the segment's first.
    pub(super) fn add(&mut self, key: &[u8], age: u64, value: Option<&[u8]>) {
        let shared = if self.is_empty() || self.since_restart == RESTART_INTERVAL {
            // A block ends long before 4 GiB.
            self.restarts
                .push(u32::try_from(self.plain.len()).unwrap_or(u32::MAX));
            self.since_restart = 0;
            0
        } else {
            shared_prefix(&self.last_key, key)
        };
        let (_, suffix) = key.split_at(shared);
        put_len(&mut self.plain, shared);
        put_len(&mut self.plain, suffix.len());
        put_varint(&mut self.plain, age);
        put_len(&mut self.plain, value.map_or(0, |value| value.len() + 1));
        put_bytes(&mut self.plain, suffix);
        put_bytes(&mut self.plain, value.unwrap_or_default());
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(suffix);
        self.since_restart += 1;
    }

    /// The block's plain bytes. Call [`BlockBuilder::clear`] before the next entry.
    pub(super) fn finish(&mut self) -> &[u8] {
        for restart in &self.restarts {
            put_u32(&mut self.plain, *restart);
        }
        let count = u32::try_from(self.restarts.len()).unwrap_or(u32::MAX);
        put_u32(&mut self.plain, count);
        &self.plain
    }

    pub(super) fn clear(&mut self) {
        self.plain.clear();
        self.restarts.clear();
        self.last_key.clear();
        self.since_restart = 0;
    }
}

fn shared_prefix(left: &[u8], right: &[u8]) -> usize {
    left.iter()
        .zip(right)
        .take_while(|(left, right)| left == right)
        .count()
}

/// A block's plain bytes, their outline checked.
#[derive(Debug)]
pub(super) struct Block {
    plain: Bytes,
    entries_len: usize,
    restarts: usize,
    first: Epoch,
}

impl Block {
    /// Takes plain bytes whose restart points lie where they may; ages count from `first`.
    pub(super) fn decode(plain: Bytes, first: Epoch) -> Result<Block, &'static str> {
        let (body, count) = plain
            .split_last_chunk::<4>()
            .ok_or("a block is too short for its restart count")?;
        let restarts = usize::try_from(u32::from_le_bytes(*count)).unwrap_or(usize::MAX);
        let entries_len = restarts
            .checked_mul(4)
            .and_then(|table| body.len().checked_sub(table))
            .ok_or("a block is too short for its restart points")?;
        let table = body.get(entries_len..).unwrap_or_default();
        let (offsets, _) = table.as_chunks::<4>();
        let mut offsets = offsets.iter().map(|offset| u32::from_le_bytes(*offset));
        let ascending = offsets.clone().is_sorted_by(|left, right| left < right);
        let within = offsets
            .clone()
            .all(|offset| u64::from(offset) < entries_len as u64);
        if offsets.next() != Some(0) || !ascending || !within {
            return Err("a block's restart points are out of place");
        }
        Ok(Block {
            plain,
            entries_len,
            restarts,
            first,
        })
    }

    /// Bytes of memory it takes.
    pub(super) fn len(&self) -> usize {
        self.plain.len()
    }

    fn entries(&self) -> &[u8] {
        self.plain.get(..self.entries_len).unwrap_or_default()
    }

    fn restart(&self, number: usize) -> Option<usize> {
        let at = self.entries_len + number * 4;
        let offset = self.plain.get(at..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*offset)).ok()
    }

    fn parse(&self, at: usize) -> Option<Raw<'_>> {
        let entries = self.entries();
        let mut reader = Reader::new(entries.get(at..)?);
        let shared = reader.varint_len(KEY_LEN_MAX)?;
        let suffix_len = reader.varint_len(KEY_LEN_MAX)?;
        let age = reader.varint()?;
        let value_code = reader.varint_len(VALUE_LEN_MAX + 1)?;
        let suffix = reader.bytes(suffix_len)?;
        let value_at = entries.len() - reader.rest().len();
        reader.bytes(value_code.saturating_sub(1))?;
        Some(Raw {
            shared,
            suffix,
            epoch: Epoch(self.first.0.checked_add(age)?),
            value_at,
            value_len: value_code.checked_sub(1),
            next: entries.len() - reader.rest().len(),
        })
    }
}

/// An entry as it lies in the block.
struct Raw<'a> {
    shared: usize,
    suffix: &'a [u8],
    epoch: Epoch,
    value_at: usize,
    value_len: Option<usize>,
    next: usize,
}

/// An entry that does not decode: its offset in the plain block.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadEntry(pub(super) usize);

/// A position in a block. Before the first step it is on no entry.
#[derive(Debug)]
pub(super) struct Entries {
    block: Arc<Block>,
    next: usize,
    key: Vec<u8>,
    epoch: Epoch,
    value_at: usize,
    value_len: Option<usize>,
}

impl Entries {
    pub(super) fn new(block: Arc<Block>) -> Entries {
        Entries {
            block,
            next: 0,
            key: Vec::new(),
            epoch: Epoch(0),
            value_at: 0,
            value_len: None,
        }
    }

    /// Goes on to another block, keeping the key's buffer.
    pub(super) fn restart_in(&mut self, block: Arc<Block>) {
        self.block = block;
        self.next = 0;
        self.key.clear();
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The value, sharing the block's memory; nothing for a tombstone.
    pub(super) fn value(&self) -> Option<Bytes> {
        let len = self.value_len?;
        // Within the block: the entry's parsing has been there.
        Some(self.block.plain.slice(self.value_at..self.value_at + len))
    }

    /// Steps to the next entry; false at the end.
    pub(super) fn advance(&mut self) -> Result<bool, BadEntry> {
        if self.next >= self.block.entries_len {
            return Ok(false);
        }
        let raw = self.block.parse(self.next).ok_or(BadEntry(self.next))?;
        if raw.shared > self.key.len() || raw.shared + raw.suffix.len() > KEY_LEN_MAX {
            return Err(BadEntry(self.next));
        }
        self.key.truncate(raw.shared);
        self.key.extend_from_slice(raw.suffix);
        self.epoch = raw.epoch;
        self.value_at = raw.value_at;
        self.value_len = raw.value_len;
        self.next = raw.next;
        Ok(true)
    }

    /// Steps to the first entry that is not before `(key, epoch)`; false if there is none.
    pub(super) fn seek(&mut self, key: &[u8], epoch: Epoch) -> Result<bool, BadEntry> {
        self.next = self.restart_before(key, epoch)?;
        self.key.clear();
        while self.advance()? {
            if entry_order((&self.key, self.epoch), (key, epoch)) != Ordering::Less {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The last restart point whose entry is before `(key, epoch)`, or the block's start.
    fn restart_before(&self, key: &[u8], epoch: Epoch) -> Result<usize, BadEntry> {
        let (mut low, mut high) = (0, self.block.restarts);
        let mut found = 0;
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.block.restart(middle).ok_or(BadEntry(0))?;
            let raw = self.block.parse(at).ok_or(BadEntry(at))?;
            if raw.shared != 0 {
                return Err(BadEntry(at));
            }
            if entry_order((raw.suffix, raw.epoch), (key, epoch)) == Ordering::Less {
                found = at;
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Key, age and value.
    type Plain = (Vec<u8>, u64, Option<Vec<u8>>);

    fn block_of(entries: &[Plain]) -> Arc<Block> {
        let mut builder = BlockBuilder::default();
        for (key, age, value) in entries {
            builder.add(key, *age, value.as_deref());
        }
        let plain = Bytes::copy_from_slice(builder.finish());
        Arc::new(Block::decode(plain, Epoch(100)).unwrap())
    }

    fn hundred() -> Vec<Plain> {
        (0..100_u64)
            .map(|number| {
                let key = format!("key {:03}", number / 3 * 2).into_bytes();
                let value = (number % 7 != 0).then(|| vec![b'v'; (number % 5) as usize]);
                (key, 2 - number % 3, value)
            })
            .collect()
    }

    #[test]
    fn entries_come_back_in_order_with_tombstones_and_empty_values_apart() {
        let mut entries = Entries::new(block_of(&hundred()));
        for (key, age, value) in hundred() {
            assert!(entries.advance().unwrap());
            assert_eq!(
                (entries.key(), entries.epoch(), entries.value().as_deref()),
                (&key[..], Epoch(100 + age), value.as_deref())
            );
        }
        assert!(!entries.advance().unwrap());
        assert!(!entries.advance().unwrap());
    }

    #[test]
    fn a_seek_stops_at_the_first_entry_that_is_not_before() {
        let block = block_of(&hundred());
        for number in 0..70 {
            for epoch in [0, 99, 100, 101, 102, 103].map(Epoch) {
                let key = format!("key {number:03}").into_bytes();
                let expected = hundred().into_iter().find(|(other, age, _)| {
                    entry_order((other, Epoch(100 + age)), (&key, epoch)) != Ordering::Less
                });
                let mut entries = Entries::new(block.clone());
                assert_eq!(entries.seek(&key, epoch).unwrap(), expected.is_some());
                if let Some((key, age, _)) = expected {
                    assert_eq!(
                        (entries.key(), entries.epoch()),
                        (&key[..], Epoch(100 + age))
                    );
                }
            }
        }
    }

    #[test]
    fn a_restart_point_in_the_middle_of_things_is_refused() {
        for restarts in [&[0_u32, 0][..], &[1], &[0, 99], &[]] {
            let mut plain = vec![0; 8];
            for at in restarts {
                put_u32(&mut plain, *at);
            }
            put_u32(&mut plain, u32::try_from(restarts.len()).unwrap());
            assert!(
                Block::decode(Bytes::from(plain), Epoch(0)).is_err(),
                "{restarts:?}"
            );
        }
        let mut plain = Vec::new();
        put_u32(&mut plain, u32::MAX);
        assert!(Block::decode(Bytes::from(plain), Epoch(0)).is_err());
    }

    #[test]
    fn an_entry_that_shares_more_than_the_key_before_it_is_refused() {
        // Two entries: key "a", and one that shares two bytes with it.
        let mut plain = vec![0, 1, 0, 0, b'a', 2, 1, 0, 0, b'b'];
        put_u32(&mut plain, 0);
        put_u32(&mut plain, 1);
        let block = Block::decode(Bytes::from(plain), Epoch(0)).unwrap();
        let mut entries = Entries::new(Arc::new(block));
        assert_eq!(entries.advance(), Ok(true));
        assert_eq!(entries.advance(), Err(BadEntry(5)));
    }

    fn walk(plain: Vec<u8>, key: &[u8]) {
        if let Ok(block) = Block::decode(Bytes::from(plain), Epoch(u64::MAX - 9)) {
            let block = Arc::new(block);
            let mut entries = Entries::new(block.clone());
            while let Ok(true) = entries.advance() {
                entries.value();
            }
            let _ = Entries::new(block).seek(key, Epoch(5));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_walked_without_panic(mut plain in proptest::collection::vec(any::<u8>(), 0..80), restarts in 1_u32..3, key: Vec<u8>) {
            put_u32(&mut plain, 0);
            if restarts == 2 {
                put_u32(&mut plain, 7);
            }
            put_u32(&mut plain, restarts);
            walk(plain, &key);
        }

        #[test]
        fn a_damaged_block_is_walked_without_panic(at: prop::sample::Index, with: u8, key: Vec<u8>) {
            let mut builder = BlockBuilder::default();
            for (key, age, value) in hundred() {
                builder.add(&key, age, value.as_deref());
            }
            let mut plain = builder.finish().to_vec();
            let at = at.index(plain.len());
            plain[at] = with;
            walk(plain, &key);
        }
    }
}
