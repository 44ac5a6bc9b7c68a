//! From ready to gone: a process that serves waits for what ends it, and ends in order.
//!
//! What ends it: the mount is taken away (by `tidefs umount`, by umount(8), or because it failed), a signal, or
//! a request. Then uploads may go on for a while, the volume is closed, those who wait are told, and only
//! then the socket and the lock go away.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::{Value, json};

use crate::clock::{Clock, SystemClock};
use crate::daemon::control::{Control, Respond};
use crate::daemon::door::Door;
use crate::daemon::failure::Failure;
use crate::daemon::operations::{Meter, leftover, perform};
use crate::daemon::ops::{OpHandle, Ops};
use crate::daemon::protocol::{Progress, Request, ScanRequest};
use crate::daemon::scanning::Plan;
use crate::daemon::watch::Watches;
use crate::daemon::{mounts, signals};
use crate::error::{Error, Result};
use crate::fuse::Mounted;
use crate::types::AccountId;
use crate::volume::Volume;
use crate::volume::feed::Witness;

/// How long uploads go on after an unmount, unless the command says otherwise. What is left is sent the next time.
pub const DRAIN_DEFAULT: Duration = Duration::from_secs(30);
/// The same after a signal: whoever sends one is in a hurry, as is a machine that shuts down. With all else it takes less
/// than five seconds, also where the external volume hangs.
const DRAIN_ON_SIGNAL: Duration = Duration::from_secs(3);
/// After a signal, open files may keep the mount alive for this long.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);
/// Operations get this long to come to a stop: a source that hangs holds nobody up.
const OPS_PATIENCE: Duration = Duration::from_secs(2);
/// A scan that finds another one of the same source tries again this often, when that was one of a watched source.
const SCAN_ATTEMPTS: u32 = 3;
/// Those who are told the end may take this long to read it.
const FAREWELL: Duration = Duration::from_secs(2);
/// Events that may wait: each comes from a person.
const EVENTS_MAX: usize = 16;

/// What ends a process that serves.
#[derive(Debug)]
enum Event {
    Ended(Result<()>),
    Signal(&'static str),
    Stop(Duration),
}

/// A backup path that is served.
#[derive(Debug)]
pub struct Serving {
    volume: Arc<Volume>,
    /// The mount shows this account alone.
    account: Option<AccountId>,
    mounted: Mutex<Option<Arc<Mounted>>>,
    /// How long whoever took the mount away lets uploads go on. Held while it is being taken away: the mount
    /// may be gone long before the kernel is through with a million inodes, and umount(2) returns.
    wish: Mutex<Option<Duration>>,
    since: i64,
    ops: Arc<Ops>,
    watches: Arc<Watches>,
    life: Mutex<Life>,
    changed: Condvar,
    events: Sender<Event>,
    incoming: Receiver<Event>,
}

#[derive(Debug, Default)]
struct Life {
    phase: Phase,
    /// The newest progress of the end, and its number.
    progress: Option<Progress>,
    step: u64,
    end: Option<Result<Value, Failure>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Starting,
    Serving,
    Closing,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Closing => "closing",
        }
    }
}

impl Serving {
    /// Serves `volume`, opened at `since` (seconds since 1970), and mounted whole or `account` alone. Requests are
    /// answered from here on.
    pub fn start(
        volume: Arc<Volume>,
        account: Option<AccountId>,
        since: i64,
    ) -> Result<(Arc<Serving>, Control), Failure> {
        let (events, incoming) = bounded(EVENTS_MAX);
        let root = volume.root().to_owned();
        let ops = Arc::<Ops>::default();
        let serving = Arc::new(Serving {
            watches: Watches::new(Arc::clone(&volume), Arc::clone(&ops)),
            volume,
            account,
            mounted: Mutex::default(),
            wish: Mutex::default(),
            since,
            ops,
            life: Mutex::default(),
            changed: Condvar::new(),
            events,
            incoming,
        });
        let responder: Arc<dyn Respond> = serving.clone();
        let control = Control::start(&root, responder)?;
        Ok((serving, control))
    }

