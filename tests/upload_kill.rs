//! kill -9 of the real program while something is on its way to the external volume: the next start sends what is missing,
//! and what the killed put left behind is found and removed; nothing is there twice and nothing too much (invariants 2
//! and 9).
//!
//! Needs /dev/fuse and root; without them each test says so and passes. A real server is used as well where
//! `TIDEFS_TEST_S3` names one.

#![allow(
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

mod bucket_server;
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bucket_server::Bucket;
use common::noise;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use vfs::VolumeExt;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");
const PATIENCE: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

type Objects = BTreeMap<String, Vec<u8>>;

/// A backup path and its mount.
struct Place {
    dir: TempDir,
    written: u64,
}

impl Place {
    /// With these words behind `store set`; `None` where nothing can be mounted.
    fn new() -> Option<Place> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["mnt", "ext"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let place = Place { dir, written: 0 };
        place.ok(&["init"]);
        Some(place)
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
            .env("TIDEFS_CONFIG_DIR", self.path("config"))
            .env("HOME", self.dir.path())
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

    /// Leftovers are old after a second; then mounted.
    fn begin(&self) {
        edit(&self.path("backup/settings.json"), |settings| {
            settings["sweep_after_secs"] = json!(1);
            settings["seal_after_secs"] = json!(1);
        });
        self.mount();
    }

    fn mount(&self) {
        self.ok(&["mount", &self.text("mnt")]);
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["--json", "status"])).unwrap()
    }

    /// Writes a file durably; its epoch is closed, and what it is in is on its way.
    fn write(&mut self, len: usize) {
        self.written += 1;
        let bytes = noise(self.written, len);
        fs::write(self.path(&format!("mnt/f-{}", self.written)), &bytes).unwrap();
        self.ok(&["snapshot"]);
    }

    fn archive(&self) {
        self.ok(&["wait", "--timeout", "120"]);
    }

    /// The daemon, behind those who work for it.
    fn processes(&self) -> Vec<i32> {
        let daemon = self.status()["daemon"]["pid"].as_u64().unwrap();
        let daemon = i32::try_from(daemon).unwrap();
        children(daemon).into_iter().chain([daemon]).collect()
    }

    fn kill(&self) {
        self.kill_these(&self.processes());
    }

    /// As a power cut would: none of them tidies up behind another.
    fn kill_these(&self, processes: &[i32]) {
        for pid in processes {
            // A worker may have ended by itself.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let daemon = processes.last().unwrap();
        wait_until("the daemon is gone", || {
            !Path::new(&format!("/proc/{daemon}/exe")).exists()
        });
        unmount(&self.path("mnt"));
    }

    /// What is in the backup path below `dir`, by the names that it has on the external volume.
    fn local(&self, dir: &str) -> Objects {
        let mut found = Objects::new();
        files(
            &self.path("backup").join(dir),
            &format!("{dir}/"),
            &mut found,
        );
        found
    }

    /// After the restart: everything is there once, with its bytes, and nothing that nobody needs.
    fn assert_whole(&self, there: &Objects) {
        let packs = |objects: &Objects| -> Objects {
            let items = objects
                .iter()
                .filter(|(name, _)| name.starts_with("items/"));
            items
                .map(|(name, bytes)| (name.clone(), bytes.clone()))
                .collect()
        };
        let (here, away) = (self.local("items"), packs(there));
        assert_eq!(
            here.keys().collect::<Vec<_>>(),
            away.keys().collect::<Vec<_>>(),
            "other packs are there than here"
        );
        assert!(here == away, "a pack has other bytes there");
        let mut named = BTreeSet::new();
        for (name, bytes) in there
            .iter()
            .filter(|(name, _)| name.starts_with("server/epochs/"))
        {
            let record: Value = serde_json::from_slice(bytes).unwrap();
            for segment in record["segments"].as_array().unwrap() {
                let segment = segment["name"].as_str().unwrap().to_owned();
                assert!(
                    there.contains_key(&segment),
                    "{name} names {segment}, which is not there"
                );
                named.insert(segment);
            }
        }
        for name in there.keys() {
            let is_known =
                name.starts_with("items/") || name.starts_with("server/") || named.contains(name);
            assert!(is_known, "{name} is left over");
        }
        self.ok(&["umount", &self.text("mnt")]);
        self.ok(&["check", "--external", "--read-data"]);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Also ends the daemon of a test that failed.
        unmount(&self.path("mnt"));
    }
}

