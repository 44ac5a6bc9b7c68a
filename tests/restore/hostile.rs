//! Whatever a volume says: nothing is written outside the destination, and it ends in a report.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tidefs::format::inode::Inode;
use tidefs::types::{FileKind, Ino};
use tidefs::volume::Durability;

use crate::common::{Place, close, mkdir, noise, put};
use crate::forge::{Forged, extent, inode};
use crate::program::{files, is_root, restore_away};

/// A small archived volume with the account `alice`, number 1.
fn archived(fill: impl FnOnce(&tidefs::volume::Volume, Ino)) -> Place {
    let place = Place::new();
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    put(&*volume, account, "honest", b"honest");
    fill(&volume, account);
    volume.close_epoch(None).unwrap();
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    close(volume);
    place
}

/// Every name below, and what is in it: to see that nothing came.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let found = files(dir).into_iter();
    found
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

/// A destination two levels below a directory that must not change.
fn destination(place: &Place) -> (PathBuf, PathBuf) {
    let around = place.dir.path().join("around");
    let to = around.join("inner/dest");
    fs::create_dir_all(&to).unwrap();
    fs::write(around.join("precious"), b"precious").unwrap();
    (around, to)
}

#[test]
fn names_that_lead_elsewhere_are_not_followed() {
    let place = archived(|_, _| {});
    let (around, to) = destination(&place);
    let mut forged = Forged::new(1);
    let root = forged.root();
    let absolute = around.join("absolute");
    let names: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b".".to_vec(),
        b"..".to_vec(),
        b"../escaped".to_vec(),
        b"../../escaped".to_vec(),
        b"a/../../escaped".to_vec(),
        b"sub/file".to_vec(),
        absolute.to_str().unwrap().as_bytes().to_vec(),
        b"zero\0byte".to_vec(),
        vec![b'n'; 256],
    ];
    for name in &names {
        forged.add(root, name, &inode(FileKind::File));
    }
    // Directories of such names, with a file in each.
    for name in [&b"../dir"[..], b"..", b"/tmp/tidefs-hostile"] {
        let dir = Inode {
            parent: Some(root),
            ..inode(FileKind::Dir)
        };
        // `..` has one name already.
        if name != b".." {
            let dir = forged.add(root, name, &dir);
            forged.add(dir, b"file", &inode(FileKind::File));
        }
    }
    forged.archive(&place.external());
    let before = snapshot(&around);
    let report = restore_away(&place, &["alice"], &to).document(4);
    assert_eq!(report["unrestored"], names.len() + 2, "{report}");
    assert_eq!(fs::read(to.join("honest")).unwrap(), b"honest");
    let mut after = snapshot(&around);
    after.remove(&to.join("honest"));
    assert_eq!(after, before);
    assert_eq!(files(&to), [to.join("honest")]);
    assert!(!Path::new("/tmp/tidefs-hostile").exists());
}

#[test]
fn a_link_of_the_volume_in_the_way_of_a_directory_is_not_followed() {
    let place = archived(|volume, account| {
        let dir = mkdir(volume, account, "dir");
        let sub = mkdir(volume, dir, "sub");
        put(volume, sub, "file", b"content");
    });
    let (around, to) = destination(&place);
    fs::create_dir_all(around.join("outside/sub")).unwrap();
    for link in [
        around.join("outside"),
        PathBuf::from("../../outside"),
        PathBuf::from("."),
    ] {
        symlink(&link, to.join("dir")).unwrap();
        let report = restore_away(&place, &["--overwrite", "always", "alice"], &to).document(4);
        assert_eq!(report["failures"][0]["path"], "dir", "{report}");
        assert!(files(&around.join("outside")).is_empty(), "{link:?}");
        fs::remove_file(to.join("dir")).unwrap();
    }
}

#[test]
fn a_directory_that_becomes_a_link_in_the_middle_lets_nothing_out() {
    let place = archived(|volume, account| {
        let dir = mkdir(volume, account, "dir");
        let sub = mkdir(volume, dir, "sub");
        for n in 0..400 {
            put(volume, sub, &format!("f{n}"), &noise(n, 20_000));
            let other = mkdir(volume, sub, &format!("d{n}"));
            put(volume, other, "f", &noise(1000 + n, 100));
        }
    });
    let (around, to) = destination(&place);
    let outside = around.join("outside");
    for n in 0..400 {
        fs::create_dir_all(outside.join(format!("sub/d{n}"))).unwrap();
    }
    let link = to.join("link");
    symlink(&outside, &link).unwrap();
    fs::create_dir(to.join("dir")).unwrap();
    let over = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let flags = RenameFlags::RENAME_EXCHANGE;
                // The other half of the time they change back.
                let _ = renameat2(AT_FDCWD, &link, AT_FDCWD, &to.join("dir"), flags);
                thread::sleep(std::time::Duration::from_micros(300));
            }
        });
        let report = restore_away(&place, &["alice"], &to);
        over.store(true, Ordering::Relaxed);
        report
    });
    assert!([0, 4].contains(&report.code), "{report:?}");
    let came: Vec<_> = files(&outside);
    assert!(
        came.is_empty(),
        "{} came out: {:?}",
        came.len(),
        came.first()
    );
}

