//! A scan from its beginning to its report.
//!
//! ```text
//! source -> is it still the same? -> accounts -> directories -> files to be read
//!                                        |            |               |
//!                                        +------------+---------------+-> workers, the newest task first
//! all of an account seen -> deletions, if believable -> it is whole as of now
//! ```
//!
//! There is no cursor: what is in the volume carries its origin in the same transaction, so that a scan which was cut
//! off anywhere is gone on with by comparing again.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags};

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::scan::account::AccountRun;
use crate::scan::dirs::{DirTask, compare_dir};
use crate::scan::files::{FilesTask, read_files};
use crate::scan::globs::Filter;
use crate::scan::identity::Identity;
use crate::scan::plan;
use crate::scan::queue::Queue;
use crate::scan::read::FileReader;
use crate::scan::report::{Counts, Report, Tally};
use crate::scan::skips::Skips;
use crate::scan::source::{LastScan, Source};
use crate::scan::throttle::Throttle;
use crate::types::{Epoch, escape};
use crate::volume::Volume;

/// Between two words of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// Workers: more help where the source is far away, and each has a few MiB of buffers.
const WORKERS_MAX: usize = 8;

/// What is to be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All accounts.
    #[default]
    All,
    /// These accounts, by their names in the volume.
    Accounts(BTreeSet<Vec<u8>>),
    /// These directories: what a watcher saw change. Nothing else is looked at, and nothing costs anything.
    Dirty(Vec<Dirty>),
    /// The same, and which accounts there are: those that came, got another name or went.
    DirtyAccounts(Vec<Dirty>),
}

impl Scope {
    /// What a watcher saw change, if it is about that.
    pub fn dirty(&self) -> Option<&[Dirty]> {
        match self {
            Scope::Dirty(dirty) | Scope::DirtyAccounts(dirty) => Some(dirty),
            Scope::All | Scope::Accounts(_) => None,
        }
    }
}

/// Where something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirty {
    /// The account's directory, from the source's.
    pub account: Vec<u8>,
    /// Directories in it, from the account's; each is compared, and what is new in it with all below. `None`: all of it.
    pub dirs: Option<BTreeSet<Vec<u8>>>,
}

/// How it is to be done.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// What is looked at.
    pub scope: Scope,
    /// Read everything again, and compare.
    pub deep: bool,
    /// Believe every deletion, and every change of what the source stands on.
    pub accept_deletions: bool,
    /// Give up after so many items that could not be read.
    pub max_read_errors: Option<u64>,
    /// At most so many bytes a second.
    pub read_rate: Option<u64>,
}

/// How it stands, while it runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// So far.
    pub counts: Counts,
    /// What the last scan saw in the end: about what is to come. 0 if there was none.
    pub items_expected: u64,
    /// See `items_expected`.
    pub bytes_expected: u64,
    /// Whether the source is slow, and we pause.
    pub is_pausing: bool,
}

/// Who started it: how it ends it, and hears of it.
#[derive(Clone, Copy)]
pub struct Watcher<'a> {
    /// Set to stop it.
    pub stop: &'a AtomicBool,
    /// Told a few times a second.
    pub progress: &'a (dyn Fn(&Standing) + Sync),
}

impl fmt::Debug for Watcher<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").finish_non_exhaustive()
    }
}

/// Something to do.
#[derive(Debug)]
pub enum Task {
    /// Compare a directory.
    Dir(DirTask),
    /// Read files.
    Files(FilesTask),
}

/// A scan under way, as its workers see it.
#[derive(Debug)]
pub struct Scan<'a> {
    /// Into which volume.
    pub volume: &'a Volume,
    /// The wall time.
    pub clock: &'a dyn Clock,
    /// From where.
    pub source: &'a Source,
    /// How.
    pub ask: &'a Ask,
    /// What is left out.
    pub filter: Filter,
    /// What is ours, and is left out.
    pub skips: Skips,
    /// How fast.
    pub throttle: Throttle,
    /// The newest epoch before it: accounts were whole as of that one.
    pub base_epoch: Epoch,
    /// All together so far.
    pub progress: Tally,
    watcher: Watcher<'a>,
    queue: Queue<Task>,
    files_waiting: AtomicUsize,
    worker_count: usize,
    failed: AtomicBool,
    outcome: Mutex<Outcome>,
    runs: Mutex<Vec<Arc<AccountRun>>>,
}

#[derive(Debug, Default)]
struct Outcome {
    report: Report,
    failure: Option<Error>,
}

