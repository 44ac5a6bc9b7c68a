use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::layer::faulty::{Fault as Break, FaultControls, Faulty, Op};
use crate::memory::MemoryVolume;
use crate::volume::{Body, Precondition, VolumeExt};

struct Fixture {
    bridge: Arc<Bridge>,
    volume: Arc<Faulty>,
    controls: FaultControls,
    _temporary: tempfile::TempDir,
}

fn fixture(keys: &[&str]) -> Fixture {
    with(keys, false)
}

fn with(keys: &[&str], read_only: bool) -> Fixture {
    let controls = FaultControls::new();
    let volume = Arc::new(Faulty::new(Arc::new(MemoryVolume::new()), controls.clone()));
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().to_owned();
    let bridge = Bridge::new(volume.clone(), path, read_only).unwrap();
    let fixture = Fixture {
        bridge,
        volume,
        controls,
        _temporary: temporary,
    };
    for key in keys {
        fixture.put(key, key.as_bytes());
    }
    fixture
}

impl Fixture {
    fn put(&self, key: &str, bytes: &[u8]) {
        let key = ObjectKey::new(key).unwrap();
        self.volume
            .put(&key, Body::Bytes(bytes), Precondition::None)
            .unwrap();
    }

    fn object(&self, key: &str) -> Option<Bytes> {
        let key = ObjectKey::new(key).unwrap();
        self.volume.head(&key).unwrap()?;
        Some(self.volume.get_whole(&key, 1 << 30).unwrap())
    }

    fn keys(&self) -> Vec<String> {
        let page = self.volume.list("", None, NonZeroUsize::MAX).unwrap();
        page.objects
            .iter()
            .map(|meta| meta.key.to_string())
            .collect()
    }

    fn find(&self, path: &str) -> Outcome<Node> {
        let mut node = self.bridge.node(ROOT)?;
        for name in path.split('/') {
            node = self.bridge.lookup(node.number, name.as_bytes())?;
        }
        Ok(node)
    }

    /// The directory of a path, and the name in it.
    fn place<'a>(&self, path: &'a str) -> (u64, &'a [u8]) {
        match path.rsplit_once('/') {
            Some((parent, name)) => (self.find(parent).unwrap().number, name.as_bytes()),
            None => (ROOT, path.as_bytes()),
        }
    }

    /// As `cp` does.
    fn write(&self, path: &str, bytes: &[u8]) -> Outcome<()> {
        let (parent, name) = self.place(path);
        let number = match self.find(path) {
            Ok(node) => node.number,
            Err(_) => self.bridge.create_file(parent, name)?.number,
        };
        self.bridge.open(number, true, true)?;
        let written = self.bridge.write(number, 0, bytes);
        let flushed = self.bridge.flush(number);
        self.bridge.release(number);
        written.and(flushed)
    }

    fn read_open(&self, number: u64, offset: u64, len: u32) -> Outcome<Bytes> {
        let (sender, answer) = mpsc::channel();
        let send = Box::new(move |bytes| sender.send(bytes).unwrap());
        self.bridge.read(number, offset, len, send);
        answer.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    fn read(&self, path: &str) -> Outcome<Bytes> {
        let number = self.find(path)?.number;
        self.bridge.open(number, false, false)?;
        let bytes = self.read_open(number, 0, 1 << 20);
        self.bridge.release(number);
        bytes
    }

    fn names(&self, path: &str) -> Vec<String> {
        let number = if path.is_empty() {
            ROOT
        } else {
            self.find(path).unwrap().number
        };
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names
                .last()
                .map(|name| name.trim_end_matches('/').to_owned());
            let after = after.as_deref().map(str::as_bytes);
            let found = self.bridge.list(number, after, 2).unwrap();
            if found.is_empty() {
                return names;
            }
            names.extend(
                found.iter().map(|(name, node)| {
                    format!("{name}{}", if node.is_directory { "/" } else { "" })
                }),
            );
        }
    }

    fn rename(&self, from: &str, to: &str) -> Outcome<()> {
        self.bridge.rename(self.place(from), self.place(to), false)
    }

    fn remove(&self, path: &str) -> Outcome<()> {
        let (parent, name) = self.place(path);
        self.bridge.remove_file(parent, name)
    }

    fn make(&self, path: &str) -> Outcome<Node> {
        let (parent, name) = self.place(path);
        self.bridge.create_directory(parent, name)
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Outcome<T>, errno: Errno) {
    match outcome {
        Err(Fault::Refused(found)) if found == errno => {}
        other => panic!("{other:?} is not {errno}"),
    }
}

