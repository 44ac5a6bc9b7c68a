//! The end of a segment: what it holds, where its parts are, and the digest of it all.

use std::cmp::Ordering;

use bytes::Bytes;

use super::name::SegmentName;
use super::scope::{HEADER_LEN, SegmentScope, VERSION};
use super::{Damage, KEY_LEN_MAX};
use crate::format::wire::{Reader, put_bytes, put_u16, put_u32, put_u64};
use crate::types::{Epoch, SessionId};

const MAGIC: [u8; 8] = *b"tideSEGF";
/// Length, checksum and magic: the same place in every version.
const TAIL_LEN: usize = 16;
const NONCE_AND_TAG_LEN: usize = 40;
const DIGEST_LEN: usize = 32;
/// The footer without its two keys.
const FIXED_LEN: usize = 136 + DIGEST_LEN + TAIL_LEN;
/// The longest footer.
pub(super) const FOOTER_LEN_MAX: usize = FIXED_LEN + 2 * KEY_LEN_MAX;
/// A file shorter than this cannot be a segment.
pub(super) const SEGMENT_LEN_MIN: u64 = HEADER_LEN + FIXED_LEN as u64;

/// What a segment says of itself; the writer returns it, the reader finds it in the footer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentSummary {
    /// UUID of the volume it belongs to.
    pub volume: [u8; 16],
    /// The session that wrote it.
    pub session: SessionId,
    /// No entry is older.
    pub first: Epoch,
    /// No entry is newer.
    pub last: Epoch,
    /// Entries, tombstones among them.
    pub entries: u64,
    /// Entries without a value.
    pub tombstones: u64,
    /// Distinct keys.
    pub keys: u64,
    /// The smallest key; empty if there are no entries.
    pub smallest: Bytes,
    /// The largest key; empty if there are no entries.
    pub largest: Bytes,
    /// Length of the file.
    pub len: u64,
    /// SHA-256 of everything before the digest itself.
    pub sha256: [u8; 32],
}

impl SegmentSummary {
    /// The name it is stored under.
    pub fn name(&self) -> SegmentName {
        let mut digest = [0; 8];
        for (to, from) in digest.iter_mut().zip(self.sha256) {
            *to = from;
        }
        SegmentName {
            first: self.first,
            last: self.last,
            session: self.session,
            digest,
        }
    }

    /// The identity it was written under.
    pub fn scope(&self) -> SegmentScope {
        SegmentScope {
            volume: self.volume,
            session: self.session,
            first: self.first,
            last: self.last,
        }
    }
}

/// Where the parts of a segment are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub(super) filter_at: u64,
    pub(super) index_at: u64,
    pub(super) footer_at: u64,
    pub(super) blocks: u32,
}

/// The footer up to the digest, which the writer computes over these bytes too.
pub(super) fn encode_digested(summary: &SegmentSummary, layout: Layout) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(FIXED_LEN + summary.smallest.len() + summary.largest.len());
    put_u16(&mut out, VERSION);
    put_u16(&mut out, 0);
    put_u32(&mut out, 0);
    summary.scope().put(&mut out);
    put_u64(&mut out, summary.entries);
    put_u64(&mut out, summary.tombstones);
    put_u64(&mut out, summary.keys);
    put_u64(&mut out, layout.filter_at);
    put_u64(&mut out, layout.index_at);
    put_u32(&mut out, layout.blocks);
    put_u16(&mut out, u16::try_from(summary.smallest.len()).ok()?);
    put_u16(&mut out, u16::try_from(summary.largest.len()).ok()?);
    put_bytes(&mut out, &[0; NONCE_AND_TAG_LEN]);
    put_bytes(&mut out, &summary.smallest);
    put_bytes(&mut out, &summary.largest);
    Some(out)
}

/// The rest of the footer: digest, length, checksum, magic.
pub(super) fn finish(digested: &[u8], sha256: [u8; 32]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(DIGEST_LEN + TAIL_LEN);
    put_bytes(&mut out, &sha256);
    let len = digested.len() + DIGEST_LEN + TAIL_LEN;
    put_u32(&mut out, u32::try_from(len).ok()?);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(digested), &out);
    put_u32(&mut out, checksum);
    put_bytes(&mut out, &MAGIC);
    Some(out)
}

