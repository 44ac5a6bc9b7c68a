//! A set of packs. The ids of a session count up, so that a set of a million is a few ranges.

use std::collections::BTreeMap;

use crate::types::PackId;

/// Bytes of one range on disk.
const RANGE_LEN: usize = 32;

/// First and last of each range; ranges do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PackSet {
    ranges: BTreeMap<u128, u128>,
}

impl PackSet {
    pub(super) fn contains(&self, pack: PackId) -> bool {
        self.range_of(number(pack)).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn insert(&mut self, pack: PackId) {
        let number = number(pack);
        self.insert_range(number, number);
    }

    pub(super) fn extend(&mut self, other: &PackSet) {
        for (first, last) in &other.ranges {
            self.insert_range(*first, *last);
        }
    }

    pub(super) fn remove(&mut self, pack: PackId) {
        let number = number(pack);
        let Some((first, last)) = self.range_of(number) else {
            return;
        };
        self.ranges.remove(&first);
        if first < number {
            self.ranges.insert(first, number - 1);
        }
        if number < last {
            self.ranges.insert(number + 1, last);
        }
    }

    /// Takes out what is in `other`.
    pub(super) fn subtract(&mut self, other: &PackSet) {
        for (&first, &last) in &other.ranges {
            let touching: Vec<(u128, u128)> = self
                .ranges
                .range(..=last)
                .rev()
                .take_while(|(_, end)| **end >= first)
                .map(|(a, b)| (*a, *b))
                .collect();
            for (from, to) in touching {
                self.ranges.remove(&from);
                if from < first {
                    self.ranges.insert(from, first - 1);
                }
                if to > last {
                    self.ranges.insert(last + 1, to);
                }
            }
        }
    }

    fn range_of(&self, number: u128) -> Option<(u128, u128)> {
        let (first, last) = self.ranges.range(..=number).next_back()?;
        (number <= *last).then_some((*first, *last))
    }

    fn insert_range(&mut self, mut first: u128, mut last: u128) {
        // Every range that overlaps or touches this one ends at or after the number before it.
        while let Some((&from, &to)) = self.ranges.range(..=last.saturating_add(1)).next_back() {
            if to.saturating_add(1) < first {
                break;
            }
            self.ranges.remove(&from);
            (first, last) = (first.min(from), last.max(to));
        }
        self.ranges.insert(first, last);
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            &u32::try_from(self.ranges.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        for (first, last) in &self.ranges {
            out.extend_from_slice(&first.to_be_bytes());
            out.extend_from_slice(&last.to_be_bytes());
        }
    }

    /// The set at the start of `bytes`, and what follows it.
    pub(super) fn decode(bytes: &[u8]) -> Option<(PackSet, &[u8])> {
        let (count, rest) = bytes.split_first_chunk()?;
        let len = usize::try_from(u32::from_le_bytes(*count))
            .ok()?
            .checked_mul(RANGE_LEN)?;
        let (ranges, rest) = rest.split_at_checked(len)?;
        let mut set = PackSet::default();
        for range in ranges.as_chunks::<RANGE_LEN>().0 {
            let (first, last) = (
                u128::from_be_bytes(*range.first_chunk()?),
                u128::from_be_bytes(*range.last_chunk()?),
            );
            if first > last {
                return None;
            }
            set.insert_range(first, last);
        }
        Some((set, rest))
    }
}

fn number(pack: PackId) -> u128 {
    u128::from_be_bytes(pack.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pack(n: u8) -> PackId {
        let mut id = [0; 16];
        id[15] = n;
        PackId(id)
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_set(steps in proptest::collection::vec((0u8..4, 0u8..60, 0u8..60), 0..80)) {
            let (mut set, mut model) = (PackSet::default(), BTreeSet::new());
            for (verb, first, second) in steps {
                let mut range = PackSet::default();
                (first..second).for_each(|n| range.insert(pack(n)));
                match verb {
                    0 => { set.insert(pack(first)); model.insert(first); }
                    1 => { set.remove(pack(first)); model.remove(&first); }
                    2 => { set.extend(&range); model.extend(first..second); }
                    _ => { set.subtract(&range); (first..second).for_each(|n| { model.remove(&n); }); }
                }
            }
            for n in 0..60 {
                prop_assert_eq!(set.contains(pack(n)), model.contains(&n));
            }
            let mut bytes = Vec::new();
            set.encode(&mut bytes);
            prop_assert_eq!(PackSet::decode(&bytes), Some((set.clone(), &[][..])));
            let touching = set.ranges.iter().zip(set.ranges.iter().skip(1)).any(|((_, end), (start, _))| end + 1 >= *start);
            prop_assert!(!touching);
        }

        #[test]
        fn arbitrary_bytes_do_not_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = PackSet::decode(&bytes);
        }
    }
}
