//! The root of a directory volume, held open, and how names beneath it are opened.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};
use nix::unistd::fsync;

use crate::error::{At, Error, ErrorClass, Result};
use crate::identity::{SENTINEL_LEN_MAX, Sentinel};
use crate::key::ObjectKey;

/// Directories remembered as durable. A volume of the engine has some 300; the limit only keeps a strange use of
/// keys from growing the set for ever, and the price of forgetting is an fsync.
const DURABLE_DIRECTORIES_MAX: usize = 4096;

/// Only the owner: these are backups. Whoever shares a volume on purpose can open it up; it is never tightened again.
const DIRECTORY_MODE: Mode = Mode::S_IRWXU;

/// The root as it was opened at one moment, with the proof of what it is.
#[derive(Debug)]
pub(super) struct Anchor {
    root: OwnedFd,
    /// Device and inode.
    place: (u64, u64),
    /// Whether a link count of 0 means "removed" here: some FUSE daemons say 0 always.
    counts_links: bool,
    pub(super) sentinel: Option<Sentinel>,
    /// Directories whose own entry was fsynced since the root was opened.
    durable: Mutex<HashSet<Box<str>>>,
}

impl Anchor {
    /// Opens the root and checks the sentinel beneath that same descriptor.
    pub(super) fn open(path: &Path, sentinel: Option<Sentinel>, at: At<'_>) -> Result<Anchor> {
        // A client may open the root from memory, and hear from the server only below it.
        Self::open_and_judge(path, sentinel, at).map_err(Error::of_root)
    }

    fn open_and_judge(path: &Path, sentinel: Option<Sentinel>, at: At<'_>) -> Result<Anchor> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOENT => {
                let message = "the directory does not exist: mount the volume, or create it if this is to be a new one";
                at.error(ErrorClass::Unreachable, message).with_source(std::io::Error::from(errno))
            }
            _ => at.errno(errno),
        })?;
        let stat = fstat(&root).map_err(|errno| at.errno(errno))?;
        let place = (stat.st_dev, stat.st_ino);
        let anchor = Anchor {
            root,
            place,
            counts_links: stat.st_nlink > 0,
            sentinel,
            durable: Mutex::default(),
        };
        if let Some(sentinel) = &anchor.sentinel {
            sentinel.judge(at, anchor.read_sentinel(sentinel.key(), at)?.as_deref())?;
        }
        Ok(anchor)
    }

    /// Whether this fresh look may take the place of `known`; with it, whether the volume was mounted anew.
    ///
    /// The sentinel, if there is one, was judged when this was opened and decides: a disk that is plugged in again has
    /// another device number and is still the same volume. Without one, only the very same directory will do.
    pub(super) fn succeeds(self, known: &Anchor, at: At<'_>) -> Result<(Anchor, bool)> {
        let same_place = self.place == known.place;
        if !same_place && self.sentinel.is_none() {
            let message = "another directory than the one that was opened is there now: mount the right volume";
            return Err(at.wrong_volume(message));
        }
        Ok((self, !same_place))
    }

    /// `None` if it is not there.
    fn read_sentinel(&self, key: &ObjectKey, at: At<'_>) -> Result<Option<Bytes>> {
        let at = at.key(key.as_str());
        match super::head_unconfirmed(self, at, key)? {
            None => Ok(None),
            Some(meta) if meta.len > SENTINEL_LEN_MAX => {
                let message = format!(
                    "it has {} bytes and is no sentinel: mount the right volume",
                    meta.len
                );
                Err(at.wrong_volume(message))
            }
            Some(meta) => super::get(self, at, key, &(0..meta.len)).map(Some),
        }
    }

    /// Device and inode of the root.
    pub(super) fn place(&self) -> (u64, u64) {
        self.place
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Opens `path` beneath the root.
    pub(super) fn open_beneath(
        &self,
        path: &str,
        flags: OFlag,
        mode: Mode,
    ) -> nix::Result<OwnedFd> {
        beneath(&self.root, path, flags, mode)
    }

    /// The state of what stands at `path`, without opening it: a planted device or pipe must not be touched.
    pub(super) fn stat_beneath(&self, path: &str) -> nix::Result<FileStat> {
        fstat(self.open_beneath(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?)
    }

    /// The directory `path` (the root if none), for reading and as a base.
    pub(super) fn directory(&self, path: Option<&str>) -> nix::Result<OwnedFd> {
        self.open_beneath(
            path.unwrap_or("."),
            OFlag::O_RDONLY | OFlag::O_DIRECTORY,
            Mode::empty(),
        )
    }

    /// The directory in which `key` lies, made if need be, and durable: a power cut after the put must not take the
    /// directory from over the object.
    pub(super) fn directory_for_put(&self, key: &ObjectKey) -> nix::Result<OwnedFd> {
        if key
            .parent()
            .is_none_or(|parent| self.durable().contains(parent))
        {
            match self.directory(key.parent()) {
                Err(Errno::ENOENT) => {}
                other => return other,
            }
        }
        let mut directory = self.directory(None)?;
        for path in key.ancestors() {
            let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
            match mkdirat(&directory, name, DIRECTORY_MODE) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            // Also for one that exists: whoever made it may not have come to the fsync, be it another thread or a
            // process that died.
            let child = beneath(
                &directory,
                name,
                OFlag::O_RDONLY | OFlag::O_DIRECTORY,
                Mode::empty(),
            )?;
            sync_directory(&directory)?;
            self.remember_durable(path);
            directory = child;
        }
        Ok(directory)
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, HashSet<Box<str>>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember_durable(&self, path: &str) {
        let mut durable = self.durable();
        if durable.len() >= DURABLE_DIRECTORIES_MAX {
            durable.clear();
        }
        durable.insert(path.into());
    }

    pub(super) fn forget_durable(&self, path: &str) {
        self.durable().remove(path);
    }

    /// Called before "not there" is believed (invariant 6): the root must still be linked, and the sentinel be seen
    /// from it. A removed root, or a FUSE daemon that lost its store, answers ENOENT to everything.
    pub(super) fn confirm(&self, at: At<'_>) -> Result<()> {
        let stat = fstat(&self.root).map_err(|errno| at.errno(errno))?;
        if self.counts_links && stat.st_nlink == 0 {
            return Err(at.wrong_volume("the root directory was removed: mount the right volume"));
        }
        let Some(sentinel) = &self.sentinel else {
            return Ok(());
        };
        match self.stat_beneath(sentinel.key().as_str()) {
            Ok(_) => Ok(()),
            Err(Errno::ENOENT | Errno::ENOTDIR) => sentinel.judge(at, None),
            Err(errno) => Err(at.errno(errno)),
        }
    }
}

/// Opens `path` beneath `base`, through no symbolic link and into no other mount.
pub(super) fn beneath(
    base: impl AsFd,
    path: &str,
    flags: OFlag,
    mode: Mode,
) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    loop {
        match openat2(&base, path, how) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// fsync of a directory, where the file system knows such a thing; where it does not (some FUSE, SMB), its own rename
/// is all the durability there is, and the probe says so.
pub(super) fn sync_directory(directory: &OwnedFd) -> nix::Result<()> {
    match fsync(directory) {
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}
