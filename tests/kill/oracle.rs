//! The oracle itself: what it must refuse, and what it must let pass.

use super::history::{Content, Found, Moment, NEVER, Node, Patch, Paths, Tree, Version, judge};

fn step(begin: Moment, certain: Moment, node: Node) -> Version {
    Version {
        begin,
        certain,
        is_write: false,
        node,
    }
}

fn write(begin: Moment, certain: Moment, content: &Content) -> Version {
    Version {
        is_write: true,
        ..step(begin, certain, Node::File(content.clone()))
    }
}

fn content(len: usize, seed: u64) -> Content {
    Content::of(vec![Patch::new(0, len, seed)])
}

fn file(bytes: &[u8]) -> Found {
    Found::File(bytes.to_vec())
}

/// A file that is made at 1, written at 3, overwritten in its middle at 5, and synced at `synced`.
fn written(synced: Moment) -> (Paths, Content, Content) {
    let old = content(5000, 1);
    let new = old.with(Patch::new(1000, 2000, 2));
    let versions = vec![
        step(0, 0, Node::Absent),
        step(1, 2, Node::File(Content::of(Vec::new()))),
        write(3, 4, &old),
        write(5, synced, &new),
    ];
    (Paths::from([("file".to_owned(), versions)]), old, new)
}

fn judged(paths: &Paths, found: impl Into<Option<Found>>, floor: Moment) -> Result<usize, String> {
    let mut tree = Tree::new();
    if let Some(found) = found.into() {
        tree.insert("file".to_owned(), found);
    }
    judge(paths, &tree, floor).map(|verdict| verdict.settle(&mut paths.clone(), 100))
}

#[test]
fn what_was_not_synced_may_be_old_or_new_or_new_up_to_some_byte() {
    let (paths, old, new) = written(NEVER);
    let (old_bytes, new_bytes) = (old.bytes(), new.bytes());
    assert_eq!(judged(&paths, None, 0), Ok(3));
    assert_eq!(judged(&paths, file(b""), 0), Ok(2));
    assert_eq!(judged(&paths, file(&old_bytes[..1234]), 0), Ok(2));
    assert_eq!(judged(&paths, file(&old_bytes), 4), Ok(1));
    assert_eq!(judged(&paths, file(&new_bytes), 4), Ok(0));
    let mut half = old_bytes.clone();
    half[1000..1700].copy_from_slice(&new_bytes[1000..1700]);
    assert_eq!(judged(&paths, file(&half), 4), Ok(1));
}

#[test]
fn bytes_that_nobody_wrote_or_not_there_are_refused() {
    let (paths, old, new) = written(NEVER);
    let (old, new) = (old.bytes(), new.bytes());
    let mut hole = old.clone();
    hole[1500..2000].copy_from_slice(&new[1500..2000]);
    let mut flipped = new.clone();
    flipped[4999] ^= 1;
    for wrong in [&hole[..], &flipped, &new[..4999], &new[1..]] {
        let refused = judged(&paths, file(wrong), 0).unwrap_err();
        assert!(refused.contains("as nobody ever made it"), "{refused}");
    }
    assert!(judged(&paths, Found::Dir, 0).is_err());
}

#[test]
fn what_an_fsync_acknowledged_must_be_there_whole() {
    let (paths, old, new) = written(7);
    let (old, new) = (old.bytes(), new.bytes());
    assert_eq!(judged(&paths, file(&new), 7), Ok(0));
    let mut half = old.clone();
    half[1000..1700].copy_from_slice(&new[1000..1700]);
    for wrong in [Some(file(&half)), Some(file(&old)), Some(file(b"")), None] {
        let refused = judged(&paths, wrong, 7).unwrap_err();
        assert!(
            refused.contains("older than what was acknowledged"),
            "{refused}"
        );
    }
}

#[test]
fn an_acknowledged_removal_does_not_come_undone() {
    let (mut paths, _, new) = written(7);
    let versions = paths.get_mut("file").unwrap();
    versions.push(step(8, 9, Node::Absent));
    assert_eq!(judged(&paths, file(&new.bytes()), 7), Ok(1));
    assert_eq!(judged(&paths, None, 10), Ok(0));
    assert!(judged(&paths, file(&new.bytes()), 10).is_err());
}

/// `first` is made and answered before `second` is begun; nothing is synced.
#[test]
fn a_later_step_without_an_earlier_one_is_no_prefix() {
    let made = |begin, seed| {
        let node = Node::File(content(10, seed));
        vec![step(0, 0, Node::Absent), step(begin, begin + 1, node)]
    };
    let paths = Paths::from([
        ("first".to_owned(), made(1, 1)),
        ("second".to_owned(), made(3, 2)),
    ]);
    let found = |names: &[(&str, u64)]| -> Tree {
        let files = names.iter();
        files
            .map(|(name, seed)| {
                let found = Found::File(content(10, *seed).bytes());
                ((*name).to_owned(), found)
            })
            .collect()
    };
    assert!(judge(&paths, &found(&[]), 0).is_ok());
    assert!(judge(&paths, &found(&[("first", 1)]), 0).is_ok());
    assert!(judge(&paths, &found(&[("first", 1), ("second", 2)]), 0).is_ok());
    let refused = judge(&paths, &found(&[("second", 2)]), 0).unwrap_err();
    assert!(refused.contains("no moment explains"), "{refused}");
    let refused = judge(&paths, &found(&[("third", 3)]), 0).unwrap_err();
    assert!(refused.contains("nobody ever made it"), "{refused}");
}
