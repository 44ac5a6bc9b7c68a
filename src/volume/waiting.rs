//! Closed epochs that wait for the external volume, and the segments that stay here for them.
//!
//! A segment that was merged into a larger one is removed only when no epoch that may still be sent names
//! it. The number of epochs is bounded, whatever the length of an outage: the oldest stays, because its
//! packs are there first; the newest stays; those between grow sparser.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::format::record::SegmentEntry;
use crate::types::Epoch;
use crate::upload::WaitingEpoch;

/// Epochs kept beside the newest. Each may keep merged segments from being removed; eight halve the wait
/// for the next one that can go at each step.
const EPOCHS_MAX: usize = 8;

/// The epochs.
#[derive(Debug, Default)]
pub struct Waiting {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    is_kept: bool,
    archived: Epoch,
    /// Oldest first.
    epochs: Vec<Arc<WaitingEpoch>>,
    /// What the uploader may be sending.
    lent: Vec<Weak<WaitingEpoch>>,
    /// Merged segments that somebody may need.
    held: Vec<SegmentEntry>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is an external volume, which has everything up to `archived`; or there is none, and nothing
    /// waits for it.
    pub fn set_target(&self, archived: Option<Epoch>) {
        let mut inner = self.lock();
        inner.is_kept = archived.is_some();
        inner.archived = archived.unwrap_or_default();
        if !inner.is_kept {
            inner.epochs.clear();
        }
    }

    /// An epoch that is not the newest any more.
    pub(super) fn push(&self, epoch: WaitingEpoch) {
        let mut inner = self.lock();
        if inner.is_kept && epoch.record.epoch > inner.archived {
            inner.epochs.push(Arc::new(epoch));
            if inner.epochs.len() > EPOCHS_MAX {
                thin(&mut inner.epochs);
            }
        }
    }

    /// Those that wait, newest first, behind the newest of all. Their segments stay for as long as the
    /// answer is held.
    pub(super) fn lend(&self, newest: Option<WaitingEpoch>) -> Vec<Arc<WaitingEpoch>> {
        let mut inner = self.lock();
        let newest = newest.map(Arc::new);
        let lent: Vec<_> = newest
            .into_iter()
            .chain(inner.epochs.iter().rev().cloned())
            .collect();
        inner.lent.retain(|lent| lent.strong_count() > 0);
        inner.lent.extend(lent.iter().map(Arc::downgrade));
        lent
    }

    /// The external volume has everything up to `epoch`. Returns the segments that may go.
    pub(super) fn archived(&self, epoch: Epoch) -> Vec<SegmentEntry> {
        let mut inner = self.lock();
        inner.archived = inner.archived.max(epoch);
        inner.epochs.retain(|waiting| waiting.record.epoch > epoch);
        inner.release()
    }

    /// The newest record does not need `replaced` any more. Returns the segments that may go.
    pub(super) fn let_go(&self, replaced: Vec<SegmentEntry>) -> Vec<SegmentEntry> {
        let mut inner = self.lock();
        inner.held.extend(replaced);
        inner.release()
    }

    /// Whether a segment of this name is kept for somebody.
    pub(super) fn needs(&self, name: &str) -> bool {
        let inner = self.lock();
        inner.needed().contains(name) || inner.held.iter().any(|held| held.name == name)
    }
}

impl Inner {
    fn needed(&self) -> HashSet<String> {
        let lent = self.lent.iter().filter_map(Weak::upgrade);
        let all = self.epochs.iter().cloned().chain(lent);
        all.flat_map(|epoch| {
            let names = epoch.record.segments.iter().map(|entry| entry.name.clone());
            names.collect::<Vec<_>>()
        })
        .collect()
    }

    fn release(&mut self) -> Vec<SegmentEntry> {
        if self.held.is_empty() {
            return Vec::new();
        }
        let needed = self.needed();
        let held = std::mem::take(&mut self.held);
        let (stay, go) = held
            .into_iter()
            .partition(|entry| needed.contains(&entry.name));
        self.held = stay;
        go
    }
}

/// Every second one goes, except for the oldest and the newest.
fn thin<T>(epochs: &mut Vec<T>) {
    let last = epochs.len().saturating_sub(1);
    let mut at = 0;
    epochs.retain(|_| {
        at += 1;
        (at - 1) % 2 == 0 || at - 1 == last
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::{EpochRecord, FORMAT};
    use crate::types::SessionId;
    use crate::upload::PackGate;

    fn segment(name: &str) -> SegmentEntry {
        SegmentEntry {
            name: name.into(),
            len: 1,
            entries: 1,
            sha256: String::new(),
        }
    }

    fn epoch(number: u64, segments: &[&str]) -> WaitingEpoch {
        let session = SessionId([7; 8]);
        WaitingEpoch {
            record: EpochRecord {
                format: FORMAT,
                volume: String::new(),
                epoch: Epoch(number),
                session: session.to_string(),
                time: 0,
                parent: None,
                lsn: 0,
                segments: segments.iter().map(|name| segment(name)).collect(),
                mac: None,
            },
            gate: PackGate {
                session,
                last_pack: None,
            },
        }
    }

    fn names(entries: &[SegmentEntry]) -> Vec<&str> {
        entries.iter().map(|entry| &*entry.name).collect()
    }

    #[test]
    fn the_oldest_epoch_stays_through_an_outage_of_any_length() {
        let waiting = Waiting::default();
        waiting.set_target(Some(Epoch(3)));
        for number in 1..1000 {
            waiting.push(epoch(number, &[]));
        }
        let kept: Vec<u64> = waiting
            .lend(None)
            .iter()
            .map(|epoch| epoch.record.epoch.0)
            .collect();
        assert!(kept.len() <= EPOCHS_MAX, "{kept:?}");
        assert_eq!((kept[0], kept[kept.len() - 1]), (999, 4));
        waiting.archived(Epoch(4));
        let oldest = waiting.lend(None).last().unwrap().record.epoch;
        assert!(oldest > Epoch(4));
    }

    #[test]
    fn a_merged_segment_goes_when_no_epoch_that_may_be_sent_names_it() {
        let waiting = Waiting::default();
        waiting.set_target(Some(Epoch(0)));
        waiting.push(epoch(1, &["a"]));
        waiting.push(epoch(2, &["a", "b"]));
        assert!(waiting.let_go(vec![segment("a"), segment("b")]).is_empty());
        assert!(waiting.needs("a") && !waiting.needs("c"));
        let sending = waiting.lend(Some(epoch(3, &["ab"])));
        assert!(waiting.archived(Epoch(1)).is_empty());
        // Somebody is still sending both.
        assert!(waiting.archived(Epoch(2)).is_empty());
        drop(sending);
        assert_eq!(names(&waiting.archived(Epoch(3))), ["a", "b"]);
        waiting.set_target(None);
        waiting.push(epoch(4, &["c"]));
        assert_eq!(names(&waiting.let_go(vec![segment("c")])), ["c"]);
    }
}
