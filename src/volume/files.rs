//! Open files: what was written through them and is not yet in the overlay.
//!
//! ```text
//! write -> dirty runs -> cut into pieces -> in flight (workers) -> extents in the overlay
//! ```
//!
//! Pieces enter the overlay in the order in which they were cut, so that a commit holds a prefix of
//! what was done to the file, and the size in the overlay never covers bytes that are not there.
//!
//! Locks, in this order: a file's state, then the overlay. The table of open files is a leaf: nothing is
//! taken while it is held.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fetch::{Patch, ReadPlan};
use crate::format::inode::Extent;
use crate::ingest::{Ingest, Placed};
use crate::meta::overlay::Overlay;
use crate::types::{Ino, Timestamp};
use crate::volume::dirty::{DirtyRanges, Piece};
use crate::volume::{extents, namespace};

/// Pieces up to this are placed by the thread that closes the file: a hand-over costs more.
const INLINE_LEN_MAX: usize = 128 << 10;
/// Runs of a file that may wait, so that random writes do not pile up.
const RUNS_MAX: usize = 1024;

/// One inode that is open.
#[derive(Debug)]
pub struct OpenFile {
    ino: Ino,
    state: Mutex<State>,
    placed: Condvar,
}

#[derive(Debug)]
struct State {
    size: u64,
    /// When it was last written, if the overlay does not know yet.
    modified: Option<Timestamp>,
    dirty: DirtyRanges,
    in_flight: VecDeque<InFlight>,
    next_serial: u64,
    /// The first failure since it was last told.
    failure: Option<Errno>,
}

#[derive(Debug)]
struct InFlight {
    serial: u64,
    piece: Piece,
    outcome: Option<Result<Placed, Errno>>,
}

/// Size and time of an open file where they are ahead of the overlay's.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    /// Its length.
    pub size: u64,
    /// When it was last written.
    pub modified: Timestamp,
    /// Bytes that no extent covers yet.
    pub unplaced: u64,
}

/// The open files of a volume, and what they need to store their bytes.
#[derive(Debug)]
pub struct Files {
    table: Mutex<HashMap<Ino, (Arc<OpenFile>, u32)>>,
    overlay: Arc<Overlay>,
    ingest: Arc<Ingest>,
}

impl Files {
    /// None open.
    pub fn new(overlay: Arc<Overlay>, ingest: Arc<Ingest>) -> Files {
        Files {
            table: Mutex::default(),
            overlay,
            ingest,
        }
    }

    /// What stores their bytes.
    pub(super) fn ingest(&self) -> &Ingest {
        &self.ingest
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Ino, (Arc<OpenFile>, u32)>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an opening. Decided under the overlay's lock, as removing the last name is, so that an
    /// inode is either found and kept, or gone.
    pub fn open(&self, ino: Ino) -> Result<Arc<OpenFile>> {
        let reading = self.overlay.read();
        let inode = namespace::inode_of(&reading, ino)?;
        let mut table = self.table();
        let (file, count) = table
            .entry(ino)
            .or_insert_with(|| (Arc::new(OpenFile::new(ino, inode.size)), 0));
        *count += 1;
        Ok(Arc::clone(file))
    }

    /// The file, if it is open.
    pub fn get(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.table().get(&ino).map(|(file, _)| Arc::clone(file))
    }

    /// Whether it is open.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.table().contains_key(&ino)
    }

    /// Somebody else than its writers set the length of a file: whoever has it open sees that one.
    pub fn resized(&self, ino: Ino, size: u64) {
        if let Some(file) = self
            .get(ino)
            .filter(|_| !std::env::var("MUT").is_ok_and(|m| m == "resized"))
        {
            file.state().size = size;
        }
    }

    /// Everything that is open.
    pub fn all(&self) -> Vec<Arc<OpenFile>> {
        self.table()
            .values()
            .map(|(file, _)| Arc::clone(file))
            .collect()
    }

    /// An opening ends. After the last one, a file without a name is removed.
    pub fn release(&self, ino: Ino) -> Result<()> {
        let flushed = match self.get(ino) {
            Some(file) => self.flush(&file),
            None => return Ok(()),
        };
        let was_last = {
            let mut table = self.table();
            match table.get_mut(&ino) {
                Some((_, count)) if *count > 1 => {
                    *count -= 1;
                    false
                }
                _ => table.remove(&ino).is_some(),
            }
        };
        if was_last {
            self.overlay.transact(|tx| {
                let is_orphan = tx_is_orphan(tx, ino)?;
                if is_orphan && !self.is_open(ino) {
                    namespace::remove_orphan(tx, ino)
                } else {
                    Ok(())
                }
            })?;
        }
        flushed
    }

