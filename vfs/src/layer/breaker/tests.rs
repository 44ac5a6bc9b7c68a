use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::layer::faulty::{Fault, FaultControls, Faulty, Op};
use crate::memory::MemoryVolume;

/// Longer than any test: only what a test does happens.
const NEVER: Duration = Duration::from_secs(3600);
const LONG: Duration = Duration::from_secs(60);

fn policy() -> BreakerPolicy {
    BreakerPolicy {
        failures_max: 3,
        quiet_max: NEVER,
        silence_max: NEVER,
        probe_first: NEVER,
        probe_max: NEVER,
        jitter_seed: 1,
    }
}

fn broken(policy: BreakerPolicy) -> (Breaker, FaultControls, ObjectKey) {
    let controls = FaultControls::new();
    let faulty = Faulty::new(Arc::new(MemoryVolume::new()), controls.clone());
    let breaker = Breaker::start(Arc::new(faulty), policy, StopSignal::new()).unwrap();
    (breaker, controls, ObjectKey::new("a").unwrap())
}

fn unreachable() -> Fault {
    Fault::Fail(ErrorClass::Unreachable)
}

#[test]
fn failures_in_a_row_open_it_and_then_nothing_is_asked() {
    let (volume, controls, key) = broken(policy());
    controls.go_down();
    assert_eq!(volume.circuit(), Circuit::Up);
    for _ in 0..2 {
        assert!(volume.head(&key).unwrap_err().is_unreachable());
        assert!(matches!(volume.circuit(), Circuit::Degraded { .. }));
    }
    assert!(volume.head(&key).unwrap_err().is_unreachable());
    assert!(volume.circuit().is_down());
    let error = volume.head(&key).unwrap_err();
    assert_eq!(
        (error.class(), error.case(), error.op(), error.key()),
        (
            ErrorClass::Unreachable,
            ErrorCase::CircuitOpen,
            "look up",
            "a"
        )
    );
    assert_eq!(controls.calls(Op::Head), 3);
}

#[test]
fn what_has_answered_is_not_away() {
    let (volume, controls, key) = broken(policy());
    for fault in [
        Fault::NoSpace,
        Fault::Fail(ErrorClass::Permanent),
        Fault::Fail(ErrorClass::NotFound),
        Fault::Io,
        Fault::Stale,
    ] {
        controls.inject(Op::Head, 10, fault);
        for _ in 0..10 {
            assert!(volume.head(&key).is_err());
        }
        assert_eq!(volume.circuit(), Circuit::Up, "{fault:?}");
    }
    // Two, an answer, two: never three in a row.
    for _ in 0..2 {
        controls.inject(Op::Head, 2, unreachable());
        controls.pass(Op::Head, 1);
        for _ in 0..3 {
            let _ = volume.head(&key);
        }
    }
    assert_eq!(volume.circuit(), Circuit::Up);
}

#[test]
fn a_look_closes_it_and_everybody_hears_of_both() {
    let (volume, controls, key) = broken(policy());
    let heard = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&heard);
    volume.on_change(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    controls.go_down();
    volume.trip("a test says so");
    assert!(volume.circuit().is_down());
    assert_eq!(heard.load(Ordering::SeqCst), 1);
    // A look that does not find it leaves it open.
    volume.poke();
    while controls.calls(Op::VerifyIdentity) == 0 {
        thread::yield_now();
    }
    assert!(volume.circuit().is_down());
    controls.go_up();
    volume.poke();
    assert!(volume.wait_until(|circuit| *circuit == Circuit::Up, LONG));
    volume.head(&key).unwrap();
    while heard.load(Ordering::SeqCst) < 2 {
        thread::yield_now();
    }
}

#[test]
fn it_is_looked_for_in_pauses_without_being_poked() {
    let quick = BreakerPolicy {
        probe_first: Duration::from_millis(1),
        probe_max: Duration::from_millis(2),
        ..policy()
    };
    let (volume, controls, key) = broken(quick);
    controls.go_down();
    volume.trip("a test says so");
    while controls.calls(Op::VerifyIdentity) < 3 {
        thread::yield_now();
    }
    controls.go_up();
    assert!(volume.wait_until(|circuit| *circuit == Circuit::Up, LONG));
    volume.head(&key).unwrap();
}

#[test]
fn a_wrong_volume_stays_one_while_it_is_not_asked() {
    let (volume, controls, key) = broken(policy());
    controls.inject(Op::Head, 3, Fault::WrongVolume);
    for _ in 0..4 {
        assert!(volume.head(&key).unwrap_err().is_wrong_volume());
    }
    assert_eq!(controls.calls(Op::Head), 3);
}

