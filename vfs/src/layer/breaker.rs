//! A circuit breaker: a volume that does not answer is not asked, until it is found again.
//!
//! Failures in a row, or one call without an answer until its deadline, open the circuit: then every call fails at once,
//! and one thread looks for the volume in growing pauses. Whoever waits for minutes for a system that hangs keeps
//! everybody behind him waiting; whoever asks a server that just came back a thousand times takes it down again.
//!
//! Only "unreachable" counts. A volume that is full, forbids, or does not have what was asked for has answered.
//!
//! Locks: `state`, never while the volume is asked; `listeners` is a leaf.

mod policy;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use crate::error::{At, Error, ErrorCase, ErrorClass, Result};
use crate::identity::Sentinel;
use crate::key::ObjectKey;
use crate::layer::backoff::Backoff;
use crate::layer::retry::StopSignal;
use crate::volume::{Body, Capabilities, Likeness, Meta, Page, Precondition, Space, Volume};

pub use policy::BreakerPolicy;

/// Whether the volume is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Circuit {
    /// It answers, as far as is known.
    Up,
    /// It was unreachable lately, and is still asked.
    Degraded {
        /// Since the first such answer.
        since: SystemTime,
        /// The last one.
        reason: String,
    },
    /// It is not asked.
    Down {
        /// Since it gave no sign of life.
        since: SystemTime,
        /// What the last look for it found.
        reason: String,
    },
}

impl Circuit {
    /// Whether it is open: nothing is asked.
    pub fn is_down(&self) -> bool {
        matches!(self, Circuit::Down { .. })
    }
}

type Listener = Arc<dyn Fn() + Send + Sync>;

/// Operations at the same time that every kind of volume makes.
const AT_ONCE: usize = 5;

/// A volume with whatever layers it has, and the breaker among them.
#[derive(Clone, Debug)]
pub struct Guarded {
    /// The outermost layer.
    pub volume: Arc<dyn Volume>,
    /// Says whether it answers, and lets go of those who wait for it.
    pub breaker: Arc<Breaker>,
    /// How many operations it makes at the same time; more wait for their turn.
    pub at_once: usize,
}

impl Guarded {
    /// With the breaker as the outermost layer. Of what it makes at the same time nothing is known: few.
    pub fn new(breaker: Arc<Breaker>) -> Guarded {
        Guarded {
            volume: Arc::clone(&breaker) as Arc<dyn Volume>,
            breaker,
            at_once: AT_ONCE,
        }
    }
}

/// A volume that is not asked while it does not answer. Dropping it lets go of everybody who waits.
#[derive(Debug)]
pub struct Breaker {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Arc<dyn Volume>,
    name: String,
    policy: BreakerPolicy,
    backoff: Backoff,
    stop: StopSignal,
    state: Mutex<State>,
    changed: Condvar,
    listeners: Mutex<Vec<Listener>>,
}

struct State {
    circuit: Circuit,
    /// What opened it: a wrong volume stays one.
    case: ErrorCase,
    failures: u32,
    /// How often it was opened: what was asked before says nothing of the time after.
    openings: u64,
    in_flight: usize,
    /// When something was heard last; while nothing waits, it does not matter.
    heard: Instant,
    probes: u32,
    probe_at: Instant,
    poked: bool,
    /// A sign of life is being asked for.
    asking: bool,
    /// A look of ours was told that the volume was mounted anew: that is for whoever looks next.
    remounted: bool,
    stopped: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("inner", &self.inner)
            .field("circuit", &self.state().circuit)
            .finish_non_exhaustive()
    }
}

/// What the watching thread does next.
enum Task {
    /// Look for a volume that is down.
    Probe,
    /// Ask one that is silent whether it is there.
    Ask,
    /// Nothing was heard for too long.
    GiveUp,
}

