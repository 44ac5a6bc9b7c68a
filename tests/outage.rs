//! An outage that lasts longer than the room for it, a line that is slower than the writers, and an fsync that
//! means the external volume: the real program on a real mount (invariants 2 and 8).
//!
//! Needs /dev/fuse and root; without them each test says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::noise;
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");
const MIB: u64 = 1 << 20;
const FILE_LEN: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(180);
/// What reads, deletes, renames and metadata may take beside writers that wait. They take milliseconds; the
/// machine may be busy.
const PROMPT: Duration = Duration::from_millis(1500);

/// A backup path with an external volume, mounted; unmounted at the end.
struct Place {
    dir: TempDir,
}

impl Place {
    /// Mounted, with these words for `store update`; `None` where nothing can be mounted.
    fn mounted(update: &[&str], epoch_interval_secs: u64) -> Option<Place> {
        let place = Place::unmounted()?;
        place.begin(update, epoch_interval_secs);
        Some(place)
    }

    fn unmounted() -> Option<Place> {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if opened.is_err() || !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["ext", "mnt", "view"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Some(Place { dir })
    }

    fn begin(&self, update: &[&str], epoch_interval_secs: u64) {
        let place = self;
        place.ok(&["init"]);
        place.ok(&["store", "set", "dir", &place.text("ext")]);
        let path = place.path("backup/settings.json");
        let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        settings["epoch_interval_secs"] = epoch_interval_secs.into();
        settings["seal_after_secs"] = 1.into();
        fs::write(&path, settings.to_string()).unwrap();
        // Without a daemon, which opens the backup path by itself.
        place.ok(&[&["store", "update"], update].concat());
        place.ok(&["mount", &place.text("mnt")]);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(PROGRAM)
            .args(args)
            .env("TIDEFS_PATH", self.path("backup"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["--json", "status"])).unwrap()
    }

    fn phase(&self) -> String {
        self.status()["backlog"]["phase"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("backup/tidefs.log")).unwrap()
    }

    /// What the external volume alone gives back, below `dir`.
    fn external_files(&self, external: &str) -> BTreeMap<String, Vec<u8>> {
        let spec = format!("dir:{}", self.text(external));
        self.ok(&["mount", "--external", &spec, &self.text("view")]);
        let files = fs::read_dir(self.path("view")).unwrap().flatten();
        let found = files
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read(entry.path()).unwrap())
            })
            .collect();
        self.ok(&["umount", &self.text("view")]);
        found
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in ["mnt", "view", "disk"] {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.path(name))
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "still not: {what}");
        thread::yield_now();
    }
}

#[track_caller]
fn promptly<T>(what: &str, act: impl FnOnce() -> io::Result<T>) -> T {
    let started = Instant::now();
    let done = act().unwrap_or_else(|error| panic!("{what}: {error}"));
    let took = started.elapsed();
    assert!(took < PROMPT, "{what} took {took:?}");
    done
}

fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSPC)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Writers that never stop: a file each time, synced; one that is refused is tried again.
struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, u64>>>,
    refusals: Arc<Mutex<Vec<Instant>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(dir: &Path, count: u64) -> Writers {
        let mut writers = Writers {
            stop: Arc::default(),
            acknowledged: Arc::default(),
            refusals: Arc::default(),
            threads: Vec::new(),
        };
        for writer in 0..count {
            let (stop, refusals) = (Arc::clone(&writers.stop), Arc::clone(&writers.refusals));
            let (acknowledged, dir) = (Arc::clone(&writers.acknowledged), dir.to_owned());
            writers.threads.push(thread::spawn(move || {
                let mut number = 0;
                while !stop.load(Ordering::SeqCst) {
                    let name = format!("w{writer}-{number:05}");
                    let seed = writer * 1_000_000 + number + 1;
                    match write_synced(&dir.join(&name), &noise(seed, FILE_LEN)) {
                        Ok(()) => {
                            acknowledged.lock().unwrap().insert(name, seed);
                            number += 1;
                        }
                        Err(error) if is_full(&error) => {
                            refusals.lock().unwrap().push(Instant::now());
                            thread::sleep(Duration::from_millis(20));
                        }
                        Err(error) => panic!("{name}: {error}"),
                    }
                }
            }));
        }
        writers
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    fn refusals(&self) -> usize {
        self.refusals.lock().unwrap().len()
    }

    /// Stops them; what was acknowledged, by name.
    fn end(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.acknowledged.lock().unwrap())
    }
}

