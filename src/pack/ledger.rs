//! What is known of each pack: sealed here, verified on the external volume.
//!
//! A log of fixed-size records beside the journal. It is a cache of what can be found out again, slowly:
//! a lost "sealed" is found by listing the packs, a lost "uploaded" by uploading once more (which finds
//! the object there). So a damaged record is passed over, never believed, and never an error.
//!
//! An upload counts for one external volume only (invariant 9): the record carries its UUID, and
//! another volume's records are not read.

mod known;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::format::wire::Reader;
use crate::types::{Epoch, PackId, Uuid};
use known::Known;

const FILE_NAME: &str = "packs.log";
const RECORD_LEN: usize = 64;
const MAGIC: [u8; 4] = *b"TFPL";

/// Where a pack is in its life. Before it is sealed the ledger does not know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PackState {
    /// Whole on the local disk, nowhere else.
    Sealed,
    /// On the external volume, its length compared, at this time (seconds since 1970).
    Uploaded {
        /// When.
        verified_at: u64,
    },
}

/// One pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackEntry {
    /// Its length.
    pub len: u32,
    /// Where it is.
    pub state: PackState,
    /// Whether the local copy was emptied: then the external volume has the only one.
    pub evicted: bool,
}

/// The ledger, open.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// As in the totals: writers ask at each write, and must not wait while somebody syncs under the lock.
    unsent_bytes: AtomicU64,
    /// Of packs noted as uploaded since the opening.
    sent_bytes: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    file: File,
    known: Known,
    unsynced: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Sealed = 1,
    Uploaded = 2,
    Archived = 3,
    Gone = 4,
    Evicted = 5,
}

struct Record {
    kind: Kind,
    id: [u8; 16],
    len: u32,
    time: u64,
    external: Uuid,
}

impl Record {
    fn encode(&self) -> [u8; RECORD_LEN] {
        let mut out = Vec::with_capacity(RECORD_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&(self.kind as u32).to_le_bytes());
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
        out.extend_from_slice(&self.external.0);
        out.resize(RECORD_LEN - 4, 0);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        let mut record = [0; RECORD_LEN];
        record.copy_from_slice(&out);
        record
    }

    fn decode(bytes: &[u8]) -> Option<Record> {
        let (covered, crc) = bytes.split_at_checked(RECORD_LEN - 4)?;
        if Reader::new(crc).u32()? != crc32c::crc32c(covered) {
            return None;
        }
        let mut reader = Reader::new(covered);
        if reader.array::<4>()? != MAGIC {
            return None;
        }
        let kind = match reader.u32()? {
            1 => Kind::Sealed,
            2 => Kind::Uploaded,
            3 => Kind::Archived,
            4 => Kind::Gone,
            5 => Kind::Evicted,
            _ => return None,
        };
        Some(Record {
            kind,
            id: reader.array()?,
            len: reader.u32()?,
            time: reader.u64()?,
            external: Uuid(reader.array()?),
        })
    }
}

/// The ledger as it was at one look.
#[derive(Debug, Default)]
pub struct Peeked {
    /// All packs.
    pub packs: Vec<(PackId, PackEntry)>,
    /// The newest epoch that is complete on the external volume.
    pub archived: Epoch,
}