fn unmount(path: &Path) {
    // Not mounted is as good.
    let _ = Command::new("umount")
        .arg("-l")
        .arg(path)
        .stderr(Stdio::null())
        .status();
}

fn children(parent: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains(&format!("PPid:\t{parent}\n"))
    })
    .collect()
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut document);
    fs::write(path, document.to_string()).unwrap();
}

fn files(dir: &Path, base: &str, found: &mut Objects) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = format!("{base}{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), &format!("{name}/"), found);
        } else if let Ok(bytes) = fs::read(entry.path()) {
            found.insert(name, bytes);
        }
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "still not: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn temporaries(ext: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(ext.join("items"))
        .into_iter()
        .flatten()
        .flatten();
    shards
        .flat_map(|shard| fs::read_dir(shard.path()).into_iter().flatten().flatten())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"))
        .map(|entry| entry.path())
        .collect()
}

#[test]
fn a_put_into_a_directory_that_is_killed_is_sent_again_and_its_file_swept() {
    let Some(mut place) = Place::new() else {
        return;
    };
    let ext = place.path("ext");
    place.ok(&["store", "set", "dir", ext.to_str().unwrap()]);
    place.begin();
    place.write(MIB);
    place.archive();
    // Another volume's leftover beside ours is not ours to sweep.
    let foreign = ext.join("host-8/items/00/.tmp-0-0");
    fs::create_dir_all(foreign.parent().unwrap()).unwrap();
    fs::write(&foreign, "half").unwrap();
    let mut left = Vec::new();
    for _ in 0..5 {
        place.written += 1;
        let bytes = noise(place.written, 40 * MIB);
        let mut file = File::create(place.path(&format!("mnt/f-{}", place.written))).unwrap();
        let processes = place.processes();
        let writer = thread::spawn(move || {
            // Ended by the kill, or not: what was not synced does not count.
            let _ = file.write_all(&bytes);
        });
        let started = Instant::now();
        while temporaries(&ext).is_empty() {
            assert!(started.elapsed() < PATIENCE, "no put was seen");
        }
        place.kill_these(&processes);
        writer.join().unwrap();
        left = temporaries(&ext);
        place.mount();
        if !left.is_empty() {
            break;
        }
        place.archive();
    }
    assert!(
        !left.is_empty(),
        "no kill met a put in its middle: the test shows nothing"
    );
    place.archive();
    wait_until("the leftovers are swept", || {
        left.iter().all(|path| !path.exists())
    });
    assert!(foreign.exists(), "another volume's file was swept");
    fs::remove_dir_all(ext.join("host-8")).unwrap();
    let mut there = Objects::new();
    files(&ext, "", &mut there);
    place.assert_whole(&there);
}

/// The bucket of the test as `nas`; `limits` are changed.
fn add_bucket(place: &Place, bucket: &Bucket, change: impl FnOnce(&mut Value)) {
    let args = [
        "bucket",
        "add",
        "--label",
        "nas",
        "--bucket",
        bucket_server::BUCKET,
        "--endpoint",
        &bucket.endpoint,
        "--access-key",
        bucket_server::ACCESS_KEY,
        "--no-test",
    ];
    let mut command = place.command(&args);
    let output = command
        .env("TIDEFS_S3_SECRET", bucket_server::SECRET)
        .output();
    assert!(output.as_ref().unwrap().status.success(), "{output:?}");
    edit(&place.path("config/buckets.json"), |document| {
        change(&mut document["buckets"][0]["s3"]["limits"]);
    });
    place.ok(&["store", "set", "s3", "nas", "--prefix", "h"]);
    place.begin();
}

