//! Time as an argument, so that tests can hold it still.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::Timestamp;

/// Tells the wall time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The present.
    fn now(&self) -> Timestamp;

    /// The present in nanoseconds since 1970; 0 before.
    fn now_ns(&self) -> u64 {
        let now = self.now();
        u64::try_from(now.secs)
            .unwrap_or(0)
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::from(now.nanos))
    }

    /// The present in seconds since 1970; 0 before.
    fn now_secs(&self) -> u64 {
        u64::try_from(self.now().secs).unwrap_or(0)
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Timestamp {
                secs: since.as_secs().cast_signed(),
                nanos: since.subsec_nanos(),
            },
            Err(before) => Timestamp {
                secs: -before.duration().as_secs().cast_signed() - 1,
                nanos: 0,
            },
        }
    }
}

/// Random bytes for identities, from the kernel.
pub fn random<const N: usize>() -> crate::error::Result<[u8; N]> {
    use std::io::Read;
    let path = "/dev/urandom";
    let mut bytes = [0; N];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(crate::error::Error::io("read", path))?;
    Ok(bytes)
}

/// A time as `YYYY-MM-DDThh:mm:ssZ`. The calendar is Howard Hinnant's `civil_from_days`.
pub fn civil(time: Timestamp) -> String {
    const DAY_SECS: i64 = 86_400;
    let (days, secs) = (
        time.secs.div_euclid(DAY_SECS),
        time.secs.rem_euclid(DAY_SECS),
    );
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        let at = |secs| civil(Timestamp { secs, nanos: 0 });
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(-1), "1969-12-31T23:59:59Z");
        assert_eq!(at(4_102_444_800), "2100-01-01T00:00:00Z");
    }
}
