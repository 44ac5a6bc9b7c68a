//! A directory volume whose system calls are made by other processes, so that a mount that hangs in the kernel hangs
//! nobody else (invariant 5).
//!
//! A thread that is stuck in a hung mount cannot be ended, and keeps its whole process, with its locks and its mounts,
//! alive past SIGKILL. A worker process holds nothing but the root of the volume: when its deadline has passed it is
//! killed and left to itself, and another takes its place.
//!
//! - [`run_worker`], `serve`: the worker's side, a [`DirVolume`](crate::DirVolume) behind a line;
//! - `message`, `wire`: what is asked and answered, as bytes;
//! - `worker`: one worker as its owner sees it; `pool`: so many of them, lent for one operation each;
//! - `roots`: which root of the volume they may use;
//! - here: the volume and its deadlines.
//!
//! Identity with several roots: each worker opens the root for itself, together with a look at the very bytes of the
//! sentinel that were accepted here, and says with every answer which root it was about. One that is another than the
//! known one makes all workers open theirs anew, and the next look says so (invariant 7).
//!
//! Locks: `identity` only, and never while a worker is asked.

mod message;
mod pool;
mod roots;
mod serve;
mod wire;
mod worker;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use crate::dir::sum;
use crate::error::{At, Error, ErrorCase, ErrorClass, Result};
use crate::identity::Sentinel;
use crate::key::ObjectKey;
use crate::layer::retry::StopSignal;
use crate::volume::{Body, Capabilities, Likeness, Meta, Page, Precondition, Space, Volume};

use message::{Answer, Answered, Request};
use pool::{Lease, Load, NoWorker, Pool};
use roots::Identity;
use wire::PAGE_LEN_MAX;
use worker::{Silence, Worker};

pub use pool::PoolLimits;
pub use serve::{run_worker, serve};
pub use worker::Start;

/// How long an operation may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadlines {
    /// For one that moves no body, and for each piece of a body.
    pub base: Duration,
    /// A body gets in addition what it takes at this rate: less is no use to anybody.
    pub rate_min_bytes_per_sec: u64,
}

impl Default for Deadlines {
    /// Half a minute: servers restart in less. 32 KiB a second: several share a thin line. It may be so low because it
    /// finds no outage: a volume that is silent is asked for a sign of life long before.
    fn default() -> Deadlines {
        Deadlines {
            base: Duration::from_secs(30),
            rate_min_bytes_per_sec: 32 << 10,
        }
    }
}

impl Deadlines {
    fn for_len(&self, len: u64) -> Duration {
        let secs = len / self.rate_min_bytes_per_sec.max(1);
        self.base.saturating_add(Duration::from_secs(secs))
    }

    /// Each name is a round trip or two.
    fn for_names(&self, count: usize) -> Duration {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.base
            .saturating_add(Duration::from_millis(50).saturating_mul(count))
    }

    /// A dozen operations, some of which wait for a disk.
    fn for_probe(&self) -> Duration {
        self.base.saturating_mul(4)
    }

    /// A walk through everything.
    fn for_walk(&self) -> Duration {
        self.base.saturating_mul(20)
    }
}

/// How a volume is isolated.
#[derive(Clone, Debug)]
pub struct IsolateOptions {
    /// What a worker is.
    pub start: Start,
    /// How many there may be.
    pub limits: PoolLimits,
    /// How long each gets.
    pub deadlines: Deadlines,
    /// When it is raised, nothing is waited for any more.
    pub stop: StopSignal,
}

/// A directory volume that never blocks its caller for longer than its deadlines.
#[derive(Debug)]
pub struct IsolatedDir {
    name: String,
    path: PathBuf,
    deadlines: Deadlines,
    pool: Arc<Pool>,
    identity: Mutex<Identity>,
    /// What all workers' temporary names begin with: they write in the name of one volume.
    tag: u64,
}

