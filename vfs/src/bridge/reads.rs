//! Objects, read by range: in blocks, ahead of whoever reads front to back, and exactly what was asked for from whoever
//! does not.
//!
//! A reader's questions come in small pieces and several at a time; a volume that is far away answers large ones just as
//! fast. So blocks are fetched several in one range, each once however many wait for it, by threads of their own: the
//! caller never waits here. Memory is bounded by [`CACHE_LEN`] for what is kept and [`AHEAD_MAX`] for what is on its way
//! unasked.
//!
//! One lock, never held across a call of the volume or an answer.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use bytes::{Bytes, BytesMut};

use crate::error::{At, Error, ErrorClass, Result};
use crate::key::ObjectKey;
use crate::volume::Volume;

/// Called once with the bytes.
pub(super) type Answer = Box<dyn FnOnce(Result<Bytes>) + Send>;

const BLOCK_LEN: u64 = 1 << 20;
/// Blocks kept.
const CACHE_LEN: usize = 96;
/// Blocks fetched in one range.
const RUN_MAX: u64 = 8;
/// Blocks that are on their way ahead of any reader.
const AHEAD_MAX: usize = 48;
/// How far ahead of one reader.
const WINDOW_MAX: u64 = 16;
/// A question this far from where the last one ended still belongs to a reading front to back: they overtake each other.
const NEAR: u64 = 2 << 20;
/// Ranges fetched at once.
const THREADS: usize = 8;
/// Ranges that wait for a thread: more than the kernel has questions under way, so that nobody waits to hand one over.
const QUEUE_LEN: usize = 512;

/// Reads objects.
#[derive(Debug)]
pub(super) struct Reads {
    shared: Arc<Shared>,
    jobs: SyncSender<Job>,
}

struct Shared {
    volume: Arc<dyn Volume>,
    cache: Mutex<Cache>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reads").field(&self.volume).finish()
    }
}

#[derive(Default)]
struct Cache {
    files: HashMap<u64, Reader>,
    blocks: HashMap<(u64, u64), Block>,
    /// Blocks that are whole, by when they were used last.
    by_use: BTreeMap<u64, (u64, u64)>,
    uses: u64,
    pending: usize,
}

/// An object that is read.
struct Reader {
    key: ObjectKey,
    len: u64,
    openings: u64,
    /// Where the next question comes from if it is read front to back.
    next: u64,
    /// How many blocks it is read ahead.
    window: u64,
}

enum Block {
    Pending(Vec<Arc<Waiter>>),
    Whole { bytes: Bytes, used: u64 },
}

/// A question that waits for blocks.
struct Waiter(Mutex<Waiting>);

struct Waiting {
    range: Range<u64>,
    first_block: u64,
    parts: Vec<Option<Bytes>>,
    answer: Option<Answer>,
}

enum Job {
    /// Blocks, as many as the range has.
    Blocks {
        number: u64,
        key: ObjectKey,
        range: Range<u64>,
    },
    /// Just these bytes.
    Exact {
        key: ObjectKey,
        range: Range<u64>,
        answer: Answer,
    },
}

impl Reads {
    /// Starts the threads. They end when this is dropped and they have answered.
    pub(super) fn start(volume: Arc<dyn Volume>) -> std::io::Result<Reads> {
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let queue = Arc::new(Mutex::new(queue));
        let shared = Arc::new(Shared {
            volume,
            cache: Mutex::default(),
        });
        for number in 0..THREADS {
            let (shared, queue) = (Arc::clone(&shared), Arc::clone(&queue));
            thread::Builder::new()
                .name(format!("bridge-{number}"))
                .spawn(move || shared.work(&queue))?;
        }
        Ok(Reads { shared, jobs })
    }

    /// The object of this number is read from now on.
    pub(super) fn open(&self, number: u64, key: &ObjectKey, len: u64) {
        let mut cache = self.shared.cache();
        let reader = cache.files.entry(number).or_insert_with(|| Reader {
            key: key.clone(),
            len,
            openings: 0,
            next: 0,
            window: 0,
        });
        reader.openings += 1;
    }

    /// The object has another key.
    pub(super) fn moved(&self, number: u64, key: &ObjectKey) {
        if let Some(reader) = self.shared.cache().files.get_mut(&number) {
            reader.key = key.clone();
        }
    }

    /// The object is written anew: its readers, so many, are none of ours any more.
    pub(super) fn give_up(&self, number: u64) -> u64 {
        let mut cache = self.shared.cache();
        let reader = cache.files.remove(&number);
        cache.drop_blocks(number);
        reader.map_or(0, |reader| reader.openings)
    }

    /// One reader less. With the last one its blocks go: somebody may replace the object before the next.
    pub(super) fn close(&self, number: u64) {
        let mut cache = self.shared.cache();
        let Some(reader) = cache.files.get_mut(&number) else {
            return;
        };
        reader.openings -= 1;
        if reader.openings == 0 {
            cache.files.remove(&number);
            cache.drop_blocks(number);
        }
    }

