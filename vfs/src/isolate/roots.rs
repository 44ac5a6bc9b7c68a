//! Which root of the volume the workers may use, and how each comes to have it.
//!
//! Locks: `identity` only, and never while a worker is asked.

use std::time::Instant;

use crate::error::{At, ErrorCase, ErrorClass, Result};
use crate::identity::Sentinel;

use super::IsolatedDir;
use super::message::{Answer, Answered, Place, Request};
use super::pool::{Lease, Load};

/// Which volume it is, and which root of it is used.
#[derive(Debug, Default)]
pub(super) struct Identity {
    sentinel: Option<Sentinel>,
    /// The sentinel's bytes that were accepted.
    pinned: Option<Vec<u8>>,
    place: Option<Place>,
    /// The last look found the wrong volume.
    pub(super) barred: bool,
    /// Why puts since the last good look do not count, if they do not.
    doubt: Option<&'static str>,
    /// Goes up when every worker has to open its root anew.
    generation: u64,
    /// Good looks so far.
    pub(super) looks: u64,
}

const MOUNTED_ANEW: &str =
    "it is the right volume, but mounted anew; what was sent since the last look is checked again";
const WORKER_LOST: &str =
    "a worker that had sent something was lost; what was sent since the last look is checked again";

/// Makes the request that opens the root, of the sentinel's bytes if there are any.
type OpenRequest<'a> = &'a dyn Fn(Option<&Vec<u8>>) -> Request;

impl Identity {
    pub(super) fn new(sentinel: Option<Sentinel>) -> Identity {
        Identity {
            sentinel,
            ..Identity::default()
        }
    }

    fn moved_to(&mut self, place: Place) {
        self.place = Some(place);
        self.doubt = Some(MOUNTED_ANEW);
        self.generation += 1;
    }
}

fn another_directory(at: At<'_>) -> crate::Error {
    at.wrong_volume(
        "another directory than the one that was opened is there now: mount the right volume",
    )
}

impl IsolatedDir {
    pub(super) fn lose(&self, lease: &mut Lease) {
        let mut identity = self.identity();
        if lease
            .member()
            .is_some_and(|member| member.changed_in == Some(identity.looks))
        {
            identity.doubt = Some(WORKER_LOST);
        }
        drop(identity);
        lease.lose();
    }

    /// A worker opens its root anew by itself when its handle went stale: then it may be another.
    pub(super) fn note_place(&self, lease: &mut Lease, place: Option<Place>) {
        let mut identity = self.identity();
        let (Some(place), Some(member)) = (place, lease.member_mut()) else {
            return;
        };
        // One that has an older root is about to open the known one.
        let is_current = member.opened_in == Some(identity.generation);
        if is_current && identity.place.is_some_and(|known| known != place) {
            identity.moved_to(place);
            member.opened_in = Some(identity.generation);
        }
    }

    /// Has the worker open its root together with a look at the sentinel. Returns the root and the sentinel's bytes.
    fn open_root(
        &self,
        lease: &mut Lease,
        at: At<'_>,
        (sentinel, pinned): (Option<&Sentinel>, Option<Vec<u8>>),
        deadline: Instant,
    ) -> Result<(Place, Option<Vec<u8>>)> {
        let first = lease.member().map_or(0, |member| member.worker.id) << 40;
        let open = |bytes: Option<&Vec<u8>>| Request::Open {
            path: self.path.clone(),
            sentinel: sentinel.zip(bytes).map(|(sentinel, bytes)| {
                let key = sentinel.key().clone();
                (key, bytes.clone())
            }),
            tag: self.tag,
            first,
        };
        let opened = match (sentinel, pinned) {
            (None, _) => self
                .ask(lease, at, &open(None), deadline)
                .map(|answered| (answered, None)),
            (Some(sentinel), None) => self.judge_and_open(lease, at, sentinel, (&open, deadline)),
            (Some(sentinel), Some(pinned)) => {
                match self.ask(lease, at, &open(Some(&pinned)), deadline) {
                    // Other bytes may be as right: that is not for a worker to decide.
                    Err(error) if error.is_wrong_volume() => {
                        self.judge_and_open(lease, at, sentinel, (&open, deadline))
                    }
                    outcome => outcome.map(|answered| (answered, Some(pinned))),
                }
            }
        };
        let (answered, accepted) = opened.map_err(|error| error.of_root().asked_at(at))?;
        let place = answered.place.ok_or_else(|| Self::nonsense(at))?;
        Ok((place, accepted))
    }

