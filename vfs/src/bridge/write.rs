//! What changes something: files are written, names made, moved and removed.

use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;

use crate::error::Error;
use crate::key::{ObjectKey, is_component};
use crate::volume::{Body, Meta, Precondition, VolumeExt};

use super::{Bridge, Fault, Node, Outcome, Stage, What, is_temporary, join, parent_of, what_of};

/// A larger object is not copied to be renamed: whoever moves it does that himself, and sees that it takes time.
const RENAME_LEN_MAX: u64 = 16 << 20;

/// What is being renamed.
enum Source {
    Directory,
    Staged(Arc<Stage>),
    Object { len: u64 },
}

impl Bridge {
    fn writable(&self) -> Outcome<()> {
        if self.read_only {
            Err(Errno::EROFS.into())
        } else {
            Ok(())
        }
    }

    fn stage(&self, number: u64) -> Option<Arc<Stage>> {
        self.state().stages.get(&number).cloned()
    }

    /// Opens a file. To write means to write anew: it must be empty, new, or cut to nothing by this very opening.
    pub fn open(&self, number: u64, write: bool, truncate: bool) -> Outcome<()> {
        if write || truncate {
            self.writable()?;
        }
        let (path, what) = self.state().path(number)?;
        let What::File { len, .. } = what else {
            return Err(Errno::EISDIR.into());
        };
        if let Some(stage) = self.stage(number) {
            if truncate {
                stage.set_len(0)?;
            }
            stage.state().openings += 1;
            return Ok(());
        }
        if write || truncate {
            if len > 0 && !truncate {
                tracing::warn!(
                    "{}/{path} cannot be changed in place: an object is written whole; write it anew (O_TRUNC), or to \
                     another name",
                    self.volume
                );
                return Err(Errno::EOPNOTSUPP.into());
            }
            // Opened and closed, an empty file is what it was.
            let stage = self.add_stage(number, &path, (true, len > 0))?;
            stage.state().openings += 1;
            return Ok(());
        }
        let key = ObjectKey::new(&*path)?;
        let len = self.checked_len(number, &key, what)?;
        let mut state = self.state();
        // Somebody began to write it meanwhile: then that is what is read.
        if let Some(stage) = state.stages.get(&number) {
            stage.state().openings += 1;
        } else {
            state.names.pin(number);
            self.reads.open(number, &key, len);
        }
        Ok(())
    }

    /// The length of the object that is opened, if it is still the one that was seen.
    fn checked_len(&self, number: u64, key: &ObjectKey, seen: What) -> Outcome<u64> {
        let What::File { len, .. } = seen else {
            return Err(Errno::EISDIR.into());
        };
        let is_fresh = self.state().names.fresh(key.as_str(), Instant::now()) == Some(number);
        if is_fresh {
            return Ok(len);
        }
        let found = self.volume.head(key)?;
        let mut state = self.state();
        let Some(meta) = found else {
            state.names.remove(key.as_str());
            return Err(Errno::ENOENT.into());
        };
        // Another object has another number: the kernel looks the name up again.
        let now = state
            .names
            .note(key.as_str(), what_of(&meta), Instant::now());
        if now == number {
            Ok(meta.len)
        } else {
            Err(Errno::ESTALE.into())
        }
    }

    /// Makes an empty file in place of the object; those who read that one read this from now on.
    fn add_stage(
        &self,
        number: u64,
        path: &Arc<str>,
        (is_there, is_dirty): (bool, bool),
    ) -> Outcome<Arc<Stage>> {
        let stage = Stage::new(&self.temporary, Arc::clone(path), is_there)?;
        let mut state = self.state();
        // Somebody was quicker.
        if let Some(stage) = state.stages.get(&number) {
            return Ok(Arc::clone(stage));
        }
        let readers = self.reads.give_up(number);
        for _ in 0..readers {
            state.names.unpin(number);
        }
        stage.state().openings = readers;
        stage.state().is_dirty = is_dirty;
        let stage = Arc::new(stage);
        state.names.pin(number);
        state.stages.insert(number, Arc::clone(&stage));
        Ok(stage)
    }

