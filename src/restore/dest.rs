//! The directory into which is restored: every name below it is opened from its one descriptor.
//!
//! Whatever the volume says, and whoever moves things about meanwhile: a path is resolved beneath that descriptor,
//! through no symbolic link, so that nothing is written outside. What is new has a temporary name until it is
//! complete.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2, renameat};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, syncfs, unlinkat};

use crate::error::{Error, Result};
use crate::restore::name::{SafeName, is_temporary, temporary};

/// Longest path that is resolved in one step; Linux takes 4095 bytes.
const STEP_LEN_MAX: usize = 3072;
/// Only the owner, until the directory is complete.
const UNFINISHED_DIR: Mode = Mode::S_IRWXU;

/// How names are resolved: never out of the directory they are resolved in, and through no link of any kind.
const RESOLVE: ResolveFlag = ResolveFlag::RESOLVE_BENEATH
    .union(ResolveFlag::RESOLVE_NO_SYMLINKS)
    .union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

/// The directory into which is restored.
#[derive(Debug)]
pub(super) struct Dest {
    root: OwnedFd,
    path: PathBuf,
    /// Random, for temporary names.
    run: u64,
    next: AtomicU64,
}

/// What a path below stands for at this moment.
fn beneath(base: impl AsFd, path: &[u8], flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(RESOLVE);
    loop {
        match openat2(&base, path, how) {
            // EAGAIN: something was renamed while the path was being resolved.
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            other => return other,
        }
    }
}

impl Dest {
    /// Opens the directory at `path`, which the caller named: links on the way to it are theirs.
    pub(super) fn open(path: &Path, run: u64) -> Result<Dest> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(path, flags, Mode::empty()).map_err(Error::nix("open", path))?;
        Ok(Dest {
            root,
            path: path.to_owned(),
            run,
            next: AtomicU64::new(0),
        })
    }

    /// As it was named.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Itself.
    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// The directory that these names, from the top down, lead to: a base for names, not to be read.
    pub(super) fn dir<'a>(
        &self,
        names: impl Iterator<Item = &'a SafeName>,
    ) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let mut at: Option<OwnedFd> = None;
        let mut path: Vec<u8> = Vec::new();
        let base = |at: &Option<OwnedFd>, path: &[u8]| match at {
            Some(dir) => beneath(dir, path, flags, Mode::empty()),
            None => beneath(&self.root, path, flags, Mode::empty()),
        };
        for name in names {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.bytes());
            if path.len() > STEP_LEN_MAX {
                at = Some(base(&at, &path)?);
                path.clear();
            }
        }
        if path.is_empty() {
            path.push(b'.');
        }
        base(&at, &path)
    }

    /// A name that nothing has yet.
    pub(super) fn temporary(&self) -> SafeName {
        temporary(self.run, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes everything below durable.
    pub(super) fn sync(&self) -> Result<()> {
        syncfs(&self.root).map_err(Error::nix("sync", &self.path))
    }

    /// Bytes that can still be written.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let stat = fstatvfs(&self.root).ok()?;
        Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }
}

/// Makes a directory that only its owner may enter until it is complete.
pub(super) fn make_dir(parent: &OwnedFd, name: &SafeName) -> nix::Result<()> {
    mkdirat(parent, name.bytes(), UNFINISHED_DIR)
}

/// The directory `name`, as a base for names.
pub(super) fn dir_in(parent: &OwnedFd, name: &SafeName) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    beneath(parent, name.bytes(), flags, Mode::empty())
}

/// Makes the file `name`, which must not exist, to be written and read by its owner.
pub(super) fn make_file(parent: &OwnedFd, name: &SafeName) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    beneath(parent, name.bytes(), flags, mode)
}

/// What `name` stands for, opened for its attributes only: nothing behind it is touched.
pub(super) fn handle(parent: &OwnedFd, name: &SafeName) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    beneath(parent, name.bytes(), flags, Mode::empty())
}

/// The attributes of what stands at `name`; `None` if nothing does.
pub(super) fn stat(parent: &OwnedFd, name: &SafeName) -> nix::Result<Option<FileStat>> {
    match fstatat(parent, name.bytes(), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Gives what is complete its own name; what stood there is replaced, unless it is a directory.
pub(super) fn give_name(parent: &OwnedFd, from: &SafeName, to: &SafeName) -> nix::Result<()> {
    renameat(parent, from.bytes(), parent, to.bytes())
}

/// Removes a name that is not a directory's.
pub(super) fn remove(parent: &OwnedFd, name: &SafeName) -> nix::Result<()> {
    unlinkat(parent, name.bytes(), UnlinkatFlags::NoRemoveDir)
}

/// The way to an open descriptor itself, for calls that take a path and no descriptor of this kind.
pub(super) fn way_to(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Removes what a run that was killed left unfinished in `dir`.
pub(super) fn sweep(dir: &OwnedFd) -> std::io::Result<()> {
    for entry in fs::read_dir(way_to(dir))? {
        let name = entry?.file_name();
        if is_temporary(name.as_bytes())
            && let Ok(name) = SafeName::parse(name.as_bytes())
        {
            remove(dir, &name)?;
        }
    }
    Ok(())
}

/// Whether `dir` is empty, or has what only a run has that did not come to its end.
pub(super) fn is_unfinished(dir: &OwnedFd) -> std::io::Result<bool> {
    let mut is_empty = true;
    for entry in fs::read_dir(way_to(dir))? {
        if is_temporary(entry?.file_name().as_bytes()) {
            return Ok(true);
        }
        is_empty = false;
    }
    Ok(is_empty)
}
