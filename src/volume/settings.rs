//! What the operator chose for one backup path, in `settings.json`: rewritten whole, never in place.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::volume::ack::Ack;
use crate::volume::limits::LimitSettings;

/// Name of the settings in a backup path.
pub const NAME: &str = "settings.json";

/// Where packs and archived metadata go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Store {
    /// Nowhere: the packs in the backup path are the only copy.
    #[default]
    Local,
    /// A mounted directory.
    Dir {
        /// Its path.
        path: PathBuf,
        /// UUID of the copy there.
        store: String,
    },
}

/// The settings. Times in seconds, sizes in bytes. An unknown name is refused: it may be a known one with a
/// damaged letter, and the default in its place would lose the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The external volume.
    pub store: Store,
    /// An epoch closes after this, if there were changes.
    pub epoch_interval_secs: u64,
    /// A pack is sealed after this long without a new blob.
    pub seal_after_secs: u64,
    /// Local packs may take up this much before uploaded ones are evicted.
    pub cache_bytes: u64,
    /// A pack is not evicted before it was on the external volume for this long.
    pub evict_after_secs: u64,
    /// New data is refused when the backup path's file system has less than this free.
    pub reserve_bytes: u64,
    /// What is not on the external volume yet may take up this much; 0: as much as the disk holds.
    pub unsent_bytes_max: u64,
    /// Packs on their way to the external volume at the same time, each with its bytes in memory.
    pub uploads_in_flight: u32,
    /// The external volume is down when it gave no sign of life for this long.
    pub remote_timeout_secs: u64,
    /// What fsync waits for.
    pub ack: Ack,
    /// How much of the line to the external volume is used.
    pub limits: LimitSettings,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            store: Store::Local,
            epoch_interval_secs: 300,
            seal_after_secs: 5,
            cache_bytes: 64 << 30,
            evict_after_secs: 24 * 3600,
            reserve_bytes: 256 << 20,
            unsent_bytes_max: 0,
            uploads_in_flight: 4,
            remote_timeout_secs: 30,
            ack: Ack::default(),
            limits: LimitSettings::default(),
        }
    }
}

impl Settings {
    /// Reads the settings of a backup path.
    pub fn read(root: &Path) -> Result<Settings> {
        let path = root.join(NAME);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let object = path.display().to_string();
            Error::corrupt(object, 0, format!("not readable: {error}. Put it right, or write {{}} into it for the defaults and set the store again with: tidefs store set"))
        })
    }

    /// Rewrites them.
    pub fn write(&self, root: &Path) -> Result<()> {
        let bytes =
            serde_json::to_vec_pretty(self).map_err(|error| Error::Refused(error.to_string()))?;
        rewrite(&root.join(NAME), &bytes)
    }
}

/// Puts `bytes` in the place of the file at `path`: after a power cut it holds the old or the new.
pub fn rewrite(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
    file.write_all(bytes)
        .map_err(Error::io("write", &temporary))?;
    file.sync_all().map_err(Error::io("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("rename", &temporary))?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("sync", dir))
}
