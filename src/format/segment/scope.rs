//! What a segment is about: volume, session and epochs; and the file header that says so first.
//!
//! The header is also the salt of every checksum in the file: a frame of another segment, however
//! intact, does not pass for one of this.

use crate::types::{Epoch, SessionId};

use super::Damage;
use crate::format::wire::{Reader, put_bytes, put_u16, put_u32, put_u64};

/// Length of the file header.
pub(super) const HEADER_LEN: u64 = 64;
const MAGIC: [u8; 8] = *b"tideSEGM";
/// The only version there is.
pub(super) const VERSION: u16 = 1;
/// The header without its checksum.
const SALT_LEN: usize = 60;

/// The identity that a segment has before its first entry is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentScope {
    /// UUID of the volume it belongs to.
    pub volume: [u8; 16],
    /// The session that writes it.
    pub session: SessionId,
    /// No entry is older.
    pub first: Epoch,
    /// No entry is newer.
    pub last: Epoch,
}

impl SegmentScope {
    /// The file header: magic, version, flags, key id, identity, reserved, checksum.
    pub(super) fn header(&self) -> Vec<u8> {
        let mut out = self.salt();
        let checksum = crc32c::crc32c(&out);
        put_u32(&mut out, checksum);
        out
    }

    fn salt(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        put_bytes(&mut out, &MAGIC);
        put_u16(&mut out, VERSION);
        put_u16(&mut out, 0);
        put_u32(&mut out, 0);
        self.put(&mut out);
        put_u32(&mut out, 0);
        debug_assert_eq!(out.len(), SALT_LEN);
        out
    }

    /// The identity's 40 bytes, the same in header and footer.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_bytes(out, &self.volume);
        put_bytes(out, &self.session.0);
        put_u64(out, self.first.0);
        put_u64(out, self.last.0);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<SegmentScope> {
        Some(SegmentScope {
            volume: reader.array()?,
            session: SessionId(reader.array()?),
            first: Epoch(reader.u64()?),
            last: Epoch(reader.u64()?),
        })
    }

    /// The checksum of the header, from which the checksums of all frames go on.
    pub(super) fn frame_salt(&self) -> u32 {
        crc32c::crc32c(&self.salt())
    }

    /// Whether `header` is the one that belongs to this identity.
    pub(super) fn check_header(&self, header: &[u8]) -> Result<(), Damage> {
        let expected = self.header();
        let differs = header
            .iter()
            .zip(&expected)
            .position(|(is, should)| is != should);
        match differs {
            Some(at) => Err(Damage::new(at as u64, "the header contradicts the footer")),
            None if header.len() < expected.len() => {
                Err(Damage::new(header.len() as u64, "the header ends early"))
            }
            None => Ok(()),
        }
    }
}
