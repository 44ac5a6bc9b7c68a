//! tidefs: a FUSE-aware storage engine for backup volumes.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        reason = "a test fails by panicking"
    )
)]

pub mod error;
pub mod types;

pub mod chunk;
pub mod format;
pub mod fuse;
pub mod meta;
pub mod pack;
pub mod volume;
