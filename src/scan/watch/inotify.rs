//! Events of each directory by itself, by inotify(7): for everybody, with a watch of the kernel for each directory.
//!
//! A directory is watched from the moment on in which it gets its watch. What happened in it before is not told; so each
//! that is new, or was moved here, is told itself once it is watched.
//! Events of a source that was torn by an overflow are not put together again: the whole is watched anew.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::coverage::Place;
use super::dirty::Change;
use super::feed::{Drained, Feed, Lost, READS_MAX, is_empty, limit};
use super::nodes::Nodes;

/// A path is opened in pieces of at most this, as the kernel takes no longer one.
const PIECE_LEN_MAX: usize = 4000;

/// The watch of all directories of one source.
#[derive(Debug)]
pub(super) struct InotifyFeed {
    inotify: Inotify,
    root: PathBuf,
    one_file_system: bool,
    skip: BTreeSet<PathBuf>,
    nodes: Nodes,
}

impl InotifyFeed {
    /// Watches each directory of a source, but those in `skip` and below.
    pub(super) fn watch(place: &Place, skip: BTreeSet<PathBuf>) -> Result<InotifyFeed, Lost> {
        let root = place.root.as_path();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| refused(errno, root, 0))?;
        let top = File::open(root).map_err(Lost::call("open", root))?;
        let watch = add(&inotify, top.as_fd()).map_err(|errno| refused(errno, root, 0))?;
        let mut feed = InotifyFeed {
            inotify,
            root: root.to_owned(),
            one_file_system: place.one_file_system,
            skip,
            nodes: Nodes::new(watch),
        };
        // All is dirty at the beginning.
        feed.watch_below(&top, watch, &mut |_| {})?;
        Ok(feed)
    }

    /// Watches what is below a directory that is watched itself.
    fn watch_below(
        &mut self,
        top: &File,
        watch: WatchDescriptor,
        sink: &mut dyn FnMut(Change),
    ) -> Result<(), Lost> {
        let mut waiting = VecDeque::from([watch]);
        while let Some(watch) = waiting.pop_front() {
            let Some(path) = self.nodes.path(watch) else {
                continue;
            };
            let Some(dir) = self.open(top, &path)? else {
                continue;
            };
            for name in directories(&dir, &path)? {
                if self.skip.contains(&path.join(&name)) {
                    continue;
                }
                if let Some(child) = self.watch_child((&dir, watch), name)? {
                    waiting.push_back(child);
                }
            }
            // What happened in it before it had its watch was told by nothing.
            sink(Change::Dir(path));
        }
        Ok(())
    }

    fn watch_child(
        &mut self,
        (dir, parent): (&OwnedFd, WatchDescriptor),
        name: OsString,
    ) -> Result<Option<WatchDescriptor>, Lost> {
        let Some(child) = self.open_at(dir.as_fd(), Path::new(&name))? else {
            return Ok(None);
        };
        match add(&self.inotify, child.as_fd()) {
            Ok(watch) => {
                self.nodes.put(watch, parent, name);
                Ok(Some(watch))
            }
            Err(Errno::ENOENT | Errno::EACCES) => Ok(None),
            Err(errno) => Err(refused(errno, &self.root, self.nodes.len())),
        }
    }

    /// A directory below the root; `None` if it is not there any more, or may not be entered.
    fn open(&self, top: &File, path: &Path) -> Result<Option<OwnedFd>, Lost> {
        let mut dir = top
            .try_clone()
            .map(OwnedFd::from)
            .map_err(Lost::call("open", &self.root))?;
        for piece in pieces(path) {
            match self.open_at(dir.as_fd(), &piece)? {
                Some(below) => dir = below,
                None => return Ok(None),
            }
        }
        Ok(Some(dir))
    }

    fn open_at(&self, dir: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, Lost> {
        let mut resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        resolve.set(ResolveFlag::RESOLVE_NO_XDEV, self.one_file_system);
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .resolve(resolve);
        match openat2(dir, path, how) {
            Ok(opened) => Ok(Some(opened)),
            // Deleted or replaced meanwhile, which is an event of the directory above; or of another file system; or
            // closed to us, as it is to the scan.
            Err(
                Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::ELOOP
                | Errno::EXDEV
                | Errno::EACCES
                | Errno::EAGAIN,
            ) => Ok(None),
            Err(errno) => Err(Lost::call("open", &self.root.join(path))(errno)),
        }
    }

    fn take(&mut self, event: &InotifyEvent, sink: &mut dyn FnMut(Change)) -> Result<(), Lost> {
        use AddWatchFlags as Is;
        let is = |mask| event.mask.intersects(mask);
        if is(Is::IN_Q_OVERFLOW) {
            let limit = limit("inotify/max_queued_events");
            return Err(Lost::Overflow { limit });
        }
        let is_top = event.wd == self.nodes.top();
        if is(Is::IN_UNMOUNT) || is_top && is(Is::IN_DELETE_SELF | Is::IN_MOVE_SELF) {
            return Err(Lost::Gone(format!(
                "what was watched at {} was unmounted, moved or deleted",
                self.root.display()
            )));
        }
        if is(Is::IN_IGNORED) {
            self.nodes.remove(event.wd);
            return Ok(());
        }
        // A watch that was given up: what it tells was told with the move.
        let Some(dir) = self.nodes.path(event.wd) else {
            return Ok(());
        };
        if let Some(name) = &event.name
            && is(Is::IN_ISDIR)
        {
            if is(Is::IN_MOVED_FROM) {
                self.nodes.orphan(event.wd, name);
            }
            if is(Is::IN_CREATE | Is::IN_MOVED_TO) {
                self.arrived(event.wd, name, sink)?;
            }
            if is(Is::IN_MOVED_TO) {
                sink(Change::Subtree(dir.join(name)));
            }
        }
        sink(Change::Dir(dir));
        Ok(())
    }

    fn arrived(
        &mut self,
        parent: WatchDescriptor,
        name: &OsStr,
        sink: &mut dyn FnMut(Change),
    ) -> Result<(), Lost> {
        let top = File::open(&self.root).map_err(Lost::call("open", &self.root))?;
        let Some(path) = self.nodes.path(parent) else {
            return Ok(());
        };
        if self.skip.contains(&path.join(name)) {
            return Ok(());
        }
        let Some(dir) = self.open(&top, &path)? else {
            return Ok(());
        };
        match self.watch_child((&dir, parent), name.to_owned())? {
            Some(watch) => self.watch_below(&top, watch, sink),
            None => Ok(()),
        }
    }

    /// Gives up the watches of what was moved away and came to no other place of the source.
    fn give_up_orphans(&mut self) {
        for watch in self.nodes.take_orphans() {
            // Fails for one that the kernel gave up itself, with its directory.
            let _ = self.inotify.rm_watch(watch);
        }
    }
}

