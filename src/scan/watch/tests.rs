//! Both event sources on real directories, against a mirror that looks only where it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use tempfile::TempDir;

use super::dirty::Change;
use super::fanotify::FanotifyFeed;
use super::feed::{Feed, Lost};
use super::inotify::InotifyFeed;
use super::{Accounts, Area, Dirty, Kind, Lens, Place, Plan, Watcher};
use crate::clock::SystemClock;

const PATIENCE: Duration = Duration::from_secs(60);
const BOTH: [Kind; 2] = [Kind::Fanotify, Kind::Inotify];

/// A tree in memory, which other programs leave alone: a watch of a file system is told of all that happens there.
fn tree() -> TempDir {
    let quiet = Path::new("/dev/shm");
    let dir = if quiet.is_dir() {
        tempfile::tempdir_in(quiet)
    } else {
        tempfile::tempdir()
    };
    dir.unwrap()
}

fn place(root: &Path) -> Place {
    Place {
        root: root.to_owned(),
        one_file_system: false,
        skip: None,
    }
}

fn feed(kind: Kind, root: &Path) -> Option<Box<dyn Feed>> {
    if kind == Kind::Fanotify && !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    Some(match kind {
        Kind::Fanotify => Box::new(FanotifyFeed::watch(root, root).unwrap()),
        Kind::Inotify => Box::new(InotifyFeed::watch(&place(root), BTreeSet::new()).unwrap()),
    })
}

/// The directories right below the root.
fn accounts(root: &Path) -> Accounts {
    let entries = fs::read_dir(root).unwrap().flatten();
    entries
        .map(|entry| PathBuf::from(entry.file_name()))
        .collect()
}

fn changes(feed: &mut dyn Feed) -> Vec<Change> {
    let mut found = Vec::new();
    while feed
        .drain(&mut |change| found.push(change))
        .unwrap()
        .has_more
    {}
    found
}

/// What a scan would know: for each directory, its own mode and the names in it.
#[derive(Default, PartialEq, Eq, Debug)]
struct Mirror {
    dirs: BTreeMap<PathBuf, (u64, u32, BTreeMap<OsString, Entry>)>,
}

#[derive(PartialEq, Eq, Debug)]
enum Entry {
    Dir,
    /// Inode, size, mode, time of the last change.
    File(u64, u64, u32, (i64, i64)),
}

impl Mirror {
    fn of(root: &Path) -> Mirror {
        let mut mirror = Mirror::default();
        mirror.look(root, Path::new(""), true);
        mirror
    }

    /// Looks at one directory as a scan does: those in it that are new are looked at whole.
    fn look(&mut self, root: &Path, dir: &Path, is_whole: bool) {
        let Ok(metadata) = fs::symlink_metadata(root.join(dir)) else {
            return self.forget(dir);
        };
        if !metadata.is_dir() {
            return self.forget(dir);
        }
        let mut entries = BTreeMap::new();
        let mut below = Vec::new();
        for entry in fs::read_dir(root.join(dir)).unwrap().flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let path = dir.join(entry.file_name());
            // As a scan: by its name, whatever its inode is.
            let is_known = self.dirs.contains_key(&path);
            let entry_now = if metadata.is_dir() {
                if is_whole || !is_known {
                    below.push(path);
                }
                Entry::Dir
            } else {
                let changed = (metadata.ctime(), metadata.ctime_nsec());
                Entry::File(metadata.ino(), metadata.size(), metadata.mode(), changed)
            };
            entries.insert(entry.file_name(), entry_now);
        }
        let gone = self.dirs.get(dir).map_or_else(Vec::new, |(_, _, old)| {
            let gone = old
                .keys()
                .filter(|name| entries.get(*name) != Some(&Entry::Dir));
            gone.map(|name| dir.join(name)).collect()
        });
        for path in gone {
            self.forget(&path);
        }
        let own = (metadata.ino(), metadata.mode(), entries);
        self.dirs.insert(dir.to_owned(), own);
        for path in below {
            self.forget(&path);
            self.look(root, &path, true);
        }
    }

    fn forget(&mut self, dir: &Path) {
        self.dirs.retain(|path, _| !path.starts_with(dir));
    }

    fn follow(&mut self, root: &Path, dirty: &Dirty) {
        if dirty.is_everything() {
            *self = Mirror::of(root);
            return;
        }
        if dirty.has_new_accounts() {
            self.look(root, Path::new(""), false);
        }
        for (account, area) in dirty.accounts() {
            match area {
                Area::Whole => self.look(root, account, true),
                Area::Dirs(dirs) => {
                    for dir in dirs {
                        // A parent that is gone is dirty itself.
                        self.look(root, &account.join(dir), false);
                    }
                }
            }
        }
    }
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 8).unwrap() % limit
    }

    fn name(&mut self) -> String {
        ["a", "b", "c", "d e", "f\n", "\u{e4}"][self.below(6)].to_owned()
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let depth = 1 + self.below(4);
        (0..depth).fold(root.to_owned(), |path, _| path.join(self.name()))
    }
}

