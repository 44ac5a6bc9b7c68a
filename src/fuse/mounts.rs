//! Reads `/proc/self/mountinfo`: which mount stands where. Asks no file system, so that a hung one
//! cannot hold us.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    /// `major:minor` of its file system: no other has it as long as that lives, the next one may.
    pub(super) device: String,
    /// Where it stands.
    pub(super) point: PathBuf,
    /// Its type, as `fuse.tidefs`.
    pub(super) kind: String,
}

/// All mounts of this process's namespace; of two at one place the later one hides the earlier.
pub(super) fn list() -> Result<Vec<Mount>> {
    let text = fs::read(MOUNTINFO).map_err(Error::io("read", MOUNTINFO))?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// The mount one sees at `point`.
pub(super) fn at(point: &Path) -> Result<Option<Mount>> {
    Ok(list()?.into_iter().rfind(|mount| mount.point == point))
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/sda1 rw`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let point = unescape(fields.nth(1)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        device,
        point: PathBuf::from(OsString::from_vec(point)),
        kind: String::from_utf8_lossy(kind).into_owned(),
    })
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
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

/// A name for the source column: no control characters, and no comma or backslash, which the mount
/// helper would take for the end of the option.
pub(super) fn source_name(source: &str) -> String {
    let clean = |letter: char| {
        if letter.is_control() || matches!(letter, ',' | '\\') {
            '_'
        } else {
            letter
        }
    };
    format!("tidefs:{}", source.chars().map(clean).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read_with_its_escapes() {
        let line = br"36 35 0:98 / /mnt/a\040b\134c rw,noatime master:1 shared:2 - fuse.tidefs tidefs:/x rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.device, "0:98");
        assert_eq!(mount.point, Path::new(r"/mnt/a b\c"));
        assert_eq!(mount.kind, "fuse.tidefs");
        for broken in [
            &b""[..],
            b"36 35",
            b"36 35 0:98 / /mnt rw",
            b"36 35 0:98 / /mnt rw -",
        ] {
            assert_eq!(parse(broken), None);
        }
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
    }

    #[test]
    fn a_source_never_becomes_an_option() {
        assert_eq!(source_name("/a,suid\\,dev\n"), "tidefs:/a_suid__dev_");
    }
}
