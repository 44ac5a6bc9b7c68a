//! What each volume in a bucket takes: one listing of everything, summed up by prefix.

use std::collections::BTreeMap;

use serde::Serialize;
use vfs::{ObjectKey, Volume, VolumeExt};

use crate::error::Result;
use crate::format::record::{IDENTITY_NAME, Identity};

/// Longest identity that is read.
const IDENTITY_LEN_MAX: u64 = 1 << 20;

/// What a bucket holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// By prefix.
    pub volumes: Vec<VolumeUsage>,
    /// Objects that are no volume's.
    pub other_objects: u64,
    /// Their bytes.
    pub other_bytes: u64,
}

/// What a volume takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeUsage {
    /// Below which prefix of the bucket it is.
    pub prefix: String,
    /// Its UUID; none if its identity cannot be read.
    pub volume: Option<String>,
    /// Who owned it first.
    pub owner: Option<String>,
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The prefix of the volume that the object `key` is of, by the shape of its name.
pub fn prefix_of(key: &str) -> Option<&str> {
    let mut at = 0;
    for part in key.split('/') {
        if is_own(key.get(at..)?) {
            return key.get(..at.saturating_sub(1));
        }
        at += part.len() + 1;
    }
    None
}

/// Whether a volume calls an object so.
fn is_own(name: &str) -> bool {
    let parts: Vec<&str> = name.splitn(4, '/').collect();
    match parts[..] {
        ["items", shard, pack] => shard.len() == 2 && pack.strip_suffix(".pack").is_some(),
        ["accounts", segment] => segment.strip_suffix(".seg").is_some(),
        ["server", "volume.json"] => true,
        ["server", "epochs" | "claims" | "attaching", object] => {
            object.strip_suffix(".json").is_some()
        }
        ["server", "config", _] | ["backupstat", ..] => parts.len() > 1,
        _ => false,
    }
}

/// Lists everything on `volume` and sums it up.
pub fn usage(volume: &dyn Volume) -> Result<Usage> {
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut usage = Usage::default();
    volume.for_each("", |meta| -> Result<()> {
        if let Some(prefix) = prefix_of(meta.key.as_str()) {
            // Millions of objects, few prefixes.
            if !sums.contains_key(prefix) {
                sums.insert(prefix.to_owned(), (0, 0));
            }
            if let Some((objects, bytes)) = sums.get_mut(prefix) {
                *objects += 1;
                *bytes += meta.len;
            }
        } else {
            usage.other_objects += 1;
            usage.other_bytes += meta.len;
        }
        Ok(())
    })?;
    for (prefix, (objects, bytes)) in sums {
        let identity = identity(volume, &prefix);
        usage.volumes.push(VolumeUsage {
            prefix,
            volume: identity.as_ref().map(|identity| identity.volume.clone()),
            owner: identity.map(|identity| identity.owner),
            objects,
            bytes,
        });
    }
    Ok(usage)
}

fn identity(volume: &dyn Volume, prefix: &str) -> Option<Identity> {
    let name = if prefix.is_empty() {
        IDENTITY_NAME.to_owned()
    } else {
        format!("{prefix}/{IDENTITY_NAME}")
    };
    let bytes = volume
        .get_whole(&ObjectKey::new(name).ok()?, IDENTITY_LEN_MAX)
        .ok()?;
    Identity::parse(IDENTITY_NAME, &bytes).ok()
}

#[cfg(test)]
mod tests {
    use vfs::{Body, MemoryVolume, Precondition};

    use super::*;

    #[test]
    fn a_prefix_ends_where_a_volumes_own_names_begin() {
        assert_eq!(prefix_of("items/ab/x.pack"), Some(""));
        assert_eq!(prefix_of("h/server/epochs/1-2.json"), Some("h"));
        assert_eq!(prefix_of("host-7/server/volume.json"), Some("host-7"));
        assert_eq!(prefix_of("a/b/accounts/x.seg"), Some("a/b"));
        for other in [
            "readme",
            "a/items",
            "photos/2020/x",
            "myitems/ab/x.pack",
            "app/server/x",
        ] {
            assert_eq!(prefix_of(other), None, "{other}");
        }
    }

    #[test]
    fn every_object_is_counted_once() {
        let volume = MemoryVolume::new();
        for (key, len) in [
            ("a/items/00/x.pack", 5),
            ("a/server/volume.json", 3),
            ("b/items/00/x.pack", 7),
            ("readme", 1),
        ] {
            let key = ObjectKey::new(key).unwrap();
            volume
                .put(&key, Body::Bytes(&vec![0; len]), Precondition::None)
                .unwrap();
        }
        let usage = usage(&volume).unwrap();
        let sums: Vec<_> = usage
            .volumes
            .iter()
            .map(|one| (one.prefix.as_str(), one.objects, one.bytes))
            .collect();
        assert_eq!(sums, [("a", 2, 8), ("b", 1, 7)]);
        assert_eq!((usage.other_objects, usage.other_bytes), (1, 1));
    }
}
