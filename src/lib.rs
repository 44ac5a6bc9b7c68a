//! tidefs: a FUSE-aware storage engine for backup volumes.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        reason = "a test fails by panicking"
    )
)]

pub mod clock;
pub mod error;
pub mod failpoint;
pub mod types;

pub mod chunk;
pub mod format;

pub mod journal;
pub mod meta;
pub mod pack;

pub mod fetch;
pub mod ingest;
pub mod upload;

pub mod volume;

pub mod fuse;

pub mod daemon;

pub mod cli;
