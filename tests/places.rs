//! Where an external volume stands: places that are refused before anything is written, and mounts that behave as a
//! server does (its file handles go stale, its names ignore case).
//!
//! Those that mount need /dev/fuse and root; without them each says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use tempfile::TempDir;
use tidefs::error::Result;
use tidefs::fuse::{Lifetimes, MountOptions, Mounted, mount};
use tidefs::types::Ino;
use tidefs::volume::tree::{
    Answer, Attr, Caller, DirEntry, NewNode, OpenMode, RenameMode, SeekFor, SetAttr, Space, Tree,
};
use vfs::{
    Body, DirVolume, ErrorCase, Fault, FaultControls, Faulty, ObjectKey, Op, Precondition, Retry,
    RetryPolicy, Sentinel, StopSignal, Volume, VolumeExt,
};

#[path = "common/memory_tree.rs"]
#[allow(dead_code, reason = "each story uses a part")]
mod memory_tree;
use memory_tree::MemoryTree;

/// The number of restarts is in the upper half of an inode's number.
const RESTART: u64 = 1 << 32;

/// A server: its handles end with a restart, and its names may ignore case.
struct Server {
    tree: MemoryTree,
    restarts: AtomicU64,
    ignores_case: AtomicBool,
}

impl Server {
    fn new() -> Arc<Server> {
        Arc::new(Server {
            tree: MemoryTree::new(),
            restarts: AtomicU64::new(0),
            ignores_case: AtomicBool::new(false),
        })
    }

    fn restart(&self) {
        self.restarts.fetch_add(1, Ordering::SeqCst);
    }

    fn known(&self, ino: Ino) -> Result<Ino> {
        if ino == Ino::ROOT || ino.0 / RESTART == self.restarts.load(Ordering::SeqCst) {
            Ok(Ino(ino.0 % RESTART))
        } else {
            Err(Errno::ESTALE.into())
        }
    }

    fn shown(&self, attr: Attr) -> Attr {
        let restarts = if attr.ino == Ino::ROOT {
            0
        } else {
            self.restarts.load(Ordering::SeqCst)
        };
        Attr {
            ino: Ino(attr.ino.0 + restarts * RESTART),
            ..attr
        }
    }

    fn name(&self, name: &[u8]) -> Vec<u8> {
        if self.ignores_case.load(Ordering::SeqCst) {
            name.to_ascii_lowercase()
        } else {
            name.to_vec()
        }
    }

    /// Mounted so that the kernel believes nothing for long; `None` where that is not possible.
    fn mount(self: &Arc<Server>) -> Option<(TempDir, Mounted)> {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if opened.is_err() || !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let options = MountOptions {
            lifetimes: Lifetimes {
                known: Duration::ZERO,
                missing: Duration::ZERO,
            },
            ..MountOptions::default()
        };
        let mounted = mount(self.clone(), dir.path(), &options).unwrap();
        Some((dir, mounted))
    }
}

