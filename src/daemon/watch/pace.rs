//! When a source that changed is scanned: soon, and not all the time.

use std::time::{Duration, Instant};

/// A change is scanned when no other came for this long ..
const QUIET: Duration = Duration::from_secs(1);
/// .. and anyhow when it has waited for this long.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Between two scans of a source there is a pause of so many times what the first took ..
const REST_FACTOR: u32 = 4;
/// .. and not more.
const REST_MAX: Duration = Duration::from_secs(60);
/// After a scan that left something to be done it is tried again, later each time.
const RETRY_MIN: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// The pace of one source.
#[derive(Debug, Default)]
pub(super) struct Pace {
    not_before: Option<Instant>,
    retry: Option<Duration>,
}

impl Pace {
    /// How long to wait until the next scan, if the first and the last change came so long ago.
    pub(super) fn wait(&self, (first, last): (Duration, Duration), now: Instant) -> Duration {
        let quiet = QUIET.saturating_sub(last);
        let patience = WAIT_MAX.saturating_sub(first);
        let rest = self.not_before.map_or(Duration::ZERO, |not_before| {
            not_before.saturating_duration_since(now)
        });
        quiet.min(patience).max(rest)
    }

    /// A scan ended. `is_clean`: nothing of it is to be done again.
    pub(super) fn ended(&mut self, took: Duration, is_clean: bool, now: Instant) {
        let rest = (took * REST_FACTOR).min(REST_MAX);
        self.retry = (!is_clean).then(|| {
            let retry = self.retry.map_or(RETRY_MIN, |retry| retry * 2);
            retry.min(RETRY_MAX)
        });
        self.not_before = Some(now + rest.max(self.retry.unwrap_or_default()));
    }

    /// Somebody else scans it: look again later.
    pub(super) fn is_busy(&mut self, now: Instant) {
        self.not_before = Some(now + QUIET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_change_waits_for_quiet_but_not_for_ever() {
        let (pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.wait((Duration::ZERO, Duration::ZERO), now), QUIET);
        assert_eq!(pace.wait((SECOND * 3, QUIET), now), Duration::ZERO);
        assert_eq!(pace.wait((WAIT_MAX, Duration::ZERO), now), Duration::ZERO);
    }

    #[test]
    fn scans_leave_the_source_alone_for_most_of_the_time() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let long_ago = (SECOND * 100, SECOND * 100);
        pace.ended(SECOND, true, now);
        assert_eq!(pace.wait(long_ago, now), SECOND * REST_FACTOR);
        pace.ended(SECOND * 1000, true, now);
        assert_eq!(pace.wait(long_ago, now), REST_MAX);
    }

    #[test]
    fn what_fails_is_tried_again_ever_later_until_it_works() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let long_ago = (SECOND * 100, SECOND * 100);
        let mut waits = Vec::new();
        for _ in 0..10 {
            pace.ended(Duration::ZERO, false, now);
            waits.push(pace.wait(long_ago, now));
        }
        assert!(waits.is_sorted() && waits.first() == Some(&RETRY_MIN));
        assert_eq!(waits.last(), Some(&RETRY_MAX));
        pace.ended(Duration::ZERO, true, now);
        assert_eq!(pace.wait(long_ago, now), Duration::ZERO);
        pace.is_busy(now);
        assert_eq!(pace.wait(long_ago, now), QUIET);
    }
}
