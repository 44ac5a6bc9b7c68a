//! Where the blocks of a segment are: for each, a bound that no entry of it exceeds, and its length.

use std::cmp::Ordering;

use bytes::Bytes;

use super::frame::FRAME_HEADER_LEN;
use super::scope::HEADER_LEN;
use super::{KEY_LEN_MAX, entry_order};
use crate::format::wire::{Reader, put_prefixed, put_varint};
use crate::types::Epoch;

/// The longest plain index: tens of millions of blocks, a terabyte of segment.
const INDEX_LEN_MAX: u32 = 1 << 30;
/// The most an index entry takes: key and three varints.
const ENTRY_LEN_MAX: u64 = KEY_LEN_MAX as u64 + 30;

/// How long the plain index of `count` blocks can be; nothing if so many do not fit below `blocks_end`.
///
/// So a footer cannot make us allocate for blocks that its file has no room for.
pub(super) fn index_len_max(count: u32, blocks_end: u64) -> u32 {
    if u64::from(count) > blocks_end / FRAME_HEADER_LEN as u64 {
        return 0;
    }
    let len = (u64::from(count) * ENTRY_LEN_MAX).min(u64::from(INDEX_LEN_MAX));
    u32::try_from(len).unwrap_or(INDEX_LEN_MAX)
}

/// Collects the index while blocks are written.
#[derive(Debug)]
pub(super) struct IndexBuilder {
    first: Epoch,
    plain: Vec<u8>,
    blocks: u32,
}

impl IndexBuilder {
    pub(super) fn new(first: Epoch) -> IndexBuilder {
        IndexBuilder {
            first,
            plain: Vec::new(),
            blocks: 0,
        }
    }

    /// Adds a block that ends with `last` and is followed by an entry of key `next`.
    ///
    /// Between two keys a short separator does, for all epochs. When the key goes on in the next
    /// block, the bound is the very entry.
    pub(super) fn add(&mut self, last: (&[u8], Epoch), next: Option<&[u8]>, frame_len: u64) {
        let (key, age) = match next {
            Some(next) if next == last.0 => (last.0, last.1.0 - self.first.0 + 1),
            Some(next) => (separator(last.0, next), 0),
            None => (last.0, 0),
        };
        put_prefixed(&mut self.plain, key);
        put_varint(&mut self.plain, age);
        put_varint(&mut self.plain, frame_len);
        self.blocks += 1;
    }

    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    pub(super) fn plain(&self) -> &[u8] {
        &self.plain
    }
}

/// A key that is not before `last`, is before `next`, and is as short as is easily found.
fn separator<'a>(last: &'a [u8], next: &'a [u8]) -> &'a [u8] {
    let shared = last
        .iter()
        .zip(next)
        .take_while(|(last, next)| last == next)
        .count();
    match next.get(..=shared) {
        Some(short) if short.len() < next.len() && short.len() < last.len() => short,
        _ => last,
    }
}

/// A block's place and bound.
#[derive(Clone, Copy, Debug)]
struct BlockEntry {
    key_at: u32,
    key_len: u32,
    epoch: Epoch,
    offset: u64,
    len: u64,
}

/// Offset and length of a block's frame in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Place {
    pub(super) fn end(self) -> u64 {
        self.offset + self.len
    }
}

/// The block index as read back: the plain bytes, and where in them each entry is.
#[derive(Debug)]
pub(super) struct Index {
    plain: Bytes,
    blocks: Vec<BlockEntry>,
}

