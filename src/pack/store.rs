//! The packs of a backup path: the one that is open, those being sealed, and all others.
//!
//! ```text
//! append -> open pack -> (full, idle, or the epoch closes) -> sealing -> sealed, in the ledger
//! ```
//!
//! A commit asks [`PackStore::sync`] for everything appended so far; sealing goes on beside it and
//! changes nothing a commit relies on (a seal only adds an index behind the records).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};

use crate::chunk::Codec;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::format::frame::PackExtent;
use crate::format::pack::{RECORD_HEADER_LEN, RecordHeader};
use crate::meta::blobs::BlobIndex;
use crate::pack::ledger::Ledger;
use crate::pack::read::{
    LocalPack, PackIndex, ReadAt, RecordRead, read_index, read_record, record_read_len,
};
use crate::pack::refill::ReadCache;
use crate::pack::sync::SyncTicket;
use crate::pack::writer::{PackIo, PackWriter, SealedPack};
use crate::types::{BlobHash, BlobLocation, PackId, SessionId};

/// Full packs that may wait for the sealer: each holds its file open and 32 MiB of disk.
const SEALING_MAX: usize = 4;
/// Local packs kept open for reading. Descriptors are limited, usually to 1024 for a process.
const READERS_MAX: usize = 128;

/// Told of each pack that is sealed and in the ledger.
pub type OnSealed = Box<dyn Fn(PackId) + Send + Sync>;

/// Called when the disk is full; says whether something was freed, so that it is worth another try.
pub type OnFull = Box<dyn Fn() -> bool + Send + Sync>;

/// The packs.
#[derive(Debug)]
pub struct PackStore {
    shared: Arc<Shared>,
    sealer: Mutex<Option<(Sender<PackWriter>, JoinHandle<()>)>>,
}

struct Shared {
    root: PathBuf,
    volume: [u8; 16],
    session: SessionId,
    io: PackIo,
    clock: Arc<dyn Clock>,
    ledger: Arc<Ledger>,
    blobs: Arc<BlobIndex>,
    read_cache: Arc<ReadCache>,
    open: Mutex<Open>,
    /// Woken when a pack leaves `sealing_count`.
    sealed: Condvar,
    readers: Mutex<HashMap<PackId, (Arc<LocalPack>, u64)>>,
    on_sealed: OnSealed,
    on_full: OnceLock<OnFull>,
    /// Bytes in packs that are not sealed: writers ask at each write, and must not wait for the open pack.
    unsealed_bytes: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackStore")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Open {
    writer: Option<PackWriter>,
    next_count: u64,
    last_append: Option<Instant>,
    /// Sealed since [`PackStore::take_sealed`] was asked.
    sealed: Vec<PackId>,
    /// Full packs whose tickets no commit has redeemed yet.
    unsynced: Vec<(PackId, SyncTicket)>,
    sealing_count: usize,
    /// Bytes in packs that are being sealed.
    sealing_bytes: u64,
    direct_io: Option<bool>,
    failure: Option<String>,
}

