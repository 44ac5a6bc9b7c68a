//! The program, run on a backup path of a test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::common::Place;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) err: String,
}

impl Ended {
    fn of(output: Output) -> Ended {
        Ended {
            code: output.status.code().unwrap_or(-1),
            bytes: output.stdout,
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Asserts the exit code and that the error says this.
    #[track_caller]
    pub(crate) fn says(&self, code: i32, part: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.contains(part), "no '{part}' in {self:?}");
    }

    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        String::from_utf8(self.bytes).unwrap()
    }

    /// A document a line.
    #[track_caller]
    pub(crate) fn rows(self) -> Vec<Value> {
        let out = self.ok();
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        out.lines().map(parse).collect()
    }
}

/// One field of each row, as text.
pub(crate) fn column(rows: &[Value], key: &str) -> Vec<String> {
    let text = |row: &Value| match &row[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    rows.iter().map(text).collect()
}

pub(crate) fn command(root: &Path, args: &[&OsStr]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(args)
        .env("TIDEFS_PATH", root)
        .env_remove("TIDEFS_LOG")
        .stdin(Stdio::null());
    command
}

pub(crate) fn run_os(place: &Place, args: &[&OsStr]) -> Ended {
    Ended::of(command(&place.path(), args).output().unwrap())
}

pub(crate) fn run(place: &Place, args: &[&str]) -> Ended {
    run_at(&place.path(), args)
}

pub(crate) fn run_at(root: &Path, args: &[&str]) -> Ended {
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    Ended::of(command(root, &args).output().unwrap())
}

/// Reads one line of what it prints, and then nothing more.
pub(crate) fn first_line(place: &Place, args: &[&str]) -> (String, Ended) {
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    let mut child = command(&place.path(), &args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    drop(out);
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    let code = child.wait().unwrap().code().unwrap_or(-1);
    let ended = Ended {
        code,
        bytes: Vec::new(),
        err,
    };
    (line, ended)
}
