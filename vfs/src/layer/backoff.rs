//! Pauses that grow and are scattered, so that a server that comes back is not met by everyone at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A row of pauses: each twice the one before, up to a longest, and each cut by up to a half at random.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    random: AtomicU64,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration, seed: u64) -> Backoff {
        Backoff {
            first,
            longest,
            random: AtomicU64::new(seed),
        }
    }

    /// The pause behind attempt `number`, counted from 1.
    pub(super) fn pause(&self, number: u32) -> Duration {
        let doubled = 1u32
            .checked_shl(number.saturating_sub(1))
            .unwrap_or(u32::MAX);
        let whole = self.first.saturating_mul(doubled).min(self.longest);
        // SplitMix64: any sequence without a pattern will do.
        let mut random = self
            .random
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        random = (random ^ (random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        random = (random ^ (random >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let thousandths = u32::try_from(random % 500).unwrap_or(0);
        whole * (500 + thousandths) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_no_further() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1), 7);
        for number in 1..80 {
            let pause = backoff.pause(number);
            let whole = if number > 4 {
                1000
            } else {
                100 << (number - 1)
            };
            assert!(
                pause >= Duration::from_millis(whole / 2),
                "{number}: {pause:?}"
            );
            assert!(pause <= Duration::from_millis(whole), "{number}: {pause:?}");
        }
    }
}
