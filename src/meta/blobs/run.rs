//! A run: an immutable file of entries sorted by hash. One pread answers, or none.
//!
//! ```text
//! blocks of 4096: up to 68 entries of 60 bytes {hash 32, pack 16, u32 offset, u32 stored_len, u32 plain_len},
//!                 zeros, at 4088 u32 entries, at 4092 u32 crc32c of the 4092 bytes before
//! then            Bloom filter; per block the first 8 bytes of its first hash
//! footer of 48    magic, u32 format, u32 zero, u64 entries, u64 blocks, u64 filter len,
//!                 u32 crc32c of filter and block list, u32 crc32c of the footer before
//! ```
//! Little-endian, but hashes, packs and first bytes as they are.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::bloom::Bloom;
use crate::error::{Error, Result};
use crate::meta::atomic;
use crate::types::{BlobHash, BlobLocation, PackId};

const MAGIC: [u8; 8] = *b"tidefsBR";
const FORMAT: u32 = 1;
const FOOTER_LEN: usize = 48;
const ENTRY_LEN: usize = 60;
const BLOCK_LEN: usize = 4096;
const BLOCK_LEN_U64: u64 = 4096;
const BLOCK_ENTRIES: usize = 68;
const COUNT_AT: usize = BLOCK_LEN - 8;
const CRC_AT: usize = BLOCK_LEN - 4;
const SUFFIX: &str = "run";

type Entry = (BlobHash, BlobLocation);

#[derive(Debug)]
pub(super) struct Run {
    seq: u64,
    path: PathBuf,
    file: File,
    entries: u64,
    bloom: Bloom,
    /// The first hash of each block, as far as it fits.
    firsts: Vec<u64>,
}

