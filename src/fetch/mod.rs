//! Bytes out: the blobs of a read, from memory, a local pack, or the external volume.
//!
//! A read whose bytes are at hand is answered on the caller's thread. One that needs the external
//! volume is answered by a fetch thread, so that no FUSE thread waits for a network (invariant 5). What reads
//! that follow each other will need is fetched by threads of its own, several ranges at once.
//!
//! - `reader`: where a blob comes from, and where it stays; `streams`: which reads follow each other;
//! - `flights`: what is on its way; `maps`: where records begin; `external`: ranges of packs far away;
//! - `cache`: blobs in memory.

pub mod cache;
pub mod external;
mod flights;
mod maps;
mod reader;
mod streams;
mod waiting;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::{Bytes, BytesMut};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::errno::Errno;
use vfs::Circuit;

use crate::error::{Error, Result};
use crate::fetch::external::ExternalPacks;
use crate::fetch::reader::{Ahead, Reader};
use crate::format::inode::Extent;
use crate::pack::store::PackStore;
use crate::types::{BlobHash, BlobLocation};

use waiting::{Ticket, Waiting};

pub use waiting::WAITING_MAX;

/// Threads that wait for the external volume.
const FETCH_THREADS: usize = 4;
/// Threads that fetch before somebody waits: so many ranges are on their way at the same time, where the volume makes as
/// many operations (see `external`). Each answer of a bucket begins late, some 10 to 50 ms: six hide that.
const AHEAD_THREADS: usize = 6;
/// Ranges that may wait for them, of at most two windows; more are asked for again by the reads that need them.
const AHEAD_LEN_MAX: usize = 32;

/// Bytes newer than any extent.
#[derive(Clone, Debug)]
pub struct Patch {
    /// Where in the file.
    pub start: u64,
    /// The bytes.
    pub bytes: Bytes,
}

/// What a read returns: extents over zeros, and newer bytes over both.
#[derive(Debug, Default)]
pub struct ReadPlan {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes to return.
    pub len: usize,
    /// Extents cut to the range.
    pub extents: Vec<Extent>,
    /// Newer bytes, oldest first.
    pub newer: Vec<Patch>,
}

/// Called once with the bytes.
pub type OnRead = Box<dyn FnOnce(Result<Bytes>) + Send>;

struct Job {
    plan: ReadPlan,
    ticket: Ticket,
}

