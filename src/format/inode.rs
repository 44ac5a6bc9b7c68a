//! Inodes, directory entries and extents as values of the metadata, in the bytes of `docs/format.md`.
//!
//! A small file's extents stand in its inode; a larger file's in leaves of their own
//! ([`crate::format::keys::Kind::Extents`]). Ranges that no extent covers are holes.

use crate::format::wire::{self, Reader};
use crate::types::{BlobHash, BlobLocation, FileKind, Ino, PackId, Timestamp};

/// How many extents an inode holds itself before they move to leaves.
pub const INLINE_EXTENTS_MAX: usize = 2;

const INODE_VERSION: u8 = 1;
/// An inode that also says where it was copied from.
const INODE_VERSION_FED: u8 = 2;

/// A range of a file and the blob its bytes are in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte of the range in the file.
    pub start: u64,
    /// Bytes in the range.
    pub len: u32,
    /// The blob.
    pub blob: BlobHash,
    /// Where in the blob's plain bytes the range begins.
    pub blob_offset: u32,
    /// Where the blob was when this was written: a hint, proved by the record.
    pub location: BlobLocation,
}

/// Where an inode was copied from: an inode of a source that feeds the account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Which file system below the account's directory: 0 for that directory's own.
    pub place: u32,
    /// The inode's number there.
    pub number: u64,
    /// Whether size and times tell if it changed since. They do not when it was read within the grain of the clock
    /// that sets them, or while it changed.
    pub is_settled: bool,
}

/// An inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u16,
    /// Names; for a directory, 2 and one for each directory in it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes that extents cover.
    pub allocated: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// The directory that holds this one; only directories have it.
    pub parent: Option<Ino>,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
    /// The file's extents, unless they are in leaves.
    pub extents: Vec<Extent>,
    /// Whether the extents are in leaves.
    pub has_leaves: bool,
    /// Where it was copied from, if a source feeds the account. Then `ctime` is the source's.
    pub origin: Option<Origin>,
}

/// What a directory entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryTarget {
    /// The inode.
    pub ino: Ino,
    /// Its kind, so that a listing without attributes reads nothing else.
    pub kind: FileKind,
}

impl Extent {
    /// First byte behind the range.
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }

    /// The part of it from `start` to `end`, both within its range.
    pub fn slice(&self, start: u64, end: u64) -> Extent {
        debug_assert!(self.start <= start && start < end && end <= self.end());
        let skipped = u32::try_from(start - self.start).unwrap_or(u32::MAX);
        let len = u32::try_from(end - start).unwrap_or(u32::MAX);
        Extent {
            start,
            len,
            blob_offset: self.blob_offset + skipped,
            ..*self
        }
    }
}

fn kind_code(kind: FileKind) -> u8 {
    match kind {
        FileKind::File => 1,
        FileKind::Dir => 2,
        FileKind::Symlink => 3,
        FileKind::Fifo => 4,
        FileKind::Socket => 5,
        FileKind::CharDevice => 6,
        FileKind::BlockDevice => 7,
    }
}

fn kind_of(code: u8) -> Option<FileKind> {
    Some(match code {
        1 => FileKind::File,
        2 => FileKind::Dir,
        3 => FileKind::Symlink,
        4 => FileKind::Fifo,
        5 => FileKind::Socket,
        6 => FileKind::CharDevice,
        7 => FileKind::BlockDevice,
        _ => return None,
    })
}

/// Encodes a directory entry's value.
pub fn encode_entry(target: EntryTarget) -> Vec<u8> {
    let mut out = Vec::with_capacity(9);
    out.push(kind_code(target.kind));
    out.extend_from_slice(&target.ino.0.to_le_bytes());
    out
}

/// Decodes it.
pub fn decode_entry(bytes: &[u8]) -> Option<EntryTarget> {
    let mut reader = Reader::new(bytes);
    let kind = kind_of(reader.u8()?)?;
    let ino = Ino(reader.u64()?);
    reader.is_empty().then_some(EntryTarget { ino, kind })
}

