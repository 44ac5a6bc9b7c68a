//! A volume that breaks on command: for tests of everything above, and for `tidefs selftest`.
//!
//! Faults are scripted per operation and used up in order, so that a test says exactly which call goes wrong; nothing
//! here is random. Some faults break the contract of [`Volume`] on purpose (a lie, wrong bytes, too few of them): what
//! is above has to notice, because a real store does such things.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::{At, ErrorCase, ErrorClass, Result};
use crate::identity::Sentinel;
use crate::key::ObjectKey;
use crate::volume::{Body, Capabilities, Likeness, Meta, Page, Precondition, Space, Volume};

/// An operation of [`Volume`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// `put`
    Put,
    /// `get`
    Get,
    /// `head`
    Head,
    /// `compare`
    Compare,
    /// `list`
    List,
    /// `delete`
    Delete,
    /// `space`
    Space,
    /// `probe`
    Probe,
    /// `bind`
    Bind,
    /// `verify_identity`
    VerifyIdentity,
    /// `sweep_temporary`
    SweepTemporary,
}

impl Op {
    fn verb(self) -> &'static str {
        match self {
            Op::Put => "put",
            Op::Get => "get",
            Op::Head => "look up",
            Op::Compare => "compare",
            Op::List => "list",
            Op::Delete => "delete",
            Op::Space => "measure",
            Op::Probe => "probe",
            Op::Bind => "bind",
            Op::VerifyIdentity => "identify",
            Op::SweepTemporary => "sweep",
        }
    }
}

/// What goes wrong with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing is done; an error of this class.
    Fail(ErrorClass),
    /// As if the system call said ENOSPC.
    NoSpace,
    /// As if it said ESTALE.
    Stale,
    /// As if it said EIO.
    Io,
    /// Another volume is in its place: `WrongVolume`.
    WrongVolume,
    /// It is done, and then an error of this class: the answer was lost.
    ApplyThenFail(ErrorClass),
    /// The call waits for [`FaultControls::release`], and is then done.
    Hang,
    /// The call waits this long (or for a release), and is then done.
    Delay(Duration),
    /// A get fails with `ShortRead`, as after a connection that broke. Other operations are done.
    ShortRead,
    /// A get gives `Ok` with only the first half of the bytes, a put stores only those, a list tells of the first half of
    /// its objects and that there are no more. Other operations are done.
    Truncate,
    /// A get gives `Ok` with its middle byte changed, a put stores it so. Other operations are done.
    WrongBytes,
    /// A put or delete gives `Ok` and does nothing, a list shows nothing. Other operations are done.
    Lie,
}

/// The switches of a [`Faulty`] volume, shared by all copies.
#[derive(Clone, Debug, Default)]
pub struct FaultControls(Arc<Switches>);

#[derive(Debug, Default)]
struct Switches {
    state: Mutex<State>,
    changed: Condvar,
}

/// A fault for one part of the keys.
#[derive(Debug)]
struct Aimed {
    op: Op,
    prefix: String,
    left: usize,
    fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    script: HashMap<Op, VecDeque<Option<Fault>>>,
    aimed: Vec<Aimed>,
    /// Faults that were used up.
    given: u64,
    calls: HashMap<Op, u64>,
    down: bool,
    hanging: usize,
    releases: u64,
}

impl FaultControls {
    /// Nothing goes wrong yet.
    pub fn new() -> FaultControls {
        FaultControls::default()
    }

    /// The next `count` calls of `op`, behind those already scripted, go wrong like this.
    pub fn inject(&self, op: Op, count: usize, fault: Fault) {
        self.state()
            .script
            .entry(op)
            .or_default()
            .extend(std::iter::repeat_n(Some(fault), count));
    }

    /// The next `count` calls of `op` on keys that begin with `prefix` go wrong like this, whatever else is scripted. The
    /// key of a list is its prefix, that of a delete its first.
    pub fn inject_below(&self, op: Op, prefix: &str, count: usize, fault: Fault) {
        self.state().aimed.push(Aimed {
            op,
            prefix: prefix.to_owned(),
            left: count,
            fault,
        });
    }

