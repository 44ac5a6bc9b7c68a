//! Which closed epochs wait for the external volume, and which of them may go.
//!
//! The newest epoch alone is not enough to know: while data comes in as fast as it leaves, the newest epoch
//! always waits for the newest packs. So a few older ones wait with it, and the newest of them whose packs
//! are all there is sent: the recovery point moves on however long the queue is.

use std::sync::Arc;

use crate::format::record::EpochRecord;
use crate::pack::ledger::Ledger;
use crate::types::{Epoch, PackId, SessionId};

/// Which packs an epoch may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackGate {
    /// The session that is writing.
    pub session: SessionId,
    /// Its newest pack at that time, if it had one.
    pub last_pack: Option<PackId>,
}

impl PackGate {
    /// Whether the epoch may refer to `pack`. All packs of earlier sessions count.
    fn covers(&self, pack: PackId) -> bool {
        let is_ours = pack.0.first_chunk::<8>() == Some(&self.session.0);
        !is_ours || self.last_pack.is_some_and(|last| pack <= last)
    }
}

/// An epoch that is whole on the local disk. Its segments stay there for as long as anybody holds this.
#[derive(Debug)]
pub struct WaitingEpoch {
    /// Its record.
    pub record: EpochRecord,
    /// The packs it may refer to.
    pub gate: PackGate,
}

/// The epochs that are whole on the local disk.
pub trait LocalEpochs: Send + Sync {
    /// Those that may be sent next, newest first; the newest of all is always among them.
    fn waiting(&self) -> Vec<Arc<WaitingEpoch>>;

    /// The external volume has everything up to `epoch`.
    fn archived(&self, epoch: Epoch);
}

/// The newest epoch that is not archived yet, and all of whose packs are.
pub(super) fn newest_ready(epochs: &dyn LocalEpochs, ledger: &Ledger) -> Option<Arc<WaitingEpoch>> {
    let archived = ledger.archived_epoch();
    let mut waiting = epochs.waiting();
    waiting.retain(|epoch| epoch.record.epoch > archived);
    waiting
        .into_iter()
        .find(|epoch| !ledger.is_any_unsent(|pack| epoch.gate.covers(pack)))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::format::record::FORMAT;
    use crate::types::Uuid;

    const OURS: SessionId = SessionId([7; 8]);
    const BEFORE: SessionId = SessionId([9; 8]);

    #[derive(Default)]
    struct Epochs(Mutex<Vec<Arc<WaitingEpoch>>>);

    impl LocalEpochs for Epochs {
        fn waiting(&self) -> Vec<Arc<WaitingEpoch>> {
            self.0.lock().unwrap().clone()
        }

        fn archived(&self, _: Epoch) {}
    }

    fn epoch(number: u64, last_pack: Option<u64>) -> Arc<WaitingEpoch> {
        let record = EpochRecord {
            format: FORMAT,
            volume: String::new(),
            epoch: Epoch(number),
            session: OURS.to_string(),
            time: 0,
            parent: None,
            lsn: 0,
            segments: Vec::new(),
            mac: None,
        };
        let gate = PackGate {
            session: OURS,
            last_pack: last_pack.map(|count| PackId::new(OURS, count)),
        };
        Arc::new(WaitingEpoch { record, gate })
    }

    #[test]
    fn the_newest_epoch_whose_packs_are_there_goes_and_none_before_its_packs() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), Uuid([1; 16])).unwrap();
        let old = PackId::new(BEFORE, 1);
        ledger.sealed(old, 10).unwrap();
        for count in 1..=4 {
            ledger.sealed(PackId::new(OURS, count), 10).unwrap();
        }
        let epochs = Epochs::default();
        *epochs.0.lock().unwrap() = vec![epoch(8, Some(4)), epoch(7, Some(2)), epoch(6, None)];
        let ready = || newest_ready(&epochs, &ledger).map(|epoch| epoch.record.epoch.0);
        assert_eq!(ready(), None, "a pack of an earlier session is missing");
        ledger.uploaded(old, 10, 1).unwrap();
        assert_eq!(ready(), Some(6));
        // In any order: a gate opens when the last of its packs is there.
        for (count, expected) in [(2, 6), (3, 6), (1, 7), (4, 8)] {
            ledger.uploaded(PackId::new(OURS, count), 10, 1).unwrap();
            assert_eq!(ready(), Some(expected), "after pack {count}");
        }
        ledger.archived(Epoch(8), 1).unwrap();
        assert_eq!(ready(), None);
    }
}