/// Scans a source. The volume has everything it found when this returns, and a moment later it is durable: whoever
/// needs that now commits.
pub fn scan(
    volume: &Volume,
    clock: &dyn Clock,
    source: &Source,
    ask: &Ask,
    watcher: Watcher<'_>,
) -> Result<Report> {
    let started = Instant::now();
    let began = clock.now().secs;
    let is_all = ask.scope == Scope::All;
    let root = open_source(source, ask)?;
    let mut source = source.clone();
    if ask.deep && is_all {
        source.deep_since.get_or_insert(began);
        source.put(volume)?;
    }
    raise_file_limit();
    let worker_count = thread::available_parallelism()
        .map_or(2, std::num::NonZero::get)
        .clamp(2, WORKERS_MAX);
    let scan = Scan {
        volume,
        clock,
        source: &source,
        ask,
        filter: source.filter()?,
        skips: Skips::new(volume.root())?,
        throttle: Throttle::new(ask.read_rate),
        base_epoch: base_epoch(volume, ask)?,
        progress: Tally::default(),
        watcher,
        queue: Queue::new(Vec::new()),
        files_waiting: AtomicUsize::new(0),
        worker_count,
        failed: AtomicBool::new(false),
        outcome: Mutex::default(),
        runs: Mutex::default(),
    };
    {
        let mut outcome = scan.outcome();
        outcome.report.source.clone_from(&source.path);
        outcome.report.uuid.clone_from(&source.uuid);
        outcome.report.deep = ask.deep;
        outcome.report.began = began;
    }
    plan::all(&scan, &root)?;
    scan.enter_unfinished();
    if let Some(witness) = volume.witness() {
        witness.settle();
    }
    let held = scan.throttle.held();
    let Outcome {
        mut report,
        failure,
    } = scan
        .outcome
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = failure {
        return Err(failure);
    }
    report.stopped = watcher.stop.load(Ordering::Relaxed);
    report.held_ms = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
    report.took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if is_all && !report.stopped {
        note_end(volume, clock, &report)?;
    }
    Ok(report)
}

/// The newest epoch before the scan. A small one closes none for itself.
fn base_epoch(volume: &Volume, ask: &Ask) -> Result<Epoch> {
    if ask.scope.dirty().is_some() {
        return Ok(volume.newest_epoch());
    }
    volume.close_epoch(None)
}

/// Notes in the source how a whole scan ended.
fn note_end(volume: &Volume, clock: &dyn Clock, report: &Report) -> Result<()> {
    // Anew: somebody may have changed or removed it meanwhile.
    let Some(mut source) = crate::scan::source::list(volume)?
        .into_iter()
        .find(|source| source.uuid == report.uuid)
    else {
        return Ok(());
    };
    source.identity = Some(Identity::of(&source.dir())?);
    source.last = Some(LastScan {
        began: report.began,
        ended: clock.now().secs,
        items: report.counts.items,
        bytes: report.counts.bytes,
        errors: report.errors.count,
    });
    if report.deep {
        source.deep_since = None;
    }
    source.put(volume)
}

/// Opens the source's directory, if it is the one that it was.
fn open_source(source: &Source, ask: &Ask) -> Result<Arc<OwnedFd>> {
    let dir = source.dir();
    let shown = dir.display();
    let found = Identity::of(&dir);
    let missing = |what: &str| {
        Error::Refused(format!(
            "the source {shown} {what}: nothing was scanned, and nothing marked as deleted. Mount it, or see what became of it"
        ))
    };
    let now = match found {
        Ok(now) => now,
        Err(Error::Io { source: error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            return Err(missing("is not there"));
        }
        Err(error) => return Err(error),
    };
    if let Some(before) = &source.identity
        && let Some(difference) = now.difference(before)
        && !ask.accept_deletions
    {
        return Err(missing(&format!(
            "is not what it was when it was last scanned: {difference}. If that is meant to be, use --accept-deletions; else"
        )));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, &dir, flags, Mode::empty())
        .map_err(|errno| Error::io("open the source", &dir)(errno.into()))?;
    Ok(Arc::new(opened))
}

/// A deep tree holds a directory open for each level.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(errno) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the limit of open files stays: {errno}");
    }
}

