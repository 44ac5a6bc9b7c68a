//! A directory volume behind workers, here threads of this process: the contract, deadlines, and identity with several
//! roots. Workers that are processes, and a mount that really hangs, are tested with the program itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vfs::isolate::{Deadlines, IsolateOptions, PoolLimits, Start};
use vfs::testkit::conformance;
use vfs::{
    Body, ErrorCase, ErrorClass, IsolatedDir, ObjectKey, Precondition, Sentinel, StopSignal,
    Volume, VolumeExt,
};

fn options(start: Start, base: Duration) -> IsolateOptions {
    IsolateOptions {
        start,
        limits: PoolLimits::default(),
        deadlines: Deadlines {
            base,
            ..Deadlines::default()
        },
        stop: StopSignal::new(),
    }
}

fn threads() -> IsolateOptions {
    options(Start::Thread, Duration::from_secs(60))
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn put(volume: &dyn Volume, name: &str, bytes: &[u8]) -> vfs::Result<()> {
    volume
        .put(&key(name), Body::Bytes(bytes), Precondition::None)
        .map(drop)
}

fn sentinel() -> Sentinel {
    Sentinel::new(key("server/volume.json"), |bytes| {
        if bytes.starts_with(b"ours") {
            Ok(())
        } else {
            Err("it is theirs".into())
        }
    })
}

/// A directory `nas` in a directory of its own, known by its sentinel.
fn bound() -> (TempDir, PathBuf, IsolatedDir) {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("nas");
    fs::create_dir_all(path.join("server")).unwrap();
    fs::write(path.join("server/volume.json"), "ours").unwrap();
    let volume = IsolatedDir::new(&path, Some(sentinel()), threads());
    (parent, path, volume)
}

/// Workers that do as this shell script says.
fn scripted(script: &'static str, base: Duration) -> IsolateOptions {
    let start = Start::Process(Arc::new(move || {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }));
    options(start, base)
}

#[test]
fn a_directory_behind_workers_keeps_the_contract() {
    let directories = Mutex::new(Vec::new());
    conformance(&|| {
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let volume = IsolatedDir::new(directory.path(), None, threads());
        directories.lock().unwrap().push(directory);
        Arc::new(volume)
    });
}

#[test]
fn nothing_is_looked_at_before_something_is_asked() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("nas");
    let volume = IsolatedDir::new(&path, None, threads());
    let error = volume.head(&key("a")).unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    assert_eq!(error.op(), "look up");
    assert!(volume.verify_identity().unwrap_err().is_unreachable());
    fs::create_dir(&path).unwrap();
    put(&volume, "a", b"x").unwrap();
    assert_eq!(volume.canonical().unwrap(), path.canonicalize().unwrap());
}

#[test]
fn a_worker_that_does_not_answer_is_given_up_at_its_deadline_and_four_of_them_are_enough() {
    // Killed they die, so that their number falls again.
    let patience = Duration::from_millis(300);
    let directory = TempDir::new().unwrap();
    let volume = IsolatedDir::new(directory.path(), None, scripted("exec sleep 600", patience));
    let started = Instant::now();
    let error = volume.head(&key("a")).unwrap_err();
    assert!(started.elapsed() >= patience);
    assert_eq!(
        (error.class(), error.case()),
        (ErrorClass::Unreachable, ErrorCase::TimedOut),
        "{error:?}"
    );
    assert!(error.to_string().contains("process"), "{error}");
    // A body whose pieces are not taken is late by the deadline of a piece, however long it is.
    let body = vec![0; 64 << 20];
    let error = put(&volume, "a", &body).unwrap_err();
    assert_eq!(error.case(), ErrorCase::TimedOut, "{error:?}");
    while volume.abandoned() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_worker_that_ends_or_talks_nonsense_is_replaced() {
    for script in [
        "exit 0",
        "printf 'hello, world'; exec cat",
        "exec head -c 64 /dev/zero",
    ] {
        let directory = TempDir::new().unwrap();
        let volume = IsolatedDir::new(
            directory.path(),
            None,
            scripted(script, Duration::from_secs(60)),
        );
        for _ in 0..2 {
            let error = volume.head(&key("a")).unwrap_err();
            assert!(error.is_transient(), "{script}: {error:?}");
        }
    }
}

#[test]
fn closing_lets_go_of_everybody_at_once() {
    let directory = TempDir::new().unwrap();
    let options = scripted("exec sleep 600", Duration::from_secs(600));
    let stop = options.stop.clone();
    let volume = IsolatedDir::new(directory.path(), None, options);
    std::thread::scope(|scope| {
        // More than there are workers: some wait for an answer, some for a worker.
        let waiting: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| volume.head(&key("a")).unwrap_err()))
            .collect();
        stop.stop();
        for one in waiting {
            let error = one.join().unwrap();
            assert!(error.is_unreachable(), "{error:?}");
            assert!(error.to_string().contains("being closed"), "{error}");
        }
    });
    assert!(volume.head(&key("a")).unwrap_err().is_unreachable());
}

/// Deadlines are never: without being let go, this test would not end.
#[test]
fn another_mount_in_its_place_lets_go_of_those_who_wait_for_the_one_before() {
    let parent = TempDir::new().unwrap();
    let never = Duration::from_secs(24 * 3600);
    let volume = IsolatedDir::new(parent.path(), None, scripted("cat > /dev/null", never));
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| volume.head(&key("a")).unwrap_err()))
            .collect();
        while !waiting.iter().all(ScopedJoinHandle::is_finished) {
            volume.mounted_anew();
            std::thread::yield_now();
        }
        for thread in waiting {
            let error = thread.join().unwrap();
            assert!(error.is_transient(), "it is asked again: {error:?}");
        }
    });
}

