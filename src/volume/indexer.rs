//! The archive thread: closed epochs into segments, records and the index; and the index's refill.
//!
//! A lost or doubtful index delays nothing: the overlay stands on a view of the segments while a new
//! index is filled behind it, from that view (invariant 4). The external volume is never asked.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
use crate::volume::commit::Closing;
use crate::volume::health::Health;

/// The index as the overlay's base. Where it is doubtful the segments answer.
#[derive(Debug)]
pub struct IndexBase {
    index: Arc<Index>,
    archive: Arc<Archive>,
    is_doubted: Arc<AtomicBool>,
}

impl IndexBase {
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
        if !self.is_doubted.load(Ordering::SeqCst) {
            match self.index.get(key) {
                Ok(value) => return Ok(value),
                Err(doubt) => self.doubted(&doubt.reason),
            };
        }
        self.archive.newest().view.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], count_max: usize) -> Result<Vec<(Bytes, Bytes)>> {
        if !self.is_doubted.load(Ordering::SeqCst) {
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
    /// A refill is over: the index holds everything up to the epoch.
    Refilled(Box<Result<(Index, Epoch)>>),
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
                is_doubted: Arc::clone(&self.is_doubted),
            }),
            None => Arc::new(self.archive.newest().view),
        }
    }

    /// Compares every page of an index that was opened with its checkpoint, behind the mount's back: a page
    /// that the store rolled back looks right by itself.
    fn verify_behind(&self) {
        let Some(index) = &self.index else { return };
        let (index, is_doubted) = (Arc::clone(index), Arc::clone(&self.is_doubted));
        let verify = move || {
            if let Err(doubt) = index.verify()
                && !is_doubted.swap(true, Ordering::SeqCst)
            {
                tracing::warn!(
                    reason = doubt.reason,
                    "the index is doubtful: segments answer, and it is refilled"
                );
            }
        };
        if let Err(error) = std::thread::Builder::new()
            .name("index-verify".into())
            .spawn(verify)
        {
            tracing::warn!(%error, "the index is not verified this time");
        }
    }

    /// Runs until the tasks end.
    pub fn run(mut self, tasks: &Receiver<ArchiveTask>) {
        self.verify_behind();
        self.refill_if_needed();
        for task in tasks {
            match task {
                ArchiveTask::Close(closing) => self.close(*closing),
                ArchiveTask::Refilled(outcome) => self.refilled(*outcome),
                ArchiveTask::Stop => return,
            }
            self.refill_if_needed();
        }
    }

    fn close(&mut self, closing: Closing) {
        let Closing { epoch, answers } = closing;
        let number = epoch.epoch;
        let outcome = self.health.check().and_then(|()| self.try_close(&epoch));
        let outcome = outcome.map_err(|error| self.health.fail(error).chain());
        for answer in answers {
            answer(
                outcome
                    .as_ref()
                    .map(|()| number)
                    .map_err(|failure| Error::Poisoned(failure.clone())),
            );
        }
        (self.on_archived)();
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
        self.archive.remove_segments(&replaced)
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
        self.index = None;
        self.overlay.set_base(self.base());
        self.is_doubted = Arc::new(AtomicBool::new(false));
        self.since_refill = Some(Vec::new());
        let view = self.archive.newest().view;
        let (dir, volume, tasks) = (self.index_dir.clone(), self.volume, self.tasks.clone());
        let fill = move || {
            let outcome = fill(&dir, volume, &view).map(|index| (index, view.at()));
            // The archive thread may be gone: then the next opening finds no checkpoint and refills.
            let _ = tasks.send(ArchiveTask::Refilled(Box::new(
                outcome.map_err(Error::from),
            )));
        };
        if let Err(error) = std::thread::Builder::new()
            .name("refill".into())
            .spawn(fill)
        {
            tracing::error!(%error, "the index is not refilled now: reads are slower until the next mount");
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
fn fill(dir: &std::path::Path, volume: Uuid, view: &View) -> Result<Index, IndexError> {
    let mut index = Index::create(dir, volume.0)?;
    index.load(
        view.range(&[], std::ops::Bound::Unbounded)
            .map(|entry| entry.map_err(IndexError::from)),
    )?;
    index.checkpoint(view.at())?;
    Ok(index)
}
