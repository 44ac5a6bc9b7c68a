//! One record: a blob, its name, how it is stored, and the proof that it stands where it should. And
//! the mark of a pad, which fills a block that a sync closed early.

use super::{ALIGN, BLOCK_LEN, Decoded, Fields, place_crc};
use crate::chunk::{BLOB_LEN_MAX, Codec};
use crate::types::{BlobHash, PackId};

/// Length of a record's header; the payload follows at once.
pub const RECORD_HEADER_LEN: u32 = 88;
const RECORD_MAGIC: [u8; 4] = *b"\x93rec";
const PAD_MAGIC: [u8; 4] = *b"\x93pad";

/// What a record's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// How the payload is stored.
    pub codec: Codec,
    /// Length of the plain bytes.
    pub plain_len: u32,
    /// Length of the payload.
    pub stored_len: u32,
    /// The blob's name.
    pub hash: BlobHash,
    /// CRC-32C of the payload.
    pub stored_crc: u32,
}

impl RecordHeader {
    /// The header for a payload, if its lengths are ones a record can have.
    pub fn new(
        hash: BlobHash,
        codec: Codec,
        plain_len: u32,
        stored: &[u8],
    ) -> Decoded<RecordHeader> {
        let stored_len =
            u32::try_from(stored.len()).map_err(|_| "the record's lengths are out of bounds")?;
        check_lens(codec, plain_len, stored_len)?;
        Ok(RecordHeader {
            codec,
            plain_len,
            stored_len,
            hash,
            stored_crc: crc32c::crc32c(stored),
        })
    }

    /// The first byte behind the record at `offset`.
    pub fn end(&self, offset: u32) -> u32 {
        offset.saturating_add(record_len(self.stored_len))
    }

    /// The header of the record at `offset` of `pack`.
    pub fn encode(&self, pack: PackId, offset: u32) -> [u8; RECORD_HEADER_LEN as usize] {
        let mut out = [0; RECORD_HEADER_LEN as usize];
        let mut bytes = Vec::with_capacity(out.len());
        bytes.extend(RECORD_MAGIC);
        bytes.extend([0, 0]); // flags
        bytes.push(self.codec.id());
        bytes.push(0); // cipher
        bytes.extend(self.plain_len.to_le_bytes());
        bytes.extend(self.stored_len.to_le_bytes());
        bytes.extend(self.hash.0);
        bytes.extend(self.stored_crc.to_le_bytes());
        bytes.extend([0; 4 + 24 + 4]); // key id, nonce, reserved
        bytes.extend(place_crc(pack, offset, &bytes).to_le_bytes());
        out.copy_from_slice(&bytes);
        out
    }

    /// The header at the front of `bytes`, which were found at `offset` of `pack`.
    pub fn decode(pack: PackId, offset: u32, bytes: &[u8]) -> Decoded<RecordHeader> {
        let header = bytes
            .first_chunk::<{ RECORD_HEADER_LEN as usize }>()
            .ok_or("the bytes end within a record header")?;
        let (body, crc) = header
            .split_last_chunk::<4>()
            .ok_or("the bytes end within a record header")?;
        let mut fields = Fields(body);
        if fields.array()? != RECORD_MAGIC {
            return Err("no record begins here");
        }
        if u32::from_le_bytes(*crc) != place_crc(pack, offset, body) {
            return Err("the record header's checksum does not match");
        }
        let flags = fields.u16()?;
        let codec = fields.u8()?;
        let cipher = fields.u8()?;
        if flags != 0 {
            return Err("the record has flags unknown to this program");
        }
        if cipher != 0 {
            return Err("the record is encrypted with a cipher unknown to this program");
        }
        let codec = Codec::from_id(codec).ok_or("the record's codec is unknown to this program")?;
        let plain_len = fields.u32()?;
        let stored_len = fields.u32()?;
        check_lens(codec, plain_len, stored_len)?;
        Ok(RecordHeader {
            codec,
            plain_len,
            stored_len,
            hash: BlobHash(fields.array()?),
            stored_crc: fields.u32()?,
        })
    }
}

/// Lengths that a writer of this format could have meant.
pub(super) fn check_lens(codec: Codec, plain_len: u32, stored_len: u32) -> Decoded<()> {
    if plain_len > BLOB_LEN_MAX || stored_len > plain_len {
        return Err("the record's lengths are out of bounds");
    }
    if codec == Codec::Raw && plain_len != stored_len {
        return Err("a raw record's two lengths differ");
    }
    Ok(())
}

/// Bytes that a record with this payload takes in the pack. `stored_len` is at most [`BLOB_LEN_MAX`].
pub fn record_len(stored_len: u32) -> u32 {
    (RECORD_HEADER_LEN + stored_len.min(BLOB_LEN_MAX)).next_multiple_of(ALIGN)
}

/// The mark of a pad at `offset` of `pack`; zeros follow it up to the next block.
pub fn pad_mark(pack: PackId, offset: u32) -> [u8; 8] {
    let mut mark = [0; 8];
    mark[..4].copy_from_slice(&PAD_MAGIC);
    mark[4..].copy_from_slice(&place_crc(pack, offset, &PAD_MAGIC).to_le_bytes());
    mark
}

/// Whether `bytes`, found at `offset` of `pack`, begin with the mark of a pad.
pub(super) fn is_pad(pack: PackId, offset: u32, bytes: &[u8]) -> bool {
    // The first test is the cheap one: the scanner asks this at every eighth byte of a damaged pack.
    bytes.starts_with(&PAD_MAGIC)
        && !offset.is_multiple_of(BLOCK_LEN)
        && bytes.starts_with(&pad_mark(pack, offset))
}
