//! A scan as an operation: of one source or of all, then the epoch, then, if that is asked for, the archive.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock::{Clock, SystemClock};
use crate::daemon::failure::{Failure, FailureKind};
use crate::daemon::ops::{OpHandle, What};
use crate::daemon::protocol::{FileProgress, Progress, ScanRequest};
use crate::daemon::watch::Watches;
use crate::scan::report::Report;
use crate::scan::run::{Ask, Scope, Standing, Watcher, scan};
use crate::scan::source::{self, Source};
use crate::types::unescape;
use crate::volume::settings::Store;
use crate::volume::{Durability, Volume};

/// What of a volume is to be scanned.
#[derive(Debug)]
pub struct Plan {
    sources: Vec<Source>,
    ask: Ask,
    upload_metadata: bool,
}

impl Plan {
    /// Finds what is meant, or says why that makes no sense.
    pub fn new(volume: &Volume, request: &ScanRequest) -> Result<Plan, Failure> {
        let sources = match &request.source {
            Some(word) => vec![source::find(volume, word)?],
            None => source::list(volume)?,
        };
        if sources.is_empty() {
            return Err(Failure::failed(
                "there is no source to be scanned: tidefs source add names one",
            ));
        }
        if request.upload_metadata && volume.settings().store == Store::Local {
            return Err(Failure::usage(
                "--upload-metadata needs an external volume: tidefs store set names one",
            ));
        }
        let names: Option<BTreeSet<Vec<u8>>> =
            request.accounts.iter().map(|name| unescape(name)).collect();
        let names =
            names.ok_or_else(|| Failure::usage("an account's name has a stray backslash"))?;
        let sources = if names.is_empty() {
            sources
        } else {
            with_accounts(volume, sources, &names)?
        };
        let scope = if names.is_empty() {
            Scope::All
        } else {
            Scope::Accounts(names)
        };
        Ok(Plan {
            sources,
            ask: Ask {
                scope,
                deep: request.deep,
                accept_deletions: request.accept_deletions,
                max_read_errors: request.max_read_errors,
                read_rate: request.read_rate,
            },
            upload_metadata: request.upload_metadata,
        })
    }

    /// As an operation.
    pub fn what(&self, since: i64) -> What {
        let paths: Vec<&str> = self.sources.iter().map(|source| &*source.path).collect();
        What {
            kind: "scan",
            about: paths.join(", "),
            keys: self.sources.iter().map(key_of).collect(),
            since,
        }
    }

    /// Does it.
    pub fn run(
        self,
        volume: &Arc<Volume>,
        watches: &Watches,
        handle: &OpHandle,
    ) -> Result<Value, Failure> {
        let mut reports = Vec::new();
        for source in &self.sources {
            let report = watches.scan(source, &self.ask, |ask| one(volume, source, ask, handle))?;
            let is_over = report.stopped;
            reports.push(report);
            if is_over {
                break;
            }
        }
        let has_changes = reports.iter().any(|report| report.counts.has_changes());
        if has_changes {
            volume.close_epoch(None)?;
        } else {
            volume.commit()?;
        }
        let is_stopped = reports.iter().any(|report| report.stopped);
        let mut is_archived = None;
        if self.upload_metadata && !is_stopped {
            is_archived = Some(archive(volume, handle)?);
        }
        Ok(json!({ "scans": reports, "is_archived": is_archived }))
    }
}

/// What a source is called among the operations: whoever scans it by other ways takes the same.
pub fn key_of(source: &Source) -> String {
    format!("scan {}", source.uuid)
}

/// The sources that feed one of these accounts; all of them if none is known to.
fn with_accounts(
    volume: &Volume,
    sources: Vec<Source>,
    names: &BTreeSet<Vec<u8>>,
) -> Result<Vec<Source>, Failure> {
    let accounts = volume.accounts()?;
    let feeding: BTreeSet<&str> = accounts
        .iter()
        .filter(|entry| {
            entry
                .name
                .as_ref()
                .is_some_and(|name| names.contains(&**name))
        })
        .filter_map(|entry| entry.record.fed.as_ref())
        .map(|fed| fed.source.as_str())
        .collect();
    let known: Vec<Source> = sources
        .iter()
        .filter(|source| feeding.contains(source.uuid.as_str()))
        .cloned()
        .collect();
    Ok(if known.is_empty() { sources } else { known })
}

/// Scans one source.
pub fn one(
    volume: &Volume,
    source: &Source,
    ask: &Ask,
    handle: &OpHandle,
) -> Result<Report, Failure> {
    let clock: &dyn Clock = &SystemClock;
    let progress = |standing: &Standing| handle.tell(step(source, standing));
    let watcher = Watcher {
        stop: handle.stop(),
        progress: &progress,
    };
    Ok(scan(volume, clock, source, ask, watcher)?)
}

fn step(source: &Source, standing: &Standing) -> Progress {
    let counts = &standing.counts;
    let expected = |total: u64, done: u64| Some(total).filter(|total| *total >= done && done > 0);
    Progress {
        step: format!("scanning {}", source.path),
        done_bytes: counts.bytes,
        total_bytes: expected(standing.bytes_expected, counts.bytes),
        note: standing
            .is_pausing
            .then(|| "pausing: the source is slow to answer".to_owned()),
        files: Some(FileProgress {
            done: counts.items,
            total: expected(standing.items_expected, counts.items),
            read_bytes: counts.read_bytes,
            stored_bytes: counts.stored_bytes,
        }),
    }
}

/// Waits until the external volume alone gives back what was scanned.
fn archive(volume: &Volume, handle: &OpHandle) -> Result<bool, Failure> {
    let mut meter = crate::daemon::operations::Meter::default();
    let stop = handle.stop();
    let outcome = volume.wait_for(Durability::Archived, None, &mut |status| {
        handle.tell(meter.read(status));
        !stop.load(std::sync::atomic::Ordering::Relaxed)
    });
    if stop.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(Failure::new(
            FailureKind::Stopped,
            "stopped while its metadata was being archived; what was scanned is on the local disk, and uploads go on",
        ));
    }
    outcome?;
    Ok(true)
}
