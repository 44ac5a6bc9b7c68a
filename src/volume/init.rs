//! Making a backup path, and whose one is.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use vfs::{ObjectKey, Volume, VolumeExt};

use crate::chunk::ChunkerParams;
use crate::clock::{Clock, random};
use crate::error::{Error, Result};
use crate::format::record::{FORMAT, IDENTITY_NAME, Identity};
use crate::types::Uuid;
use crate::volume::settings::{Settings, rewrite, sync_dir};

/// Directories of a backup path.
const DIRS: [&str; 6] = [
    "accounts",
    "items",
    "server",
    "server/epochs",
    "journal",
    "index",
];
/// Longest identity that is read.
const IDENTITY_LEN_MAX: u64 = 1 << 20;

/// Makes a backup path at `root`, which must be missing or empty. Returns who it is.
pub fn init(root: &Path, settings: &Settings, clock: &dyn Clock) -> Result<Identity> {
    if let Some(parent) = root.parent()
        && !parent.as_os_str().is_empty()
        && !parent.is_dir()
    {
        return Err(Error::Refused(format!(
            "{} is not there: make it first",
            parent.display()
        )));
    }
    match fs::read_dir(root) {
        Ok(mut entries) => {
            if root.join(IDENTITY_NAME).exists() {
                return Err(Error::Refused(format!(
                    "{} is a backup path already: nothing was changed",
                    root.display()
                )));
            }
            if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "lost+found")) {
                let root = root.display();
                return Err(Error::Refused(format!(
                    "{root} is not empty: choose an empty or a new directory"
                )));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            DirBuilder::new()
                .mode(0o700)
                .create(root)
                .map_err(Error::io("create", root))?;
        }
        Err(error) => return Err(Error::io("list", root)(error)),
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o700))
        .map_err(Error::io("chmod", root))?;
    for dir in DIRS {
        let dir = root.join(dir);
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&dir)
            .map_err(Error::io("create", &dir))?;
        sync_dir(&dir)?;
    }
    settings.write(root)?;
    let identity = Identity {
        format: FORMAT,
        volume: Uuid(random()?).to_string(),
        store: None,
        owner: hostname(),
        created: clock.now_secs(),
        id_scheme: "sha256".into(),
        chunker: ChunkerParams::new(u64::from_le_bytes(random()?)),
        grace_secs: 24 * 3600,
        mac: None,
    };
    // Last, because it makes the directory a backup path.
    rewrite(&root.join(IDENTITY_NAME), &identity.encode())?;
    sync_dir(root)?;
    Ok(identity)
}

/// What this machine is called.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The identity of the backup path `root`.
pub fn read_identity(root: &Path) -> Result<Identity> {
    let path = root.join(IDENTITY_NAME);
    let bytes = fs::read(&path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            let root = root.display();
            return Error::Refused(format!(
                "{root} is not a backup path, there is no {IDENTITY_NAME}: make one with tidefs -p {root} init"
            ));
        }
        Error::io("read", &path)(error)
    })?;
    Identity::parse(&path.display().to_string(), &bytes)
}

/// The identity on an external volume; `None` if there is none.
pub fn external_identity(volume: &dyn Volume) -> Result<Option<Identity>> {
    let key = ObjectKey::new(IDENTITY_NAME)?;
    if volume.head(&key)?.is_none() {
        return Ok(None);
    }
    let bytes = volume.get_whole(&key, IDENTITY_LEN_MAX)?;
    Identity::parse(&format!("{volume}/{IDENTITY_NAME}"), &bytes).map(Some)
}
