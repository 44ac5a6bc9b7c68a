//! What the operator chose for one backup path, in `settings.json`: rewritten whole, never in place.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vfs::Spec;

use crate::error::{Error, Result};
use crate::types::Uuid;
use crate::volume::ack::Ack;
use crate::volume::limits::LimitSettings;

/// Name of the settings in a backup path.
pub const NAME: &str = "settings.json";

/// For how long the external volume may be silent, where nobody chose: servers restart in less.
pub const REMOTE_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// A prefix of a bucket that this machine knows. Keys are not here: they are with the bucket.
    S3 {
        /// The bucket's id.
        bucket: String,
        /// Where in it, below the bucket's own prefix.
        prefix: String,
        /// UUID of the copy there.
        store: String,
    },
}

impl Store {
    /// What names it to `vfs`; none without an external volume.
    pub fn spec(&self) -> Option<Spec> {
        match self {
            Store::Local => None,
            Store::Dir { path, .. } => Some(Spec::Dir(path.clone())),
            Store::S3 { bucket, prefix, .. } => Some(Spec::S3Bucket {
                bucket_id: bucket.clone(),
                prefix: prefix.clone(),
            }),
        }
    }

    /// UUID of the copy there.
    pub fn copy(&self) -> Option<&str> {
        match self {
            Store::Local => None,
            Store::Dir { store, .. } | Store::S3 { store, .. } => Some(store),
        }
    }

    /// The same as a number; zero for none.
    pub fn copy_uuid(&self) -> Uuid {
        self.copy().and_then(Uuid::parse).unwrap_or(Uuid([0; 16]))
    }
}

/// `dir:/path`, `s3:BUCKET/prefix` or `local`.
impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.spec() {
            Some(spec) => spec.fmt(f),
            None => f.write_str("local"),
        }
    }
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
    /// What is read again of evicted packs may take up this much beside that.
    pub read_cache_bytes: u64,
    /// A pack is not evicted before it was on the external volume for this long.
    pub evict_after_secs: u64,
    /// New data is refused when the backup path's file system has less than this free.
    pub reserve_bytes: u64,
    /// What is not on the external volume yet may take up this much; 0: as much as the disk holds.
    pub unsent_bytes_max: u64,
    /// Packs on their way to the external volume at the same time, each with its bytes in memory.
    pub uploads_in_flight: u32,
    /// What an interrupted put left on the external volume is removed when it is this old; 0: never.
    pub sweep_after_secs: u64,
    /// What fsync waits for.
    pub ack: Ack,
    /// How much of the line to the external volume is used.
    pub limits: LimitSettings,
    /// The external volume is down when it gave no sign of life for this long; until then reads of what is only there
    /// wait for it.
    pub remote_timeout_secs: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            store: Store::Local,
            epoch_interval_secs: 300,
            seal_after_secs: 5,
            cache_bytes: 64 << 30,
            read_cache_bytes: 16 << 30,
            evict_after_secs: 24 * 3600,
            reserve_bytes: 256 << 20,
            unsent_bytes_max: 0,
            uploads_in_flight: 4,
            sweep_after_secs: 24 * 3600,
            ack: Ack::default(),
            limits: LimitSettings::default(),
            remote_timeout_secs: REMOTE_TIMEOUT.as_secs(),
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

    /// For how long the external volume may be silent.
    pub fn remote_timeout(&self) -> Duration {
        Duration::from_secs(self.remote_timeout_secs.max(1))
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
