//! The index: the present state of the tree as an ordered map, a *cache of truth held elsewhere*
//! (invariant 4). Lost or doubtful, it is refilled from segments and frames.
//!
//! Keys and values are opaque here. What sled may do is in `store`; nothing above this module knows of it.
//!
//! - Entries live in *pages* that name the range they answer for (`page`), so that a lost page is seen by
//!   the read that misses it and never reads as "no such key".
//! - One thread applies (`apply`), many read. Pages are replaced so that readers, and a crash, meet a key
//!   once or twice, never not at all (`replace`).
//! - A checkpoint (`checkpoint`) says up to which epoch the store is complete. After a crash the store may be
//!   *ahead* of it: each key has its value as of the checkpoint or a later one. Applying what came after the
//!   checkpoint again makes it exact; until then the caller's overlay must hold those changes above it.
//!
//! # What damage is seen when
//!
//! | damage | seen by |
//! |---|---|
//! | a lost page, a damaged page | the read that meets it, [`Index::verify`] |
//! | the whole store fell back to an earlier moment (a cut file) | [`Index::open`] |
//! | one page fell back to an earlier version of itself, whole and with the same fences | [`Index::verify`] only |
//!
//! For the last kind each page carries the digest of the checkpointed pages whose place it took, so that the sum
//! over the store equals the checkpoint's also when the store is ahead. So run `verify` in the background after
//! opening. What remains unseen: between opening and the end of `verify`, and when the last checkpoint has no
//! digest ([`Index::is_tallied`]: a checkpoint made after a crash before any `verify`).

mod apply;
mod cache;
mod checkpoint;
mod digest;
mod doubt;
mod open;
mod page;
mod range;
mod replace;
mod shelf;
mod store;
mod verify;

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use self::cache::PageCache;
use self::checkpoint::{Checkpoint, Tally};
use self::page::Page;
use self::store::Store;
use crate::error::{Error, Result};
use crate::meta::atomic;
use crate::types::Epoch;

pub use self::apply::{Applied, Change};
pub use self::doubt::{IndexDoubt, IndexError};
pub use self::open::Opened;
pub use self::page::{KEY_LEN_MAX, VALUE_LEN_MAX};
pub use self::range::Range;
pub use self::verify::Report;

/// Decoded pages kept in memory.
const CACHE_LEN_MAX: usize = 32 << 20;
/// Stands for "not known" in [`Index::pages`].
const UNKNOWN: u64 = u64::MAX;

/// An ordered map of the present state of the tree. See the module for what it promises.
pub struct Index {
    dir: PathBuf,
    store: Store,
    cache: PageCache,
    /// The applier's state. Lock order: `writer`, then `shape`. Held across the whole of an apply, a checkpoint or a
    /// verification, I/O included: no reader needs it.
    writer: Mutex<Writer>,
    /// Held while several pages are replaced by several others, I/O included: a reader that found a gap looks again
    /// under it, and what it finds then is really there.
    shape: Mutex<()>,
    /// Something doubtful was met: no checkpoint may bless it.
    doubted: AtomicBool,
    pages: AtomicU64,
    epoch: AtomicU64,
}

/// What only the applier changes.
#[derive(Debug)]
struct Writer {
    /// Number of the last write.
    seq: u64,
    /// The store has been changed since the last checkpoint, and says so.
    dirty: bool,
    /// The pages as they are now, if known: after a crash only a full scan tells.
    tally: Option<Tally>,
    /// The last checkpoint; of a new index, which has none, all zero and without tally.
    sealed: Checkpoint,
}

