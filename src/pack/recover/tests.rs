use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::super::testkit::{Stored, append, change, create, id, noise, text};
use super::super::verify::verify_pack;
use super::*;

/// A pack as a crash leaves it: records, some of them behind the last sync, in a preallocated file;
/// and the lengths at which it was committed, with how many records there were.
fn crashed() -> (TempDir, PathBuf, Vec<Stored>, Vec<(u32, usize)>) {
    let root = tempfile::tempdir().unwrap();
    let mut writer = create(root.path(), 1);
    let mut stored = Vec::new();
    let mut committed = vec![(writer.flush_and_pad().unwrap().len(), 0)];
    for no in 0..5 {
        stored.push(append(&mut writer, text(no, 3000)));
        stored.push(append(&mut writer, noise(no, 5000)));
        let ticket = writer.flush_and_pad().unwrap();
        ticket.sync().unwrap();
        committed.push((ticket.len(), stored.len()));
    }
    stored.push(append(&mut writer, noise(99, 3000)));
    let _unsynced = writer.flush_and_pad().unwrap();
    (root, writer.reader().path.clone(), stored, committed)
}

/// Recovers a copy of the pack and checks what must hold of every recovered pack.
fn recover_copy(
    path: &Path,
    committed_len: u32,
    wound: impl FnOnce(&mut Vec<u8>),
) -> (TempDir, PathBuf, SealedPack) {
    let root = tempfile::tempdir().unwrap();
    let copy = root.path().join(id(1).object_name());
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    let mut bytes = fs::read(path).unwrap();
    wound(&mut bytes);
    fs::write(&copy, &bytes).unwrap();
    let sealed = recover_unsealed(&copy, id(1), committed_len).unwrap();
    let after = fs::read(&copy).unwrap();
    assert_eq!(after.len(), sealed.len as usize);
    let kept = bytes.len().min(committed_len as usize);
    assert_eq!(
        after[..kept],
        bytes[..kept],
        "committed bytes are not written again"
    );
    let pack = LocalPack::open(&copy).unwrap();
    assert_eq!(read_index(&pack, id(1)).unwrap().entries, sealed.records);
    assert_eq!(
        verify_pack(&pack, id(1), true).unwrap().intact,
        sealed.records
    );
    (root, copy, sealed)
}

#[test]
fn at_every_committed_length_exactly_the_committed_records_are_sealed() {
    let (_root, path, stored, committed) = crashed();
    for &(len, count) in &committed {
        let (_copy_root, copy, sealed) = recover_copy(&path, len, |_| {});
        assert_eq!(sealed.damage, []);
        let names: Vec<_> = sealed.records.iter().map(|record| record.hash).collect();
        let expected: Vec<_> = stored[..count].iter().map(|one| one.hash).collect();
        assert_eq!(names, expected, "committed at {len}");
        let pack = LocalPack::open(&copy).unwrap();
        for one in &stored[..count] {
            assert_eq!(one.read(&pack).unwrap(), one.plain());
        }
    }
}

#[test]
fn a_file_that_ends_anywhere_behind_the_committed_length_is_recovered() {
    let (_root, path, _, committed) = crashed();
    let (len, count) = committed[4];
    for file_len in [len, len + 1, len + 100, len + 4096, len + 5000] {
        let (_copy_root, _, sealed) =
            recover_copy(&path, len, |bytes| bytes.truncate(file_len as usize));
        assert_eq!((sealed.records.len(), sealed.damage.len()), (count, 0));
    }
    // What lies behind need not make sense, either.
    let (_copy_root, _, sealed) =
        recover_copy(&path, len, |bytes| bytes[len as usize..].fill(0x93));
    assert_eq!((sealed.records.len(), sealed.damage.len()), (count, 0));
}

#[test]
fn recovery_may_be_interrupted_and_repeated_and_leaves_a_sealed_pack_as_it_is() {
    let (_root, path, _, committed) = crashed();
    let (len, count) = committed[3];
    let (_copy_root, copy, first) = recover_copy(&path, len, |_| {});
    let bytes = fs::read(&copy).unwrap();
    let again = recover_unsealed(&copy, id(1), len).unwrap();
    assert_eq!(
        (again.records, again.len),
        (first.records.clone(), first.len)
    );
    assert_eq!(fs::read(&copy).unwrap(), bytes);
    // Interrupted between the write of index and trailer and the cut, and within the write.
    for written in [bytes.len(), bytes.len() - 64, len as usize + 100] {
        let (_other_root, _, sealed) = recover_copy(&path, len, |old| {
            old[..written].copy_from_slice(&bytes[..written]);
        });
        assert_eq!(sealed.records.len(), count);
        assert_eq!(sealed.len, first.len);
    }
}

