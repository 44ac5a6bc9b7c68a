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
