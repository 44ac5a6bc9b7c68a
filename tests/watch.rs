//! A source that is watched, through the real program: what changes in it is in the mount a moment later, whatever
//! happens to the events on the way (invariant 12 where the source goes away).
//!
//! Needs root and /dev/fuse; without them each test says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

#[path = "watch/world.rs"]
mod world;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use world::{World, tree};

const ACCOUNTS: usize = 100;
const CHANGES: usize = 10_000;
/// More than a queue of events holds: 16 384, unless somebody raised it.
const FLOOD: usize = 20_000;

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) as usize % limit
    }
}

/// One change somewhere in the accounts; some find nothing to change.
fn change(dice: &mut Dice, source: &Path, number: usize) {
    let account = source.join(format!("account-{:02}", dice.below(ACCOUNTS)));
    let other = source.join(format!("account-{:02}", dice.below(ACCOUNTS)));
    let dir = account.join(format!("dir-{}", dice.below(4)));
    let file = dir.join(format!("file-{}", dice.below(20)));
    let content = format!("{number} ").repeat(1 + dice.below(300));
    let _ = match dice.below(10) {
        0..=2 => fs::create_dir_all(&dir).and_then(|()| fs::write(&file, content)),
        3 => fs::write(&file, content),
        4 => fs::OpenOptions::new()
            .append(true)
            .open(&file)
            .and_then(|mut file| file.write_all(content.as_bytes())),
        5 => fs::remove_file(&file),
        6 => fs::rename(&file, dir.join(format!("file-{}", dice.below(20)))),
        7 => fs::rename(&file, other.join(format!("came-{number}"))),
        8 if dice.below(10) == 0 => {
            fs::rename(&dir, account.join(format!("dir-{}", dice.below(6))))
        }
        _ => {
            let mode = 0o600 + dice.below(64) as u32;
            fs::set_permissions(&file, PermissionsExt::from_mode(mode))
        }
    };
}

fn make_accounts(source: &Path) {
    for n in 0..ACCOUNTS {
        fs::create_dir(source.join(format!("account-{n:02}"))).unwrap();
    }
}

fn ten_thousand_changes(kind: &'static str) {
    let Some(world) = World::new(kind) else {
        return;
    };
    make_accounts(&world.source());
    world.mount();
    world.watch();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for number in 0..CHANGES {
        change(&mut dice, &world.source(), number);
    }
    world.wait_until_same();
    let watch = world.watch_status();
    assert_eq!(watch["kind"], kind, "{watch}");
    assert!(watch["since"].as_i64().unwrap() > 0 && watch["events"].as_u64().unwrap() > 1000);
}

#[test]
fn ten_thousand_changes_in_a_hundred_accounts_are_in_the_mount_by_fanotify() {
    ten_thousand_changes("fanotify");
}

#[test]
fn ten_thousand_changes_in_a_hundred_accounts_are_in_the_mount_by_inotify() {
    ten_thousand_changes("inotify");
}

fn flood(kind: &'static str) {
    let Some(world) = World::new(kind) else {
        return;
    };
    let busy = world.source().join("busy");
    let calm = world.source().join("calm/deep/er");
    fs::create_dir_all(&calm).unwrap();
    fs::create_dir(&busy).unwrap();
    for n in 0..FLOOD {
        File::create(busy.join(n.to_string())).unwrap();
    }
    world.mount();
    world.watch();
    world.hold_daemon();
    // First the flood, so that the queue has no room for what is not to be missed.
    for n in 0..FLOOD {
        let file = File::options()
            .write(true)
            .open(busy.join(n.to_string()))
            .unwrap();
        file.set_permissions(PermissionsExt::from_mode(0o640))
            .unwrap();
    }
    fs::write(calm.join("not to be missed"), kind).unwrap();
    fs::create_dir_all(world.source().join("new/one")).unwrap();
    world.go_on_daemon();
    world.wait_until_same();
    let watch = world.watch_status();
    assert!(watch["overflows"].as_u64().unwrap() > 0, "{watch}");
    // It is watched again: this is not found by the scan that followed the loss.
    fs::write(world.source().join("new/one/later"), b"later").unwrap();
    world.wait_until_same();
}

#[test]
fn a_queue_that_overflows_loses_nothing_by_fanotify() {
    flood("fanotify");
}

#[test]
fn a_queue_that_overflows_loses_nothing_by_inotify() {
    flood("inotify");
}

#[test]
fn what_happens_while_a_killed_daemon_is_away_is_found_when_it_is_back() {
    let Some(world) = World::new("") else {
        return;
    };
    make_accounts(&world.source());
    world.mount();
    world.watch();
    let mut dice = Dice(0x0123_4567_89ab_cdef);
    for number in 0..4000 {
        if number == 1500 {
            world.kill_daemon();
        }
        if number == 2500 {
            world.mount();
        }
        change(&mut dice, &world.source(), number);
    }
    world.wait_until_same();
}

