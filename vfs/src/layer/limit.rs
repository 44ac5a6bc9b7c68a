//! Holding back: so many bytes put, bytes got and operations in a second, changeable while the volume is used.
//!
//! An operation waits *before* it is made until what was done before it is paid for, and is then made at the speed of the
//! line: a call that has begun is never slowed down. Kinds and layers below measure it against their deadlines, and a
//! pause in the middle of it would look to them like a server that hangs. So a rate holds over a few objects, and not
//! within one. The wait ends at once when a limit is lifted, within a second when the timetable lifts it, and with an
//! error when the volume is closed.
//!
//! Small objects go before large ones, as long as they come one behind the other: the metadata that makes a backup of what
//! was sent is not to wait for the turn of a pack before each of its objects.
//!
//! Put it outermost: above deadlines, which must not count the wait, and above retries, which cost as much as anything.

use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use crate::error::{At, ErrorClass, Result};
use crate::identity::Sentinel;
use crate::key::ObjectKey;
use crate::layer::timetable::{LimitPlan, Limits};
use crate::volume::{Body, Capabilities, Likeness, Meta, Page, Precondition, Space, Volume};

/// The timetable is looked at again after this, by those who wait.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// What was not used is kept for this part of a second.
const BURST_PARTS: u64 = 4;
/// Up to this an object is small: one of metadata.
const SMALL_LEN: u64 = 1 << 20;
/// So long after a small object the next one is expected.
const SMALL_GAP: Duration = Duration::from_millis(100);
/// A large object has waited for small ones long enough.
const YIELD_MAX: Duration = Duration::from_secs(10);
/// Objects that one request of a store deletes.
const DELETE_LEN: usize = 1000;

/// The limits of a volume, shared by everything that uses it; copies are the same limits.
#[derive(Clone, Debug, Default)]
pub struct LimitHandle(Arc<Gate>);

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    plan: LimitPlan,
    upload: Bucket,
    download: Bucket,
    requests: Bucket,
    waiting: usize,
    small_waiting: usize,
    /// When a small object last had its turn.
    small_turn: Option<Instant>,
    stopped: bool,
}

/// What an operation costs.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    upload: u64,
    download: u64,
    requests: u64,
}

impl Cost {
    fn is_small(self) -> bool {
        (1..=SMALL_LEN).contains(&self.upload)
    }
}

impl LimitHandle {
    /// These limits.
    pub fn new(plan: LimitPlan) -> LimitHandle {
        let handle = LimitHandle::default();
        handle.set(plan);
        handle
    }

    /// Other limits from now on, also for those who wait.
    pub fn set(&self, plan: LimitPlan) {
        self.state().plan = plan;
        self.0.changed.notify_all();
    }

    /// What is set.
    pub fn plan(&self) -> LimitPlan {
        self.state().plan.clone()
    }

    /// What holds now.
    pub fn in_force(&self) -> Limits {
        self.state().plan.in_force(SystemTime::now())
    }

