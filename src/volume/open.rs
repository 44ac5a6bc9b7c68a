//! Opening a backup path: the numbered steps of recovery. `docs/durability.md` has the same numbers.
//!
//! O(uncommitted): the journal of the last epochs is read, the packs it names are sealed, and nothing
//! else of the volume is looked at (invariant 3).

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::bounded;

use crate::chunk::Chunker;
use crate::clock::{Clock, random};
use crate::error::{Error, Result};
use crate::fetch::Fetch;
use crate::fetch::external::ExternalPacks;
use crate::format::frame::PackExtent;
use crate::format::keys;
use crate::format::segment::BlockCache;
use crate::ingest::Ingest;
use crate::journal::{self, JournalWriter, replay};
use crate::meta::blobs::BlobIndex;
use crate::meta::index::Index;
use crate::meta::overlay::{Entries, Overlay};
use crate::pack::ledger::Ledger;
use crate::pack::read::{LocalPack, read_index};
use crate::pack::recover::recover_unsealed;
use crate::pack::store::PackStore;
use crate::pack::writer::PackIo;
use crate::types::{Epoch, Ino, Lsn, SessionId, Timestamp, Uuid};
use crate::upload::{LocalEpochs, Uploader};
use crate::volume::ack::Acks;
use crate::volume::archive::{Archive, ClosedEpoch};
use crate::volume::backlog::Backlog;
use crate::volume::ballast::Ballast;
use crate::volume::commit::{Closing, CommitParts, CommitQueue, Committer, encode_epoch};
use crate::volume::engine::{Recovery, Volume};
use crate::volume::files::Files;
use crate::volume::health::Health;
use crate::volume::indexer::{ArchiveTask, Indexer};
use crate::volume::lock::PathLock;
use crate::volume::pacer::Pacer;
use crate::volume::settings::{Settings, Store};
use crate::volume::store::{self, Kind};
use crate::volume::tree::Caller;
use crate::volume::update::Housekeeping;
use crate::volume::{init, limits, lost, namespace, sweep};

/// Memory for decoded segment blocks.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// Memory for plain blobs.
const BLOB_CACHE_BYTES: usize = 48 << 20;
/// Memory for what is written and not yet in a pack.
const INGEST_BUDGET_BYTES: usize = 24 << 20;
/// Closed epochs that may wait for the archive thread: each may hold as much memory as an open one.
const CLOSING_MAX: usize = 1;

