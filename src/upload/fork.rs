//! Whether somebody else writes to our external volume (invariant 7).
//!
//! Names carry the session, so that another writer, a copy of this server or this server rolled back in time, never
//! overwrites: its records stand beside ours, and are seen here. No store's conditional put is relied on.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;

use vfs::{Body, Likeness, Meta, ObjectKey, Volume, VolumeExt};

use crate::error::{Error, Result};
use crate::format::record::{CLAIMS_PREFIX, Claim, EPOCHS_PREFIX, EpochRecord};
use crate::types::{Epoch, SessionId};
use crate::upload::put;

/// Longest epoch record that is read.
pub const RECORD_LEN_MAX: u64 = 64 << 20;
/// Longest claim that is read.
pub const CLAIM_LEN_MAX: u64 = 64 << 10;
/// The newest records, which are compared byte for byte; older ones by name and length.
const COMPARED: usize = 8;
/// Objects listed at once: what S3 gives in one answer.
const PAGE_LEN: NonZeroUsize = NonZeroUsize::new(1000).unwrap();

/// An epoch record on an external volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordObject {
    /// Its epoch.
    pub epoch: Epoch,
    /// Who closed it.
    pub session: SessionId,
    /// The object.
    pub meta: Meta,
}

impl RecordObject {
    fn of(meta: Meta, below: &str) -> Option<RecordObject> {
        let (epoch, session) = EpochRecord::parse_name(meta.key.as_str().strip_prefix(below)?)?;
        Some(RecordObject {
            epoch,
            session,
            meta,
        })
    }
}

/// The records of `from` and later ones, in order, of the volume below `below` (empty, or ending in a slash).
pub fn records_from(volume: &dyn Volume, below: &str, from: Epoch) -> Result<Vec<RecordObject>> {
    let mut found = Vec::new();
    let mut after = before_epoch(below, from)?;
    loop {
        let (more, last) = page(volume, below, &after, PAGE_LEN, &mut found)?;
        match last {
            Some(last) if more => after = last,
            _ => return Ok(found),
        }
    }
}

/// The records of the newest epoch: one, or none before the first, or several after a fork. Takes a handful of
/// listings however many records there are.
pub fn newest_records(volume: &dyn Volume, below: &str) -> Result<Vec<RecordObject>> {
    let mut found = Vec::new();
    let (more, _) = page(
        volume,
        below,
        &before_epoch(below, Epoch(0))?,
        PAGE_LEN,
        &mut found,
    )?;
    let Some(last) = found.last().map(|record| record.epoch).filter(|_| more) else {
        return Ok(of_newest(found));
    };
    // Far ahead in doubling steps, then between the last hit and the first miss.
    let is_there = |epoch: Epoch| -> Result<Option<Epoch>> {
        let mut found = Vec::new();
        page(
            volume,
            below,
            &before_epoch(below, epoch)?,
            NonZeroUsize::MIN,
            &mut found,
        )?;
        Ok(found.first().map(|record: &RecordObject| record.epoch))
    };
    let (mut hit, mut step) = (last, PAGE_LEN.get() as u64);
    let mut miss = loop {
        let probe = Epoch(hit.0.saturating_add(step));
        match is_there(probe)? {
            Some(there) => hit = there,
            None => break probe,
        }
        step = step.saturating_mul(2);
    };
    while miss.0 - hit.0 > PAGE_LEN.get() as u64 {
        let probe = Epoch(hit.0 + (miss.0 - hit.0) / 2);
        match is_there(probe)? {
            Some(there) => hit = there,
            None => miss = probe,
        }
    }
    Ok(of_newest(records_from(volume, below, hit)?))
}

fn of_newest(mut records: Vec<RecordObject>) -> Vec<RecordObject> {
    let newest = records.iter().map(|record| record.epoch).max();
    records.retain(|record| Some(record.epoch) == newest);
    records
}

