//! A volume in a directory: a disk, an NFS or SMB share, a FUSE mount, or (as `local`) the backup path itself.
//!
//! Everything happens beneath one descriptor of the root, opened together with the check of the sentinel, and every path
//! is resolved by the kernel with "beneath, no symbolic links, no other mounts". So neither an unmounted disk nor a
//! link planted below the root can lead a write elsewhere (invariant 7). The root itself is never created here.
//!
//! The system calls block for as long as the mount does: this kind gives no deadline of its own.
//!
//! - `anchor`: the root and how names below it are opened;
//! - `write`: temporary name, write, fsync, rename, fsync of the directory, size check;
//! - `sum`: what an object is, compared without its bytes going anywhere;
//! - `walk`: listings and the sweep of leftovers;
//! - `assess`, `mountinfo`, `within`: what is mounted here and below, and whether it will do; `probe`: what it can do, by
//!   trying;
//! - `watch`: another mount stands here now.
//!
//! Locks: `state` only, and never across a system call.

mod anchor;
mod assess;
mod mountinfo;
mod probe;
pub(crate) mod sum;
mod walk;
mod watch;
mod within;
mod write;

use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::error::{At, ErrorCase, ErrorClass, Result};
use crate::identity::Sentinel;
use crate::key::ObjectKey;
use crate::volume::{
    Body, Capabilities, Likeness, Meta, Outgoing, Page, Precondition, Space, Volume, checked_len,
};

use anchor::Anchor;
use sum::Sum;

pub use assess::{Assessment, FSTAB, Refusal, RefusalCause, assess};
pub use watch::MountWatch;
pub use within::{MOUNTINFO, MountWithin, mounts_within};

/// A volume in a directory that exists.
#[derive(Debug)]
pub struct DirVolume {
    name: String,
    path: Box<Path>,
    state: RwLock<State>,
    temporary: TemporaryNames,
}

#[derive(Debug, Clone)]
struct State {
    anchor: Arc<Anchor>,
    /// The last look found the wrong volume.
    barred: bool,
    /// The root was opened anew behind the back of whoever calls `verify_identity`, who has to be told.
    remounted: bool,
}

/// Names of files that are being written: this value's random part, then a counter.
#[derive(Debug)]
struct TemporaryNames {
    prefix: String,
    next: AtomicU64,
}

/// What every temporary name begins with. No key has such a component.
const TEMPORARY_PREFIX: &str = ".tmp-";

impl TemporaryNames {
    fn new() -> TemporaryNames {
        // Uniqueness is wanted, not secrecy: files are created exclusively, and a collision only costs another name.
        let random = RandomState::new().hash_one((std::process::id(), SystemTime::now()));
        TemporaryNames {
            prefix: format!("{TEMPORARY_PREFIX}{random:016x}-"),
            next: AtomicU64::new(0),
        }
    }

