//! The buckets that this machine knows: `buckets.json` in `/etc/tidefs`.
//!
//! For the whole machine and not for a backup path, because one bucket serves many backup paths, and because a
//! fresh machine, in a disaster, has none. It holds secrets: the file is 0600 in a directory 0700, is rewritten whole
//! by whoever holds the lock beside it, and a damaged one is named and left as it is. What a volume does with a bucket
//! may not enter; nor may anything that prints.

pub mod preset;
mod registry;

use std::sync::Arc;

use vfs::{ErrorClass, S3Config, Spec, Volume};

pub use preset::{Expectation, Preset};
pub use registry::{Bucket, Registry, Use, check_label};

use crate::error::{Error, Result};

/// Opens whatever a SPEC names, also a bucket by its id or label.
pub fn open(spec: &Spec) -> Result<Arc<dyn Volume>> {
    Ok(vfs::open_with(spec, &resolve)?)
}

/// The same for the volume that holds `sentinel`: a bucket is not looked at before that is asked for.
pub fn open_bound(spec: &Spec, sentinel: vfs::Sentinel) -> Result<Arc<dyn Volume>> {
    Ok(vfs::open_bound(spec, sentinel, &resolve)?)
}

/// The bucket with this id or label, as `vfs` asks for it.
pub fn resolve(name: &str) -> vfs::Result<S3Config> {
    let registry = Registry::of_this_machine();
    let found = registry
        .buckets()
        .and_then(|buckets| find(&buckets, name).map(|bucket| bucket.s3.clone()));
    found.map_err(|error| {
        let shown = format!("'{name}'");
        vfs::Error::new(
            ErrorClass::Permanent,
            "use the bucket",
            "",
            &shown,
            error.chain(),
        )
    })
}

/// The bucket with this id or label.
pub fn find<'a>(buckets: &'a [Bucket], name: &str) -> Result<&'a Bucket> {
    let found = buckets
        .iter()
        .find(|bucket| bucket.id == name)
        .or_else(|| buckets.iter().find(|bucket| bucket.label == name));
    found.ok_or_else(|| {
        let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
        Error::Refused(format!(
            "no bucket '{shown}' is known on this machine: tidefs bucket list shows those that are, tidefs bucket add \
             adds one"
        ))
    })
}