    /// Up to `len` bytes from `offset`; fewer only at the end.
    pub(super) fn read(&self, number: u64, offset: u64, len: u32, answer: Answer) {
        let mut jobs = Vec::new();
        let outcome = {
            let mut cache = self.shared.cache();
            cache.ask((number, offset, len), answer, &mut jobs)
        };
        if let Some((answer, bytes)) = outcome {
            answer(bytes);
        }
        for job in jobs {
            if let Err(refused) = self.jobs.send(job) {
                // The threads are gone, which only a panic in all of them does.
                let Shared { volume, .. } = &*self.shared;
                let name = volume.to_string();
                let at = At {
                    volume: &name,
                    op: "get",
                    key: "",
                };
                let error = || at.error(ErrorClass::Transient, "the reading threads ended");
                match refused.0 {
                    Job::Exact { answer, .. } => answer(Err(error())),
                    Job::Blocks { number, range, .. } => {
                        self.shared.settle(number, &range, &Err(error()));
                    }
                }
            }
        }
    }
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, queue: &Mutex<Receiver<Job>>) {
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            match job {
                Err(_) => return,
                Ok(Job::Exact { key, range, answer }) => answer(self.volume.get(&key, range)),
                Ok(Job::Blocks { number, key, range }) => {
                    let outcome = self.volume.get(&key, range.clone());
                    self.settle(number, &range, &outcome);
                }
            }
        }
    }

    /// Blocks came, or did not: those who wait are told, behind the lock.
    fn settle(&self, number: u64, range: &Range<u64>, outcome: &Result<Bytes>) {
        let mut told = Vec::new();
        {
            let mut cache = self.cache();
            let mut at = range.start;
            while at < range.end {
                let end = range.end.min(at + BLOCK_LEN);
                let bytes = outcome.as_ref().ok().map(|bytes| {
                    // Within: a volume gives exactly what was asked for.
                    let place = |at: u64| {
                        usize::try_from(at - range.start)
                            .unwrap_or(usize::MAX)
                            .min(bytes.len())
                    };
                    bytes.slice(place(at)..place(end))
                });
                let block = at / BLOCK_LEN;
                let waiters = cache.arrived((number, block), bytes.clone());
                told.extend(
                    waiters
                        .into_iter()
                        .map(|waiter| (waiter, block, bytes.clone())),
                );
                at = end;
            }
        }
        for (waiter, block, bytes) in told {
            match (bytes, outcome) {
                (Some(bytes), _) => waiter.take(block, bytes),
                (None, Err(error)) => waiter.fail(error),
                (None, Ok(_)) => {}
            }
        }
    }
}

impl Cache {
    /// What can be answered at once is returned; `jobs` is what has to be fetched.
    fn ask(
        &mut self,
        (number, offset, len): (u64, u64, u32),
        answer: Answer,
        jobs: &mut Vec<Job>,
    ) -> Option<(Answer, Result<Bytes>)> {
        let Some(reader) = self.files.get_mut(&number) else {
            let message = "it was closed while it was read";
            let error = Error::new(ErrorClass::Transient, "get", "", "", message);
            return Some((answer, Err(error)));
        };
        let end = reader.len.min(offset.saturating_add(u64::from(len)));
        if offset >= end {
            return Some((answer, Ok(Bytes::new())));
        }
        let window = reader.follow(offset..end);
        let (key, file_len) = (reader.key.clone(), reader.len);
        let (first, last) = (offset / BLOCK_LEN, (end - 1) / BLOCK_LEN);
        let is_known = |block| self.blocks.contains_key(&(number, block));
        if window == 0 && !(first..=last).all(is_known) {
            let range = offset..end;
            jobs.push(Job::Exact { key, range, answer });
            return None;
        }
        let ahead = self.ahead(number, last, window);
        self.fetch_missing((number, &key, file_len), first..last + 1 + ahead, jobs);
        self.wait_for(number, (first, last), offset..end, answer)
    }

    /// How many blocks behind `last` to fetch unasked. Not one by one as the reader gets on, but when he has used up half
    /// of what was fetched for him: so the ranges are long.
    fn ahead(&self, number: u64, last: u64, window: u64) -> u64 {
        let is_known = |block: &u64| self.blocks.contains_key(&(number, *block));
        let known = (last + 1..=last + window).take_while(is_known).count() as u64;
        if known > window / 2 || self.pending >= AHEAD_MAX {
            0
        } else {
            window
        }
    }