#[test]
fn an_outage_longer_than_the_room_for_it_slows_writers_then_refuses_new_data_only() {
    let Some(place) = Place::mounted(&["--unsent-budget", "256M"], 300) else {
        return;
    };
    let mnt = place.path("mnt");
    fs::write(mnt.join("kept"), noise(7, 3 << 20)).unwrap();
    for n in 0..40 {
        fs::write(mnt.join(format!("old-{n}")), noise(100 + n, 5000)).unwrap();
    }
    place.ok(&["wait", "--until", "archived"]);
    fs::rename(place.path("ext"), place.path("away")).unwrap();

    // More writers than the mount has threads: if one of them waited with a thread, all would stand still.
    let writers = Writers::start(&mnt, 8);
    wait_until("writers are slowed", || place.phase() == "slowed");
    wait_until("several writers wait", || {
        place.status()["backlog"]["waiting_writes"]
            .as_u64()
            .unwrap()
            >= 5
    });
    let slowed = place.status();
    let allowed = slowed["backlog"]["allowed_bytes_per_sec"].as_u64();
    assert!(
        allowed.unwrap() >= MIB,
        "never stopped by slowing: {slowed}"
    );
    promptly("stat", || fs::metadata(mnt.join("kept")));
    promptly("a listing", || Ok(fs::read_dir(&mnt)?.count()));
    let read = promptly("a read", || fs::read(mnt.join("kept")));
    assert_eq!(read, noise(7, 3 << 20));
    promptly("a delete", || fs::remove_file(mnt.join("old-0")));
    promptly("a rename", || {
        fs::rename(mnt.join("old-1"), mnt.join("new-1"))
    });
    promptly("mkdir", || fs::create_dir(mnt.join("dir")));

    // Slowed, not stopped: it goes on until the budget is used up.
    wait_until("new data is refused", || writers.refusals() > 20);
    wait_until("it is called full", || place.phase() == "full");
    let full = place.status();
    assert_eq!(full["upload"]["state"], "down", "{full}");
    assert!(full["backlog"]["bytes"].as_u64() <= full["backlog"]["budget_bytes"].as_u64());
    assert!(place.ok(&["status"]).contains("FULL"), "{full}");
    let mut kept = OpenOptions::new()
        .append(true)
        .open(mnt.join("kept"))
        .unwrap();
    let bulk = noise(9, 8 << 20);
    let refused = kept.write_all(&bulk).unwrap_err();
    assert!(is_full(&refused), "{refused}");
    let len = fs::metadata(mnt.join("kept")).unwrap().len();
    // Everything that is not new data goes on.
    for n in 2..20 {
        promptly("a delete", || fs::remove_file(mnt.join(format!("old-{n}"))));
    }
    promptly("a rename", || {
        fs::rename(mnt.join("old-20"), mnt.join("moved"))
    });
    promptly("an empty file", || File::create(mnt.join("empty")));
    promptly("a link", || {
        fs::hard_link(mnt.join("old-21"), mnt.join("link"))
    });
    promptly("a cut", || {
        OpenOptions::new()
            .write(true)
            .open(mnt.join("old-22"))?
            .set_len(10)
    });
    promptly("a sync", || kept.sync_all());
    assert_eq!(fs::read(mnt.join("old-23")).unwrap(), noise(123, 5000));

    // It is back: the same writers, the same descriptor, the same daemon go on.
    let before = writers.count();
    let pid = place.status()["daemon"]["pid"].clone();
    fs::rename(place.path("away"), place.path("ext")).unwrap();
    wait_until("writers go on", || writers.count() > before + 50);
    wait_until("the old descriptor goes on", || {
        kept.write_all(&bulk[..1000]).is_ok()
    });
    kept.sync_all().unwrap();
    drop(kept);
    let acknowledged = writers.end();
    place.ok(&["wait", "--until", "archived", "--timeout", "170"]);
    assert_eq!(place.status()["daemon"]["pid"], pid);

    // Nothing that was acknowledged is missing, here ..
    for (name, seed) in &acknowledged {
        let read = fs::read(mnt.join(name)).unwrap();
        assert!(read == noise(*seed, FILE_LEN), "{name} differs");
    }
    let log = place.log();
    for event in [
        "writers are slowed",
        "new data is refused",
        "new data is taken again",
    ] {
        wait_until(event, || place.log().contains(event));
    }
    assert!(
        !log.contains("could not be stored"),
        "accepted data was lost: {log}"
    );
    place.ok(&["umount", &place.text("mnt")]);
    // .. and from the external volume alone.
    let files = place.external_files("ext");
    for (name, seed) in &acknowledged {
        assert!(
            files.get(name) == Some(&noise(*seed, FILE_LEN)),
            "{name} differs"
        );
    }
    assert_eq!(files["kept"].len() as u64, len + 1000);
    assert!(files.contains_key("empty") && !files.contains_key("old-5"));
    assert_eq!(files["old-22"], noise(122, 5000)[..10]);
}