/// One change; many fail, because their names are taken or missing.
fn act(dice: &mut Dice, root: &Path, outside: &Path) {
    let path = dice.path(root);
    let other = dice.path(root);
    let done = match dice.below(9) {
        0 | 1 => fs::write(&path, dice.name()),
        2 => fs::create_dir(&path),
        3 => fs::create_dir_all(&path).and_then(|()| fs::write(path.join("new"), b"new")),
        4 => fs::remove_file(&path),
        5 => fs::rename(&path, &other),
        6 => fs::rename(&path, dice.path(outside)),
        7 => fs::rename(dice.path(outside), &path),
        _ => {
            let mode = if dice.below(2) == 0 { 0o700 } else { 0o755 };
            fs::set_permissions(&path, PermissionsExt::from_mode(mode))
        }
    };
    if done.is_err() && dice.below(8) == 0 {
        let _ = fs::remove_dir_all(&path);
    }
}

#[test]
fn a_mirror_that_looks_only_where_something_changed_is_the_tree() {
    for kind in BOTH {
        let dir = tree();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        let Some(mut feed) = feed(kind, &root) else {
            continue;
        };
        let mut mirror = Mirror::of(&root);
        let mut lens = Lens::default();
        let mut dice = Dice(0x1234_5678_9abc_def1);
        let mut rounds_all = 0;
        for round in 0..300 {
            for _ in 0..=dice.below(40) {
                act(&mut dice, &root, &outside);
            }
            let mut dirty = Dirty::default();
            for change in changes(feed.as_mut()) {
                dirty.add(change, &lens);
            }
            rounds_all += u32::from(dirty.is_everything());
            mirror.follow(&root, &dirty);
            // What is looked at after the events were taken may be newer; nothing changes here meanwhile.
            assert_eq!(
                mirror,
                Mirror::of(&root),
                "{kind:?}, round {round}: {dirty:?}"
            );
            lens.accounts = accounts(&root);
        }
        assert!(
            rounds_all < 300,
            "{kind:?}: only ever told that all is dirty"
        );
    }
}

#[test]
fn a_file_that_is_written_through_a_mapping_or_held_open_is_told() {
    for kind in BOTH {
        let dir = tree();
        fs::create_dir(dir.path().join("a")).unwrap();
        let Some(mut feed) = feed(kind, dir.path()) else {
            continue;
        };
        let mut file = File::create(dir.path().join("a/log")).unwrap();
        changes(feed.as_mut());
        file.write_all(b"line").unwrap();
        assert!(changes(feed.as_mut()).contains(&Change::Dir("a".into())));
        fs::hard_link(dir.path().join("a/log"), dir.path().join("a/link")).unwrap();
        assert!(changes(feed.as_mut()).contains(&Change::Dir("a".into())));
    }
}

