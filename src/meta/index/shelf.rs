//! Cuts a stream of entries in order into pages of a good length. No I/O.

use std::collections::VecDeque;

use bytes::Bytes;

use super::page::{PAGE_KEYS_LEN_MAX, PAGE_SPLIT, PAGE_TARGET, entry_cost, separator};

/// The entries of a page to be, and the lower fence, of which the first of a shelf has none of its own.
pub(super) struct Sheet {
    pub(super) lower: Option<Bytes>,
    pub(super) entries: Vec<(Bytes, Bytes)>,
}

/// Full sheets, and the entries that are not yet enough for one.
#[derive(Default)]
pub(super) struct Shelf {
    full: VecDeque<Sheet>,
    open: VecDeque<(Bytes, Bytes)>,
    /// Cost of each open entry, the plain length of its key, and the sums of both.
    costs: VecDeque<(usize, usize)>,
    len: usize,
    keys_len: usize,
    /// Lower fence of the open sheet.
    lower: Option<Bytes>,
}

impl Shelf {
    /// Takes the next entry; its key is above all before.
    pub(super) fn push(&mut self, key: Bytes, value: Bytes) {
        let before = self
            .open
            .back()
            .map(|(key, _)| key.as_ref())
            .unwrap_or_default();
        let cost = entry_cost(before, &key, &value);
        self.costs.push_back((cost, key.len()));
        self.len += cost;
        self.keys_len += key.len();
        self.open.push_back((key, value));
        while self.open.len() > 1 && (self.len > PAGE_SPLIT || self.keys_len > PAGE_KEYS_LEN_MAX) {
            self.cut();
        }
    }

    /// Length of what is not yet a full page.
    pub(super) fn open_len(&self) -> usize {
        self.len
    }

    /// A page that is ready.
    pub(super) fn pop_full(&mut self) -> Option<Sheet> {
        self.full.pop_front()
    }

    /// All pages; at least one, which may be empty.
    pub(super) fn finish(mut self) -> VecDeque<Sheet> {
        self.full.push_back(Sheet {
            lower: self.lower,
            entries: self.open.into(),
        });
        self.full
    }

    /// Closes a page of about the target length, and at least one entry, leaving at least one open.
    fn cut(&mut self) {
        let (mut count, mut len, mut keys_len) = (0, 0, 0);
        for (cost, key_len) in self.costs.iter().take(self.open.len() - 1) {
            let fits = len + cost <= PAGE_TARGET && keys_len + key_len <= PAGE_KEYS_LEN_MAX / 2;
            if count > 0 && !fits {
                break;
            }
            (count, len, keys_len) = (count + 1, len + cost, keys_len + key_len);
        }
        self.costs.drain(..count);
        self.len -= len;
        self.keys_len -= keys_len;
        let entries: Vec<(Bytes, Bytes)> = self.open.drain(..count).collect();
        let fence = match (entries.last(), self.open.front()) {
            (Some((left, _)), Some((right, _))) => Some(separator(left, right)),
            _ => None,
        };
        let lower = std::mem::replace(&mut self.lower, fence);
        self.full.push_back(Sheet { lower, entries });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheets(values: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut shelf = Shelf::default();
        for (n, len) in values.into_iter().enumerate() {
            shelf.push(format!("{n:06}").into(), vec![0; len].into());
        }
        shelf
            .finish()
            .iter()
            .map(|sheet| sheet.entries.iter().map(|(_, value)| value.len()).sum())
            .collect()
    }

    #[test]
    fn pages_are_cut_near_the_target_and_only_when_too_long() {
        assert_eq!(sheets([]), [0]);
        assert_eq!(sheets([7000]), [7000]);
        assert_eq!(sheets([100; 70]), [7000]);
        let many = sheets([100; 1000]);
        assert_eq!(many.iter().sum::<usize>(), 100_000);
        assert!(
            many[..many.len() - 1]
                .iter()
                .all(|len| (3500..=PAGE_TARGET).contains(len)),
            "{many:?}"
        );
        assert!(many[many.len() - 1] <= PAGE_SPLIT);
    }

    #[test]
    fn a_large_value_has_a_page_of_its_own() {
        assert_eq!(sheets([100, 100, 1 << 20, 100]), [200, 1 << 20, 100]);
        assert_eq!(sheets([1 << 20, 1 << 20, 100]), [1 << 20, 1 << 20, 100]);
    }

    #[test]
    fn long_keys_that_share_nearly_everything_are_still_bounded_by_their_plain_length() {
        let mut shelf = Shelf::default();
        for n in 0..1000 {
            shelf.push(format!("{}{n:06}", "k".repeat(4000)).into(), Bytes::new());
        }
        for sheet in shelf.finish() {
            let plain: usize = sheet.entries.iter().map(|(key, _)| key.len()).sum();
            assert!(plain <= PAGE_KEYS_LEN_MAX);
        }
    }
}