fn comings_and_goings(kind: &'static str) {
    let Some(world) = World::new(kind) else {
        return;
    };
    let (source, outside) = (world.source(), world.path("disk/outside"));
    let put = |path: &str, content: &str| {
        let path = source.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    fs::create_dir(&outside).unwrap();
    put("alice/mail/in/1", "one");
    put("alice/mail/in/deep/2", "two");
    put("bob/3", "three");
    world.mount();
    world.watch();
    world.wait_until_same();
    // Within an account, and then a change below its new name.
    fs::rename(source.join("alice/mail"), source.join("alice/post")).unwrap();
    put("alice/post/in/deep/2", "two and more");
    world.wait_until_same();
    // From one account to another, out of the source, and in again.
    fs::rename(source.join("alice/post/in"), source.join("bob/in")).unwrap();
    world.wait_until_same();
    fs::rename(source.join("bob/in"), outside.join("in")).unwrap();
    fs::write(outside.join("in/deep/unseen"), b"nobody told").unwrap();
    world.wait_until_same();
    fs::rename(outside.join("in"), source.join("alice/back")).unwrap();
    world.wait_until_same();
    put("alice/back/deep/2", "two again");
    world.wait_until_same();
    // Accounts: a new one, a renamed one, one that goes, and one in the place of another.
    put("carol/a/b/c", "new");
    fs::rename(source.join("bob"), source.join("robert")).unwrap();
    world.wait_until_same();
    put("robert/3", "still mine");
    fs::remove_dir_all(source.join("carol")).unwrap();
    world.wait_until_same();
    fs::rename(source.join("robert"), outside.join("robert")).unwrap();
    put("robert/another", "one");
    world.wait_until_same();
    put("robert/another", "one, and more");
    world.wait_until_same();
}

#[test]
fn directories_and_accounts_come_go_and_are_renamed_by_fanotify() {
    comings_and_goings("fanotify");
}

#[test]
fn directories_and_accounts_come_go_and_are_renamed_by_inotify() {
    comings_and_goings("inotify");
}

fn unmounted(kind: &'static str) {
    let Some(world) = World::new(kind) else {
        return;
    };
    // The source is a mount of its own, over an empty directory.
    let real = world.path("disk/real");
    for n in 0..150 {
        fs::create_dir_all(real.join(format!("account/{n}"))).unwrap();
    }
    world.bind(&real);
    world.mount();
    world.watch();
    world.wait_until_same();
    let before = tree(&real);
    world.unbind();
    world.wait("the loss is told", |world| {
        world.watch_status()["losses"].as_u64() > Some(0)
    });
    // A scan that somebody asks for refuses, too.
    world.ask(&["scan"]);
    assert_eq!(
        tree(&world.path("mnt")),
        before,
        "what was backed up is there"
    );
    assert!(fs::read_dir(world.source()).unwrap().next().is_none());
    fs::write(real.join("account/1/while away"), b"x").unwrap();
    world.bind(&real);
    world.wait_until_same();
}

#[test]
fn a_source_that_is_unmounted_while_it_is_watched_deletes_nothing_by_fanotify() {
    unmounted("fanotify");
}

#[test]
fn a_source_that_is_unmounted_while_it_is_watched_deletes_nothing_by_inotify() {
    unmounted("inotify");
}

#[test]
fn a_scan_of_a_watched_source_looks_at_what_changed_and_at_nothing_else() {
    let Some(world) = World::new("") else {
        return;
    };
    make_accounts(&world.source());
    for n in 0..ACCOUNTS {
        fs::write(world.source().join(format!("account-{n:02}/file")), b"x").unwrap();
    }
    world.mount();
    world.watch();
    world.wait_until_same();
    let items = |report: &serde_json::Value| report["scans"][0]["counts"]["items"].as_u64();
    let began = Instant::now();
    let report = world.ask(&["scan"]);
    println!("a scan of what did not change: {:?}", began.elapsed());
    assert_eq!(items(&report), Some(0), "{report}");
    // A scan that is asked for at once knows of a change just before it.
    fs::write(world.source().join("account-07/file"), b"changed").unwrap();
    let report = world.ask(&["scan"]);
    let seen = items(&report).unwrap();
    let is_by_it = seen > 0 && seen < 10;
    // Or the watch was quicker.
    assert!(is_by_it || seen == 0, "{report}");
    let found = fs::read(world.path("mnt/account-07/file")).unwrap();
    assert_eq!(found, b"changed");
    let report = world.ask(&["scan", "--deep"]);
    assert_eq!(items(&report), Some(ACCOUNTS as u64), "{report}");
}

#[test]
fn a_source_that_cannot_be_watched_says_why_and_is_scanned_whole() {
    let Some(world) = World::new("") else {
        return;
    };
    // Two places that show one file system: a change is told for one of them only.
    fs::create_dir_all(world.source().join("account/shared")).unwrap();
    fs::create_dir(world.path("disk/shared")).unwrap();
    fs::write(world.path("disk/shared/file"), b"x").unwrap();
    world::bind(
        &world.path("disk/shared"),
        &world.source().join("account/shared"),
    );
    world.mount();
    world.ok(&["source", "add", &world.text("disk/source"), "--watch"]);
    world.wait("the reason is told", |world| {
        let watch = world.watch_status();
        watch["kind"].is_null()
            && watch["reason"]
                .as_str()
                .unwrap_or("")
                .contains("same file system")
    });
    let said = world.ok(&["status"]);
    assert!(
        said.contains("not watched") && said.contains("--one-file-system"),
        "{said}"
    );
    world.ask(&["scan"]);
    fs::write(world.path("disk/shared/file"), b"changed").unwrap();
    world.ask(&["scan"]);
    let found = fs::read(world.path("mnt/account/shared/file")).unwrap();
    assert_eq!(found, b"changed");
}
