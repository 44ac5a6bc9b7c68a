//! Taking a volume over: one owner at a time, nothing overwritten, and what is only here is kept (invariant 7).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use common::{Place, close, content, noise, put};
use tidefs::clock::SystemClock;
use tidefs::error::{Error, Result};
use tidefs::maintain::take_over::{TakeOver, take_over};
use tidefs::maintain::{CheckOptions, check};
use tidefs::types::Ino;
use tidefs::upload::UploadState;
use tidefs::volume::choice::Choice;
use tidefs::volume::moment::open_moments;
use tidefs::volume::settings::Store;
use tidefs::volume::{Durability, Volume, external};

const PATIENCE: Duration = Duration::from_secs(60);

type Files = BTreeMap<PathBuf, Vec<u8>>;

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
        assert!(
            after.get(path) == Some(bytes),
            "{} was changed",
            path.display()
        );
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}

fn archive(volume: &Volume) -> Result<()> {
    let start = Instant::now();
    volume.wait(Durability::Archived, &mut |_| start.elapsed() < PATIENCE)
}

/// A volume with one archived file, closed.
fn archived(place: &Place) {
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    put(&*volume, Ino::ROOT, "first", &noise(1, 200_000));
    archive(&volume).unwrap();
    close(volume);
}

fn take(root: &Path, external: &Path) -> Result<TakeOver> {
    let choice = Choice::Dir(external.to_owned());
    take_over(root, &choice, &SystemClock, &mut |_, _, _| {})
}

fn away(external: &Path, name: &str) -> Vec<u8> {
    let store = Arc::new(vfs::DirVolume::open(external).unwrap());
    let away = external::open_external(store).unwrap();
    content(&*away.tree(None).unwrap(), name).unwrap()
}

fn assert_sound(root: &Path) {
    let options = CheckOptions {
        read_data: true,
        external: true,
    };
    let found = check(root, options, &mut |_, _| {}).unwrap();
    assert_eq!(found.problems, []);
}

/// A second, new backup path beside that of `place`.
fn fresh(place: &Place, name: &str) -> PathBuf {
    let root = place.dir.path().join(name);
    let settings = tidefs::volume::settings::Settings {
        reserve_bytes: 0,
        ..Default::default()
    };
    tidefs::volume::init::init(&root, &settings, &SystemClock).unwrap();
    close(common::open(&root).unwrap());
    root
}

fn assert_refused(root: &Path, part: &str) {
    let volume = common::open(root).unwrap();
    put(&*volume, Ino::ROOT, "late", b"late");
    match archive(&volume) {
        Err(Error::Refused(reason)) => assert!(reason.contains(part), "{reason}"),
        other => panic!("not refused: {other:?}"),
    }
    let state = volume.status().upload;
    assert!(matches!(state, UploadState::Refused { .. }), "{state:?}");
    close(volume);
}

#[test]
fn a_server_rolled_back_in_time_goes_on_from_what_is_there_and_keeps_its_branch() {
    let place = Place::new();
    archived(&place);
    let older = place.dir.path().join("older");
    copy(&place.path(), &older);
    let volume = place.open();
    put(&*volume, Ino::ROOT, "newer", &noise(2, 200_000));
    archive(&volume).unwrap();
    let newest = volume.status().epoch_archived;
    close(volume);
    fs::remove_dir_all(place.path()).unwrap();
    fs::rename(&older, place.path()).unwrap();
    let volume = place.open();
    put(&*volume, Ino::ROOT, "branch", &noise(3, 300_000));
    close(volume);
    assert_refused(&place.path(), "written by somebody else");

    let before = files(&place.external());
    let taken = take(&place.path(), &place.external()).unwrap();
    assert_eq!((taken.epoch, taken.is_our_past), (newest, false));
    assert!(taken.packs_set_aside > 0, "{taken:?}");
    let volume = place.open();
    assert_eq!(content(&*volume, "newer").unwrap(), noise(2, 200_000));
    assert_eq!(content(&*volume, "first").unwrap(), noise(1, 200_000));
    assert!(
        content(&*volume, "branch").is_err(),
        "the branch is still shown"
    );
    put(&*volume, Ino::ROOT, "after", b"after");
    archive(&volume).unwrap();
    assert_eq!(volume.status().epoch_archived, newest.next());
    close(volume);
    assert_nothing_overwritten(&before, &files(&place.external()));
    assert_eq!(away(&place.external(), "after"), b"after");
    assert_sound(&place.path());

    // What was only here can be looked at, with what it shares with the others.
    let aside = taken.set_aside.unwrap();
    assert!(aside.starts_with(place.path().join("lost+found")));
    let branch = open_moments(&aside).unwrap().tree(None).unwrap();
    assert_eq!(content(&*branch, "branch").unwrap(), noise(3, 300_000));
    assert_eq!(content(&*branch, "first").unwrap(), noise(1, 200_000));
    assert!(content(&*branch, "newer").is_err());
}

