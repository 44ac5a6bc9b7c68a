//! What is mounted where, as the kernel says it in `/proc/self/mountinfo`. Text to values; reads nothing itself.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::volume::MountKind;

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    pub(super) place: PathBuf,
    pub(super) file_system: String,
    pub(super) source: String,
}

/// The mount with the number `id`. Lines that are not as expected are passed over.
pub(super) fn find(mountinfo: &str, id: u64) -> Option<Mount> {
    mountinfo.lines().find_map(|line| {
        let (this, mount) = parse(line)?;
        (this == id).then_some(mount)
    })
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw,errors=continue`; the fields before the lone
/// dash vary in number.
fn parse(line: &str) -> Option<(u64, Mount)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let id = left.next()?.parse().ok()?;
    let mount_point = left.nth(3)?;
    let mut right = right.split(' ');
    let file_system = right.next()?.to_owned();
    let source = right.next().unwrap_or_default();
    let place = PathBuf::from(OsString::from_vec(unescape(mount_point)));
    Some((
        id,
        Mount {
            place,
            file_system,
            source: String::from_utf8_lossy(&unescape(source)).into_owned(),
        },
    ))
}

/// Undoes the kernel's `\040` for blanks, tabs, newlines and backslashes.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = |digit: u8| {
            (b'0'..=b'7')
                .contains(&digit)
                .then(|| u32::from(digit - b'0'))
        };
        let value = match (first, tail) {
            (b'\\', [a, b, c, ..]) => octal(*a)
                .zip(octal(*b))
                .zip(octal(*c))
                .and_then(|((a, b), c)| u8::try_from(a * 64 + b * 8 + c).ok()),
            _ => None,
        };
        if let Some(value) = value {
            bytes.push(value);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    bytes
}

/// The sort of place a file system of this name is.
pub(super) fn kind(file_system: &str) -> MountKind {
    match file_system {
        "nfs" | "nfs4" => MountKind::Nfs,
        "cifs" | "smb3" | "smbfs" => MountKind::Cifs,
        "ceph" | "9p" | "virtiofs" | "glusterfs" | "lustre" | "afs" | "ocfs2" | "gfs2"
        | "beegfs" => MountKind::Network,
        name if name == "fuse" || name == "fuseblk" || name.starts_with("fuse.") => MountKind::Fuse,
        _ => MountKind::Disk,
    }
}

/// Whether a rename is a copy and a delete behind the scenes: mounts of object stores.
pub(super) fn renames_by_copying(file_system: &str) -> bool {
    const BUCKETS: [&str; 8] = [
        "s3fs",
        "goofys",
        "geesefs",
        "rclone",
        "gcsfuse",
        "mountpoint-s3",
        "blobfuse",
        "blobfuse2",
    ];
    file_system
        .strip_prefix("fuse.")
        .is_some_and(|name| BUCKETS.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 28 0:21 / /proc rw,relatime - proc proc rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
nonsense
95 28 0:52 /export /mnt/my\\040nas rw,relatime shared:5 master:2 - nfs4 nas:/vol\\134x rw,vers=4.2
96 28 0:53 / /mnt/raw rw - fuse.s3fs s3fs rw
";

    #[test]
    fn a_mount_is_found_by_its_number_with_its_escapes_undone() {
        let mount = find(TEXT, 95).unwrap();
        assert_eq!(mount.place, PathBuf::from("/mnt/my nas"));
        assert_eq!(
            (mount.file_system.as_str(), mount.source.as_str()),
            ("nfs4", "nas:/vol\\x")
        );
        assert_eq!(find(TEXT, 28).unwrap().source, "/dev/vda");
        assert_eq!(find(TEXT, 97), None);
    }

    #[test]
    fn broken_lines_are_survived() {
        for line in [
            "",
            " - ",
            "1 - ",
            "1 2 3 4 - x",
            "1 2 3 4 5 - ",
            "x 2 3 4 5 - ext4 y rw",
            "1 2 3 4 \\9\\ - e s",
        ] {
            find(line, 1);
        }
    }

    #[test]
    fn the_kinds_are_told_apart() {
        assert_eq!(kind("nfs4"), MountKind::Nfs);
        assert_eq!(kind("ext4"), MountKind::Disk);
        assert_eq!(kind("fuse.sshfs"), MountKind::Fuse);
        assert!(
            renames_by_copying("fuse.s3fs")
                && !renames_by_copying("fuse.sshfs")
                && !renames_by_copying("s3fs")
        );
    }
}