#[test]
fn a_pack_sealed_before_the_crash_keeps_what_was_appended_behind_the_last_commit() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = create(root.path(), 1);
    append(&mut writer, noise(1, 3000));
    let committed_len = writer.flush_and_pad().unwrap().len();
    append(&mut writer, noise(2, 3000));
    let path = writer.reader().path.clone();
    let sealed = writer.seal().unwrap();
    let recovered = recover_unsealed(&path, id(1), committed_len).unwrap();
    assert_eq!(
        (recovered.len, recovered.records),
        (sealed.len, sealed.records)
    );
    let beyond = recover_unsealed(&path, id(1), sealed.len);
    assert!(
        matches!(beyond, Err(Error::Corrupt { .. })),
        "the journal names more than the pack has"
    );
}

#[test]
fn a_length_that_cannot_have_been_committed_is_refused_and_nothing_is_changed() {
    let (_root, path, stored, committed) = crashed();
    let before = fs::read(&path).unwrap();
    let (first_len, last_len) = (committed[1].0, committed[5].0);
    let within = stored
        .iter()
        .map(|one| (one.loc.offset + 200).next_multiple_of(BLOCK_LEN));
    let within = within
        .filter(|len| !committed.iter().any(|(committed, _)| committed == len) && *len < last_len);
    let lens: Vec<u32> = within
        .chain([
            0,
            8,
            BLOCK_LEN - 8,
            first_len + 8,
            u32::MAX,
            PACK_LEN_MAX + BLOCK_LEN,
        ])
        .collect();
    assert!(lens.len() > 6, "some block boundary lies within a record");
    for len in lens {
        assert!(
            matches!(
                recover_unsealed(&path, id(1), len),
                Err(Error::Corrupt { .. })
            ),
            "{len}"
        );
    }
    assert!(
        matches!(
            recover_unsealed(&path, id(2), last_len),
            Err(Error::Corrupt { .. })
        ),
        "another pack"
    );
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn damage_below_the_committed_length_costs_only_what_it_hit_and_is_named() {
    let (_root, path, stored, committed) = crashed();
    let (len, count) = committed[5];
    let payload = stored[3].loc.offset as usize + 500;
    let header = stored[6].loc.offset as usize + 20;
    let (_copy_root, _, sealed) = recover_copy(&path, len, |bytes| {
        bytes[payload] ^= 1;
        bytes[header] ^= 1;
    });
    assert_eq!(sealed.records.len(), count - 2);
    assert!(
        sealed
            .damage
            .iter()
            .any(|lost| lost.blob == Some(stored[3].hash)),
        "{:?}",
        sealed.damage
    );
    assert!(
        sealed
            .damage
            .iter()
            .any(|lost| lost.blob.is_none() && lost.offset == stored[6].loc.offset)
    );
    assert!(
        !sealed
            .records
            .iter()
            .any(|record| [stored[3].hash, stored[6].hash].contains(&record.hash))
    );
}

#[test]
fn a_lost_block_of_committed_records_is_damage_and_not_a_pad() {
    let (_root, path, _, committed) = crashed();
    let (len, count) = committed[5];
    let from = committed[2].0 as usize;
    let (_copy_root, _, sealed) =
        recover_copy(&path, len, |bytes| bytes[from..from + 4096].fill(0));
    assert!(sealed.records.len() < count);
    assert!(
        sealed
            .damage
            .iter()
            .any(|lost| lost.offset as usize == from),
        "{:?}",
        sealed.damage
    );
}

#[test]
fn a_file_shorter_than_was_committed_is_sealed_with_its_loss_named() {
    let (_root, path, _, committed) = crashed();
    let (len, _) = committed[5];
    let (short_len, short_count) = committed[4];
    let (_copy_root, _, sealed) =
        recover_copy(&path, len, |bytes| bytes.truncate(short_len as usize));
    assert_eq!(sealed.records.len(), short_count);
    let lost = sealed.damage.last().unwrap();
    assert_eq!((lost.offset, lost.len), (short_len, len - short_len));
}

#[test]
fn a_damaged_header_costs_no_record() {
    let (_root, path, _, committed) = crashed();
    let (len, count) = committed[5];
    change(&path, |bytes| bytes[100] ^= 1);
    let sealed = recover_unsealed(&path, id(1), len).unwrap();
    assert_eq!(sealed.records.len(), count);
    assert_eq!(sealed.damage[0].offset, 0);
}
