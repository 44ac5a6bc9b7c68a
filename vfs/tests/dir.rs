//! What a directory volume does where a directory can be tampered with: leftovers, links, swaps, mounts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;
use vfs::dir::MountWatch;
use vfs::{
    Body, DirVolume, ErrorClass, MountKind, ObjectKey, Precondition, Sentinel, Volume, VolumeExt,
};

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn put(volume: &dyn Volume, name: &str, bytes: &[u8]) -> vfs::Result<()> {
    volume
        .put(&key(name), Body::Bytes(bytes), Precondition::None)
        .map(drop)
}

fn listed(volume: &dyn Volume) -> Vec<String> {
    let page = volume.list("", None, NonZeroUsize::MAX).unwrap();
    page.objects
        .iter()
        .map(|meta| meta.key.to_string())
        .collect()
}

fn sentinel() -> Sentinel {
    Sentinel::exact(key("server/volume.json"), "ours")
}

/// A directory `nas` in a directory of its own, bound to its sentinel.
fn bound() -> (TempDir, PathBuf, DirVolume) {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("nas");
    fs::create_dir(&path).unwrap();
    let volume = DirVolume::open(&path).unwrap();
    put(&volume, "server/volume.json", b"ours").unwrap();
    volume.bind(sentinel()).unwrap();
    (parent, path, volume)
}

/// All names below `path`, files and directories.
fn everything(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(everything(&path));
        }
        found.push(path);
    }
    found
}

#[test]
fn invariant_7_a_swapped_root_is_the_wrong_volume_and_nothing_is_written_there() {
    let (parent, path, volume) = bound();
    fs::rename(&path, parent.path().join("gone")).unwrap();
    fs::create_dir(&path).unwrap();
    put(&volume, "items/00/early", b"x").unwrap(); // Not looked yet: it goes where the volume is, not where the path leads.
    assert!(volume.verify_identity().unwrap_err().is_wrong_volume());
    assert!(
        put(&volume, "items/00/late", b"x")
            .unwrap_err()
            .is_wrong_volume()
    );
    assert!(volume.probe().unwrap_err().is_wrong_volume());
    assert_eq!(everything(&path), Vec::<PathBuf>::new());

    fs::remove_dir(&path).unwrap();
    fs::rename(parent.path().join("gone"), &path).unwrap();
    volume.verify_identity().unwrap();
    assert_eq!(listed(&volume), ["items/00/early", "server/volume.json"]);
}

#[test]
fn invariant_7_another_servers_directory_is_refused() {
    let (parent, path, volume) = bound();
    fs::rename(&path, parent.path().join("gone")).unwrap();
    fs::create_dir_all(path.join("server")).unwrap();
    fs::write(path.join("server/volume.json"), "theirs").unwrap();
    let error = volume.verify_identity().unwrap_err();
    assert!(
        error.is_wrong_volume() && error.to_string().contains("its content is another"),
        "{error}"
    );
    assert!(
        DirVolume::open(&path)
            .unwrap()
            .bind(sentinel())
            .unwrap_err()
            .is_wrong_volume()
    );
}

#[test]
fn invariant_7_the_same_volume_in_another_place_counts_as_mounted_anew_exactly_once() {
    let (parent, path, volume) = bound();
    fs::rename(&path, parent.path().join("gone")).unwrap();
    fs::create_dir_all(path.join("server")).unwrap();
    fs::write(path.join("server/volume.json"), "ours").unwrap();
    let error = volume.verify_identity().unwrap_err();
    assert!(error.is_remounted() && error.is_transient(), "{error:?}");
    volume.verify_identity().unwrap();
    put(&volume, "a", b"x").unwrap();
    assert!(path.join("a").exists());
}

#[test]
fn without_a_sentinel_only_the_very_same_directory_will_do() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("nas");
    fs::create_dir(&path).unwrap();
    let volume = DirVolume::open(&path).unwrap();
    volume.verify_identity().unwrap();
    fs::rename(&path, parent.path().join("gone")).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(volume.verify_identity().unwrap_err().is_wrong_volume());
}

#[test]
fn invariant_6_a_removed_root_is_not_a_missing_object() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("nas");
    fs::create_dir(&path).unwrap();
    let volume = DirVolume::open(&path).unwrap();
    fs::remove_dir(&path).unwrap();
    assert!(volume.head(&key("a")).unwrap_err().is_wrong_volume());
    assert!(volume.get(&key("a"), 0..1).unwrap_err().is_wrong_volume());
    assert!(
        volume
            .list("", None, NonZeroUsize::MIN)
            .unwrap_err()
            .is_wrong_volume()
    );
    assert!(volume.delete(&[key("a")]).unwrap_err().is_wrong_volume());
    assert!(put(&volume, "a", b"x").unwrap_err().is_wrong_volume());
    assert!(put(&volume, "a/b", b"x").unwrap_err().is_wrong_volume());
    let error = volume.verify_identity().unwrap_err();
    assert!(
        error.is_unreachable() && !error.is_wrong_volume(),
        "nothing is there, so nothing is known: {error:?}"
    );
    assert!(!path.exists(), "the root is never created");
}

