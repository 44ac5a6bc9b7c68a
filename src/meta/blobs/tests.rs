//! The blob index against a map: flushes, reopenings, merges, dropped packs, damaged runs.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::types::SessionId;

fn hash(n: u32) -> BlobHash {
    BlobHash(Sha256::digest(n.to_le_bytes()).into())
}

fn pack(n: u64) -> PackId {
    PackId::new(SessionId([5; 8]), n)
}

fn location(n: u32, in_pack: u64) -> BlobLocation {
    BlobLocation {
        pack: pack(in_pack),
        offset: n,
        stored_len: n + 1,
        plain_len: n + 2,
    }
}

fn open(dir: &TempDir) -> BlobIndex {
    let opened = BlobIndex::open(dir.path()).unwrap();
    assert_eq!(opened.discarded, Vec::<String>::new());
    opened.index
}

fn insert(index: &BlobIndex, numbers: std::ops::Range<u32>, in_pack: u64) {
    numbers.for_each(|n| index.insert(hash(n), location(n, in_pack)));
}

/// Inserts the blobs of a pack that is then complete.
fn insert_pack(index: &BlobIndex, numbers: std::ops::Range<u32>, in_pack: u64) {
    insert(index, numbers, in_pack);
    index.pack_complete(pack(in_pack));
}

#[test]
fn entries_of_a_pack_that_is_not_complete_die_with_the_process() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    insert(&index, 0..100, 1);
    insert_pack(&index, 100..200, 2);
    index.flush().unwrap();
    assert!((0..200).all(|n| index.get(&hash(n)).is_some()));
    let index = open(dir_after(index, &dir));
    assert!(
        (0..100).all(|n| index.get(&hash(n)).is_none()),
        "the pack may be cut before them"
    );
    assert!((100..200).all(|n| index.get(&hash(n)).is_some()));
}

fn run_files(dir: &TempDir) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut runs: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "run"))
        .collect();
    runs.sort();
    runs
}

#[test]
fn what_was_flushed_is_there_after_opening_and_what_was_not_is_not() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    insert_pack(&index, 0..5000, 1);
    assert!(
        !index.covers(pack(1)),
        "nothing is covered before it is durable"
    );
    index.flush().unwrap();
    insert_pack(&index, 5000..5100, 2);
    assert_eq!(index.get(&hash(5050)), Some(location(5050, 2)));
    drop(index);
    let index = open(&dir);
    assert!((0..5000).all(|n| index.get(&hash(n)) == Some(location(n, 1))));
    assert!((5000..6000).all(|n| index.get(&hash(n)).is_none()));
    assert!(index.covers(pack(1)) && !index.covers(pack(2)));
}

#[test]
fn a_later_place_of_a_blob_replaces_the_earlier_one_also_across_merges() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    // Lengths that make the merge take runs from both ends of their order.
    for (round, count) in [
        (1, 10),
        (2, 4000),
        (3, 30),
        (4, 10),
        (5, 3000),
        (6, 20),
        (7, 10),
        (8, 5),
        (9, 7),
    ] {
        insert_pack(&index, 0..count, round);
        index.flush().unwrap();
    }
    let check = |index: &BlobIndex| {
        assert_eq!(index.get(&hash(3)), Some(location(3, 9)));
        assert_eq!(index.get(&hash(6)), Some(location(6, 9)));
        assert_eq!(index.get(&hash(8)), Some(location(8, 7)));
        assert_eq!(index.get(&hash(25)), Some(location(25, 5)));
        assert_eq!(index.get(&hash(3500)), Some(location(3500, 2)));
    };
    check(&index);
    assert!(index.merge_if_needed(|_| true).unwrap());
    assert!(index.run_count() < 9);
    assert_eq!(run_files(&dir).len(), index.run_count());
    check(&index);
    insert_pack(&index, 0..3, 10);
    index.flush().unwrap();
    check(&open(dir_after(index, &dir)));
    let index = open(&dir);
    index.merge_all(|_| true).unwrap();
    assert_eq!((index.run_count(), index.entry_count()), (1, 4000));
    assert_eq!(index.get(&hash(2)), Some(location(2, 10)));
    assert_eq!(index.get(&hash(6)), Some(location(6, 9)));
}