    fn next(&self) -> String {
        format!(
            "{}{:x}",
            self.prefix,
            self.next.fetch_add(1, Ordering::Relaxed)
        )
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl DirVolume {
    /// The volume in the directory `path`, which must exist: it is never created, because a missing directory is far
    /// more often an unmounted disk than a wish.
    pub fn open(path: impl AsRef<Path>) -> Result<DirVolume> {
        Self::named("dir", path.as_ref())
    }

    /// The same for a directory on this machine's own file system, in the backup path; it prints as `local:`.
    pub fn open_local(path: impl AsRef<Path>) -> Result<DirVolume> {
        Self::named("local", path.as_ref())
    }

    fn named(kind: &str, path: &Path) -> Result<DirVolume> {
        let name = format!("{kind}:{}", path.display());
        let anchor = Anchor::open(
            path,
            None,
            At {
                volume: &name,
                op: "open",
                key: "",
            },
        )?;
        let state = RwLock::new(State {
            anchor: Arc::new(anchor),
            barred: false,
            remounted: false,
        });
        Ok(DirVolume {
            name,
            path: path.into(),
            state,
            temporary: TemporaryNames::new(),
        })
    }

    /// One of several values that write to the same place in the name of one: their temporary names begin alike, so
    /// that no sweep of one takes what another is writing. `first` keeps them apart.
    pub(crate) fn sharing_temporary_names(mut self, tag: u64, first: u64) -> DirVolume {
        self.temporary = TemporaryNames {
            prefix: format!("{TEMPORARY_PREFIX}{tag:016x}-"),
            next: AtomicU64::new(first),
        };
        self
    }

    /// Device and inode of the root that is used now.
    pub(crate) fn place(&self) -> (u64, u64) {
        self.state().anchor.place()
    }

    /// A put of bytes that come only once.
    pub(crate) fn put_once(
        &self,
        key: &ObjectKey,
        body: &dyn Outgoing,
        precondition: Precondition,
    ) -> Result<Meta> {
        let at = self.at("put", key.as_str());
        self.run(at, |anchor| {
            write::put(anchor, at, key, body, precondition, &self.temporary)
        })
    }

    /// The sum of the object at `key`, if it has `len` bytes.
    pub(crate) fn sum(&self, key: &ObjectKey, len: u64) -> Result<Sum> {
        let at = self.at("compare", key.as_str());
        self.run(at, |anchor| sum::of_object(anchor, at, key, len))
    }

    fn at<'a>(&'a self, op: &'static str, key: &'a str) -> At<'a> {
        At {
            volume: &self.name,
            op,
            key,
        }
    }

