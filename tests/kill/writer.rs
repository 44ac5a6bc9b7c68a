//! What works in the mount until it is gone: each step is noted before its system call and after.
//!
//! A writer has names of its own, so that its steps have an order. It judges nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::history::{Content, Moment, NEVER, Node, Patch, Paths, Version};

/// The order of everything that happens.
#[derive(Debug, Default)]
pub struct Ticks(AtomicU64);

impl Ticks {
    pub fn next(&self) -> Moment {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// A fixed sequence of numbers for each seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).unwrap()
    }
}

/// Logs begin anew beyond this many appends.
const APPENDS_MAX: usize = 24;
const PAUSE_US: u64 = 10_000;
const SLOTS: usize = 4;
const LOGS: usize = 2;

/// How often a call of each kind was answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub steps: usize,
    pub syncs: usize,
}

pub struct Writer<'a> {
    root: &'a Path,
    ticks: &'a Ticks,
    /// What was there when the round began.
    before: &'a Paths,
    dice: Dice,
    home: String,
    sub: String,
    count: usize,
    never_syncs: bool,
    /// A file that was renamed while it was open, and still is.
    held: Option<(File, String)>,
    pub noted: Paths,
    /// The newest fsync that was answered, by the moment it was asked: all that was done before is there.
    pub floor: Moment,
    pub done: Done,
}

impl<'a> Writer<'a> {
    pub fn new(
        (root, ticks, before): (&'a Path, &'a Ticks, &'a Paths),
        name: &str,
        round: usize,
        seed: u64,
        never_syncs: bool,
    ) -> Writer<'a> {
        Writer {
            root,
            ticks,
            before,
            dice: Dice::new(seed),
            home: name.to_owned(),
            sub: format!("{name}/r{round:03}"),
            count: 0,
            never_syncs,
            held: None,
            noted: Paths::new(),
            floor: 0,
            done: Done::default(),
        }
    }

