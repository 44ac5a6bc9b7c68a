//! tidefs: a FUSE-aware storage engine for backup volumes.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::cast_possible_truncation,
        reason = "a test fails by panicking, and its numbers are small"
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

pub mod buckets;
pub mod fetch;
pub mod ingest;
pub mod upload;

pub mod volume;

pub mod fuse;
pub mod maintain;
pub mod restore;
pub mod scan;

pub mod daemon;

pub mod cli;
