//! The contract of [`Volume`] as code: one function per rule, run by every kind's tests.
//!
//! A rule panics when it is broken, names what it found, and expects an empty volume of its own. It relies on no timing.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a broken rule is reported by panicking"
)]

use std::collections::BTreeSet;
use std::io::{Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use crate::error::ErrorClass;
use crate::identity::Sentinel;
use crate::key::ObjectKey;
use crate::volume::{Body, Likeness, Meta, Precondition, Volume, VolumeExt};

/// A rule: takes an empty volume, panics if the volume breaks it.
pub type Rule = fn(&dyn Volume);

/// Every rule, by name.
pub const RULES: &[(&str, Rule)] = &[
    (
        "what was put is found everywhere",
        what_was_put_is_found_everywhere,
    ),
    (
        "a get gives exactly its range or an error",
        a_get_gives_exactly_its_range_or_an_error,
    ),
    ("what is absent is absent", what_is_absent_is_absent),
    (
        "a put replaces the whole object",
        a_put_replaces_the_whole_object,
    ),
    ("an empty object is an object", an_empty_object_is_an_object),
    (
        "a file is sent from its start",
        a_file_is_sent_from_its_start,
    ),
    (
        "a body that cannot be read stores nothing",
        a_body_that_cannot_be_read_stores_nothing,
    ),
    ("if-absent never replaces", if_absent_never_replaces),
    ("if-absent has one winner", if_absent_has_one_winner),
    ("a reader never sees a part", a_reader_never_sees_a_part),
    ("a listing is in byte order", a_listing_is_in_byte_order),
    (
        "pages join without gap or repeat",
        pages_join_without_gap_or_repeat,
    ),
    (
        "a listing keeps to its prefix",
        a_listing_keeps_to_its_prefix,
    ),
    (
        "a delete takes what it names and nothing else",
        a_delete_takes_what_it_names_and_nothing_else,
    ),
    (
        "a directory of keys is no object",
        a_directory_of_keys_is_no_object,
    ),
    (
        "an error names operation, key and volume",
        an_error_names_operation_key_and_volume,
    ),
    (
        "a probe leaves nothing behind",
        a_probe_leaves_nothing_behind,
    ),
    (
        "a comparison tells the same from others and from nothing",
        a_comparison_tells_the_same_from_others_and_from_nothing,
    ),
    ("a sweep takes no object", a_sweep_takes_no_object),
    (
        "a volume is known by its sentinel",
        a_volume_is_known_by_its_sentinel,
    ),
    ("the wrong volume is not used", the_wrong_volume_is_not_used),
];

/// Runs every rule, each on a fresh and empty volume from `make`.
pub fn conformance(make: &dyn Fn() -> Arc<dyn Volume>) {
    for (name, rule) in RULES {
        let volume = make();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rule(&*volume)));
        assert!(outcome.is_ok(), "{volume} breaks the rule: {name}");
    }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).expect("a key of the kit")
}

fn put(volume: &dyn Volume, name: &str, bytes: &[u8]) -> Meta {
    volume
        .put(&key(name), Body::Bytes(bytes), Precondition::None)
        .unwrap()
}

fn listed(volume: &dyn Volume, prefix: &str) -> Vec<String> {
    let page = volume.list(prefix, None, NonZeroUsize::MAX).unwrap();
    assert!(!page.more);
    page.objects
        .iter()
        .map(|meta| meta.key.to_string())
        .collect()
}

fn what_was_put_is_found_everywhere(volume: &dyn Volume) {
    let stored = put(volume, "items/ab/one.pack", b"0123456789");
    assert_eq!((stored.key.as_str(), stored.len), ("items/ab/one.pack", 10));
    let head = volume
        .head(&stored.key)
        .unwrap()
        .expect("an object that was put");
    assert_eq!((&head.key, head.len), (&stored.key, 10));
    assert_eq!(
        volume.get(&stored.key, 0..10).unwrap(),
        b"0123456789".as_slice()
    );
    assert_eq!(
        volume.get_whole(&stored.key, 10).unwrap(),
        b"0123456789".as_slice()
    );
    let page = volume.list("", None, NonZeroUsize::MIN).unwrap();
    assert_eq!((page.objects, page.more), (vec![head], false));
}

