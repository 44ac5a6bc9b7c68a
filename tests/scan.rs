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
#[path = "scan/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use tidefs::error::Error;
use tidefs::scan::report::Counts;
use tidefs::scan::run::{Ask, Dirty, Scope};
use tidefs::scan::source::{self, AccountRule};
use tidefs::types::{FileKind, Ino};
use tidefs::volume::tree::{NewNode, OpenMode, SetAttr, Tree};

use common::{ROOT_USER, noise};
use world::World;

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
    world.settle();
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
    world.settle();
    world.scan();
    world.put("alice/f7", b"changed 7 ..");
    world.put("alice/new", b"new");
    fs::remove_file(world.path("alice/f9")).unwrap();
    fs::set_permissions(world.path("alice/f11"), fs::Permissions::from_mode(0o600)).unwrap();
    world.settle();
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
    world.settle();
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
    world.settle();
    world.scan();
    assert_eq!(world.content("alice/f"), b"two");
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
    world.settle();
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
    world.settle();
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
    world.settle();
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
    world.settle();
    world.scan();
    let path = |name: &str| world.path(name);
    for (a, b) in [("alice/a", "alice/b"), ("alice/d", "alice/e")] {
        fs::rename(path(a), path("alice/t")).unwrap();
        fs::rename(path(b), path(a)).unwrap();
        fs::rename(path("alice/t"), path(b)).unwrap();
    }
    world.settle();
    let report = world.scan();
    world.assert_same();
    assert_eq!(report.counts.read_files, 0, "{report:?}");
}

#[test]
fn a_file_takes_the_place_of_a_directory_and_a_directory_that_of_a_file() {
    let world = World::new();
    world.put("alice/x/in/side", b"1");
    world.put("alice/y", b"2");
    world.settle();
    world.scan();
    fs::remove_dir_all(world.path("alice/x")).unwrap();
    fs::remove_file(world.path("alice/y")).unwrap();
    world.put("alice/x", b"a file now");
    world.put("alice/y/in/side", b"a directory now");
    world.settle();
    world.scan();
    world.assert_same();
}

#[test]
fn deletions_are_states_and_the_past_stays() {
    let world = World::new();
    world.put("alice/kept", b"k");
    world.put("alice/gone/deep/f", b"was here");
    world.settle();
    world.scan();
    let before = world.volume.close_epoch(None).unwrap();
    fs::remove_dir_all(world.path("alice/gone")).unwrap();
    world.settle();
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
fn an_account_is_whole_as_of_an_epoch_while_a_scan_changes_it() {
    let world = World::new();
    for n in 0..300 {
        world.put(&format!("alice/f{n}"), &noise(n, 40_000));
    }
    world.settle();
    world.scan();
    let whole = world.volume.close_epoch(None).unwrap();
    let fed = || {
        let accounts = world.volume.accounts().unwrap();
        accounts.into_iter().next().unwrap().record.fed.unwrap()
    };
    assert_eq!(fed().whole_at, None);
    for n in 0..300 {
        world.put(&format!("alice/f{n}"), &noise(1000 + n, 40_000));
    }
    world.settle();
    // Stopped once it has begun to change the account.
    let stop = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while fed().whole_at.is_none() {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        let slow = Ask {
            read_rate: Some(4 << 20),
            ..Ask::default()
        };
        world.ask_until(&slow, &stop).unwrap()
    });
    assert!(report.stopped);
    assert_eq!(fed().whole_at, Some(whole));
    let rest = world.scan();
    assert_eq!(fed().whole_at, None);
    let (before, after) = (report.counts.read_files, rest.counts.read_files);
    assert_eq!(
        before + after,
        300,
        "what was taken in before the stop is not read again"
    );
    world.assert_same();
}

