//! What the index says when it cannot be trusted. The remedy is always the same: serve from segments
//! and frames, and refill (invariant 4).

use crate::error::Error;

/// The index, or a part of it, is lost or damaged. Nothing was answered from it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the index cannot be trusted: {reason}")]
pub struct IndexDoubt {
    /// What was found.
    pub reason: String,
}

/// Why the index could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Refill it.
    #[error(transparent)]
    Doubt(#[from] IndexDoubt),
    /// What was asked cannot be done, or the disk failed outside the store; the index itself is as it was.
    #[error(transparent)]
    Engine(#[from] Error),
}

impl IndexDoubt {
    pub(super) fn new(reason: impl Into<String>) -> IndexDoubt {
        IndexDoubt {
            reason: reason.into(),
        }
    }
}

impl From<IndexDoubt> for Error {
    fn from(doubt: IndexDoubt) -> Error {
        Error::corrupt("the index", 0, doubt.reason)
    }
}

impl From<IndexError> for Error {
    fn from(error: IndexError) -> Error {
        match error {
            IndexError::Doubt(doubt) => doubt.into(),
            IndexError::Engine(error) => error,
        }
    }
}
