//! A volume that somebody forged, with the format's own writer: every checksum is right, and nothing it says is.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tidefs::format::inode::{EntryTarget, Extent, Inode, encode_entry, encode_extents};
use tidefs::format::keys::{self, Key};
use tidefs::format::record::{EpochRecord, SegmentEntry};
use tidefs::format::segment::{SegmentScope, SegmentWriter};
use tidefs::types::{
    AccountId, BlobHash, BlobLocation, FileKind, Ino, PackId, SessionId, Timestamp,
};
use tidefs::volume::external::open_external;

/// Entries that are put over what is there.
pub struct Forged {
    account: AccountId,
    next: u64,
    entries: Vec<(Key, Vec<u8>)>,
}

pub fn inode(kind: FileKind) -> Inode {
    let time = Timestamp {
        secs: 1_000_000_000,
        nanos: 5,
    };
    Inode {
        kind,
        mode: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: time,
        mtime: time,
        ctime: time,
        parent: None,
        target: Vec::new(),
        extents: Vec::new(),
        has_leaves: false,
        origin: None,
    }
}

pub fn extent(start: u64, len: u32) -> Extent {
    let location = BlobLocation {
        pack: PackId([0xee; 16]),
        offset: 4096,
        stored_len: u32::MAX,
        plain_len: len,
    };
    Extent {
        start,
        len,
        blob: BlobHash([0xee; 32]),
        blob_offset: 0,
        location,
    }
}

impl Forged {
    /// In account `number` of the volume.
    pub fn new(number: u32) -> Forged {
        Forged {
            account: AccountId::new(number).unwrap(),
            next: 1_000_000,
            entries: Vec::new(),
        }
    }

    pub fn root(&self) -> Ino {
        Ino::account_root(self.account)
    }

    pub fn number(&mut self) -> Ino {
        self.next += 1;
        Ino::new(self.account, self.next)
    }

    /// A name, whatever it is, for a new inode.
    pub fn add(&mut self, parent: Ino, name: &[u8], node: &Inode) -> Ino {
        let ino = self.number();
        self.entries.push((keys::inode(ino), node.encode()));
        self.name(parent, name, ino, node.kind);
        ino
    }

    pub fn name(&mut self, parent: Ino, name: &[u8], ino: Ino, kind: FileKind) {
        let target = encode_entry(EntryTarget { ino, kind });
        self.entries.push((keys::dir_entry(parent, name), target));
    }

    pub fn leaf(&mut self, ino: Ino, offset: u64, extents: &[Extent]) {
        let key = keys::extents(ino, offset);
        self.entries.push((key, encode_extents(extents)));
    }

    pub fn xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) {
        self.entries.push((keys::xattr(ino, name), value.to_vec()));
    }

    /// Archives it as the next epoch of the external volume in `dir`.
    pub fn archive(mut self, dir: &Path) {
        let before = open_external(Arc::new(vfs::DirVolume::open(dir).unwrap())).unwrap();
        let epoch = before.record().epoch.next();
        let session = SessionId([0x66; 8]);
        let scope = SegmentScope {
            volume: before.identity().uuid().unwrap().0,
            session,
            first: epoch,
            last: epoch,
        };
        self.entries.sort();
        let mut writer = SegmentWriter::new(Vec::new(), "forged", scope).unwrap();
        for (key, value) in &self.entries {
            writer.add(key, epoch, Some(value)).unwrap();
        }
        let (summary, bytes) = writer.finish().unwrap();
        let entry = SegmentEntry::of(&summary);
        fs::write(dir.join(&entry.name), bytes).unwrap();
        let mut record = before.record().clone();
        let parent = fs::read(dir.join(name_of(&record))).unwrap();
        record.parent = Some(tidefs::chunk::hash(&parent).to_string());
        record.epoch = epoch;
        record.session = session.to_string();
        record.segments.push(entry);
        fs::write(dir.join(name_of(&record)), record.encode()).unwrap();
    }
}

fn name_of(record: &EpochRecord) -> String {
    let session = SessionId::parse(&record.session).unwrap();
    EpochRecord::name(record.epoch, session)
}