/// Where a tree's blobs come from.
#[derive(Debug)]
pub struct Fetch {
    reader: Arc<Reader>,
    waiting: Arc<Waiting>,
    jobs: Option<Sender<Job>>,
    ahead: Sender<Ahead>,
    /// No more read-ahead: what waits for it is let go of.
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Fetch {
    /// Starts the fetch threads. `local` is absent when there is no backup path.
    pub fn start(cache_len_max: usize, local: Option<Arc<PackStore>>) -> Result<Fetch> {
        let reader = Arc::new(Reader::new(cache_len_max, local));
        let stop = Arc::new(AtomicBool::new(false));
        let waiting = Arc::new(Waiting::default());
        // Those that were answered meanwhile are still in it: twice as many as may wait.
        let (jobs, queue) = bounded(2 * usize::from(WAITING_MAX));
        let (ahead, ahead_queue) = bounded(AHEAD_LEN_MAX);
        let mut threads = Vec::new();
        for n in 0..FETCH_THREADS {
            let (queue, ahead): (Receiver<Job>, _) = (queue.clone(), ahead.clone());
            let (reader, waiting) = (Arc::clone(&reader), Arc::clone(&waiting));
            threads.push(spawn(format!("fetch-{n}"), move || {
                for job in queue {
                    work_on(&job, &reader, &waiting, &ahead);
                }
            })?);
        }
        for n in 0..AHEAD_THREADS {
            let (queue, reader, stop): (Receiver<Ahead>, _, _) =
                (ahead_queue.clone(), Arc::clone(&reader), Arc::clone(&stop));
            threads.push(spawn(format!("ahead-{n}"), move || {
                for ahead in queue {
                    if !stop.load(Ordering::Relaxed) {
                        reader.fetch_ahead(ahead);
                    }
                }
            })?);
        }
        Ok(Fetch {
            reader,
            waiting,
            jobs: Some(jobs),
            ahead,
            stop,
            threads,
        })
    }

    /// Blobs that are not here come from this volume from now on.
    pub fn set_external(&self, external: Option<ExternalPacks>) {
        let external = external.map(Arc::new);
        if let Some(breaker) = external.as_ref().and_then(|external| external.breaker()) {
            let (waiting, known) = (Arc::downgrade(&self.waiting), Arc::downgrade(breaker));
            breaker.on_change(move || {
                if let (Some(waiting), Some(breaker)) = (waiting.upgrade(), known.upgrade()) {
                    waiting.hear(&breaker);
                }
            });
        }
        self.reader.set_external(external);
    }

    /// Reads what `plan` says.
    pub fn read(&self, plan: ReadPlan, answer: OnRead) {
        match self.reader.read_here(&plan, &self.ahead) {
            Ok(Some(bytes)) => answer(Ok(bytes)),
            Ok(None) => self.enqueue(plan, answer),
            Err(error) => answer(Err(error)),
        }
    }

    /// The same on this thread, which waits for what is not here: for whoever is no FUSE thread. Its error is the one
    /// of the external volume.
    pub fn read_now(&self, plan: &ReadPlan) -> Result<Bytes> {
        if let Some(bytes) = self.reader.read_here(plan, &self.ahead)? {
            return Ok(bytes);
        }
        let (outcome, arrived) = self.reader.read(plan, &self.ahead);
        for arrived in arrived {
            self.reader.keep(arrived);
        }
        outcome
    }

    /// One blob, wherever it is; waits.
    pub fn blob(&self, blob: BlobHash, location: &BlobLocation) -> Result<Bytes> {
        self.reader.blob(blob, location)
    }

    fn enqueue(&self, plan: ReadPlan, answer: OnRead) {
        let external = self.reader.external();
        let breaker = external.as_ref().and_then(|external| external.breaker());
        let refused = match (self.waiting.enter(answer), &self.jobs) {
            (Err(answer), _) => Some(answer),
            (Ok(ticket), Some(jobs)) => match jobs.try_send(Job { plan, ticket }) {
                Ok(()) => None,
                Err(_) => self.waiting.leave(ticket),
            },
            (Ok(ticket), None) => self.waiting.leave(ticket),
        };
        if let Some(answer) = refused {
            let volume = breaker.map_or_else(String::new, ToString::to_string);
            self.waiting.tell(&volume, "too many of them wait already");
            answer(Err(Errno::EIO.into()));
        }
        // It may have gone down before this one was among those that wait.
        if let Some(breaker) = breaker.filter(|breaker| breaker.circuit().is_down()) {
            self.waiting.hear(breaker);
        }
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        // The last sender goes with the fetch threads.
        self.ahead = bounded(0).0;
        // A thread that waits for a volume that hangs would keep us for as long.
        if let Some(breaker) = self.reader.external().as_ref().and_then(|it| it.breaker()) {
            breaker.stop();
        }
        for thread in self.threads.drain(..) {
            // A fetch thread that panicked has dropped its reply, which FUSE answers with EIO.
            let _ = thread.join();
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name)
        .spawn(body)
        .map_err(Error::io("start", "a fetch thread"))
}

fn work_on(job: &Job, reader: &Reader, waiting: &Waiting, ahead: &Sender<Ahead>) {
    if !waiting.still_waits(job.ticket) {
        return;
    }
    let (outcome, arrived) = reader.read(&job.plan, ahead);
    // The reader is not to wait for the local disk; what came is kept even if it no longer waits.
    if let Some(answer) = waiting.leave(job.ticket) {
        let external = reader.external();
        let circuit = external.as_ref().and_then(|external| external.breaker());
        match (circuit.map(|breaker| breaker.circuit()), &outcome) {
            // Said once for all of them.
            (Some(Circuit::Down { reason, .. }), Err(Error::External(error))) => {
                waiting.tell(error.volume(), &reason);
                answer(Err(Errno::EIO.into()));
            }
            _ => answer(outcome),
        }
    }
    for arrived in arrived {
        reader.keep(arrived);
    }
}

/// The part of a blob that an extent refers to.
fn part_of(extent: &Extent, blob: Bytes) -> Result<Bytes> {
    let start = extent.blob_offset as usize;
    let end = start + extent.len as usize;
    if end > blob.len() {
        let object = extent.location.pack.object_name();
        return Err(Error::corrupt(
            object,
            u64::from(extent.location.offset),
            "a blob is shorter than a file needs",
        ));
    }
    Ok(blob.slice(start..end))
}

/// Lays the parts of the extents, in their order, over zeros and the newer bytes over both.
fn assemble(plan: &ReadPlan, parts: Vec<Bytes>) -> Bytes {
    if let ([extent], [part]) = (&plan.extents[..], &parts[..])
        && plan.newer.is_empty()
        && extent.start == plan.offset
        && part.len() == plan.len
    {
        return part.clone();
    }
    let mut out = BytesMut::zeroed(plan.len);
    let starts = plan.extents.iter().map(|extent| extent.start);
    let below = starts.zip(&parts);
    let newer = plan.newer.iter().map(|patch| (patch.start, &patch.bytes));
    for (start, bytes) in below.chain(newer) {
        if let Some((to, from)) = overlap(plan, start, bytes.len())
            && let (Some(target), Some(source)) = (out.get_mut(to), bytes.get(from))
        {
            target.copy_from_slice(source);
        }
    }
    out.freeze()
}

/// Where in the answer, and which of its bytes, a piece of `len` bytes at `start` goes.
fn overlap(plan: &ReadPlan, start: u64, len: usize) -> Option<(Range<usize>, Range<usize>)> {
    let end = plan.offset + plan.len as u64;
    let (from, to) = (start.max(plan.offset), (start + len as u64).min(end));
    if from >= to {
        return None;
    }
    let at = |position: u64, base: u64| usize::try_from(position - base).ok();
    Some((
        at(from, plan.offset)?..at(to, plan.offset)?,
        at(from, start)?..at(to, start)?,
    ))
}

#[cfg(test)]
mod tests;