fn a_get_gives_exactly_its_range_or_an_error(volume: &dyn Volume) {
    let key = put(volume, "k", b"0123456789").key;
    assert_eq!(volume.get(&key, 3..7).unwrap(), b"3456".as_slice());
    assert_eq!(volume.get(&key, 9..10).unwrap(), b"9".as_slice());
    assert!(volume.get(&key, 5..5).unwrap().is_empty());
    assert!(volume.get(&key, 10..10).unwrap().is_empty());
    for range in [
        0..11,
        9..11,
        10..11,
        11..11,
        11..20,
        0..u64::MAX,
        u64::MAX - 1..u64::MAX,
    ] {
        let error = volume
            .get(&key, range.clone())
            .expect_err("a range beyond the end");
        assert!(
            error.is_short_read() && !error.is_not_found(),
            "{range:?}: {error:?}"
        );
    }
    #[expect(clippy::reversed_empty_ranges, reason = "what is tested")]
    let error = volume
        .get(&key, 5..3)
        .expect_err("a range that runs backwards");
    assert_eq!(error.class(), ErrorClass::Permanent);
    let error = volume
        .get_whole(&key, 9)
        .expect_err("an object larger than was expected");
    assert_eq!(error.class(), ErrorClass::Permanent);
}

fn what_is_absent_is_absent(volume: &dyn Volume) {
    put(volume, "a/b", b"x");
    for absent in ["a/c", "b", "b/c/d", "a/b/c"] {
        let absent = key(absent);
        assert_eq!(volume.head(&absent).unwrap(), None, "{absent}");
        assert!(
            volume.get(&absent, 0..0).unwrap_err().is_not_found(),
            "{absent}"
        );
        assert!(
            volume.get_whole(&absent, 1).unwrap_err().is_not_found(),
            "{absent}"
        );
        volume.delete(&[absent]).unwrap();
    }
    assert_eq!(listed(volume, "b"), [""; 0]);
    assert_eq!(listed(volume, ""), ["a/b"]);
}

fn a_put_replaces_the_whole_object(volume: &dyn Volume) {
    put(volume, "d/k", b"a long first one");
    let meta = put(volume, "d/k", b"second");
    assert_eq!(meta.len, 6);
    assert_eq!(
        volume.get_whole(&meta.key, 100).unwrap(),
        b"second".as_slice()
    );
    assert_eq!(listed(volume, ""), ["d/k"]);
}

fn an_empty_object_is_an_object(volume: &dyn Volume) {
    let key = put(volume, "d/empty", b"").key;
    assert_eq!(volume.head(&key).unwrap().expect("an empty object").len, 0);
    assert!(volume.get(&key, 0..0).unwrap().is_empty());
    assert_eq!(listed(volume, ""), ["d/empty"]);
}

/// Larger than a chunk, not a multiple of one, and no two chunks alike.
fn file_of_three_mebibytes() -> (std::fs::File, Vec<u8>) {
    let bytes: Vec<u8> = (0..3_000_001_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let mut file = nameless_file();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

/// A file without a name: this crate's tests alone have a crate for that.
fn nameless_file() -> std::fs::File {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("vfs-testkit-{}-{number}", std::process::id()));
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

fn a_file_is_sent_from_its_start(volume: &dyn Volume) {
    let (mut file, bytes) = file_of_three_mebibytes();
    file.seek(SeekFrom::Start(77)).unwrap();
    for len in [bytes.len() as u64, 1 << 20, 1, 0] {
        let meta = volume
            .put(
                &key("items/00/f"),
                Body::File { file: &file, len },
                Precondition::None,
            )
            .unwrap();
        assert_eq!(meta.len, len);
        let expected = bytes.get(..usize::try_from(len).unwrap()).unwrap();
        assert!(
            volume.get(&meta.key, 0..len).unwrap() == expected,
            "other bytes of a file of {len}"
        );
    }
    assert_eq!(
        file.stream_position().unwrap(),
        77,
        "the cursor is the caller's"
    );
}

fn a_body_that_cannot_be_read_stores_nothing(volume: &dyn Volume) {
    let (file, bytes) = file_of_three_mebibytes();
    let key = put(volume, "d/k", b"before").key;
    let body = Body::File {
        file: &file,
        len: bytes.len() as u64 + 1,
    };
    let error = volume
        .put(&key, body, Precondition::None)
        .expect_err("a file shorter than it was said to be");
    assert_eq!(error.class(), ErrorClass::Permanent, "{error:?}");
    assert_eq!(volume.get_whole(&key, 100).unwrap(), b"before".as_slice());
    assert_eq!(listed(volume, ""), ["d/k"]);
}

fn if_absent_never_replaces(volume: &dyn Volume) {
    let key = key("server/volume.json");
    volume
        .put(&key, Body::Bytes(b"first"), Precondition::IfAbsent)
        .unwrap();
    let error = volume
        .put(&key, Body::Bytes(b"second"), Precondition::IfAbsent)
        .unwrap_err();
    assert!(
        error.is_already_exists() && !error.is_transient(),
        "{error:?}"
    );
    assert_eq!(volume.get_whole(&key, 100).unwrap(), b"first".as_slice());
    volume.delete(std::slice::from_ref(&key)).unwrap();
    volume
        .put(&key, Body::Bytes(b"third"), Precondition::IfAbsent)
        .unwrap();
}

fn if_absent_has_one_winner(volume: &dyn Volume) {
    const WRITERS: u8 = 8;
    for round in 0..5 {
        let key = key(&format!("d{round}/k"));
        let start = Barrier::new(usize::from(WRITERS));
        let winners: Vec<u8> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (key, start) = (&key, &start);
                    scope.spawn(move || {
                        start.wait();
                        match volume.put(key, Body::Bytes(&[writer; 1000]), Precondition::IfAbsent)
                        {
                            Ok(_) => Some(writer),
                            Err(error) => {
                                assert!(error.is_already_exists(), "{error:?}");
                                None
                            }
                        }
                    })
                })
                .collect();
            writers
                .into_iter()
                .filter_map(|writer| writer.join().unwrap())
                .collect()
        });
        assert_eq!(winners.len(), 1, "winners: {winners:?}");
        assert_eq!(
            volume.get_whole(&key, 1000).unwrap(),
            [winners.first().copied().unwrap(); 1000].as_slice()
        );
    }
}

