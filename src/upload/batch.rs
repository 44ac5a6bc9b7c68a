//! Several packs on their way at the same time, and the next ones already while those that arrived are counted.
//!
//! What arrived is handed over in batches, for a look at the volume before it counts (invariant 7). Only packs whose
//! put had ended when the batch was closed are in it: those that are on their way meanwhile wait for the next look.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::types::PackId;

/// Packs of a batch, at most. As many again are at hand meanwhile, so that nobody waits for its end.
const BATCH_LEN: usize = 64;
/// A batch ends this long after its first pack arrived: what is there is to be noted, and the epochs that waited for it
/// are to go.
const BATCH_TIME: Duration = Duration::from_secs(2);
/// A pack that was sealed meanwhile is found after this by a thread that has nothing to do.
const REFILL_INTERVAL: Duration = Duration::from_millis(100);

/// Why a pack was not put.
pub(super) enum Trouble {
    /// The volume failed: so will the next one.
    Volume(Error),
    /// The local copy cannot be read: the others can.
    Local(Error),
}

/// What arrived since the last batch.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Packs that are there, and their lengths.
    pub sent: Vec<(PackId, u32)>,
    /// Why nothing more is put.
    pub failure: Option<Error>,
}

/// How packs are put.
pub(super) struct Pipe<'a> {
    /// Packs on their way at the same time; may change.
    pub in_flight: &'a (dyn Fn() -> usize + Sync),
    /// Whether no more are to be begun.
    pub is_stopped: &'a (dyn Fn() -> bool + Sync),
    /// Puts one pack, and tells its length.
    pub put: &'a (dyn Fn(PackId) -> Result<u32, Trouble> + Sync),
}

/// Who names packs, and who counts them.
pub(super) trait Ends {
    /// The oldest packs to put that have not been counted, at most so many.
    fn oldest(&mut self, count_max: usize) -> Vec<PackId>;
    /// These are there: others are on their way. An error ends it all.
    fn count(&mut self, batch: Batch) -> Result<()>;
}

#[derive(Default)]
struct Table {
    /// To be put, in this order.
    waiting: VecDeque<PackId>,
    under_way: usize,
    /// Taken up and not counted yet.
    taken: BTreeSet<PackId>,
    batch: Batch,
    first_arrived: Option<Instant>,
    /// Packs that cannot be read here, and why one of them cannot.
    unreadable: BTreeSet<PackId>,
    local: Option<Error>,
    threads: usize,
    threads_max: usize,
    /// No more packs are begun.
    is_over: bool,
}

impl Table {
    fn note(&mut self, pack: PackId, put: Result<u32, Trouble>) {
        self.under_way -= 1;
        match put {
            Ok(len) => {
                self.batch.sent.push((pack, len));
                self.first_arrived.get_or_insert_with(Instant::now);
            }
            Err(Trouble::Volume(error)) => self.fail(error),
            Err(Trouble::Local(error)) => {
                self.taken.remove(&pack);
                self.unreadable.insert(pack);
                self.local.get_or_insert(error);
            }
        }
    }

    fn fail(&mut self, error: Error) {
        self.batch.failure.get_or_insert(error);
        self.is_over = true;
    }

    fn is_idle(&self) -> bool {
        self.under_way == 0 && (self.is_over || self.waiting.is_empty())
    }

    /// Whether the batch is to be counted. When it is the last one, with all that was still on its way.
    fn is_batch_over(&self) -> bool {
        let is_due = self.batch.sent.len() >= BATCH_LEN
            || self
                .first_arrived
                .is_some_and(|first| first.elapsed() >= BATCH_TIME);
        self.is_idle() || (is_due && !self.is_over)
    }
}

struct Shared<'a> {
    pipe: &'a Pipe<'a>,
    table: Mutex<Table>,
    /// There is something to put, or nothing more to come.
    filled: Condvar,
    /// A put has ended.
    arrived: Condvar,
}

/// Has the threads end with what they have in hand, which is looked for again if it was not counted.
struct End<'a>(&'a Shared<'a>);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.filled.notify_all();
    }
}