impl IsolatedDir {
    /// The volume in the directory `path`, which is recognised by `sentinel`, if there is one. Nothing is looked at yet:
    /// that comes with the first operation, within its deadline.
    pub fn new(
        path: impl AsRef<Path>,
        sentinel: Option<Sentinel>,
        options: IsolateOptions,
    ) -> IsolatedDir {
        let path = path.as_ref().to_owned();
        let pool = Pool::new(options.start, options.limits);
        let weak = Arc::downgrade(&pool);
        options.stop.on_stop(move || {
            if let Some(pool) = weak.upgrade() {
                pool.stop();
            }
        });
        IsolatedDir {
            name: format!("dir:{}", path.display()),
            path,
            deadlines: options.deadlines,
            pool,
            identity: Mutex::new(Identity::new(sentinel)),
            tag: RandomState::new().hash_one((std::process::id(), SystemTime::now())),
        }
    }

    /// The directory's path without symbolic links.
    pub fn canonical(&self) -> Result<PathBuf> {
        let at = self.at("open", "");
        let request = Request::Resolve {
            path: self.path.clone(),
        };
        let deadline = Instant::now() + self.deadlines.base;
        let mut lease = self.lend(at, Load::Look, deadline)?;
        match self.ask(&mut lease, at, &request, deadline)?.answer {
            Answer::Path(path) => Ok(path),
            _ => Err(Self::nonsense(at)),
        }
    }

    /// How many workers are killed and will not die, for they hang in the kernel.
    pub fn abandoned(&self) -> usize {
        self.pool.abandoned()
    }

    /// Another mount stands in its place: what the one before was asked is not waited for. It is asked of the new one,
    /// by whoever asks again.
    pub fn mounted_anew(&self) {
        self.pool.interrupt();
    }

    /// The processes of workers that wait for something to do.
    pub fn idle_pids(&self) -> Vec<u32> {
        self.pool.idle_pids()
    }

