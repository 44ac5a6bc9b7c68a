//! Scans with the real program: through a daemon and alone, under a mount, killed at any moment, watched and stopped.
//!
//! Those that mount need /dev/fuse and root; without them each says so and passes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");

/// A backup path, a source, a mount point, and what was started for them.
struct Place {
    dir: TempDir,
    daemon: Option<Child>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        for name in ["source", "mnt"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let place = Place { dir, daemon: None };
        place.ok(&["init"]);
        place
    }

    /// With the source named to it.
    fn with_source() -> Place {
        let place = Place::new();
        place.ok(&["source", "add", &place.text("source")]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn put(&self, path: &str, content: &[u8]) {
        let path = self.path("source").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .env("TIDEFS_PATH", self.path("backup"))
            .env_remove("TIDEFS_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
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

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let args = [&["--json"][..], args].concat();
        let out = self.ok(&args);
        serde_json::from_str(out.lines().last().unwrap()).unwrap()
    }

    #[track_caller]
    fn fails(&self, args: &[&str], code: i32, part: &str) {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: no '{part}' in {said}");
    }

    /// A daemon, with a mount if that is asked for.
    fn serve(&mut self, mounted: bool) {
        let mnt = self.text("mnt");
        let args: &[&str] = if mounted {
            &["mount", "-f", &mnt]
        } else {
            &["daemon"]
        };
        let mut child = self.command(args).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "{line}");
        self.daemon = Some(child);
    }

    fn end(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let pid = nix::unistd::Pid::from_raw(daemon.id().cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            daemon.wait().unwrap();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Whatever went wrong, nothing of ours is left mounted.
            let _ = daemon.kill();
            let _ = daemon.wait();
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.path("mnt"))
                .output();
        }
    }
}

fn can_mount() -> bool {
    let opened = File::options().read(true).write(true).open("/dev/fuse");
    let can = opened.is_ok() && nix::unistd::geteuid().is_root();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

fn settle() {
    std::thread::sleep(Duration::from_millis(130));
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

#[test]
fn sources_are_added_listed_and_removed_and_nonsense_is_refused() {
    let place = Place::new();
    place.fails(&["scan"], 1, "there is no source");
    place.fails(
        &["source", "add", "/no/such/place"],
        1,
        "cannot find the source",
    );
    place.fails(
        &["source", "add", &place.text("backup")],
        1,
        "in the backup path itself",
    );
    place.fails(
        &["source", "add", &place.text("source"), "--exclude", "[a"],
        1,
        "without its ']'",
    );
    let source = place.text("source");
    let added = place.json(&["source", "add", &source, "--preset", "homes", "--watch"]);
    assert_eq!(added["watch"], true);
    place.fails(&["source", "add", &source], 1, "is a source already");
    let list = place.ok(&["source", "list"]);
    assert!(list.contains(&source) && list.contains("never"), "{list}");
    place.put("alice/f", b"1");
    place.ok(&["scan", "--source", &source]);
    assert!(place.ok(&["source", "list"]).contains("UTC"));
    place.fails(&["scan", "--account", "bob"], 1, "no account 'bob'");
    let uuid = added["uuid"].as_str().unwrap();
    place.ok(&["source", "remove", &uuid[..8]]);
    assert!(place.ok(&["source", "list"]).contains("There is no source"));
}

#[test]
fn a_scan_alone_and_one_through_a_daemon_do_the_same() {
    let mut place = Place::with_source();
    place.put("alice/f", b"one");
    let first = place.json(&["scan"]);
    assert_eq!(first["scans"][0]["counts"]["created"], 1);
    assert!(place.ok(&["ops"]).contains("Nothing is running"));
    place.serve(false);
    place.put("alice/g", b"two");
    let text = place.ok(&["scan"]);
    assert!(
        text.contains("1 new") && text.contains("1 account"),
        "{text}"
    );
    let ops = place.json(&["ops"]);
    assert_eq!(ops[0]["state"], "done");
    place.fails(&["ops", "stop", "99"], 1, "there is no operation 99");
    place.ok(&["ops", "watch", "1"]);
    place.fails(
        &["scan", "--upload-metadata"],
        2,
        "needs an external volume",
    );
    let external = place.path("external");
    fs::create_dir(&external).unwrap();
    place.ok(&["store", "set", "dir", external.to_str().unwrap()]);
    place.put("alice/h", b"three");
    let text = place.ok(&["scan", "--upload-metadata"]);
    assert!(text.contains("All of it is archived"), "{text}");
    let status = place.json(&["status"]);
    assert_eq!(status["epoch_archived"], status["epoch_local"]);
    place.end();
}

#[test]
fn a_running_scan_is_seen_is_not_doubled_and_can_be_stopped_and_gone_on_with() {
    for with_daemon in [true, false] {
        let mut place = Place::with_source();
        for n in 0..24 {
            place.put(&format!("alice/f{n}"), &noise(n, 1 << 20));
        }
        settle();
        if with_daemon {
            place.serve(false);
        }
        let running = place
            .command(&["--json", "--progress", "scan", "--read-rate", "4M"])
            .spawn()
            .unwrap();
        let started = Instant::now();
        let id = loop {
            let ops = place.json(&["ops"]);
            let op = ops.as_array().unwrap().first().cloned().unwrap_or_default();
            if op["state"] == "running" && op["progress"]["files"]["read_bytes"].as_u64() > Some(0)
            {
                break op["id"].as_u64().unwrap().to_string();
            }
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "it is not seen: {ops}"
            );
        };
        place.fails(&["scan"], 1, "runs already, operation 1");
        place.ok(&["ops", "stop", &id]);
        let ended = running.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(3), "{ended:?}");
        let out = String::from_utf8(ended.stdout).unwrap();
        let report: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        let report = &report["scans"][0];
        assert_eq!(report["stopped"], true);
        let before = report["counts"]["read_files"].as_u64().unwrap();
        let rest = place.json(&["scan"]);
        let after = rest["scans"][0]["counts"]["read_files"].as_u64().unwrap();
        assert!(
            after < 24 && before + after >= 24,
            "{before} and {after} files were read"
        );
        place.end();
    }
}

#[test]
fn what_a_scan_brings_is_seen_in_the_mount_at_once_also_what_the_kernel_knew_otherwise() {
    if !can_mount() {
        return;
    }
    let mut place = Place::with_source();
    place.put("alice/f", b"first");
    place.put("alice/gone", b"x");
    place.put("alice/dir/old-name", b"y");
    place.put("alice/as-long", b"aaaa");
    settle();
    place.serve(true);
    place.ok(&["scan"]);
    let mnt = place.path("mnt");
    let read = |path: &str| fs::read(mnt.join("alice").join(path));
    assert_eq!(read("f").unwrap(), b"first");
    assert!(read("later").is_err() && read("gone").is_ok() && read("dir/old-name").is_ok());
    place.fails(
        &["source", "add", mnt.to_str().unwrap()],
        1,
        "is a mount of tidefs",
    );
    let open = File::open(mnt.join("alice/f")).unwrap();
    let as_long = File::open(mnt.join("alice/as-long")).unwrap();
    let mut four = [0; 4];
    as_long.read_exact_at(&mut four, 0).unwrap();
    assert_eq!(&four, b"aaaa");
    place.put("alice/as-long", b"bbbb");
    place.put("alice/f", b"second, and longer");
    place.put("alice/later", b"new");
    fs::remove_file(place.path("source/alice/gone")).unwrap();
    let dir = place.path("source/alice/dir");
    fs::rename(dir.join("old-name"), dir.join("new-name")).unwrap();
    settle();
    place.ok(&["scan"]);
    assert_eq!(read("f").unwrap(), b"second, and longer");
    assert_eq!(read("later").unwrap(), b"new");
    assert!(read("gone").is_err() && read("dir/old-name").is_err());
    assert_eq!(read("dir/new-name").unwrap(), b"y");
    let mut bytes = [0; 32];
    let len = open.read_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes[..len], b"second, and longer", "a file that was open");
    as_long.read_exact_at(&mut four, 0).unwrap();
    assert_eq!(&four, b"bbbb", "pages that the kernel had");
    let refused = fs::write(mnt.join("alice/mine"), b"no").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS));
    fs::create_dir(mnt.join("other")).unwrap();
    fs::write(mnt.join("other/mine"), b"yes").unwrap();
    drop((open, as_long));
    place.end();
}