#[test]
fn objects_are_files_and_common_prefixes_directories() {
    let fixture = fixture(&["items/00/a", "items/01/b", "server/volume.json", "top"]);
    assert_eq!(fixture.names(""), ["items/", "server/", "top"]);
    assert_eq!(fixture.names("items"), ["00/", "01/"]);
    assert_eq!(fixture.read("items/00/a").unwrap(), "items/00/a");
    let node = fixture.find("server/volume.json").unwrap();
    assert_eq!((node.len, node.is_directory), (18, false));
    refused(fixture.find("items/02"), Errno::ENOENT);
    refused(fixture.find("top/x"), Errno::ENOTDIR);
    refused(fixture.find("Items"), Errno::ENOENT);
    let items = fixture.find("items/00").unwrap().number;
    let above = fixture.bridge.parent(items).unwrap();
    assert_eq!(above, fixture.find("items").unwrap().number);
    assert_eq!(fixture.bridge.parent(above).unwrap(), ROOT);
}

#[test]
fn what_was_listed_is_not_asked_for_name_by_name() {
    let fixture = fixture(&["a", "b", "c", "d/e"]);
    fixture.names("");
    let asked = || fixture.controls.calls(Op::Head) + fixture.controls.calls(Op::List);
    let before = asked();
    for name in ["a", "b", "c", "d"] {
        fixture.find(name).unwrap();
    }
    assert_eq!(asked(), before);
}

#[test]
fn a_file_is_put_whole_when_it_is_closed() {
    let fixture = fixture(&["a/old"]);
    let (parent, name) = fixture.place("a/new");
    let number = fixture.bridge.create_file(parent, name).unwrap().number;
    fixture.bridge.open(number, true, false).unwrap();
    fixture.bridge.write(number, 0, b"12").unwrap();
    assert_eq!(fixture.object("a/new"), None, "nothing is seen before");
    assert_eq!(fixture.names("a"), ["new", "old"]);
    assert_eq!(fixture.find("a/new").unwrap().len, 2);
    assert_eq!(fixture.read_open(number, 0, 9).unwrap(), "12");
    fixture.bridge.write(number, 2, b"3").unwrap();
    fixture.bridge.flush(number).unwrap();
    assert_eq!(fixture.object("a/new").unwrap(), "123");
    fixture.bridge.flush(number).unwrap();
    fixture.bridge.release(number);
    assert_eq!(fixture.controls.calls(Op::Put), 2, "and once only");
    assert_eq!(fixture.read("a/new").unwrap(), "123");
    fixture.write("a/new", b"replaced").unwrap();
    assert_eq!(fixture.object("a/new").unwrap(), "replaced");
    fixture.write("a/empty", b"").unwrap();
    assert_eq!(fixture.object("a/empty").unwrap(), "");
    assert_eq!(fixture.names("a"), ["empty", "new", "old"]);
}

#[test]
fn who_closes_is_told_that_it_failed_and_the_old_object_stays() {
    let fixture = fixture(&["a"]);
    fixture.controls.inject(Op::Put, 1, Break::NoSpace);
    let Err(Fault::Failed(error)) = fixture.write("a", b"new") else {
        panic!("not told");
    };
    assert_eq!(error.case(), crate::ErrorCase::NoSpace);
    assert_eq!(fixture.object("a").unwrap(), "a");
    assert_eq!(
        fixture.controls.calls(Op::Put),
        2,
        "the end of the opening does not try again"
    );
    fixture
        .controls
        .inject(Op::Put, 1, Break::Fail(crate::ErrorClass::Unreachable));
    fixture.write("b", b"new").unwrap_err();
    refused(fixture.find("b"), Errno::ENOENT);
    fixture.write("b", b"newer").unwrap();
    assert_eq!(fixture.object("b").unwrap(), "newer");
}

#[test]
fn a_change_in_place_is_refused_before_a_byte_is_written() {
    let fixture = fixture(&["a"]);
    let number = fixture.find("a").unwrap().number;
    refused(fixture.bridge.open(number, true, false), Errno::EOPNOTSUPP);
    refused(fixture.bridge.set_len(number, 7), Errno::EOPNOTSUPP);
    assert_eq!(fixture.bridge.set_len(number, 1).unwrap().len, 1);
    assert_eq!(fixture.object("a").unwrap(), "a");
    assert_eq!(fixture.bridge.set_len(number, 0).unwrap().len, 0);
    assert_eq!(fixture.object("a").unwrap(), "");
    fixture.bridge.open(number, true, false).unwrap();
    fixture.bridge.write(number, 0, b"empty before").unwrap();
    fixture.bridge.release(number);
    assert_eq!(fixture.object("a").unwrap(), "empty before");
}

