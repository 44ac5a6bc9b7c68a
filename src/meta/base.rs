//! The two bases an overlay can stand on: the index, and a view of the segments.

use std::ops::Bound;

use bytes::Bytes;

use crate::error::Result;
use crate::meta::overlay::{Base, Entries};
use crate::meta::view::View;

impl Base for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        View::get(self, key)
    }

    fn range(&self, from: &[u8], to: &[u8], count_max: usize) -> Result<Vec<(Bytes, Bytes)>> {
        View::range(self, from, Bound::Excluded(to))
            .take(count_max)
            .collect()
    }
}

impl Entries for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        View::get(self, key)
    }

    fn range(&self, from: &[u8], to: &[u8], count_max: usize) -> Result<Vec<(Bytes, Bytes)>> {
        View::range(self, from, Bound::Excluded(to))
            .take(count_max)
            .collect()
    }
}
