//! The engine and the reference side by side: each operation goes to both, and both must agree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidefs::clock::Clock;
use tidefs::error::{Error, Result};
use tidefs::types::{Epoch, FileKind, Timestamp};
use tidefs::volume::settings::{Settings, Store};
use tidefs::volume::tree::Tree;
use tidefs::volume::{Durability, Volume, external, init};

use super::dump::{differences, dump, read_whole};
use super::image;
use super::ops::{Name, Op};
use super::state::{NodeId, State};

/// Why a case failed.
pub type Verdict = std::result::Result<(), String>;

/// Everything is compared after this many operations, and whenever it was closed or crashed.
const CHECK_EVERY: usize = 12;

/// Time that passes only when an operation begins, so that every time stamp is known.
#[derive(Debug)]
pub struct StepClock(Mutex<Timestamp>);

impl Clock for StepClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

pub struct World {
    dir: tempfile::TempDir,
    images: u32,
    has_external: bool,
    pub clock: Arc<StepClock>,
    volume: Option<Arc<Volume>>,
    pub state: State,
    /// Where a crash may lead: the last durable state and all since.
    pub since_durable: Vec<State>,
    pub handles: Vec<NodeId>,
    epochs: BTreeMap<Epoch, State>,
    steps: usize,
    /// What was lost by crashes, for the report.
    pub counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub ops: usize,
    pub refused: usize,
    pub crashes: usize,
    pub went_back: usize,
    pub replayed: usize,
    pub with_index: usize,
    pub external_images: usize,
    pub epochs: usize,
}

impl Counts {
    pub fn add(&mut self, other: Counts) {
        self.ops += other.ops;
        self.refused += other.refused;
        self.crashes += other.crashes;
        self.went_back += other.went_back;
        self.replayed += other.replayed;
        self.with_index += other.with_index;
        self.external_images += other.external_images;
        self.epochs += other.epochs;
    }
}

pub fn failed(what: &str) -> impl FnOnce(Error) -> String + '_ {
    move |error| format!("{what}: {}", error.chain())
}

impl World {
    pub fn new(has_external: bool) -> World {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let now = Timestamp {
            secs: 1_700_000_000,
            nanos: 1,
        };
        let clock = Arc::new(StepClock(Mutex::new(now)));
        let mut world = World {
            dir,
            images: 0,
            has_external,
            clock,
            volume: None,
            state: State::new(now),
            since_durable: vec![State::new(now)],
            handles: Vec::new(),
            epochs: BTreeMap::new(),
            steps: 0,
            counts: Counts::default(),
        };
        let settings = Settings {
            reserve_bytes: 0,
            epoch_interval_secs: 3600,
            ..Settings::default()
        };
        fs::create_dir(world.base()).unwrap();
        fs::create_dir(world.external()).unwrap();
        init::init(&world.path(), &settings, &*world.clock).unwrap();
        let volume =
            Volume::open(&world.path(), Arc::clone(&world.clock) as Arc<dyn Clock>).unwrap();
        if has_external {
            volume.set_store(Some(world.external())).unwrap();
        }
        // The root directory is made by the opening; from here on it is to stay.
        volume.commit().unwrap();
        world.volume = Some(volume);
        world
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join(format!("image-{}", self.images))
    }

    fn path(&self) -> PathBuf {
        self.base().join("path")
    }

    fn external(&self) -> PathBuf {
        self.base().join("external")
    }

    pub fn volume(&self) -> &Arc<Volume> {
        self.volume.as_ref().unwrap()
    }

    pub fn is_open(&self) -> impl Fn(NodeId) -> bool + use<> {
        let handles = self.handles.clone();
        move |id| handles.contains(&id)
    }

    // Choosing targets.

    pub fn pick(among: &[NodeId], n: u8) -> Option<NodeId> {
        (!among.is_empty()).then(|| among[usize::from(n) % among.len()])
    }

    pub fn any_node(&self, n: u8) -> NodeId {
        let named = self
            .state
            .of_kind(|node| node.kind == FileKind::Dir || node.names > 0);
        World::pick(&named, n).unwrap()
    }

    pub fn file(&self, n: u8) -> Option<NodeId> {
        let files = self
            .state
            .of_kind(|node| node.kind == FileKind::File && node.names > 0);
        World::pick(&files, n)
    }

