//! The end of a sealed pack: the index, which repeats what the records say about themselves, and the
//! trailer, which says where the index is.
//!
//! The index is a convenience and the records are the truth: a pack whose index is lost is scanned.

use super::{
    ALIGN, BLOCK_LEN, Decoded, Fields, PACK_LEN_MAX, RECORD_HEADER_LEN, RecordHeader, VERSION,
    block_up, place_crc, record::check_lens, record_len,
};
use crate::chunk::Codec;
use crate::types::{BlobHash, BlobLocation, PackId};

/// Length of the index's header.
pub const INDEX_HEADER_LEN: u32 = 64;
/// Length of an entry of the index.
pub const INDEX_ENTRY_LEN: u32 = 48;
/// Length of the trailer, the very last bytes of a sealed pack.
pub const TRAILER_LEN: u32 = 64;
const INDEX_MAGIC: [u8; 4] = *b"\x93idx";
const TRAILER_MAGIC: [u8; 8] = *b"\x93tdEND\r\n";

/// One record, as the index names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// The blob's name.
    pub hash: BlobHash,
    /// Where its record begins.
    pub offset: u32,
    /// Length of the payload.
    pub stored_len: u32,
    /// Length of the plain bytes.
    pub plain_len: u32,
    /// How the payload is stored.
    pub codec: Codec,
}

impl IndexEntry {
    /// The entry of the record with this header at `offset`.
    pub fn of(header: &RecordHeader, offset: u32) -> IndexEntry {
        let &RecordHeader {
            codec,
            plain_len,
            stored_len,
            hash,
            stored_crc: _,
        } = header;
        IndexEntry {
            hash,
            offset,
            stored_len,
            plain_len,
            codec,
        }
    }

    /// Where the blob is, `pack` being the one of this index.
    pub fn location(&self, pack: PackId) -> BlobLocation {
        BlobLocation {
            pack,
            offset: self.offset,
            stored_len: self.stored_len,
            plain_len: self.plain_len,
        }
    }

    /// The first byte behind the record.
    pub fn end(&self) -> u32 {
        self.offset.saturating_add(record_len(self.stored_len))
    }
}

/// What the trailer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Where the index begins: a block boundary.
    pub index_offset: u32,
    /// Length of the index: header and entries.
    pub index_len: u32,
    /// Length of the sealed pack, trailer included.
    pub pack_len: u32,
    /// CRC-32C of the index.
    pub index_crc: u32,
    /// How many records.
    pub records: u32,
}

