//! The life of a mount: begin, wait, end.
//!
//! A mount ends in one of three ways, and all lead to the same place, the end of
//! [`Mounted::wait_unmounted`]: by [`Mounted::unmount`], by `umount` from outside, or because fuser's
//! loops failed. Whoever waits then drains the engine and leaves. After a failure the mount stays and
//! answers an error: an empty directory in its place would be written to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use fuser::BackgroundSession;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::error::{Error, Result};
use crate::volume::tree::Tree;

use super::adapter::Adapter;
use super::attach::{self, Attached};
use super::mounts;
use super::notify::Notifier;
use super::options::MountOptions;

/// Read-ahead of the mount. The handshake cannot ask for more than the kernel's 128 KiB; sysfs can.
/// With 2 ms an answer 128 KiB read 80 MB/s, 1 MiB 500 MB/s, 4 MiB 1 GB/s; but one fault of a mapped
/// file reads as much at once.
const READ_AHEAD_KIB: u32 = 1024;

/// A tree on a directory. Dropping it while it is served unmounts, lazily if it is busy.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    /// `major:minor` of our file system: tells ours from another one at the same place.
    device: String,
    notifier: Notifier,
    ending: Arc<Ending>,
}

/// Tells when the session is over, and how.
#[derive(Debug, Default)]
struct Ending {
    outcome: Mutex<Option<Result<(), String>>>,
    over: Condvar,
}

/// Mounts `tree` on `mountpoint` and serves it from threads of its own.
pub fn mount(tree: Arc<dyn Tree>, mountpoint: &Path, options: &MountOptions) -> Result<Mounted> {
    let mountpoint = attach::check(mountpoint, options.nonempty)?;
    let (alive, gone) = channel();
    let adapter = Adapter::new(tree, options, alive);
    let attached = attach::attach(adapter, &mountpoint, options)?;
    let mounted = mounts::at(&mountpoint)?.ok_or_else(|| {
        Error::Refused(format!(
            "{} vanished while it was mounted",
            mountpoint.display()
        ))
    })?;
    let notifier = Notifier::new(attached.session.notifier(), mountpoint.clone());
    let ending = Arc::new(Ending::default());
    serve(attached, gone, notifier.clone(), Arc::clone(&ending))?;
    raise_read_ahead(&mounted.device);
    Ok(Mounted {
        mountpoint,
        device: mounted.device,
        notifier,
        ending,
    })
}

