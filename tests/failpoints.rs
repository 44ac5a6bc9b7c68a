//! A process that dies at each crash point loses nothing it acknowledged (invariants 1 and 3), and leaves
//! an external volume that is complete as of its newest record (invariant 2).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Place, close, content, find, fsync, make, noise};
use tidefs::failpoint;
use tidefs::types::{Epoch, FileKind, Ino};
use tidefs::volume::tree::{OpenMode, RenameMode, Tree};
use tidefs::volume::{Durability, Volume, external};

/// Set for the process that works until it dies.
const WORKLOAD: &str = "TIDEFS_TEST_WORKLOAD";
const FAILPOINT: &str = "TIDEFS_FAILPOINT";
const WRITING: OpenMode = OpenMode {
    read: false,
    write: true,
    truncate: false,
    sync: false,
};
const ACKNOWLEDGED: &str = "acknowledged ";
const ARCHIVED: &str = "archived ";
const STEPS: u64 = 12;
const PATIENCE: Duration = Duration::from_secs(60);
/// At which passings of a point we die: the first, where little is there yet, and a later one.
const PASSINGS: [u32; 2] = [1, 3];

fn bytes_of(step: u64) -> Vec<u8> {
    noise(step, 2000 + usize::try_from(step).unwrap() * 30_000)
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: the process that dies. Each step writes two files under temporary names and
/// renames them; one is made durable and acknowledged, which also commits the other's name while it is
/// still open.
#[test]
fn workload() {
    let Some(path) = std::env::var_os(WORKLOAD) else {
        return;
    };
    let volume = common::open(Path::new(&path)).unwrap();
    for step in 0..STEPS {
        let late = written(&volume, &format!("late-{step}"), &bytes_of(step + 100));
        let ino = written(&volume, &format!("file-{step}"), &bytes_of(step));
        fsync(&*volume, ino);
        volume.release(ino, WRITING).unwrap();
        volume.release(late, WRITING).unwrap();
        say(&format!("{ACKNOWLEDGED}file-{step}"));
        if step % 4 == 3 {
            volume.wait(Durability::Archived, &mut |_| true).unwrap();
            say(&format!("{ARCHIVED}{step}"));
        }
    }
    close(volume);
}

fn written(volume: &Volume, name: &str, bytes: &[u8]) -> Ino {
    let ino = make(volume, Ino::ROOT, "temporary", FileKind::File).ino;
    volume.open(ino, WRITING).unwrap();
    common::write(volume, ino, 0, bytes);
    volume
        .rename(
            (Ino::ROOT, b"temporary"),
            (Ino::ROOT, name.as_bytes()),
            RenameMode::Replace,
        )
        .unwrap();
    ino
}

/// Runs the workload on a backup path; returns what it said, and which signal ended it.
fn run(path: &Path, armed: Option<&str>) -> (Vec<String>, Option<i32>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "workload", "--nocapture"])
        .env(WORKLOAD, path);
    match armed {
        Some(armed) => command.env(FAILPOINT, armed),
        None => command.env_remove(FAILPOINT),
    };
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect();
    assert!(
        output.status.success() || output.status.signal().is_some(),
        "{armed:?}: the workload failed otherwise than by dying: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (said, output.status.signal())
}

fn said_after<'a>(said: &'a [String], what: &str) -> Vec<&'a str> {
    // The test harness may have begun the line.
    said.iter()
        .filter_map(|line| line.split_once(what))
        .map(|(_, rest)| rest)
        .collect()
}

/// The objects of an external volume with what would change if they were written again.
fn objects(external: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![external.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                waiting.push(entry.path());
            } else if !entry.file_name().to_string_lossy().starts_with(".tmp-") {
                found.insert(entry.path(), (metadata.ino(), metadata.len()));
            }
        }
    }
    found
}

type Files = BTreeMap<String, Vec<u8>>;

/// All files of the root and their bytes: everything that a tree names can be read.
fn read_all(tree: &dyn Tree) -> Files {
    let entries = tree.readdir(Ino::ROOT, None, 1000).unwrap();
    let names = entries
        .iter()
        .map(|entry| String::from_utf8(entry.name.to_vec()).unwrap());
    names
        .map(|name| (name.clone(), content(tree, &name).unwrap()))
        .collect()
}

/// Each moment of the external volume, read whole; `None` before its first record.
fn read_external(path: &Path) -> Option<BTreeMap<Epoch, Files>> {
    let records = fs::read_dir(path.join("server/epochs"));
    let mut records = records
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path());
    if records.any(|record| record.extension().is_some_and(|end| end == "json")) {
        let store = Arc::new(vfs::DirVolume::open(path).unwrap());
        let away = external::open_external(store).unwrap();
        let epochs = away.epochs().unwrap();
        let trees = epochs
            .iter()
            .map(|entry| (entry.epoch, away.tree(Some(entry.epoch)).unwrap()));
        return Some(
            trees
                .map(|(epoch, tree)| (epoch, read_all(&*tree)))
                .collect(),
        );
    }
    None
}

/// Files have the bytes of their names, or are being written.
fn assert_whole(tree: &Files, when: &str) {
    for (name, bytes) in tree {
        let Some((kind, step)) = name.split_once('-') else {
            assert_eq!(name, "temporary", "{when}");
            continue;
        };
        let step: u64 = step.parse().unwrap();
        let seed = if kind == "late" { step + 100 } else { step };
        assert!(
            *bytes == bytes_of(seed),
            "{when}: {name} has {} other bytes",
            bytes.len()
        );
    }
}

