//! The committer: one thread through which everything becomes durable.
//!
//! ```text
//! files settle -> overlay freezes -> packs sync -> journal frame -> waiters are answered
//! ```
//!
//! It runs every second while there are changes, at once for fsync (those that arrive while a commit is
//! under way share the next), and when memory is short. It also closes epochs.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;

use crate::error::{Error, Result};
use crate::format::keys::{self, Changes};
use crate::format::wire;
use crate::journal::JournalWriter;
use crate::meta::overlay::Overlay;
use crate::pack::store::PackStore;
use crate::types::{Epoch, Timestamp};
use crate::volume::archive::ClosedEpoch;
use crate::volume::backlog::Backlog;
use crate::volume::files::Files;
use crate::volume::health::Health;
use crate::volume::indexer::ArchiveTask;
use crate::volume::tree::Answer;

/// At most this much is at risk without fsync.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// An epoch's changes in memory: it closes early beyond. Replay after a crash is bounded by it too.
const EPOCH_LEN_MAX: usize = 48 << 20;
/// Changes not yet in the journal, beyond which a commit does not wait for its second.
pub const ACTIVE_LEN_MAX: usize = 16 << 20;

/// What the committer works on.
#[derive(Debug)]
pub struct CommitParts {
    /// Where changes come from.
    pub overlay: Arc<Overlay>,
    /// Whose bytes must be synced before.
    pub packs: Arc<PackStore>,
    /// Whose bytes must be in the packs before that.
    pub files: Arc<Files>,
    /// Where changes go.
    pub journal: Arc<Mutex<JournalWriter>>,
    /// Where closed epochs go.
    pub closed: Sender<ArchiveTask>,
    /// Stops everything after a failure.
    pub health: Arc<Health>,
    /// The wall time.
    pub clock: Arc<dyn crate::clock::Clock>,
    /// Whether there is room for a segment.
    pub backlog: Arc<Backlog>,
    /// An epoch closes after this.
    pub epoch_interval: Duration,
    /// An idle pack is sealed after this.
    pub seal_after: Duration,
}

/// A closed epoch on its way to the archive, and who waits for it.
pub struct Closing {
    /// The epoch.
    pub epoch: ClosedEpoch,
    /// Answered with its number when its record is on the local disk.
    pub answers: Vec<Answer<Epoch>>,
}

impl std::fmt::Debug for Closing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Closing")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// Who waits for an epoch that was handed over before.
pub struct Waiting {
    /// The epoch.
    pub epoch: Epoch,
    /// Answered with its number when its record is on the local disk.
    pub answers: Vec<Answer<Epoch>>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Requests {
    commits: Vec<Answer<()>>,
    closings: Vec<(Option<String>, Answer<Epoch>)>,
    pressure: bool,
    stop: bool,
    /// The committer is gone: whoever asks is told at once. A lazily detached mount asks on.
    ended: bool,
}

/// Asks the committer.
#[derive(Default)]
pub struct CommitQueue {
    requests: Mutex<Requests>,
    asked: Condvar,
    done: Condvar,
}

impl std::fmt::Debug for CommitQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitQueue").finish_non_exhaustive()
    }
}

impl CommitQueue {
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers when everything done so far survives a power cut.
    pub fn commit(&self, answer: Answer<()>) {
        let mut requests = self.lock();
        if requests.ended {
            drop(requests);
            return answer(Err(closed()));
        }
        requests.commits.push(answer);
        self.asked.notify_one();
    }

    /// Closes the epoch; with a name, as a snapshot, even if nothing changed.
    pub fn close_epoch(&self, name: Option<String>, answer: Answer<Epoch>) {
        let mut requests = self.lock();
        if requests.ended {
            drop(requests);
            return answer(Err(closed()));
        }
        requests.closings.push((name, answer));
        self.asked.notify_one();
    }

    /// The committer ends: those who asked too late are told.
    fn end(&self) {
        let (commits, closings) = {
            let mut requests = self.lock();
            requests.ended = true;
            let requests = &mut *requests;
            (
                std::mem::take(&mut requests.commits),
                std::mem::take(&mut requests.closings),
            )
        };
        for answer in commits {
            answer(Err(closed()));
        }
        for (_, answer) in closings {
            answer(Err(closed()));
        }
        self.done.notify_all();
    }

