//! A machine of its own for each test: a backup path, an external directory, mount points, a list of buckets.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub(super) const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");
pub(super) const SECRET: &str = "sk-never-to-be-seen-0123456789abcdef";

pub(super) struct Place {
    pub(super) dir: TempDir,
}

#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) out: String,
    pub(super) err: String,
}

impl Ended {
    pub(super) fn of(output: Output) -> Ended {
        Ended {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub(super) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    pub(super) fn json(self) -> Value {
        let out = self.ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    #[track_caller]
    pub(super) fn says(&self, code: i32, part: &str) {
        assert_eq!(self.code, code, "{self:?}");
        // With --json a failure is a document too.
        assert!(
            self.err.contains(part) || self.out.contains(part),
            "no '{part}' in {self:?}"
        );
    }

    #[track_caller]
    pub(super) fn hides(&self, secret: &str) {
        assert!(
            !self.out.contains(secret) && !self.err.contains(secret),
            "{self:?}"
        );
    }
}

impl Place {
    pub(super) fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        for name in ["mnt", "view", "ext"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Place { dir }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(super) fn file(&self) -> PathBuf {
        self.path("config/buckets.json")
    }

    /// Without any keys in its environment, and with a log that says everything.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .env("TIDEFS_PATH", self.path("backup"))
            .env("TIDEFS_CONFIG_DIR", self.path("config"))
            .env("TIDEFS_LOG", "debug")
            .env("HOME", self.dir.path())
            .env_remove("TIDEFS_S3_SECRET")
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env_remove("AWS_SESSION_TOKEN")
            .stdin(Stdio::null());
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.command(args).output().unwrap())
    }

    pub(super) fn with_secret(&self, args: &[&str]) -> Ended {
        let mut command = self.command(args);
        Ended::of(command.env("TIDEFS_S3_SECRET", SECRET).output().unwrap())
    }

    /// A bucket of nobody's, at an address where nothing listens.
    pub(super) fn add(&self, label: &str) -> Value {
        self.with_secret(&[
            "--json",
            "bucket",
            "add",
            "--label",
            label,
            "--type",
            "ceph",
            "--bucket",
            "b",
            "--endpoint",
            "http://127.0.0.1:9",
            "--access-key",
            "AK1",
            "--no-test",
        ])
        .json()
    }

    pub(super) fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut document: Value = serde_json::from_slice(&fs::read(self.file()).unwrap()).unwrap();
        change(&mut document);
        fs::write(self.file(), document.to_string()).unwrap();
    }
}
