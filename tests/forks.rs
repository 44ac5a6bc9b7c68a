//! Wrong volume, no write; two writers, no overwrite (invariant 7); unreachable is not missing (invariant 6).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Place, close, content, noise, put};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tidefs::error::Error;
use tidefs::types::Ino;
use tidefs::upload::UploadState;
use tidefs::volume::{Durability, Volume, external};

/// Set for the process that tries to open a backup path which its parent has open.
const SECOND_OPEN: &str = "TIDEFS_TEST_SECOND_OPEN";
const PATIENCE: Duration = Duration::from_secs(60);

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Every file below `dir` with its bytes.
fn files(dir: &Path) -> Files {
    let mut found = Files::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            } else {
                found.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

fn assert_nothing_overwritten(before: &Files, after: &Files) {
    for (path, bytes) in before {
        let there = after.get(path);
        assert!(
            there == Some(bytes),
            "{} was overwritten or removed",
            path.display()
        );
    }
}

fn records(files: &Files) -> Vec<&PathBuf> {
    files
        .keys()
        .filter(|path| path.to_string_lossy().contains("server/epochs/"))
        .collect()
}

fn copy(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

/// A volume with one archived file.
fn archived(place: &Place) -> Arc<Volume> {
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    put(&*volume, Ino::ROOT, "first", &noise(1, 200_000));
    archive(&volume).unwrap();
    volume
}

fn archive(volume: &Volume) -> tidefs::error::Result<()> {
    let start = Instant::now();
    volume.wait(Durability::Archived, &mut |_| start.elapsed() < PATIENCE)
}

fn assert_refused(volume: &Volume) {
    match archive(volume) {
        Err(Error::Refused(reason)) => {
            assert!(reason.contains("written by somebody else"), "{reason}");
        }
        other => panic!("the second writer was not refused: {other:?}"),
    }
    assert!(matches!(
        volume.status().upload,
        UploadState::Refused { .. }
    ));
}

/// Waits until an upload has failed, and gives its reason.
fn reason_when_down(volume: &Volume) -> String {
    let start = Instant::now();
    loop {
        if let UploadState::Down { reason, .. } = volume.status().upload {
            return reason;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "uploads are {:?}",
            volume.status().upload
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn away_content(external: &Path, name: &str) -> Vec<u8> {
    let store = Arc::new(vfs::DirVolume::open(external).unwrap());
    let away = external::open_external(store).unwrap();
    content(&*away.tree(None).unwrap(), name).unwrap()
}

#[test]
fn a_copy_of_the_backup_path_beside_the_original_is_refused_and_overwrites_nothing() {
    let place = Place::new();
    close(archived(&place));
    let copied = place.dir.path().join("copied");
    copy(&place.path(), &copied);
    let (ours, other) = (place.open(), common::open(&copied).unwrap());

    put(&*ours, Ino::ROOT, "ours", &noise(2, 300_000));
    archive(&ours).unwrap();
    let before = files(&place.external());
    put(&*other, Ino::ROOT, "theirs", &noise(3, 300_000));
    assert_refused(&other);
    let after = files(&place.external());
    assert_nothing_overwritten(&before, &after);
    assert_eq!(
        records(&before),
        records(&after),
        "the second writer left a record"
    );

    // Both go on locally, and the first one also away.
    put(&*other, Ino::ROOT, "more", b"local");
    other.commit().unwrap();
    assert_eq!(content(&*other, "theirs").unwrap(), noise(3, 300_000));
    assert_eq!(content(&*other, "more").unwrap(), b"local");
    put(&*ours, Ino::ROOT, "again", b"x");
    archive(&ours).unwrap();
    assert_eq!(content(&*ours, "ours").unwrap(), noise(2, 300_000));
    assert_eq!(away_content(&place.external(), "ours"), noise(2, 300_000));
    assert_eq!(away_content(&place.external(), "again"), b"x");

    // Refused is for good: opening it again changes nothing.
    close(other);
    let other = common::open(&copied).unwrap();
    put(&*other, Ino::ROOT, "later", b"x");
    assert_refused(&other);
    assert_nothing_overwritten(&before, &files(&place.external()));
}

#[test]
fn an_older_state_restored_over_a_newer_one_is_refused() {
    let place = Place::new();
    close(archived(&place));
    let older = place.dir.path().join("older");
    copy(&place.path(), &older);
    let volume = place.open();
    put(&*volume, Ino::ROOT, "newer", &noise(4, 200_000));
    archive(&volume).unwrap();
    close(volume);
    fs::remove_dir_all(place.path()).unwrap();
    fs::rename(&older, place.path()).unwrap();

    let before = files(&place.external());
    let volume = place.open();
    put(&*volume, Ino::ROOT, "branch", &noise(5, 200_000));
    assert_refused(&volume);
    let after = files(&place.external());
    assert_nothing_overwritten(&before, &after);
    assert_eq!(records(&before), records(&after));
    assert_eq!(content(&*volume, "branch").unwrap(), noise(5, 200_000));
    assert_eq!(away_content(&place.external(), "newer"), noise(4, 200_000));
}

#[test]
fn a_directory_that_lost_our_last_epoch_gets_no_further_one() {
    let place = Place::new();
    let volume = archived(&place);
    for record in records(&files(&place.external())) {
        fs::remove_file(record).unwrap();
    }
    put(&*volume, Ino::ROOT, "second", b"2");
    match archive(&volume) {
        Err(Error::Refused(reason)) => {
            assert!(reason.contains("no longer has our epoch"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(records(&files(&place.external())).is_empty());
}

/// While `replace` has something else stand at the external volume's path, nothing is written there;
/// after `put_back`, uploads resume without anybody's help.
fn is_away_for_a_while(place: &Place, replace: &dyn Fn(), put_back: &dyn Fn()) {
    let volume = archived(place);
    replace();
    let before = place.external().exists().then(|| files(&place.external()));
    put(&*volume, Ino::ROOT, "during", &noise(6, 200_000));
    volume.close_epoch(None).unwrap();
    let reason = reason_when_down(&volume);
    assert!(!reason.is_empty());
    assert_eq!(content(&*volume, "during").unwrap(), noise(6, 200_000));
    assert!(volume.status().packs.unsent_count > 0);
    let after = place.external().exists().then(|| files(&place.external()));
    assert_eq!(before, after, "something was written to what is not ours");
    put_back();
    archive(&volume).unwrap();
    assert_eq!(away_content(&place.external(), "during"), noise(6, 200_000));
    assert_eq!(volume.status().upload, UploadState::Up);
    close(volume);
}

#[test]
fn an_external_volume_that_is_missing_for_a_while_is_not_made_anew() {
    let place = Place::new();
    let aside = place.dir.path().join("aside");
    is_away_for_a_while(
        &place,
        &|| fs::rename(place.external(), &aside).unwrap(),
        &|| {
            assert!(!place.external().exists(), "the root was made by accident");
            fs::rename(&aside, place.external()).unwrap();
        },
    );
}

#[test]
fn an_empty_directory_in_place_of_the_external_volume_is_not_written_to() {
    let place = Place::new();
    let aside = place.dir.path().join("aside");
    is_away_for_a_while(
        &place,
        &|| {
            fs::rename(place.external(), &aside).unwrap();
            fs::create_dir(place.external()).unwrap();
        },
        &|| {
            fs::remove_dir(place.external()).unwrap();
            fs::rename(&aside, place.external()).unwrap();
        },
    );
}

#[test]
fn another_volumes_directory_in_place_of_the_external_volume_is_not_written_to() {
    let (place, stranger) = (Place::new(), Place::new());
    close(archived(&stranger));
    let aside = place.dir.path().join("aside");
    is_away_for_a_while(
        &place,
        &|| {
            fs::rename(place.external(), &aside).unwrap();
            copy(&stranger.external(), &place.external());
        },
        &|| {
            fs::remove_dir_all(place.external()).unwrap();
            fs::rename(&aside, place.external()).unwrap();
        },
    );
}

/// Unmounts what a test that failed has left.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Not mounted is as good.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn an_unmounted_mount_point_is_not_written_to() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("only root can mount: not tried");
        return;
    }
    let place = Place::new();
    let disk = place.dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let (on, none) = (place.external(), None::<&str>);
    let plug = || mount(Some(&disk), &on, none, MsFlags::MS_BIND, none).unwrap();
    let _unmount = Unmount(on.clone());
    plug();
    is_away_for_a_while(
        &place,
        &|| {
            umount2(&on, MntFlags::MNT_DETACH).unwrap();
            assert_eq!(fs::read_dir(&on).unwrap().count(), 0);
        },
        &plug,
    );
}

#[test]
fn another_volumes_external_directory_cannot_be_taken() {
    let (place, stranger) = (Place::new(), Place::new());
    close(archived(&stranger));
    let before = files(&stranger.external());
    let volume = place.open();
    let taken = volume.set_store(Some(stranger.external()));
    assert!(matches!(taken, Err(Error::Refused(_))), "{taken:?}");
    assert_eq!(volume.status().upload, UploadState::Off);
    assert_eq!(before, files(&stranger.external()));
}

#[test]
fn opening_without_the_external_volume_works_and_uploads_start_when_it_is_there() {
    let place = Place::new();
    close(archived(&place));
    let aside = place.dir.path().join("aside");
    fs::rename(place.external(), &aside).unwrap();
    let volume = place.open();
    reason_when_down(&volume);
    put(&*volume, Ino::ROOT, "during", b"during");
    volume.close_epoch(None).unwrap();
    assert!(!place.external().exists());
    fs::rename(&aside, place.external()).unwrap();
    archive(&volume).unwrap();
    assert_eq!(away_content(&place.external(), "during"), b"during");
}

#[test]
fn a_backup_path_is_opened_by_one_process_only() {
    let place = Place::new();
    let volume = place.open();
    let own = std::process::id().to_string();
    match common::open(&place.path()) {
        Err(Error::Locked { path, pid }) => assert_eq!((path, pid), (place.path(), own.clone())),
        other => panic!("{other:?}"),
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "second_open", "--nocapture"])
        .env(SECOND_OPEN, place.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(said.contains(&format!("in use by process {own}")), "{said}");
    put(&*volume, Ino::ROOT, "still", b"ours");
    close(volume);
    close(place.open());
}

/// Not a test of its own: what the process of `a_backup_path_is_opened_by_one_process_only` does.
#[test]
fn second_open() {
    if let Some(path) = std::env::var_os(SECOND_OPEN) {
        println!("{}", common::open(Path::new(&path)).unwrap_err());
    }
}
