//! A Bloom filter over keys: answers "certainly absent" or "look".
//!
//! Its hash is our own and part of the disk format (docs/format/segment.md, "Filter"): it may never
//! change under the same version. Pure bytes; where a filter is kept is the segment's business.

use bytes::Bytes;

use super::wire::{Reader, put_u32, put_u64};

/// Bits spent for each distinct key: about one false "look" in 120.
const BITS_PER_KEY: u64 = 10;
/// Probes for each key; 10 bits times ln 2.
const PROBES: u32 = 7;
/// A reader refuses more: they would only cost time.
const PROBES_MAX: u32 = 32;
/// No filter is bigger; with more keys than fit, it gets less sharp.
pub const FILTER_LEN_MAX: u32 = 256 << 20;
/// Seed, number of bits, number of probes, reserved.
const HEADER_LEN: usize = 24;

const MULTIPLY_A: u64 = 0x9e37_79b9_7f4a_7c15;
const MULTIPLY_B: u64 = 0xbf58_476d_1ce4_e5b9;
const MULTIPLY_C: u64 = 0x94d0_49bb_1331_11eb;

/// The hash of a key that filters are made from.
pub fn hash(seed: u64, key: &[u8]) -> u64 {
    let mut state = seed ^ (key.len() as u64).wrapping_mul(MULTIPLY_A);
    let (words, rest) = key.as_chunks::<8>();
    for word in words {
        state = step(state, u64::from_le_bytes(*word));
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        state = step(state, u64::from_le_bytes(last));
    }
    state = (state ^ (state >> 30)).wrapping_mul(MULTIPLY_B);
    state = (state ^ (state >> 27)).wrapping_mul(MULTIPLY_C);
    state ^ (state >> 31)
}

fn step(state: u64, word: u64) -> u64 {
    let mixed = (state ^ word).wrapping_mul(MULTIPLY_A);
    (mixed ^ (mixed >> 32)).wrapping_mul(MULTIPLY_C)
}

/// The bits that stand for a hash, in a filter of `bits` bits.
fn positions(hash: u64, bits: u64, probes: u32) -> impl Iterator<Item = u64> {
    let stride = hash.rotate_left(32) | 1;
    let mut next = hash;
    (0..probes).map(move |_| {
        let position = scale(next, bits);
        next = next.wrapping_add(stride);
        position
    })
}

/// The upper half of the product: maps a 64-bit number evenly onto `0..bits`.
fn scale(number: u64, bits: u64) -> u64 {
    ((u128::from(number) * u128::from(bits)) >> 64) as u64
}

/// Splits a bit's position into its byte and its mask.
fn place(position: u64) -> Option<(usize, u8)> {
    Some((usize::try_from(position / 8).ok()?, 1 << (position % 8)))
}

/// Collects the hashes of the keys; costs eight bytes of memory for each.
#[derive(Debug)]
pub struct FilterBuilder {
    seed: u64,
    hashes: Vec<u64>,
}

impl FilterBuilder {
    /// An empty filter; `seed` is kept in it.
    pub fn new(seed: u64) -> FilterBuilder {
        let hashes = Vec::new();
        FilterBuilder { seed, hashes }
    }

    /// Adds a key. Adding one twice only wastes room.
    pub fn add(&mut self, key: &[u8]) {
        self.hashes.push(hash(self.seed, key));
    }

    /// The filter's bytes.
    pub fn finish(self) -> Vec<u8> {
        let room = u64::from(FILTER_LEN_MAX) - HEADER_LEN as u64;
        let wanted = (self.hashes.len() as u64).saturating_mul(BITS_PER_KEY);
        let bytes = wanted.div_ceil(8).clamp(8, room);
        let bits = bytes * 8;
        let mut out = Vec::new();
        put_u64(&mut out, self.seed);
        put_u64(&mut out, bits);
        put_u32(&mut out, PROBES);
        put_u32(&mut out, 0);
        // At most FILTER_LEN_MAX, so it fits any usize we run on.
        let len = usize::try_from(bytes).unwrap_or(0);
        out.resize(HEADER_LEN + len, 0);
        if let Some(field) = out.get_mut(HEADER_LEN..) {
            for hash in self.hashes {
                for (byte, mask) in positions(hash, bits, PROBES).filter_map(place) {
                    if let Some(byte) = field.get_mut(byte) {
                        *byte |= mask;
                    }
                }
            }
        }
        out
    }
}