    fn drop_stage(&self, number: u64) {
        let mut state = self.state();
        if state.stages.remove(&number).is_some() {
            state.names.unpin(number);
        }
    }

    /// An opening ends. What is not put by now is tried once more: pages of a mapping come after the close.
    pub fn release(&self, number: u64) {
        let Some(stage) = self.stage(number) else {
            self.reads.close(number);
            self.state().names.unpin(number);
            return;
        };
        let left = {
            let mut state = stage.state();
            state.openings = state.openings.saturating_sub(1);
            state.openings
        };
        if left > 0 {
            return;
        }
        let (path, has_failed) = {
            let state = stage.state();
            (Arc::clone(&state.path), state.has_failed)
        };
        if !has_failed && let Err(Fault::Failed(error)) = self.flush(number) {
            tracing::error!("{path} is not on the volume: {}", error.chain());
        }
        let is_kept = {
            let state = stage.state();
            ObjectKey::new(&*state.path).is_err() && !state.is_gone
        };
        // A temporary name waits here to be renamed.
        if !is_kept {
            let is_lost = stage.state().is_dirty && !stage.state().is_there;
            if is_lost {
                self.state().names.remove_number(number);
            }
            self.drop_stage(number);
        }
    }

    /// Writes into a file that is open for it.
    pub fn write(&self, number: u64, offset: u64, bytes: &[u8]) -> Outcome<()> {
        let stage = self.stage(number).ok_or(Errno::EBADF)?;
        Ok(stage.write(offset, bytes)?)
    }

    /// Puts what was written: on `Ok` the volume has it.
    pub fn flush(&self, number: u64) -> Outcome<()> {
        let Some(stage) = self.stage(number) else {
            return Ok(());
        };
        if let Some(meta) = stage.put(&*self.volume)? {
            self.note_put(number, &meta);
        }
        Ok(())
    }

    fn note_put(&self, number: u64, meta: &Meta) {
        let mut state = self.state();
        state.names.set(number, what_of(meta), Instant::now());
    }

    /// Cuts or lengthens a file.
    pub fn set_len(&self, number: u64, len: u64) -> Outcome<Node> {
        self.writable()?;
        let (path, what) = self.state().path(number)?;
        match (self.stage(number), what) {
            (_, What::Directory) => return Err(Errno::EISDIR.into()),
            (Some(stage), _) => stage.set_len(len)?,
            (None, What::File { len: had, .. }) if had == len => {}
            (None, _) if len == 0 => {
                let stage = self.add_stage(number, &path, (true, true))?;
                let outcome = self.flush(number);
                if stage.state().openings == 0 {
                    self.drop_stage(number);
                }
                outcome?;
            }
            (None, _) => {
                tracing::warn!(
                    "{}/{path} cannot be cut: an object is written whole",
                    self.volume
                );
                return Err(Errno::EOPNOTSUPP.into());
            }
        }
        self.node(number)
    }

    /// The path of a new name in a directory, if a volume can have it. `is_kept_here`: names count as well that are
    /// kept on this machine until they are renamed.
    fn new_path(&self, parent: u64, name: &[u8], is_kept_here: bool) -> Outcome<String> {
        let directory = self.state().directory(parent)?;
        let name = std::str::from_utf8(name).map_err(|_| Errno::EINVAL)?;
        let path = join(&directory, name);
        let is_fine = is_component(name) || (is_kept_here && is_temporary(name));
        if !is_fine {
            let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
            tracing::warn!(
                "'{shown}' cannot be the name of an object: it is made of a-z, 0-9, '.', '_' and '-', and does not begin with \
                 a dot"
            );
            return Err(Errno::EINVAL.into());
        }
        if path.len() > ObjectKey::LEN_MAX {
            return Err(Errno::ENAMETOOLONG.into());
        }
        Ok(path)
    }

