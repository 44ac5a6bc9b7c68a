//! After a crash: the pack that was open is cut where the last committed frame says, and sealed. No
//! pack is ever appended to again (invariant 3).

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::read::{LocalPack, ReadAt, read_index};
use super::sync::sync_parents;
use super::verify::{Damage, survey};
use super::writer::{SealedPack, or_no_space};
use crate::error::{Error, Result};
use crate::format::pack::{BLOCK_LEN, PACK_LEN_MAX, PackHeader, RecordHeader, encode_index};
use crate::types::PackId;

/// Seals the pack `id` in the file at `path`, which was open in a process that is gone and of which
/// committed frames name nothing at or behind `committed_len`, a length from a
/// [`SyncTicket`](super::sync::SyncTicket).
///
/// Everything behind it goes. What is damaged below it does not keep the rest from being sealed, but
/// is left out of the index and named in [`SealedPack::damage`]. A pack that was sealed in time is
/// left as it is. May be interrupted and called again.
///
/// A committed length that cannot be one (no block boundary, or within a record) is an error: the
/// journal and the pack are not of the same volume, or one is older than the other.
pub fn recover_unsealed(path: &Path, id: PackId, committed_len: u32) -> Result<SealedPack> {
    let pack = LocalPack::open_writable(path)?;
    if let Ok(index) = read_index(&pack, id) {
        if index.offset < committed_len {
            let reason = format!(
                "it was sealed at byte {}, below the committed length {committed_len}",
                index.offset
            );
            return Err(Error::corrupt(pack.name(), u64::from(index.offset), reason));
        }
        // The process may have died between the write and the sync.
        make_durable(&pack)?;
        return Ok(SealedPack {
            id,
            len: index.pack_len,
            records: index.entries,
            damage: Vec::new(),
        });
    }
    if !(BLOCK_LEN..=PACK_LEN_MAX).contains(&committed_len)
        || !committed_len.is_multiple_of(BLOCK_LEN)
    {
        let reason =
            format!("{committed_len} is not a length at which a pack can have been committed");
        return Err(Error::corrupt(
            pack.name(),
            u64::from(committed_len),
            reason,
        ));
    }
    let there_len = u32::try_from(pack.len()?)
        .unwrap_or(u32::MAX)
        .min(committed_len);
    let bytes = pack.read_at(0, there_len as usize)?;
    let mut damage = Vec::new();
    match PackHeader::decode(&bytes) {
        Ok(header) if header.id == id => {}
        Ok(header) => {
            return Err(Error::corrupt(
                pack.name(),
                0,
                format!("this is pack {}, not {id}", header.id),
            ));
        }
        Err(reason) => damage.push(Damage::new(0, BLOCK_LEN, reason)),
    }
    let survey = survey(id, &bytes);
    if let Some(offset) = survey.index_offset {
        return Err(Error::corrupt(
            pack.name(),
            u64::from(offset),
            "an index stands below the committed length",
        ));
    }
    for lost in &survey.damage {
        let at = bytes.get(lost.offset as usize..).unwrap_or_default();
        let across = RecordHeader::decode(id, lost.offset, at)
            .is_ok_and(|header| header.end(lost.offset) > committed_len);
        if across {
            let reason = format!("a record lies across the committed length {committed_len}");
            return Err(Error::corrupt(pack.name(), u64::from(lost.offset), reason));
        }
    }
    damage.extend(survey.damage);
    if there_len < committed_len {
        damage.push(Damage::new(
            there_len,
            committed_len - there_len,
            "the file ends here",
        ));
    }
    let tail = encode_index(id, committed_len, &survey.records)
        .map_err(|reason| Error::corrupt(pack.name(), u64::from(committed_len), reason))?;
    let len = committed_len.saturating_add(u32::try_from(tail.len()).unwrap_or(u32::MAX));
    seal_at(&pack, committed_len, &tail, len)?;
    Ok(SealedPack {
        id,
        len,
        records: survey.records,
        damage,
    })
}

/// Writes first and cuts afterwards: the space behind the committed length is allocated, and a full
/// disk is no reason not to recover.
fn seal_at(pack: &LocalPack, offset: u32, tail: &[u8], len: u32) -> Result<()> {
    let path = &pack.path;
    let root = path.ancestors().nth(3).unwrap_or(path);
    pack.file
        .write_all_at(tail, u64::from(offset))
        .map_err(or_no_space("write", path, root))?;
    pack.file
        .set_len(u64::from(len))
        .map_err(Error::io("truncate", path))?;
    make_durable(pack)
}

fn make_durable(pack: &LocalPack) -> Result<()> {
    pack.file
        .sync_data()
        .map_err(Error::io("sync", &pack.path))?;
    sync_parents(&pack.path)
}

#[cfg(test)]
mod tests;