impl Feed for InotifyFeed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Change)) -> Result<Drained, Lost> {
        let mut drained = Drained::default();
        for _ in 0..READS_MAX {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(errno) if is_empty(errno) => {
                    self.give_up_orphans();
                    return Ok(drained);
                }
                Err(errno) => return Err(Lost::call("read events of", &self.root)(errno)),
            };
            for event in &events {
                self.take(event, sink)?;
            }
        }
        drained.has_more = true;
        Ok(drained)
    }

    fn watches(&self) -> Option<u64> {
        Some(self.nodes.len())
    }
}

/// Through the descriptor: the path may lead elsewhere by now, or be too long.
fn add(inotify: &Inotify, dir: BorrowedFd<'_>) -> Result<WatchDescriptor, Errno> {
    use AddWatchFlags as On;
    let mask = On::IN_CREATE
        | On::IN_DELETE
        | On::IN_MOVE
        | On::IN_MODIFY
        | On::IN_ATTRIB
        // What was written through a mapping is told by nothing else.
        | On::IN_CLOSE_WRITE
        | On::IN_DELETE_SELF
        | On::IN_MOVE_SELF
        | On::IN_ONLYDIR;
    inotify.add_watch(by_descriptor(dir).as_path(), mask)
}

fn by_descriptor(dir: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

/// The names of the directories in `dir`.
fn directories(dir: &OwnedFd, path: &Path) -> Result<Vec<OsString>, Lost> {
    let entries = match fs::read_dir(by_descriptor(dir.as_fd())) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(Vec::new()),
        Err(error) => return Err(Lost::call("read", path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Lost::call("read", path))?;
        // One that vanished is no directory any more.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}

fn pieces(path: &Path) -> Vec<PathBuf> {
    let mut pieces: Vec<PathBuf> = Vec::new();
    for name in path.components() {
        match pieces.last_mut() {
            Some(piece) if piece.as_os_str().len() + name.as_os_str().len() < PIECE_LEN_MAX => {
                piece.push(name);
            }
            _ => pieces.push(PathBuf::from(name.as_os_str())),
        }
    }
    pieces
}

fn refused(errno: Errno, root: &Path, watched: u64) -> Lost {
    let shown = root.display();
    Lost::Refused(match errno {
        Errno::ENOSPC => {
            let limit = limit("inotify/max_user_watches");
            format!(
                "inotify has no more watches after {watched} directories of {shown}: fs.inotify.max_user_watches is \
                 {limit}. Raise it above the number of directories with 'sysctl fs.inotify.max_user_watches=N', or run \
                 as root on a file system that fanotify can watch"
            )
        }
        Errno::EMFILE => {
            let limit = limit("inotify/max_user_instances");
            format!(
                "inotify has no more instances for this user: fs.inotify.max_user_instances is {limit}. Raise it with \
                 'sysctl fs.inotify.max_user_instances=N'"
            )
        }
        errno => format!("inotify cannot watch {shown}: {}", errno.desc()),
    })
}
