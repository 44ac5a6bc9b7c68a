//! Which directories of a source changed, as the kernel tells it: events in, a bounded set of what is dirty out.
//!
//! In reading order: `dirty` (what is gathered), `feed` (what event sources have in common), `record` and `handle`
//! (what fanotify writes, and what it means), `fanotify`, `inotify` and its `nodes` (the two event sources), `coverage`
//! (what a source stands on), `armed` (a source that is watched), `reader` (the thread), `shared` (where it meets those
//! who scan), `scope` (what they look at).
//!
//! The rule of all of it: what is told is at least what happened. Where events were lost, or may have been, everything
//! is dirty, and a scan finds out. Reading the source is the scan's; nothing here reads more than directories.

mod armed;
mod coverage;
mod dirty;
mod fanotify;
mod feed;
mod handle;
mod inotify;
mod nodes;
mod reader;
mod record;
mod scope;
mod shared;
#[cfg(test)]
mod tests;

use std::io::{PipeWriter, Write, pipe};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::Sender;
use serde::Serialize;

use crate::clock::Clock;
use crate::error::{Error, Result};

pub use coverage::Place;
pub use dirty::{Accounts, Area, Dirty, Lens};
use reader::Reader;
use shared::Shared;

/// How a source is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Its file systems as a whole.
    Fanotify,
    /// Each directory by itself.
    Inotify,
}

impl Kind {
    /// By its name.
    pub fn parse(name: &str) -> Option<Kind> {
        match name {
            "fanotify" => Some(Kind::Fanotify),
            "inotify" => Some(Kind::Inotify),
            _ => None,
        }
    }
}

/// What to watch, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The source.
    pub place: Place,
    /// How its paths are looked at.
    pub lens: Lens,
    /// By this kind and no other; `None`: by the best there is.
    pub kind: Option<Kind>,
    /// For the moment since when it is watched.
    pub clock: Arc<dyn Clock>,
}

/// How a source is watched that is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Watched {
    /// By what.
    pub kind: Kind,
    /// Seconds since 1970.
    pub since: i64,
    /// Directories with a watch of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watches: Option<u64>,
    /// Why not by the better kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How the watch of a source goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Status {
    /// `None` while it is not watched.
    #[serde(flatten)]
    pub watched: Option<Watched>,
    /// Why it is not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Changes that it was told of, each of which may stand for several events.
    pub events: u64,
    /// How often the kernel had no room for more.
    pub overflows: u64,
    /// How often the watch was lost, for whatever reason.
    pub losses: u64,
    /// Accounts in which something changed that no scan has looked at.
    pub dirty_accounts: u64,
    /// All of it is to be looked at.
    pub is_all_dirty: bool,
}

/// A source that is watched, or would be if it could. Ends when it is dropped.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    wake: PipeWriter,
}

impl Watcher {
    /// Begins. `bell` is rung when something becomes dirty, or the watch is lost.
    pub fn start(plan: Plan, bell: Sender<()>) -> Result<Watcher> {
        let Plan {
            place,
            lens,
            kind,
            clock,
        } = plan;
        let root = place.root.clone();
        let (sleeper, wake) = pipe().map_err(Error::io("make a pipe for", &root))?;
        let shared = Arc::new(Shared::new(lens, bell));
        let reader = Reader {
            place,
            kind,
            clock,
            shared: Arc::clone(&shared),
        };
        thread::Builder::new()
            .name("watch".into())
            .spawn(move || reader.run(sleeper))
            .map_err(Error::io("start a thread to watch", &root))?;
        Ok(Watcher { shared, wake })
    }

    /// Waits until all is known that happened before this call. False if it is not: it takes longer than `patience`, or
    /// the source is not watched.
    pub fn settle(&self, patience: Duration) -> bool {
        let asked = self.shared.ask();
        self.wake();
        self.shared.await_settled(asked, patience)
    }

    /// Which directories are accounts, from now on: what changes is gathered by them.
    pub fn know(&self, accounts: Accounts) {
        self.shared.know(accounts);
    }

    /// What is dirty, for the caller to look at. `None` while the source is not watched: then nothing is known.
    pub fn take(&self) -> Option<Dirty> {
        self.shared.take()
    }

    /// What was taken and could not be looked at.
    pub fn give_back(&self, dirty: Dirty) {
        self.shared.give_back(dirty);
    }

    /// How long ago the first and the last change came that nobody took. `None` if there is none.
    pub fn waiting(&self) -> Option<(Duration, Duration)> {
        self.shared.waiting()
    }

    /// How it goes.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    fn wake(&self) {
        // Fails when the thread is gone, which is seen by its silence.
        let _ = (&self.wake).write(&[0]);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.end();
        self.wake();
    }
}
