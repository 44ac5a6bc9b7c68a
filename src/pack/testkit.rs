//! What the tests of this room share: a backup path, blobs, and packs made of them.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::TempDir;

use super::read::{ReadAt, RecordRead, read_record};
use super::writer::{PackIo, PackWriter, SealedPack};
use crate::chunk;
use crate::error::Result;
use crate::types::{BlobHash, BlobLocation, PackId, SessionId};

pub(super) const VOLUME: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
pub(super) const NOW_NS: u64 = 1_700_000_000_000_000_000;

pub(super) fn id(count: u64) -> PackId {
    PackId::new(SessionId(*b"goldpack"), count)
}

/// Bytes that do not compress, the same ones for the same number.
pub(super) fn noise(no: u32, len: usize) -> Vec<u8> {
    let hashes =
        (0..).flat_map(|n: u32| chunk::hash(&[no.to_le_bytes(), n.to_le_bytes()].concat()).0);
    hashes.take(len).collect()
}

/// Bytes that do.
pub(super) fn text(no: u32, len: usize) -> Vec<u8> {
    format!("{no} all work and no play ")
        .into_bytes()
        .into_iter()
        .cycle()
        .take(len)
        .collect()
}

pub(super) fn create(root: &Path, count: u64) -> PackWriter {
    PackWriter::create(root, VOLUME, id(count), NOW_NS, PackIo::default()).unwrap()
}

/// Where a blob went, and what must come back.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) hash: BlobHash,
    pub(super) loc: BlobLocation,
    pub(super) plain: Vec<u8>,
}

impl Stored {
    pub(super) fn read(&self, source: &impl ReadAt) -> Result<RecordRead> {
        read_record(source, &self.loc, self.hash)
    }

    pub(super) fn plain(&self) -> RecordRead {
        RecordRead::Plain(Bytes::copy_from_slice(&self.plain))
    }
}

pub(super) fn append(writer: &mut PackWriter, plain: Vec<u8>) -> Stored {
    let mut scratch = Vec::new();
    let (codec, stored) = chunk::encode(&plain, &mut scratch);
    let hash = chunk::hash(&plain);
    let loc = writer
        .append(hash, codec, plain.len().try_into().unwrap(), stored)
        .unwrap();
    Stored { hash, loc, plain }
}

/// A sealed pack of these blobs in a new backup path.
pub(super) fn sealed(blobs: Vec<Vec<u8>>) -> (TempDir, PathBuf, Vec<Stored>, SealedPack) {
    let root = tempfile::tempdir().unwrap();
    let mut writer = create(root.path(), 1);
    let stored = blobs
        .into_iter()
        .map(|blob| append(&mut writer, blob))
        .collect();
    let path = root.path().join(id(1).object_name());
    let pack = writer.seal().unwrap();
    (root, path, stored, pack)
}

/// Runs `test` in a new file system of this kind, or says why not.
pub(super) fn on_mounted(kind: &str, options: &str, test: impl FnOnce(&Path)) {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let dir = tempfile::tempdir().unwrap();
    if let Err(errno) = mount(
        Some("none"),
        dir.path(),
        Some(kind),
        MsFlags::empty(),
        Some(options),
    ) {
        println!("skipped: mounting {kind} needs root ({errno})");
        return;
    }
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(dir.path())));
    umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Changes bytes of a file in place.
pub(super) fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}