impl Tree for Server {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let found = self.tree.lookup(self.known(parent)?, &self.name(name))?;
        Ok(self.shown(found))
    }
    fn getattr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.shown(self.tree.getattr(self.known(ino)?)?))
    }
    fn readlink(&self, ino: Ino) -> Result<Bytes> {
        self.tree.readlink(self.known(ino)?)
    }
    fn readdir(&self, ino: Ino, after: Option<&[u8]>, max: usize) -> Result<Vec<DirEntry>> {
        let mut found = self.tree.readdir(self.known(ino)?, after, max)?;
        for entry in &mut found {
            entry.attr = self.shown(entry.attr);
        }
        Ok(found)
    }
    fn parent(&self, ino: Ino) -> Result<Ino> {
        let parent = self.tree.parent(self.known(ino)?)?;
        Ok(self.shown(self.tree.getattr(parent)?).ino)
    }
    fn getxattr(&self, _: Ino, _: &[u8]) -> Result<Bytes> {
        Err(Errno::ENODATA.into())
    }
    fn listxattr(&self, _: Ino) -> Result<Vec<Bytes>> {
        Ok(Vec::new())
    }
    fn open(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        self.tree.open(self.known(ino)?, mode)
    }
    fn read(&self, ino: Ino, offset: u64, len: u32, answer: Answer<Bytes>) {
        match self.known(ino) {
            Ok(ino) => self.tree.read(ino, offset, len, answer),
            Err(error) => answer(Err(error)),
        }
    }
    fn seek(&self, ino: Ino, offset: u64, seek: SeekFor) -> Result<u64> {
        self.tree.seek(self.known(ino)?, offset, seek)
    }
    fn release(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        self.tree.release(Ino(ino.0 % RESTART), mode)
    }
    fn space(&self) -> Result<Space> {
        self.tree.space()
    }
    fn setattr(&self, ino: Ino, change: SetAttr) -> Result<Attr> {
        Ok(self.shown(self.tree.setattr(self.known(ino)?, change)?))
    }
    fn create(&self, parent: Ino, name: &[u8], node: NewNode<'_>, caller: Caller) -> Result<Attr> {
        let parent = self.known(parent)?;
        let made = self.tree.create(parent, &self.name(name), node, caller)?;
        Ok(self.shown(made))
    }
    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.tree.unlink(self.known(parent)?, &self.name(name))
    }
    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.tree.rmdir(self.known(parent)?, &self.name(name))
    }
    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        let from = (self.known(from.0)?, &*self.name(from.1));
        let to = (self.known(to.0)?, &*self.name(to.1));
        self.tree.rename(from, to, mode)
    }
    fn write(&self, ino: Ino, offset: u64, bytes: &[u8], sync: bool, answer: Answer<()>) {
        match self.known(ino) {
            Ok(ino) => self.tree.write(ino, offset, bytes, sync, answer),
            Err(error) => answer(Err(error)),
        }
    }
    fn flush(&self, ino: Ino) -> Result<()> {
        self.tree.flush(self.known(ino)?)
    }
    fn fsync(&self, ino: Ino, answer: Answer<()>) {
        match self.known(ino) {
            Ok(ino) => self.tree.fsync(ino, answer),
            Err(error) => answer(Err(error)),
        }
    }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn put(volume: &dyn Volume, name: &str, bytes: &[u8]) -> vfs::Result<()> {
    volume
        .put(&key(name), Body::Bytes(bytes), Precondition::None)
        .map(drop)
}

/// Asks again without a pause.
fn patient(inner: Arc<dyn Volume>) -> Retry {
    let policy = RetryPolicy {
        delay_first: Duration::ZERO,
        ..RetryPolicy::default()
    };
    Retry::new(inner, policy, StopSignal::new())
}

#[test]
fn a_restarted_server_is_met_anew_and_the_caller_hears_of_it_once() {
    let server = Server::new();
    let Some((dir, _mounted)) = server.mount() else {
        return;
    };
    let root = dir.path().join("backup");
    fs::create_dir(&root).unwrap();
    let volume = Arc::new(DirVolume::open(&root).unwrap());
    put(&*volume, "server/volume.json", b"ours").unwrap();
    volume
        .bind(Sentinel::exact(key("server/volume.json"), "ours"))
        .unwrap();
    put(&*volume, "items/00/before", b"1").unwrap();
    volume.verify_identity().unwrap();

    server.restart();
    let error = put(&*volume, "items/00/once", b"2").unwrap_err();
    assert_eq!(
        (error.case(), error.is_transient()),
        (ErrorCase::Stale, true),
        "{error:?}"
    );
    put(&*volume, "items/00/again", b"3").unwrap();

    server.restart();
    let patient = patient(volume.clone());
    assert_eq!(
        patient.get_whole(&key("items/00/before"), 9).unwrap(),
        b"1".as_slice(),
        "one more attempt is all it takes"
    );
    assert!(
        volume.verify_identity().unwrap_err().is_remounted(),
        "what was sent in between is looked at again"
    );
    volume.verify_identity().unwrap();

    server.restart();
    fs::remove_file(root.join("server/volume.json")).unwrap();
    let error = put(&patient, "items/00/late", b"4").unwrap_err();
    assert!(
        error.is_wrong_volume(),
        "the handle came back and the volume did not: {error:?}"
    );
    assert!(!root.join("items/00/late").exists());
}