impl Run {
    pub(super) fn open(dir: &Path, seq: u64) -> Result<Run> {
        let path = path_of(dir, seq);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let file_len = file.metadata().map_err(Error::io("look at", &path))?.len();
        let bad = |reason: &str| Error::corrupt(path.display().to_string(), file_len, reason);
        let footer_at = file_len
            .checked_sub(48)
            .ok_or_else(|| bad("it is too short"))?;
        let mut footer = [0; FOOTER_LEN];
        file.read_exact_at(&mut footer, footer_at)
            .map_err(Error::io("read", &path))?;
        let footer = Footer::decode(&footer).ok_or_else(|| bad("its footer is damaged"))?;
        let tail_at = footer
            .blocks
            .checked_mul(BLOCK_LEN_U64)
            .filter(|at| *at <= footer_at);
        let tail_at = tail_at.ok_or_else(|| bad("its footer does not fit its length"))?;
        // Bounded by the length of the file.
        let tail_len = usize::try_from(footer_at - tail_at).map_err(|_| bad("it is too long"))?;
        let mut tail = vec![0; tail_len];
        file.read_exact_at(&mut tail, tail_at)
            .map_err(Error::io("read", &path))?;
        if crc32c::crc32c(&tail) != footer.tail_crc {
            return Err(bad("its filter is damaged"));
        }
        let filter_len = usize::try_from(footer.filter_len).ok();
        let split = filter_len.and_then(|len| tail.split_at_checked(len));
        let (filter, firsts) = split.ok_or_else(|| bad("its filter does not fit"))?;
        let bloom = Bloom::from_bytes(filter).ok_or_else(|| bad("its filter is none"))?;
        let firsts: Vec<u64> = firsts
            .as_chunks()
            .0
            .iter()
            .map(|first| u64::from_be_bytes(*first))
            .collect();
        if u64::try_from(firsts.len()) != Ok(footer.blocks) || !firsts.is_sorted() {
            return Err(bad("its list of blocks does not fit"));
        }
        Ok(Run {
            seq,
            path,
            file,
            entries: footer.entries,
            bloom,
            firsts,
        })
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn entry_count(&self) -> u64 {
        self.entries
    }

    pub(super) fn may_contain(&self, hash: &BlobHash) -> bool {
        self.bloom.may_contain(hash)
    }

    pub(super) fn get(&self, hash: &BlobHash) -> Result<Option<BlobLocation>> {
        let first = first_bytes(hash);
        // The last block that can begin with this hash; where first bytes are equal, it may be an earlier one.
        let mut block = self.firsts.partition_point(|other| *other <= first);
        while let Some(at) = block.checked_sub(1) {
            let bytes = self.read_block(at)?;
            let entries = block_entries(&bytes);
            if let Ok(found) = entries.binary_search_by(|entry| entry[..32].cmp(&hash.0[..])) {
                return Ok(Some(decode_entry(&entries[found]).1));
            }
            if self.firsts[at] != first {
                break;
            }
            block = at;
        }
        Ok(None)
    }

    fn read_block(&self, at: usize) -> Result<Box<[u8; BLOCK_LEN]>> {
        let offset = u64::try_from(at)
            .unwrap_or(u64::MAX)
            .saturating_mul(BLOCK_LEN_U64);
        let mut block = Box::new([0; BLOCK_LEN]);
        self.file
            .read_exact_at(&mut block[..], offset)
            .map_err(Error::io("read", &self.path))?;
        let crc = block.last_chunk().map_or(0, |crc| u32::from_le_bytes(*crc));
        if crc32c::crc32c(&block[..CRC_AT]) != crc || block_count(&block) > BLOCK_ENTRIES {
            return Err(Error::corrupt(
                self.path.display().to_string(),
                offset,
                "its checksum is wrong",
            ));
        }
        Ok(block)
    }

    /// All entries in order.
    pub(super) fn scan(&self) -> impl Iterator<Item = Result<Entry>> {
        (0..self.firsts.len()).flat_map(|at| match self.read_block(at) {
            Ok(block) => block_entries(&block)
                .iter()
                .map(|entry| Ok(decode_entry(entry)))
                .collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })
    }
}

struct Footer {
    entries: u64,
    blocks: u64,
    filter_len: u64,
    tail_crc: u32,
}

impl Footer {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.entries.to_le_bytes());
        bytes.extend_from_slice(&self.blocks.to_le_bytes());
        bytes.extend_from_slice(&self.filter_len.to_le_bytes());
        bytes.extend_from_slice(&self.tail_crc.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; FOOTER_LEN]) -> Option<Footer> {
        let (sealed, crc) = bytes.split_last_chunk()?;
        let (magic, rest) = sealed.split_first_chunk()?;
        let (format, rest) = rest.split_first_chunk()?;
        let (_zero, rest) = rest.split_first_chunk::<4>()?;
        let (words, tail_crc) = rest.as_chunks();
        let &[entries, blocks, filter_len] = words else {
            return None;
        };
        let good = *magic == MAGIC
            && u32::from_le_bytes(*crc) == crc32c::crc32c(sealed)
            && u32::from_le_bytes(*format) == FORMAT;
        good.then_some(Footer {
            entries: u64::from_le_bytes(entries),
            blocks: u64::from_le_bytes(blocks),
            filter_len: u64::from_le_bytes(filter_len),
            tail_crc: u32::from_le_bytes(tail_crc.try_into().ok()?),
        })
    }
}

/// Writes a run front to back.
pub(super) struct RunWriter {
    seq: u64,
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    block: Vec<u8>,
    entries: u64,
    bloom: Bloom,
    firsts: Vec<u64>,
}

impl RunWriter {
    /// For at most about `entries_max` entries; more only make the filter worse.
    pub(super) fn create(dir: &Path, seq: u64, entries_max: usize) -> Result<RunWriter> {
        const BUFFER_LEN: usize = 1 << 20;
        let path = path_of(dir, seq);
        let temporary = path.with_extension("new");
        let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        Ok(RunWriter {
            seq,
            path,
            temporary,
            file: BufWriter::with_capacity(BUFFER_LEN, file),
            block: Vec::with_capacity(BLOCK_LEN),
            entries: 0,
            bloom: Bloom::for_entries(entries_max),
            firsts: Vec::new(),
        })
    }