    /// How many operations wait now.
    pub fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// Nobody waits any more, for good: whoever does or would gets an error. For the end of the volume's use.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.0.changed.notify_all();
    }

    fn give_back_download(&self, unused: u64) {
        if unused > 0 {
            self.state().download.give_back(unused);
            self.0.changed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Numbers that a panic cannot leave half changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `cost` may be spent, and spends it. `Err` when it is not to be waited for any more.
    fn spend(&self, cost: Cost) -> std::result::Result<(), ()> {
        let came = Instant::now();
        let mut state = self.state();
        state.waiting += 1;
        state.small_waiting += usize::from(cost.is_small());
        let outcome = loop {
            if state.stopped {
                break Err(());
            }
            let (limits, now) = (state.plan.in_force(SystemTime::now()), Instant::now());
            let yields = limits.upload.is_some() && state.yields(cost, now - came, now);
            let wait = state.wait(limits, cost, now);
            match wait.or(yields.then_some(SMALL_GAP)) {
                None => {
                    state.spend(cost);
                    break Ok(());
                }
                Some(wait) => {
                    let waited = self.0.changed.wait_timeout(state, wait.min(LOOK_AGAIN));
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        };
        state.waiting -= 1;
        if cost.is_small() {
            state.small_waiting -= 1;
            state.small_turn = Some(Instant::now());
        }
        outcome
    }
}

impl State {
    /// How long until `cost` may be spent; `None`: now.
    fn wait(&mut self, limits: Limits, cost: Cost, now: Instant) -> Option<Duration> {
        [
            self.upload.wait(limits.upload, cost.upload, now),
            self.download.wait(limits.download, cost.download, now),
            self.requests.wait(limits.requests, cost.requests, now),
        ]
        .into_iter()
        .max()
        .flatten()
    }

    /// Whether a large object lets a small one go first.
    fn yields(&self, cost: Cost, waited: Duration, now: Instant) -> bool {
        let is_expected = || {
            let turn = self.small_turn;
            turn.is_some_and(|turn| now.saturating_duration_since(turn) < SMALL_GAP)
        };
        cost.upload > SMALL_LEN && waited < YIELD_MAX && (self.small_waiting > 0 || is_expected())
    }

    fn spend(&mut self, cost: Cost) {
        self.upload.spend(cost.upload);
        self.download.spend(cost.download);
        self.requests.spend(cost.requests);
    }
}

/// A token bucket that lends: whoever comes while there is something in it takes all he needs, and those behind him wait
/// until that is paid back. So an object larger than the bucket needs no cutting, and the mean is kept exactly.
#[derive(Debug, Default)]
struct Bucket {
    /// None while there is no limit.
    level: Option<Level>,
}

#[derive(Debug)]
struct Level {
    /// Below zero: owed.
    tokens: i128,
    /// Up to when it was filled.
    filled: Instant,
}

impl Bucket {
    fn wait(&mut self, rate: Option<NonZeroU64>, cost: u64, now: Instant) -> Option<Duration> {
        let Some(rate) = rate else {
            self.level = None;
            return None;
        };
        let burst = i128::from((rate.get() / BURST_PARTS).max(1));
        let level = self.level.get_or_insert(Level {
            tokens: burst,
            filled: now,
        });
        level.fill(rate, burst, now);
        if cost == 0 || level.tokens > 0 {
            return None;
        }
        let missing = u128::try_from(1 - level.tokens).unwrap_or(1);
        let nanos = (missing * NANOS).div_ceil(u128::from(rate.get()));
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    fn spend(&mut self, cost: u64) {
        if let Some(level) = &mut self.level {
            level.tokens -= i128::from(cost);
        }
    }

    /// May leave more than the bucket holds, if it was filled meanwhile: the next filling cuts that off.
    fn give_back(&mut self, unused: u64) {
        if let Some(level) = &mut self.level {
            level.tokens += i128::from(unused);
        }
    }
}

const NANOS: u128 = 1_000_000_000;

impl Level {
    fn fill(&mut self, rate: NonZeroU64, burst: i128, now: Instant) {
        let rate = u128::from(rate.get());
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        let gained = elapsed * rate / NANOS;
        let filled = i128::try_from(gained).map_or(burst, |gained| self.tokens + gained);
        self.tokens = filled.min(burst);
        // Only as far as whole tokens came of it: a slow rate that is asked often must not lose the rest.
        let used = u64::try_from(gained * NANOS / rate).unwrap_or(u64::MAX);
        self.filled += Duration::from_nanos(used);
    }
}

/// A volume that holds back.
#[derive(Debug)]
pub struct Limited {
    inner: Arc<dyn Volume>,
    limits: LimitHandle,
}

impl Limited {
    /// `inner`, held back by `limits`.
    pub fn new(inner: Arc<dyn Volume>, limits: LimitHandle) -> Limited {
        Limited { inner, limits }
    }

    /// Pays for one request that moves this many bytes.
    fn pay(&self, op: &'static str, key: &str, cost: Cost) -> Result<()> {
        self.limits.spend(cost).map_err(|()| {
            let volume = self.inner.to_string();
            let at = At {
                volume: &volume,
                op,
                key,
            };
            at.error(
                ErrorClass::Transient,
                "it waited for its turn within the limits when the volume was closed; it is done the next time",
            )
        })
    }

    fn pay_request(&self, op: &'static str, key: &str) -> Result<()> {
        self.pay(
            op,
            key,
            Cost {
                requests: 1,
                ..Cost::default()
            },
        )
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Volume for Limited {
    fn put(&self, key: &ObjectKey, body: Body<'_>, precondition: Precondition) -> Result<Meta> {
        let cost = Cost {
            upload: body.len(),
            requests: 1,
            ..Cost::default()
        };
        self.pay("put", key.as_str(), cost)?;
        self.inner.put(key, body, precondition)
    }

    fn get(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        let cost = Cost {
            download: range.end.saturating_sub(range.start),
            requests: 1,
            ..Cost::default()
        };
        self.pay("get", key.as_str(), cost)?;
        let outcome = self.inner.get(key, range);
        // What was asked for beyond the end of an object never came, and nobody is to wait for it.
        let got = outcome.as_ref().map_or(0, |bytes| bytes.len() as u64);
        self.limits
            .give_back_download(cost.download.saturating_sub(got));
        outcome
    }

    fn head(&self, key: &ObjectKey) -> Result<Option<Meta>> {
        self.pay_request("look up", key.as_str())?;
        self.inner.head(key)
    }

    /// Only a sum comes over the line: what has to be read is read by gets, which are paid for.
    fn compare(&self, key: &ObjectKey, body: Body<'_>) -> Result<Option<Likeness>> {
        self.pay_request("compare", key.as_str())?;
        self.inner.compare(key, body)
    }

    fn list(&self, prefix: &str, after: Option<&ObjectKey>, limit: NonZeroUsize) -> Result<Page> {
        self.pay_request("list", prefix)?;
        self.inner.list(prefix, after, limit)
    }

    fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        let cost = Cost {
            requests: keys.len().div_ceil(DELETE_LEN) as u64,
            ..Cost::default()
        };
        self.pay("delete", "", cost)?;
        self.inner.delete(keys)
    }

    fn space(&self) -> Result<Option<Space>> {
        self.pay_request("measure", "")?;
        self.inner.space()
    }

    fn probe(&self) -> Result<Capabilities> {
        self.pay_request("probe", "")?;
        self.inner.probe()
    }

    fn bind(&self, sentinel: Sentinel) -> Result<()> {
        self.pay_request("bind", "")?;
        self.inner.bind(sentinel)
    }

    fn verify_identity(&self) -> Result<()> {
        self.pay_request("identify", "")?;
        self.inner.verify_identity()
    }

    fn sweep_temporary(&self, below: &[&str], older_than: Duration) -> Result<u64> {
        self.pay_request("sweep", "")?;
        self.inner.sweep_temporary(below, older_than)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::timetable::Timetable;
    use crate::memory::MemoryVolume;

    fn rate(rate: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(rate)
    }

    fn plan(upload: u64, download: u64, requests: u64) -> LimitPlan {
        LimitPlan {
            base: Limits {
                upload: rate(upload),
                download: rate(download),
                requests: rate(requests),
            },
            timetable: Timetable::default(),
        }
    }

    fn limited(plan: LimitPlan) -> (Limited, LimitHandle, ObjectKey) {
        let limits = LimitHandle::new(plan);
        let volume = Limited::new(Arc::new(MemoryVolume::new()), limits.clone());
        (volume, limits, ObjectKey::new("k").unwrap())
    }

    fn put(volume: &Limited, key: &ObjectKey, len: usize) -> Result<Meta> {
        volume.put(key, Body::Bytes(&vec![7; len]), Precondition::None)
    }

    /// Spends `cost` again and again on a clock of its own; says how long the last one waited for its turn.
    fn run(bucket: &mut Bucket, rate: Option<NonZeroU64>, cost: u64, times: u32) -> Duration {
        let start = Instant::now();
        let mut now = start;
        for _ in 0..times {
            while let Some(wait) = bucket.wait(rate, cost, now) {
                assert!(wait > Duration::ZERO);
                now += wait;
            }
            bucket.spend(cost);
        }
        now - start
    }

    #[test]
    fn the_mean_is_kept_whatever_the_size_of_what_is_taken() {
        for cost in [1, 10, 999, 5000, 100_000] {
            let times = u32::try_from(200_000 / cost).unwrap() + 1;
            let took = run(&mut Bucket::default(), rate(1000), cost, times);
            // The last one is lent; the first quarter of a second was saved up.
            let owed = (u128::from(times) - 1) * u128::from(cost);
            let expected = Duration::from_millis(u64::try_from(owed).unwrap() - 250);
            let off = took.abs_diff(expected);
            assert!(
                off <= Duration::from_millis(2),
                "{cost}: {took:?} for {expected:?}"
            );
        }
    }

    #[test]
    fn a_slow_rate_that_is_asked_often_loses_nothing() {
        let mut bucket = Bucket::default();
        let start = Instant::now();
        assert_eq!(bucket.wait(rate(1), 1, start), None);
        bucket.spend(1);
        for millis in (0..1000).step_by(7) {
            let now = start + Duration::from_millis(millis);
            assert!(bucket.wait(rate(1), 1, now).is_some(), "{millis}");
        }
        assert_eq!(
            bucket.wait(rate(1), 1, start + Duration::from_secs(1)),
            None
        );
    }

    #[test]
    fn a_long_idle_time_saves_up_a_quarter_of_a_second_and_no_more() {
        let mut bucket = Bucket::default();
        let start = Instant::now();
        assert_eq!(bucket.wait(rate(1000), 1, start), None);
        let later = start + Duration::from_secs(86_400 * 365);
        assert_eq!(bucket.wait(rate(1000), 1, later), None);
        bucket.spend(250);
        assert!(bucket.wait(rate(1000), 1, later).is_some());
    }

    #[test]
    fn a_lifted_limit_forgives_what_is_owed_and_another_keeps_it() {
        let mut bucket = Bucket::default();
        let now = Instant::now();
        bucket.wait(rate(10), 1, now);
        bucket.spend(1000);
        let slow = bucket.wait(rate(10), 1, now).unwrap();
        let fast = bucket.wait(rate(10_000), 1, now).unwrap();
        assert!(fast < slow / 500, "{fast:?} {slow:?}");
        assert_eq!(bucket.wait(None, 1, now), None);
        assert_eq!(bucket.wait(rate(10), 1, now), None);
    }

    #[test]
    fn without_limits_nothing_waits() {
        let (volume, limits, key) = limited(LimitPlan::default());
        put(&volume, &key, 1 << 20).unwrap();
        assert_eq!(volume.get(&key, 0..1 << 20).unwrap().len(), 1 << 20);
        assert_eq!(
            (limits.waiting(), limits.in_force()),
            (0, Limits::default())
        );
    }

    #[test]
    fn bytes_put_and_bytes_got_are_counted_apart_and_a_second_put_waits_for_the_first() {
        let (volume, _, key) = limited(plan(200_000, 0, 0));
        let started = Instant::now();
        put(&volume, &key, 100_000).unwrap();
        for _ in 0..100 {
            volume.get(&key, 0..100_000).unwrap();
        }
        put(&volume, &key, 1).unwrap();
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(240), "{took:?}");
    }

    #[test]
    fn a_small_object_goes_before_a_large_one_that_came_earlier() {
        const LARGE: usize = 2 << 20;
        let (volume, limits, key) = limited(plan(1 << 20, 0, 0));
        // Two seconds are owed.
        put(&volume, &key, LARGE).unwrap();
        let order = Mutex::new(Vec::new());
        let come = |waiting: usize, len: usize| {
            while limits.waiting() < waiting {
                std::thread::yield_now();
            }
            put(&volume, &key, len).unwrap();
            order.lock().unwrap().push(len);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| come(0, LARGE));
            scope.spawn(|| come(1, 10));
            scope.spawn(|| come(2, 20));
        });
        assert_eq!(order.into_inner().unwrap().pop(), Some(LARGE));
    }

    #[test]
    fn what_did_not_come_is_not_paid_for() {
        let (volume, _, key) = limited(plan(0, 1, 0));
        for _ in 0..3 {
            assert!(volume.get(&key, 0..u64::MAX).is_err());
        }
    }

    #[test]
    fn requests_are_counted_whatever_they_ask() {
        let (volume, _, key) = limited(plan(0, 0, 50));
        let started = Instant::now();
        for _ in 0..16 {
            volume.head(&key).unwrap();
            volume.verify_identity().unwrap();
        }
        // A quarter of a second's worth is there at first, and the last is lent.
        assert!(started.elapsed() >= Duration::from_millis((32 - 12 - 1) * 20 - 20));
    }

    /// Lets one put wait for hours, does `work`, and says what became of it.
    fn a_put_that_waits(work: impl FnOnce(&LimitHandle)) -> Result<Meta> {
        let (volume, limits, key) = limited(plan(1, 0, 0));
        put(&volume, &key, 100_000).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| put(&volume, &key, 1));
            while limits.waiting() == 0 {
                std::thread::yield_now();
            }
            work(&limits);
            waits.join().unwrap()
        })
    }

    #[test]
    fn whoever_waits_goes_on_when_the_limit_is_lifted() {
        a_put_that_waits(|limits| limits.set(LimitPlan::default())).unwrap();
        a_put_that_waits(|limits| {
            limits.set(LimitPlan {
                timetable: Timetable::parse("daily unlimited").unwrap(),
                ..plan(1, 0, 0)
            });
        })
        .unwrap();
    }

    #[test]
    fn whoever_waits_is_told_when_the_volume_is_closed() {
        let error = a_put_that_waits(LimitHandle::stop).unwrap_err();
        assert!(
            error.is_transient() && error.to_string().contains("closed"),
            "{error}"
        );
    }
}