#[test]
fn one_stale_answer_costs_one_more_attempt_whatever_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let controls = FaultControls::new();
    let volume = Arc::new(DirVolume::open(dir.path()).unwrap());
    let volume = patient(Arc::new(Faulty::new(volume, controls.clone())));
    for op in [Op::Put, Op::Get, Op::Head, Op::List, Op::Delete] {
        controls.inject(op, 1, Fault::Stale);
    }
    put(&volume, "a/b", b"x").unwrap();
    assert_eq!(volume.get(&key("a/b"), 0..1).unwrap(), b"x".as_slice());
    assert!(volume.head(&key("a/b")).unwrap().is_some());
    let page = volume.list("", None, std::num::NonZeroUsize::MIN).unwrap();
    assert_eq!(page.objects.len(), 1);
    volume.delete(&[key("a/b")]).unwrap();
    assert_eq!(controls.calls(Op::Put), 2);
}

#[test]
fn a_place_that_ignores_case_is_told_and_used() {
    let server = Server::new();
    let Some((dir, _mounted)) = server.mount() else {
        return;
    };
    let told = |volume: &DirVolume| {
        let warnings = volume.probe().unwrap().warnings;
        warnings.iter().any(|text| text.contains("lower case"))
    };
    let volume = DirVolume::open(dir.path()).unwrap();
    assert!(!told(&volume));
    server.ignores_case.store(true, Ordering::SeqCst);
    assert!(told(&volume));
    put(&volume, "items/ab/cd", b"x").unwrap();
    assert!(dir.path().join("ITEMS/AB/CD").exists());
}

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs the program with a backup path of this directory.
fn tidefs(dir: &Path, args: &[&str]) -> Ended {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_tidefs"))
        .args(args)
        .env("TIDEFS_PATH", dir.join("backup"))
        .env_remove("TIDEFS_LOG")
        .output()
        .unwrap();
    Ended {
        code: status.code(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

#[test]
fn a_share_that_is_not_mounted_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    let (nas, fstab) = (real.join("nas"), real.join("fstab"));
    fs::create_dir(&nas).unwrap();
    let line = format!("nas:/export {} nfs rw,hard,_netdev 0 0\n", nas.display());
    fs::write(&fstab, line).unwrap();
    let (nas_text, fstab_text) = (nas.to_str().unwrap(), fstab.to_str().unwrap());
    assert_eq!(tidefs(&real, &["init"]).code, Some(0));
    let expected = format!(
        "{nas_text} is in {fstab_text} but not mounted: mount it first (mount {nas_text}); nothing was written"
    );
    let spec = format!("dir:{nas_text}");
    for args in [
        &["store", "set", "dir", "--fstab", fstab_text, nas_text][..],
        &[
            "store", "set", "dir", "--force", "--fstab", fstab_text, nas_text,
        ],
        &["store", "test", "--fstab", fstab_text, &spec],
    ] {
        let ended = tidefs(&real, args);
        assert_eq!(ended.code, Some(1), "{}", ended.err);
        assert!(ended.err.contains(&expected), "{}", ended.err);
    }
    let below = format!("{nas_text}/not/made");
    let ended = tidefs(
        &real,
        &["store", "set", "dir", "--fstab", fstab_text, &below],
    );
    assert!(ended.err.contains(&expected), "{}", ended.err);
    assert_eq!(fs::read_dir(&nas).unwrap().count(), 0);

    fs::write(&fstab, "# nothing\n").unwrap();
    let ended = tidefs(
        &real,
        &["store", "set", "dir", "--fstab", fstab_text, nas_text],
    );
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(
        ended.err.contains("shares its file system"),
        "{}",
        ended.err
    );
    let ended = tidefs(&real, &["--json", "store", "test", "--fstab", fstab_text]);
    let document: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(document["place"]["fstab_expects_mount"], false);
    assert!(document["place"]["options"].as_array().is_some());
}

#[test]
fn our_own_mount_is_no_place_for_a_volume() {
    let server = Server::new();
    let Some((dir, _mounted)) = server.mount() else {
        return;
    };
    let own = tempfile::tempdir().unwrap();
    assert_eq!(tidefs(own.path(), &["init"]).code, Some(0));
    let ended = tidefs(
        own.path(),
        &[
            "store",
            "set",
            "dir",
            "--force",
            dir.path().to_str().unwrap(),
        ],
    );
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.contains("is a mount of tidefs itself"),
        "{}",
        ended.err
    );
}
