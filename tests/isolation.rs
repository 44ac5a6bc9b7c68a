//! An external volume that hangs in the kernel holds nobody up (invariant 5): the program as people call it, its mount,
//! and below it a FUSE file system that stops answering.
//!
//! Needs root and /dev/fuse; without them each test says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

#[path = "isolation/hangfs.rs"]
mod hangfs;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;
use vfs::isolate::{Deadlines, IsolateOptions, PoolLimits, Start};
use vfs::testkit::conformance;
use vfs::{DirVolume, IsolatedDir, ObjectKey, Sentinel, StopSignal, Volume};

use hangfs::HangFs;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");
/// What is promised, and a machine may be busy: the alternative is for ever.
const PROMPT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(120);

/// Not a test: the process that [`HangFs::start`] starts.
#[test]
#[ignore = "it is started by the other tests"]
fn hangfs_process() {
    hangfs::serve();
}

/// A backup path whose external volume is a directory of a file system that can hang.
struct Place {
    hangfs: HangFs,
    dir: TempDir,
}

fn can_mount() -> bool {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let can = opened.is_ok() && nix::unistd::geteuid().is_root();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

impl Place {
    /// The external volume may be silent for `remote_timeout_secs`; every pack is evicted as soon as it is there.
    fn new(remote_timeout_secs: u64) -> Place {
        let dir = tempfile::tempdir().unwrap();
        for name in ["behind", "hangs", "mnt"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let hangfs = HangFs::start(&dir.path().join("behind"), &dir.path().join("hangs"));
        let place = Place { hangfs, dir };
        fs::create_dir(place.path("hangs/ext")).unwrap();
        place.ok(&["init"]);
        let settings = place.path("backup/settings.json");
        let mut chosen: Value = serde_json::from_slice(&fs::read(&settings).unwrap()).unwrap();
        chosen["remote_timeout_secs"] = json!(remote_timeout_secs);
        chosen["evict_after_secs"] = json!(0);
        chosen["cache_bytes"] = json!(0);
        chosen["reserve_bytes"] = json!(0);
        chosen["seal_after_secs"] = json!(1);
        fs::write(&settings, chosen.to_string()).unwrap();
        let ext = place.path("hangs/ext");
        place.ok(&["store", "set", "dir", ext.to_str().unwrap()]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .env("TIDEFS_PATH", self.path("backup"))
            .env_remove("TIDEFS_LOG")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same within the time that is promised, however the external volume is.
    #[track_caller]
    fn promptly(&self, args: &[&str]) -> String {
        timed(&format!("tidefs {}", args[0]), || self.ok(args))
    }

    fn mount(&self) {
        let mountpoint = self.path("mnt");
        self.ok(&["mount", mountpoint.to_str().unwrap()]);
    }

    fn umount(&self) -> String {
        let mountpoint = self.path("mnt");
        self.ok(&["umount", mountpoint.to_str().unwrap()])
    }

    fn status(&self) -> Value {
        let text = self.ok(&["--json", "status"]);
        serde_json::from_str(&text).unwrap()
    }

    fn state(&self) -> String {
        self.status()["upload"]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn daemon(&self) -> u32 {
        let pid = self.status()["daemon"]["pid"].as_u64().unwrap();
        u32::try_from(pid).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Before the file system below: then nobody hangs in it.
        self.hangfs.go();
        let _ = umount2(&self.path("mnt"), MntFlags::MNT_DETACH);
    }
}

#[track_caller]
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let outcome = work();
    let took = started.elapsed();
    println!("{what}: {:.2} s", took.as_secs_f32());
    assert!(took < PROMPT, "{what} took {took:?}");
    outcome
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < LONG, "still not: {what}");
        std::thread::yield_now();
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

/// Writes, lists, stats and reads back; tells the slowest of each.
fn use_mount(root: &Path, round: &str) {
    let mut slowest = [Duration::ZERO; 4];
    let dir = root.join(round);
    fs::create_dir(&dir).unwrap();
    // Of its own in each round: what is known by its hash may be only there.
    let seed = round
        .bytes()
        .fold(1, |seed: u64, byte| seed * 31 + u64::from(byte));
    for n in 0..50 {
        let (path, bytes) = (dir.join(format!("f{n}")), noise(seed + n, 50_000));
        let mut clock = |at: usize, work: &mut dyn FnMut()| {
            let started = Instant::now();
            work();
            slowest[at] = slowest[at].max(started.elapsed());
        };
        clock(0, &mut || write_synced(&path, &bytes));
        clock(1, &mut || {
            assert_eq!(path.metadata().unwrap().len(), 50_000);
        });
        clock(2, &mut || assert!(fs::read_dir(&dir).unwrap().count() > 0));
        clock(3, &mut || assert!(fs::read(&path).unwrap() == bytes));
    }
    let [write, stat, list, read] = slowest.map(|slowest| slowest.as_millis());
    println!(
        "{round}: slowest of 50: write and fsync {write} ms, stat {stat} ms, ls {list} ms, read {read} ms"
    );
    for slowest in slowest {
        assert!(slowest < PROMPT, "{round}: {slowest:?}");
    }
}

#[test]
fn invariant_5_an_external_volume_that_hangs_holds_nobody_up_and_drains_when_it_answers_again() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new(3);
    let mnt = place.path("mnt");
    place.mount();
    let cold = noise(99, 6 << 20);
    write_synced(&mnt.join("cold"), &cold);
    place.ok(&["wait", "--until", "archived"]);
    use_mount(&mnt, "before");
    // The next process has nothing of it in memory: it is only there.
    place.umount();
    place.mount();
    wait_until("up", || place.state() == "up");

    place.hangfs.hang();
    use_mount(&mnt, "during");
    place.promptly(&["status"]);
    // It hangs, and whoever reads what is only there hears of it soon after it may be silent no longer.
    let started = Instant::now();
    let failed = File::open(mnt.join("cold")).unwrap().read(&mut [0; 4096]);
    let waited = started.elapsed();
    println!("a read of what is only there: {failed:?} after {waited:?}");
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(waited < Duration::from_secs(3) + PROMPT, "{waited:?}");
    wait_until("down", || place.state() == "down");
    timed("a read with the circuit open", || {
        let mut byte = [0];
        let cold = File::open(mnt.join("cold")).unwrap();
        assert!(cold.read_at(&mut byte, 5 << 20).is_err());
    });
    use_mount(&mnt, "down");
    wait_until("workers hang", || {
        place.status()["circuit"]["hung_workers"].as_u64().unwrap() > 0
    });
    let shown = place.promptly(&["status"]);
    assert!(shown.contains("DOWN"), "{shown}");
    assert_eq!(place.status()["circuit"]["state"], "down");

    place.hangfs.go();
    wait_until("up again", || place.state() == "up");
    assert_eq!(fs::read(mnt.join("cold")).unwrap(), cold);
    place.ok(&["wait", "--until", "archived"]);
    wait_until("no worker hangs", || {
        place.status()["circuit"]["hung_workers"] == 0
    });
    use_mount(&mnt, "after");
    place.umount();
    let checked = place.ok(&["check", "--external", "--read-data"]);
    assert!(checked.contains("No problems found"), "{checked}");
    let log = fs::read_to_string(place.path("backup/tidefs.log")).unwrap();
    let said = log.matches("fail until it answers again").count();
    assert_eq!(said, 1, "once in an outage:\n{log}");
}

#[test]
fn invariant_5_umount_ends_while_the_external_volume_hangs_and_the_next_mount_begins() {
    if !can_mount() {
        return;
    }
    // Nobody has noticed yet that it hangs: that takes longer than it takes to unmount.
    let mut place = Place::new(30);
    let mnt = place.path("mnt");
    place.mount();
    write_synced(&mnt.join("first"), &noise(1, 1 << 20));
    place.ok(&["wait", "--until", "archived"]);
    place.hangfs.hang();
    write_synced(&mnt.join("second"), &noise(2, 1 << 20));
    let pid = place.daemon();
    let said = place.promptly(&["umount", mnt.to_str().unwrap()]);
    assert!(said.contains("not on the external volume yet"), "{said}");
    timed("the end of its process", || {
        wait_until("gone", || !is_alive(pid));
    });
    // Without a daemon, and while it hangs.
    place.promptly(&["status"]);
    place.promptly(&["snapshot"]);
    place.promptly(&["mount", mnt.to_str().unwrap()]);
    assert_eq!(fs::read(mnt.join("second")).unwrap(), noise(2, 1 << 20));
    place.promptly(&["umount", mnt.to_str().unwrap()]);

    place.hangfs.go();
    place.mount();
    place.ok(&["wait", "--until", "archived"]);
    place.umount();
    let checked = place.ok(&["check", "--external"]);
    assert!(checked.contains("No problems found"), "{checked}");
}

#[test]
fn invariant_5_a_signal_ends_the_daemon_while_the_external_volume_hangs() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new(30);
    let mnt = place.path("mnt");
    place.mount();
    write_synced(&mnt.join("first"), &noise(1, 1 << 20));
    place.ok(&["wait", "--until", "archived"]);
    place.hangfs.hang();
    write_synced(&mnt.join("second"), &noise(2, 1 << 20));
    let pid = place.daemon();
    timed("SIGTERM", || {
        let sent = Command::new("kill").arg(pid.to_string()).status().unwrap();
        assert!(sent.success());
        wait_until("gone", || !is_alive(pid));
    });
    place.promptly(&["mount", mnt.to_str().unwrap()]);
    assert_eq!(fs::read(mnt.join("second")).unwrap(), noise(2, 1 << 20));
}

/// As of an NFS export that was taken away, or of a server that has another disk in its place.
#[test]
fn a_mount_that_went_stale_is_named_and_is_used_again_when_it_is_well() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new(30);
    let mnt = place.path("mnt");
    place.mount();
    write_synced(&mnt.join("first"), &noise(1, 1 << 20));
    place.ok(&["wait", "--until", "archived"]);
    place.hangfs.stale();
    use_mount(&mnt, "stale");
    wait_until("it is named", || {
        let reason = place.status()["circuit"]["reason"].to_string();
        reason.contains("the mount went stale") && place.state() == "down"
    });
    let shown = place.ok(&["status"]);
    assert!(
        shown.contains("DOWN") && shown.contains("the mount went stale"),
        "{shown}"
    );
    place.hangfs.go();
    place.ok(&["wait", "--until", "archived", "--timeout", "110"]);
    assert_eq!(place.state(), "up");
    place.umount();
    let checked = place.ok(&["check", "--external", "--read-data"]);
    assert!(checked.contains("No problems found"), "{checked}");
}

#[test]
fn a_stale_root_is_unreachable_for_a_directory_and_for_one_behind_workers() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new(30);
    let ext = place.path("hangs/ext");
    let key = ObjectKey::new("server/volume.json").unwrap();
    let identity = fs::read(ext.join(key.as_str())).unwrap();
    let sentinel = Sentinel::exact(key.clone(), identity);
    let directory = DirVolume::open(&ext).unwrap();
    directory.bind(sentinel.clone()).unwrap();
    let behind_workers = IsolatedDir::new(&ext, Some(sentinel), by_processes());
    behind_workers.verify_identity().unwrap();
    let volumes: [&dyn Volume; 2] = [&directory, &behind_workers];
    place.hangfs.stale();
    for volume in volumes {
        for error in [
            volume.verify_identity().unwrap_err(),
            volume.head(&key).unwrap_err(),
        ] {
            assert!(error.is_unreachable(), "{error:?}");
            assert!(error.chain().contains("the mount went stale"), "{error:?}");
        }
    }
    place.hangfs.go();
    for volume in volumes {
        volume.verify_identity().unwrap();
        assert!(volume.head(&key).unwrap().is_some());
    }
}

