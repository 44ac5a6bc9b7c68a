//! The border to sled: the only file that names it.
//!
//! Get the page at or below a key, insert, remove, scan, flush: so little that another store could take
//! its place. sled panics on damage, so every call is made inside `catch_unwind`; after a panic or an
//! error it is never asked again, because its locks and buffers may be in any state.

use std::fs::{File, TryLockError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;

use super::doubt::IndexDoubt;

/// sled's own cache. It stays small: decoded pages are cached in front of it.
const SLED_CACHE_LEN: u64 = 48 << 20;
/// Leads the keys of pages; what is known about the whole store is under `NOTE`.
const PAGE: u8 = 1;
const NOTE: u8 = 0;

pub(super) struct Store {
    path: PathBuf,
    db: Option<sled::Db>,
    broken: OnceLock<Broken>,
    /// How many more writes succeed: a test stops the applier between two of them.
    #[cfg(test)]
    pub(super) writes_left: std::sync::atomic::AtomicU64,
}

#[derive(Debug)]
struct Broken {
    reason: String,
    panicked: bool,
}

/// A page's lower fence and its bytes.
pub(super) type RawPage = (Bytes, Bytes);

impl Store {
    pub(super) fn open(path: &Path) -> Result<Store, IndexDoubt> {
        let config = sled::Config::new()
            .path(path)
            .mode(sled::Mode::HighThroughput)
            .cache_capacity(SLED_CACHE_LEN)
            .flush_every_ms(None);
        let db = match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => db,
            Ok(Err(error)) => return Err(IndexDoubt::new(format!("sled cannot open: {error}"))),
            Err(panic) => {
                return Err(IndexDoubt::new(format!(
                    "sled panicked in open: {}",
                    panic_text(&*panic)
                )));
            }
        };
        Ok(Store {
            path: path.to_owned(),
            db: Some(db),
            broken: OnceLock::new(),
            #[cfg(test)]
            writes_left: std::sync::atomic::AtomicU64::new(u64::MAX),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails once anything failed.
    pub(super) fn check(&self) -> Result<(), IndexDoubt> {
        match self.broken.get() {
            None => Ok(()),
            Some(broken) => Err(IndexDoubt::new(&broken.reason)),
        }
    }

    /// The page with the greatest lower fence that is not above `key`.
    pub(super) fn floor(&self, key: &[u8]) -> Result<Option<RawPage>, IndexDoubt> {
        let upto = page_key(key);
        let found = self.call("get", |db| {
            db.range::<&[u8], _>(&[PAGE][..]..=&upto[..])
                .next_back()
                .transpose()
        })?;
        Ok(found.map(raw_page))
    }

    /// The greatest lower fence of a page below `upper`, or of all.
    pub(super) fn fence_below(&self, upper: Option<&[u8]>) -> Result<Option<Bytes>, IndexDoubt> {
        let upper = upper.map_or_else(|| vec![PAGE + 1], page_key);
        let found = self.call("get", |db| {
            db.range::<&[u8], _>(&[PAGE][..]..&upper[..])
                .next_back()
                .transpose()
        })?;
        Ok(found.map(|(key, _)| Bytes::copy_from_slice(&key[1..])))
    }

    /// All pages from the one with the lower fence `from` or the next one above, in order.
    pub(super) fn scan(&self, from: &[u8]) -> Result<Scan<'_>, IndexDoubt> {
        let from = page_key(from);
        let pages = self.call("range", |db| {
            Ok(db.range::<&[u8], _>(&from[..]..&[PAGE + 1][..]))
        })?;
        Ok(Scan { store: self, pages })
    }

    pub(super) fn insert(&self, lower: &[u8], page: &[u8]) -> Result<(), IndexDoubt> {
        self.count_write()?;
        self.call("insert", |db| db.insert(page_key(lower), page).map(drop))
    }

    pub(super) fn remove(&self, lower: &[u8]) -> Result<(), IndexDoubt> {
        self.count_write()?;
        self.call("remove", |db| db.remove(page_key(lower)).map(drop))
    }

    pub(super) fn note(&self, name: &str) -> Result<Option<Vec<u8>>, IndexDoubt> {
        let value = self.call("get", |db| db.get(note_key(name)))?;
        Ok(value.map(|value| value.to_vec()))
    }

    pub(super) fn set_note(&self, name: &str, value: &[u8]) -> Result<(), IndexDoubt> {
        self.count_write()?;
        self.call("insert", |db| db.insert(note_key(name), value).map(drop))
    }

    /// Hands everything to the kernel. **Not durable** before the caller has synced the files itself.
    pub(super) fn flush(&self) -> Result<(), IndexDoubt> {
        self.call("flush", |db| db.flush().map(drop))
    }

    fn call<T>(
        &self,
        verb: &str,
        call: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, IndexDoubt> {
        self.check()?;
        let db = self
            .db
            .as_ref()
            .ok_or_else(|| IndexDoubt::new("sled is closed"))?;
        let (reason, panicked) = match catch_unwind(AssertUnwindSafe(|| call(db))) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => (format!("sled failed in {verb}: {error}"), false),
            Err(panic) => (
                format!("sled panicked in {verb}: {}", panic_text(&*panic)),
                true,
            ),
        };
        let _first_one_stays = self.broken.set(Broken {
            reason: reason.clone(),
            panicked,
        });
        Err(IndexDoubt::new(reason))
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "the place where tests stop the applier"
    )]
    fn count_write(&self) -> Result<(), IndexDoubt> {
        Ok(())
    }

    #[cfg(test)]
    fn count_write(&self) -> Result<(), IndexDoubt> {
        use std::sync::atomic::Ordering::Relaxed;
        if self
            .writes_left
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
            .is_err()
        {
            let _ = self.broken.set(Broken {
                reason: "stopped by the test".to_owned(),
                panicked: false,
            });
        }
        self.check()
    }

    /// For tests that damage the store behind the index's back.
    #[cfg(test)]
    pub(super) fn raw(&self) -> &sled::Db {
        self.db.as_ref().unwrap()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let Some(db) = self.db.take() else { return };
        if self.broken.get().is_some_and(|broken| broken.panicked) {
            // sled flushes when it is dropped, and would wait for ever for a buffer that the panic left
            // behind. What leaks is its cache, once: the index is discarded and refilled elsewhere.
            std::mem::forget(db);
            return;
        }
        match catch_unwind(AssertUnwindSafe(|| drop(db))) {
            Ok(()) => self.wait_until_closed(),
            Err(panic) => {
                tracing::warn!(
                    "sled panicked while closing {}: {}",
                    self.path.display(),
                    panic_text(&*panic)
                );
            }
        }
    }
}

impl Store {
    /// A last write of sled's own threads may still hold its file and the lock on it: without this, opening again at
    /// once would find the store in use.
    fn wait_until_closed(&self) {
        const TURN: Duration = Duration::from_millis(1);
        const TURNS: u32 = 2000;
        let Ok(file) = File::open(self.path.join("db")) else {
            return;
        };
        for _ in 0..TURNS {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => std::thread::sleep(TURN),
                _ => return,
            }
        }
    }
}

/// Pages in order, straight from the store.
pub(super) struct Scan<'a> {
    store: &'a Store,
    pages: sled::Iter,
}

impl Iterator for Scan<'_> {
    type Item = Result<RawPage, IndexDoubt>;

    fn next(&mut self) -> Option<Self::Item> {
        let pages = &mut self.pages;
        self.store
            .call("range", |_| pages.next().transpose())
            .map(|page| page.map(raw_page))
            .transpose()
    }
}

fn raw_page((key, value): (sled::IVec, sled::IVec)) -> RawPage {
    (
        Bytes::copy_from_slice(&key[1..]),
        Bytes::copy_from_slice(&value),
    )
}

fn page_key(lower: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + lower.len());
    key.push(PAGE);
    key.extend_from_slice(lower);
    key
}

fn note_key(name: &str) -> Vec<u8> {
    let mut key = vec![NOTE];
    key.extend_from_slice(name.as_bytes());
    key
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
}
