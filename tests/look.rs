//! Looking inside as an operator does: accounts, items, their states, now and at every moment, with a daemon, without one,
//! and on the external volume alone.
//!
//! Those that mount need /dev/fuse and root; without them each says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "look/mounted.rs"]
mod mounted;
#[path = "look/program.rs"]
mod program;
#[path = "look/scale.rs"]
mod scale;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde_json::json;
use tidefs::types::{FileKind, Ino};
use tidefs::volume::tree::{OpenMode, RenameMode, SetAttr, Tree};

use common::{Place, close, find, make, mkdir, put, write};
use program::{Ended, column, run, run_os};

/// Writes into a file that is there.
fn rewrite(tree: &dyn Tree, path: &str, content: &[u8]) {
    let ino = find(tree, path).unwrap().ino;
    let mode = OpenMode {
        write: true,
        truncate: true,
        ..OpenMode::default()
    };
    tree.open(ino, mode).unwrap();
    write(tree, ino, 0, content);
    tree.flush(ino).unwrap();
    tree.release(ino, mode).unwrap();
}

fn ino(tree: &dyn Tree, path: &str) -> Ino {
    find(tree, path).unwrap().ino
}

/// Four moments of two accounts. Epoch 1 is called `first`; what is in the fourth is not closed yet.
struct Story {
    place: Place,
    volume: std::sync::Arc<tidefs::volume::Volume>,
}

impl Story {
    fn new() -> Story {
        let place = Place::new();
        let volume = place.open();
        let tree = &*volume;
        let alice = mkdir(tree, Ino::ROOT, "alice");
        put(tree, alice, "a.txt", b"one");
        put(tree, alice, "old.txt", b"moves");
        let docs = mkdir(tree, alice, "docs");
        let deep = mkdir(tree, docs, "deep");
        put(tree, deep, "x.bin", &common::noise(1, 70_000));
        let bob = mkdir(tree, Ino::ROOT, "bob");
        put(tree, bob, "b.txt", b"bob's");
        volume.close_epoch(Some("first".into())).unwrap();
        rewrite(tree, "alice/a.txt", b"second");
        let to = (docs, &b"new.txt"[..]);
        tree.rename((alice, b"old.txt"), to, RenameMode::NoReplace)
            .unwrap();
        volume.close_epoch(None).unwrap();
        let mode = SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        };
        tree.setattr(ino(tree, "alice/a.txt"), mode).unwrap();
        tree.unlink(deep, b"x.bin").unwrap();
        tree.rmdir(docs, b"deep").unwrap();
        volume.close_epoch(None).unwrap();
        put(tree, alice, ".a.txt.tmp", b"the third");
        let to = (alice, &b"a.txt"[..]);
        tree.rename((alice, b".a.txt.tmp"), to, RenameMode::Replace)
            .unwrap();
        put(tree, alice, "late.txt", b"late");
        volume.commit().unwrap();
        Story { place, volume }
    }

    fn run(&self, args: &[&str]) -> Ended {
        run(&self.place, args)
    }
}