#[test]
fn epochs_are_archived_again_and_again_while_data_comes_faster_than_it_leaves() {
    // Room enough between slowed and refused for two packs that arrive at the same moment.
    let Some(place) = Place::mounted(&["--unsent-budget", "512M", "--uploads", "2"], 2) else {
        return;
    };
    place.ok(&["limits", "set", "--upload", "12M"]);
    let writers = Writers::start(&place.path("mnt"), 3);
    let (mut archived, mut most) = (Vec::<u64>::new(), 0);
    let started = Instant::now();
    while archived.len() < 6 {
        assert!(
            started.elapsed() < PATIENCE,
            "archived so far: {archived:?}"
        );
        let status = place.status();
        let unsent = status["packs"]["unsent_bytes"].as_u64().unwrap();
        let local = status["epoch_local"].as_u64().unwrap();
        let epoch = status["epoch_archived"].as_u64().unwrap();
        most = most.max(unsent);
        // Only what is archived while the queue is long counts: at its end all is.
        if unsent > 64 * MIB && epoch < local && archived.last() < Some(&epoch) && epoch > 0 {
            archived.push(epoch);
        }
    }
    assert!(most < 560 * MIB, "the budget was passed: {most}");
    assert_eq!(
        writers.refusals(),
        0,
        "writers settle at the rate of the line"
    );
    let status = place.status();
    assert!(status["backlog"]["drain_bytes_per_sec"].as_u64().unwrap() > 0);
    place.ok(&["limits", "set", "--upload", "unlimited"]);
    let acknowledged = writers.end();
    place.ok(&["wait", "--until", "archived", "--timeout", "170"]);
    place.ok(&["umount", &place.text("mnt")]);
    let files = place.external_files("ext");
    for (name, seed) in &acknowledged {
        assert!(
            files.get(name) == Some(&noise(*seed, FILE_LEN)),
            "{name} differs"
        );
    }
}

fn copy_tree(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(done.unwrap().success());
}

