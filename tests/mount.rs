//! A real mount of a tree in memory: what programs see of the FUSE adapter and of the session.
//!
//! Needs /dev/fuse and root; without them each test says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::unistd::{Whence, lseek};
use tempfile::TempDir;
use tidefs::fuse::{Lifetimes, MountOptions, Mounted, mount};
use tidefs::types::Ino;

#[path = "common/memory_tree.rs"]
mod memory_tree;
use memory_tree::MemoryTree;

/// A mounted tree; unmounted when dropped.
struct Fixture {
    tree: Arc<MemoryTree>,
    mounted: Mounted,
    _dir: TempDir,
    root: PathBuf,
}

impl Fixture {
    fn start(tree: MemoryTree, options: &MountOptions) -> Option<Fixture> {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if opened.is_err() || !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("mnt");
        fs::create_dir(&root).unwrap();
        let tree = Arc::new(tree);
        let mounted = mount(tree.clone(), &root, options).unwrap();
        Some(Fixture {
            tree,
            mounted,
            _dir: dir,
            root,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Runs a program in the mount's root; `None` if it is not installed.
    fn run(&self, program: &str, args: &[&str]) -> Option<String> {
        let started = Command::new(program)
            .args(args)
            .current_dir(&self.root)
            .output();
        let output = match started {
            Ok(output) => output,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("skipped: no {program}");
                return None;
            }
            Err(error) => panic!("{program}: {error}"),
        };
        assert!(
            output.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// `let fixture = mounted!();` or leave the test.
macro_rules! mounted {
    () => {
        mounted!(MemoryTree::new(), &MountOptions::default())
    };
    ($tree:expr, $options:expr) => {
        match Fixture::start($tree, $options) {
            Some(fixture) => fixture,
            None => return,
        }
    };
}

fn errno(result: std::io::Result<impl Sized>) -> i32 {
    result
        .err()
        .and_then(|error| error.raw_os_error())
        .unwrap_or(0)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "still not: {what}"
        );
        thread::yield_now();
    }
}

#[test]
fn the_usual_tools_copy_list_and_remove_a_tree_of_ten_thousand() {
    let fixture = mounted!();
    let source = tempfile::tempdir().unwrap();
    for dir in 0..10 {
        let dir = source.path().join(format!("d{dir}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..1000 {
            fs::write(dir.join(format!("file-{file:04}")), format!("{file}\n")).unwrap();
        }
    }
    std::os::unix::fs::symlink("d0/file-0001", source.path().join("link")).unwrap();
    let from = source.path().to_str().unwrap();
    fixture.run("cp", &["-a", from, "copy"]).unwrap();
    fixture.run("diff", &["-r", from, "copy"]).unwrap();
    let listed = fixture.run("ls", &["-l", "copy/d3"]).unwrap();
    assert_eq!(listed.lines().count(), 1001);
    let found = fixture.run("find", &["copy", "-type", "f"]).unwrap();
    assert_eq!(found.lines().collect::<BTreeSet<_>>().len(), 10_000);
    assert_eq!(fixture.run("cat", &["copy/link"]).unwrap(), "1\n");
    fixture.run("rm", &["-rf", "copy"]).unwrap();
    assert_eq!(fs::read_dir(&fixture.root).unwrap().count(), 0);
    wait_until("all files released", || fixture.tree.opens() == 0);
}

#[test]
fn seekdir_returns_to_where_telldir_was_far_back_and_near() {
    let fixture = mounted!();
    for n in 0..3000 {
        fs::write(fixture.path(&format!("f{n:05}")), "").unwrap();
    }
    let script = r#"
        opendir(my $d, ".") or die;
        my (%next, @marks, $prev);
        while (1) {
            my $at = telldir($d);
            my $name = readdir($d);
            last unless defined $name;
            push @marks, [$at, $name];
        }
        die "saw " . scalar(@marks) unless @marks == 3002;
        for my $i (0, 1, 2, 17, 700, 1500, 2999, 3001, 5, 2500) {
            seekdir($d, $marks[$i][0]);
            my $name = readdir($d);
            die "$i: $name is not $marks[$i][1]" unless $name eq $marks[$i][1];
        }
        rewinddir($d);
        my @all = readdir($d);
        die "again " . scalar(@all) unless @all == 3002;
    "#;
    fixture.run("perl", &["-e", script]);
}

#[test]
fn removing_while_listing_skips_no_name() {
    let fixture = mounted!();
    for n in 0..3000 {
        fs::write(fixture.path(&format!("f{n:05}")), "").unwrap();
    }
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(&fixture.root).unwrap() {
        let name = entry.unwrap().file_name();
        fs::remove_file(fixture.root.join(&name)).unwrap();
        seen.insert(name);
    }
    assert_eq!(seen.len(), 3000);
    assert_eq!(fs::read_dir(&fixture.root).unwrap().count(), 0);
}

#[test]
fn a_name_removed_between_two_replies_does_not_come_back() {
    let fixture = mounted!();
    for n in 0..2000 {
        fs::write(fixture.path(&format!("f{n:05}")), "").unwrap();
    }
    let mut listing = fs::read_dir(&fixture.root).unwrap();
    listing.next().unwrap().unwrap();
    for n in 0..2000 {
        fs::remove_file(fixture.path(&format!("f{n:05}"))).unwrap();
    }
    let _ = listing.count();
    for n in 0..2000 {
        assert!(!fixture.path(&format!("f{n:05}")).exists(), "f{n:05}");
    }
}

#[test]
fn rename_replaces_refuses_or_exchanges_as_asked() {
    let fixture = mounted!();
    let (a, b) = (fixture.path("a"), fixture.path("b"));
    fs::write(&a, "A").unwrap();
    fs::write(&b, "B").unwrap();
    let rename = |flags| renameat2(AT_FDCWD, &a, AT_FDCWD, &b, flags);
    assert_eq!(
        rename(RenameFlags::RENAME_NOREPLACE),
        Err(nix::errno::Errno::EEXIST)
    );
    rename(RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!(
        (fs::read(&a).unwrap(), fs::read(&b).unwrap()),
        (b"B".to_vec(), b"A".to_vec())
    );
    assert_eq!(
        rename(RenameFlags::RENAME_WHITEOUT),
        Err(nix::errno::Errno::EINVAL)
    );
    fs::rename(&a, &b).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"B");
    assert!(!a.exists());
    fs::create_dir_all(fixture.path("dir/sub")).unwrap();
    let below = fs::rename(fixture.path("dir"), fixture.path("dir/sub/dir"));
    assert_eq!(errno(below), libc::EINVAL);
    assert_eq!(errno(fs::remove_dir(fixture.path("dir"))), libc::ENOTEMPTY);
}

#[test]
fn a_hard_link_shares_everything_and_an_unlinked_open_file_lives_on() {
    let fixture = mounted!();
    let (a, b) = (fixture.path("a"), fixture.path("b"));
    fs::write(&a, "one").unwrap();
    fs::hard_link(&a, &b).unwrap();
    assert_eq!(fs::metadata(&a).unwrap().nlink(), 2);
    assert_eq!(
        fs::metadata(&a).unwrap().ino(),
        fs::metadata(&b).unwrap().ino()
    );
    let mut open = OpenOptions::new().read(true).write(true).open(&a).unwrap();
    fs::remove_file(&a).unwrap();
    fs::remove_file(&b).unwrap();
    open.write_all(b"two").unwrap();
    open.rewind().unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "two");
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    drop(open);
    wait_until("released", || fixture.tree.opens() == 0);
}

/// Cached and direct openings of one file, in every order: each sees what the other wrote.
#[test]
fn what_one_descriptor_writes_every_other_reads() {
    let fixture = mounted!();
    let read_at = |file: &File, at: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    for round in 0..3 {
        let path = fixture.path(&format!("file-{round}"));
        fs::write(&path, vec![b'0'; 10_000]).unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(read_at(&reader, 5000, 2), b"00");
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all_at(b"11", 5000).unwrap();
        assert_eq!(read_at(&reader, 5000, 2), b"11");

        // Now the writer first.
        drop((reader, writer));
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all_at(b"22", 5000).unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(read_at(&reader, 4999, 4), b"0220");
        writer.write_all_at(b"33", 5000).unwrap();
        assert_eq!(read_at(&reader, 4999, 4), b"0330");
        // Beyond the old end, in the page that was read: the tail of a log.
        assert_eq!(read_at(&reader, 9_990, 10), b"0000000000");
        writer.write_all_at(b"tail", 10_000).unwrap();
        assert_eq!(read_at(&reader, 9_998, 6), b"00tail");
        writer.set_len(5001).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 5001);
        assert_eq!(reader.read_at(&mut [0; 8], 5000).unwrap(), 1);
        drop((reader, writer));

        // And nothing old comes out of the cache afterwards.
        assert_eq!(fs::read(&path).unwrap()[4999..], *b"03");
        fs::write(&path, "short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
    }
}

/// The race that the rule of `opens.rs` is made for: a page read while a direct write is under way.
/// Linux 6.18 would pass the first half without the rule, older kernels would not.
#[test]
fn a_page_read_during_a_direct_write_does_not_stay_behind() {
    let fixture = mounted!();
    let path = fixture.path("gated");
    let writer = File::create(&path).unwrap();
    let reader = File::open(&path).unwrap();
    let mut bytes = [0; 3];
    thread::scope(|scope| {
        scope.spawn(|| writer.write_all_at(b"new", 0).unwrap());
        // The write waits in the tree for a read; so read until it is through.
        let started = Instant::now();
        while bytes != *b"new" {
            let _ = reader.read_at(&mut bytes, 0).unwrap();
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{bytes:?} stays for ever"
            );
        }
    });
    // Nothing of the file is in the page cache while somebody writes past it.
    let ino = reader.metadata().unwrap().ino();
    let before = fixture.tree.reads(ino);
    reader.read_exact_at(&mut bytes, 0).unwrap();
    reader.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(fixture.tree.reads(ino), before + 2);
    drop((reader, writer));
    wait_until("released", || fixture.tree.opens() == 0);

    // Afterwards it is cached, across openings.
    let before = fixture.tree.reads(ino);
    for _ in 0..3 {
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
    assert_eq!(fixture.tree.reads(ino), before + 1);
}

#[test]
fn readers_racing_with_a_writer_never_leave_an_old_page_behind() {
    let fixture = mounted!();
    let path = fixture.path("log");
    fs::write(&path, "").unwrap();
    let written = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let file = OpenOptions::new().append(true).open(&path).unwrap();
            for n in 0..3000_u32 {
                (&file).write_all(&n.to_be_bytes()).unwrap();
            }
            written.store(true, Ordering::Release);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !written.load(Ordering::Acquire) {
                    let file = File::open(&path).unwrap();
                    let len = file.metadata().unwrap().len();
                    let mut bytes = vec![0; len as usize];
                    let got = file.read_at(&mut bytes, 0).unwrap();
                    check_counters(&bytes[..got - got % 4]);
                }
            });
        }
    });
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 12_000);
    check_counters(&bytes);
}

