//! Getting it back, through the program as people call it: what comes back is the same to the last attribute, a second
//! run has nothing to do, and whatever a volume says, nothing is written outside the destination.
//!
//! As root everything is tried; as another user what that user can do.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "restore/deleted.rs"]
mod deleted;
#[path = "restore/forge.rs"]
mod forge;
#[path = "restore/hostile.rs"]
mod hostile;
#[path = "restore/load.rs"]
mod load;
#[path = "restore/program.rs"]
mod program;
#[path = "restore/stopped.rs"]
mod stopped;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::{Place, close, mkdir, noise, put};
use program::{Ended, compare, is_root, restore, restore_away};
use tidefs::types::Ino;
use tidefs::volume::Durability;
use tidefs::volume::tree::Tree;

fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scripts")
        .join(name)
}

/// A volume with all that is odd in the account `odd`, archived; and the tree it was made of.
fn odd() -> (Place, std::path::PathBuf) {
    let place = Place::new();
    let tree = place.dir.path().join("tree");
    let made = Command::new(script("make-odd-tree"))
        .arg(&tree)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    fs::write(tree.join("large"), noise(7, 5_000_000)).unwrap();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    load::load(&volume, "odd", &tree);
    volume.close_epoch(None).unwrap();
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    close(volume);
    (place, tree)
}

#[test]
fn all_that_is_odd_comes_back_and_a_second_run_has_nothing_to_do() {
    if !is_root() {
        eprintln!("skipped: only root makes devices and foreign owners");
        return;
    }
    let (place, tree) = odd();
    let to = place.dir.path().join("back");
    let would = restore(&place, &["--dry-run", "odd"], &to).json();
    assert!(!to.exists(), "a dry run writes nothing");
    let did = restore(&place, &["odd"], &to).json();
    assert_eq!(
        (did["unrestored"].clone(), did["stripped_count"].clone()),
        (0.into(), 0.into()),
        "{did}"
    );
    assert_eq!(would["restored"], did["restored"]);
    compare(&tree, &to);
    let again = restore(&place, &["odd"], &to).json();
    assert_eq!(
        (&again["restored"], &again["skipped"]),
        (&0.into(), &did["restored"])
    );
    compare(&tree, &to);
    assert!(
        fs::metadata(to.join("sparse/only-a-hole"))
            .unwrap()
            .blocks()
            < 16,
        "holes stay holes"
    );

    // The server is gone.
    fs::remove_dir_all(place.path()).unwrap();
    let away = place.dir.path().join("away");
    restore_away(&place, &["odd"], &away).json();
    compare(&tree, &away);
}

#[test]
fn a_file_a_directory_and_a_moment_are_restored_by_their_names() {
    let place = Place::new();
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    let docs = mkdir(&*volume, account, "docs");
    put(&*volume, docs, "report", b"first");
    let other = mkdir(&*volume, Ino::ROOT, "bob");
    put(&*volume, other, "his", b"his");
    volume.close_epoch(Some("before".into())).unwrap();
    volume.unlink(docs, b"report").unwrap();
    put(&*volume, docs, "report", b"second");
    close(volume);
    let to = |name: &str| place.dir.path().join(name);
    restore(&place, &["alice/docs/report"], &to("one")).json();
    assert_eq!(fs::read(to("one").join("report")).unwrap(), b"second");
    restore(&place, &["--at", "before", "/alice/docs/"], &to("docs")).json();
    assert_eq!(fs::read(to("docs").join("report")).unwrap(), b"first");
    restore(&place, &["/"], &to("all/of/it")).json();
    assert_eq!(
        fs::read(to("all/of/it").join("alice/docs/report")).unwrap(),
        b"second"
    );
    assert_eq!(fs::read(to("all/of/it").join("bob/his")).unwrap(), b"his");
    restore(&place, &["alice/none"], &to("none")).says(1, "there is no 'alice/none'");
    restore(&place, &["--at", "1999-01-01", "alice"], &to("none")).says(1, "the first epoch is 1");
    restore(&place, &["alice"], &place.path().join("x")).says(2, "in the backup path");
    restore(&place, &["alice"], &to("one").join("report")).says(1, "Not a directory");
    assert!(!to("none").exists());
}