#[test]
fn invariant_6_nothing_is_missing_where_the_sentinel_is_missing() {
    let (_parent, path, volume) = bound();
    put(&volume, "items/00/a", b"x").unwrap();
    fs::remove_dir_all(path.join("server")).unwrap();
    assert!(
        volume
            .head(&key("items/00/b"))
            .unwrap_err()
            .is_wrong_volume()
    );
    assert!(
        volume
            .get(&key("items/00/b"), 0..1)
            .unwrap_err()
            .is_wrong_volume()
    );
    assert!(
        volume
            .list("items/", None, NonZeroUsize::MAX)
            .unwrap_err()
            .is_wrong_volume()
    );
    assert!(
        volume.head(&key("items/00/a")).unwrap().is_some(),
        "what is seen is seen"
    );
}

#[test]
fn leftovers_of_a_crash_are_not_listed_and_are_swept_when_old() {
    let root = TempDir::new().unwrap();
    let volume = DirVolume::open(root.path()).unwrap();
    put(&volume, "items/00/a", b"x").unwrap();
    let leftovers = [
        root.path().join(".tmp-1-0"),
        root.path().join("items/00/.tmp-2-7"),
    ];
    for leftover in &leftovers {
        fs::write(leftover, "half").unwrap();
    }
    fs::write(root.path().join("items/.hidden"), "not ours").unwrap();
    // Another volume in a directory of this one.
    let beside = root.path().join("host-8/items/.tmp-3-0");
    fs::create_dir_all(beside.parent().unwrap()).unwrap();
    fs::write(&beside, "half").unwrap();
    assert_eq!(listed(&volume), ["items/00/a"]);
    assert_eq!(
        volume
            .sweep_temporary(&[""], Duration::from_secs(3600))
            .unwrap(),
        0
    );
    let old = fs::File::options().write(true).open(&leftovers[1]).unwrap();
    old.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200))
        .unwrap();
    assert_eq!(
        volume
            .sweep_temporary(&[""], Duration::from_secs(3600))
            .unwrap(),
        1
    );
    let ours = ["items/", "accounts/"];
    assert_eq!(volume.sweep_temporary(&ours, Duration::ZERO).unwrap(), 0);
    assert!(beside.exists());
    assert_eq!(volume.sweep_temporary(&[""], Duration::ZERO).unwrap(), 2);
    assert!(leftovers.iter().all(|leftover| !leftover.exists()));
    assert!(root.path().join("items/.hidden").exists());
    assert_eq!(listed(&volume), ["items/00/a"]);
}

#[test]
fn a_failed_put_leaves_no_temporary_file() {
    let root = TempDir::new().unwrap();
    let volume = DirVolume::open(root.path()).unwrap();
    let short = fs::File::open("/dev/null").unwrap();
    let body = Body::File {
        file: &short,
        len: 10,
    };
    assert!(volume.put(&key("a/b"), body, Precondition::None).is_err());
    fs::create_dir(root.path().join("x")).unwrap();
    assert!(put(&volume, "x", b"a directory is in the way").is_err());
    assert!(put(&volume, "x/y", b"").is_ok());
    assert!(put(&volume, "x/y/z", b"an object is in the way").is_err());
    let files: Vec<_> = everything(root.path())
        .into_iter()
        .filter(|path| path.is_file())
        .collect();
    assert_eq!(files, [root.path().join("x/y")]);
}

#[test]
fn a_link_planted_below_the_root_leads_nowhere() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let root = TempDir::new().unwrap();
    let volume = DirVolume::open(root.path()).unwrap();
    symlink(outside.path(), root.path().join("items")).unwrap();
    symlink(outside.path().join("secret"), root.path().join("file")).unwrap();
    symlink("/nowhere", root.path().join("dangling")).unwrap();

    for name in ["items/secret", "file", "dangling"] {
        let error = volume.get(&key(name), 0..1).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Permanent, "{error:?}");
        assert!(
            volume.head(&key(name)).is_err(),
            "neither an object nor missing"
        );
    }
    assert!(volume.delete(&[key("items/secret")]).is_err());
    assert!(put(&volume, "items/new", b"x").is_err());
    assert!(put(&volume, "items/deep/new", b"x").is_err());
    assert_eq!(listed(&volume), [""; 0]);
    volume.sweep_temporary(&[""], Duration::ZERO).unwrap();
    // A put takes the place of a link and does not follow it.
    put(&volume, "file", b"ours").unwrap();
    assert_eq!(
        volume.get_whole(&key("file"), 10).unwrap(),
        b"ours".as_slice()
    );
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    assert_eq!(everything(outside.path()), [outside.path().join("secret")]);
}

