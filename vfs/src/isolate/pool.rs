//! The workers of one volume: so many at a time, each lent for one operation, and those that hang counted.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::worker::{Line, Start, Worker, cut, reap};

/// How many workers there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolLimits {
    /// Those at work, and those that were killed and are not dead yet, together. The last one is kept for looks whether
    /// the volume is there, and the one before it does not put, so that a read need not wait for a long body.
    pub workers_max: usize,
    /// With so many killed and not dead, for they hang in the kernel, nothing is asked until one of them is dead.
    pub abandoned_max: usize,
}

impl Default for PoolLimits {
    /// Four at work keep a disk or a share busy; four that hang cost little, and a fifth would learn nothing new.
    fn default() -> PoolLimits {
        PoolLimits {
            workers_max: 5,
            abandoned_max: 4,
        }
    }
}

impl PoolLimits {
    /// Whether one more may begin while these are at work or hang.
    fn admit(self, load: Load, (busy, puts): (usize, usize)) -> bool {
        let spared = usize::from(load != Load::Sign);
        let puts_max = self.workers_max.saturating_sub(2).max(1);
        busy < self.workers_max.saturating_sub(spared).max(1)
            && (load != Load::Put || puts < puts_max)
    }
}

/// What an operation is, as far as the pool minds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Load {
    /// A body goes out, which takes long.
    Put,
    /// Something else is changed.
    Change,
    /// Nothing is.
    Look,
    /// It tells whether the volume is there at all.
    Sign,
}

/// Why there is no worker.
#[derive(Debug)]
pub(super) enum NoWorker {
    /// As many as may be are killed and will not die: the volume hangs.
    AllHang(usize),
    /// All were busy until the deadline.
    Late,
    /// The volume is being closed.
    Stopped,
    /// The system cannot start one.
    CannotStart(io::Error),
}

#[derive(Debug)]
pub(super) struct Pool {
    start: Start,
    limits: PoolLimits,
    state: Mutex<State>,
    /// A worker came back, died, or the pool was stopped.
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Member>,
    /// Lines of the lent ones, by number.
    lent: HashMap<u64, Arc<UnixStream>>,
    /// How many of them put.
    puts: usize,
    abandoned: usize,
    next: u64,
    stopped: bool,
}

/// A worker and what its owner remembers of it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) worker: Worker,
    /// The root it has open counts as of this look; `None` if it has none that may be used.
    pub(super) opened_in: Option<u64>,
    /// The look in which it changed something.
    pub(super) changed_in: Option<u64>,
}

/// A member at work. Comes back to the pool when dropped, unless it was lost.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    load: Load,
    member: Option<Member>,
}

