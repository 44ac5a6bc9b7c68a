//! What is asked of an open volume, the same with a daemon and without.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::failure::{Failure, FailureKind};
use crate::daemon::protocol::{BucketPlace, FileProgress, Progress, Request, Until};
use crate::restore::{self, Undelete};
use crate::scan::source;
use crate::types::{AccountId, Ino, unescape};
use crate::upload::UploadState;
use crate::volume::choice::Choice;
use crate::volume::place::{self, Look};
use crate::volume::settings::Store;
use crate::volume::{Status, Volume};

/// Who asks for the status just after the opening waits this long to hear whether the external volume is there.
const STORE_PATIENCE: Duration = Duration::from_secs(1);
/// Longest name of a snapshot: it is a directory's name below `/.snapshots`.
const NAME_LEN_MAX: usize = 255;

/// Performs `request`, telling `progress`, which says whether to go on. What only a serving process can do
/// is refused.
pub fn perform(
    volume: &Volume,
    request: &Request,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Value, Failure> {
    match request {
        Request::Status => {
            volume.await_store(STORE_PATIENCE);
            value(&volume.status())
        }
        Request::Epochs => value(&volume.closed_epochs()?),
        Request::Snapshot { name } => snapshot(volume, name.as_deref()),
        Request::Wait {
            until,
            timeout_ms,
            below,
        } => wait(volume, (*until, *below), *timeout_ms, progress),
        Request::StoreUpdate { change } => value(&volume.update(change)?),
        Request::StoreSet {
            path,
            force,
            fstab,
            bucket,
        } => {
            let look = Look {
                fstab: fstab.as_deref(),
                forced: *force,
            };
            let choice = match (path, bucket) {
                (Some(path), _) => Choice::Dir(path.clone()),
                (None, Some(BucketPlace { bucket, prefix })) => Choice::S3 {
                    bucket: bucket.clone(),
                    prefix: prefix.clone(),
                },
                (None, None) => Choice::Local,
            };
            store_set(volume, &choice, look)
        }
        Request::StoreReopen => {
            volume.connect_store();
            Ok(json!({ "store": volume.settings().store }))
        }
        Request::StoreLook => {
            volume.look_for_store();
            Ok(json!({ "store": volume.settings().store }))
        }
        Request::Account { uuid, change } => value(&volume.change_tenancy(uuid, *change)?),
        Request::Limits { change: None } => value(&volume.limits()),
        Request::Limits {
            change: Some(change),
        } => value(&volume.change_limits(change)?),
        Request::SourceAdd { source } => {
            source::add(volume, source)?;
            volume.commit()?;
            value(source)
        }
        Request::SourceRemove { source } => {
            let source = source::find(volume, source)?;
            source::remove(volume, &source)?;
            volume.commit()?;
            value(&source)
        }
        Request::SourceList => value(&source::list(volume)?),
        Request::Undelete { .. } => undelete(volume, request, progress),
        Request::Umount { .. }
        | Request::Stop { .. }
        | Request::Follow
        | Request::Scan(_)
        | Request::Ops
        | Request::OpsWatch { .. }
        | Request::OpsStop { .. } => Err(Failure::failed(format!(
            "{} is not served by a daemon",
            volume.root().display()
        ))),
    }
}

fn undelete(
    volume: &Volume,
    request: &Request,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Value, Failure> {
    let Request::Undelete {
        item,
        after,
        until,
        into,
        dry_run,
    } = request
    else {
        return Err(Failure::failed("that is no undelete"));
    };
    let bytes = |text: &String| {
        unescape(text).ok_or_else(|| Failure::usage(format!("'{text}' is no path")))
    };
    let what = Undelete {
        item: bytes(item)?,
        after: *after,
        until: *until,
        into: into.as_ref().map(bytes).transpose()?,
        dry_run: *dry_run,
    };
    let report = restore::undelete(volume, &what, &mut |so_far| {
        progress(Progress {
            step: "bringing back".into(),
            files: Some(FileProgress {
                done: so_far.items,
                total: None,
                read_bytes: 0,
                stored_bytes: 0,
            }),
            ..Progress::default()
        })
    })?;
    value(&report)
}

fn store_set(volume: &Volume, choice: &Choice, look: Look<'_>) -> Result<Value, Failure> {
    let warnings = match choice {
        Choice::Dir(path) => place::concerns(&place::admit(path, look)?, Some(volume.root())),
        Choice::S3 { .. } | Choice::Local => Vec::new(),
    };
    let store = volume.choose_store(choice)?;
    Ok(json!({ "store": store, "upload": volume.status().upload, "warnings": warnings }))
}

fn value(document: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(document).map_err(|error| Failure::failed(error.to_string()))
}

fn snapshot(volume: &Volume, name: Option<&str>) -> Result<Value, Failure> {
    if let Some(name) = name {
        check_name(name).map_err(Failure::usage)?;
        if let Some(old) = volume
            .closed_epochs()?
            .into_iter()
            .find(|epoch| epoch.name.as_deref() == Some(name))
        {
            return Err(Failure::failed(format!(
                "there is a snapshot '{name}' already, epoch {}: choose another name",
                old.epoch
            )));
        }
    }
    let epoch = volume.close_epoch(name.map(str::to_owned))?;
    let closed = volume
        .closed_epochs()?
        .into_iter()
        .find(|entry| entry.epoch == epoch);
    match closed {
        Some(entry) => value(&entry),
        // Nothing was ever written: there is only the empty volume.
        None => Ok(json!({ "epoch": epoch })),
    }
}

/// Why `name` cannot name a snapshot.
pub fn check_name(name: &str) -> Result<(), String> {
    let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    let fault = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_LEN_MAX {
        "is longer than 255 bytes"
    } else if name.contains('/') || name.contains(char::is_control) {
        "has a '/' or a control character"
    } else if name.starts_with('.') || name.trim() != name {
        "begins with a dot, or begins or ends with a space"
    } else {
        return Ok(());
    };
    Err(format!(
        "the snapshot's name '{shown}' {fault}: choose another"
    ))
}

fn wait(
    volume: &Volume,
    (until, below): (Until, Option<u64>),
    timeout_ms: Option<u64>,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Value, Failure> {
    let deadline = timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let mut meter = Meter::default();
    let mut gave_up = None;
    let below = below.map(Ino);
    if below.is_some_and(|ino| ino.account().get() > AccountId::MAX) {
        return Err(Failure::usage(
            "what is below .snapshots is of the past: name the file or directory itself",
        ));
    }
    let outcome = volume.wait_for(until.into(), below, &mut |status| {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            gave_up = Some(too_late(status, until));
        } else if !progress(meter.read(status)) {
            gave_up = Some(Failure::stopped("stopped waiting; uploads go on"));
        }
        gave_up.is_none()
    });
    match (gave_up, outcome) {
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(())) => {
            let status = volume.status();
            Ok(json!({
                "until": until,
                "epoch_local": status.epoch_local,
                "epoch_archived": status.epoch_archived,
            }))
        }
    }
}

fn too_late(status: &Status, until: Until) -> Failure {
    let unsent = status.packs.unsent_bytes;
    let until = match until {
        Until::Local => "local",
        Until::External => "external",
        Until::Archived => "archived",
    };
    match &status.upload {
        UploadState::Down { reason, .. } => Failure::new(
            FailureKind::Unreachable,
            format!(
                "not {until} in time: {unsent} bytes are unsent, and the external volume does not answer: {reason}"
            ),
        ),
        UploadState::Connecting => Failure::new(
            FailureKind::Unreachable,
            format!(
                "not {until} in time: {unsent} bytes are unsent, and the external volume does not answer"
            ),
        ),
        _ => Failure::stopped(format!(
            "not {until} in time: {unsent} bytes are unsent; uploads go on while the volume is open"
        )),
    }
}

/// Reads the progress of uploads off the status: what was unsent at most is the whole.
#[derive(Debug, Default)]
pub struct Meter {
    most_bytes: u64,
}

impl Meter {
    /// How far it is.
    pub fn read(&mut self, status: &Status) -> Progress {
        let unsent = status.packs.unsent_bytes;
        self.most_bytes = self.most_bytes.max(unsent);
        Progress {
            step: "uploading".into(),
            done_bytes: self.most_bytes - unsent,
            total_bytes: Some(self.most_bytes),
            note: match &status.upload {
                UploadState::Down { reason, .. } => {
                    Some(format!("waiting for the external volume: {reason}"))
                }
                UploadState::Refused { reason } => Some(reason.clone()),
                UploadState::Connecting => Some("waiting for the external volume".into()),
                UploadState::Off | UploadState::Up => None,
            },
            files: None,
        }
    }
}

/// What is left when a volume was closed.
pub fn leftover(status: &Status) -> Value {
    let has_store = status.store != Store::Local;
    json!({
        "store": status.store,
        "unsent_packs": if has_store { status.packs.unsent_count } else { 0 },
        "unsent_bytes": if has_store { status.packs.unsent_bytes } else { 0 },
        "is_archived": has_store && status.epoch_archived >= status.epoch_local,
        "upload": status.upload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_cannot_have_a_name_that_no_directory_could_have() {
        for name in ["", ".", "..", "a/b", "a\nb", ".hidden", " a", "a "] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name(&"a".repeat(256)).is_err());
        assert!(check_name("before the upgrade").is_ok());
    }
}