/// The directory once the index is closed.
fn dir_after(index: BlobIndex, dir: &TempDir) -> &TempDir {
    drop(index);
    dir
}

#[test]
fn a_forgotten_pack_is_never_named_again_and_another_copy_of_the_blob_is() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    insert_pack(&index, 0..100, 1);
    index.flush().unwrap();
    insert_pack(&index, 0..100, 2);
    index.flush().unwrap();
    insert(&index, 50..60, 3);
    index.forget_packs([pack(2), pack(3)]).unwrap();
    let index = open(dir_after(index, &dir));
    assert!((0..100).all(|n| index.get(&hash(n)) == Some(location(n, 1))));
    assert!(!index.covers(pack(2)));
    index.merge_all(|_| true).unwrap();
    assert_eq!(index.entry_count(), 100);
    assert!(
        index.read().dropped == PackSet::default(),
        "nothing names them, so they need not be remembered"
    );
    index
        .merge_all(|pack| pack != super::tests::pack(1))
        .unwrap();
    assert_eq!((index.run_count(), index.get(&hash(1))), (0, None));
}

#[test]
fn a_damaged_run_is_dropped_and_no_pack_is_covered_then() {
    let probe = |at_end: bool| {
        let dir = TempDir::new().unwrap();
        let index = open(&dir);
        insert_pack(&index, 0..3000, 1);
        index.flush().unwrap();
        drop(index);
        let path = run_files(&dir).remove(0);
        let mut bytes = fs::read(&path).unwrap();
        let at = if at_end { bytes.len() - 60 } else { 10_000 };
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let opened = BlobIndex::open(dir.path()).unwrap();
        let found = (0..3000).filter_map(|n| Some((n, opened.index.get(&hash(n))?)));
        found.for_each(|(n, found)| assert_eq!(found, location(n, 1)));
        assert!(!opened.index.covers(pack(1)));
        assert_eq!(opened.index.run_count(), 0);
        opened.discarded.len()
    };
    assert_eq!(probe(true), 1, "the filter is checked when opening");
    assert_eq!(probe(false), 0, "a block is checked when it is read");
}

#[test]
fn what_an_unfinished_flush_or_merge_left_is_removed_and_its_number_is_not_used_again() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    insert_pack(&index, 0..10, 1);
    index.flush().unwrap();
    let run = run_files(&dir).remove(0);
    fs::copy(&run, dir.path().join("00000000000000ff.run")).unwrap();
    fs::write(dir.path().join("0000000000000100.new"), b"half").unwrap();
    let index = open(dir_after(index, &dir));
    assert_eq!(run_files(&dir), [run]);
    insert_pack(&index, 10..20, 1);
    index.flush().unwrap();
    assert!(run_files(&dir)[1].ends_with("0000000000000101.run"));
}

#[test]
fn a_lost_or_damaged_list_of_runs_leaves_an_empty_index() {
    for damage in [None, Some(b"nonsense")] {
        let dir = TempDir::new().unwrap();
        let index = open(&dir);
        insert_pack(&index, 0..10, 1);
        index.flush().unwrap();
        drop(index);
        let manifest = dir.path().join("runs");
        match damage {
            None => fs::remove_file(manifest).unwrap(),
            Some(bytes) => fs::write(manifest, bytes).unwrap(),
        }
        let opened = BlobIndex::open(dir.path()).unwrap();
        assert_eq!(opened.discarded.len(), usize::from(damage.is_some()));
        assert_eq!(
            (opened.index.get(&hash(1)), run_files(&dir).len()),
            (None, 0)
        );
    }
}