impl Pipe<'_> {
    /// Puts what `ends` names until it names no more. An error is the volume's, or one of `ends`; what is returned is
    /// why a pack cannot be read here, which keeps no other from being sent.
    pub(super) fn run(&self, ends: &mut dyn Ends) -> Result<Option<Error>> {
        let shared = Shared {
            pipe: self,
            table: Mutex::default(),
            filled: Condvar::new(),
            arrived: Condvar::new(),
        };
        thread::scope(|scope| {
            let _end = End(&shared);
            shared.drive(scope, ends)
        })?;
        let local = shared.lock().local.take();
        Ok(local)
    }
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drive<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        ends: &mut dyn Ends,
    ) -> Result<()> {
        loop {
            self.refill(scope, ends);
            let mut table = self.lock();
            if !table.is_batch_over() {
                drop(self.arrived.wait_timeout(table, REFILL_INTERVAL));
                continue;
            }
            table.first_arrived = None;
            let batch = std::mem::take(&mut table.batch);
            drop(table);
            if batch.sent.is_empty() && batch.failure.is_none() {
                return Ok(());
            }
            let counted: Vec<PackId> = batch.sent.iter().map(|(pack, _)| *pack).collect();
            ends.count(batch)?;
            let mut table = self.lock();
            for pack in counted {
                table.taken.remove(&pack);
            }
        }
    }

    /// Has the packs of this batch and of the next one at hand, and threads that put them.
    fn refill<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, ends: &mut dyn Ends) {
        let mut table = self.lock();
        table.is_over |= (self.pipe.is_stopped)();
        if table.is_over || table.waiting.len() >= BATCH_LEN {
            return;
        }
        for pack in ends.oldest(2 * BATCH_LEN + table.unreadable.len()) {
            if !table.unreadable.contains(&pack) && table.taken.insert(pack) {
                table.waiting.push_back(pack);
            }
        }
        table.threads_max = (self.pipe.in_flight)().max(1);
        let wanted = table.threads_max.min(table.under_way + table.waiting.len());
        while table.threads < wanted {
            let named = thread::Builder::new().name("upload-put".into());
            if let Err(error) = named.spawn_scoped(scope, || self.work()) {
                if table.threads == 0 {
                    table.fail(Error::Poisoned(format!("no thread for an upload: {error}")));
                }
                break;
            }
            table.threads += 1;
        }
        drop(table);
        self.filled.notify_all();
    }

    fn work(&self) {
        let mut table = self.lock();
        loop {
            if table.is_over || table.threads > table.threads_max || (self.pipe.is_stopped)() {
                table.threads -= 1;
                return;
            }
            let Some(pack) = table.waiting.pop_front() else {
                let woken = self.filled.wait(table);
                table = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            table.under_way += 1;
            drop(table);
            // Nothing is kept of what a panic has left half done.
            let put = catch_unwind(AssertUnwindSafe(|| (self.pipe.put)(pack)));
            let panicked = |_| {
                let text = "an upload panicked".into();
                Err(Trouble::Volume(Error::Poisoned(text)))
            };
            table = self.lock();
            table.note(pack, put.unwrap_or_else(panicked));
            self.arrived.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;
    use crate::types::SessionId;

    fn packs(count: u64) -> Vec<PackId> {
        (1..=count)
            .map(|n| PackId::new(SessionId([1; 8]), n))
            .collect()
    }

    /// Packs in their order, until they are counted.
    struct Queue<'a> {
        left: Vec<PackId>,
        batches: Vec<Batch>,
        on_count: &'a mut dyn FnMut(&Batch),
    }

    impl Ends for Queue<'_> {
        fn oldest(&mut self, count_max: usize) -> Vec<PackId> {
            self.left.iter().copied().take(count_max).collect()
        }

        fn count(&mut self, mut batch: Batch) -> Result<()> {
            (self.on_count)(&batch);
            self.left
                .retain(|pack| batch.sent.iter().all(|(sent, _)| sent != pack));
            let failure = batch.failure.take();
            self.batches.push(batch);
            failure.map_or(Ok(()), Err)
        }
    }

    impl Queue<'_> {
        fn sent(&self) -> Vec<PackId> {
            let sent = self.batches.iter().flat_map(|batch| &batch.sent);
            sent.map(|(pack, _)| *pack).collect()
        }
    }

    fn run(
        packs: &[PackId],
        in_flight: usize,
        put: &(dyn Fn(PackId) -> Result<u32, Trouble> + Sync),
        on_count: &mut dyn FnMut(&Batch),
    ) -> (Result<Option<Error>>, Vec<PackId>) {
        let pipe = Pipe {
            in_flight: &|| in_flight,
            is_stopped: &|| false,
            put,
        };
        let mut queue = Queue {
            left: packs.to_vec(),
            batches: Vec::new(),
            on_count,
        };
        let outcome = pipe.run(&mut queue);
        (outcome, queue.sent())
    }

    #[test]
    fn as_many_are_on_their_way_as_allowed_and_all_arrive_once() {
        let packs = packs(300);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let put = |_| {
            let at_once = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(at_once, Ordering::SeqCst);
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(1)
        };
        let (outcome, mut sent) = run(&packs, 4, &put, &mut |_| {});
        outcome.unwrap();
        sent.sort();
        assert_eq!(sent, packs);
        assert!(most.into_inner() <= 4);
    }

    #[test]
    fn the_next_packs_are_on_their_way_while_a_batch_is_counted_and_wait_for_the_next_look() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let packs = packs(BATCH_LEN as u64 + 10);
        let (first_of_next, last) = (packs[BATCH_LEN], packs[BATCH_LEN + 9]);
        let ((counting, is_counting), (ended, has_ended)) = (channel(), channel());
        let (is_counting, ended) = (Mutex::new(is_counting), Mutex::new(ended));
        let put = |pack| {
            // Under way before the batch is counted, and there before it is done.
            if pack == first_of_next {
                is_counting.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            }
            if pack == last {
                ended.lock().unwrap().send(()).unwrap();
            }
            Ok(1)
        };
        let mut batches = Vec::new();
        let mut on_count = |batch: &Batch| {
            if batches.is_empty() {
                counting.send(()).unwrap();
                has_ended.recv_timeout(PATIENCE).unwrap();
            }
            batches.push(batch.sent.len());
        };
        let (outcome, sent) = run(&packs, 1, &put, &mut on_count);
        outcome.unwrap();
        assert_eq!(sent, packs);
        assert_eq!(
            batches[0], BATCH_LEN,
            "it has what was there before it was closed"
        );
    }

    #[test]
    fn one_that_cannot_be_read_stops_nobody_and_is_told_at_the_end() {
        let packs = packs(9);
        let unreadable = packs[2];
        let put = |pack| {
            if pack == unreadable {
                Err(Trouble::Local(Error::Refused("unreadable".into())))
            } else {
                Ok(1)
            }
        };
        let (outcome, sent) = run(&packs, 1, &put, &mut |_| {});
        assert!(outcome.unwrap().unwrap().to_string().contains("unreadable"));
        assert_eq!(sent.len(), 8);
    }

    #[test]
    fn a_volume_that_fails_stops_all_and_what_was_there_before_counts() {
        let packs = packs(9);
        let bad = packs[2];
        for panics in [false, true] {
            let put = |pack| {
                assert!(!(panics && pack == bad), "on purpose");
                if pack == bad {
                    Err(Trouble::Volume(Error::Refused("away".into())))
                } else {
                    Ok(1)
                }
            };
            let (outcome, sent) = run(&packs, 1, &put, &mut |_| {});
            outcome.unwrap_err();
            assert_eq!(sent, packs[..2]);
        }
    }

    #[test]
    fn a_stop_ends_it_after_what_is_in_hand_and_a_look_that_fails_ends_it_too() {
        let packs = packs(9);
        let stop = AtomicBool::new(false);
        let put = |pack| {
            stop.store(pack == packs[3], Ordering::SeqCst);
            Ok(1)
        };
        let pipe = Pipe {
            in_flight: &|| 1,
            is_stopped: &|| stop.load(Ordering::SeqCst),
            put: &put,
        };
        let mut queue = Queue {
            left: packs.clone(),
            batches: Vec::new(),
            on_count: &mut |_| {},
        };
        pipe.run(&mut queue).unwrap();
        assert_eq!(queue.sent(), packs[..4]);

        struct Refuses(Vec<PackId>);
        impl Ends for Refuses {
            fn oldest(&mut self, _: usize) -> Vec<PackId> {
                self.0.clone()
            }
            fn count(&mut self, _: Batch) -> Result<()> {
                Err(Error::Refused("another volume".into()))
            }
        }
        stop.store(false, Ordering::SeqCst);
        pipe.run(&mut Refuses(packs[..2].to_vec())).unwrap_err();
    }
}
