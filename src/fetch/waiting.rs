//! Reads that wait for the external volume: so many and no more, and none behind a circuit that is open.
//!
//! A read waits for as long as the volume gives signs of life; when it is found down, all that wait are answered at once
//! (invariant 5). So nobody waits for longer than the volume may be silent, counted from its last sign.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use vfs::{Breaker, Circuit};

use super::OnRead;

/// Reads that may wait at one time: a quarter of the requests that the kernel has in flight on its own, so that cached
/// reads and read-ahead go on beside them. More are answered with an error at once.
pub const WAITING_MAX: u16 = 128;

/// The answers that are owed.
#[derive(Default)]
pub(super) struct Waiting {
    owed: Mutex<Owed>,
    /// It was said in the log that reads fail; said again after the next outage.
    is_told: AtomicBool,
}

#[derive(Default)]
struct Owed {
    answers: HashMap<u64, OnRead>,
    next: u64,
}

/// A read's place among those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("count", &self.owed().answers.len())
            .finish_non_exhaustive()
    }
}

impl Waiting {
    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a read wait; gives its answer back if there are too many.
    pub(super) fn enter(&self, answer: OnRead) -> Result<Ticket, OnRead> {
        let mut owed = self.owed();
        if owed.answers.len() >= usize::from(WAITING_MAX) {
            return Err(answer);
        }
        let ticket = owed.next;
        owed.next += 1;
        owed.answers.insert(ticket, answer);
        Ok(Ticket(ticket))
    }

    /// Whether nobody has answered it yet.
    pub(super) fn still_waits(&self, ticket: Ticket) -> bool {
        self.owed().answers.contains_key(&ticket.0)
    }

    /// The answer, for whoever gives it. Each is given once.
    pub(super) fn leave(&self, ticket: Ticket) -> Option<OnRead> {
        self.owed().answers.remove(&ticket.0)
    }

    /// Answers everybody with an error, if the volume is down.
    pub(super) fn hear(&self, breaker: &Breaker) {
        match breaker.circuit() {
            Circuit::Down { reason, .. } => {
                let answers = std::mem::take(&mut self.owed().answers);
                if !answers.is_empty() {
                    self.tell(&breaker.to_string(), &reason);
                }
                for answer in answers.into_values() {
                    answer(Err(Errno::EIO.into()));
                }
            }
            Circuit::Up => self.is_told.store(false, Ordering::Relaxed),
            Circuit::Degraded { .. } => {}
        }
    }

    /// Says, once in an outage, that reads fail.
    pub(super) fn tell(&self, volume: &str, reason: &str) {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "reads of what is only on {volume} fail until it answers again: {reason}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use vfs::{BreakerPolicy, MemoryVolume, StopSignal};

    use super::*;

    fn breaker() -> Breaker {
        let policy = BreakerPolicy {
            probe_first: Duration::from_secs(3600),
            probe_max: Duration::from_secs(3600),
            ..BreakerPolicy::default()
        };
        Breaker::start(Arc::new(MemoryVolume::new()), policy, StopSignal::new()).unwrap()
    }

    #[test]
    fn everybody_is_answered_when_the_volume_is_found_down_and_only_once() {
        let (waiting, breaker) = (Waiting::default(), breaker());
        let (sender, answers) = mpsc::channel();
        let enter = || {
            let sender = sender.clone();
            let answer: OnRead = Box::new(move |outcome| sender.send(outcome.is_ok()).unwrap());
            waiting.enter(answer).ok()
        };
        let tickets: Vec<Ticket> = (0..WAITING_MAX).filter_map(|_| enter()).collect();
        assert_eq!(tickets.len(), usize::from(WAITING_MAX));
        assert_eq!(enter(), None, "one more than may wait");
        waiting.hear(&breaker);
        assert!(answers.try_recv().is_err(), "it is up");
        waiting.leave(tickets[0]).unwrap()(Ok(bytes::Bytes::new()));
        breaker.trip("a test says so");
        waiting.hear(&breaker);
        assert!(answers.try_recv().unwrap());
        assert_eq!(
            answers.try_iter().filter(|ok| !ok).count(),
            tickets.len() - 1
        );
        assert!(!waiting.still_waits(tickets[1]) && waiting.leave(tickets[1]).is_none());
    }
}