    /// Works until a call fails.
    pub fn run(&mut self) -> io::Error {
        if let Err(error) = self.begin() {
            return error;
        }
        loop {
            self.count += 1;
            // So that a volume of fifty rounds can still be compared in seconds.
            std::thread::sleep(Duration::from_micros(self.dice.roll() % PAUSE_US));
            if let Err(error) = self.act() {
                return error;
            }
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        let (home, sub) = (self.home.clone(), self.sub.clone());
        if !matches!(self.newest(&home), Node::Dir) {
            self.mkdir(&home)?;
        }
        self.mkdir(&sub)
    }

    fn act(&mut self) -> io::Result<()> {
        let choice = self.dice.below(100);
        match choice {
            _ if self.never_syncs && choice < 70 => self.loose(),
            _ if self.never_syncs => self.loose_names(),
            0..26 => self.create_and_sync(),
            26..38 => self.create_by_dsync(),
            38..52 => self.overwrite_and_sync(),
            52..66 => self.append_and_sync(),
            66..80 => self.replace(true),
            80..90 => self.change_names_and_sync(),
            90..95 => self.replace(false),
            _ => self.loose(),
        }
    }

    // --- noting ------------------------------------------------------------------------------------

    fn full(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn newest(&self, path: &str) -> Node {
        let versions = self.noted.get(path).or_else(|| self.before.get(path));
        let newest = versions.and_then(|versions| versions.last());
        newest.map_or(Node::Absent, |version| version.node.clone())
    }

    fn content(&self, path: &str) -> Content {
        match self.newest(path) {
            Node::File(content) => content,
            Node::Absent | Node::Dir => Content::default(),
        }
    }

    fn note(&mut self, path: &str, begin: Moment, is_write: bool, node: Node) {
        let version = Version {
            begin,
            certain: NEVER,
            is_write,
            node,
        };
        self.noted.entry(path.to_owned()).or_default().push(version);
    }

    /// All steps on the path that were open are in every tree from this moment on.
    fn certain(&mut self, path: &str, moment: Moment) {
        for version in self.noted.get_mut(path).into_iter().flatten() {
            version.certain = version.certain.min(moment);
        }
    }

    /// A change of names: whole or absent, for all the paths it touches.
    fn step<T>(
        &mut self,
        changes: &[(&str, Node)],
        call: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let begin = self.ticks.next();
        for (path, node) in changes {
            self.note(path, begin, false, node.clone());
        }
        let answer = call()?;
        let end = self.ticks.next();
        for (path, _) in changes {
            self.certain(path, end);
        }
        self.done.steps += 1;
        Ok(answer)
    }

    fn write(&mut self, file: &File, path: &str, patch: Patch) -> io::Result<Moment> {
        let (bytes, offset) = (patch.bytes(), patch.offset as u64);
        let content = self.content(path).with(patch);
        let begin = self.ticks.next();
        self.note(path, begin, true, Node::File(content));
        file.write_all_at(&bytes, offset)?;
        self.done.steps += 1;
        Ok(begin)
    }

    /// What was done before `begin` survives, because a call that began then has said so.
    fn acknowledge(&mut self, begin: Moment) {
        self.floor = self.floor.max(begin);
        self.done.syncs += 1;
    }

    fn fsync(&mut self, file: &File, path: &str) -> io::Result<()> {
        let begin = self.ticks.next();
        if self.dice.below(2) == 0 {
            file.sync_all()?;
        } else {
            file.sync_data()?;
        }
        self.certain(path, begin);
        self.acknowledge(begin);
        Ok(())
    }

    fn fsync_dir(&mut self, path: &str) -> io::Result<()> {
        let dir = File::open(self.full(path))?;
        let begin = self.ticks.next();
        dir.sync_all()?;
        self.acknowledge(begin);
        Ok(())
    }

    /// Closing stores the bytes, and is no fsync.
    fn close(&mut self, file: File, path: &str) -> io::Result<()> {
        nix::unistd::close(file)?;
        let end = self.ticks.next();
        self.certain(path, end);
        Ok(())
    }

    // --- what is done ------------------------------------------------------------------------------

    fn fresh(&mut self, kind: &str) -> String {
        self.count += 1;
        format!("{}/{kind}{:05}", self.sub, self.count)
    }

    fn slot(&mut self) -> String {
        format!("{}/slot{}", self.home, self.dice.below(SLOTS))
    }

    fn patch(&mut self, offset: usize) -> Patch {
        let len = match self.dice.below(40) {
            0 => 1 + self.dice.below(1 << 20),
            1..5 => 1 + self.dice.below(100_000),
            _ => 1 + self.dice.below(12_000),
        };
        // Sometimes what some file has already: found again by its hash, and still durable.
        let seed = match self.dice.below(8) {
            0 => self.dice.below(20) as u64,
            _ => self.dice.roll(),
        };
        Patch::new(offset, len, seed)
    }

    fn mkdir(&mut self, path: &str) -> io::Result<()> {
        let full = self.full(path);
        self.step(&[(path, Node::Dir)], || std::fs::create_dir(full))
    }

    fn create(&mut self, path: &str, flags: i32) -> io::Result<File> {
        let full = self.full(path);
        self.step(&[(path, Node::File(Content::of(Vec::new())))], || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .custom_flags(flags)
                .open(full)
        })
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        let full = self.full(path);
        self.step(&[(path, Node::Absent)], || std::fs::remove_file(full))
    }

    fn rename(&mut self, from: &str, to: &str, node: Node) -> io::Result<()> {
        let (source, target) = (self.full(from), self.full(to));
        self.step(&[(from, Node::Absent), (to, node)], || {
            std::fs::rename(source, target)
        })
    }

    fn open(&self, path: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).open(self.full(path))
    }

    fn create_and_sync(&mut self) -> io::Result<()> {
        let path = self.fresh("file");
        let file = self.create(&path, 0)?;
        let mut offset = 0;
        for _ in 0..=self.dice.below(3) {
            let patch = self.patch(offset);
            offset += patch.len;
            self.write(&file, &path, patch)?;
        }
        self.fsync(&file, &path)?;
        self.close(file, &path)
    }

    /// Each write is an acknowledgement of its own.
    fn create_by_dsync(&mut self) -> io::Result<()> {
        let path = self.fresh("dsync");
        let flags = [nix::libc::O_DSYNC, nix::libc::O_SYNC][self.dice.below(2)];
        let file = self.create(&path, flags)?;
        let mut offset = 0;
        for _ in 0..=self.dice.below(2) {
            let patch = self.patch(offset);
            offset += patch.len;
            let begin = self.write(&file, &path, patch)?;
            self.certain(&path, begin);
            self.acknowledge(begin);
        }
        self.close(file, &path)
    }