#[test]
fn invariant_12_a_source_that_vanished_or_was_emptied_is_no_mass_deletion() {
    let world = World::new();
    for n in 0..150 {
        world.put(&format!("alice/f{n}"), b"x");
    }
    world.put("bob/g", b"y");
    world.settle();
    world.scan();
    let whole = |world: &World| {
        assert!(world.find("alice/f149").is_ok() && world.find("bob/g").is_ok());
    };
    // Not there.
    let aside = world.place.dir.path().join("aside");
    fs::rename(&world.source, &aside).unwrap();
    let refused = world.ask(&Ask::default()).unwrap_err();
    assert!(refused.to_string().contains("is not there"), "{refused}");
    // An empty mount point in its place.
    fs::create_dir(&world.source).unwrap();
    let refused = world.ask(&Ask::default()).unwrap_err();
    assert!(
        refused.to_string().contains("is not what it was"),
        "{refused}"
    );
    whole(&world);
    fs::remove_dir(&world.source).unwrap();
    fs::rename(&aside, &world.source).unwrap();
    // An account that is empty, and one less.
    let emptied = world.place.dir.path().join("emptied");
    fs::rename(world.path("alice"), &emptied).unwrap();
    fs::create_dir(world.path("alice")).unwrap();
    world.put("bob/h", b"z");
    let report = world.scan();
    assert_eq!(report.refused.len(), 1, "{report:?}");
    assert!(report.refused[0].contains("150 of 150"), "{report:?}");
    whole(&world);
    assert!(world.find("bob/h").is_ok(), "the others go on");
    fs::remove_dir(world.path("alice")).unwrap();
    let report = world.scan();
    assert_eq!(report.refused.len(), 1, "{report:?}");
    whole(&world);
    // All of them.
    let bob = world.place.dir.path().join("bob");
    fs::rename(world.path("bob"), &bob).unwrap();
    let report = world.scan();
    assert!(
        report.refused[0].contains("none of its accounts"),
        "{report:?}"
    );
    whole(&world);
    // Meant to be.
    let report = world.accepting();
    assert!(
        report.refused.is_empty() && report.counts.deleted > 150,
        "{report:?}"
    );
    world.assert_same();
}

#[test]
fn a_few_deletions_and_a_restructured_account_need_no_word() {
    let world = World::new();
    for n in 0..250 {
        world.put(&format!("alice/in/f{n}"), &noise(n, 300));
    }
    world.settle();
    world.scan();
    fs::create_dir(world.path("alice/archive")).unwrap();
    for n in 0..250 {
        let (from, to) = (format!("alice/in/f{n}"), format!("alice/archive/g{n}"));
        fs::rename(world.path(&from), world.path(&to)).unwrap();
    }
    world.settle();
    let report = world.scan();
    assert!(report.refused.is_empty(), "{report:?}");
    assert_eq!((report.counts.moved, report.counts.read_files), (250, 0));
    world.assert_same();
}

#[test]
fn an_account_keeps_its_identity_when_its_directory_is_renamed_or_made_again() {
    let world = World::new();
    world.put("alice/f", b"hers");
    world.put("carol/f", b"too");
    world.settle();
    world.scan();
    let uuid = |name: &str| {
        let accounts = world.volume.accounts().unwrap();
        let entry = accounts
            .into_iter()
            .find(|entry| entry.name.as_deref() == Some(name.as_bytes()));
        entry.map(|entry| entry.record.uuid)
    };
    let first = uuid("alice").unwrap();
    fs::rename(world.path("alice"), world.path("alicia")).unwrap();
    world.settle();
    let report = world.scan();
    world.assert_same();
    assert_eq!(report.counts.read_files, 0);
    if fs::metadata(world.path("alicia"))
        .unwrap()
        .created()
        .is_ok()
    {
        assert_eq!(uuid("alicia").as_ref(), Some(&first));
    }
    let second = uuid("alicia").unwrap();
    fs::remove_dir_all(world.path("alicia")).unwrap();
    let report = world.scan();
    assert_eq!(report.accounts[0].event, "deleted");
    world.assert_same();
    world.put("alicia/new", b"back");
    world.settle();
    let report = world.scan();
    assert_eq!(report.accounts[0].event, "revived");
    assert_eq!(uuid("alicia"), Some(second));
    world.assert_same();
}

