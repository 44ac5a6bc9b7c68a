//! Putting what counts as stored: nothing does because a volume says so.
//!
//! Before a put what may lie there is compared: from before a crash, or stored wrongly once. Behind it the object is
//! compared again, by the volume's own sums (invariant 2). Names are given once, so that other bytes under one are damage,
//! which is replaced, or the work of somebody who goes on in our name, which is not (invariant 7).

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use vfs::{Body, ErrorClass, Likeness, Meta, ObjectKey, Precondition, Volume, VolumeExt};

use crate::error::{Error, Result};
use crate::format::pack::PACK_LEN_MAX;
use crate::format::record::EpochRecord;
use crate::pack::read::{MemoryPack, read_index};
use crate::pack::verify::survey;
use crate::types::PackId;
use crate::upload::fork;

/// Puts `body` under `key`, unless it is there, and makes sure of it. What else is there gives way.
pub(super) fn put(volume: &dyn Volume, key: &ObjectKey, body: Body<'_>) -> Result<()> {
    match volume.holds(key, body)? {
        Likeness::Same => Ok(()),
        Likeness::Absent => put_anew(volume, key, body),
        Likeness::Other => replace(volume, key, body),
    }
}

fn put_anew(volume: &dyn Volume, key: &ObjectKey, body: Body<'_>) -> Result<()> {
    volume.put(key, body, Precondition::None)?;
    confirm(volume, key, body)
}

fn replace(volume: &dyn Volume, key: &ObjectKey, body: Body<'_>) -> Result<()> {
    tracing::warn!(%volume, %key, "what is stored there is damaged: it is sent again");
    put_anew(volume, key, body)
}

/// Makes sure that what was just put is there.
fn confirm(volume: &dyn Volume, key: &ObjectKey, body: Body<'_>) -> Result<()> {
    let found = match volume.compare(key, body)? {
        Some(found) => found,
        // To read it back would cost as much as the put, and to be paid for; the put was made with a sum.
        None => match volume.head(key)? {
            None => Likeness::Absent,
            Some(meta) if meta.len == body.len() => Likeness::Same,
            Some(_) => Likeness::Other,
        },
    };
    let what = match found {
        Likeness::Same => return Ok(()),
        Likeness::Other => "other bytes are there",
        Likeness::Absent => "it is not there",
    };
    let message = format!(
        "it was told to be stored, and {what}: it is sent again; if this lasts, look for the volume's fault"
    );
    let (volume, key) = (volume.to_string(), key.as_str());
    Err(vfs::Error::new(ErrorClass::Transient, "put", &volume, key, message).into())
}

/// Puts the segments that `record` names. Of those in `known`, which were compared when the record before was archived,
/// the length is enough: a large one is named by many records.
pub(super) fn put_segments(
    volume: &dyn Volume,
    root: &Path,
    record: &EpochRecord,
    known: &BTreeSet<String>,
) -> Result<()> {
    for segment in &record.segments {
        let key = ObjectKey::new(segment.name.as_str())?;
        let has_len = |there: Meta| there.len == segment.len;
        if known.contains(&segment.name) && volume.head(&key)?.is_some_and(has_len) {
            continue;
        }
        let path = root.join(&segment.name);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let len = file.metadata().map_err(Error::io("stat", &path))?.len();
        put(volume, &key, Body::File { file: &file, len })?;
    }
    Ok(())
}

