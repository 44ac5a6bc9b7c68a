//! Opening external volumes: every one that this program uses is opened here, in the same layers.
//!
//! From below: the kind; for a mounted directory in other processes, so that a mount that hangs holds nobody up; retry,
//! for what passes in seconds; a circuit breaker, for what does not (invariant 5).

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use vfs::dir::MountWatch;
use vfs::isolate::{Deadlines, IsolateOptions, PoolLimits, Start};
use vfs::s3::S3Limits;
use vfs::{
    Breaker, BreakerPolicy, Circuit, Guarded, IsolatedDir, ObjectKey, Retry, RetryPolicy, Sentinel,
    Spec, StopSignal,
};

use crate::buckets;
use crate::error::{Error, Result};
use crate::format::record::{IDENTITY_NAME, Identity};
use crate::volume::settings::Settings;

/// The word behind the program's name that makes it a worker, before anything else is read.
pub const WORKER_WORD: &str = "dir-worker";

/// Whether this program, started with [`WORKER_WORD`], is a worker.
static IS_WORKER: OnceLock<()> = OnceLock::new();

/// Says that this program, started with [`WORKER_WORD`], is a worker: then mounted directories are used through
/// processes. Before, and in programs that embed the engine, through threads.
pub fn work_in_processes() {
    // Said twice it is as true.
    let _ = IS_WORKER.set(());
}

fn start_of(path: &Path) -> Start {
    if IS_WORKER.get().is_none() {
        return Start::Thread;
    }
    let path = path.to_owned();
    Start::Process(Arc::new(move || {
        // The very program that runs, also after an upgrade has put another in its place.
        let mut command = Command::new("/proc/self/exe");
        // The path is for people who look at processes.
        command.arg0("tidefs").arg(WORKER_WORD).arg(&path);
        command.env_clear();
        command
    }))
}

/// An external volume in its layers.
#[derive(Clone, Debug)]
pub struct ExternalStore {
    guarded: Guarded,
    dir: Option<Arc<IsolatedDir>>,
    /// Of its directory, for as long as it is used.
    _watch: Option<Arc<MountWatch>>,
}

/// Whether the external volume answers, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum CircuitStatus {
    /// It does, as far as is known.
    Up {
        /// Workers that hang in it.
        hung_workers: usize,
    },
    /// It was unreachable lately, and is still asked.
    Degraded {
        /// Seconds since 1970.
        since: u64,
        /// Why.
        reason: String,
        /// Workers that hang in it.
        hung_workers: usize,
    },
    /// It is looked for, and not asked.
    Down {
        /// Seconds since 1970.
        since: u64,
        /// Why.
        reason: String,
        /// Workers that hang in it.
        hung_workers: usize,
    },
}

impl ExternalStore {
    /// In its layers, for whoever uses it.
    pub fn guarded(&self) -> Guarded {
        self.guarded.clone()
    }

    /// Lets go of everybody who waits for it, for good.
    pub fn stop(&self) {
        self.guarded.breaker.stop();
    }

    /// For how long it has been asked for something without any answer, if it has.
    pub fn silence(&self) -> Option<Duration> {
        self.guarded.breaker.silence()
    }

    /// Whether it gives a sign of life within `patience`. If not, it is taken for down.
    pub fn answers_within(&self, patience: Duration) -> bool {
        self.guarded.breaker.answers_within(patience)
    }

    /// For `status`.
    pub fn circuit(&self) -> CircuitStatus {
        let hung_workers = self.dir.as_ref().map_or(0, |dir| dir.abandoned());
        let secs = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |time| time.as_secs())
        };
        match self.guarded.breaker.circuit() {
            Circuit::Up => CircuitStatus::Up { hung_workers },
            Circuit::Degraded { since, reason } => CircuitStatus::Degraded {
                since: secs(since),
                reason,
                hung_workers,
            },
            Circuit::Down { since, reason } => CircuitStatus::Down {
                since: secs(since),
                reason,
                hung_workers,
            },
        }
    }
}

fn dir(
    path: &Path,
    sentinel: Option<Sentinel>,
    remote_timeout: Duration,
    stop: &StopSignal,
) -> IsolatedDir {
    let options = IsolateOptions {
        start: start_of(path),
        limits: PoolLimits::default(),
        deadlines: Deadlines {
            base: remote_timeout,
            ..Deadlines::default()
        },
        stop: stop.clone(),
    };
    IsolatedDir::new(path, sentinel, options)
}

/// Operations that the kind makes at the same time: a directory has so many workers, a bucket so many connections.
fn at_once(spec: &Spec) -> usize {
    match spec {
        Spec::Dir(_) => PoolLimits::default().workers_max,
        _ => usize::from(S3Limits::default().connections_max),
    }
}

