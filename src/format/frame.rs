//! Journal frames: one commit each, whole or absent (invariant 3).
//!
//! A frame starts on a block and is padded to one, so that a later frame never rewrites a block that
//! was synced before (invariant 1). Header and body have checksums of their own, so that a torn body
//! is told from a foreign header.

use bytes::Bytes;

use crate::format::keys::{Changes, Key};
use crate::format::wire::{self, Reader};
use crate::types::{Epoch, Lsn, PackId, SessionId};

/// Frames start at multiples of this.
pub const BLOCK_LEN: usize = 4096;
/// Length of a frame's header.
pub const HEADER_LEN: usize = 64;
/// Largest body that is believed: a corrupt length must not make us allocate.
pub const BODY_LEN_MAX: u64 = 1 << 30;

const FILE_MAGIC: [u8; 8] = *b"TIDEFSJ1";
const FRAME_MAGIC: [u8; 4] = *b"TFJF";

/// What the first block of a journal file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileHeader {
    /// The volume.
    pub volume: [u8; 16],
    /// The session that wrote the file.
    pub session: SessionId,
    /// The epoch of its frames.
    pub epoch: Epoch,
}

/// What a frame's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Its number.
    pub lsn: Lsn,
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// The session that wrote it.
    pub session: SessionId,
    /// Length of the body.
    pub body_len: u32,
    body_crc: u32,
}

/// A pack that was synced up to `len` before the frame was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackExtent {
    /// The pack.
    pub pack: PackId,
    /// Bytes of it that are durable.
    pub len: u32,
}

/// Encodes the first block of a journal file.
pub fn encode_file_header(header: &FileHeader) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_LEN);
    out.extend_from_slice(&FILE_MAGIC);
    out.extend_from_slice(&header.volume);
    out.extend_from_slice(&header.session.0);
    out.extend_from_slice(&header.epoch.0.to_le_bytes());
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.resize(BLOCK_LEN, 0);
    out
}

/// Decodes it.
pub fn decode_file_header(block: &[u8]) -> Option<FileHeader> {
    let mut reader = Reader::new(block);
    if reader.array::<8>()? != FILE_MAGIC {
        return None;
    }
    let header = FileHeader {
        volume: reader.array()?,
        session: SessionId(reader.array()?),
        epoch: Epoch(reader.u64()?),
    };
    let crc = crc32c::crc32c(block.get(..40)?);
    (reader.u32()? == crc).then_some(header)
}

/// Encodes a frame, padded to whole blocks.
pub fn encode(
    lsn: Lsn,
    epoch: Epoch,
    session: SessionId,
    packs: &[PackExtent],
    changes: &Changes,
) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    wire::put_varint(&mut out, packs.len() as u64);
    for synced in packs {
        out.extend_from_slice(&synced.pack.0);
        out.extend_from_slice(&synced.len.to_le_bytes());
    }
    wire::put_varint(&mut out, changes.len() as u64);
    for (key, value) in changes {
        wire::put_prefixed(&mut out, key);
        match value {
            Some(value) => {
                wire::put_varint(&mut out, value.len() as u64 + 1);
                out.extend_from_slice(value);
            }
            None => wire::put_varint(&mut out, 0),
        }
    }
    let body = &out[HEADER_LEN..];
    let body_len = body.len() as u64;
    let mut header = Vec::with_capacity(HEADER_LEN);
    header.extend_from_slice(&FRAME_MAGIC);
    header.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    header.extend_from_slice(&lsn.0.to_le_bytes());
    header.extend_from_slice(&epoch.0.to_le_bytes());
    header.extend_from_slice(&session.0);
    header.extend_from_slice(&body_len.to_le_bytes());
    header.resize(HEADER_LEN - 4, 0);
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    out[..HEADER_LEN].copy_from_slice(&header);
    out.resize(out.len().next_multiple_of(BLOCK_LEN), 0);
    out
}

/// Decodes a frame's header; `None` when there is none at this place.
pub fn decode_header(bytes: &[u8]) -> Option<FrameHeader> {
    let head = bytes.get(..HEADER_LEN)?;
    let (covered, crc) = head.split_at(HEADER_LEN - 4);
    if Reader::new(crc).u32()? != crc32c::crc32c(covered) {
        return None;
    }
    let mut reader = Reader::new(covered);
    if reader.array::<4>()? != FRAME_MAGIC {
        return None;
    }
    let body_crc = reader.u32()?;
    let lsn = Lsn(reader.u64()?);
    let epoch = Epoch(reader.u64()?);
    let session = SessionId(reader.array()?);
    let body_len = reader.u64()?;
    if body_len > BODY_LEN_MAX {
        return None;
    }
    Some(FrameHeader {
        lsn,
        epoch,
        session,
        body_len: u32::try_from(body_len).ok()?,
        body_crc,
    })
}

/// Decodes a frame's body; `None` when it is not what the header says.
pub fn decode_body(header: &FrameHeader, body: &[u8]) -> Option<(Vec<PackExtent>, Changes)> {
    if body.len() as u64 != u64::from(header.body_len) || crc32c::crc32c(body) != header.body_crc {
        return None;
    }
    let mut reader = Reader::new(body);
    let mut packs = Vec::new();
    for _ in 0..reader.varint()? {
        packs.push(PackExtent {
            pack: PackId(reader.array()?),
            len: reader.u32()?,
        });
    }
    let mut changes = Changes::new();
    for _ in 0..reader.varint()? {
        let key = Key::from_bytes(reader.prefixed(usize::MAX)?);
        let value = match reader.varint()? {
            0 => None,
            len => Some(Bytes::copy_from_slice(
                reader.bytes(usize::try_from(len - 1).ok()?)?,
            )),
        };
        changes.insert(key, value);
    }
    reader.is_empty().then_some((packs, changes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> (Vec<PackExtent>, Changes) {
        let packs = vec![PackExtent {
            pack: PackId([3; 16]),
            len: 8192,
        }];
        let mut changes = Changes::new();
        changes.insert(Key::from_bytes(b"a"), Some(Bytes::from("value")));
        changes.insert(Key::from_bytes(b"b"), None);
        changes.insert(Key::from_bytes(b"c"), Some(Bytes::new()));
        (packs, changes)
    }

    #[test]
    fn a_frame_comes_back_as_written_and_fills_its_block() {
        let (packs, changes) = sample();
        let bytes = encode(Lsn(7), Epoch(3), SessionId([9; 8]), &packs, &changes);
        assert_eq!(bytes.len(), BLOCK_LEN);
        let header = decode_header(&bytes).unwrap();
        assert_eq!(
            (header.lsn, header.epoch, header.session),
            (Lsn(7), Epoch(3), SessionId([9; 8]))
        );
        let body = &bytes[HEADER_LEN..HEADER_LEN + header.body_len as usize];
        assert_eq!(decode_body(&header, body), Some((packs, changes)));
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed() {
        let (packs, changes) = sample();
        let bytes = encode(Lsn(7), Epoch(3), SessionId([9; 8]), &packs, &changes);
        let len = HEADER_LEN + decode_header(&bytes).unwrap().body_len as usize;
        for bit in 0..len * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let whole = decode_header(&damaged).and_then(|header| {
                decode_body(
                    &header,
                    &damaged[HEADER_LEN..HEADER_LEN + header.body_len as usize],
                )
            });
            assert_eq!(whole, None, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_something_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_file_header(&bytes);
            if let Some(header) = decode_header(&bytes) {
                let _ = decode_body(&header, &bytes);
            }
        }
    }
}