/// What it holds beyond them could keep a lock, a mount or a socket alive for as long as it hangs.
#[test]
fn a_worker_has_its_line_and_its_root_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let place = Place::new(30);
    let mnt = place.path("mnt");
    place.mount();
    write_synced(&mnt.join("first"), &noise(1, 1 << 20));
    place.ok(&["wait", "--until", "archived"]);
    let daemon = place.daemon();
    let workers = workers_of(daemon);
    assert!(!workers.is_empty());
    let root = place.path("hangs/ext");
    for worker in &workers {
        // At work it has files of the volume open too; it is at work for a moment each second.
        wait_until("only its line and its root", || {
            let held = held_by(*worker);
            held.iter().all(|(number, target)| match number {
                0 | 1 => target.to_string_lossy().starts_with("socket:"),
                2 => target == Path::new("/dev/null"),
                _ => *target == root,
            }) && held.iter().filter(|(_, target)| *target == root).count() <= 1
                && held.len() >= 3
        });
        let line = fs::read_to_string(format!("/proc/{worker}/cmdline")).unwrap();
        assert!(line.contains("dir-worker"), "{line:?}");
        let environment = fs::read(format!("/proc/{worker}/environ")).unwrap();
        assert!(environment.is_empty());
        let directory = fs::read_link(format!("/proc/{worker}/cwd")).unwrap();
        assert_eq!(directory, Path::new("/"));
    }
    // They end with the one who started them, whatever ended it.
    let sent = Command::new("kill")
        .args(["-9", &daemon.to_string()])
        .status();
    assert!(sent.unwrap().success());
    for worker in workers {
        wait_until("gone", || !is_alive(worker));
    }
}

#[test]
fn a_directory_behind_processes_keeps_the_contract() {
    let directories = Mutex::new(Vec::new());
    conformance(&|| {
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let volume = IsolatedDir::new(directory.path(), None, by_processes());
        directories.lock().unwrap().push(directory);
        Arc::new(volume)
    });
}

fn by_processes() -> IsolateOptions {
    IsolateOptions {
        start: Start::Process(Arc::new(|| {
            let mut command = Command::new(PROGRAM);
            command.arg("dir-worker");
            command
        })),
        limits: PoolLimits::default(),
        deadlines: Deadlines::default(),
        stop: StopSignal::new(),
    }
}

fn workers_of(daemon: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{daemon}/task")).unwrap() {
        let children = task.unwrap().path().join("children");
        let Ok(children) = fs::read_to_string(children) else {
            continue;
        };
        found.extend(
            children
                .split_whitespace()
                .map(|pid| pid.parse::<u32>().unwrap()),
        );
    }
    found
}

fn held_by(pid: u32) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect()
}

/// One that is dead and was not collected is not.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}
