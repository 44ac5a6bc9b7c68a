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
    /// At work at the same time. Puts take all but one, so that a look or a read need not wait for a long body.
    pub workers_max: usize,
    /// Killed and not dead yet, for they hang in the kernel. With so many, nothing is asked until one is dead.
    pub abandoned_max: usize,
}

impl Default for PoolLimits {
    /// Four at work keep a disk or a share busy; four that hang cost little, and a fifth would learn nothing new.
    fn default() -> PoolLimits {
        PoolLimits {
            workers_max: 4,
            abandoned_max: 4,
        }
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
        let workers_max = self.limits.workers_max.max(1);
        let puts_max = (workers_max - 1).max(1);
        let mut state = self.state();
        let (id, line) = loop {
            if state.stopped {
                return Err(NoWorker::Stopped);
            }
            if state.abandoned >= self.limits.abandoned_max.max(1) {
                return Err(NoWorker::AllHang(state.abandoned));
            }
            if load != Load::Put || state.puts < puts_max {
                if let Some(member) = state.idle.pop() {
                    let (id, near) = (member.worker.id, member.worker.line());
                    state.lent.insert(id, near);
                    state.puts += usize::from(load == Load::Put);
                    return Ok(self.lease(load, Some(member)));
                }
                if state.lent.len() < workers_max {
                    let line = Line::new().map_err(NoWorker::CannotStart)?;
                    let id = state.next;
                    state.next += 1;
                    state.lent.insert(id, Arc::clone(&line.near));
                    state.puts += usize::from(load == Load::Put);
                    break (id, line);
                }
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
        drop(state);
        match Worker::start(&self.start, id, line) {
            Ok(worker) => {
                let member = Member {
                    worker,
                    opened_in: None,
                    changed_in: None,
                };
                Ok(self.lease(load, Some(member)))
            }
            Err(error) => {
                self.back(id, load);
                Err(NoWorker::CannotStart(error))
            }
        }
    }

    fn lease(self: &Arc<Pool>, load: Load, member: Option<Member>) -> Lease {
        Lease {
            pool: Arc::clone(self),
            load,
            member,
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
