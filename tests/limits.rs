//! Bandwidth and request limits: set, changed while uploads wait, and never in the way of the end.

#![allow(
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, noise, put};
use serde_json::Value;
use tidefs::types::Ino;
use tidefs::volume::limits::LimitChange;
use tidefs::volume::{Durability, Volume};

fn upload(bytes_per_sec: u64) -> LimitChange {
    LimitChange {
        upload_bytes_per_sec: Some(bytes_per_sec),
        ..LimitChange::default()
    }
}

/// Writes a file and waits until an upload waits for its turn.
fn write_until_held_back(volume: &Volume, name: &str) {
    put(volume, Ino::ROOT, name, &noise(name.len() as u64, 600_000));
    volume.close_epoch(None).unwrap();
    let started = Instant::now();
    while volume.limits().waiting == 0 {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "no upload waits for its turn"
        );
        std::thread::yield_now();
    }
}

#[test]
fn uploads_are_held_back_until_the_limit_is_lifted_and_never_hold_up_the_end() {
    let place = Place::new();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    volume.change_limits(&upload(1000)).unwrap();
    write_until_held_back(&volume, "one");
    let status = volume.status();
    assert!(
        status.epoch_archived < status.epoch_local,
        "at 1000 bytes a second all was sent at once"
    );
    volume.change_limits(&upload(0)).unwrap();
    volume.wait(Durability::Archived, &mut |_| true).unwrap();

    volume.change_limits(&upload(1000)).unwrap();
    write_until_held_back(&volume, "another");
    let started = Instant::now();
    volume.close(Duration::ZERO, &mut |_| {}).unwrap();
    drop(volume);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "the end waited for its turn"
    );

    let volume = place.open();
    assert_eq!(
        volume.limits().in_force.upload_bytes_per_sec.unwrap().get(),
        1000
    );
    volume.change_limits(&upload(0)).unwrap();
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
}

fn run(path: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidefs"))
        .arg("-p")
        .arg(path)
        .args(args)
        .env_remove("TIDEFS_LOG")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn in_force(path: &Path) -> Value {
    let (code, out, err) = run(path, &["--json", "limits", "show"]);
    assert_eq!(code, Some(0), "{err}");
    let document: Value = serde_json::from_str(&out).unwrap();
    document["in_force"].clone()
}

#[test]
fn limits_are_set_with_a_daemon_and_without_and_outlive_both() {
    let place = Place::new();
    let path = place.path();
    assert!(in_force(&path)["upload_bytes_per_sec"].is_null());
    let (code, out, err) = run(
        &path,
        &["limits", "set", "--upload", "10M", "--requests", "50"],
    );
    assert_eq!(
        (code, out.trim()),
        (Some(0), "upload 10.0 MiB/s, 50 requests/s"),
        "{err}"
    );
    assert_eq!(in_force(&path)["upload_bytes_per_sec"], 10 << 20);

    let mut daemon = Command::new(env!("CARGO_BIN_EXE_tidefs"))
        .arg("-p")
        .arg(&path)
        .arg("daemon")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut said = BufReader::new(daemon.stdout.take().unwrap());
    said.read_line(&mut line).unwrap();
    assert!(line.starts_with("ready"), "{line}");
    let table = "UTC+1 daily down=80Mbit; else unlimited";
    let (code, out, err) = run(
        &path,
        &[
            "limits",
            "set",
            "--upload",
            "unlimited",
            "--timetable",
            table,
        ],
    );
    assert_eq!(code, Some(0), "{err}");
    for part in ["download 9.5 MiB/s, 50 requests/s", table, "otherwise"] {
        assert!(out.contains(part), "no '{part}' in {out}");
    }
    let (_, status, _) = run(&path, &["status"]);
    assert!(
        status.contains("limited to       download 9.5 MiB/s"),
        "{status}"
    );
    let (code, _, err) = run(&path, &["daemon", "--stop"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(daemon.wait().unwrap().success());

    assert_eq!(in_force(&path)["download_bytes_per_sec"], 10_000_000);
    for (args, part) in [
        (&["--upload", "fast"][..], "'fast' is no rate"),
        (&["--requests", "0"], "'0'"),
        (&["--timetable", "Mon-Fry up=1"], "Mon-Fry"),
        (&[], "what is to be set"),
    ] {
        let (code, _, err) = run(&path, &[&["limits", "set"], args].concat());
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(part), "no '{part}' in {err}");
    }
    let (_, out, _) = run(&path, &["limits", "set", "--timetable", "none"]);
    assert_eq!(out.trim(), "50 requests/s");
}