impl Trailer {
    fn encode(&self, pack: PackId) -> Vec<u8> {
        let mut out = Vec::with_capacity(TRAILER_LEN as usize);
        out.extend(TRAILER_MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(self.index_crc.to_le_bytes());
        out.extend(u64::from(self.index_offset).to_le_bytes());
        out.extend(u64::from(self.index_len).to_le_bytes());
        out.extend(u64::from(self.pack_len).to_le_bytes());
        out.extend(self.records.to_le_bytes());
        out.extend([0; 16]);
        let crc = place_crc(pack, self.pack_len - TRAILER_LEN, &out);
        out.extend(crc.to_le_bytes());
        out
    }

    /// The trailer of `pack`, whose length is `pack_len` and whose last bytes are `tail`.
    pub fn decode(pack: PackId, pack_len: u64, tail: &[u8]) -> Decoded<Trailer> {
        let trailer = tail
            .last_chunk::<{ TRAILER_LEN as usize }>()
            .ok_or("the pack is shorter than a trailer")?;
        let (body, crc) = trailer
            .split_last_chunk::<4>()
            .ok_or("the pack is shorter than a trailer")?;
        let pack_len = bounded(pack_len)?;
        let at = pack_len
            .checked_sub(TRAILER_LEN)
            .ok_or("the pack is shorter than a trailer")?;
        let mut fields = Fields(body);
        if fields.array()? != TRAILER_MAGIC {
            return Err("the pack does not end in a trailer: it is not sealed, or cut short");
        }
        if u32::from_le_bytes(*crc) != place_crc(pack, at, body) {
            return Err("the trailer's checksum does not match");
        }
        if fields.u32()? != VERSION {
            return Err("the trailer's version is unknown to this program");
        }
        let index_crc = fields.u32()?;
        let index_offset = bounded(fields.u64()?)?;
        let index_len = bounded(fields.u64()?)?;
        let recorded_len = bounded(fields.u64()?)?;
        let records = fields.u32()?;
        let entries_len = records
            .checked_mul(INDEX_ENTRY_LEN)
            .and_then(|len| len.checked_add(INDEX_HEADER_LEN));
        let fits = index_offset
            .checked_add(index_len)
            .is_some_and(|end| end <= at);
        let aligned = index_offset >= BLOCK_LEN && index_offset.is_multiple_of(BLOCK_LEN);
        if recorded_len != pack_len || entries_len != Some(index_len) || !fits || !aligned {
            return Err("the trailer contradicts itself or the pack's length");
        }
        Ok(Trailer {
            index_offset,
            index_len,
            pack_len,
            index_crc,
            records,
        })
    }
}

fn bounded(len: u64) -> Decoded<u32> {
    u32::try_from(len)
        .ok()
        .filter(|&len| len <= PACK_LEN_MAX)
        .ok_or("a length is above the limit of a pack")
}

/// How many bytes sealing adds behind the last block, for this many records.
pub fn sealed_tail_len(records: u32) -> u32 {
    block_up(
        INDEX_HEADER_LEN
            .saturating_add(records.saturating_mul(INDEX_ENTRY_LEN))
            .saturating_add(TRAILER_LEN),
    )
}

/// Index, zeros and trailer of a pack whose last block ends at `index_offset`: a whole number of
/// blocks, so that the sealed pack is one, too.
pub fn encode_index(pack: PackId, index_offset: u32, entries: &[IndexEntry]) -> Decoded<Vec<u8>> {
    let records = u32::try_from(entries.len()).map_err(|_| "a pack cannot hold so many records")?;
    let tail_len = sealed_tail_len(records);
    let pack_len = index_offset
        .checked_add(tail_len)
        .ok_or("the pack would be above its limit")?;
    bounded(u64::from(pack_len))?;

    let mut body = Vec::with_capacity(entries.len() * INDEX_ENTRY_LEN as usize);
    for entry in entries {
        body.extend(entry.hash.0);
        body.extend(entry.offset.to_le_bytes());
        body.extend(entry.stored_len.to_le_bytes());
        body.extend(entry.plain_len.to_le_bytes());
        body.extend([0, 0]); // flags
        body.push(entry.codec.id());
        body.push(0); // cipher
    }
    let mut out = Vec::with_capacity(tail_len as usize);
    out.extend(INDEX_MAGIC);
    out.extend(records.to_le_bytes());
    out.extend(INDEX_ENTRY_LEN.to_le_bytes());
    out.extend([0; 4 + 24 + 16]); // key id, nonce, tag
    out.extend(crc32c::crc32c(&body).to_le_bytes());
    out.extend(place_crc(pack, index_offset, &out).to_le_bytes());
    out.extend(body);

    let index_len = INDEX_HEADER_LEN + records * INDEX_ENTRY_LEN;
    let index_crc = crc32c::crc32c(&out);
    out.resize((tail_len - TRAILER_LEN) as usize, 0);
    out.extend(
        Trailer {
            index_offset,
            index_len,
            pack_len,
            index_crc,
            records,
        }
        .encode(pack),
    );
    Ok(out)
}

/// How many bytes the index at the front of `bytes` takes, if one begins there, at `offset` of `pack`.
pub(super) fn index_len_at(pack: PackId, offset: u32, bytes: &[u8]) -> Option<u32> {
    if !offset.is_multiple_of(BLOCK_LEN) || !bytes.starts_with(&INDEX_MAGIC) {
        return None;
    }
    let (body, crc) = bytes
        .first_chunk::<{ INDEX_HEADER_LEN as usize }>()?
        .split_last_chunk::<4>()?;
    if u32::from_le_bytes(*crc) != place_crc(pack, offset, body) {
        return None;
    }
    let mut fields = Fields(body.get(4..)?);
    let (records, entry_len) = (fields.u32().ok()?, fields.u32().ok()?);
    (entry_len == INDEX_ENTRY_LEN).then_some(
        records
            .checked_mul(INDEX_ENTRY_LEN)?
            .checked_add(INDEX_HEADER_LEN)?,
    )
}

/// The entries of the index in `bytes`, which begins at `index_offset` of `pack`. They come in the
/// order of their records, which do not overlap and end before the index: this is checked here, so
/// that whoever holds entries need not.
///
/// The index proves itself; a trailer is not needed when a scan has found it.
pub fn decode_index(pack: PackId, index_offset: u32, bytes: &[u8]) -> Decoded<Vec<IndexEntry>> {
    let len = index_len_at(pack, index_offset, bytes).ok_or("the index header is damaged")?;
    let body = bytes
        .get(INDEX_HEADER_LEN as usize..len as usize)
        .ok_or("the bytes end within the index")?;
    let mut header = Fields(bytes.get(56..).ok_or("the bytes end within the index")?);
    if header.u32()? != crc32c::crc32c(body) {
        return Err("the index's checksum does not match");
    }
    let (chunks, _) = body.as_chunks::<{ INDEX_ENTRY_LEN as usize }>();
    let mut entries = Vec::with_capacity(chunks.len());
    let mut begin = BLOCK_LEN;
    for chunk in chunks {
        let entry = decode_entry(chunk)?;
        if entry.offset < begin || !entry.offset.is_multiple_of(ALIGN) || entry.end() > index_offset
        {
            return Err("an index entry lies outside the pack or across another");
        }
        begin = entry.end();
        entries.push(entry);
    }
    Ok(entries)
}

fn decode_entry(chunk: &[u8; INDEX_ENTRY_LEN as usize]) -> Decoded<IndexEntry> {
    let mut fields = Fields(chunk);
    let hash = BlobHash(fields.array()?);
    let (offset, stored_len, plain_len) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (flags, codec, cipher) = (fields.u16()?, fields.u8()?, fields.u8()?);
    if flags != 0 || cipher != 0 {
        return Err("the index names a record unknown to this program");
    }
    let codec = Codec::from_id(codec).ok_or("the index names a codec unknown to this program")?;
    check_lens(codec, plain_len, stored_len)?;
    if offset > PACK_LEN_MAX - RECORD_HEADER_LEN {
        return Err("an index entry lies outside the pack or across another");
    }
    Ok(IndexEntry {
        hash,
        offset,
        stored_len,
        plain_len,
        codec,
    })
}
