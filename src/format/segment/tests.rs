//! A segment as a whole: what goes in comes out, and damage never does.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::error::{Error, Result};
use crate::types::{Epoch, SessionId};

type Model = BTreeMap<(Vec<u8>, Reverse<Epoch>), Option<Vec<u8>>>;

const SCOPE: SegmentScope = SegmentScope {
    volume: *b"0123456789abcdef",
    session: SessionId(*b"session!"),
    first: Epoch(10),
    last: Epoch(30),
};

fn write(model: &Model) -> (SegmentSummary, Vec<u8>) {
    let mut writer = SegmentWriter::new(Vec::new(), "new.seg", SCOPE).unwrap();
    for ((key, Reverse(epoch)), value) in model {
        writer.add(key, *epoch, value.as_deref()).unwrap();
    }
    writer.finish().unwrap()
}

fn open_with(bytes: impl Into<Bytes>, cache_len: usize) -> Result<Arc<Segment>> {
    let source = MemorySource::new("test.seg", bytes);
    Segment::open(Arc::new(source), Arc::new(BlockCache::new(cache_len))).map(Arc::new)
}

fn open(bytes: impl Into<Bytes>) -> Result<Arc<Segment>> {
    open_with(bytes, 1 << 20)
}

fn all(segment: &Arc<Segment>) -> Result<Model> {
    let entries = segment.range(&[], Bound::Unbounded);
    let model = |entry: Result<Entry>| {
        let Entry { key, epoch, value } = entry?;
        Ok((
            (key.to_vec(), Reverse(epoch)),
            value.map(|value| value.to_vec()),
        ))
    };
    entries.map(model).collect()
}

fn get_in(model: &Model, key: &[u8], at: Epoch) -> Option<Found> {
    let from = (key.to_vec(), Reverse(at));
    let ((found, Reverse(epoch)), value) = model.range(from..).next()?;
    let (epoch, value) = (*epoch, value.clone().map(Bytes::from));
    (found == key).then_some(Found { epoch, value })
}

/// Enough for several blocks: long values that do not compress, some keys with many versions.
fn several_blocks() -> Model {
    let mut model = Model::new();
    let mut noise = 1_u32;
    for number in 0..400_u64 {
        let key = format!("key {:04}", number / 4 * 3).into_bytes();
        let mut value = vec![0; 500];
        for byte in &mut value {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = noise.to_le_bytes()[3];
        }
        let value = (number % 9 != 0).then_some(value);
        model.insert((key, Reverse(Epoch(10 + number % 4 * 5))), value);
    }
    for age in 0..21 {
        let value = vec![u8::try_from(age).unwrap(); 9000];
        model.insert(
            (b"many versions".to_vec(), Reverse(Epoch(10 + age))),
            Some(value),
        );
    }
    model
}

fn few() -> Model {
    let mut model = Model::new();
    for number in 0..24_u64 {
        let key = format!("a key {:02}", number / 2).into_bytes();
        let value = (number % 5 != 0).then(|| format!("value {number}").into_bytes());
        model.insert((key, Reverse(Epoch(12 + number % 2))), value);
    }
    model
}