/// Reads the ledger in `dir` without opening it: somebody else may be writing it.
pub fn peek(dir: &Path, external: Uuid) -> Result<Peeked> {
    let bytes = read(&dir.join(FILE_NAME))?;
    let mut known = Known::new(external);
    bytes
        .chunks_exact(RECORD_LEN)
        .filter_map(Record::decode)
        .for_each(|record| known.note(&record));
    Ok(Peeked {
        packs: known.all().collect(),
        archived: known.archived(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        outcome => outcome.map_err(Error::io("read", path)),
    }
}

impl Ledger {
    /// Opens the ledger in `dir`, with the uploads that count for the volume `external`.
    pub fn open(dir: &Path, external: Uuid) -> Result<Ledger> {
        let path = dir.join(FILE_NAME);
        let bytes = read(&path)?;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        // A record is only ever appended at a multiple of its length.
        file.set_len((bytes.len() - bytes.len() % RECORD_LEN) as u64)
            .map_err(Error::io("truncate", &path))?;
        let mut inner = Inner {
            file,
            known: Known::new(external),
            unsynced: false,
        };
        bytes
            .chunks_exact(RECORD_LEN)
            .filter_map(Record::decode)
            .for_each(|record| inner.known.note(&record));
        let unsent_bytes = AtomicU64::new(inner.known.totals().unsent_bytes);
        Ok(Ledger {
            path,
            inner: Mutex::new(inner),
            unsent_bytes,
            sent_bytes: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, record: &Record) -> Result<()> {
        let mut inner = self.lock();
        inner
            .file
            .write_all(&record.encode())
            .map_err(Error::io("write", &self.path))?;
        inner.unsynced = true;
        let before = inner.known.totals().unsent_bytes;
        inner.known.note(record);
        let after = inner.known.totals().unsent_bytes;
        self.unsent_bytes.store(after, Ordering::Relaxed);
        if record.kind == Kind::Uploaded {
            let sent = before.saturating_sub(after);
            self.sent_bytes.fetch_add(sent, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Uploads count for this volume from now on.
    pub fn set_external(&self, external: Uuid) -> Result<()> {
        self.sync()?;
        let bytes = std::fs::read(&self.path).map_err(Error::io("read", &self.path))?;
        let mut inner = self.lock();
        inner.known = Known::new(external);
        bytes
            .chunks_exact(RECORD_LEN)
            .filter_map(Record::decode)
            .for_each(|record| inner.known.note(&record));
        let unsent = inner.known.totals().unsent_bytes;
        self.unsent_bytes.store(unsent, Ordering::Relaxed);
        Ok(())
    }

    /// A pack is whole on the local disk.
    pub fn sealed(&self, pack: PackId, len: u32) -> Result<()> {
        self.append(&Record {
            kind: Kind::Sealed,
            id: pack.0,
            len,
            time: 0,
            external: Uuid([0; 16]),
        })
    }

    /// A pack is on the external volume.
    pub fn uploaded(&self, pack: PackId, len: u32, verified_at: u64) -> Result<()> {
        let external = self.lock().known.external();
        self.append(&Record {
            kind: Kind::Uploaded,
            id: pack.0,
            len,
            time: verified_at,
            external,
        })
    }

    /// The external volume has everything up to `epoch`.
    pub fn archived(&self, epoch: Epoch, time: u64) -> Result<()> {
        let external = self.lock().known.external();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&epoch.0.to_le_bytes());
        self.append(&Record {
            kind: Kind::Archived,
            id,
            len: 0,
            time,
            external,
        })
    }

    /// A pack's local copy is about to be emptied.
    pub fn evicted(&self, pack: PackId) -> Result<()> {
        self.append(&Record {
            kind: Kind::Evicted,
            id: pack.0,
            len: 0,
            time: 0,
            external: Uuid([0; 16]),
        })
    }

    /// A pack is neither here nor there any more.
    pub fn gone(&self, pack: PackId) -> Result<()> {
        self.append(&Record {
            kind: Kind::Gone,
            id: pack.0,
            len: 0,
            time: 0,
            external: Uuid([0; 16]),
        })
    }

    /// The external copy of a pack is missing or damaged: it is as if it had never been sent.
    pub fn unsent(&self, pack: PackId, len: u32) -> Result<()> {
        // A stop between the two leaves a pack that the next opening finds by listing.
        self.gone(pack)?;
        self.sealed(pack, len)
    }

    /// Makes what was noted so far survive a power cut.
    pub fn sync(&self) -> Result<()> {
        let mut inner = self.lock();
        if inner.unsynced {
            inner
                .file
                .sync_data()
                .map_err(Error::io("sync", &self.path))?;
            inner.unsynced = false;
        }
        Ok(())
    }

    /// What is known of a pack.
    pub fn get(&self, pack: PackId) -> Option<PackEntry> {
        self.lock().known.get(pack)
    }

    /// The newest epoch that is complete on the external volume.
    pub fn archived_epoch(&self) -> Epoch {
        self.lock().known.archived()
    }

    /// Packs that are sealed and not uploaded, in the order in which they were sealed, up to `count_max`.
    pub fn to_upload(&self, count_max: usize) -> Vec<(PackId, PackEntry)> {
        self.lock().known.unsent().take(count_max).collect()
    }

    /// Whether `is_meant` of any pack that is sealed and not uploaded.
    pub fn is_any_unsent(&self, mut is_meant: impl FnMut(PackId) -> bool) -> bool {
        self.lock().known.unsent().any(|(pack, _)| is_meant(pack))
    }

    /// Bytes of packs that are sealed and not uploaded. Never waits.
    pub fn unsent_bytes(&self) -> u64 {
        self.unsent_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that were noted as uploaded since the opening. Never waits.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// All packs.
    pub fn all(&self) -> Vec<(PackId, PackEntry)> {
        self.lock().known.all().collect()
    }

    /// Counts and bytes of packs: not uploaded, and all.
    pub fn totals(&self) -> Totals {
        self.lock().known.totals()
    }
}

/// What [`Ledger::totals`] counts.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Totals {
    /// All packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that are only here.
    pub unsent_packs: u64,
    /// Their bytes.
    pub unsent_bytes: u64,
    /// Bytes of packs whose local copy is whole.
    pub local_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;

    const HERE: Uuid = Uuid([1; 16]);

    fn pack(n: u64) -> PackId {
        PackId::new(SessionId([7; 8]), n)
    }

    #[test]
    fn what_was_noted_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), HERE).unwrap();
        ledger.sealed(pack(1), 100).unwrap();
        ledger.sealed(pack(2), 200).unwrap();
        ledger.uploaded(pack(1), 100, 5).unwrap();
        ledger.archived(Epoch(9), 6).unwrap();
        let again = Ledger::open(dir.path(), HERE).unwrap();
        assert_eq!(
            again.to_upload(9),
            [(
                pack(2),
                PackEntry {
                    len: 200,
                    state: PackState::Sealed,
                    evicted: false
                }
            )]
        );
        assert_eq!(again.archived_epoch(), Epoch(9));
        assert_eq!(
            again.totals(),
            Totals {
                packs: 2,
                bytes: 300,
                unsent_packs: 1,
                unsent_bytes: 200,
                local_bytes: 300
            }
        );
    }

    #[test]
    fn packs_are_sent_in_the_order_in_which_they_were_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), HERE).unwrap();
        // The name of a later session may come first in the order of names.
        let later = |n| PackId::new(SessionId([1; 8]), n);
        let sealed = [pack(2), pack(3), later(1), pack(9), later(2)];
        for id in sealed {
            ledger.sealed(id, 100).unwrap();
        }
        ledger.uploaded(pack(3), 100, 5).unwrap();
        // Its external copy is bad: it is as if it were new.
        ledger.uploaded(pack(2), 100, 5).unwrap();
        ledger.unsent(pack(2), 100).unwrap();
        let expected = [later(1), pack(9), later(2), pack(2)];
        for ledger in [ledger, Ledger::open(dir.path(), HERE).unwrap()] {
            let waiting: Vec<_> = ledger.to_upload(9).iter().map(|(id, _)| *id).collect();
            assert_eq!(waiting, expected);
            assert_eq!(ledger.unsent_bytes(), 400);
            assert!(ledger.is_any_unsent(|id| id == pack(9)));
            assert!(!ledger.is_any_unsent(|id| id == pack(3)));
        }
    }

    #[test]
    fn an_upload_counts_for_its_own_volume_only() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), HERE).unwrap();
        ledger.sealed(pack(1), 100).unwrap();
        ledger.uploaded(pack(1), 100, 5).unwrap();
        ledger.archived(Epoch(9), 6).unwrap();
        let other = Ledger::open(dir.path(), Uuid([2; 16])).unwrap();
        assert_eq!(other.to_upload(9).len(), 1);
        assert_eq!(other.archived_epoch(), Epoch(0));
    }

    #[test]
    fn a_pack_whose_external_copy_is_bad_is_sent_again() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), HERE).unwrap();
        ledger.sealed(pack(1), 100).unwrap();
        ledger.uploaded(pack(1), 100, 5).unwrap();
        assert_eq!(ledger.to_upload(9), []);
        ledger.unsent(pack(1), 100).unwrap();
        for ledger in [ledger, Ledger::open(dir.path(), HERE).unwrap()] {
            let waiting = ledger.to_upload(9);
            assert_eq!(waiting.len(), 1);
            assert_eq!(waiting[0].1.len, 100);
        }
    }

    #[test]
    fn a_damaged_record_is_forgotten_and_the_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), HERE).unwrap();
        for n in 0..3 {
            ledger.sealed(pack(n), 100).unwrap();
        }
        let path = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[RECORD_LEN + 20] ^= 1;
        bytes.truncate(3 * RECORD_LEN - 1);
        std::fs::write(&path, &bytes).unwrap();
        let ledger = Ledger::open(dir.path(), HERE).unwrap();
        assert_eq!(ledger.totals().packs, 1);
        ledger.sealed(pack(5), 100).unwrap();
        assert_eq!(Ledger::open(dir.path(), HERE).unwrap().totals().packs, 2);
    }
}
