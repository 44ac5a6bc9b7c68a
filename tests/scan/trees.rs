//! What of a tree is an account, what comes in of it, and in which forms.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use tidefs::error::Error;
use tidefs::scan::run::{Ask, Dirty, Scope};
use tidefs::scan::source::{self, AccountRule};
use tidefs::types::{FileKind, Ino};
use tidefs::volume::tree::{NewNode, OpenMode, SetAttr, Tree};

use crate::common::{self, ROOT_USER};
use crate::did;
use crate::world::{World, settle};

#[test]
fn what_a_source_feeds_is_read_only_for_everybody_else() {
    let world = World::new();
    world.put("alice/f", b"1");
    settle();
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
    settle();
    world.scan();
    for path in ["alice/a/f", "alice/b/f", "bob/f"] {
        world.put(path, b"changed");
    }
    world.put("alice/a/new/deep/g", b"2");
    settle();
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
    let mtime = fs::metadata(world.path("alice/a")).unwrap().mtime_nsec();
    let seen = world.find("alice/a").unwrap().mtime;
    assert_eq!(i64::from(seen.nanos), mtime, "the directory itself");
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
    settle();
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
    settle();
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
    settle();
    let report = world.scan();
    assert_eq!(did(&report.counts)[..2], [1, 0], "{report:?}");
    assert!(world.content("alice/large") == large);
    assert_eq!(world.scan().counts.read_files, 0);
    let deep = world.deep();
    assert_eq!((deep.missed.count, deep.counts.changed), (0, 0), "{deep:?}");
    large[5 << 20] ^= 1;
    large.truncate(69 << 20);
    world.put("alice/large", &large);
    settle();
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
