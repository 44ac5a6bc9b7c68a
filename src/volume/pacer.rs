//! Writers are slowed by their answers: what they wrote is taken in at once, and the answer waits here until
//! the allowed rate has room for it. No FUSE thread and no lock of the engine is held meanwhile, so that
//! nobody else waits.
//!
//! The same thread looks at the backlog once a second, and answers those whose fsync waits for the external
//! volume.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::volume::tree::Answer;

/// Answers that may wait. The kernel has one for each program that writes; beyond, they are sent at once.
const HELD_MAX: usize = 4096;
/// No answer waits longer, however many writers there are: a program that waits for minutes looks hung.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// The allowed rate is asked anew after this.
const STEP: Duration = Duration::from_millis(50);
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What the pacer's thread does beside holding answers.
pub trait Chores: Send + Sync {
    /// Bytes a second for all writers; `None`: as they come.
    fn allowed_rate(&self) -> Option<u64>;

    /// Called once a second.
    fn each_second(&self, now: Instant);

    /// Called at every turn; returns how long the next one may be away.
    fn each_turn(&self, now: Instant) -> Duration;
}

struct Held {
    bytes: u64,
    since: Instant,
    answer: Answer<()>,
}

#[derive(Default)]
struct Queue {
    held: VecDeque<Held>,
    /// Bytes that may be answered for.
    credit: u64,
    credited: Option<Instant>,
    stop: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    woken: Condvar,
    chores: Box<dyn Chores>,
}

/// Holds answers back. Dropping it answers all of them.
pub struct Pacer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Pacer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pacer")
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

/// Holds one answer back when it is there.
pub struct Hold(Arc<Shared>);

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}

