//! The program, and how it ended.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::common::Place;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");

#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// Runs it for the backup path of `place`, as the user `uid`.
    pub fn of(place: &Place, args: &[&str], uid: Option<u32>) -> Ended {
        Ended::from(command(place, args, uid).output().unwrap())
    }

    pub fn from(output: Output) -> Ended {
        Ended {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub fn says(&self, code: i32, part: &str) {
        assert_eq!(self.code, code, "{self:?}");
        let told = format!("{}{}", self.out, self.err);
        assert!(told.contains(part), "no '{part}' in {self:?}");
    }

    /// Its report, with this exit code.
    #[track_caller]
    pub fn document(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{self:?}");
        let last = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        self.document(0)
    }
}

pub fn command(place: &Place, args: &[&str], uid: Option<u32>) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .arg("--json")
        .args(args)
        .env("TIDEFS_PATH", place.path())
        .env_remove("TIDEFS_LOG")
        .stdin(Stdio::null());
    if let Some(uid) = uid {
        command.uid(uid).gid(uid).current_dir("/");
    }
    command
}

pub fn restore(place: &Place, args: &[&str], to: &Path) -> Ended {
    let args = [&["restore"], args, &[to.to_str().unwrap()]].concat();
    Ended::of(place, &args, None)
}

fn away(place: &Place) -> String {
    format!("dir:{}", place.external().display())
}

/// From the external volume alone.
pub fn restore_away(place: &Place, args: &[&str], to: &Path) -> Ended {
    let spec = away(place);
    restore(place, &[&["--external", &spec], args].concat(), to)
}

/// The program is copied to where everybody may run it.
pub fn restore_as_nobody(place: &Place, item: &str, to: &Path) -> Ended {
    let program = to.parent().unwrap().join("tidefs");
    fs::copy(PROGRAM, &program).unwrap();
    let output = Command::new(program)
        .args(["--json", "restore", "--external", &away(place), item])
        .arg(to)
        .uid(65_534)
        .gid(65_534)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ended::from(output)
}

pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// Asserts that two trees are the same.
#[track_caller]
pub fn compare(one: &Path, other: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/compare-trees");
    let ended = Command::new(script).args([one, other]).output().unwrap();
    assert!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stdout)
    );
}

/// All files below a directory, sorted.
pub fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![below.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                dirs.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
