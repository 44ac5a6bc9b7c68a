//! A Bloom filter over blob hashes, which are random already: no hashing of its own.

use crate::types::BlobHash;

const BITS_PER_ENTRY: usize = 10;
/// Bits set per entry: with ten bits an entry, 0.8 % of the strangers pass.
const PROBES: u64 = 7;

/// Says of some hashes that they are not there.
#[derive(Debug)]
pub(super) struct Bloom {
    words: Vec<u64>,
}

impl Bloom {
    pub(super) fn for_entries(count: usize) -> Bloom {
        Bloom {
            words: vec![0; (count * BITS_PER_ENTRY).div_ceil(64).max(1)],
        }
    }

    /// `None` for bytes that are no filter.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Bloom> {
        let (words, rest) = bytes.as_chunks();
        let whole = rest.is_empty() && !words.is_empty();
        whole.then(|| Bloom {
            words: words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
        })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    pub(super) fn insert(&mut self, hash: &BlobHash) {
        for (word, bit) in probes(hash, self.words.len()) {
            self.words[word] |= bit;
        }
    }

    pub(super) fn may_contain(&self, hash: &BlobHash) -> bool {
        probes(hash, self.words.len()).all(|(word, bit)| self.words[word] & bit != 0)
    }
}

/// Bits by double hashing of two words of the hash that the runs' order does not use.
fn probes(hash: &BlobHash, words: usize) -> impl Iterator<Item = (usize, u64)> {
    let word = |at: usize| {
        hash.0[at..]
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let (start, stride, words) = (word(8), word(16) | 1, u64::try_from(words).unwrap_or(1));
    (0..PROBES).map(move |n| {
        let probe = start.wrapping_add(n.wrapping_mul(stride));
        (
            usize::try_from((probe >> 6) % words).unwrap_or(0),
            1 << (probe & 63),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn what_was_put_in_passes_and_few_strangers_do() {
        let hash = |n: u32| BlobHash(Sha256::digest(n.to_le_bytes()).into());
        let mut bloom = Bloom::for_entries(2000);
        (0..2000).for_each(|n| bloom.insert(&hash(n)));
        let bloom = Bloom::from_bytes(&bloom.to_bytes()).unwrap();
        assert!((0..2000).all(|n| bloom.may_contain(&hash(n))));
        let strangers = (2000..12_000)
            .filter(|n| bloom.may_contain(&hash(*n)))
            .count();
        assert!(strangers < 200, "{strangers} of 10 000");
        assert!(Bloom::from_bytes(&[]).is_none() && Bloom::from_bytes(&[0; 12]).is_none());
    }
}