    /// A parent, seldom one that is no directory, and a name, mostly one that may be there.
    pub fn name(&self, at: Name) -> (NodeId, Vec<u8>) {
        let others = self.state.of_kind(|node| node.kind != FileKind::Dir);
        let dirs = self.state.of_kind(|node| node.kind == FileKind::Dir);
        let dir = match World::pick(&others, at.dir) {
            Some(other) if at.dir > 250 => other,
            _ => World::pick(&dirs, at.dir).unwrap(),
        };
        let name = match at.name % 40 {
            36 => vec![b'x'; 255],
            37 => vec![b'x'; 256],
            38 => b"\xff\x01 ".to_vec(),
            39 => b"aa".to_vec(),
            n => vec![b'a' + n % 4],
        };
        (dir, name)
    }

    /// As [`World::name`], but a name that is there, if there is one.
    pub fn present_name(&self, at: Name) -> (NodeId, Vec<u8>) {
        let (dir, name) = self.name(at);
        let names: Vec<_> = self.state.node(dir).entries.keys().collect();
        if names.is_empty() || at.name > 220 {
            return (dir, name);
        }
        (dir, names[usize::from(at.name) % names.len()].clone())
    }

    // Running.

    pub fn run(&mut self, op: &Op) -> Verdict {
        self.steps += 1;
        self.counts.ops += 1;
        let mut now = self.clock.now();
        now.secs += 1;
        now.nanos = (now.nanos + 7) % 1_000_000_000;
        *self.clock.0.lock().unwrap() = now;
        self.state.now = now;
        self.apply(op)?;
        self.since_durable.push(self.state.clone());
        if self.steps.is_multiple_of(CHECK_EVERY) {
            self.check()?;
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Verdict {
        match *op {
            Op::Create {
                at,
                kind,
                mode,
                gid,
            } => self.create(at, kind, mode, gid),
            Op::Write {
                file,
                offset,
                len,
                fill,
                sync,
            } => self.write(file, offset, len, fill, sync),
            Op::Truncate { file, size } => self.truncate(file, size),
            Op::Rename { from, to, mode } => self.rename(self.present_name(from), to, mode),
            Op::HandleRename { handle, to, mode } => match self.name_of_handle(handle) {
                Some(from) => self.rename(from, to, mode),
                None => Ok(()),
            },
            Op::Link { node, to } => self.link(node, to),
            Op::Unlink { at } => {
                let (dir, name) = self.present_name(at);
                let outcome = self.volume().unlink(self.state.node(dir).ino, &name);
                if self
                    .agree("unlink", outcome, &self.state.refuse_unlink(dir, &name))?
                    .is_some()
                {
                    let is_open = self.is_open();
                    self.state.unlink(dir, &name, is_open);
                }
                Ok(())
            }
            Op::Rmdir { at } => {
                let (dir, name) = self.present_name(at);
                let outcome = self.volume().rmdir(self.state.node(dir).ino, &name);
                if self
                    .agree("rmdir", outcome, &self.state.refuse_rmdir(dir, &name))?
                    .is_some()
                {
                    self.state.rmdir(dir, &name);
                }
                Ok(())
            }
            Op::SetAttr {
                node,
                mode,
                mtime,
                owner,
            } => self.set_attr(node, mode, mtime, owner),
            Op::SetXattr {
                node,
                name,
                value,
                mode,
            } => self.set_xattr(node, name, value, mode),
            Op::RemoveXattr { node, name } => self.remove_xattr(node, name),
            Op::Fallocate {
                file,
                offset,
                len,
                how,
            } => self.fallocate(file, offset, len, how),
            Op::CopyRange { from, to, len } => self.copy_range(from, to, len),
            Op::Open { file, truncate } => self.open(file, truncate),
            Op::HandleWrite {
                handle,
                offset,
                len,
                fill,
            } => self.handle_write(handle, offset, len, fill),
            Op::HandleFsync { handle } => self.handle_fsync(handle),
            Op::Close { handle } => self.close_handle(handle),
            Op::Commit => {
                self.volume().commit().map_err(failed("commit"))?;
                self.state.settle_all();
                self.durable();
                Ok(())
            }
            Op::Snapshot { named } => self.snapshot(named),
            Op::Archive => self.archive(),
            Op::Reopen => self.reopen(),
            Op::Crash { with_index } => self.crash(with_index),
            Op::Check => self.check(),
        }
    }

    /// Everything so far survives: a crash leads here or further.
    pub fn durable(&mut self) {
        self.since_durable.clear();
        self.since_durable.push(self.state.clone());
    }

    /// Both refuse, or both do it. A refusal must be one that POSIX allows.
    pub fn agree<T>(
        &mut self,
        what: &str,
        outcome: Result<T>,
        refusals: &[nix::errno::Errno],
    ) -> std::result::Result<Option<T>, String> {
        match outcome {
            Ok(answer) if refusals.is_empty() => Ok(Some(answer)),
            Ok(_) => Err(format!(
                "{what} was done and should be refused with {refusals:?}"
            )),
            Err(Error::Posix(errno)) if refusals.contains(&errno) => {
                self.counts.refused += 1;
                Ok(None)
            }
            Err(error) => Err(format!(
                "{what} failed with {error:?}, the reference has {refusals:?}"
            )),
        }
    }

    // The volume.

    fn snapshot(&mut self, named: bool) -> Verdict {
        let name = named.then(|| format!("snapshot {}", self.steps));
        let epoch = self
            .volume()
            .close_epoch(name.clone())
            .map_err(failed("snapshot"))?;
        self.state.settle_all();
        self.durable();
        if named && self.epochs.contains_key(&epoch) {
            return Err(format!("{epoch:?} was closed twice"));
        }
        self.epochs.insert(epoch, self.state.clone());
        let closed = self.volume().closed_epochs().map_err(failed("epochs"))?;
        let entry = closed.iter().find(|entry| entry.epoch == epoch);
        if named && entry.is_none_or(|entry| entry.name != name) {
            return Err(format!("{epoch:?} is not listed under its name"));
        }
        self.check_moment(epoch)
    }

    fn archive(&mut self) -> Verdict {
        if !self.has_external {
            return Ok(());
        }
        self.snapshot(false)?;
        self.volume()
            .wait(Durability::Archived, &mut |_| true)
            .map_err(failed("wait until archived"))
    }

    fn reopen(&mut self) -> Verdict {
        let volume = self.volume.take().unwrap();
        volume
            .close(Duration::from_secs(60), &mut |_| {})
            .map_err(failed("close"))?;
        if Arc::strong_count(&volume) > 1 {
            return Err("something keeps the closed volume".into());
        }
        drop(volume);
        self.stopped(self.state.clone());
        self.start()?;
        let recovery = &self.volume().status().recovery;
        if recovery.frames > 0 {
            return Err(format!("a clean stop left work: {recovery:?}"));
        }
        self.check()
    }

    /// The process is gone, and this is what it left.
    fn stopped(&mut self, left: State) {
        self.handles.clear();
        self.state = left.without_handles();
        self.state.settle_all();
        self.durable();
    }

    fn start(&mut self) -> Verdict {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let volume = Volume::open(&self.path(), clock).map_err(failed("open the volume"))?;
        self.volume = Some(volume);
        self.learn_epochs()
    }

    /// Epochs that the stop or the recovery closed.
    fn learn_epochs(&mut self) -> Verdict {
        for entry in self.volume().epochs().map_err(failed("epochs"))? {
            self.epochs
                .entry(entry.epoch)
                .or_insert_with(|| self.state.clone());
        }
        Ok(())
    }

    fn crash(&mut self, with_index: bool) -> Verdict {
        self.counts.crashes += 1;
        self.counts.with_index += usize::from(with_index);
        let before = self.base();
        self.images += 1;
        let is_left_out = |path: &Path| {
            path == Path::new("path/control.sock")
                || (!with_index && path.starts_with("path/index"))
        };
        image::copy(&before, &self.base(), &is_left_out);
        drop(self.volume.take());
        fs::remove_dir_all(before).unwrap();
        if self.has_external {
            let mut settings = Settings::read(&self.path()).unwrap();
            if let Store::Dir { path, .. } = &mut settings.store {
                *path = self.external();
            }
            settings.write(&self.path()).unwrap();
            self.check_external_image()?;
        }
        let possible = std::mem::take(&mut self.since_durable);
        self.recover(possible)
    }

    /// The tree after a crash must be one that was since the last durable moment.
    fn recover(&mut self, possible: Vec<State>) -> Verdict {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let volume = Volume::open(&self.path(), clock).map_err(failed("recover"))?;
        let found = dump(&*volume).map_err(failed("read the recovered tree"))?;
        self.counts.replayed += usize::from(volume.status().recovery.frames > 0);
        let mut nearest = String::new();
        let matching = possible
            .into_iter()
            .rev()
            .enumerate()
            .find_map(|(back, state)| {
                let wrong = differences(&found, &state);
                if wrong.is_empty() {
                    return Some((back, state));
                }
                if nearest.is_empty() || wrong.len() < nearest.len() {
                    nearest = format!("{back} operations ago:\n{wrong}");
                }
                None
            });
        let Some((back, mut left)) = matching else {
            return Err(format!(
                "the recovered tree never was; nearest is the one of {nearest}"
            ));
        };
        self.counts.went_back += usize::from(back > 0);
        // Of a file that nothing had settled, the version that it is.
        for (path, id) in left.paths() {
            if !left.node(id).pending.is_empty() {
                let seen = &found[&path];
                let node = left.change(id);
                node.content = Arc::new(seen.content.clone());
                (node.mtime, node.ctime) = (seen.attr.mtime, seen.attr.ctime);
            }
        }
        left.now = self.clock.now();
        self.stopped(left);
        self.volume = Some(volume);
        self.learn_epochs()?;
        self.check()
    }

    // Comparing.

    pub fn check(&self) -> Verdict {
        let volume = self.volume();
        let found = dump(&**volume).map_err(failed("read the tree"))?;
        let wrong = differences(&found, &self.state);
        if !wrong.is_empty() {
            return Err(format!("the tree is not the reference's:\n{wrong}"));
        }
        for id in &self.handles {
            let node = self.state.node(*id);
            let attr = volume
                .getattr(node.ino)
                .map_err(failed("stat an open file"))?;
            let content = read_whole(&**volume, attr).map_err(failed("read an open file"))?;
            if content != *node.content
                || attr.size != content.len() as u64
                || attr.nlink != node.names
            {
                return Err(format!(
                    "open file {} is not the reference's: {attr:?}",
                    node.ino
                ));
            }
        }
        volume.status().failure.map_or(Ok(()), Err)
    }

    fn check_moment(&self, epoch: Epoch) -> Verdict {
        let found = dump(&self.volume().view_tree(epoch)).map_err(failed("read a moment"))?;
        let wrong = differences(&found, &self.epochs[&epoch]);
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!("{epoch:?} is not as it was:\n{wrong}"))
    }

    /// At every instant the external volume is complete as of its newest record (invariant 2).
    fn check_external_image(&mut self) -> Verdict {
        let records = fs::read_dir(self.external().join("server/epochs"));
        let mut records = records
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path());
        if records.any(|record| record.extension().is_some_and(|end| end == "json")) {
            self.counts.external_images += 1;
            return self.check_external(false);
        }
        Ok(())
    }

