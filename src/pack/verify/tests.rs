use std::fs;

use super::super::read::{LocalPack, MemoryPack};
use super::super::testkit::{NOW_NS, VOLUME, append, change, id, noise, sealed, text};
use super::super::writer::{PackIo, PackWriter};
use super::*;
use crate::chunk::Codec;

#[test]
fn a_good_pack_has_everything_intact_with_and_without_reading_the_blobs() {
    let (_root, path, _, pack) = sealed(vec![text(1, 5000), noise(2, 5000)]);
    let local = LocalPack::open(&path).unwrap();
    for read_data in [false, true] {
        let report = verify_pack(&local, id(1), read_data).unwrap();
        assert!(report.sealed && report.absent.is_empty() && report.damaged.is_empty());
        assert_eq!(report.intact, pack.records);
    }
}

#[test]
fn a_blob_that_is_not_what_its_name_says_is_found_by_hashing() {
    let root = tempfile::tempdir().unwrap();
    let mut writer =
        PackWriter::create(root.path(), VOLUME, id(1), NOW_NS, PackIo::default()).unwrap();
    append(&mut writer, text(1, 100));
    // Every checksum is right, only the name lies, as after a memory error between hash and append.
    writer
        .append(crate::chunk::hash(b"ebb"), Codec::Raw, 4, b"tide")
        .unwrap();
    let reader = writer.reader();
    writer.seal().unwrap();
    assert!(
        verify_pack(&*reader, id(1), false)
            .unwrap()
            .damaged
            .is_empty()
    );
    let report = verify_pack(&*reader, id(1), true).unwrap();
    assert_eq!(report.intact.len(), 1);
    assert_eq!(report.damaged[0].blob, Some(crate::chunk::hash(b"ebb")));
}

#[test]
fn damaged_blobs_are_named_and_the_others_are_not() {
    let (_root, path, stored, _) = sealed(vec![noise(1, 5000), noise(2, 5000), noise(3, 5000)]);
    change(&path, |bytes| {
        bytes[stored[1].loc.offset as usize + 1000] ^= 4;
    });
    let report = verify_pack(&LocalPack::open(&path).unwrap(), id(1), true).unwrap();
    assert!(report.sealed);
    assert_eq!(report.intact.len(), 2);
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(report.damaged[0].blob, Some(stored[1].hash));
    assert_eq!(report.damaged[0].offset, stored[1].loc.offset);
}

#[test]
fn without_its_index_a_pack_is_scanned() {
    let (_root, path, _, pack) = sealed(vec![noise(1, 5000), text(2, 5000)]);
    let good = fs::read(&path).unwrap();
    for (from, to) in [(pack.len - 64, pack.len), (pack.records[1].end(), pack.len)] {
        let mut bytes = good.clone();
        bytes[from as usize..to as usize].fill(0xee);
        let wounded = MemoryPack {
            name: "wounded".into(),
            bytes: bytes.into(),
        };
        let report = verify_pack(&wounded, id(1), true).unwrap();
        assert!(!report.sealed && !report.damaged.is_empty());
        assert_eq!(report.intact, pack.records);
    }
}

#[test]
fn what_is_not_this_pack_is_reported_and_never_read_into_memory_for_its_length() {
    struct Endless;
    impl ReadAt for Endless {
        fn read_at(&self, _: u64, _: usize) -> Result<Bytes> {
            panic!("nothing needs to be read to refuse this")
        }
        fn name(&self) -> String {
            "endless".to_owned()
        }
        fn len(&self) -> Result<u64> {
            Ok(u64::MAX)
        }
    }
    assert_eq!(verify_pack(&Endless, id(1), true).unwrap().damaged.len(), 1);

    let (_root, path, _, _) = sealed(vec![noise(1, 100)]);
    let report = verify_pack(&LocalPack::open(&path).unwrap(), id(2), true).unwrap();
    assert!(
        report.damaged[0].reason.contains(&id(1).to_string()),
        "{report:?}"
    );
    assert!(report.intact.is_empty());
    let empty = MemoryPack {
        name: "empty".into(),
        bytes: Bytes::new(),
    };
    assert!(!verify_pack(&empty, id(1), true).unwrap().damaged.is_empty());
}
