//! What both kinds of event sources have in common: they are drained, and they may be lost.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::errno::Errno;

use super::dirty::Change;

/// Reads of one drain: about a queue's worth. Whoever drains looks at other things in between.
pub(super) const READS_MAX: usize = 256;

/// Where events come from.
pub(super) trait Feed: Send {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// Takes what is there, and does not wait for more. What it tells is at least what happened: where that cannot be
    /// told, [`Change::Everything`].
    fn drain(&mut self, sink: &mut dyn FnMut(Change)) -> Result<Drained, Lost>;

    /// Directories that are watched one by one; `None` where the file system is watched as a whole.
    fn watches(&self) -> Option<u64>;
}

/// What a drain took.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Drained {
    /// The kernel had no room for some.
    pub(super) overflows: u64,
    /// There may be more.
    pub(super) has_more: bool,
}

/// Why a source is not watched, or not any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// The kernel dropped events, and with them what is to be watched.
    #[error("the kernel dropped events: fs.inotify.max_queued_events is {limit}")]
    Overflow {
        /// Of the queue, as far as it is known.
        limit: String,
    },
    /// It is not there any more, or something else is.
    #[error("{0}")]
    Gone(String),
    /// It cannot be watched as things are.
    #[error("{0}")]
    Refused(String),
    /// A system call failed.
    #[error("cannot {op} {path}: {source}")]
    Call {
        op: &'static str,
        path: String,
        source: io::Error,
    },
}

impl Lost {
    pub(super) fn call<'a, E: Into<io::Error>>(
        op: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(E) -> Lost + 'a {
        move |source| Lost::Call {
            op,
            path: path.display().to_string(),
            source: source.into(),
        }
    }

    pub(super) fn is_overflow(&self) -> bool {
        matches!(self, Lost::Overflow { .. })
    }
}

/// The value of a limit of the kernel, for a message.
pub(super) fn limit(name: &str) -> String {
    let path = format!("/proc/sys/fs/{name}");
    std::fs::read_to_string(path)
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Whether a read found nothing.
pub(super) fn is_empty(errno: Errno) -> bool {
    matches!(errno, Errno::EAGAIN | Errno::EINTR)
}
