//! The program as people and scripts call it: exit codes, documents, messages, and the life of a mount.
//!
//! Those that mount need /dev/fuse and root; without them each says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");

/// Directories for one test: a backup path (not made yet), an external volume, two mount points. What is
/// still mounted there is taken away at the end.
struct Place {
    dir: TempDir,
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn of(output: Output) -> Ended {
        Ended {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Asserts the exit code and that the error says this.
    #[track_caller]
    fn says(&self, code: i32, part: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.contains(part), "no '{part}' in {self:?}");
    }

    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    fn json(self) -> Value {
        let out = self.ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ext", "mnt", "view"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Place { dir }
    }

    /// With a backup path and an external volume.
    fn ready() -> Place {
        let place = Place::new();
        place.run(&["init"]).ok();
        let ext = place.path("ext");
        place
            .run(&["store", "set", "dir", ext.to_str().unwrap()])
            .ok();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
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

    fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.command(args).output().unwrap())
    }

    fn is_mounted(&self, name: &str) -> bool {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = self.path(name).canonicalize().unwrap_or(self.path(name));
        text.lines()
            .any(|line| line.split(' ').nth(4) == point.to_str())
    }

    /// Starts a process that stays, and waits for its first line.
    fn start(&self, args: &[&str]) -> (Child, String) {
        let mut child = self
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        if line.is_empty() {
            let ended = Ended::of(child.wait_with_output().unwrap());
            panic!("ended before it was ready: {ended:?}");
        }
        (child, line)
    }

    /// The process that serves the backup path.
    fn daemon(&self) -> Value {
        self.run(&["--json", "status"]).json()["daemon"].clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in ["mnt", "view"] {
            if self.is_mounted(name) {
                let _ = Command::new("umount")
                    .arg("-l")
                    .arg(self.path(name))
                    .status();
            }
        }
    }
}

fn can_mount() -> bool {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let can = opened.is_ok() && nix::unistd::geteuid().is_root();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(done.unwrap().success());
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "still not: {what}"
        );
        std::thread::yield_now();
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn wrong_use_is_2_and_says_what_would_be_right() {
    let place = Place::new();
    place.run(&[]).says(2, "Usage");
    place.run(&["frobnicate"]).says(2, "frobnicate");
    place.run(&["mount"]).says(2, "MOUNTPOINT");
    place
        .run(&["--quiet", "--progress", "status"])
        .says(2, "cannot be used with");
    place.run(&["wait", "--until", "soon"]).says(2, "archived");
    let nowhere = Command::new(PROGRAM)
        .arg("status")
        .env_remove("TIDEFS_PATH")
        .output()
        .unwrap();
    Ended::of(nowhere).says(2, "-p BACKUP_PATH");
    assert_eq!(place.run(&["--help"]).code, 0);
    assert_eq!(place.run(&["--version"]).code, 0);
}

#[test]
fn what_is_no_backup_path_says_how_to_make_one() {
    let place = Place::new();
    for args in [
        &["status"][..],
        &["snapshot"],
        &["wait"],
        &["store", "show"],
        &["store", "test"],
        &["daemon"],
        &["mount", &place.text("mnt")],
    ] {
        place.run(args).says(1, "init");
        assert!(!place.path("backup").exists(), "{args:?} made something");
    }
}

#[test]
fn a_backup_path_is_private_and_made_once() {
    let place = Place::new();
    let made = place.run(&["--json", "init"]).json();
    assert_eq!(made["volume"].as_str().unwrap().len(), 32);
    assert_eq!(mode(&place.path("backup")), 0o700);
    place.run(&["init"]).says(1, "already");
    place
        .run(&["-p", &place.text("no/where"), "init"])
        .says(1, "not there");
}

