//! A backup path with its external volume that is kept, damaged, looked at, and put back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidefs::error::Result;
use tidefs::maintain::{self, CheckOptions, CheckReport};
use tidefs::types::{Epoch, FileKind, Ino};
use tidefs::volume::tree::{OpenMode, Tree, XattrMode};
use tidefs::volume::{Durability, external};

use super::{Place, close, fsync, make, mkdir, noise, put};

/// What a tree shows: each path, and the bytes behind it (a target, for a link).
pub type Content = BTreeMap<String, Vec<u8>>;

const WRITE: OpenMode = OpenMode {
    read: false,
    write: true,
    truncate: false,
    sync: false,
};

/// Everything that `tree` shows, or the first error.
pub fn content_of(tree: &dyn Tree) -> Result<Content> {
    let mut found = Content::new();
    let mut dirs = vec![(Ino::ROOT, String::new())];
    while let Some((dir, path)) = dirs.pop() {
        for entry in tree.readdir(dir, None, 10_000)? {
            let ino = entry.attr.ino;
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            for name in tree.listxattr(ino)? {
                let shown = format!("{path}#{}", String::from_utf8_lossy(&name));
                found.insert(shown, tree.getxattr(ino, &name)?.to_vec());
            }
            let bytes = match entry.attr.kind {
                FileKind::Dir => {
                    dirs.push((ino, path.clone()));
                    Vec::new()
                }
                FileKind::Symlink => tree.readlink(ino)?.to_vec(),
                _ => whole(tree, ino, entry.attr.size)?,
            };
            found.insert(path, bytes);
        }
    }
    Ok(found)
}

pub fn whole(tree: &dyn Tree, ino: Ino, size: u64) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while (out.len() as u64) < size {
        let piece = super::read(tree, ino, out.len() as u64, 1 << 20)?;
        assert!(!piece.is_empty(), "a read within a file is empty");
        out.extend_from_slice(&piece);
    }
    Ok(out)
}

/// A backup path with its external volume, as they were, and what they show at each epoch.
pub struct Sample {
    pub place: Place,
    pub kept: tempfile::TempDir,
    pub moments: BTreeMap<Epoch, Content>,
}

pub fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() {
        "/dev/shm"
    } else {
        "/tmp"
    })
    .unwrap()
}

pub fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}

impl Sample {
    pub fn new(place: Place, moments: BTreeMap<Epoch, Content>) -> Sample {
        let kept = memory_dir();
        copy(&place.path(), &kept.path().join("path"));
        copy(&place.external(), &kept.path().join("external"));
        Sample {
            place,
            kept,
            moments,
        }
    }

    /// Puts everything back as it was.
    pub fn restore(&self) {
        for part in [self.place.path(), self.place.external()] {
            fs::remove_dir_all(&part).unwrap();
            copy(&self.kept.path().join(part.file_name().unwrap()), &part);
        }
    }

    /// All files below the backup path or the external volume, by their names in it.
    pub fn files(&self, part: &str) -> BTreeSet<PathBuf> {
        let top = self.kept.path().join(part);
        let mut found = BTreeSet::new();
        let mut dirs = vec![top.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    found.insert(path.strip_prefix(&top).unwrap().to_owned());
                }
            }
        }
        found
    }

    pub fn newest(&self) -> &Content {
        self.moments.values().next_back().unwrap()
    }

    pub fn check(&self) -> CheckReport {
        let options = CheckOptions {
            read_data: true,
            external: true,
        };
        maintain::check(&self.place.path(), options, &mut |_, _| {}).unwrap_or_else(|error| {
            CheckReport {
                problems: vec![maintain::Problem {
                    object: error.chain(),
                    offset: None,
                    reason: String::new(),
                    advice: String::new(),
                }],
                ..CheckReport::default()
            }
        })
    }

    /// What the backup path shows, opened for writing.
    pub fn live(&self) -> Result<Content> {
        let volume = super::open(&self.place.path())?;
        content_of(&*volume)
    }

    /// What the external volume alone shows, and of which epoch that is.
    pub fn away(&self) -> Result<(Epoch, Content)> {
        let store = Arc::new(vfs::DirVolume::open(self.place.external())?);
        let volume = external::open_external(store)?;
        let tree = volume.tree(None)?;
        Ok((volume.record().epoch, content_of(&*tree)?))
    }
}

