//! Buckets of S3 servers.

pub mod config;
pub mod url;

pub use config::{
    Addressing, ConditionalPut, Credentials, Revealed, S3Config, S3Limits, Secret, StorageClasses,
};
pub use url::S3Url;