impl Index {
    /// The value of `key`.
    ///
    /// The bytes share the memory of a whole page: copy what is to be kept for long.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexDoubt> {
        Ok(self.page_for(key, true)?.find(key))
    }

    /// The entries of `[from, to)` in order; to the end without `to`.
    ///
    /// May be consumed in slices, and holds no lock between them. While changes are applied each entry is the old or the
    /// new one, and none is skipped or repeated.
    pub fn range(&self, from: &[u8], to: Option<&[u8]>) -> Range<'_> {
        Range::new(self, from, to)
    }

    /// Everything of this epoch and of those before is in the index, as of its last checkpoint.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// How many pages there are; `None` after a crash until [`Index::verify`] has counted them.
    pub fn page_count(&self) -> Option<u64> {
        Some(self.pages.load(Ordering::Relaxed)).filter(|pages| *pages != UNKNOWN)
    }

    /// Whether a checkpoint made now would hold the digest of all pages.
    pub fn is_tallied(&self) -> bool {
        self.page_count().is_some()
    }

    /// Bytes of the store's files.
    pub fn len_on_disk(&self) -> Result<u64> {
        atomic::len_on_disk(self.store.path())
    }

    /// Makes everything applied so far durable, as the state at the end of `epoch`.
    pub fn checkpoint(&self, epoch: Epoch) -> Result<(), IndexError> {
        let mut writer = self.writer();
        if self.doubted.load(Ordering::Acquire) {
            return Err(IndexDoubt::new("something doubtful was met since it was opened").into());
        }
        let serial = writer.sealed.serial + 1;
        self.store
            .set_note(open::STATE, &open::state_note(serial, false))
            .map_err(|doubt| self.doubt(doubt))?;
        writer.dirty = false;
        self.store.flush().map_err(|doubt| self.doubt(doubt))?;
        atomic::sync_tree(self.store.path())?;
        let sealed = Checkpoint {
            epoch,
            serial,
            seq: writer.seq,
            tally: writer.tally,
            ..writer.sealed
        };
        sealed.write(&open::checkpoint_path(&self.dir))?;
        writer.sealed = sealed;
        self.epoch.store(epoch.0, Ordering::Release);
        Ok(())
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic of the applier leaves pages as after a crash: whole, and perhaps twice. The tally is then only
        // wrong, which the next verification calls doubtful.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page that answers for `key`; `keep` it in the cache.
    fn page_for(&self, key: &[u8], keep: bool) -> Result<Arc<Page>, IndexDoubt> {
        self.store.check()?;
        let generation = match self.cache.get(key) {
            Ok(page) => return Ok(page),
            Err(generation) => generation,
        };
        let page = match self.read_page(key).map_err(|doubt| self.doubt(doubt))? {
            Some(page) => page,
            None => self.read_page_at_rest(key)?,
        };
        let page = Arc::new(page);
        if keep {
            self.cache.offer(&page, generation);
        }
        Ok(page)
    }

    /// A reader that looks to the right of a page before that page's new right half is in, and then at its new left half,
    /// finds a gap that is none.
    fn read_page_at_rest(&self, key: &[u8]) -> Result<Page, IndexDoubt> {
        let _nothing_moves = self.shape.lock().unwrap_or_else(PoisonError::into_inner);
        let page = self.read_page(key).map_err(|doubt| self.doubt(doubt))?;
        page.ok_or_else(|| {
            self.doubt(IndexDoubt::new(format!(
                "the page with key {} is missing",
                key.escape_ascii()
            )))
        })
    }

    fn read_page(&self, key: &[u8]) -> Result<Option<Page>, IndexDoubt> {
        match self.store.floor(key)? {
            Some(raw) => Ok(Some(decode(raw)?).filter(|page| page.covers(key))),
            None => Ok(None),
        }
    }

    fn doubt(&self, doubt: IndexDoubt) -> IndexDoubt {
        self.doubted.store(true, Ordering::Release);
        doubt
    }

    fn publish_tally(&self, tally: Option<Tally>) {
        self.pages.store(
            tally.map_or(UNKNOWN, |tally| tally.pages),
            Ordering::Relaxed,
        );
    }
}

impl Writer {
    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// The digest of what `page` was, or of what it took the place of, at the last checkpoint.
    fn share_of_checkpoint(&self, page: &Page) -> u64 {
        if page.seq > self.sealed.seq {
            page.stands_for
        } else {
            page.digest
        }
    }
}

fn decode((lower, bytes): store::RawPage) -> Result<Page, IndexDoubt> {
    let place = || format!("at key {}", lower.escape_ascii());
    let page =
        Page::decode(bytes).map_err(|reason| IndexDoubt::new(format!("{reason} {}", place())))?;
    if page.lower == lower {
        Ok(page)
    } else {
        Err(IndexDoubt::new(format!(
            "a page is in another's place {}",
            place()
        )))
    }
}

fn store_dir(dir: &Path) -> PathBuf {
    dir.join("sled")
}

fn refused(what: impl Into<String>) -> IndexError {
    IndexError::Engine(Error::Refused(what.into()))
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("dir", &self.dir)
            .field("epoch", &self.epoch())
            .field("pages", &self.page_count())
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}
