//! Events of a whole file system, by fanotify(7): one mark, however many directories there are. For root.
//!
//! An event names its directory by a handle. The path is asked for when the event is read, which may be later than a
//! move; so whatever was moved is told with all below it, after the move, under its new name.
//! Only notifications are asked for, never permission: nobody waits for us.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::stat::Mode;

use super::dirty::Change;
use super::feed::{Drained, Feed, Lost, READS_MAX, is_empty, limit};
use super::handle;
use super::record::{self, Event, Handle};

/// What a read may return: some hundred events.
const BUFFER_LEN: usize = 64 << 10;
/// Directories whose path is remembered. All are forgotten when it is full, and at every move of a directory.
const KNOWN_MAX: usize = 20_000;
/// What the kernel puts behind the path of a directory that was deleted.
const DELETED: &[u8] = b" (deleted)";

/// The watch of one file system, for one source.
#[derive(Debug)]
pub(super) struct FanotifyFeed {
    group: Fanotify,
    /// Of the source.
    root: PathBuf,
    /// The source's root, or a mount below it: any directory of the file system that is seen here.
    entry: Entry,
    known: HashMap<Handle, Known>,
    buffer: Vec<u8>,
}

/// Where a directory is.
#[derive(Clone, Debug)]
enum Known {
    /// Below the root of the source.
    Here(PathBuf),
    /// Somewhere below a directory that is: its own path is longer than the kernel tells.
    Deep(PathBuf),
    Elsewhere,
}

/// A directory that is opened by its path each time, for an open one would keep its file system mounted.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    identity: (u64, u64),
}

impl Entry {
    fn open(&self) -> Result<File, Lost> {
        let dir = File::open(&self.path).map_err(Lost::call("open", &self.path))?;
        let metadata = dir.metadata().map_err(Lost::call("look at", &self.path))?;
        if (metadata.dev(), metadata.ino()) != self.identity {
            return Err(Lost::Gone(format!(
                "{} is not the directory any more that was watched",
                self.path.display()
            )));
        }
        Ok(dir)
    }
}

impl FanotifyFeed {
    /// Watches the file system that `entry` is on: the root of the source, or a mount below it.
    pub(super) fn watch(root: &Path, entry: &Path) -> Result<FanotifyFeed, Lost> {
        let dir = File::open(entry).map_err(Lost::call("open", entry))?;
        let metadata = dir.metadata().map_err(Lost::call("look at", entry))?;
        let flags = InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | InitFlags::FAN_CLASS_NOTIF;
        // Not among nix's own. With the object beside the directory: a file that was opened without its directory, as
        // an NFS server does, would be passed over otherwise.
        let report = InitFlags::from_bits_retain(libc::FAN_REPORT_DFID_NAME | libc::FAN_REPORT_FID);
        let group = Fanotify::init(flags | report, EventFFlags::O_RDONLY)
            .map_err(|errno| refused(errno, entry))?;
        let mask = MaskFlags::FAN_CREATE
            | MaskFlags::FAN_DELETE
            | MaskFlags::FAN_MOVE
            | MaskFlags::FAN_MODIFY
            | MaskFlags::FAN_ATTRIB
            // What was written through a mapping is told by nothing else.
            | MaskFlags::FAN_CLOSE_WRITE
            | MaskFlags::FAN_ONDIR;
        group
            .mark(
                MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
                mask,
                &dir,
                None::<&Path>,
            )
            .map_err(|errno| refused(errno, entry))?;
        // A container may mark and may not open: better known now than at the first event.
        handle::of(dir.as_fd())
            .and_then(|own| handle::open(dir.as_fd(), &own))
            .map_err(|errno| refused(errno, entry))?;
        Ok(FanotifyFeed {
            group,
            root: root.to_owned(),
            entry: Entry {
                path: entry.to_owned(),
                identity: (metadata.dev(), metadata.ino()),
            },
            known: HashMap::new(),
            buffer: vec![0; BUFFER_LEN],
        })
    }

    fn take(
        &mut self,
        event: &Event,
        opened: &mut Option<File>,
        sink: &mut dyn FnMut(Change),
    ) -> Result<(), Lost> {
        let Some(dir) = &event.dir else {
            return self.take_object(event, opened, sink);
        };
        let is_dir = event.mask & libc::FAN_ONDIR != 0;
        let is_moved = event.mask & libc::FAN_MOVE != 0;
        if is_dir && is_moved {
            self.known.clear();
        }
        match self.path(dir, opened)? {
            None | Some(Known::Elsewhere) => {}
            Some(Known::Deep(above)) => sink(Change::Subtree(above)),
            Some(Known::Here(path)) => {
                if let Some(name) = &event.name
                    && is_dir
                {
                    let child = path.join(OsStr::from_bytes(name));
                    if event.mask & libc::FAN_MOVED_TO != 0 {
                        sink(Change::Subtree(child));
                    } else if event.mask & libc::FAN_CREATE != 0 {
                        // It may be empty where another of that name was not.
                        sink(Change::Dir(child));
                    }
                }
                sink(Change::Dir(path));
            }
        }
        Ok(())
    }