/// A key behind all records before `epoch`, and in front of its own.
fn before_epoch(below: &str, epoch: Epoch) -> Result<ObjectKey> {
    Ok(ObjectKey::new(format!(
        "{below}{EPOCHS_PREFIX}{:016x}",
        epoch.0
    ))?)
}

/// Adds one page of records. Tells whether there are more, and the last key.
fn page(
    volume: &dyn Volume,
    below: &str,
    after: &ObjectKey,
    limit: NonZeroUsize,
    found: &mut Vec<RecordObject>,
) -> Result<(bool, Option<ObjectKey>)> {
    let page = volume.list(&format!("{below}{EPOCHS_PREFIX}"), Some(after), limit)?;
    let last = page.objects.last().map(|meta| meta.key.clone());
    if page.more && last.as_ref().is_none_or(|last| last <= after) {
        let object = format!("{volume}/{below}{EPOCHS_PREFIX}");
        return Err(Error::corrupt(
            object,
            0,
            "the listing does not advance: the volume is faulty",
        ));
    }
    let records = page.objects.into_iter();
    found.extend(records.filter_map(|meta| RecordObject::of(meta, below)));
    Ok((page.more, last))
}

const ADVICE: &str = "Nothing was written. If the other writer is gone for good, tidefs store set with --take-over goes \
     on from what it wrote, and keeps what is only here in lost+found; or attach an empty directory or prefix, and both \
     branches stay readable";

/// The refusal of a volume where `key` is not what we wrote.
pub(super) fn foreign(volume: &dyn Volume, key: &ObjectKey) -> Error {
    Error::Refused(format!(
        "{volume} was written by somebody else: {key} is not this backup path's. A copy or an older state of this backup \
         path is in use elsewhere. {ADVICE}"
    ))
}

/// Whether the last record that we archived is seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum LastRecord {
    /// It is.
    Seen,
    /// It is not, and why nothing is to be written if that lasts. A listing may be late: one look is no verdict.
    Missing(String),
}

/// Refuses where records behind the last one we archived are not ours, byte for byte, or where somebody took the
/// volume over: then another server, or another state of this one, writes to the same place.
///
/// A record of ours that is damaged there says so itself, and is put again.
pub(super) fn refuse_fork(root: &Path, volume: &dyn Volume, archived: Epoch) -> Result<LastRecord> {
    refuse_taken_over(root, volume)?;
    let there = records_from(volume, "", archived)?;
    let compared = there.len().saturating_sub(COMPARED);
    for (n, record) in there.iter().enumerate() {
        let key = &record.meta.key;
        let path = root.join(key.as_str());
        let has_len = |here: std::fs::Metadata| here.len() == record.meta.len;
        if n < compared && std::fs::metadata(&path).is_ok_and(has_len) {
            continue;
        }
        let bytes = volume.get_whole(key, RECORD_LEN_MAX)?;
        match std::fs::read(&path) {
            Ok(here) if here == bytes => {}
            // Its name is of a session of ours.
            Ok(here) if put::is_damaged_record(key, &bytes) => {
                put::put(volume, key, Body::Bytes(&here))?;
            }
            _ => return Err(foreign(volume, key)),
        }
    }
    let is_seen = archived == Epoch(0)
        || there.iter().any(|record| record.epoch == archived)
        || is_there_unlisted(root, volume, archived)?;
    Ok(if is_seen {
        LastRecord::Seen
    } else {
        LastRecord::Missing(format!(
            "{volume} no longer has our epoch {archived}, which was archived there. {ADVICE}"
        ))
    })
}

