//! Places that keep objects: the external volumes of tidefs.
//!
//! This crate sees keys and bytes and nothing else: no blob, no inode, no epoch may enter. Its centre is one trait,
//! [`Volume`], shaped like an object store and not like a file system: whole objects appear atomically under a key, are
//! read by range, and are never modified. It is synchronous on purpose; whoever calls decides on which thread to wait.
//!
//! In reading order:
//!
//! - [`key`]: what an object may be called; [`error`]: what can go wrong, and what callers match on;
//! - [`volume`]: the trait and the small types it speaks in; [`identity`]: how a volume is known to be the right one;
//! - the kinds: [`memory`] (the reference), [`dir`] (any mounted directory, also as `local`), [`isolate`] (a directory
//!   whose system calls another process makes), [`s3`] (buckets);
//! - [`layer`]: decorators that work over every kind: retry, a circuit breaker, limits of bandwidth and requests, and
//!   faults for tests;
//! - [`bridge`]: any volume as files and directories;
//! - [`spec`]: from what the operator typed to an open volume; [`testkit`]: the contract as code.
//!
//! What a volume does *not* do: cache, compress, encrypt, checksum, or count references. A system call of [`dir`] on a
//! hung mount hangs: whoever must not wait for that uses [`isolate`].

#![warn(missing_docs)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        reason = "a test fails by panicking"
    )
)]

pub mod bridge;
pub mod dir;
pub mod error;
pub mod identity;
pub mod isolate;
pub mod key;
pub mod layer;
pub mod memory;
pub mod s3;
pub mod spec;
pub mod testkit;
pub mod volume;

pub use dir::DirVolume;
pub use error::{Error, ErrorCase, ErrorClass, Result};
pub use identity::Sentinel;
pub use isolate::IsolatedDir;
pub use key::ObjectKey;
pub use layer::breaker::{Breaker, BreakerPolicy, Circuit, Guarded};
pub use layer::faulty::{Fault, FaultControls, Faulty, Op};
pub use layer::limit::{LimitHandle, Limited};
pub use layer::retry::{Retry, RetryPolicy, StopSignal};
pub use layer::timetable::{LimitPlan, Limits, Timetable};
pub use memory::MemoryVolume;
pub use s3::{S3Config, Secret};
pub use spec::{Resolver, Spec, open, open_bound, open_with};
pub use volume::{
    Body, BucketProfile, Capabilities, Likeness, Meta, MountKind, Page, Precondition, Space,
    Volume, VolumeExt,
};
