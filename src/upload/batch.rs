//! Several packs on their way at the same time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::types::PackId;

/// Packs put between two looks at the volume's identity, at most.
pub(super) const BATCH_LEN: usize = 64;
/// No pack is begun after this: what is there is to be noted, and the epochs that waited for it are to go.
const BATCH_TIME: Duration = Duration::from_secs(5);

/// Why a pack was not put.
pub(super) enum Trouble {
    /// The volume failed: so will the next one.
    Volume(Error),
    /// The local copy cannot be read: the others can.
    Local(Error),
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Packs that are there, and their lengths.
    pub sent: Vec<(PackId, u32)>,
    /// Packs that cannot be read here.
    pub unreadable: BTreeSet<PackId>,
    /// Why one of those cannot.
    pub local: Option<Error>,
    /// Why the batch ended early.
    pub failure: Option<Error>,
}

impl Outcome {
    fn note(&mut self, pack: PackId, put: Result<u32, Trouble>) {
        match put {
            Ok(len) => self.sent.push((pack, len)),
            Err(Trouble::Volume(error)) => {
                self.failure.get_or_insert(error);
            }
            Err(Trouble::Local(error)) => {
                self.unreadable.insert(pack);
                self.local.get_or_insert(error);
            }
        }
    }
}

/// Puts `packs` in their order, `in_flight` of them at a time, each with its bytes in memory.
pub(super) fn put_all(
    packs: &[PackId],
    in_flight: usize,
    is_stopped: &(dyn Fn() -> bool + Sync),
    put: &(dyn Fn(PackId) -> Result<u32, Trouble> + Sync),
) -> Outcome {
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let outcome = Mutex::new(Outcome::default());
    let lock = || outcome.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        while !is_over.load(Ordering::Relaxed) && !is_stopped() {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(pack) = packs.get(at) else { return };
            if at > 0 && started.elapsed() >= BATCH_TIME {
                return;
            }
            let put = put(*pack);
            if matches!(put, Err(Trouble::Volume(_))) {
                is_over.store(true, Ordering::Relaxed);
            }
            lock().note(*pack, put);
        }
    };
    thread::scope(|scope| {
        let count = in_flight.clamp(1, packs.len().max(1));
        let named = || thread::Builder::new().name("upload-put".into());
        let workers: Vec<_> = (0..count)
            .map(|_| named().spawn_scoped(scope, work))
            .collect();
        for worker in workers {
            let failed = match worker {
                Ok(worker) => worker.join().is_err().then(|| "an upload panicked".into()),
                Err(error) => Some(format!("no thread for an upload: {error}")),
            };
            if let Some(text) = failed {
                lock().failure.get_or_insert(Error::Poisoned(text));
            }
        }
    });
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;

    fn packs(count: u64) -> Vec<PackId> {
        (1..=count)
            .map(|n| PackId::new(SessionId([1; 8]), n))
            .collect()
    }

    #[test]
    fn as_many_are_on_their_way_as_allowed_and_all_arrive() {
        let packs = packs(40);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let put = |_| {
            let at_once = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(at_once, Ordering::SeqCst);
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(1)
        };
        let outcome = put_all(&packs, 4, &|| false, &put);
        let mut sent: Vec<_> = outcome.sent.iter().map(|(pack, _)| *pack).collect();
        sent.sort();
        assert_eq!(sent, packs);
        assert!(most.into_inner() <= 4);
    }

    #[test]
    fn one_that_cannot_be_read_stops_nobody_and_a_volume_that_fails_stops_all() {
        let packs = packs(9);
        let unreadable = packs[2];
        let put = |pack| {
            if pack == unreadable {
                Err(Trouble::Local(Error::Refused("unreadable".into())))
            } else {
                Ok(1)
            }
        };
        let outcome = put_all(&packs, 1, &|| false, &put);
        assert_eq!(outcome.sent.len(), 8);
        assert!(outcome.failure.is_none() && outcome.local.is_some());
        assert!(outcome.unreadable.contains(&unreadable));
        let put = |pack| {
            if pack == unreadable {
                Err(Trouble::Volume(Error::Refused("away".into())))
            } else {
                Ok(1)
            }
        };
        let outcome = put_all(&packs, 1, &|| false, &put);
        assert_eq!(outcome.sent.len(), 2, "what was there before counts");
        assert!(outcome.failure.is_some());
        let outcome = put_all(&packs, 2, &|| true, &put);
        assert!(outcome.sent.is_empty());
    }
}
