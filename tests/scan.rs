//! SmartScan: what a scan takes in, what it does not read again, what it refuses to believe.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

#[path = "common/mod.rs"]
mod common;
#[path = "scan/guards.rs"]
mod guards;
#[path = "scan/trees.rs"]
mod trees;
#[path = "scan/world.rs"]
mod world;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};

use tidefs::scan::report::Counts;

use common::noise;
use world::{World, settle};

/// What a scan did, without what it saw.
fn did(counts: &Counts) -> [u64; 5] {
    [
        counts.created,
        counts.changed,
        counts.moved,
        counts.attributes,
        counts.deleted,
    ]
}

#[test]
fn a_first_scan_takes_everything_and_a_second_reads_nothing() {
    let world = World::new();
    world.put("alice/a", b"first");
    world.put("alice/deep/er/b", &noise(1, 3 << 20));
    world.put("bob/c", b"");
    symlink("a", world.path("alice/link")).unwrap();
    fs::set_permissions(world.path("alice/a"), fs::Permissions::from_mode(0o4750)).unwrap();
    settle();
    let report = world.scan();
    assert_eq!(report.counts.created, 6, "{report:?}");
    assert_eq!(report.accounts_seen, 2);
    world.assert_same();
    let again = world.scan();
    assert_eq!(did(&again.counts), [0; 5], "{again:?}");
    assert_eq!((again.counts.read_files, again.counts.items), (0, 6));
    assert!(
        again.accounts.is_empty(),
        "an account that did not change is not told of"
    );
    // What is the same must not make a new epoch, nor anything to be sent.
    let before = world.volume.close_epoch(None).unwrap();
    world.scan();
    let after = world.volume.close_epoch(None).unwrap();
    assert!(
        after.0 - before.0 <= 1,
        "only the source's own record changed: {before} {after}"
    );
    let world = world.reopened();
    assert_eq!(world.scan().counts.read_files, 0);
    world.assert_same();
}

#[test]
fn only_what_changed_is_read() {
    let world = World::new();
    for n in 0..40 {
        world.put(&format!("alice/f{n}"), format!("content {n}").as_bytes());
    }
    settle();
    world.scan();
    world.put("alice/f7", b"changed 7 ..");
    world.put("alice/new", b"new");
    fs::remove_file(world.path("alice/f9")).unwrap();
    fs::set_permissions(world.path("alice/f11"), fs::Permissions::from_mode(0o600)).unwrap();
    settle();
    let report = world.scan();
    assert_eq!(report.counts.read_files, 2, "{report:?}");
    // The directory's times are an attribute too.
    assert_eq!(did(&report.counts), [1, 1, 0, 2, 1]);
    world.assert_same();
    assert_eq!(report.accounts.len(), 1);
}

#[test]
fn a_file_of_the_same_size_whose_time_was_put_back_is_found_by_its_change_time() {
    let world = World::new();
    world.put("alice/f", b"one");
    settle();
    world.scan();
    let before = fs::metadata(world.path("alice/f"))
        .unwrap()
        .modified()
        .unwrap();
    world.put("alice/f", b"two");
    let file = File::options()
        .write(true)
        .open(world.path("alice/f"))
        .unwrap();
    file.set_modified(before).unwrap();
    settle();
    world.scan();
    assert_eq!(world.content("alice/f"), b"two");
}

#[test]
fn what_was_written_a_moment_before_it_was_read_is_read_again() {
    let world = World::new();
    let is_settled = || {
        let ino = world.find("alice/f").unwrap().ino;
        let inode = world.volume.inode(ino).unwrap();
        inode.origin.unwrap().is_settled
    };
    world.put("alice/f", b"0");
    world.scan();
    // On a busy machine a scan may come too late for it.
    let was_quick = (1..50_u8).any(|n| {
        world.put("alice/f", &[n]);
        world.scan();
        !is_settled()
    });
    assert!(was_quick, "size and times are trusted at once");
    settle();
    assert_eq!(world.scan().counts.read_files, 1);
    assert!(is_settled());
    assert_eq!(world.scan().counts.read_files, 0);
}