impl Index {
    /// Takes plain bytes that describe `count` blocks from the header to `blocks_end`, without a gap.
    pub(super) fn decode(plain: Bytes, first: Epoch, count: u32, blocks_end: u64) -> Option<Index> {
        let mut reader = Reader::new(&plain);
        if plain.len() as u64 > u64::from(index_len_max(count, blocks_end)) {
            return None;
        }
        let mut blocks: Vec<BlockEntry> = Vec::with_capacity(usize::try_from(count).ok()?);
        let mut offset = HEADER_LEN;
        let mut before: Option<(&[u8], Epoch)> = None;
        for _ in 0..count {
            let key = reader.prefixed(KEY_LEN_MAX)?;
            let key_at = plain.len() - reader.rest().len() - key.len();
            let epoch = match reader.varint()? {
                0 => Epoch(0),
                age => Epoch(first.0.checked_add(age - 1)?),
            };
            let len = reader.varint()?;
            let ascends =
                before.is_none_or(|before| entry_order(before, (key, epoch)) == Ordering::Less);
            if !ascends || len <= FRAME_HEADER_LEN as u64 || len > blocks_end.checked_sub(offset)? {
                return None;
            }
            before = Some((key, epoch));
            blocks.push(BlockEntry {
                key_at: u32::try_from(key_at).ok()?,
                key_len: u32::try_from(key.len()).ok()?,
                epoch,
                offset,
                len,
            });
            offset += len;
        }
        (reader.is_empty() && offset == blocks_end).then_some(Index { plain, blocks })
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Where block `number` is.
    pub(super) fn place(&self, number: usize) -> Option<Place> {
        self.blocks.get(number).map(|block| Place {
            offset: block.offset,
            len: block.len,
        })
    }

    /// The only block that may hold the first entry not before `(key, epoch)`; the number of blocks if none.
    pub(super) fn find(&self, key: &[u8], epoch: Epoch) -> usize {
        self.blocks.partition_point(|block| {
            entry_order((self.bound(block), block.epoch), (key, epoch)) == Ordering::Less
        })
    }

    fn bound(&self, block: &BlockEntry) -> &[u8] {
        let bound = || {
            let at = usize::try_from(block.key_at).ok()?;
            let len = usize::try_from(block.key_len).ok()?;
            self.plain.get(at..)?.get(..len)
        };
        bound().unwrap_or_default()
    }

    /// Bytes of memory it takes.
    pub(super) fn memory_len(&self) -> usize {
        self.plain.len() + self.blocks.len() * size_of::<BlockEntry>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_separator_is_short_and_lies_between() {
        assert_eq!(separator(b"apple", b"banana"), b"b");
        assert_eq!(separator(b"apple", b"apricot"), b"apr");
        assert_eq!(separator(b"app", b"apple"), b"app");
        assert_eq!(separator(b"apple", b"b"), b"apple");
        assert_eq!(separator(b"", b"a"), b"");
    }

    #[test]
    fn a_key_that_spans_blocks_is_found_in_the_block_of_its_epoch() {
        let mut builder = IndexBuilder::new(Epoch(10));
        builder.add((b"a", Epoch(10)), Some(b"k"), 100);
        builder.add((b"k", Epoch(15)), Some(b"k"), 100);
        builder.add((b"k", Epoch(12)), Some(b"z"), 100);
        builder.add((b"z", Epoch(10)), None, 100);
        let plain = Bytes::copy_from_slice(builder.plain());
        let index = Index::decode(plain, Epoch(10), 4, HEADER_LEN + 400).unwrap();
        assert_eq!(index.find(b"a", Epoch(0)), 0);
        assert_eq!(index.find(b"k", Epoch(u64::MAX)), 1);
        assert_eq!(index.find(b"k", Epoch(15)), 1);
        assert_eq!(index.find(b"k", Epoch(14)), 2);
        assert_eq!(index.find(b"k", Epoch(0)), 2);
        assert_eq!(index.find(b"z", Epoch(0)), 3);
        assert_eq!(index.find(b"zz", Epoch(0)), 4);
        assert_eq!(
            index.place(1),
            Some(Place {
                offset: 164,
                len: 100
            })
        );
    }

    #[test]
    fn an_index_that_leaves_a_gap_or_goes_too_far_is_refused() {
        let mut builder = IndexBuilder::new(Epoch(1));
        builder.add((b"a", Epoch(1)), Some(b"k"), 100);
        builder.add((b"k", Epoch(1)), None, 100);
        let decode = |count, end| {
            Index::decode(
                Bytes::copy_from_slice(builder.plain()),
                Epoch(1),
                count,
                end,
            )
        };
        assert!(decode(2, 264).is_some());
        assert!(decode(2, 265).is_none());
        assert!(decode(2, 263).is_none());
        assert!(decode(1, 164).is_none());
        assert!(decode(u32::MAX, 264).is_none());
    }

    proptest! {
        #[test]
        fn a_separator_always_separates(last: Vec<u8>, more: Vec<u8>, cut: prop::sample::Index) {
            let mut next = last[..cut.index(last.len() + 1)].to_vec();
            next.extend_from_slice(&more);
            prop_assume!(last < next);
            let between = separator(&last, &next);
            prop_assert!(last.as_slice() <= between && between < next.as_slice());
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_searched_without_panic(plain in proptest::collection::vec(0_u8..100, 0..40), count in 0_u32..6, end in 60_u64..600, key: Vec<u8>) {
            if let Some(index) = Index::decode(Bytes::from(plain), Epoch(3), count, end) {
                index.find(&key, Epoch(3));
            }
        }
    }
}