    /// Serves until something ends it, then closes the volume. `ready` is called when all is in place; if it
    /// fails, nobody waits for us any more and we end at once.
    pub fn run(
        self: &Arc<Serving>,
        control: Control,
        mounted: Option<Mounted>,
        ready: impl FnOnce() -> std::io::Result<()>,
    ) -> Result<(), Failure> {
        let mounted = mounted.map(Arc::new);
        self.mounted_slot().clone_from(&mounted);
        let door = match &mounted {
            Some(mounted) => Some(Door::open(mounted.notifier(), self.account)?),
            None => None,
        };
        self.volume
            .set_witness(door.clone().map(|door| door as Arc<dyn Witness>));
        self.watches.begin()?;
        self.life().phase = Phase::Serving;
        watch(mounted.as_ref(), &self.events)?;
        if ready().is_err() {
            // The channel has room: it is ours alone until now.
            let _ = self.events.try_send(Event::Signal("nobody waits"));
        }
        let ending = until_the_end(mounted.as_deref(), &self.incoming);
        self.volume.set_witness(None);
        if let Some(door) = door {
            door.close();
        }
        let wish = self.wish().take();
        let outcome = self.close(ending.drain.or(wish).unwrap_or(DRAIN_DEFAULT));
        let outcome = match (ending.outcome, outcome) {
            (Err(error), Ok(_)) => Err(Failure::from(error)),
            (_, outcome) => outcome,
        };
        // Those who wait for the end are told before the process is gone.
        self.life().end = Some(outcome.clone());
        self.changed.notify_all();
        control.settle(FAREWELL);
        drop(control);
        outcome.map(drop)
    }