    /// How many faults went off so far.
    pub fn given(&self) -> u64 {
        self.state().given
    }

    /// The next `count` calls of `op`, behind those already scripted, go well.
    pub fn pass(&self, op: Op, count: usize) {
        self.state()
            .script
            .entry(op)
            .or_default()
            .extend(std::iter::repeat_n(None, count));
    }

    /// Forgets what is scripted and not used up.
    pub fn clear(&self) {
        let mut state = self.state();
        state.script.clear();
        state.aimed.clear();
    }

    /// Every call is unreachable from here on; scripted faults wait.
    pub fn go_down(&self) {
        self.state().down = true;
    }

    /// The end of [`FaultControls::go_down`].
    pub fn go_up(&self) {
        self.state().down = false;
    }

    /// Lets go of every call that hangs now.
    pub fn release(&self) {
        self.state().releases += 1;
        self.0.changed.notify_all();
    }

    /// How many calls hang now.
    pub fn hanging(&self) -> usize {
        self.state().hanging
    }

    /// Waits until at least `count` calls hang, at most `deadline`; says whether they do.
    pub fn wait_until_hanging(&self, count: usize, deadline: Duration) -> bool {
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.state(), deadline, |state| state.hanging < count);
        waited.unwrap_or_else(PoisonError::into_inner).0.hanging >= count
    }

    /// How many calls of `op` were made, whatever became of them.
    pub fn calls(&self, op: Op) -> u64 {
        self.state().calls.get(&op).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call; its fault, if one is due. `Err` while the volume is down.
    fn enter(&self, op: Op, key: &str) -> std::result::Result<Option<Fault>, ()> {
        let mut state = self.state();
        *state.calls.entry(op).or_default() += 1;
        if state.down {
            return Err(());
        }
        let is_meant =
            |aimed: &&mut Aimed| aimed.op == op && aimed.left > 0 && key.starts_with(&aimed.prefix);
        let fault = if let Some(aimed) = state.aimed.iter_mut().find(is_meant) {
            aimed.left -= 1;
            Some(aimed.fault)
        } else {
            let script = state.script.get_mut(&op);
            script.and_then(VecDeque::pop_front).flatten()
        };
        state.given += u64::from(fault.is_some());
        Ok(fault)
    }

    fn hang(&self, limit: Option<Duration>) {
        let mut state = self.state();
        state.hanging += 1;
        self.0.changed.notify_all();
        let releases = state.releases;
        let held = |state: &mut State| state.releases == releases;
        let mut state = match limit {
            None => self
                .0
                .changed
                .wait_while(state, held)
                .unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                self.0
                    .changed
                    .wait_timeout_while(state, limit, held)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        state.hanging -= 1;
    }
}

/// A volume that does what its [`FaultControls`] say, and otherwise what the one inside does.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Volume>,
    name: String,
    controls: FaultControls,
}