fn check_counters(bytes: &[u8]) {
    for (n, word) in bytes.chunks_exact(4).enumerate() {
        assert_eq!(word, (n as u32).to_be_bytes(), "at {n}");
    }
}

#[test]
fn a_mapped_file_and_its_descriptors_agree() {
    let fixture = mounted!();
    let script = r#"
import mmap, os
# created: direct I/O, mapped all the same
f = os.open("new", os.O_RDWR | os.O_CREAT)
os.write(f, b"a" * 8192)
m = mmap.mmap(f, 8192)
assert m[4096:4099] == b"aaa"
m[0:5] = b"hello"
m.flush()
assert os.pread(f, 6, 0) == b"helloa"
os.pwrite(f, b"WORLD", 4096)
assert m[4096:4102] == b"WORLDa", m[4096:4102]
m[10:12] = b"zz"
g = os.open("new", os.O_RDONLY)
assert os.pread(g, 3, 9) == b"azz", os.pread(g, 3, 9)
m.close(); os.close(f); os.close(g)
# opened again: cached
f = os.open("new", os.O_RDWR)
m = mmap.mmap(f, 8192)
assert m[0:12] == b"helloaaaaazz" and m[4096:4101] == b"WORLD"
os.pwrite(f, b"again", 100)
assert m[100:105] == b"again"
m[200:204] = b"last"
m.close(); os.close(f)
assert open("new", "rb").read()[200:204] == b"last"
# a private mapping, as the loader makes them
r = os.open("new", os.O_RDONLY)
p = mmap.mmap(r, 8192, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
assert p[0:5] == b"hello"
"#;
    fixture.run("python3", &["-c", script]);
    let program = fs::read("/bin/true").unwrap();
    fs::write(fixture.path("true"), program).unwrap();
    fs::set_permissions(fixture.path("true"), PermissionsExt::from_mode(0o755)).unwrap();
    wait_until("released", || fixture.tree.opens() == 0);
    fixture
        .run(fixture.path("true").to_str().unwrap(), &[])
        .unwrap();
}

#[test]
fn two_appenders_never_overwrite_each_other() {
    let fixture = mounted!();
    let path = fixture.path("log");
    thread::scope(|scope| {
        for name in [b'a', b'b'] {
            let path = &path;
            scope.spawn(move || {
                let mut options = OpenOptions::new();
                let mut log = options.append(true).create(true).open(path).unwrap();
                for _ in 0..500 {
                    log.write_all(&[name; 7]).unwrap();
                }
            });
        }
    });
    let log = fs::read(&path).unwrap();
    assert_eq!(log.len(), 7000);
    for record in log.chunks_exact(7) {
        assert!(record.iter().all(|byte| *byte == record[0]));
    }
}

#[test]
fn statfs_sizes_and_times_come_through() {
    let fixture = mounted!();
    let space = nix::sys::statfs::statfs(&fixture.root).unwrap();
    assert_eq!(
        (space.blocks(), space.blocks_available()),
        (1 << 28, 1 << 27)
    );
    assert_eq!(space.maximum_name_length(), 255);
    let path = fixture.path("file");
    let file = File::create(&path).unwrap();
    for time in [
        UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
        UNIX_EPOCH - Duration::from_millis(1500),
        UNIX_EPOCH - Duration::new(2_000_000_000, 1),
        UNIX_EPOCH - Duration::from_secs(1),
    ] {
        let times = fs::FileTimes::new().set_modified(time).set_accessed(time);
        file.set_times(times).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), time);
        assert_eq!(fs::metadata(&path).unwrap().accessed().unwrap(), time);
    }
    let before = SystemTime::now();
    file.set_times(fs::FileTimes::new().set_modified(before))
        .unwrap();
    file.write_all_at(b"x", 0).unwrap();
    assert!(fs::metadata(&path).unwrap().modified().unwrap() > before);
    let long = "n".repeat(256);
    assert_eq!(
        errno(fs::write(fixture.path(&long), "")),
        libc::ENAMETOOLONG
    );
    fs::write(fixture.path(&long[1..]), "").unwrap();
}

