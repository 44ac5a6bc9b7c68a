//! How gently a source is read: a rate that is not exceeded, and pauses while the source is slow to answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// An answer takes this long on average: others wait for the same disks, and the scan pauses ..
const SLOW: Duration = Duration::from_millis(50);
/// .. until they take this long.
const WELL: Duration = Duration::from_millis(20);
/// Between two answers of a slow source.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// The newest answer counts for one eighth.
const WEIGHT: u64 = 8;
/// Sleeps are cut into these, so that a stop is obeyed.
const SLEEP_STEP: Duration = Duration::from_millis(100);

/// Holds readers back.
#[derive(Debug)]
pub struct Throttle {
    rate: Option<u64>,
    state: Mutex<State>,
    /// Milliseconds that readers were held back.
    held_ms: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// When what was read so far is paid for.
    paid_until: Instant,
    answer_ns: u64,
    pause: Duration,
}

impl Throttle {
    /// At most `rate` bytes a second, if that is said.
    pub fn new(rate: Option<u64>) -> Throttle {
        Throttle {
            rate: rate.filter(|rate| *rate > 0),
            state: Mutex::new(State {
                paid_until: Instant::now(),
                answer_ns: 0,
                pause: Duration::ZERO,
            }),
            held_ms: AtomicU64::new(0),
        }
    }

    /// Before `bytes` are read. `stopped` ends a wait.
    pub fn before(&self, bytes: u64, stopped: &dyn Fn() -> bool) {
        let wait = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let mut wait = state.pause;
            if let Some(rate) = self.rate {
                let due = state.paid_until.max(now);
                let cost = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
                let cost = Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
                state.paid_until = due + cost;
                wait = wait.max(due.saturating_duration_since(now));
            }
            wait
        };
        if wait.is_zero() {
            return;
        }
        let until = Instant::now() + wait;
        while !stopped() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(SLEEP_STEP));
        }
        let held = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.held_ms.fetch_add(held, Ordering::Relaxed);
    }

    /// The source took this long for an answer.
    pub fn answered(&self, took: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / WEIGHT);
        state.answer_ns = (state.answer_ns * (WEIGHT - 1) + took_ns) / WEIGHT;
        let answer = Duration::from_nanos(state.answer_ns);
        if answer > SLOW {
            state.pause = (state.pause * 2).clamp(PAUSE_FIRST, PAUSE_MAX);
        } else if answer < WELL {
            state.pause = Duration::ZERO;
        }
    }

    /// How long readers were held back, all together.
    pub fn held(&self) -> Duration {
        Duration::from_millis(self.held_ms.load(Ordering::Relaxed))
    }

    /// The pause before each reading now.
    pub fn pause(&self) -> Duration {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_source_makes_pauses_that_end_when_it_is_well_again() {
        let throttle = Throttle::new(None);
        for _ in 0..30 {
            throttle.answered(Duration::from_millis(1));
        }
        assert!(throttle.pause().is_zero());
        for _ in 0..30 {
            throttle.answered(Duration::from_millis(200));
        }
        assert_eq!(throttle.pause(), PAUSE_MAX);
        for _ in 0..30 {
            throttle.answered(Duration::from_millis(30));
        }
        assert!(
            !throttle.pause().is_zero(),
            "between slow and well nothing changes"
        );
        for _ in 0..30 {
            throttle.answered(Duration::from_millis(1));
        }
        assert!(throttle.pause().is_zero());
    }

    #[test]
    fn a_rate_holds_readers_back_for_as_long_as_their_bytes_take() {
        let throttle = Throttle::new(Some(1 << 20));
        throttle.before(1 << 20, &|| true);
        throttle.before(1, &|| true);
        let held = throttle.held();
        assert!(held > Duration::from_millis(900), "{held:?}");
    }
}
