//! The index against a model: batches, crashes between any two writes, lost and damaged pages and files.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const VOLUME: [u8; 16] = [9; 16];

type Model = BTreeMap<Vec<u8>, Vec<u8>>;
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

fn created(dir: &TempDir) -> Index {
    Index::create(&dir.path().join("index"), VOLUME).unwrap()
}

fn open(dir: &TempDir) -> Result<Index, String> {
    let opened = Index::open(&dir.path().join("index"), VOLUME);
    opened
        .index
        .ok_or_else(|| opened.reason_if_discarded.unwrap())
}

fn apply(index: &Index, changes: &Changes) -> Result<Applied, IndexError> {
    index.apply(
        changes
            .iter()
            .map(|(key, value)| (key.as_slice(), value.as_deref())),
    )
}

fn update(model: &mut Model, changes: &Changes) {
    for (key, value) in changes {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
}

fn all(index: &Index) -> Result<Model, IndexDoubt> {
    index
        .range(b"", None)
        .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())))
        .collect()
}

/// The `count` keys from `first`, each with a value of about 100 bytes that says `what`.
fn block(first: u32, count: u32, what: &str) -> Changes {
    (first..first + count)
        .map(|n| (key(n), Some(format!("{what} {n:>90}").into_bytes())))
        .collect()
}

fn removed(first: u32, count: u32) -> Changes {
    (first..first + count).map(|n| (key(n), None)).collect()
}

fn key(n: u32) -> Vec<u8> {
    [
        b"D\0\0\0\0\0\0\0\x01name-".as_slice(),
        format!("{n:08}").as_bytes(),
    ]
    .concat()
}

fn assert_is(index: &Index, model: &Model) {
    assert_eq!(all(index).unwrap(), *model);
    for (key, value) in model {
        assert_eq!(index.get(key).unwrap().as_deref(), Some(value.as_slice()));
    }
}

#[test]
fn what_is_checkpointed_is_there_after_opening_and_verifies() {
    let dir = TempDir::new().unwrap();
    let mut model = Model::new();
    let index = created(&dir);
    for changes in [block(0, 500, "a"), block(100, 50, "b"), removed(200, 100)] {
        apply(&index, &changes).unwrap();
        update(&mut model, &changes);
    }
    index.checkpoint(Epoch(7)).unwrap();
    let pages = index.page_count().unwrap();
    assert!((8..30).contains(&pages), "{pages}");
    drop(index);
    let index = open(&dir).unwrap();
    assert_eq!((index.epoch(), index.page_count()), (Epoch(7), Some(pages)));
    assert_is(&index, &model);
    let report = index.verify().unwrap();
    assert!(report.compared);
    assert_eq!((report.pages, report.entries), (pages, 400));
    assert_eq!(index.get(b"nothing").unwrap(), None);
}

#[test]
fn a_slice_of_a_range_ends_where_it_was_told() {
    let dir = TempDir::new().unwrap();
    let index = created(&dir);
    apply(&index, &block(0, 300, "a")).unwrap();
    let keys = |from: u32, to: u32| -> Vec<Vec<u8>> {
        index
            .range(&key(from), Some(&key(to)))
            .map(|entry| entry.unwrap().0.to_vec())
            .collect()
    };
    assert_eq!(keys(120, 180), (120..180).map(key).collect::<Vec<_>>());
    assert!(keys(50, 50).is_empty() && keys(50, 20).is_empty());
}

#[test]
fn applying_a_batch_again_writes_nothing() {
    let dir = TempDir::new().unwrap();
    let index = created(&dir);
    let changes = block(0, 300, "a");
    assert!(apply(&index, &changes).unwrap().written > 5);
    assert_eq!(apply(&index, &changes).unwrap(), Applied::default());
    assert_eq!(
        apply(&index, &removed(500, 10)).unwrap(),
        Applied::default()
    );
}

#[test]
fn removing_everything_gives_the_pages_back() {
    let dir = TempDir::new().unwrap();
    let index = created(&dir);
    apply(&index, &block(0, 5000, "a")).unwrap();
    assert!(index.page_count().unwrap() > 100);
    apply(&index, &removed(0, 5000)).unwrap();
    assert!(all(&index).unwrap().is_empty());
    assert!(index.page_count().unwrap() <= 2);
    index.verify().unwrap();
}