#[test]
fn extended_attributes_follow_their_protocol() {
    let fixture = mounted!();
    fs::write(fixture.path("file"), "").unwrap();
    let script = r#"
import os, errno
def fails(code, call, *args, **kw):
    try:
        call(*args, **kw)
    except OSError as e:
        assert e.errno == code, e
    else:
        raise AssertionError(f"{call} {args} worked")
fails(errno.ENODATA, os.getxattr, "file", "user.none")
os.setxattr("file", "user.a", b"one")
os.setxattr("file", "user.b", b"")
assert os.getxattr("file", "user.a") == b"one" and os.getxattr("file", "user.b") == b""
assert sorted(os.listxattr("file")) == ["user.a", "user.b"]
fails(errno.EEXIST, os.setxattr, "file", "user.a", b"x", os.XATTR_CREATE)
fails(errno.ENODATA, os.setxattr, "file", "user.c", b"x", os.XATTR_REPLACE)
os.setxattr("file", "user.a", b"v" * 65536, os.XATTR_REPLACE)
assert len(os.getxattr("file", "user.a")) == 65536
fails(errno.E2BIG, os.setxattr, "file", "user.a", b"v" * 65537)
fails(errno.ERANGE, os.setxattr, "file", "user." + "n" * 251, b"x")
os.setxattr("file", "user." + "n" * 250, b"x")
fails(errno.EOPNOTSUPP, os.setxattr, "file", "system.posix_acl_access", b"\x02\0\0\0")
os.removexattr("file", "user.a")
fails(errno.ENODATA, os.removexattr, "file", "user.a")
"#;
    fixture.run("python3", &["-c", script]);
}