    /// Serves for one request, and closes the volume: others can ask how far it is, and end it.
    pub fn once(
        volume: Arc<Volume>,
        since: i64,
        request: &Request,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Value, Failure> {
        let (serving, control) = Serving::start(volume, None, since)?;
        serving.life().phase = Phase::Serving;
        let outcome = serving.respond(request, progress);
        let closed = serving.close(Duration::ZERO);
        serving.life().end = Some(closed.clone());
        serving.changed.notify_all();
        control.settle(FAREWELL);
        drop(control);
        let answer = outcome?;
        closed.map(|_| answer)
    }

    /// Scans as an operation, which goes on if whoever asked goes away.
    fn scan(
        &self,
        request: &ScanRequest,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Value, Failure> {
        let mut attempts_left = SCAN_ATTEMPTS;
        loop {
            let plan = Plan::new(&self.volume, request)?;
            let what = plan.what(SystemClock.now().secs);
            let (volume, watches) = (Arc::clone(&self.volume), Arc::clone(&self.watches));
            let work = move |handle: &OpHandle| plan.run(&volume, &watches, handle);
            match self.ops.start(what, work) {
                Ok(id) => return self.ops.follow(id, progress),
                Err(busy) if attempts_left == 0 => return Err(busy),
                Err(_) => attempts_left -= 1,
            }
            // One that nobody asked for, of a source that changes just now, is no reason to refuse.
            if let Some(id) = self.watches.running() {
                let mut is_left = false;
                let outcome = self.ops.follow(id, &mut |step| {
                    is_left = !progress(step);
                    !is_left
                });
                if is_left {
                    return outcome;
                }
            }
        }
    }

    fn close(&self, drain: Duration) -> Result<Value, Failure> {
        self.life().phase = Phase::Closing;
        tracing::info!(path = %self.volume.root().display(), ?drain, "closing");
        self.watches.end();
        self.ops.stop_all(OPS_PATIENCE);
        let mut meter = Meter::default();
        let closed = self.volume.close(drain, &mut |status| {
            let mut life = self.life();
            life.progress = Some(meter.read(status));
            life.step += 1;
            self.changed.notify_all();
        });
        closed?;
        let left = leftover(&self.volume.status());
        tracing::info!(%left, "closed");
        Ok(left)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mounted_slot(&self) -> MutexGuard<'_, Option<Arc<Mounted>>> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wish(&self) -> MutexGuard<'_, Option<Duration>> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mountpoint(&self) -> Option<PathBuf> {
        let mounted = self.mounted_slot();
        mounted
            .as_ref()
            .map(|mounted| mounted.mountpoint().to_owned())
    }

    fn status(&self) -> Result<Value, Failure> {
        let mut status = perform(&self.volume, &Request::Status, &mut |_| true)?;
        if let Some(status) = status.as_object_mut() {
            let daemon = json!({
                "pid": std::process::id(),
                "since": self.since,
                "phase": self.life().phase.name(),
                "mountpoint": self.mountpoint(),
            });
            status.insert("daemon".into(), daemon);
            status.insert("watch".into(), to_value(&self.watches.status())?);
        }
        Ok(status)
    }

    /// Takes the mount away and asks the process to end.
    fn end_mount(&self, lazy: bool, drain_ms: u64) -> Result<Detached, Failure> {
        // For a process that serves one operation only, this is its end.
        if self.mounted_slot().is_none() {
            self.ops.stop_all(Duration::ZERO);
        }
        let mut wish = self.wish();
        let mounted = self.mounted_slot().clone();
        let detached = match &mounted {
            None => Detached::Whole,
            Some(mounted) => match mounted.unmount(false) {
                Ok(()) => Detached::Whole,
                Err(_) if lazy => {
                    mounted.unmount(true)?;
                    Detached::StillBusy
                }
                Err(error) => return Err(error.into()),
            },
        };
        let drain = Duration::from_millis(drain_ms);
        *wish = Some(drain);
        // Full only of other wishes to end.
        let _ = self.events.try_send(Event::Stop(drain));
        Ok(detached)
    }

    /// Waits for the end of the process, telling how it goes.
    fn follow(&self, progress: &mut dyn FnMut(Progress) -> bool) -> Result<Value, Failure> {
        let mut seen = 0;
        loop {
            let step = {
                let same = |life: &mut Life| life.end.is_none() && life.step == seen;
                let waited =
                    self.changed
                        .wait_timeout_while(self.life(), Duration::from_secs(1), same);
                let (life, _) = waited.unwrap_or_else(PoisonError::into_inner);
                if let Some(end) = &life.end {
                    return end.clone();
                }
                seen = life.step;
                life.progress.clone()
            };
            let step = step.unwrap_or_else(|| Progress {
                step: "closing".into(),
                ..Progress::default()
            });
            if !progress(step) {
                return Err(Failure::stopped("nobody listens"));
            }
        }
    }

    fn umount(
        &self,
        (mountpoint, lazy, drain_ms): (&Path, bool, u64),
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Value, Failure> {
        if self.mountpoint().as_deref() != Some(mountpoint) {
            return Err(Failure::failed(format!(
                "{} is not what this daemon has mounted",
                mountpoint.display()
            )));
        }
        match self.end_mount(lazy, drain_ms)? {
            Detached::Whole => self.follow(progress),
            Detached::StillBusy => Ok(json!({ "is_busy": true })),
        }
    }
}

enum Detached {
    Whole,
    StillBusy,
}

impl Respond for Serving {
    fn respond(
        &self,
        request: &Request,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Value, Failure> {
        let is_closing = self.life().phase == Phase::Closing;
        match request {
            Request::Status => self.status(),
            Request::Follow => self.follow(progress),
            Request::Umount { .. } | Request::Stop { .. } if is_closing => self.follow(progress),
            _ if is_closing => Err(Failure::stopped(format!(
                "the daemon of {} is ending: try again when it has ended",
                self.volume.root().display()
            ))),
            Request::Umount {
                mountpoint,
                lazy,
                drain_ms,
            } => self.umount((mountpoint, *lazy, *drain_ms), progress),
            Request::Stop { drain_ms } => match self.end_mount(false, *drain_ms)? {
                Detached::Whole => self.follow(progress),
                Detached::StillBusy => Ok(json!({ "is_busy": true })),
            },
            Request::SourceAdd { .. } | Request::SourceRemove { .. } => {
                let done = perform(&self.volume, request, progress);
                self.watches.ring();
                done
            }
            Request::Scan(scan) => self.scan(scan, progress),
            Request::Ops => to_value(&self.ops.list()),
            Request::OpsWatch { id } => self.ops.follow(*id, progress),
            Request::OpsStop { id } => to_value(&self.ops.stop(*id)?),
            other => perform(&self.volume, other, progress),
        }
    }
}

fn to_value(document: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(document).map_err(|error| Failure::failed(error.to_string()))
}

/// Serves a view until its mount is gone or a signal comes. There is nothing to close.
pub fn serve_view(
    mounted: Mounted,
    ready: impl FnOnce() -> std::io::Result<()>,
) -> Result<(), Failure> {
    let (events, incoming) = bounded(EVENTS_MAX);
    let mounted = Arc::new(mounted);
    watch(Some(&mounted), &events)?;
    if ready().is_err() {
        // As in `Serving::run`.
        let _ = events.try_send(Event::Signal("nobody waits"));
    }
    let ending = until_the_end(Some(&mounted), &incoming);
    ending.outcome.map_err(Failure::from)
}

/// Turns the end of the mount, and signals, into events.
fn watch(mounted: Option<&Arc<Mounted>>, events: &Sender<Event>) -> Result<()> {
    let on_signal = events.clone();
    signals::listen(move |signal| {
        // Full only when it was sent again and again: the first ones are being obeyed.
        let _ = on_signal.try_send(Event::Signal(signal));
        true
    })?;
    let Some(mounted) = mounted else {
        return Ok(());
    };
    let (mounted, events) = (Arc::clone(mounted), events.clone());
    thread::Builder::new()
        .name("mount-end".into())
        .spawn(move || {
            // Fails only when nobody waits for the end any more.
            let _ = events.send(Event::Ended(mounted.wait_unmounted()));
        })
        .map(drop)
        .map_err(Error::io("start", "the thread that waits for the mount"))
}

struct Ending {
    /// What a signal or a command said.
    drain: Option<Duration>,
    outcome: Result<()>,
}

/// Waits for what ends the process; on a signal, takes the mount away first, lazily if it is busy.
fn until_the_end(mounted: Option<&Mounted>, incoming: &Receiver<Event>) -> Ending {
    let mut ending = Ending {
        drain: None,
        outcome: Ok(()),
    };
    let mut deadline: Option<Instant> = None;
    loop {
        let event = match deadline {
            None => incoming.recv().ok(),
            Some(deadline) => incoming.recv_deadline(deadline).ok(),
        };
        match event {
            None => {
                tracing::warn!("files are still open in the mount: closing without them");
                return ending;
            }
            Some(Event::Ended(outcome)) => {
                ending.outcome = outcome;
                return ending;
            }
            Some(Event::Stop(drain)) => {
                ending.drain = Some(drain);
                if mounted.is_none() {
                    return ending;
                }
            }
            Some(Event::Signal(signal)) => {
                tracing::info!(signal, "told to end");
                if deadline.is_some() {
                    ending.drain = Some(Duration::ZERO);
                    return ending;
                }
                ending.drain = Some(DRAIN_ON_SIGNAL);
                let Some(mounted) = mounted else {
                    return ending;
                };
                deadline = Some(Instant::now() + BUSY_PATIENCE);
                if let Err(error) = mounted.unmount(false).or_else(|_| mounted.unmount(true)) {
                    tracing::error!("cannot unmount: {}", error.chain());
                }
            }
        }
    }
}

/// Removes what a killed daemon of ours left at `mountpoint`. Tells whether there was something.
pub fn clear_dead_mount(mountpoint: &Path) -> Result<bool> {
    match mounts::ours_at(mountpoint)? {
        // In this order: whatever else stands there is not touched, not even by a question.
        Some(mount) if mounts::is_dead(&mount.point) => {
            mounts::unmount(&mount.point, true)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}
