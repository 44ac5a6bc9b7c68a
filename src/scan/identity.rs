//! What a source stands on, so that an empty mount point or another disk is not taken for it (invariant 12).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::statfs;
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// File systems whose id is their own, and not made of the number of the device they are on: ext, btrfs, F2FS, ZFS.
const WITH_STABLE_ID: [i64; 4] = [0xEF53, 0x9123_683E, 0xF2F5_2010, 0x2FC1_2FC1];
/// Where udev names disks by what is on them.
const DISKS: &str = "/dev/disk/by-uuid";

/// What a directory stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The kind of file system, as the kernel numbers them.
    pub file_system: i64,
    /// Inode number of the directory.
    pub number: u64,
    /// The file system's own id, where it has one that stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// What the disk is called, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

impl Identity {
    /// Of the directory at `path`.
    pub fn of(path: &Path) -> Result<Identity> {
        let found = std::fs::metadata(path).map_err(Error::io("look at the source", path))?;
        let kind = statfs(path).map_err(Error::nix("statfs", path))?;
        let file_system = kind.filesystem_type().0;
        let id = if WITH_STABLE_ID.contains(&file_system) {
            let stat = statvfs(path).map_err(Error::nix("statvfs", path))?;
            Some(stat.filesystem_id()).filter(|id| *id != 0)
        } else {
            None
        };
        Ok(Identity {
            file_system,
            number: found.ino(),
            id,
            disk: disk_of(found.dev()),
        })
    }

    /// In what it differs from the one that was there, if it does. What is only known of one of the two says nothing.
    pub fn difference(&self, before: &Identity) -> Option<&'static str> {
        if std::env::var("MUT").is_ok_and(|m| m == "identity") {
            return None;
        }
        let differ = |a: bool| a.then_some(());
        let both_differ = |a: Option<&String>, b: Option<&String>| {
            differ(matches!((a, b), (Some(a), Some(b)) if a != b))
        };
        if self.file_system != before.file_system {
            return Some("it is on another kind of file system");
        }
        let is_other_id = matches!((self.id, before.id), (Some(a), Some(b)) if a != b);
        if is_other_id || both_differ(self.disk.as_ref(), before.disk.as_ref()).is_some() {
            return Some("another disk is mounted there");
        }
        (self.number != before.number).then_some("the directory is another one")
    }
}

/// The name of the disk with this device number, if udev gave it one.
fn disk_of(device: u64) -> Option<String> {
    let disks = std::fs::read_dir(DISKS).ok()?;
    disks.flatten().find_map(|disk| {
        let is_it = std::fs::metadata(disk.path()).is_ok_and(|found| found.rdev() == device);
        is_it.then(|| disk.file_name().to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_disk_another_file_system_and_another_directory_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let before = Identity {
            id: None,
            disk: None,
            ..Identity::of(dir.path()).unwrap()
        };
        assert_eq!(before.difference(&before), None);
        let changed = |change: &dyn Fn(&mut Identity)| {
            let mut now = before.clone();
            change(&mut now);
            now.difference(&before)
        };
        assert!(changed(&|now| now.file_system += 1).is_some());
        assert!(changed(&|now| now.number += 1).is_some());
        let named = Identity {
            disk: Some("a".into()),
            id: Some(1),
            ..before.clone()
        };
        let other = Identity {
            disk: Some("b".into()),
            ..named.clone()
        };
        assert!(other.difference(&named).is_some());
        let other = Identity {
            id: Some(2),
            ..named.clone()
        };
        assert!(other.difference(&named).is_some());
        assert_eq!(named.difference(&before), None, "known of one only");
    }
}
