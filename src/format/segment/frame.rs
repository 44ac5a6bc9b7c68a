//! The envelope of every block, filter and index: what it is, how it is stored, and its checksum.
//!
//! The checksum goes on from the file header and the frame's offset, so that an intact frame at the
//! wrong place, or of another segment, is damage like any other.

use bytes::Bytes;
use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

use super::Damage;
use crate::format::wire::{Reader, put_bytes, put_u8, put_u32};

/// Length of a frame's header; the stored bytes follow.
pub(super) const FRAME_HEADER_LEN: usize = 64;
const MAGIC: [u8; 4] = *b"tSEG";
const CHECKED_LEN: usize = 60;
const CODEC_RAW: u8 = 0;
const CODEC_LZ4: u8 = 1;
/// Key id, nonce and tag: zero until there is encryption.
const CIPHER_ROOM: [u8; 4 + 24 + 16] = [0; 44];
/// One byte of an lz4 block makes at most 255 bytes.
const LZ4_GROWTH_MAX: u64 = 256;

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Block = 1,
    Filter = 2,
    Index = 3,
}

/// Turns plain bytes into frames, reusing its buffers.
#[derive(Debug, Default)]
pub(super) struct FrameEncoder {
    frame: Vec<u8>,
    packed: Vec<u8>,
}

impl FrameEncoder {
    /// The frame of `plain`, or nothing if it is longer than a frame can say.
    pub(super) fn encode(
        &mut self,
        kind: Kind,
        salt: u32,
        offset: u64,
        plain: &[u8],
    ) -> Option<&[u8]> {
        let plain_len = u32::try_from(plain.len()).ok()?;
        let (codec, stored) = match kind {
            // A filter's bits are as good as random.
            Kind::Filter => (CODEC_RAW, plain),
            Kind::Block | Kind::Index => pack(&mut self.packed, plain),
        };
        self.frame.clear();
        put_bytes(&mut self.frame, &MAGIC);
        put_u8(&mut self.frame, kind as u8);
        put_u8(&mut self.frame, codec);
        put_u8(&mut self.frame, 0);
        put_u8(&mut self.frame, 0);
        put_u32(&mut self.frame, plain_len);
        put_u32(&mut self.frame, u32::try_from(stored.len()).ok()?);
        put_bytes(&mut self.frame, &CIPHER_ROOM);
        let checksum = checksum(salt, offset, &self.frame, stored);
        put_u32(&mut self.frame, checksum);
        put_bytes(&mut self.frame, stored);
        Some(&self.frame)
    }
}

/// Compresses where that makes it smaller.
fn pack<'a>(packed: &'a mut Vec<u8>, plain: &'a [u8]) -> (u8, &'a [u8]) {
    packed.resize(get_maximum_output_size(plain.len()), 0);
    match compress_into(plain, packed) {
        Ok(len) if len < plain.len() => (CODEC_LZ4, packed.get(..len).unwrap_or_default()),
        _ => (CODEC_RAW, plain),
    }
}

fn checksum(salt: u32, offset: u64, header: &[u8], stored: &[u8]) -> u32 {
    let placed = crc32c::crc32c_append(salt, &offset.to_le_bytes());
    let checksum = crc32c::crc32c_append(placed, header);
    crc32c::crc32c_append(checksum, stored)
}

/// The plain bytes of `frame`, which was read at `offset`. Holds on to no other bytes than those.
pub(super) fn decode(
    frame: &[u8],
    kind: Kind,
    salt: u32,
    offset: u64,
    plain_len_max: u32,
) -> Result<Bytes, Damage> {
    let damaged = |reason: &str| Damage::new(offset, reason);
    let head = Head::read(frame).ok_or_else(|| damaged("a frame ends within its header"))?;
    if head.magic != MAGIC {
        return Err(damaged("this is not the start of a frame"));
    }
    if u64::from(head.stored_len) != head.stored.len() as u64 {
        return Err(damaged("a frame's length contradicts the block index"));
    }
    if checksum(salt, offset, head.checked, head.stored) != head.checksum {
        return Err(damaged("a frame's checksum is wrong"));
    }
    if head.kind != kind as u8 || head.reserved != [0; 2] || head.cipher_room != CIPHER_ROOM {
        return Err(damaged("a frame is not of the kind expected here"));
    }
    if head.plain_len > plain_len_max {
        return Err(damaged("a frame says it is longer than any may be"));
    }
    match head.codec {
        CODEC_RAW if head.plain_len == head.stored_len => Ok(Bytes::copy_from_slice(head.stored)),
        CODEC_LZ4 => {
            unpack(&head).ok_or_else(|| damaged("a frame's compressed bytes are not valid"))
        }
        _ => Err(damaged("a frame is stored in an unknown way")),
    }
}

