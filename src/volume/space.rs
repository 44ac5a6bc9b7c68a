//! Whether the backup path's disk is nearly full: asked at each write, looked up ten times a second.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::volume::live::free_bytes;

const INTERVAL: Duration = Duration::from_millis(100);

/// Remembers the last look.
#[derive(Debug)]
pub struct SpaceWatch {
    start: Instant,
    next_ms: AtomicU64,
    is_short: AtomicBool,
}

impl Default for SpaceWatch {
    fn default() -> SpaceWatch {
        SpaceWatch {
            start: Instant::now(),
            next_ms: AtomicU64::new(0),
            is_short: AtomicBool::new(false),
        }
    }
}

impl SpaceWatch {
    /// Something was freed: the next question is answered by a new look.
    pub fn look_again(&self) {
        self.next_ms.store(0, Ordering::Relaxed);
    }

    /// Whether less than `reserve` bytes are free below `root`.
    pub fn is_short(&self, root: &Path, reserve: u64) -> bool {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = self.next_ms.load(Ordering::Relaxed);
        let next = now_ms.saturating_add(u64::try_from(INTERVAL.as_millis()).unwrap_or(100));
        let is_mine = now_ms >= due
            && self
                .next_ms
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
            // A disk that cannot be asked will tell at the write itself.
            let is_short = free_bytes(root).is_ok_and(|free| free < reserve);
            self.is_short.store(is_short, Ordering::Relaxed);
        }
        self.is_short.load(Ordering::Relaxed)
    }
}