/// Kills while a put of a pack, or of its part `part`, waits for its answer; then starts again.
fn kill_and_resume(place: &mut Place, bucket: &Bucket, part: Option<u32>) {
    place.write(MIB);
    place.archive();
    bucket.hold("h/items/", part);
    place.write(12 * MIB);
    bucket.wait_until_held();
    assert!(place.status()["packs"]["unsent_count"].as_u64().unwrap() > 0);
    let sent = bucket.puts("h/items/");
    place.kill();
    bucket.let_go();
    place.mount();
    place.archive();
    let again = bucket.puts("h/items/");
    for (name, count) in &sent {
        assert_eq!(
            again.get(name),
            Some(count),
            "{name} was there and is sent again"
        );
    }
    assert!(again.len() > sent.len(), "nothing was pending at the kill");
    let twice: Vec<_> = again.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "sent twice: {twice:?}");
}

#[test]
fn a_put_into_a_bucket_that_is_killed_is_sent_again_once() {
    let Some(mut place) = Place::new() else {
        return;
    };
    let bucket = Bucket::start();
    add_bucket(&place, &bucket, |_| ());
    kill_and_resume(&mut place, &bucket, None);
    place.assert_whole(&bucket.objects("h/"));
}

#[test]
fn an_upload_in_parts_that_is_killed_is_sent_again_and_the_old_one_aborted() {
    let Some(mut place) = Place::new() else {
        return;
    };
    let bucket = Bucket::start();
    add_bucket(&place, &bucket, |limits| {
        limits["single_put_len_max"] = json!(MIB * 2);
        limits["part_len"] = json!(5 * MIB);
    });
    // Old ones of ours and of others: within ours by name, beside it, and with a name that begins like ours.
    let day = Duration::from_secs(86_400);
    bucket.place_upload("h/items/00/old.pack", day);
    let foreign = ["h2/items/00/x.pack", "items/00/x.pack", "h/other/x.pack"];
    for name in foreign {
        bucket.place_upload(name, day);
    }
    kill_and_resume(&mut place, &bucket, Some(2));
    wait_until("the uploads that were left are aborted", || {
        let left = bucket.uploads();
        foreign.iter().all(|name| left.iter().any(|is| is == name)) && left.len() == foreign.len()
    });
    place.assert_whole(&bucket.objects("h/"));
}

/// The same with a server that nobody told to hold still: what it has at the kill is a matter of its speed.
#[test]
fn uploads_to_a_real_server_go_on_after_a_kill() {
    let Ok(url) = std::env::var("TIDEFS_TEST_S3") else {
        eprintln!("TIDEFS_TEST_S3 names no server: not tried");
        return;
    };
    let Some(mut place) = Place::new() else {
        return;
    };
    let (address, query) = url.split_once('?').unwrap();
    let prefix = format!("kill-{}", std::process::id());
    let (host, bucket) = address
        .strip_prefix("s3://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let bucket = bucket.split('/').next().unwrap();
    let scheme = if query.contains("tls=off") {
        "http"
    } else {
        "https"
    };
    let endpoint = format!("{scheme}://{host}");
    let region = query
        .split('&')
        .find_map(|part| part.strip_prefix("region="));
    place.ok(&[
        "bucket",
        "add",
        "--label",
        "nas",
        "--type",
        "ceph",
        "--bucket",
        bucket,
        "--endpoint",
        &endpoint,
        "--region",
        region.unwrap_or("us-east-1"),
        "--prefix",
        &prefix,
    ]);
    edit(&place.path("config/buckets.json"), |document| {
        let limits = &mut document["buckets"][0]["s3"]["limits"];
        limits["single_put_len_max"] = json!(MIB * 2);
        limits["part_len"] = json!(5 * MIB);
    });
    place.ok(&["store", "set", "s3", "nas", "--prefix", "h"]);
    place.begin();
    place.write(MIB);
    place.archive();
    for _ in 0..3 {
        place.write(24 * MIB);
    }
    let pending = place.status()["packs"]["unsent_count"].as_u64().unwrap();
    assert!(
        pending > 0,
        "nothing is pending at the kill: the test shows nothing"
    );
    place.kill();
    place.mount();
    place.archive();
    let full = format!("{prefix}/h");
    let volume = vfs::open(&format!("{address}/{full}?{query}").parse().unwrap()).unwrap();
    let mut there = Objects::new();
    volume
        .for_each("", |meta| -> vfs::Result<()> {
            there.insert(
                meta.key.to_string(),
                volume.get(&meta.key, 0..meta.len)?.to_vec(),
            );
            Ok(())
        })
        .unwrap();
    place.assert_whole(&there);
}
