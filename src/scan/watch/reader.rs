//! The thread of one source that takes events out of the kernel's queue, and does nothing else: while a scan reads, the
//! queue must not fill.

use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock::Clock;

use super::armed::Armed;
use super::coverage::Place;
use super::feed::Lost;
use super::shared::Shared;
use super::{Kind, Watched};

/// How often it is looked whether the source is still the directory it was. Its unmounting is told at once.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// After a loss it is tried again, sooner at first.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A watch that lasted this long was no failure of arming.
const LASTING: Duration = Duration::from_secs(10);

/// The thread's own.
pub(super) struct Reader {
    pub(super) place: Place,
    pub(super) kind: Option<Kind>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shared: Arc<Shared>,
}

impl Reader {
    /// Runs until the watcher is dropped.
    pub(super) fn run(&self, mut wake: PipeReader) {
        let mut pause = PAUSE_MIN;
        while !self.shared.is_ended() {
            let began = Instant::now();
            let followed =
                Armed::arm(&self.place, self.kind).and_then(|armed| self.follow(&mut wake, armed));
            let Err(lost) = followed else {
                return;
            };
            if began.elapsed() >= LASTING {
                pause = PAUSE_MIN;
            }
            self.shared.lose(lost.to_string(), lost.is_overflow());
            self.rest(pause, &mut wake);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Until it is lost, or the watcher is dropped.
    fn follow(&self, wake: &mut PipeReader, mut armed: Armed) -> Result<(), Lost> {
        self.shared.arm(Watched {
            kind: armed.kind,
            since: self.clock.now().secs,
            watches: armed.watches(),
            note: armed.note.clone(),
        });
        let mut checked = Instant::now();
        loop {
            let asked = self.shared.asked();
            self.drain(&mut armed)?;
            self.shared.settle(asked);
            let left = CHECK_EVERY.saturating_sub(checked.elapsed());
            let woken = wait(&armed, wake, left)?;
            if self.shared.is_ended() {
                return Ok(());
            }
            if woken.by_mounts || left.is_zero() {
                armed.check()?;
                checked = Instant::now();
            }
        }
    }

    fn drain(&self, armed: &mut Armed) -> Result<(), Lost> {
        loop {
            let mut changes = Vec::new();
            let drained = armed.drain(&mut |change| changes.push(change));
            // Also what was told before a loss: it happened.
            self.shared.add(changes);
            let drained = drained?;
            self.shared.count(drained, armed.watches());
            if !drained.has_more {
                return Ok(());
            }
        }
    }

    /// Waits, or less if the watcher is dropped.
    fn rest(&self, pause: Duration, wake: &mut PipeReader) {
        let until = Instant::now() + pause;
        while !self.shared.is_ended() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let is_asked = {
                let mut fds = [PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
                // Interrupted or not: the time is looked at again.
                poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
            };
            if is_asked {
                swallow(wake);
            }
        }
    }
}

struct Woken {
    by_mounts: bool,
}

fn wait(armed: &Armed, wake: &mut PipeReader, patience: Duration) -> Result<Woken, Lost> {
    let (is_asked, by_mounts) = {
        let mut fds = vec![
            PollFd::new(wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(armed.mounts(), PollFlags::POLLPRI),
        ];
        let readable = armed.readable();
        fds.extend(
            readable
                .iter()
                .map(|fd| PollFd::new(*fd, PollFlags::POLLIN)),
        );
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, patience) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                return Err(Lost::call("wait for events of", "the watch".as_ref())(
                    errno,
                ));
            }
        }
        let is_up = |n: usize| fds.get(n).and_then(PollFd::any).unwrap_or(false);
        (is_up(0), is_up(1))
    };
    if is_asked {
        swallow(wake);
    }
    Ok(Woken { by_mounts })
}

/// Bytes that woke us. The end of the pipe is the end of the watcher, which is told otherwise.
fn swallow(wake: &mut PipeReader) {
    let _ = wake.read(&mut [0; 64]);
}