/// Many files, directories, links, attributes, a file of many extents; several epochs; all of it archived.
pub fn archived() -> Sample {
    let place = Place::new_in(memory_dir());
    let volume = place.open();
    volume.set_store(Some(place.external())).unwrap();
    let mut moments = BTreeMap::new();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    let below = mkdir(&*volume, account, "below");
    put(&*volume, account, "large", &noise(1, 300_000));
    put(&*volume, below, "gone", b"was here");
    volume.set_mark(account);
    let first = volume.close_epoch(Some("first".into())).unwrap();
    moments.insert(first, content_of(&*volume).unwrap());
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    volume.unlink(below, b"gone").unwrap();
    for n in 0..20_u64 {
        put(&*volume, below, &format!("small-{n}"), &noise(100 + n, 700));
    }
    let many = make(&*volume, account, "many", FileKind::File).ino;
    volume.open(many, WRITE).unwrap();
    for n in 0..40_u64 {
        super::write(&*volume, many, n * 200_000, &noise(200 + n, 5000));
        fsync(&*volume, many);
    }
    volume.release(many, WRITE).unwrap();
    let second = volume.close_epoch(None).unwrap();
    moments.insert(second, content_of(&*volume).unwrap());
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    put(&*volume, account, "last", &noise(3, 60_000));
    let third = volume.close_epoch(None).unwrap();
    moments.insert(third, content_of(&*volume).unwrap());
    volume.wait(Durability::Archived, &mut |_| true).unwrap();
    close(volume);
    Sample::new(place, moments)
}

pub trait Mark {
    fn set_mark(&self, parent: Ino);
}

impl<T: Tree> Mark for T {
    /// A hard link, a symbolic link and an attribute.
    fn set_mark(&self, parent: Ino) {
        let ino = put(self, parent, "twice", b"one file, two names");
        self.link(ino, parent, b"again").unwrap();
        self.setxattr(ino, b"user.mark", b"marked", XattrMode::Any)
            .unwrap();
        let node = tidefs::volume::tree::NewNode {
            kind: FileKind::Symlink,
            mode: 0o777,
            rdev: 0,
            target: b"../elsewhere",
        };
        self.create(parent, b"link", node, super::ROOT_USER)
            .unwrap();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    Flip(u64),
    Half,
    Gone,
}

pub fn damages(len: u64) -> Vec<Damage> {
    let mut places = BTreeSet::from([0, 1, len / 3, len / 2, len * 2 / 3, len.saturating_sub(2)]);
    places.insert(len.saturating_sub(1));
    places
        .into_iter()
        .filter(|at| *at < len)
        .map(Damage::Flip)
        .chain([Damage::Half, Damage::Gone])
        .collect()
}

pub fn damage(path: &Path, damage: Damage) {
    match damage {
        Damage::Flip(at) => {
            let mut bytes = fs::read(path).unwrap();
            bytes[usize::try_from(at).unwrap()] ^= 0x04;
            fs::write(path, bytes).unwrap();
        }
        Damage::Half => {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }
        Damage::Gone => fs::remove_file(path).unwrap(),
    }
}

/// A backup path as a killed process leaves it: one closed epoch, and commits in the journal since. With
/// each state that it went through.
pub fn crashed() -> (Sample, Vec<Content>) {
    let place = Place::new_in(memory_dir());
    let volume = place.open();
    let account = mkdir(&*volume, Ino::ROOT, "alice");
    put(&*volume, account, "closed", &noise(1, 50_000));
    let epoch = volume.close_epoch(None).unwrap();
    let mut states = vec![content_of(&*volume).unwrap()];
    for n in 0..4_u64 {
        put(&*volume, account, &format!("f{n}"), &noise(10 + n, 20_000));
        volume.commit().unwrap();
        states.push(content_of(&*volume).unwrap());
    }
    let copied = memory_dir();
    copy(&place.path(), &copied.path().join("path"));
    drop(volume);
    fs::remove_dir_all(place.path()).unwrap();
    copy(&copied.path().join("path"), &place.path());
    // It was being filled, and is no part of the truth.
    fs::remove_dir_all(place.path().join("index")).unwrap();
    fs::create_dir(place.path().join("index")).unwrap();
    let moments = BTreeMap::from([(epoch, states.last().unwrap().clone())]);
    (Sample::new(place, moments), states)
}