#[test]
fn a_reader_goes_on_when_the_file_is_written_anew() {
    let fixture = fixture(&["a"]);
    let number = fixture.find("a").unwrap().number;
    fixture.bridge.open(number, false, false).unwrap();
    assert_eq!(fixture.read_open(number, 0, 9).unwrap(), "a");
    fixture.bridge.open(number, true, true).unwrap();
    fixture.bridge.write(number, 0, b"new").unwrap();
    fixture.bridge.release(number);
    assert_eq!(fixture.read_open(number, 0, 9).unwrap(), "new");
    fixture.bridge.release(number);
    assert_eq!(fixture.object("a").unwrap(), "new");
    let state = fixture.bridge.state();
    assert!(state.stages.is_empty());
}

#[test]
fn rsync_writes_under_a_name_of_chance_and_renames() {
    let fixture = fixture(&["dir/a.pack"]);
    for round in [b"first".as_slice(), b"second"] {
        fixture.write("dir/.a.pack.Xy12zQ", round).unwrap();
        assert!(!fixture.keys().iter().any(|key| key.contains("Xy12")));
        assert_eq!(fixture.names("dir"), [".a.pack.Xy12zQ", "a.pack"]);
        assert_eq!(fixture.bridge.left_behind().len(), 1);
        fixture.rename("dir/.a.pack.Xy12zQ", "dir/a.pack").unwrap();
        assert_eq!(fixture.object("dir/a.pack").unwrap(), round);
        assert_eq!(fixture.read("dir/a.pack").unwrap(), round);
        assert_eq!(fixture.names("dir"), ["a.pack"]);
        assert_eq!(fixture.bridge.left_behind().len(), 0);
    }
    fixture.write("dir/.b.Xy12zQ", b"x").unwrap();
    fixture.controls.inject(Op::Put, 1, Break::NoSpace);
    fixture.rename("dir/.b.Xy12zQ", "dir/b").unwrap_err();
    refused(fixture.find("dir/b"), Errno::ENOENT);
    fixture.remove("dir/.b.Xy12zQ").unwrap();
    assert_eq!(fixture.names("dir"), ["a.pack"]);
}

#[test]
fn a_name_that_is_no_key_is_refused_at_once() {
    let fixture = fixture(&[]);
    for name in ["README.md", ".bashrc", "a b", "a+b", "\u{e4}"] {
        refused(
            fixture.bridge.create_file(ROOT, name.as_bytes()),
            Errno::EINVAL,
        );
        refused(
            fixture.bridge.create_directory(ROOT, name.as_bytes()),
            Errno::EINVAL,
        );
    }
    refused(
        fixture.bridge.create_directory(ROOT, b".a.abcdef"),
        Errno::EINVAL,
    );
    refused(fixture.bridge.create_file(ROOT, b"\xff"), Errno::EINVAL);
    let deep = "a".repeat(200);
    fixture.make(&deep).unwrap();
    fixture.make(&format!("{deep}/{deep}")).unwrap();
    refused(
        fixture.make(&format!("{deep}/{deep}/{deep}")),
        Errno::ENAMETOOLONG,
    );
}

#[test]
fn directories_are_made_and_go_as_people_expect() {
    let fixture = fixture(&["a/b/c"]);
    refused(fixture.make("a"), Errno::EEXIST);
    fixture.make("d").unwrap();
    fixture.make("d/e").unwrap();
    assert_eq!(fixture.names(""), ["d/", "a/"]);
    assert_eq!(fixture.names("d"), ["e/"]);
    assert_eq!(fixture.keys(), ["a/b/c"], "the volume knows nothing of it");
    refused(
        fixture.bridge.remove_directory(ROOT, b"d"),
        Errno::ENOTEMPTY,
    );
    refused(
        fixture.bridge.remove_directory(ROOT, b"a"),
        Errno::ENOTEMPTY,
    );
    fixture.write("d/e/f", b"x").unwrap();
    assert_eq!(fixture.keys(), ["a/b/c", "d/e/f"]);

    // As rm -r does.
    fixture.remove("a/b/c").unwrap();
    let (parent, name) = fixture.place("a/b");
    fixture.bridge.remove_directory(parent, name).unwrap();
    refused(fixture.find("a/b"), Errno::ENOENT);
    fixture.bridge.remove_directory(ROOT, b"a").unwrap();
    refused(fixture.find("a"), Errno::ENOENT);
    assert_eq!(fixture.names(""), ["d/"]);
    refused(fixture.remove("d"), Errno::EISDIR);
}

