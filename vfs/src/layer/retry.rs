//! Asking again after a transient error, a limited number of times, with growing and scattered pauses.
//!
//! Only [`Error::is_transient`](crate::Error::is_transient) decides. `verify_identity` and `probe` are passed through: a
//! repeated look would swallow the `Remounted` that the caller has to hear, and a probe is asked by a person.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tracing::debug;

use crate::error::Result;
use crate::identity::Sentinel;
use crate::key::ObjectKey;
use crate::layer::backoff::Backoff;
use crate::volume::{
    Body, Capabilities, Likeness, Meta, Page, Precondition, Space, Volume, VolumeExt,
};

/// How often and how patiently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; 0 counts as 1.
    pub attempts_max: u32,
    /// Pause before the second attempt; doubles with each further one.
    pub delay_first: Duration,
    /// Longest pause.
    pub delay_max: Duration,
    /// Longest pause that a volume may ask for; one that wants more is left to the queue at once.
    pub retry_after_max: Duration,
    /// Scatters the pauses, so that a server that comes back is not met by everyone at once. Fixed in tests.
    pub jitter_seed: u64,
}

impl Default for RetryPolicy {
    /// Some five seconds in all: longer outages are the queue's business, not a call's.
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts_max: 5,
            delay_first: Duration::from_millis(200),
            delay_max: Duration::from_secs(5),
            retry_after_max: Duration::from_secs(30),
            jitter_seed: u64::from(std::process::id()),
        }
    }
}

/// Ends pauses early, for all who share it: raised once, when the process is asked to stop.
#[derive(Clone, Debug, Default)]
pub struct StopSignal(Arc<(Mutex<Stop>, Condvar)>);

#[derive(Default)]
struct Stop {
    raised: bool,
    then: Vec<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.raised)
    }
}

impl StopSignal {
    /// A signal that is not raised.
    pub fn new() -> StopSignal {
        StopSignal::default()
    }

    /// Raises it, for good.
    pub fn stop(&self) {
        let (stop, changed) = &*self.0;
        let then = {
            let mut stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
            stop.raised = true;
            std::mem::take(&mut stop.then)
        };
        changed.notify_all();
        for then in then {
            then();
        }
    }

    /// Calls `then` when it is raised, from the thread that raises it; at once if it is.
    pub fn on_stop(&self, then: impl FnOnce() + Send + 'static) {
        let mut stop = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stop.raised {
            drop(stop);
            then();
        } else {
            stop.then.push(Box::new(then));
        }
    }

    /// Whether it is raised.
    pub fn is_raised(&self) -> bool {
        let stop = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        stop.raised
    }

    /// Waits for `delay` or the signal; says whether it is raised.
    pub fn wait(&self, delay: Duration) -> bool {
        let (stop, changed) = &*self.0;
        let guard = stop.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = changed
            .wait_timeout_while(guard, delay, |stop| !stop.raised)
            .unwrap_or_else(PoisonError::into_inner);
        guard.raised
    }
}

/// A volume that asks again.
#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn Volume>,
    policy: RetryPolicy,
    stop: StopSignal,
    backoff: Backoff,
}

impl Retry {
    /// Retries over `inner` until `stop` is raised.
    pub fn new(inner: Arc<dyn Volume>, policy: RetryPolicy, stop: StopSignal) -> Retry {
        Retry {
            inner,
            policy,
            stop,
            backoff: Backoff::new(policy.delay_first, policy.delay_max, policy.jitter_seed),
        }
    }

    fn repeat<T>(&self, mut attempt: impl FnMut(u32) -> Result<T>) -> Result<T> {
        let mut number = 1;
        loop {
            let error = match attempt(number) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let asked_for = error.retry_after().unwrap_or_default();
            if !error.is_transient()
                || number >= self.policy.attempts_max
                || asked_for > self.policy.retry_after_max
                || self.stop.wait(self.backoff.pause(number).max(asked_for))
            {
                return Err(error);
            }
            debug!(attempt = number, error = %error.chain(), "asking the volume again");
            number += 1;
        }
    }

    /// What is known of the object at `key`, if it is `body`.
    fn won(&self, key: &ObjectKey, body: Body<'_>) -> Result<Option<Meta>> {
        if self.holds(key, body)? == Likeness::Same {
            self.head(key)
        } else {
            Ok(None)
        }
    }
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Volume for Retry {
    /// An `IfAbsent` whose answer was lost meets its own object on the next attempt. It counts as won if the object is
    /// this very body; writers who must tell each other apart put something of their own into it.
    fn put(&self, key: &ObjectKey, body: Body<'_>, precondition: Precondition) -> Result<Meta> {
        self.repeat(|attempt| match self.inner.put(key, body, precondition) {
            Err(error) if attempt > 1 && error.is_already_exists() => {
                self.won(key, body)?.ok_or(error)
            }
            other => other,
        })
    }

    fn get(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        self.repeat(|_| self.inner.get(key, range.clone()))
    }

    fn head(&self, key: &ObjectKey) -> Result<Option<Meta>> {
        self.repeat(|_| self.inner.head(key))
    }

    fn compare(&self, key: &ObjectKey, body: Body<'_>) -> Result<Option<Likeness>> {
        self.repeat(|_| self.inner.compare(key, body))
    }

    fn list(&self, prefix: &str, after: Option<&ObjectKey>, limit: NonZeroUsize) -> Result<Page> {
        self.repeat(|_| self.inner.list(prefix, after, limit))
    }

    fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        self.repeat(|_| self.inner.delete(keys))
    }