#[test]
fn a_batch_that_does_not_ascend_or_is_too_long_is_refused() {
    let dir = TempDir::new().unwrap();
    let index = created(&dir);
    let refused = |batch: &[(&[u8], Option<&[u8]>)]| {
        matches!(
            index.apply(batch.iter().copied()),
            Err(IndexError::Engine(Error::Refused(_)))
        )
    };
    assert!(refused(&[(b"b", None), (b"a", None)]));
    assert!(refused(&[(b"b", None), (b"b", Some(b""))]));
    assert!(refused(&[(&[7; KEY_LEN_MAX + 1], Some(b""))]));
    assert!(refused(&[(b"k", Some(&vec![0; VALUE_LEN_MAX + 1]))]));
    let largest = vec![1; VALUE_LEN_MAX];
    index
        .apply([
            (&[7; KEY_LEN_MAX][..], Some(&largest[..])),
            (&[8; 1], Some(b"small")),
        ])
        .unwrap();
    assert_eq!(
        index.get(&[7; KEY_LEN_MAX]).unwrap().as_deref(),
        Some(&largest[..])
    );
    index.checkpoint(Epoch(1)).unwrap();
    drop(index);
    assert_eq!(
        open(&dir)
            .unwrap()
            .get(&[7; KEY_LEN_MAX])
            .unwrap()
            .as_deref(),
        Some(&largest[..])
    );
}

#[test]
fn a_loaded_index_is_the_one_that_was_applied() {
    let dir = TempDir::new().unwrap();
    let mut index = created(&dir);
    let changes = block(0, 3000, "a");
    let entries = changes
        .iter()
        .map(|(key, value)| (Bytes::from(key.clone()), value.clone().unwrap().into()));
    index.load(entries.map(Ok::<_, Error>)).unwrap();
    let mut model = Model::new();
    update(&mut model, &changes);
    index.checkpoint(Epoch(3)).unwrap();
    assert_is(&index, &model);
    let pages = index.page_count().unwrap();
    assert_eq!(index.verify().unwrap().pages, pages);
    assert!(matches!(
        index.load([Ok::<_, Error>((Bytes::new(), Bytes::new()))]),
        Err(IndexError::Engine(_))
    ));
    drop(index);
    assert_is(&open(&dir).unwrap(), &model);
}

#[test]
fn a_load_that_failed_half_way_never_becomes_an_index() {
    let dir = TempDir::new().unwrap();
    let mut index = created(&dir);
    let good = block(0, 3000, "a")
        .into_keys()
        .map(|key| Ok((Bytes::from(key), Bytes::from(vec![0; 50]))));
    let bad = std::iter::once(Err(Error::Refused("segment".to_owned())));
    assert!(index.load(good.chain(bad)).is_err());
    assert!(index.checkpoint(Epoch(1)).is_err());
    drop(index);
    assert!(open(&dir).unwrap_err().contains("no checkpoint"));
}

#[test]
fn another_volumes_index_or_one_without_checkpoint_is_discarded() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index");
    created(&dir).checkpoint(Epoch(1)).unwrap();
    let opened = Index::open(&path, [1; 16]);
    assert!(
        opened.index.is_none()
            && opened
                .reason_if_discarded
                .unwrap()
                .contains("another volume")
    );
    assert!(!path.exists());
    drop(created(&dir));
    assert!(open(&dir).unwrap_err().contains("no checkpoint"));
}

#[test]
fn an_index_in_use_is_left_alone_and_one_whose_opening_killed_the_process_is_not_opened_again() {
    let dir = TempDir::new().unwrap();
    let index = created(&dir);
    index.checkpoint(Epoch(1)).unwrap();
    assert!(open(&dir).is_err());
    drop(index);
    drop(open(&dir).unwrap());
    fs::write(dir.path().join("index/opening"), b"").unwrap();
    assert!(
        open(&dir)
            .unwrap_err()
            .contains("while it was being opened")
    );
    assert!(!dir.path().join("index").exists());
}

/// Lower fences of the pages, from the store itself.
fn fences(index: &Index) -> Vec<Bytes> {
    index
        .store
        .scan(b"")
        .unwrap()
        .map(|raw| raw.unwrap().0)
        .collect()
}

fn raw_key(fence: &[u8]) -> Vec<u8> {
    [&[1], fence].concat()
}