impl Volume {
    /// Opens the backup path `root` for writing.
    pub fn open(root: &Path, clock: Arc<dyn Clock>) -> Result<Arc<Volume>> {
        let started = std::time::Instant::now();
        // 1. Who is it, and is nobody else at it.
        let identity = init::read_identity(root)?;
        let lock = PathLock::take(root)?;
        let settings = Settings::read(root)?;
        refuse_unfinished(root)?;
        let uuid = identity
            .uuid()
            .ok_or_else(|| Error::corrupt(root.display().to_string(), 0, "no volume UUID"))?;
        let session = SessionId(random()?);
        // 2. The newest epoch that is whole here.
        let archive = Archive::open(
            root,
            uuid,
            session,
            Arc::new(BlockCache::new(BLOCK_CACHE_BYTES)),
        )?;
        let archive = Arc::new(archive);
        let record = archive.newest().record;
        let record_epoch = record.as_ref().map_or(Epoch(0), |record| record.epoch);
        // 3. The index, if it can be trusted.
        let index_dir = root.join("index").join("tree");
        let (mut index, mut index_note) = open_index(&index_dir, uuid);
        if let Some(index) = &index {
            lost::refuse_older(root, record_epoch, "the index", index.epoch())?;
        }
        // 4. The journal: committed changes that base or record do not have.
        let journal_dir = root.join(journal::DIR);
        let base_epoch = index.as_ref().map_or(record_epoch, Index::epoch);
        let covered = record
            .as_ref()
            .map_or_else(Default::default, |record| (record.epoch, record.last_lsn()));
        let mut replay = replay::replay(&journal_dir, uuid.0, base_epoch, covered)?;
        if let Some(missing) = missing_epoch(&replay, base_epoch, record_epoch) {
            index_note = Some(format!(
                "the index is of epoch {base_epoch}, and the journal no longer has epoch {missing}"
            ));
            index = None;
            replay = replay::replay(&journal_dir, uuid.0, record_epoch, covered)?;
        }
        replay::remove_unbegun(&replay)?;
        let last_lsn = replay
            .last_lsn
            .max(record.map_or(Lsn(0), |record| record.last_lsn()));
        // 5. Packs that were open: cut at the last committed offset and sealed.
        let external = store_uuid(&settings);
        let ledger = Arc::new(Ledger::open(&journal_dir, external)?);
        lost::refuse_older(root, record_epoch, "the ledger", ledger.archived_epoch())?;
        let opened = BlobIndex::open(&root.join("index").join("blobs"))?;
        for reason in opened.discarded {
            tracing::warn!(reason, "a part of the blob index was discarded");
        }
        let blobs = Arc::new(opened.index);
        let sealed = seal_packs(root, &ledger, &blobs, &replay.packs)?;
        // 6. Engine threads.
        let health = Arc::new(Health::default());
        let journal = JournalWriter::new(&journal_dir, uuid.0, session, Lsn(last_lsn.0 + 1));
        let journal = Arc::new(Mutex::new(journal));
        let packs = PackStore::start(
            root,
            uuid.0,
            session,
            PackIo::default(),
            Arc::clone(&clock),
            Arc::clone(&ledger),
            Arc::clone(&blobs),
            Box::new(|_| {}),
        )?;
        let packs = Arc::new(packs);
        let chunker = Chunker::new(&identity.chunker)?;
        let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let ingest = Arc::new(Ingest::start(
            chunker,
            Arc::clone(&packs),
            workers,
            INGEST_BUDGET_BYTES,
        )?);
        let uploader = Arc::new(Uploader::start(
            root,
            Arc::clone(&ledger),
            Arc::clone(&archive) as Arc<dyn LocalEpochs>,
            Arc::clone(&clock),
        )?);
        // 7. Replayed epochs are closed again: they lie over the base until the archive thread has them.
        let frames = replay.frames;
        let recovered = recovered_epochs(replay, clock.now());
        let last_epoch = recovered
            .last()
            .map_or(record_epoch, |closed| closed.epoch.max(record_epoch));
        let (tasks, queue) = bounded(CLOSING_MAX);
        let mut indexer = Indexer {
            archive: Arc::clone(&archive),
            overlay: Arc::new(Overlay::new(Arc::new(archive.newest().view), Vec::new())),
            journal: Arc::clone(&journal),
            index_dir,
            volume: uuid,
            health: Arc::clone(&health),
            index: index.map(Arc::new),
            is_verified: Arc::new(AtomicBool::new(false)),
            is_doubted: Arc::new(AtomicBool::new(false)),
            blobs: Arc::clone(&blobs),
            tasks: tasks.clone(),
            on_archived: {
                let uploader = Arc::clone(&uploader);
                Box::new(move || uploader.wake())
            },
            since_refill: None,
            verify: None,
            refill: None,
        };
        let closing = recovered
            .iter()
            .map(|closed| Arc::clone(&closed.changes))
            .collect();
        let overlay = Arc::new(Overlay::new(indexer.base(), closing));
        indexer.overlay = Arc::clone(&overlay);
        let archiver = spawn("archive", move || indexer.run(&queue))?;
        let stop_refill = Arc::new(AtomicBool::new(false));
        let refill = {
            let (root, ledger, blobs, stop) = (
                root.to_owned(),
                Arc::clone(&ledger),
                Arc::clone(&blobs),
                Arc::clone(&stop_refill),
            );
            let (uploader, archive) = (Arc::clone(&uploader), Arc::clone(&archive));
            let read_cache = Arc::clone(packs.read_cache());
            spawn("pack-sweep", move || {
                if let Err(error) = archive.sweep_merged() {
                    tracing::warn!(error = %error.chain(), "merged segments stay");
                }
                match sweep::enter_packs(&root, session, &ledger) {
                    Ok(()) => uploader.ledger_is_complete(),
                    // Nothing is archived then: a pack that nobody knows of might be missing.
                    Err(error) => uploader.refuse(format!(
                        "the local packs cannot be listed: {}",
                        error.chain()
                    )),
                }
                read_cache.measure(&stop);
                sweep::refill_blobs(&root, &ledger, &blobs, &stop);
            })?
        };
        for epoch in recovered {
            let closing = Box::new(Closing {
                epoch,
                answers: Vec::new(),
            });
            let sent = tasks.send(ArchiveTask::Close(closing));
            sent.map_err(|_| Error::Poisoned("the archive thread is gone".into()))?;
        }
        let files = Arc::new(Files::new(Arc::clone(&overlay), Arc::clone(&ingest)));
        let backlog = Arc::new(Backlog::new(
            root,
            Arc::clone(&ledger),
            Arc::clone(&packs),
            ingest,
            &settings,
        ));
        let give_up = |ballast: &Arc<Ballast>| {
            let ballast = Arc::clone(ballast);
            Box::new(move || ballast.give_up())
        };
        packs.set_on_full(give_up(backlog.ballast()));
        whole(&journal).set_on_full(give_up(backlog.ballast()));
        let acks = Arc::new(Acks::new(
            Arc::clone(&ledger),
            &uploader,
            Arc::clone(&clock),
            &settings,
        ));
        let pacer = Pacer::start(Box::new(Housekeeping {
            backlog: Arc::clone(&backlog),
            uploader: Arc::downgrade(&uploader),
            acks: Arc::clone(&acks),
            clock: Arc::clone(&clock),
        }))?;
        let queue = Arc::new(CommitQueue::default());
        let committer = Committer::new(
            CommitParts {
                overlay: Arc::clone(&overlay),
                packs: Arc::clone(&packs),
                files: Arc::clone(&files),
                journal,
                closed: tasks.clone(),
                health: Arc::clone(&health),
                clock: Arc::clone(&clock),
                backlog: Arc::clone(&backlog),
                epoch_interval: Duration::from_secs(settings.epoch_interval_secs),
                seal_after: Duration::from_secs(settings.seal_after_secs),
            },
            last_epoch.next(),
        );
        let committer = {
            let queue = Arc::clone(&queue);
            spawn("commit", move || committer.run(&queue))?
        };
        let fetch = Arc::new(Fetch::start(BLOB_CACHE_BYTES, Some(Arc::clone(&packs)))?);
        let recovery = Recovery {
            frames,
            packs_sealed: sealed,
            index_note,
            took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        let limits = limits::handle(&settings);
        let volume = Arc::new(Volume {
            root: root.to_owned(),
            identity,
            settings: Mutex::new(settings),
            session,
            clock,
            health,
            overlay,
            packs,
            files,
            fetch,
            archive,
            ledger,
            uploader,
            limits,
            external: Mutex::default(),
            queue,
            threads: Mutex::new(vec![committer, archiver, refill]),
            stop_refill,
            tasks: Mutex::new(Some(tasks)),
            recovery,
            backlog,
            acks,
            pacer,
            fed: crate::volume::fed::FedAccounts::default(),
            witness: std::sync::RwLock::default(),
            _lock: lock,
        });
        // 8. What nobody can reach any more, and the root directory of a new volume.
        volume.sweep_orphans()?;
        volume.ensure_root()?;
        volume.connect_store();
        Ok(volume)
    }

    fn sweep_orphans(&self) -> Result<()> {
        const STEP: usize = 256;
        loop {
            let orphans = namespace::orphans(&self.overlay.read(), STEP)?;
            if orphans.is_empty() {
                return Ok(());
            }
            for ino in orphans {
                self.overlay
                    .transact(|tx| namespace::remove_orphan(tx, ino))?;
            }
        }
    }

    fn ensure_root(&self) -> Result<()> {
        let now = self.clock.now();
        self.overlay.transact(|tx| {
            if tx.get(&keys::inode(Ino::ROOT))?.is_none() {
                let root = namespace::new_dir(0o755, Caller { uid: 0, gid: 0 }, Ino::ROOT, now);
                namespace::put_inode(tx, Ino::ROOT, &root);
            }
            Ok(())
        })
    }

    /// Uses the external volume of the settings, for uploads and for reads of what is not here. It is not
    /// looked at: one that is away is no reason not to open, and one that hangs none to wait.
    pub fn connect_store(&self) {
        self.connect_store_through(|kind| kind);
    }

    /// The same with one more layer right above the volume itself, below retry and circuit breaker: one that makes it
    /// fail, to see what comes of it.
    pub fn connect_store_through(&self, layer: impl FnOnce(Kind) -> Kind) {
        let settings = self.settings();
        self.apply(&settings);
        let archived = (settings.store != Store::Local).then(|| self.ledger.archived_epoch());
        self.archive.waiting().set_target(archived);
        let (store, refusal) = match store::connect_through(&self.identity, &settings, layer) {
            Ok(store) => (store, None),
            Err(error) => (None, Some(error.chain())),
        };
        let guarded = store
            .as_ref()
            .map(|store| limits::hold_back(store.guarded(), &self.limits));
        let old = std::mem::replace(&mut *whole(&self.external), store);
        self.fetch
            .set_external(guarded.clone().map(ExternalPacks::guarded));
        self.uploader.set_volume(guarded);
        if let Some(reason) = refusal {
            self.uploader.refuse(reason);
        }
        if let Some(old) = old {
            old.stop();
        }
    }
}

/// The plan of a take-over, while it is carried out.
pub const TAKE_OVER_PLAN: &str = "take-over.json";

/// Half of a backup path is one volume's and half another's, until a take-over is done.
fn refuse_unfinished(root: &Path) -> Result<()> {
    if root.join(TAKE_OVER_PLAN).exists() {
        return Err(Error::Refused(format!(
            "{} was stopped in the middle of a take-over: run the same tidefs store set with --take-over again",
            root.display()
        )));
    }
    Ok(())
}

/// UUID of the external copy, zero for none.
pub fn store_uuid(settings: &Settings) -> Uuid {
    settings.store.copy_uuid()
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(Error::io("start", name))
}

fn open_index(dir: &Path, volume: Uuid) -> (Option<Index>, Option<String>) {
    if !dir.exists() {
        return (None, None);
    }
    let opened = Index::open(dir, volume.0);
    (opened.index, opened.reason_if_discarded)
}

/// The first epoch that an index of epoch `base` lacks and the journal does not have either: a journal
/// file is dropped when the segments have it, whether or not there was an index to take it as well.
fn missing_epoch(replay: &replay::Replay, base: Epoch, record: Epoch) -> Option<Epoch> {
    let mut needed = base.next();
    for replayed in &replay.epochs {
        if replayed.epoch == needed {
            needed = needed.next();
        }
    }
    (needed <= record).then_some(needed)
}

/// Seals what the journal says was open. Returns how many packs that were.
fn seal_packs(
    root: &Path,
    ledger: &Ledger,
    blobs: &BlobIndex,
    extents: &[PackExtent],
) -> Result<u64> {
    let mut sealed = 0;
    for extent in extents {
        let path: PathBuf = root.join(extent.pack.object_name());
        let is_known = ledger.get(extent.pack).is_some();
        if is_known && !path.exists() {
            continue;
        }
        let intact = LocalPack::open(&path).and_then(|pack| read_index(&pack, extent.pack));
        let (len, entries) = match intact {
            Ok(index) => (index.pack_len, index.entries),
            // As with a damaged one: what is lost is named, and all the rest is served.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                tracing::error!(pack = %path.display(), "a pack with committed blobs is missing");
                continue;
            }
            Err(Error::Io { op, path, source }) => return Err(Error::Io { op, path, source }),
            Err(_) => {
                sealed += 1;
                let pack = recover_unsealed(&path, extent.pack, extent.len)?;
                for damage in &pack.damage {
                    tracing::error!(pack = %extent.pack, ?damage, "a committed blob is damaged");
                }
                (pack.len, pack.records)
            }
        };
        if !is_known {
            ledger.sealed(extent.pack, len)?;
        }
        for entry in entries {
            blobs.insert(entry.hash, entry.location(extent.pack));
        }
    }
    ledger.sync()?;
    Ok(sealed)
}

/// The replayed epochs as closed ones. One that a crash interrupted has no time yet: it gets this one.
fn recovered_epochs(replay: replay::Replay, now: Timestamp) -> Vec<ClosedEpoch> {
    let lsn = replay.last_lsn;
    replay
        .epochs
        .into_iter()
        .map(|replay::ReplayedEpoch { epoch, mut changes }| {
            let time = changes
                .entry(keys::epoch(epoch))
                .or_insert_with(|| Some(encode_epoch(now, None)));
            let time: &Option<Bytes> = time;
            let secs = time
                .as_deref()
                .and_then(crate::volume::commit::decode_epoch)
                .map_or(now.secs, |(time, _)| time.secs);
            ClosedEpoch {
                epoch,
                time: secs,
                changes: Arc::new(changes),
                lsn,
                last_pack: None,
                sealed: Vec::new(),
            }
        })
        .collect()
}

/// A poisoned lock on the settings holds whole settings all the same: they are replaced, never changed.
pub(super) fn whole<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
