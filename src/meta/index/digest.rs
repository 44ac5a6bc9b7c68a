//! A fast 64-bit hash whose wrapping sum over all pages says whether a page was lost or replaced.
//!
//! Against accidents, not against an adversary: who can write the index's files can write its checkpoint.

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;
const P4: u64 = 0x85eb_ca77_c2b2_ae63;

/// Hash of `bytes`. Part of the checkpoint's format: the same for ever.
///
/// The round and the finish of XXH64, over one lane: each step is a bijection of the state and of the word.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    let mut state = u64::try_from(bytes.len())
        .unwrap_or(u64::MAX)
        .wrapping_add(P3);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state = round(state, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    state = round(state, u64::from_le_bytes(last));
    state = (state ^ (state >> 33)).wrapping_mul(P2);
    state = (state ^ (state >> 29)).wrapping_mul(P3);
    state ^ (state >> 32)
}

fn round(state: u64, word: u64) -> u64 {
    let word = word.wrapping_mul(P2).rotate_left(31).wrapping_mul(P1);
    (state ^ word)
        .rotate_left(27)
        .wrapping_mul(P1)
        .wrapping_add(P4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn short_neighbours_have_different_digests() {
        let mut seen = HashSet::new();
        for len in 0..64usize {
            for bit in 0..len * 8 {
                let mut bytes = vec![0; len];
                bytes[bit / 8] = 1 << (bit % 8);
                assert!(seen.insert(digest(&bytes)));
            }
            assert!(seen.insert(digest(&vec![0; len])));
        }
    }

    #[test]
    fn the_digest_of_the_format_does_not_change() {
        assert_eq!(digest(b"tidefs index page"), 2_831_648_662_875_169_808);
    }
}
