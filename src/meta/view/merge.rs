//! Several segments as one sorted sequence: for a view's range, and to write them as one.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::io::Write;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use super::in_epoch_order;
use crate::error::{Error, Result};
use crate::format::segment::{
    CacheUse, Cursor, Segment, SegmentScope, SegmentSummary, SegmentWriter, entry_order,
};
use crate::types::SessionId;

/// Steps through the entries of all cursors in order.
#[derive(Debug)]
pub(super) struct Merge {
    /// Cursors that have not been read from.
    unread: Vec<Cursor>,
    heads: BinaryHeap<Head>,
}

/// A cursor on an entry; the greatest in the heap is on the entry that comes first.
#[derive(Debug)]
struct Head(Cursor);

impl Ord for Head {
    fn cmp(&self, other: &Head) -> Ordering {
        let (this, that) = (&self.0, &other.0);
        entry_order((that.key(), that.epoch()), (this.key(), this.epoch()))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

impl Merge {
    pub(super) fn new(cursors: impl Iterator<Item = Cursor>) -> Merge {
        Merge {
            unread: cursors.collect(),
            heads: BinaryHeap::new(),
        }
    }

    /// Steps to the next entry; nothing at the end, and for ever after an error.
    pub(super) fn advance(&mut self) -> Result<Option<&Cursor>> {
        if let Err(error) = self.step() {
            self.unread.clear();
            self.heads.clear();
            return Err(error);
        }
        Ok(self.heads.peek().map(|head| &head.0))
    }

    fn step(&mut self) -> Result<()> {
        if let Some(mut head) = self.heads.peek_mut()
            && !head.0.advance()?
        {
            PeekMut::pop(head);
        }
        for mut cursor in self.unread.drain(..) {
            if cursor.advance()? {
                self.heads.push(Head(cursor));
            }
        }
        Ok(())
    }
}

/// Writes the entries of neighbouring segments as one segment of `session`, all versions kept.
///
/// What no kept moment needs is for thinning to drop; a merge alone loses no moment.
pub fn merge_segments<W: Write>(
    inputs: &[Arc<Segment>],
    out: W,
    path: impl AsRef<Path>,
    session: SessionId,
) -> Result<(SegmentSummary, W)> {
    let inputs = in_epoch_order(inputs.to_vec())?;
    let (Some(oldest), Some(newest)) = (inputs.first(), inputs.last()) else {
        return Err(Error::Refused("there are no segments to merge".into()));
    };
    let scope = SegmentScope {
        volume: oldest.summary().volume,
        session,
        first: oldest.summary().first,
        last: newest.summary().last,
    };
    let mut writer = SegmentWriter::new(out, path, scope)?;
    let cursors = inputs.iter();
    let cursors = cursors.map(|input| input.cursor(&[], Bound::Unbounded, CacheUse::Bypass));
    let mut merge = Merge::new(cursors);
    while let Some(cursor) = merge.advance()? {
        writer.add(cursor.key(), cursor.epoch(), cursor.value().as_deref())?;
    }
    writer.finish()
}
