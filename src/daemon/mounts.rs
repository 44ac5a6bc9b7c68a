//! Mounts as they are seen from outside the process that serves them: whose they are, whether they are dead,
//! and how to take one away.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;

use crate::error::{Error, Result};

const MOUNTINFO: &str = "/proc/self/mountinfo";
/// What our mounts say they are.
const KIND: &str = "fuse.tidefs";
/// What their source begins with.
const SOURCE_PREFIX: &[u8] = b"tidefs:";

/// A mount of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OurMount {
    /// Where it stands.
    pub point: PathBuf,
    /// What it shows: a backup path, or the name of a view.
    pub source: PathBuf,
}

/// Our mount that one sees at `point`; `None` if there is another, or none.
///
/// Asks no file system about `point` itself, which may be dead: only about the directory above.
pub fn ours_at(point: &Path) -> Result<Option<OurMount>> {
    let point = place(point)?;
    let text = fs::read(MOUNTINFO).map_err(Error::io("read", MOUNTINFO))?;
    Ok(top(&text, &point))
}

/// All mounts of ours.
pub fn ours() -> Result<Vec<OurMount>> {
    let text = fs::read(MOUNTINFO).map_err(Error::io("read", MOUNTINFO))?;
    let lines = text.split(|byte| *byte == b'\n').filter_map(parse);
    Ok(lines.filter_map(Line::into_ours).collect())
}

/// The place that `point` means, with symbolic links resolved, though what stands there may be dead.
pub fn place(point: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(point).map_err(Error::io("find", point))?;
    match (
        fs::canonicalize(&absolute),
        absolute.parent(),
        absolute.file_name(),
    ) {
        (Ok(path), ..) => Ok(path),
        (Err(_), Some(parent), Some(name)) => {
            let parent = fs::canonicalize(parent).map_err(Error::io("find", point))?;
            Ok(parent.join(name))
        }
        (Err(error), ..) => Err(Error::io("find", point)(error)),
    }
}

/// Whether the process that served our mount at `point` is gone. `statfs`, because the kernel answers `stat`
/// from its memory. The question itself is aborted where the end falls between its being asked and answered.
pub fn is_dead(point: &Path) -> bool {
    matches!(statvfs(point), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

/// Takes the mount at `point` away.
pub fn unmount(point: &Path, lazy: bool) -> Result<()> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    flags.set(MntFlags::MNT_DETACH, lazy);
    match umount2(point, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(busy(point)),
        Err(Errno::EPERM) => ask_fusermount(point, lazy),
        Err(errno) => Err(Error::nix("unmount", point)(errno)),
    }
}

fn ask_fusermount(point: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z"));
    let output = command
        .arg("--")
        .arg(point)
        .output()
        .map_err(Error::io("run fusermount3 for", point))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else if text.contains("busy") {
        Err(busy(point))
    } else {
        Err(Error::io("unmount", point)(io::Error::other(
            text.trim().to_owned(),
        )))
    }
}

fn busy(point: &Path) -> Error {
    let shown = point.display();
    Error::Refused(format!(
        "{shown} is busy: somebody has a file or a working directory in it ('fuser -vm {shown}' names them). \
         End that, or use tidefs umount --lazy {shown}"
    ))
}

struct Line {
    point: PathBuf,
    kind: Vec<u8>,
    source: Vec<u8>,
}

impl Line {
    fn into_ours(self) -> Option<OurMount> {
        let source = self.source.strip_prefix(SOURCE_PREFIX)?;
        (self.kind == KIND.as_bytes()).then(|| OurMount {
            source: PathBuf::from(OsString::from_vec(source.to_vec())),
            point: self.point,
        })
    }
}

/// Of several at one place, the last line's hides the others.
fn top(mountinfo: &[u8], point: &Path) -> Option<OurMount> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .rfind(|line| line.point.as_os_str().as_bytes() == point.as_os_str().as_bytes())?
        .into_ours()
}

/// `36 35 98:0 /root /point rw,noatime master:1 - fuse.tidefs tidefs:/backup rw`
fn parse(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = unescape(fields.nth(4)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Line {
        point: PathBuf::from(OsString::from_vec(point)),
        kind: unescape(rest.next()?),
        source: unescape(rest.next()?),
    })
}

/// The kernel writes space, tab, newline, backslash and, in sources, `#` as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &[u8] =
        br"36 35 0:98 / /mnt/a\040b rw,noatime shared:2 - fuse.tidefs tidefs:/var/back\040up rw
37 35 0:99 / /mnt/c rw - fuse.tidefs tidefs:/x rw
38 37 0:100 / /mnt/c rw - tmpfs tmpfs rw
39 35 0:101 / /mnt/d rw - fuse.sshfs tidefs:/y rw
40 35";

    #[test]
    fn a_mount_of_ours_is_known_by_its_type_and_tells_its_backup_path() {
        let found = top(LINES, Path::new("/mnt/a b")).unwrap();
        assert_eq!(found.source, Path::new("/var/back up"));
    }

    #[test]
    fn what_lies_over_our_mount_is_not_ours() {
        assert_eq!(top(LINES, Path::new("/mnt/c")), None);
        assert_eq!(top(LINES, Path::new("/mnt/d")), None);
        assert_eq!(top(LINES, Path::new("/mnt")), None);
    }

    #[test]
    fn a_place_is_found_without_looking_at_what_stands_there() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(place(&real.join("link/gone")).unwrap(), real.join("gone"));
        assert_eq!(place(&real.join("link")).unwrap(), real);
    }
}