    /// Takes the next entry; its hash is above all before.
    pub(super) fn push(&mut self, hash: &BlobHash, location: &BlobLocation) -> Result<()> {
        if self.block.len() == BLOCK_ENTRIES * ENTRY_LEN {
            self.end_block()?;
        }
        if self.block.is_empty() {
            self.firsts.push(first_bytes(hash));
        }
        self.block.extend_from_slice(&hash.0);
        self.block.extend_from_slice(&location.pack.0);
        for number in [location.offset, location.stored_len, location.plain_len] {
            self.block.extend_from_slice(&number.to_le_bytes());
        }
        self.bloom.insert(hash);
        self.entries += 1;
        Ok(())
    }

    fn end_block(&mut self) -> Result<()> {
        let count = u32::try_from(self.block.len() / ENTRY_LEN).unwrap_or(u32::MAX);
        self.block.resize(COUNT_AT, 0);
        self.block.extend_from_slice(&count.to_le_bytes());
        let crc = crc32c::crc32c(&self.block);
        self.block.extend_from_slice(&crc.to_le_bytes());
        self.file
            .write_all(&self.block)
            .map_err(Error::io("write", &self.temporary))?;
        self.block.clear();
        Ok(())
    }

    /// Makes it durable under its name. It counts once the manifest names it.
    pub(super) fn finish(mut self) -> Result<Run> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        let RunWriter {
            seq,
            path,
            temporary,
            mut file,
            entries,
            bloom,
            firsts,
            ..
        } = self;
        let mut tail = bloom.to_bytes();
        let filter_len = u64::try_from(tail.len()).unwrap_or(u64::MAX);
        tail.extend(firsts.iter().flat_map(|first| first.to_be_bytes()));
        let blocks = u64::try_from(firsts.len()).unwrap_or(u64::MAX);
        let footer = Footer {
            entries,
            blocks,
            filter_len,
            tail_crc: crc32c::crc32c(&tail),
        };
        tail.extend_from_slice(&footer.encode());
        file.write_all(&tail)
            .map_err(Error::io("write", &temporary))?;
        let file = file
            .into_inner()
            .map_err(|error| Error::io("write", &temporary)(error.into_error()))?;
        file.sync_all().map_err(Error::io("sync", &temporary))?;
        fs::rename(&temporary, &path).map_err(Error::io("rename", &temporary))?;
        atomic::sync_parent(&path)?;
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        Ok(Run {
            seq,
            path,
            file,
            entries,
            bloom,
            firsts,
        })
    }
}

fn block_count(block: &[u8; BLOCK_LEN]) -> usize {
    let count = block[COUNT_AT..]
        .first_chunk()
        .map_or(0, |count| u32::from_le_bytes(*count));
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn block_entries(block: &[u8; BLOCK_LEN]) -> &[[u8; ENTRY_LEN]] {
    let entries = block.as_chunks().0;
    entries.get(..block_count(block)).unwrap_or_default()
}

fn decode_entry(entry: &[u8; ENTRY_LEN]) -> Entry {
    let (mut hash, mut pack) = ([0; 32], [0; 16]);
    hash.copy_from_slice(&entry[..32]);
    pack.copy_from_slice(&entry[32..48]);
    let number = |at: usize| {
        entry[at..]
            .first_chunk()
            .map_or(0, |number| u32::from_le_bytes(*number))
    };
    let location = BlobLocation {
        pack: PackId(pack),
        offset: number(48),
        stored_len: number(52),
        plain_len: number(56),
    };
    (BlobHash(hash), location)
}

fn first_bytes(hash: &BlobHash) -> u64 {
    hash.0
        .first_chunk()
        .map_or(0, |first| u64::from_be_bytes(*first))
}

fn path_of(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("{seq:016x}.{SUFFIX}"))
}

/// The number of the run at `path`, whether finished or not; `None` if it is no run.
pub(super) fn seq_of(path: &Path) -> Option<u64> {
    let suffix = path.extension()?.to_str()?;
    let stem = path.file_stem()?.to_str()?;
    let is_run = suffix == SUFFIX || suffix == "new";
    (is_run && stem.len() == 16).then(|| u64::from_str_radix(stem, 16).ok())?
}