#[test]
fn what_is_there_is_left_replaced_or_passed_over_as_it_was_asked() {
    let place = Place::new();
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    for name in ["same", "changed", "dir", "link"] {
        put(&*volume, account, name, b"of the volume");
    }
    close(volume);
    let to = place.dir.path().join("back");
    restore(&place, &["alice"], &to).json();
    let outside = place.dir.path().join("outside");
    fs::write(&outside, b"outside").unwrap();
    let spoil = || {
        fs::write(to.join("changed"), b"of somebody else").unwrap();
        fs::remove_file(to.join("link")).unwrap();
        symlink(&outside, to.join("link")).unwrap();
        fs::write(to.join("own"), b"only here").unwrap();
    };
    spoil();
    fs::remove_file(to.join("dir")).unwrap();
    fs::create_dir(to.join("dir")).unwrap();
    let never = restore(&place, &["--overwrite", "never", "alice"], &to).json();
    assert_eq!(
        (&never["kept_count"], &never["restored"]),
        (&3.into(), &1.into()),
        "{never}"
    );
    assert_eq!(fs::read(to.join("changed")).unwrap(), b"of somebody else");
    let changed = restore(&place, &["alice"], &to);
    let changed = changed.document(4);
    assert_eq!(
        (&changed["unrestored"], &changed["restored"]),
        (&1.into(), &3.into()),
        "{changed}"
    );
    assert_eq!(changed["failures"][0]["path"], "dir");
    assert_eq!(fs::read(to.join("changed")).unwrap(), b"of the volume");
    assert_eq!(fs::read(to.join("link")).unwrap(), b"of the volume");
    assert_eq!(fs::read(&outside).unwrap(), b"outside");
    assert_eq!(fs::read(to.join("own")).unwrap(), b"only here");
    fs::remove_dir(to.join("dir")).unwrap();
    let always = restore(&place, &["--overwrite", "always", "alice"], &to).json();
    assert!(always["restored"].as_u64() >= Some(4), "{always}");
}

#[test]
fn a_path_that_is_longer_than_a_system_call_takes_comes_back() {
    let place = Place::new();
    let volume = place.open();
    let mut dir = mkdir(&*volume, Ino::ROOT, "alice");
    let name = "d".repeat(200);
    for _ in 0..40 {
        dir = mkdir(&*volume, dir, &name);
    }
    put(&*volume, dir, "leaf", b"deep");
    close(volume);
    let to = place.dir.path().join("back");
    restore(&place, &["alice"], &to).json();
    let mut at = fs::File::open(&to).unwrap();
    let below = |dir: &fs::File, name: &str| {
        let way = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
        fs::File::open(way).unwrap()
    };
    for _ in 0..40 {
        at = below(&at, &name);
    }
    let leaf = below(&at, "leaf");
    assert_eq!(std::io::read_to_string(leaf).unwrap(), "deep");
    assert_eq!(restore(&place, &["alice"], &to).json()["restored"], 0);
}

