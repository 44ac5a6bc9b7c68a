//! The archive thread: closed epochs into segments, records and the index; and the index's refill.
//!
//! A lost or doubtful index delays nothing: the overlay stands on a view of the segments while a new
//! index is filled behind it, from that view (invariant 4). The external volume is never asked.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};

use crate::error::{Error, Result};
use crate::failpoint;
use crate::format::keys::Changes;
use crate::journal::JournalWriter;
use crate::meta::blobs::BlobIndex;
use crate::meta::index::{Index, IndexError};
use crate::meta::overlay::{Base, Overlay};
use crate::meta::view::View;
use crate::types::{Epoch, Uuid};
use crate::volume::archive::Archive;
use crate::volume::commit::{Closing, Waiting};
use crate::volume::health::Health;

/// The index as the overlay's base. Where it is doubtful the segments answer.
#[derive(Debug)]
pub struct IndexBase {
    index: Arc<Index>,
    archive: Arc<Archive>,
    is_verified: Arc<AtomicBool>,
    is_doubted: Arc<AtomicBool>,
}

impl IndexBase {
    fn answers(&self) -> bool {
        self.is_verified.load(Ordering::SeqCst) && !self.is_doubted.load(Ordering::SeqCst)
    }

    fn doubted(&self, reason: &str) -> View {
        if !self.is_doubted.swap(true, Ordering::SeqCst) {
            tracing::warn!(
                reason,
                "the index is doubtful: segments answer, and it is refilled"
            );
        }
        // The newest view is ahead of the index by epochs that the overlay still holds: the same answers.
        self.archive.newest().view
    }
}

impl Base for IndexBase {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        if self.answers() {
            match self.index.get(key) {
                Ok(value) => return Ok(value),
                Err(doubt) => self.doubted(&doubt.reason),
            };
        }
        self.archive.newest().view.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], count_max: usize) -> Result<Vec<(Bytes, Bytes)>> {
        if self.answers() {
            match self
                .index
                .range(from, Some(to))
                .take(count_max)
                .collect::<Result<Vec<_>, _>>()
            {
                Ok(entries) => return Ok(entries),
                Err(doubt) => self.doubted(&doubt.reason),
            };
        }
        Base::range(&self.archive.newest().view, from, to, count_max)
    }
}

/// What the archive thread is told.
#[derive(Debug)]
pub enum ArchiveTask {
    /// An epoch was closed.
    Close(Box<Closing>),
    /// Somebody asks for an epoch that was sent before, or came from the disk.
    Answer(Waiting),
    /// A refill is over: the index holds everything up to the epoch.
    Refilled(Box<Result<(Index, Epoch)>>),
    /// The index was read through: it is doubted now, or answers from now on.
    Verified,
    /// All that was sent before is done, and no more comes.
    Stop,
}

/// What the archive thread works on.
pub struct Indexer {
    /// Segments and records.
    pub archive: Arc<Archive>,
    /// Whose closing layers are worked off.
    pub overlay: Arc<Overlay>,
    /// Whose files are dropped.
    pub journal: Arc<Mutex<JournalWriter>>,
    /// Where the index is.
    pub index_dir: PathBuf,
    /// Whose index it is.
    pub volume: Uuid,
    /// Stops everything after a failure.
    pub health: Arc<Health>,
    /// The index, when it can be used.
    pub index: Option<Arc<Index>>,
    /// Set when every page is known to be as of the last checkpoint: until then the segments answer.
    pub is_verified: Arc<AtomicBool>,
    /// Set when a read met something doubtful.
    pub is_doubted: Arc<AtomicBool>,
    /// Where each blob is.
    pub blobs: Arc<BlobIndex>,
    /// For the refill's own message.
    pub tasks: Sender<ArchiveTask>,
    /// Told of each new record.
    pub on_archived: Box<dyn Fn() + Send>,
    /// Changes of epochs closed since a refill began.
    pub since_refill: Option<Vec<Arc<Changes>>>,
    /// The verification under way.
    pub verify: Option<JoinHandle<()>>,
    /// The refill under way, and how it is told to give up.
    pub refill: Option<(JoinHandle<()>, Arc<AtomicBool>)>,
}

impl std::fmt::Debug for Indexer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Indexer")
            .field("index_dir", &self.index_dir)
            .finish_non_exhaustive()
    }
}

/// The index's status, for people.
pub const REFILLING: &str = "refilling";