#[test]
fn a_lost_page_is_a_doubt_for_get_and_range_and_never_a_missing_key() {
    let changes = block(0, 300, "a");
    let lost_pages = {
        let dir = TempDir::new().unwrap();
        let index = created(&dir);
        apply(&index, &changes).unwrap();
        fences(&index).len()
    };
    assert!(lost_pages > 5);
    for lost in 0..lost_pages {
        let dir = TempDir::new().unwrap();
        let index = created(&dir);
        apply(&index, &changes).unwrap();
        index.checkpoint(Epoch(1)).unwrap();
        let fences = fences(&index);
        index.store.raw().remove(raw_key(&fences[lost])).unwrap();
        let mut doubts = 0;
        for (key, value) in &changes {
            match index.get(key) {
                Ok(found) => assert_eq!(found.as_deref(), value.as_deref()),
                Err(_) => doubts += 1,
            }
        }
        assert!(doubts > 0, "page {lost} of {lost_pages}");
        assert!(all(&index).is_err() && index.verify().is_err());
        assert!(
            index.checkpoint(Epoch(2)).is_err(),
            "a doubtful index is not blessed"
        );
    }
}

#[test]
fn a_damaged_or_misplaced_page_is_a_doubt() {
    let dir = TempDir::new().unwrap();
    let index = created(&dir);
    apply(&index, &block(0, 300, "a")).unwrap();
    let fences = fences(&index);
    let (key, good) = (
        raw_key(&fences[2]),
        index.store.raw().get(raw_key(&fences[2])).unwrap().unwrap(),
    );
    let mut bad = good.to_vec();
    bad[50] ^= 1;
    index.store.raw().insert(key.clone(), bad).unwrap();
    assert!(
        index
            .get(&fences[2])
            .unwrap_err()
            .reason
            .contains("checksum")
    );
    index.store.raw().insert(key, good.clone()).unwrap();
    assert!(index.get(&fences[2]).is_ok());
    index.store.raw().insert(raw_key(&fences[4]), good).unwrap();
    assert!(
        index
            .get(&fences[4])
            .unwrap_err()
            .reason
            .contains("another's place")
    );
}

#[test]
fn a_page_that_fell_back_is_found_by_verify_also_when_the_store_is_ahead() {
    for ahead in [false, true] {
        let dir = TempDir::new().unwrap();
        let index = created(&dir);
        apply(&index, &block(0, 300, "a")).unwrap();
        index.checkpoint(Epoch(1)).unwrap();
        let old = raw_key(&fences(&index)[2]);
        let before = index.store.raw().get(&old).unwrap().unwrap();
        apply(&index, &block(0, 300, "b")).unwrap();
        index.checkpoint(Epoch(2)).unwrap();
        if ahead {
            // Rewrites, splits and joins after the checkpoint, far from the page that falls back.
            apply(&index, &block(150, 400, "c")).unwrap();
            apply(&index, &removed(250, 200)).unwrap();
        }
        drop(index);
        let index = open(&dir).unwrap();
        assert_eq!(index.page_count().is_none(), ahead);
        index.store.raw().insert(old, before).unwrap();
        assert!(
            index.verify().unwrap_err().reason.contains("fell back"),
            "ahead: {ahead}"
        );
    }
}

