//! Reading records and the index of a pack, from wherever its bytes are: a local file, the open
//! pack's buffer, or a ranged read of the external volume.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::chunk::{self, BLOB_LEN_MAX, Codec};
use crate::error::{Error, Result};
use crate::format::pack::{
    BLOCK_LEN, Decoded, IndexEntry, RECORD_HEADER_LEN, RecordHeader, TRAILER_LEN, Trailer,
    decode_index, zero_block,
};
use crate::types::{BlobHash, BlobLocation, PackId};

/// The bytes of one pack, by range.
pub trait ReadAt {
    /// Exactly `len` bytes from `offset` on, or an error.
    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes>;
    /// File path or object name, for errors.
    fn name(&self) -> String;
    /// How long it is; for an open pack this includes what is preallocated.
    fn len(&self) -> Result<u64>;
    /// Whether it has no bytes at all.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A pack file in the backup path.
#[derive(Debug)]
pub struct LocalPack {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl LocalPack {
    /// Opens it for reading.
    pub fn open(path: &Path) -> Result<LocalPack> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        Ok(LocalPack {
            file,
            path: path.to_owned(),
        })
    }

    /// Opens it for reading, recovery and punching.
    pub(super) fn open_writable(path: &Path) -> Result<LocalPack> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io("open", path))?;
        Ok(LocalPack {
            file,
            path: path.to_owned(),
        })
    }
}

impl LocalPack {
    /// Whether nothing but a hole is at these bytes, as far as the file system can tell: asked of an evicted
    /// pack, it saves reading zeros into the page cache.
    pub fn is_hole(&self, range: Range<u64>) -> bool {
        // The cursor that this moves is used by nobody: all reads and writes name their offset.
        let data = libc::off_t::try_from(range.start)
            .map(|start| lseek(&self.file, start, Whence::SeekData));
        match data {
            Ok(Ok(data)) => u64::try_from(data).is_ok_and(|data| data >= range.end),
            // No data up to the end of the file.
            Ok(Err(Errno::ENXIO)) => true,
            _ => false,
        }
    }

    /// Bytes of the disk that it takes.
    pub fn allocated_bytes(&self) -> Result<u64> {
        let meta = self.file.metadata();
        Ok(meta.map_err(Error::io("stat", &self.path))?.blocks() * 512)
    }
}

impl ReadAt for LocalPack {
    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let mut bytes = vec![0; len];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::corrupt(
                self.name(),
                offset,
                format!("the file ends before {len} bytes from here"),
            )),
            Err(error) => Err(Error::io("read", &self.path)(error)),
        }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> Result<u64> {
        Ok(self
            .file
            .metadata()
            .map_err(Error::io("stat", &self.path))?
            .len())
    }
}

/// A whole pack in memory.
#[derive(Clone, Debug)]
pub struct MemoryPack {
    /// Where it came from.
    pub name: String,
    /// All of it.
    pub bytes: Bytes,
}

impl ReadAt for MemoryPack {
    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let end = usize::try_from(offset)
            .ok()
            .and_then(|begin| Some((begin, begin.checked_add(len)?)));
        match end {
            Some((begin, end)) if end <= self.bytes.len() => Ok(self.bytes.slice(begin..end)),
            _ => Err(Error::corrupt(
                &self.name,
                offset,
                format!("the pack ends before {len} bytes from here"),
            )),
        }
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

/// What stands where a record should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordRead {
    /// The plain bytes, with checksum, name and length as expected.
    Plain(Bytes),
    /// Zeros: punched, or not fetched. Of a pack that was never uploaded it is a loss: whether it may
    /// be is for the caller, who knows the pack's state.
    Absent,
}

/// How many bytes to read at `loc.offset` for [`parse_record`].
pub fn record_read_len(loc: &BlobLocation) -> usize {
    (RECORD_HEADER_LEN + loc.stored_len.min(BLOB_LEN_MAX)) as usize
}

/// Reads the blob `expect` at `loc`.
///
/// Name, lengths and checksums must match; the plain bytes are not hashed again, the checksum having
/// been computed over what was hashed when the record was written. [`verify_pack`] hashes.
///
/// [`verify_pack`]: crate::pack::verify::verify_pack
pub fn read_record(
    source: &(impl ReadAt + ?Sized),
    loc: &BlobLocation,
    expect: BlobHash,
) -> Result<RecordRead> {
    let bytes = source.read_at(u64::from(loc.offset), record_read_len(loc))?;
    parse(bytes, loc, expect)
        .map_err(|reason| Error::corrupt(source.name(), u64::from(loc.offset), reason))
}

/// The same from bytes that were read elsewhere: header and payload, [`record_read_len`] of them, of
/// the object called `name`.
pub fn parse_record(
    name: &str,
    bytes: Bytes,
    loc: &BlobLocation,
    expect: BlobHash,
) -> Result<RecordRead> {
    parse(bytes, loc, expect).map_err(|reason| Error::corrupt(name, u64::from(loc.offset), reason))
}

