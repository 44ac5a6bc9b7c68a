//! How a volume is known to be the right one (invariant 7).
//!
//! A path says where to look, not what is there: a mount point without its mount is an empty directory, and a swapped
//! disk is somebody else's. So the engine names an object that must be there, the *sentinel*, and says what it must
//! contain. What the bytes mean is the engine's business; this crate only fetches them and asks.

use std::fmt;
use std::sync::Arc;

use crate::error::{At, Result};
use crate::key::ObjectKey;

/// Longest sentinel that is read: what lies at its key on a foreign disk may be of any size.
pub const SENTINEL_LEN_MAX: u64 = 1 << 20;

type Check = dyn Fn(&[u8]) -> std::result::Result<(), String> + Send + Sync;

/// An object by which a volume is recognised.
#[derive(Clone)]
pub struct Sentinel {
    key: ObjectKey,
    check: Arc<Check>,
}

impl Sentinel {
    /// The object `key`; `check` says of its bytes whether this is the right volume, and if not, why not.
    pub fn new(
        key: ObjectKey,
        check: impl Fn(&[u8]) -> std::result::Result<(), String> + Send + Sync + 'static,
    ) -> Sentinel {
        Sentinel {
            key,
            check: Arc::new(check),
        }
    }

    /// The object `key` with exactly these bytes.
    pub fn exact(key: ObjectKey, expected: impl Into<Vec<u8>>) -> Sentinel {
        let expected: Vec<u8> = expected.into();
        Sentinel::new(key, move |found| {
            if found == expected.as_slice() {
                Ok(())
            } else {
                Err("its content is another".to_owned())
            }
        })
    }

    /// Where it lies.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Judges what was found; `None` if there was no such object.
    pub(crate) fn judge(&self, at: At<'_>, found: Option<&[u8]>) -> Result<()> {
        let Some(bytes) = found else {
            return Err(at.wrong_volume(format!(
                "{} is missing, so this is not the volume it was: mount the right one; nothing was written",
                self.key
            )));
        };
        (self.check)(bytes).map_err(|why| {
            at.wrong_volume(format!(
                "{} says that this is another volume ({why}): mount the right one; nothing was written",
                self.key
            ))
        })
    }
}

impl fmt::Debug for Sentinel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sentinel").field(&self.key).finish()
    }
}
