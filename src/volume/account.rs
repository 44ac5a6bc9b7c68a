//! Accounts: the top-level directories of a volume, each with an identity that outlives its name.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::types::{Epoch, Timestamp};

/// What the volume keeps of an account, as JSON: few, seldom written, and read by people in a disaster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRecord {
    /// Never changes, whatever the directory is called.
    pub uuid: String,
    /// The name it was made with, with bytes that are not UTF-8 replaced; the directory entry has the true one.
    pub name: String,
    /// Seconds since 1970.
    pub created: i64,
    /// When its directory was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<i64>,
    /// Since when it takes no changes, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<i64>,
    /// The source that feeds it, and nobody else does: its files are read-only in the mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fed: Option<Fed>,
}

/// How a source feeds an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fed {
    /// The source's UUID.
    pub source: String,
    /// Its directory below the source, as [`crate::types::escape`] writes it.
    pub path: String,
    /// Present while a scan is changing the account: the epoch as of which it was whole before. It stays when the scan
    /// does not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_at: Option<Epoch>,
    /// When a scan last changed it and came to its end, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scanned: Option<i64>,
    /// When all of it was last reread, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<i64>,
    /// How many names it had then.
    #[serde(default)]
    pub items: u64,
    /// Birth time of its directory, with `number` of its inode what tells a renamed directory from a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born: Option<(i64, u32)>,
}

impl AccountRecord {
    /// A new account.
    pub fn new(uuid: [u8; 16], name: &[u8], now: Timestamp) -> AccountRecord {
        let name = String::from_utf8_lossy(name).into_owned();
        AccountRecord {
            uuid: crate::types::Uuid(uuid).to_string(),
            name,
            created: now.secs,
            deleted: None,
            disabled: None,
            fed: None,
        }
    }

    /// The same account, its directory removed.
    pub fn deleted_at(mut self, now: Timestamp) -> AccountRecord {
        self.deleted = Some(now.secs);
        self
    }

    /// As a value of the metadata.
    pub fn encode(&self) -> Vec<u8> {
        // Strings and numbers always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From a value of the metadata.
    pub fn decode(bytes: &[u8]) -> Result<AccountRecord> {
        serde_json::from_slice(bytes)
            .map_err(|error| Error::corrupt("an account record", 0, error.to_string()))
    }
}
