//! What is mounted where, as the kernel says it in `/proc/self/mountinfo`, and what should be, as `/etc/fstab` says it.
//! Text to values; reads nothing itself, so that a hung mount cannot hold it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::volume::MountKind;

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    id: u64,
    parent: u64,
    /// Major and minor number.
    pub(super) device: String,
    pub(super) place: PathBuf,
    pub(super) file_system: String,
    pub(super) source: String,
    /// Of the mount and of its file system, each once.
    pub(super) options: Vec<String>,
}

impl Mount {
    /// For where the kernel does not say.
    pub(super) fn unknown() -> Mount {
        Mount {
            id: 0,
            parent: 0,
            device: String::new(),
            place: PathBuf::new(),
            file_system: "unknown".to_owned(),
            source: String::new(),
            options: Vec::new(),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn has(&self, option: &str) -> bool {
        self.options.iter().any(|has| has == option)
    }
}

/// All mounts, in the order of the table. Lines that are not as expected are passed over.
pub(super) fn all(mountinfo: &[u8]) -> Vec<Mount> {
    lines(mountinfo).filter_map(parse).collect()
}

/// The mount with the number `id`. Lines that are not as expected are passed over.
pub(super) fn find(mountinfo: &[u8], id: u64) -> Option<Mount> {
    lines(mountinfo)
        .filter_map(parse)
        .find(|mount| mount.id == id)
}

/// The mount that one comes into by walking to `path`, which has no symbolic link in it.
///
/// Walked as the kernel does: from the root, into whatever stands on the way. The longest matching mount point alone
/// would find one that a later mount above it hides.
pub(super) fn holding(mountinfo: &[u8], path: &Path) -> Option<Mount> {
    let mounts: Vec<Mount> = lines(mountinfo).filter_map(parse).collect();
    let is_known = |id: u64| mounts.iter().any(|mount| mount.id == id);
    let mut here = mounts
        .iter()
        .find(|mount| mount.place == Path::new("/") && !is_known(mount.parent))
        .or_else(|| mounts.iter().find(|mount| mount.place == Path::new("/")))?;
    // Each step goes down one mount, so there are no more steps than mounts, whatever the text says.
    for _ in 0..mounts.len() {
        let below = mounts.iter().filter(|mount| {
            mount.parent == here.id
                && mount.id != here.id
                && path.starts_with(&mount.place)
                && mount.place.starts_with(&here.place)
        });
        match below.min_by_key(|mount| mount.place.components().count()) {
            Some(mount) => here = mount,
            None => break,
        }
    }
    Some(here.clone())
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw,errors=continue`; the fields before the lone
/// dash vary in number.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || {
        std::str::from_utf8(fields.next()?)
            .ok()?
            .parse::<u64>()
            .ok()
    };
    let (id, parent) = (number()?, number()?);
    let device = text(fields.next()?);
    let place = unescape(fields.nth(1)?);
    let own_options = fields.next()?;
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let file_system = text(rest.next()?);
    let source = text(rest.next().unwrap_or_default());
    let mut options: Vec<String> = Vec::new();
    for option in [own_options, rest.next().unwrap_or_default()]
        .into_iter()
        .flat_map(|list| list.split(|byte| *byte == b','))
        .filter(|option| !option.is_empty())
        .map(text)
    {
        if !options.contains(&option) {
            options.push(option);
        }
    }
    Some(Mount {
        id,
        parent,
        device,
        place: PathBuf::from(OsString::from_vec(place)),
        file_system,
        source,
        options,
    })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// What the operator wants mounted, by a line of fstab.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) place: PathBuf,
    pub(super) file_system: String,
    pub(super) source: String,
}

/// The line of fstab that is to bring the mount at or nearest above `path`; the root's own does not count, for that is
/// always there. Also lines with `noauto`: somebody is to mount them by hand.
pub(super) fn wanted(fstab: &[u8], path: &Path) -> Option<Wanted> {
    let all = lines(fstab).filter_map(parse_wanted);
    all.filter(|wanted| wanted.place != Path::new("/") && path.starts_with(&wanted.place))
        .max_by_key(|wanted| wanted.place.components().count())
}

/// `nas:/export /mnt/nas nfs rw,hard 0 0`, blanks of any number between the fields.
fn parse_wanted(line: &[u8]) -> Option<Wanted> {
    let mut fields = line
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty());
    let source = fields.next().filter(|source| !source.starts_with(b"#"))?;
    let place = unescape(fields.next()?);
    let file_system = text(fields.next()?);
    // Swap and the like have no place: "none" or "swap".
    if !place.starts_with(b"/") || file_system == "swap" {
        return None;
    }
    // Through the components: a trailing slash is no part of the place.
    let place = PathBuf::from(OsString::from_vec(place))
        .components()
        .collect();
    Some(Wanted {
        place,
        file_system,
        source: text(source),
    })
}

/// Undoes the `\040` of the kernel and of fstab for blanks, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => bytes.push(first),
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

/// The program behind the mount of a bucket, where it is known to be one. There, a rename is a copy and a delete behind
/// the scenes, if it is possible at all. Some say so in the type (`fuse.s3fs`), some in the source (`mountpoint-s3`).
pub(super) fn bucket_mount<'a>(file_system: &'a str, source: &'a str) -> Option<&'a str> {
    const BUCKETS: [&str; 9] = [
        "s3fs",
        "goofys",
        "geesefs",
        "rclone",
        "gcsfuse",
        "mountpoint-s3",
        "blobfuse",
        "blobfuse2",
        "ossfs",
    ];
    if kind(file_system) != MountKind::Fuse {
        return None;
    }
    let subtype = file_system.strip_prefix("fuse.").unwrap_or_default();
    [subtype, source]
        .into_iter()
        .find(|name| BUCKETS.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
22 28 0:21 / /proc rw,relatime - proc proc rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
nonsense
95 28 0:52 /export /mnt/my\\040nas rw,relatime shared:5 master:2 - nfs4 nas:/vol\\134x rw,vers=4.2
96 28 0:53 / /mnt/raw rw - fuse.s3fs s3fs rw
97 28 0:54 / /mnt/\xff rw - ext4 /dev/vdb rw
";

    fn at(text: &[u8], path: &str) -> u64 {
        holding(text, Path::new(path)).unwrap().id
    }

    #[test]
    fn a_mount_is_found_by_its_number_with_its_escapes_undone() {
        let mount = find(TEXT, 95).unwrap();
        assert_eq!(mount.place, PathBuf::from("/mnt/my nas"));
        assert_eq!(
            (mount.file_system.as_str(), mount.source.as_str()),
            ("nfs4", "nas:/vol\\x")
        );
        assert_eq!(mount.options, ["rw", "relatime", "vers=4.2"]);
        assert_eq!(find(TEXT, 28).unwrap().source, "/dev/vda");
        assert_eq!(find(TEXT, 98), None);
        assert!(find(TEXT, 97).is_some(), "a name need not be UTF-8");
    }

    #[test]
    fn broken_lines_are_survived() {
        for line in [
            &b""[..],
            b" - ",
            b"1 - ",
            b"1 2 3 4 - x",
            b"1 2 3 4 5 - ",
            b"x 2 3 4 5 - ext4 y rw",
            b"1 2 3 4 \\9\\ - e s",
            b"1 1 0:1 / / rw - ext4 x rw",
            b"1 2 0:1 / / rw - a b rw\n2 1 0:2 / / rw - a b rw",
        ] {
            find(line, 1);
            holding(line, Path::new("/a/b"));
            wanted(line, Path::new("/a/b"));
        }
    }

    #[test]
    fn a_path_is_in_the_mount_that_a_walk_leads_into() {
        assert_eq!(at(TEXT, "/mnt/my nas/backup"), 95);
        assert_eq!(at(TEXT, "/mnt/my"), 28);
        assert_eq!(at(TEXT, "/"), 28);
        let under = "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /mnt/nas rw - nfs4 b rw\n3 2 0:3 / /mnt/nas rw - tmpfs c rw\n";
        let over = "4 1 0:4 / /mnt rw - xfs d rw\n5 4 0:5 / /mnt/disk rw - xfs e rw\n";
        assert_eq!(
            at(under.as_bytes(), "/mnt/nas/x"),
            3,
            "the newer of two at one place"
        );
        let both = [under, over].concat();
        assert_eq!(
            at(both.as_bytes(), "/mnt/nas/x"),
            4,
            "what is mounted above a mount point hides it"
        );
        assert_eq!(at(both.as_bytes(), "/mnt/disk"), 5);
    }

    #[test]
    fn fstab_is_read_as_mount_reads_it() {
        let fstab = b"# a comment\n\
            UUID=1 / ext4 defaults 0 1\n\
            UUID=2 none swap sw 0 0\n\
            /swapfile swap swap sw 0 0\n\
            \n  nas:/e\t/mnt/my\\040nas/  nfs   rw,hard,_netdev,noauto 0 0\n\
            /dev/sdb1 /mnt ext4\n\
            broken\n";
        let place = |path: &str| wanted(fstab, Path::new(path)).map(|wanted| wanted.place);
        assert_eq!(place("/mnt/my nas/b"), Some("/mnt/my nas".into()));
        assert_eq!(place("/mnt/my nas"), Some("/mnt/my nas".into()));
        assert_eq!(place("/mnt/mynas"), Some("/mnt".into()));
        assert_eq!(place("/var"), None, "the root is always mounted");
    }

    #[test]
    fn the_kinds_are_told_apart() {
        assert_eq!(kind("nfs4"), MountKind::Nfs);
        assert_eq!(kind("ext4"), MountKind::Disk);
        assert_eq!(kind("fuse.sshfs"), MountKind::Fuse);
        assert_eq!(bucket_mount("fuse.s3fs", "s3fs"), Some("s3fs"));
        assert_eq!(bucket_mount("fuse", "mountpoint-s3"), Some("mountpoint-s3"));
        assert_eq!(bucket_mount("fuse.rclone", "gdrive:x"), Some("rclone"));
        assert_eq!(bucket_mount("fuse.sshfs", "host:/"), None);
        assert_eq!(bucket_mount("ext4", "s3fs"), None);
    }
}