impl PackStore {
    /// The packs below `root`, new ones named by `session`.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is an owner's own part, named where it is made"
    )]
    pub fn start(
        root: &Path,
        volume: [u8; 16],
        session: SessionId,
        io: PackIo,
        clock: Arc<dyn Clock>,
        ledger: Arc<Ledger>,
        blobs: Arc<BlobIndex>,
        on_sealed: OnSealed,
    ) -> Result<PackStore> {
        let read_cache = Arc::new(ReadCache::new(root, Arc::clone(&ledger)));
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            read_cache,
            volume,
            session,
            io,
            clock,
            ledger,
            blobs,
            open: Mutex::new(Open {
                next_count: 1,
                ..Open::default()
            }),
            sealed: Condvar::new(),
            readers: Mutex::default(),
            on_sealed,
            on_full: OnceLock::new(),
            unsealed_bytes: AtomicU64::new(0),
        });
        let (queue, full) = bounded::<PackWriter>(SEALING_MAX);
        let sealer = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("sealer".into())
                .spawn(move || full.into_iter().for_each(|writer| shared.seal(writer)))
                .map_err(Error::io("start", "the sealer thread"))?
        };
        Ok(PackStore {
            shared,
            sealer: Mutex::new(Some((queue, sealer))),
        })
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.shared.ledger
    }

    /// The hash -> location index.
    pub fn blobs(&self) -> &BlobIndex {
        &self.shared.blobs
    }

    /// What was fetched again of evicted packs.
    pub fn read_cache(&self) -> &Arc<ReadCache> {
        &self.shared.read_cache
    }

    /// Whether packs are written past the page cache; `None` before the first one.
    pub fn direct_io(&self) -> Option<bool> {
        self.shared.lock().direct_io
    }

    /// Where a blob is that need not be stored again (invariant 9): in a pack of this session, or in
    /// one that the ledger knows.
    pub fn known(&self, blob: &BlobHash) -> Option<BlobLocation> {
        let location = self.shared.blobs.get(blob)?;
        let is_ours = location.pack.0.first_chunk::<8>() == Some(&self.shared.session.0);
        (is_ours || self.shared.ledger.get(location.pack).is_some()).then_some(location)
    }

    /// Appends a blob. Readable at once; durable after the next [`PackStore::sync`].
    pub fn append(
        &self,
        blob: BlobHash,
        codec: Codec,
        plain_len: u32,
        stored: &[u8],
    ) -> Result<BlobLocation> {
        let stored_len = u32::try_from(stored.len())
            .map_err(|_| Error::Refused("a blob of over 4 GiB".into()))?;
        let mut open = self.shared.lock();
        let mut full = None;
        if open
            .writer
            .as_ref()
            .is_some_and(|writer| writer.is_full(stored_len))
        {
            full = Shared::take_writer(&mut open)?;
        }
        let writer = self.shared.writer(&mut open)?;
        let location = writer.append(blob, codec, plain_len, stored)?;
        open.last_append = Some(Instant::now());
        self.shared.note_unsealed(&open);
        drop(open);
        self.shared.blobs.insert(blob, location);
        if let Some(writer) = full {
            self.hand_over(writer)?;
        }
        Ok(location)
    }

    fn hand_over(&self, writer: PackWriter) -> Result<()> {
        let queue = {
            let sealer = self.sealer.lock().unwrap_or_else(PoisonError::into_inner);
            sealer.as_ref().map(|(queue, _)| queue.clone())
        };
        let sent = queue.is_some_and(|queue| queue.send(writer).is_ok());
        if sent {
            Ok(())
        } else {
            Err(Error::Poisoned("the sealer is gone".into()))
        }
    }

    /// Makes everything appended so far survive a power cut, and says how far each pack now does.
    pub fn sync(&self) -> Result<Vec<PackExtent>> {
        let tickets = {
            let mut open = self.shared.lock();
            open.check()?;
            let mut tickets = std::mem::take(&mut open.unsynced);
            if let Some(writer) = &mut open.writer {
                tickets.push((writer.id(), writer.flush_and_pad()?));
            }
            tickets
        };
        tickets
            .into_iter()
            .map(|(pack, ticket)| {
                ticket.sync().inspect_err(|error| self.shared.fail(error))?;
                Ok(PackExtent {
                    pack,
                    len: ticket.len(),
                })
            })
            .collect()
    }

    /// Begins to seal the open pack if nothing was appended for `idle` or longer.
    pub fn seal_idle(&self, idle: std::time::Duration) -> Result<()> {
        let full = {
            let mut open = self.shared.lock();
            let is_idle = open.last_append.is_some_and(|last| last.elapsed() >= idle);
            if is_idle {
                Shared::take_writer(&mut open)?
            } else {
                None
            }
        };
        full.map_or(Ok(()), |writer| self.hand_over(writer))
    }

    /// Seals the open pack and waits until all full ones are sealed and in the ledger, synced.
    pub fn seal_all(&self) -> Result<()> {
        let full = {
            let mut open = self.shared.lock();
            open.check()?;
            Shared::take_writer(&mut open)?
        };
        if let Some(writer) = full {
            self.hand_over(writer)?;
        }
        let mut open = self.shared.lock();
        while open.sealing_count > 0 && open.failure.is_none() {
            open = self
                .shared
                .sealed
                .wait(open)
                .unwrap_or_else(PoisonError::into_inner);
        }
        open.check()?;
        drop(open);
        self.shared.ledger.sync()
    }

    /// Reads a blob from the local copy of its pack. [`RecordRead::Absent`] also when there is no local
    /// copy: whether that may be is the ledger's to say.
    pub fn read(&self, blob: BlobHash, location: &BlobLocation) -> Result<RecordRead> {
        {
            let open = self.shared.lock();
            if let Some(writer) = &open.writer
                && writer.id() == location.pack
                && u64::from(location.offset) + crate::pack::read::record_read_len(location) as u64
                    > u64::from(writer.written_len())
            {
                return read_record(writer, location, blob);
            }
        }
        let Some(pack) = self.shared.reader(location.pack)? else {
            return Ok(RecordRead::Absent);
        };
        if !self.is_evicted(location.pack) {
            return read_record(&*pack, location, blob);
        }
        if pack.is_hole(span_of(location)) {
            return Ok(RecordRead::Absent);
        }
        let read = read_record(&*pack, location, blob)?;
        if read != RecordRead::Absent {
            self.shared.read_cache.touch(location.pack);
        }
        Ok(read)
    }

    /// Whether the local copy of a pack was emptied; parts of it may have come back.
    pub fn is_evicted(&self, pack: PackId) -> bool {
        let entry = self.shared.ledger.get(pack);
        entry.is_some_and(|entry| entry.evicted)
    }

    /// Whether the record at `location` seems to be here: a look that costs little and proves nothing.
    pub fn seems_here(&self, location: &BlobLocation) -> bool {
        if !self.is_evicted(location.pack) {
            return true;
        }
        let Ok(Some(pack)) = self.shared.reader(location.pack) else {
            return false;
        };
        !pack.is_hole(span_of(location))
            && pack
                .read_at(u64::from(location.offset), RECORD_HEADER_LEN as usize)
                .is_ok_and(|header| {
                    RecordHeader::decode(location.pack, location.offset, &header).is_ok()
                })
    }

    /// The index of a sealed pack from its local copy; `None` if there is no such pack here.
    pub fn index(&self, pack: PackId) -> Result<Option<PackIndex>> {
        if self.shared.ledger.get(pack).is_none() {
            return Ok(None);
        }
        let local = self.shared.reader(pack)?;
        local.map(|local| read_index(&*local, pack)).transpose()
    }

    /// The packs that were sealed since this was asked the last time.
    pub fn take_sealed(&self) -> Vec<PackId> {
        std::mem::take(&mut self.shared.lock().sealed)
    }

    /// What to do when there is no room for a new pack. Once.
    pub fn set_on_full(&self, on_full: OnFull) {
        // A second one would be a second reserve: there is one for each backup path.
        let _ = self.shared.on_full.set(on_full);
    }

    /// Bytes in packs that are not sealed yet. Never waits.
    pub fn open_bytes(&self) -> u64 {
        self.shared.unsealed_bytes.load(Ordering::Relaxed)
    }

    /// The newest pack of this session, if it has written one.
    pub fn last_pack(&self) -> Option<PackId> {
        let open = self.shared.lock();
        (open.next_count > 1).then(|| PackId::new(self.shared.session, open.next_count - 1))
    }

    /// Path of a pack's local copy, whether it is there or not.
    pub fn path(&self, pack: PackId) -> PathBuf {
        self.shared.root.join(pack.object_name())
    }

    /// Forgets the open descriptor of a pack, before its file is changed by other means.
    pub fn close_reader(&self, pack: PackId) {
        self.shared.readers().remove(&pack);
    }
}