    fn overwrite_and_sync(&mut self) -> io::Result<()> {
        let path = self.slot();
        let Node::File(content) = self.newest(&path) else {
            return self.replace(true);
        };
        if content.patches() > APPENDS_MAX {
            return self.replace(true);
        }
        let offset = self.dice.below(content.len + 1);
        let patch = self.patch(offset);
        let file = self.open(&path)?;
        self.write(&file, &path, patch)?;
        self.fsync(&file, &path)?;
        self.close(file, &path)
    }

    fn append_and_sync(&mut self) -> io::Result<()> {
        let path = format!("{}/log{}", self.home, self.dice.below(LOGS));
        let content = self.content(&path);
        if content.patches() > APPENDS_MAX {
            self.remove(&path)?;
            let home = self.home.clone();
            return self.fsync_dir(&home);
        }
        let file = match self.newest(&path) {
            Node::File(_) => self.open(&path)?,
            _ => self.create(&path, 0)?,
        };
        let patch = self.patch(content.len);
        self.write(&file, &path, patch)?;
        self.fsync(&file, &path)?;
        self.close(file, &path)
    }

    /// Write under a temporary name, rename over the old one. Without fsync too it is the old or the new.
    fn replace(&mut self, is_synced: bool) -> io::Result<()> {
        let (path, temporary) = (self.slot(), self.fresh("temporary"));
        let file = self.create(&temporary, 0)?;
        let patch = self.patch(0);
        self.write(&file, &temporary, patch)?;
        let node = self.newest(&temporary);
        if is_synced {
            self.fsync(&file, &temporary)?;
            self.close(file, &temporary)?;
            self.rename(&temporary, &path, node)?;
            let home = self.home.clone();
            return self.fsync_dir(&home);
        }
        if self.dice.below(2) == 0 {
            self.close(file, &temporary)?;
            return self.rename(&temporary, &path, node);
        }
        // Renamed while it is open, and open for a while longer: the rename itself stores its bytes.
        self.rename(&temporary, &path, node)?;
        match self.held.replace((file, temporary)) {
            Some((file, before)) => self.close(file, &before),
            None => Ok(()),
        }
    }

    fn change_names(&mut self) -> io::Result<()> {
        let dir = self.fresh("dir");
        self.mkdir(&dir)?;
        let (inside, renamed) = (format!("{dir}/inside"), format!("{dir}-renamed"));
        let file = self.create(&inside, 0)?;
        let patch = self.patch(0);
        self.write(&file, &inside, patch)?;
        self.close(file, &inside)?;
        match self.dice.below(3) {
            0 => self.remove(&inside),
            1 => {
                let moved = format!("{dir}/moved");
                let node = self.newest(&inside);
                self.rename(&inside, &moved, node)
            }
            _ => {
                let (source, target) = (self.full(&dir), self.full(&renamed));
                let node = self.newest(&inside);
                let changes = [
                    (dir.as_str(), Node::Absent),
                    (inside.as_str(), Node::Absent),
                    (renamed.as_str(), Node::Dir),
                    (&format!("{renamed}/inside"), node),
                ];
                self.step(&changes, || std::fs::rename(source, target))
            }
        }
    }

    fn change_names_and_sync(&mut self) -> io::Result<()> {
        self.change_names()?;
        let sub = self.sub.clone();
        self.fsync_dir(&sub)
    }

    fn loose_names(&mut self) -> io::Result<()> {
        match self.dice.below(3) {
            0 => self.change_names(),
            1 => self.replace(false),
            // Open, and without a name: nothing of it may be left behind.
            _ => {
                let path = self.fresh("nameless");
                let file = self.create(&path, 0)?;
                let patch = self.patch(0);
                self.write(&file, &path, patch)?;
                self.remove(&path)?;
                file.write_all_at(b"nobody will read this", 1 << 20)?;
                self.close(file, &path)
            }
        }
    }

    /// Never synced: what a kill may take.
    fn loose(&mut self) -> io::Result<()> {
        let path = self.fresh("loose");
        let file = self.create(&path, 0)?;
        let mut offset = 0;
        for _ in 0..=self.dice.below(6) {
            let patch = self.patch(offset);
            offset += patch.len;
            self.write(&file, &path, patch)?;
        }
        self.close(file, &path)
    }
}