    /// An event on a file whose directory the kernel does not know.
    fn take_object(
        &mut self,
        event: &Event,
        opened: &mut Option<File>,
        sink: &mut dyn FnMut(Change),
    ) -> Result<(), Lost> {
        let Some(object) = &event.object else {
            sink(Change::Everything);
            return Ok(());
        };
        match self.find(object, opened)? {
            Found::Gone => {}
            Found::At(path) => match path.parent() {
                // A file that hangs in the air is shown as if it were the root.
                None => sink(Change::Everything),
                Some(parent) => {
                    if let Ok(below) = parent.strip_prefix(&self.root) {
                        sink(Change::Dir(below.to_owned()));
                    }
                }
            },
            Found::Below(path) => {
                if let Ok(below) = path.strip_prefix(&self.root) {
                    sink(Change::Subtree(below.to_owned()));
                }
            }
        }
        Ok(())
    }

    /// Where a directory is; `None` if it is gone.
    fn path(&mut self, dir: &Handle, opened: &mut Option<File>) -> Result<Option<Known>, Lost> {
        if let Some(known) = self.known.get(dir) {
            return Ok(Some(known.clone()));
        }
        let below = |path: PathBuf, known: fn(PathBuf) -> Known| {
            let below = path.strip_prefix(&self.root).map(Path::to_owned);
            below.map_or(Known::Elsewhere, known)
        };
        let known = match self.find(dir, opened)? {
            // Its deletion is an event of the directory above.
            Found::Gone => return Ok(None),
            Found::At(path) => below(path, Known::Here),
            Found::Below(path) => below(path, Known::Deep),
        };
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(dir.clone(), known.clone());
        Ok(Some(known))
    }

    fn find(&self, object: &Handle, opened: &mut Option<File>) -> Result<Found, Lost> {
        let entry = match opened {
            Some(entry) => entry,
            None => opened.insert(self.entry.open()?),
        };
        match handle::open(entry.as_fd(), object) {
            Ok(object) => name_of(&object).map_err(Lost::call("find", &self.entry.path)),
            Err(Errno::ESTALE | Errno::ENOENT) => Ok(Found::Gone),
            Err(errno) => Err(Lost::call("find what changed in", &self.entry.path)(errno)),
        }
    }
}

/// Where something is.
enum Found {
    Gone,
    At(PathBuf),
    /// Somewhere below: its own path is longer than the kernel tells.
    Below(PathBuf),
}

fn name_of(object: &OwnedFd) -> Result<Found, Errno> {
    match read_link(object.as_fd()) {
        Ok(path) if is_deleted(&path) => Ok(Found::Gone),
        Ok(path) => Ok(Found::At(path)),
        Err(Errno::ENAMETOOLONG) => climb(object),
        Err(errno) => Err(errno),
    }
}

/// Up to the first directory whose path can be told.
fn climb(object: &OwnedFd) -> Result<Found, Errno> {
    let up = |dir: BorrowedFd<'_>| {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::openat(dir, "..", flags, Mode::empty())
    };
    let mut dir = up(object.as_fd())?;
    loop {
        match read_link(dir.as_fd()) {
            Ok(path) => return Ok(Found::Below(path)),
            // Ends at the root of the file system at the latest, whose path is short.
            Err(Errno::ENAMETOOLONG) => dir = up(dir.as_fd())?,
            Err(errno) => return Err(errno),
        }
    }
}

fn read_link(open: BorrowedFd<'_>) -> Result<PathBuf, Errno> {
    let link = format!("/proc/self/fd/{}", open.as_raw_fd());
    nix::fcntl::readlink(link.as_str()).map(PathBuf::from)
}

/// A directory may also be called so.
fn is_deleted(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(DELETED) && fs::symlink_metadata(path).is_err()
}

fn refused(errno: Errno, entry: &Path) -> Lost {
    let shown = entry.display();
    Lost::Refused(match errno {
        Errno::EPERM | Errno::EACCES => {
            "fanotify is for root (CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH)".to_owned()
        }
        Errno::EMFILE => format!(
            "fanotify groups are used up (fs.fanotify.max_user_groups is {})",
            limit("fanotify/max_user_groups")
        ),
        Errno::ENOSPC => format!(
            "fanotify marks are used up (fs.fanotify.max_user_marks is {})",
            limit("fanotify/max_user_marks")
        ),
        Errno::ENOSYS | Errno::EINVAL => {
            "this kernel's fanotify names no directories (Linux 5.9 does)".to_owned()
        }
        Errno::ENODEV | Errno::EOPNOTSUPP | Errno::EXDEV => {
            format!("the file system of {shown} has no identity for fanotify")
        }
        errno => format!("fanotify cannot watch {shown}: {}", errno.desc()),
    })
}

impl Feed for FanotifyFeed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Change)) -> Result<Drained, Lost> {
        let mut drained = Drained::default();
        // Open while we drain only: see `Entry`.
        let mut opened = None;
        for _ in 0..READS_MAX {
            let len = match nix::unistd::read(&self.group, &mut self.buffer) {
                Ok(len) => len,
                Err(errno) if is_empty(errno) => return Ok(drained),
                Err(errno) => return Err(Lost::call("read events of", &self.entry.path)(errno)),
            };
            let read = self.buffer.get(..len).unwrap_or_default();
            let events = record::decode(read).map_err(|garbled| {
                Lost::Refused(format!("fanotify is not understood: {garbled}"))
            })?;
            for event in &events {
                if event.mask & libc::FAN_Q_OVERFLOW != 0 {
                    drained.overflows += 1;
                    self.known.clear();
                    sink(Change::Everything);
                } else {
                    self.take(event, &mut opened, sink)?;
                }
            }
        }
        drained.has_more = true;
        Ok(drained)
    }

    fn watches(&self) -> Option<u64> {
        None
    }
}