#[test]
fn absurd_lengths_end_in_a_report() {
    let place = archived(|_, _| {});
    let (_, to) = destination(&place);
    let mut forged = Forged::new(1);
    let root = forged.root();
    let one = Inode {
        size: 1 << 60,
        allocated: 1 << 60,
        extents: vec![extent(0, u32::MAX)],
        ..inode(FileKind::File)
    };
    forged.add(root, b"2^60, one extent", &one);
    forged.add(
        root,
        b"2^64",
        &Inode {
            size: u64::MAX,
            allocated: 10,
            ..one.clone()
        },
    );
    let far = Inode {
        allocated: 100,
        extents: vec![extent((1 << 60) - 10, 10)],
        ..one.clone()
    };
    forged.add(root, b"far", &far);
    let leaves = Inode {
        has_leaves: true,
        extents: Vec::new(),
        allocated: 100,
        ..one.clone()
    };
    let ino = forged.add(root, b"leaves that overlap", &leaves);
    forged.leaf(ino, 0, &[extent(0, u32::MAX)]);
    forged.leaf(ino, 1 << 20, &[extent(0, u32::MAX)]);
    forged.leaf(ino, u64::MAX, &[extent(u64::MAX - 5, 5)]);
    let link = Inode {
        target: vec![b'x'; 100_000],
        ..inode(FileKind::Symlink)
    };
    forged.add(root, b"long link", &link);
    forged.add(root, b"empty link", &inode(FileKind::Symlink));
    let mut dir = root;
    for _ in 0..4500 {
        let node = Inode {
            parent: Some(dir),
            ..inode(FileKind::Dir)
        };
        dir = forged.add(dir, b"d", &node);
    }
    forged.archive(&place.external());
    let report = restore_away(&place, &["alice"], &to).document(4);
    assert_eq!(report["unrestored"], 7, "{}", report["failures"]);
    assert_eq!(fs::read(to.join("honest")).unwrap(), b"honest");
}

#[test]
fn a_tree_without_an_end_ends() {
    let place = archived(|_, _| {});
    let (_, to) = destination(&place);
    let mut forged = Forged::new(1);
    let root = forged.root();
    forged.name(root, b"myself", root, FileKind::Dir);
    // Each directory holds the next one twice: 2^30 directories to whoever believes it.
    let mut above = root;
    for n in 0..30 {
        let node = Inode {
            parent: Some(above),
            ..inode(FileKind::Dir)
        };
        let dir = forged.add(above, b"a", &node);
        forged.name(above, b"b", dir, FileKind::Dir);
        if n == 29 {
            forged.name(dir, b"up", root, FileKind::Dir);
        }
        above = dir;
    }
    let nowhere = forged.number();
    forged.name(root, b"nothing behind it", nowhere, FileKind::File);
    forged.archive(&place.external());
    let report = restore_away(&place, &["alice"], &to).document(4);
    assert_eq!(
        report["unrestored"],
        1 + 30 + 1 + 1,
        "{}",
        report["failures"]
    );
}

#[test]
fn rights_are_not_given_to_whoever_owns_the_file_by_accident() {
    if !is_root() {
        eprintln!("skipped: only root gives owners away");
        return;
    }
    let place = archived(|_, _| {});
    let (_, to) = destination(&place);
    let mut forged = Forged::new(1);
    let root = forged.root();
    // `chown` takes this owner for "as it is": the program would be root's.
    let ownerless = Inode {
        mode: 0o6755,
        uid: u32::MAX,
        gid: u32::MAX,
        ..inode(FileKind::File)
    };
    let ino = forged.add(root, b"ownerless", &ownerless);
    // cap_setuid=ep
    let capability = [
        1, 0, 0, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    forged.xattr(ino, b"security.capability", &capability);
    forged.xattr(ino, b"no.such.space", b"x");
    let device = Inode {
        rdev: 0x0000_0103,
        uid: 7,
        gid: 8,
        ..inode(FileKind::CharDevice)
    };
    forged.add(root, b"null", &device);
    forged.archive(&place.external());
    let report = restore_away(&place, &["alice"], &to).json();
    let meta = fs::metadata(to.join("ownerless")).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o755, "{report}");
    let reason = report["stripped"][0]["reason"].as_str().unwrap();
    for part in [
        "owner",
        "set-user-ID",
        "security.capability",
        "no.such.space",
    ] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    let null = fs::metadata(to.join("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!((null.uid(), null.gid(), null.rdev()), (7, 8, 0x103));
}