impl Indexer {
    /// The base that the overlay stands on: the index if there is one, else the newest segments.
    pub fn base(&self) -> Arc<dyn Base> {
        match &self.index {
            Some(index) => Arc::new(IndexBase {
                index: Arc::clone(index),
                archive: Arc::clone(&self.archive),
                is_verified: Arc::clone(&self.is_verified),
                is_doubted: Arc::clone(&self.is_doubted),
            }),
            None => Arc::new(self.archive.newest().view),
        }
    }

    /// Runs until the tasks end.
    pub fn run(mut self, tasks: &Receiver<ArchiveTask>) {
        self.begin_verify();
        self.refill_if_needed();
        for task in tasks {
            match task {
                ArchiveTask::Close(closing) => self.close(*closing),
                ArchiveTask::Answer(waiting) => self.answer(waiting),
                ArchiveTask::Refilled(outcome) => self.refilled(*outcome),
                ArchiveTask::Verified => self.end_verify(),
                ArchiveTask::Stop => {
                    self.end_verify();
                    return self.end_refill(tasks);
                }
            }
            self.refill_if_needed();
        }
    }

    /// Reads the whole index through. After damage sled may give back an older page without a word, and
    /// only the digest over all of them tells.
    fn begin_verify(&mut self) {
        let Some(index) = self.index.clone() else {
            return;
        };
        let (is_verified, is_doubted) =
            (Arc::clone(&self.is_verified), Arc::clone(&self.is_doubted));
        let tasks = self.tasks.clone();
        let verify = move || {
            let reason = match index.verify() {
                Ok(report) if report.compared => None,
                Ok(_) => Some("it has no digest".to_owned()),
                Err(doubt) => Some(doubt.reason),
            };
            if let Some(reason) = reason {
                tracing::warn!(reason, "the index is doubtful: it is refilled");
                is_doubted.store(true, Ordering::SeqCst);
            } else {
                is_verified.store(true, Ordering::SeqCst);
            }
            drop(index);
            // Whatever fills the queue makes the archive thread look as well. It may be waiting for this one.
            let _ = tasks.try_send(ArchiveTask::Verified);
        };
        match std::thread::Builder::new()
            .name("verify".into())
            .spawn(verify)
        {
            Ok(thread) => self.verify = Some(thread),
            Err(error) => {
                tracing::error!(%error, "the index is not verified: reads are slower until the next mount");
            }
        }
    }

    /// The index changes only after it was verified: what is then checkpointed is known to be right.
    fn end_verify(&mut self) {
        if let Some(thread) = self.verify.take() {
            // A panic leaves the index unverified: the segments answer.
            let _ = thread.join();
        }
    }

    fn close(&mut self, closing: Closing) {
        let Closing { epoch, answers } = closing;
        let number = epoch.epoch;
        let outcome = self.health.check().and_then(|()| self.try_close(&epoch));
        if let Err(error) = outcome {
            self.health.fail(error);
        }
        self.answer(Waiting {
            epoch: number,
            answers,
        });
        (self.on_archived)();
    }

    /// After a failure nothing counts as closed.
    fn answer(&self, waiting: Waiting) {
        for answer in waiting.answers {
            answer(self.health.check().map(|()| waiting.epoch));
        }
    }

    fn try_close(&mut self, epoch: &crate::volume::archive::ClosedEpoch) -> Result<()> {
        let newest = self
            .archive
            .newest()
            .record
            .map_or(Epoch(0), |record| record.epoch);
        let replaced = if newest < epoch.epoch {
            self.archive.close(epoch)?
        } else {
            Vec::new()
        };
        failpoint::hit(failpoint::AFTER_RECORD);
        self.end_verify();
        if let Some(index) = self
            .index
            .take_if(|_| !self.is_doubted.load(Ordering::SeqCst))
        {
            match absorb(&index, &[&epoch.changes], epoch.epoch) {
                Ok(()) => self.index = Some(index),
                Err(IndexError::Doubt(doubt)) => {
                    tracing::warn!(
                        reason = doubt.reason,
                        "the index is doubtful: it is refilled"
                    );
                    self.is_doubted.store(true, Ordering::SeqCst);
                }
                Err(IndexError::Engine(error)) => return Err(error),
            }
        } else {
            self.index = None;
        }
        if self.index.is_none() {
            self.overlay.set_base(self.base());
        }
        if let Some(since) = &mut self.since_refill {
            since.push(Arc::clone(&epoch.changes));
        }
        self.enter_blobs(epoch);
        failpoint::hit(failpoint::AFTER_CHECKPOINT);
        self.overlay.absorbed();
        self.journal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drop_through(epoch.epoch)?;
        self.archive.remove_segments(replaced)
    }

