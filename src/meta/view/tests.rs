//! Views and merges against a plain map of every epoch's state.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::format::segment::{BlockCache, MemorySource, SegmentScope, SegmentWriter};
use crate::types::SessionId;

type Tree = BTreeMap<Vec<u8>, Vec<u8>>;
/// What an epoch changed.
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

const SESSION: SessionId = SessionId([7; 8]);

fn opened(bytes: Vec<u8>) -> Arc<Segment> {
    let source = MemorySource::new("view.seg", bytes);
    Arc::new(Segment::open(Arc::new(source), Arc::new(BlockCache::new(1 << 20))).unwrap())
}

fn segment_of(epoch: u64, changes: &Changes) -> Arc<Segment> {
    segment_of_volume(1, epoch, changes)
}

fn segment_of_volume(volume: u8, epoch: u64, changes: &Changes) -> Arc<Segment> {
    let scope = SegmentScope {
        volume: [volume; 16],
        session: SESSION,
        first: Epoch(epoch),
        last: Epoch(epoch),
    };
    let mut writer = SegmentWriter::new(Vec::new(), "view.seg", scope).unwrap();
    for (key, value) in changes {
        writer.add(key, Epoch(epoch), value.as_deref()).unwrap();
    }
    opened(writer.finish().unwrap().1)
}

fn merged(inputs: &[Arc<Segment>]) -> Arc<Segment> {
    opened(
        merge_segments(inputs, Vec::new(), "merged.seg", SESSION)
            .unwrap()
            .1,
    )
}

fn tree_of(view: &View, from: &[u8], to: Bound<&[u8]>) -> Tree {
    let pairs = view.range(from, to).map(Result::unwrap);
    let mut last = None;
    pairs
        .map(|(key, value)| {
            assert!(last.replace(key.clone()) < Some(key.clone()));
            (key.to_vec(), value.to_vec())
        })
        .collect()
}

fn assert_shows(view: &View, tree: &Tree, keys: &[Vec<u8>]) {
    assert_eq!(&tree_of(view, &[], Bound::Unbounded), tree);
    for key in keys {
        let found = view.get(key).unwrap().map(|value| value.to_vec());
        assert_eq!(found.as_ref(), tree.get(key));
        let below = tree_of(view, &[], Bound::Excluded(key));
        let above = tree_of(view, key, Bound::Unbounded);
        assert_eq!(below.len() + above.len(), tree.len());
        assert_eq!(
            below,
            tree.range(..key.clone())
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_epoch_is_shown_as_it_was_before_and_after_merges(
        history in proptest::collection::vec(
            proptest::collection::btree_map(proptest::collection::vec(0_u8..3, 0..4), proptest::option::weighted(0.7, proptest::collection::vec(any::<u8>(), 0..20)), 0..12),
            1..8,
        ),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 2),
    ) {
        let keys: Vec<Vec<u8>> = history.iter().flat_map(|changes| changes.keys().cloned()).collect();
        let mut tree = Tree::new();
        let mut trees = vec![tree.clone()];
        let mut segments = Vec::new();
        for (epoch, changes) in (1..).zip(&history) {
            for (key, value) in changes {
                match value {
                    Some(value) => tree.insert(key.clone(), value.clone()),
                    None => tree.remove(key),
                };
            }
            trees.push(tree.clone());
            segments.push(segment_of(epoch, changes));
        }
        // Neighbours joined in two places, and everything in one.
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(segments.len())).collect();
        cuts.sort_unstable();
        let parts = [&segments[..cuts[0]], &segments[cuts[0]..cuts[1]], &segments[cuts[1]..]];
        let joined: Vec<_> = parts.iter().filter(|part| !part.is_empty()).map(|part| merged(part)).collect();
        let one = vec![merged(&joined)];
        prop_assert_eq!(one[0].summary().entries, history.iter().map(|changes| changes.len() as u64).sum::<u64>());
        for segments in [segments, joined, one] {
            let newest = View::new(Epoch(u64::MAX), segments).unwrap();
            assert_shows(&newest, &tree, &keys);
            for (epoch, tree) in (0..).zip(&trees) {
                assert_shows(&newest.as_of(Epoch(epoch)), tree, &keys);
            }
        }
    }
}

#[test]
fn a_view_of_nothing_is_empty() {
    let view = View::new(Epoch(3), Vec::new()).unwrap();
    assert_eq!(view.get(b"key").unwrap(), None);
    assert!(view.range(&[], Bound::Unbounded).next().is_none());
}

#[test]
fn segments_of_overlapping_epochs_or_of_two_volumes_are_refused() {
    let changes = Changes::from([(b"key".to_vec(), None)]);
    let (one, two) = (segment_of(1, &changes), segment_of(2, &changes));
    let both = merged(&[one.clone(), two.clone()]);
    assert!(View::new(Epoch(2), vec![two.clone(), one.clone()]).is_ok());
    assert!(View::new(Epoch(2), vec![one.clone(), both.clone()]).is_err());
    assert!(merge_segments(&[both, two], Vec::new(), "x", SESSION).is_err());
    let foreign = segment_of_volume(9, 2, &changes);
    assert!(View::new(Epoch(2), vec![one, foreign]).is_err());
    assert!(merge_segments(&[], Vec::new(), "x", SESSION).is_err());
}

#[test]
fn damage_in_one_segment_ends_the_range_with_an_error_and_never_skips_it() {
    let changes = Changes::from([
        (b"key".to_vec(), Some(b"old".to_vec())),
        (b"later".to_vec(), Some(b"old".to_vec())),
    ]);
    let scope = SegmentScope {
        volume: [1; 16],
        session: SESSION,
        first: Epoch(2),
        last: Epoch(2),
    };
    let mut writer = SegmentWriter::new(Vec::new(), "view.seg", scope).unwrap();
    writer.add(b"key", Epoch(2), Some(b"new")).unwrap();
    let (_, mut bytes) = writer.finish().unwrap();
    bytes[130] ^= 1;
    let segments = vec![segment_of(1, &changes), opened(bytes)];
    let view = View::new(Epoch(2), segments).unwrap();
    assert!(view.get(b"key").is_err());
    let mut range = view.range(&[], Bound::Unbounded);
    assert!(range.next().unwrap().is_err());
    assert!(range.next().is_none());
    let older = view.as_of(Epoch(1));
    assert_eq!(older.get(b"key").unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(older.range(&[], Bound::Unbounded).count(), 2);
}