#[test]
fn a_planted_pipe_does_not_hang_a_read() {
    let root = TempDir::new().unwrap();
    let volume = DirVolume::open(root.path()).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(root.path().join("pipe"))
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(
        volume.get(&key("pipe"), 0..1).unwrap_err().class(),
        ErrorClass::Permanent
    );
    assert!(volume.head(&key("pipe")).is_err());
    assert_eq!(listed(&volume), [""; 0]);
}

#[test]
fn what_is_not_ours_is_passed_over() {
    let root = TempDir::new().unwrap();
    let volume = DirVolume::open(root.path()).unwrap();
    for directory in ["lost+found/x", ".snapshot/items", "Upper"] {
        fs::create_dir_all(root.path().join(directory)).unwrap();
        fs::write(root.path().join(directory).join("file"), "").unwrap();
    }
    fs::write(root.path().join("README"), "").unwrap();
    put(&volume, "a", b"x").unwrap();
    assert_eq!(listed(&volume), ["a"]);
}

#[test]
fn a_probe_knows_the_disk_and_leaves_no_directory() {
    let root = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let volume = DirVolume::open(root.path()).unwrap();
    let found = volume.probe().unwrap();
    assert_eq!(found.kind, MountKind::Disk);
    assert!(
        found.file_system != "unknown" && root.path().starts_with(&found.mount_point),
        "{found:?}"
    );
    assert!(
        found.atomic_rename && found.exclusive_create && found.fsync && found.fsync_directory,
        "{found:?}"
    );
    assert!(
        !found.put_latency.is_zero() && found.warnings.is_empty(),
        "{found:?}"
    );
    assert_eq!(everything(root.path()), Vec::<PathBuf>::new());
    let space = volume.space().unwrap().unwrap();
    assert!(space.available_bytes > 0 && space.available_bytes <= space.total_bytes);
}

#[test]
fn objects_and_directories_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let root = TempDir::new().unwrap();
    let volume = DirVolume::open(root.path()).unwrap();
    put(&volume, "a/b", b"x").unwrap();
    let mode = |name: &str| {
        fs::metadata(root.path().join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("a"), mode("a/b")), (0o700, 0o600));
}

/// A tmpfs, mounted for a test.
struct Mounted(PathBuf);

