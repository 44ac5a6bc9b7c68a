//! The real program with a real mount: started, killed, mounted again, and what it left looked at from
//! outside.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use serde_json::Value;
use tempfile::TempDir;

use super::history::{Found, Tree};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");
/// Short, so that epochs close and packs leave within a round too, not only when a volume is opened.
const SETTINGS: [(&str, u64); 3] = [
    ("epoch_interval_secs", 1),
    ("seal_after_secs", 1),
    ("reserve_bytes", 0),
];

/// A backup path, an external volume that can be away, two mount points, and a process that serves.
pub struct Served {
    dir: TempDir,
    child: Option<Child>,
}

impl Served {
    pub fn new() -> Served {
        let served = Served {
            dir: tempfile::tempdir().unwrap(),
            child: None,
        };
        for name in ["ext", "mnt", "view"] {
            fs::create_dir(served.path(name)).unwrap();
        }
        served.run(&["init"]);
        let ext = served.path("ext");
        served.run(&["store", "set", "dir", ext.to_str().unwrap()]);
        let path = served.path("backup/settings.json");
        let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (name, value) in SETTINGS {
            settings[name] = value.into();
        }
        fs::write(&path, settings.to_string()).unwrap();
        served
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("mnt")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path("log"));
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .env("TIDEFS_PATH", self.path("backup"))
            .env_remove("TIDEFS_LOG")
            .stdin(Stdio::null())
            .stderr(log.unwrap());
        command
    }

    /// What the processes of this trial said, for whoever looks at a failure.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    pub fn run(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{args:?}: {}\n{said}\n{}",
            output.status,
            self.log()
        );
        output
    }

    /// The external volume goes away, or comes back. Only while nothing is mounted.
    pub fn set_away(&self, is_away: bool) {
        let (from, to) = if is_away {
            ("ext", "away")
        } else {
            ("away", "ext")
        };
        if self.path(from).exists() {
            fs::rename(self.path(from), self.path(to)).unwrap();
        }
    }

    pub fn spawn(&mut self) {
        let child = self
            .command(&["mount", "--foreground", self.root().to_str().unwrap()])
            .stdout(Stdio::piped())
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// How long the disk below the backup path takes for an fsync now: others may keep it busy.
    pub fn fsync_time(&self) -> Duration {
        let began = Instant::now();
        let path = self.path("probe");
        let file = File::create(&path).unwrap();
        (&file).write_all(b"probe").unwrap();
        file.sync_all().unwrap();
        fs::remove_file(path).unwrap();
        began.elapsed()
    }

    /// Mounts, and returns what `status` says then.
    pub fn mount(&mut self) -> Value {
        self.spawn();
        let stdout = self.child.as_mut().unwrap().stdout.as_mut().unwrap();
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "no mount: {}", self.log());
        let output = self.run(&["--json", "status"]);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// `kill -9`. The mount is still there, and dead.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn unmount_lazily(&self) {
        match umount2(&self.root(), MntFlags::MNT_DETACH) {
            // Killed before it had mounted.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => panic!("umount -l: {error}"),
        }
    }

    /// Unmounts in order, and waits for the end.
    pub fn unmount(&mut self) {
        self.run(&["umount", self.root().to_str().unwrap()]);
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Everything that the external volume alone shows, read in a mount of its own.
    pub fn external_tree(&self) -> Tree {
        let (ext, view) = (self.external(), self.path("view"));
        let spec = format!("dir:{}", ext.display());
        let view_text = view.to_str().unwrap();
        self.run(&["mount", "--external", &spec, view_text]);
        let tree = read_tree(&view, |_| true);
        self.run(&["umount", view_text]);
        tree
    }

    fn external(&self) -> PathBuf {
        ["ext", "away"]
            .map(|name| self.path(name))
            .into_iter()
            .find(|path| path.exists())
            .unwrap()
    }

    /// How many packs are in the backup path only.
    pub fn unsent_packs(&self) -> usize {
        let (here, there) = (packs(&self.path("backup")), packs(&self.external()));
        here.difference(&there).count()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        for name in ["mnt", "view"] {
            // Not mounted is what is wanted.
            let _ = umount2(&self.path(name), MntFlags::MNT_DETACH);
        }
    }
}

fn packs(root: &Path) -> BTreeSet<String> {
    let shards = fs::read_dir(root.join("items")).into_iter().flatten();
    let files = shards.flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap());
    files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "pack"))
        .collect()
}

/// All names below `root`, and the bytes of the files that are `wanted`. A thread for each directory at
/// the top.
pub fn read_tree(root: &Path, wanted: impl Fn(&str) -> bool + Sync) -> Tree {
    let (mut tree, mut dirs) = read_dir(root, "", &wanted);
    std::thread::scope(|scope| {
        let wanted = &wanted;
        let below = dirs.drain(..).map(|top| {
            scope.spawn(move || {
                let (mut tree, mut dirs) = (Tree::new(), vec![top]);
                while let Some(dir) = dirs.pop() {
                    let (found, below) = read_dir(root, &dir, wanted);
                    tree.extend(found);
                    dirs.extend(below);
                }
                tree
            })
        });
        for thread in below.collect::<Vec<_>>() {
            tree.extend(thread.join().unwrap());
        }
    });
    tree
}

/// What is in one directory, and which directories are.
fn read_dir(root: &Path, dir: &str, wanted: &impl Fn(&str) -> bool) -> (Tree, Vec<String>) {
    let (mut tree, mut dirs) = (Tree::new(), Vec::new());
    for entry in fs::read_dir(root.join(dir)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{dir}{}{name}", if dir.is_empty() { "" } else { "/" });
        let found = if entry.file_type().unwrap().is_dir() {
            dirs.push(path.clone());
            Found::Dir
        } else if wanted(&path) {
            Found::File(fs::read(root.join(&path)).unwrap())
        } else {
            Found::Unread(entry.metadata().unwrap().len())
        };
        tree.insert(path, found);
    }
    (tree, dirs)
}

/// Whether a file system can be mounted here; says so if not.
pub fn can_mount() -> bool {
    let opened = File::options().read(true).write(true).open("/dev/fuse");
    let can = opened.is_ok() && nix::unistd::geteuid().is_root();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}
