//! How fast data leaves for the external volume, how fast what is unsent grows, and what follows from it:
//! how fast writers may be, and when it is full. Numbers only; time comes in as an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The rate at which data leaves is taken over this: a pack is noted as sent all at once, and on a slow
/// line that is seldom.
const DRAIN_WINDOW: Duration = Duration::from_secs(60);
/// The forecast looks back this far.
const FORECAST_WINDOW: Duration = Duration::from_secs(600);
/// A shorter look back says nothing about hours.
const FORECAST_MIN: Duration = Duration::from_secs(10);
/// Writers are slowed above this share of the budget.
const SOFT_PERCENT: u64 = 80;
/// Writers are never slower than this ..
const FLOOR_BYTES_PER_SEC: u64 = 1 << 20;
/// .. nor so slow that what is left lasts longer: who is slowed for hours looks hung.
const FLOOR_LASTS_SECS: u64 = 3600;

/// Above this much, writers are slowed.
pub fn soft_limit(budget: u64) -> u64 {
    u64::try_from(u128::from(budget) * u128::from(SOFT_PERCENT) / 100).unwrap_or(budget)
}

/// How many bytes a second writers may bring in all together; `None` while they need not be slowed.
///
/// A hyperbola: unlimited at the soft limit, exactly the drain rate halfway between it and the budget, so
/// that writers who never stop settle there; above, less than leaves. It ends at a floor: a volume that
/// takes nothing slows writers, and does not stop them before the budget does.
pub fn allowed_rate(unsent: u64, budget: u64, drain_per_sec: u64) -> Option<u64> {
    let soft = soft_limit(budget);
    let over = unsent.checked_sub(soft).filter(|over| *over > 0)?;
    let span = (budget - soft).max(1);
    let floor = FLOOR_BYTES_PER_SEC.max(span / FLOOR_LASTS_SECS);
    let base = u128::from(drain_per_sec.max(floor));
    let left = u128::from(span.saturating_sub(over));
    let rate = base * left / u128::from(over);
    Some(u64::try_from(rate).unwrap_or(u64::MAX).max(floor))
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    unsent: u64,
    sent: u64,
}

/// The recent past, a sample a second.
#[derive(Debug, Default)]
pub struct FlowMeter {
    samples: VecDeque<Sample>,
}

impl FlowMeter {
    /// At `at`, `unsent` bytes waited and `sent` had left since the beginning.
    pub fn sample(&mut self, at: Instant, unsent: u64, sent: u64) {
        self.samples.push_back(Sample { at, unsent, sent });
        while self
            .samples
            .front()
            .is_some_and(|first| at.saturating_duration_since(first.at) > FORECAST_WINDOW)
        {
            self.samples.pop_front();
        }
    }

    /// The newest sample, and the oldest one within `window` of it.
    fn ends(&self, window: Duration) -> Option<(Sample, Sample)> {
        let last = *self.samples.back()?;
        let first = *self
            .samples
            .iter()
            .find(|sample| last.at.saturating_duration_since(sample.at) <= window)?;
        Some((first, last))
    }

    /// Bytes that leave in a second.
    pub fn drain_per_sec(&self) -> u64 {
        let Some((first, last)) = self.ends(DRAIN_WINDOW) else {
            return 0;
        };
        let took = last.at.saturating_duration_since(first.at);
        per_sec(last.sent.saturating_sub(first.sent), took)
    }

    /// Bytes by which what is unsent grows in a second; negative where it shrinks. `None` where not enough
    /// was seen.
    pub fn growth_per_sec(&self) -> Option<i64> {
        let (first, last) = self.ends(FORECAST_WINDOW)?;
        let took = last.at.saturating_duration_since(first.at);
        if took < FORECAST_MIN {
            return None;
        }
        let signed = |bytes| i64::try_from(per_sec(bytes, took)).unwrap_or(i64::MAX);
        Some(if last.unsent >= first.unsent {
            signed(last.unsent - first.unsent)
        } else {
            -signed(first.unsent - last.unsent)
        })
    }

    /// How long it takes until `left` bytes are used up, at this rate; `None` if it does not grow.
    pub fn time_to_full(&self, left: u64) -> Option<Duration> {
        let growth = u64::try_from(self.growth_per_sec()?).ok()?;
        left.checked_div(growth).map(Duration::from_secs)
    }
}

fn per_sec(bytes: u64, took: Duration) -> u64 {
    let millis = took.as_millis();
    if millis == 0 {
        return 0;
    }
    u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn writers_are_slowed_toward_the_drain_rate_and_never_stopped() {
        let budget = 1000 * MIB;
        let rate = |unsent, drain| allowed_rate(unsent * MIB, budget, drain * MIB);
        assert_eq!(rate(0, 50), None);
        assert_eq!(rate(800, 50), None);
        assert!(rate(801, 50) > Some(1000 * MIB));
        assert_eq!(rate(900, 50), Some(50 * MIB), "halfway, as much as leaves");
        assert!(rate(950, 50) < Some(50 * MIB));
        for unsent in [950, 999, 1000, 1200] {
            assert!(rate(unsent, 0) >= Some(MIB), "at {unsent}");
        }
        let mut before = u64::MAX;
        for unsent in 801..1100 {
            let now = rate(unsent, 7).unwrap();
            assert!(now <= before, "at {unsent}");
            before = now;
        }
        // A dead volume: what is left of a large budget lasts an hour, not a month.
        let large = allowed_rate(10_000_000 * MIB, 10_000_000 * MIB, 0).unwrap();
        assert_eq!(large, 2_000_000 * MIB / 3600);
        assert_eq!(allowed_rate(5, 0, 0), Some(MIB));
        assert_eq!(
            allowed_rate(u64::MAX, u64::MAX, u64::MAX).map(|_| ()),
            Some(())
        );
    }

    #[test]
    fn the_forecast_follows_the_last_minutes() {
        let start = Instant::now();
        let mut meter = FlowMeter::default();
        assert_eq!((meter.drain_per_sec(), meter.growth_per_sec()), (0, None));
        // Ten minutes in which 10 MiB come and 8 leave each second, then an outage of an hour.
        for secs in 0..600 {
            meter.sample(
                start + Duration::from_secs(secs),
                2 * MIB * secs,
                8 * MIB * secs,
            );
        }
        assert_eq!(meter.drain_per_sec(), 8 * MIB);
        assert_eq!(
            meter.time_to_full(2 * MIB * 3600),
            Some(Duration::from_secs(3600))
        );
        for secs in 600..4200 {
            let unsent = 1200 * MIB + 10 * MIB * (secs - 600);
            meter.sample(start + Duration::from_secs(secs), unsent, 4800 * MIB);
        }
        assert_eq!(meter.drain_per_sec(), 0);
        assert_eq!(meter.growth_per_sec(), Some((10 * MIB).cast_signed()));
        assert!(meter.samples.len() <= 601);
        // It drains: there is no end in sight.
        for secs in 4200..5000 {
            meter.sample(
                start + Duration::from_secs(secs),
                MIB * (5000 - secs),
                9000 * MIB,
            );
        }
        assert!(meter.growth_per_sec() < Some(0));
        assert_eq!(meter.time_to_full(MIB), None);
    }
}