    /// Writes. Blocks while the budget is used up; `on_pressure` is told each time.
    pub fn write(
        &self,
        file: &Arc<OpenFile>,
        offset: u64,
        bytes: &[u8],
        now: Timestamp,
        on_pressure: &dyn Fn(),
    ) -> Result<()> {
        let end = offset
            .checked_add(bytes.len() as u64)
            .filter(|end| i64::try_from(*end).is_ok())
            .ok_or(Errno::EFBIG)?;
        // As in POSIX, nothing happens, and there is no run of no bytes.
        if bytes.is_empty() {
            return Ok(());
        }
        while !self.ingest.budget.try_take(bytes.len()) {
            on_pressure();
            self.ingest.budget.wait();
        }
        let jobs = {
            let mut state = file.state();
            let grown = state.dirty.write(offset, bytes);
            self.ingest.budget.give(bytes.len() - grown);
            state.size = state.size.max(end);
            state.modified = Some(now);
            let all = state.dirty.run_count() > RUNS_MAX;
            let pieces = state.dirty.cut(&self.ingest.chunker, all);
            state.launch(pieces)
        };
        self.submit(file, jobs);
        Ok(())
    }

    /// Brings everything that was written into the overlay. Tells the first failure since the last telling.
    pub fn flush(&self, file: &Arc<OpenFile>) -> Result<()> {
        self.settle(file)?;
        match file.state().failure.take() {
            Some(errno) => Err(errno.into()),
            None => Ok(()),
        }
    }

    /// As [`Files::flush`], but a failure stays to be told to the file's user.
    pub fn settle(&self, file: &Arc<OpenFile>) -> Result<()> {
        drop(self.settled(file)?);
        Ok(())
    }

    /// Settles and keeps the file's lock, for an operation on settled ground.
    fn settled<'a>(&self, file: &'a Arc<OpenFile>) -> Result<MutexGuard<'a, State>> {
        let mut state = file.state();
        loop {
            let pieces = state.dirty.cut(&self.ingest.chunker, true);
            if state.in_flight.is_empty()
                && pieces.iter().map(|p| p.bytes.len()).sum::<usize>() <= INLINE_LEN_MAX
            {
                self.place_inline(file, &mut state, pieces);
            } else {
                let jobs = state.launch(pieces);
                drop(state);
                self.submit(file, jobs);
                state = file.state();
            }
            while !state.in_flight.is_empty() {
                state = file
                    .placed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if state.dirty.is_empty() {
                break;
            }
        }
        if let Some(now) = state.modified {
            let size = state.size;
            self.overlay.transact(|tx| {
                let mut inode = namespace::inode_of(tx, file.ino)?;
                inode.size = size;
                inode.mtime = now;
                inode.ctime = inode.ctime.max(now);
                namespace::put_inode(tx, file.ino, &inode);
                Ok(())
            })?;
            state.modified = None;
        }
        Ok(state)
    }

    fn place_inline(&self, file: &OpenFile, state: &mut State, pieces: Vec<Piece>) {
        for piece in pieces {
            let outcome = self
                .ingest
                .place(&piece.bytes)
                .map_err(|error| told(&error));
            let serial = state.next_serial;
            state.next_serial += 1;
            state.in_flight.push_back(InFlight {
                serial,
                piece,
                outcome: Some(outcome),
            });
        }
        self.apply_placed(file, state);
    }

    fn submit(&self, file: &Arc<OpenFile>, jobs: Vec<(u64, Bytes)>) {
        for (serial, plain) in jobs {
            let (file, overlay, ingest) = (
                Arc::clone(file),
                Arc::clone(&self.overlay),
                Arc::downgrade(&self.ingest),
            );
            let on_placed = Box::new(move |outcome: Result<Placed>| {
                let mut state = file.state();
                if let Some(waiting) = state
                    .in_flight
                    .iter_mut()
                    .find(|waiting| waiting.serial == serial)
                {
                    waiting.outcome = Some(outcome.map_err(|error| told(&error)));
                }
                let freed = apply_placed(&overlay, &file, &mut state);
                drop(state);
                if let Some(ingest) = ingest.upgrade() {
                    ingest.budget.give(freed);
                }
                file.placed.notify_all();
            });
            self.ingest.submit(plain, on_placed);
        }
    }

    fn apply_placed(&self, file: &OpenFile, state: &mut State) {
        let freed = apply_placed(&self.overlay, file, state);
        self.ingest.budget.give(freed);
    }

    /// What `look` sees of the overlay, together with how far the file is ahead of exactly that: the file's
    /// lock is held, so that nothing moves from the one to the other in between.
    pub fn look_ahead<T>(
        &self,
        ino: Ino,
        look: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Option<Ahead>)> {
        let Some(file) = self.get(ino) else {
            return Ok((look()?, None));
        };
        let state = file.state();
        let seen = look()?;
        let in_flight: usize = state
            .in_flight
            .iter()
            .map(|waiting| waiting.piece.bytes.len())
            .sum();
        let unplaced = (in_flight + state.dirty.len_bytes()) as u64;
        let ahead = state.modified.map(|modified| Ahead {
            size: state.size,
            modified,
            unplaced,
        });
        Ok((seen, ahead))
    }

    /// What a read of an open file needs.
    pub fn plan_read(&self, file: &OpenFile, offset: u64, len: u32) -> Result<ReadPlan> {
        let state = file.state();
        let end = state.size.min(offset.saturating_add(u64::from(len)));
        if end <= offset {
            return Ok(ReadPlan::default());
        }
        let reading = self.overlay.read();
        let inode = namespace::inode_of(&reading, file.ino)?;
        let extents = extents::read(&reading, file.ino, &inode, offset..end)?;
        drop(reading);
        let in_flight = state
            .in_flight
            .iter()
            .filter(|waiting| waiting.piece.start < end && waiting.piece.end() > offset);
        let in_flight = in_flight.map(|waiting| waiting.piece.clone());
        let newer = in_flight.chain(state.dirty.overlapping(offset, end));
        let newer = newer
            .map(|piece| Patch {
                start: piece.start,
                bytes: piece.bytes,
            })
            .collect();
        Ok(ReadPlan {
            offset,
            len: usize::try_from(end - offset).unwrap_or(usize::MAX),
            extents,
            newer,
        })
    }

    /// Runs a change of size or extents on settled ground and takes the new size from it.
    pub fn change<T>(
        &self,
        file: &Arc<OpenFile>,
        change: impl FnOnce(
            &mut crate::meta::overlay::Transaction<'_>,
            &mut crate::format::inode::Inode,
        ) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.settled(file)?;
        let (answer, size) = self.overlay.transact(|tx| {
            let mut inode = namespace::inode_of(tx, file.ino)?;
            let answer = change(tx, &mut inode)?;
            namespace::put_inode(tx, file.ino, &inode);
            Ok((answer, inode.size))
        })?;
        state.size = size;
        Ok(answer)
    }
}