    fn judge_and_open(
        &self,
        lease: &mut Lease,
        at: At<'_>,
        sentinel: &Sentinel,
        (open, deadline): (OpenRequest<'_>, Instant),
    ) -> Result<(Answered, Option<Vec<u8>>)> {
        let peek = Request::Peek {
            path: self.path.clone(),
            key: sentinel.key().clone(),
        };
        let Answer::Sentinel(found) = self.ask(lease, at, &peek, deadline)?.answer else {
            return Err(Self::nonsense(at));
        };
        sentinel.judge(at, found.as_deref())?;
        let answered = self.ask(lease, at, &open(found.as_ref()), deadline)?;
        Ok((answered, found))
    }

    /// Makes sure that the worker has the right root open.
    pub(super) fn prepare(&self, lease: &mut Lease, at: At<'_>, deadline: Instant) -> Result<()> {
        let (sentinel, pinned) = {
            let identity = self.identity();
            if identity.barred {
                return Err(at.barred());
            }
            let opened_in = lease.member().and_then(|member| member.opened_in);
            if opened_in == Some(identity.generation) {
                return Ok(());
            }
            (identity.sentinel.clone(), identity.pinned.clone())
        };
        // However long the body behind it is.
        let deadline = deadline.min(Instant::now() + self.deadlines.base);
        let opened = self.open_root(lease, at, (sentinel.as_ref(), pinned), deadline);
        let mut identity = self.identity();
        let (place, pinned) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                identity.barred |= error.is_wrong_volume();
                return Err(error);
            }
        };
        match identity.place {
            Some(known) if known != place && identity.sentinel.is_none() => {
                identity.barred = true;
                return Err(another_directory(at));
            }
            Some(known) if known != place => identity.moved_to(place),
            _ => identity.place = Some(place),
        }
        identity.pinned = pinned;
        if let Some(member) = lease.member_mut() {
            member.opened_in = Some(identity.generation);
        }
        Ok(())
    }

    /// Looks afresh, and goes on with what is found.
    pub(super) fn look(&self, at: At<'_>, deadline: Instant) -> Result<()> {
        let mut lease = self.lend(at, Load::Sign, deadline)?;
        let (sentinel, pinned) = {
            let identity = self.identity();
            (identity.sentinel.clone(), identity.pinned.clone())
        };
        let opened = self.open_root(&mut lease, at, (sentinel.as_ref(), pinned), deadline);
        let mut identity = self.identity();
        let opened = opened.and_then(|(place, pinned)| match identity.place {
            Some(known) if known != place && sentinel.is_none() => Err(another_directory(at)),
            _ => Ok((place, pinned)),
        });
        let (place, pinned) = match opened {
            Ok(opened) => opened,
            Err(error) if error.is_wrong_volume() => {
                identity.barred = true;
                return Err(error);
            }
            Err(error) => return Err(error.into_unreachable()),
        };
        match identity.place {
            Some(known) if known != place => identity.moved_to(place),
            _ => identity.place = Some(place),
        }
        identity.pinned = pinned;
        identity.barred = false;
        identity.looks += 1;
        if let Some(member) = lease.member_mut() {
            member.opened_in = Some(identity.generation);
        }
        match identity.doubt.take() {
            None => Ok(()),
            Some(doubt) => Err(at
                .error(ErrorClass::Transient, doubt)
                .with_case(ErrorCase::Remounted)),
        }
    }

    /// From here on it is the volume that holds `sentinel`.
    pub(super) fn rebind(&self, at: At<'_>, sentinel: Sentinel, deadline: Instant) -> Result<()> {
        let mut lease = self.lend(at, Load::Sign, deadline)?;
        let opened = self.open_root(&mut lease, at, (Some(&sentinel), None), deadline);
        if let Some(member) = lease.member_mut() {
            member.opened_in = None;
        }
        let (place, pinned) = opened?;
        let mut identity = self.identity();
        let generation = identity.generation + 1;
        *identity = Identity {
            sentinel: Some(sentinel),
            pinned,
            place: Some(place),
            generation,
            looks: identity.looks + 1,
            ..Identity::default()
        };
        if let Some(member) = lease.member_mut() {
            member.opened_in = Some(generation);
        }
        Ok(())
    }
}
