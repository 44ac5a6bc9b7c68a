//! The watched sources of a serving process: what changes in them is scanned a moment later, and nothing else is.
//!
//! One thread decides when; the scans themselves are operations like all others, so that they can be seen and stopped,
//! and never run beside another scan of the same source.

mod pace;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::Serialize;
use serde_json::Value;

use crate::clock::{Clock, SystemClock};
use crate::daemon::failure::Failure;
use crate::daemon::ops::{OpHandle, Ops, What};
use crate::daemon::scanning::{key_of, one};
use crate::error::{Error, Result};
use crate::scan::report::Report;
use crate::scan::run::{Ask, Scope};
use crate::scan::source::{self, Source};
use crate::scan::watch::{Accounts, Kind, Lens, Place, Plan, Status, Watcher};
use crate::types::unescape;
use crate::volume::Volume;

use pace::Pace;

/// Says by what to watch, in place of the best there is: `fanotify` or `inotify`.
pub const VARIABLE: &str = "TIDEFS_WATCH";
/// A scan waits this long to hear what changed before it was asked for; then it looks at everything.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);
/// The thread looks again at least this often.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The watched sources. Nothing is watched until [`Watches::begin`].
#[derive(Debug)]
pub struct Watches {
    volume: Arc<Volume>,
    ops: Arc<Ops>,
    table: Mutex<BTreeMap<String, Watched>>,
    bell: Sender<()>,
    rung: Receiver<()>,
    /// The operation that scans what changed, while it runs. Held while one is started.
    running: Mutex<Option<u64>>,
    is_ended: AtomicBool,
}

#[derive(Debug)]
struct Watched {
    source: Source,
    watcher: Arc<Watcher>,
    pace: Pace,
    /// How often the watch was lost when the pace was last thought of.
    losses: u64,
}

/// How the watch of a source goes, for `status`.
#[derive(Clone, Debug, Serialize)]
pub struct SourceWatch {
    /// Where the source is.
    pub source: String,
    /// How it goes.
    #[serde(flatten)]
    pub status: Status,
}

impl Watches {
    /// Of this volume, which scans through `ops`.
    pub fn new(volume: Arc<Volume>, ops: Arc<Ops>) -> Arc<Watches> {
        let (bell, rung) = bounded(1);
        Arc::new(Watches {
            volume,
            ops,
            table: Mutex::default(),
            bell,
            rung,
            running: Mutex::default(),
            is_ended: AtomicBool::new(false),
        })
    }

    /// Begins to watch, and to scan what changes.
    pub fn begin(self: &Arc<Watches>) -> Result<()> {
        let watches = Arc::clone(self);
        thread::Builder::new()
            .name("watch-scan".into())
            .spawn(move || watches.run())
            .map_err(Error::io("start", "the thread of the watched sources"))?;
        Ok(())
    }

    /// No more scans are begun.
    pub fn end(&self) {
        self.is_ended.store(true, Ordering::Relaxed);
        self.table().clear();
        self.ring();
    }

    /// Sources may have been added or removed.
    pub fn ring(&self) {
        // Full: it is ringing already.
        let _ = self.bell.try_send(());
    }

    /// The operation that scans what changed, if one runs: whoever wants to scan waits for it.
    pub fn running(&self) -> Option<u64> {
        *self.running_slot()
    }

    fn running_slot(&self) -> MutexGuard<'_, Option<u64>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the watches go.
    pub fn status(&self) -> Vec<SourceWatch> {
        let table = self.table();
        let status = |watched: &Watched| SourceWatch {
            source: watched.source.path.clone(),
            status: watched.watcher.status(),
        };
        table.values().map(status).collect()
    }

    /// Scans a source as far as that is needed: of one that is watched, what changed. `scan` does it.
    pub fn scan(
        &self,
        source: &Source,
        ask: &Ask,
        scan: impl FnOnce(&Ask) -> Result<Report, Failure>,
    ) -> Result<Report, Failure> {
        let watcher = self
            .table()
            .get(&source.uuid)
            .map(|watched| Arc::clone(&watched.watcher));
        let Some(watcher) = watcher.filter(|_| ask.scope == Scope::All) else {
            return scan(ask);
        };
        if !watcher.settle(SETTLE_PATIENCE) {
            return scan(ask);
        }
        let Some(dirty) = watcher.take() else {
            return scan(ask);
        };
        let is_partial = !ask.deep && !ask.accept_deletions && !dirty.is_everything();
        if is_partial && dirty.is_empty() {
            return Ok(unchanged(source));
        }
        let mut ask = ask.clone();
        if is_partial {
            ask.scope = dirty.scope();
        }
        let may_have_new = !is_partial || dirty.has_new_accounts();
        let outcome = scan(&ask);
        if !outcome.as_ref().is_ok_and(is_clean) {
            watcher.give_back(dirty);
        }
        // Also after one that failed: it may have found some, and what changes in them counts from there on.
        if may_have_new {
            watcher.know(accounts_of(&self.volume, source)?);
        }
        outcome
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Watched>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self: &Arc<Watches>) {
        while !self.is_ended.load(Ordering::Relaxed) {
            if let Err(error) = self.refresh() {
                tracing::error!("cannot watch: {}", error.chain());
            }
            let (due, wait) = self.due();
            match due {
                Some(source) => self.catch_up(source),
                None => {
                    // Rung or not: it is looked at again.
                    let _ = self.rung.recv_timeout(wait);
                }
            }
        }
    }