fn tx_is_orphan(tx: &impl crate::meta::overlay::Entries, ino: Ino) -> Result<bool> {
    Ok(tx.get(&crate::format::keys::orphan(ino))?.is_some())
}

/// The errno that a file's user is told later, when the write was answered long ago.
fn told(error: &Error) -> Errno {
    tracing::error!(error = %error.chain(), "bytes could not be stored");
    match error {
        Error::NoSpace { .. } => Errno::ENOSPC,
        Error::Posix(errno) => *errno,
        _ => Errno::EIO,
    }
}

/// Moves what is placed, in order, from "in flight" to the overlay. Returns the bytes it held.
fn apply_placed(overlay: &Overlay, file: &OpenFile, state: &mut State) -> usize {
    let mut freed = 0;
    let mut ready = Vec::new();
    while state
        .in_flight
        .front()
        .is_some_and(|waiting| waiting.outcome.is_some())
    {
        let Some(InFlight { piece, outcome, .. }) = state.in_flight.pop_front() else {
            break;
        };
        freed += piece.bytes.len();
        match outcome {
            Some(Ok(placed)) => ready.push((piece, placed)),
            Some(Err(errno)) => {
                state.failure.get_or_insert(errno);
            }
            None => {}
        }
    }
    if ready.is_empty() {
        return freed;
    }
    let modified = state.modified;
    let applied = overlay.transact(|tx| {
        let mut inode = namespace::inode_of(tx, file.ino)?;
        for (piece, placed) in &ready {
            let len = u32::try_from(piece.bytes.len()).unwrap_or(u32::MAX);
            let extent = Extent {
                start: piece.start,
                len,
                blob: placed.blob,
                blob_offset: 0,
                location: placed.location,
            };
            extents::replace(
                tx,
                file.ino,
                &mut inode,
                piece.start..piece.end(),
                &[extent],
            )?;
            inode.size = inode.size.max(piece.end());
        }
        if let Some(now) = modified {
            inode.mtime = now;
            inode.ctime = inode.ctime.max(now);
        }
        namespace::put_inode(tx, file.ino, &inode);
        Ok(())
    });
    if let Err(error) = applied {
        state.failure.get_or_insert(told(&error));
    }
    freed
}

impl OpenFile {
    fn new(ino: Ino, size: u64) -> OpenFile {
        let state = State {
            size,
            modified: None,
            dirty: DirtyRanges::default(),
            in_flight: VecDeque::new(),
            next_serial: 0,
            failure: None,
        };
        OpenFile {
            ino,
            state: Mutex::new(state),
            placed: Condvar::new(),
        }
    }

    /// Which inode it is.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under this lock is an ingest worker's, which also poisons the pack store.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes pieces as in flight and returns the jobs for them.
    fn launch(&mut self, pieces: Vec<Piece>) -> Vec<(u64, Bytes)> {
        pieces
            .into_iter()
            .map(|piece| {
                let (serial, plain) = (self.next_serial, piece.bytes.clone());
                self.next_serial += 1;
                self.in_flight.push_back(InFlight {
                    serial,
                    piece,
                    outcome: None,
                });
                (serial, plain)
            })
            .collect()
    }
}