    fn at<'a>(&'a self, op: &'static str, key: &'a str) -> At<'a> {
        At {
            volume: &self.name,
            op,
            key,
        }
    }

    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nonsense(at: At<'_>) -> Error {
        at.error(
            ErrorClass::Transient,
            "its worker gave an answer to another question; it is asked again",
        )
    }

    fn lend(&self, at: At<'_>, load: Load, deadline: Instant) -> Result<Lease> {
        self.pool.lend(load, deadline).map_err(|why| match why {
            NoWorker::AllHang(count) => at
                .error(
                    ErrorClass::Unreachable,
                    format!(
                        "{count} workers hang in it and cannot be ended: mend the mount or its server, or take it away \
                         with umount -f or umount -l"
                    ),
                )
                .with_case(ErrorCase::TimedOut),
            NoWorker::Late => at.error(
                ErrorClass::Unreachable,
                "all its workers were busy until the time was up: it is slow or hangs",
            ),
            NoWorker::Stopped => at.error(ErrorClass::Unreachable, CLOSING),
            NoWorker::CannotStart(error) => at
                .error(ErrorClass::Transient, "a worker for it cannot be started")
                .with_source(error),
        })
    }

    /// Asks a worker something; an answer that is an error is returned as one. Who does not answer is lost.
    fn ask(
        &self,
        lease: &mut Lease,
        at: At<'_>,
        request: &Request,
        deadline: Instant,
    ) -> Result<Answered> {
        self.ask_by(lease, at, deadline, |worker| {
            worker.ask(request, deadline).map(|answered| (answered, ()))
        })
        .map(|(answered, ())| answered)
    }

    fn ask_by<T>(
        &self,
        lease: &mut Lease,
        at: At<'_>,
        deadline: Instant,
        ask: impl FnOnce(&Worker) -> std::result::Result<(Answered, T), Silence>,
    ) -> Result<(Answered, T)> {
        let started = Instant::now();
        let Some(member) = lease.member() else {
            return Err(Self::nonsense(at));
        };
        let (answered, extra) = match ask(&member.worker) {
            Ok(answer) => answer,
            Err(Silence::Local(error)) => return Err(error),
            Err(Silence::Late) => {
                let waited = deadline
                    .min(Instant::now())
                    .saturating_duration_since(started);
                let worker = member.worker.name();
                self.lose(lease);
                let message = format!(
                    "no answer for {} s, and {worker} that asked it was given up: the mount or its server hangs",
                    waited.as_secs_f32().round()
                );
                return Err(at
                    .error(ErrorClass::Unreachable, message)
                    .with_case(ErrorCase::TimedOut));
            }
            Err(Silence::Broken(error)) => {
                self.lose(lease);
                return Err(self.broken(at, error));
            }
        };
        if let Answer::Failed(error) = answered.answer {
            if error.is_wrong_volume()
                && let Some(member) = lease.member_mut()
            {
                // It may refuse everything from here on: its next one begins with a new root.
                member.opened_in = None;
            }
            self.note_place(lease, answered.place);
            return Err(error);
        }
        Ok((answered, extra))
    }

    fn broken(&self, at: At<'_>, error: io::Error) -> Error {
        if self.pool.is_stopped() {
            return at.error(ErrorClass::Unreachable, CLOSING);
        }
        let message = "its worker ended before it answered; another is started";
        at.error(ErrorClass::Transient, message).with_source(error)
    }

    /// One operation: a worker, its root, the question, the answer.
    fn run<T>(
        &self,
        at: At<'_>,
        (load, patience): (Load, Duration),
        ask: impl FnOnce(&Worker, Instant) -> std::result::Result<(Answered, T), Silence>,
    ) -> Result<(Answer, T)> {
        if self.identity().barred {
            return Err(at.barred());
        }
        let deadline = Instant::now() + patience;
        let mut lease = self.lend(at, load, deadline)?;
        self.prepare(&mut lease, at, deadline)?;
        let looks = self.identity().looks;
        let (answered, extra) =
            self.ask_by(&mut lease, at, deadline, |worker| ask(worker, deadline))?;
        if let Some(member) = lease
            .member_mut()
            .filter(|_| matches!(load, Load::Put | Load::Change))
        {
            member.changed_in = Some(looks);
        }
        self.note_place(&mut lease, answered.place);
        Ok((answered.answer, extra))
    }

    fn run_request(
        &self,
        at: At<'_>,
        (load, patience): (Load, Duration),
        request: &Request,
    ) -> Result<Answer> {
        self.run(at, (load, patience), |worker, deadline| {
            worker.ask(request, deadline).map(|answered| (answered, ()))
        })
        .map(|(answer, ())| answer)
    }
}

const CLOSING: &str = "it was not waited for, because the volume is being closed";

impl Drop for IsolatedDir {
    fn drop(&mut self) {
        self.pool.stop();
    }
}

impl fmt::Display for IsolatedDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Volume for IsolatedDir {
    fn put(&self, key: &ObjectKey, body: Body<'_>, precondition: Precondition) -> Result<Meta> {
        let at = self.at("put", key.as_str());
        let patience = self.deadlines.for_len(body.len());
        let request = Request::Put {
            key: key.clone(),
            len: body.len(),
            if_absent: precondition == Precondition::IfAbsent,
        };
        let piece = self.deadlines.base;
        let answered = self.run(at, (Load::Put, patience), |worker, deadline| {
            let answered = worker.ask_put((&request, &self.name, key), body, (deadline, piece))?;
            Ok((answered, ()))
        });
        match answered? {
            (Answer::Meta(Some(meta)), ()) => Ok(meta),
            _ => Err(Self::nonsense(at)),
        }
    }

