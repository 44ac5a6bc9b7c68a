//! Opening and creating. Whatever does not fit together is discarded: truth is elsewhere.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::cache::PageCache;
use super::checkpoint::{Checkpoint, Tally};
use super::store::Store;
use super::{CACHE_LEN_MAX, Index, IndexDoubt, IndexError, UNKNOWN, Writer, store_dir};
use crate::error::{Error, Result};
use crate::meta::atomic;
use crate::types::Epoch;

/// Names of the notes in the store: whose it is, and how it stands to the checkpoint.
const VOLUME: &str = "volume";
pub(super) const STATE: &str = "state";

/// The lower bits of a write's number count within one opening.
const SEQ_BITS: u32 = 40;
const OPENS_MAX: u32 = 1 << (u64::BITS - SEQ_BITS);
/// How sled calls it when another handle, a living one, has the store.
const IN_USE: &str = "could not acquire lock";

/// What opening found.
#[derive(Debug)]
pub struct Opened {
    /// The index, if it can be used.
    pub index: Option<Index>,
    /// Why there is none. Its directory is then gone: create it anew.
    pub reason_if_discarded: Option<String>,
}

impl Index {
    /// Opens the index in `dir`, which is all its own, of the volume with this uuid.
    ///
    /// What is found is discarded when it is another volume's, has no checkpoint, is behind it, or fails to open. It may
    /// be ahead: see [`Index`].
    pub fn open(dir: &Path, volume: [u8; 16]) -> Opened {
        let reason = match Index::try_open(dir, volume) {
            Ok(index) => {
                return Opened {
                    index: Some(index),
                    reason_if_discarded: None,
                };
            }
            Err(error) => Error::from(error).chain(),
        };
        let in_use = reason.contains(IN_USE);
        let discarded = if in_use {
            Opening {
                path: marker_path(dir),
            }
            .end()
        } else {
            atomic::discard_dir(dir)
        };
        let reason = match discarded {
            Ok(()) => reason,
            Err(error) => format!("{reason}; and it cannot be removed: {}", error.chain()),
        };
        Opened {
            index: None,
            reason_if_discarded: Some(reason),
        }
    }

    /// A new, empty index in `dir`. It does not open again before it has a checkpoint.
    pub fn create(dir: &Path, volume: [u8; 16]) -> Result<Index, IndexError> {
        atomic::discard_dir(dir)?;
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        atomic::sync_parent(dir)?;
        let store = Store::open(&store_dir(dir))?;
        let sealed = Checkpoint {
            volume,
            epoch: Epoch(0),
            serial: 0,
            opens: 0,
            seq: 0,
            tally: None,
        };
        let writer = Writer {
            seq: 0,
            dirty: false,
            tally: Some(Tally::default()),
            sealed,
        };
        let index = Index::new(dir, store, writer);
        index.store.set_note(VOLUME, &volume)?;
        let mut writer = index.writer();
        index.write_page(&mut writer, b"", None, 0, &[])?;
        index.publish_tally(writer.tally);
        drop(writer);
        Ok(index)
    }

    fn try_open(dir: &Path, volume: [u8; 16]) -> Result<Index, IndexError> {
        let path = checkpoint_path(dir);
        let missing = || IndexDoubt::new("there is no checkpoint");
        let mut sealed = Checkpoint::read(&path)?.ok_or_else(missing)?;
        if sealed.volume != volume {
            return Err(IndexDoubt::new("it belongs to another volume").into());
        }
        let guard = Opening::begin(dir)?;
        let store = Store::open(&store_dir(dir))?;
        if store.note(VOLUME)?.as_deref() != Some(&volume) {
            return Err(IndexDoubt::new("the store is empty or another volume's").into());
        }
        let dirty = is_ahead(&store, sealed.serial)?;
        sealed.opens = sealed.opens.saturating_add(1);
        if sealed.opens >= OPENS_MAX {
            return Err(IndexDoubt::new("it was opened too often to number its writes").into());
        }
        sealed.write(&path)?;
        let seq = u64::from(sealed.opens) << SEQ_BITS;
        let tally = sealed.tally.filter(|_| !dirty);
        let index = Index::new(
            dir,
            store,
            Writer {
                seq,
                dirty,
                tally,
                sealed,
            },
        );
        if dirty {
            index.settle(&mut index.writer())?;
        }
        index.check_first_page()?;
        guard.end()?;
        Ok(index)
    }

    fn new(dir: &Path, store: Store, writer: Writer) -> Index {
        Index {
            dir: dir.to_owned(),
            store,
            cache: PageCache::new(CACHE_LEN_MAX),
            shape: Mutex::new(()),
            doubted: AtomicBool::new(false),
            pages: AtomicU64::new(writer.tally.map_or(UNKNOWN, |tally| tally.pages)),
            epoch: AtomicU64::new(writer.sealed.epoch.0),
            writer: Mutex::new(writer),
        }
    }

    /// An index as a crash left it, before it is settled.
    #[cfg(test)]
    pub(super) fn for_test(dir: &Path, store: Store, writer: Writer) -> Index {
        Index::new(dir, store, writer)
    }

    fn check_first_page(&self) -> Result<(), IndexDoubt> {
        self.page_for(b"", true).map(drop)
    }
}

/// A marker that is there while sled opens. On damage sled may do worse than panic, and end the process: the
/// next opening finds the marker and does not try again.
struct Opening {
    path: PathBuf,
}

impl Opening {
    fn begin(dir: &Path) -> Result<Opening, IndexError> {
        let path = marker_path(dir);
        if path.exists() {
            return Err(IndexDoubt::new("the process ended while it was being opened").into());
        }
        File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Opening { path })
    }

    fn end(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))
    }
}

/// Whether the store was changed after checkpoint `serial`. It must not be from before it.
fn is_ahead(store: &Store, serial: u64) -> Result<bool, IndexDoubt> {
    let note = store.note(STATE)?.unwrap_or_default();
    let fields = note
        .split_first_chunk()
        .and_then(|(found, rest)| Some((*found, *rest.first_chunk()?)));
    let (found, [dirty]) =
        fields.ok_or_else(|| IndexDoubt::new("the store does not know its checkpoint"))?;
    let found = u64::from_le_bytes(found);
    if found < serial {
        return Err(IndexDoubt::new("the store fell back behind its checkpoint"));
    }
    Ok(found > serial || dirty != 0)
}

pub(super) fn state_note(serial: u64, dirty: bool) -> Vec<u8> {
    let mut note = serial.to_le_bytes().to_vec();
    note.push(u8::from(dirty));
    note
}

fn marker_path(dir: &Path) -> PathBuf {
    dir.join("opening")
}

pub(super) fn checkpoint_path(dir: &Path) -> PathBuf {
    dir.join("checkpoint")
}
