//! `check`: is everything there that should be, and is it what it should be.
//!
//! Reads only, takes no lock, and so works beside a daemon. What moves under it is looked at again before
//! it is called a problem. Memory: the index of a few packs, and a number for each inode with several names.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::format::record::{EPOCHS_PREFIX, EpochRecord, Identity};
use crate::format::segment::BlockCache;
use crate::journal::{self, replay};
use crate::maintain::{packs, tree};
use crate::types::{Epoch, SessionId, Uuid};
use crate::volume::archive::Archive;
use crate::volume::external::open_external;
use crate::volume::init;
use crate::volume::lock::PathLock;
use crate::volume::open::store_uuid;
use crate::volume::settings::{Settings, Store};

/// Memory for decoded segment blocks.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// How often something that moves is looked at before it counts as damaged.
const LOOKS: usize = 4;
const BETWEEN_LOOKS: std::time::Duration = std::time::Duration::from_millis(300);

/// What to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Every byte of every pack, not only their indexes.
    pub read_data: bool,
    /// The external volume too.
    pub external: bool,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// File or object.
    pub object: String,
    /// Where in it, if that can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub advice: String,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Everything that is wrong; empty is good.
    pub problems: Vec<Problem>,
    /// Files and objects that were looked at.
    pub objects: u64,
    /// Bytes that were read of packs.
    pub bytes: u64,
    /// Inodes of the newest epoch.
    pub inodes: u64,
}

/// Told how many bytes of packs were read.
pub type OnProgress<'a> = &'a mut dyn FnMut(&str, u64);

impl CheckReport {
    /// Notes a problem.
    pub(super) fn add(
        &mut self,
        object: impl Into<String>,
        offset: Option<u64>,
        reason: impl Into<String>,
        advice: &str,
    ) {
        self.problems.push(Problem {
            object: object.into(),
            offset,
            reason: reason.into(),
            advice: advice.into(),
        });
    }

    /// Notes a failure as a problem.
    pub(super) fn add_error(&mut self, fallback: &str, error: Error, advice: &str) {
        match error {
            Error::Corrupt {
                object,
                offset,
                reason,
            } => self.add(object, Some(offset), reason, advice),
            Error::Io { op, path, source } => {
                self.add(
                    path.display().to_string(),
                    None,
                    format!("cannot {op}: {source}"),
                    advice,
                );
            }
            other => self.add(fallback, None, other.chain(), advice),
        }
    }
}

const RESTORE_METADATA: &str = "the backup path's metadata is damaged: mount the external volume (tidefs mount --external) \
     and copy out what is needed, or put this file back from a copy";

/// Checks the backup path `root`, and with `external` its external volume.
pub fn check(root: &Path, options: CheckOptions, progress: OnProgress<'_>) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let identity = match init::read_identity(root) {
        Ok(identity) => identity,
        Err(error @ Error::Refused(_)) => return Err(error),
        Err(error) => {
            report.add_error("server/volume.json", error, RESTORE_METADATA);
            return Ok(report);
        }
    };
    let settings = Settings::read(root).unwrap_or_else(|error| {
        report.add_error(
            "settings.json",
            error,
            "write {} into it for the defaults, then set the store again: tidefs store set",
        );
        Settings::default()
    });
    report.objects += 2;
    let volume = identity.uuid().unwrap_or(Uuid([0; 16]));
    check_records(root, &mut report);
    check_journal(root, volume, &mut report);
    let cache = Arc::new(BlockCache::new(BLOCK_CACHE_BYTES));
    let archive =
        looked_at_again(|| Archive::open(root, volume, SessionId([0; 8]), Arc::clone(&cache)));
    let ledger = crate::pack::ledger::peek(&root.join(journal::DIR), store_uuid(&settings))?;
    match archive {
        Ok(archive) => {
            let view = archive.newest().view;
            for segment in view.segments() {
                report.objects += 1;
                let path = segment.source_name().to_owned();
                if let Err(error) = segment.verify()
                    && Path::new(&path).exists()
                {
                    report.add_error(&path, error, RESTORE_METADATA);
                }
            }
            tree::check(root, &view, &ledger, &mut report);
        }
        Err(error) => report.add_error("accounts", error, RESTORE_METADATA),
    }
    packs::check_local(root, &ledger, options.read_data, &mut report, progress);
    if options.external {
        check_external(
            &identity,
            &settings,
            &ledger,
            options.read_data,
            &mut report,
            progress,
        );
    }
    Ok(report)
}