#[test]
fn each_state_of_an_item_is_told_and_its_bytes_come_back() {
    let story = Story::new();
    let states = story
        .run(&["--json", "item", "history", "alice/a.txt"])
        .rows();
    assert_eq!(
        column(&states, "event"),
        ["created", "content", "attributes", "replaced"]
    );
    assert_eq!(column(&states, "epoch"), ["1", "2", "3", "4"]);
    assert_eq!(column(&states, "size"), ["3", "6", "6", "9"]);
    assert_eq!(states[2]["mode"], "0600");
    assert_eq!(states[0]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(states[1]["sha256"], states[2]["sha256"]);
    assert_eq!(
        states[3]["time"],
        json!(null),
        "its epoch is not closed yet"
    );
    for (state, content) in [
        ("1", "one"),
        ("2", "second"),
        ("3", "second"),
        ("4", "the third"),
    ] {
        let cat = story.run(&["item", "cat", "--state", state, "alice/a.txt"]);
        assert_eq!(cat.ok(), content);
    }
    let cat = |at| story.run(&["item", "cat", "--at", at, "alice/a.txt"]).ok();
    assert_eq!(
        (cat("first"), cat("2"), cat("3")),
        ("one".into(), "second".into(), "second".into())
    );
    assert_eq!(story.run(&["item", "cat", "alice/a.txt"]).ok(), "the third");
    let words = story.run(&["item", "history", "alice/a.txt"]).ok();
    assert!(
        words.contains("not closed yet") && words.contains("replaced"),
        "{words}"
    );
    let before = story.run(&["--json", "item", "history", "--at", "2", "alice/a.txt"]);
    assert_eq!(before.rows().len(), 2);
    story
        .run(&["item", "cat", "--state", "9", "alice/a.txt"])
        .says(1, "no state 9");
    story
        .run(&["item", "cat", "alice/docs"])
        .says(1, "a directory");
}

#[test]
fn a_renamed_item_says_where_from_and_where_to() {
    let story = Story::new();
    let old = story
        .run(&["--json", "item", "history", "alice/old.txt"])
        .rows();
    assert_eq!(column(&old, "event"), ["created", "moved"]);
    assert_eq!(old[1]["renamed_to"], "alice/docs/new.txt");
    let new = story
        .run(&["--json", "item", "history", "alice/docs/new.txt"])
        .rows();
    assert_eq!(column(&new, "event"), ["renamed"]);
    assert_eq!(new[0]["renamed_from"], "alice/old.txt");
    assert_eq!(new[0]["item"], old[0]["item"]);
    assert_eq!(
        story
            .run(&["item", "cat", "--state", "1", "alice/old.txt"])
            .ok(),
        "moves"
    );
    story
        .run(&["item", "cat", "--state", "2", "alice/old.txt"])
        .says(1, "was not there");
}

#[test]
fn a_hard_link_is_told_from_a_rename_and_a_name_removed_from_a_deletion() {
    let story = Story::new();
    let tree = &*story.volume;
    let bob = ino(tree, "bob");
    tree.link(ino(tree, "bob/b.txt"), bob, b"second").unwrap();
    story.volume.close_epoch(None).unwrap();
    tree.unlink(bob, b"second").unwrap();
    story.volume.close_epoch(None).unwrap();
    let states = story
        .run(&["--json", "item", "history", "bob/second"])
        .rows();
    assert_eq!(column(&states, "event"), ["linked", "unlinked"]);
    assert_eq!(states[0]["linked_from"], "bob/b.txt");
    assert_eq!(states[1]["still_at"], "bob/b.txt");
    let deleted = story.run(&["--json", "find", "--deleted", "bob"]).rows();
    assert!(deleted.is_empty(), "{deleted:?}");
}

#[test]
fn what_was_deleted_is_found_as_it_was_last_and_what_moved_is_not() {
    let story = Story::new();
    let deleted = story.run(&["--json", "find", "--deleted"]).rows();
    assert_eq!(
        column(&deleted, "path"),
        ["alice/docs/deep", "alice/docs/deep/x.bin"]
    );
    assert_eq!(deleted[1]["size"], 70_000);
    assert_eq!(deleted[1]["deleted"]["epoch"], 3);
    assert!(deleted[1]["deleted"]["time"].is_i64());
    let states = story
        .run(&["--json", "item", "history", "alice/docs/deep/x.bin"])
        .rows();
    assert_eq!(column(&states, "event"), ["created", "deleted"]);
    let cat = story.run(&["item", "cat", "--state", "1", "alice/docs/deep/x.bin"]);
    assert_eq!(cat.code, 0, "{cat:?}");
    assert_eq!(cat.bytes, common::noise(1, 70_000));
    story
        .run(&["item", "cat", "alice/docs/deep/x.bin"])
        .says(1, "not there any more since epoch 3");
    story.run(&["find", "alice/docs/deep"]).says(1, "--deleted");
    let below = story
        .run(&["--json", "find", "--deleted", "alice/docs/deep"])
        .rows();
    assert_eq!(column(&below, "path"), ["alice/docs/deep/x.bin"]);
    let then = story
        .run(&["--json", "find", "--deleted", "--at", "2"])
        .rows();
    assert!(then.is_empty(), "nothing was deleted by then: {then:?}");
    let show = story
        .run(&["--json", "item", "show", "alice/docs/deep/x.bin"])
        .rows();
    assert_eq!(show[0]["deleted"]["epoch"], 3);
    // A directory that was deleted and made anew: what was in the first one is found beside what is in the second.
    let tree = &*story.volume;
    let docs = ino(tree, "alice/docs");
    let deep = mkdir(tree, docs, "deep");
    put(tree, deep, "y.bin", b"new");
    story.volume.commit().unwrap();
    let deleted = story.run(&["--json", "find", "--deleted", "alice"]).rows();
    assert_eq!(
        column(&deleted, "path"),
        ["alice/docs/deep", "alice/docs/deep/x.bin"]
    );
    let present = story.run(&["--json", "find", "alice/docs/deep"]).rows();
    assert_eq!(column(&present, "path"), ["alice/docs/deep/y.bin"]);
}

#[test]
fn an_item_is_found_by_name_words_kind_size_and_time() {
    let story = Story::new();
    let paths = |args: &[&str]| {
        let mut all = vec!["--json", "find"];
        all.extend(args);
        column(&story.run(&all).rows(), "path")
    };
    assert_eq!(
        paths(&["alice"]),
        [
            "alice/a.txt",
            "alice/docs",
            "alice/docs/new.txt",
            "alice/late.txt"
        ]
    );
    assert_eq!(
        paths(&["--name", "*.txt", "--type", "f", "bob"]),
        ["bob/b.txt"]
    );
    assert_eq!(paths(&["--type", "d"]), ["alice", "alice/docs", "bob"]);
    assert_eq!(paths(&["--grep", "TXT a.", "alice"]), ["alice/a.txt"]);
    assert_eq!(paths(&["--size", "+8", "alice"]), ["alice/a.txt"]);
    assert_eq!(paths(&["--size", "-5", "alice"]), ["alice/late.txt"]);
    assert_eq!(
        paths(&["--size", "+60K", "--at", "first"]),
        ["alice/docs/deep/x.bin"]
    );
    assert!(paths(&["--older", "2 days ago"]).is_empty());
    assert_eq!(
        paths(&["--newer", "2 days ago", "--type", "f", "bob"]),
        ["bob/b.txt"]
    );
    assert!(
        paths(&["--newer", "3", "--type", "f", "bob"]).is_empty(),
        "since epoch 3"
    );
    assert_eq!(
        paths(&["--at", "first", "--name", "old*"]),
        ["alice/old.txt"]
    );
    let accounts = story.run(&["--json", "account", "list"]).rows();
    let uuid = accounts[1]["uuid"].as_str().unwrap();
    assert_eq!(paths(&[&format!("{uuid}/b.txt")]), ["bob/b.txt"]);
    assert_eq!(paths(&[uuid]), ["bob/b.txt"], "an account by its UUID");
    story.run(&["find", "carol"]).says(1, "there is no 'carol'");
    story.run(&["find", "--size", "big"]).says(2, "size");
}

#[test]
fn a_moment_before_the_first_epoch_says_which_is_the_first() {
    let story = Story::new();
    for command in [
        &["find"][..],
        &["account", "list"],
        &["item", "history", "alice/a.txt"],
        &["item", "cat", "alice/a.txt"],
    ] {
        let mut args = command.to_vec();
        args.extend(["--at", "1999-12-31 23:59"]);
        story.run(&args).says(1, "the first epoch is 1, closed at");
    }
    story
        .run(&["find", "--at", "some day"])
        .says(2, "neither a snapshot's name");
}

#[test]
fn the_external_volume_alone_shows_the_same() {
    let Story { place, volume } = Story::new();
    volume.set_store(Some(place.external())).unwrap();
    close(volume);
    let external = format!("dir:{}", place.external().display());
    for command in [
        &["--json", "find"][..],
        &["--json", "find", "--deleted"],
        &["--json", "find", "--at", "first"],
        &["--json", "item", "history", "alice/a.txt"],
        &["--json", "item", "show", "alice/a.txt"],
        &["--json", "account", "list"],
        &["--json", "account", "show", "bob"],
        &["item", "cat", "--at", "2", "alice/a.txt"],
    ] {
        let here = run(&place, command).ok();
        assert!(!here.is_empty(), "{command:?}");
        let mut args = command.to_vec();
        args.extend(["--external", &external]);
        let elsewhere = tempfile::tempdir().unwrap();
        let away = program::run_at(&elsewhere.path().join("none"), &args).ok();
        assert_eq!(away, here, "{command:?}");
    }
    let nowhere = ["find", "--external", "dir:/no/where"];
    run(&place, &nowhere).says(5, "/no/where");
}

#[test]
fn a_name_that_is_no_text_is_safe_at_a_terminal_and_exact_in_a_document() {
    let story = Story::new();
    let tree = &*story.volume;
    let alice = ino(tree, "alice");
    let wild = b"caf\xe9\x1b[2J\n";
    let node = tidefs::volume::tree::NewNode {
        kind: FileKind::Symlink,
        mode: 0o777,
        rdev: 0,
        target: b"\x1b[31m\xff",
    };
    tree.create(alice, wild, node, common::ROOT_USER).unwrap();
    story.volume.commit().unwrap();
    let path = [&b"alice/"[..], wild].concat();
    let path = OsStr::from_bytes(&path);
    let args = |words: &[&str]| {
        let mut args: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        args.push(path);
        run_os(&story.place, &args)
    };
    let found = story.run(&["find", "--type", "l"]).ok();
    let history = args(&["item", "history"]).ok();
    let show = args(&["item", "show"]).ok();
    let refused = args(&["item", "cat"]);
    for text in [&found, &history, &show, &refused.err] {
        let is_safe = text
            .chars()
            .all(|letter| letter == '\n' || !letter.is_control());
        assert!(is_safe, "{text:?}");
    }
    assert!(found.contains(r"alice/caf\xe9\x1b[2J\x0a"), "{found}");
    let row = &story.run(&["--json", "find", "--type", "l"]).rows()[0];
    assert_eq!(row["path_bytes"], "616c6963652f636166e91b5b324a0a");
    let row = &args(&["--json", "item", "show"]).rows()[0];
    assert_eq!(row["target_bytes"], "1b5b33316dff");
    let plain = &story.run(&["--json", "find", "bob"]).rows()[0];
    assert!(plain.get("path_bytes").is_none(), "{plain}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_a_find_quietly() {
    let place = Place::new();
    let volume = place.open();
    let many = mkdir(&*volume, Ino::ROOT, "many");
    for n in 0..20_000 {
        make(
            &*volume,
            many,
            &format!("a-rather-long-name-of-a-file-{n:08}"),
            FileKind::File,
        );
    }
    volume.commit().unwrap();
    for args in [&["find"][..], &["--json", "find"]] {
        let (line, ended) = program::first_line(&place, args);
        assert!(line.contains("many"), "{line}");
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{args:?}");
    }
    let all = run(&place, &["find", "--type", "f"]).ok();
    assert_eq!(all.lines().count(), 20_000);
    close(volume);
}

#[test]
fn the_accounts_are_listed_with_what_is_in_them() {
    let story = Story::new();
    let rows = story.run(&["--json", "account", "list"]).rows();
    assert_eq!(column(&rows, "account"), ["alice", "bob"]);
    assert_eq!(column(&rows, "state"), ["live", "live"]);
    assert_eq!(column(&rows, "items"), ["4", "1"]);
    assert_eq!(column(&rows, "bytes"), ["18", "5"]);
    assert_eq!(column(&rows, "fed_by"), ["mount", "mount"]);
    assert_eq!(rows[1]["last_state"]["epoch"], 1);
    assert_eq!(rows[0]["last_state"]["epoch"], 4);
    assert_eq!(rows[0]["last_state"]["time"], json!(null));
    let then = story
        .run(&["--json", "account", "list", "--at", "first"])
        .rows();
    assert_eq!(column(&then, "bytes"), ["70008", "5"]);
    let quick = story
        .run(&["--json", "account", "list", "--no-count"])
        .rows();
    assert!(quick[0].get("items").is_none());
    let show = &story.run(&["--json", "account", "show", "alice"]).rows()[0];
    assert_eq!((&show["files"], &show["dirs"]), (&json!(3), &json!(1)));
    assert_eq!(show["first_state"]["epoch"], 1);
    let text = story.run(&["account", "show", "bob"]).ok();
    assert!(text.contains("1 file,") && text.contains("live"), "{text}");
    story
        .run(&["account", "show", "carol"])
        .says(1, "no account 'carol'");
}

#[test]
fn an_account_that_is_deleted_is_in_every_moment_before() {
    let Story { place, volume } = Story::new();
    close(volume);
    run(&place, &["account", "delete", "alice"]).says(2, "--yes");
    let dry = run(&place, &["account", "delete", "--dry-run", "alice"]).ok();
    assert!(
        dry.contains("Would delete") && dry.contains("4 items"),
        "{dry}"
    );
    assert_eq!(run(&place, &["--json", "account", "list"]).rows().len(), 2);
    let uuid = run(&place, &["--json", "account", "show", "alice"]).rows()[0]["uuid"].clone();
    run(&place, &["account", "delete", "--yes", "alice"]).ok();
    let rows = run(&place, &["--json", "account", "list"]).rows();
    assert_eq!(column(&rows, "state"), ["deleted", "live"]);
    assert_eq!(rows[0]["uuid"], uuid);
    assert!(rows[0]["deleted_at"].is_i64() && rows[0]["deleted"]["epoch"].is_u64());
    assert_eq!(rows[0]["items"], 4);
    let paths = |args: &[&str]| column(&run(&place, args).rows(), "path");
    assert_eq!(paths(&["--json", "find"]), ["bob", "bob/b.txt"]);
    let gone = paths(&["--json", "find", "--deleted"]);
    assert!(gone.contains(&"alice".into()) && gone.contains(&"alice/docs/new.txt".into()));
    assert!(gone.contains(&"alice/docs/deep/x.bin".into()), "{gone:?}");
    assert!(
        !gone.contains(&"alice/old.txt".into()),
        "it was renamed: {gone:?}"
    );
    let cat = run(&place, &["item", "cat", "--at", "first", "alice/a.txt"]).ok();
    assert_eq!(cat, "one");
    let events = run(&place, &["--json", "item", "history", "alice/a.txt"]).rows();
    assert_eq!(column(&events, "event").last().unwrap(), "deleted");
    run(&place, &["account", "delete", "--yes", "alice"]).says(1, "deleted already");
    run(&place, &["account", "disable", "alice"]).says(1, "deleted already");
    // The name is free again, for another account; the old one answers to its UUID.
    let volume = place.open();
    put(&*volume, mkdir(&*volume, Ino::ROOT, "alice"), "new", b"new");
    close(volume);
    assert_eq!(paths(&["--json", "find", "alice"]), ["alice/new"]);
    let old = run(
        &place,
        &["--json", "account", "show", uuid.as_str().unwrap()],
    )
    .rows();
    assert_eq!(old[0]["state"], "deleted");
    run(&place, &["check"]).ok();
}

#[test]
fn a_scan_passes_over_a_disabled_account_and_says_so() {
    let place = Place::new();
    let source = place.dir.path().join("source");
    let change = |account: &str, text: &str| {
        let dir = source.join(account);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("a"), text).unwrap();
    };
    change("alice", "one");
    change("bob", "one");
    run(&place, &["source", "add", source.to_str().unwrap()]).ok();
    run(&place, &["scan"]).ok();
    let rows = run(&place, &["--json", "account", "list"]).rows();
    assert_eq!(column(&rows, "fed_by"), ["source", "source"]);
    run(&place, &["account", "delete", "--yes", "alice"]).says(1, "remove the source first");
    run(&place, &["account", "disable", "alice"]).ok();
    change("alice", "second");
    change("bob", "second");
    let said = run(&place, &["scan"]).ok();
    assert!(said.contains("disabled account: alice"), "{said}");
    assert_eq!(run(&place, &["item", "cat", "alice/a"]).ok(), "one");
    assert_eq!(run(&place, &["item", "cat", "bob/a"]).ok(), "second");
    std::fs::remove_dir_all(source.join("alice")).unwrap();
    run(&place, &["scan", "--accept-deletions"]).ok();
    assert_eq!(run(&place, &["item", "cat", "alice/a"]).ok(), "one");
    change("alice", "third");
    run(&place, &["account", "enable", "alice"]).ok();
    let said = run(&place, &["scan"]).ok();
    assert!(!said.contains("disabled"), "{said}");
    assert_eq!(run(&place, &["item", "cat", "alice/a"]).ok(), "third");
}
