//! A volume that is open for writing: what it is made of, what it tells, how it closes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use serde::Serialize;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::fetch::Fetch;
use crate::format::keys;
use crate::format::record::Identity;
use crate::meta::overlay::{Entries, Overlay};
use crate::pack::ledger::{Ledger, Totals};
use crate::pack::store::PackStore;
use crate::types::{Epoch, SessionId, Timestamp};
use crate::upload::{UploadState, Uploader};
use crate::volume::ack::Acks;
use crate::volume::archive::Archive;
use crate::volume::backlog::{Backlog, BacklogStatus};
use crate::volume::commit::{CommitQueue, decode_epoch};
use crate::volume::fed::FedAccounts;
use crate::volume::feed::Witness;
use crate::volume::files::Files;
use crate::volume::health::Health;
use crate::volume::indexer::ArchiveTask;
use crate::volume::limits::LimitStatus;
use crate::volume::lock::PathLock;
use crate::volume::open::whole;
use crate::volume::pacer::Pacer;
use crate::volume::settings::{Settings, Store};
use crate::volume::store::{CircuitStatus, ExternalStore};
use crate::volume::view_tree::ViewTree;

/// At the end, an external volume that was silent for this long is asked for a sign of life ..
const QUIET_MAX: Duration = Duration::from_secs(1);
/// .. and has this long to give it. What is not sent then is sent the next time, and whoever unmounts has an answer
/// within seconds.
const SIGN_OF_LIFE_PATIENCE: Duration = Duration::from_secs(2);

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// Journal frames that were replayed.
    pub frames: u64,
    /// Packs that were open and are sealed now.
    pub packs_sealed: u64,
    /// Why the index was discarded, if it was.
    pub index_note: Option<String>,
    /// How long opening took.
    pub took_ms: u64,
}

/// A volume, open for writing. One for each backup path, in one process.
#[derive(Debug)]
pub struct Volume {
    pub(super) root: PathBuf,
    pub(super) identity: Identity,
    pub(super) settings: Mutex<Settings>,
    pub(super) session: SessionId,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) health: Arc<Health>,
    pub(super) overlay: Arc<Overlay>,
    pub(super) packs: Arc<PackStore>,
    pub(super) files: Arc<Files>,
    pub(super) fetch: Arc<Fetch>,
    pub(super) archive: Arc<Archive>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) uploader: Arc<Uploader>,
    pub(super) limits: vfs::LimitHandle,
    pub(super) external: Mutex<Option<ExternalStore>>,
    pub(super) queue: Arc<CommitQueue>,
    pub(super) threads: Mutex<Vec<JoinHandle<()>>>,
    pub(super) stop_refill: Arc<std::sync::atomic::AtomicBool>,
    pub(super) tasks: Mutex<Option<Sender<ArchiveTask>>>,
    pub(super) recovery: Recovery,
    pub(super) backlog: Arc<Backlog>,
    pub(super) acks: Arc<Acks>,
    pub(super) pacer: Pacer,
    pub(super) fed: FedAccounts,
    pub(super) witness: RwLock<Option<Arc<dyn Witness>>>,
    pub(super) _lock: PathLock,
}

/// How safe what was written is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Lost with the process or the power.
    Memory,
    /// Survives a power cut of this machine.
    Local,
    /// Its bytes are on the external volume.
    External,
    /// The external volume alone gives it back.
    Archived,
}

/// A closed epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EpochEntry {
    /// Its number.
    pub epoch: Epoch,
    /// When it was closed, seconds since 1970.
    pub time: i64,
    /// Nanoseconds beside it.
    pub nanos: u32,
    /// Its name, if it is a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What `status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Where.
    pub backup_path: PathBuf,
    /// Who.
    pub volume: String,
    /// This opening.
    pub session: String,
    /// What fsync means.
    pub ack: &'static str,
    /// The newest epoch that is whole on the local disk.
    pub epoch_local: Epoch,
    /// The newest epoch that the external volume alone gives back.
    pub epoch_archived: Epoch,
    /// Seconds of work that would be lost if this machine burned down now; absent without an external volume.
    pub recovery_point_secs: Option<i64>,
    /// Packs here and away.
    pub packs: PackTotals,
    /// What is only here, and how much it may become.
    pub backlog: BacklogStatus,
    /// Seconds until that is full, if it goes on as in the last minutes; absent when it does not grow.
    pub time_to_full_secs: Option<u64>,
    /// Where packs go.
    pub store: Store,
    /// What the uploader is doing.
    pub upload: UploadState,
    /// How much of the line to the external volume is used.
    pub limits: LimitStatus,
    /// Whether the external volume answers; absent without one.
    pub circuit: Option<CircuitStatus>,
    /// Whether packs are written past the page cache; absent before the first.
    pub direct_io: Option<bool>,
    /// Free bytes of the backup path's file system.
    pub free_bytes: u64,
    /// Bytes of packs whose local copy is whole.
    pub cache_bytes: u64,
    /// Bytes of evicted packs that were read again, and are here until others are.
    pub read_cache_bytes: u64,
    /// What was found lost: nothing, on a sound disk.
    pub losses: Vec<String>,
    /// What the last recovery did.
    pub recovery: Recovery,
    /// The failure after which nothing is acknowledged, if there was one.
    pub failure: Option<String>,
}

