//! What the story tests share: a backup path in a temporary directory and short words for a tree.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "each story uses a part; a test fails by panicking"
)]

pub mod sample;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use tidefs::clock::SystemClock;
use tidefs::error::Result;
use tidefs::types::{FileKind, Ino};
use tidefs::volume::settings::Settings;
use tidefs::volume::tree::{Attr, Caller, NewNode, OpenMode, Tree};
use tidefs::volume::{Volume, init};

pub const ROOT_USER: Caller = Caller { uid: 0, gid: 0 };

/// A backup path and, beside it, a place for an external volume.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place::with(Settings {
            reserve_bytes: 0,
            ..Settings::default()
        })
    }

    /// In a directory of the caller's choice.
    pub fn new_in(dir: tempfile::TempDir) -> Place {
        let settings = Settings {
            reserve_bytes: 0,
            ..Settings::default()
        };
        Place::with_in(settings, dir)
    }

    pub fn with(settings: Settings) -> Place {
        Place::with_in(settings, tempfile::tempdir().unwrap())
    }

    fn with_in(settings: Settings, dir: tempfile::TempDir) -> Place {
        init::init(&dir.path().join("path"), &settings, &SystemClock).unwrap();
        std::fs::create_dir(dir.path().join("external")).unwrap();
        Place { dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("path")
    }

    pub fn external(&self) -> PathBuf {
        self.dir.path().join("external")
    }

    pub fn open(&self) -> Arc<Volume> {
        open(&self.path()).unwrap()
    }
}

pub fn open(path: &Path) -> Result<Arc<Volume>> {
    Volume::open(path, Arc::new(SystemClock))
}

pub fn close(volume: Arc<Volume>) {
    volume.close(Duration::from_secs(60), &mut |_| {}).unwrap();
}

pub fn mkdir(tree: &dyn Tree, parent: Ino, name: &str) -> Ino {
    make(tree, parent, name, FileKind::Dir).ino
}

pub fn make(tree: &dyn Tree, parent: Ino, name: &str, kind: FileKind) -> Attr {
    let node = NewNode {
        kind,
        mode: 0o755,
        rdev: 0,
        target: b"",
    };
    tree.create(parent, name.as_bytes(), node, ROOT_USER)
        .unwrap()
}

/// Makes a file with this content and closes it.
pub fn put(tree: &dyn Tree, parent: Ino, name: &str, content: &[u8]) -> Ino {
    let ino = make(tree, parent, name, FileKind::File).ino;
    let mode = OpenMode {
        write: true,
        ..OpenMode::default()
    };
    tree.open(ino, mode).unwrap();
    write(tree, ino, 0, content);
    tree.flush(ino).unwrap();
    tree.release(ino, mode).unwrap();
    ino
}

pub fn write(tree: &dyn Tree, ino: Ino, offset: u64, content: &[u8]) {
    for (n, piece) in content.chunks(1 << 20).enumerate() {
        wait(|answer| tree.write(ino, offset + (n << 20) as u64, piece, false, answer)).unwrap();
    }
}

pub fn fsync(tree: &dyn Tree, ino: Ino) {
    wait(|answer| tree.fsync(ino, answer)).unwrap();
}

pub fn wait<T: Send + 'static>(ask: impl FnOnce(Box<dyn FnOnce(Result<T>) + Send>)) -> Result<T> {
    let (sender, answer) = mpsc::channel();
    ask(Box::new(move |outcome| sender.send(outcome).unwrap()));
    answer.recv().unwrap()
}

pub fn read(tree: &dyn Tree, ino: Ino, offset: u64, len: u32) -> Result<Bytes> {
    wait(|answer| tree.read(ino, offset, len, answer))
}

/// The whole content of a file found by its path.
pub fn content(tree: &dyn Tree, path: &str) -> Result<Vec<u8>> {
    let attr = find(tree, path)?;
    let mut out = Vec::new();
    while (out.len() as u64) < attr.size {
        let piece = read(tree, attr.ino, out.len() as u64, 1 << 20)?;
        assert!(!piece.is_empty(), "a read within {path} is empty");
        out.extend_from_slice(&piece);
    }
    Ok(out)
}

/// `size` bytes of a file.
pub fn read_all(tree: &dyn Tree, ino: Ino, size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while (out.len() as u64) < size {
        let piece = read(tree, ino, out.len() as u64, 1 << 20).unwrap();
        assert!(!piece.is_empty(), "a read within inode {ino} is empty");
        out.extend_from_slice(&piece);
    }
    out
}

pub fn find(tree: &dyn Tree, path: &str) -> Result<Attr> {
    let mut attr = tree.getattr(Ino::ROOT)?;
    for name in path.split('/') {
        attr = tree.lookup(attr.ino, name.as_bytes())?;
    }
    Ok(attr)
}

/// Bytes that do not compress and do not repeat, different for each seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}
