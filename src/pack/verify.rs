//! Going through a pack: what is whole, what is absent, what is damaged.

use bytes::Bytes;

use super::read::{ReadAt, RecordRead, parse, read_index, record_read_len};
use crate::chunk;
use crate::error::{Error, Result};
use crate::format::pack::{
    BLOCK_LEN, Found, IndexEntry, PACK_LEN_MAX, PackHeader, Scanner, TRAILER_LEN,
};
use crate::types::{BlobHash, PackId};

/// Bytes of a pack that are not what was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Where they begin.
    pub offset: u32,
    /// How many, as far as that can be said.
    pub len: u32,
    /// The blob that is lost, if its record still tells.
    pub blob: Option<BlobHash>,
    /// What was found.
    pub reason: String,
}

impl Damage {
    pub(super) fn new(offset: u32, len: u32, reason: impl Into<String>) -> Damage {
        Damage {
            offset,
            len,
            blob: None,
            reason: reason.into(),
        }
    }

    fn of(entry: &IndexEntry, reason: impl Into<String>) -> Damage {
        let len = entry.end() - entry.offset;
        Damage {
            offset: entry.offset,
            len,
            blob: Some(entry.hash),
            reason: reason.into(),
        }
    }
}

/// What a scan without an index found.
#[derive(Clone, Default, Debug)]
pub struct Survey {
    /// Records whose header and payload checksums are right.
    pub records: Vec<IndexEntry>,
    /// Everything else but pads.
    pub damage: Vec<Damage>,
    /// Where the index begins, if one was met.
    pub index_offset: Option<u32>,
}

/// Scans the bytes of `pack`, from its first on. Salvage and recovery are made of this.
pub fn survey(pack: PackId, bytes: &[u8]) -> Survey {
    let mut survey = Survey::default();
    for found in Scanner::new(pack, bytes) {
        match found {
            Found::Record { offset, header, .. } => {
                survey.records.push(IndexEntry::of(&header, offset));
            }
            Found::Broken {
                offset,
                header,
                absent,
            } => {
                let reason = if absent {
                    "a part of the blob is zeros"
                } else {
                    "the blob's checksum does not match"
                };
                survey
                    .damage
                    .push(Damage::of(&IndexEntry::of(&header, offset), reason));
            }
            Found::Zeros { offset, len } => {
                survey
                    .damage
                    .push(Damage::new(offset, len, "zeros instead of records"));
            }
            Found::Damage { offset, len } => {
                survey
                    .damage
                    .push(Damage::new(offset, len, "no record can be read here"));
            }
            Found::Index { offset } => survey.index_offset = Some(offset),
        }
    }
    survey
}

/// What [`verify_pack`] found.
#[derive(Clone, Default, Debug)]
pub struct PackReport {
    /// Whether index and trailer are as they should be. Without them the pack was scanned.
    pub sealed: bool,
    /// Records that were found whole; without `read_data`, records that the index names.
    pub intact: Vec<IndexEntry>,
    /// Records that the index names and that are, at least in part, holes. Normal in a cache,
    /// a loss on an external volume.
    pub absent: Vec<IndexEntry>,
    /// What is neither.
    pub damaged: Vec<Damage>,
}

/// Checks header, index and trailer of `pack`; with `read_data` also every record up to the SHA-256 of
/// its plain bytes, reading the pack once and whole.
///
/// Damage is in the report; an error means that the source could not be read.
pub fn verify_pack(
    source: &(impl ReadAt + ?Sized),
    pack: PackId,
    read_data: bool,
) -> Result<PackReport> {
    let mut report = PackReport::default();
    let len = source.len()?;
    let Some(pack_len) = u32::try_from(len)
        .ok()
        .filter(|&len| (BLOCK_LEN..=PACK_LEN_MAX).contains(&len))
    else {
        report.damaged.push(Damage::new(
            0,
            u32::try_from(len).unwrap_or(u32::MAX),
            "this is not the length of a pack",
        ));
        return Ok(report);
    };
    let read_len = if read_data { pack_len } else { BLOCK_LEN };
    let bytes = source.read_at(0, read_len as usize)?;
    match PackHeader::decode(&bytes) {
        Ok(header) if header.id == pack => {}
        Ok(header) => report.damaged.push(Damage::new(
            0,
            BLOCK_LEN,
            format!("this is pack {}", header.id),
        )),
        Err(reason) => report.damaged.push(Damage::new(0, BLOCK_LEN, reason)),
    }
    match read_index(source, pack) {
        Ok(index) => {
            report.sealed = true;
            if read_data {
                check_records(pack, &bytes, index.entries, &mut report);
            } else {
                report.intact = index.entries;
            }
        }
        Err(Error::Corrupt { offset, reason, .. }) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            report
                .damaged
                .push(Damage::new(offset, TRAILER_LEN, reason));
            if read_data {
                let survey = survey(pack, &bytes);
                report.damaged.extend(survey.damage);
                check_records(pack, &bytes, survey.records, &mut report);
            }
        }
        Err(error) => return Err(error),
    }
    Ok(report)
}

fn check_records(pack: PackId, bytes: &Bytes, entries: Vec<IndexEntry>, report: &mut PackReport) {
    for entry in entries {
        let loc = entry.location(pack);
        let begin = entry.offset as usize;
        let end = (begin + record_read_len(&loc)).min(bytes.len());
        match parse(bytes.slice(begin.min(end)..end), &loc, entry.hash) {
            Ok(RecordRead::Plain(plain)) if chunk::hash(&plain) == entry.hash => {
                report.intact.push(entry);
            }
            Ok(RecordRead::Plain(_)) => {
                report
                    .damaged
                    .push(Damage::of(&entry, "the blob is not the one its name says"));
            }
            Ok(RecordRead::Absent) => report.absent.push(entry),
            Err(reason) => report.damaged.push(Damage::of(&entry, reason)),
        }
    }
}

#[cfg(test)]
mod tests;