pub(super) fn parse(bytes: Bytes, loc: &BlobLocation, expect: BlobHash) -> Decoded<RecordRead> {
    let Some((header, stored)) = checked(&bytes, loc, expect)? else {
        return Ok(RecordRead::Absent);
    };
    Ok(RecordRead::Plain(match header.codec {
        Codec::Raw => bytes.slice_ref(stored),
        Codec::Lz4 => chunk::decode(Codec::Lz4, stored, header.plain_len)?.into(),
    }))
}

/// Whether the record of the blob `expect` at `loc` is in `bytes`, checked as for a read, but not
/// decompressed.
pub fn is_record(bytes: &[u8], loc: &BlobLocation, expect: BlobHash) -> bool {
    matches!(checked(bytes, loc, expect), Ok(Some(_)))
}

/// The header and the stored bytes of a record in which everything is as expected; `None` if it is absent.
fn checked<'a>(
    bytes: &'a [u8],
    loc: &BlobLocation,
    expect: BlobHash,
) -> Decoded<Option<(RecordHeader, &'a [u8])>> {
    let header = match RecordHeader::decode(loc.pack, loc.offset, bytes) {
        Ok(header) => header,
        Err(reason) => {
            let header = bytes.get(..RECORD_HEADER_LEN as usize).ok_or(reason)?;
            return if zero_block(loc.offset, header) {
                Ok(None)
            } else {
                Err(reason)
            };
        }
    };
    if header.hash != expect {
        return Err("another blob is stored here");
    }
    if (header.plain_len, header.stored_len) != (loc.plain_len, loc.stored_len) {
        return Err("the blob stored here has other lengths");
    }
    let end = (RECORD_HEADER_LEN + header.stored_len) as usize;
    let stored = bytes
        .get(RECORD_HEADER_LEN as usize..end)
        .ok_or("the bytes end within the record")?;
    if crc32c::crc32c(stored) != header.stored_crc {
        let absent = zero_block(loc.offset, bytes.get(..end).unwrap_or_default());
        return if absent {
            Ok(None)
        } else {
            Err("the blob's checksum does not match")
        };
    }
    Ok(Some((header, stored)))
}

/// The index of a sealed pack, and where it begins.
#[derive(Clone, Debug)]
pub struct PackIndex {
    /// All records, in the order of their offsets.
    pub entries: Vec<IndexEntry>,
    /// Records end at or before this byte.
    pub offset: u32,
    /// Length of the whole pack.
    pub pack_len: u32,
}

impl PackIndex {
    /// The entries of the records that begin within `range`.
    pub fn entries_in(&self, range: Range<u32>) -> &[IndexEntry] {
        let from = self
            .entries
            .partition_point(|entry| entry.offset < range.start);
        let to = self
            .entries
            .partition_point(|entry| entry.offset < range.end);
        self.entries.get(from..to).unwrap_or_default()
    }

    /// The entry of the record that begins at `offset`.
    pub fn entry_at(&self, offset: u32) -> Option<&IndexEntry> {
        self.entries_in(offset..offset.saturating_add(1)).first()
    }

    /// Bytes that a pack keeps when it is evicted: header, index and trailer.
    pub fn kept_bytes(&self) -> u64 {
        u64::from(BLOCK_LEN + (self.pack_len - self.offset.min(self.pack_len)))
    }
}

/// First read of the end of a pack: the index of a typical one, so that one round trip to an external
/// volume is enough.
const TAIL_GUESS_LEN: u64 = 64 << 10;

/// Reads the index of `pack`.
pub fn read_index(source: &(impl ReadAt + ?Sized), pack: PackId) -> Result<PackIndex> {
    let corrupt = |offset: u64, reason: &str| Error::corrupt(source.name(), offset, reason);
    let pack_len = source.len()?;
    let tail_begin = pack_len.saturating_sub(TAIL_GUESS_LEN);
    let tail = read_between(source, tail_begin, pack_len)?;
    let trailer = Trailer::decode(pack, pack_len, &tail)
        .map_err(|reason| corrupt(pack_len.saturating_sub(u64::from(TRAILER_LEN)), reason))?;

    let index_begin = u64::from(trailer.index_offset);
    let index_end = index_begin + u64::from(trailer.index_len);
    let index = if index_begin >= tail_begin {
        let skip = usize::try_from(index_begin - tail_begin).unwrap_or(usize::MAX);
        tail.slice(skip..skip + trailer.index_len as usize)
    } else {
        read_between(source, index_begin, index_end)?
    };
    if crc32c::crc32c(&index) != trailer.index_crc {
        return Err(corrupt(
            index_begin,
            "the index is not the one the trailer names",
        ));
    }
    let entries = decode_index(pack, trailer.index_offset, &index)
        .map_err(|reason| corrupt(index_begin, reason))?;
    Ok(PackIndex {
        entries,
        offset: trailer.index_offset,
        pack_len: trailer.pack_len,
    })
}

fn read_between(source: &(impl ReadAt + ?Sized), begin: u64, end: u64) -> Result<Bytes> {
    source.read_at(
        begin,
        usize::try_from(end.saturating_sub(begin)).unwrap_or(usize::MAX),
    )
}

#[cfg(test)]
mod tests;