/// Encodes extents in order of their starts, each start as the distance from the end of the one before.
pub fn encode_extents(extents: &[Extent]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + extents.len() * 64);
    put_extents(&mut out, extents);
    out
}

fn put_extents(out: &mut Vec<u8>, extents: &[Extent]) {
    wire::put_varint(out, extents.len() as u64);
    let mut position = 0;
    for extent in extents {
        wire::put_varint(out, extent.start - position);
        wire::put_varint(out, u64::from(extent.len));
        wire::put_varint(out, u64::from(extent.blob_offset));
        out.extend_from_slice(&extent.blob.0);
        out.extend_from_slice(&extent.location.pack.0);
        wire::put_varint(out, u64::from(extent.location.offset));
        wire::put_varint(out, u64::from(extent.location.stored_len));
        wire::put_varint(out, u64::from(extent.location.plain_len));
        position = extent.end();
    }
}

/// Decodes [`encode_extents`]. Ranges come back in order and disjoint, and lie within their blobs.
pub fn decode_extents(bytes: &[u8]) -> Option<Vec<Extent>> {
    let mut reader = Reader::new(bytes);
    let extents = take_extents(&mut reader)?;
    reader.is_empty().then_some(extents)
}

fn take_extents(reader: &mut Reader<'_>) -> Option<Vec<Extent>> {
    /// The least an extent takes, so that a corrupt count cannot make us allocate.
    const EXTENT_LEN_MIN: usize = 54;
    let count = usize::try_from(reader.varint()?).ok()?;
    if count > reader.rest().len() / EXTENT_LEN_MIN {
        return None;
    }
    let mut extents = Vec::with_capacity(count);
    let mut position = 0_u64;
    for _ in 0..count {
        let start = position.checked_add(reader.varint()?)?;
        let len = reader.varint_u32()?;
        let blob_offset = reader.varint_u32()?;
        let blob = BlobHash(reader.array()?);
        let pack = PackId(reader.array()?);
        let location = BlobLocation {
            pack,
            offset: reader.varint_u32()?,
            stored_len: reader.varint_u32()?,
            plain_len: reader.varint_u32()?,
        };
        let inside_blob = len > 0 && blob_offset.checked_add(len)? <= location.plain_len;
        position = start.checked_add(u64::from(len))?;
        if !inside_blob {
            return None;
        }
        extents.push(Extent {
            start,
            len,
            blob,
            blob_offset,
            location,
        });
    }
    Some(extents)
}

fn take_origin(reader: &mut Reader<'_>) -> Option<Origin> {
    Some(Origin {
        place: reader.varint_u32()?,
        number: reader.varint()?,
        is_settled: match reader.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        },
    })
}

