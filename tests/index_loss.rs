//! The index is a cache (invariant 4): whatever happens to it, the mount serves at once, shows the same
//! tree, never asks the external volume, and has a good index again later.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Place, close, content, find, fsync, make, mkdir, noise, put};
use tidefs::types::{FileKind, Ino};
use tidefs::volume::tree::{Attr, OpenMode, Tree};
use tidefs::volume::{Durability, Volume};

const DIRS: usize = 20;
const FILES_PER_DIR: usize = 1000;
/// Opening and a first look take no longer than this, however big the volume is.
const AT_ONCE: Duration = Duration::from_secs(1);
const REFILL_PATIENCE: Duration = Duration::from_secs(60);

type Listing = Vec<(String, Attr)>;

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Every name of the volume with its attributes.
fn listing(tree: &dyn Tree) -> Listing {
    let mut found = Vec::new();
    let mut waiting = vec![(String::new(), Ino::ROOT)];
    while let Some((path, dir)) = waiting.pop() {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let entries = tree.readdir(dir, after.as_deref(), 500).unwrap();
            let Some(last) = entries.last() else { break };
            after = Some(last.name.to_vec());
            for entry in entries {
                let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
                if entry.attr.kind == FileKind::Dir {
                    waiting.push((path.clone(), entry.attr.ino));
                }
                found.push((path, entry.attr));
            }
        }
    }
    found
}

fn index_of(path: &Path) -> PathBuf {
    path.join("index/tree")
}

/// Written when the index is complete, and removed with an index that is discarded.
fn checkpoint_of(path: &Path) -> PathBuf {
    index_of(path).join("checkpoint")
}

/// The index's largest file.
fn largest_file(dir: &Path) -> PathBuf {
    let mut found = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            } else {
                found.push((entry.metadata().unwrap().len(), entry.path()));
            }
        }
    }
    found.into_iter().max().unwrap().1
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x55], offset).unwrap();
}