/// Counts of packs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PackTotals {
    /// All.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are only here.
    pub unsent_count: u64,
    /// Their bytes.
    pub unsent_bytes: u64,
    /// Bytes in the pack that is being written, which are only here too.
    pub open_bytes: u64,
}

impl PackTotals {
    fn new(totals: Totals, open_bytes: u64) -> PackTotals {
        PackTotals {
            count: totals.packs,
            bytes: totals.bytes,
            unsent_count: totals.unsent_packs,
            unsent_bytes: totals.unsent_bytes,
            open_bytes,
        }
    }
}

impl Volume {
    /// The settings as they are.
    pub fn settings(&self) -> Settings {
        whole(&self.settings).clone()
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it is.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// Waits until everything done so far survives a power cut.
    pub fn commit(&self) -> Result<()> {
        let (sender, answered) = bounded(1);
        self.queue.press();
        self.queue
            .commit(Box::new(move |outcome| drop(sender.send(outcome))));
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Closes the epoch, as a snapshot if it has a name, and waits until its record is on the local disk.
    pub fn close_epoch(&self, name: Option<String>) -> Result<Epoch> {
        let (sender, answered) = bounded(1);
        self.queue
            .close_epoch(name, Box::new(move |outcome| drop(sender.send(outcome))));
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// How things are.
    pub fn status(&self) -> Status {
        let newest = self.archive.newest();
        let archived = self.ledger.archived_epoch();
        let settings = self.settings();
        let has_store = settings.store != Store::Local;
        Status {
            backup_path: self.root.clone(),
            volume: self.identity.volume.clone(),
            session: self.session.to_string(),
            ack: self.acks.mode().name(),
            epoch_local: newest
                .record
                .as_ref()
                .map_or(Epoch(0), |record| record.epoch),
            epoch_archived: archived,
            recovery_point_secs: has_store.then(|| self.recovery_point_secs(archived)),
            packs: PackTotals::new(self.ledger.totals(), self.packs.open_bytes()),
            backlog: self.backlog.status(self.pacer.waiting()),
            time_to_full_secs: self.backlog.time_to_full_secs(),
            store: settings.store,
            upload: self.uploader.state(),
            limits: self.limits(),
            circuit: self.external().as_ref().map(ExternalStore::circuit),
            direct_io: self.packs.direct_io(),
            free_bytes: crate::volume::live::free_bytes(&self.root).unwrap_or(0),
            cache_bytes: self.ledger.totals().local_bytes,
            read_cache_bytes: self.packs.read_cache().bytes(),
            losses: self.uploader.losses(),
            recovery: self.recovery.clone(),
            failure: self.health.failure(),
        }
    }

    /// Seconds between the archived epoch and now, 0 when nothing was done since.
    fn recovery_point_secs(&self, archived: Epoch) -> i64 {
        let len = self.overlay.len();
        let newest = self
            .archive
            .newest()
            .record
            .map_or(Epoch(0), |record| record.epoch);
        if newest <= archived && len.active == 0 && len.epoch == 0 && len.closing == 0 {
            return 0;
        }
        let time = self.epoch_time(archived).unwrap_or_else(|| {
            let created = i64::try_from(self.identity.created).unwrap_or(0);
            Timestamp {
                secs: created,
                nanos: 0,
            }
        });
        (self.clock.now().secs - time.secs).max(0)
    }

    fn epoch_time(&self, epoch: Epoch) -> Option<Timestamp> {
        let bytes = self.overlay.read().get(&keys::epoch(epoch)).ok()??;
        decode_epoch(&bytes).map(|(time, _)| time)
    }

    /// The closed epochs.
    pub fn epochs(&self) -> Result<Vec<EpochEntry>> {
        epochs_of(&self.overlay.read())
    }

    /// The epochs that are whole on the local disk and can be shown.
    pub fn closed_epochs(&self) -> Result<Vec<EpochEntry>> {
        epochs_of(&self.archive.newest().view)
    }

    /// The newest epoch that is whole on the local disk.
    pub fn newest_epoch(&self) -> Epoch {
        let newest = self.archive.newest().record;
        newest.map_or(Epoch(0), |record| record.epoch)
    }

    /// The volume as of a closed epoch.
    pub fn view_tree(&self, at: Epoch) -> ViewTree {
        ViewTree::new(
            self.archive.newest().view.as_of(at),
            Arc::clone(&self.fetch),
        )
    }

    /// Closes the volume: everything is durable, the epoch closed, the threads ended. Uploads may go on
    /// for `drain`; what is not sent by then waits for the next opening.
    pub fn close(&self, drain: Duration, progress: &mut dyn FnMut(&Status)) -> Result<()> {
        self.stop_refill
            .store(true, std::sync::atomic::Ordering::Relaxed);
        self.join("pack-sweep");
        self.queue.stop();
        self.join("commit");
        if let Some(tasks) = whole(&self.tasks).take() {
            // A failed archive thread has told its failure to `health`.
            let _ = tasks.send(ArchiveTask::Stop);
        }
        self.join("archive");
        self.drain(Instant::now() + drain, progress);
        self.acks.close();
        self.pacer.stop();
        self.ledger.sync()?;
        self.health.check()
    }

    fn drain(&self, deadline: Instant, progress: &mut dyn FnMut(&Status)) {
        self.uploader.wake();
        while self.uploader.state().is_hopeful() && Instant::now() < deadline {
            let newest = self
                .archive
                .newest()
                .record
                .map_or(Epoch(0), |record| record.epoch);
            if self.ledger.archived_epoch() >= newest && self.ledger.to_upload(1).is_empty() {
                return;
            }
            progress(&self.status());
            self.uploader.wait_for_round(Duration::from_millis(500));
            if let Some(external) = self.external()
                && external
                    .silence()
                    .is_some_and(|silence| silence > QUIET_MAX)
                && !external.answers_within(SIGN_OF_LIFE_PATIENCE)
            {
                return;
            }
        }
    }

    fn external(&self) -> Option<ExternalStore> {
        whole(&self.external).clone()
    }

    /// Looks for an external volume that is away now, and not at the end of a pause.
    pub fn look_for_store(&self) {
        self.uploader.look_now();
    }

    /// Waits until it is known whether the external volume is there, for at most `patience`.
    pub fn await_store(&self, patience: Duration) {
        self.uploader.wait_until_known(patience);
    }

    fn join(&self, name: &str) {
        let mut threads = whole(&self.threads);
        if let Some(at) = threads
            .iter()
            .position(|thread| thread.thread().name() == Some(name))
        {
            let thread = threads.swap_remove(at);
            drop(threads);
            if thread.join().is_err() {
                self.health
                    .fail(Error::Poisoned(format!("the {name} thread panicked")));
            }
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // An upload that waits for its turn would keep its thread, and us, for as long as the limits say.
        self.limits.stop();
        self.stop_refill
            .store(true, std::sync::atomic::Ordering::Relaxed);
        self.join("pack-sweep");
        self.queue.stop();
        self.join("commit");
        if let Some(tasks) = whole(&self.tasks).take() {
            // See `close`.
            let _ = tasks.send(ArchiveTask::Stop);
        }
        self.join("archive");
        self.acks.close();
        // Nobody waits for an external volume that hangs: not the uploader, which is joined, and not a read.
        if let Some(external) = self.external() {
            external.stop();
        }
    }
}

fn gone() -> Error {
    Error::Poisoned("the commit thread is gone".into())
}

/// The epochs that a tree's metadata tells of, in order.
pub fn epochs_of(entries: &impl Entries) -> Result<Vec<EpochEntry>> {
    let found = entries.range(&keys::epoch(Epoch(0)), &keys::epochs_end(), usize::MAX)?;
    let decoded = found.iter().filter_map(|(key, value)| {
        let (time, name) = decode_epoch(value)?;
        Some(EpochEntry {
            epoch: keys::epoch_of(key)?,
            time: time.secs,
            nanos: time.nanos,
            name,
        })
    });
    Ok(decoded.collect())
}
