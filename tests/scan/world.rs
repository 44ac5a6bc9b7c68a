//! A source tree, a volume, and scans of the one into the other.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tidefs::clock::SystemClock;
use tidefs::error::Result;
use tidefs::scan::report::Report;
use tidefs::scan::run::{Ask, Scope, Watcher, scan};
use tidefs::scan::source::{self, AccountRule, Source};
use tidefs::types::{FileKind, Ino};
use tidefs::volume::Volume;
use tidefs::volume::tree::{Attr, Tree};

use crate::common::{Place, content};

pub struct World {
    pub place: Place,
    pub volume: Arc<Volume>,
    pub source: PathBuf,
}

impl World {
    pub fn new() -> World {
        World::with(AccountRule::Depth(1), |_| {})
    }

    pub fn with(rule: AccountRule, change: impl FnOnce(&mut Source)) -> World {
        let place = Place::new();
        let source = place.dir.path().join("source");
        fs::create_dir(&source).unwrap();
        let volume = place.open();
        let mut added = Source::new(&source, rule, &SystemClock).unwrap();
        change(&mut added);
        source::add(&volume, &added).unwrap();
        World {
            place,
            volume,
            source,
        }
    }

    /// Puts a file into the source, with the directories above it.
    pub fn put(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.source.join(path)
    }

    pub fn registered(&self) -> Source {
        source::list(&self.volume).unwrap().remove(0)
    }

    pub fn scan(&self) -> Report {
        self.ask(&Ask::default()).unwrap()
    }

    pub fn deep(&self) -> Report {
        let ask = Ask {
            deep: true,
            ..Ask::default()
        };
        self.ask(&ask).unwrap()
    }

    pub fn accepting(&self) -> Report {
        let ask = Ask {
            accept_deletions: true,
            ..Ask::default()
        };
        self.ask(&ask).unwrap()
    }

    pub fn scoped(&self, scope: Scope) -> Report {
        let ask = Ask {
            scope,
            ..Ask::default()
        };
        self.ask(&ask).unwrap()
    }

    pub fn ask(&self, ask: &Ask) -> Result<Report> {
        self.ask_until(ask, &AtomicBool::new(false))
    }

    pub fn ask_until(&self, ask: &Ask, stop: &AtomicBool) -> Result<Report> {
        let watcher = Watcher {
            stop,
            progress: &|_| {},
        };
        scan(&self.volume, &SystemClock, &self.registered(), ask, watcher)
    }

    /// The same world after the volume was closed and opened.
    pub fn reopened(self) -> World {
        let World {
            place,
            volume,
            source,
        } = self;
        crate::common::close(volume);
        let volume = place.open();
        World {
            place,
            volume,
            source,
        }
    }

    pub fn find(&self, path: &str) -> Result<Attr> {
        crate::common::find(&*self.volume, path)
    }

    pub fn content(&self, path: &str) -> Vec<u8> {
        content(&*self.volume, path).unwrap()
    }

    /// Asserts that the volume's tree is the source's, in everything that is kept.
    #[track_caller]
    pub fn assert_same(&self) {
        let source = of_source(&self.source);
        let volume = of_volume(&*self.volume);
        for (path, wanted) in &source {
            assert_eq!(
                volume.get(path),
                Some(wanted),
                "{:?}",
                String::from_utf8_lossy(path)
            );
        }
        let more: Vec<_> = volume
            .keys()
            .filter(|path| !source.contains_key(*path))
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        assert!(more.is_empty(), "only in the volume: {more:?}");
    }
}

/// What of an item has to be the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    kind: FileKind,
    mode: u32,
    owner: (u32, u32),
    /// Of directories, counts of names are the file system's own business.
    nlink: Option<u64>,
    mtime: (i64, i64),
    size: u64,
    /// A number of its own for each inode with several names: the first path it has.
    content: Vec<u8>,
}

fn of_source(root: &Path) -> BTreeMap<Vec<u8>, Kept> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let found = fs::symlink_metadata(&path).unwrap();
            let kind = kind_of(&found);
            if kind == FileKind::Dir {
                waiting.push(path.clone());
            }
            let content = match kind {
                FileKind::File => fs::read(&path).unwrap(),
                FileKind::Symlink => fs::read_link(&path)
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .to_vec(),
                _ => Vec::new(),
            };
            let relative = path.strip_prefix(root).unwrap();
            all.insert(
                relative.as_os_str().as_bytes().to_vec(),
                Kept {
                    kind,
                    mode: found.mode() & 0o7777,
                    owner: (found.uid(), found.gid()),
                    nlink: (kind != FileKind::Dir).then(|| found.nlink()),
                    mtime: (found.mtime(), found.mtime_nsec()),
                    size: if kind == FileKind::File {
                        found.len()
                    } else {
                        0
                    },
                    content,
                },
            );
        }
    }
    all
}

fn kind_of(found: &fs::Metadata) -> FileKind {
    let kind = found.file_type();
    if kind.is_dir() {
        FileKind::Dir
    } else if kind.is_symlink() {
        FileKind::Symlink
    } else if kind.is_fifo() {
        FileKind::Fifo
    } else if kind.is_socket() {
        FileKind::Socket
    } else {
        FileKind::File
    }
}

fn of_volume(tree: &dyn Tree) -> BTreeMap<Vec<u8>, Kept> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![(Ino::ROOT, Vec::new())];
    while let Some((dir, above)) = waiting.pop() {
        for entry in tree.readdir(dir, None, usize::MAX).unwrap() {
            let attr = entry.attr;
            let mut path: Vec<u8> = above.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&entry.name);
            if attr.kind == FileKind::Dir {
                waiting.push((attr.ino, path.clone()));
            }
            let content = match attr.kind {
                FileKind::File => crate::common::read_all(tree, attr.ino, attr.size),
                FileKind::Symlink => tree.readlink(attr.ino).unwrap().to_vec(),
                _ => Vec::new(),
            };
            all.insert(
                path,
                Kept {
                    kind: attr.kind,
                    mode: attr.mode.into(),
                    owner: (attr.uid, attr.gid),
                    nlink: (attr.kind != FileKind::Dir).then(|| attr.nlink.into()),
                    mtime: (attr.mtime.secs, attr.mtime.nanos.into()),
                    size: if attr.kind == FileKind::File {
                        attr.size
                    } else {
                        0
                    },
                    content,
                },
            );
        }
    }
    all
}

/// Lets the clock of the source's file system go on, so that what was done before can be told from what comes.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(130));
}
