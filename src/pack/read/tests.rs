use std::fs;

use super::super::punch::punch;
use super::super::testkit::{change, id, noise, sealed, text};
use super::super::verify::{survey, verify_pack};
use super::*;
use crate::format::pack::{BLOCK_LEN, PackHeader};

#[test]
fn another_blob_at_the_place_of_a_hint_is_an_error_that_names_file_and_offset() {
    let (_root, path, stored, _) = sealed(vec![text(1, 500), text(2, 500)]);
    let pack = LocalPack::open(&path).unwrap();
    let Err(Error::Corrupt { object, offset, .. }) =
        read_record(&pack, &stored[1].loc, stored[0].hash)
    else {
        panic!("the wrong blob was served");
    };
    assert_eq!(
        (object, offset),
        (path.display().to_string(), u64::from(stored[1].loc.offset))
    );

    let wrong = |change: &dyn Fn(&mut BlobLocation)| {
        let mut loc = stored[1].loc;
        change(&mut loc);
        read_record(&pack, &loc, stored[1].hash)
    };
    assert!(wrong(&|loc| loc.offset -= 8).is_err());
    assert!(wrong(&|loc| loc.stored_len += 1).is_err());
    assert!(wrong(&|loc| loc.stored_len = u32::MAX).is_err());
    assert!(wrong(&|loc| loc.plain_len -= 1).is_err());
    assert!(wrong(&|loc| loc.pack = id(2)).is_err());
    assert!(wrong(&|loc| loc.offset = u32::MAX).is_err());
}

#[test]
fn a_record_fetched_by_range_reads_like_one_in_a_file() {
    let (_root, path, stored, _) = sealed(vec![text(1, 9000), noise(2, 9000)]);
    let bytes = fs::read(path).unwrap();
    for one in &stored {
        let from = one.loc.offset as usize;
        let range = Bytes::copy_from_slice(&bytes[from..from + record_read_len(&one.loc)]);
        assert_eq!(
            parse_record("object", range.clone(), &one.loc, one.hash).unwrap(),
            one.plain()
        );
        let short = range.slice(..range.len() - 1);
        assert!(
            matches!(parse_record("object", short, &one.loc, one.hash), Err(Error::Corrupt { object, .. }) if object == "object")
        );
        assert!(parse_record("object", range.slice(..50), &one.loc, one.hash).is_err());
    }
}

#[test]
fn no_flipped_bit_ever_changes_what_is_read() {
    let (_root, path, stored, pack) = sealed(vec![
        text(1, 600),
        noise(2, 300),
        noise(3, 4000),
        text(4, 20),
    ]);
    let good = fs::read(path).unwrap();
    let read = |bytes: Vec<u8>| MemoryPack {
        name: "flipped".into(),
        bytes: bytes.into(),
    };
    let matters = |at: u32| {
        let in_record = stored.iter().any(|one| {
            (one.loc.offset..one.loc.offset + RECORD_HEADER_LEN + one.loc.stored_len).contains(&at)
        });
        in_record || at < BLOCK_LEN || at >= pack.len - TRAILER_LEN
    };
    for at in 0..good.len() {
        // Every bit where something is written, one bit of each byte where nothing is.
        for bit in 0..if good[at] == 0 { 1 } else { 8 } {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (if good[at] == 0 { at % 8 } else { bit });
            let flipped = read(bytes);
            for one in &stored {
                match one.read(&flipped) {
                    Ok(read) => assert_eq!(read, one.plain(), "bit {bit} of byte {at}"),
                    Err(error) => assert!(matches!(error, Error::Corrupt { .. })),
                }
            }
            if let Ok(index) = read_index(&flipped, id(1)) {
                assert_eq!(index.entries, pack.records, "bit {bit} of byte {at}");
            }
            assert!(
                survey(id(1), &flipped.bytes)
                    .records
                    .iter()
                    .all(|record| pack.records.contains(record))
            );
            if bit == 0 && matters(u32::try_from(at).unwrap()) {
                let report = verify_pack(&flipped, id(1), true).unwrap();
                assert!(
                    !report.damaged.is_empty(),
                    "bit {bit} of byte {at} goes unnoticed"
                );
            }
            if let Ok(header) = PackHeader::decode(&flipped.bytes) {
                assert_eq!(header.id, id(1));
            }
        }
    }
}