impl Mounted {
    /// None, said aloud, where mounting is not allowed.
    fn at(path: &Path) -> Option<Mounted> {
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(path)
            .output();
        if done.is_ok_and(|output| output.status.success()) {
            return Some(Mounted(path.to_owned()));
        }
        eprintln!("skipped: this test has to mount and may not");
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn invariant_7_an_unmounted_disk_is_refused_and_taken_up_again_when_it_is_back() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("nas");
    fs::create_dir(&path).unwrap();
    let Some(mounted) = Mounted::at(&path) else {
        return;
    };
    let volume = DirVolume::open(&path).unwrap();
    put(&volume, "server/volume.json", b"ours").unwrap();
    volume.bind(sentinel()).unwrap();

    drop(mounted);
    assert!(volume.verify_identity().unwrap_err().is_wrong_volume());
    assert!(put(&volume, "a", b"x").unwrap_err().is_wrong_volume());
    assert_eq!(
        everything(&path),
        Vec::<PathBuf>::new(),
        "nothing lands on the disk below the mount point"
    );

    let Some(_mounted) = Mounted::at(&path) else {
        return;
    };
    assert!(
        volume.verify_identity().unwrap_err().is_wrong_volume(),
        "an empty disk is another one"
    );
    fs::create_dir(path.join("server")).unwrap();
    fs::write(path.join("server/volume.json"), "ours").unwrap();
    assert!(volume.verify_identity().unwrap_err().is_remounted());
    volume.verify_identity().unwrap();
    put(&volume, "a", b"x").unwrap();
    assert!(path.join("a").exists());
}

#[test]
fn another_mount_in_the_place_of_a_volume_is_told_and_one_elsewhere_is_not() {
    let parent = TempDir::new().unwrap();
    let canonical = parent.path().canonicalize().unwrap();
    let (path, elsewhere) = (canonical.join("nas"), canonical.join("elsewhere"));
    fs::create_dir(&path).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    let (told, heard) = mpsc::channel();
    let watch = MountWatch::start(path.join("volume"), move || told.send(()).unwrap()).unwrap();
    let Some(mounted) = Mounted::at(&path) else {
        return;
    };
    heard.recv().unwrap();
    let other = Mounted::at(&elsewhere).unwrap();
    drop(other);
    drop(mounted);
    heard.recv().unwrap();
    drop(watch);
    // Two changes, two words, and no more: the watch has ended.
    assert_eq!(heard.recv(), Err(mpsc::RecvError));
}

#[test]
fn invariant_7_a_mount_below_the_root_is_not_entered() {
    let root = TempDir::new().unwrap();
    let volume = DirVolume::open(root.path()).unwrap();
    fs::create_dir(root.path().join("items")).unwrap();
    let Some(_mounted) = Mounted::at(&root.path().join("items")) else {
        return;
    };
    let error = put(&volume, "items/a", b"x").unwrap_err();
    assert!(
        error.class() == ErrorClass::Permanent && error.to_string().contains("another file system"),
        "{error}"
    );
    assert!(
        volume.list("", None, NonZeroUsize::MIN).is_err(),
        "a listing with a hole is an error"
    );
    assert!(volume.list("server/", None, NonZeroUsize::MIN).is_ok());
}

#[test]
fn a_full_volume_says_so_and_keeps_what_it_has() {
    let root = TempDir::new().unwrap();
    let Some(_mounted) = Mounted::at(root.path()) else {
        return;
    };
    let volume = DirVolume::open(root.path()).unwrap();
    put(&volume, "a/b", b"before").unwrap();
    let error = put(&volume, "a/b", &vec![7; 2 << 20]).unwrap_err();
    assert_eq!(
        (error.case(), error.class()),
        (vfs::ErrorCase::NoSpace, ErrorClass::Permanent),
        "{error:?}"
    );
    assert_eq!(
        volume.get_whole(&key("a/b"), 100).unwrap(),
        b"before".as_slice()
    );
    put(&volume, "a/c", &vec![7; 500_000]).unwrap();
    assert_eq!(listed(&volume), ["a/b", "a/c"]);
    assert_eq!(
        everything(root.path()).len(),
        3,
        "no leftover takes the room"
    );
}

/// Runs this very test again under strace and reads the order of its system calls: the only way to see a missing fsync
/// without cutting the power.
#[test]
fn bytes_are_durable_before_their_name_and_the_name_before_the_answer() {
    const TRACED: &str = "VFS_TEST_TRACED";
    if let Some(root) = std::env::var_os(TRACED) {
        let volume = DirVolume::open(root).unwrap();
        put(&volume, "one/two/first", b"x").unwrap();
        put(&volume, "one/two/second", b"x").unwrap();
        volume.delete(&[key("one/two/first")]).unwrap();
        return;
    }
    let root = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let log = TempDir::new().unwrap();
    let log = log.path().join("log");
    let done = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-e",
            "trace=mkdirat,fsync,fdatasync,renameat,renameat2,unlinkat",
            "-o",
        ])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "bytes_are_durable_before_their_name_and_the_name_before_the_answer",
        ])
        .env(TRACED, root.path())
        .output();
    if !done.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: strace is not here or may not trace");
        return;
    }
    let root = root.path().to_str().unwrap();
    let log = fs::read_to_string(log).unwrap();
    let calls: Vec<String> = log
        .lines()
        .filter(|line| line.contains(root))
        .map(|line| shortened(line, root))
        .collect();
    let expected = [
        "mkdirat / one",
        "fsync /",
        "mkdirat /one two",
        "fsync /one",
        "fsync /one/two/TMP",
        "renameat /one/two TMP",
        "fsync /one/two",
        "fsync /one/two/TMP",
        "renameat /one/two TMP",
        "fsync /one/two",
        "unlinkat /one/two first",
        "fsync /one/two",
    ];
    assert_eq!(calls, expected, "{log}");
}

/// `17 mkdirat(3</root/a>, "b", 0700) = 0` as `mkdirat /a b`, temporary names as `TMP`.
fn shortened(line: &str, root: &str) -> String {
    let call = line.split_once(' ').unwrap().1.trim_start();
    let (name, arguments) = call.split_once('(').unwrap();
    let path = arguments
        .split_once('<')
        .unwrap()
        .1
        .split_once('>')
        .unwrap()
        .0;
    let path = path.strip_prefix(root).unwrap();
    let path = path
        .split_once("/.tmp-")
        .map_or(path.to_owned(), |(directory, _)| format!("{directory}/TMP"));
    let path = if path.is_empty() { "/" } else { &path };
    match arguments.split('"').nth(1) {
        Some(file) if file.starts_with(".tmp-") => format!("{name} {path} TMP"),
        Some(file) => format!("{name} {path} {file}"),
        None => format!("{name} {path}"),
    }
}
