//! Which mounts a tree reaches over: the one it is in, and those below.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::volume::MountKind;

use super::mountinfo::{self, Mount};

/// The table of mounts of this process. Poll it for an exceptional condition to hear of changes.
pub const MOUNTINFO: &str = "/proc/self/mountinfo";

/// A mount that a tree reaches into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountWithin {
    /// Where it stands: at or above the root of the tree for the first, below it for the others.
    pub place: PathBuf,
    /// What sort of place it is.
    pub kind: MountKind,
    /// Its name, as the kernel has it.
    pub file_system: String,
    /// Major and minor number of the file system.
    pub device: String,
    /// The kernel's number for the mount, used again only after its end.
    pub id: u64,
}

/// The mount that holds `root`, a path without symbolic links, and those below it. Touches none of them.
pub fn mounts_within(root: &Path) -> io::Result<Vec<MountWithin>> {
    Ok(within(&fs::read(MOUNTINFO)?, root))
}

fn within(table: &[u8], root: &Path) -> Vec<MountWithin> {
    let below = mountinfo::all(table)
        .into_iter()
        .filter(|mount| mount.place.starts_with(root) && mount.place != root);
    let mut found: Vec<MountWithin> = mountinfo::holding(table, root)
        .into_iter()
        .map(from)
        .collect();
    for mount in below.map(from) {
        // Of two at one place the later one is seen.
        found.retain(|other| other.place != mount.place);
        found.push(mount);
    }
    found
}

fn from(mount: Mount) -> MountWithin {
    MountWithin {
        kind: mountinfo::kind(&mount.file_system),
        id: mount.id(),
        place: mount.place,
        file_system: mount.file_system,
        device: mount.device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
1 0 0:1 / / rw - ext4 a rw
2 1 0:2 / /home rw - xfs b rw
3 2 0:3 / /home/alice/nas rw - nfs4 c rw
4 3 0:4 / /home/alice/nas rw - tmpfs d rw
5 1 0:5 / /homes rw - tmpfs e rw
";

    fn places(root: &str) -> Vec<(String, String)> {
        within(TABLE, Path::new(root))
            .into_iter()
            .map(|mount| (mount.place.display().to_string(), mount.file_system))
            .collect()
    }

    fn pair(place: &str, file_system: &str) -> (String, String) {
        (place.to_owned(), file_system.to_owned())
    }

    #[test]
    fn a_tree_reaches_over_the_mount_it_is_in_and_those_that_are_seen_below() {
        let nas = pair("/home/alice/nas", "tmpfs");
        assert_eq!(places("/home"), [pair("/home", "xfs"), nas.clone()]);
        assert_eq!(places("/home/alice"), [pair("/home", "xfs"), nas]);
        assert_eq!(places("/home/bob"), [pair("/home", "xfs")]);
        assert_eq!(places("/srv"), [pair("/", "ext4")]);
    }
}
