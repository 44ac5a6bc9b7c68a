//! With a daemon and its mount: what was written just now is seen, and what an account may or may not shows at once.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;

use crate::common::Place;
use crate::program::{column, run};

/// A backup path with a mount, which is taken away at the end.
struct Mount<'a> {
    place: &'a Place,
    point: PathBuf,
}

impl<'a> Mount<'a> {
    /// `None` where nothing can be mounted.
    fn new(place: &'a Place, args: &[&str]) -> Option<Mount<'a>> {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if opened.is_err() || !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let point = place.dir.path().join("mnt");
        fs::create_dir_all(&point).unwrap();
        let mount = Mount { place, point };
        mount.again(args);
        Some(mount)
    }

    fn again(&self, args: &[&str]) {
        let mut all = vec!["mount"];
        all.extend(args);
        all.push(self.point.to_str().unwrap());
        run(self.place, &all).ok();
    }

    fn at(&self, path: &str) -> PathBuf {
        self.point.join(path)
    }

    fn umount(&self) {
        run(self.place, &["umount", self.point.to_str().unwrap()]).ok();
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = self.point.to_str();
        if text.lines().any(|line| line.split(' ').nth(4) == point) {
            let _ = Command::new("umount").arg("-l").arg(&self.point).status();
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let name =
        |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

fn errno<T>(outcome: std::io::Result<T>) -> Option<Errno> {
    outcome
        .err()
        .and_then(|error| error.raw_os_error())
        .map(Errno::from_raw)
}

#[test]
fn what_was_written_just_now_is_seen_beside_the_daemon() {
    let place = Place::new();
    let Some(mount) = Mount::new(&place, &[]) else {
        return;
    };
    fs::create_dir(mount.at("alice")).unwrap();
    fs::write(mount.at("alice/a"), "one").unwrap();
    run(&place, &["snapshot", "one"]).ok();
    let mut file = OpenOptions::new()
        .append(true)
        .open(mount.at("alice/a"))
        .unwrap();
    file.write_all(b" and more").unwrap();
    // Still open, not closed, not synced.
    let states = run(&place, &["--json", "item", "history", "alice/a"]).rows();
    assert_eq!(column(&states, "event"), ["created", "content"]);
    assert_eq!(column(&states, "size"), ["3", "12"]);
    assert_eq!(
        run(&place, &["item", "cat", "alice/a"]).ok(),
        "one and more"
    );
    assert_eq!(
        run(&place, &["item", "cat", "--at", "one", "alice/a"]).ok(),
        "one"
    );
    drop(file);
    fs::remove_file(mount.at("alice/a")).unwrap();
    let gone = run(&place, &["--json", "find", "--deleted"]).rows();
    assert_eq!(column(&gone, "path"), ["alice/a"]);
    // The daemon still serves.
    fs::write(mount.at("alice/b"), "b").unwrap();
    mount.umount();
}

#[test]
fn a_disabled_account_is_read_only_until_it_is_enabled() {
    let place = Place::new();
    let Some(mount) = Mount::new(&place, &[]) else {
        return;
    };
    for account in ["alice", "bob"] {
        fs::create_dir(mount.at(account)).unwrap();
        fs::write(mount.at(account).join("a"), "before").unwrap();
    }
    let mut open = OpenOptions::new()
        .append(true)
        .open(mount.at("alice/a"))
        .unwrap();
    open.write_all(b" and").unwrap();
    run(&place, &["account", "disable", "alice"]).ok();
    let rofs = Some(Errno::EROFS);
    assert_eq!(
        errno(open.write_all(b" not this").and_then(|()| open.sync_all())),
        rofs
    );
    assert_eq!(errno(fs::write(mount.at("alice/a"), "x")), rofs);
    assert_eq!(errno(fs::write(mount.at("alice/new"), "x")), rofs);
    assert_eq!(errno(fs::remove_file(mount.at("alice/a"))), rofs);
    assert_eq!(
        errno(fs::rename(mount.at("alice"), mount.at("carol"))),
        rofs
    );
    assert_eq!(
        fs::read_to_string(mount.at("alice/a")).unwrap(),
        "before and"
    );
    fs::write(mount.at("bob/a"), "others go on").unwrap();
    let rows = run(&place, &["--json", "account", "list"]).rows();
    assert_eq!(column(&rows, "state"), ["disabled", "live"]);
    drop(open);
    // It stays so over a new mount.
    mount.umount();
    mount.again(&[]);
    assert_eq!(errno(fs::write(mount.at("alice/new"), "x")), rofs);
    run(&place, &["account", "enable", "alice"]).ok();
    fs::write(mount.at("alice/a"), "after").unwrap();
    mount.umount();
    let events = run(&place, &["--json", "item", "history", "alice/a"]).rows();
    assert_eq!(events.last().unwrap()["size"], 5);
}

#[test]
fn an_account_that_is_deleted_is_gone_from_the_mount_at_once() {
    let place = Place::new();
    let Some(mount) = Mount::new(&place, &[]) else {
        return;
    };
    for account in ["alice", "bob"] {
        fs::create_dir(mount.at(account)).unwrap();
        fs::write(mount.at(account).join("a"), "before").unwrap();
    }
    run(&place, &["snapshot", "before"]).ok();
    // The kernel knows the names for a day.
    assert_eq!(names(&mount.point), ["alice", "bob"]);
    fs::metadata(mount.at("alice/a")).unwrap();
    run(&place, &["account", "delete", "--yes", "alice"]).ok();
    assert_eq!(errno(fs::metadata(mount.at("alice"))), Some(Errno::ENOENT));
    assert_eq!(names(&mount.point), ["bob"]);
    let past = mount.at(".snapshots/before/alice/a");
    assert_eq!(fs::read_to_string(past).unwrap(), "before");
    fs::create_dir(mount.at("alice")).unwrap();
    assert!(names(&mount.at("alice")).is_empty(), "another account");
    mount.umount();
    run(&place, &["check"]).ok();
}

#[test]
fn one_account_is_mounted_alone() {
    let place = Place::new();
    let external = place.external();
    let external = external.to_str().unwrap();
    run(&place, &["store", "set", "dir", external]).ok();
    let Some(mount) = Mount::new(&place, &[]) else {
        return;
    };
    for account in ["alice", "bob"] {
        fs::create_dir_all(mount.at(account).join("dir")).unwrap();
        fs::write(mount.at(account).join("dir/a"), account).unwrap();
    }
    run(&place, &["snapshot", "one"]).ok();
    mount.umount();
    mount.again(&["--account", "bob"]);
    assert_eq!(names(&mount.point), ["dir"]);
    assert_eq!(fs::read_to_string(mount.at("dir/a")).unwrap(), "bob");
    fs::write(mount.at("top"), "new").unwrap();
    fs::rename(mount.at("top"), mount.at("dir/b")).unwrap();
    fs::remove_file(mount.at("dir/a")).unwrap();
    assert_eq!(names(&mount.at("dir/..")), ["dir"]);
    let found = run(&place, &["--json", "find", "bob"]).rows();
    assert_eq!(column(&found, "path"), ["bob/dir", "bob/dir/b"]);
    run(&place, &["account", "disable", "bob"]).ok();
    assert_eq!(errno(fs::write(mount.at("top"), "x")), Some(Errno::EROFS));
    run(&place, &["account", "enable", "bob"]).ok();
    run(&place, &["wait", "--until", "archived"]).ok();
    mount.umount();
    mount.again(&["--account", "bob", "--at", "one"]);
    assert_eq!(fs::read_to_string(mount.at("dir/a")).unwrap(), "bob");
    mount.umount();
    let spec = format!("dir:{external}");
    for poll in ["0", "30"] {
        mount.again(&["--account", "bob", "--external", &spec, "--poll", poll]);
        assert_eq!(names(&mount.point), ["dir"]);
        assert_eq!(fs::read_to_string(mount.at("dir/b")).unwrap(), "new");
        assert_eq!(errno(fs::write(mount.at("x"), "x")), Some(Errno::EROFS));
        mount.umount();
    }
    let point = mount.point.to_str().unwrap();
    for args in [
        &["--account", "carol"][..],
        &["--account", "carol", "--at", "one"],
    ] {
        let mut all = vec!["mount"];
        all.extend(args);
        all.push(point);
        run(&place, &all).says(1, "no account 'carol'");
    }
}
