//! What was deleted: beside the rest in a directory, or back in place in the account.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;
use tidefs::types::Ino;
use tidefs::volume::tree::Tree;

use crate::common::{Place, close, content, find, mkdir, noise, put};
use crate::program::{Ended, files, is_root, restore};

/// An account from which much was deleted since the snapshot `before`.
fn deleted() -> Place {
    let place = Place::new();
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    let docs = mkdir(&*volume, account, "docs");
    put(&*volume, docs, "stays", b"stays");
    let gone = put(&*volume, docs, "gone", &noise(1, 200_000));
    volume.link(gone, account, b"its other name").unwrap();
    put(&*volume, docs, "again", b"the first one");
    let old = mkdir(&*volume, account, "old");
    let inner = mkdir(&*volume, old, "inner");
    put(&*volume, inner, "leaf", b"leaf");
    put(&*volume, inner, "moved", b"moved");
    volume.close_epoch(Some("before".into())).unwrap();
    volume.unlink(docs, b"gone").unwrap();
    volume.unlink(account, b"its other name").unwrap();
    volume.unlink(docs, b"again").unwrap();
    let mode = tidefs::volume::tree::RenameMode::NoReplace;
    volume
        .rename((inner, b"moved"), (docs, b"moved"), mode)
        .unwrap();
    volume.unlink(inner, b"leaf").unwrap();
    volume.rmdir(old, b"inner").unwrap();
    volume.rmdir(account, b"old").unwrap();
    volume.close_epoch(None).unwrap();
    put(&*volume, docs, "again", b"the second one");
    let old = mkdir(&*volume, account, "old");
    put(&*volume, old, "new", b"new");
    close(volume);
    place
}