#[test]
fn a_body_that_cannot_be_read_leaves_the_worker_well() {
    let (_parent, _path, volume) = bound();
    let (_far, near) = UnixStream::pair().unwrap();
    let pipe = fs::File::from(std::os::fd::OwnedFd::from(near));
    let body = Body::File {
        file: &pipe,
        len: 10,
    };
    let error = volume.put(&key("a"), body, Precondition::None).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Permanent, "{error:?}");
    assert_eq!(volume.head(&key("a")).unwrap(), None);
    assert_eq!(volume.abandoned(), 0);
}

#[test]
fn invariant_7_a_swapped_root_is_the_wrong_volume_for_every_worker() {
    let (parent, path, volume) = bound();
    volume.verify_identity().unwrap();
    put(&volume, "items/00/a", b"x").unwrap();
    fs::rename(&path, parent.path().join("gone")).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(volume.verify_identity().unwrap_err().is_wrong_volume());
    std::thread::scope(|scope| {
        for n in 0..8 {
            let volume = &volume;
            scope.spawn(move || {
                let error = put(volume, &format!("items/00/{n}"), b"x").unwrap_err();
                assert!(error.is_wrong_volume(), "{error:?}");
            });
        }
    });
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    fs::remove_dir(&path).unwrap();
    fs::rename(parent.path().join("gone"), &path).unwrap();
    volume.verify_identity().unwrap();
    assert!(volume.head(&key("items/00/a")).unwrap().is_some());
}

#[test]
fn invariant_7_a_root_that_was_swapped_before_a_worker_opened_it_gets_nothing() {
    let (parent, path, volume) = bound();
    fs::rename(&path, parent.path().join("gone")).unwrap();
    fs::create_dir_all(path.join("server")).unwrap();
    fs::write(path.join("server/volume.json"), "theirs").unwrap();
    let error = put(&volume, "items/00/a", b"x").unwrap_err();
    assert!(error.is_wrong_volume(), "{error:?}");
    assert!(error.to_string().contains("theirs"), "{error}");
    assert!(!path.join("items").exists());
}

#[test]
fn invariant_7_without_a_sentinel_another_directory_is_refused() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("nas");
    fs::create_dir(&path).unwrap();
    let volume = IsolatedDir::new(&path, None, threads());
    put(&volume, "a", b"x").unwrap();
    fs::rename(&path, parent.path().join("gone")).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(volume.verify_identity().unwrap_err().is_wrong_volume());
    assert!(put(&volume, "b", b"x").unwrap_err().is_wrong_volume());
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
}

/// A copy of the right volume in its place: as after a disk was plugged in again.
#[test]
fn invariant_7_the_right_volume_mounted_anew_is_told_once_and_used_by_every_worker() {
    let (parent, path, volume) = bound();
    volume.verify_identity().unwrap();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let volume = &volume;
            scope.spawn(move || put(volume, &format!("old/{n}"), b"x").unwrap());
        }
    });
    fs::rename(&path, parent.path().join("gone")).unwrap();
    fs::create_dir_all(path.join("server")).unwrap();
    fs::write(path.join("server/volume.json"), "ours, too").unwrap();
    let error = volume.verify_identity().unwrap_err();
    assert!(error.is_remounted() && error.is_transient(), "{error:?}");
    volume.verify_identity().unwrap();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let volume = &volume;
            scope.spawn(move || put(volume, &format!("new/{n}"), b"x").unwrap());
        }
    });
    volume.verify_identity().unwrap();
    assert_eq!(fs::read_dir(path.join("new")).unwrap().count(), 8);
    assert!(!parent.path().join("gone/new").exists());
}

#[test]
fn a_sweep_leaves_alone_what_other_workers_write() {
    let (_parent, path, volume) = bound();
    let body = vec![7; 8 << 20];
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|n| {
                let (volume, body) = (&volume, &body);
                scope.spawn(move || {
                    for _ in 0..4 {
                        put(volume, &format!("k/{n}"), body).unwrap();
                    }
                })
            })
            .collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            assert_eq!(volume.sweep_temporary(&[""], Duration::ZERO).unwrap(), 0);
        }
    });
    assert_eq!(temporaries(&path.join("k")), 0);
}

fn temporaries(path: &Path) -> usize {
    let names = fs::read_dir(path).unwrap();
    names
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with(".tmp-")
        })
        .count()
}

#[test]
fn long_listings_and_deletions_go_in_pieces() {
    let (_parent, path, volume) = bound();
    fs::create_dir(path.join("k")).unwrap();
    let keys: Vec<ObjectKey> = (0..2500).map(|n| key(&format!("k/{n:05}"))).collect();
    for key in &keys {
        fs::write(path.join(key.as_str()), "x").unwrap();
    }
    let mut seen = 0;
    volume
        .for_each("k/", |meta| -> vfs::Result<()> {
            assert_eq!(meta.key.as_str(), format!("k/{seen:05}"));
            seen += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, 2500);
    volume.delete(&keys).unwrap();
    assert_eq!(fs::read_dir(path.join("k")).unwrap().count(), 0);
}