/// Puts an epoch record of ours, unless somebody else's stands in its place.
pub(super) fn put_record(volume: &dyn Volume, key: &ObjectKey, bytes: &[u8]) -> Result<()> {
    let body = Body::Bytes(bytes);
    match volume.put(key, body, Precondition::IfAbsent) {
        Ok(_) => confirm(volume, key, body),
        // From before a crash, or what is left of a put that failed.
        Err(error) if error.is_already_exists() => {
            let there = volume.get_whole(key, fork::RECORD_LEN_MAX)?;
            if there != bytes && !is_damaged_record(key, &there) {
                return Err(fork::foreign(volume, key));
            }
            put(volume, key, body)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether these bytes are no epoch record of anybody: each carries a sum of itself.
pub(super) fn is_damaged_record(key: &ObjectKey, bytes: &[u8]) -> bool {
    EpochRecord::parse(key.as_str(), bytes).is_err()
}

/// Puts a pack, whose bytes here are damaged or not.
pub(super) fn put_pack(
    volume: &dyn Volume,
    pack: PackId,
    bytes: &[u8],
    is_damaged: bool,
) -> Result<()> {
    let key = ObjectKey::new(pack.object_name())?;
    let body = Body::Bytes(bytes);
    match volume.holds(&key, body)? {
        Likeness::Same => return Ok(()),
        Likeness::Absent => return put_anew(volume, &key, body),
        Likeness::Other => {}
    }
    let Some(meta) = volume.head(&key)? else {
        return put_anew(volume, &key, body);
    };
    if meta.len <= u64::from(PACK_LEN_MAX) {
        let there = volume.get(&key, 0..meta.len)?;
        let index = |bytes: bytes::Bytes| {
            let name = key.to_string();
            read_index(&MemoryPack { name, bytes }, pack)
        };
        let theirs = index(there.clone());
        if let (Ok(theirs), Ok(ours)) = (&theirs, index(bytes::Bytes::copy_from_slice(bytes)))
            && theirs.entries != ours.entries
        {
            return Err(fork::foreign(volume, &key));
        }
        // It was sent while the copy here was whole.
        if is_damaged && theirs.is_ok() && survey(pack, &there).damage.is_empty() {
            return Ok(());
        }
    }
    replace(volume, &key, body)
}

#[cfg(test)]
mod tests {
    use vfs::MemoryVolume;

    use super::*;
    use crate::chunk;
    use crate::format::record::FORMAT;
    use crate::pack::writer::{PackIo, PackWriter};
    use crate::types::{Epoch, SessionId, Uuid};

    fn id() -> PackId {
        PackId::new(SessionId([5; 8]), 1)
    }

    /// A sealed pack of one blob; always of the same name.
    fn pack(byte: u8) -> Vec<u8> {
        let root = tempfile::tempdir().unwrap();
        let mut writer =
            PackWriter::create(root.path(), [1; 16], id(), 0, PackIo::default()).unwrap();
        let plain = vec![byte; 50_000];
        let hash = chunk::hash(&plain);
        writer
            .append(hash, chunk::Codec::Raw, 50_000, &plain)
            .unwrap();
        writer.seal().unwrap();
        std::fs::read(root.path().join(id().object_name())).unwrap()
    }

    fn holding(key: &ObjectKey, bytes: &[u8]) -> MemoryVolume {
        let volume = MemoryVolume::new();
        volume
            .put(key, Body::Bytes(bytes), Precondition::None)
            .unwrap();
        volume
    }

    fn held(volume: &MemoryVolume, key: &ObjectKey) -> Vec<u8> {
        volume.get_whole(key, 1 << 20).unwrap().to_vec()
    }

    #[test]
    fn a_damaged_pack_there_is_replaced_and_a_whole_one_is_not_by_a_damaged_one() {
        let (key, ours) = (ObjectKey::new(id().object_name()).unwrap(), pack(1));
        let mut damaged = ours.clone();
        damaged[20_000] ^= 1;
        for there in [&damaged[..], &ours[..30_000], &[]] {
            let volume = holding(&key, there);
            put_pack(&volume, id(), &ours, false).unwrap();
            assert!(held(&volume, &key) == ours);
        }
        let volume = holding(&key, &ours);
        put_pack(&volume, id(), &damaged, true).unwrap();
        assert!(held(&volume, &key) == ours, "it was whole when it was sent");
    }

    #[test]
    fn invariant_7_a_whole_pack_of_other_blobs_in_our_name_is_somebody_elses() {
        let (ours, theirs) = (pack(1), pack(2));
        let key = ObjectKey::new(id().object_name()).unwrap();
        let volume = holding(&key, &theirs);
        let refused = put_pack(&volume, id(), &ours, false);
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        assert!(held(&volume, &key) == theirs);
    }

    #[test]
    fn invariant_7_a_whole_record_in_our_name_is_somebody_elses_and_a_damaged_one_is_replaced() {
        let session = SessionId([3; 8]);
        let record = |lsn| {
            let record = EpochRecord {
                format: FORMAT,
                volume: Uuid([1; 16]).to_string(),
                epoch: Epoch(12),
                session: session.to_string(),
                time: 5,
                parent: None,
                lsn,
                segments: Vec::new(),
                mac: None,
            };
            record.encode()
        };
        let key = ObjectKey::new(EpochRecord::name(Epoch(12), session)).unwrap();
        let (ours, theirs) = (record(7), record(8));
        let volume = holding(&key, &theirs);
        let refused = put_record(&volume, &key, &ours);
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        assert!(held(&volume, &key) == theirs);
        for n in 0..theirs.len() {
            let mut damaged = theirs.clone();
            damaged[n] ^= 1;
            let volume = holding(&key, &damaged);
            put_record(&volume, &key, &ours).unwrap();
            assert!(held(&volume, &key) == ours, "byte {n}");
        }
    }
}