fn names(dir: &Path) -> Vec<String> {
    let found = files(dir).into_iter();
    found
        .map(|path| path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn deleted_items_come_into_a_directory_beside_the_rest() {
    let place = deleted();
    let to = place.dir.path().join("back");
    restore(&place, &["alice"], &to).json();
    let present = ["docs/again", "docs/moved", "docs/stays", "old/new"];
    assert_eq!(names(&to), present);
    restore(&place, &["alice/docs/gone"], &to)
        .says(1, "was deleted in epoch 2: add --with-deleted");
    restore(&place, &["--with-deleted", "alice"], &to).json();
    let all = [
        "docs/again",
        "docs/gone",
        "docs/moved",
        "docs/stays",
        "its other name",
        "old/new",
        "old.deleted-in-epoch-2/inner/leaf",
    ];
    assert_eq!(names(&to), all);
    assert_eq!(fs::read(to.join("docs/gone")).unwrap(), noise(1, 200_000));
    let (one, other) = (to.join("docs/gone"), to.join("its other name"));
    assert_eq!(
        fs::metadata(one).unwrap().ino(),
        fs::metadata(other).unwrap().ino()
    );
    let again = restore(&place, &["--with-deleted", "alice"], &to).json();
    assert_eq!(again["restored"], 0, "{again}");
    let alone = place.dir.path().join("alone");
    restore(&place, &["--with-deleted", "alice/docs/gone"], &alone).json();
    assert_eq!(fs::read(alone.join("gone")).unwrap(), noise(1, 200_000));
}

fn undelete(place: &Place, args: &[&str]) -> Value {
    Ended::of(
        place,
        &[&["undelete", "--from", "before"], args].concat(),
        None,
    )
    .json()
}

#[test]
fn deleted_items_come_back_in_place_once() {
    let place = deleted();
    let would = undelete(&place, &["--dry-run", "alice"]);
    let did = undelete(&place, &["alice"]);
    assert_eq!(would["restored"], did["restored"], "{would} {did}");
    let volume = place.open();
    let read = |path: &str| content(&*volume, path).unwrap();
    assert_eq!(read("alice/docs/gone"), noise(1, 200_000));
    assert_eq!(
        find(&*volume, "alice/docs/gone").unwrap().ino,
        find(&*volume, "alice/its other name").unwrap().ino
    );
    assert_eq!(find(&*volume, "alice/docs/gone").unwrap().nlink, 2);
    assert_eq!(read("alice/old/inner/leaf"), b"leaf");
    assert_eq!(read("alice/old/new"), b"new");
    assert_eq!(read("alice/docs/again"), b"the second one");
    assert!(
        find(&*volume, "alice/old/inner/moved").is_err(),
        "it goes on elsewhere"
    );
    close(volume);
    let again = undelete(&place, &["alice"]);
    assert_eq!(again["restored"], 0, "{again}");
    let check = Ended::of(&place, &["check", "--read-data"], None);
    assert_eq!(check.code, 0, "{check:?}");
}

#[test]
fn deleted_items_come_back_elsewhere_in_their_account() {
    let place = deleted();
    let volume = place.open();
    let account = find(&*volume, "alice").unwrap().ino;
    mkdir(&*volume, account, "elsewhere");
    close(volume);
    undelete(&place, &["--into", "elsewhere", "alice"]);
    let volume = place.open();
    let read = |path: &str| content(&*volume, path).unwrap();
    assert_eq!(read("alice/elsewhere/docs/gone"), noise(1, 200_000));
    assert_eq!(read("alice/elsewhere/old/inner/leaf"), b"leaf");
    assert!(find(&*volume, "alice/docs/gone").is_err());
    close(volume);
}

#[test]
fn where_another_one_has_the_name_the_old_one_comes_back_beside_it() {
    let place = Place::new();
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    put(&*volume, account, "name", b"the old one");
    volume.close_epoch(Some("before".into())).unwrap();
    volume.unlink(account, b"name").unwrap();
    volume.close_epoch(Some("gone".into())).unwrap();
    close(volume);
    let into = ["--to", "gone", "--into", "nowhere", "alice"];
    Ended::of(
        &place,
        &[&["undelete", "--from", "before"], &into[..]].concat(),
        None,
    )
    .says(1, "there is no directory 'nowhere'");
    Ended::of(&place, &["account", "disable", "alice"], None).json();
    Ended::of(&place, &["undelete", "--from", "before", "alice"], None)
        .says(1, "tidefs account enable alice");
    Ended::of(&place, &["account", "enable", "alice"], None).json();
    let volume = place.open();
    let account = find(&*volume, "alice").unwrap().ino;
    mkdir(&*volume, account, "into");
    put(&*volume, account, "name", b"the new one, longer");
    close(volume);
    assert_eq!(
        undelete(&place, &["--to", "before", "alice"])["restored"],
        0
    );
    let into = undelete(&place, &["--to", "gone", "--into", "into", "alice"]);
    assert_eq!(into["restored"], 1, "{into}");
    let volume = place.open();
    assert_eq!(
        content(&*volume, "alice/into/name").unwrap(),
        b"the old one"
    );
    close(volume);
    let beside = undelete(&place, &["--to", "gone", "alice"]);
    assert_eq!(beside["restored"], 1, "{beside}");
    let volume = place.open();
    let read = |path: &str| content(&*volume, path).unwrap();
    assert_eq!(read("alice/name.deleted-in-epoch-2"), b"the old one");
    assert_eq!(read("alice/name"), b"the new one, longer");
}

#[test]
fn what_comes_back_is_seen_in_the_mount_at_once() {
    if !is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: there is nothing to mount with");
        return;
    }
    let place = Place::new();
    let mount = place.dir.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let at = mount.to_str().unwrap();
    Ended::of(&place, &["mount", at], None).json();
    let file = mount.join("alice/docs/file");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, noise(5, 100_000)).unwrap();
    Ended::of(&place, &["snapshot", "before"], None).json();
    fs::remove_dir_all(mount.join("alice/docs")).unwrap();
    // The kernel remembers that it is not there.
    assert!(!mount.join("alice/docs").exists());
    let did = undelete(&place, &["alice"]);
    let read = fs::read(&file);
    Ended::of(&place, &["umount", at], None).json();
    assert_eq!(did["restored"], 2, "{did}");
    assert_eq!(read.unwrap(), noise(5, 100_000));
}