#[test]
fn with_ack_remote_an_fsync_means_the_external_volume_alone_gives_it_back() {
    let words = ["--ack", "remote", "--remote-timeout", "2s"];
    let Some(place) = Place::mounted(&words, 300) else {
        return;
    };
    let mnt = place.path("mnt");
    assert_eq!(place.status()["ack"], "remote");
    // Several at the same time share an epoch.
    let threads: Vec<_> = (0..6)
        .map(|n| {
            let path = mnt.join(format!("synced-{n}"));
            thread::spawn(move || write_synced(&path, &noise(n, 70_000)).unwrap())
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // As if the machine had burned down at this very moment.
    copy_tree(&place.path("ext"), &place.path("copy"));
    let files = place.external_files("copy");
    for n in 0..6 {
        assert_eq!(files[&format!("synced-{n}")], noise(n, 70_000));
    }

    fs::rename(place.path("ext"), place.path("away")).unwrap();
    let mut file = File::create(mnt.join("late")).unwrap();
    promptly("a write", || file.write_all(&noise(50, 70_000)));
    let started = Instant::now();
    let clone = file.try_clone().unwrap();
    let waiting = thread::spawn(move || clone.sync_all());
    // Nobody else waits meanwhile, however many do.
    let others: Vec<_> = (0..8)
        .map(|n| {
            let path = mnt.join(format!("more-{n}"));
            thread::spawn(move || write_synced(&path, b"more").unwrap_err())
        })
        .collect();
    while !waiting.is_finished() {
        promptly("a listing", || Ok(fs::read_dir(&mnt)?.count()));
        promptly("a read", || fs::read(mnt.join("synced-1")));
    }
    let error = waiting.join().unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
    for other in others {
        assert_eq!(other.join().unwrap().raw_os_error(), Some(libc::EIO));
    }
    promptly("a sync in an outage that lasts", || {
        assert!(file.sync_all().is_err());
        Ok(())
    });

    fs::rename(place.path("away"), place.path("ext")).unwrap();
    wait_until("fsync succeeds again", || file.sync_all().is_ok());
    copy_tree(&place.path("ext"), &place.path("copy2"));
    assert_eq!(place.external_files("copy2")["late"], noise(50, 70_000));
    let refused = place.run(&["store", "set", "local"]);
    assert!(!refused.status.success(), "then no fsync could succeed");
    place.ok(&["store", "update", "--ack", "local"]);
    assert_eq!(place.status()["ack"], "local");
    place.ok(&["store", "set", "local"]);
    let refused = place.run(&["store", "update", "--ack", "remote"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("external volume"));
}

#[test]
fn a_wait_for_one_directory_does_not_wait_for_what_comes_behind_it() {
    let Some(place) = Place::mounted(&[], 300) else {
        return;
    };
    let mnt = place.path("mnt");
    fs::create_dir_all(mnt.join("mail/box")).unwrap();
    fs::write(mnt.join("mail/box/letter"), noise(1, 100_000)).unwrap();
    let (dir, letter) = (place.text("mnt/mail"), place.text("mnt/mail/box/letter"));
    place.ok(&["wait", "--until", "external", &letter, "--timeout", "100"]);
    place.ok(&["wait", "--until", "archived", &dir, "--timeout", "100"]);
    let before = place.status()["epoch_local"].as_u64().unwrap();
    assert!(place.status()["epoch_archived"].as_u64().unwrap() >= 1);

    // The volume is away, and bulk waits for it: what is there already need not.
    fs::rename(place.path("ext"), place.path("away")).unwrap();
    fs::write(mnt.join("bulk"), noise(2, 40 << 20)).unwrap();
    for level in ["external", "archived"] {
        place.ok(&["wait", "--until", level, &dir, "--timeout", "100"]);
        place.ok(&["wait", "--until", level, &letter, "--timeout", "100"]);
    }
    assert_eq!(
        place.status()["epoch_local"].as_u64().unwrap(),
        before,
        "no epoch closed for it"
    );
    // What changed since is not there.
    fs::write(mnt.join("mail/new"), noise(3, 1000)).unwrap();
    for path in [&dir, &place.text("mnt/bulk")] {
        let late = place.run(&["wait", "--until", "external", path, "--timeout", "1"]);
        assert_eq!(late.status.code(), Some(5), "{late:?}");
    }
    let outside = place.run(&["wait", &place.text("backup"), "--timeout", "5"]);
    assert_eq!(outside.status.code(), Some(2), "{outside:?}");
    fs::rename(place.path("away"), place.path("ext")).unwrap();
    place.ok(&[
        "wait",
        "--until",
        "archived",
        &place.text("mnt/bulk"),
        "--timeout",
        "170",
    ]);
    copy_tree(&place.path("ext"), &place.path("copy"));
    assert_eq!(place.external_files("copy")["bulk"], noise(2, 40 << 20));
}

/// The backup path on a small disk of its own.
fn on_small_disk(len: &str) -> Option<Place> {
    let place = Place::unmounted()?;
    fs::create_dir(place.path("disk")).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={len}"), "tmpfs"])
        .arg(place.path("disk"))
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no tmpfs can be mounted");
        return None;
    }
    fs::create_dir(place.path("disk/backup")).unwrap();
    std::os::unix::fs::symlink(place.path("disk/backup"), place.path("backup")).unwrap();
    Some(place)
}

/// Takes all that is free.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for len in [1 << 20, 4096] {
        while file.write_all(&vec![1; len]).is_ok() {}
    }
}

