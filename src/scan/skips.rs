//! What no scan may enter, wherever a source lies: the backup path, and mounts of ours. A backup of itself has no end.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::{Error, Result};
use crate::scan::look::{Seen, look};

const MOUNTINFO: &str = "/proc/self/mountinfo";
/// What mounts of ours say they are.
const KIND: &[u8] = b"fuse.tidefs";

/// The backup path's directory, and the devices of our mounts.
#[derive(Clone, Debug)]
pub struct Skips {
    backup: (u64, u64),
    ours: BTreeSet<u64>,
}

impl Skips {
    /// As of now.
    pub fn new(backup_path: &Path) -> Result<Skips> {
        let cwd = rustix::fs::CWD;
        let bytes = backup_path.as_os_str().as_encoded_bytes();
        let seen = look(cwd, bytes).map_err(Error::io("look at", backup_path))?;
        let table = std::fs::read(MOUNTINFO).map_err(Error::io("read", MOUNTINFO))?;
        Ok(Skips {
            backup: (seen.device, seen.number),
            ours: table
                .split(|byte| *byte == b'\n')
                .filter_map(ours)
                .collect(),
        })
    }

    /// Whether the item is one of them.
    pub fn is_ours(&self, seen: &Seen) -> bool {
        (seen.device, seen.number) == self.backup || self.ours.contains(&seen.device)
    }
}

/// `36 35 0:98 / /mnt rw - fuse.tidefs source rw`: the device, if it is a mount of ours.
fn ours(line: &[u8]) -> Option<u64> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let (major, minor) = device.split_once(':')?;
    let device = (major.parse::<u64>().ok()? << 32) | minor.parse::<u64>().ok()?;
    (kind == KIND).then_some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_ours_is_known_by_its_device() {
        let line = b"36 35 0:98 / /mnt rw,noatime shared:2 - fuse.tidefs tidefs:/x rw";
        assert_eq!(ours(line), Some(98));
        let line = b"36 35 8:1 / /mnt rw,noatime - ext4 /dev/sda1 rw";
        assert_eq!(ours(line), None);
        assert_eq!(ours(b""), None);
    }
}