/// What a footer holds.
#[derive(Debug)]
pub(super) struct Footer {
    pub(super) summary: SegmentSummary,
    pub(super) layout: Layout,
    /// Zero: not encrypted.
    pub(super) key_id: u32,
    pub(super) version: u16,
    /// Zero: nothing that this version does not know.
    pub(super) flags: u16,
}

/// Reads the footer off `tail`, the last bytes of a file of `file_len` bytes.
pub(super) fn decode(tail: &[u8], file_len: u64) -> Result<Footer, Damage> {
    let damaged = |reason: &str| Damage::new(file_len, reason);
    let body = tail.strip_suffix(&MAGIC).ok_or_else(|| {
        damaged("the file does not end as a segment does: it was cut off, or is none")
    })?;
    let (body, checksum) = body
        .split_last_chunk::<4>()
        .ok_or_else(|| damaged("the footer is cut off"))?;
    let footer_len = body
        .last_chunk::<4>()
        .map_or(0, |len| u32::from_le_bytes(*len));
    let footer_at = file_len
        .checked_sub(u64::from(footer_len))
        .ok_or_else(|| damaged("the footer says it is longer than the file"))?;
    let start = usize::try_from(footer_len)
        .ok()
        .and_then(|len| tail.len().checked_sub(len))
        .ok_or_else(|| damaged("the footer says it is longer than any may be"))?;
    let footer = body
        .get(start..)
        .ok_or_else(|| damaged("the footer's length is wrong"))?;
    if crc32c::crc32c(footer) != u32::from_le_bytes(*checksum) {
        return Err(Damage::new(footer_at, "the footer's checksum is wrong"));
    }
    parse(footer, footer_at, file_len)
        .ok_or_else(|| Damage::new(footer_at, "the footer contradicts itself"))
}

fn parse(footer: &[u8], footer_at: u64, file_len: u64) -> Option<Footer> {
    let mut reader = Reader::new(footer);
    let version = reader.u16()?;
    let flags = reader.u16()?;
    let key_id = reader.u32()?;
    let scope = SegmentScope::read(&mut reader)?;
    let entries = reader.u64()?;
    let tombstones = reader.u64()?;
    let keys = reader.u64()?;
    let filter_at = reader.u64()?;
    let index_at = reader.u64()?;
    let blocks = reader.u32()?;
    let smallest_len = usize::from(reader.u16()?);
    let largest_len = usize::from(reader.u16()?);
    reader.bytes(NONCE_AND_TAG_LEN)?;
    let summary = SegmentSummary {
        volume: scope.volume,
        session: scope.session,
        first: scope.first,
        last: scope.last,
        entries,
        tombstones,
        keys,
        smallest: Bytes::copy_from_slice(reader.bytes(smallest_len)?),
        largest: Bytes::copy_from_slice(reader.bytes(largest_len)?),
        len: file_len,
        sha256: reader.array()?,
    };
    reader.u32()?;
    let layout = Layout {
        filter_at,
        index_at,
        footer_at,
        blocks,
    };
    let sane = reader.is_empty() && is_sane(&summary, layout);
    // Of a version to come nothing may be judged but that it is one.
    (sane || version != VERSION).then_some(Footer {
        summary,
        layout,
        key_id,
        version,
        flags,
    })
}

fn is_sane(summary: &SegmentSummary, layout: Layout) -> bool {
    let ordered = HEADER_LEN <= layout.filter_at
        && layout.filter_at <= layout.index_at
        && layout.index_at <= layout.footer_at;
    let keys_ordered = match summary.smallest.cmp(&summary.largest) {
        Ordering::Less => summary.keys > 1,
        Ordering::Equal => summary.keys <= 1,
        Ordering::Greater => false,
    };
    let longest = summary.smallest.len().max(summary.largest.len());
    ordered
        && keys_ordered
        && longest <= KEY_LEN_MAX
        && summary.first <= summary.last
        && summary.tombstones <= summary.entries
        && summary.keys <= summary.entries
        && (summary.keys == 0) == (summary.entries == 0)
        && (layout.blocks == 0) == (summary.entries == 0)
}