#[test]
fn a_new_backup_path_takes_over_from_a_server_that_is_gone_and_the_server_is_refused_when_it_returns()
 {
    let place = Place::new();
    archived(&place);
    let root = fresh(&place, "heir");
    let before = files(&place.external());
    let taken = take(&root, &place.external()).unwrap();
    assert!(!taken.is_our_past && taken.packs > 0, "{taken:?}");

    let volume = common::open(&root).unwrap();
    assert_eq!(content(&*volume, "first").unwrap(), noise(1, 200_000));
    // Known by the indexes alone: stored again it takes no room.
    let packs = volume.status().packs;
    put(&*volume, Ino::ROOT, "again", &noise(1, 200_000));
    put(&*volume, Ino::ROOT, "new", &noise(5, 100_000));
    archive(&volume).unwrap();
    let grown = volume.status().packs.bytes - packs.bytes;
    assert!(grown < 150_000, "{grown} bytes for 100 000 new ones");
    close(volume);
    assert_nothing_overwritten(&before, &files(&place.external()));
    assert_eq!(away(&place.external(), "new"), noise(5, 100_000));
    assert_eq!(away(&place.external(), "again"), noise(1, 200_000));
    assert_sound(&root);

    let before = files(&place.external());
    assert_refused(&place.path(), "was taken over by");
    assert_eq!(
        before,
        files(&place.external()),
        "the former owner has written"
    );
}

#[test]
fn a_backup_path_with_files_of_its_own_does_not_become_another_volume() {
    let (place, other) = (Place::new(), Place::new());
    archived(&place);
    archived(&other);
    let before = files(&place.external());
    match take(&other.path(), &place.external()) {
        Err(Error::Refused(reason)) => assert!(reason.contains("files of its own"), "{reason}"),
        outcome => panic!("{outcome:?}"),
    }
    assert_eq!(before, files(&place.external()));
    close(other.open());
    // Nor is an empty directory taken over, nor one without an epoch.
    let empty = place.dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(matches!(
        take(&place.path(), &empty),
        Err(Error::Refused(_))
    ));
}

#[test]
fn an_external_volume_that_went_back_in_our_own_past_gets_what_it_lacks() {
    let place = Place::new();
    archived(&place);
    let older = place.dir.path().join("older");
    copy(&place.external(), &older);
    let volume = place.open();
    put(&*volume, Ino::ROOT, "newer", &noise(4, 200_000));
    archive(&volume).unwrap();
    close(volume);
    fs::remove_dir_all(place.external()).unwrap();
    fs::rename(&older, place.external()).unwrap();
    assert_refused(&place.path(), "no longer has our epoch");

    let taken = take(&place.path(), &place.external()).unwrap();
    assert!(taken.is_our_past && taken.set_aside.is_none(), "{taken:?}");
    let volume = place.open();
    archive(&volume).unwrap();
    assert_eq!(content(&*volume, "newer").unwrap(), noise(4, 200_000));
    close(volume);
    assert_eq!(away(&place.external(), "newer"), noise(4, 200_000));
    assert_eq!(away(&place.external(), "late"), b"late");
    assert_sound(&place.path());
}

