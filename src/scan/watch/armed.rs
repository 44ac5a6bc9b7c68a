//! A source that is watched: its feeds, and what tells that they are worth nothing any more.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use vfs::dir::MOUNTINFO;

use super::Kind;
use super::coverage::{Coverage, Place};
use super::dirty::Change;
use super::fanotify::FanotifyFeed;
use super::feed::{Drained, Feed, Lost};
use super::inotify::InotifyFeed;

/// A mount that comes or goes while we arm makes us begin again, this often.
const ATTEMPTS: usize = 5;

pub(super) struct Armed {
    pub(super) kind: Kind,
    /// Why it is not the better kind, if it is not.
    pub(super) note: Option<String>,
    place: Place,
    coverage: Coverage,
    feeds: Vec<Box<dyn Feed>>,
    sentinel: Sentinel,
    mounts: File,
}

/// Tells that a file system is unmounted, or a root taken away, which fanotify does not.
struct Sentinel {
    inotify: Inotify,
}

impl Armed {
    /// Watches `place`, by the kind that was asked for, or by the best there is.
    pub(super) fn arm(place: &Place, forced: Option<Kind>) -> Result<Armed, Lost> {
        let mut before = Coverage::of(place)?;
        for _ in 0..ATTEMPTS {
            // Opened first: what changes from here on is told.
            let mounts = File::open(MOUNTINFO).map_err(Lost::call("open", MOUNTINFO.as_ref()))?;
            let sentinel = Sentinel::watch(place, &before)?;
            let (kind, feeds, note) = feeds(place, &before, forced)?;
            let after = Coverage::of(place)?;
            if after == before {
                return Ok(Armed {
                    kind,
                    note,
                    place: place.clone(),
                    coverage: after,
                    feeds,
                    sentinel,
                    mounts,
                });
            }
            before = after;
        }
        let shown = place.root.display();
        Err(Lost::Gone(format!(
            "what is mounted at and below {shown} changes all the time"
        )))
    }

    /// Directories with a watch of their own.
    pub(super) fn watches(&self) -> Option<u64> {
        self.feeds.iter().map(|feed| feed.watches()).sum()
    }

    /// What to poll: events and sentinel, readable when there is something ..
    pub(super) fn readable(&self) -> Vec<BorrowedFd<'_>> {
        let feeds = self.feeds.iter().map(|feed| feed.as_fd());
        feeds.chain([self.sentinel.inotify.as_fd()]).collect()
    }

    /// .. and the table of mounts, exceptional when it changed.
    pub(super) fn mounts(&self) -> BorrowedFd<'_> {
        self.mounts.as_fd()
    }

    /// Takes the events that are there.
    pub(super) fn drain(&mut self, sink: &mut dyn FnMut(Change)) -> Result<Drained, Lost> {
        let mut total = Drained::default();
        for feed in &mut self.feeds {
            let drained = feed.drain(sink)?;
            total.overflows += drained.overflows;
            total.has_more |= drained.has_more;
        }
        self.sentinel.check(&self.place)?;
        Ok(total)
    }

    /// Fails if the source is not what it was.
    pub(super) fn check(&self) -> Result<(), Lost> {
        let shown = self.place.root.display();
        if !self.coverage.is_here(&self.place.root) {
            return Err(Lost::Gone(format!(
                "{shown} is not the directory any more that was watched"
            )));
        }
        if Coverage::of(&self.place)? != self.coverage {
            return Err(Lost::Gone(format!(
                "something was mounted or unmounted at or below {shown}"
            )));
        }
        Ok(())
    }
}

type Feeds = Vec<Box<dyn Feed>>;

fn feeds(
    place: &Place,
    coverage: &Coverage,
    forced: Option<Kind>,
) -> Result<(Kind, Feeds, Option<String>), Lost> {
    let root = place.root.as_path();
    let whole = || -> Result<Feeds, Lost> {
        let entries = coverage.entries(root);
        entries
            .map(|entry| Ok(Box::new(FanotifyFeed::watch(root, entry)?) as Box<dyn Feed>))
            .collect()
    };
    let each = || -> Result<Feeds, Lost> {
        let feed = InotifyFeed::watch(place, coverage.skip(place))?;
        Ok(vec![Box::new(feed)])
    };
    match forced {
        Some(Kind::Fanotify) => Ok((Kind::Fanotify, whole()?, None)),
        Some(Kind::Inotify) => Ok((Kind::Inotify, each()?, None)),
        None => match whole() {
            Ok(feeds) => Ok((Kind::Fanotify, feeds, None)),
            Err(why) => Ok((Kind::Inotify, each()?, Some(why.to_string()))),
        },
    }
}

impl Sentinel {
    fn watch(place: &Place, coverage: &Coverage) -> Result<Sentinel, Lost> {
        let root = place.root.as_path();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(Lost::call("make an inotify instance for", root))?;
        let mask = AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        for entry in coverage.entries(root) {
            inotify
                .add_watch(entry, mask)
                .map_err(Lost::call("watch", entry))?;
        }
        Ok(Sentinel { inotify })
    }

    /// Any event at all means the end.
    fn check(&self, place: &Place) -> Result<(), Lost> {
        match self.inotify.read_events() {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(()),
            Ok(events) if events.is_empty() => Ok(()),
            Ok(_) => Err(Lost::Gone(format!(
                "{} was unmounted, moved or deleted",
                place.root.display()
            ))),
            Err(errno) => Err(Lost::call("read events of", &place.root)(errno)),
        }
    }
}