#[test]
fn on_a_disk_that_others_fill_accepted_data_is_kept_and_deletes_go_on() {
    let Some(place) = on_small_disk("500M") else {
        return;
    };
    place.begin(&["--reserve", "64M"], 300);
    let mnt = place.path("mnt");
    for n in 0..100 {
        fs::write(mnt.join(format!("old-{n}")), noise(n, 3000)).unwrap();
    }
    place.ok(&["wait", "--until", "archived"]);
    let ballast = place.path("backup/ballast");
    wait_until("the ballast is made", || {
        fs::metadata(&ballast).is_ok_and(|found| found.len() == 16 * MIB)
    });
    fs::rename(place.path("ext"), place.path("away")).unwrap();
    let writers = Writers::start(&mnt, 2);
    wait_until("new data is refused", || writers.refusals() > 20);
    let unsynced = noise(77, 300_000);
    // Accepted before others fill the disk to the last block, synced after.
    let mut late = File::create(mnt.join("late")).unwrap();
    let is_accepted = late.write_all(&unsynced).is_ok();
    fill(&place.path("disk/filler"));
    wait_until("the ballast is given up", || {
        fs::metadata(&ballast).is_ok_and(|found| found.len() == 0)
    });
    for n in 0..50 {
        promptly("a delete", || fs::remove_file(mnt.join(format!("old-{n}"))));
    }
    promptly("a rename", || {
        fs::rename(mnt.join("old-60"), mnt.join("new-60"))
    });
    assert_eq!(fs::read(mnt.join("old-70")).unwrap(), noise(70, 3000));
    late.sync_all().unwrap();
    drop(late);
    wait_until("it is called full", || place.phase() == "full");
    let status = place.status();
    assert_eq!(status["failure"], Value::Null, "{status}");

    // Room again, then the volume: all goes on.
    fs::remove_file(place.path("disk/filler")).unwrap();
    fs::rename(place.path("away"), place.path("ext")).unwrap();
    let before = writers.count();
    wait_until("writers go on", || writers.count() > before + 20);
    let acknowledged = writers.end();
    place.ok(&["wait", "--until", "archived", "--timeout", "170"]);
    wait_until("the ballast is made again", || {
        fs::metadata(&ballast).is_ok_and(|found| found.len() == 16 * MIB)
    });
    assert!(!place.log().contains("could not be stored"));
    place.ok(&["umount", &place.text("mnt")]);
    let files = place.external_files("ext");
    for (name, seed) in &acknowledged {
        assert!(
            files.get(name) == Some(&noise(*seed, FILE_LEN)),
            "{name} differs"
        );
    }
    if is_accepted {
        assert!(files["late"] == unsynced);
    }
    assert!(!files.contains_key("old-49") && files.contains_key("new-60"));
}