#[test]
fn what_was_verified_and_is_not_listed_is_sent_again() {
    let place = Place::new();
    archived(&place);
    fs::remove_dir_all(place.external().join("items")).unwrap();
    let taken = take(&place.path(), &place.external()).unwrap();
    assert_eq!((taken.is_our_past, taken.packs), (true, 0));
    let volume = place.open();
    archive(&volume).unwrap();
    let start = Instant::now();
    while volume.status().packs.unsent_count > 0 && start.elapsed() < PATIENCE {
        volume.wait(Durability::External, &mut |_| true).unwrap();
    }
    close(volume);
    assert_eq!(away(&place.external(), "first"), noise(1, 200_000));
    assert_sound(&place.path());
}

#[test]
fn of_several_who_take_over_at_once_at_most_one_goes_on_and_the_next_attempt_succeeds() {
    let place = Place::new();
    archived(&place);
    let heirs: Vec<PathBuf> = ["a", "b", "c"]
        .iter()
        .map(|name| fresh(&place, name))
        .collect();
    let start = Barrier::new(heirs.len());
    let won: Vec<&PathBuf> = std::thread::scope(|scope| {
        let attempts: Vec<_> = heirs
            .iter()
            .map(|root| {
                let (start, place) = (&start, &place);
                scope.spawn(move || {
                    start.wait();
                    take(root, &place.external()).is_ok().then_some(root)
                })
            })
            .collect();
        attempts
            .into_iter()
            .filter_map(|one| one.join().unwrap())
            .collect()
    });
    // One after the other is no contradiction: then the last one is the owner.
    let last = heirs.iter().rfind(|root| won.contains(root)).cloned();
    let owner = match &won[..] {
        [] => {
            take(&heirs[0], &place.external()).unwrap();
            heirs[0].clone()
        }
        [owner] => (*owner).clone(),
        _ => {
            let root = last.unwrap();
            take(&root, &place.external()).unwrap();
            root
        }
    };
    let volume = common::open(&owner).unwrap();
    put(&*volume, Ino::ROOT, "mine", b"mine");
    archive(&volume).unwrap();
    close(volume);
    assert_eq!(away(&place.external(), "mine"), b"mine");
    for root in won.into_iter().filter(|root| **root != owner) {
        assert_refused(root, "taken over");
    }
    assert_refused(&place.path(), "taken over");
}

#[test]
fn a_backup_path_in_the_middle_of_a_take_over_is_not_opened() {
    let place = Place::new();
    archived(&place);
    fs::write(place.path().join("take-over.json"), b"{}").unwrap();
    match common::open(&place.path()) {
        Err(Error::Refused(reason)) => assert!(reason.contains("--take-over again"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn evicted_packs_are_not_left_behind_by_taking_over_a_copy_that_lacks_them() {
    let place = Place::new();
    archived(&place);
    let older = place.dir.path().join("copied");
    copy(&place.external(), &older);
    fs::remove_dir_all(older.join("items")).unwrap();
    fs::create_dir(older.join("items")).unwrap();
    // As if the cache had been emptied.
    let volume = place.open();
    let Store::Dir { store, .. } = volume.settings().store else {
        panic!("no store");
    };
    close(volume);
    let uuid = tidefs::types::Uuid::parse(&store).unwrap();
    let ledger = tidefs::pack::ledger::Ledger::open(&place.path().join("journal"), uuid).unwrap();
    for (pack, _) in ledger.all() {
        ledger.evicted(pack).unwrap();
    }
    ledger.sync().unwrap();
    drop(ledger);
    let before = files(&older);
    match take(&place.path(), &older) {
        Err(Error::Refused(reason)) => {
            assert!(reason.contains("older or another copy"), "{reason}");
        }
        outcome => panic!("{outcome:?}"),
    }
    assert_eq!(before, files(&older));
}
