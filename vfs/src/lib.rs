//! Places that keep objects.
/// Placeholder of the error type.
#[derive(Debug, thiserror::Error)]
#[error("external volume error")]
pub struct Error;