    fn state(&self) -> State {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` beneath the root, unless the wrong volume was found. A stale handle opens the root anew, so that the
    /// caller's next attempt has a fresh one; the attempt is the caller's because only it knows how long to try.
    fn run<T>(&self, at: At<'_>, work: impl FnOnce(&Anchor) -> Result<T>) -> Result<T> {
        let State { anchor, barred, .. } = self.state();
        if barred {
            return Err(at.barred());
        }
        let result = work(&anchor);
        if let Err(error) = &result
            && error.case() == ErrorCase::Stale
        {
            self.look_afresh(at)?;
        }
        result
    }

    /// Opens the root by its path, makes sure of it, and goes on with it. Of several at once the first one counts: the
    /// others looked at the same thing.
    fn look_afresh(&self, at: At<'_>) -> Result<()> {
        let known = self.state().anchor;
        let look = Anchor::open(&self.path, known.sentinel.clone(), at);
        let verdict = look.and_then(|fresh| fresh.succeeds(&known, at));
        let mut state = self.state_mut();
        let first = Arc::ptr_eq(&state.anchor, &known);
        match verdict {
            Ok((fresh, remounted)) => {
                if first {
                    let remounted = state.remounted || remounted;
                    *state = State {
                        anchor: Arc::new(fresh),
                        barred: false,
                        remounted,
                    };
                }
                Ok(())
            }
            Err(error) if error.is_wrong_volume() => {
                state.barred |= first;
                Err(error)
            }
            Err(error) => Err(error.into_unreachable()),
        }
    }
}

impl fmt::Display for DirVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Volume for DirVolume {
    fn put(&self, key: &ObjectKey, body: Body<'_>, precondition: Precondition) -> Result<Meta> {
        self.put_once(key, &body, precondition)
    }

    fn get(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        let at = self.at("get", key.as_str());
        self.run(at, |anchor| get(anchor, at, key, &range))
    }

    fn head(&self, key: &ObjectKey) -> Result<Option<Meta>> {
        let at = self.at("look up", key.as_str());
        self.run(at, |anchor| head(anchor, at, key))
    }

    fn compare(&self, key: &ObjectKey, body: Body<'_>) -> Result<Option<Likeness>> {
        let ours = sum::of_body(&self.name, key, body)?;
        let theirs = self.sum(key, body.len())?;
        Ok(Some(theirs.compared(ours)))
    }

    fn list(&self, prefix: &str, after: Option<&ObjectKey>, limit: NonZeroUsize) -> Result<Page> {
        let at = self.at("list", prefix);
        self.run(at, |anchor| walk::list(anchor, at, prefix, after, limit))
    }

    fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        let at = self.at("delete", "");
        self.run(at, |anchor| write::delete(anchor, at, keys))
    }

    fn space(&self) -> Result<Option<Space>> {
        let at = self.at("measure", "");
        self.run(at, |anchor| probe::space(anchor, at))
    }

    fn probe(&self) -> Result<Capabilities> {
        let at = self.at("probe", "");
        self.run(at, |anchor| probe::probe(self, anchor, at))
    }

    fn bind(&self, sentinel: Sentinel) -> Result<()> {
        let fresh = Anchor::open(&self.path, Some(sentinel), self.at("bind", ""))?;
        *self.state_mut() = State {
            anchor: Arc::new(fresh),
            barred: false,
            remounted: false,
        };
        Ok(())
    }

    fn verify_identity(&self) -> Result<()> {
        let at = self.at("identify", "");
        self.look_afresh(at)?;
        if !std::mem::take(&mut self.state_mut().remounted) {
            return Ok(());
        }
        let message = "it is the right volume, but mounted anew; what was sent since the last look is checked again";
        Err(at
            .error(ErrorClass::Transient, message)
            .with_case(ErrorCase::Remounted))
    }

    fn sweep_temporary(&self, below: &[&str], older_than: Duration) -> Result<u64> {
        let at = self.at("sweep", "");
        self.run(at, |anchor| {
            walk::sweep(anchor, at, &self.temporary, (below, older_than))
        })
    }
}

fn get(anchor: &Anchor, at: At<'_>, key: &ObjectKey, range: &Range<u64>) -> Result<Bytes> {
    // Not to hang on a planted pipe: O_NONBLOCK means nothing to a regular file.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match anchor.open_beneath(key.as_str(), flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            return Err(anchor.confirm(at).err().unwrap_or_else(|| at.not_found()));
        }
        Err(errno) => return Err(at.errno(errno)),
    };
    let Some(meta) = meta_of(key, &fstat(&file).map_err(|errno| at.errno(errno))?, at)? else {
        return Err(at.not_found());
    };
    let mut bytes = vec![0; checked_len(at.volume, key, range, meta.len)?];
    match file.read_exact_at(&mut bytes, range.start) {
        Ok(()) => Ok(bytes.into()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            let message = format!(
                "it ended within {range:?} though it has {} bytes: it is read again",
                meta.len
            );
            Err(at
                .error(ErrorClass::Transient, message)
                .with_case(ErrorCase::ShortRead))
        }
        Err(error) => Err(at.io(error)),
    }
}

fn head(anchor: &Anchor, at: At<'_>, key: &ObjectKey) -> Result<Option<Meta>> {
    match head_unconfirmed(anchor, at, key)? {
        Some(meta) => Ok(Some(meta)),
        None => anchor.confirm(at).map(|()| None),
    }
}

/// `None` here only means that this root, whatever it is, has no such object.
fn head_unconfirmed(anchor: &Anchor, at: At<'_>, key: &ObjectKey) -> Result<Option<Meta>> {
    match anchor.stat_beneath(key.as_str()) {
        Ok(stat) => meta_of(key, &stat, at),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(at.errno(errno)),
    }
}

/// A regular file is an object, a directory is none; anything else was planted, and nobody should wonder where it went.
fn meta_of(key: &ObjectKey, stat: &FileStat, at: At<'_>) -> Result<Option<Meta>> {
    match kind_of(stat) {
        SFlag::S_IFREG => Ok(Some(Meta {
            key: key.clone(),
            len: u64::try_from(stat.st_size).unwrap_or(0),
            modified: modified(stat),
        })),
        SFlag::S_IFDIR => Ok(None),
        SFlag::S_IFLNK => Err(at.errno(Errno::ELOOP)),
        _ => {
            let message = "a device, pipe or socket stands in place of the object: remove it";
            Err(at.error(ErrorClass::Permanent, message))
        }
    }
}

fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn modified(stat: &FileStat) -> Option<SystemTime> {
    let secs = u64::try_from(stat.st_mtime).ok()?;
    let nanos = u64::try_from(stat.st_mtime_nsec).ok()?;
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(secs))?
        .checked_add(Duration::from_nanos(nanos))
}