#[test]
fn an_odd_tree_comes_out_of_the_mount_as_it_is_in_every_attribute() {
    if !can_mount() {
        return;
    }
    let mut place = Place::with_source();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make-odd-tree");
    let odd = place.path("source/odd");
    let made = Command::new(script).arg(&odd).output().unwrap();
    if !made.status.success() {
        eprintln!("skipped: no odd tree here: {made:?}");
        return;
    }
    symlink("/somewhere", place.path("source/odd/absolute")).unwrap();
    settle();
    place.serve(true);
    let report = place.json(&["scan"]);
    assert_eq!(report["scans"][0]["errors"]["count"], 0, "{report}");
    let compare = |place: &Place| {
        let compared = Command::new("rsync")
            .args(["-aHXn", "--checksum", "--delete", "--itemize-changes"])
            .arg(format!("{}/", place.text("source")))
            .arg(format!("{}/", place.text("mnt")))
            .output();
        let Ok(compared) = compared else {
            eprintln!("skipped: no rsync");
            return;
        };
        let said = String::from_utf8_lossy(&compared.stdout).into_owned();
        // The root of the volume is nobody's directory in the source.
        let lines: Vec<&str> = said.lines().filter(|line| !line.ends_with(" ./")).collect();
        assert!(
            compared.status.success() && lines.is_empty(),
            "{compared:?}"
        );
    };
    compare(&place);
    let times = |root: &Path| {
        let found = fs::metadata(root.join("odd/times/nanoseconds")).unwrap();
        (found.mtime(), found.mtime_nsec())
    };
    assert_eq!(times(&place.path("source")), times(&place.path("mnt")));
    let again = place.json(&["scan"]);
    assert_eq!(again["scans"][0]["counts"]["read_files"], 0, "{again}");
    // And after it was changed in its ways.
    fs::set_permissions(odd.join("modes/0644"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::rename(odd.join("links"), odd.join("moved-links")).unwrap();
    fs::remove_file(odd.join("special/fifo")).unwrap();
    let set = Command::new("setfattr")
        .args(["-n", "user.short", "-v", "other"])
        .arg(odd.join("xattrs/file"))
        .status();
    assert!(set.unwrap().success());
    settle();
    place.ok(&["scan"]);
    compare(&place);
    place.end();
    let checked = place.run(&["check", "--read-data"]);
    assert!(checked.status.success(), "{checked:?}");
}

/// The source changes all the time, scans are killed at any moment, and in the end nothing is missing.
#[test]
fn a_scan_that_is_killed_and_run_again_misses_nothing() {
    let mut place = Place::with_source();
    for n in 0..300 {
        place.put(&format!("u{}/d{}/f{n}", n % 3, n % 7), &noise(n, 20_000));
    }
    let mut rng = 88_172_645_463_325_252_u64;
    let mut next = move |below: u64| {
        rng ^= rng << 13;
        rng ^= rng >> 7;
        rng ^= rng << 17;
        rng % below
    };
    let source = place.path("source");
    for round in 0..12_u64 {
        let child = place
            .command(&["scan", "--accept-deletions"])
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_millis(20 + next(400));
        while Instant::now() < until {
            let file = |n: u64| source.join(format!("u{}/d{}/f{n}", n % 3, n % 7));
            let (one, other) = (file(next(300)), file(next(300)));
            // Each may fail: what it works on may be gone by an earlier one.
            let _ = match next(7) {
                0 => fs::write(&one, noise(round * 1000 + next(1000), 20_000)),
                1 => fs::rename(&one, &other),
                2 => fs::remove_file(&one),
                3 => fs::hard_link(&one, &other),
                4 => fs::set_permissions(&one, fs::Permissions::from_mode(0o600)),
                5 => fs::rename(
                    one.parent().unwrap(),
                    source.join(format!("u0/dir{}", next(5))),
                ),
                _ => fs::create_dir_all(one.parent().unwrap()),
            };
        }
        let mut child = child;
        // It may be over already.
        let _ = child.kill();
        child.wait().unwrap();
    }
    settle();
    place.json(&["scan", "--accept-deletions"]);
    let deep = place.json(&["scan", "--deep"]);
    let report = &deep["scans"][0];
    assert_eq!(report["missed"]["count"], 0, "{deep}");
    for count in ["created", "changed", "moved", "attributes", "deleted"] {
        assert_eq!(report["counts"][count], 0, "{count}: {deep}");
    }
    let checked = place.run(&["check", "--read-data"]);
    assert!(checked.status.success(), "{checked:?}");
    if !can_mount() {
        return;
    }
    place.serve(true);
    let compared = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(&source)
        .arg(place.path("mnt"))
        .output()
        .unwrap();
    assert!(compared.status.success(), "{compared:?}");
    place.end();
}