#[test]
fn a_directory_whose_path_is_too_long_is_told_by_one_above_it() {
    let dir = tree();
    let name = "n".repeat(200);
    let Some(mut fanotify) = feed(Kind::Fanotify, dir.path()) else {
        return;
    };
    let mut inotify = feed(Kind::Inotify, dir.path()).unwrap();
    let mut here = nix::dir::Dir::open(
        dir.path(),
        nix::fcntl::OFlag::O_RDONLY,
        nix::sys::stat::Mode::empty(),
    )
    .unwrap();
    for _ in 0..30 {
        use nix::fcntl::OFlag;
        use nix::sys::stat::{Mode, mkdirat};
        mkdirat(&here, name.as_str(), Mode::S_IRWXU).unwrap();
        here = nix::dir::Dir::openat(&here, name.as_str(), OFlag::O_RDONLY, Mode::empty()).unwrap();
    }
    changes(fanotify.as_mut());
    assert!(
        changes(inotify.as_mut())
            .iter()
            .any(|change| matches!(change, Change::Dir(_)))
    );
    assert_eq!(inotify.watches(), Some(31));
    let flags = nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_WRONLY;
    nix::fcntl::openat(&here, "file", flags, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let deep = |change: &Change| match change {
        Change::Dir(path) => path.components().count() == 30,
        _ => false,
    };
    assert!(changes(inotify.as_mut()).iter().any(deep));
    let above = |change: &Change| match change {
        Change::Subtree(path) => path.components().count() > 10,
        _ => false,
    };
    let told = changes(fanotify.as_mut());
    assert!(told.iter().any(above), "{told:?}");
}

#[test]
fn more_events_than_the_queue_holds_make_everything_dirty() {
    let count: u32 = 20_000;
    let dir = tree();
    for n in 0..count {
        File::create(dir.path().join(n.to_string())).unwrap();
    }
    let Some(mut fanotify) = feed(Kind::Fanotify, dir.path()) else {
        return;
    };
    let mut inotify = feed(Kind::Inotify, dir.path()).unwrap();
    for n in 0..count {
        fs::remove_file(dir.path().join(n.to_string())).unwrap();
    }
    let mut found = Vec::new();
    let mut overflows = 0;
    loop {
        let drained = fanotify.drain(&mut |change| found.push(change)).unwrap();
        overflows += drained.overflows;
        if !drained.has_more {
            break;
        }
    }
    assert!(overflows > 0 && found.contains(&Change::Everything));
    let lost = loop {
        match inotify.drain(&mut |_| {}) {
            Ok(drained) => assert!(drained.has_more, "the overflow was passed over"),
            Err(lost) => break lost,
        }
    };
    assert!(matches!(lost, Lost::Overflow { .. }), "{lost}");
}

fn watcher(kind: Kind, root: &Path) -> (Watcher, crossbeam_channel::Receiver<()>) {
    let (bell, rung) = bounded(1);
    let plan = Plan {
        place: place(root),
        lens: Lens::default(),
        kind: Some(kind),
        clock: Arc::new(SystemClock),
    };
    (Watcher::start(plan, bell).unwrap(), rung)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(std::time::Instant::now() < until, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_watcher_begins_with_everything_and_then_tells_what_happened_before_it_was_asked() {
    for kind in BOTH {
        if kind == Kind::Fanotify && !nix::unistd::geteuid().is_root() {
            continue;
        }
        let dir = tree();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("a")).unwrap();
        let (watcher, rung) = watcher(kind, &root);
        rung.recv_timeout(PATIENCE).unwrap();
        assert!(watcher.settle(PATIENCE));
        assert_eq!(watcher.take(), Some(Dirty::everything()));
        assert_eq!(watcher.take(), Some(Dirty::default()), "{kind:?}");
        for n in 0..50 {
            fs::write(root.join("a").join(n.to_string()), b"x").unwrap();
            assert!(watcher.settle(PATIENCE));
            let dirty = watcher.take().unwrap();
            assert!(!dirty.is_empty(), "{kind:?}: change {n} was not known");
        }
        let status = watcher.status();
        assert_eq!(status.watched.unwrap().kind, kind);
        assert!(status.events >= 50);
    }
}

#[test]
fn a_root_that_is_moved_away_is_lost_and_is_all_dirty_when_it_is_back() {
    for kind in BOTH {
        if kind == Kind::Fanotify && !nix::unistd::geteuid().is_root() {
            continue;
        }
        let dir = tree();
        let root = dir.path().canonicalize().unwrap().join("root");
        fs::create_dir(&root).unwrap();
        let (watcher, _rung) = watcher(kind, &root);
        wait_until("watched", || watcher.status().watched.is_some());
        watcher.take();
        fs::rename(&root, root.with_extension("away")).unwrap();
        wait_until("lost", || watcher.status().watched.is_none());
        assert_eq!(
            watcher.take(),
            None,
            "nothing is known of what is not watched"
        );
        assert!(!watcher.settle(PATIENCE));
        wait_until("a reason", || {
            let reason = watcher.status().reason.unwrap_or_default();
            reason.contains("cannot look at") || reason.contains("cannot open")
        });
        fs::rename(root.with_extension("away"), &root).unwrap();
        wait_until("watched again", || watcher.status().watched.is_some());
        assert!(watcher.take().unwrap().is_everything());
    }
}