#[test]
fn holes_are_seen_made_and_copied() {
    let fixture = mounted!();
    let path = fixture.path("sparse");
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.set_len(3 << 20).unwrap();
    assert_eq!(lseek(&file, 0, Whence::SeekData), Ok(1 << 20));
    assert_eq!(
        lseek(&file, 1 << 20, Whence::SeekHole),
        Ok((1 << 20) + 4096)
    );
    assert_eq!(
        lseek(&file, 2 << 20, Whence::SeekData),
        Err(nix::errno::Errno::ENXIO)
    );
    assert_eq!(file.metadata().unwrap().blocks(), 8);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 1 << 20, 4096).unwrap();
    assert_eq!(
        lseek(&file, 0, Whence::SeekData),
        Err(nix::errno::Errno::ENXIO)
    );
    fallocate(&file, FallocateFlags::empty(), 0, 4 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4 << 20);
    let collapse = fallocate(&file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapse, Err(nix::errno::Errno::EOPNOTSUPP));

    fs::write(fixture.path("from"), vec![7; 100_000]).unwrap();
    // std copies by copy_file_range.
    assert_eq!(
        fs::copy(fixture.path("from"), fixture.path("to")).unwrap(),
        100_000
    );
    assert_eq!(fs::read(fixture.path("to")).unwrap(), vec![7; 100_000]);
}

