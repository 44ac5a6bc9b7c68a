//! How patient a circuit breaker is.

use std::time::Duration;

/// When it opens, and how patiently the volume is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BreakerPolicy {
    /// Unreachable answers in a row that open the circuit. A deadline that passed opens it at once.
    pub failures_max: u32,
    /// Calls wait and nothing was heard for so long: the volume is asked whether it is there at all.
    pub quiet_max: Duration,
    /// The same, and it is taken for down.
    pub silence_max: Duration,
    /// Pause before the first look for it; doubles with each further one.
    pub probe_first: Duration,
    /// Longest pause.
    pub probe_max: Duration,
    /// Scatters the pauses. Fixed in tests.
    pub jitter_seed: u64,
}

impl Default for BreakerPolicy {
    /// Three: one answer may be an accident. Ten seconds: longer than a busy server takes for a small thing. Thirty:
    /// servers restart in less.
    fn default() -> BreakerPolicy {
        BreakerPolicy {
            failures_max: 3,
            quiet_max: Duration::from_secs(10),
            silence_max: Duration::from_secs(30),
            probe_first: Duration::from_millis(500),
            probe_max: Duration::from_secs(30),
            jitter_seed: u64::from(std::process::id()),
        }
    }
}