#[test]
fn what_cannot_be_read_is_told_stays_as_it_was_and_stops_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let world = World::new();
    world.put("alice/good", b"1");
    world.put("alice/zz/bad", b"was readable");
    world.settle();
    world.scan();
    let Some(_denied) = Unreadable::new(&world.path("alice/zz")) else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    world.put("alice/good", b"changed");
    world.settle();
    let report = world.scan();
    assert_eq!(report.errors.count, 1, "{report:?}");
    assert!(
        report.errors.named[0].starts_with("alice/zz/bad: "),
        "{report:?}"
    );
    assert_eq!(world.content("alice/good"), b"changed");
    let ask = Ask {
        max_read_errors: Some(0),
        ..Ask::default()
    };
    let refused = world.ask(&ask).unwrap_err();
    assert!(refused.to_string().contains("alice/zz/bad"), "{refused}");
}

/// A file that looks well and cannot be read: the speed of a loopback, bound over it.
struct Unreadable(std::path::PathBuf);

impl Unreadable {
    fn new(dir: &Path) -> Option<Unreadable> {
        use nix::mount::{MsFlags, mount};
        const FILE: &str = "/sys/class/net/lo/speed";
        let target = dir.join("bad");
        let none = None::<&str>;
        fs::read(FILE).is_err().then_some(())?;
        mount(Some(FILE), &target, none, MsFlags::MS_BIND, none).ok()?;
        Some(Unreadable(target))
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        nix::mount::umount(&self.0).unwrap();
    }
}

#[test]
fn a_file_that_never_rests_is_taken_marked_and_read_again() {
    let world = World::new();
    // Long enough that the writer gets its turns while it is read, also on a busy machine.
    world.put("alice/busy", &noise(1, 40 << 20));
    let stop = AtomicBool::new(false);
    let path = world.path("alice/busy");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::os::unix::fs::FileExt;
            let file = File::options().write(true).open(&path).unwrap();
            let mut n = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                file.write_all_at(&n.to_le_bytes(), 4096).unwrap();
            }
        });
        let report = world.scan();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(report.changing.named, ["alice/busy"], "{report:?}");
        assert!(
            report.counts.read_bytes >= 120 << 20,
            "it was tried three times"
        );
    });
    world.settle();
    let report = world.scan();
    assert_eq!(report.counts.read_files, 1);
    assert!(report.changing.named.is_empty());
    world.assert_same();
    assert_eq!(world.scan().counts.read_files, 0);
}

