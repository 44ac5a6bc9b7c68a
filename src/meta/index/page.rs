//! A page: neighbouring entries of the index in one value of the store. Pure bytes and values, no I/O.
//!
//! A page says which keys it is responsible for, `[lower, upper)`, so that the loss of a neighbour
//! is seen at the read that misses it. Little-endian:
//!
//! ```text
//! 0  u8  format      1  u8  flags (1: an upper fence follows)
//! 2  u16 lower len   4  u16 upper len   6  u16 zero
//! 8  u32 entries     12 u32 body len
//! 16 u64 seq         24 u64 stands_for
//! 32 lower fence, upper fence, body; then u32 crc32c of all before
//! body: per entry varints (shared with the key before, rest of key, value), rest of key, value
//! ```

use bytes::Bytes;

use super::digest::digest;

/// Longest key.
pub const KEY_LEN_MAX: usize = 4 << 10;
/// Longest value.
pub const VALUE_LEN_MAX: usize = 4 << 20;

/// A page aims at this length, ...
pub(super) const PAGE_TARGET: usize = 4 << 10;
/// ... is split above this one, ...
pub(super) const PAGE_SPLIT: usize = 8 << 10;
/// ... and joined with its right neighbour below this one.
pub(super) const PAGE_MERGE: usize = 1 << 10;
/// Plain keys of one page together. It bounds what decoding may allocate: a few bytes can stand for a long key.
pub(super) const PAGE_KEYS_LEN_MAX: usize = 32 << 10;

const FORMAT: u8 = 1;
const HAS_UPPER: u8 = 1;
const HEADER_LEN: usize = 32;
const CRC_LEN: usize = 4;

/// A page, decoded.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) lower: Bytes,
    /// First key that is another page's; none for the last page.
    pub(super) upper: Option<Bytes>,
    /// Number of the write that made this page; never repeats.
    pub(super) seq: u64,
    /// Digest of the pages of the last checkpoint whose place this one took. Of no meaning in a page
    /// that is itself part of the last checkpoint.
    pub(super) stands_for: u64,
    /// Digest of the page's own bytes.
    pub(super) digest: u64,
    raw: Bytes,
    keys: Bytes,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    key_end: usize,
    value_start: usize,
    value_len: usize,
}

impl Page {
    pub(super) fn entry_count(&self) -> usize {
        self.slots.len()
    }

    /// Bytes as stored.
    pub(super) fn len(&self) -> usize {
        self.raw.len()
    }

    /// Bytes in memory.
    pub(super) fn footprint(&self) -> usize {
        self.raw.len() + self.keys.len() + self.slots.len() * size_of::<Slot>() + size_of::<Page>()
    }

    /// Whether this page answers for `key`, be it there or not.
    pub(super) fn covers(&self, key: &[u8]) -> bool {
        self.lower.as_ref() <= key && self.upper.as_ref().is_none_or(|upper| key < upper)
    }

