//! `check` finds nothing on a sound volume, open or not; and `check --fix` puts right whatever one of the two
//! places still has whole, destroying nothing (invariant 11).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::sample::{Damage, Sample, archived, crashed, damage, memory_dir};
use common::{Place, close, mkdir, noise, put};
use tidefs::clock::SystemClock;
use tidefs::error::Error;
use tidefs::format::inode::{self, EntryTarget, Extent, Inode};
use tidefs::format::keys::{self, Changes};
use tidefs::format::segment::BlockCache;
use tidefs::maintain::{self, CheckOptions, CheckReport, FixReport};
use tidefs::types::{AccountId, FileKind, Ino, SessionId, Uuid};
use tidefs::volume::Durability;
use tidefs::volume::archive::{Archive, ClosedEpoch};
use tidefs::volume::tree::Tree;

const EVERYTHING: CheckOptions = CheckOptions {
    read_data: true,
    external: true,
};

fn check(root: &Path) -> CheckReport {
    maintain::check(root, EVERYTHING, &mut |_, _| {}).unwrap()
}

fn fix(root: &Path) -> FixReport {
    maintain::fix(root, true, &SystemClock, &mut |_, _| {}).unwrap()
}

#[test]
fn a_sound_volume_has_no_problems() {
    let sample = archived();
    let report = sample.check();
    assert_eq!(report.problems, []);
    assert!(report.inodes > 20 && report.bytes > 1 << 20, "{report:?}");
    let fixed = fix(&sample.place.path());
    assert_eq!((fixed.repairs, fixed.after.problems), (vec![], vec![]));
    assert!(fixed.lost_and_found.is_empty());
}

#[test]
fn a_volume_that_is_written_to_while_it_is_checked_has_no_problems() {
    let place = Place::new_in(memory_dir());
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    let (is_over, epochs) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                put(&*volume, account, &format!("f{n}"), &noise(n, 30_000));
                volume.commit().unwrap();
                if n % 3 == 0 {
                    volume.close_epoch(None).unwrap();
                    epochs.fetch_add(1, Ordering::SeqCst);
                }
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        // Enough for several merges of segments, dropped journals, sealed and uploaded packs.
        let mut rounds = 0;
        let mut told = Vec::new();
        while told.is_empty() && (rounds < 8 || epochs.load(Ordering::SeqCst) < 60) {
            told = check(&place.path()).problems;
            rounds += 1;
        }
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(told, [], "round {rounds}");
    });
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    close(volume);
    assert_eq!(check(&place.path()).problems, []);
}

#[test]
fn a_repair_waits_for_nobody_and_refuses_a_backup_path_in_use() {
    let place = Place::new();
    let volume = place.open();
    let refused = maintain::fix(&place.path(), true, &SystemClock, &mut |_, _| {});
    assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");
    drop(volume);
}

