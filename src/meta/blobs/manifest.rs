//! The small file that says which runs there are and what they are worth. Rewritten whole, or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::packs::PackSet;
use crate::error::{Error, Result};
use crate::meta::atomic;

const MAGIC: [u8; 8] = *b"tidefsBM";
const FORMAT: u32 = 1;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Above the number of every run that ever was.
    pub(super) seq_next: u64,
    /// Newest last.
    pub(super) runs: Vec<u64>,
    /// All blobs of these are in the runs.
    pub(super) covered: PackSet,
    /// Entries of these count for nothing.
    pub(super) dropped: PackSet,
}

impl Manifest {
    /// `None` if there is none.
    pub(super) fn read(dir: &Path) -> Result<Option<Manifest>> {
        let path = path(dir);
        match fs::read(&path) {
            Ok(bytes) => match Manifest::decode(&bytes) {
                Some(manifest) => Ok(Some(manifest)),
                None => Err(Error::corrupt(
                    path.display().to_string(),
                    0,
                    "it is no list of runs of this format",
                )),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        atomic::rewrite(&path(dir), &self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(
            &u32::try_from(self.runs.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        bytes.extend_from_slice(&self.seq_next.to_le_bytes());
        self.runs
            .iter()
            .for_each(|seq| bytes.extend_from_slice(&seq.to_le_bytes()));
        self.covered.encode(&mut bytes);
        self.dropped.encode(&mut bytes);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Manifest> {
        let (sealed, crc) = bytes.split_last_chunk()?;
        let (magic, rest) = sealed.split_first_chunk()?;
        let (format, rest) = rest.split_first_chunk()?;
        if *magic != MAGIC
            || u32::from_le_bytes(*crc) != crc32c::crc32c(sealed)
            || u32::from_le_bytes(*format) != FORMAT
        {
            return None;
        }
        let (count, rest) = rest.split_first_chunk()?;
        let (seq_next, rest) = rest.split_first_chunk()?;
        let runs_len = usize::try_from(u32::from_le_bytes(*count))
            .ok()?
            .checked_mul(8)?;
        let (runs, rest) = rest.split_at_checked(runs_len)?;
        let (covered, rest) = PackSet::decode(rest)?;
        let (dropped, rest) = PackSet::decode(rest)?;
        let runs = runs
            .as_chunks()
            .0
            .iter()
            .map(|seq| u64::from_le_bytes(*seq))
            .collect();
        let seq_next = u64::from_le_bytes(*seq_next);
        rest.is_empty().then_some(Manifest {
            seq_next,
            runs,
            covered,
            dropped,
        })
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("runs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{PackId, SessionId};

    #[test]
    fn a_manifest_reads_back_and_any_damage_to_it_is_seen() {
        let mut manifest = Manifest {
            seq_next: 9,
            runs: vec![1, 4, 8],
            ..Manifest::default()
        };
        (0..5).for_each(|n| manifest.covered.insert(PackId::new(SessionId([3; 8]), n)));
        manifest.dropped.insert(PackId::new(SessionId([4; 8]), 7));
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Some(manifest));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert_eq!(Manifest::decode(&bad), None, "byte {at}");
            assert_eq!(Manifest::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