#[test]
fn a_store_from_before_its_checkpoint_is_discarded() {
    let dir = TempDir::new().unwrap();
    let (path, copy) = (dir.path().join("index/sled"), dir.path().join("copy"));
    let index = created(&dir);
    apply(&index, &block(0, 300, "a")).unwrap();
    index.checkpoint(Epoch(1)).unwrap();
    drop(index);
    copy_tree(&path, &copy);
    let index = open(&dir).unwrap();
    apply(&index, &block(0, 300, "b")).unwrap();
    index.checkpoint(Epoch(2)).unwrap();
    drop(index);
    fs::remove_dir_all(&path).unwrap();
    copy_tree(&copy, &path);
    assert!(open(&dir).unwrap_err().contains("behind its checkpoint"));
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Splits in the middle, at the end, joins, emptied pages: every kind of replacement.
fn busy_batch() -> Changes {
    let mut changes = block(
        50,
        40,
        "a value that makes its page longer, so that it is split in two or three parts",
    );
    changes.extend(removed(120, 90));
    changes.extend((0..60u32).map(|n| {
        (
            [key(230), vec![b'x', u8::try_from(n).unwrap()]].concat(),
            Some(vec![7; 150]),
        )
    }));
    changes.extend(removed(295, 5));
    changes.extend(block(320, 60, "another value that makes its page longer"));
    changes.extend(removed(420, 150));
    changes.extend(block(580, 1, "one"));
    changes.extend(block(800, 100, "at the end"));
    changes
}

#[test]
fn a_crash_between_any_two_writes_is_mended_by_applying_again() {
    let mut base = Model::new();
    update(&mut base, &block(0, 600, "a"));
    let mut after = base.clone();
    update(&mut after, &busy_batch());
    let mut writes = 0;
    loop {
        let dir = TempDir::new().unwrap();
        let index = created(&dir);
        apply(&index, &block(0, 600, "a")).unwrap();
        index.checkpoint(Epoch(1)).unwrap();
        index.store.writes_left.store(writes, Ordering::Relaxed);
        let done = apply(&index, &busy_batch()).is_ok();
        drop(index);
        // A second crash, while the first one is being settled.
        let index = open(&dir).unwrap();
        let seen = all(&index).unwrap();
        for key in base.keys().chain(after.keys()) {
            let (now, old, new) = (seen.get(key), base.get(key), after.get(key));
            assert!(
                now == old || now == new,
                "after {writes} writes: {} is neither",
                key.escape_ascii()
            );
            assert_eq!(index.get(key).unwrap().as_deref(), now.map(Vec::as_slice));
        }
        assert!(index.verify().unwrap().compared, "after {writes} writes");
        apply(&index, &busy_batch()).unwrap();
        assert_is(&index, &after);
        index.verify().unwrap();
        index.checkpoint(Epoch(2)).unwrap();
        drop(index);
        let index = open(&dir).unwrap();
        assert_is(&index, &after);
        assert!(index.verify().unwrap().compared);
        if done {
            break;
        }
        writes += 1;
    }
    assert!(writes > 15, "{writes}");
}

#[test]
fn a_crash_while_a_crash_is_being_settled_is_settled_too() {
    let mut after = Model::new();
    update(&mut after, &block(0, 600, "a"));
    update(&mut after, &busy_batch());
    for first in (1..60).step_by(2) {
        for second in 0..4 {
            let dir = TempDir::new().unwrap();
            let index = created(&dir);
            apply(&index, &block(0, 600, "a")).unwrap();
            index.checkpoint(Epoch(1)).unwrap();
            index.store.writes_left.store(first, Ordering::Relaxed);
            let _ = apply(&index, &busy_batch());
            drop(index);
            // The first opening: the store alone, so that its settling can be stopped.
            let path = dir.path().join("index");
            let sealed = Checkpoint::read(&open::checkpoint_path(&path))
                .unwrap()
                .unwrap();
            let store = Store::open(&store_dir(&path)).unwrap();
            let writer = Writer {
                seq: 5 << 30,
                dirty: true,
                tally: None,
                sealed,
            };
            let index = Index::for_test(&path, store, writer);
            index.store.writes_left.store(second, Ordering::Relaxed);
            let _ = index.settle(&mut index.writer());
            drop(index);
            let index = open(&dir).unwrap();
            assert!(index.verify().unwrap().compared, "{first} {second}");
            apply(&index, &busy_batch()).unwrap();
            assert_is(&index, &after);
        }
    }
}

#[test]
fn readers_meet_every_untouched_key_once_while_pages_are_split_and_joined() {
    let dir = TempDir::new().unwrap();
    let index = created(&dir);
    // Every third key stays; what is between them comes and goes.
    let stays: Changes = (0..900)
        .step_by(3)
        .map(|n| (key(n), Some(vec![1; 60])))
        .collect();
    let comes: Changes = (0..900)
        .filter(|n| n % 3 != 0)
        .map(|n| (key(n), Some(vec![2; 200])))
        .collect();
    let goes: Changes = comes.keys().map(|key| (key.clone(), None)).collect();
    apply(&index, &stays).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let seen = index.range(b"", None).map(|entry| entry.unwrap());
                    let keys: Vec<Bytes> = seen
                        .filter(|(_, value)| value[0] == 1)
                        .map(|(key, _)| key)
                        .collect();
                    assert!(keys.iter().eq(stays.keys()));
                    for key in stays.keys().step_by(7) {
                        assert!(index.get(key).unwrap().is_some());
                    }
                }
            });
        }
        for _ in 0..40 {
            apply(&index, &comes).unwrap();
            apply(&index, &goes).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    index.verify().unwrap();
}