    fn check_external(&self, all: bool) -> Verdict {
        let store = vfs::DirVolume::open(self.external()).map_err(|error| error.to_string())?;
        let away =
            external::open_external(Arc::new(store)).map_err(failed("open the external volume"))?;
        let newest = away.record().epoch;
        for entry in away.epochs().map_err(failed("external epochs"))? {
            if !all && entry.epoch != newest {
                continue;
            }
            let state = self.epochs.get(&entry.epoch);
            let state = state.ok_or_else(|| format!("nobody closed {:?}", entry.epoch))?;
            let tree = away
                .tree(Some(entry.epoch))
                .map_err(failed("open a moment"))?;
            let found = dump(&*tree).map_err(failed("read the external volume"))?;
            let wrong = differences(&found, state);
            if !wrong.is_empty() {
                return Err(format!(
                    "{:?} on the external volume is not as it was:\n{wrong}",
                    entry.epoch
                ));
            }
        }
        Ok(())
    }

    /// Every moment, here and, if there is an external volume, from it alone.
    pub fn finish(&mut self) -> Verdict {
        self.check()?;
        self.snapshot(false)?;
        let closed = self.volume().closed_epochs().map_err(failed("epochs"))?;
        let listed: Vec<Epoch> = closed.iter().map(|entry| entry.epoch).collect();
        let known: Vec<Epoch> = self
            .epochs
            .keys()
            .copied()
            .filter(|epoch| epoch.0 > 0)
            .collect();
        if listed != known {
            return Err(format!("the epochs are {listed:?}, should be {known:?}"));
        }
        for epoch in &listed {
            self.check_moment(*epoch)?;
        }
        self.counts.epochs = listed.len();
        if !self.has_external {
            return Ok(());
        }
        self.archive()?;
        drop(self.volume.take());
        fs::remove_dir_all(self.path()).unwrap();
        self.check_external(true)
    }
}
