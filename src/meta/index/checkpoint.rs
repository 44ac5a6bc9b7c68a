//! The small file beside the store that says what the store must hold. Rewritten whole, or not at all.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::meta::atomic;
use crate::types::Epoch;

const MAGIC: [u8; 8] = *b"tidefsIX";
const FORMAT: u32 = 1;
/// Number of pages and sum of digests are known.
const TALLIED: u32 = 1;
const LEN: usize = 80;

/// What was known when the store was last synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) volume: [u8; 16],
    /// Everything of this epoch and of those before is in the store.
    pub(super) epoch: Epoch,
    /// Number of the checkpoint. The store holds it too: a store that fell back is behind its checkpoint.
    pub(super) serial: u64,
    /// How often the index was opened: the upper half of the numbers of writes, so that none repeats.
    pub(super) opens: u32,
    /// The last write before the checkpoint.
    pub(super) seq: u64,
    pub(super) tally: Option<Tally>,
}

/// How many pages there are, and the wrapping sum of their digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tally {
    pub(super) pages: u64,
    pub(super) digest: u64,
}

impl Tally {
    pub(super) fn add(&mut self, digest: u64) {
        self.pages += 1;
        self.digest = self.digest.wrapping_add(digest);
    }

    pub(super) fn take(&mut self, digest: u64) {
        self.pages = self.pages.saturating_sub(1);
        self.digest = self.digest.wrapping_sub(digest);
    }
}

impl Checkpoint {
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        atomic::rewrite(path, &self.encode())
    }

    /// The checkpoint at `path`; `None` if there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Checkpoint>> {
        match fs::read(path) {
            Ok(bytes) => match Checkpoint::decode(&bytes) {
                Some(checkpoint) => Ok(Some(checkpoint)),
                None => Err(Error::corrupt(
                    path.display().to_string(),
                    0,
                    "it is no checkpoint of this format",
                )),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEN);
        let tally = self.tally.unwrap_or_default();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&if self.tally.is_some() { TALLIED } else { 0 }.to_le_bytes());
        bytes.extend_from_slice(&self.volume);
        bytes.extend_from_slice(&self.epoch.0.to_le_bytes());
        bytes.extend_from_slice(&self.serial.to_le_bytes());
        bytes.extend_from_slice(&self.seq.to_le_bytes());
        bytes.extend_from_slice(&tally.pages.to_le_bytes());
        bytes.extend_from_slice(&tally.digest.to_le_bytes());
        bytes.extend_from_slice(&self.opens.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Checkpoint> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let (sealed, crc) = bytes.split_last_chunk()?;
        let (magic, rest) = sealed.split_first_chunk()?;
        let (format, rest) = rest.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (volume, rest) = rest.split_first_chunk()?;
        let (words, rest) = rest.as_chunks();
        let &[epoch, serial, seq, pages, digest] = words else {
            return None;
        };
        let opens = u32::from_le_bytes(rest.try_into().ok()?);
        if *magic != MAGIC
            || u32::from_le_bytes(*crc) != crc32c::crc32c(sealed)
            || u32::from_le_bytes(*format) != FORMAT
        {
            return None;
        }
        let tally = Tally {
            pages: u64::from_le_bytes(pages),
            digest: u64::from_le_bytes(digest),
        };
        Some(Checkpoint {
            volume: *volume,
            epoch: Epoch(u64::from_le_bytes(epoch)),
            serial: u64::from_le_bytes(serial),
            opens,
            seq: u64::from_le_bytes(seq),
            tally: (u32::from_le_bytes(*flags) & TALLIED != 0).then_some(tally),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_reads_back_and_any_damage_to_it_is_seen() {
        for tally in [
            None,
            Some(Tally {
                pages: 3,
                digest: u64::MAX,
            }),
        ] {
            let checkpoint = Checkpoint {
                volume: [7; 16],
                epoch: Epoch(5),
                serial: 9,
                opens: 2,
                seq: 1 << 41,
                tally,
            };
            let bytes = checkpoint.encode();
            assert_eq!(bytes.len(), LEN);
            assert_eq!(Checkpoint::decode(&bytes), Some(checkpoint));
            for at in 0..LEN {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                assert_eq!(Checkpoint::decode(&bad), None, "byte {at}");
                assert_eq!(Checkpoint::decode(&bytes[..at]), None);
            }
        }
    }
}
