//! The main job without a mount: write, make durable, upload, lose the machine, read from what is left.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::{Place, close, content, find, fsync, make, mkdir, noise, put};
use tidefs::types::{FileKind, Ino};
use tidefs::volume::tree::{OpenMode, Tree};
use tidefs::volume::{Durability, external};

#[test]
fn what_was_written_is_there_after_closing_and_opening() {
    let place = Place::new();
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    put(&*volume, account, "small", b"hello");
    let big = noise(1, 5 << 20);
    put(&*volume, account, "big", &big);
    assert_eq!(
        content(&*volume, "alice/big").unwrap(),
        big,
        "before closing"
    );
    close(volume);
    let volume = place.open();
    assert_eq!(content(&*volume, "alice/small").unwrap(), b"hello");
    assert_eq!(content(&*volume, "alice/big").unwrap(), big);
    close(volume);
}

#[test]
fn what_was_fsynced_survives_a_process_that_just_ends() {
    let place = Place::new();
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    let ino = make(&*volume, account, "f", FileKind::File).ino;
    volume
        .open(
            ino,
            OpenMode {
                write: true,
                ..OpenMode::default()
            },
        )
        .unwrap();
    let bytes = noise(2, 300_000);
    common::write(&*volume, ino, 0, &bytes);
    fsync(&*volume, ino);
    // A copy of the files as they are now is what a killed process leaves.
    let copy = place.dir.path().join("copy");
    // Without the index, which is being filled: it is no part of the truth.
    std::fs::create_dir_all(copy.join("index")).unwrap();
    for part in ["accounts", "items", "journal", "server", "settings.json"] {
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(place.path().join(part))
            .arg(&copy)
            .status()
            .unwrap();
        assert!(status.success());
    }
    let recovered = common::open(&copy).unwrap();
    assert!(
        recovered.status().recovery.frames > 0,
        "nothing was pending: the test shows nothing"
    );
    assert_eq!(content(&*recovered, "alice/f").unwrap(), bytes);
    drop(recovered);
    drop(volume);
}

#[test]
fn the_external_volume_alone_gives_everything_back_as_of_each_moment() {
    let place = Place::new();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    let first = noise(3, 2 << 20);
    put(&*volume, account, "kept", &first);
    put(&*volume, account, "gone", b"was here");
    let before = volume.close_epoch(Some("before".into())).unwrap();
    volume.unlink(account, b"gone").unwrap();
    put(&*volume, account, "new", b"later");
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    close(volume);
    std::fs::remove_dir_all(place.path()).unwrap();

    let store = Arc::new(vfs::DirVolume::open(place.external()).unwrap());
    let away = external::open_external(store).unwrap();
    let now = away.tree(None).unwrap();
    assert_eq!(content(&*now, "alice/kept").unwrap(), first);
    assert_eq!(content(&*now, "alice/new").unwrap(), b"later");
    assert!(find(&*now, "alice/gone").is_err());
    let then = away.tree(Some(before)).unwrap();
    assert_eq!(content(&*then, "alice/gone").unwrap(), b"was here");
    assert!(find(&*then, "alice/new").is_err());
    assert!(
        away.epochs()
            .unwrap()
            .iter()
            .any(|epoch| epoch.name.as_deref() == Some("before"))
    );
}

#[test]
fn an_evicted_pack_is_read_from_the_external_volume_and_the_rest_from_here() {
    let settings = tidefs::volume::settings::Settings {
        cache_bytes: 1,
        // What was read once is to be asked for again.
        read_cache_bytes: 0,
        evict_after_secs: 0,
        reserve_bytes: 0,
        ..Default::default()
    };
    let place = Place::with(settings);
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    let bytes = noise(4, 3 << 20);
    put(&*volume, account, "f", &bytes);
    // Not sent: nothing may be evicted, however small the cache.
    volume.close_epoch(None).unwrap();
    assert!(volume.status().cache_bytes > 3 << 20);
    volume.set_store(Some(place.external())).unwrap();
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    let mut patience = 200;
    while volume.status().cache_bytes > 0 {
        patience -= 1;
        assert!(patience > 0, "nothing was evicted: {:?}", volume.status());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    close(volume);
    let volume = place.open();
    assert_eq!(content(&*volume, "alice/f").unwrap(), bytes);
    // Dedupe still knows the evicted blobs, and the volume cannot be left behind.
    put(&*volume, account, "again", &bytes);
    assert!(volume.status().packs.bytes < 4 << 20, "stored twice");
    assert!(volume.set_store(None).is_err());
    close(volume);
    std::fs::rename(place.external(), place.dir.path().join("away")).unwrap();
    let volume = place.open();
    assert!(
        content(&*volume, "alice/f").is_err(),
        "the bytes came from somewhere else"
    );
    drop(volume);
}