#[test]
fn the_documents_are_one_each_and_tell_the_failure_too() {
    let place = Place::ready();
    let status = place.run(&["--json", "status"]).json();
    assert_eq!(status["store"]["kind"], "dir");
    assert_eq!(status["daemon"], Value::Null);
    let store = place.run(&["--json", "store", "show"]).json();
    assert_eq!(store["store"]["path"].as_str(), Some(&*place.text("ext")));
    let failed = place.run(&["--json", "init"]);
    assert_eq!(failed.code, 1);
    let document: Value = serde_json::from_str(&failed.out).unwrap();
    assert_eq!(document["error"]["kind"], "failed");
    place
        .run(&["wait", "--until", "archived", "--timeout", "60"])
        .ok();
}

#[test]
fn an_external_volume_is_tried_out_and_left_as_it_was() {
    let place = Place::ready();
    let before: Vec<_> = fs::read_dir(place.path("ext"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    let profile = place.run(&["--json", "store", "test"]).json();
    assert_eq!(profile["profile"]["atomic_rename"], true);
    assert!(profile["put_bytes_per_sec"].as_u64().unwrap() > 0);
    let spec = format!("dir:{}", place.text("ext"));
    let verdict = place.run(&["store", "test", &spec]).ok();
    // Where temporary files are in memory, that is told.
    assert!(
        verdict.contains("all well") || verdict.contains("usable, with 1 warning"),
        "{verdict}"
    );
    let after: Vec<_> = fs::read_dir(place.path("ext"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(before, after);
    place
        .run(&["store", "test", "dir:/no/such/place"])
        .says(5, "/no/such/place");
    place
        .run(&["store", "set", "dir", &place.text("gone")])
        .says(1, "gone");
}

#[test]
fn a_directory_of_another_volume_is_refused() {
    let place = Place::ready();
    let other = place.text("other");
    place.run(&["-p", &other, "init"]).ok();
    let ext = place.text("ext");
    place
        .run(&["-p", &other, "store", "set", "dir", &ext])
        .says(1, "belongs to");
    let kept = place.run(&["-p", &other, "--json", "store", "show"]).json();
    assert_eq!(kept["store"]["kind"], "local");
}

#[test]
fn an_external_volume_that_is_gone_ends_the_waiting_with_5() {
    let place = Place::ready();
    fs::rename(place.path("ext"), place.path("unplugged")).unwrap();
    place.run(&["snapshot", "unsent"]).ok();
    place
        .run(&["wait", "--until", "archived", "--timeout", "1"])
        .says(5, "does not answer");
    let status = place.run(&["status"]).ok();
    assert!(status.contains("DOWN"), "{status}");
}

#[test]
fn waiting_tells_how_far_it_is_and_a_signal_stops_it_with_3() {
    let place = Place::ready();
    fs::rename(place.path("ext"), place.path("unplugged")).unwrap();
    place.run(&["snapshot", "unsent"]).ok();
    let mut child = place
        .command(&["--progress", "wait", "--until", "archived"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut messages = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    messages.read_line(&mut line).unwrap();
    assert!(line.starts_with("uploading"), "{line}");
    signal(child.id(), "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    messages.read_to_string(&mut line).unwrap();
    assert!(line.contains("stopped by SIGINT"), "{line}");
}

#[test]
fn a_snapshot_is_listed_and_its_name_is_taken() {
    let place = Place::ready();
    let made = place
        .run(&["--json", "snapshot", "before the upgrade"])
        .json();
    let listed = place.run(&["--json", "snapshot", "--list"]).json();
    let found = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == "before the upgrade");
    assert_eq!(found.unwrap()["epoch"], made["epoch"]);
    assert!(
        place
            .run(&["snapshot", "--list"])
            .ok()
            .contains("before the upgrade")
    );
    place
        .run(&["snapshot", "before the upgrade"])
        .says(1, "already");
    place.run(&["snapshot", "yesterday"]).says(2, "time");
    place.run(&["snapshot", "../x"]).says(2, "choose another");
}

#[test]
fn a_check_finds_nothing_until_something_is_damaged_and_says_4_then() {
    let place = Place::ready();
    place.run(&["snapshot", "first"]).ok();
    place.run(&["wait", "--timeout", "60"]).ok();
    let sound = place
        .run(&["--json", "check", "--read-data", "--external"])
        .json();
    assert_eq!(
        sound["problems"].as_array().map(Vec::len),
        Some(0),
        "{sound}"
    );
    let rebuilt = place.run(&["check", "--rebuild-index"]).ok();
    assert!(
        rebuilt.contains("The index is gone") && rebuilt.contains("No problems found"),
        "{rebuilt}"
    );
    place.run(&["status"]).ok();
    fs::rename(place.path("ext"), place.path("unplugged")).unwrap();
    place.run(&["check", "--external"]).says(5, "ext");
    fs::rename(place.path("unplugged"), place.path("ext")).unwrap();
    let segments = fs::read_dir(place.path("backup/accounts")).unwrap();
    for segment in segments.flatten() {
        let mut bytes = fs::read(segment.path()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
        fs::write(segment.path(), bytes).unwrap();
    }
    let found = place.run(&["--json", "check"]);
    assert_eq!(found.code, 4, "{found:?}");
    let document: Value = serde_json::from_str(&found.out).unwrap();
    assert!(!document["problems"].as_array().unwrap().is_empty());
    let shown = place.run(&["check"]);
    assert_eq!(shown.code, 4, "{shown:?}");
    assert!(shown.out.contains("found: "), "{shown:?}");
}

#[test]
fn nobody_to_read_the_answer_is_no_failure() {
    let place = Place::ready();
    let mut child = place
        .command(&["status"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = Ended::of(child.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
}

#[test]
fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
    let place = Place::ready();
    let (child, line) = place.start(&["daemon"]);
    assert!(line.starts_with("ready "), "{line}");
    assert_eq!(mode(&place.path("backup/control.sock")), 0o600);
    let pid = child.id().to_string();
    place.run(&["daemon"]).says(1, &pid);
    assert_eq!(place.daemon()["pid"].as_u64(), Some(u64::from(child.id())));
    // Commands go through it.
    place.run(&["snapshot", "served"]).ok();
    place.run(&["wait", "--timeout", "60"]).ok();
    let stopped = place.run(&["daemon", "--stop"]).ok();
    assert!(
        stopped.contains("All of it is on the external volume"),
        "{stopped}"
    );
    assert_eq!(Ended::of(child.wait_with_output().unwrap()).code, 0);
    assert!(!place.path("backup/control.sock").exists());
    place.run(&["daemon", "--stop"]).says(1, "nothing to stop");
}

#[test]
fn a_lock_without_a_socket_is_told_with_its_holder() {
    let place = Place::ready();
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .open(place.path("backup/lock"))
        .unwrap();
    lock.lock().unwrap();
    lock.set_len(0).unwrap();
    write!(lock, "4242").unwrap();
    place.run(&["status"]).says(1, "process 4242");
    place.run(&["daemon"]).says(1, "process 4242");
    // What needs no lock is told all the same.
    place.run(&["store", "show"]).ok();
}

#[test]
fn a_mount_that_cannot_be_is_told_before_anything_is_begun() {
    let place = Place::ready();
    let mnt = place.text("mnt");
    place
        .run(&["mount", &place.text("none")])
        .says(1, "does not exist");
    fs::write(place.path("file"), "").unwrap();
    place
        .run(&["mount", &place.text("file")])
        .says(1, "not a directory");
    place
        .run(&["mount", "-o", "cache=yes", &mnt])
        .says(2, "cache=yes");
    place
        .run(&["mount", "-o", "account=a", &mnt])
        .says(1, "no account 'a'");
    place
        .run(&["mount", "--external", "ftp:x", &mnt])
        .says(2, "dir:/path");
    place
        .run(&["mount", "--external", "dir:/no/where", &mnt])
        .says(5, "/no/where");
    place
        .run(&["mount", "--external", &format!("dir:{mnt}"), &mnt])
        .says(1, "no tidefs volume");
    place
        .run(&["umount", &mnt])
        .says(1, "not a mount of tidefs");
    assert!(!place.path("backup/control.sock").exists());
    assert!(!place.is_mounted("mnt"));
}

#[test]
fn a_mount_that_returned_serves_and_an_unmount_that_returned_has_let_go() {
    if !can_mount() {
        return;
    }
    let place = Place::ready();
    let mnt = place.text("mnt");
    for round in 0..3 {
        let ready = place.run(&["--json", "mount", &mnt]).json();
        assert_eq!(ready["mountpoint"].as_str(), Some(&*mnt));
        assert!(place.is_mounted("mnt"));
        let file = place.path("mnt/file");
        if round > 0 {
            assert_eq!(fs::read_to_string(&file).unwrap(), (round - 1).to_string());
        }
        fs::write(&file, round.to_string()).unwrap();
        assert_eq!(place.daemon()["mountpoint"].as_str(), Some(&*mnt));
        place
            .run(&["mount", &mnt])
            .says(1, &place.daemon()["pid"].to_string());
        let ended = place.run(&["--json", "umount", &mnt]).json();
        assert_eq!(ended["is_archived"], true, "{ended}");
        assert!(!place.is_mounted("mnt"));
        // The backup path is free at once.
        File::open(place.path("backup/lock"))
            .unwrap()
            .try_lock()
            .unwrap();
    }
    assert_eq!(mode(&place.path("backup/tidefs.log")), 0o600);
}

#[test]
fn the_mount_point_must_be_empty_unless_said_otherwise() {
    if !can_mount() {
        return;
    }
    let place = Place::ready();
    let mnt = place.text("mnt");
    fs::write(place.path("mnt/old"), "").unwrap();
    place.run(&["mount", &mnt]).says(1, "not empty");
    assert!(!place.is_mounted("mnt"));
    place.run(&["mount", "-o", "nonempty,ro", &mnt]).ok();
    assert!(fs::write(place.path("mnt/new"), "").is_err());
    place.run(&["umount", &mnt]).ok();
    assert!(place.path("mnt/old").exists());
}

#[test]
fn the_past_is_mounted_beside_the_present_and_from_the_external_volume_alone() {
    if !can_mount() {
        return;
    }
    let place = Place::ready();
    let (mnt, view) = (place.text("mnt"), place.text("view"));
    let file = place.path("mnt/file");
    place.run(&["mount", &mnt]).ok();
    fs::write(&file, "one").unwrap();
    place.run(&["snapshot", "first"]).ok();
    fs::write(&file, "two").unwrap();
    place
        .run(&["mount", "--at", "monday", &view])
        .says(2, "monday");
    place
        .run(&["mount", "--at", "1999-12-31", &view])
        .says(1, "the first epoch");
    let at = place
        .run(&["--json", "mount", "--at", "first", &view])
        .json();
    assert_eq!(at["name"], "first");
    assert_eq!(fs::read_to_string(place.path("view/file")).unwrap(), "one");
    assert!(fs::write(place.path("view/file"), "").is_err());
    place.run(&["umount", &view]).ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), "two");
    place.run(&["wait", "--timeout", "60"]).ok();
    place.run(&["umount", &mnt]).ok();
    fs::remove_dir_all(place.path("backup")).unwrap();
    let spec = format!("dir:{}", place.text("ext"));
    place.run(&["mount", "--external", &spec, &view]).ok();
    assert_eq!(fs::read_to_string(place.path("view/file")).unwrap(), "two");
    place.run(&["umount", &view]).ok();
    place
        .run(&["mount", "--external", &spec, "--at", "first", &view])
        .ok();
    assert_eq!(fs::read_to_string(place.path("view/file")).unwrap(), "one");
    place.run(&["umount", &view]).ok();
    assert!(!place.is_mounted("view"));
}

#[test]
fn the_past_is_whole_though_its_packs_were_evicted() {
    if !can_mount() {
        return;
    }
    let place = Place::ready();
    let settings = place.path("backup/settings.json");
    let mut chosen: Value = serde_json::from_slice(&fs::read(&settings).unwrap()).unwrap();
    chosen["cache_bytes"] = 0.into();
    chosen["evict_after_secs"] = 0.into();
    fs::write(&settings, chosen.to_string()).unwrap();
    let (mnt, view) = (place.text("mnt"), place.text("view"));
    place.run(&["mount", &mnt]).ok();
    let bytes: Vec<u8> = (0..300_000_u32)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(place.path("mnt/file"), &bytes).unwrap();
    place.run(&["snapshot", "first"]).ok();
    place.run(&["wait", "--timeout", "60"]).ok();
    wait_until("evicted", || {
        place.run(&["--json", "status"]).json()["cache_bytes"] == 0
    });
    place.run(&["mount", "--at", "first", &view]).ok();
    assert!(fs::read(place.path("view/file")).unwrap() == bytes);
    place.run(&["umount", &view]).ok();
    place.run(&["umount", &mnt]).ok();
}

#[test]
fn a_busy_mount_stays_unless_it_is_taken_lazily() {
    if !can_mount() {
        return;
    }
    let place = Place::ready();
    let mnt = place.text("mnt");
    place.run(&["mount", &mnt]).ok();
    let pid = place.daemon()["pid"].as_u64().unwrap();
    let mut file = File::create(place.path("mnt/file")).unwrap();
    place.run(&["umount", &mnt]).says(1, "busy");
    assert!(place.is_mounted("mnt"));
    let lazy = place.run(&["umount", "--lazy", &mnt]).ok();
    assert!(lazy.contains("Somebody is still in it"), "{lazy}");
    assert!(!place.is_mounted("mnt"));
    file.write_all(b"still served").unwrap();
    drop(file);
    wait_until("the daemon ended", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
    place.run(&["mount", &mnt]).ok();
    assert_eq!(
        fs::read_to_string(place.path("mnt/file")).unwrap(),
        "still served"
    );
    place.run(&["umount", &mnt]).ok();
}

#[test]
fn a_signal_leaves_nothing_mounted_and_loses_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::ready();
    let mnt = place.text("mnt");
    for name in ["-TERM", "-INT"] {
        let (child, line) = place.start(&["mount", "--foreground", &mnt]);
        assert_eq!(line.trim_end(), format!("ready {mnt}"));
        fs::write(place.path("mnt/file"), name).unwrap();
        signal(child.id(), name);
        let ended = Ended::of(child.wait_with_output().unwrap());
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(!place.is_mounted("mnt"));
        assert!(!place.path("backup/control.sock").exists());
    }
    place.run(&["mount", &mnt]).ok();
    assert_eq!(fs::read_to_string(place.path("mnt/file")).unwrap(), "-INT");
    // Also with somebody in it.
    let pid = place.daemon()["pid"].as_u64().unwrap();
    let mut file = File::open(place.path("mnt/file")).unwrap();
    signal(u32::try_from(pid).unwrap(), "-TERM");
    wait_until("unmounted", || !place.is_mounted("mnt"));
    wait_until("the daemon ended", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
    let mut text = String::new();
    drop(file.read_to_string(&mut text));
}

#[test]
fn what_a_killed_daemon_left_is_taken_away_by_the_next_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::ready();
    let mnt = place.text("mnt");
    place.run(&["mount", &mnt]).ok();
    let file = File::create(place.path("mnt/file")).unwrap();
    (&file).write_all(b"synced").unwrap();
    file.sync_all().unwrap();
    let pid = place.daemon()["pid"].as_u64().unwrap();
    signal(u32::try_from(pid).unwrap(), "-KILL");
    wait_until("the mount is dead", || {
        fs::metadata(place.path("mnt/file")).is_err()
    });
    drop(file);
    let again = place.run(&["mount", &mnt]);
    again.says(0, "dead mount");
    assert_eq!(
        fs::read_to_string(place.path("mnt/file")).unwrap(),
        "synced"
    );
    let pid = place.daemon()["pid"].as_u64().unwrap();
    signal(u32::try_from(pid).unwrap(), "-KILL");
    wait_until("the mount is dead", || {
        fs::metadata(place.path("mnt/file")).is_err()
    });
    let removed = place.run(&["umount", &mnt]).ok();
    assert!(removed.contains("dead mount"), "{removed}");
    assert!(!place.is_mounted("mnt"));
}

#[test]
fn umount_from_outside_ends_the_daemon_in_order() {
    if !can_mount() {
        return;
    }
    let place = Place::ready();
    let mnt = place.text("mnt");
    place.run(&["mount", &mnt]).ok();
    fs::write(place.path("mnt/file"), "kept").unwrap();
    let done = Command::new("umount").arg(&mnt).status().unwrap();
    assert!(done.success());
    // The next mount waits until the one before has closed.
    place.run(&["mount", &mnt]).ok();
    assert_eq!(fs::read_to_string(place.path("mnt/file")).unwrap(), "kept");
    place.run(&["umount", &mnt]).ok();
}

#[test]
fn an_unmount_without_the_external_volume_says_what_is_unsent() {
    if !can_mount() {
        return;
    }
    let place = Place::ready();
    let mnt = place.text("mnt");
    place.run(&["mount", &mnt]).ok();
    place.run(&["wait", "--timeout", "60"]).ok();
    fs::rename(place.path("ext"), place.path("unplugged")).unwrap();
    fs::write(place.path("mnt/file"), vec![7_u8; 3 << 20]).unwrap();
    let ended = place.run(&["umount", "--drain", "1", &mnt]).ok();
    assert!(ended.contains("sent the next time"), "{ended}");
    fs::rename(place.path("unplugged"), place.path("ext")).unwrap();
    place.run(&["wait", "--timeout", "60"]).ok();
}

#[test]
fn mount8_mounts_as_fstab_asks() {
    if !can_mount() {
        return;
    }
    let place = Place::ready();
    let called = place.path("mount.tidefs");
    std::os::unix::fs::symlink(PROGRAM, &called).unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(&called)
            .args(args)
            .env_remove("TIDEFS_PATH")
            .output();
        Ended::of(output.unwrap())
    };
    let (backup, mnt) = (place.text("backup"), place.text("mnt"));
    let options = "rw,nofail,_netdev,noatime,x-systemd.automount";
    run(&[&backup]).says(1, "usage");
    run(&[&backup, &mnt, "-o", "rw,bogus"]).says(1, "bogus");
    run(&[&backup, &place.text("none"), "-o", "rw"]).says(32, "does not exist");
    run(&[&mnt, &mnt, "-o", "rw"]).says(32, "not a backup path");
    assert_eq!(run(&[&backup, &mnt, "-f", "-o", options]).ok(), "");
    assert!(!place.is_mounted("mnt"));
    assert_eq!(run(&[&backup, &mnt, "-n", "-o", options]).ok(), "");
    fs::write(place.path("mnt/file"), "by fstab").unwrap();
    place.run(&["wait", "--timeout", "60"]).ok();
    // `mount -a` again and again.
    assert_eq!(run(&[&backup, &mnt, "-o", options]).ok(), "");
    let spec = format!("dir:{}", place.text("ext"));
    run(&[&spec, &place.text("view"), "-sv", "-o", "ro,rsize=1"]).ok();
    assert_eq!(
        fs::read_to_string(place.path("view/file")).unwrap(),
        "by fstab"
    );
    place.run(&["umount", &place.text("view")]).ok();
    place.run(&["umount", &mnt]).ok();
}
