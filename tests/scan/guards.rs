//! What a scan does not believe, does not stop at, and does not lose.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use tidefs::scan::run::Ask;

use crate::common::noise;
use crate::world::{World, settle};

#[test]
fn an_account_is_whole_as_of_an_epoch_while_a_scan_changes_it() {
    let world = World::new();
    for n in 0..300 {
        world.put(&format!("alice/f{n}"), &noise(n, 40_000));
    }
    settle();
    world.scan();
    let whole = world.volume.close_epoch(None).unwrap();
    let fed = || {
        let accounts = world.volume.accounts().unwrap();
        accounts.into_iter().next().unwrap().record.fed.unwrap()
    };
    assert_eq!(fed().whole_at, None);
    for n in 0..300 {
        world.put(&format!("alice/f{n}"), &noise(1000 + n, 40_000));
    }
    settle();
    // Stopped once it has begun to change the account.
    let stop = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while fed().whole_at.is_none() {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        let slow = Ask {
            read_rate: Some(4 << 20),
            ..Ask::default()
        };
        world.ask_until(&slow, &stop).unwrap()
    });
    assert!(report.stopped);
    assert_eq!(fed().whole_at, Some(whole));
    let rest = world.scan();
    assert_eq!(fed().whole_at, None);
    let (before, after) = (report.counts.read_files, rest.counts.read_files);
    assert_eq!(
        before + after,
        300,
        "what was taken in before the stop is not read again"
    );
    world.assert_same();
}

#[test]
fn invariant_12_a_source_that_vanished_or_was_emptied_is_no_mass_deletion() {
    let world = World::new();
    for n in 0..150 {
        world.put(&format!("alice/f{n}"), b"x");
    }
    world.put("bob/g", b"y");
    settle();
    world.scan();
    let whole = |world: &World| {
        assert!(world.find("alice/f149").is_ok() && world.find("bob/g").is_ok());
    };
    // Not there.
    let aside = world.place.dir.path().join("aside");
    fs::rename(&world.source, &aside).unwrap();
    let refused = world.ask(&Ask::default()).unwrap_err();
    assert!(refused.to_string().contains("is not there"), "{refused}");
    // An empty mount point in its place.
    fs::create_dir(&world.source).unwrap();
    let refused = world.ask(&Ask::default()).unwrap_err();
    assert!(
        refused.to_string().contains("is not what it was"),
        "{refused}"
    );
    whole(&world);
    fs::remove_dir(&world.source).unwrap();
    fs::rename(&aside, &world.source).unwrap();
    // An account that is empty, and one less.
    let emptied = world.place.dir.path().join("emptied");
    fs::rename(world.path("alice"), &emptied).unwrap();
    fs::create_dir(world.path("alice")).unwrap();
    world.put("bob/h", b"z");
    let report = world.scan();
    assert_eq!(report.refused.len(), 1, "{report:?}");
    assert!(report.refused[0].contains("150 of 150"), "{report:?}");
    whole(&world);
    assert!(world.find("bob/h").is_ok(), "the others go on");
    fs::remove_dir(world.path("alice")).unwrap();
    let report = world.scan();
    assert_eq!(report.refused.len(), 1, "{report:?}");
    whole(&world);
    // All of them.
    let bob = world.place.dir.path().join("bob");
    fs::rename(world.path("bob"), &bob).unwrap();
    let report = world.scan();
    assert!(
        report.refused[0].contains("none of its accounts"),
        "{report:?}"
    );
    whole(&world);
    // Meant to be.
    let report = world.accepting();
    assert!(
        report.refused.is_empty() && report.counts.deleted > 150,
        "{report:?}"
    );
    world.assert_same();
}

#[test]
fn a_few_deletions_and_a_restructured_account_need_no_word() {
    let world = World::new();
    for n in 0..250 {
        world.put(&format!("alice/in/f{n}"), &noise(n, 300));
    }
    settle();
    world.scan();
    fs::create_dir(world.path("alice/archive")).unwrap();
    for n in 0..250 {
        let (from, to) = (format!("alice/in/f{n}"), format!("alice/archive/g{n}"));
        fs::rename(world.path(&from), world.path(&to)).unwrap();
    }
    settle();
    let report = world.scan();
    assert!(report.refused.is_empty(), "{report:?}");
    assert_eq!((report.counts.moved, report.counts.read_files), (250, 0));
    world.assert_same();
}

