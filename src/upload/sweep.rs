//! What interrupted puts left on the external volume, and when it is looked for.
//!
//! A put that a crash interrupted leaves a file under a temporary name, or an upload in parts that no listing shows and
//! that is billed. Its age alone tells that nobody is at it any more, so that the setting is generous.

use std::time::{Duration, Instant};

use vfs::Volume;

/// What is ours below the root of an external volume. Beside it may lie other volumes.
const BELOW: [&str; 5] = ["accounts/", "items/", "server/", "backupstat/", "probe/"];
/// Longest and shortest pause between two sweeps.
const PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// A sweep that failed is tried again after this, or sooner where they are more frequent.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(600);

/// When the external volume is swept.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sweeps {
    /// How old a leftover has to be; none: never swept.
    pub after: Option<Duration>,
    /// When the next one is due; none: at once.
    pub next: Option<Instant>,
}

impl Sweeps {
    /// The age to sweep with, if a sweep is due.
    pub(super) fn due(&self, now: Instant) -> Option<Duration> {
        self.after
            .filter(|_| self.next.is_none_or(|next| next <= now))
    }

    fn pause(&self, is_done: bool) -> Duration {
        let pause = self.after.unwrap_or(PAUSE_MAX);
        let longest = if is_done {
            PAUSE_MAX
        } else {
            PAUSE_AFTER_FAILURE
        };
        pause.clamp(PAUSE_MIN, longest)
    }

    /// Notes how one ended.
    pub(super) fn ended(&mut self, is_done: bool, now: Instant) {
        self.next = Some(now + self.pause(is_done));
    }
}

/// Sweeps; says whether it was done. What cannot be swept now costs room, and is no reason to stop sending.
pub(super) fn sweep(volume: &dyn Volume, older_than: Duration) -> bool {
    match volume.sweep_temporary(&BELOW, older_than) {
        Ok(0) => true,
        Ok(count) => {
            tracing::info!(%volume, count, "leftovers of interrupted puts were removed");
            true
        }
        Err(error) => {
            tracing::warn!(%volume, error = %error.chain(), "leftovers of interrupted puts stay for now");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_due_at_first_and_then_in_pauses_as_long_as_leftovers_may_be_old() {
        let now = Instant::now();
        let mut sweeps = Sweeps::default();
        assert_eq!(sweeps.due(now), None, "it is switched off");
        let hour = Duration::from_secs(3600);
        sweeps.after = Some(hour);
        assert_eq!(sweeps.due(now), Some(hour));
        sweeps.ended(true, now);
        assert_eq!(sweeps.due(now + hour / 2), None);
        assert_eq!(sweeps.due(now + hour), Some(hour));
        sweeps.ended(false, now);
        assert_eq!(sweeps.due(now + PAUSE_AFTER_FAILURE), Some(hour));
    }
}