/// Whether our record of `epoch` is there, though no listing shows it yet.
fn is_there_unlisted(root: &Path, volume: &dyn Volume, epoch: Epoch) -> Result<bool> {
    for (name, here) in local_records(root, epoch)? {
        let key = ObjectKey::new(name)?;
        if volume.holds(&key, Body::Bytes(&here))? == Likeness::Same {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Our records of `epoch`, by name: one, unless a take-over left another beside it.
fn local_records(root: &Path, epoch: Epoch) -> Result<Vec<(String, Vec<u8>)>> {
    let dir = root.join(EPOCHS_PREFIX);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
        let name = entry.map_err(Error::io("list", &dir))?.file_name();
        let name = format!("{EPOCHS_PREFIX}{}", name.to_string_lossy());
        if EpochRecord::parse_name(&name).is_some_and(|(number, _)| number == epoch) {
            let path = root.join(&name);
            let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            found.push((name, bytes));
        }
    }
    Ok(found)
}

/// The segments that our record of `epoch` names; none where it cannot be read.
pub(super) fn segments_of(root: &Path, epoch: Epoch) -> Result<BTreeSet<String>> {
    let mut segments = BTreeSet::new();
    for (name, bytes) in local_records(root, epoch)? {
        if let Ok(record) = EpochRecord::parse(&name, &bytes) {
            segments.extend(record.segments.into_iter().map(|segment| segment.name));
        }
    }
    Ok(segments)
}

/// The claims on a volume, oldest first.
pub fn claims(volume: &dyn Volume, below: &str) -> Result<Vec<(ObjectKey, Claim)>> {
    let mut keys = Vec::new();
    volume.for_each(&format!("{below}{CLAIMS_PREFIX}"), |meta| -> Result<()> {
        keys.push(meta.key);
        Ok(())
    })?;
    keys.into_iter()
        .map(|key| {
            let bytes = volume.get_whole(&key, CLAIM_LEN_MAX)?;
            let claim = Claim::parse(&format!("{volume}/{key}"), &bytes)?;
            Ok((key, claim))
        })
        .collect()
}

/// Every claim there must be here too: ours is.
fn refuse_taken_over(root: &Path, volume: &dyn Volume) -> Result<()> {
    for (key, claim) in claims(volume, "")? {
        let here = std::fs::read(root.join(key.as_str()));
        if here.is_ok_and(|here| here == claim.encode()) {
            continue;
        }
        return Err(Error::Refused(format!(
            "{volume} was taken over by {}, which goes on from its epoch {} ({key}): this backup path is no longer its \
             owner. {ADVICE}",
            claim.owner, claim.epoch
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use vfs::{MemoryVolume, Precondition};

    use super::*;

    fn put(volume: &dyn Volume, below: &str, epoch: u64, session: u8) {
        let name = EpochRecord::name(Epoch(epoch), SessionId([session; 8]));
        let key = ObjectKey::new(format!("{below}{name}")).unwrap();
        volume
            .put(&key, Body::Bytes(b"x"), Precondition::None)
            .unwrap();
    }

    fn newest(volume: &dyn Volume, below: &str) -> Vec<u64> {
        let found = newest_records(volume, below).unwrap();
        found.iter().map(|record| record.epoch.0).collect()
    }

    #[test]
    fn the_newest_record_is_found_among_any_number() {
        let volume = MemoryVolume::new();
        assert_eq!(newest(&volume, ""), [0; 0]);
        let counted = Cell::new(0);
        for epoch in (1..=5000).chain([5500, 9000]) {
            put(&volume, "", epoch, 1);
            counted.set(counted.get() + 1);
            if [1, 999, 1000, 1001, 1002, 2001, 5000].contains(&epoch) || epoch > 5000 {
                assert_eq!(newest(&volume, ""), [epoch]);
            }
        }
        put(&volume, "", 9000, 2);
        assert_eq!(newest(&volume, ""), [9000, 9000]);
    }

    #[test]
    fn another_volumes_records_beside_it_do_not_count() {
        let volume = MemoryVolume::new();
        put(&volume, "a/", 3, 1);
        put(&volume, "b/", 7, 1);
        assert_eq!(newest(&volume, "a/"), [3]);
        assert_eq!(newest(&volume, ""), [0; 0]);
        let from = |epoch| records_from(&volume, "b/", Epoch(epoch)).unwrap().len();
        assert_eq!([from(0), from(7), from(8)], [1, 1, 0]);
    }
}