/// A look of its own must not swallow what the one who counts objects has to hear (invariant 7).
#[test]
fn invariant_7_that_it_was_mounted_anew_is_told_to_whoever_looks_next() {
    #[derive(Debug)]
    struct Remounting(MemoryVolume, Mutex<bool>);
    impl fmt::Display for Remounting {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("remounting:")
        }
    }
    impl Volume for Remounting {
        fn verify_identity(&self) -> Result<()> {
            if std::mem::take(&mut *self.1.lock().unwrap()) {
                let error = Error::new(ErrorClass::Transient, "identify", "", "", "anew");
                return Err(error.with_case(ErrorCase::Remounted));
            }
            Ok(())
        }
        fn put(&self, key: &ObjectKey, body: Body<'_>, when: Precondition) -> Result<Meta> {
            self.0.put(key, body, when)
        }
        fn get(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
            self.0.get(key, range)
        }
        fn head(&self, key: &ObjectKey) -> Result<Option<Meta>> {
            self.0.head(key)
        }
        fn list(&self, p: &str, after: Option<&ObjectKey>, limit: NonZeroUsize) -> Result<Page> {
            self.0.list(p, after, limit)
        }
        fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
            self.0.delete(keys)
        }
        fn space(&self) -> Result<Option<Space>> {
            self.0.space()
        }
        fn probe(&self) -> Result<Capabilities> {
            self.0.probe()
        }
        fn bind(&self, sentinel: Sentinel) -> Result<()> {
            self.0.bind(sentinel)
        }
        fn sweep_temporary(&self, below: &[&str], older_than: Duration) -> Result<u64> {
            self.0.sweep_temporary(below, older_than)
        }
    }
    let inner = Arc::new(Remounting(MemoryVolume::new(), Mutex::new(true)));
    let volume = Breaker::start(inner, policy(), StopSignal::new()).unwrap();
    volume.trip("a test says so");
    volume.poke();
    assert!(volume.wait_until(|circuit| *circuit == Circuit::Up, LONG));
    assert!(volume.verify_identity().unwrap_err().is_remounted());
    volume.verify_identity().unwrap();
}

#[test]
fn what_was_asked_before_says_nothing_of_the_time_after() {
    let (volume, controls, key) = broken(policy());
    controls.inject(Op::Head, 1, Fault::Hang);
    controls.inject(Op::Get, 3, unreachable());
    thread::scope(|scope| {
        let hung = scope.spawn(|| {
            volume.head(&key).unwrap();
            controls.inject(Op::Head, 1, unreachable());
        });
        assert!(controls.wait_until_hanging(1, LONG));
        for _ in 0..3 {
            assert!(volume.get(&key, 0..1).unwrap_err().is_unreachable());
        }
        assert!(volume.circuit().is_down());
        // An answer is an answer, however old the question.
        controls.release();
        hung.join().unwrap();
        assert_eq!(volume.circuit(), Circuit::Up);
    });
}

#[test]
fn a_silent_volume_is_asked_whether_it_is_there() {
    let impatient = BreakerPolicy {
        quiet_max: Duration::from_millis(1),
        ..policy()
    };
    let (volume, controls, key) = broken(impatient);
    controls.inject(Op::Put, 1, Fault::Hang);
    controls.inject(Op::Space, 3, unreachable());
    thread::scope(|scope| {
        scope.spawn(|| volume.put(&key, Body::Bytes(b"x"), Precondition::None));
        assert!(volume.wait_until(Circuit::is_down, LONG));
        controls.release();
    });
    assert!(controls.calls(Op::Space) >= 3);
}

/// Neither a call that hangs nor a question after it has to end for that.
#[test]
fn a_volume_that_is_silent_for_too_long_is_down() {
    let impatient = BreakerPolicy {
        quiet_max: Duration::from_millis(1),
        silence_max: Duration::from_millis(50),
        ..policy()
    };
    let (volume, controls, key) = broken(impatient);
    controls.inject(Op::Put, 1, Fault::Hang);
    controls.inject(Op::Space, 1, Fault::Hang);
    thread::scope(|scope| {
        scope.spawn(|| volume.put(&key, Body::Bytes(b"x"), Precondition::None));
        assert!(volume.wait_until(Circuit::is_down, LONG));
        assert!(controls.wait_until_hanging(2, LONG));
        controls.release();
    });
}

#[test]
fn a_sign_of_life_is_waited_for_only_so_long() {
    let (volume, controls, _) = broken(policy());
    assert!(volume.answers_within(LONG));
    assert_eq!(volume.silence(), None);
    controls.inject(Op::Space, 1, Fault::Hang);
    assert!(!volume.answers_within(Duration::from_millis(10)));
    assert!(volume.circuit().is_down());
    assert!(!volume.answers_within(LONG), "not asked at all");
    assert!(controls.wait_until_hanging(1, LONG));
    controls.release();
    assert!(volume.wait_until(|circuit| *circuit == Circuit::Up, LONG));
}

#[test]
fn a_stop_is_handed_on_and_ends_everything() {
    let stop = StopSignal::new();
    let volume = Breaker::start(Arc::new(MemoryVolume::new()), policy(), stop.clone()).unwrap();
    volume.stop();
    assert!(stop.is_raised());
    let error = volume.space().unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
}
