//! What a source stands on: which directory it is, and which file systems a watch of it has to cover.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vfs::MountKind;
use vfs::dir::{MountWithin, mounts_within};

use super::feed::Lost;

/// What our own mounts say they are: no scan enters them.
const OURS: &str = "fuse.tidefs";
/// Mounted when somebody looks, which is not for a watch to do.
const AUTOMOUNT: &str = "autofs";

/// A source, as far as it is watched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its root, absolute and without symbolic links.
    pub root: PathBuf,
    /// What is mounted below is not part of it.
    pub one_file_system: bool,
    /// Below the root, what is no part of it either: the backup path.
    pub skip: Option<PathBuf>,
}

/// What it stands on at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Coverage {
    /// Device and inode of the root.
    identity: (u64, u64),
    /// The mount that holds it, then those below.
    parts: Vec<MountWithin>,
    /// Mounts of ours below the root.
    ours: Vec<PathBuf>,
}

impl Coverage {
    /// Looks. Refused where a watch would not be told of everything.
    pub(super) fn of(place: &Place) -> Result<Coverage, Lost> {
        let root = place.root.as_path();
        let mut parts = mounts_within(root).map_err(Lost::call("list the mounts below", root))?;
        let below = parts.split_off(parts.len().min(1));
        let (ours, below): (Vec<_>, Vec<_>) =
            below.into_iter().partition(|part| part.file_system == OURS);
        if !place.one_file_system {
            parts.extend(below);
        }
        // Before the root is looked at: a hung mount would hold us.
        admit(&parts)?;
        let metadata = fs::symlink_metadata(root).map_err(Lost::call("look at", root))?;
        if !metadata.is_dir() {
            return Err(Lost::Gone(format!("{} is not a directory", root.display())));
        }
        Ok(Coverage {
            identity: (metadata.dev(), metadata.ino()),
            parts,
            ours: ours.into_iter().map(|part| part.place).collect(),
        })
    }

    /// Directories below the root that are not watched.
    pub(super) fn skip(&self, place: &Place) -> BTreeSet<PathBuf> {
        let ours = self.ours.iter().map(|ours| ours.strip_prefix(&place.root));
        let ours = ours.flatten().map(Path::to_owned);
        ours.chain(place.skip.clone()).collect()
    }

    /// A directory of each file system, by which it is reached.
    pub(super) fn entries<'a>(&'a self, root: &'a Path) -> impl Iterator<Item = &'a Path> {
        let below = self.parts.iter().skip(1);
        std::iter::once(root).chain(below.map(|part| part.place.as_path()))
    }

    /// Whether the root is still the directory it was.
    pub(super) fn is_here(&self, root: &Path) -> bool {
        fs::symlink_metadata(root)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
    }
}

fn admit(parts: &[MountWithin]) -> Result<(), Lost> {
    for (n, part) in parts.iter().enumerate() {
        let shown = part.place.display();
        let leave_out = if n == 0 {
            ""
        } else {
            ", or leave it out with --one-file-system"
        };
        if part.kind != MountKind::Disk || part.file_system == AUTOMOUNT {
            let what = &part.file_system;
            return Err(Lost::Refused(format!(
                "{shown} is a mount of type {what}, and what changes there without this kernel's doing is told to \
                 nobody: scan it on a schedule{leave_out}"
            )));
        }
        if let Some(other) = parts
            .iter()
            .take(n)
            .find(|other| other.device == part.device)
        {
            return Err(Lost::Refused(format!(
                "{shown} and {} show the same file system, and a change is told for one of them only: scan it on a \
                 schedule{leave_out}",
                other.place.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(place: &str, file_system: &str, device: &str) -> MountWithin {
        let kind = if file_system == "nfs4" {
            MountKind::Nfs
        } else {
            MountKind::Disk
        };
        MountWithin {
            place: place.into(),
            kind,
            file_system: file_system.into(),
            device: device.into(),
            id: 1,
        }
    }

    #[test]
    fn a_place_that_others_can_change_unseen_is_refused_with_the_reason() {
        let disk = part("/", "ext4", "8:1");
        assert!(admit(&[disk.clone(), part("/srv", "xfs", "8:2")]).is_ok());
        for bad in [
            part("/srv", "nfs4", "0:50"),
            part("/srv", "autofs", "0:51"),
            part("/srv", "ext4", "8:1"),
        ] {
            let error = admit(&[disk.clone(), bad]).unwrap_err().to_string();
            assert!(
                error.contains("/srv") && error.contains("--one-file-system"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_directory_in_the_place_of_another_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            root: dir.path().canonicalize().unwrap().join("source"),
            one_file_system: true,
            skip: None,
        };
        fs::create_dir(&place.root).unwrap();
        let before = Coverage::of(&place).unwrap();
        assert!(before.is_here(&place.root));
        fs::rename(&place.root, place.root.with_extension("old")).unwrap();
        assert!(!before.is_here(&place.root) && Coverage::of(&place).is_err());
        fs::create_dir(&place.root).unwrap();
        assert!(!before.is_here(&place.root));
        assert_ne!(before, Coverage::of(&place).unwrap());
    }
}
