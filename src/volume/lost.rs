//! Whether the newest epoch record that is there is the newest that was written.
//!
//! A record that is gone leaves the one before as the newest, and that one shows an older state as if
//! nothing had happened since. So a record's traces are looked for, and where they are newer the volume is
//! not opened: a segment whose epoch is neither in a record nor in the journal any more, an index that has
//! absorbed a later epoch, a ledger that has seen one archived.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::format::record::EpochRecord;
use crate::format::segment::SegmentName;
use crate::journal::{self, replay};
use crate::types::Epoch;
use crate::volume::archive::SEGMENTS_DIR;

/// The newest segment below `root` of an epoch after `newest` whose record must have been written: the
/// journal's file of an epoch goes only after its record is durable.
pub fn trace_of_lost_record(root: &Path, newest: Epoch) -> Result<Option<SegmentName>> {
    let dir = root.join(SEGMENTS_DIR);
    let mut last: Option<SegmentName> = None;
    for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
        let entry = entry.map_err(Error::io("list", &dir))?;
        let name = entry
            .file_name()
            .to_str()
            .and_then(SegmentName::parse_file_name);
        if let Some(name) = name.filter(|name| name.last > newest)
            && last.is_none_or(|last| last.last < name.last)
        {
            last = Some(name);
        }
    }
    match last {
        Some(name) if !replay::has_epoch(&root.join(journal::DIR), name.last)? => Ok(Some(name)),
        _ => Ok(None),
    }
}

/// The error for a record that is gone although `trace` of it is there.
pub fn lost_record(root: &Path, newest: Epoch, trace: &SegmentName) -> Error {
    let object = root.join(EpochRecord::name(trace.last, trace.session));
    let reason = format!(
        "it is missing, but its segment {trace} is there and its journal is not; the newest record that is there is of \
         epoch {newest}. {ADVICE}"
    );
    Error::corrupt(object.display().to_string(), 0, reason)
}

/// Refuses when `witness` knows of an epoch that no record is there of.
pub fn refuse_older(root: &Path, newest: Epoch, witness: &str, knows: Epoch) -> Result<()> {
    if knows <= newest {
        return Ok(());
    }
    let object = root.join(crate::format::record::EPOCHS_PREFIX);
    let reason = format!(
        "the record of epoch {knows} ({:016x}) is missing: {witness} knows of it; the newest one that is there is of \
         epoch {newest}. {ADVICE}",
        knows.0
    );
    Err(Error::corrupt(object.display().to_string(), 0, reason))
}

const ADVICE: &str = "An older state is not shown in its place, and nothing was changed. Run tidefs check --fix, which \
     takes it from the external volume, or writes it anew from its segments";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;

    #[test]
    fn a_segment_newer_than_every_record_is_a_trace_unless_the_journal_has_its_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join(SEGMENTS_DIR)).unwrap();
        fs::create_dir(root.join(journal::DIR)).unwrap();
        let name = SegmentName {
            first: Epoch(3),
            last: Epoch(7),
            session: SessionId([1; 8]),
            digest: [0; 8],
        };
        fs::write(root.join(name.to_string()), b"").unwrap();
        assert_eq!(trace_of_lost_record(root, Epoch(7)).unwrap(), None);
        assert_eq!(trace_of_lost_record(root, Epoch(6)).unwrap(), Some(name));
        let session = SessionId([2; 8]);
        let journal = format!("{}/{:016x}-{session}.log", journal::DIR, 7);
        fs::write(root.join(journal), b"").unwrap();
        assert_eq!(trace_of_lost_record(root, Epoch(6)).unwrap(), None);
    }
}
