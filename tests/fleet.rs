//! Looking at many volumes from outside: the fleet, and a view that follows its owner.

#![allow(
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Place, close, content, noise, put};
use serde_json::Value;
use tidefs::types::Ino;
use tidefs::volume::follow::FollowTree;
use tidefs::volume::tree::Tree;
use tidefs::volume::{Durability, Volume, external};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");
const PATIENCE: Duration = Duration::from_secs(60);

fn archive(volume: &Volume) {
    let start = Instant::now();
    volume
        .wait(Durability::Archived, &mut |_| start.elapsed() < PATIENCE)
        .unwrap();
}

/// A volume with one archived file, in `dir`.
fn member(dir: &Path) -> Place {
    let place = Place::new();
    fs::create_dir_all(dir).unwrap();
    let volume = place.open();
    volume.set_store(Some(dir.to_owned())).unwrap();
    put(&*volume, Ino::ROOT, "file", &noise(1, 100_000));
    archive(&volume);
    close(volume);
    place
}

fn fleet(dir: &Path, more: &[&str]) -> (i32, Vec<Value>) {
    let spec = format!("dir:{}", dir.display());
    let output = Command::new(PROGRAM)
        .args(["--json", "fleet", &spec])
        .args(more)
        .output()
        .unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let volumes = document["volumes"].as_array().cloned().unwrap_or_default();
    (output.status.code().unwrap(), volumes)
}

fn trouble<'a>(volumes: &'a [Value], name: &str) -> Vec<&'a str> {
    let of = |volume: &&Value| volume["place"].as_str().unwrap().ends_with(name);
    let found = volumes.iter().find(of).unwrap();
    let texts = found["trouble"].as_array().unwrap();
    texts.iter().map(|text| text.as_str().unwrap()).collect()
}

fn record_of(dir: &Path) -> PathBuf {
    let mut names: Vec<_> = fs::read_dir(dir.join("server/epochs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names.pop().unwrap()
}

#[test]
fn a_fleet_is_well_or_stale_and_the_exit_code_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["host-1", "site/berlin/host-2"] {
        member(&dir.path().join(name));
    }
    fs::create_dir_all(dir.path().join("photos/2020")).unwrap();
    let (code, volumes) = fleet(dir.path(), &["--max-age", "1h", "--size"]);
    assert_eq!((code, volumes.len()), (0, 2), "{volumes:?}");
    for volume in &volumes {
        assert!(volume["bytes"].as_u64().unwrap() > 100_000, "{volume}");
        assert!(
            volume["recovery_point_secs"].as_u64().unwrap() < 600,
            "{volume}"
        );
        assert!(
            volume["owner"]
                .as_str()
                .is_some_and(|owner| !owner.is_empty()),
            "{volume}"
        );
    }
    // Two seconds later a second is too old.
    let start = Instant::now();
    while fleet(dir.path(), &["--max-age", "1s"]).0 != 4 {
        assert!(start.elapsed() < PATIENCE);
    }
    assert_eq!(fleet(dir.path(), &[]).0, 0);
    assert_eq!(fleet(&dir.path().join("photos"), &[]), (0, Vec::new()));
    assert_eq!(fleet(&dir.path().join("none"), &[]).0, 5);
}

#[test]
fn what_is_wrong_in_a_fleet_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["well", "forked", "torn", "damaged", "ahead"] {
        member(&at(name));
    }
    let status = Command::new("cp")
        .args(["-a"])
        .arg(at("well"))
        .arg(at("copied"))
        .status();
    assert!(status.unwrap().success());
    let record = record_of(&at("forked"));
    let name = record.file_name().unwrap().to_str().unwrap();
    let (epoch, _) = name.split_once('-').unwrap();
    fs::copy(
        &record,
        record.with_file_name(format!("{epoch}-00000000000000aa.json")),
    )
    .unwrap();
    fs::remove_file(at("torn").join("server/volume.json")).unwrap();
    let identity = at("damaged").join("server/volume.json");
    let text = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, text.replace("\"owner\"", "\"owned\"")).unwrap();
    // An hour from now, and whole.
    let record = record_of(&at("ahead"));
    let name = format!(
        "server/epochs/{}",
        record.file_name().unwrap().to_str().unwrap()
    );
    let bytes = fs::read(&record).unwrap();
    let mut parsed = tidefs::format::record::EpochRecord::parse(&name, &bytes).unwrap();
    parsed.time += 3600;
    fs::write(&record, parsed.encode()).unwrap();

    let (code, volumes) = fleet(dir.path(), &[]);
    assert_eq!((code, volumes.len()), (4, 6), "{volumes:?}");
    let says = |name: &str, part: &str| {
        let texts = trouble(&volumes, name);
        assert!(
            texts.iter().any(|text| text.contains(part)),
            "{name}: {texts:?}"
        );
    };
    says("/forked", "two servers wrote to it");
    says("/torn", "there is no server/volume.json");
    says("/damaged", "damaged");
    says("/ahead", "clock is ahead");
    says("/copied", "/well");
    says("/well", "/copied");
}

/// Looks the file up and reads all of it.
fn read(tree: &dyn Tree, name: &str) -> Option<Vec<u8>> {
    content(tree, name).ok()
}

