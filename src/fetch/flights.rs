//! Ranges on their way from the external volume: whoever needs one of them waits for it, and does not ask again.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::types::PackId;

/// All ranges that are on their way, or have arrived and are being put away. A few: one for each thread that fetches.
#[derive(Debug, Default)]
pub(super) struct Flights {
    under_way: Mutex<Vec<Arc<Flight>>>,
}

/// One range of a pack.
#[derive(Debug)]
pub(super) struct Flight {
    pack: PackId,
    range: Range<u32>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Debug)]
enum State {
    Waiting,
    Arrived(Bytes),
    Failed { unreachable: bool },
}

/// What became of a range that somebody else fetched.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Its bytes, from the offset that was asked for on.
    Arrived(Bytes),
    /// The volume could not be reached: neither can the caller.
    Unreachable,
    /// It did not come for another reason, which may not concern what the caller needs of it.
    Failed,
}

/// Who fetches.
#[derive(Debug)]
pub(super) enum Turn<'a> {
    /// The caller.
    Lead(Lead<'a>),
    /// Somebody else is at it.
    Follow(Arc<Flight>),
}

/// The duty to fetch a range. Letting go of it without an arrival is a failure; after an arrival, it says that the
/// records are where the next reader looks for them.
#[derive(Debug)]
pub(super) struct Lead<'a> {
    flights: &'a Flights,
    flight: Arc<Flight>,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Flight>>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows whoever fetches all of `needed`, or else leads and fetches `wanted`, which contains it.
    pub(super) fn begin(&self, pack: PackId, needed: &Range<u32>, wanted: Range<u32>) -> Turn<'_> {
        let mut under_way = self.lock();
        if let Some(flight) = under_way.iter().find(|flight| flight.covers(pack, needed)) {
            return Turn::Follow(Arc::clone(flight));
        }
        let flight = Arc::new(Flight {
            pack,
            range: wanted,
            state: Mutex::new(State::Waiting),
            changed: Condvar::new(),
        });
        under_way.push(Arc::clone(&flight));
        Turn::Lead(Lead {
            flights: self,
            flight,
        })
    }

    /// Whether all of `needed` is on its way.
    pub(super) fn covers(&self, pack: PackId, needed: &Range<u32>) -> bool {
        self.lock().iter().any(|flight| flight.covers(pack, needed))
    }
}

impl Flight {
    fn covers(&self, pack: PackId, needed: &Range<u32>) -> bool {
        self.pack == pack && self.range.start <= needed.start && needed.end <= self.range.end
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, state: State) {
        *self.state() = state;
        self.changed.notify_all();
    }

    /// Waits for the bytes of `needed`. As long as whoever fetches, whose deadline is the volume's.
    pub(super) fn wait(&self, needed: &Range<u32>) -> Outcome {
        let waiting = |state: &mut State| matches!(state, State::Waiting);
        let state = self
            .changed
            .wait_while(self.state(), waiting)
            .unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Arrived(bytes) => {
                let from = (needed.start.saturating_sub(self.range.start)) as usize;
                let to = from + needed.len();
                match bytes.get(from..to) {
                    Some(_) => Outcome::Arrived(bytes.slice(from..to)),
                    None => Outcome::Failed,
                }
            }
            State::Failed { unreachable: true } => Outcome::Unreachable,
            State::Failed { .. } | State::Waiting => Outcome::Failed,
        }
    }
}

impl Lead<'_> {
    /// What is to be fetched.
    pub(super) fn range(&self) -> Range<u32> {
        self.flight.range.clone()
    }

    /// The range, whole.
    pub(super) fn arrived(&self, bytes: Bytes) {
        self.flight.settle(State::Arrived(bytes));
    }

    /// It does not come.
    pub(super) fn failed(&self, error: &vfs::Error) {
        let unreachable = error.is_unreachable();
        self.flight.settle(State::Failed { unreachable });
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut under_way = self.flights.lock();
        under_way.retain(|flight| !Arc::ptr_eq(flight, &self.flight));
        drop(under_way);
        let is_waiting = matches!(*self.flight.state(), State::Waiting);
        if is_waiting {
            self.flight.settle(State::Failed { unreachable: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;

    fn pack(n: u64) -> PackId {
        PackId::new(SessionId([7; 8]), n)
    }

    fn lead(turn: Turn<'_>) -> Lead<'_> {
        match turn {
            Turn::Lead(lead) => lead,
            Turn::Follow(_) => panic!("somebody else leads"),
        }
    }

    #[test]
    fn a_second_reader_waits_for_the_first_one_s_range() {
        let flights = Flights::default();
        let first = lead(flights.begin(pack(1), &(110..120), 100..200));
        let Turn::Follow(flight) = flights.begin(pack(1), &(150..160), 150..160) else {
            panic!("asked for twice");
        };
        lead(flights.begin(pack(2), &(150..160), 150..160));
        lead(flights.begin(pack(1), &(150..201), 150..201));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| flight.wait(&(150..160)));
            first.arrived((100..200).collect::<Vec<u8>>().into());
            match waiting.join().unwrap() {
                Outcome::Arrived(bytes) => assert_eq!(bytes, (150..160).collect::<Vec<u8>>()),
                _ => panic!("it arrived"),
            }
        });
        assert!(flights.covers(pack(1), &(100..200)), "until it is put away");
        drop(first);
        assert!(!flights.covers(pack(1), &(100..200)));
    }

    #[test]
    fn who_leads_and_lets_go_wakes_those_who_wait() {
        let flights = Flights::default();
        let first = lead(flights.begin(pack(1), &(0..10), 0..10));
        let Turn::Follow(flight) = flights.begin(pack(1), &(0..10), 0..10) else {
            panic!("asked for twice");
        };
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| flight.wait(&(0..10)));
            drop(first);
            assert!(matches!(waiting.join().unwrap(), Outcome::Failed));
        });
        lead(flights.begin(pack(1), &(0..10), 0..10));
    }
}