fn die_and_recover(point: &str, passing: u32) {
    let when = format!("{point}:{passing}");
    let place = Place::new();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    close(volume);
    let (said, signal) = run(&place.path(), Some(&when));
    assert_eq!(
        signal,
        Some(nix::libc::SIGABRT),
        "{when}: the process never came by"
    );
    let acknowledged = said_after(&said, ACKNOWLEDGED);

    // Invariant 2, before anything can be mended.
    let before = objects(&place.external());
    let archived = said_after(&said, ARCHIVED)
        .last()
        .map(|step| step.parse::<u64>().unwrap());
    let away = read_external(&place.external());
    for (epoch, tree) in away.iter().flatten() {
        assert_whole(tree, &format!("{when}, external {epoch:?}"));
    }
    if let Some(step) = archived {
        let newest = away.unwrap().pop_last().unwrap().1;
        assert!(
            newest.contains_key(&format!("file-{step}")),
            "{when}: what was archived is not"
        );
    }

    let volume = place.open();
    let found = read_all(&*volume);
    for name in &acknowledged {
        assert!(
            found.contains_key(*name),
            "{when}: {name} was acknowledged and is lost"
        );
    }
    assert_whole(&found, &when);
    assert!(find(&*volume, "nobody").is_err());
    let start = Instant::now();
    volume
        .wait(Durability::Archived, &mut |_| start.elapsed() < PATIENCE)
        .unwrap();
    let epoch = volume.status().epoch_archived;
    close(volume);

    // What was there is there as it was: nothing is sent twice, nothing overwritten.
    let after = objects(&place.external());
    for (path, was) in &before {
        assert_eq!(
            after.get(path),
            Some(was),
            "{when}: {} was written again",
            path.display()
        );
    }
    let packs: Vec<_> = after.keys().filter_map(|path| path.file_name()).collect();
    assert_eq!(
        packs.len(),
        packs.iter().collect::<BTreeSet<_>>().len(),
        "{when}"
    );
    let away = read_external(&place.external()).unwrap();
    assert_eq!(
        away[&epoch], found,
        "{when}: the external volume alone shows something else"
    );
}

#[test]
fn the_workload_ends_well_when_nothing_kills_it() {
    let place = Place::new();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    close(volume);
    let (said, signal) = run(&place.path(), None);
    assert_eq!(signal, None);
    assert_eq!(said_after(&said, ACKNOWLEDGED).len() as u64, STEPS);
    let newest = read_external(&place.external())
        .unwrap()
        .pop_last()
        .unwrap()
        .1;
    assert_eq!(newest.len() as u64, 2 * STEPS);
    assert_whole(&newest, "at the end");
}

#[test]
fn what_was_acknowledged_survives_a_death_at_each_crash_point() {
    let deaths: Vec<_> = failpoint::ALL
        .iter()
        .flat_map(|point| PASSINGS.map(|passing| (*point, passing)))
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((point, passing)) = deaths.get(next.fetch_add(1, Ordering::SeqCst)) {
                    die_and_recover(point, *passing);
                }
            });
        }
    });
}

/// A journal file that a power cut left without its header holds nothing; it must not become damage when
/// the next session's file stands beside it.
#[test]
fn a_journal_file_that_was_only_just_made_is_no_damage_two_crashes_later() {
    let place = Place::new();
    let volume = place.open();
    common::put(&*volume, Ino::ROOT, "first", b"1");
    close(volume);
    let volume = place.open();
    let next = volume.status().epoch_local.0 + 1;
    close(volume);
    let unbegun = format!("journal/{next:016x}-0000000000000000.log");
    fs::write(place.path().join(unbegun), vec![0; 65_536]).unwrap();

    let volume = place.open();
    common::put(&*volume, Ino::ROOT, "second", b"2");
    volume.commit().unwrap();
    let killed = place.dir.path().join("killed");
    fs::create_dir_all(killed.join("index")).unwrap();
    for part in ["accounts", "items", "journal", "server", "settings.json"] {
        let (from, to) = (place.path().join(part), killed.join(part));
        let status = Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status()
            .unwrap();
        assert!(status.success());
    }
    drop(volume);
    let volume = common::open(&killed).unwrap();
    assert_eq!(content(&*volume, "first").unwrap(), b"1");
    assert_eq!(content(&*volume, "second").unwrap(), b"2");
}

/// Code of a directory without comments, by path.
fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"));
                found.push((path, code.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    found
}

#[test]
fn every_crash_point_is_listed_and_every_listed_one_is_passed_in_the_code() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (own, others): (Vec<_>, Vec<_>) = sources(&src)
        .into_iter()
        .partition(|(path, _)| path.ends_with("src/failpoint.rs"));
    let consts: BTreeMap<&str, &str> = own[0]
        .1
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split_once(": &str = \""))
        .map(|(name, value)| (name, value.trim_end_matches("\";")))
        .collect();
    let listed: BTreeSet<&str> = failpoint::ALL.into_iter().collect();
    assert_eq!(consts.values().copied().collect::<BTreeSet<_>>(), listed);
    assert_eq!(
        listed.len(),
        failpoint::ALL.len(),
        "a point is listed twice"
    );
    let mut passed = BTreeSet::new();
    for (path, code) in &others {
        for (_, rest) in code
            .match_indices("failpoint::hit(")
            .map(|(at, call)| (at, &code[at + call.len()..]))
        {
            let argument = rest.split(')').next().unwrap().trim();
            let name = argument.rsplit("::").next().unwrap();
            assert!(
                consts.contains_key(name),
                "{}: hit({argument}) names no point",
                path.display()
            );
            passed.insert(name);
        }
    }
    assert_eq!(
        passed,
        consts.into_keys().collect(),
        "a point that nothing passes"
    );
}
