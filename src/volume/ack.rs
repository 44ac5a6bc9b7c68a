//! What an fsync waits for, as the settings say: nothing, the local disk, or the external volume.
//!
//! For the external volume the epoch is closed, and the answer waits until it is archived. Those that ask
//! while an epoch closes share the next one. Nobody's thread waits: the pacer's looks.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::pack::ledger::Ledger;
use crate::types::Epoch;
use crate::upload::{UploadState, Uploader};
use crate::volume::settings::{Settings, Store};
use crate::volume::tree::Answer;

/// What fsync, `O_SYNC` and `O_DSYNC` wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Ack {
    /// Nothing: a crash takes the last second of work with it.
    PageCache,
    /// The local disk.
    #[default]
    Local,
    /// The external volume: it alone gives back what was synced.
    Remote,
}

impl Ack {
    /// As in `settings.json`.
    pub fn name(self) -> &'static str {
        match self {
            Ack::PageCache => "page-cache",
            Ack::Local => "local",
            Ack::Remote => "remote",
        }
    }
}

/// Looks for news this often while somebody waits ..
const TURN: Duration = Duration::from_millis(5);
/// .. and this often while somebody may begin to.
const IDLE_TURN: Duration = Duration::from_millis(20);
/// With nothing else to do.
const LONG: Duration = Duration::from_secs(60);
/// A volume that does not say it is down, and takes nothing for so many times the timeout, is taken for down.
const STALLED_TIMES: u32 = 10;

struct Waiter {
    epoch: Epoch,
    since: Instant,
    answer: Answer<()>,
}

/// Those whose fsync waits for the external volume. The kernel has one for each program that syncs.
pub struct Acks {
    mode: AtomicU8,
    remote_timeout_ms: AtomicU64,
    ledger: Arc<Ledger>,
    uploader: Weak<Uploader>,
    clock: Arc<dyn Clock>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    waiters: Vec<Waiter>,
    /// What was sent and archived at the last look, and since when it is the same.
    progress: Option<(u64, Epoch, Instant)>,
    is_closed: bool,
}

impl std::fmt::Debug for Acks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acks")
            .field("mode", &self.mode())
            .finish_non_exhaustive()
    }
}

impl Acks {
    /// Nobody waits yet.
    pub fn new(
        ledger: Arc<Ledger>,
        uploader: &Arc<Uploader>,
        clock: Arc<dyn Clock>,
        settings: &Settings,
    ) -> Acks {
        let acks = Acks {
            mode: AtomicU8::new(0),
            remote_timeout_ms: AtomicU64::new(0),
            ledger,
            // Whoever waits for an answer keeps no thread alive.
            uploader: Arc::downgrade(uploader),
            clock,
            waiting: Mutex::default(),
        };
        acks.set(settings);
        acks
    }

    /// These settings hold from now on, for those who ask from now on.
    pub fn set(&self, settings: &Settings) {
        self.mode.store(settings.ack as u8, Ordering::Relaxed);
        let timeout_ms = settings.remote_timeout_secs.saturating_mul(1000);
        self.remote_timeout_ms.store(timeout_ms, Ordering::Relaxed);
    }

    /// What fsync waits for.
    pub fn mode(&self) -> Ack {
        let modes = [Ack::PageCache, Ack::Local, Ack::Remote];
        let mode = usize::from(self.mode.load(Ordering::Relaxed));
        modes.get(mode).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers when the external volume has `epoch`, with EIO when it does not in time.
    pub fn when_archived(&self, epoch: Epoch, answer: Answer<()>) {
        let mut waiting = self.lock();
        if waiting.is_closed {
            drop(waiting);
            return answer(Err(Errno::EIO.into()));
        }
        if self.ledger.archived_epoch() >= epoch {
            drop(waiting);
            return answer(Ok(()));
        }
        waiting.waiters.push(Waiter {
            epoch,
            since: Instant::now(),
            answer,
        });
        drop(waiting);
        if let Some(uploader) = self.uploader.upgrade() {
            uploader.wake();
        }
    }

    /// Answers those whose wait is over. Returns when to look again.
    pub fn turn(&self, now: Instant) -> Duration {
        let idle = if self.mode() == Ack::Remote {
            IDLE_TURN
        } else {
            LONG
        };
        let mut waiting = self.lock();
        if waiting.waiters.is_empty() {
            waiting.progress = None;
            return idle;
        }
        let archived = self.ledger.archived_epoch();
        let moved = waiting.moved(self.ledger.sent_bytes(), archived, now);
        let fault = self.fault();
        let timeout = Duration::from_millis(self.remote_timeout_ms.load(Ordering::Relaxed));
        let mut over = Vec::new();
        for waiter in std::mem::take(&mut waiting.waiters) {
            let still = now.saturating_duration_since(waiter.since.max(moved));
            if waiter.epoch <= archived {
                over.push((waiter, None));
            } else if let Some(fault) = &fault {
                over.push((waiter, Some(fault.clone())));
            } else if still >= timeout.saturating_mul(STALLED_TIMES) {
                over.push((waiter, Some("nothing is sent any more".into())));
            } else {
                waiting.waiters.push(waiter);
            }
        }
        drop(waiting);
        for (waiter, fault) in over {
            (waiter.answer)(fault.map_or(Ok(()), |fault| Err(failed(&fault))));
        }
        TURN
    }

    /// Why nobody need wait any longer, if so.
    fn fault(&self) -> Option<String> {
        let timeout_secs = self.remote_timeout_ms.load(Ordering::Relaxed) / 1000;
        let state = self.uploader.upgrade().map(|uploader| uploader.state());
        match state.unwrap_or(UploadState::Off) {
            UploadState::Down { since, reason } => {
                let secs = self.clock.now_secs().saturating_sub(since);
                (secs >= timeout_secs).then_some(reason)
            }
            UploadState::Refused { reason } => Some(reason),
            UploadState::Off => Some("there is no external volume".into()),
            UploadState::Up | UploadState::Connecting => None,
        }
    }

    /// The volume closes: what is not archived by now is not acknowledged.
    pub fn close(&self) {
        let waiters = {
            let mut waiting = self.lock();
            waiting.is_closed = true;
            std::mem::take(&mut waiting.waiters)
        };
        let archived = self.ledger.archived_epoch();
        for waiter in waiters {
            let outcome = if waiter.epoch <= archived {
                Ok(())
            } else {
                Err(failed("the volume was closed"))
            };
            (waiter.answer)(outcome);
        }
    }
}

fn failed(reason: &str) -> Error {
    Error::io("wait for", "the external volume, as ack = remote asks")(std::io::Error::other(
        reason.to_owned(),
    ))
}

impl Waiting {
    /// Since when nothing was sent and nothing archived.
    fn moved(&mut self, sent: u64, archived: Epoch, now: Instant) -> Instant {
        match self.progress {
            Some((was_sent, was_archived, since))
                if (was_sent, was_archived) == (sent, archived) =>
            {
                since
            }
            _ => {
                self.progress = Some((sent, archived, now));
                now
            }
        }
    }
}

/// Refuses settings under which no fsync could succeed.
pub fn check(settings: &Settings) -> Result<()> {
    if settings.ack == Ack::Remote && settings.store == Store::Local {
        return Err(Error::Refused(
            "ack = remote needs an external volume: set one with tidefs store set dir PATH, or choose \
             tidefs store update --ack local"
                .into(),
        ));
    }
    Ok(())
}