    fn get(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        let at = self.at("get", key.as_str());
        let len = range.end.saturating_sub(range.start);
        let patience = self.deadlines.for_len(len);
        let request = Request::Get {
            key: key.clone(),
            range,
        };
        let answered = self.run(at, (Load::Look, patience), |worker, deadline| {
            worker.ask_bytes(&request, len, deadline)
        });
        match answered? {
            (Answer::Bytes(_), bytes) => Ok(bytes),
            _ => Err(Self::nonsense(at)),
        }
    }

    fn head(&self, key: &ObjectKey) -> Result<Option<Meta>> {
        let at = self.at("look up", key.as_str());
        let request = Request::Head { key: key.clone() };
        match self.run_request(at, (Load::Look, self.deadlines.base), &request)? {
            Answer::Meta(meta) => Ok(meta),
            _ => Err(Self::nonsense(at)),
        }
    }

    fn compare(&self, key: &ObjectKey, body: Body<'_>) -> Result<Option<Likeness>> {
        let at = self.at("compare", key.as_str());
        let len = body.len();
        let ours = sum::of_body(&self.name, key, body)?;
        let request = Request::Sum {
            key: key.clone(),
            len,
        };
        let patience = self.deadlines.for_len(len);
        match self.run_request(at, (Load::Look, patience), &request)? {
            Answer::Sum(theirs) => Ok(Some(theirs.compared(ours))),
            _ => Err(Self::nonsense(at)),
        }
    }

    /// At most a thousand at once: a longer page would not be within its deadline everywhere.
    fn list(&self, prefix: &str, after: Option<&ObjectKey>, limit: NonZeroUsize) -> Result<Page> {
        let at = self.at("list", prefix);
        let request = Request::List {
            prefix: prefix.to_owned(),
            after: after.cloned(),
            limit: limit.get().min(PAGE_LEN_MAX) as u64,
        };
        match self.run_request(
            at,
            (Load::Look, self.deadlines.for_names(PAGE_LEN_MAX)),
            &request,
        )? {
            Answer::Page(page) => Ok(page),
            _ => Err(Self::nonsense(at)),
        }
    }

    fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        let at = self.at("delete", "");
        for some in keys.chunks(PAGE_LEN_MAX) {
            let patience = self.deadlines.for_names(some.len());
            let request = Request::Delete {
                keys: some.to_vec(),
            };
            let Answer::Done = self.run_request(at, (Load::Change, patience), &request)? else {
                return Err(Self::nonsense(at));
            };
        }
        Ok(())
    }

    fn space(&self) -> Result<Option<Space>> {
        let at = self.at("measure", "");
        match self.run_request(at, (Load::Sign, self.deadlines.base), &Request::Space)? {
            Answer::Space(space) => Ok(space),
            _ => Err(Self::nonsense(at)),
        }
    }

    fn probe(&self) -> Result<Capabilities> {
        let at = self.at("probe", "");
        match self.run_request(
            at,
            (Load::Look, self.deadlines.for_probe()),
            &Request::Probe,
        )? {
            Answer::Capabilities(found) => Ok(*found),
            _ => Err(Self::nonsense(at)),
        }
    }

    fn bind(&self, sentinel: Sentinel) -> Result<()> {
        let at = self.at("bind", "");
        let deadline = Instant::now() + self.deadlines.base;
        self.rebind(at, sentinel, deadline)
    }

    fn verify_identity(&self) -> Result<()> {
        let deadline = Instant::now() + self.deadlines.base;
        self.look(self.at("identify", ""), deadline)
    }

    fn sweep_temporary(&self, below: &[&str], older_than: Duration) -> Result<u64> {
        let at = self.at("sweep", "");
        let request = Request::Sweep {
            below: below.iter().map(|prefix| (*prefix).to_owned()).collect(),
            older_than,
        };
        match self.run_request(at, (Load::Look, self.deadlines.for_walk()), &request)? {
            Answer::Count(count) => Ok(count),
            _ => Err(Self::nonsense(at)),
        }
    }
}