#[test]
fn synchronous_writes_and_syncs_reach_the_tree_as_such() {
    let fixture = mounted!();
    let path = fixture.path("file");
    for flag in [libc::O_SYNC, libc::O_DSYNC] {
        let before = fixture.tree.sync_writes.load(Ordering::Relaxed);
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .custom_flags(flag)
            .open(&path)
            .unwrap();
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(fixture.tree.sync_writes.load(Ordering::Relaxed), before + 1);
        drop(file);
        // Cached as well.
        let cached = File::open(&path).unwrap();
        wait_until("cached phase", || fixture.tree.opens() == 1);
        let file = options.open(&path).unwrap();
        file.write_all_at(b"y", 0).unwrap();
        assert!(fixture.tree.sync_writes.load(Ordering::Relaxed) >= before + 2);
        drop((file, cached));
        wait_until("released", || fixture.tree.opens() == 0);
    }
    let before = fixture.tree.fsyncs.load(Ordering::Relaxed);
    File::open(&path).unwrap().sync_all().unwrap();
    File::open(&fixture.root).unwrap().sync_all().unwrap();
    assert_eq!(fixture.tree.fsyncs.load(Ordering::Relaxed), before + 2);
}

#[test]
fn set_uid_is_lost_when_another_user_writes() {
    let fixture = mounted!();
    fs::set_permissions(&fixture.root, PermissionsExt::from_mode(0o777)).unwrap();
    fs::set_permissions(
        fixture.root.parent().unwrap(),
        PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    for (name, script) in [
        ("direct", "printf x 1<>\"$0\""),
        ("write-only", "printf x >> \"$0\""),
        ("cut", ": > \"$0\""),
        ("truncate", "truncate -s 3 \"$0\""),
        ("owner", "chown 65534:65534 \"$0\""),
    ] {
        let path = fixture.path(name);
        fs::write(&path, "content").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o6777)).unwrap();
        wait_until("released", || fixture.tree.opens() == 0);
        let user: &[&str] = match name {
            "owner" => &["--"],
            _ => &["--reuid=65534", "--regid=65534", "--clear-groups", "--"],
        };
        let mut args = user.to_vec();
        args.extend(["sh", "-c", script, path.to_str().unwrap()]);
        if fixture.run("setpriv", &args).is_none() {
            return;
        }
        let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o777, "{name}: {mode:o}");
    }
}

