//! The bytes of a pack: header block, records, pads, index, trailer. `docs/format/pack.md` is the
//! specification; this room is its encoder and decoder.
//!
//! Pure: values in, bytes out, and back; no file is opened here. Every decoder survives arbitrary
//! bytes and answers with a reason, which the caller, who knows the object and the offset, turns into
//! an [`Error::Corrupt`](crate::error::Error::Corrupt) (invariant 13).
//!
//! Every checksum of a part that identifies itself also covers the pack's id and the part's offset
//! ([`place_crc`]): bytes of another pack, a misdirected write, or a pack stored as a blob inside a
//! pack are never mistaken for the part that should be there.

mod index;
mod record;
mod scan;

pub use index::{
    INDEX_ENTRY_LEN, INDEX_HEADER_LEN, IndexEntry, TRAILER_LEN, Trailer, decode_index,
    encode_index, sealed_tail_len,
};
pub use record::{RECORD_HEADER_LEN, RecordHeader, pad_mark, record_len};
pub use scan::{Found, Scanner, zero_block};

use crate::types::PackId;

/// Packs are written, padded and punched in blocks of this many bytes, whatever the disk's own are.
pub const BLOCK_LEN: u32 = 4096;
/// A new pack is begun when the next record would make the sealed pack longer than this.
pub const PACK_LEN_TARGET: u32 = 32 << 20;
/// No reader takes a longer pack: room for twice the target, and a bound on what one is read into.
pub const PACK_LEN_MAX: u32 = 64 << 20;
/// Records and pads begin at multiples of this.
pub const ALIGN: u32 = 8;

const PACK_MAGIC: [u8; 8] = *b"\x93tdPACK\n";
/// The version of every part of a pack.
const VERSION: u32 = 1;

/// Decoded, or the reason why not.
pub type Decoded<T> = Result<T, &'static str>;

/// What the first block of a pack says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackHeader {
    /// The volume it belongs to.
    pub volume: [u8; 16],
    /// Its own id, as in its name.
    pub id: PackId,
    /// When it was begun: nanoseconds since 1970, for people; nothing depends on it.
    pub created_ns: u64,
}

impl PackHeader {
    /// The header block.
    pub fn encode(&self) -> [u8; BLOCK_LEN as usize] {
        let mut block = Vec::with_capacity(BLOCK_LEN as usize);
        block.extend(PACK_MAGIC);
        block.extend(VERSION.to_le_bytes());
        block.extend(BLOCK_LEN.to_le_bytes());
        block.extend(self.volume);
        block.extend(self.id.0);
        block.extend(self.created_ns.to_le_bytes());
        // Then room: key id, nonce, tag, and whatever version 2 thinks of.
        block.resize(BLOCK_LEN as usize - 4, 0);
        let crc = crc32c::crc32c(&block);
        block.extend(crc.to_le_bytes());
        let mut out = [0; BLOCK_LEN as usize];
        out.copy_from_slice(&block);
        out
    }

    /// The header at the front of `bytes`.
    pub fn decode(bytes: &[u8]) -> Decoded<PackHeader> {
        let block = bytes
            .first_chunk::<{ BLOCK_LEN as usize }>()
            .ok_or("the pack is shorter than its header")?;
        let (body, crc) = block
            .split_last_chunk::<4>()
            .ok_or("the pack is shorter than its header")?;
        let mut fields = Fields(body);
        if fields.array()? != PACK_MAGIC {
            return Err("this is not a pack");
        }
        if u32::from_le_bytes(*crc) != crc32c::crc32c(body) {
            return Err("the pack header's checksum does not match");
        }
        if fields.u32()? != VERSION {
            return Err("the pack's version is unknown to this program");
        }
        if fields.u32()? != BLOCK_LEN {
            return Err("the pack's block length is unknown to this program");
        }
        let header = PackHeader {
            volume: fields.array()?,
            id: PackId(fields.array()?),
            created_ns: fields.u64()?,
        };
        match fields.u32()? {
            0 => Ok(header),
            _ => Err("the pack is encrypted with a key this program does not know"),
        }
    }
}

/// CRC-32C of `bytes` as found in `pack` at `offset`.
fn place_crc(pack: PackId, offset: u32, bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&pack.0);
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    crc32c::crc32c_append(crc, bytes)
}

/// `offset` rounded up to a block.
pub fn block_up(offset: u32) -> u32 {
    offset.next_multiple_of(BLOCK_LEN)
}

/// Takes little-endian fields off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        let (field, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or("the bytes end within a field")?;
        self.0 = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Decoded<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Decoded<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Decoded<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Decoded<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests;
