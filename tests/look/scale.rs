//! A million items. Not part of the suite: it measures.
//!
//!     cargo test --release --test look -- --ignored --nocapture a_million

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Instant;

use tidefs::types::{FileKind, Ino};

use crate::common::{Place, close, make, mkdir};
use crate::program::command;

const ITEMS: u64 = 1_000_000;
const IN_A_DIR: u64 = 1000;

#[test]
#[ignore = "takes minutes; measures what looking at a million items costs"]
fn a_million_items_answer_at_once_and_in_bounded_memory() {
    let place = Place::new();
    let volume = place.open();
    let tree = &*volume;
    let started = Instant::now();
    let account = mkdir(tree, Ino::ROOT, "big");
    for dir in 0..ITEMS / IN_A_DIR {
        let at = mkdir(tree, account, &format!("dir-{dir:05}"));
        for file in 0..IN_A_DIR {
            make(tree, at, &format!("file-{file:05}.dat"), FileKind::File);
        }
        if dir % 100 == 99 {
            volume.close_epoch(None).unwrap();
        }
    }
    for dir in (0..ITEMS / IN_A_DIR).step_by(10) {
        let at = crate::ino(tree, &format!("big/dir-{dir:05}"));
        tree_unlink(tree, at, b"file-00007.dat");
    }
    volume.close_epoch(None).unwrap();
    close(volume);
    println!("made in {:?}", started.elapsed());
    for args in [
        &["find"][..],
        &["--json", "find"],
        &["find", "--deleted"],
        &["find", "--name", "file-00999.dat"],
        &["item", "history", "big/dir-00500/file-00500.dat"],
        &["item", "history", "big/dir-00500/file-00007.dat"],
        &["account", "list"],
    ] {
        measure(&place, args);
    }
}

fn tree_unlink(tree: &dyn tidefs::volume::tree::Tree, dir: Ino, name: &[u8]) {
    tree.unlink(dir, name).unwrap();
}

fn measure(place: &Place, args: &[&str]) {
    let os: Vec<_> = args.iter().map(std::ffi::OsStr::new).collect();
    let started = Instant::now();
    let mut child = command(&place.path(), &os)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut lines = 0_u64;
    let mut line = Vec::new();
    let (mut first, mut peak) = (None, 0);
    while out.read_until(b'\n', &mut line).unwrap() > 0 {
        first.get_or_insert_with(|| started.elapsed());
        lines += 1;
        line.clear();
        if lines.is_multiple_of(50_000) || lines < 10 {
            peak = peak.max(peak_kib(child.id()));
        }
    }
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    child.wait().unwrap();
    println!(
        "{args:?}: {lines} lines, the first after {:?}, all after {:?}, peak {} MiB",
        first.unwrap_or_default(),
        started.elapsed(),
        peak / 1024
    );
}

/// The most memory that the process had; 0 if it is gone.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}
