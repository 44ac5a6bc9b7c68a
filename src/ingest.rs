//! Bytes in: a piece of a file becomes a blob in a pack.
//!
//! ```text
//! piece -> SHA-256 -> known? -> lz4 -> pack        on the caller's thread (`place`) or a worker's (`submit`)
//! ```
//!
//! What is written and not yet placed is bounded by a [`Budget`]: a writer that is faster than the
//! workers waits, and memory does not grow.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::chunk::{self, Chunker};
use crate::error::{Error, Result};
use crate::pack::store::PackStore;
use crate::types::{BlobHash, BlobLocation};

/// Where a piece went.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// Its name.
    pub blob: BlobHash,
    /// Its record.
    pub location: BlobLocation,
}

/// Told where a piece went, on the worker's thread.
pub type OnPlaced = Box<dyn FnOnce(Result<Placed>) + Send>;

struct Job {
    plain: Bytes,
    on_placed: OnPlaced,
}

/// Jobs that may wait. The bytes behind them are bounded by the [`Budget`]; this bounds the count.
const QUEUE_LEN_MAX: usize = 4096;

/// The worker pool.
#[derive(Debug)]
pub struct Ingest {
    /// Where files are cut.
    pub chunker: Chunker,
    /// What may be written and not yet placed.
    pub budget: Budget,
    packs: Arc<PackStore>,
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Ingest {
    /// Starts `worker_count` workers.
    pub fn start(
        chunker: Chunker,
        packs: Arc<PackStore>,
        worker_count: usize,
        budget_bytes: usize,
    ) -> Result<Ingest> {
        let (jobs, queue) = bounded(QUEUE_LEN_MAX);
        let mut workers = Vec::new();
        for n in 0..worker_count.max(1) {
            let (queue, packs) = (queue.clone(), Arc::clone(&packs));
            let worker = std::thread::Builder::new()
                .name(format!("ingest-{n}"))
                .spawn(move || work(&queue, &packs))
                .map_err(Error::io("start", "an ingest thread"))?;
            workers.push(worker);
        }
        Ok(Ingest {
            chunker,
            budget: Budget::new(budget_bytes),
            packs,
            jobs: Some(jobs),
            workers,
        })
    }

    /// Places a piece on this thread: for small ones, where handing over costs more than the work.
    pub fn place(&self, plain: &[u8]) -> Result<Placed> {
        let mut scratch = Vec::new();
        place(&self.packs, plain, &mut scratch)
    }

    /// As [`Ingest::place`], when `admit` lets in what is not in a pack yet. Tells whether it was not.
    pub fn place_admitted(
        &self,
        plain: &[u8],
        scratch: &mut Vec<u8>,
        admit: impl FnOnce() -> Result<()>,
    ) -> Result<(Placed, bool)> {
        let blob = chunk::hash(plain);
        if let Some(location) = self.packs.known(&blob) {
            return Ok((Placed { blob, location }, false));
        }
        admit()?;
        Ok((append(&self.packs, blob, plain, scratch)?, true))
    }

    /// Places a piece on a worker's thread. Call without locks that `on_placed` takes.
    pub fn submit(&self, plain: Bytes, on_placed: OnPlaced) {
        let job = Job { plain, on_placed };
        let refused = match &self.jobs {
            Some(jobs) => jobs.send(job).err().map(|refused| refused.0),
            None => Some(job),
        };
        if let Some(job) = refused {
            (job.on_placed)(Err(Error::Poisoned("the ingest workers are gone".into())));
        }
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            // A worker that panicked has told its piece's owner through the poisoned pack store.
            let _ = worker.join();
        }
    }
}

fn work(queue: &Receiver<Job>, packs: &PackStore) {
    let mut scratch = Vec::new();
    for job in queue {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            place(packs, &job.plain, &mut scratch)
        }));
        let placed =
            outcome.unwrap_or_else(|_| Err(Error::Poisoned("an ingest worker panicked".into())));
        (job.on_placed)(placed);
    }
}

fn place(packs: &PackStore, plain: &[u8], scratch: &mut Vec<u8>) -> Result<Placed> {
    let blob = chunk::hash(plain);
    if let Some(location) = packs.known(&blob) {
        return Ok(Placed { blob, location });
    }
    append(packs, blob, plain, scratch)
}

fn append(
    packs: &PackStore,
    blob: BlobHash,
    plain: &[u8],
    scratch: &mut Vec<u8>,
) -> Result<Placed> {
    let (codec, stored) = chunk::encode(plain, scratch);
    let plain_len =
        u32::try_from(plain.len()).map_err(|_| Error::Refused("a blob of over 4 GiB".into()))?;
    let location = packs.append(blob, codec, plain_len, stored)?;
    Ok(Placed { blob, location })
}

/// A count of bytes with an upper bound.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    used: Mutex<usize>,
    freed: Condvar,
}

impl Budget {
    fn new(max: usize) -> Budget {
        Budget {
            max,
            used: Mutex::new(0),
            freed: Condvar::new(),
        }
    }

    /// Takes `bytes`, if they fit or nothing else is taken.
    pub fn try_take(&self, bytes: usize) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = *used == 0 || *used + bytes <= self.max;
        if fits {
            *used += bytes;
        }
        fits
    }

    /// Waits until [`Budget::try_take`] might succeed, or for a moment.
    pub fn wait(&self) {
        const MOMENT: std::time::Duration = std::time::Duration::from_millis(20);
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.freed.wait_timeout(used, MOMENT));
    }

    /// Gives bytes back.
    pub fn give(&self, bytes: usize) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(bytes);
        drop(used);
        self.freed.notify_all();
    }

    /// What is taken.
    pub fn used(&self) -> usize {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
