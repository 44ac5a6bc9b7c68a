//! A source on a file system of its own, a backup path, and the program that serves it.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

pub struct World {
    dir: TempDir,
    kind: &'static str,
}

/// Mode, owner, size and time of the last change of each item, and the content of files.
pub type Tree = BTreeMap<PathBuf, (u32, u32, u64, (i64, i64), Vec<u8>)>;

/// All below `root`, but not that itself.
pub fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        // Changes go on while we look: what went is found missing by the comparison.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let path = entry.path();
            let content = if metadata.is_file() {
                fs::read(&path).unwrap_or_default()
            } else {
                Vec::new()
            };
            let size = if metadata.is_file() {
                metadata.size()
            } else {
                0
            };
            let time = (metadata.mtime(), metadata.mtime_nsec());
            let item = (metadata.mode(), metadata.uid(), size, time, content);
            if metadata.is_dir() {
                waiting.push(path.clone());
            }
            tree.insert(path.strip_prefix(root).unwrap().to_owned(), item);
        }
    }
    tree
}

/// The first few paths in which two trees differ.
fn difference(source: &Tree, backup: &Tree) -> Vec<String> {
    let shown = |tree: &Tree, path: &PathBuf| {
        tree.get(path)
            .map(|(mode, _, size, time, _)| (*mode, *size, *time))
    };
    let paths = source.keys().chain(backup.keys());
    let differ = paths.filter(|path| source.get(*path) != backup.get(*path));
    let text = |path: &PathBuf| {
        let (source, backup) = (shown(source, path), shown(backup, path));
        format!("{}: {source:?} is {backup:?}", path.display())
    };
    differ.take(5).map(text).collect()
}

impl World {
    /// Watched by `kind`, or by the best there is where that is empty. `None` where nothing can be mounted.
    pub fn new(kind: &'static str) -> Option<World> {
        let opened = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse");
        if opened.is_err() || !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let world = World {
            dir: tempfile::tempdir().unwrap(),
            kind,
        };
        for name in ["disk", "mnt"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        // Of its own, so that nobody else's changes are told.
        command("mount", &["-t", "tmpfs", "tmpfs", &world.text("disk")]);
        fs::create_dir(world.source()).unwrap();
        world.ok(&["init"]);
        Some(world)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn source(&self) -> PathBuf {
        self.path("disk/source")
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        if !self.kind.is_empty() {
            command.env("TIDEFS_WATCH", self.kind);
        }
        command
            .args(args)
            .env("TIDEFS_PATH", self.path("backup"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The document that a command answers with; null where it fails.
    pub fn ask(&self, args: &[&str]) -> Value {
        let output = self.run(&[&["--json"], args].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub fn mount(&self) {
        self.ok(&["mount", &self.text("mnt")]);
    }

    /// Adds the source, and waits until it is watched and all that is there is in the mount.
    pub fn watch(&self) {
        self.ok(&["source", "add", &self.text("disk/source"), "--watch"]);
        self.wait("the source is watched", |world| {
            !world.watch_status()["kind"].is_null()
        });
        self.wait_until_same();
    }

    pub fn watch_status(&self) -> Value {
        self.ask(&["status"])["watch"][0].clone()
    }

    fn daemon(&self) -> Pid {
        let pid = self.ask(&["status"])["daemon"]["pid"].as_i64().unwrap();
        Pid::from_raw(pid.try_into().unwrap())
    }

    /// The daemon is stopped, and takes no events.
    pub fn hold_daemon(&self) {
        let daemon = self.daemon();
        fs::write(self.path("held"), daemon.to_string()).unwrap();
        kill(daemon, Signal::SIGSTOP).unwrap();
    }

    pub fn go_on_daemon(&self) {
        let daemon = fs::read_to_string(self.path("held")).unwrap();
        kill(Pid::from_raw(daemon.parse().unwrap()), Signal::SIGCONT).unwrap();
        fs::remove_file(self.path("held")).unwrap();
    }

    pub fn kill_daemon(&self) {
        kill(self.daemon(), Signal::SIGKILL).unwrap();
    }

    pub fn bind(&self, real: &Path) {
        bind(real, &self.source());
    }

    pub fn unbind(&self) {
        // A watch or a scan may have it open for a moment.
        let until = Instant::now() + PATIENCE;
        while !Command::new("umount")
            .arg(self.source())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
        {
            assert!(Instant::now() < until, "the watch keeps the source mounted");
            thread::sleep(PAUSE);
        }
    }

    #[track_caller]
    pub fn wait(&self, what: &str, mut done: impl FnMut(&World) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            let log = fs::read_to_string(self.path("backup/tidefs.log")).unwrap_or_default();
            assert!(
                Instant::now() < until,
                "still not: {what}: {}\n{log}",
                self.watch_status()
            );
            thread::sleep(PAUSE);
        }
    }

    /// Waits until the mount shows the source as it is now, without asking for a scan.
    #[track_caller]
    pub fn wait_until_same(&self) {
        let source = tree(&self.source());
        let mut last = Vec::new();
        self.wait("the mount is as the source", |world| {
            let watch = world.watch_status();
            let is_settled = watch["dirty_accounts"] == 0 && watch["is_all_dirty"] == false;
            if !is_settled {
                return false;
            }
            let now = difference(&source, &tree(&world.path("mnt")));
            if now != last {
                println!("differs: {now:#?}");
                last.clone_from(&now);
            }
            now.is_empty()
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.path("held").exists() {
            self.go_on_daemon();
        }
        let _ = self.run(&["umount", &self.text("mnt")]);
        for name in ["mnt", "disk/source/account/shared", "disk/source", "disk"] {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.path(name))
                .stderr(Stdio::null())
                .status();
        }
    }
}

#[track_caller]
fn command(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

pub fn bind(real: &Path, place: &Path) {
    command(
        "mount",
        &["--bind", real.to_str().unwrap(), place.to_str().unwrap()],
    );
}
