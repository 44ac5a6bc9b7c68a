//! Bytes out: the blobs of a read, from memory, a local pack, or the external volume.
//!
//! A read whose bytes are at hand is answered on the caller's thread. One that needs the external
//! volume is answered by a fetch thread, so that no FUSE thread waits for a network (invariant 5).

pub mod cache;
pub mod external;
mod waiting;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::{Bytes, BytesMut};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::errno::Errno;
use vfs::Circuit;

use crate::error::{Error, Result};
use crate::fetch::cache::BlobCache;
use crate::fetch::external::ExternalPacks;
use crate::format::inode::Extent;
use crate::pack::read::RecordRead;
use crate::pack::store::PackStore;
use crate::types::{BlobHash, BlobLocation};

use waiting::{Ticket, Waiting};

pub use waiting::WAITING_MAX;

/// Threads that wait for the external volume.
const FETCH_THREADS: usize = 4;

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
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    cache: BlobCache,
    local: Option<Arc<PackStore>>,
    external: Mutex<Option<Arc<ExternalPacks>>>,
    waiting: Waiting,
}

impl Fetch {
    /// Starts the fetch threads. `local` is absent when there is no backup path.
    pub fn start(cache_len_max: usize, local: Option<Arc<PackStore>>) -> Result<Fetch> {
        let shared = Arc::new(Shared {
            cache: BlobCache::new(cache_len_max),
            local,
            external: Mutex::new(None),
            waiting: Waiting::default(),
        });
        // Those that were answered meanwhile are still in it: twice as many as may wait.
        let (jobs, queue) = bounded(2 * usize::from(WAITING_MAX));
        let mut threads = Vec::new();
        for n in 0..FETCH_THREADS {
            let (queue, shared): (Receiver<Job>, _) = (queue.clone(), Arc::clone(&shared));
            let thread = std::thread::Builder::new()
                .name(format!("fetch-{n}"))
                .spawn(move || {
                    for job in queue {
                        shared.work_on(&job);
                    }
                })
                .map_err(Error::io("start", "a fetch thread"))?;
            threads.push(thread);
        }
        Ok(Fetch {
            shared,
            jobs: Some(jobs),
            threads,
        })
    }

    /// Blobs that are not here come from this volume from now on.
    pub fn set_external(&self, external: Option<ExternalPacks>) {
        let external = external.map(Arc::new);
        if let Some(breaker) = external.as_ref().and_then(|external| external.breaker()) {
            let (shared, known) = (Arc::downgrade(&self.shared), Arc::downgrade(breaker));
            breaker.on_change(move || {
                if let (Some(shared), Some(breaker)) = (shared.upgrade(), known.upgrade()) {
                    shared.waiting.hear(&breaker);
                }
            });
        }
        *self
            .shared
            .external
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = external;
    }

    /// Reads what `plan` says.
    pub fn read(&self, plan: ReadPlan, answer: OnRead) {
        match self.shared.read_here(&plan) {
            Ok(Some(bytes)) => answer(Ok(bytes)),
            Ok(None) => self.enqueue(plan, answer),
            Err(error) => answer(Err(error)),
        }
    }

    /// One blob, wherever it is; waits.
    pub fn blob(&self, blob: BlobHash, location: &BlobLocation) -> Result<Bytes> {
        self.shared.blob(blob, location)
    }

    fn enqueue(&self, plan: ReadPlan, answer: OnRead) {
        let external = self.shared.external();
        let breaker = external.as_ref().and_then(|external| external.breaker());
        let refused = match (self.shared.waiting.enter(answer), &self.jobs) {
            (Err(answer), _) => Some(answer),
            (Ok(ticket), Some(jobs)) => match jobs.try_send(Job { plan, ticket }) {
                Ok(()) => None,
                Err(_) => self.shared.waiting.leave(ticket),
            },
            (Ok(ticket), None) => self.shared.waiting.leave(ticket),
        };
        if let Some(answer) = refused {
            let volume = breaker.map_or_else(String::new, ToString::to_string);
            self.shared
                .waiting
                .tell(&volume, "too many of them wait already");
            answer(Err(Errno::EIO.into()));
        }
        // It may have gone down before this one was among those that wait.
        if let Some(breaker) = breaker.filter(|breaker| breaker.circuit().is_down()) {
            self.shared.waiting.hear(breaker);
        }
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.jobs = None;
        // A thread that waits for a volume that hangs would keep us for as long.
        if let Some(breaker) = self.shared.external().as_ref().and_then(|it| it.breaker()) {
            breaker.stop();
        }
        for thread in self.threads.drain(..) {
            // A fetch thread that panicked has dropped its reply, which FUSE answers with EIO.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work_on(&self, job: &Job) {
        if !self.waiting.still_waits(job.ticket) {
            return;
        }
        let outcome = self.read(&job.plan);
        let Some(answer) = self.waiting.leave(job.ticket) else {
            return;
        };
        let external = self.external();
        let circuit = external.as_ref().and_then(|external| external.breaker());
        match (circuit.map(|breaker| breaker.circuit()), &outcome) {
            // Said once for all of them.
            (Some(Circuit::Down { reason, .. }), Err(Error::External(error))) => {
                self.waiting.tell(error.volume(), &reason);
                answer(Err(Errno::EIO.into()));
            }
            _ => answer(outcome),
        }
    }

    /// The blob, if no external volume is needed for it.
    fn blob_here(&self, blob: BlobHash, location: &BlobLocation) -> Result<Option<Bytes>> {
        if let Some(bytes) = self.cache.get(&blob) {
            return Ok(Some(bytes));
        }
        let Some(local) = &self.local else {
            return Ok(None);
        };
        match local.read(blob, location) {
            Ok(RecordRead::Plain(bytes)) => {
                self.cache.put(blob, bytes.clone());
                Ok(Some(bytes))
            }
            Ok(RecordRead::Absent) => Ok(None),
            // The copy here is damaged: the one on the external volume may not be.
            Err(error @ Error::Corrupt { .. }) if self.external().is_some() => {
                tracing::error!(error = %error.chain(), "a local pack is damaged, reading the external copy");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn external(&self) -> Option<Arc<ExternalPacks>> {
        self.external
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn blob(&self, blob: BlobHash, location: &BlobLocation) -> Result<Bytes> {
        if let Some(bytes) = self.blob_here(blob, location)? {
            return Ok(bytes);
        }
        let external = self.external().ok_or_else(|| {
            let object = location.pack.object_name();
            Error::corrupt(
                object,
                u64::from(location.offset),
                format!("blob {blob} is not in the local pack, and no external volume is set"),
            )
        })?;
        let bytes = external.blob(blob, location, &self.cache)?;
        self.cache.put(blob, bytes.clone());
        Ok(bytes)
    }

    fn read_here(&self, plan: &ReadPlan) -> Result<Option<Bytes>> {
        let mut parts = Vec::with_capacity(plan.extents.len());
        for extent in &plan.extents {
            match self.blob_here(extent.blob, &extent.location)? {
                Some(bytes) => parts.push(part_of(extent, bytes)?),
                None => return Ok(None),
            }
        }
        Ok(Some(assemble(plan, parts)))
    }

    fn read(&self, plan: &ReadPlan) -> Result<Bytes> {
        let parts = plan
            .extents
            .iter()
            .map(|extent| part_of(extent, self.blob(extent.blob, &extent.location)?));
        Ok(assemble(plan, parts.collect::<Result<_>>()?))
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