#[test]
fn permissions_are_checked_by_the_kernel() {
    let fixture = mounted!();
    fs::write(fixture.path("secret"), "x").unwrap();
    fs::set_permissions(fixture.path("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::set_permissions(
        fixture.root.parent().unwrap(),
        PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let script = format!(
        "cat {0} 2>/dev/null && exit 1; exit 0",
        fixture.path("secret").display()
    );
    fixture.run(
        "setpriv",
        &[
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            "-c",
            &script,
        ],
    );
}

#[test]
fn special_files_and_links_are_what_they_were_made() {
    let fixture = mounted!();
    fixture.run("mkfifo", &["pipe"]).unwrap();
    fixture.run("mknod", &["null", "c", "1", "3"]).unwrap();
    std::os::unix::fs::symlink("a/very/long/target", fixture.path("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(fixture.path("socket")).unwrap();
    let kind = |name| fs::symlink_metadata(fixture.path(name)).unwrap().mode() & libc::S_IFMT;
    assert_eq!(kind("pipe"), libc::S_IFIFO);
    assert_eq!(kind("null"), libc::S_IFCHR);
    assert_eq!(kind("socket"), libc::S_IFSOCK);
    assert_eq!(fs::metadata(fixture.path("null")).unwrap().rdev(), 0x103);
    assert_eq!(
        fs::read_link(fixture.path("link")).unwrap(),
        Path::new("a/very/long/target")
    );
    // Mounted nodev unless asked for.
    assert_eq!(errno(fs::read(fixture.path("null"))), libc::EACCES);
}

#[test]
fn eight_threads_write_and_read_what_they_wrote() {
    let fixture = mounted!();
    thread::scope(|scope| {
        for worker in 0..8_u8 {
            let dir = fixture.path(&format!("w{worker}"));
            scope.spawn(move || {
                fs::create_dir(&dir).unwrap();
                for n in 0..100_usize {
                    let name = if n % 10 == 0 {
                        format!("slow{n}")
                    } else {
                        format!("f{n}")
                    };
                    let bytes = vec![worker; n * 997];
                    fs::write(dir.join(&name), &bytes).unwrap();
                    assert!(fs::read(dir.join(&name)).unwrap() == bytes);
                }
                assert_eq!(fs::read_dir(&dir).unwrap().count(), 100);
                fs::remove_dir_all(&dir).unwrap();
            });
        }
    });
    assert_eq!(fs::read_dir(&fixture.root).unwrap().count(), 0);
}

#[test]
fn a_panic_in_the_tree_is_eio_and_the_mount_lives() {
    let fixture = mounted!();
    let path = fixture.path("panic");
    let file = File::create(&path).unwrap();
    for _ in 0..6 {
        assert_eq!(errno(file.write_at(b"x", 0)), libc::EIO);
        assert_eq!(errno(fs::read(&path)), libc::EIO);
        assert_eq!(errno(fs::read_link(fixture.path("none"))), libc::ENOENT);
    }
    let xattr = Command::new("getfattr")
        .args(["-n", "user.a"])
        .arg(&path)
        .output();
    assert!(xattr.is_err() || !xattr.unwrap().status.success());
    fs::write(fixture.path("other"), "fine").unwrap();
    assert_eq!(fs::read(fixture.path("other")).unwrap(), b"fine");
}

#[test]
fn a_full_disk_is_told_as_such() {
    let fixture = mounted!();
    fixture.tree.full.store(true, Ordering::Relaxed);
    assert_eq!(errno(fs::write(fixture.path("file"), "x")), libc::ENOSPC);
    fixture.tree.full.store(false, Ordering::Relaxed);
    fs::write(fixture.path("file"), "x").unwrap();
}

#[test]
fn the_kernel_remembers_names_attributes_and_absences_until_told() {
    let options = MountOptions {
        lifetimes: Lifetimes {
            missing: Duration::from_secs(3600),
            ..Lifetimes::default()
        },
        ..MountOptions::default()
    };
    let fixture = mounted!(MemoryTree::new(), &options);
    let asked = || {
        fixture.tree.lookups.load(Ordering::Relaxed) + fixture.tree.getattrs.load(Ordering::Relaxed)
    };
    fs::write(fixture.path("file"), "old").unwrap();
    assert_eq!(fs::read(fixture.path("file")).unwrap(), b"old");
    assert!(!fixture.path("later").exists());
    let before = asked();
    for _ in 0..10 {
        let _ = fs::symlink_metadata(fixture.path("later"));
    }
    assert_eq!(asked(), before);

    let ino = fs::metadata(fixture.path("file")).unwrap().ino();
    fixture.tree.change_behind_the_kernel(ino, b"newer");
    fixture.tree.create_behind_the_kernel(1, b"later");
    assert_eq!(
        fs::read(fixture.path("file")).unwrap(),
        b"old",
        "still cached"
    );
    let notifier = fixture.mounted.notifier();
    notifier.invalidate_inode(Ino(ino)).unwrap();
    notifier.invalidate_entry(Ino::ROOT, b"later").unwrap();
    notifier
        .invalidate_entry(Ino::ROOT, b"never heard of")
        .unwrap();
    notifier.invalidate_attr(Ino(999_999)).unwrap();
    assert_eq!(fs::read(fixture.path("file")).unwrap(), b"newer");
    assert!(fixture.path("later").exists());
    // A name made elsewhere that the kernel believes absent can still be opened for creation.
    assert!(!fixture.path("race").exists());
    fixture.tree.create_behind_the_kernel(1, b"race");
    fs::write(fixture.path("race"), "both").unwrap();
    assert_eq!(fs::read(fixture.path("race")).unwrap(), b"both");
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let options = MountOptions {
        read_only: true,
        ..MountOptions::default()
    };
    let fixture = mounted!(MemoryTree::new(), &options);
    assert_eq!(errno(fs::write(fixture.path("file"), "x")), libc::EROFS);
}

#[test]
fn the_mount_is_named_after_its_source_and_cannot_be_tricked_by_it() {
    let options = MountOptions {
        source: "/srv/a,suid,dev b".into(),
        ..MountOptions::default()
    };
    let fixture = mounted!(MemoryTree::new(), &options);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let root = fixture.root.to_str().unwrap();
    let line = mounts.lines().find(|line| line.contains(root)).unwrap();
    assert!(line.starts_with("tidefs:/srv/a_suid_dev\\040b "), "{line}");
    assert!(line.contains(" fuse.tidefs rw,nosuid,nodev,"), "{line}");
    let again = mount(
        fixture.tree.clone(),
        &fixture.root,
        &MountOptions::default(),
    );
    assert!(again.unwrap_err().to_string().contains("already"));
}

#[test]
fn unmounting_a_busy_mount_is_refused_unless_lazy_and_then_the_files_stay_usable() {
    let fixture = mounted!();
    let mut busy = File::create(fixture.path("file")).unwrap();
    let refusal = fixture.mounted.unmount(false).unwrap_err().to_string();
    assert!(refusal.contains("busy") && refusal.contains(fixture.root.to_str().unwrap()));
    fixture.mounted.unmount(true).unwrap();
    assert_eq!(fs::read_dir(&fixture.root).unwrap().count(), 0);
    busy.write_all(b"still here").unwrap();
    assert_eq!(busy.metadata().unwrap().len(), 10);
    assert!(!fixture.mounted.is_unmounted());
    drop(busy);
    fixture.mounted.wait_unmounted().unwrap();
    assert_eq!(fixture.tree.opens(), 0);
    fixture.mounted.unmount(false).unwrap();
}

#[test]
fn an_umount_from_outside_ends_the_session_and_releases_every_file() {
    for args in [&["umount"][..], &["fusermount3", "-u"], &["umount", "-l"]] {
        let fixture = mounted!();
        let busy = (args == ["umount", "-l"]).then(|| File::create(fixture.path("busy")).unwrap());
        for n in 0..50 {
            fs::write(fixture.path(&format!("f{n}")), "x").unwrap();
        }
        let mut command = Command::new(args[0]);
        let status = command.args(&args[1..]).arg(&fixture.root).status();
        if status.is_err() {
            continue;
        }
        assert!(status.unwrap().success());
        drop(busy);
        fixture.mounted.wait_unmounted().unwrap();
        assert_eq!(fixture.tree.opens(), 0);
        assert!(fixture.mounted.is_unmounted());
    }
}

#[test]
fn another_file_system_at_the_same_place_is_left_alone() {
    let fixture = mounted!();
    assert!(
        Command::new("umount")
            .arg(&fixture.root)
            .status()
            .unwrap()
            .success()
    );
    fixture.mounted.wait_unmounted().unwrap();
    let other = mount(
        Arc::new(MemoryTree::new()),
        &fixture.root,
        &MountOptions::default(),
    )
    .unwrap();
    fixture.mounted.unmount(false).unwrap();
    fs::write(fixture.path("file"), "x").unwrap();
    assert!(!other.is_unmounted());
    other.unmount(false).unwrap();
    other.wait_unmounted().unwrap();
    assert!(!fixture.path("file").exists());
}

#[test]
fn an_ordinary_user_mounts_with_the_help_of_fusermount() {
    const CHILD: &str = "TIDEFS_TEST_MOUNT_AS_USER";
    const USER: u32 = 65534;
    if let Some(root) = std::env::var_os(CHILD) {
        return mount_as_user(Path::new(&root));
    }
    let fixture = mounted!();
    let device = fs::metadata("/dev/fuse").unwrap().mode() & 0o006;
    if device != 0o006 || Command::new("fusermount3").arg("-V").output().is_err() {
        eprintln!("skipped: needs fusermount3 and a /dev/fuse that is open to users");
        return;
    }
    let dir = fixture.root.parent().unwrap();
    fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    let theirs = dir.join("theirs");
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(USER), Some(USER)).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([
        "--exact",
        "an_ordinary_user_mounts_with_the_help_of_fusermount",
    ]);
    let output = child
        .env(CHILD, &theirs)
        .uid(USER)
        .gid(USER)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn mount_as_user(root: &Path) {
    let options = MountOptions {
        source: "/home/a,allow_other".into(),
        ..MountOptions::default()
    };
    let tree = Arc::new(MemoryTree::new());
    tree.own_root(nix::unistd::geteuid().as_raw());
    let mounted = mount(tree.clone(), root, &options).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(root.to_str().unwrap()))
        .unwrap();
    assert!(line.starts_with("tidefs:/home/a_allow_other "), "{line}");
    assert!(
        line.contains(" fuse.tidefs ") && !line.contains(",allow_other"),
        "{line}"
    );
    let mut busy = File::create(root.join("file")).unwrap();
    assert!(
        mounted
            .unmount(false)
            .unwrap_err()
            .to_string()
            .contains("busy")
    );
    mounted.unmount(true).unwrap();
    busy.write_all(b"x").unwrap();
    drop(busy);
    mounted.wait_unmounted().unwrap();
    assert_eq!(tree.opens(), 0);
    let again = mount(tree, root, &options).unwrap();
    assert_eq!(fs::read(root.join("file")).unwrap(), b"x");
    again.unmount(false).unwrap();
    again.wait_unmounted().unwrap();
}

/// fuser 0.18 panics on the smallest time there is, outside our reach: each time one of its threads.
/// Without any left the mount answers an error: never a hang, never an empty directory.
#[test]
fn when_the_last_thread_of_the_mount_has_died_it_answers_an_error() {
    let fixture = mounted!();
    let script = "import os, sys; t = -(1 << 63) * 10**9 + 5; os.utime(sys.argv[1], ns=(t, t))";
    let mut killers = Vec::new();
    // Each its own file: a call that a dying thread took may keep its file locked to the end.
    for n in 0..MountOptions::default().threads {
        let file = n.to_string();
        fs::write(fixture.path(&file), "x").unwrap();
        let mut killer = Command::new("python3");
        killer
            .args(["-c", script, &file])
            .current_dir(&fixture.root)
            .stderr(Stdio::null());
        match killer.spawn() {
            Ok(killer) => killers.push(killer),
            Err(_) => return eprintln!("skipped: no python3"),
        }
    }
    fixture.mounted.wait_unmounted().unwrap_err();
    for mut killer in killers {
        assert!(
            !killer.wait().unwrap().success(),
            "fuser was mended: drop this test"
        );
    }
    assert_eq!(errno(fs::read_dir(&fixture.root)), libc::ENOTCONN);
    let again = mount(
        fixture.tree.clone(),
        &fixture.root,
        &MountOptions::default(),
    );
    assert!(again.unwrap_err().to_string().contains("umount -l"));
    fixture
        .mounted
        .notifier()
        .invalidate_inode(Ino::ROOT)
        .unwrap();
    fixture.mounted.unmount(true).unwrap();
    assert_eq!(fs::read_dir(&fixture.root).unwrap().count(), 0);
}

/// Numbers for the choice of flags and threads: `cargo test --test mount -- --ignored --nocapture speed`.
#[test]
#[ignore = "measures"]
fn speed_of_open_flags_and_threads() {
    for direct_io in [true, false] {
        for threads in [1, 2, 4, 8] {
            let options = MountOptions {
                direct_io,
                threads,
                ..MountOptions::default()
            };
            let fixture = mounted!(MemoryTree::discarding(), &options);
            let mut line = format!("direct {direct_io:5} threads {threads}:");
            for (block, count) in [("1M", "2048"), ("128k", "8192"), ("4k", "100000")] {
                let started = Instant::now();
                let (bs, count) = (format!("bs={block}"), format!("count={count}"));
                let args = ["if=/dev/zero", "of=big", &bs, &count, "status=none"];
                fixture.run("dd", &args).unwrap();
                let len = fs::metadata(fixture.path("big")).unwrap().len();
                let speed = len as f64 / started.elapsed().as_secs_f64() / 1e9;
                let _ = write!(line, " write {block} {speed:.2} GB/s");
                fs::remove_file(fixture.path("big")).unwrap();
            }
            let started = Instant::now();
            for n in 0..10_000 {
                if n % 100 == 0 {
                    fs::create_dir(fixture.path(&format!("d{}", n / 100))).unwrap();
                }
                let path = fixture.path(&format!("d{}/f{n}", n / 100));
                let file = File::create_new(&path).unwrap();
                (&file).write_all(&[7; 8192]).unwrap();
                file.set_permissions(PermissionsExt::from_mode(0o640))
                    .unwrap();
                file.set_times(fs::FileTimes::new().set_modified(UNIX_EPOCH))
                    .unwrap();
            }
            let _ = write!(line, " untar10k {:.2} s", started.elapsed().as_secs_f64());
            let started = Instant::now();
            thread::scope(|scope| {
                for worker in 0..4 {
                    let dir = fixture.path(&format!("p{worker}"));
                    scope.spawn(move || {
                        fs::create_dir(&dir).unwrap();
                        for n in 0..2500 {
                            fs::write(dir.join(format!("f{n}")), [7; 8192]).unwrap();
                        }
                    });
                }
            });
            let _ = write!(line, " 4x2500 {:.2} s", started.elapsed().as_secs_f64());
            let started = Instant::now();
            fixture.run("ls", &["-lR"]).unwrap();
            let _ = write!(line, " ls-lR {:.2} s", started.elapsed().as_secs_f64());
            let file = File::create(fixture.path("big")).unwrap();
            file.set_len(2 << 30).unwrap();
            drop(file);
            wait_until("released", || fixture.tree.opens() == 0);
            let started = Instant::now();
            let mut file = File::open(fixture.path("big")).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            let mut bytes = vec![0; 1 << 20];
            while file.read(&mut bytes).unwrap() > 0 {}
            let speed = (2_u64 << 30) as f64 / started.elapsed().as_secs_f64() / 1e9;
            let _ = write!(line, " read {speed:.2} GB/s");
            let started = Instant::now();
            fixture
                .run("rm", &["-rf", "d0", "p0", "p1", "p2", "p3"])
                .unwrap();
            let _ = write!(line, " rm10k {:.2} s", started.elapsed().as_secs_f64());
            eprintln!("{line}");
        }
    }
}