fn in_layers(
    kind: Arc<dyn vfs::Volume>,
    at_once: usize,
    remote_timeout: Duration,
    stop: StopSignal,
) -> Result<Guarded> {
    let name = kind.to_string();
    let retry = Retry::new(kind, RetryPolicy::default(), stop.clone());
    let policy = BreakerPolicy {
        silence_max: remote_timeout,
        quiet_max: remote_timeout / 3,
        ..BreakerPolicy::default()
    };
    let breaker = Breaker::start(Arc::new(retry), policy, stop)
        .map_err(Error::io("watch", PathBuf::from(name)))?;
    Ok(Guarded {
        at_once,
        ..Guarded::new(Arc::new(breaker))
    })
}

/// The external volume that `spec` names, whoever it belongs to; it was there a moment ago.
pub fn open_spec(spec: &Spec, remote_timeout: Duration) -> Result<Guarded> {
    let stop = StopSignal::new();
    let kind: Arc<dyn vfs::Volume> = match spec {
        Spec::Dir(path) => Arc::new(dir(path, None, remote_timeout, &stop)),
        other => buckets::open(other)?,
    };
    // Not by the breaker, whose reasons are for those who come later.
    kind.verify_identity()?;
    in_layers(kind, at_once(spec), remote_timeout, stop)
}

/// A volume before its layers are put on.
pub type Kind = Arc<dyn vfs::Volume>;

/// The external volume of `store`, which must be the copy of `identity` that it names, once it is looked at: that comes
/// with its first use, so that one that hangs holds up no opening. `None` if there is none.
pub fn connect(identity: &Identity, settings: &Settings) -> Result<Option<ExternalStore>> {
    connect_through(identity, settings, |kind| kind)
}

/// The same with `layer` right above the volume itself.
pub(super) fn connect_through(
    identity: &Identity,
    settings: &Settings,
    layer: impl FnOnce(Kind) -> Kind,
) -> Result<Option<ExternalStore>> {
    let (Some(spec), Some(copy)) = (settings.store.spec(), settings.store.copy()) else {
        return Ok(None);
    };
    let remote_timeout = settings.remote_timeout();
    let stop = StopSignal::new();
    let sentinel = sentinel(identity, copy)?;
    let (kind, dir): (Arc<dyn vfs::Volume>, _) = if let Spec::Dir(path) = &spec {
        let dir = Arc::new(dir(path, Some(sentinel), remote_timeout, &stop));
        (Arc::clone(&dir) as Arc<dyn vfs::Volume>, Some(dir))
    } else {
        (buckets::open_bound(&spec, sentinel)?, None)
    };
    let guarded = in_layers(layer(kind), at_once(&spec), remote_timeout, stop)?;
    let watch = match (&spec, &dir) {
        (Spec::Dir(path), Some(dir)) => watch(path, dir, &guarded.breaker).map(Arc::new),
        _ => None,
    };
    Ok(Some(ExternalStore {
        guarded,
        dir,
        _watch: watch,
    }))
}

/// Whoever mounts the volume again need not wait for the end of a pause, nor for what the mount before owes an answer.
fn watch(path: &Path, dir: &Arc<IsolatedDir>, breaker: &Arc<Breaker>) -> Option<MountWatch> {
    let (dir, breaker) = (Arc::downgrade(dir), Arc::downgrade(breaker));
    let changed = move || {
        if let (Some(dir), Some(breaker)) = (dir.upgrade(), breaker.upgrade()) {
            tracing::info!(volume = %breaker, "another mount stands in its place: it is looked at");
            dir.mounted_anew();
            breaker.poke();
        }
    };
    match MountWatch::start(path, changed) {
        Ok(watch) => Some(watch),
        Err(error) => {
            // It is found at the end of a pause, then.
            tracing::warn!(
                "what is mounted at {} is not watched: {error}",
                path.display()
            );
            None
        }
    }
}

/// The same for a command that has nothing to do without it: it was there, and the right one, a moment ago.
pub fn open_store(
    identity: &Identity,
    settings: &Settings,
) -> Result<Option<Arc<dyn vfs::Volume>>> {
    let Some(store) = connect(identity, settings)? else {
        return Ok(None);
    };
    let Guarded { volume, .. } = store.guarded();
    volume.verify_identity()?;
    Ok(Some(volume))
}

/// What makes an external volume the copy `store` of the volume of `identity`.
pub fn sentinel(identity: &Identity, store: &str) -> Result<Sentinel> {
    let (volume, store) = (identity.volume.clone(), store.to_owned());
    let check = move |bytes: &[u8]| {
        let there = Identity::parse(IDENTITY_NAME, bytes).map_err(|error| error.chain())?;
        if there.volume == volume && there.store.as_deref() == Some(&store) {
            Ok(())
        } else {
            let copy = there.store.unwrap_or_default();
            Err(format!("it is volume {}, copy {copy}", there.volume))
        }
    };
    Ok(Sentinel::new(ObjectKey::new(IDENTITY_NAME)?, check))
}

/// The path of a directory that is to become the external volume, without symbolic links.
pub fn resolve(path: &Path, remote_timeout: Duration) -> Result<PathBuf> {
    let stop = StopSignal::new();
    Ok(dir(path, None, remote_timeout, &stop).canonical()?)
}