/// A filter as read back.
#[derive(Debug)]
pub struct Filter {
    seed: u64,
    bits: u64,
    probes: u32,
    field: Bytes,
}

impl Filter {
    /// Takes a filter's bytes, if they are one.
    pub fn decode(bytes: &Bytes) -> Option<Filter> {
        let mut reader = Reader::new(bytes);
        let seed = reader.u64()?;
        let bits = reader.u64()?;
        let probes = reader.u32()?;
        let reserved = reader.u32()?;
        let field = bytes.slice_ref(reader.rest());
        let whole = bits > 0 && bits == (field.len() as u64).checked_mul(8)?;
        let sane = whole && reserved == 0 && (1..=PROBES_MAX).contains(&probes);
        sane.then_some(Filter {
            seed,
            bits,
            probes,
            field,
        })
    }

    /// Bytes of memory it takes.
    pub fn memory_len(&self) -> usize {
        self.field.len()
    }

    /// False only if the key was never added.
    pub fn may_contain(&self, key: &[u8]) -> bool {
        positions(hash(self.seed, key), self.bits, self.probes).all(|position| {
            // A bit outside the field cannot be, and would have to count as "look".
            place(position)
                .is_none_or(|(byte, mask)| self.field.get(byte).is_none_or(|byte| byte & mask != 0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter_of(seed: u64, keys: impl Iterator<Item = Vec<u8>>) -> Filter {
        let mut builder = FilterBuilder::new(seed);
        keys.for_each(|key| builder.add(&key));
        Filter::decode(&Bytes::from(builder.finish())).unwrap()
    }

    #[test]
    fn the_hash_is_the_one_of_the_format_document() {
        assert_eq!(hash(0, b""), 0);
        assert_eq!(hash(1, b""), 0x5692_161d_100b_05e5);
        assert_eq!(hash(0, b"tidefs"), 0xbe72_e07b_c521_53f5);
        assert_eq!(hash(7, b"twelve bytes and more"), 0x6202_4a8c_499c_a74c);
    }

    #[test]
    fn fewer_than_two_absent_keys_in_a_hundred_pass() {
        // Neighbouring numbers and a common prefix: what real keys look like.
        let key = |number: u32| [&b"account/parent/"[..], &number.to_be_bytes()].concat();
        let filter = filter_of(9, (0..10_000).map(key));
        assert!((0..10_000).all(|number| filter.may_contain(&key(number))));
        let passed = (10_000..110_000)
            .filter(|number| filter.may_contain(&key(*number)))
            .count();
        assert!(
            (400..2000).contains(&passed),
            "{passed} of 100000 absent keys passed"
        );
    }

    #[test]
    fn an_empty_filter_lets_nothing_pass() {
        assert!(!filter_of(3, std::iter::empty()).may_contain(b"key"));
    }

    proptest! {
        #[test]
        fn a_key_that_was_added_is_never_said_to_be_absent(seed: u64, keys in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..50)) {
            let filter = filter_of(seed, keys.iter().cloned());
            prop_assert!(keys.iter().all(|key| filter.may_contain(key)));
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_answer_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), key: Vec<u8>) {
            if let Some(filter) = Filter::decode(&Bytes::from(bytes)) {
                filter.may_contain(&key);
            }
        }

        #[test]
        fn a_filter_with_any_field_in_its_header_answers_without_panic(seed: u64, bits: u64, probes: u32, fits: bool, key: Vec<u8>) {
            let mut bytes = Vec::new();
            put_u64(&mut bytes, seed);
            put_u64(&mut bytes, if fits { 64 } else { bits });
            put_u32(&mut bytes, if fits { probes % 40 } else { probes });
            put_u32(&mut bytes, 0);
            bytes.resize(HEADER_LEN + 8, 0x5a);
            if let Some(filter) = Filter::decode(&Bytes::from(bytes)) {
                filter.may_contain(&key);
            }
        }
    }
}