/// Every file below `dir`, by its content.
fn contents(dir: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.push(fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Damages `file`, repairs, and says what is not as it should be then.
fn repaired(sample: &Sample, part: &str, file: &Path, kind: Damage) -> Vec<String> {
    sample.restore();
    let path = sample.place.dir.path().join(part).join(file);
    damage(&path, kind);
    let damaged = fs::read(&path).ok();
    let fixed = fix(&sample.place.path());
    let mut wrong = Vec::new();
    if fixed.repairs.is_empty() {
        wrong.push("nothing was done".to_owned());
    }
    let kept = contents(&sample.place.path().join("lost+found"));
    if damaged.is_some_and(|bytes| !kept.contains(&bytes)) {
        wrong.push("what was replaced is lost".to_owned());
    }
    // What is to be sent again is sent by the volume.
    match common::open(&sample.place.path()) {
        Ok(volume) => {
            let mut patience = 400;
            while volume.status().packs.unsent_count > 0 && patience > 0 {
                std::thread::sleep(std::time::Duration::from_millis(5));
                patience -= 1;
            }
        }
        Err(error) => wrong.push(format!("live says {}", error.chain())),
    }
    match sample.live() {
        Ok(shown) if shown == *sample.newest() => {}
        other => wrong.push(format!(
            "live: {}",
            other.map_or_else(|e| e.chain(), |_| "differs".into())
        )),
    }
    match sample.away() {
        Ok((epoch, shown)) if shown == *sample.newest() && sample.moments.contains_key(&epoch) => {}
        other => wrong.push(format!(
            "away: {}",
            other.map_or_else(|e| e.chain(), |_| "differs".into())
        )),
    }
    let left = sample.check().problems;
    if !left.is_empty() {
        wrong.push(format!("left: {left:?}"));
    }
    wrong
}

#[test]
fn whatever_one_place_has_whole_the_other_gets_back() {
    let sample = archived();
    let mut wrong = Vec::new();
    let mut tried = 0;
    for part in ["path", "external"] {
        let files = sample.files(part);
        let newest = files
            .iter()
            .rfind(|file| file.starts_with("server/epochs"))
            .unwrap();
        for file in &files {
            let is_cache = file.starts_with("index") || file.starts_with("journal");
            let is_sentinel = part == "external" && file.ends_with("volume.json");
            if is_cache
                || is_sentinel
                || file == Path::new("lock")
                || file == Path::new("settings.json")
            {
                continue;
            }
            for kind in [Damage::Flip(70), Damage::Half, Damage::Gone] {
                let is_needed =
                    part == "path" || !file.starts_with("server/epochs") || file == newest;
                if kind == Damage::Gone && !is_needed {
                    continue;
                }
                tried += 1;
                for what in repaired(&sample, part, file, kind) {
                    wrong.push(format!("{part}/{} {kind:?}: {what}", file.display()));
                }
            }
        }
    }
    assert!(tried > 40, "{tried}");
    assert!(
        wrong.is_empty(),
        "{} cases:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// The files below `server/epochs`, in order.
fn records(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(root.join("server/epochs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    found
}

#[test]
fn a_lost_newest_record_is_written_anew_from_its_segments() {
    for kind in [Damage::Gone, Damage::Flip(100)] {
        let place = Place::new();
        let volume = place.open();
        let account = mkdir(&*volume, Ino::ROOT, "alice");
        // More than are merged into one, so that the record before names segments that are gone.
        for n in 0..8 {
            put(&*volume, account, &format!("f{n}"), &noise(n, 10_000));
            volume.close_epoch(None).unwrap();
        }
        let shown = common::sample::content_of(&*volume).unwrap();
        close(volume);
        let root = place.path();
        damage(records(&root).last().unwrap(), kind);
        assert!(
            common::open(&root).is_err(),
            "{kind:?}: an older state was shown"
        );
        let fixed = fix(&root);
        assert_eq!(fixed.repairs.len(), 1, "{fixed:?}");
        let volume = place.open();
        assert_eq!(common::sample::content_of(&*volume).unwrap(), shown);
        put(&*volume, account, "more", b"more");
        close(volume);
        let report = maintain::check(&root, CheckOptions::default(), &mut |_, _| {}).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(common::find(&*place.open(), "alice/more").unwrap().size, 4);
    }
}

#[test]
fn a_damaged_journal_is_cut_and_what_was_lost_is_listed() {
    let (sample, states) = crashed();
    let root = sample.place.path();
    let journal = sample
        .files("path")
        .into_iter()
        .filter(|file| {
            file.starts_with("journal") && file.extension().is_some_and(|of| of == "log")
        })
        .find(|file| !file.ends_with("packs.log"))
        .unwrap();
    // Frames are whole blocks: the third block is of the second frame or of a later one.
    damage(&root.join(&journal), Damage::Flip(2 * 4096 + 70));
    let damaged = fs::read(root.join(&journal)).unwrap();
    assert!(sample.live().is_err());
    let fixed = fix(&root);
    let [dir] = &fixed.lost_and_found[..] else {
        panic!("{fixed:?}")
    };
    let name = dir.file_name().unwrap().to_str().unwrap();
    assert!(name.ends_with("Z-journal"), "{name}");
    assert!(
        contents(dir).contains(&damaged),
        "the damaged journal is not kept"
    );
    let readme = fs::read_to_string(dir.join("README")).unwrap();
    assert!(readme.contains("f3"), "{readme}");
    let shown = sample.live().unwrap();
    let at = states.iter().position(|state| *state == shown);
    assert!(at.is_some_and(|at| at < states.len() - 1), "{at:?}");
    let report = maintain::check(&root, CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert_eq!(report.problems, []);
}

/// Closes one more epoch of the backup path `root` with changes that no operation would make.
fn spoil(root: &Path, changes: Changes) -> CheckReport {
    let identity = tidefs::volume::init::read_identity(root).unwrap();
    let (volume, session) = (identity.uuid().unwrap(), SessionId([7; 8]));
    let archive = open_archive(root, volume, session);
    let record = archive.newest().record.unwrap();
    let closed = ClosedEpoch {
        epoch: record.epoch.next(),
        time: record.time + 1,
        changes: Arc::new(changes),
        lsn: record.last_lsn(),
        last_pack: None,
        sealed: Vec::new(),
    };
    let replaced = archive.close(&closed).unwrap();
    archive.remove_segments(replaced).unwrap();
    maintain::check(root, CheckOptions::default(), &mut |_, _| {}).unwrap()
}

fn open_archive(root: &Path, volume: Uuid, session: SessionId) -> Archive {
    Archive::open(root, volume, session, Arc::new(BlockCache::new(1 << 20))).unwrap()
}

/// A tree of one account with a directory, a file in it, and a file of two names.
struct Small {
    place: Place,
    dir: Ino,
    file: Ino,
    twice: Ino,
}

fn small() -> Small {
    let place = Place::new();
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    let dir = mkdir(&*volume, account, "dir");
    let file = put(&*volume, dir, "file", &noise(1, 5000));
    let twice = put(&*volume, account, "twice", b"twice");
    volume.link(twice, dir, b"again").unwrap();
    close(volume);
    Small {
        place,
        dir,
        file,
        twice,
    }
}

impl Small {
    fn inode(&self, ino: Ino) -> Inode {
        let identity = tidefs::volume::init::read_identity(&self.place.path()).unwrap();
        let archive = open_archive(
            &self.place.path(),
            identity.uuid().unwrap(),
            SessionId([7; 8]),
        );
        let bytes = archive.newest().view.get(&keys::inode(ino)).unwrap();
        Inode::decode(&bytes.unwrap()).unwrap()
    }

    fn with(&self, ino: Ino, change: impl FnOnce(&mut Inode)) -> Changes {
        let mut inode = self.inode(ino);
        change(&mut inode);
        BTreeMap::from([(keys::inode(ino), Some(inode.encode().into()))])
    }
}

/// Spoils a small tree and expects exactly these problems, by a part of their text.
fn spoiled(changes: impl FnOnce(&Small) -> Changes, expected: &[&str]) {
    let small = small();
    let changes = changes(&small);
    let report = spoil(&small.place.path(), changes);
    let told: Vec<String> = report
        .problems
        .iter()
        .map(|problem| format!("{}: {}", problem.object, problem.reason))
        .collect();
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for part in expected {
        assert!(
            told.iter().any(|told| told.contains(part)),
            "{part}: {told:#?}"
        );
    }
}

#[test]
fn a_tree_whose_parts_contradict_each_other_is_found() {
    // A name without an inode.
    spoiled(
        |small| BTreeMap::from([(keys::inode(small.file), None)]),
        &["is not there"],
    );
    // An inode without a name.
    spoiled(
        |small| BTreeMap::from([(keys::dir_entry(small.dir, b"file"), None)]),
        &["no name"],
    );
    // A file with one name less than it counts.
    spoiled(
        |small| BTreeMap::from([(keys::dir_entry(small.dir, b"again"), None)]),
        &["has 1"],
    );
    // A directory that says it lies elsewhere, and one whose number of subdirectories is wrong.
    spoiled(
        |small| small.with(small.dir, |dir| dir.parent = Some(Ino::ROOT)),
        &["parent"],
    );
    spoiled(
        |small| small.with(small.dir, |dir| dir.nlink = 5),
        &["nlink"],
    );
    // A name in a directory that is none.
    spoiled(
        |small| {
            let target = EntryTarget {
                ino: small.twice,
                kind: FileKind::File,
            };
            let key = keys::dir_entry(small.file, b"x");
            let mut changes = small.with(small.twice, |inode| inode.nlink = 3);
            changes.insert(key, Some(inode::encode_entry(target).into()));
            changes
        },
        &["not a directory"],
    );
    // An inode that does not decode.
    spoiled(
        |small| BTreeMap::from([(keys::inode(small.file), Some("?".into()))]),
        &["format"],
    );
}

#[test]
fn two_directories_in_each_other_are_not_reachable() {
    spoiled(
        |small| {
            let account = small.dir.account();
            let (a, b) = (Ino::new(account, 900), Ino::new(account, 901));
            let dir = small.inode(small.dir);
            let mut changes = Changes::new();
            for (ino, of) in [(a, b), (b, a)] {
                let inode = Inode {
                    parent: Some(of),
                    nlink: 3,
                    ..dir.clone()
                };
                changes.insert(keys::inode(ino), Some(inode.encode().into()));
                let target = EntryTarget {
                    ino,
                    kind: FileKind::Dir,
                };
                let entry = inode::encode_entry(target);
                changes.insert(keys::dir_entry(of, b"other"), Some(entry.into()));
            }
            changes
        },
        &["cannot be reached", "cannot be reached"],
    );
}

#[test]
fn an_extent_whose_record_is_another_is_found() {
    let change = |change: fn(&mut Extent)| {
        move |small: &Small| small.with(small.file, |file| file.extents.iter_mut().for_each(change))
    };
    spoiled(change(|extent| extent.blob.0[0] ^= 1), &["needs blob"]);
    spoiled(
        change(|extent| extent.location.offset += 8),
        &["needs blob"],
    );
    spoiled(
        change(|extent| extent.location.stored_len += 1),
        &["needs blob"],
    );
    spoiled(
        change(|extent| extent.location.plain_len += 1),
        &["needs blob"],
    );
    spoiled(
        change(|extent| extent.location.pack.0[0] ^= 1),
        &["neither here nor uploaded"],
    );
    // Leaves of an inode that is not there.
    spoiled(
        |small| {
            let extents = small.inode(small.file).extents;
            let nobody = Ino::new(AccountId::new(1).unwrap(), 1234);
            let key = keys::extents(nobody, 0);
            BTreeMap::from([(key, Some(inode::encode_extents(&extents).into()))])
        },
        &["no inode"],
    );
}

/// How long a check of a million files takes, and how much memory: `cargo test --test check -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_a_million_files() {
    let small = small();
    let root = small.place.path();
    let (dir, file) = (small.inode(small.dir), small.inode(small.file));
    let account = small.dir.account();
    let mut changes = small.with(small.dir, |_| {});
    let mut last = small.dir;
    for n in 1000..1_001_000 {
        let ino = Ino::new(account, n);
        let (kind, inode, parent) = if n % 100 == 0 {
            last = ino;
            let inode = Inode {
                parent: Some(small.dir),
                ..dir.clone()
            };
            (FileKind::Dir, inode, small.dir)
        } else {
            (FileKind::File, file.clone(), last)
        };
        let target = EntryTarget { ino, kind };
        let name = format!("name-{n}");
        let entry = inode::encode_entry(target);
        changes.insert(keys::dir_entry(parent, name.as_bytes()), Some(entry.into()));
        changes.insert(keys::inode(ino), Some(inode.encode().into()));
    }
    let nlink = dir.nlink + 10_000;
    changes.extend(small.with(small.dir, |dir| dir.nlink = nlink));
    drop(spoil(&root, changes));
    let before = fs::read_to_string("/proc/self/status").unwrap();
    let started = std::time::Instant::now();
    let report = check(&root);
    let took = started.elapsed();
    let after = fs::read_to_string("/proc/self/status").unwrap();
    let rss = |status: &str| {
        let line = status.lines().find(|line| line.starts_with("VmRSS"));
        line.unwrap().to_owned()
    };
    println!(
        "{} inodes in {took:?}; {} -> {}",
        report.inodes,
        rss(&before),
        rss(&after)
    );
    assert!(report.problems.len() < 3, "{:?}", report.problems);
}