#[test]
fn a_pack_cut_short_anywhere_reads_right_or_not_at_all() {
    let (_root, path, stored, _) = sealed(vec![text(1, 600), noise(2, 300), noise(3, 4000)]);
    let good = Bytes::from(fs::read(path).unwrap());
    for len in 0..good.len() {
        let cut = MemoryPack {
            name: "cut".into(),
            bytes: good.slice(..len),
        };
        for one in &stored {
            match one.read(&cut) {
                Ok(read) => assert_eq!(read, one.plain()),
                Err(error) => assert!(matches!(error, Error::Corrupt { .. })),
            }
        }
        assert!(matches!(
            read_index(&cut, id(1)),
            Err(Error::Corrupt { .. })
        ));
    }
}

#[test]
fn an_index_longer_than_the_first_read_of_the_tail_is_read_whole() {
    let (_root, path, _, pack) = sealed((0..2000).map(|no| noise(no, 32)).collect());
    let index = read_index(&LocalPack::open(&path).unwrap(), id(1)).unwrap();
    assert!(u64::from(pack.len - index.offset) > TAIL_GUESS_LEN);
    assert_eq!(index.entries, pack.records);
    assert_eq!((index.pack_len, index.entries.len()), (pack.len, 2000));
}

#[test]
fn punched_records_are_absent_and_index_and_neighbours_stay() {
    let (_root, path, stored, pack) = sealed((0..8).map(|no| noise(no, 10_000)).collect());
    let (from, to) = (stored[2].loc.offset, stored[5].loc.offset);
    let freed = match punch(&path, id(1), from..to) {
        Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            println!("skipped: this file system punches no holes");
            return;
        }
        freed => freed.unwrap(),
    };
    assert!(freed > to - from - 2 * BLOCK_LEN && freed <= to - from);
    let local = LocalPack::open(&path).unwrap();
    for (no, one) in stored.iter().enumerate() {
        let expected = if (2..5).contains(&no) {
            RecordRead::Absent
        } else {
            one.plain()
        };
        assert_eq!(one.read(&local).unwrap(), expected, "record {no}");
    }
    let report = verify_pack(&local, id(1), true).unwrap();
    assert_eq!(
        (
            report.intact.len(),
            report.absent.len(),
            report.damaged.len()
        ),
        (5, 3, 0)
    );

    punch(&path, id(1), 0..u32::MAX).unwrap();
    assert!(
        stored
            .iter()
            .all(|one| one.read(&local).unwrap() == RecordRead::Absent)
    );
    assert_eq!(read_index(&local, id(1)).unwrap().entries, pack.records);
    let header = PackHeader::decode(&local.read_at(0, BLOCK_LEN as usize).unwrap()).unwrap();
    assert_eq!(header.id, id(1));
    assert_eq!(local.len().unwrap(), u64::from(pack.len));
    assert_eq!(
        punch(&path, id(1), 5000..8000).unwrap(),
        0,
        "no whole block within"
    );
}

#[test]
fn only_the_sealed_pack_that_is_meant_is_punched() {
    let (_root, path, stored, pack) = sealed(vec![noise(1, 10_000)]);
    assert!(punch(&path, id(2), 0..u32::MAX).is_err(), "another pack");
    change(&path, |bytes| bytes.truncate(pack.len as usize - 1));
    assert!(punch(&path, id(1), 0..u32::MAX).is_err(), "not sealed");
    assert_eq!(
        stored[0].read(&LocalPack::open(&path).unwrap()).unwrap(),
        stored[0].plain()
    );
}