#[test]
fn renames_and_links_are_recognised_without_reading() {
    let world = World::new();
    world.put("alice/new/1", &noise(1, 100_000));
    world.put("alice/new/2", &noise(2, 100_000));
    world.put("alice/cur/3:2,", &noise(3, 100_000));
    world.put("alice/log", b"newest");
    world.put("alice/log.1", b"older");
    world.put("alice/dir/sub/x", b"x");
    settle();
    world.scan();
    let item = world.find("alice/new/1").unwrap().ino;
    let path = |name: &str| world.path(name);
    // A message is seen, another is flagged, a directory is renamed, a log rotated, a link made.
    fs::rename(path("alice/new/1"), path("alice/cur/1:2,S")).unwrap();
    fs::rename(path("alice/cur/3:2,"), path("alice/cur/3:2,F")).unwrap();
    fs::rename(path("alice/dir"), path("alice/a-dir")).unwrap();
    fs::rename(path("alice/log.1"), path("alice/log.2")).unwrap();
    fs::rename(path("alice/log"), path("alice/log.1")).unwrap();
    fs::hard_link(path("alice/new/2"), path("alice/cur/2")).unwrap();
    world.put("alice/log", b"this is read");
    settle();
    let report = world.scan();
    world.assert_same();
    assert_eq!(report.counts.read_files, 1, "{report:?}");
    assert_eq!(report.counts.moved, 6);
    assert_eq!(
        world.find("alice/cur/1:2,S").unwrap().ino,
        item,
        "the item is the same"
    );
    assert_eq!(world.find("alice/new/2").unwrap().nlink, 2);
    fs::remove_file(path("alice/new/2")).unwrap();
    settle();
    world.scan();
    world.assert_same();
    assert_eq!(did(&world.scan().counts), [0; 5]);
}

#[test]
fn files_that_change_places_keep_their_content() {
    let world = World::new();
    world.put("alice/a", b"was a");
    world.put("alice/b", b"was b");
    world.put("alice/d/x", b"in d");
    world.put("alice/e/x", b"in e");
    settle();
    world.scan();
    let path = |name: &str| world.path(name);
    for (a, b) in [("alice/a", "alice/b"), ("alice/d", "alice/e")] {
        fs::rename(path(a), path("alice/t")).unwrap();
        fs::rename(path(b), path(a)).unwrap();
        fs::rename(path("alice/t"), path(b)).unwrap();
    }
    settle();
    let report = world.scan();
    world.assert_same();
    assert_eq!(report.counts.read_files, 0, "{report:?}");
}

#[test]
fn a_file_takes_the_place_of_a_directory_and_a_directory_that_of_a_file() {
    let world = World::new();
    world.put("alice/x/in/side", b"1");
    world.put("alice/y", b"2");
    settle();
    world.scan();
    fs::remove_dir_all(world.path("alice/x")).unwrap();
    fs::remove_file(world.path("alice/y")).unwrap();
    world.put("alice/x", b"a file now");
    world.put("alice/y/in/side", b"a directory now");
    settle();
    world.scan();
    world.assert_same();
}

#[test]
fn deletions_are_states_and_the_past_stays() {
    let world = World::new();
    world.put("alice/kept", b"k");
    world.put("alice/gone/deep/f", b"was here");
    settle();
    world.scan();
    let before = world.volume.close_epoch(None).unwrap();
    fs::remove_dir_all(world.path("alice/gone")).unwrap();
    settle();
    let report = world.scan();
    assert_eq!(report.counts.deleted, 3);
    world.assert_same();
    let then = world.volume.view_tree(before);
    assert_eq!(
        common::content(&then, "alice/gone/deep/f").unwrap(),
        b"was here"
    );
}

#[test]
fn a_deep_scan_finds_what_size_and_times_do_not_tell() {
    let world = World::new();
    world.put("alice/f", b"true");
    world.put("alice/g", b"same");
    settle();
    world.scan();
    assert_eq!(world.deep().missed.count, 0);
    // As if the content had changed behind the file system's back.
    let target = world.find("alice/f").unwrap().ino;
    let other = world
        .volume
        .inode(world.find("alice/g").unwrap().ino)
        .unwrap();
    world
        .volume
        .feed(|feed| feed.write_range(target, 0..4, &other.extents))
        .unwrap();
    let (_, inode) = (target, world.volume.inode(target).unwrap());
    let origin = tidefs::format::inode::Origin {
        is_settled: true,
        ..inode.origin.unwrap()
    };
    let item = tidefs::volume::feed::Item {
        kind: inode.kind,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        rdev: 0,
        size: inode.size,
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
        target: Vec::new(),
        origin,
        xattrs: None,
        content: None,
    };
    world
        .volume
        .feed(|feed| feed.change(target, &item))
        .unwrap();
    assert_eq!(world.content("alice/f"), b"same");
    assert_eq!(
        world.scan().counts.read_files,
        0,
        "the fast path cannot see it"
    );
    let report = world.deep();
    assert_eq!(report.missed.named, ["alice/f"], "{report:?}");
    assert_eq!(world.content("alice/f"), b"true");
    assert_eq!(world.deep().missed.count, 0);
    assert!(world.registered().deep_since.is_none());
}