fn truncate(path: &Path, len: u64) {
    OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

/// 20 000 files of which a few have content, archived and closed; and its index as it was halfway.
struct Big {
    place: Place,
    older_index: PathBuf,
    listing: Listing,
    content: Vec<u8>,
}

fn big() -> Big {
    let place = Place::new();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    let fill = |volume: &Volume, dirs: std::ops::Range<usize>| {
        for dir in dirs {
            let account = mkdir(volume, Ino::ROOT, &format!("account-{dir}"));
            for n in 0..FILES_PER_DIR {
                make(volume, account, &format!("file-{n}"), FileKind::File);
            }
        }
    };
    fill(&volume, 0..DIRS / 2);
    volume.close_epoch(None).unwrap();
    wait_for_index(&place.path());
    close(volume);
    let older_index = place.dir.path().join("older-index");
    copy(&index_of(&place.path()), &older_index);
    let volume = place.open();
    fill(&volume, DIRS / 2..DIRS);
    let bytes = noise(7, 300_000);
    let account = find(&*volume, "account-3").unwrap().ino;
    put(&*volume, account, "with-content", &bytes);
    volume.unlink(account, b"file-5").unwrap();
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    let listing = listing(&*volume);
    assert_eq!(listing.len(), DIRS * (FILES_PER_DIR + 1));
    close(volume);
    Big {
        place,
        older_index,
        listing,
        content: bytes,
    }
}

fn wait_for_index(path: &Path) {
    let start = Instant::now();
    while !checkpoint_of(path).exists() {
        assert!(
            start.elapsed() < REFILL_PATIENCE,
            "the index is not refilled"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

type Damage = (&'static str, bool, fn(&Path, &Big));

/// What is done to the index, and whether it is then gone for certain, so that a refill is sure to follow.
const DAMAGES: [Damage; 12] = [
    ("everything deleted", true, |path, _| {
        fs::remove_dir_all(path.join("index")).unwrap();
    }),
    ("the index deleted", true, |path, _| {
        fs::remove_dir_all(index_of(path)).unwrap();
    }),
    ("its checkpoint deleted", true, |path, _| {
        fs::remove_file(checkpoint_of(path)).unwrap();
    }),
    ("its checkpoint cut", true, |path, _| {
        truncate(&checkpoint_of(path), 40);
    }),
    ("its checkpoint flipped", true, |path, _| {
        flip(&checkpoint_of(path), 30);
    }),
    ("its store cut in half", false, |path, _| {
        let file = largest_file(&index_of(path));
        truncate(&file, file.metadata().unwrap().len() / 2);
    }),
    ("its store emptied", true, |path, _| {
        truncate(&largest_file(&index_of(path)), 0);
    }),
    ("bytes flipped all over its store", false, |path, _| {
        let file = largest_file(&index_of(path));
        let len = file.metadata().unwrap().len();
        for n in 1..40 {
            flip(&file, len / 41 * n + 13);
        }
    }),
    ("a byte flipped in its store", false, |path, _| {
        let file = largest_file(&index_of(path));
        flip(&file, file.metadata().unwrap().len() / 3);
    }),
    ("an older copy in its place", true, |path, big| {
        fs::remove_dir_all(index_of(path)).unwrap();
        copy(&big.older_index, &index_of(path));
    }),
    ("a file in its place", true, |path, _| {
        fs::remove_dir_all(index_of(path)).unwrap();
        fs::write(index_of(path), "not an index").unwrap();
    }),
    ("the blob index cut and flipped", false, |path, _| {
        for entry in fs::read_dir(path.join("index/blobs")).unwrap() {
            let file = entry.unwrap().path();
            let len = file.metadata().unwrap().len();
            truncate(&file, len - len / 4);
            if len > 200 {
                flip(&file, 100);
            }
        }
    }),
];

/// Invariant 4, for each way in which an index gets lost; the external volume is away all the time.
#[test]
fn a_volume_whose_index_was_damaged_serves_the_same_tree_at_once_and_mends_it() {
    let big = big();
    fs::rename(big.place.external(), big.place.dir.path().join("away")).unwrap();
    let mut slowest = Duration::ZERO;
    let mut early_looks = 0;
    for (what, is_gone, damage) in DAMAGES {
        let path = big.place.dir.path().join("damaged");
        copy(&big.place.path(), &path);
        damage(&path, &big);

        let start = Instant::now();
        let volume = common::open(&path).unwrap();
        let bytes = content(&*volume, "account-3/with-content");
        let bytes = bytes.unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
        assert!(bytes == big.content, "{what}");
        let last = find(&*volume, "account-19/file-999").unwrap();
        let took = start.elapsed();
        let is_early = !checkpoint_of(&path).exists();
        assert!(took < AT_ONCE, "{what}: opening and looking took {took:?}");
        slowest = slowest.max(took);
        early_looks += usize::from(is_early);
        assert!(
            find(&*volume, "account-3/file-5").is_err(),
            "{what}: a deleted file is back"
        );
        assert_eq!(listing(&*volume), big.listing, "{what}");

        // Writing goes on meanwhile, and what is written stays.
        let account = find(&*volume, "account-7").unwrap().ino;
        put(&*volume, account, "new", what.as_bytes());
        volume.close_epoch(None).unwrap();
        if is_gone {
            wait_for_index(&path);
        }
        close(volume);

        for opening in 1..=2 {
            let volume = common::open(&path).unwrap();
            let recovery = volume.status().recovery;
            if is_gone || opening == 2 {
                assert!(index_of(&path).is_dir(), "{what}");
                assert_eq!(
                    (recovery.index_note, recovery.frames),
                    (None, 0),
                    "{what}, opening {opening}"
                );
            }
            assert_eq!(content(&*volume, "account-7/new").unwrap(), what.as_bytes());
            assert_eq!(listing(&*volume).len(), big.listing.len() + 1, "{what}");
            assert_eq!(find(&*volume, "account-19/file-999").unwrap(), last);
            wait_for_index(&path);
            close(volume);
        }
        fs::remove_dir_all(&path).unwrap();
    }
    assert!(
        early_looks >= 5,
        "only {early_looks} looks came before the refill was over: the volume is too small"
    );
    eprintln!(
        "{early_looks} looks before the refill was over; the slowest opening and look: {slowest:?}"
    );
}

/// After a flipped byte sled may give back an older page, which looks right by itself.
#[test]
fn a_byte_flipped_anywhere_in_the_index_never_shows_another_tree() {
    const PLACES: u64 = 24;
    let big = big();
    let path = big.place.dir.path().join("flipped");
    for place in 0..PLACES {
        copy(&big.place.path(), &path);
        let file = largest_file(&index_of(&path));
        flip(&file, file.metadata().unwrap().len() * place / PLACES + 17);
        let volume = common::open(&path).unwrap();
        let what = format!("flipped at {place} of {PLACES}");
        assert!(listing(&*volume) == big.listing, "{what}");
        volume.close_epoch(Some("later".into())).unwrap();
        assert!(listing(&*volume) == big.listing, "{what}, later");
        close(volume);
        fs::remove_dir_all(&path).unwrap();
    }
}

/// A refill that was overtaken by a close leaves an index of an older epoch, whose journal is dropped.
#[test]
fn what_was_written_while_the_index_was_refilled_is_there_after_closing() {
    for round in 0..30_usize {
        let place = Place::new();
        let volume = place.open();
        put(&*volume, Ino::ROOT, "first", b"1");
        // Somewhere in the refill of a new volume's index.
        for n in 0..round * 20 {
            find(&*volume, "first").unwrap();
            std::hint::black_box(n);
        }
        if round % 2 == 0 {
            volume.close_epoch(None).unwrap();
            put(&*volume, Ino::ROOT, "second", b"2");
        }
        close(volume);
        for _ in 0..2 {
            let volume = place.open();
            assert_eq!(content(&*volume, "first").unwrap(), b"1", "round {round}");
            assert_eq!(
                find(&*volume, "second").is_ok(),
                round % 2 == 0,
                "round {round}"
            );
            close(volume);
        }
    }
}

/// The index's checkpoint of an epoch is no proof that the journal still has the ones behind it.
#[test]
fn an_index_that_is_behind_is_used_only_if_the_journal_has_the_rest() {
    let place = Place::new();
    let volume = place.open();
    put(&*volume, Ino::ROOT, "old", b"old");
    volume.close_epoch(None).unwrap();
    wait_for_index(&place.path());
    close(volume);
    let older = place.dir.path().join("older-index");
    copy(&index_of(&place.path()), &older);

    let volume = place.open();
    put(&*volume, Ino::ROOT, "archived-later", b"x");
    volume.unlink(Ino::ROOT, b"old").unwrap();
    volume.close_epoch(None).unwrap();
    let ino = make(&*volume, Ino::ROOT, "in-the-journal", FileKind::File).ino;
    volume
        .open(
            ino,
            OpenMode {
                write: true,
                ..OpenMode::default()
            },
        )
        .unwrap();
    fsync(&*volume, ino);
    let killed = place.dir.path().join("killed");
    fs::create_dir(&killed).unwrap();
    for part in ["accounts", "items", "journal", "server", "settings.json"] {
        copy(&place.path().join(part), &killed.join(part));
    }
    fs::create_dir(killed.join("index")).unwrap();
    copy(&older, &index_of(&killed));

    let recovered = common::open(&killed).unwrap();
    let note = recovered.status().recovery.index_note;
    assert!(note.is_some(), "the stale index was not noticed");
    assert!(
        find(&*recovered, "archived-later").is_ok(),
        "a closed epoch was lost"
    );
    assert!(find(&*recovered, "old").is_err(), "a deleted file is back");
    assert!(
        find(&*recovered, "in-the-journal").is_ok(),
        "an fsynced file was lost"
    );
}