#[test]
fn the_destination_keeps_its_own_owner_and_mode_if_it_had_something_in_it() {
    let place = Place::new();
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    put(&*volume, account, "file", b"content");
    close(volume);
    let to = place.dir.path().join("shared");
    fs::create_dir(&to).unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(to.join("own"), b"only here").unwrap();
    restore(&place, &["alice"], &to).json();
    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o711);
    fs::remove_file(to.join("own")).unwrap();
    fs::remove_file(to.join("file")).unwrap();
    restore(&place, &["alice"], &to).json();
    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_damaged_pack_costs_the_items_that_are_in_it_and_they_are_named() {
    let place = Place::new();
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    put(&*volume, account, "first", &noise(1, 300_000));
    volume.close_epoch(None).unwrap();
    put(&*volume, account, "second", &noise(2, 300_000));
    close(volume);
    let packs = program::files(&place.path().join("items"));
    assert_eq!(packs.len(), 2);
    fs::write(&packs[0], b"no pack").unwrap();
    let to = place.dir.path().join("back");
    let ended = restore(&place, &["alice"], &to).document(4);
    assert_eq!(ended["unrestored"], 1, "{ended}");
    let lost = ended["failures"][0]["path"].as_str().unwrap().to_owned();
    assert!(
        ended["failures"][0]["reason"]
            .as_str()
            .unwrap()
            .contains(".pack"),
        "{ended}"
    );
    let (n, kept) = if lost == "first" {
        (2, "second")
    } else {
        (1, "first")
    };
    assert_eq!(fs::read(to.join(kept)).unwrap(), noise(n, 300_000));
    assert!(!to.join(lost).exists());
}

#[test]
fn an_external_volume_that_is_away_is_code_5() {
    let place = Place::new();
    let to = place.dir.path().join("back");
    let gone = format!("dir:{}", place.dir.path().join("gone").display());
    Ended::of(
        &place,
        &[
            "restore",
            "--external",
            &gone,
            "alice",
            to.to_str().unwrap(),
        ],
        None,
    )
    .says(5, "does not exist");
    assert!(!to.exists());
}

#[test]
fn who_is_not_root_gets_content_and_no_foreign_rights() {
    if !is_root() {
        eprintln!("skipped: only root becomes somebody else");
        return;
    }
    let (place, _) = odd();
    let nobody = tempfile::tempdir().unwrap();
    for dir in [place.dir.path(), nobody.path()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::os::unix::fs::chown(nobody.path(), Some(65_534), Some(65_534)).unwrap();
    let opened = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(place.external())
        .status();
    assert!(opened.unwrap().success());
    let to = nobody.path().join("back");
    let ended = program::restore_as_nobody(&place, "odd", &to).document(4);
    let failed: Vec<&str> = ended["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["path"].as_str().unwrap())
        .collect();
    assert_eq!(failed.len(), 2, "the devices: {failed:?}");
    let setuid = fs::metadata(to.join("modes/4755")).unwrap();
    assert_eq!((setuid.uid(), setuid.mode() & 0o7777), (65_534, 0o755));
    assert_eq!(fs::read_to_string(to.join("modes/4755")).unwrap(), "4755\n");
    let stripped = ended["stripped"].as_array().unwrap();
    let of_setuid = stripped
        .iter()
        .find(|one| one["path"] == "modes/4755")
        .unwrap();
    let reason = of_setuid["reason"].as_str().unwrap();
    assert!(
        reason.contains("set-user-ID") && reason.contains("its owner 0"),
        "{reason}"
    );
}

#[test]
fn the_runbook_brings_everything_back_with_the_commands_it_names() {
    let place = Place::new();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    put(&*volume, account, "file", &noise(3, 100_000));
    volume.close_epoch(None).unwrap();
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    close(volume);
    fs::remove_dir_all(place.path()).unwrap();
    let restored = place.dir.path().join("restored");
    let runbook = include_str!("../docs/disaster-recovery.md");
    let commands = runbook.lines().map(str::trim);
    let commands: Vec<String> = commands
        .filter(|line| line.starts_with("tidefs restore "))
        .map(|line| line.replace("/mnt/nas/thishost", place.external().to_str().unwrap()))
        .map(|line| line.replace("/srv/restored", restored.to_str().unwrap()))
        .collect();
    assert_eq!(commands.len(), 2, "to restore, and to verify");
    let counts: Vec<_> = commands
        .iter()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').skip(1).collect();
            Ended::of(&place, &words, None).json()["restored"].clone()
        })
        .collect();
    assert_eq!(counts, [2, 0]);
    assert_eq!(
        fs::read(restored.join("alice/file")).unwrap(),
        noise(3, 100_000)
    );
}
