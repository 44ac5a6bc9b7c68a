//! Bytes away: sealed packs, then segments, then the epoch record, to the external volume.
//!
//! One thread, in rounds. A round begins and ends with a look whether this is the volume it was
//! (invariant 7), and nothing counts as uploaded before the second look. The order makes the external
//! volume a complete backup at every instant (invariant 2): packs before the segments that name them,
//! segments before their record, and no record while one of another writer's is newer.

mod batch;
mod epochs;
pub mod evict;
pub mod fork;
mod put;
mod round;
mod sweep;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use vfs::{Circuit, ErrorClass, Guarded, ObjectKey, Volume};

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::format::record::EpochRecord;
use crate::pack::ledger::Ledger;
use crate::pack::verify::{Damage, survey};
use crate::types::{Epoch, PackId, SessionId};
use crate::upload::batch::Trouble;
use crate::upload::evict::{CacheLimits, Pressure};
use crate::upload::fork::LastRecord;
use crate::upload::sweep::Sweeps;

pub use epochs::{LocalEpochs, PackGate, WaitingEpoch};

/// Packs on their way at the same time, unless told otherwise.
const IN_FLIGHT: usize = 4;
/// A round follows the one before after this, when nothing asks for one.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// First and longest wait after a failure.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Looks that do not find our last epoch record before it counts as lost: listings may be late.
const MISSING_LOOKS: u32 = 3;

/// Losses that are named one by one; a disk that loses more is named by its first ones.
const LOSSES_MAX: usize = 100;

/// What the uploader is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum UploadState {
    /// There is no external volume.
    Off,
    /// It was not heard of yet.
    Connecting,
    /// All that was asked is there, or on its way.
    Up,
    /// The last round failed; it is tried again.
    Down {
        /// Seconds since 1970.
        since: u64,
        /// Why.
        reason: String,
    },
    /// Nothing is written there until an operator decides.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

impl UploadState {
    /// Whether uploads go on, as far as is known.
    pub fn is_hopeful(&self) -> bool {
        matches!(self, UploadState::Up | UploadState::Connecting)
    }
}

struct Target {
    external: Option<Guarded>,
    state: UploadState,
    asked: bool,
    stop: bool,
    rounds: u64,
    /// What was found lost on the way.
    losses: Vec<String>,
    limits: CacheLimits,
    /// The volume answers again, or somebody waits for it: then the wait after a failure is over.
    is_due: bool,
    is_ledger_complete: bool,
    /// Nobody else had written to this volume when it was looked at.
    is_examined: bool,
    /// Looks in a row that did not find our last record.
    missing_looks: u32,
    /// Segments that were compared there and have not changed since: a segment never does.
    known_segments: BTreeSet<String>,
    sweeps: Sweeps,
    in_flight: usize,
    /// Bytes of the local disk that are wanted back.
    pressure_bytes: u64,
}

impl Target {
    /// What a round found last; of a volume that is down, what the last look for it found: rounds come seldom then.
    fn state_now(&self) -> UploadState {
        let circuit = self.external.as_ref().map(|now| now.breaker.circuit());
        match (circuit, &self.state) {
            (Some(Circuit::Down { reason, .. }), UploadState::Down { since, .. }) => {
                let since = *since;
                UploadState::Down { since, reason }
            }
            (Some(Circuit::Down { since, reason }), state) if state.is_hopeful() => {
                let since = since.duration_since(SystemTime::UNIX_EPOCH);
                UploadState::Down {
                    since: since.map_or(0, |since| since.as_secs()),
                    reason,
                }
            }
            _ => self.state.clone(),
        }
    }
}

