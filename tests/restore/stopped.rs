//! A restore that does not come to its end: by a signal, by kill -9, by a full disk. The same command goes on.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tidefs::types::Ino;

use crate::common::{Place, close, mkdir, noise, put};
use crate::program::{Ended, command, compare, files, is_root, restore};

const FILES: usize = 1500;

/// Files that take a while.
fn many() -> Place {
    let place = Place::new();
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    for n in 0..FILES as u64 {
        let dir = match n % 20 {
            0 => mkdir(&*volume, account, &format!("d{n}")),
            _ => account,
        };
        put(&*volume, dir, &format!("f{n}"), &noise(n, 60_000));
    }
    close(volume);
    place
}

fn temporary(below: &Path) -> usize {
    let is_temporary = |path: &&std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(".tidefs-restore-")
    };
    files(below).iter().filter(is_temporary).count()
}

/// Begins, and sends the signal when some files are there.
fn cut_short(place: &Place, to: &Path, signal: Signal) -> Ended {
    let args = ["restore", "alice", to.to_str().unwrap()];
    let mut child = command(place, &args, None)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let some = || fs::read_dir(to).is_ok_and(|entries| entries.count() > 8);
    while child.try_wait().unwrap().is_none() && !some() {
        thread::sleep(Duration::from_micros(200));
    }
    // It may have ended already: then there is nobody to hear it.
    let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
    Ended::from(child.wait_with_output().unwrap())
}

#[test]
fn what_a_signal_or_a_kill_cut_short_the_same_command_brings_to_its_end() {
    let place = many();
    let whole = place.dir.path().join("whole");
    restore(&place, &["alice"], &whole).json();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let to = place.dir.path().join(signal.as_str());
        let ended = cut_short(&place, &to, signal);
        if signal == Signal::SIGTERM {
            let document = ended.document(3);
            assert_eq!(document["is_stopped"], true);
        } else {
            assert_eq!(ended.code, -1, "{ended:?}");
        }
        let before = files(&to).len() - temporary(&to);
        assert!(before < FILES, "it was stopped before its end");
        let rest = restore(&place, &["alice"], &to).json();
        assert!(rest["skipped"].as_u64().unwrap() >= before as u64, "{rest}");
        assert_eq!(temporary(&to), 0);
        compare(&whole, &to);
        let again = restore(&place, &["alice"], &to).json();
        assert_eq!(again["restored"], 0);
    }
}

/// A file system of a few MiB, taken away at the end.
struct Small<'a>(&'a Path);

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_takes_what_it_has_room_for_and_the_rest_is_named() {
    if !is_root() {
        eprintln!("skipped: only root mounts");
        return;
    }
    let place = many();
    let to = place.dir.path().join("small");
    fs::create_dir(&to).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "none"])
        .arg(&to)
        .status()
        .unwrap();
    assert!(mounted.success());
    let _small = Small(&to);
    let ended = restore(&place, &["alice"], &to).document(4);
    let (done, not) = (ended["restored"].as_u64(), ended["unrestored"].as_u64());
    assert!(done > Some(100) && not > Some(100), "{ended}");
    let reason = ended["failures"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("No space left"), "{reason}");
    assert_eq!(temporary(&to), 0);
}