    fn must_not_exist(&self, parent: u64, name: &[u8]) -> Outcome<()> {
        match self.lookup(parent, name) {
            Ok(_) => Err(Errno::EEXIST.into()),
            Err(Fault::Refused(Errno::ENOENT)) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Makes an empty file, which is put when it is closed.
    pub fn create_file(&self, parent: u64, name: &[u8]) -> Outcome<Node> {
        self.writable()?;
        let path = self.new_path(parent, name, true)?;
        self.must_not_exist(parent, name)?;
        let new = What::File {
            len: 0,
            modified: None,
        };
        let number = self.state().names.note(&path, new, Instant::now());
        if let Err(fault) = self.add_stage(number, &path.as_str().into(), (false, true)) {
            self.state().names.remove(&path);
            return Err(fault);
        }
        self.node(number)
    }

    /// Makes a directory. The volume hears of it with the first file in it.
    pub fn create_directory(&self, parent: u64, name: &[u8]) -> Outcome<Node> {
        self.writable()?;
        let path = self.new_path(parent, name, false)?;
        self.must_not_exist(parent, name)?;
        let mut state = self.state();
        state.directories.insert(path.as_str().into());
        let number = state.names.note(&path, What::Directory, Instant::now());
        Ok(self.shown(&state, number, What::Directory))
    }

    /// Removes a file.
    pub fn remove_file(&self, parent: u64, name: &[u8]) -> Outcome<()> {
        self.writable()?;
        let node = self.lookup(parent, name)?;
        if node.is_directory {
            return Err(Errno::EISDIR.into());
        }
        let (path, _) = self.state().path(node.number)?;
        let stage = self.stage(node.number);
        if let Some(stage) = &stage {
            stage.abandon();
        }
        if let Ok(key) = ObjectKey::new(&*path) {
            self.volume.delete(&[key])?;
        }
        self.forget_path(&path);
        if stage.is_some_and(|stage| stage.state().openings == 0) {
            self.drop_stage(node.number);
        }
        Ok(())
    }

    /// The name is gone; the directory it was in stays, though it may be empty now.
    fn forget_path(&self, path: &str) {
        let mut state = self.state();
        state.names.remove(path);
        let parent = parent_of(path);
        if !parent.is_empty() {
            state.directories.insert(parent.into());
        }
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, parent: u64, name: &[u8]) -> Outcome<()> {
        self.writable()?;
        let node = self.lookup(parent, name)?;
        let path = self.state().directory(node.number)?;
        if self.state().has_own_below(&path) || self.holds_objects(&path)? {
            return Err(Errno::ENOTEMPTY.into());
        }
        self.state().directories.remove(&path);
        self.forget_path(&path);
        Ok(())
    }

    /// Moves a name. `EXDEV` for what would have to be copied and is too much for it: `mv` does it then by itself.
    pub fn rename(
        &self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        is_exclusive: bool,
    ) -> Outcome<()> {
        self.writable()?;
        let node = self.lookup(parent, name)?;
        let target = match self.lookup(new_parent, new_name) {
            Ok(target) => Some(target),
            Err(Fault::Refused(Errno::ENOENT)) => None,
            Err(fault) => return Err(fault),
        };
        if is_exclusive && target.is_some() {
            return Err(Errno::EEXIST.into());
        }
        if target.is_some_and(|target| target.number == node.number) {
            return Ok(());
        }
        match target {
            Some(target) if target.is_directory && !node.is_directory => {
                return Err(Errno::EISDIR.into());
            }
            Some(target) if !target.is_directory && node.is_directory => {
                return Err(Errno::ENOTDIR.into());
            }
            _ => {}
        }
        let source = match (self.stage(node.number), node.is_directory) {
            (_, true) => Source::Directory,
            (Some(stage), _) => Source::Staged(stage),
            (None, _) => Source::Object { len: node.len },
        };
        let is_staged = matches!(source, Source::Staged(_));
        let path = self.new_path(new_parent, new_name, is_staged)?;
        match source {
            Source::Directory => self.rename_directory(node.number, target, &path),
            Source::Staged(stage) => {
                self.rename_stage(node.number, &stage, (target, &path), is_exclusive)
            }
            Source::Object { len } => {
                self.rename_object((node.number, len), (target, &path), is_exclusive)
            }
        }
    }

    /// Only one that nothing is in: anything else is as many objects as there are below it.
    fn rename_directory(&self, number: u64, target: Option<Node>, to: &str) -> Outcome<()> {
        let path = self.state().directory(number)?;
        if target.is_some() || self.state().has_own_below(&path) || self.holds_objects(&path)? {
            return Err(Errno::EXDEV.into());
        }
        let mut state = self.state();
        state.directories.remove(&path);
        state.directories.insert(to.into());
        state.names.rename(number, to);
        Ok(())
    }

    fn rename_stage(
        &self,
        number: u64,
        stage: &Stage,
        (target, to): (Option<Node>, &str),
        is_exclusive: bool,
    ) -> Outcome<()> {
        let (path, is_there) = {
            let state = stage.state();
            (Arc::clone(&state.path), state.is_there)
        };
        let Ok(key) = ObjectKey::new(to) else {
            // From one temporary name to another; an object has no such name.
            if is_there {
                return Err(Errno::EXDEV.into());
            }
            stage.state().path = to.into();
            self.state().names.rename(number, to);
            return Ok(());
        };
        self.abandon_target(target);
        let meta = stage
            .put_at(&*self.volume, &key, precondition(is_exclusive))
            .map_err(exists)?;
        self.moved(number, to, &meta);
        if is_there && let Ok(old) = ObjectKey::new(&*path) {
            self.volume.delete(&[old])?;
        }
        self.forget_path(&path);
        if stage.state().openings == 0 {
            self.drop_stage(number);
        }
        Ok(())
    }

    fn rename_object(
        &self,
        (number, len): (u64, u64),
        (target, to): (Option<Node>, &str),
        is_exclusive: bool,
    ) -> Outcome<()> {
        if len > RENAME_LEN_MAX {
            return Err(Errno::EXDEV.into());
        }
        let (path, _) = self.state().path(number)?;
        let (old, new) = (ObjectKey::new(&*path)?, ObjectKey::new(to)?);
        let bytes = self.volume.get_whole(&old, RENAME_LEN_MAX)?;
        let meta = self
            .volume
            .put(&new, Body::Bytes(&bytes), precondition(is_exclusive))
            .map_err(exists)?;
        self.abandon_target(target);
        self.reads.moved(number, &new);
        self.volume.delete(&[old])?;
        self.moved(number, to, &meta);
        self.forget_path(&path);
        Ok(())
    }

    /// What is written to a name that another file takes has no name any more.
    fn abandon_target(&self, target: Option<Node>) {
        if let Some(stage) = target.and_then(|target| self.stage(target.number)) {
            stage.abandon();
        }
    }

    fn moved(&self, number: u64, to: &str, meta: &Meta) {
        let mut state = self.state();
        state.names.rename(number, to);
        state.names.set(number, what_of(meta), Instant::now());
    }

    /// Files under temporary names that were never renamed: they end with the mount.
    pub fn left_behind(&self) -> Vec<Arc<str>> {
        let state = self.state();
        let kept = state.stages.values().map(|stage| stage.state().clone());
        kept.filter(|stage| stage.is_dirty && !stage.is_gone)
            .map(|stage| stage.path)
            .collect()
    }
}

fn precondition(is_exclusive: bool) -> Precondition {
    if is_exclusive {
        Precondition::IfAbsent
    } else {
        Precondition::None
    }
}

fn exists(error: Error) -> Fault {
    if error.is_already_exists() {
        Errno::EEXIST.into()
    } else {
        error.into()
    }
}