fn models() -> impl Strategy<Value = Model> {
    let key = proptest::collection::vec(0_u8..4, 0..6);
    let value = prop_oneof![
        3 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Some),
        1 => (0_u8.., 0_usize..20_000).prop_map(|(byte, len)| Some(vec![byte; len])),
        1 => Just(None),
    ];
    let entry = (
        (key, (10_u64..31).prop_map(|epoch| Reverse(Epoch(epoch)))),
        value,
    );
    proptest::collection::btree_map(
        entry.clone().prop_map(|e| e.0),
        entry.prop_map(|e| e.1),
        0..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_written_is_read_at_every_epoch_and_in_every_range(model in models(), from in proptest::collection::vec(0_u8..4, 0..4), to in proptest::collection::vec(0_u8..4, 0..4), cache_len in prop_oneof![Just(0_usize), Just(1 << 20)]) {
        let (summary, bytes) = write(&model);
        let segment = open_with(bytes, cache_len).unwrap().clone();
        prop_assert_eq!(segment.summary(), &summary);
        prop_assert_eq!(summary.entries, model.len() as u64);
        prop_assert_eq!(&all(&segment).unwrap(), &model);
        segment.verify().unwrap();
        for (key, _) in model.keys() {
            for at in [0, 9, 10, 15, 20, 29, 30, u64::MAX].map(Epoch) {
                prop_assert_eq!(segment.get(key, at).unwrap(), get_in(&model, key, at));
            }
        }
        prop_assert_eq!(segment.get(b"absent", Epoch(30)).unwrap(), None);
        for bound in [Bound::Included(&to[..]), Bound::Excluded(&to[..]), Bound::Unbounded] {
            let keys = segment.range(&from, bound).map(|entry| entry.unwrap()).map(|entry| (entry.key.to_vec(), Reverse(entry.epoch)));
            let expected = model.keys().filter(|(key, _)| *key >= from && match bound {
                Bound::Included(to) => key.as_slice() <= to,
                Bound::Excluded(to) => key.as_slice() < to,
                Bound::Unbounded => true,
            });
            prop_assert_eq!(keys.collect::<Vec<_>>(), expected.cloned().collect::<Vec<_>>());
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_segment(bytes in proptest::collection::vec(any::<u8>(), 0..600), end in any::<bool>()) {
        let mut bytes = bytes;
        if end {
            bytes.extend_from_slice(b"tideSEGF");
        }
        let error = open(bytes).unwrap_err();
        let is_corrupt = matches!(error, Error::Corrupt { .. });
        prop_assert!(is_corrupt, "{}", error);
    }

    #[test]
    fn a_footer_with_any_field_and_a_right_checksum_is_read_without_panic(at in 0_usize..200, with: u64, key: Vec<u8>) {
        let (_, mut bytes) = write(&few());
        let len = bytes.len();
        let footer_len = u32::from_le_bytes(bytes[len - 16..len - 12].try_into().unwrap());
        let footer_at = len - usize::try_from(footer_len).unwrap();
        let at = footer_at + at.min(len - 24 - footer_at);
        bytes[at..at + 8].copy_from_slice(&with.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[footer_at..len - 12]);
        bytes[len - 12..len - 8].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(segment) = open(bytes) {
            let _ = all(&segment);
            let _ = segment.get(&key, Epoch(20));
            prop_assert!(segment.verify().is_err());
        }
    }
}

#[test]
fn keys_and_versions_that_span_blocks_are_all_found() {
    let model = several_blocks();
    let (_, bytes) = write(&model);
    let segment = open(bytes).unwrap();
    assert!(segment.index().blocks() > 10);
    assert_eq!(all(&segment).unwrap(), model);
    segment.verify().unwrap();
    for key in model.keys().map(|(key, _)| key) {
        for at in (8..33).map(Epoch) {
            assert_eq!(segment.get(key, at).unwrap(), get_in(&model, key, at));
        }
    }
    let versions = segment.range(b"many versions", Bound::Included(b"many versions"));
    assert_eq!(versions.count(), 21);
}

#[test]
fn an_empty_segment_and_one_empty_key_are_segments() {
    let segment = open(write(&Model::new()).1).unwrap();
    assert_eq!(segment.get(b"", Epoch(30)).unwrap(), None);
    assert!(all(&segment).unwrap().is_empty());
    segment.verify().unwrap();
    let one = Model::from([((Vec::new(), Reverse(Epoch(10))), Some(Vec::new()))]);
    let segment = open(write(&one).1).unwrap();
    assert_eq!(all(&segment).unwrap(), one);
    assert_eq!(
        segment.get(b"", Epoch(30)).unwrap().unwrap().value,
        Some(Bytes::new())
    );
    segment.verify().unwrap();
}

#[test]
fn the_largest_entry_fits_and_a_larger_one_is_refused() {
    let mut writer = SegmentWriter::new(Vec::new(), "new.seg", SCOPE).unwrap();
    let key = vec![7; KEY_LEN_MAX];
    let value: Vec<u8> = (0..VALUE_LEN_MAX)
        .map(|at| u8::try_from(at * at / 7 % 251).unwrap())
        .collect();
    writer.add(b"small", Epoch(10), None).unwrap();
    assert!(
        writer
            .add(&key, Epoch(10), Some(&[&value[..], b"x"].concat()))
            .is_err()
    );
    assert!(writer.add(&[7; KEY_LEN_MAX + 1], Epoch(10), None).is_err());
    let mut writer = SegmentWriter::new(Vec::new(), "new.seg", SCOPE).unwrap();
    writer.add(&key, Epoch(10), Some(&value)).unwrap();
    let (_, bytes) = writer.finish().unwrap();
    let segment = open(bytes).unwrap();
    assert_eq!(
        segment
            .get(&key, Epoch(10))
            .unwrap()
            .unwrap()
            .value
            .unwrap(),
        value
    );
    segment.verify().unwrap();
}

#[test]
fn entries_out_of_order_or_outside_the_epochs_are_refused() {
    let mut writer = SegmentWriter::new(Vec::new(), "new.seg", SCOPE).unwrap();
    writer.add(b"b", Epoch(20), None).unwrap();
    assert!(writer.add(b"a", Epoch(20), None).is_err());
    assert!(writer.add(b"b", Epoch(20), None).is_err());
    assert!(writer.add(b"b", Epoch(21), None).is_err());
    assert!(writer.add(b"c", Epoch(9), None).is_err());
    assert!(writer.add(b"c", Epoch(31), None).is_err());
    writer.add(b"b", Epoch(19), None).unwrap();
    let (summary, _) = writer.finish().unwrap();
    assert_eq!((summary.entries, summary.keys), (2, 1));
}

/// Takes so many bytes and then fails once.
struct FailsOnce(usize);

impl std::io::Write for FailsOnce {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.checked_sub(bytes.len()) {
            Some(left) => self.0 = left,
            None if self.0 > 0 => {
                self.0 = 0;
                return Err(std::io::Error::other("disk on fire"));
            }
            None => {}
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn after_a_failed_write_a_segment_is_never_finished() {
    let mut writer = SegmentWriter::new(FailsOnce(100), "new.seg", SCOPE).unwrap();
    let failed = several_blocks()
        .iter()
        .filter(|((key, Reverse(epoch)), value)| writer.add(key, *epoch, value.as_deref()).is_err())
        .count();
    assert!(failed > 0);
    assert!(writer.finish().is_err());
}

#[test]
fn the_digest_is_that_of_the_bytes_before_it_and_is_in_the_name() {
    use sha2::{Digest, Sha256};
    let (summary, bytes) = write(&few());
    let computed: [u8; 32] = Sha256::digest(&bytes[..bytes.len() - 48]).into();
    assert_eq!(summary.sha256, computed);
    assert_eq!(summary.len, bytes.len() as u64);
    let name = summary.name();
    assert_eq!(name.digest, computed[..8]);
    let open_as = |name: String| {
        let source = MemorySource::new(name, bytes.clone());
        Segment::open(Arc::new(source), Arc::new(BlockCache::new(0)))
    };
    assert!(open_as(format!("/backup/{name}")).is_ok());
    let other = SegmentName {
        last: Epoch(31),
        ..name
    };
    let error = open_as(other.to_string()).unwrap_err();
    assert!(error.to_string().contains(&name.to_string()), "{error}");
}

/// Gives what is right, or says what is damaged: whatever was done to the bytes.
fn assert_right_or_corrupt(bytes: Vec<u8>, model: &Model, what: &str) {
    let is_corrupt = |error: &Error| match error {
        Error::Corrupt { object, offset, .. } => {
            assert_eq!(object, "test.seg");
            assert!(*offset <= bytes.len() as u64, "{what}: {error}");
        }
        other => panic!("{what}: {other}"),
    };
    let segment = match open_with(bytes.clone(), 0) {
        Ok(segment) => segment,
        Err(error) => return is_corrupt(&error),
    };
    match all(&segment) {
        Ok(found) => assert_eq!(&found, model, "{what}"),
        Err(error) => is_corrupt(&error),
    }
    for (key, Reverse(epoch)) in model.keys().step_by(5) {
        match segment.get(key, *epoch) {
            Ok(found) => assert_eq!(found, get_in(model, key, *epoch), "{what}"),
            Err(error) => is_corrupt(&error),
        }
    }
    is_corrupt(&segment.verify().expect_err(what));
}

#[test]
fn every_flipped_bit_is_found_or_changes_nothing_and_verify_finds_them_all() {
    let model = few();
    let (_, bytes) = write(&model);
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_right_or_corrupt(bad, &model, &format!("bit {bit}"));
    }
}

#[test]
fn every_truncation_is_found_when_the_segment_is_opened() {
    let (_, bytes) = write(&few());
    for len in 0..bytes.len() {
        let error = open(bytes[..len].to_vec()).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{len}: {error}");
    }
    let longer = [&bytes[..], b"\0"].concat();
    assert!(open(longer).is_err());
}

#[test]
fn a_block_of_another_segment_does_not_pass_for_one_of_this() {
    let (_, bytes) = write(&few());
    let other_scope = SegmentScope {
        session: SessionId(*b"another!"),
        ..SCOPE
    };
    let mut writer = SegmentWriter::new(Vec::new(), "new.seg", other_scope).unwrap();
    for ((key, Reverse(epoch)), value) in &few() {
        writer.add(key, *epoch, value.as_deref()).unwrap();
    }
    let (_, other) = writer.finish().unwrap();
    assert_eq!(bytes.len(), other.len());
    let mut mixed = bytes;
    mixed[64..200].copy_from_slice(&other[64..200]);
    assert!(all(&open(mixed).unwrap()).is_err());
}

#[test]
fn an_error_ends_a_range() {
    let (_, mut bytes) = write(&several_blocks());
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let segment = open(bytes).unwrap();
    let mut range = segment.range(&[], Bound::Unbounded);
    assert!(range.by_ref().any(|entry| entry.is_err()));
    assert!(range.next().is_none());
    assert!(range.next().is_none());
}

/// Counts reads, and may say that there is more than there is.
#[derive(Debug)]
struct Counting {
    source: MemorySource,
    reads: AtomicU64,
    short_by: usize,
}

impl RangeRead for Counting {
    fn name(&self) -> String {
        self.source.name()
    }
    fn len(&self) -> Result<u64> {
        self.source.len()
    }
    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.source.read_at(offset, len - self.short_by)
    }
}

fn counting(model: &Model, short_by: usize) -> Arc<Counting> {
    let (_, bytes) = write(model);
    let source = MemorySource::new("test.seg", bytes);
    let reads = AtomicU64::new(0);
    Arc::new(Counting {
        source,
        reads,
        short_by,
    })
}

#[test]
fn opening_is_one_read_a_look_up_one_more_and_a_scan_reads_ahead() {
    let source = counting(&several_blocks(), 0);
    let reads = || source.reads.swap(0, Ordering::Relaxed);
    let cache = Arc::new(BlockCache::new(64 << 20));
    let segment = Segment::open(source.clone(), cache.clone()).unwrap();
    let segment = Arc::new(segment.with_read_ahead(1 << 20));
    assert_eq!(reads(), 1);
    segment.get(b"key 0003", Epoch(30)).unwrap().unwrap();
    assert_eq!(reads(), 1);
    segment.get(b"key 0003", Epoch(30)).unwrap().unwrap();
    segment.get(b"key 0004", Epoch(30)).unwrap();
    assert_eq!(reads(), 0);
    let blocks = segment.index().blocks() as u64;
    assert_eq!(
        segment.range(&[], Bound::Unbounded).count(),
        several_blocks().len()
    );
    assert!((1..=blocks / 2).contains(&reads()));
    assert_eq!(
        segment.range(&[], Bound::Unbounded).count(),
        several_blocks().len()
    );
    assert_eq!(reads(), 0);
    assert!(cache.counts().hits >= blocks);
}

#[test]
fn a_small_segment_is_read_once_and_for_all() {
    let source = counting(&few(), 0);
    let segment = Segment::open(source.clone(), Arc::new(BlockCache::new(1 << 20))).unwrap();
    let segment = Arc::new(segment);
    assert_eq!(all(&segment).unwrap(), few());
    segment.get(b"a key 07", Epoch(30)).unwrap().unwrap();
    assert_eq!(source.reads.load(Ordering::Relaxed), 1);
}

#[test]
fn a_short_read_is_damage_and_not_an_answer() {
    let error = Segment::open(counting(&few(), 1), Arc::new(BlockCache::new(0))).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn a_file_is_read_like_memory_and_its_truncation_is_damage() {
    let (_, bytes) = write(&few());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.seg");
    std::fs::write(&path, &bytes).unwrap();
    let source = Arc::new(FileSource::open(&path).unwrap());
    let segment = Segment::open(source.clone(), Arc::new(BlockCache::new(0))).unwrap();
    assert_eq!(all(&Arc::new(segment)).unwrap(), few());
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(100)
        .unwrap();
    let error = Segment::open(source, Arc::new(BlockCache::new(0))).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

/// Compressed blocks and a raw one, a key that spans blocks, tombstones. Never to be changed.
fn golden_entries() -> Model {
    let mut model = few();
    for epoch in 10..15_u8 {
        let value = vec![epoch; 17_000];
        model.insert(
            (b"many versions".to_vec(), Reverse(Epoch(u64::from(epoch)))),
            Some(value),
        );
    }
    let mut noise = 1_u32;
    let noise = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.to_le_bytes()[3]
    });
    let noise = noise.take(16_000).collect();
    model.insert((b"noise".to_vec(), Reverse(Epoch(30))), Some(noise));
    model
}

#[test]
fn the_golden_segment_of_version_1_opens() {
    let golden = include_bytes!("../../../tests/golden/segment-v1.bin");
    let segment = open(&golden[..]).unwrap();
    segment.verify().unwrap();
    assert_eq!(segment.summary().scope(), SCOPE);
    assert!(segment.index().blocks() > 2);
    assert_eq!(all(&segment).unwrap(), golden_entries());
}