impl Pacer {
    /// Starts the thread.
    pub fn start(chores: Box<dyn Chores>) -> Result<Pacer> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            woken: Condvar::new(),
            chores,
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("pacer".into())
                .spawn(move || shared.run())
                .map_err(Error::io("start", "the pacer thread"))?
        };
        Ok(Pacer {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// For an answer that another thread sends.
    pub fn hold_later(&self) -> Hold {
        Hold(Arc::clone(&self.shared))
    }

    /// Answers that `bytes` were written, when it is time.
    pub fn hold(&self, bytes: u64, answer: Answer<()>) {
        self.shared.hold(bytes, answer);
    }

    /// Answers that wait.
    pub fn waiting(&self) -> usize {
        self.shared.lock().held.len()
    }

    /// Answers everything that waits, and holds nothing from now on.
    pub fn stop(&self) {
        self.shared.lock().stop = true;
        self.shared.woken.notify_all();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // Only an answer could have panicked, and that is caught where it was made.
            let _ = thread.join();
        }
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Hold {
    /// As [`Pacer::hold`]; a failure is told at once.
    pub fn answer(self, bytes: u64, outcome: Result<()>, answer: Answer<()>) {
        match outcome {
            Ok(()) => self.0.hold(bytes, answer),
            Err(error) => answer(Err(error)),
        }
    }
}

impl Queue {
    /// Lets the time since the last time count at `rate`, for a burst of at most two steps.
    fn accrue(&mut self, rate: u64, now: Instant) {
        let since = self.credited.replace(now);
        let took = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let earned = bytes_in(rate, took);
        let head = self.held.front().map_or(0, |held| held.bytes);
        let most = bytes_in(rate, 2 * STEP).max(head);
        self.credit = self.credit.saturating_add(earned).min(most);
    }

    /// Takes `bytes` from what may be answered for, if there is as much.
    fn pay(&mut self, bytes: u64) -> bool {
        let is_enough = bytes <= self.credit;
        if is_enough {
            self.credit -= bytes;
        }
        is_enough
    }

    /// Those whose time has come, and when the next one's comes.
    fn due(&mut self, rate: Option<u64>, now: Instant) -> (Vec<Answer<()>>, Option<Duration>) {
        let Some(rate) = rate.filter(|_| !self.stop) else {
            self.credited = None;
            self.credit = 0;
            return (self.held.drain(..).map(|held| held.answer).collect(), None);
        };
        let mut answers = Vec::new();
        loop {
            self.accrue(rate, now);
            let Some(head) = self.held.front() else {
                return (answers, None);
            };
            let (bytes, waited) = (head.bytes, now.saturating_duration_since(head.since));
            if !self.pay(bytes) && waited < WAIT_MAX {
                let missing = bytes - self.credit;
                let wait = Duration::from_micros(micros_for(missing, rate));
                return (answers, Some(wait));
            }
            answers.extend(self.held.pop_front().map(|held| held.answer));
        }
    }
}

fn bytes_in(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_micros() / 1_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn micros_for(bytes: u64, rate: u64) -> u64 {
    let micros = u128::from(bytes) * 1_000_000 / u128::from(rate.max(1));
    u64::try_from(micros).unwrap_or(u64::MAX).saturating_add(1)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, bytes: u64, answer: Answer<()>) {
        let rate = self.chores.allowed_rate();
        let mut queue = self.lock();
        if let Some(rate) = rate
            && !queue.stop
            && queue.held.len() < HELD_MAX
        {
            let now = Instant::now();
            queue.accrue(rate, now);
            if !queue.held.is_empty() || !queue.pay(bytes) {
                queue.held.push_back(Held {
                    bytes,
                    since: now,
                    answer,
                });
                self.woken.notify_one();
                return;
            }
        }
        drop(queue);
        answer(Ok(()));
    }

    fn run(&self) {
        let mut next_look = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_look {
                next_look = now + LOOK_INTERVAL;
                self.chores.each_second(now);
            }
            let patience = self.chores.each_turn(now);
            let rate = self.chores.allowed_rate();
            let mut queue = self.lock();
            let (answers, next) = queue.due(rate, now);
            if answers.is_empty() {
                if queue.stop {
                    return;
                }
                let patience = patience
                    .min(next.map_or(LOOK_INTERVAL, |next| next.min(STEP)))
                    .min(next_look.saturating_duration_since(now));
                // The queue may have become longer meanwhile: the next turn looks.
                drop(self.woken.wait_timeout(queue, patience));
                continue;
            }
            drop(queue);
            for answer in answers {
                answer(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn queue(count: u64, bytes: u64, now: Instant) -> (Queue, mpsc::Receiver<u64>) {
        let (told, telling) = mpsc::channel();
        let mut queue = Queue::default();
        for n in 0..count {
            let told = told.clone();
            queue.held.push_back(Held {
                bytes,
                since: now,
                answer: Box::new(move |outcome| {
                    outcome.unwrap();
                    told.send(n).unwrap();
                }),
            });
        }
        (queue, telling)
    }

    #[test]
    fn answers_leave_at_the_allowed_rate_in_their_order() {
        let start = Instant::now();
        let (mut queue, telling) = queue(100, 1000, start);
        let mut now = start;
        while !queue.held.is_empty() {
            let (answers, next) = queue.due(Some(50_000), now);
            for answer in answers {
                answer(Ok(()));
            }
            now += next.unwrap_or_default();
        }
        let order: Vec<u64> = telling.try_iter().collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
        let took = now.saturating_duration_since(start);
        assert!(took > Duration::from_millis(1900), "{took:?}");
        assert!(took < Duration::from_millis(2100), "{took:?}");
    }

    #[test]
    fn nobody_waits_longer_than_a_minute_and_nobody_when_there_is_no_need() {
        let start = Instant::now();
        let (mut held, telling) = queue(10, 1 << 20, start);
        let (answers, next) = held.due(Some(1), start);
        assert!(answers.is_empty() && next > Some(Duration::from_secs(60)));
        let (answers, _) = held.due(Some(1), start + WAIT_MAX);
        assert_eq!(answers.len(), 10);
        let (mut held, _) = queue(10, 1 << 20, start);
        assert_eq!(held.due(None, start).0.len(), 10);
        drop(telling);
    }

    struct Rate(Arc<AtomicU64>);

    impl Chores for Rate {
        fn allowed_rate(&self) -> Option<u64> {
            Some(self.0.load(Ordering::SeqCst)).filter(|rate| *rate > 0)
        }

        fn each_second(&self, _: Instant) {}

        fn each_turn(&self, _: Instant) -> Duration {
            LOOK_INTERVAL
        }
    }

    #[test]
    fn who_waits_is_answered_when_the_need_is_over_and_when_the_volume_closes() {
        let rate = Arc::new(AtomicU64::new(1));
        let pacer = Pacer::start(Box::new(Rate(Arc::clone(&rate)))).unwrap();
        let (told, telling) = mpsc::channel();
        let hold = |n| {
            let told = told.clone();
            pacer.hold(1 << 20, Box::new(move |_| told.send(n).unwrap()));
        };
        hold(1);
        assert_eq!(pacer.waiting(), 1);
        assert!(telling.try_recv().is_err(), "it waits");
        rate.store(0, Ordering::SeqCst);
        assert_eq!(telling.recv_timeout(WAIT_MAX / 2).unwrap(), 1);
        rate.store(1, Ordering::SeqCst);
        hold(2);
        pacer.stop();
        assert_eq!(telling.try_recv().unwrap(), 2);
        hold(3);
        assert_eq!(telling.try_recv().unwrap(), 3, "nothing is held any more");
    }
}