impl Inode {
    /// Encodes the inode.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.target.len() + self.extents.len() * 64);
        out.push(match self.origin {
            None => INODE_VERSION,
            Some(_) => INODE_VERSION_FED,
        });
        out.push(kind_code(self.kind));
        out.extend_from_slice(&self.mode.to_le_bytes());
        for field in [self.nlink, self.uid, self.gid, self.rdev] {
            wire::put_varint(&mut out, u64::from(field));
        }
        wire::put_varint(&mut out, self.size);
        wire::put_varint(&mut out, self.allocated);
        for time in [self.atime, self.mtime, self.ctime] {
            wire::put_timestamp(&mut out, time);
        }
        match self.kind {
            FileKind::Dir => wire::put_varint(&mut out, self.parent.map_or(0, |parent| parent.0)),
            FileKind::Symlink => wire::put_prefixed(&mut out, &self.target),
            FileKind::File => {
                out.push(u8::from(self.has_leaves));
                if !self.has_leaves {
                    put_extents(&mut out, &self.extents);
                }
            }
            _ => {}
        }
        if let Some(origin) = self.origin {
            wire::put_varint(&mut out, u64::from(origin.place));
            wire::put_varint(&mut out, origin.number);
            out.push(u8::from(origin.is_settled));
        }
        out
    }

    /// Decodes it.
    pub fn decode(bytes: &[u8]) -> Option<Inode> {
        let mut reader = Reader::new(bytes);
        let is_fed = match reader.u8()? {
            INODE_VERSION => false,
            INODE_VERSION_FED => true,
            _ => return None,
        };
        let kind = kind_of(reader.u8()?)?;
        let mut inode = Inode {
            kind,
            mode: reader.u16()?,
            nlink: reader.varint_u32()?,
            uid: reader.varint_u32()?,
            gid: reader.varint_u32()?,
            rdev: reader.varint_u32()?,
            size: reader.varint()?,
            allocated: reader.varint()?,
            atime: reader.timestamp()?,
            mtime: reader.timestamp()?,
            ctime: reader.timestamp()?,
            parent: None,
            target: Vec::new(),
            extents: Vec::new(),
            has_leaves: false,
            origin: None,
        };
        match kind {
            FileKind::Dir => inode.parent = Some(Ino(reader.varint()?)).filter(|ino| ino.0 != 0),
            FileKind::Symlink => inode.target = reader.prefixed(usize::MAX)?.to_vec(),
            FileKind::File => {
                inode.has_leaves = match reader.u8()? {
                    0 => false,
                    1 => true,
                    _ => return None,
                };
                if !inode.has_leaves {
                    inode.extents = take_extents(&mut reader)?;
                }
            }
            _ => {}
        }
        if is_fed {
            inode.origin = Some(take_origin(&mut reader)?);
        }
        reader.is_empty().then_some(inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;
    use proptest::prelude::*;

    fn extent(start: u64, len: u32) -> Extent {
        let location = BlobLocation {
            pack: PackId::new(SessionId([1; 8]), 2),
            offset: 4096,
            stored_len: 50,
            plain_len: len,
        };
        Extent {
            start,
            len,
            blob: BlobHash([7; 32]),
            blob_offset: 0,
            location,
        }
    }

    fn file(extents: Vec<Extent>) -> Inode {
        let time = Timestamp {
            secs: -5,
            nanos: 17,
        };
        Inode {
            kind: FileKind::File,
            mode: 0o4755,
            nlink: 1,
            uid: 1000,
            gid: 7,
            rdev: 0,
            size: 1 << 40,
            allocated: 12,
            atime: time,
            mtime: time,
            ctime: time,
            parent: None,
            target: Vec::new(),
            extents,
            has_leaves: false,
            origin: None,
        }
    }

    #[test]
    fn an_inode_and_its_extents_come_back_as_written() {
        let inode = file(vec![extent(0, 10), extent(10, 5), extent(1 << 33, 1)]);
        assert_eq!(Inode::decode(&inode.encode()), Some(inode));
        let dir = Inode {
            kind: FileKind::Dir,
            parent: Some(Ino::ROOT),
            ..file(vec![])
        };
        assert_eq!(Inode::decode(&dir.encode()), Some(dir));
        let link = Inode {
            kind: FileKind::Symlink,
            target: b"../x".to_vec(),
            ..file(vec![])
        };
        assert_eq!(Inode::decode(&link.encode()), Some(link));
        let fed = Inode {
            origin: Some(Origin {
                place: 7,
                number: u64::MAX,
                is_settled: true,
            }),
            ..file(vec![extent(0, 10)])
        };
        assert_eq!(Inode::decode(&fed.encode()), Some(fed));
    }

    #[test]
    fn an_extent_that_leaves_its_blob_is_refused() {
        let outside = Extent {
            blob_offset: 1,
            ..extent(0, 10)
        };
        assert_eq!(decode_extents(&encode_extents(&[outside])), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_something_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Inode::decode(&bytes);
            let _ = decode_extents(&bytes);
            let _ = decode_entry(&bytes);
        }

        #[test]
        fn every_cut_of_an_inode_is_refused(cut in 0_usize..100) {
            let bytes = file(vec![extent(0, 10)]).encode();
            prop_assume!(cut < bytes.len());
            prop_assert_eq!(Inode::decode(&bytes[..cut]), None);
        }
    }
}