/// The bytes of a pack that a record takes.
fn span_of(location: &BlobLocation) -> std::ops::Range<u64> {
    let start = u64::from(location.offset);
    start..start + record_read_len(location) as u64
}

impl Drop for PackStore {
    fn drop(&mut self) {
        let sealer = self
            .sealer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((queue, thread)) = sealer {
            drop(queue);
            // A sealer that panicked leaves unsealed packs, which the next recovery seals.
            let _ = thread.join();
        }
    }
}

impl Open {
    fn check(&self) -> Result<()> {
        self.failure
            .as_ref()
            .map_or(Ok(()), |failure| Err(Error::Poisoned(failure.clone())))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Open> {
        match self.open.lock() {
            Ok(open) => open,
            Err(poisoned) => {
                let mut open = poisoned.into_inner();
                open.failure
                    .get_or_insert_with(|| "a thread panicked while it appended to a pack".into());
                open
            }
        }
    }

    fn readers(&self) -> MutexGuard<'_, HashMap<PackId, (Arc<LocalPack>, u64)>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: &Error) {
        self.lock().failure.get_or_insert_with(|| error.chain());
    }

    /// The open pack, a new one if there is none.
    fn writer<'a>(&self, open: &'a mut Open) -> Result<&'a mut PackWriter> {
        open.check()?;
        let writer = if let Some(writer) = open.writer.take() {
            writer
        } else {
            let id = PackId::new(self.session, open.next_count);
            let created_ns = self.clock.now_ns();
            let create = || PackWriter::create(&self.root, self.volume, id, created_ns, self.io);
            let writer = match create() {
                Err(Error::NoSpace { .. }) if self.on_full.get().is_some_and(|free| free()) => {
                    create()?
                }
                created => created?,
            };
            open.next_count += 1;
            open.direct_io = Some(writer.direct_io());
            self.readers().insert(id, (writer.reader(), u64::MAX));
            writer
        };
        Ok(open.writer.insert(writer))
    }

    /// Takes the open pack out to be sealed. Everything of it is in the file and has a ticket.
    fn take_writer(open: &mut Open) -> Result<Option<PackWriter>> {
        let Some(mut writer) = open.writer.take() else {
            return Ok(None);
        };
        let ticket = writer.flush_and_pad().inspect_err(|error| {
            open.failure.get_or_insert_with(|| error.chain());
        })?;
        open.unsynced.push((writer.id(), ticket));
        open.sealing_count += 1;
        open.sealing_bytes += u64::from(writer.pack_len());
        open.last_append = None;
        Ok(Some(writer))
    }

    fn note_unsealed(&self, open: &Open) {
        let writing = open.writer.as_ref().map_or(0, PackWriter::pack_len);
        let unsealed = open.sealing_bytes + u64::from(writing);
        self.unsealed_bytes.store(unsealed, Ordering::Relaxed);
    }

    fn seal(&self, writer: PackWriter) {
        let unsealed = u64::from(writer.pack_len());
        let written = writer.seal();
        {
            // Before the ledger counts it: a pack that counts twice for a moment would refuse a write.
            let mut open = self.lock();
            open.sealing_bytes -= unsealed;
            self.note_unsealed(&open);
        }
        let sealed =
            written.and_then(|SealedPack { id, len, .. }| self.ledger.sealed(id, len).map(|()| id));
        let mut open = self.lock();
        open.sealing_count -= 1;
        match &sealed {
            Ok(pack) => open.sealed.push(*pack),
            Err(error) => {
                tracing::error!(error = %error.chain(), "a pack could not be sealed");
                open.failure.get_or_insert_with(|| error.chain());
            }
        }
        drop(open);
        self.sealed.notify_all();
        if let Ok(pack) = sealed {
            (self.on_sealed)(pack);
        }
    }

    /// The local copy of a pack, opened once and kept for a while.
    fn reader(&self, pack: PackId) -> Result<Option<Arc<LocalPack>>> {
        let now = self.clock.now_ns();
        if let Some((reader, used)) = self.readers().get_mut(&pack) {
            *used = now;
            return Ok(Some(Arc::clone(reader)));
        }
        let path = self.root.join(pack.object_name());
        let reader = match LocalPack::open(&path) {
            Ok(reader) => Arc::new(reader),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut readers = self.readers();
        if readers.len() >= READERS_MAX {
            let oldest = readers
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(pack, _)| *pack);
            oldest.map(|pack| readers.remove(&pack));
        }
        readers.insert(pack, (Arc::clone(&reader), now));
        Ok(Some(reader))
    }
}
