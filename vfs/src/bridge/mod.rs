//! The bridge: the raw objects of any volume as files and directories, for `ls`, `find`, `cp` and `rsync`.
//!
//! What FUSE wants of a tree of files, in terms of a [`Volume`]; the requests themselves are the caller's business. An
//! object is a file, a common prefix is a directory. Files are written whole: the bytes wait on this machine's disk and
//! are put when the file is closed, so that whoever looks sees the old object or the new one. What a volume cannot do is
//! refused rather than made to look done: a change in the middle, a name that is no key, moving a directory. Owners,
//! modes and times are not kept, as an object has none of its own.
//!
//! - `names`: numbers for paths; `listing`: directories out of keys; `stage`: a file while it is written;
//!   `reads`: objects by range, ahead of the reader; `write`: what changes something.
//!
//! Lock: `state` only, and never across a call of the volume. A stage's own locks come below it.

mod listing;
mod names;
mod reads;
mod stage;
mod write;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::Error;
use crate::key::{ObjectKey, is_component};
use crate::volume::{Meta, Space, Volume};

use listing::{Child, Reading, Readings};
use names::{Names, What};
use reads::Reads;
use stage::{Stage, is_temporary};

/// The number of the directory that is mounted.
pub const ROOT: u64 = names::ROOT;

/// Why something was not done.
#[derive(Debug)]
pub enum Fault {
    /// It is refused, as a file system refuses it.
    Refused(Errno),
    /// The volume, or this machine's disk, failed.
    Failed(Error),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Fault {
        Fault::Refused(errno)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Failed(error)
    }
}

