//! Buckets of S3 servers: how one is named and configured, and the volume in it.
//!
//! - [`config`]: where a bucket is, and who asks; [`url`]: the same in one line, without its secrets;
//! - `bucket`: the volume. It is what the feature `s3` brings; without it buckets can be named and not opened.

pub mod config;
pub mod url;

pub use config::{
    Addressing, ConditionalPut, Credentials, Revealed, S3Config, S3Limits, Secret, StorageClasses,
};
pub use url::S3Url;

#[cfg(feature = "s3")]
mod bucket;

#[cfg(feature = "s3")]
pub use bucket::S3Volume;