#[test]
fn a_view_goes_on_to_the_newest_epoch_and_what_is_open_stays_where_it_was() {
    let place = Place::new();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    let dir = common::mkdir(&*volume, Ino::ROOT, "account");
    put(&*volume, dir, "file", b"one");
    archive(&volume);
    let store = Arc::new(vfs::DirVolume::open(place.external()).unwrap());
    let tree = FollowTree::new(external::open_external(store).unwrap(), None).unwrap();
    let before = tree.epoch();
    assert_eq!(tree.advance().unwrap(), None);
    let account = tree.lookup(Ino::ROOT, b"account").unwrap();
    let file = tree.lookup(account.ino, b"file").unwrap();

    volume.unlink(dir, b"file").unwrap();
    put(&*volume, dir, "file", b"two, longer");
    put(&*volume, Ino::ROOT, "new", b"new");
    // Nothing is seen before its record is there, whatever else is.
    volume.close_epoch(None).unwrap();
    archive(&volume);
    let names = tree.advance().unwrap().unwrap();
    assert!(tree.epoch() > before);
    assert!(names.iter().any(|name| name == "account") && names.iter().any(|name| name == "new"));
    assert_eq!(read(&*tree, "new").unwrap(), b"new");
    // Whoever was in the directory is still in the moment before.
    let old = tree.lookup(account.ino, b"file").unwrap();
    assert_eq!((old.ino, old.size), (file.ino, 3));
    let account_now = tree.lookup(Ino::ROOT, b"account").unwrap();
    assert_ne!(account_now.ino, account.ino);
    let file_now = tree.lookup(account_now.ino, b"file").unwrap();
    assert_eq!(file_now.size, 11);
    assert_eq!(tree.parent(account.ino).unwrap(), Ino::ROOT);
    assert_eq!(tree.advance().unwrap(), None);

    // What the kernel forgets is forgotten, and the moment with it.
    for (ino, count) in [(file.ino, 2), (account.ino, 1)] {
        tree.forget(ino, count);
    }
    assert!(tree.getattr(file.ino).is_err() && tree.getattr(account.ino).is_err());
    assert_eq!(tree.getattr(file_now.ino).unwrap().size, 11);
    close(volume);
}

#[test]
fn a_fork_or_a_strange_record_leaves_the_view_where_it_is() {
    let place = Place::new();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    put(&*volume, Ino::ROOT, "file", b"one");
    archive(&volume);
    let store = Arc::new(vfs::DirVolume::open(place.external()).unwrap());
    let tree = FollowTree::new(external::open_external(store).unwrap(), None).unwrap();
    let before = tree.epoch();
    put(&*volume, Ino::ROOT, "second", b"two");
    archive(&volume);
    close(volume);
    let record = record_of(&place.external());
    let name = record.file_name().unwrap().to_str().unwrap().to_owned();
    let (epoch, _) = name.split_once('-').unwrap();
    let twin = record.with_file_name(format!("{epoch}-00000000000000aa.json"));
    fs::copy(&record, &twin).unwrap();
    assert!(tree.advance().is_err());
    assert_eq!(
        (tree.epoch(), read(&*tree, "file").unwrap()),
        (before, b"one".to_vec())
    );
    fs::remove_file(twin).unwrap();
    assert!(tree.advance().unwrap().is_some());
    assert_eq!(read(&*tree, "second").unwrap(), b"two");
}

/// Takes a mount away, also when the test fails.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let umount = Command::new(PROGRAM)
            .arg("umount")
            .arg(&self.0)
            .output()
            .unwrap();
        if !umount.status.success() {
            // Not mounted is as good.
            let _ = Command::new("umount")
                .arg("-l")
                .arg(&self.0)
                .stderr(Stdio::null())
                .status();
        }
    }
}

#[test]
fn a_mount_of_an_external_volume_shows_what_its_owner_archives_and_keeps_open_files() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("mounting needs root and /dev/fuse: not tried");
        return;
    }
    let place = Place::new();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    let dir = common::mkdir(&*volume, Ino::ROOT, "account");
    put(&*volume, dir, "file", &noise(1, 300_000));
    archive(&volume);
    let view = place.dir.path().join("view");
    fs::create_dir(&view).unwrap();
    let mount = Command::new(PROGRAM)
        .args(["--json", "mount", "--poll", "1", "--external"])
        .arg(format!("dir:{}", place.external().display()))
        .arg(&view)
        .output()
        .unwrap();
    assert!(mount.status.success(), "{mount:?}");
    let _mounted = Mounted(view.clone());
    let path = view.join("account/file");
    assert_eq!(fs::read(&path).unwrap(), noise(1, 300_000));
    let mut open = File::open(&path).unwrap();

    volume.unlink(dir, b"file").unwrap();
    put(&*volume, dir, "file", &noise(2, 400_000));
    archive(&volume);
    let start = Instant::now();
    loop {
        let seen = fs::read(&path).unwrap();
        if seen == noise(2, 400_000) {
            break;
        }
        assert!(
            seen == noise(1, 300_000),
            "neither the one nor the other: {} bytes",
            seen.len()
        );
        assert!(start.elapsed() < PATIENCE, "the newer epoch is never shown");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut kept = Vec::new();
    open.seek(SeekFrom::Start(0)).unwrap();
    open.read_to_end(&mut kept).unwrap();
    assert!(kept == noise(1, 300_000), "an open file became another");
    assert_eq!(fs::read_dir(view.join("account")).unwrap().count(), 1);
    drop(open);
    close(volume);
}
