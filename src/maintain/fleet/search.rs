//! Finding volumes: by walking directories, or by hopping through the listing of a bucket.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vfs::{ObjectKey, Spec, Volume};

use super::Found;
use crate::buckets;
use crate::error::{Error, Result};
use crate::format::record::{EPOCHS_PREFIX, IDENTITY_NAME};
use crate::maintain::usage::prefix_of;

/// How far below a directory volumes are looked for: site/server/volume.
const DEPTH_MAX: usize = 4;
/// Directories that are looked into: somebody's home is not a fleet.
const DIRS_MAX: usize = 100_000;
/// Objects listed at once, at least and at most. Few behind a volume, which is left behind by one hop; more where
/// nothing is found, up to what S3 gives in one answer.
const PAGE_LEN_MIN: NonZeroUsize = NonZeroUsize::new(4).unwrap();
const PAGE_LEN_MAX: usize = 1000;
/// Sorts behind every name that a volume has, below the same prefix.
const BEHIND: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";

/// Every volume at or below `spec`.
pub(super) fn search(spec: &Spec) -> Result<Vec<Found>> {
    match spec {
        Spec::Dir(path) | Spec::Local(path) => directories(path)?
            .into_iter()
            .map(|path| {
                let spec = Spec::Dir(path);
                Ok(Found {
                    place: spec.to_string(),
                    volume: buckets::open(&spec)?,
                    below: String::new(),
                })
            })
            .collect(),
        _ => {
            let volume = buckets::open(spec)?;
            let prefixes = prefixes(&*volume)?;
            Ok(prefixes
                .into_iter()
                .map(|prefix| found_below(spec, &volume, &prefix))
                .collect())
        }
    }
}

fn found_below(spec: &Spec, volume: &Arc<dyn Volume>, prefix: &str) -> Found {
    let text = spec.to_string();
    let (place, query) = text
        .split_once('?')
        .map_or((&*text, None), |(place, query)| (place, Some(query)));
    let mut place = place.trim_end_matches('/').to_owned();
    let mut below = String::new();
    if !prefix.is_empty() {
        place = format!("{place}/{prefix}");
        below = format!("{prefix}/");
    }
    if let Some(query) = query {
        place = format!("{place}?{query}");
    }
    Found {
        place,
        volume: Arc::clone(volume),
        below,
    }
}

/// The directories at or below `root` that are volumes, or were.
fn directories(root: &Path) -> Result<Vec<PathBuf>> {
    // The error that tells an unmounted disk from an empty one.
    drop(buckets::open(&Spec::Dir(root.to_owned()))?);
    let mut found = Vec::new();
    let mut waiting = vec![(root.to_owned(), 0)];
    let mut looked_into = 0;
    while let Some((dir, depth)) = waiting.pop() {
        if dir.join(IDENTITY_NAME).exists() || dir.join(EPOCHS_PREFIX).is_dir() {
            found.push(dir);
            continue;
        }
        if depth == DEPTH_MAX {
            continue;
        }
        looked_into += 1;
        if looked_into > DIRS_MAX {
            return Err(Error::Refused(format!(
                "there are over {DIRS_MAX} directories below {}: name the one whose volumes are meant",
                root.display()
            )));
        }
        let entries = fs::read_dir(&dir).map_err(Error::io("list", &dir))?;
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &dir))?;
            // Not through links: they may lead around in a circle.
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let name = entry.file_name();
            let is_hidden = name.to_string_lossy().starts_with('.');
            if is_dir && !is_hidden && name != "lost+found" {
                waiting.push((entry.path(), depth + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The prefixes of `volume` that are volumes, or were: by name alone, and without walking through any of them.
fn prefixes(volume: &dyn Volume) -> Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let mut after: Option<ObjectKey> = None;
    let mut limit = PAGE_LEN_MIN;
    loop {
        let page = volume.list("", after.as_ref(), limit)?;
        let mut hop = None;
        for meta in &page.objects {
            let key = meta.key.as_str();
            hop = prefix_of(key).map(|prefix| behind(key, prefix));
            if let Some(prefix) = prefix_of(key)
                && !found.iter().any(|known| known == prefix)
            {
                found.push(prefix.to_owned());
            }
        }
        let Some(last) = page.objects.last().filter(|_| page.more) else {
            found.sort();
            return Ok(found);
        };
        let next = if let Some(hop) = hop {
            limit = PAGE_LEN_MIN;
            ObjectKey::new(hop)?
        } else {
            let wider = limit.get().saturating_mul(2).min(PAGE_LEN_MAX);
            limit = NonZeroUsize::new(wider).unwrap_or(PAGE_LEN_MIN);
            last.key.clone()
        };
        if after.as_ref().is_some_and(|after| next <= *after) {
            let object = volume.to_string();
            return Err(Error::corrupt(
                object,
                0,
                "its listing does not advance: the volume is faulty",
            ));
        }
        after = Some(next);
    }
}

/// A key behind the volume at `prefix`; behind one of its directories, where it has the whole bucket and others may
/// lie between them.
fn behind(key: &str, prefix: &str) -> String {
    let dir = if prefix.is_empty() {
        key.split('/').next().unwrap_or(key)
    } else {
        prefix
    };
    format!("{dir}/{BEHIND}")
}

#[cfg(test)]
mod tests {
    use vfs::{Body, MemoryVolume, Precondition};

    use super::*;

    fn put(volume: &dyn Volume, name: &str) {
        let key = ObjectKey::new(name).unwrap();
        volume
            .put(&key, Body::Bytes(b"x"), Precondition::None)
            .unwrap();
    }

    #[test]
    fn volumes_are_found_in_a_bucket_whatever_lies_between_them() {
        let volume = MemoryVolume::new();
        assert_eq!(prefixes(&volume).unwrap(), [""; 0]);
        for n in 0..300 {
            put(&volume, &format!("photos/{n:04}.jpg"));
            put(
                &volume,
                &format!("host-2/items/{:02x}/{n:032x}.pack", n % 256),
            );
        }
        for name in ["host-1", "host-2", "host-3", "sites/berlin/host-4"] {
            put(&volume, &format!("{name}/server/volume.json"));
            put(&volume, &format!("{name}/server/epochs/1-2.json"));
        }
        // Without an identity, and found all the same.
        put(&volume, "torn/items/00/00.pack");
        let expected = ["host-1", "host-2", "host-3", "sites/berlin/host-4", "torn"];
        assert_eq!(prefixes(&volume).unwrap(), expected);
    }

    #[test]
    fn a_bucket_that_is_one_volume_is_found_once() {
        let volume = MemoryVolume::new();
        for n in 0..50 {
            put(&volume, &format!("items/{n:02x}/{n:032x}.pack"));
            put(&volume, &format!("accounts/{n}-1.seg"));
        }
        put(&volume, "server/volume.json");
        assert_eq!(prefixes(&volume).unwrap(), [""]);
    }
}