    /// Position of the first entry at or after `key`.
    pub(super) fn position(&self, key: &[u8]) -> usize {
        let (mut from, mut to) = (0, self.slots.len());
        while from < to {
            let middle = from + (to - from) / 2;
            if self.key_bytes(middle) < key {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        from
    }

    pub(super) fn find(&self, key: &[u8]) -> Option<Bytes> {
        let at = self.position(key);
        (at < self.slots.len() && self.key_bytes(at) == key).then(|| self.value(at))
    }

    pub(super) fn entry(&self, at: usize) -> Option<(Bytes, Bytes)> {
        let slot = self.slots.get(at)?;
        Some((
            self.keys.slice(self.key_start(at)..slot.key_end),
            self.value(at),
        ))
    }

    fn key_start(&self, at: usize) -> usize {
        if at == 0 {
            0
        } else {
            self.slots[at - 1].key_end
        }
    }

    fn key_bytes(&self, at: usize) -> &[u8] {
        &self.keys[self.key_start(at)..self.slots[at].key_end]
    }

    fn value(&self, at: usize) -> Bytes {
        let Slot {
            value_start,
            value_len,
            ..
        } = self.slots[at];
        self.raw.slice(value_start..value_start + value_len)
    }
}

/// The fences, the marks and the entries of a page to be written.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) lower: &'a [u8],
    pub(super) upper: Option<&'a [u8]>,
    pub(super) seq: u64,
    pub(super) stands_for: u64,
    pub(super) entries: &'a [(Bytes, Bytes)],
}

impl Draft<'_> {
    /// The bytes; `None` if a length does not fit its field, which the limits on keys and values exclude.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut body = Vec::with_capacity(PAGE_SPLIT);
        let mut before: &[u8] = &[];
        for (key, value) in self.entries {
            let shared = shared_len(before, key);
            put_varint(&mut body, shared)?;
            put_varint(&mut body, key.len() - shared)?;
            put_varint(&mut body, value.len())?;
            body.extend_from_slice(&key[shared..]);
            body.extend_from_slice(value);
            before = key;
        }
        let upper = self.upper.unwrap_or_default();
        let mut page =
            Vec::with_capacity(HEADER_LEN + self.lower.len() + upper.len() + body.len() + CRC_LEN);
        page.extend_from_slice(&[FORMAT, if self.upper.is_some() { HAS_UPPER } else { 0 }]);
        page.extend_from_slice(&u16::try_from(self.lower.len()).ok()?.to_le_bytes());
        page.extend_from_slice(&u16::try_from(upper.len()).ok()?.to_le_bytes());
        page.extend_from_slice(&[0, 0]);
        page.extend_from_slice(&u32::try_from(self.entries.len()).ok()?.to_le_bytes());
        page.extend_from_slice(&u32::try_from(body.len()).ok()?.to_le_bytes());
        page.extend_from_slice(&self.seq.to_le_bytes());
        page.extend_from_slice(&self.stands_for.to_le_bytes());
        page.extend_from_slice(self.lower);
        page.extend_from_slice(upper);
        page.extend_from_slice(&body);
        page.extend_from_slice(&crc32c::crc32c(&page).to_le_bytes());
        Some(page)
    }
}

/// Length of a page of these entries is about the sum of this over them.
pub(super) fn entry_cost(before: &[u8], key: &[u8], value: &[u8]) -> usize {
    const VARINTS: usize = 4;
    VARINTS + key.len() - shared_len(before, key) + value.len()
}

/// The shortest key that is above `left` and not above `right`.
pub(super) fn separator(left: &[u8], right: &Bytes) -> Bytes {
    right.slice(..(shared_len(left, right) + 1).min(right.len()))
}

fn shared_len(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(l, r)| l == r).count()
}

impl Page {
    /// The page in `raw`, or what is wrong with it.
    pub(super) fn decode(raw: Bytes) -> Result<Page, &'static str> {
        let (sealed, crc) = raw
            .split_last_chunk::<CRC_LEN>()
            .ok_or("a page is too short")?;
        if crc32c::crc32c(sealed) != u32::from_le_bytes(*crc) {
            return Err("a page's checksum is wrong");
        }
        let digest = digest(&raw);
        let mut input = Input {
            bytes: sealed,
            at: 0,
        };
        let [format, flags] = input.array()?;
        if format != FORMAT {
            return Err("a page is of an unknown format");
        }
        let lower_len = usize::from(u16::from_le_bytes(input.array()?));
        let upper_len = usize::from(u16::from_le_bytes(input.array()?));
        let [0, 0] = input.array()? else {
            return Err("a page's spare field is in use");
        };
        let count = u32::from_le_bytes(input.array()?);
        let body_len = u32::from_le_bytes(input.array()?);
        let seq = u64::from_le_bytes(input.array()?);
        let stands_for = u64::from_le_bytes(input.array()?);
        let lower = raw.slice(input.skip(lower_len)?);
        let upper = raw.slice(input.skip(upper_len)?);
        if usize::try_from(body_len) != Ok(sealed.len() - input.at) {
            return Err("a page's body has another length");
        }
        let (keys, slots) = input.entries(count)?;
        let upper = (flags & HAS_UPPER != 0).then_some(upper);
        let page = Page {
            lower,
            upper,
            seq,
            stands_for,
            digest,
            raw,
            keys: keys.into(),
            slots,
        };
        page.check_order()?;
        Ok(page)
    }

    fn check_order(&self) -> Result<(), &'static str> {
        if self
            .upper
            .as_ref()
            .is_some_and(|upper| *upper <= self.lower)
        {
            return Err("a page's fences are crossed");
        }
        let last = self.slots.len().saturating_sub(1);
        let ascending = (0..last).all(|at| self.key_bytes(at) < self.key_bytes(at + 1));
        let inside = self.slots.is_empty()
            || (self.covers(self.key_bytes(0)) && self.covers(self.key_bytes(last)));
        if ascending && inside {
            Ok(())
        } else {
            Err("a page's keys are not in order")
        }
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn skip(&mut self, len: usize) -> Result<std::ops::Range<usize>, &'static str> {
        let end = self
            .at
            .checked_add(len)
            .filter(|end| *end <= self.bytes.len())
            .ok_or("a page ends early")?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let range = self.skip(N)?;
        self.bytes[range]
            .try_into()
            .map_err(|_| "a page ends early")
    }

    fn varint(&mut self) -> Result<usize, &'static str> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21] {
            let [byte] = self.array()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(value).map_err(|_| "a length in a page is too large");
            }
        }
        Err("a length in a page is too large")
    }

    fn entries(&mut self, count: u32) -> Result<(Vec<u8>, Vec<Slot>), &'static str> {
        let (mut keys, mut slots): (Vec<u8>, Vec<Slot>) = (Vec::new(), Vec::new());
        let mut key_start = 0;
        for _ in 0..count {
            let (shared, rest, value_len) = (self.varint()?, self.varint()?, self.varint()?);
            if shared > keys.len() - key_start {
                return Err("a key shares more than there is");
            }
            let rest = self.skip(rest)?;
            let value = self.skip(value_len)?;
            let next_start = keys.len();
            keys.extend_from_within(key_start..key_start + shared);
            keys.extend_from_slice(&self.bytes[rest]);
            if keys.len() > PAGE_KEYS_LEN_MAX {
                return Err("the keys of a page are too long");
            }
            key_start = next_start;
            slots.push(Slot {
                key_end: keys.len(),
                value_start: value.start,
                value_len,
            });
        }
        if self.at == self.bytes.len() {
            Ok((keys, slots))
        } else {
            Err("a page has bytes to spare")
        }
    }
}