fn unpack(head: &Head<'_>) -> Option<Bytes> {
    if u64::from(head.plain_len) > u64::from(head.stored_len) * LZ4_GROWTH_MAX {
        return None;
    }
    let mut plain = vec![0; usize::try_from(head.plain_len).ok()?];
    let len = decompress_into(head.stored, &mut plain).ok()?;
    (len == plain.len()).then(|| Bytes::from(plain))
}

struct Head<'a> {
    checked: &'a [u8],
    magic: [u8; 4],
    kind: u8,
    codec: u8,
    reserved: [u8; 2],
    plain_len: u32,
    stored_len: u32,
    cipher_room: [u8; 44],
    checksum: u32,
    stored: &'a [u8],
}

impl Head<'_> {
    fn read(frame: &[u8]) -> Option<Head<'_>> {
        let mut reader = Reader::new(frame);
        Some(Head {
            checked: frame.get(..CHECKED_LEN)?,
            magic: reader.array()?,
            kind: reader.u8()?,
            codec: reader.u8()?,
            reserved: reader.array()?,
            plain_len: reader.u32()?,
            stored_len: reader.u32()?,
            cipher_room: reader.array()?,
            checksum: reader.u32()?,
            stored: reader.rest(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(plain: &[u8]) -> Vec<u8> {
        let mut encoder = FrameEncoder::default();
        encoder.encode(Kind::Block, 7, 64, plain).unwrap().to_vec()
    }

    #[test]
    fn a_frame_gives_its_bytes_back_compressed_or_not() {
        for plain in [&b"abc"[..], &[b'a'; 5000][..], &[]] {
            let frame = frame(plain);
            assert!(frame.len() <= FRAME_HEADER_LEN + plain.len());
            assert_eq!(decode(&frame, Kind::Block, 7, 64, 5000).unwrap(), plain);
        }
        assert!(frame(&[b'a'; 5000]).len() < 200);
    }

    #[test]
    fn a_frame_of_another_place_segment_or_kind_is_damage() {
        let frame = frame(b"abc");
        assert!(decode(&frame, Kind::Block, 7, 65, 5000).is_err());
        assert!(decode(&frame, Kind::Block, 8, 64, 5000).is_err());
        assert!(decode(&frame, Kind::Index, 7, 64, 5000).is_err());
        assert!(decode(&frame, Kind::Block, 7, 64, 2).is_err());
        assert!(decode(&frame, Kind::Block, 7, 64, 3).is_ok());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_a_frame_is_found() {
        let frame = frame(&[b'x'; 300]);
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                decode(&bad, Kind::Block, 7, 64, 5000).is_err(),
                "bit {bit} went unnoticed"
            );
        }
        for len in 0..frame.len() {
            assert!(decode(&frame[..len], Kind::Block, 7, 64, 5000).is_err());
        }
    }

    #[test]
    fn a_valid_checksum_does_not_make_room_for_a_length_that_cannot_be() {
        // Ten stored bytes cannot unpack to a gigabyte: refused before anything is allocated.
        let mut bad = frame(b"0123456789");
        bad[5] = CODEC_LZ4;
        bad[8..12].copy_from_slice(&(1_u32 << 30).to_le_bytes());
        let sum = checksum(7, 64, &bad[..60], &bad[64..]);
        bad[60..64].copy_from_slice(&sum.to_le_bytes());
        let damage = decode(&bad, Kind::Block, 7, 64, u32::MAX).unwrap_err();
        assert!(damage.reason.contains("compressed"), "{damage:?}");
    }
}
