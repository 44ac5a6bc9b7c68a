//! What is read again of evicted packs: it stays here within its budget, also while the external volume is away, and
//! nothing is served from it that was not written.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Place, close, content, mkdir, noise, put};
use tidefs::types::Ino;
use tidefs::volume::settings::Settings;
use tidefs::volume::{Durability, Volume};

/// Everything is evicted as soon as it may be.
fn settings(read_cache_bytes: u64) -> Settings {
    Settings {
        cache_bytes: 0,
        evict_after_secs: 0,
        reserve_bytes: 0,
        read_cache_bytes,
        ..Settings::default()
    }
}

/// A volume with these files, each in a pack of its own, all of them only on the external volume.
fn evicted(read_cache_bytes: u64, files: &[Vec<u8>]) -> Place {
    let place = Place::with(settings(read_cache_bytes));
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    for (n, bytes) in files.iter().enumerate() {
        put(&*volume, account, &format!("f{n}"), bytes);
        volume.close_epoch(None).unwrap();
    }
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    wait_until("evicted", || volume.status().cache_bytes == 0);
    assert_eq!(volume.status().read_cache_bytes, 0);
    close(volume);
    place
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn assert_reads(volume: &Arc<Volume>, name: &str, bytes: &[u8]) {
    assert!(
        content(&**volume, name).unwrap() == bytes,
        "{name} is not what was written"
    );
}

fn go_away(place: &Place) -> PathBuf {
    let away = place.dir.path().join("away");
    fs::rename(place.external(), &away).unwrap();
    away
}

/// The packs of a backup path or an external volume, largest first.
fn packs(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for shard in fs::read_dir(root.join("items")).unwrap() {
        for pack in fs::read_dir(shard.unwrap().path()).unwrap() {
            let pack = pack.unwrap();
            found.push((pack.metadata().unwrap().len(), pack.path()));
        }
    }
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

fn allocated(root: &Path) -> u64 {
    let blocks = packs(root)
        .into_iter()
        .map(|path| fs::metadata(path).unwrap().blocks());
    blocks.sum::<u64>() * 512
}

#[test]
fn what_was_read_again_is_here_after_a_restart_in_an_outage() {
    // More than one pack, and more than the memory for blobs.
    let bytes = noise(1, 72 << 20);
    let place = evicted(1 << 30, std::slice::from_ref(&bytes));
    let empty = allocated(&place.path());
    let volume = place.open();
    assert_reads(&volume, "alice/f0", &bytes);
    // Ranges are put away behind the answers.
    wait_until("kept", || {
        volume.status().read_cache_bytes >= bytes.len() as u64
    });
    let status = volume.status();
    assert_eq!(
        status.cache_bytes, 0,
        "they count for the read cache, not as whole packs"
    );
    assert_eq!(status.read_cache_bytes, allocated(&place.path()) - empty);
    close(volume);
    let away = go_away(&place);

    let volume = place.open();
    assert_reads(&volume, "alice/f0", &bytes);
    wait_until("measured", || {
        volume.status().read_cache_bytes == status.read_cache_bytes
    });
    assert!(volume.set_store(None).is_err(), "a cache is not a copy");
    fs::rename(away, place.external()).unwrap();
    close(volume);
    let report = tidefs::maintain::check::check(
        &place.path(),
        tidefs::maintain::check::CheckOptions {
            read_data: true,
            external: true,
        },
        &mut |_, _| {},
    );
    let report = report.unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn the_read_cache_keeps_to_its_budget_and_every_byte_is_right() {
    let budget = 8 << 20;
    let files: Vec<Vec<u8>> = (0..6).map(|n| noise(n, 3 << 20)).collect();
    let place = evicted(budget, &files);
    let empty = allocated(&place.path());
    for _ in 0..2 {
        // Anew each time, or memory has it all.
        let volume = place.open();
        for (n, bytes) in files.iter().enumerate() {
            assert_reads(&volume, &format!("alice/f{n}"), bytes);
            assert!(volume.status().read_cache_bytes <= budget);
        }
        close(volume);
        assert!(allocated(&place.path()) <= empty + budget);
    }
    go_away(&place);
    let volume = place.open();
    assert_reads(&volume, "alice/f5", &files[5]);
    assert!(
        content(&*volume, "alice/f0").is_err(),
        "read first, it had to go"
    );
    close(volume);
}

#[test]
fn unsent_data_and_the_read_cache_do_not_take_each_other_s_room() {
    let files = [noise(1, 4 << 20)];
    let place = evicted(8 << 20, &files);
    let volume = place.open();
    assert_reads(&volume, "alice/f0", &files[0]);
    // Ranges are put away behind the answers.
    wait_until("kept", || {
        volume.status().read_cache_bytes >= files[0].len() as u64
    });
    close(volume);
    go_away(&place);
    let volume = place.open();
    wait_until("measured", || volume.status().read_cache_bytes > 0);
    let kept = volume.status().read_cache_bytes;
    let account = common::find(&*volume, "alice").unwrap().ino;
    let unsent = noise(2, 20 << 20);
    put(&*volume, account, "unsent", &unsent);
    volume.close_epoch(None).unwrap();
    wait_until("measured", || volume.status().read_cache_bytes == kept);
    assert!(
        volume.status().cache_bytes >= 20 << 20,
        "above both budgets, and unsent"
    );
    assert_reads(&volume, "alice/f0", &files[0]);
    assert_reads(&volume, "alice/unsent", &unsent);
    close(volume);
}

#[test]
fn a_torn_fill_is_never_served_and_is_fetched_again() {
    let bytes = noise(7, 4 << 20);
    let place = evicted(1 << 30, std::slice::from_ref(&bytes));
    let volume = place.open();
    assert_reads(&volume, "alice/f0", &bytes);
    wait_until("kept", || {
        volume.status().read_cache_bytes >= bytes.len() as u64
    });
    close(volume);
    let pack = packs(&place.path()).remove(0);
    let file = fs::File::options().write(true).open(&pack).unwrap();
    // Zeros for pages that did not reach the disk, half of one, other bytes, a header without its payload.
    for (at, len, byte) in [
        (100_000, 4096, 0),
        (1_000_100, 300, 0),
        (2_000_000, 10, 7),
        (3_000_000, 70_000, 0),
    ] {
        file.write_all_at(&vec![byte; len], at).unwrap();
    }
    let torn = fs::read(&pack).unwrap();
    let away = go_away(&place);
    let volume = place.open();
    let alone = content(&*volume, "alice/f0");
    assert!(alone.is_err(), "what was torn was served, or was not there");
    close(volume);
    fs::rename(away, place.external()).unwrap();
    let volume = place.open();
    assert_reads(&volume, "alice/f0", &bytes);
    close(volume);
    assert!(fs::read(&pack).unwrap() != torn, "it was mended");
    go_away(&place);
    let volume = place.open();
    assert_reads(&volume, "alice/f0", &bytes);
    close(volume);
}

#[test]
fn a_damaged_external_copy_is_an_error_and_never_other_bytes() {
    let bytes = noise(9, 4 << 20);
    let place = evicted(1 << 30, std::slice::from_ref(&bytes));
    let pack = packs(&place.external()).remove(0);
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&pack)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 2 << 20).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 2 << 20).unwrap();
    let volume = place.open();
    let ino = common::find(&*volume, "alice/f0").unwrap().ino;
    for _ in 0..2 {
        let mut refused = 0;
        for (n, expected) in bytes.chunks(64 << 10).enumerate() {
            match common::read(&*volume, ino, (n as u64) << 16, 64 << 10) {
                Ok(read) => assert!(read == expected),
                Err(error) => {
                    refused += 1;
                    assert!(error.chain().contains(".pack"), "{}", error.chain());
                }
            }
        }
        assert!(
            (1..=6).contains(&refused),
            "one blob of 4 MiB is damaged: {refused}"
        );
    }
    close(volume);
}