fn put_varint(out: &mut Vec<u8>, value: usize) -> Option<()> {
    let mut rest = u32::try_from(value).ok()?;
    loop {
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            out.push(low);
            return Some(());
        }
        out.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(upper: Option<&[u8]>) -> Vec<u8> {
        let entries: Vec<(Bytes, Bytes)> = (10..60u8)
            .map(|n| {
                (
                    Bytes::from(vec![b'd', n / 10, n]),
                    Bytes::from(vec![n; usize::from(n)]),
                )
            })
            .collect();
        Draft {
            lower: b"d",
            upper,
            seq: 7,
            stands_for: 9,
            entries: &entries,
        }
        .encode()
        .unwrap()
    }

    #[test]
    fn a_page_gives_back_what_was_put_in() {
        let page = Page::decode(sample(Some(b"e")).into()).unwrap();
        assert_eq!((page.seq, page.stands_for, page.entry_count()), (7, 9, 50));
        assert_eq!(page.find(&[b'd', 3, 33]), Some(Bytes::from(vec![33; 33])));
        assert_eq!(page.find(&[b'd', 3, 3]), None);
        assert!(
            page.covers(b"d") && page.covers(b"dzz") && !page.covers(b"e") && !page.covers(b"c")
        );
        assert!(Page::decode(sample(None).into()).unwrap().covers(b"zzz"));
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_page_is_seen() {
        let good = sample(Some(b"e"));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(Page::decode(bad.into()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_separator_is_above_the_left_key_and_not_above_the_right() {
        for (left, right) in [
            ("a", "b"),
            ("abc", "abd"),
            ("ab", "abcdef"),
            ("", "x"),
            ("abz", "acdef"),
        ] {
            let right = Bytes::from(right);
            let fence = separator(left.as_bytes(), &right);
            assert!(
                left.as_bytes() < fence.as_ref() && fence <= right,
                "{left} {right:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_with_a_right_checksum_never_break_the_decoder(
            mut body in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..300, at in 0usize..300, with: u8
        ) {
            let mut page = sample(Some(b"e"));
            page.truncate(page.len() - CRC_LEN);
            if cut < 100 { page.truncate(cut); page.append(&mut body); }
            if let Some(byte) = page.get_mut(at) { *byte = with; }
            page.extend_from_slice(&crc32c::crc32c(&page).to_le_bytes());
            let _ = Page::decode(page.into());
        }
    }
}
