//! What the thread that reads events and those who scan share: what is dirty, and how the watch goes.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::dirty::{Accounts, Change, Dirty, Lens};
use super::feed::Drained;
use super::{Status, Watched};

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    settled: Condvar,
    /// Rung, without waiting, when something becomes dirty.
    bell: Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    watched: Option<Watched>,
    /// Why it is not watched, from the last time it was not.
    reason: Option<String>,
    lens: Lens,
    dirty: Dirty,
    /// When the oldest and the newest change came that are in `dirty`.
    first: Option<Instant>,
    last: Option<Instant>,
    events: u64,
    overflows: u64,
    losses: u64,
    asked: u64,
    settled: u64,
    is_ended: bool,
}

impl Shared {
    pub(super) fn new(lens: Lens, bell: Sender<()>) -> Shared {
        let state = State {
            lens,
            ..State::default()
        };
        Shared {
            state: Mutex::new(state),
            settled: Condvar::new(),
            bell,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events come from here on. What happened before is not known, so all is dirty.
    pub(super) fn arm(&self, watched: Watched) {
        let mut state = self.state();
        state.watched = Some(watched);
        state.reason = None;
        state.touch();
        state.dirty = Dirty::everything();
        drop(state);
        self.ring();
    }

    /// No events come any more.
    pub(super) fn lose(&self, reason: String, is_overflow: bool) {
        let mut state = self.state();
        if state.watched.take().is_some() {
            state.losses += 1;
        }
        state.overflows += u64::from(is_overflow);
        state.reason = Some(reason);
        drop(state);
        // Nobody needs to wait for events that do not come.
        self.settled.notify_all();
        self.ring();
    }

    pub(super) fn know(&self, accounts: Accounts) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.lens.accounts = accounts;
        state.dirty.look_through(&state.lens);
    }

    pub(super) fn add(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let count = changes.len() as u64;
        let mut guard = self.state();
        let state = &mut *guard;
        let was_empty = state.dirty.is_empty();
        for change in changes {
            state.dirty.add(change, &state.lens);
        }
        state.events += count;
        if state.dirty.is_empty() {
            return;
        }
        state.touch();
        drop(guard);
        if was_empty {
            self.ring();
        }
    }

    pub(super) fn count(&self, drained: Drained, watches: Option<u64>) {
        let mut state = self.state();
        state.overflows += drained.overflows;
        if let Some(watched) = &mut state.watched {
            watched.watches = watches;
        }
    }

    pub(super) fn asked(&self) -> u64 {
        self.state().asked
    }

    /// All events are taken that were there when this was asked for.
    pub(super) fn settle(&self, asked: u64) {
        let mut state = self.state();
        if state.settled < asked {
            state.settled = asked;
            self.settled.notify_all();
        }
    }

    /// The number of a new question.
    pub(super) fn ask(&self) -> u64 {
        let mut state = self.state();
        state.asked += 1;
        state.asked
    }

    /// Waits for the answer to a question; tells whether it came, and the source is watched.
    pub(super) fn await_settled(&self, asked: u64, patience: Duration) -> bool {
        let is_open = |state: &mut State| state.settled < asked && state.watched.is_some();
        let waited = self
            .settled
            .wait_timeout_while(self.state(), patience, is_open);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.settled >= asked && state.watched.is_some()
    }

    pub(super) fn end(&self) {
        self.state().is_ended = true;
    }

    pub(super) fn is_ended(&self) -> bool {
        self.state().is_ended
    }

    /// What is dirty, if it is watched; from here on it is the caller's to look at.
    pub(super) fn take(&self) -> Option<Dirty> {
        let mut state = self.state();
        state.watched.as_ref()?;
        (state.first, state.last) = (None, None);
        Some(std::mem::take(&mut state.dirty))
    }

    /// What was taken and could not be looked at.
    pub(super) fn give_back(&self, dirty: Dirty) {
        if dirty.is_empty() {
            return;
        }
        let mut guard = self.state();
        let state = &mut *guard;
        state.dirty.merge(dirty);
        state.dirty.look_through(&state.lens);
        state.touch();
        drop(guard);
        self.ring();
    }

    /// How long ago the first and the last change came; `None` when nothing is dirty, or it is not watched.
    pub(super) fn waiting(&self) -> Option<(Duration, Duration)> {
        let state = self.state();
        state.watched.as_ref()?;
        Some((state.first?.elapsed(), state.last?.elapsed()))
    }

    pub(super) fn status(&self) -> Status {
        let state = self.state();
        Status {
            watched: state.watched.clone(),
            reason: state.reason.clone(),
            events: state.events,
            overflows: state.overflows,
            losses: state.losses,
            dirty_accounts: state.dirty.accounts().len() as u64,
            is_all_dirty: state.dirty.is_everything(),
        }
    }

    fn ring(&self) {
        // Full: it is ringing already.
        let _ = self.bell.try_send(());
    }
}

impl State {
    fn touch(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
    }
}