/// What came, unless the volume says that another try may bring it.
fn this_time<T>(outcome: crate::Result<T>) -> Option<T> {
    match outcome {
        Err(error) if error.class() == ErrorClass::Transient => None,
        outcome => Some(outcome.unwrap()),
    }
}

fn a_reader_never_sees_a_part(volume: &dyn Volume) {
    const LEN: usize = 100_000;
    let key = put(volume, "d/k", &vec![0; LEN]).key;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while reads == 0 || !done.load(Ordering::Relaxed) {
                // Ceph's gateway answers 500 to a read that meets the end of what it reads.
                let Some(bytes) = this_time(volume.get(&key, 0..LEN as u64)) else {
                    continue;
                };
                assert!(
                    bytes.iter().all(|byte| Some(byte) == bytes.first()),
                    "a mixture of two objects"
                );
                assert_eq!(volume.head(&key).unwrap().unwrap().len, LEN as u64);
                assert_eq!(listed(volume, ""), ["d/k"]);
                reads += 1;
            }
        });
        for byte in 1..20 {
            put(volume, "d/k", &vec![byte; LEN]);
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

const ORDERED: [&str; 10] = [
    "a", "a-b", "a.b", "b-", "b.c/x", "b/a", "b/b/c", "b0", "b_/z", "c/0",
];

fn a_listing_is_in_byte_order(volume: &dyn Volume) {
    for name in ORDERED.iter().rev() {
        put(volume, name, name.as_bytes());
    }
    assert_eq!(listed(volume, ""), ORDERED);
    let mut seen = Vec::new();
    volume
        .for_each("b", |meta| -> crate::Result<()> {
            assert_eq!(meta.len, meta.key.as_str().len() as u64);
            seen.push(meta.key.to_string());
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, ["b-", "b.c/x", "b/a", "b/b/c", "b0", "b_/z"]);
}

fn pages_join_without_gap_or_repeat(volume: &dyn Volume) {
    for name in ORDERED {
        put(volume, name, b"");
    }
    for limit in (1..12).filter_map(NonZeroUsize::new) {
        let mut seen: Vec<String> = Vec::new();
        let mut after: Option<ObjectKey> = None;
        loop {
            let page = volume.list("", after.as_ref(), limit).unwrap();
            assert!(page.objects.len() <= limit.get());
            assert_eq!(
                page.more,
                seen.len() + page.objects.len() < ORDERED.len(),
                "limit {limit}, after {after:?}"
            );
            after = page.objects.last().map(|meta| meta.key.clone());
            seen.extend(page.objects.iter().map(|meta| meta.key.to_string()));
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, ORDERED, "limit {limit}");
    }
    // From behind keys that do not exist, and from behind the last.
    let from = |after: &str| {
        volume
            .list("", Some(&key(after)), NonZeroUsize::MAX)
            .unwrap()
            .objects
            .len()
    };
    assert_eq!(
        [from("0"), from("b"), from("b/b"), from("b/b/c"), from("zz")],
        [10, 7, 4, 3, 0]
    );
}

fn a_listing_keeps_to_its_prefix(volume: &dyn Volume) {
    for name in [
        "items/ab/1",
        "items/ab/2",
        "items/abc/3",
        "items/b/4",
        "server/volume.json",
    ] {
        put(volume, name, b"");
    }
    assert_eq!(
        listed(volume, "items/ab"),
        ["items/ab/1", "items/ab/2", "items/abc/3"]
    );
    assert_eq!(listed(volume, "items/ab/"), ["items/ab/1", "items/ab/2"]);
    assert_eq!(listed(volume, "items/ab/2"), ["items/ab/2"]);
    for nothing in ["item/", "items/ab/1/", "../", "/", ".", "Z", "zz"] {
        assert_eq!(listed(volume, nothing), [""; 0], "{nothing}");
    }
    let page = volume
        .list("items/ab", Some(&key("a")), NonZeroUsize::MIN)
        .unwrap();
    assert_eq!((page.objects.len(), page.more), (1, true));
    let page = volume
        .list("items/ab", Some(&key("items/abc/3")), NonZeroUsize::MIN)
        .unwrap();
    assert_eq!((page.objects.len(), page.more), (0, false));
}

fn a_delete_takes_what_it_names_and_nothing_else(volume: &dyn Volume) {
    for name in ["a/1", "a/2", "b/1", "c", "d"] {
        put(volume, name, b"x");
    }
    volume.delete(&[]).unwrap();
    volume
        .delete(&[
            key("c"),
            key("a/1"),
            key("no"),
            key("b/1"),
            key("no/no"),
            key("a/1"),
        ])
        .unwrap();
    assert_eq!(listed(volume, ""), ["a/2", "d"]);
    assert_eq!(volume.head(&key("a/1")).unwrap(), None);
    put(volume, "a/1", b"again");
}

fn a_directory_of_keys_is_no_object(volume: &dyn Volume) {
    put(volume, "a/b/c", b"x");
    for directory in [key("a"), key("a/b")] {
        assert_eq!(volume.head(&directory).unwrap(), None);
        assert!(volume.get(&directory, 0..0).unwrap_err().is_not_found());
        volume.delete(&[directory]).unwrap();
    }
    assert_eq!(listed(volume, ""), ["a/b/c"]);
}

fn an_error_names_operation_key_and_volume(volume: &dyn Volume) {
    let error = volume.get(&key("items/ab/none"), 0..1).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("items/ab/none")
            && text.contains(&volume.to_string())
            && text.contains("get"),
        "{text}"
    );
    assert_eq!(
        (error.op(), error.key(), error.volume()),
        ("get", "items/ab/none", volume.to_string().as_str())
    );
}

fn a_probe_leaves_nothing_behind(volume: &dyn Volume) {
    put(volume, "probe.json", b"x");
    let found = volume.probe().unwrap();
    assert!(found.list_after_put, "{found:?}");
    assert_eq!(listed(volume, ""), ["probe.json"]);
    volume.probe().unwrap();
    volume.space().unwrap();
}

fn a_comparison_tells_the_same_from_others_and_from_nothing(volume: &dyn Volume) {
    let (stored, absent) = (put(volume, "d/k", b"12345").key, key("d/l"));
    let holds = |key: &ObjectKey, bytes| volume.holds(key, Body::Bytes(bytes)).unwrap();
    assert_eq!(holds(&stored, b"12345"), Likeness::Same);
    for other in [&b"12346"[..], b"1234", b"123456", b""] {
        assert_eq!(holds(&stored, other), Likeness::Other, "{other:?}");
    }
    assert_eq!(holds(&absent, b""), Likeness::Absent);
    assert_eq!(holds(&key("d"), b""), Likeness::Absent, "a directory");
    assert_eq!(holds(&put(volume, "e", b"").key, b""), Likeness::Same);
}

fn a_sweep_takes_no_object(volume: &dyn Volume) {
    put(volume, "tmp/tmp-1", b"x");
    volume.sweep_temporary(&[""], Duration::ZERO).unwrap();
    assert_eq!(listed(volume, ""), ["tmp/tmp-1"]);
}

fn sentinel() -> Sentinel {
    Sentinel::exact(key("server/volume.json"), "volume 7")
}

fn a_volume_is_known_by_its_sentinel(volume: &dyn Volume) {
    volume
        .verify_identity()
        .expect("without a sentinel the opened place is enough");
    assert!(
        volume.bind(sentinel()).unwrap_err().is_wrong_volume(),
        "there is no sentinel"
    );
}

fn the_wrong_volume_is_not_used(volume: &dyn Volume) {
    put(volume, "server/volume.json", b"volume 7");
    volume.bind(sentinel()).unwrap();
    volume.verify_identity().unwrap();
    put(volume, "a", b"x");
    put(volume, "server/volume.json", b"volume 8");
    let error = volume.verify_identity().unwrap_err();
    assert!(
        error.is_wrong_volume() && error.is_unreachable() && !error.is_not_found(),
        "{error:?}"
    );
    let a = key("a");
    let refusals = BTreeSet::from([
        volume
            .put(&a, Body::Bytes(b"y"), Precondition::None)
            .unwrap_err()
            .is_wrong_volume(),
        volume.get(&a, 0..1).unwrap_err().is_wrong_volume(),
        volume.head(&a).unwrap_err().is_wrong_volume(),
        volume
            .list("", None, NonZeroUsize::MIN)
            .unwrap_err()
            .is_wrong_volume(),
        volume.delete(&[a]).unwrap_err().is_wrong_volume(),
    ]);
    assert_eq!(refusals, BTreeSet::from([true]));
}
