//! Accounts: the top-level directories of a volume, each with an identity that outlives its name.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::types::Timestamp;

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
