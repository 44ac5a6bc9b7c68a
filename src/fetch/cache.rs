//! Plain bytes of blobs that were read lately, within a bound of memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::types::BlobHash;

/// The cache: least recently used goes first.
#[derive(Debug)]
pub struct BlobCache {
    len_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    blobs: HashMap<BlobHash, (Bytes, u64)>,
    by_use: BTreeMap<u64, BlobHash>,
    tick: u64,
    len: usize,
}

impl BlobCache {
    /// Holds up to `len_max` bytes.
    pub fn new(len_max: usize) -> BlobCache {
        BlobCache {
            len_max,
            inner: Mutex::default(),
        }
    }

    /// The blob, if it is here.
    pub fn get(&self, blob: &BlobHash) -> Option<Bytes> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = &mut *inner;
        let (bytes, used) = inner.blobs.get_mut(blob)?;
        inner.tick += 1;
        inner.by_use.remove(used);
        *used = inner.tick;
        inner.by_use.insert(inner.tick, *blob);
        Some(bytes.clone())
    }

    /// Whether the blob is here; that is no use of it.
    pub fn contains(&self, blob: &BlobHash) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.blobs.contains_key(blob)
    }

    /// Keeps a blob.
    pub fn put(&self, blob: BlobHash, bytes: Bytes) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = &mut *inner;
        if bytes.len() > self.len_max || inner.blobs.contains_key(&blob) {
            return;
        }
        inner.tick += 1;
        inner.len += bytes.len();
        inner.by_use.insert(inner.tick, blob);
        inner.blobs.insert(blob, (bytes, inner.tick));
        while inner.len > self.len_max {
            let Some((_, oldest)) = inner.by_use.pop_first() else {
                break;
            };
            if let Some((bytes, _)) = inner.blobs.remove(&oldest) {
                inner.len -= bytes.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let cache = BlobCache::new(20);
        let blob = |n| BlobHash([n; 32]);
        cache.put(blob(1), Bytes::from(vec![1; 8]));
        cache.put(blob(2), Bytes::from(vec![2; 8]));
        assert!(cache.get(&blob(1)).is_some());
        cache.put(blob(3), Bytes::from(vec![3; 8]));
        assert!(cache.get(&blob(1)).is_some());
        assert!(cache.get(&blob(2)).is_none());
        assert!(cache.get(&blob(3)).is_some());
        cache.put(blob(4), Bytes::from(vec![4; 21]));
        assert!(cache.get(&blob(4)).is_none(), "larger than the cache");
    }
}