impl Breaker {
    /// Over `inner`; `stop` is raised when the breaker is stopped or dropped, for the layers below.
    pub fn start(
        inner: Arc<dyn Volume>,
        policy: BreakerPolicy,
        stop: StopSignal,
    ) -> std::io::Result<Breaker> {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            name: inner.to_string(),
            inner,
            policy,
            backoff: Backoff::new(policy.probe_first, policy.probe_max, policy.jitter_seed),
            stop,
            state: Mutex::new(State {
                circuit: Circuit::Up,
                case: ErrorCase::CircuitOpen,
                failures: 0,
                openings: 0,
                in_flight: 0,
                heard: now,
                probes: 0,
                probe_at: now,
                poked: false,
                asking: false,
                remounted: false,
                stopped: false,
            }),
            changed: Condvar::new(),
            listeners: Mutex::default(),
        });
        let watched = Arc::clone(&shared);
        thread::Builder::new()
            .name("store-watch".into())
            .spawn(move || watched.watch())?;
        Ok(Breaker { shared })
    }

    /// Whether the volume is asked.
    pub fn circuit(&self) -> Circuit {
        self.shared.state().circuit.clone()
    }

    /// Waits until the circuit is as `wanted` says, for at most `patience`; tells whether it is.
    pub fn wait_until(&self, wanted: impl Fn(&Circuit) -> bool, patience: Duration) -> bool {
        let not_yet = |state: &mut State| !wanted(&state.circuit) && !state.stopped;
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), patience, not_yet)
            .unwrap_or_else(PoisonError::into_inner);
        wanted(&state.circuit)
    }

    /// Calls `listener` after every change of the circuit, from whatever thread changed it: it must not wait.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        let mut listeners = self
            .shared
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.push(Arc::new(listener));
    }

    /// Looks for a volume that is down now, instead of at the end of the pause.
    pub fn poke(&self) {
        self.shared.state().poked = true;
        self.shared.changed.notify_all();
    }

    /// Opens the circuit: whoever waited for the volume knows that it does not answer.
    pub fn trip(&self, reason: &str) {
        self.shared.give_up(reason);
    }

    /// For how long calls have been waiting without a sign of life; `None` while none waits.
    pub fn silence(&self) -> Option<Duration> {
        let state = self.shared.state();
        (state.in_flight > 0).then(|| state.heard.elapsed())
    }

    /// Asks the volume for a sign of life, and opens the circuit if there is none within `patience`.
    pub fn answers_within(&self, patience: Duration) -> bool {
        if self.circuit().is_down() {
            return false;
        }
        let (sender, answered) = mpsc::sync_channel(1);
        self.shared.ask_aside(move |is_there| {
            // Fails when nobody waits for it any more.
            let _ = sender.send(is_there);
        });
        let is_there = answered.recv_timeout(patience).unwrap_or(false);
        if !is_there {
            self.trip(&format!("no sign of life within {} s", patience.as_secs()));
        }
        is_there
    }

    /// Lets go of everybody who waits for the volume, for good: the process is about to end, or has another volume.
    pub fn stop(&self) {
        self.shared.state().stopped = true;
        self.shared.changed.notify_all();
        self.shared.stop.stop();
    }

    fn call<T>(
        &self,
        (op, key): (&'static str, &str),
        work: impl FnOnce(&dyn Volume) -> Result<T>,
    ) -> Result<T> {
        let shared = &*self.shared;
        let openings = shared.enter(At {
            volume: &shared.name,
            op,
            key,
        })?;
        let in_flight = InFlight(shared);
        let outcome = work(&*shared.inner);
        drop(in_flight);
        shared.hear(outcome.as_ref().err(), openings);
        outcome
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A call that waits, also while it unwinds.
struct InFlight<'s>(&'s Shared);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.notify_all();
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for listener in &listeners {
            listener();
        }
    }

    /// Counts a call, unless the circuit is open.
    fn enter(&self, at: At<'_>) -> Result<u64> {
        let mut state = self.state();
        if state.stopped {
            let message = "it was not asked, because it is being closed";
            return Err(at.error(ErrorClass::Unreachable, message));
        }
        if let Circuit::Down { reason, .. } = &state.circuit {
            // Without a time in it: what is said again is to be known as the same.
            let message = format!("it does not answer, and is looked for: {reason}");
            return Err(at
                .error(ErrorClass::Unreachable, message)
                .with_case(state.case));
        }
        state.in_flight += 1;
        if state.in_flight == 1 {
            state.heard = Instant::now();
            self.changed.notify_all();
        }
        Ok(state.openings)
    }

    /// Takes in how a call ended that began when the circuit had been opened `openings` times.
    fn hear(&self, error: Option<&Error>, openings: u64) {
        let mut state = self.state();
        let before = state.circuit.clone();
        match error {
            Some(error) if error.is_unreachable() => {
                if openings == state.openings {
                    self.failed(&mut state, error);
                }
            }
            Some(error) if error.is_transient() && !error.is_remounted() => {
                state.heard = Instant::now();
            }
            _ => {
                state.heard = Instant::now();
                state.failures = 0;
                state.circuit = Circuit::Up;
            }
        }
        let after = state.circuit.clone();
        drop(state);
        if before != after {
            match &after {
                Circuit::Down { reason, .. } => {
                    tracing::warn!(volume = %self.name, reason, "it does not answer: it is looked for, and not used meanwhile");
                }
                Circuit::Up if before.is_down() => {
                    tracing::info!(volume = %self.name, "it answers again");
                }
                _ => {}
            }
            self.tell();
        }
    }

    fn failed(&self, state: &mut State, error: &Error) {
        let is_late = error.case() == ErrorCase::TimedOut;
        let since = match &state.circuit {
            Circuit::Degraded { since, .. } | Circuit::Down { since, .. } => *since,
            // The silence began when something was heard last.
            Circuit::Up => {
                let silent = if is_late && state.in_flight > 0 {
                    state.heard.elapsed()
                } else {
                    Duration::ZERO
                };
                let now = SystemTime::now();
                now.checked_sub(silent).unwrap_or(now)
            }
        };
        let reason = error.reason();
        state.failures = state.failures.saturating_add(1);
        if !is_late && state.failures < self.policy.failures_max {
            state.circuit = Circuit::Degraded { since, reason };
            return;
        }
        state.case = if error.is_wrong_volume() {
            ErrorCase::WrongVolume
        } else {
            ErrorCase::CircuitOpen
        };
        state.circuit = Circuit::Down { since, reason };
        state.openings += 1;
        state.poked = false;
        state.probes = 1;
        state.probe_at = Instant::now() + self.backoff.pause(1);
    }

    fn give_up(&self, reason: &str) {
        let error = Error::new(ErrorClass::Unreachable, "use", &self.name, "", reason)
            .with_case(ErrorCase::TimedOut);
        let openings = self.state().openings;
        self.hear(Some(&error), openings);
    }

    /// Asks for a sign of life on a thread of its own, which tells whether there was one.
    fn ask_aside(self: &Arc<Shared>, then: impl FnOnce(bool) + Send + 'static) {
        let shared = Arc::clone(self);
        let openings = shared.state().openings;
        let body = move || {
            let outcome = shared.ask();
            shared.state().asking = false;
            shared.hear(outcome.as_ref().err(), openings);
            shared.changed.notify_all();
            then(outcome.err().is_none_or(|error| !error.is_unreachable()));
        };
        let started = thread::Builder::new().name("store-ask".into()).spawn(body);
        if let Err(error) = started {
            // It stays marked as asked: the silence has its limit all the same.
            tracing::warn!("no thread to ask {} for a sign of life: {error}", self.name);
        }
    }

    /// A sign of life, from a volume that is not asked for anything.
    fn ask(&self) -> Result<()> {
        match self.inner.space() {
            // It did not have to be asked for that.
            Ok(None) => self.inner.head(&ObjectKey::new("probe/alive")?).map(drop),
            other => other.map(drop),
        }
    }

    fn watch(self: &Arc<Shared>) {
        while let Some(task) = self.next_task() {
            match task {
                Task::Probe => self.probe_again(),
                Task::Ask => self.ask_aside(|_| {}),
                Task::GiveUp => {
                    let secs = self.policy.silence_max.as_secs();
                    self.give_up(&format!("no sign of life for {secs} s"));
                }
            }
        }
    }

    /// Waits for something to do; `None` at the end.
    fn next_task(&self) -> Option<Task> {
        let mut state = self.state();
        loop {
            if state.stopped {
                return None;
            }
            let now = Instant::now();
            let due = if state.circuit.is_down() {
                if std::mem::take(&mut state.poked) || now >= state.probe_at {
                    return Some(Task::Probe);
                }
                Some(state.probe_at)
            } else if state.in_flight > 0 {
                let silent = state.heard + self.policy.silence_max;
                let quiet = state.heard + self.policy.quiet_max;
                if now >= silent {
                    return Some(Task::GiveUp);
                }
                if now >= quiet && !state.asking {
                    state.asking = true;
                    return Some(Task::Ask);
                }
                Some(if state.asking {
                    silent
                } else {
                    quiet.min(silent)
                })
            } else {
                None
            };
            state = match due {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let waited = self.changed.wait_timeout(state, due - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn probe_again(&self) {
        let outcome = self.inner.verify_identity();
        let error = outcome.err();
        let is_back = error
            .as_ref()
            .is_none_or(|error| error.is_remounted() || error.class() == ErrorClass::Permanent);
        let mut state = self.state();
        state.remounted |= error.as_ref().is_some_and(Error::is_remounted);
        if is_back {
            drop(state);
            return self.hear(None, 0);
        }
        state.probes = state.probes.saturating_add(1);
        state.probe_at = Instant::now() + self.backoff.pause(state.probes);
        if let (Some(error), true) = (&error, state.circuit.is_down()) {
            state.case = if error.is_wrong_volume() {
                ErrorCase::WrongVolume
            } else {
                ErrorCase::CircuitOpen
            };
            if let Circuit::Down { reason, .. } = &mut state.circuit {
                *reason = error.reason();
            }
        }
    }
}

impl fmt::Display for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shared.name)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Volume for Breaker {
    fn put(&self, key: &ObjectKey, body: Body<'_>, precondition: Precondition) -> Result<Meta> {
        self.call(("put", key.as_str()), |inner| {
            inner.put(key, body, precondition)
        })
    }

    fn get(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        self.call(("get", key.as_str()), |inner| inner.get(key, range))
    }

    fn head(&self, key: &ObjectKey) -> Result<Option<Meta>> {
        self.call(("look up", key.as_str()), |inner| inner.head(key))
    }

    fn compare(&self, key: &ObjectKey, body: Body<'_>) -> Result<Option<Likeness>> {
        self.call(("compare", key.as_str()), |inner| inner.compare(key, body))
    }

    fn list(&self, prefix: &str, after: Option<&ObjectKey>, limit: NonZeroUsize) -> Result<Page> {
        self.call(("list", prefix), |inner| inner.list(prefix, after, limit))
    }

    fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        self.call(("delete", ""), |inner| inner.delete(keys))
    }

    fn space(&self) -> Result<Option<Space>> {
        self.call(("measure", ""), Volume::space)
    }

    fn probe(&self) -> Result<Capabilities> {
        self.call(("probe", ""), Volume::probe)
    }

    fn bind(&self, sentinel: Sentinel) -> Result<()> {
        self.call(("bind", ""), |inner| inner.bind(sentinel))
    }

    fn verify_identity(&self) -> Result<()> {
        self.call(("identify", ""), Volume::verify_identity)?;
        if !std::mem::take(&mut self.shared.state().remounted) {
            return Ok(());
        }
        let at = At {
            volume: &self.shared.name,
            op: "identify",
            key: "",
        };
        let message = "it was away and is back; what was sent since the last look is checked again";
        Err(at
            .error(ErrorClass::Transient, message)
            .with_case(ErrorCase::Remounted))
    }

    fn sweep_temporary(&self, below: &[&str], older_than: Duration) -> Result<u64> {
        let sweep = |inner: &dyn Volume| inner.sweep_temporary(below, older_than);
        self.call(("sweep", ""), sweep)
    }
}

#[cfg(test)]
mod tests;