impl Pool {
    pub(super) fn new(start: Start, limits: PoolLimits) -> Arc<Pool> {
        Arc::new(Pool {
            start,
            limits,
            state: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends a worker, starting one if need be.
    pub(super) fn lend(
        self: &Arc<Pool>,
        load: Load,
        deadline: Instant,
    ) -> std::result::Result<Lease, NoWorker> {
        let mut state = self.state();
        let id = loop {
            if state.stopped {
                return Err(NoWorker::Stopped);
            }
            if state.abandoned >= self.limits.abandoned_max.max(1) {
                return Err(NoWorker::AllHang(state.abandoned));
            }
            let busy = state.lent.len() + state.abandoned;
            if self.limits.admit(load, (busy, state.puts)) {
                state.puts += usize::from(load == Load::Put);
                if let Some(member) = state.idle.pop() {
                    state.lent.insert(member.worker.id, member.worker.line());
                    return Ok(self.lease(load, member));
                }
                let id = state.next;
                state.next += 1;
                break id;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoWorker::Late);
            }
            state = self
                .freed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        };
        let started = Line::new().inspect(|line| {
            state.lent.insert(id, Arc::clone(&line.near));
        });
        drop(state);
        match started.and_then(|line| Worker::start(&self.start, id, line)) {
            Ok(worker) => {
                let member = Member {
                    worker,
                    opened_in: None,
                    changed_in: None,
                };
                Ok(self.lease(load, member))
            }
            Err(error) => {
                self.back(id, load);
                Err(NoWorker::CannotStart(error))
            }
        }
    }

    fn lease(self: &Arc<Pool>, load: Load, member: Member) -> Lease {
        Lease {
            pool: Arc::clone(self),
            load,
            member: Some(member),
        }
    }

    fn back(&self, id: u64, load: Load) {
        let mut state = self.state();
        state.lent.remove(&id);
        state.puts -= usize::from(load == Load::Put);
        drop(state);
        self.freed.notify_all();
    }

    /// How many are killed and not dead.
    pub(super) fn abandoned(&self) -> usize {
        self.state().abandoned
    }

    /// The processes that wait for work.
    pub(super) fn idle_pids(&self) -> Vec<u32> {
        let state = self.state();
        state
            .idle
            .iter()
            .filter_map(|member| member.worker.pid())
            .collect()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// No worker is lent any more; those who wait for one get an error at once.
    pub(super) fn stop(self: &Arc<Pool>) {
        let mut state = self.state();
        state.stopped = true;
        let idle = std::mem::take(&mut state.idle);
        for near in state.lent.values() {
            cut(near);
        }
        drop(state);
        self.freed.notify_all();
        idle.into_iter().for_each(dismiss);
    }

    /// Those at work are not waited for any longer: whoever waits gets an error, and they are killed.
    pub(super) fn interrupt(&self) {
        for near in self.state().lent.values() {
            cut(near);
        }
    }

    /// Kills a worker without waiting for its end.
    fn abandon(self: &Arc<Pool>, worker: Worker) {
        self.state().abandoned += 1;
        let counted = Counted(Arc::clone(self));
        let end = worker.kill();
        let reaped = reap(move || {
            end();
            drop(counted);
        });
        if let Err(error) = reaped {
            tracing::warn!("nobody waits for the end of a worker that was killed: {error}");
        }
    }
}

fn dismiss(member: Member) {
    if let Err(error) = reap(member.worker.dismiss()) {
        tracing::debug!("nobody waits for a worker's end: {error}");
    }
}

/// One abandoned worker, until it is dead.
struct Counted(Arc<Pool>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.state().abandoned -= 1;
        self.0.freed.notify_all();
    }
}

impl Lease {
    pub(super) fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    pub(super) fn member_mut(&mut self) -> Option<&mut Member> {
        self.member.as_mut()
    }

    /// It hangs or talks nonsense: it is killed, and another will take its place.
    pub(super) fn lose(&mut self) {
        if let Some(member) = self.member.take() {
            let id = member.worker.id;
            self.pool.abandon(member.worker);
            self.pool.back(id, self.load);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(member) = self.member.take() else {
            return;
        };
        let id = member.worker.id;
        let mut state = self.pool.state();
        let dismissed = if state.stopped {
            Some(member)
        } else {
            state.idle.push(member);
            None
        };
        drop(state);
        self.pool.back(id, self.load);
        dismissed.into_iter().for_each(dismiss);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_leave_room_for_reads_and_reads_for_a_look() {
        let limits = PoolLimits::default();
        assert!(limits.admit(Load::Put, (2, 2)) && !limits.admit(Load::Put, (3, 3)));
        assert!(limits.admit(Load::Put, (3, 0)) && !limits.admit(Load::Put, (4, 0)));
        assert!(limits.admit(Load::Look, (3, 3)) && !limits.admit(Load::Look, (4, 3)));
        assert!(limits.admit(Load::Sign, (4, 3)) && !limits.admit(Load::Sign, (5, 3)));
        let one = PoolLimits {
            workers_max: 1,
            abandoned_max: 1,
        };
        for load in [Load::Put, Load::Change, Load::Look, Load::Sign] {
            assert!(one.admit(load, (0, 0)) && !one.admit(load, (1, 0)));
        }
    }
}
