//! A file while it is written: its bytes on this machine's disk, without a name, until they are put whole.
//!
//! The volume keeps whole objects only, so there is nothing to send before the file is closed. The bytes lie in a
//! temporary file that was unlinked when it was made: a process that dies leaves nothing behind.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::error::Error;
use crate::key::ObjectKey;
use crate::volume::{Body, Meta, Precondition, Volume};

/// The file.
#[derive(Debug)]
pub(super) struct Stage {
    file: File,
    /// Written under the one, sent under the other: what is sent must not change under way. Held while the volume is
    /// waited for, which only writers of this very file notice.
    sending: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) path: Arc<str>,
    pub(super) len: u64,
    /// The volume does not have it as it is.
    pub(super) is_dirty: bool,
    /// The last attempt to put it failed, and whoever closed it was told.
    pub(super) has_failed: bool,
    /// Its name was taken away.
    pub(super) is_gone: bool,
    /// The volume has an object at its path.
    pub(super) is_there: bool,
    pub(super) openings: u64,
}

impl Stage {
    /// An empty file for `path`, in the directory `temporary`. `is_there`: the volume has an object at that path.
    pub(super) fn new(temporary: &Path, path: Arc<str>, is_there: bool) -> io::Result<Stage> {
        Ok(Stage {
            file: unlinked(temporary)?,
            sending: RwLock::default(),
            state: Mutex::new(State {
                path,
                len: 0,
                is_dirty: true,
                has_failed: false,
                is_gone: false,
                is_there,
                openings: 0,
            }),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Plain values, each set whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> u64 {
        self.state().len
    }

    pub(super) fn read(&self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        let end = self.len().min(offset.saturating_add(u64::from(len)));
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(offset)).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let _writing = self.sending.read().unwrap_or_else(PoisonError::into_inner);
        self.file.write_all_at(bytes, offset)?;
        let mut state = self.state();
        state.len = state.len.max(offset.saturating_add(bytes.len() as u64));
        state.is_dirty = true;
        Ok(())
    }

    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        let _writing = self.sending.read().unwrap_or_else(PoisonError::into_inner);
        self.file.set_len(len)?;
        let mut state = self.state();
        state.len = len;
        state.is_dirty = true;
        Ok(())
    }

    /// Puts it if the volume does not have it as it is. `None` if there was nothing to put.
    pub(super) fn put(&self, volume: &dyn Volume) -> Result<Option<Meta>, Error> {
        let _sending = self.sending.write().unwrap_or_else(PoisonError::into_inner);
        let State {
            path,
            is_dirty,
            is_gone,
            ..
        } = self.state().clone();
        // A name that is no key is a temporary one: it is kept here until it is renamed.
        let Ok(key) = ObjectKey::new(&*path) else {
            return Ok(None);
        };
        if is_gone || !is_dirty {
            return Ok(None);
        }
        self.send(volume, &key, Precondition::None).map(Some)
    }

    /// Puts it at another path, where it is from then on.
    pub(super) fn put_at(
        &self,
        volume: &dyn Volume,
        key: &ObjectKey,
        precondition: Precondition,
    ) -> Result<Meta, Error> {
        let _sending = self.sending.write().unwrap_or_else(PoisonError::into_inner);
        let meta = self.send(volume, key, precondition)?;
        self.state().path = key.as_str().into();
        Ok(meta)
    }

    /// With `sending` held.
    fn send(
        &self,
        volume: &dyn Volume,
        key: &ObjectKey,
        precondition: Precondition,
    ) -> Result<Meta, Error> {
        let body = Body::File {
            file: &self.file,
            len: self.len(),
        };
        let outcome = volume.put(key, body, precondition);
        let mut state = self.state();
        state.has_failed = outcome.is_err();
        if outcome.is_ok() {
            state.is_dirty = false;
            state.is_there = true;
        }
        outcome
    }

    /// The name is taken away: nothing is put any more, not even by who is about to.
    pub(super) fn abandon(&self) {
        let _sending = self.sending.write().unwrap_or_else(PoisonError::into_inner);
        self.state().is_gone = true;
    }
}

fn unlinked(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let tmpfile = options
        .clone()
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(directory);
    match tmpfile {
        // File systems without such a thing.
        Err(error)
            if matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL)
            ) => {}
        other => return other,
    }
    let random = RandomState::new().hash_one(std::process::id());
    let path = directory.join(format!(".tidefs-bridge-{random:016x}"));
    let file = options.create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Whether a name is one that a program writes under before it renames: a dot, a name, a dot, and six letters or digits
/// by chance. rsync makes such.
pub(super) fn is_temporary(name: &str) -> bool {
    let Some((front, chance)) = name
        .strip_prefix('.')
        .and_then(|name| name.rsplit_once('.'))
    else {
        return false;
    };
    let is_chance = chance.len() == 6 && chance.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_chance && crate::key::is_component(front) && name.len() <= ObjectKey::COMPONENT_LEN_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryVolume;

    #[test]
    fn what_is_written_is_put_once_and_again_after_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let volume = MemoryVolume::new();
        let stage = Stage::new(dir.path(), "a/b".into(), false).unwrap();
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "it has no name"
        );
        stage.write(2, b"cd").unwrap();
        assert_eq!(stage.put(&volume).unwrap().unwrap().len, 4);
        assert!(stage.put(&volume).unwrap().is_none());
        stage.set_len(3).unwrap();
        stage.put(&volume).unwrap();
        let key = ObjectKey::new("a/b").unwrap();
        assert_eq!(volume.get(&key, 0..3).unwrap(), b"\0\0c".as_slice());
        assert_eq!(stage.read(1, 9).unwrap(), b"\0c");
        assert_eq!(stage.read(9, 9).unwrap(), b"");
        stage.write(0, b"x").unwrap();
        stage.abandon();
        assert!(
            stage.put(&volume).unwrap().is_none(),
            "a removed file does not come back"
        );
    }

    #[test]
    fn the_names_that_programs_rename_from_are_known() {
        for name in [".a.pack.AbC123", ".volume.json.zzzzzz"] {
            assert!(is_temporary(name), "{name}");
        }
        for name in [
            ".bashrc",
            ".a",
            "a.AbC123",
            "..AbC123",
            ".A.AbC123",
            ".a.AbC12",
            ".a.AbC12-",
        ] {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