#[test]
fn a_deep_scan_finds_what_size_and_times_do_not_tell() {
    let world = World::new();
    world.put("alice/f", b"true");
    world.put("alice/g", b"same");
    world.settle();
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

#[test]
fn what_a_source_feeds_is_read_only_for_everybody_else() {
    let world = World::new();
    world.put("alice/f", b"1");
    world.settle();
    world.scan();
    let tree: &dyn Tree = &*world.volume;
    let account = world.find("alice").unwrap().ino;
    let file = world.find("alice/f").unwrap().ino;
    let node = NewNode {
        kind: FileKind::Dir,
        mode: 0o755,
        rdev: 0,
        target: b"",
    };
    let write = OpenMode {
        write: true,
        ..OpenMode::default()
    };
    let refusals = [
        tree.create(account, b"x", node, ROOT_USER).map(drop),
        tree.unlink(account, b"f"),
        tree.rmdir(Ino::ROOT, b"alice"),
        tree.rename(
            (Ino::ROOT, b"alice"),
            (Ino::ROOT, b"bob"),
            tidefs::volume::tree::RenameMode::Replace,
        ),
        tree.open(file, write),
        tree.setattr(file, SetAttr::default()).map(drop),
        tree.link(file, account, b"g").map(drop),
        tree.setxattr(file, b"user.a", b"b", tidefs::volume::tree::XattrMode::Any),
        common::wait(|answer| tree.write(file, 0, b"x", false, answer)),
    ];
    for (n, refusal) in refusals.into_iter().enumerate() {
        assert!(
            matches!(refusal, Err(Error::Posix(Errno::EROFS))),
            "{n}: {refusal:?}"
        );
    }
    assert!(tree.create(Ino::ROOT, b"mine", node, ROOT_USER).is_ok());
    source::remove(&world.volume, &world.registered()).unwrap();
    tree.unlink(account, b"f").unwrap();
}

#[test]
fn an_account_of_somebody_else_is_not_taken_over() {
    let world = World::new();
    common::mkdir(&*world.volume, Ino::ROOT, "alice");
    world.put("alice/f", b"1");
    world.put("bob/f", b"1");
    let report = world.scan();
    assert_eq!(report.refused.len(), 1, "{report:?}");
    assert!(world.find("alice/f").is_err() && world.find("bob/f").is_ok());
}

#[test]
fn what_is_excluded_is_not_there_and_presets_know_their_trees() {
    let world = World::with(AccountRule::Maildirs, |source| {
        let preset = source::Preset::Maildir;
        let (rule, exclude) = preset.rules();
        (source.accounts, source.exclude) = (rule, exclude);
        source.exclude.push("*.lock".into());
    });
    for name in [
        "cur/1",
        "new/2",
        "tmp/3",
        ".Sent/cur/4",
        ".Sent/tmp/5",
        "x.lock",
    ] {
        world.put(&format!("x.org/alice/{name}"), b"mail");
    }
    fs::create_dir_all(world.path("x.org/nobody")).unwrap();
    world.scan();
    let there = |name: &str| world.find(&format!("x.org+alice/{name}")).is_ok();
    assert!(there("cur/1") && there("new/2") && there(".Sent/cur/4") && there("tmp"));
    assert!(!there("tmp/3") && !there(".Sent/tmp/5") && !there("x.lock"));
    assert!(world.find("x.org+nobody").is_err());
}

#[test]
fn only_the_dirty_directories_are_looked_at() {
    let world = World::new();
    world.put("alice/a/f", b"1");
    world.put("alice/b/f", b"1");
    world.put("alice/c/sub/f", b"1");
    world.put("bob/f", b"1");
    world.settle();
    world.scan();
    for path in ["alice/a/f", "alice/b/f", "bob/f"] {
        world.put(path, b"changed");
    }
    world.put("alice/a/new/deep/g", b"2");
    world.settle();
    let dirty = |account: &str, dirs: Option<&[&str]>| Dirty {
        account: account.into(),
        dirs: dirs.map(|dirs| dirs.iter().map(|dir| dir.as_bytes().to_vec()).collect()),
    };
    let report = world.scoped(Scope::Dirty(vec![dirty(
        "alice",
        Some(&["a", "not/there"]),
    )]));
    assert_eq!(world.content("alice/a/f"), b"changed");
    assert_eq!(world.content("alice/a/new/deep/g"), b"2");
    assert_eq!(world.content("alice/b/f"), b"1");
    assert_eq!(world.content("bob/f"), b"1");
    assert_eq!(report.accounts_seen, 1);
    let whole = world.volume.accounts().unwrap()[0]
        .record
        .fed
        .clone()
        .unwrap();
    assert_eq!(whole.whole_at, None);
    // A new account, and one that is gone.
    world.put("carol/f", b"3");
    fs::remove_dir_all(world.path("bob")).unwrap();
    world.settle();
    world.scoped(Scope::Dirty(vec![
        dirty("carol", None),
        dirty("alice", Some(&["b"])),
    ]));
    assert_eq!(world.content("carol/f"), b"3");
    assert_eq!(world.content("alice/b/f"), b"changed");
    assert!(world.find("bob/f").is_ok(), "nobody asked for it");
    world.scan();
    world.assert_same();
}

#[test]
fn one_account_alone_is_scanned_and_an_unknown_one_is_an_error() {
    let world = World::new();
    world.put("alice/f", b"1");
    world.put("bob/f", b"1");
    let names = |names: &[&str]| {
        let names: BTreeSet<Vec<u8>> = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        Scope::Accounts(names)
    };
    world.scoped(names(&["bob"]));
    assert!(world.find("bob/f").is_ok() && world.find("alice").is_err());
    let ask = Ask {
        scope: names(&["carol"]),
        ..Ask::default()
    };
    assert!(
        world
            .ask(&ask)
            .unwrap_err()
            .to_string()
            .contains("no account 'carol'")
    );
}

#[test]
fn paths_longer_than_a_path_may_be_and_holes_come_in_whole() {
    let world = World::new();
    world.put("alice/f", b"1");
    let name = "d".repeat(200);
    let mut dir = rustix_dir(&world.path("alice"));
    for _ in 0..30 {
        nix::sys::stat::mkdirat(&dir, name.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = nix::fcntl::OFlag::O_DIRECTORY;
        dir =
            nix::fcntl::openat(&dir, name.as_str(), flags, nix::sys::stat::Mode::empty()).unwrap();
    }
    let flags = nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_WRONLY;
    let leaf = nix::fcntl::openat(&dir, "leaf", flags, nix::sys::stat::Mode::S_IRWXU).unwrap();
    nix::unistd::write(&leaf, b"down here").unwrap();
    let sparse = File::create(world.path("alice/sparse")).unwrap();
    sparse.set_len(200 << 20).unwrap();
    {
        use std::os::unix::fs::FileExt;
        sparse.write_all_at(b"island", 100 << 20).unwrap();
    }
    world.settle();
    let report = world.scan();
    assert_eq!(report.errors.count, 0, "{report:?}");
    let mut at = world.find("alice").unwrap().ino;
    for _ in 0..30 {
        at = world.volume.lookup(at, name.as_bytes()).unwrap().ino;
    }
    let leaf = world.volume.lookup(at, b"leaf").unwrap();
    assert_eq!(
        common::read_all(&*world.volume, leaf.ino, leaf.size),
        b"down here"
    );
    let sparse = world.find("alice/sparse").unwrap();
    assert_eq!(sparse.size, 200 << 20);
    assert!(sparse.blocks * 512 < 4 << 20, "{sparse:?}");
    let piece = common::read(&*world.volume, sparse.ino, (100 << 20) - 3, 12).unwrap();
    assert_eq!(&*piece, b"\0\0\0island\0\0\0");
    assert_eq!(world.scan().counts.read_files, 0);
    assert_eq!(world.deep().missed.count, 0);
}

fn rustix_dir(path: &Path) -> std::os::fd::OwnedFd {
    File::open(path).unwrap().into()
}

#[test]
fn a_file_larger_than_a_transaction_comes_in_by_parts() {
    let world = World::new();
    // Compressible, so that it is quick; every 64 KiB another.
    let mut large = vec![0_u8; 70 << 20];
    for (n, block) in large.chunks_mut(64 << 10).enumerate() {
        block[..8].copy_from_slice(&(n as u64).to_le_bytes());
    }
    world.put("alice/large", &large);
    world.settle();
    let report = world.scan();
    assert_eq!(did(&report.counts)[..2], [1, 0], "{report:?}");
    assert!(world.content("alice/large") == large);
    assert_eq!(world.scan().counts.read_files, 0);
    let deep = world.deep();
    assert_eq!((deep.missed.count, deep.counts.changed), (0, 0), "{deep:?}");
    large[5 << 20] ^= 1;
    large.truncate(69 << 20);
    world.put("alice/large", &large);
    world.settle();
    let report = world.scan();
    assert_eq!(did(&report.counts)[..2], [0, 1], "{report:?}");
    assert!(world.content("alice/large") == large);
}

#[test]
fn a_scan_does_not_change_the_source() {
    let world = World::new();
    world.put("alice/f", b"1");
    let old = SystemTime::now() - Duration::from_secs(1_000_000);
    let file = File::options()
        .write(true)
        .open(world.path("alice/f"))
        .unwrap();
    let times = fs::FileTimes::new().set_accessed(old).set_modified(old);
    file.set_times(times).unwrap();
    let before = fs::metadata(world.path("alice/f")).unwrap();
    world.scan();
    let after = fs::metadata(world.path("alice/f")).unwrap();
    assert_eq!(
        (after.atime(), after.ctime()),
        (before.atime(), before.ctime())
    );
}
