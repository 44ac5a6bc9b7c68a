//! The raw objects of a volume as a directory, in the hands of the programs it is there for: ls, find, cp, rsync.
//!
//! Needs root and /dev/fuse; without them each test says so and passes.

#![allow(
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::noise;
use tempfile::TempDir;
use tidefs::fuse::{BridgeTree, Lifetimes, MountOptions, Mounted, mount};
use vfs::bridge::Bridge;
use vfs::{
    Body, DirVolume, ErrorClass, Fault, FaultControls, Faulty, MemoryVolume, ObjectKey, Op,
    Precondition, Volume, VolumeExt,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");

fn can_mount() -> bool {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let can = opened.is_ok() && nix::unistd::geteuid().is_root();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

/// A mounted bridge and a directory beside it.
struct Fixture {
    mounted: Mounted,
    controls: FaultControls,
    volume: Arc<dyn Volume>,
    dir: TempDir,
}

impl Fixture {
    fn start(volume: Arc<dyn Volume>) -> Option<Fixture> {
        if !can_mount() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["mnt", "side", "staged"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let controls = FaultControls::new();
        let faulty = Arc::new(Faulty::new(Arc::clone(&volume), controls.clone()));
        let bridge = Bridge::new(faulty, dir.path().join("staged"), false).unwrap();
        let options = MountOptions {
            lifetimes: Lifetimes {
                known: Duration::from_secs(1),
                missing: Duration::ZERO,
            },
            threads: 8,
            ..MountOptions::default()
        };
        let mounted = mount(
            BridgeTree::new(bridge, false),
            &dir.path().join("mnt"),
            &options,
        )
        .unwrap();
        Some(Fixture {
            mounted,
            controls,
            volume,
            dir,
        })
    }

    fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn side(&self) -> PathBuf {
        self.dir.path().join("side")
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let key = ObjectKey::new(key).unwrap();
        self.volume
            .put(&key, Body::Bytes(bytes), Precondition::None)
            .unwrap();
    }

    fn object(&self, key: &str) -> Option<Vec<u8>> {
        let key = ObjectKey::new(key).unwrap();
        self.volume.head(&key).unwrap()?;
        Some(self.volume.get_whole(&key, 1 << 30).unwrap().to_vec())
    }

    fn keys(&self) -> Vec<String> {
        let page = self.volume.list("", None, NonZeroUsize::MAX).unwrap();
        let keys = page.objects.iter().map(|meta| meta.key.to_string());
        keys.collect()
    }
}

/// Runs a program; `None`, said aloud, if it is not installed.
fn run(at: &Path, program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program)
        .args(args)
        .current_dir(at)
        .env("LC_ALL", "C")
        .output()
    {
        Ok(output) => Some(output),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: no {program}");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// The same for one that has to succeed; what it printed, by line, sorted.
#[track_caller]
fn lines(at: &Path, program: &str, args: &[&str]) -> Vec<String> {
    let Some(output) = run(at, program, args) else {
        return Vec::new();
    };
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[track_caller]
fn fails(at: &Path, program: &str, args: &[&str], message: &str) {
    let output = run(at, program, args).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains(message),
        "{program} {args:?} did not fail with '{message}': {text}"
    );
}

fn volumes() -> Vec<(Arc<dyn Volume>, Option<TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let on_disk = DirVolume::open(dir.path()).unwrap();
    vec![
        (Arc::new(MemoryVolume::new()), None),
        (Arc::new(on_disk), Some(dir)),
    ]
}

#[test]
fn ls_find_cp_and_cmp_see_the_objects_as_they_are() {
    for (volume, _dir) in volumes() {
        let Some(fixture) = Fixture::start(volume) else {
            return;
        };
        let pack = noise(1, 3_000_000);
        fixture.put("items/00/a.pack", &pack);
        fixture.put("items/ff/b.pack", b"b");
        fixture.put("server/volume.json", b"{}");
        let mnt = fixture.mnt();
        assert_eq!(lines(&mnt, "ls", &[]), ["items", "server"]);
        assert_eq!(
            lines(&mnt, "find", &[".", "-type", "f", "-size", "+1k"]),
            ["./items/00/a.pack"]
        );
        assert_eq!(
            lines(&mnt, "find", &[".", "-type", "d"]),
            [".", "./items", "./items/00", "./items/ff", "./server"]
        );
        let side = fixture.side();
        lines(&mnt, "cp", &["items/00/a.pack", side.to_str().unwrap()]);
        let copy = side.join("a.pack");
        lines(&mnt, "cmp", &["items/00/a.pack", copy.to_str().unwrap()]);

        lines(
            &side,
            "cp",
            &["a.pack", mnt.join("items/00/c.pack").to_str().unwrap()],
        );
        assert!(fixture.object("items/00/c.pack").unwrap() == pack);
        lines(&mnt, "mkdir", &["-p", "new/deep"]);
        lines(&mnt, "cp", &["-a", "items/ff/b.pack", "new/deep/"]);
        assert_eq!(fixture.object("new/deep/b.pack").unwrap(), b"b");
        lines(&mnt, "mv", &["new/deep/b.pack", "new/moved"]);
        lines(&mnt, "mv", &["new", "newer"]);
        assert_eq!(fixture.object("newer/moved").unwrap(), b"b");
        assert_eq!(lines(&mnt, "ls", &["newer"]), ["deep", "moved"]);
        lines(&mnt, "rm", &["-r", "newer", "items"]);
        assert_eq!(fixture.keys(), ["server/volume.json"]);
        assert_eq!(lines(&mnt, "ls", &[]), ["server"]);
    }
}

#[test]
fn rsync_goes_in_and_out_and_finds_no_difference() {
    for (volume, _dir) in volumes() {
        let Some(fixture) = Fixture::start(volume) else {
            return;
        };
        let (mnt, side) = (fixture.mnt(), fixture.side());
        for n in 0..300_u64 {
            let place = side.join(format!("items/{:02x}", n % 16));
            fs::create_dir_all(&place).unwrap();
            let len = usize::try_from(n * n * 10).unwrap();
            fs::write(place.join(format!("{n:03}.pack")), noise(n, len)).unwrap();
        }
        let from = format!("{}/", side.display());
        let into = format!("{}/copy/", mnt.display());
        let Some(_) = run(&side, "rsync", &["--version"]) else {
            return;
        };
        lines(&side, "rsync", &["-a", &from, &into]);
        assert_eq!(fixture.keys().len(), 300);
        lines(&side, "diff", &["-r", &from, &into]);
        assert!(fixture.object("copy/items/0b/299.pack").is_some());

        fs::write(side.join("items/00/000.pack"), b"changed").unwrap();
        fs::remove_file(side.join("items/01/001.pack")).unwrap();
        lines(
            &side,
            "rsync",
            &["-a", "--delete", "--checksum", &from, &into],
        );
        assert_eq!(
            fixture.object("copy/items/00/000.pack").unwrap(),
            b"changed"
        );
        assert_eq!(fixture.keys().len(), 299);

        let out = fixture.dir.path().join("out");
        lines(&side, "rsync", &["-a", &into, out.to_str().unwrap()]);
        lines(&side, "diff", &["-r", &from, out.to_str().unwrap()]);
        assert_eq!(
            fs::read_dir(fixture.dir.path().join("staged"))
                .unwrap()
                .count(),
            0,
            "nothing is left where files wait"
        );
    }
}

#[test]
fn a_big_object_is_read_by_ranges_from_anywhere() {
    let Some(fixture) = Fixture::start(Arc::new(MemoryVolume::new())) else {
        return;
    };
    let content = noise(9, 80 << 20);
    fixture.put("big", &content);
    let file = File::open(fixture.mnt().join("big")).unwrap();
    assert_eq!(file.metadata().unwrap().size(), 80 << 20);
    let before = fixture.controls.calls(Op::Get);
    let mut at: usize = 41 << 20;
    let mut piece = vec![0; 100_000];
    for _ in 0..40 {
        file.read_exact_at(&mut piece, at as u64).unwrap();
        assert!(piece == content[at..at + piece.len()], "at {at}");
        at = (at + 17_777_777) % (79 << 20);
    }
    drop(file);
    assert!(fs::read(fixture.mnt().join("big")).unwrap() == content);
    let gets = fixture.controls.calls(Op::Get) - before;
    assert!(gets < 200, "{gets} ranges");
    let (_, last) = content.split_at(content.len() - 7);
    let tail = run(&fixture.mnt(), "tail", &["-c", "7", "big"]).unwrap();
    assert_eq!(tail.stdout, last);
}

#[test]
fn a_long_directory_is_listed_whole() {
    let Some(fixture) = Fixture::start(Arc::new(MemoryVolume::new())) else {
        return;
    };
    for n in 0..12_000 {
        fixture.put(&format!("long/{n:05}"), b"x");
    }
    for n in 0..300 {
        fixture.put(&format!("wide/{n:03}/x/y"), b"x");
    }
    let mnt = fixture.mnt();
    let found = lines(&mnt, "find", &["long", "-type", "f", "-size", "1"]);
    assert_eq!(found.len(), 12_000);
    let asked = fixture.controls.calls(Op::Head);
    assert!(asked < 6000, "{asked} objects were looked up one by one");
    assert_eq!(lines(&mnt, "ls", &["wide"]).len(), 300);
    assert_eq!(lines(&mnt, "ls", &["-l", "long"]).len(), 12_001);
    lines(&mnt, "rm", &["-r", "long"]);
    assert_eq!(fixture.keys().len(), 300);
}

#[test]
fn whoever_writes_is_told_what_went_wrong() {
    let Some(fixture) = Fixture::start(Arc::new(MemoryVolume::new())) else {
        return;
    };
    fixture.put("a", b"old");
    let (mnt, side) = (fixture.mnt(), fixture.side());
    fs::write(side.join("new"), b"new").unwrap();
    let new = side.join("new");
    let new = new.to_str().unwrap();
    fixture.controls.inject(Op::Put, 1, Fault::NoSpace);
    fails(&mnt, "cp", &[new, "a"], "No space left");
    fixture
        .controls
        .inject(Op::Put, 1, Fault::Fail(ErrorClass::Unreachable));
    fails(&mnt, "cp", &[new, "b"], "Input/output error");
    assert_eq!(fixture.object("a").unwrap(), b"old");
    assert_eq!(fs::read(mnt.join("a")).unwrap(), b"old");
    // The kernel believes for a second what it was told.
    let started = Instant::now();
    while mnt.join("b").exists() {
        assert!(started.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }

    fails(
        &mnt,
        "dd",
        &["if=/dev/zero", "of=a", "bs=1", "count=1", "conv=notrunc"],
        "not supported",
    );
    fails(&mnt, "sh", &["-c", "echo x >> a"], "not supported");
    fails(&mnt, "cp", &[new, "README"], "Invalid argument");
    fails(&mnt, "ln", &["-s", "a", "link"], "not permitted");
    assert_eq!(fixture.object("a").unwrap(), b"old");

    let mut file = File::create(mnt.join("synced")).unwrap();
    file.write_all(b"one").unwrap();
    file.sync_all().unwrap();
    assert_eq!(fixture.object("synced").unwrap(), b"one");
    file.write_all(b"two").unwrap();
    drop(file);
    assert_eq!(fixture.object("synced").unwrap(), b"onetwo");
    assert!(!fixture.mounted.is_unmounted());
}

#[test]
fn a_bridge_is_a_mount_like_any_other_of_ours() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (ext, mnt) = (dir.path().join("ext"), dir.path().join("mnt"));
    for path in [&ext, &mnt] {
        fs::create_dir(path).unwrap();
    }
    fs::write(ext.join("a"), b"object").unwrap();
    let spec = format!("dir:{}", ext.display());
    let mnt_text = mnt.to_str().unwrap();
    let tidefs = |args: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(args)
            .env_remove("TIDEFS_PATH")
            .env_remove("TIDEFS_LOG")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };

    let (code, said) = tidefs(&["bridge", &spec, mnt_text]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("The objects of dir:"), "{said}");
    assert_eq!(fs::read(mnt.join("a")).unwrap(), b"object");
    fs::write(mnt.join("b"), b"new").unwrap();
    assert_eq!(fs::read(ext.join("b")).unwrap(), b"new");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        mounts.contains("fuse.tidefs tidefs:bridge:dir:"),
        "{mounts}"
    );
    let (code, said) = tidefs(&["bridge", &spec, mnt_text]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("already"), "{said}");
    let (code, said) = tidefs(&["umount", mnt_text]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!mnt.join("a").exists());

    let (code, said) = tidefs(&["--json", "bridge", "--read-only", &spec, mnt_text]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("\"read_only\":true"), "{said}");
    let refused = fs::write(mnt.join("c"), b"").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read(mnt.join("b")).unwrap(), b"new");
    lines(dir.path(), "umount", &[mnt_text]);
    assert!(!mnt.join("a").exists());

    let (code, said) = tidefs(&["bridge", "dir:/no/such/place", mnt_text]);
    assert_eq!(code, Some(5), "{said}");
    let (code, said) = tidefs(&["bridge", "-o", "at=yesterday", &spec, mnt_text]);
    assert_eq!(code, Some(2), "{said}");
}