    /// Makes jobs of the blocks that are neither here nor on their way.
    fn fetch_missing(
        &mut self,
        (number, key, file_len): (u64, &ObjectKey, u64),
        blocks: Range<u64>,
        jobs: &mut Vec<Job>,
    ) {
        let end = blocks.end.min(file_len.div_ceil(BLOCK_LEN));
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in blocks.start..end {
            if self.blocks.contains_key(&(number, block)) {
                continue;
            }
            self.blocks
                .insert((number, block), Block::Pending(Vec::new()));
            self.pending += 1;
            match runs.last_mut() {
                Some(run) if run.end == block && run.end - run.start < RUN_MAX => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        jobs.extend(runs.into_iter().map(|run| Job::Blocks {
            number,
            key: key.clone(),
            range: run.start * BLOCK_LEN..file_len.min(run.end * BLOCK_LEN),
        }));
    }

    fn wait_for(
        &mut self,
        number: u64,
        (first, last): (u64, u64),
        range: Range<u64>,
        answer: Answer,
    ) -> Option<(Answer, Result<Bytes>)> {
        let mut parts = Vec::new();
        for block in first..=last {
            parts.push(self.used((number, block)));
        }
        if parts.iter().all(Option::is_some) {
            return Some((answer, Ok(joined(&parts, &range, first))));
        }
        let waiter = Arc::new(Waiter(Mutex::new(Waiting {
            range,
            first_block: first,
            parts,
            answer: Some(answer),
        })));
        for block in first..=last {
            if let Some(Block::Pending(waiters)) = self.blocks.get_mut(&(number, block)) {
                waiters.push(Arc::clone(&waiter));
            }
        }
        None
    }

    /// The bytes of a block that is here, which is used now.
    fn used(&mut self, at: (u64, u64)) -> Option<Bytes> {
        let Some(Block::Whole { bytes, used }) = self.blocks.get_mut(&at) else {
            return None;
        };
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(*used, at);
        Some(bytes.clone())
    }

    /// A block came (`None`: did not); returns who waits for it.
    fn arrived(&mut self, at: (u64, u64), bytes: Option<Bytes>) -> Vec<Arc<Waiter>> {
        let Some(Block::Pending(waiters)) = self.blocks.remove(&at) else {
            return Vec::new();
        };
        self.pending -= 1;
        if let Some(bytes) = bytes
            && self.files.contains_key(&at.0)
        {
            self.uses += 1;
            let used = self.uses;
            self.by_use.insert(used, at);
            self.blocks.insert(at, Block::Whole { bytes, used });
            while self.by_use.len() > CACHE_LEN
                && let Some((_, oldest)) = self.by_use.pop_first()
            {
                self.blocks.remove(&oldest);
            }
        }
        waiters
    }

    /// Those on their way stay until they come: somebody may still wait for them.
    fn drop_blocks(&mut self, number: u64) {
        self.by_use.retain(|_, at| at.0 != number);
        self.blocks
            .retain(|at, block| at.0 != number || matches!(block, Block::Pending(_)));
    }
}

impl Reader {
    /// How many blocks to read ahead of this question. None for one that comes from nowhere.
    fn follow(&mut self, range: Range<u64>) -> u64 {
        let is_next = range.start <= self.next.saturating_add(NEAR)
            && range.start.saturating_add(NEAR) >= self.next;
        if is_next {
            self.window = (self.window * 2).clamp(1, WINDOW_MAX);
            self.next = self.next.max(range.end);
        } else {
            self.window = 0;
            self.next = range.end;
        }
        self.window
    }
}

impl Waiter {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, block: u64, bytes: Bytes) {
        let mut waiting = self.lock();
        let place = usize::try_from(block - waiting.first_block).unwrap_or(usize::MAX);
        if let Some(part) = waiting.parts.get_mut(place) {
            *part = Some(bytes);
        }
        if !waiting.parts.iter().all(Option::is_some) {
            return;
        }
        let bytes = joined(&waiting.parts, &waiting.range, waiting.first_block);
        let answer = waiting.answer.take();
        drop(waiting);
        if let Some(answer) = answer {
            answer(Ok(bytes));
        }
    }

    fn fail(&self, error: &Error) {
        let answer = self.lock().answer.take();
        if let Some(answer) = answer {
            answer(Err(error.again()));
        }
    }
}

/// The bytes of `range` out of neighbouring blocks.
fn joined(parts: &[Option<Bytes>], range: &Range<u64>, first_block: u64) -> Bytes {
    let mut at = first_block * BLOCK_LEN;
    let mut pieces = Vec::with_capacity(parts.len());
    for part in parts.iter().flatten() {
        let place = |wanted: u64| {
            usize::try_from(wanted.saturating_sub(at))
                .unwrap_or(usize::MAX)
                .min(part.len())
        };
        pieces.push(part.slice(place(range.start)..place(range.end)));
        at += BLOCK_LEN;
    }
    if let [piece] = &pieces[..] {
        return piece.clone();
    }
    let mut bytes = BytesMut::new();
    for piece in pieces {
        bytes.extend_from_slice(&piece);
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests;