    /// The epoch's packs are whole and committed: dedupe may find their blobs after a crash too.
    fn enter_blobs(&self, epoch: &crate::volume::archive::ClosedEpoch) {
        epoch
            .sealed
            .iter()
            .for_each(|pack| self.blobs.pack_complete(*pack));
        if !self.blobs.wants_flush() {
            return;
        }
        let written = self
            .blobs
            .flush()
            .and_then(|()| self.blobs.merge_if_needed(|_| true));
        if let Err(error) = written {
            tracing::warn!(error = %error.chain(), "the blob index could not be written: dedupe may miss");
        }
    }

    /// Begins a refill when there is no index that can be used and none is on the way.
    fn refill_if_needed(&mut self) {
        let is_usable = self.index.is_some() && !self.is_doubted.load(Ordering::SeqCst);
        if is_usable || self.since_refill.is_some() {
            return;
        }
        self.end_verify();
        self.index = None;
        self.overlay.set_base(self.base());
        self.is_doubted = Arc::new(AtomicBool::new(false));
        self.is_verified = Arc::new(AtomicBool::new(true));
        self.since_refill = Some(Vec::new());
        let view = self.archive.newest().view;
        let (dir, volume, tasks) = (self.index_dir.clone(), self.volume, self.tasks.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let is_stopped = Arc::clone(&stop);
        let fill = move || {
            let outcome = fill(&dir, volume, &view, &is_stopped).map(|index| (index, view.at()));
            // The archive thread may be gone: then the next opening finds no checkpoint and refills.
            let _ = tasks.send(ArchiveTask::Refilled(Box::new(
                outcome.map_err(Error::from),
            )));
        };
        match std::thread::Builder::new()
            .name("refill".into())
            .spawn(fill)
        {
            Ok(thread) => self.refill = Some((thread, stop)),
            Err(error) => {
                tracing::error!(%error, "the index is not refilled now: reads are slower until the next mount");
            }
        }
    }

    /// Lets no refill outlive the volume: whoever opens it next has the index's directory to himself. One
    /// that is over already is made use of.
    fn end_refill(mut self, tasks: &Receiver<ArchiveTask>) {
        let Some((thread, stop)) = self.refill.take() else {
            return;
        };
        stop.store(true, Ordering::SeqCst);
        // A refill that panicked has left no checkpoint: the next opening begins anew.
        let _ = thread.join();
        if let Ok(ArchiveTask::Refilled(outcome)) = tasks.try_recv()
            && outcome.is_ok()
        {
            self.refilled(*outcome);
        }
    }

    fn refilled(&mut self, outcome: Result<(Index, Epoch)>) {
        let since = self.since_refill.take().unwrap_or_default();
        let (index, _) = match outcome {
            Ok(filled) => filled,
            Err(error) => {
                tracing::error!(error = %error.chain(), "the index could not be refilled: reads are slower until the next mount");
                self.since_refill = Some(Vec::new());
                return;
            }
        };
        let newest = self
            .archive
            .newest()
            .record
            .map_or(Epoch(0), |record| record.epoch);
        let changes: Vec<&Arc<Changes>> = since.iter().collect();
        match absorb(&index, &changes, newest) {
            Ok(()) => {
                self.index = Some(Arc::new(index));
                self.overlay.set_base(self.base());
                tracing::info!("the index is complete");
            }
            Err(error) => {
                tracing::error!(error = %Error::from(error).chain(), "the index could not be completed");
            }
        }
    }
}

/// Applies the changes of some epochs and makes the index durable as of `epoch`.
fn absorb(index: &Index, epochs: &[&Arc<Changes>], epoch: Epoch) -> Result<(), IndexError> {
    for changes in epochs {
        index.apply(
            changes
                .iter()
                .map(|(key, value)| (&**key, value.as_deref())),
        )?;
    }
    index.checkpoint(epoch)
}

/// A new index with everything that `view` shows.
fn fill(
    dir: &std::path::Path,
    volume: Uuid,
    view: &View,
    is_stopped: &AtomicBool,
) -> Result<Index, IndexError> {
    let mut index = Index::create(dir, volume.0)?;
    let entries = view.range(&[], std::ops::Bound::Unbounded);
    index.load(entries.map(|entry| {
        if is_stopped.load(Ordering::Relaxed) {
            return Err(Error::Refused("the volume is being closed".into()).into());
        }
        entry.map_err(IndexError::from)
    }))?;
    index.checkpoint(view.at())?;
    Ok(index)
}