/// Looks several times, so that what was just being replaced is not called damaged.
fn looked_at_again<T>(look: impl Fn() -> Result<T>) -> Result<T> {
    let mut outcome = look();
    for _ in 1..LOOKS {
        if outcome.is_ok() {
            break;
        }
        std::thread::sleep(BETWEEN_LOOKS);
        outcome = look();
    }
    outcome
}

fn check_journal(root: &Path, volume: Uuid, report: &mut CheckReport) {
    let look = || replay::replay(&root.join(journal::DIR), volume.0, Epoch(0));
    report.objects += 1;
    if let Err(error) = looked_at_again(look) {
        report.add_error(
            "journal",
            error,
            "acknowledged changes are lost there; see the text",
        );
    }
}

/// Every local record parses, and names its parent by the hash of the one before.
fn check_records(root: &Path, report: &mut CheckReport) {
    let dir = root.join(EPOCHS_PREFIX);
    let listed = fs::read_dir(&dir).map_err(Error::io("list", &dir));
    let mut names: Vec<String> = match listed {
        Ok(entries) => entries
            .filter_map(|entry| {
                Some(format!(
                    "{EPOCHS_PREFIX}{}",
                    entry.ok()?.file_name().to_string_lossy()
                ))
            })
            .filter(|name| EpochRecord::parse_name(name).is_some())
            .collect(),
        Err(error) => return report.add_error("server/epochs", error, RESTORE_METADATA),
    };
    names.sort();
    let mut before: Option<(Epoch, String)> = None;
    for name in names {
        report.objects += 1;
        let path = root.join(&name);
        let record = fs::read(&path)
            .map_err(Error::io("read", &path))
            .and_then(|bytes| {
                Ok((
                    EpochRecord::parse(&name, &bytes)?,
                    EpochRecord::hash(&bytes),
                ))
            });
        match record {
            Ok((record, hash)) => {
                let follows = before
                    .as_ref()
                    .filter(|(epoch, _)| epoch.next() == record.epoch);
                if let Some((epoch, parent)) = follows
                    && record.parent.as_ref() != Some(parent)
                {
                    let reason = format!("its parent is not the record of epoch {epoch}");
                    report.add(path.display().to_string(), None, reason, RESTORE_METADATA);
                }
                before = Some((record.epoch, hash));
            }
            Err(error) => {
                before = None;
                report.add_error(&path.display().to_string(), error, RESTORE_METADATA);
            }
        }
    }
}

fn check_external(
    identity: &Identity,
    settings: &Settings,
    ledger: &packs::Ledgered,
    read_data: bool,
    report: &mut CheckReport,
    progress: OnProgress<'_>,
) {
    const ADVICE: &str = "the external volume is damaged there: if the backup path has the pack or segment, \
         copy it back under the same name";
    let Store::Dir { path, .. } = &settings.store else {
        report.add(
            "settings.json",
            None,
            "no external volume is set",
            "set one: tidefs store set dir PATH",
        );
        return;
    };
    let external: Arc<dyn vfs::Volume> = match vfs::DirVolume::open(path) {
        Ok(external) => Arc::new(external),
        Err(error) => {
            return report.add_error(
                &path.display().to_string(),
                error.into(),
                "mount it, or wait until it is back",
            );
        }
    };
    match init::external_identity(&*external) {
        Ok(Some(there)) if there.volume == identity.volume => {}
        Ok(_) => {
            return report.add(
                external.to_string(),
                None,
                "it is not this backup path's external volume",
                "mount the right one",
            );
        }
        Err(error) => return report.add_error(&external.to_string(), error, ADVICE),
    }
    match open_external(Arc::clone(&external)) {
        Ok(volume) => {
            for segment in volume.segments() {
                report.objects += 1;
                if let Err(error) = segment.verify() {
                    report.add_error(segment.source_name(), error, ADVICE);
                }
            }
        }
        // Nothing archived yet is no damage.
        Err(Error::Refused(_)) if !ledger.iter().any(|(_, entry)| packs::is_uploaded(entry)) => {}
        Err(error) => report.add_error(&external.to_string(), error, ADVICE),
    }
    packs::check_external(&*external, ledger, read_data, report, progress);
}

/// Removes the index of a backup path that nobody has open; the next opening fills it anew.
pub fn rebuild_index(root: &Path) -> Result<()> {
    init::read_identity(root)?;
    let _lock = PathLock::take(root)?;
    let dir = root.join("index");
    match fs::remove_dir_all(&dir) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("remove", &dir)(error)),
    }
    fs::create_dir(&dir).map_err(Error::io("create", &dir))
}
