//! Whether the engine may still acknowledge anything.
//!
//! After a failed write or sync, or a panic in an engine thread, what is on the disk is not known. Nothing
//! more is acknowledged until the volume is opened again and has recovered.

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// The first failure, if there was one.
#[derive(Debug, Default)]
pub struct Health {
    failure: OnceLock<String>,
}

impl Health {
    /// Refuses after a failure.
    pub fn check(&self) -> Result<()> {
        self.failure
            .get()
            .map_or(Ok(()), |failure| Err(Error::Poisoned(failure.clone())))
    }

    /// Notes a failure; the first one counts. Returns what to answer.
    pub fn fail(&self, error: Error) -> Error {
        let failure = self.failure.get_or_init(|| {
            tracing::error!(error = %error.chain(), "the engine stops: nothing more is acknowledged");
            error.chain()
        });
        Error::Poisoned(failure.clone())
    }

    /// The failure.
    pub fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }
}
