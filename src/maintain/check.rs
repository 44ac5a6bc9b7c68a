//! `check`: is everything there that should be, and is it what it should be.
//!
//! Reads only, takes no lock, and so works beside a daemon. What moves under it is looked at again before
//! it is called a problem. Memory: the index of a few packs, and a number for each inode with several names.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::format::frame::PackExtent;
use crate::format::record::{CLAIMS_PREFIX, Claim, EPOCHS_PREFIX, EpochRecord};
use crate::format::segment::BlockCache;
use crate::journal::{self, replay};
use crate::maintain::{external, packs, tree};
use crate::pack::ledger::peek;
use crate::types::{Epoch, Lsn, PackId, SessionId, Uuid};
use crate::volume::archive::{Archive, newest_local_record};
use crate::volume::init;
use crate::volume::lock::PathLock;
use crate::volume::open::store_uuid;
use crate::volume::settings::Settings;

/// Memory for decoded segment blocks.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// How often something that moves is looked at before it counts as damaged.
const LOOKS: usize = 4;
const BETWEEN_LOOKS: std::time::Duration = std::time::Duration::from_millis(100);

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

pub(super) const RESTORE_METADATA: &str = "tidefs check --fix puts it back from the external volume, if it is whole there; until then \
     mount that (tidefs mount --external) and copy out what is needed";

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
    let open_packs = check_journal(root, volume, &mut report);
    let cache = Arc::new(BlockCache::new(BLOCK_CACHE_BYTES));
    let archive =
        looked_at_again(|| Archive::open(root, volume, SessionId([0; 8]), Arc::clone(&cache)));
    let look = || peek(&root.join(journal::DIR), store_uuid(&settings));
    let ledger = look()?;
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
            tree::check(root, &view, &ledger.packs, &mut report);
        }
        Err(error) => report.add_error("accounts", error, RESTORE_METADATA),
    }
    // Eviction may empty a pack between the look at the ledger and the one at the pack.
    let is_evicted = |pack: PackId| {
        let again = look().map(|again| again.packs).unwrap_or_default();
        again.iter().any(|(of, entry)| *of == pack && entry.evicted)
    };
    packs::check_local(
        root,
        &ledger.packs,
        &is_evicted,
        options.read_data,
        &mut report,
        progress,
    );
    packs::check_open(root, &ledger.packs, &open_packs, &mut report);
    if options.external {
        let far = external::Far {
            root,
            identity: &identity,
            settings: &settings,
            ledger: &ledger,
        };
        far.check(options.read_data, &mut report, progress);
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

/// Returns the packs that the journal names, with how much of them is committed.
fn check_journal(root: &Path, volume: Uuid, report: &mut CheckReport) -> Vec<PackExtent> {
    let look = || {
        let covered = match newest_local_record(root) {
            Ok(record) => {
                record.map_or_else(Default::default, |record| (record.epoch, record.last_lsn()))
            }
            // Which frame should be the first is not known: that the record is damaged is told elsewhere.
            Err(_) => (Epoch(u64::MAX), Lsn(0)),
        };
        replay::replay(&root.join(journal::DIR), volume.0, Epoch(0), covered)
    };
    report.objects += 1;
    match looked_at_again(look) {
        Ok(replay) => replay.packs,
        Err(error) => {
            report.add_error(
                "journal",
                error,
                "tidefs check --fix moves what is behind this point to lost+found",
            );
            Vec::new()
        }
    }
}

/// The record in front of the one that is looked at.
enum Before {
    Nothing,
    Damaged,
    Record(Epoch, String),
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
    let adopted = adopted_epoch(root);
    let mut before = Before::Nothing;
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
                let chained = match (&before, &record.parent) {
                    (Before::Damaged, _) | (Before::Nothing, None) => Ok(()),
                    // An external volume has not every record, and this one came from there.
                    _ if record.epoch <= adopted => Ok(()),
                    (Before::Record(_, parent), Some(named)) if parent == named => Ok(()),
                    (Before::Record(epoch, _), _) if epoch.next() == record.epoch => {
                        Err(format!("its parent is not the record of epoch {epoch}"))
                    }
                    _ => {
                        let parent = record.epoch.0.saturating_sub(1);
                        Err(format!(
                            "its parent, {EPOCHS_PREFIX}{parent:016x}, is missing"
                        ))
                    }
                };
                if let Err(reason) = chained {
                    report.add(path.display().to_string(), None, reason, RESTORE_METADATA);
                }
                before = Before::Record(record.epoch, hash);
            }
            Err(error) => {
                before = Before::Damaged;
                report.add_error(&path.display().to_string(), error, RESTORE_METADATA);
            }
        }
    }
}

/// The newest epoch that did not come into being here, but was taken over from an external volume.
fn adopted_epoch(root: &Path) -> Epoch {
    let dir = root.join(CLAIMS_PREFIX);
    // There is none before the first take-over.
    let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
    let claims = entries.filter_map(|entry| {
        let name = format!("{CLAIMS_PREFIX}{}", entry.file_name().to_string_lossy());
        let bytes = fs::read(entry.path()).ok()?;
        Claim::parse(&name, &bytes).ok()
    });
    claims.map(|claim| claim.epoch).max().unwrap_or_default()
}

/// Removes the index of a backup path that nobody has open; the next opening fills it anew.
pub fn rebuild_index(root: &Path) -> Result<()> {
    init::read_identity(root)?;
    let _lock = PathLock::take(root)?;
    rebuild(root)
}

/// The same for who has the lock.
pub(super) fn rebuild(root: &Path) -> Result<()> {
    let dir = root.join("index");
    match fs::remove_dir_all(&dir) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("remove", &dir)(error)),
    }
    fs::create_dir(&dir).map_err(Error::io("create", &dir))
}