#[test]
fn an_account_keeps_its_identity_when_its_directory_is_renamed_or_made_again() {
    let world = World::new();
    world.put("alice/f", b"hers");
    world.put("carol/f", b"too");
    settle();
    world.scan();
    let uuid = |name: &str| {
        let accounts = world.volume.accounts().unwrap();
        let entry = accounts
            .into_iter()
            .find(|entry| entry.name.as_deref() == Some(name.as_bytes()));
        entry.map(|entry| entry.record.uuid)
    };
    let first = uuid("alice").unwrap();
    fs::rename(world.path("alice"), world.path("alicia")).unwrap();
    settle();
    let report = world.scan();
    world.assert_same();
    assert_eq!(report.counts.read_files, 0);
    if fs::metadata(world.path("alicia"))
        .unwrap()
        .created()
        .is_ok()
    {
        assert_eq!(uuid("alicia").as_ref(), Some(&first));
    }
    let second = uuid("alicia").unwrap();
    fs::remove_dir_all(world.path("alicia")).unwrap();
    let report = world.scan();
    assert_eq!(report.accounts[0].event, "deleted");
    world.assert_same();
    world.put("alicia/new", b"back");
    settle();
    let report = world.scan();
    assert_eq!(report.accounts[0].event, "revived");
    assert_eq!(uuid("alicia"), Some(second));
    world.assert_same();
}

#[test]
fn what_cannot_be_read_is_told_stays_as_it_was_and_stops_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let world = World::new();
    world.put("alice/good", b"1");
    world.put("alice/zz/bad", b"was readable");
    settle();
    world.scan();
    let Some(_denied) = Unreadable::new(&world.path("alice/zz")) else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    world.put("alice/good", b"changed");
    settle();
    let report = world.scan();
    assert_eq!(report.errors.count, 1, "{report:?}");
    assert!(
        report.errors.named[0].starts_with("alice/zz/bad: "),
        "{report:?}"
    );
    assert_eq!(world.content("alice/good"), b"changed");
    let ask = Ask {
        max_read_errors: Some(0),
        ..Ask::default()
    };
    let refused = world.ask(&ask).unwrap_err();
    assert!(refused.to_string().contains("alice/zz/bad"), "{refused}");
}

/// A file that looks well and cannot be read: the speed of a loopback, bound over it.
struct Unreadable(std::path::PathBuf);

impl Unreadable {
    fn new(dir: &Path) -> Option<Unreadable> {
        use nix::mount::{MsFlags, mount};
        const FILE: &str = "/sys/class/net/lo/speed";
        let target = dir.join("bad");
        let none = None::<&str>;
        fs::read(FILE).is_err().then_some(())?;
        mount(Some(FILE), &target, none, MsFlags::MS_BIND, none).ok()?;
        Some(Unreadable(target))
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        nix::mount::umount(&self.0).unwrap();
    }
}

#[test]
fn a_file_that_never_rests_is_taken_marked_and_read_again() {
    let world = World::new();
    // Long enough that the writer gets its turns while it is read, also on a busy machine.
    world.put("alice/busy", &noise(1, 40 << 20));
    let stop = AtomicBool::new(false);
    let path = world.path("alice/busy");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::os::unix::fs::FileExt;
            let file = File::options().write(true).open(&path).unwrap();
            let mut n = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                file.write_all_at(&n.to_le_bytes(), 4096).unwrap();
            }
        });
        let report = world.scan();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(report.changing.named, ["alice/busy"], "{report:?}");
        assert!(
            report.counts.read_bytes >= 120 << 20,
            "it was tried three times"
        );
    });
    settle();
    let report = world.scan();
    assert_eq!(report.counts.read_files, 1);
    assert!(report.changing.named.is_empty());
    world.assert_same();
    assert_eq!(world.scan().counts.read_files, 0);
}
