//! How much the backup path's disk has free: asked at each write, looked up ten times a second.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::volume::live::free_bytes;

const INTERVAL: Duration = Duration::from_millis(100);

/// Remembers the last look.
#[derive(Debug)]
pub struct SpaceWatch {
    start: Instant,
    next_ms: AtomicU64,
    free_bytes: AtomicU64,
    /// Taken in since the last look, and not seen by it.
    promised_bytes: AtomicU64,
}

impl Default for SpaceWatch {
    fn default() -> SpaceWatch {
        SpaceWatch {
            start: Instant::now(),
            next_ms: AtomicU64::new(0),
            free_bytes: AtomicU64::new(u64::MAX),
            promised_bytes: AtomicU64::new(0),
        }
    }
}

impl SpaceWatch {
    /// Something was freed: the next question is answered by a new look.
    pub fn look_again(&self) {
        self.next_ms.store(0, Ordering::Relaxed);
    }

    /// Free bytes below `root`, less what was promised since the last look.
    pub fn free(&self, root: &Path) -> u64 {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = self.next_ms.load(Ordering::Relaxed);
        let next = now_ms.saturating_add(u64::try_from(INTERVAL.as_millis()).unwrap_or(100));
        let is_mine = now_ms >= due
            && self
                .next_ms
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
            self.promised_bytes.store(0, Ordering::Relaxed);
            // A disk that cannot be asked will tell at the write itself.
            let free = free_bytes(root).unwrap_or(u64::MAX);
            self.free_bytes.store(free, Ordering::Relaxed);
        }
        let promised = self.promised_bytes.load(Ordering::Relaxed);
        self.free_bytes
            .load(Ordering::Relaxed)
            .saturating_sub(promised)
    }

    /// So much was taken in, and is going to need room.
    pub fn promise(&self, bytes: u64) {
        self.promised_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether less than `reserve` bytes are free below `root`.
    pub fn is_short(&self, root: &Path, reserve: u64) -> bool {
        self.free(root) < reserve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_promised_since_the_last_look_is_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let watch = SpaceWatch::default();
        let free = watch.free(dir.path());
        assert!(free > 0 && free < u64::MAX);
        watch.next_ms.store(u64::MAX, Ordering::Relaxed);
        watch.promise(free - 10);
        assert_eq!(watch.free(dir.path()), 10);
        assert!(watch.is_short(dir.path(), 11) && !watch.is_short(dir.path(), 10));
        watch.look_again();
        assert!(watch.free(dir.path()) > 10, "a new look sees what there is");
    }
}
