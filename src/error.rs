//! What can go wrong, one variant per remedy.
//!
//! Rules: identity (path, object, pack) is named once, at the level that knows it; the cause is
//! chained as the source and never repeated in the text; the message says what to do where the
//! operator can do something. The errno for a FUSE reply is chosen in `fuse/` and nowhere else.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of the engine failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The answer of a POSIX operation that was refused as it should be: no such file, not empty, ...
    #[error("{0}")]
    Posix(Errno),
    /// A system call on a local file failed.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// The verb: "open", "read", "sync", ...
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Bytes that are not what they should be. Nothing was served from them.
    #[error("{object} is damaged at byte {offset}: {reason}")]
    Corrupt {
        /// File path or object name.
        object: String,
        /// Where in it.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// The external volume could not do it.
    #[error("the external volume failed")]
    External(#[from] vfs::Error),
    /// Someone else has the backup path open.
    #[error("{} is in use by process {pid}: stop it (tidefs umount) or use another backup path", path.display())]
    Locked {
        /// The backup path.
        path: PathBuf,
        /// The holder, as it wrote itself into the lock file.
        pid: String,
    },
    /// What was asked makes no sense here; the text says why and what to do.
    #[error("{0}")]
    Refused(String),
    /// An earlier write or sync failed: nothing more is acknowledged until the volume is reopened.
    #[error(
        "the engine stopped after a failure ({0}); nothing after it was acknowledged: mend the cause, then remount"
    )]
    Poisoned(String),
    /// The local disk or the budget for unsent data is full.
    #[error("no space left in {}: free some, or wait until uploads have drained", path.display())]
    NoSpace {
        /// The backup path.
        path: PathBuf,
    },
}

impl Error {
    /// For `map_err` at a system call: `.map_err(Error::io("open", &path))`.
    pub fn io<'a>(
        op: &'static str,
        path: impl AsRef<Path> + 'a,
    ) -> impl FnOnce(io::Error) -> Error + 'a {
        move |source| Error::Io {
            op,
            path: path.as_ref().to_owned(),
            source,
        }
    }

    /// The same for a call through `nix`.
    pub fn nix<'a>(
        op: &'static str,
        path: impl AsRef<Path> + 'a,
    ) -> impl FnOnce(Errno) -> Error + 'a {
        move |errno| Error::Io {
            op,
            path: path.as_ref().to_owned(),
            source: errno.into(),
        }
    }

    /// Damage in `object`.
    pub fn corrupt(object: impl Into<String>, offset: u64, reason: impl Into<String>) -> Error {
        Error::Corrupt {
            object: object.into(),
            offset,
            reason: reason.into(),
        }
    }

    /// The error and its causes on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        Error::Posix(errno)
    }
}
