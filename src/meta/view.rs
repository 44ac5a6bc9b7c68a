//! A read-only moment of the volume's metadata: the live segments of an epoch record, seen as of an epoch.
//!
//! Which segments are live is the epoch record's word, and what a key means is the tree's; neither
//! enters. Segments of one record have disjoint epoch ranges, because merges only join neighbours: so
//! the newest segment that knows a key decides, and no (key, epoch) is there twice.

mod merge;
#[cfg(test)]
mod tests;

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::format::segment::{CacheUse, Entry, Found, Segment};
use crate::types::Epoch;

use merge::Merge;
pub use merge::merge_segments;

/// The metadata as of one epoch.
#[derive(Clone, Debug)]
pub struct View {
    at: Epoch,
    /// Oldest first.
    segments: Vec<Arc<Segment>>,
}

impl View {
    /// The view of `segments`, in whatever order, as of `at`. Refused if their epochs overlap.
    pub fn new(at: Epoch, segments: Vec<Arc<Segment>>) -> Result<View> {
        let segments = in_epoch_order(segments)?;
        Ok(View { at, segments })
    }

    /// The moment it shows.
    pub fn at(&self) -> Epoch {
        self.at
    }

    /// The same segments as of another moment.
    pub fn as_of(&self, at: Epoch) -> View {
        let segments = self.segments.clone();
        View { at, segments }
    }

    /// Its segments, oldest first.
    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// The value of `key` at this moment.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.newest(key)?.and_then(|found| found.value))
    }

    /// The newest entry of `key` at this moment, also where it is a tombstone.
    pub fn newest(&self, key: &[u8]) -> Result<Option<Found>> {
        for segment in self.segments.iter().rev() {
            if let Some(found) = segment.get(key, self.at)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Keys and values from `from` to `to` at this moment, in order. Ends after an error.
    pub fn range(&self, from: &[u8], to: Bound<&[u8]>) -> ViewRange {
        let visible = self
            .segments
            .iter()
            .filter(|segment| segment.summary().first <= self.at);
        let cursors = visible.map(|segment| segment.cursor(from, to, CacheUse::Fill));
        ViewRange {
            at: self.at,
            merge: Merge::new(cursors),
            decided: None,
        }
    }
}

impl View {
    /// Every version of the keys from `from` to `to` up to this moment: the keys in order, and of each the newest
    /// first. Ends after an error.
    pub fn versions(&self, from: &[u8], to: Bound<&[u8]>, cache_use: CacheUse) -> ViewVersions {
        let visible = self
            .segments
            .iter()
            .filter(|segment| segment.summary().first <= self.at);
        let cursors = visible.map(|segment| segment.cursor(from, to, cache_use));
        ViewVersions {
            at: self.at,
            merge: Merge::new(cursors),
        }
    }

    /// Every version of one key up to this moment, the newest first.
    pub fn versions_of(&self, key: &[u8]) -> Result<Vec<Entry>> {
        let mut known = Vec::new();
        for segment in &self.segments {
            // Its filter spares most segments the look.
            if segment.get(key, self.at)?.is_some() {
                known.push(segment.cursor(key, Bound::Included(key), CacheUse::Fill));
            }
        }
        let versions = ViewVersions {
            at: self.at,
            merge: Merge::new(known.into_iter()),
        };
        versions.collect()
    }
}

/// Sorts segments from the oldest to the newest; they must be of one volume and share no epoch.
fn in_epoch_order(mut segments: Vec<Arc<Segment>>) -> Result<Vec<Arc<Segment>>> {
    segments.sort_by_key(|segment| segment.summary().first);
    for pair in segments.windows(2) {
        let [older, newer] = pair else { continue };
        let (before, after) = (older.summary(), newer.summary());
        if before.last >= after.first || before.volume != after.volume {
            return Err(Error::Refused(format!(
                "the segments {} and {} share epochs or are of two volumes: they are not of one epoch record",
                older.source_name(),
                newer.source_name()
            )));
        }
    }
    Ok(segments)
}

/// Keys and values of a view's range; made by [`View::range`].
#[derive(Debug)]
pub struct ViewRange {
    at: Epoch,
    merge: Merge,
    /// The key whose state at this moment is known; its older versions are passed over.
    decided: Option<Vec<u8>>,
}

impl ViewRange {
    fn step(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        while let Some(cursor) = self.merge.advance()? {
            let is_older = self.decided.as_deref() == Some(cursor.key());
            if cursor.epoch() > self.at || is_older {
                continue;
            }
            let decided = self.decided.get_or_insert_default();
            decided.clear();
            decided.extend_from_slice(cursor.key());
            if let Some(value) = cursor.value() {
                return Ok(Some((Bytes::copy_from_slice(decided), value)));
            }
        }
        Ok(None)
    }
}

impl Iterator for ViewRange {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// All versions of a view's range; made by [`View::versions`].
#[derive(Debug)]
pub struct ViewVersions {
    at: Epoch,
    merge: Merge,
}

impl ViewVersions {
    fn step(&mut self) -> Result<Option<Entry>> {
        while let Some(cursor) = self.merge.advance()? {
            if cursor.epoch() <= self.at {
                return Ok(Some(cursor.entry()));
            }
        }
        Ok(None)
    }
}

impl Iterator for ViewVersions {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