impl From<io::Error> for Fault {
    /// Of the temporary files: their disk is full, most likely.
    fn from(error: io::Error) -> Fault {
        tracing::error!(
            "the temporary files of the bridge failed: {error}; see that TMPDIR has room"
        );
        Fault::Refused(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

/// What an operation gives.
pub type Outcome<T> = Result<T, Fault>;

/// A file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    /// What it is called by until it is forgotten.
    pub number: u64,
    /// A directory, else a file.
    pub is_directory: bool,
    /// Bytes of a file.
    pub len: u64,
    /// When the object was put, as far as the volume tells; for all else, when the bridge was built.
    pub modified: SystemTime,
}

/// A volume, seen as files.
#[derive(Debug)]
pub struct Bridge {
    volume: Arc<dyn Volume>,
    state: Mutex<State>,
    reads: Reads,
    temporary: PathBuf,
    read_only: bool,
    built: SystemTime,
}

#[derive(Debug)]
struct State {
    names: Names,
    readings: Readings,
    /// Directories that hold nothing on the volume, or may not.
    directories: BTreeSet<Arc<str>>,
    stages: HashMap<u64, Arc<Stage>>,
}

/// The path of `name` in a directory.
fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl State {
    fn path(&self, number: u64) -> Outcome<(Arc<str>, What)> {
        self.names.get(number).ok_or(Fault::Refused(Errno::ESTALE))
    }

    fn directory(&self, number: u64) -> Outcome<Arc<str>> {
        match self.path(number)? {
            (path, What::Directory) => Ok(path),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    /// Paths of directories of our own that begin with `prefix`.
    fn directories_below(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let start = (Bound::Excluded(prefix), Bound::Unbounded);
        let below = self.directories.range::<str, _>(start);
        below
            .map(|path| &**path)
            .take_while(move |path| path.starts_with(prefix))
    }

    /// Whether this mount alone knows of something in the directory.
    fn has_own_below(&self, path: &str) -> bool {
        let prefix = join(path, "");
        let is_below = |stage: &Arc<Stage>| {
            let state = stage.state();
            !state.is_gone && state.path.starts_with(&prefix)
        };
        self.directories_below(&prefix).next().is_some() || self.stages.values().any(is_below)
    }

    fn is_own_directory(&self, path: &str) -> bool {
        path.is_empty() || self.directories.contains(path) || self.has_own_below(path)
    }

    /// What this mount alone knows to be in the directory, in order.
    fn own_children(&self, directory: &str) -> Vec<Child> {
        let prefix = join(directory, "");
        let mut names: BTreeSet<Arc<str>> = self
            .directories_below(&prefix)
            .filter_map(|path| path.get(prefix.len()..)?.split('/').next())
            .map(Arc::from)
            .collect();
        for stage in self.stages.values() {
            let state = stage.state();
            if !state.is_there && !state.is_gone && parent_of(&state.path) == directory {
                names.extend(state.path.get(prefix.len()..).map(Arc::from));
            }
        }
        let child = |name| Child { name, meta: None };
        names.into_iter().map(child).collect()
    }
}

impl Bridge {
    /// Over `volume`; files that are written wait in the directory `temporary`. Starts the threads that read.
    pub fn new(
        volume: Arc<dyn Volume>,
        temporary: PathBuf,
        read_only: bool,
    ) -> io::Result<Arc<Bridge>> {
        Ok(Arc::new(Bridge {
            reads: Reads::start(Arc::clone(&volume))?,
            volume,
            state: Mutex::new(State {
                names: Names::new(Instant::now()),
                readings: Readings::default(),
                directories: BTreeSet::new(),
                stages: HashMap::new(),
            }),
            temporary,
            read_only,
            built: SystemTime::now(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self, state: &State, number: u64, what: What) -> Node {
        let (is_directory, len, modified) = match what {
            What::Directory => (true, 0, None),
            What::File { len, modified } => (false, len, modified),
        };
        Node {
            number,
            is_directory,
            len: state.stages.get(&number).map_or(len, |stage| stage.len()),
            modified: modified.unwrap_or(self.built),
        }
    }

    /// What stands behind a name.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Outcome<Node> {
        let name = std::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        let path = {
            let mut state = self.state();
            let path = join(&state.directory(parent)?, name);
            let now = Instant::now();
            let staged = state
                .names
                .number(&path)
                .filter(|number| state.stages.contains_key(number));
            if staged.is_none() && state.is_own_directory(&path) {
                state.names.note(&path, What::Directory, now);
            }
            let known = staged.or_else(|| state.names.fresh(&path, now));
            if let Some(number) = known {
                let (_, what) = state.path(number)?;
                return Ok(self.shown(&state, number, what));
            }
            path
        };
        let what = self.look(&path)?.ok_or(Errno::ENOENT)?;
        let mut state = self.state();
        let number = state.names.note(&path, what, Instant::now());
        Ok(self.shown(&state, number, what))
    }

    /// Asks the volume what stands at `path`.
    fn look(&self, path: &str) -> Outcome<Option<What>> {
        let Ok(key) = ObjectKey::new(path) else {
            return Ok(None);
        };
        if self.holds_objects(path)? {
            return Ok(Some(What::Directory));
        }
        Ok(self.volume.head(&key)?.as_ref().map(what_of))
    }

    /// Whether the volume has objects below the directory.
    fn holds_objects(&self, path: &str) -> Outcome<bool> {
        let page = self.volume.list(&join(path, ""), None, NonZeroUsize::MIN)?;
        Ok(!page.objects.is_empty())
    }

    /// What a number means.
    pub fn node(&self, number: u64) -> Outcome<Node> {
        let state = self.state();
        let (_, what) = state.path(number)?;
        Ok(self.shown(&state, number, what))
    }

    /// The directory above a directory; the root's is the root.
    pub fn parent(&self, number: u64) -> Outcome<u64> {
        let mut state = self.state();
        let path = state.directory(number)?;
        Ok(state
            .names
            .note(parent_of(&path), What::Directory, Instant::now()))
    }

    /// Up to `count_max` names behind `after`, each once. Empty at the end.
    pub fn list(
        &self,
        number: u64,
        after: Option<&[u8]>,
        count_max: usize,
    ) -> Outcome<Vec<(Arc<str>, Node)>> {
        let after = after
            .map(std::str::from_utf8)
            .transpose()
            .map_err(|_| Errno::EINVAL)?;
        let now = Instant::now();
        let (directory, reading) = {
            let mut state = self.state();
            let directory = state.directory(number)?;
            let reading = match after {
                None => Some(Reading::new(
                    &directory,
                    state.own_children(&directory),
                    now,
                )),
                Some(after) => state.readings.take(&directory, after, now),
            };
            (directory, reading)
        };
        let mut reading = match (reading, after) {
            (Some(reading), _) => reading,
            (None, after) => self.resume(&directory, after.unwrap_or_default())?,
        };
        let children = reading.next(&*self.volume, after, count_max)?;
        let mut state = self.state();
        state.readings.keep(reading, now);
        let mut listed = Vec::with_capacity(children.len());
        for Child { name, meta } in children {
            let path = join(&directory, &name);
            let staged = state
                .names
                .number(&path)
                .filter(|number| state.stages.contains_key(number));
            let number = staged.unwrap_or_else(|| {
                let what = meta.as_ref().map_or(What::Directory, what_of);
                state.names.note(&path, what, now)
            });
            let (_, what) = state.path(number)?;
            listed.push((name, self.shown(&state, number, what)));
        }
        Ok(listed)
    }

    fn resume(&self, directory: &Arc<str>, after: &str) -> Outcome<Reading> {
        let path = join(directory, after);
        let known = {
            let state = self.state();
            let number = state.names.number(&path);
            number.and_then(|number| Some(state.names.get(number)?.1))
        };
        let is_directory = match known {
            Some(what) => what == What::Directory,
            None => is_component(after) && self.holds_objects(&path)?,
        };
        let own = self.state().own_children(directory);
        Ok(Reading::resume(
            directory,
            own,
            (after, is_directory),
            Instant::now(),
        ))
    }

    /// Reads up to `len` bytes from `offset` of a file that is open. Answers on this thread if the bytes are here.
    pub fn read(
        &self,
        number: u64,
        offset: u64,
        len: u32,
        answer: Box<dyn FnOnce(Outcome<Bytes>) + Send>,
    ) {
        let stage = self.state().stages.get(&number).cloned();
        match stage {
            Some(stage) => answer(
                stage
                    .read(offset, len)
                    .map(Bytes::from)
                    .map_err(Fault::from),
            ),
            None => self.reads.read(
                number,
                offset,
                len,
                Box::new(|outcome| answer(outcome.map_err(Fault::from))),
            ),
        }
    }

    /// Room on the volume, where it knows.
    pub fn space(&self) -> Outcome<Option<Space>> {
        Ok(self.volume.space()?)
    }

    /// The kernel was told of the number once more.
    pub fn hold(&self, number: u64) {
        self.state().names.hold(number);
    }

    /// The kernel forgot it, that often.
    pub fn forget(&self, number: u64, count: u64) {
        self.state().names.forget(number, count);
    }
}

fn what_of(meta: &Meta) -> What {
    What::File {
        len: meta.len,
        modified: meta.modified,
    }
}

#[cfg(test)]
mod tests;