impl Scan<'_> {
    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the report.
    pub fn report<T>(&self, change: impl FnOnce(&mut Report) -> T) -> T {
        change(&mut self.outcome().report)
    }

    /// An account will be compared.
    pub fn takes_on(&self, account: &Arc<AccountRun>) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.push(Arc::clone(account));
    }

    /// What was done of accounts that did not come to their end.
    fn enter_unfinished(&self) {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        for account in runs.iter().filter(|account| !account.has_ended()) {
            let report = account.report("unfinished");
            self.report(|all| all.enter(report));
        }
    }

    /// Whether it is to end.
    pub fn is_stopped(&self) -> bool {
        self.watcher.stop.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    /// An error if it is to end: nobody is told, everybody goes.
    pub fn go_on(&self) -> Result<()> {
        if self.is_stopped() {
            return Err(Errno::ECANCELED.into());
        }
        Ok(())
    }

    /// An item could not be read. It stays in the volume as it was.
    pub fn cannot_read(&self, account: &AccountRun, path: &[u8], error: &io::Error) -> Result<()> {
        let text = || format!("{}/{}: {error}", account.shown, escape(path));
        self.source_error(text)
    }

    /// The same, of something outside of an account.
    pub fn source_error(&self, text: impl FnOnce() -> String) -> Result<()> {
        let count = self.report(|report| {
            report.errors.add(text);
            report.errors.count
        });
        match self.ask.max_read_errors {
            Some(max) if count > max => {
                let first = self.report(|report| report.errors.named.first().cloned());
                Err(Error::Refused(format!(
                    "over {max} items could not be read, the first: {}. What was read is in the volume, nothing was marked \
                     as deleted since; the next scan goes on",
                    first.unwrap_or_default()
                )))
            }
            _ => Ok(()),
        }
    }

    /// A file changed while it was read.
    pub fn is_changing(&self, account: &AccountRun, path: &[u8]) {
        let text = || format!("{}/{}", account.shown, escape(path));
        self.report(|report| report.changing.add(text));
    }

    /// Only rereading found it.
    pub fn was_missed(&self, account: &AccountRun, path: &[u8]) {
        let text = || format!("{}/{}", account.shown, escape(path));
        self.report(|report| report.missed.add(text));
    }

    /// Nothing is marked as deleted there.
    pub fn refuse(&self, why: String) {
        tracing::warn!("{why}");
        self.report(|report| report.refused.push(why));
    }

    /// One more task.
    pub fn push(&self, task: Task) {
        let account = match &task {
            Task::Dir(dir) => &dir.account,
            Task::Files(files) => {
                self.files_waiting.fetch_add(1, Ordering::Relaxed);
                &files.dir_task.account
            }
        };
        account.pending.fetch_add(1, Ordering::AcqRel);
        self.queue.push(task);
    }

    /// Does what others are behind with, so that it does not pile up.
    pub fn help(&self, reader: &mut FileReader) {
        while self.files_waiting.load(Ordering::Relaxed) > 4 * self.worker_count {
            let is_files = |task: &Task| matches!(task, Task::Files(_));
            let Some(task) = self.queue.next_if(is_files) else {
                return;
            };
            self.perform(task, reader);
        }
    }

    /// Runs all that is in the queue, and what comes of it.
    pub fn run(&self) {
        thread::scope(|scope| {
            for n in 0..self.worker_count {
                let worker = thread::Builder::new()
                    .name(format!("scan-{n}"))
                    .spawn_scoped(scope, || self.work());
                if let Err(error) = worker {
                    self.fail(Error::io("start", "a scan thread")(error));
                }
            }
            while !self.queue.wait(PROGRESS_INTERVAL) {
                self.tell();
            }
        });
        self.queue.open();
        self.tell();
    }

    fn tell(&self) {
        let last = self.source.last.as_ref();
        (self.watcher.progress)(&Standing {
            counts: self.progress.counts(),
            items_expected: last.map_or(0, |last| last.items),
            bytes_expected: last.map_or(0, |last| last.bytes),
            is_pausing: !self.throttle.pause().is_zero(),
        });
    }

    fn work(&self) {
        let mut reader = FileReader::default();
        while let Some(task) = self.queue.next() {
            self.perform(task, &mut reader);
        }
    }

    fn perform(&self, task: Task, reader: &mut FileReader) {
        let _done = Done(&self.queue);
        let account = match &task {
            Task::Dir(dir) => Arc::clone(&dir.account),
            Task::Files(files) => {
                self.files_waiting.fetch_sub(1, Ordering::Relaxed);
                Arc::clone(&files.dir_task.account)
            }
        };
        if self.is_stopped() {
            return;
        }
        let outcome = match &task {
            Task::Dir(dir) => compare_dir(self, reader, dir),
            Task::Files(files) => read_files(self, reader, files),
        };
        drop(task);
        if let Err(error) = outcome {
            return self.fail(error);
        }
        if account.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            let ended = account.finish(self).and_then(|again| {
                if again.is_empty() {
                    let report = account.end(self)?;
                    self.report(|all| all.enter(report));
                    return Ok(());
                }
                // They keep each other waiting for the end.
                account.pending.fetch_add(1, Ordering::AcqRel);
                for task in again {
                    self.push(Task::Dir(task));
                }
                account.pending.fetch_sub(1, Ordering::AcqRel);
                Ok(())
            });
            if let Err(error) = ended {
                self.fail(error);
            }
        }
    }

    fn fail(&self, error: Error) {
        let is_stop = matches!(error, Error::Posix(Errno::ECANCELED));
        if !is_stop {
            self.outcome().failure.get_or_insert(error);
        }
        self.failed.store(true, Ordering::Relaxed);
    }
}

/// A task is done, however it ends.
struct Done<'a>(&'a Queue<Task>);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done();
    }
}
