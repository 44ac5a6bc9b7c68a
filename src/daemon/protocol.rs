//! What is said through the control socket: one request, a line of JSON; then answers, a line each: any
//! number of progress, and one end.

use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::daemon::failure::Failure;
use crate::scan::source::Source;
use crate::types::Epoch;
use crate::volume::Durability;
use crate::volume::limits::LimitChange;
use crate::volume::tenancy::AccountChange;
use crate::volume::update::SettingsChange;

/// Longest line that is read: a list of epochs is the longest thing said.
const LINE_LEN_MAX: u64 = 64 << 20;

/// How safe is safe enough to stop waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// Survives a power cut of this machine.
    Local,
    /// The bytes are on the external volume.
    External,
    /// The external volume alone gives it back.
    Archived,
}

impl From<Until> for Durability {
    fn from(until: Until) -> Durability {
        match until {
            Until::Local => Durability::Local,
            Until::External => Durability::External,
            Until::Archived => Durability::Archived,
        }
    }
}

/// A prefix of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketPlace {
    /// Its id or label.
    pub bucket: String,
    /// Where in it; by default one of the volume's own.
    pub prefix: Option<String>,
}

/// What a command asks of an open volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How things are.
    Status,
    /// The closed epochs.
    Epochs,
    /// Close the epoch now, under a name.
    Snapshot {
        /// The name, if it shall have one.
        name: Option<String>,
    },
    /// Wait until what was done so far is safe.
    Wait {
        /// How safe.
        until: Until,
        /// Give up after this.
        timeout_ms: Option<u64>,
        /// For this file or directory only, by the number that the mount shows.
        #[serde(default)]
        below: Option<u64>,
    },
    /// Change settings, from now on.
    StoreUpdate {
        /// What to change.
        change: SettingsChange,
    },
    /// Where packs go from now on.
    StoreSet {
        /// A mounted directory; `None`: they stay in the backup path.
        path: Option<PathBuf>,
        /// Go on where a refusal makes sense to somebody who knows the price.
        #[serde(default)]
        force: bool,
        /// Says what is to be mounted, in place of `/etc/fstab`.
        #[serde(default)]
        fstab: Option<PathBuf>,
        /// A bucket in place of a directory.
        #[serde(default)]
        bucket: Option<BucketPlace>,
    },
    /// How much of the line to the external volume is used.
    Limits {
        /// Set these first.
        #[serde(default)]
        change: Option<LimitChange>,
    },
    /// Name a source.
    SourceAdd {
        /// Which.
        source: Box<Source>,
    },
    /// Forget a source.
    SourceRemove {
        /// Its path, or the beginning of its UUID.
        source: String,
    },
    /// The sources.
    SourceList,
    /// Scan sources, as an operation; answered at its end.
    Scan(Box<ScanRequest>),
    /// The operations.
    Ops,
    /// Tell how far an operation is, and how it ends.
    OpsWatch {
        /// Its number.
        id: u64,
    },
    /// End an operation.
    OpsStop {
        /// Its number.
        id: u64,
    },
    /// Open the external volume anew: what the machine knows of its bucket has changed.
    StoreReopen,
    /// Look for an external volume that is away now, and not at the end of a pause.
    StoreLook,
    /// Disable, enable or delete an account.
    Account {
        /// Its UUID.
        uuid: String,
        /// What becomes of it.
        change: AccountChange,
    },
    /// Bring back what was deleted.
    Undelete {
        /// Below what, as `types::escape` writes it.
        item: String,
        /// After this epoch,
        after: Epoch,
        /// and not after this one.
        until: Epoch,
        /// Where to, in place of where it was.
        into: Option<String>,
        /// Only tell.
        dry_run: bool,
    },
    /// Take the mount away, then end.
    Umount {
        /// Where it stands.
        mountpoint: PathBuf,
        /// Even if it is busy.
        lazy: bool,
        /// How long uploads may go on.
        drain_ms: u64,
    },
    /// End; a mount is taken away first.
    Stop {
        /// How long uploads may go on.
        drain_ms: u64,
    },
    /// Tell when a process that is ending has ended.
    Follow,
}

impl Request {
    /// Packs go to this directory or bucket, or stay in the backup path, from now on.
    pub fn store_set(path: Option<PathBuf>, bucket: Option<BucketPlace>) -> Request {
        Request::StoreSet {
            path,
            force: false,
            fstab: None,
            bucket,
        }
    }

    /// Whether the process that gave this answer is about to be gone. One whose mount is still busy goes on.
    pub fn is_farewell(&self, answer: &Value) -> bool {
        let is_busy = answer.get("is_busy").and_then(Value::as_bool) == Some(true);
        let can_end = matches!(
            self,
            Request::Umount { .. } | Request::Stop { .. } | Request::Follow
        );
        can_end && !is_busy
    }
}

/// What is to be scanned, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScanRequest {
    /// Only this source.
    pub source: Option<String>,
    /// Only these accounts.
    pub accounts: Vec<String>,
    /// Read everything again.
    pub deep: bool,
    /// Believe every deletion.
    pub accept_deletions: bool,
    /// Wait until it is archived.
    pub upload_metadata: bool,
    /// Give up after so many.
    pub max_read_errors: Option<u64>,
    /// Bytes a second.
    pub read_rate: Option<u64>,
}

/// How many files a long operation is through with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileProgress {
    /// So many.
    pub done: u64,
    /// Of so many, if that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total: Option<u64>,
    /// Bytes that were read of them.
    pub read_bytes: u64,
    /// Bytes that were new, and how little they became.
    pub stored_bytes: u64,
}

/// How far a long operation is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done: "uploading".
    pub step: String,
    /// How much of it is done, in bytes.
    pub done_bytes: u64,
    /// How much there is, if that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total_bytes: Option<u64>,
    /// What else is to be known, such as why it does not move.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
    /// Files, where there are such.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub files: Option<FileProgress>,
}

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It goes on.
    Progress(Progress),
    /// It is done; the result.
    Done(Value),
    /// It was not done.
    Failed(Failure),
}

/// Reads one line; `None` at the end.
pub fn read<T: DeserializeOwned>(source: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    source.take(LINE_LEN_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(io::Error::from)
}

/// Writes one line.
pub fn write(target: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    target.write_all(&line)?;
    target.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_line_by_line_and_garbage_is_an_error() {
        let mut bytes = Vec::new();
        let requests = [
            Request::Status,
            Request::Umount {
                mountpoint: "/mnt/a b".into(),
                lazy: true,
                drain_ms: 1,
            },
        ];
        for request in &requests {
            write(&mut bytes, request).unwrap();
        }
        let mut source = bytes.as_slice();
        for request in requests {
            assert_eq!(read(&mut source).unwrap(), Some(request));
        }
        assert_eq!(read::<Request>(&mut source).unwrap(), None);
        for garbage in [&b"\n"[..], b"{}", b"\xff\n", b"{\"request\":\"reboot\"}"] {
            assert!(read::<Request>(&mut &garbage[..]).is_err());
        }
    }
}