impl Faulty {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Volume>, controls: FaultControls) -> Faulty {
        let name = inner.to_string();
        Faulty {
            inner,
            name,
            controls,
        }
    }

    /// Makes the call, unless a fault forbids it; hands on faults that change the answer.
    fn call<T>(
        &self,
        op: Op,
        key: &str,
        work: impl FnOnce(Option<Fault>) -> Result<T>,
    ) -> Result<T> {
        let at = At {
            volume: &self.name,
            op: op.verb(),
            key,
        };
        let injected = "a fault was injected";
        let Ok(fault) = self.controls.enter(op, key) else {
            return Err(at.error(
                ErrorClass::Unreachable,
                "the volume is down, as it was told",
            ));
        };
        match fault {
            Some(Fault::Fail(class)) => Err(at.error(class, injected)),
            Some(Fault::NoSpace) => Err(at.errno(Errno::ENOSPC)),
            Some(Fault::Stale) => Err(at.errno(Errno::ESTALE)),
            Some(Fault::Io) => Err(at.errno(Errno::EIO)),
            Some(Fault::WrongVolume) => Err(at.wrong_volume(injected)),
            Some(Fault::ApplyThenFail(class)) => {
                work(None).and_then(|_| Err(at.error(class, injected)))
            }
            Some(Fault::Hang) => {
                self.controls.hang(None);
                work(None)
            }
            Some(Fault::Delay(delay)) => {
                self.controls.hang(Some(delay));
                work(None)
            }
            other => work(other),
        }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Volume for Faulty {
    fn put(&self, key: &ObjectKey, body: Body<'_>, precondition: Precondition) -> Result<Meta> {
        self.call(Op::Put, key.as_str(), |fault| match fault {
            Some(Fault::Lie) => Ok(Meta {
                key: key.clone(),
                len: body.len(),
                modified: None,
            }),
            Some(fault @ (Fault::Truncate | Fault::WrongBytes)) => {
                let mut bytes = Vec::new();
                body.for_each_chunk(("put", &self.name, key), |chunk| {
                    bytes.extend_from_slice(chunk);
                    Ok(())
                })?;
                let middle = bytes.len() / 2;
                match bytes.get_mut(middle) {
                    Some(byte) if fault == Fault::WrongBytes => *byte ^= 0x10,
                    _ => bytes.truncate(middle),
                }
                self.inner.put(key, Body::Bytes(&bytes), precondition)
            }
            _ => self.inner.put(key, body, precondition),
        })
    }

    fn get(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        self.call(Op::Get, key.as_str(), |fault| {
            let mut bytes = self.inner.get(key, range)?;
            let middle = bytes.len() / 2;
            match fault {
                Some(Fault::ShortRead) => {
                    let at = At {
                        volume: &self.name,
                        op: "get",
                        key: key.as_str(),
                    };
                    Err(at
                        .error(ErrorClass::Transient, "a fault was injected")
                        .with_case(ErrorCase::ShortRead))
                }
                Some(Fault::Truncate) => {
                    bytes.truncate(middle);
                    Ok(bytes)
                }
                Some(Fault::WrongBytes) => {
                    let mut changed = bytes.to_vec();
                    if let Some(byte) = changed.get_mut(middle) {
                        *byte ^= 0x10;
                    }
                    Ok(changed.into())
                }
                _ => Ok(bytes),
            }
        })
    }

    fn head(&self, key: &ObjectKey) -> Result<Option<Meta>> {
        self.call(Op::Head, key.as_str(), |_| self.inner.head(key))
    }

    fn compare(&self, key: &ObjectKey, body: Body<'_>) -> Result<Option<Likeness>> {
        self.call(Op::Compare, key.as_str(), |_| self.inner.compare(key, body))
    }

    fn list(&self, prefix: &str, after: Option<&ObjectKey>, limit: NonZeroUsize) -> Result<Page> {
        self.call(Op::List, prefix, |fault| {
            let mut page = self.inner.list(prefix, after, limit)?;
            let shown = match fault {
                Some(Fault::Truncate) => page.objects.len() / 2,
                Some(Fault::Lie) => 0,
                _ => return Ok(page),
            };
            page.objects.truncate(shown);
            page.more = false;
            Ok(page)
        })
    }

    fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        let first = keys.first().map_or("", ObjectKey::as_str);
        self.call(Op::Delete, first, |fault| match fault {
            Some(Fault::Lie) => Ok(()),
            _ => self.inner.delete(keys),
        })
    }

    fn space(&self) -> Result<Option<Space>> {
        self.call(Op::Space, "", |_| self.inner.space())
    }

    fn probe(&self) -> Result<Capabilities> {
        self.call(Op::Probe, "", |_| self.inner.probe())
    }

    fn bind(&self, sentinel: Sentinel) -> Result<()> {
        self.call(Op::Bind, "", |_| self.inner.bind(sentinel))
    }

    fn verify_identity(&self) -> Result<()> {
        self.call(Op::VerifyIdentity, "", |_| self.inner.verify_identity())
    }

    fn sweep_temporary(&self, below: &[&str], older_than: Duration) -> Result<u64> {
        self.call(Op::SweepTemporary, "", |_| {
            self.inner.sweep_temporary(below, older_than)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryVolume;

    fn faulty() -> (Faulty, FaultControls, ObjectKey) {
        let controls = FaultControls::new();
        let volume = Faulty::new(Arc::new(MemoryVolume::new()), controls.clone());
        (volume, controls, ObjectKey::new("k").unwrap())
    }

    fn put(volume: &Faulty, key: &ObjectKey) -> Result<Meta> {
        volume.put(key, Body::Bytes(b"12345678"), Precondition::None)
    }

    #[test]
    fn faults_are_used_up_in_order() {
        let (volume, controls, key) = faulty();
        controls.inject(Op::Put, 1, Fault::NoSpace);
        controls.pass(Op::Put, 1);
        controls.inject(Op::Put, 1, Fault::Io);
        assert_eq!(put(&volume, &key).unwrap_err().case(), ErrorCase::NoSpace);
        assert_eq!(
            volume.head(&key).unwrap(),
            None,
            "a failed put leaves nothing"
        );
        put(&volume, &key).unwrap();
        assert!(put(&volume, &key).unwrap_err().is_transient());
        put(&volume, &key).unwrap();
        assert_eq!(
            (
                controls.calls(Op::Put),
                controls.calls(Op::Head),
                controls.calls(Op::Get)
            ),
            (4, 1, 0)
        );
    }

    #[test]
    fn a_lie_stores_nothing_and_a_lost_answer_stores_everything() {
        let (volume, controls, key) = faulty();
        controls.inject(Op::Put, 1, Fault::Lie);
        put(&volume, &key).unwrap();
        assert_eq!(volume.head(&key).unwrap(), None);
        controls.inject(Op::Put, 1, Fault::ApplyThenFail(ErrorClass::Unreachable));
        assert!(put(&volume, &key).unwrap_err().is_unreachable());
        assert!(volume.head(&key).unwrap().is_some());
    }

    #[test]
    fn reads_come_short_or_changed() {
        let (volume, controls, key) = faulty();
        put(&volume, &key).unwrap();
        controls.inject(Op::Get, 1, Fault::ShortRead);
        controls.inject(Op::Get, 1, Fault::Truncate);
        controls.inject(Op::Get, 1, Fault::WrongBytes);
        assert!(volume.get(&key, 0..8).unwrap_err().is_short_read());
        assert_eq!(volume.get(&key, 0..8).unwrap(), b"1234".as_slice());
        assert_eq!(volume.get(&key, 0..8).unwrap(), b"1234%678".as_slice());
        assert_eq!(volume.get(&key, 0..8).unwrap(), b"12345678".as_slice());
    }

    #[test]
    fn down_is_unreachable_and_never_missing() {
        let (volume, controls, key) = faulty();
        controls.go_down();
        assert!(volume.head(&key).unwrap_err().is_unreachable());
        assert!(volume.verify_identity().unwrap_err().is_unreachable());
        controls.go_up();
        assert_eq!(volume.head(&key).unwrap(), None);
    }

    #[test]
    fn a_hanging_call_goes_on_when_it_is_released() {
        let (volume, controls, key) = faulty();
        controls.inject(Op::Put, 1, Fault::Hang);
        std::thread::scope(|scope| {
            let hung = scope.spawn(|| put(&volume, &key));
            assert!(controls.wait_until_hanging(1, Duration::from_secs(60)));
            assert_eq!(volume.head(&key).unwrap(), None);
            controls.release();
            hung.join().unwrap().unwrap();
        });
        assert_eq!(controls.hanging(), 0);
        assert!(volume.head(&key).unwrap().is_some());
    }
}
