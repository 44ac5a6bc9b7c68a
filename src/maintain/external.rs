//! The external volume of a check: is it ours, are its records those we wrote, are its segments and packs whole.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use vfs::{ObjectKey, VolumeExt};

use crate::error::{Error, Result};
use crate::format::record::{EPOCHS_PREFIX, EpochRecord, Identity};
use crate::maintain::check::{CheckReport, OnProgress};
use crate::maintain::packs;
use crate::pack::ledger::Peeked;
use crate::types::Epoch;
use crate::volume::external::{RECORD_LEN_MAX, open_external};
use crate::volume::settings::Settings;
use crate::volume::store::open_store;

pub(super) const ADVICE: &str =
    "tidefs check --fix sends it again, if the backup path has it whole";
const UNREACHABLE: &str = "mount it, or wait until it is back";

/// An external volume and what the backup path knows of it.
#[derive(Clone, Copy)]
pub(super) struct Far<'a> {
    pub(super) root: &'a Path,
    pub(super) identity: &'a Identity,
    pub(super) settings: &'a Settings,
    pub(super) ledger: &'a Peeked,
}

impl Far<'_> {
    /// Opens it; it must be the copy that the settings name.
    pub(super) fn open(&self) -> Result<Option<Arc<dyn vfs::Volume>>> {
        open_store(self.identity, self.settings)
    }

    /// Checks it.
    pub(super) fn check(
        &self,
        read_data: bool,
        report: &mut CheckReport,
        progress: OnProgress<'_>,
    ) {
        let external = match self.open() {
            Ok(Some(external)) => external,
            Ok(None) => {
                return report.add(
                    "settings.json",
                    None,
                    "no external volume is set",
                    "set one: tidefs store set",
                );
            }
            Err(error) => return report.add_error("the external volume", error, UNREACHABLE),
        };
        if let Err(error) = self.check_records(&*external, report) {
            report.add_error(&external.to_string(), error, UNREACHABLE);
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
            Err(Error::Refused(_)) if self.ledger.archived == Epoch(0) => {}
            Err(error) => report.add_error(&external.to_string(), error, ADVICE),
        }
        packs::check_external(&*external, &self.ledger.packs, read_data, report, progress);
    }

    /// Every record there parses and is, byte for byte, the one here; the newest that we archived is there.
    fn check_records(&self, external: &dyn vfs::Volume, report: &mut CheckReport) -> Result<()> {
        let mut newest = Epoch(0);
        external.for_each(EPOCHS_PREFIX, |meta| -> Result<()> {
            let Some((epoch, _)) = EpochRecord::parse_name(meta.key.as_str()) else {
                return Ok(());
            };
            report.objects += 1;
            newest = newest.max(epoch);
            let object = format!("{external}/{}", meta.key);
            if let Err(error) = self.check_record(external, &meta.key) {
                report.add_error(&object, error, ADVICE);
            }
            Ok(())
        })?;
        if newest < self.ledger.archived {
            let archived = self.ledger.archived;
            let object = format!("{external}/{EPOCHS_PREFIX}{:016x}", archived.0);
            let reason = format!("epoch {archived} was archived and its record is not there");
            report.add(object, None, reason, ADVICE);
        }
        Ok(())
    }

    fn check_record(&self, external: &dyn vfs::Volume, key: &ObjectKey) -> Result<()> {
        let there = external.get_whole(key, RECORD_LEN_MAX)?;
        EpochRecord::parse(key.as_str(), &there)?;
        let here = fs::read(self.root.join(key.as_str()));
        if here.is_ok_and(|here| here != there) {
            return Err(Error::corrupt(
                key.to_string(),
                0,
                "it is another than the one of this name in the backup path",
            ));
        }
        Ok(())
    }
}