#[test]
fn small_objects_are_renamed_large_ones_and_directories_are_for_mv_to_copy() {
    let fixture = fixture(&["a", "b", "d/x"]);
    fixture.rename("a", "d/a").unwrap();
    assert_eq!(fixture.keys(), ["b", "d/a", "d/x"]);
    assert_eq!(fixture.read("d/a").unwrap(), "a");
    fixture.rename("b", "d/a").unwrap();
    assert_eq!(fixture.object("d/a").unwrap(), "b");
    let exclusive = fixture
        .bridge
        .rename(fixture.place("d/x"), fixture.place("d/a"), true);
    refused(exclusive, Errno::EEXIST);
    fixture.put("big", &vec![1; (16 << 20) + 1]);
    refused(fixture.rename("big", "bigger"), Errno::EXDEV);
    refused(fixture.rename("d", "e"), Errno::EXDEV);
    refused(fixture.rename("d/x", "d"), Errno::EISDIR);
    refused(fixture.rename("d/x", "X"), Errno::EINVAL);
    fixture.make("empty").unwrap();
    fixture.rename("empty", "d/moved").unwrap();
    assert_eq!(fixture.names("d"), ["moved/", "a", "x"]);
    assert_eq!(fixture.rename("d/a", "d/a").ok(), Some(()));
}

#[test]
fn a_removed_file_does_not_come_back_when_it_is_closed() {
    let fixture = fixture(&["a"]);
    let number = fixture.find("a").unwrap().number;
    fixture.bridge.open(number, true, true).unwrap();
    fixture.bridge.write(number, 0, b"x").unwrap();
    fixture.remove("a").unwrap();
    fixture.write("a", b"another").unwrap();
    fixture.bridge.write(number, 1, b"y").unwrap();
    assert_eq!(fixture.read_open(number, 0, 9).unwrap(), "xy");
    fixture.bridge.flush(number).unwrap();
    fixture.bridge.release(number);
    assert_eq!(fixture.object("a").unwrap(), "another");
    assert_eq!(fixture.read("a").unwrap(), "another");
}

#[test]
fn an_object_that_somebody_replaced_has_another_number() {
    let fixture = fixture(&["a"]);
    let number = fixture.find("a").unwrap().number;
    fixture.put("a", b"longer");
    // What was seen is believed for a moment, until a listing shows better.
    fixture.names("");
    let node = fixture.find("a").unwrap();
    assert_ne!(node.number, number);
    assert_eq!(node.len, 6);
    fixture.bridge.open(node.number, false, false).unwrap();
    refused(fixture.bridge.open(number, false, false), Errno::ESTALE);
}

#[test]
fn a_volume_that_is_away_is_an_error_and_never_an_empty_directory() {
    let fixture = fixture(&["a/b"]);
    fixture.controls.go_down();
    assert!(matches!(fixture.find("a"), Err(Fault::Failed(_))));
    assert!(matches!(
        fixture.bridge.list(ROOT, None, 9),
        Err(Fault::Failed(_))
    ));
    assert!(matches!(
        fixture.bridge.create_file(ROOT, b"x"),
        Err(Fault::Failed(_))
    ));
    fixture.controls.go_up();
    assert_eq!(fixture.names("a"), ["b"]);
}

#[test]
fn read_only_means_it() {
    let fixture = with(&["a"], true);
    let number = fixture.find("a").unwrap().number;
    refused(fixture.bridge.open(number, true, true), Errno::EROFS);
    refused(fixture.bridge.create_file(ROOT, b"x"), Errno::EROFS);
    refused(fixture.bridge.create_directory(ROOT, b"x"), Errno::EROFS);
    refused(fixture.remove("a"), Errno::EROFS);
    refused(fixture.rename("a", "b"), Errno::EROFS);
    refused(fixture.bridge.set_len(number, 0), Errno::EROFS);
    assert_eq!(fixture.read("a").unwrap(), "a");
}
