//! Opening a backup path that somebody else may be about to leave.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clock::Clock;
use crate::daemon::client::Client;
use crate::daemon::failure::{Failure, FailureKind};
use crate::daemon::mounts;
use crate::daemon::protocol::{Progress, Request};
use crate::error::Error;
use crate::volume::Volume;

/// A process without a socket is a short command, or one that begins or ends: it gets this long.
const PATIENCE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(50);

/// How a backup path is reached.
#[derive(Debug)]
pub enum Reach {
    /// Through the process that has it open.
    Daemon(Client),
    /// By ourselves.
    Open(Arc<Volume>),
}

/// Reaches the backup path: through its daemon, else by opening it.
pub fn reach(root: &Path, clock: &Arc<dyn Clock>) -> Result<Reach, Failure> {
    let started = Instant::now();
    loop {
        if let Some(client) = Client::connect(root)? {
            return Ok(Reach::Daemon(client));
        }
        match Volume::open(root, Arc::clone(clock)) {
            Ok(volume) => return Ok(Reach::Open(volume)),
            Err(Error::Locked { path, pid }) => {
                if started.elapsed() >= PATIENCE {
                    return Err(Failure::failed(format!(
                        "{} is in use by process {pid}, which does not answer at its control socket: it is another \
                         command, still starting, or hung. Try again, or look at it with 'ps -fp {pid}'",
                        path.display()
                    )));
                }
                thread::sleep(STEP);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Opens the backup path to serve it. One that is being closed is waited for; one that is served is refused.
pub fn open_to_serve(
    root: &Path,
    clock: &Arc<dyn Clock>,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Arc<Volume>, Failure> {
    let started = Instant::now();
    loop {
        let locked = match Volume::open(root, Arc::clone(clock)) {
            Err(error @ Error::Locked { .. }) => error,
            outcome => return outcome.map_err(Failure::from),
        };
        match Client::connect(root)? {
            Some(client) => match phase(client)? {
                Phase::Closing => follow(root, progress)?,
                // Taken away from outside a moment ago: its daemon is about to notice, and to close.
                Phase::Other(Some(mountpoint))
                    if started.elapsed() < PATIENCE
                        && mounts::ours_at(Path::new(&mountpoint))?.is_none() =>
                {
                    thread::sleep(STEP);
                }
                Phase::Other(mountpoint) => return Err(served(&locked, mountpoint.as_deref())),
            },
            None if started.elapsed() < PATIENCE => thread::sleep(STEP),
            None => return Err(locked.into()),
        }
    }
}

enum Phase {
    Closing,
    Other(Option<String>),
}

fn phase(client: Client) -> Result<Phase, Failure> {
    let status = client.ask(&Request::Status, &mut |_| true)?;
    let daemon = status.get("daemon");
    let word = |key: &str| {
        daemon
            .and_then(|daemon| daemon.get(key))
            .and_then(Value::as_str)
    };
    Ok(match word("phase") {
        Some("closing") => Phase::Closing,
        _ => Phase::Other(word("mountpoint").map(str::to_owned)),
    })
}

fn served(locked: &Error, mountpoint: Option<&str>) -> Failure {
    let Error::Locked { path, pid } = locked else {
        return Failure::failed(locked.chain());
    };
    let path = path.display();
    Failure::failed(match mountpoint {
        Some(mountpoint) => format!(
            "{path} is served already, by process {pid}, mounted at {mountpoint}: end it with tidefs umount {mountpoint}"
        ),
        None => format!(
            "{path} is served already, by process {pid}, without a mount: end it with tidefs -p {path} daemon --stop"
        ),
    })
}

fn follow(root: &Path, progress: &mut dyn FnMut(Progress) -> bool) -> Result<(), Failure> {
    match Client::connect(root)? {
        Some(client) => match client.ask(&Request::Follow, progress) {
            Err(failure) if failure.kind == FailureKind::Stopped => Err(failure),
            // How the other process ended is told to those who ended it; we only wait for its place.
            _ => Ok(()),
        },
        None => Ok(()),
    }
}