impl Mounted {
    /// Where it stands.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The door for changes that do not come through the mount.
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Waits until the file system is gone: nothing is served any more, and every file is released.
    pub fn wait_unmounted(&self) -> Result<()> {
        let mut outcome = self.ending.lock();
        loop {
            match &*outcome {
                Some(Ok(())) => return Ok(()),
                Some(Err(text)) => {
                    return Err(Error::io("serve", &self.mountpoint)(io::Error::other(
                        text.clone(),
                    )));
                }
                None => {
                    let woken = self.ending.over.wait(outcome);
                    outcome = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Whether the file system is gone, or nobody serves it any more.
    pub fn is_unmounted(&self) -> bool {
        self.ending.lock().is_some()
    }

    /// Takes the mount away from its place. Without `lazy` a busy one is refused; with it, the place
    /// is free at once and whoever still has files open goes on until they close them:
    /// [`Mounted::wait_unmounted`] waits for that.
    pub fn unmount(&self, lazy: bool) -> Result<()> {
        let here = mounts::list()?;
        let standing = here.iter().any(|mount| mount.device == self.device);
        // Device numbers are given anew: after the end, only a dead mount can be ours.
        if !standing || (self.is_unmounted() && !is_dead(&self.mountpoint)) {
            return Ok(());
        }
        let top = here.iter().rfind(|mount| mount.point == self.mountpoint);
        if let Some(other) = top.filter(|mount| mount.device != self.device) {
            return Err(Error::Refused(format!(
                "a mount of {} stands over ours at {}: unmount that first",
                other.kind,
                self.mountpoint.display()
            )));
        }
        detach(&self.mountpoint, lazy)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.is_unmounted()
            && let Err(error) = self.unmount(true)
        {
            tracing::warn!("cannot unmount: {}", error.chain());
        }
    }
}

impl Ending {
    fn lock(&self) -> MutexGuard<'_, Option<Result<(), String>>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts fuser's loops and a thread that waits for their end: `gone` disconnects when the last one
/// has let go of the adapter.
fn serve(
    attached: Attached,
    gone: Receiver<()>,
    notifier: Notifier,
    ending: Arc<Ending>,
) -> Result<()> {
    let path = notifier.mountpoint().to_owned();
    let Attached { session, by_helper } = attached;
    let background = session.spawn().map_err(Error::io("serve", &path))?;
    let mountpoint = path.clone();
    let waiter = thread::Builder::new().name("tidefs-mount".to_owned());
    let started = waiter.spawn(move || {
        let outcome = wait_for_end(background, by_helper, &gone, &path);
        // The last descriptor of the connection: if the mount still stands, it now answers an error
        // instead of waiting for ever.
        notifier.close();
        *ending.lock() = Some(outcome);
        ending.over.notify_all();
    });
    started.map(drop).map_err(|error| {
        // Without the waiter nobody would ever end the loops that run by now.
        if let Err(error) = detach(&mountpoint, true) {
            tracing::warn!("cannot unmount: {}", error.chain());
        }
        Error::io("serve", &mountpoint)(error)
    })
}

fn wait_for_end(
    mut session: BackgroundSession,
    by_helper: bool,
    gone: &Receiver<()>,
    path: &Path,
) -> Result<(), String> {
    // Only to take the real guard out: `join` would drop fuser's own mount record too.
    let guard = std::mem::replace(&mut session.guard, thread::spawn(|| Ok(())));
    let outcome = match guard.join() {
        Ok(Err(error)) if is_end(&error) => Ok(()),
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("a thread of the mount panicked".to_owned()),
    };
    if let Err(text) = &outcome {
        // fuser tells of the first loop that failed; the others go on.
        tracing::error!("serving {} failed: {text}", path.display());
    }
    while gone.recv().is_ok() {}
    let standing = mounts::at(path).ok().flatten().is_some();
    if by_helper && standing {
        // fuser 0.18, where it had the mount made, unmounts whatever stands at the path by now. Its
        // record is leaked rather than somebody else's file system taken down.
        std::mem::forget(session);
    }
    outcome
}

/// The kernel answers a read of an ended connection with ENODEV, which fuser knows. Where the end falls between a
/// reader's taking a request off the queue and its noting that, the same end is called ECONNABORTED.
fn is_end(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNABORTED)
}

/// A mount whose server is gone.
fn is_dead(mountpoint: &Path) -> bool {
    fs::metadata(mountpoint).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
}

fn detach(mountpoint: &Path, lazy: bool) -> Result<()> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    flags.set(MntFlags::MNT_DETACH, lazy);
    match umount2(mountpoint, flags) {
        // Not a mount any more: somebody was faster.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(Errno::EBUSY) => Err(busy(mountpoint)),
        Err(Errno::EPERM) => ask_fusermount(mountpoint, lazy),
        Err(errno) => Err(Error::nix("unmount", mountpoint)(errno)),
    }
}

fn ask_fusermount(mountpoint: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(mountpoint).output();
    let output = output.map_err(Error::io("run fusermount3 for", mountpoint))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("busy") {
        return Err(busy(mountpoint));
    }
    Err(Error::io("unmount", mountpoint)(io::Error::other(
        text.trim().to_owned(),
    )))
}

fn busy(mountpoint: &Path) -> Error {
    let shown = mountpoint.display();
    Error::Refused(format!(
        "{shown} is busy: somebody has a file or a working directory in it ('fuser -vm {shown}' names \
         them). End that, or unmount lazily"
    ))
}

/// Needs root; without it reading is only slower.
fn raise_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!("cannot raise the read-ahead at {path}: {error}");
    }
}