    /// Watches the sources that are to be watched, and no others.
    fn refresh(&self) -> Result<()> {
        let sources = source::list(&self.volume)?;
        let mut table = self.table();
        table.retain(|uuid, _| {
            let is_it = |source: &&Source| source.uuid == *uuid && source.watch;
            sources.iter().any(|source| is_it(&source))
        });
        for source in sources.into_iter().filter(|source| source.watch) {
            if table.contains_key(&source.uuid) || self.is_ended.load(Ordering::Relaxed) {
                continue;
            }
            let watcher = Arc::new(Watcher::start(self.plan(&source)?, self.bell.clone())?);
            let watched = Watched {
                watcher,
                pace: Pace::default(),
                losses: 0,
                source,
            };
            table.insert(watched.source.uuid.clone(), watched);
        }
        Ok(())
    }

    fn plan(&self, source: &Source) -> Result<Plan> {
        let root = source.dir();
        let backup = std::fs::canonicalize(self.volume.root())
            .map_err(Error::io("find", self.volume.root()))?;
        let skip = backup.strip_prefix(&root).ok().map(Path::to_owned);
        Ok(Plan {
            lens: Lens {
                accounts: accounts_of(&self.volume, source)?,
                filter: source.filter()?,
                ours: skip.clone().into_iter().collect(),
            },
            place: Place {
                root,
                one_file_system: source.one_file_system,
                skip,
            },
            kind: forced(),
            clock: Arc::new(SystemClock),
        })
    }

    /// A source that is to be scanned now; else how long until one may be.
    fn due(&self) -> (Option<Source>, Duration) {
        let now = Instant::now();
        let mut wait = LOOK_EVERY;
        for watched in self.table().values_mut() {
            let Some(waiting) = watched.watcher.waiting() else {
                continue;
            };
            let losses = watched.watcher.status().losses;
            if losses != watched.losses {
                // What failed before, such as an unmounted source, may be well again.
                watched.losses = losses;
                watched.pace = Pace::default();
            }
            let own = watched.pace.wait(waiting, now);
            if own.is_zero() {
                return (Some(watched.source.clone()), wait);
            }
            wait = wait.min(own);
        }
        (None, wait)
    }

    /// Scans what changed in a source.
    fn catch_up(self: &Arc<Watches>, source: Source) {
        let what = What {
            kind: "scan",
            about: source.path.clone(),
            keys: vec![key_of(&source)],
            since: SystemClock.now().secs,
        };
        let (uuid, path) = (source.uuid.clone(), source.path.clone());
        let watches = Arc::clone(self);
        let (told, outcome) = bounded(1);
        let began = Instant::now();
        let mut running = self.running_slot();
        let started = self.ops.start(what, move |handle| {
            let report = watches.scan_changes(&source, handle);
            let is_clean = report.as_ref().is_ok_and(is_clean);
            // Nobody waits only when we end.
            let _ = told.send(is_clean);
            let report = report?;
            Ok(serde_json::to_value(report).unwrap_or(Value::Null))
        });
        *running = started.as_ref().ok().copied();
        drop(running);
        let ended = started.map(|id| {
            let end = self
                .ops
                .follow(id, &mut |_| !self.is_ended.load(Ordering::Relaxed));
            (end, outcome.try_recv().unwrap_or(false))
        });
        *self.running_slot() = None;
        let mut table = self.table();
        let Some(watched) = table.get_mut(&uuid) else {
            return;
        };
        match ended {
            Err(_) => watched.pace.is_busy(Instant::now()),
            Ok((end, is_clean)) => {
                if let Err(failure) = &end {
                    tracing::warn!(
                        source = path,
                        "a scan of what changed failed: {}",
                        failure.text
                    );
                }
                let now = Instant::now();
                watched.pace.ended(began.elapsed(), is_clean, now);
            }
        }
    }

    fn scan_changes(&self, source: &Source, handle: &OpHandle) -> Result<Report, Failure> {
        let report = self.scan(source, &Ask::default(), |ask| {
            one(&self.volume, source, ask, handle)
        })?;
        if report.counts.has_changes() {
            // The epoch closes in its own time: the changes are in the backup with this.
            self.volume.commit()?;
        }
        Ok(report)
    }
}

/// Nothing is left to be done again.
fn is_clean(report: &Report) -> bool {
    report.errors.count == 0
        && report.changing.count == 0
        && report.refused.is_empty()
        && !report.stopped
}

/// Of a source in which nothing changed since its last scan.
fn unchanged(source: &Source) -> Report {
    Report {
        source: source.path.clone(),
        uuid: source.uuid.clone(),
        began: SystemClock.now().secs,
        ..Report::default()
    }
}

/// The directories of a source that are accounts, as its last scan found them.
fn accounts_of(volume: &Volume, source: &Source) -> Result<Accounts> {
    let entries = volume.accounts()?;
    let live = entries.iter().filter(|entry| entry.name.is_some());
    let fed = live.filter_map(|entry| entry.record.fed.as_ref());
    let paths = fed
        .filter(|fed| fed.source == source.uuid)
        .filter_map(|fed| unescape(&fed.path));
    Ok(paths
        .map(|path| PathBuf::from(OsString::from_vec(path)))
        .collect())
}

fn forced() -> Option<Kind> {
    let name = std::env::var_os(VARIABLE)?;
    let kind = name.to_str().and_then(Kind::parse);
    if kind.is_none() {
        tracing::warn!("{VARIABLE} is neither fanotify nor inotify: the best there is watches");
    }
    kind
}
