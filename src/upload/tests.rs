use std::time::Duration;

use vfs::{Breaker, BreakerPolicy, Fault, FaultControls, Faulty, MemoryVolume, Op, StopSignal};

use super::*;
use crate::clock::SystemClock;
use crate::types::{Epoch, Uuid};

struct NoEpochs;

impl LocalEpochs for NoEpochs {
    fn waiting(&self) -> Vec<Arc<WaitingEpoch>> {
        Vec::new()
    }

    fn archived(&self, _: Epoch) {}
}

/// The volume is never looked for by itself, so that only who waits can find it.
#[test]
fn whoever_waits_has_a_volume_that_is_away_looked_for_now() {
    let never = Duration::from_secs(24 * 3600);
    let policy = BreakerPolicy {
        quiet_max: never,
        silence_max: never,
        probe_first: never,
        probe_max: never,
        ..BreakerPolicy::default()
    };
    let controls = FaultControls::new();
    let faulty = Faulty::new(Arc::new(MemoryVolume::new()), controls.clone());
    let breaker = Breaker::start(Arc::new(faulty), policy, StopSignal::new()).unwrap();
    let guarded = Guarded::new(Arc::new(breaker));
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::new(Ledger::open(dir.path(), Uuid([1; 16])).unwrap());
    let clock = Arc::new(SystemClock);
    let uploader = Uploader::start(dir.path(), ledger, Arc::new(NoEpochs), clock).unwrap();
    controls.go_down();
    guarded.breaker.trip("a test says so");
    uploader.set_volume(Some(guarded.clone()));
    let is_down = || matches!(uploader.state(), UploadState::Down { .. });
    while !is_down() {
        uploader.wait_for_round(Duration::from_millis(10));
    }
    // What is known of it is what that look found, and no older round.
    controls.go_up();
    controls.inject(Op::VerifyIdentity, 1, Fault::WrongVolume);
    uploader.look_now();
    let says = |state| match state {
        UploadState::Down { reason, .. } => reason,
        other => format!("{other:?}"),
    };
    while says(uploader.state()).contains("a test says so") {
        uploader.wait_for_round(Duration::from_millis(10));
    }
    assert!(guarded.breaker.circuit().is_down());
    uploader.look_now();
    while uploader.state() != UploadState::Up {
        uploader.wait_for_round(Duration::from_millis(10));
    }
}