    /// Memory is short: commit what there is.
    pub fn press(&self) {
        self.lock().pressure = true;
        self.asked.notify_one();
    }

    /// Waits, at most for the commit interval, until a commit is over.
    pub fn wait_for_commit(&self) {
        drop(self.done.wait_timeout(self.lock(), COMMIT_INTERVAL));
    }

    /// Ends the committer when what was asked before is done.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.asked.notify_one();
    }

    fn next(&self, deadline: Instant) -> Requests {
        let mut requests = self.lock();
        loop {
            let now = Instant::now();
            let is_asked = requests.stop
                || requests.pressure
                || !requests.commits.is_empty()
                || !requests.closings.is_empty();
            if is_asked || now >= deadline {
                let stop = requests.stop;
                let taken = std::mem::take(&mut *requests);
                requests.stop = stop;
                return taken;
            }
            requests = self
                .asked
                .wait_timeout(requests, deadline - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// The committer's own state.
#[derive(Debug)]
pub struct Committer {
    parts: CommitParts,
    epoch: Epoch,
    epoch_opened: Instant,
    /// A frame that found no room: the next commit begins with it.
    refused: Option<Arc<Changes>>,
}

impl Committer {
    /// Commits into `epoch` from now on.
    pub fn new(parts: CommitParts, epoch: Epoch) -> Committer {
        Committer {
            parts,
            epoch,
            epoch_opened: Instant::now(),
            refused: None,
        }
    }

    /// Runs until it is stopped.
    pub fn run(mut self, queue: &CommitQueue) {
        let mut last_round = Instant::now();
        loop {
            let requests = queue.next(last_round + COMMIT_INTERVAL);
            let is_due = last_round.elapsed() >= COMMIT_INTERVAL;
            let settle =
                is_due || requests.pressure || requests.stop || !requests.closings.is_empty();
            if settle {
                last_round = Instant::now();
                self.settle_files();
            }
            let outcome = self.commit();
            for answer in requests.commits {
                answer(outcome.as_ref().copied().map_err(again));
            }
            queue.done.notify_all();
            if is_due && outcome.is_ok() {
                self.keep_house();
            }
            if !requests.closings.is_empty() || (requests.stop && outcome.is_ok()) {
                self.close_epoch(requests.closings);
            }
            if requests.stop {
                queue.end();
                return;
            }
        }
    }

    fn settle_files(&self) {
        for file in self.parts.files.all() {
            if let Err(error) = self.parts.files.settle(&file) {
                tracing::error!(error = %error.chain(), "what was written to an open file could not be stored");
            }
        }
    }

    /// One commit. After a failure that may have left a part behind, nothing more is acknowledged.
    fn commit(&mut self) -> Result<()> {
        self.parts.health.check()?;
        let frozen = match self.refused.take() {
            Some(frozen) => frozen,
            None => match self.parts.overlay.freeze() {
                Some(frozen) => frozen,
                None => return Ok(()),
            },
        };
        match self.write_frame(&frozen) {
            Ok(()) => {
                self.parts.overlay.committed(frozen);
                Ok(())
            }
            Err(error @ Error::NoSpace { .. }) => {
                self.refused = Some(frozen);
                Err(error)
            }
            Err(error) => Err(self.parts.health.fail(error)),
        }
    }

    fn write_frame(&self, frozen: &Changes) -> Result<()> {
        crate::failpoint::hit(crate::failpoint::BEFORE_PACK_SYNC);
        let packs = self.parts.packs.sync()?;
        crate::failpoint::hit(crate::failpoint::BEFORE_FRAME);
        let mut journal = self
            .parts
            .journal
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        journal.append(self.epoch, &packs, frozen)?;
        drop(journal);
        crate::failpoint::hit(crate::failpoint::AFTER_FRAME);
        Ok(())
    }

    fn keep_house(&mut self) {
        if let Err(error) = self.parts.packs.seal_idle(self.parts.seal_after) {
            self.parts.health.fail(error);
        }
        let len = self.parts.overlay.len();
        let is_old = len.epoch > 0 && self.epoch_opened.elapsed() >= self.parts.epoch_interval;
        // What stays open stays in the journal, and waits for room there.
        if (is_old || len.epoch > EPOCH_LEN_MAX) && self.parts.backlog.has_room_to_close(len.epoch)
        {
            self.close_epoch(Vec::new());
        }
    }

    /// Closes the epoch, if anything changed in it or somebody asked by name.
    fn close_epoch(&mut self, asked: Vec<(Option<String>, Answer<Epoch>)>) {
        let (names, answers): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        let name = names.into_iter().flatten().next_back();
        match self.try_close(name) {
            Ok(Some(epoch)) => {
                let closing = Box::new(Closing { epoch, answers });
                self.hand_over(ArchiveTask::Close(closing));
            }
            // Nothing changed since the last one, which may still be on its way.
            Ok(None) => {
                let last = Epoch(self.epoch.0.saturating_sub(1));
                let waiting = Waiting {
                    epoch: last,
                    answers,
                };
                self.hand_over(ArchiveTask::Answer(waiting));
            }
            Err(error) => {
                for answer in answers {
                    answer(Err(again(&error)));
                }
            }
        }
    }

    fn hand_over(&self, task: ArchiveTask) {
        if self.parts.closed.send(task).is_err() {
            let gone = Error::Poisoned("the archive thread is gone".into());
            self.parts.health.fail(gone);
        }
    }

    fn try_close(&mut self, name: Option<String>) -> Result<Option<ClosedEpoch>> {
        self.commit()?;
        let len = self.parts.overlay.len();
        if len.epoch == 0 && name.is_none() {
            return Ok(None);
        }
        if !self.parts.backlog.has_room_to_close(len.epoch) {
            let path = self.parts.backlog.root().to_owned();
            return Err(Error::NoSpace { path });
        }
        let now = self.parts.clock.now();
        self.parts.overlay.transact(|tx| {
            tx.put(keys::epoch(self.epoch), encode_epoch(now, name.as_deref()));
            Ok(())
        })?;
        self.commit()?;
        self.parts
            .packs
            .seal_all()
            .map_err(|error| self.parts.health.fail(error))?;
        let Some(changes) = self.parts.overlay.close_epoch() else {
            return Ok(None);
        };
        let lsn = self
            .parts
            .journal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next_lsn();
        let closed = ClosedEpoch {
            epoch: self.epoch,
            time: now.secs,
            changes,
            lsn: crate::types::Lsn(lsn.0 - 1),
            last_pack: self.parts.packs.last_pack(),
            sealed: self.parts.packs.take_sealed(),
        };
        self.epoch = self.epoch.next();
        self.epoch_opened = Instant::now();
        Ok(Some(closed))
    }
}

/// The value of a closed epoch's key: its time and, of a snapshot, its name.
pub fn encode_epoch(time: Timestamp, name: Option<&str>) -> Bytes {
    let mut out = Vec::new();
    wire::put_timestamp(&mut out, time);
    wire::put_prefixed(&mut out, name.unwrap_or_default().as_bytes());
    out.into()
}

/// Decodes it.
pub fn decode_epoch(bytes: &[u8]) -> Option<(Timestamp, Option<String>)> {
    let mut reader = wire::Reader::new(bytes);
    let time = reader.timestamp()?;
    let name = String::from_utf8_lossy(reader.prefixed(usize::MAX)?).into_owned();
    Some((time, Some(name).filter(|name| !name.is_empty())))
}

fn closed() -> Error {
    Error::Poisoned("the volume is closed".into())
}

/// The same error for one more waiter.
fn again(error: &Error) -> Error {
    match error {
        Error::NoSpace { path } => Error::NoSpace { path: path.clone() },
        Error::Posix(errno) => Error::Posix(*errno),
        other => Error::Poisoned(other.chain()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_a_committer_that_ended_is_told_at_once() {
        let queue = CommitQueue::default();
        let (told, telling) = crossbeam_channel::bounded(4);
        let tell = told.clone();
        queue.commit(Box::new(move |outcome| {
            tell.send(outcome.is_err()).unwrap();
        }));
        assert!(telling.is_empty(), "it waits for the committer");
        queue.end();
        let tell = told.clone();
        queue.commit(Box::new(move |outcome| {
            tell.send(outcome.is_err()).unwrap();
        }));
        queue.close_epoch(
            None,
            Box::new(move |outcome| told.send(outcome.is_err()).unwrap()),
        );
        assert_eq!(telling.try_iter().collect::<Vec<_>>(), [true, true, true]);
    }
}