    fn space(&self) -> Result<Option<Space>> {
        self.repeat(|_| self.inner.space())
    }

    fn probe(&self) -> Result<Capabilities> {
        self.inner.probe()
    }

    fn bind(&self, sentinel: Sentinel) -> Result<()> {
        self.repeat(|_| self.inner.bind(sentinel.clone()))
    }

    fn verify_identity(&self) -> Result<()> {
        self.inner.verify_identity()
    }

    fn sweep_temporary(&self, below: &[&str], older_than: Duration) -> Result<u64> {
        self.repeat(|_| self.inner.sweep_temporary(below, older_than))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorClass;
    use crate::layer::faulty::{Fault, FaultControls, Faulty, Op};
    use crate::memory::MemoryVolume;

    fn key() -> ObjectKey {
        ObjectKey::new("server/x").unwrap()
    }

    fn retrying(attempts_max: u32, delay: Duration) -> (Retry, FaultControls, StopSignal) {
        let controls = FaultControls::new();
        let faulty = Arc::new(Faulty::new(Arc::new(MemoryVolume::new()), controls.clone()));
        let policy = RetryPolicy {
            attempts_max,
            delay_first: delay,
            delay_max: delay,
            jitter_seed: 1,
            ..RetryPolicy::default()
        };
        let stop = StopSignal::new();
        (Retry::new(faulty, policy, stop.clone()), controls, stop)
    }

    #[test]
    fn transient_errors_are_asked_again_and_only_so_often() {
        let (volume, controls, _) = retrying(3, Duration::ZERO);
        controls.inject(Op::Put, 2, Fault::Fail(ErrorClass::Transient));
        assert!(
            volume
                .put(&key(), Body::Bytes(b"x"), Precondition::None)
                .is_ok()
        );
        assert_eq!(controls.calls(Op::Put), 3);
        controls.inject(Op::Head, 3, Fault::Stale);
        assert!(volume.head(&key()).unwrap_err().is_transient());
        assert_eq!(controls.calls(Op::Head), 3);
    }

    #[test]
    fn nothing_else_is_asked_again() {
        for class in [
            ErrorClass::Permanent,
            ErrorClass::Unreachable,
            ErrorClass::NotFound,
        ] {
            let (volume, controls, _) = retrying(3, Duration::ZERO);
            controls.inject(Op::Get, 1, Fault::Fail(class));
            assert_eq!(volume.get(&key(), 0..0).unwrap_err().class(), class);
            assert_eq!(controls.calls(Op::Get), 1);
        }
    }

    #[test]
    fn an_exclusive_put_whose_answer_was_lost_is_won() {
        let (volume, controls, _) = retrying(3, Duration::ZERO);
        controls.inject(Op::Put, 1, Fault::ApplyThenFail(ErrorClass::Transient));
        assert!(
            volume
                .put(&key(), Body::Bytes(b"ours"), Precondition::IfAbsent)
                .is_ok()
        );
        assert_eq!(controls.calls(Op::Put), 2);
    }

    #[test]
    fn an_exclusive_put_that_meets_anothers_object_is_lost() {
        let (volume, controls, _) = retrying(3, Duration::ZERO);
        volume
            .put(&key(), Body::Bytes(b"them"), Precondition::None)
            .unwrap();
        controls.inject(Op::Put, 1, Fault::Fail(ErrorClass::Transient));
        let error = volume
            .put(&key(), Body::Bytes(b"ours"), Precondition::IfAbsent)
            .unwrap_err();
        assert!(error.is_already_exists(), "{error:?}");
        assert_eq!(volume.get(&key(), 0..4).unwrap(), b"them".as_slice());
    }

    #[test]
    fn a_stop_ends_the_pause() {
        let (volume, controls, stop) = retrying(2, Duration::from_secs(3600));
        controls.inject(Op::Space, 1, Fault::Io);
        stop.stop();
        assert!(volume.space().unwrap_err().is_transient());
        assert_eq!(controls.calls(Op::Space), 1);
    }

    #[test]
    fn a_look_at_the_identity_is_never_repeated() {
        let (volume, controls, _) = retrying(3, Duration::ZERO);
        controls.inject(Op::VerifyIdentity, 1, Fault::Fail(ErrorClass::Transient));
        assert!(volume.verify_identity().is_err());
        assert_eq!(controls.calls(Op::VerifyIdentity), 1);
    }
}