/// The place in the order is all that matters where there are many: a cheap hash will do.
fn cheap_hash(n: u32) -> BlobHash {
    let mut bytes = [0; 32];
    for (at, word) in (0u64..).zip(bytes.chunks_exact_mut(8)) {
        let mixed = (u64::from(n) * 4 + at + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(31);
        word.copy_from_slice(&mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes());
    }
    BlobHash(bytes)
}

/// Five entries more than memory takes, in pack 1.
fn insert_too_much(index: &BlobIndex) -> u32 {
    let count = u32::try_from(RECENT_MAX).unwrap() + 5;
    (0..count).for_each(|n| index.insert(cheap_hash(n), location(n, 1)));
    count
}

#[test]
fn what_does_not_fit_in_memory_is_flushed_by_the_insert_itself() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    index.pack_complete(pack(1));
    let count = insert_too_much(&index);
    assert_eq!(index.run_count(), 1);
    assert!(
        (0..count)
            .step_by(501)
            .all(|n| index.get(&cheap_hash(n)) == Some(location(n, 1)))
    );
}

#[test]
fn what_fits_neither_in_memory_nor_on_disk_is_dropped_and_its_pack_is_not_covered() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let count = insert_too_much(&index);
    assert_eq!((index.entry_count(), index.run_count()), (5, 0));
    assert!(index.get(&cheap_hash(0)).is_none() && index.get(&cheap_hash(count - 1)).is_some());
    index.pack_complete(pack(1));
    index.flush().unwrap();
    assert!(!index.covers(pack(1)));
}

#[test]
fn hashes_with_the_same_first_bytes_are_told_apart_across_blocks() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let alike = |n: u32| {
        let mut hash = hash(n);
        hash.0[..8].fill(7);
        hash
    };
    (0..300).for_each(|n| index.insert(alike(n), location(n, 1)));
    index.pack_complete(pack(1));
    index.flush().unwrap();
    assert!((0..300).all(|n| index.get(&alike(n)) == Some(location(n, 1))));
    assert!((300..600).all(|n| index.get(&alike(n)).is_none()));
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u32, u64),
    Flush,
    Forget(u64),
    Merge,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..200u32, 0..6u64).prop_map(|(n, pack)| Step::Insert(n, pack)),
        4 => Just(Step::Flush),
        1 => (0..6u64).prop_map(Step::Forget),
        1 => Just(Step::Merge),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn an_answer_is_always_a_place_that_was_noted_and_not_forgotten(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        let dir = TempDir::new().unwrap();
        let mut index = open(&dir);
        // All places of a blob, newest last; and what is durable.
        let mut places: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let mut durable = places.clone();
        let mut gone = Vec::new();
        for step in steps {
            match step {
                Step::Insert(n, pack) if !gone.contains(&pack) => {
                    index.insert(hash(n), location(n, pack));
                    places.entry(n).or_default().push(pack);
                }
                Step::Insert(..) => {}
                Step::Flush => {
                    (0..6).for_each(|n| index.pack_complete(pack(n)));
                    index.flush().unwrap();
                    durable = places.clone();
                }
                Step::Forget(n) => {
                    index.forget_pack(pack(n)).unwrap();
                    gone.push(n);
                }
                Step::Merge => index.merge_all(|_| true).unwrap(),
                Step::Reopen => {
                    drop(index);
                    index = open(&dir);
                    places = durable.clone();
                }
            }
            for (n, packs) in &places {
                let newest = packs[packs.len() - 1];
                match index.get(&hash(*n)) {
                    Some(found) => {
                        let from = packs.iter().copied().find(|of| found == location(*n, *of));
                        prop_assert!(from.is_some_and(|of| !gone.contains(&of)));
                        prop_assert!(gone.contains(&newest) || from == Some(newest));
                    }
                    // The newest place hid the others before it was forgotten.
                    None => prop_assert!(gone.contains(&newest)),
                }
            }
        }
    }
}