/// The uploader's thread and its state.
#[derive(Debug)]
pub struct Uploader {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    root: PathBuf,
    ledger: Arc<Ledger>,
    epochs: Arc<dyn LocalEpochs>,
    clock: Arc<dyn Clock>,
    target: Mutex<Target>,
    woken: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uploader")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Uploader {
    /// Starts the thread, without an external volume.
    pub fn start(
        root: &Path,
        ledger: Arc<Ledger>,
        epochs: Arc<dyn LocalEpochs>,
        clock: Arc<dyn Clock>,
    ) -> Result<Uploader> {
        let target = Target {
            external: None,
            state: UploadState::Off,
            asked: false,
            stop: false,
            rounds: 0,
            losses: Vec::new(),
            limits: CacheLimits::default(),
            is_due: false,
            is_ledger_complete: false,
            is_examined: false,
            missing_looks: 0,
            known_segments: BTreeSet::new(),
            sweeps: Sweeps::default(),
            in_flight: IN_FLIGHT,
            pressure_bytes: 0,
        };
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            ledger,
            epochs,
            clock,
            target: Mutex::new(target),
            woken: Condvar::new(),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            let body = move || shared.run();
            std::thread::Builder::new()
                .name("upload".into())
                .spawn(body)
                .map_err(Error::io("start", "the upload thread"))?
        };
        Ok(Uploader {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Uploads go there from now on.
    pub fn set_volume(&self, external: Option<Guarded>) {
        if let Some(Guarded { breaker, .. }) = &external {
            let shared = Arc::downgrade(&self.shared);
            breaker.on_change(move || {
                if let Some(shared) = shared.upgrade() {
                    shared.circuit_changed();
                }
            });
        }
        let mut target = self.shared.lock();
        target.state = if external.is_some() {
            UploadState::Connecting
        } else {
            UploadState::Off
        };
        target.external = external;
        target.is_examined = false;
        target.missing_looks = 0;
        target.known_segments.clear();
        target.sweeps.next = None;
        target.asked = true;
        self.shared.woken.notify_all();
    }

    /// Uploads are refused, for this reason, until a volume is set.
    pub fn refuse(&self, reason: String) {
        let mut target = self.shared.lock();
        target.external = None;
        target.state = UploadState::Refused { reason };
    }

    /// Every local pack is in the ledger: from now on an epoch may count as archived.
    pub fn ledger_is_complete(&self) {
        self.shared.lock().is_ledger_complete = true;
        self.wake();
    }

    /// There is something to do.
    pub fn wake(&self) {
        self.shared.lock().asked = true;
        self.shared.woken.notify_all();
    }

    /// Somebody waits: a volume that is away is looked for now, and not at the end of a pause.
    pub fn look_now(&self) {
        let mut target = self.shared.lock();
        let Some(Guarded { breaker, .. }) = &target.external else {
            return;
        };
        breaker.poke();
        // Where the circuit is open, it is the look that tells.
        target.is_due |=
            matches!(target.state, UploadState::Down { .. }) && !breaker.circuit().is_down();
        drop(target);
        self.shared.woken.notify_all();
    }

    /// What it is doing.
    pub fn state(&self) -> UploadState {
        self.shared.lock().state_now()
    }

    /// Waits until the volume was heard of, for at most `patience`.
    pub fn wait_until_known(&self, patience: Duration) {
        let is_unknown =
            |target: &mut Target| target.state_now() == UploadState::Connecting && !target.stop;
        let target = self.shared.lock();
        drop(
            self.shared
                .woken
                .wait_timeout_while(target, patience, is_unknown),
        );
    }

    /// What was found lost on the way, for people.
    pub fn losses(&self) -> Vec<String> {
        self.shared.lock().losses.clone()
    }

    /// Packs beyond these limits are evicted from the local cache.
    pub fn set_limits(&self, limits: CacheLimits) {
        self.shared.lock().limits = limits;
    }

    /// This many packs are on their way at the same time, from the next batch on.
    pub fn set_in_flight(&self, count: usize) {
        self.shared.lock().in_flight = count;
    }

    /// Leftovers of interrupted puts are removed from the external volume when they are so old; none: never.
    pub fn set_sweep_after(&self, after: Option<Duration>) {
        self.shared.lock().sweeps.after = after;
    }

    /// So many bytes of the local disk are wanted back from packs that were uploaded, before their time.
    pub fn set_pressure(&self, bytes: u64) {
        self.shared.lock().pressure_bytes = bytes;
    }

    /// Waits until a round is over, for at most `patience`.
    pub fn wait_for_round(&self, patience: Duration) {
        let target = self.shared.lock();
        let rounds = target.rounds;
        let same = |target: &mut Target| target.rounds == rounds && !target.stop;
        drop(self.shared.woken.wait_timeout_while(target, patience, same));
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        let external = {
            let mut target = self.shared.lock();
            target.stop = true;
            target.external.take()
        };
        self.shared.woken.notify_all();
        // A round that waits for a volume that hangs would keep us for as long.
        if let Some(Guarded { breaker, .. }) = external {
            breaker.stop();
        }
        if let Some(thread) = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            // A round that panicked has noted nothing that it did not see.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut wait = IDLE_INTERVAL;
        let mut retry = RETRY_MIN;
        while let Some(external) = self.next_round(wait) {
            wait = IDLE_INTERVAL;
            let Some(external) = external else {
                continue;
            };
            match self.round(&external) {
                Ok(()) => {
                    retry = RETRY_MIN;
                    self.settle(&external, UploadState::Up);
                }
                Err(error) => {
                    // What it acknowledged lately may be gone when it is back.
                    let evicted = self.evict(Pressure::Old);
                    let error = evicted.err().unwrap_or(error);
                    wait = retry;
                    retry = (retry * 2).min(RETRY_MAX);
                    self.settle(&external, self.state_after(&error));
                }
            }
        }
    }

    /// Whoever waits for news of the volume looks again; one that is back is used at once.
    fn circuit_changed(&self) {
        let mut target = self.lock();
        let is_up = target
            .external
            .as_ref()
            .is_some_and(|external| external.breaker.circuit() == Circuit::Up);
        target.is_due |= is_up && !matches!(target.state, UploadState::Up);
        drop(target);
        self.woken.notify_all();
    }

    /// Waits for the next round: `None` to stop, `Some(None)` when there is no volume.
    #[expect(
        clippy::option_option,
        reason = "to stop and to have nothing to do are different answers"
    )]
    fn next_round(&self, wait: Duration) -> Option<Option<Guarded>> {
        let deadline = Instant::now() + wait;
        let mut target = self.lock();
        loop {
            if target.stop {
                return None;
            }
            let now = Instant::now();
            // After a failure, being asked does not shorten the wait.
            let is_asked = target.asked && (wait == IDLE_INTERVAL);
            if is_asked || target.is_due || now >= deadline {
                target.asked = false;
                target.is_due = false;
                return Some(target.external.clone());
            }
            target = self
                .woken
                .wait_timeout(target, deadline - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn settle(&self, external: &Guarded, state: UploadState) {
        let mut target = self.lock();
        let is_same = target
            .external
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(&now.breaker, &external.breaker));
        if is_same {
            if target.state != state {
                tracing::info!(volume = %external.volume, state = ?state, "upload");
            }
            if matches!(state, UploadState::Refused { .. }) {
                target.external = None;
            }
            target.state = state;
        }
        target.rounds += 1;
        drop(target);
        self.woken.notify_all();
    }

    fn state_after(&self, error: &Error) -> UploadState {
        if let Error::Refused(reason) = error {
            return UploadState::Refused {
                reason: reason.clone(),
            };
        }
        let since = match &self.lock().state {
            UploadState::Down { since, .. } => *since,
            _ => self.clock.now_secs(),
        };
        UploadState::Down {
            since,
            reason: error.chain(),
        }
    }

    /// When all is sent that there was.
    fn sweep(&self, volume: &dyn Volume) {
        let due = self.lock().sweeps.due(Instant::now());
        if let Some(older_than) = due {
            let is_done = sweep::sweep(volume, older_than);
            self.lock().sweeps.ended(is_done, Instant::now());
        }
    }

    /// Before anything is sent after an opening: a clone is to find out now, not when its packs are there.
    fn refuse_fork_once(&self, volume: &dyn Volume) -> Result<()> {
        if self.lock().is_examined {
            return Ok(());
        }
        self.refuse_fork(volume, self.ledger.archived_epoch())?;
        self.lock().is_examined = true;
        Ok(())
    }

    /// Refuses the volume where somebody else writes to it, or where our record of `archived` is gone for good.
    fn refuse_fork(&self, volume: &dyn Volume, archived: Epoch) -> Result<()> {
        let last = fork::refuse_fork(&self.root, volume, archived)?;
        let mut target = self.lock();
        let LastRecord::Missing(reason) = last else {
            target.missing_looks = 0;
            return Ok(());
        };
        target.missing_looks += 1;
        if target.missing_looks >= MISSING_LOOKS {
            return Err(Error::Refused(reason));
        }
        drop(target);
        let message = format!("our epoch {archived} is not seen: it is looked for again");
        let name = volume.to_string();
        Err(vfs::Error::new(ErrorClass::Transient, "list", &name, "", message).into())
    }

    fn evict(&self, pressure: fn(u64) -> Pressure) -> Result<()> {
        let (limits, wanted) = {
            let mut target = self.lock();
            // What is freed now is seen at the next look at the disk.
            (target.limits, std::mem::take(&mut target.pressure_bytes))
        };
        let now = self.clock.now_secs();
        evict::evict(&self.root, &self.ledger, limits, pressure(wanted), now)
    }

    /// Puts one pack, unless it is there already.
    ///
    /// The very bytes that are sent are checked first. A damaged pack is sent all the same: its whole
    /// records are needed, the damaged ones say so themselves, and the loss is named.
    fn put_pack(&self, volume: &dyn Volume, pack: PackId) -> Result<u32, Trouble> {
        let path = self.root.join(pack.object_name());
        let read = std::fs::read(&path).map_err(Error::io("read", &path));
        let bytes = read.map_err(Trouble::Local)?;
        let len = u32::try_from(bytes.len()).map_err(|_| {
            Trouble::Local(Error::corrupt(path.display().to_string(), 0, "over 4 GiB"))
        })?;
        let damage = survey(pack, &bytes).damage;
        for damage in &damage {
            self.note_damage(&path, damage);
        }
        put::put_pack(volume, pack, &bytes, !damage.is_empty()).map_err(Trouble::Volume)?;
        Ok(len)
    }

    fn note_damage(&self, path: &Path, damage: &Damage) {
        let loss = format!(
            "{} is damaged at byte {} ({} bytes): {}",
            path.display(),
            damage.offset,
            damage.len,
            damage.reason
        );
        let mut target = self.lock();
        if target.losses.len() < LOSSES_MAX && !target.losses.contains(&loss) {
            tracing::error!(loss, "bytes of a pack are lost");
            target.losses.push(loss);
        }
    }

    /// Uploads the newest epoch all of whose packs are there, if it is not archived yet.
    fn archive(&self, volume: &dyn Volume) -> Result<()> {
        if !self.lock().is_ledger_complete {
            return Ok(());
        }
        let Some(ready) = epochs::newest_ready(&*self.epochs, &self.ledger) else {
            return Ok(());
        };
        let record = &ready.record;
        let mut known = std::mem::take(&mut self.lock().known_segments);
        if known.is_empty() {
            known = fork::segments_of(&self.root, self.ledger.archived_epoch())?;
        }
        put::put_segments(volume, &self.root, record, &known)?;
        look(volume)?;
        failpoint::hit(failpoint::BEFORE_RECORD_PUT);
        self.refuse_fork(volume, self.ledger.archived_epoch())?;
        let session = SessionId::parse(&record.session)
            .ok_or_else(|| Error::corrupt("an epoch record", 0, "no session"))?;
        let key = ObjectKey::new(EpochRecord::name(record.epoch, session))?;
        put::put_record(volume, &key, &record.encode())?;
        look(volume)?;
        failpoint::hit(failpoint::AFTER_RECORD_PUT);
        // Another writer may have looked as we did and put as we did: whoever looks last sees both.
        self.refuse_fork(volume, record.epoch)?;
        self.ledger.archived(record.epoch, self.clock.now_secs())?;
        let names = record.segments.iter().map(|segment| segment.name.clone());
        self.lock().known_segments = names.collect();
        self.epochs.archived(record.epoch);
        Ok(())
    }
}

/// Whether this is still our volume. Another one is refused for good, not tried again.
fn look(volume: &dyn Volume) -> Result<()> {
    volume.verify_identity().map_err(Error::from)
}

#[cfg(test)]
mod tests;
