//! `check --fix`: puts right what one of the two places still has whole.
//!
//! Needs the backup path for itself. Nothing is destroyed (invariant 11): what is replaced or taken out goes
//! to `lost+found/` first, and a damaged object is only replaced by one that was verified to its last byte.
//! What neither place has whole is left as it is, and named by the check at the end.
//!
//! In the order of what rests on what: identity, records and segments (`metadata`), the journal
//! (`journal`), packs here and there (`packs`), then records and segments there (`away`).

mod away;
mod journal;
mod metadata;
mod packs;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::clock::{Clock, civil};
use crate::error::{Error, Result};
use crate::format::record::Identity;
use crate::maintain::check::{CheckOptions, CheckReport, OnProgress, check, rebuild};
use crate::maintain::external::Far;
use crate::pack::ledger::Ledger;
use crate::types::Uuid;
use crate::volume::lock::PathLock;
use crate::volume::open::store_uuid;
use crate::volume::settings::{Settings, sync_dir};

/// Something that was put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// File or object.
    pub object: String,
    /// What was done to it.
    pub done: String,
}

/// What a repair did, and what is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FixReport {
    /// What was put right, in order.
    pub repairs: Vec<Repair>,
    /// Where what was replaced or taken out is now.
    pub lost_and_found: Vec<PathBuf>,
    /// A check after it.
    pub after: CheckReport,
}

/// Puts right what can be put right at the backup path `root` and on its external volume. With
/// `read_data` every byte of the packs is looked at, else their indexes and lengths.
pub fn fix(
    root: &Path,
    read_data: bool,
    clock: &dyn Clock,
    progress: OnProgress<'_>,
) -> Result<FixReport> {
    let lock = PathLock::take(root)?;
    let settings = Settings::read(root)?;
    let mut done = Done {
        root: root.to_owned(),
        time: civil(clock.now()).replace(':', "-"),
        repairs: Vec::new(),
        lost_and_found: Vec::new(),
    };
    let identity = metadata::identity(root, &settings, &mut done)?;
    let ledger = crate::pack::ledger::peek(&root.join(crate::journal::DIR), store_uuid(&settings))?;
    let far = Far {
        root,
        identity: &identity,
        settings: &settings,
        ledger: &ledger,
    };
    // Without it, what the backup path alone can put right is put right.
    let external = far.open().ok().flatten();
    let mut fix = Fix {
        root,
        volume: identity.uuid().unwrap_or(Uuid([0; 16])),
        identity: &identity,
        external,
        ledger: Ledger::open(&root.join(crate::journal::DIR), store_uuid(&settings))?,
        now: clock.now().secs,
        done: &mut done,
    };
    let repairs_before = fix.done.repairs.len();
    fix.records()?;
    fix.segments()?;
    fix.journal()?;
    // A segment may have been all that was left of an epoch whose journal was damaged.
    fix.records()?;
    let is_metadata_changed = fix.done.repairs.len() > repairs_before;
    fix.local_packs(read_data, progress)?;
    fix.external_packs(read_data, progress)?;
    fix.external_metadata()?;
    fix.ledger.sync()?;
    let has_external = fix.external.is_some();
    drop(fix);
    if is_metadata_changed {
        rebuild(root)?;
    }
    let options = CheckOptions {
        read_data,
        external: has_external,
    };
    let after = check(root, options, progress)?;
    drop(lock);
    Ok(FixReport {
        repairs: done.repairs,
        lost_and_found: done.lost_and_found,
        after,
    })
}

/// A repair under way.
struct Fix<'a> {
    root: &'a Path,
    volume: Uuid,
    identity: &'a Identity,
    external: Option<Arc<dyn vfs::Volume>>,
    ledger: Ledger,
    now: i64,
    done: &'a mut Done,
}

/// What was done, and where what was taken out went.
struct Done {
    root: PathBuf,
    time: String,
    repairs: Vec<Repair>,
    lost_and_found: Vec<PathBuf>,
}

impl Done {
    fn note(&mut self, object: impl Into<String>, done: impl Into<String>) {
        let (object, done) = (object.into(), done.into());
        tracing::warn!(object, done, "put right");
        self.repairs.push(Repair { object, done });
    }

    /// The directory of this repair for `what`, made durable when it is first asked for.
    fn aside(&mut self, what: &str) -> Result<PathBuf> {
        let parent = self.root.join("lost+found");
        let dir = parent.join(format!("{}-{what}", self.time));
        if !self.lost_and_found.contains(&dir) {
            fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
            sync_dir(&parent)?;
            sync_dir(&self.root)?;
            self.lost_and_found.push(dir.clone());
        }
        Ok(dir)
    }

    /// Moves a file of the backup path to where it can be found again.
    fn set_aside(&mut self, path: &Path, what: &str) -> Result<()> {
        let to = self.place_of(path, what)?;
        fs::rename(path, &to).map_err(Error::io("move", path))?;
        sync_dir(to.parent().unwrap_or(&to))?;
        sync_dir(path.parent().unwrap_or(path))
    }

    /// Keeps `bytes` that are about to be replaced under the name `name`.
    fn keep(&mut self, name: &str, bytes: &[u8], what: &str) -> Result<()> {
        let to = self.place_of(Path::new(name), what)?;
        crate::volume::settings::rewrite(&to, bytes)
    }

    /// A name for it that is free.
    fn place_of(&mut self, path: &Path, what: &str) -> Result<PathBuf> {
        let dir = self.aside(what)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut to = dir.join(&*name);
        for number in 1.. {
            if !to.exists() {
                break;
            }
            to = dir.join(format!("{name}.{number}"));
        }
        Ok(to)
    }
}