#[test]
fn a_reader_that_meets_a_gap_looks_again_when_no_page_is_being_replaced() {
    let dir = TempDir::new().unwrap();
    let index = created(&dir);
    apply(&index, &block(0, 300, "a")).unwrap();
    let fence = fences(&index)[3].clone();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let replacing = index.shape.lock().unwrap();
        let page = index.store.raw().remove(raw_key(&fence)).unwrap().unwrap();
        scope.spawn(|| send.send(index.get(&fence)).unwrap());
        assert!(
            receive
                .recv_timeout(std::time::Duration::from_millis(100))
                .is_err(),
            "it answers from a gap"
        );
        index.store.raw().insert(raw_key(&fence), page).unwrap();
        drop(replacing);
        assert!(receive.recv().unwrap().is_ok());
    });
    index.checkpoint(Epoch(1)).unwrap();
}

/// Opens the index with a damaged file and reads all of it: right or doubtful, never wrong, never a panic.
fn survives(damage: impl Fn(&mut Vec<u8>)) -> &'static str {
    let dir = TempDir::new().unwrap();
    let index = created(&dir);
    let mut model = Model::new();
    for changes in [block(0, 2000, "a"), block(500, 300, "b"), removed(900, 100)] {
        apply(&index, &changes).unwrap();
        update(&mut model, &changes);
    }
    index.checkpoint(Epoch(1)).unwrap();
    drop(index);
    let path = dir.path().join("index/sled/db");
    let mut bytes = fs::read(&path).unwrap();
    damage(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let Ok(index) = open(&dir) else {
        return "discarded";
    };
    let mut doubts = 0;
    for n in 0..2000 {
        match index.get(&key(n)) {
            Ok(found) => assert_eq!(
                found.as_deref(),
                model.get(&key(n)).map(Vec::as_slice),
                "key {n}"
            ),
            Err(_) => doubts += 1,
        }
    }
    match all(&index) {
        Ok(found) => assert_eq!(found, model),
        Err(_) => doubts += 1,
    }
    if index.verify().is_err() || doubts > 0 {
        "doubtful"
    } else {
        "right"
    }
}

#[test]
fn a_damaged_store_is_discarded_or_doubtful_or_right_but_never_wrong() {
    let mut outcomes = BTreeMap::new();
    let mut count = |outcome| *outcomes.entry(outcome).or_insert(0) += 1;
    for part in 0..8 {
        count(survives(|bytes| bytes.truncate(bytes.len() / 8 * part)));
    }
    for part in 0..24 {
        count(survives(|bytes| {
            let at = bytes.len() / 24 * part + 77 * part;
            bytes[at] ^= 0x40;
        }));
    }
    count(survives(|bytes| bytes.fill(0)));
    assert!(
        outcomes.get("discarded").is_some_and(|count| *count > 3),
        "{outcomes:?}"
    );
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Changes),
    Checkpoint,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![
        2 => Just(None),
        5 => (0..300usize).prop_map(Some),
        1 => (3000..20_000usize).prop_map(Some),
    ];
    // A small alphabet: keys that are prefixes of each other, and dense neighbours.
    let key = prop_oneof![
        "[ab]{0,4}".prop_map(String::into_bytes),
        (0..400u32).prop_map(key),
    ];
    prop_oneof![
        6 => proptest::collection::btree_map(key, value, 0..120).prop_map(|changes| {
            let fill = |(n, (key, len)): (usize, (Vec<u8>, Option<usize>))| {
                (key, len.map(|len| vec![u8::try_from(n % 251).unwrap(); len]))
            };
            Step::Apply(changes.into_iter().enumerate().map(fill).collect())
        }),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn random_batches_and_reopenings_agree_with_a_map(steps in proptest::collection::vec(step(), 1..20)) {
        let dir = TempDir::new().unwrap();
        let mut index = created(&dir);
        index.checkpoint(Epoch(0)).unwrap();
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Apply(changes) => {
                    apply(&index, &changes).unwrap();
                    update(&mut model, &changes);
                }
                Step::Checkpoint => index.checkpoint(Epoch(1)).unwrap(),
                Step::Reopen => {
                    drop(index);
                    index = open(&dir).unwrap();
                }
            }
            prop_assert_eq!(&all(&index).unwrap(), &model);
        }
        for (key, value) in &model {
            prop_assert_eq!(index.get(key).unwrap().unwrap(), value);
        }
        index.verify().unwrap();
    }
}
