//! What a restore did: counted, and named where somebody must know.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::restore::name::BadName;

/// Items that are named; of more only the number is told.
const NAMED_MAX: usize = 10_000;

/// An item and what is to be said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Below the destination; bytes that are no text as `\xNN`.
    pub path: String,
    /// What happened to it, or did not.
    pub reason: String,
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Items that were written, or would be.
    pub restored: u64,
    /// Items that are there already.
    pub skipped: u64,
    /// Items that are not as they are in the volume.
    pub unrestored: u64,
    /// Bytes of content that were written, or would be, without holes.
    pub bytes: u64,
    /// The items that were not restored, and why.
    pub failures: Vec<Named>,
    /// Items that were left alone because something else stands there.
    pub kept_count: u64,
    /// Which.
    pub kept: Vec<Named>,
    /// Items that were restored without an attribute.
    pub stripped_count: u64,
    /// Which, and what they lack.
    pub stripped: Vec<Named>,
    /// Whether it was stopped before its end.
    pub is_stopped: bool,
    /// Whether something was not restored because the external volume does not answer.
    pub is_unreachable: bool,
}

/// Why an item was not restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Obstacle {
    #[error("cannot {op}: {}", said(*errno))]
    Call { op: &'static str, errno: Errno },
    #[error("{0}")]
    Name(#[from] BadName),
    #[error("{}", .0.chain())]
    Source(#[from] Error),
    #[error("{0}")]
    Refused(String),
}

/// The words of `strerror`, without the name of the constant.
fn said(errno: Errno) -> &'static str {
    errno.desc()
}

impl Obstacle {
    /// For `map_err` at a system call.
    pub(super) fn call(op: &'static str) -> impl Fn(Errno) -> Obstacle {
        move |errno| Obstacle::Call { op, errno }
    }

    fn is_unreachable(&self) -> bool {
        matches!(self, Obstacle::Source(Error::External(error)) if error.is_unreachable() || error.is_transient())
    }
}

/// The report as it comes into being, from several threads.
#[derive(Debug, Default)]
pub(super) struct Reporting(Mutex<RestoreReport>);

fn name(list: &mut Vec<Named>, path: impl FnOnce() -> String, reason: String) {
    if list.len() < NAMED_MAX {
        let path = path();
        list.push(Named { path, reason });
    }
}

impl Reporting {
    fn lock(&self) -> MutexGuard<'_, RestoreReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn restored(&self, bytes: u64) {
        let mut report = self.lock();
        report.restored += 1;
        report.bytes += bytes;
    }

    pub(super) fn skipped(&self) {
        self.lock().skipped += 1;
    }

    /// Something else stands there and is to stay.
    pub(super) fn kept(&self, path: impl FnOnce() -> String) {
        let mut report = self.lock();
        report.kept_count += 1;
        let reason = "another one stands there; --overwrite changed replaces it";
        name(&mut report.kept, path, reason.to_owned());
    }

    /// Tells whether the external volume is to blame.
    pub(super) fn failed(&self, path: impl FnOnce() -> String, obstacle: &Obstacle) {
        let mut report = self.lock();
        report.unrestored += 1;
        report.is_unreachable |= obstacle.is_unreachable();
        name(&mut report.failures, path, obstacle.to_string());
    }

    pub(super) fn stripped(&self, path: impl FnOnce() -> String, lacks: &[String]) {
        if lacks.is_empty() {
            return;
        }
        let mut report = self.lock();
        report.stripped_count += 1;
        name(
            &mut report.stripped,
            path,
            format!("without {}", lacks.join(", ")),
        );
    }

    pub(super) fn is_unreachable(&self) -> bool {
        self.lock().is_unreachable
    }

    /// Items that were dealt with.
    pub(super) fn items(&self) -> u64 {
        let report = self.lock();
        report.restored + report.skipped + report.unrestored + report.kept_count
    }

    pub(super) fn into_report(self) -> RestoreReport {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
