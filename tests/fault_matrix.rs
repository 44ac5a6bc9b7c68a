//! Every call on an external volume gone wrong in every way, once, and what must hold whatever happens: the engine answers
//! meanwhile (invariant 5), nothing is missing because it cannot be reached (6), nothing counts as sent that is not there
//! (2, 9), and when the fault is gone everything drains and the external volume alone gives back what was written.
//!
//! A row of the matrix is a fault, on a directory or on a bucket, with a volume of its own; rows run beside each other.

#![allow(
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

mod bucket_server;
mod common;
#[path = "fault_matrix/far.rs"]
mod far;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Place, close, content, noise, put};
use tidefs::format::record::{IDENTITY_NAME, Identity};
use tidefs::pack::ledger::{PackState, peek};
use tidefs::types::Ino;
use tidefs::upload::UploadState;
use tidefs::volume::attach::attach;
use tidefs::volume::settings::Settings;
use tidefs::volume::tree::Tree;
use tidefs::volume::update::SettingsChange;
use tidefs::volume::{Durability, Volume, external, init};
use vfs::{
    Body, Breaker, BreakerPolicy, Guarded, MemoryVolume, ObjectKey, Op, Precondition, Retry,
    RetryPolicy, StopSignal, Volume as _,
};

use far::{BucketFar, Dir, Far, Kind, Objects};

/// For ever, on the busiest machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows at a time.
const ROWS: usize = 14;
/// When nothing was asked for that goes wrong, another epoch is closed.
const WRITE_AGAIN: Duration = Duration::from_millis(700);
/// Calls that have to go wrong before the engine hears of it: as often as one is asked again.
const PAST_RETRY: u64 = 6;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Hang,
    Slow,
    /// It was done, and the answer is lost.
    Reset,
    Truncated,
    WrongBytes,
    /// Success without effect; a listing that shows nothing.
    Lie,
    /// 403.
    Forbidden,
    /// 404: of a bucket from a proxy whose server is away.
    NotFound,
    Error500,
    /// 503 with Retry-After; a directory is unreachable.
    Busy503,
    ErrorIn200,
    NoSpace,
    Stale,
    Io,
}

const FAULTS: [Fault; 14] = [
    Fault::Hang,
    Fault::Busy503,
    Fault::Slow,
    Fault::Reset,
    Fault::Truncated,
    Fault::WrongBytes,
    Fault::Lie,
    Fault::Forbidden,
    Fault::NotFound,
    Fault::Error500,
    Fault::ErrorIn200,
    Fault::NoSpace,
    Fault::Stale,
    Fault::Io,
];

/// Who makes the calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Story {
    /// The uploader.
    Write,
    /// A machine that has nothing but the external volume.
    Read,
    /// `store set`.
    Attach,
    /// An operator's command.
    Call,
    /// Who reads from the engine what is not on the local disk any more.
    Live,
}

const IDENTITY: &str = IDENTITY_NAME;
const RECORDS: &str = "server/epochs/";
const INTENTS: &str = "server/attaching/";

/// What goes wrong in each row: the calls `op` on keys that begin with the last word.
const CELLS: [(Story, Op, &str); 30] = [
    (Story::Write, Op::Put, "items/"),
    (Story::Write, Op::Put, "accounts/"),
    (Story::Write, Op::Put, RECORDS),
    (Story::Write, Op::Compare, "items/"),
    (Story::Write, Op::Compare, "accounts/"),
    (Story::Write, Op::Compare, RECORDS),
    (Story::Write, Op::Head, "accounts/"),
    (Story::Write, Op::Head, RECORDS),
    (Story::Write, Op::Get, RECORDS),
    (Story::Write, Op::List, RECORDS),
    (Story::Write, Op::List, "server/claims/"),
    (Story::Write, Op::VerifyIdentity, ""),
    (Story::Read, Op::Head, IDENTITY),
    (Story::Read, Op::Get, IDENTITY),
    (Story::Read, Op::List, RECORDS),
    (Story::Read, Op::Head, RECORDS),
    (Story::Read, Op::Get, RECORDS),
    (Story::Read, Op::Get, "accounts/"),
    (Story::Read, Op::Get, "items/"),
    (Story::Attach, Op::Put, INTENTS),
    (Story::Attach, Op::List, INTENTS),
    (Story::Attach, Op::Delete, INTENTS),
    (Story::Attach, Op::Head, IDENTITY),
    (Story::Attach, Op::Get, IDENTITY),
    (Story::Attach, Op::Put, IDENTITY),
    (Story::Call, Op::Delete, "junk/"),
    (Story::Call, Op::Space, ""),
    (Story::Call, Op::Probe, ""),
    (Story::Call, Op::SweepTemporary, ""),
    // The last: there are no local packs to compare with after it.
    (Story::Live, Op::Get, "items/"),
];

/// One volume and the external volume that breaks.
struct World {
    place: Place,
    volume: Arc<Volume>,
    far: Arc<dyn Far>,
    identity: Identity,
    copy: String,
    written: BTreeMap<String, Vec<u8>>,
    cells: u64,
}

impl World {
    fn new(is_bucket: bool) -> World {
        // In memory: what is tried here is no disk.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let place = Place::new_in(dir.unwrap());
        let settings = Settings {
            remote_timeout_secs: 1,
            reserve_bytes: 0,
            ..Settings::default()
        };
        settings.write(&place.path()).unwrap();
        let volume = place.open();
        let store = volume.set_store(Some(place.external())).unwrap();
        let copy = store.copy().unwrap().to_owned();
        let far: Arc<dyn Far> = if is_bucket {
            Arc::new(BucketFar::new(&place.external()))
        } else {
            Arc::new(Dir::new(place.external()))
        };
        let identity = volume.identity().clone();
        volume.connect_store_through(|inner| far.faulty(inner, &identity, &copy));
        let mut world = World {
            place,
            volume,
            far,
            identity,
            copy,
            written: BTreeMap::new(),
            cells: 0,
        };
        world.write();
        world.drain();
        world
    }

    /// Writes a file durably and closes the epoch; reads it back.
    fn write(&mut self) {
        self.cells += 1;
        let (name, bytes) = (format!("f-{}", self.cells), noise(self.cells, 30_000));
        put(&*self.volume, Ino::ROOT, &name, &bytes);
        self.volume.commit().unwrap();
        self.volume.close_epoch(None).unwrap();
        assert!(content(&*self.volume, &name).unwrap() == bytes);
        self.written.insert(name, bytes);
    }

    fn drain(&self) {
        let start = Instant::now();
        let drained = self
            .volume
            .wait(Durability::Archived, &mut |_| start.elapsed() < PATIENCE);
        drained.unwrap_or_else(|error| {
            let upload = self.volume.status().upload;
            panic!("it does not drain: {error}; uploads are {upload:?}")
        });
    }

    /// With the layers that the engine puts on, for a reader elsewhere.
    fn layered(&self) -> Guarded {
        let kind = self
            .far
            .faulty(self.far.clean(), &self.identity, &self.copy);
        layered(kind)
    }

    fn run(&mut self, (story, op, below): (Story, Op, &str), fault: Fault) {
        if story == Story::Live {
            self.evict();
        }
        let before = self.far.objects();
        let given = self.far.given();
        // An answer that is worth another try has to be met often enough for the engine to hear of it: once for each.
        let is_past_retry =
            (op, below) == (Op::Put, "items/") && matches!(fault, Fault::Error500 | Fault::Io);
        let wanted = given + if is_past_retry { PAST_RETRY } else { 1 };
        self.far.arm(op, below, usize::MAX, fault);
        match story {
            Story::Write => {
                // The engine's own answers come while the fault lasts, however long that is.
                self.write_until_it_went_wrong(wanted);
                self.assert_nothing_is_sent_that_is_not_there();
                if !matches!(fault, Fault::WrongBytes | Fault::Truncated) {
                    self.assert_consistent();
                }
                if (op, below, fault) == (Op::List, RECORDS, Fault::Lie) {
                    // A listing that shows nothing is no reason to stop, however long that lasts.
                    self.drain();
                }
                self.far.clear();
            }
            Story::Read => self.read(wanted),
            Story::Attach => self.attach(wanted),
            Story::Call => self.call(op, wanted),
            Story::Live => return self.live(wanted, fault == Fault::Hang),
        }
        self.drain();
        self.assert_whole(&before);
    }

    /// Goes on writing until it did: an epoch whose segments were just merged asks for no older one.
    fn write_until_it_went_wrong(&mut self, wanted: u64) {
        let start = Instant::now();
        let mut written = start;
        self.write();
        while self.far.given() < wanted {
            assert!(
                start.elapsed() < PATIENCE,
                "nothing of the kind was asked for"
            );
            thread::sleep(Duration::from_millis(2));
            if written.elapsed() > WRITE_AGAIN {
                self.write();
                written = Instant::now();
            }
        }
    }

    /// Does `work` on a thread of its own until something went wrong, then clears the fault; what came of it.
    fn meanwhile<T: Send + 'static>(
        &self,
        wanted: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let working = thread::spawn(work);
        let start = Instant::now();
        while self.far.given() < wanted {
            assert!(
                !working.is_finished() || self.far.given() >= wanted,
                "nothing of the kind was asked for"
            );
            assert!(
                start.elapsed() < PATIENCE,
                "nothing of the kind was asked for in time"
            );
            thread::sleep(Duration::from_millis(2));
        }
        self.far.clear();
        while !working.is_finished() {
            assert!(
                start.elapsed() < PATIENCE,
                "it waits though all is well again"
            );
            thread::sleep(Duration::from_millis(2));
        }
        working.join().unwrap()
    }

    fn read(&self, wanted: u64) {
        let (layers, written) = (self.layered(), self.written.clone());
        // Right bytes or an error: `read_all` panics for others.
        let _ = self.meanwhile(wanted, move || read_all(layers, &written));
        read_all(self.layered(), &self.written).unwrap();
    }

    fn attach(&self, wanted: u64) {
        let name = format!("beside-{}", self.far.given());
        let (faulty, clean) = self.far.beside(&name);
        let (volume, identity) = (layered(faulty).volume, self.identity.clone());
        let first = self.meanwhile(wanted, move || attach(&*volume, &identity, 100));
        let copy = attach(&*layered(Arc::clone(&clean)).volume, &self.identity, 101)
            .unwrap_or_else(|error| {
                panic!("it cannot be attached: {error}; and before: {first:?}")
            });
        let there = init::external_identity(&*clean).unwrap().unwrap();
        assert_eq!(
            (there.volume, there.store),
            (self.identity.volume.clone(), Some(copy))
        );
    }

    fn call(&self, op: Op, wanted: u64) {
        let junk = ObjectKey::new("junk/x").unwrap();
        let body = Body::Bytes(b"junk");
        let clean = self.far.clean();
        if op == Op::Delete {
            clean.put(&junk, body, Precondition::None).unwrap();
        }
        let volume = self.layered().volume;
        let ask = move |volume: &dyn vfs::Volume| match op {
            Op::Delete => volume.delete(std::slice::from_ref(&junk)),
            Op::Space => volume.space().map(drop),
            Op::Probe => volume.probe().map(drop),
            _ => volume
                .sweep_temporary(&["items/"], Duration::ZERO)
                .map(drop),
        };
        let again = ask.clone();
        // Whether it failed is all the same: that it ends, and that nothing is gone.
        let _ = self.meanwhile(wanted, move || ask(&*volume));
        again(&*clean).unwrap();
    }

    /// Writes a file that nobody has read, and empties all local packs.
    fn evict(&mut self) {
        let bytes = noise(0, 30_000);
        put(&*self.volume, Ino::ROOT, "unread", &bytes);
        self.written.insert("unread".into(), bytes);
        self.drain();
        let change = SettingsChange {
            cache_bytes: Some(1),
            read_cache_bytes: Some(0),
            evict_after_secs: Some(0),
            ..SettingsChange::default()
        };
        self.volume.update(&change).unwrap();
        let start = Instant::now();
        while self.volume.status().cache_bytes > 0 {
            assert!(start.elapsed() < PATIENCE, "nothing is evicted");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn live(&self, wanted: u64, hangs: bool) {
        let volume = Arc::clone(&self.volume);
        let read = move || content(&*volume, "unread");
        let bytes = &self.written["unread"];
        let first = if hangs {
            // Ends though nothing is let go: the deadline is the engine's own.
            let reading = thread::spawn(read);
            let start = Instant::now();
            while !reading.is_finished() {
                assert!(start.elapsed() < PATIENCE, "a read waits for ever");
                thread::sleep(Duration::from_millis(5));
            }
            self.far.clear();
            reading.join().unwrap()
        } else {
            self.meanwhile(wanted, read)
        };
        assert!(
            first.is_err() || first.unwrap() == *bytes,
            "it is read wrongly"
        );
        let start = Instant::now();
        loop {
            match content(&*self.volume, "unread") {
                Ok(again) => break assert!(again == *bytes, "it is read wrongly"),
                Err(error) => assert!(start.elapsed() < PATIENCE, "still unreadable: {error}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.drain();
        self.assert_comes_back();
    }

    /// Invariants 2 and 9: what the ledger says is sent has the bytes of the pack here.
    fn assert_nothing_is_sent_that_is_not_there(&self) {
        let external = tidefs::types::Uuid::parse(&self.copy).unwrap();
        let known = peek(&self.place.path().join("journal"), external).unwrap();
        // Behind it: more may have been sent since.
        let there = self.far.objects();
        for (pack, entry) in known.packs {
            if !matches!(entry.state, PackState::Uploaded { .. }) {
                continue;
            }
            let name = pack.object_name();
            let here = std::fs::read(self.place.path().join(&name)).unwrap();
            assert!(
                there.get(&name) == Some(&here),
                "{name} counts as sent and is not there"
            );
        }
        let archived = format!("{RECORDS}{:016x}-", known.archived.0);
        assert!(
            known.archived.0 == 0 || there.keys().any(|name| name.starts_with(&archived)),
            "epoch {} counts as archived and has no record",
            known.archived
        );
    }

    /// Invariant 2: at this very moment the external volume is whole as of its newest record. Not where it was just told
    /// to keep something else than it is given.
    fn assert_consistent(&self) {
        // As it lies there, past whatever goes wrong on the way; records first, because they are written last.
        let still = MemoryVolume::new();
        for is_server in [true, false] {
            for (name, bytes) in self.far.objects() {
                if name.starts_with("server/") == is_server {
                    let key = ObjectKey::new(name).unwrap();
                    let body = Body::Bytes(&bytes);
                    still.put(&key, body, Precondition::None).unwrap();
                }
            }
        }
        let tree = external::open_external(Arc::new(still)).and_then(|away| away.tree(None));
        let tree = tree.unwrap_or_else(|error| panic!("it is not whole: {}", error.chain()));
        for entry in tree.readdir(Ino::ROOT, None, 1000).unwrap() {
            let name = String::from_utf8(entry.name.to_vec()).unwrap();
            let there = content(&*tree, &name);
            let is_right = there.is_ok_and(|bytes| bytes == self.written[&name]);
            assert!(
                is_right,
                "{name} is in the newest record there, and cannot be read"
            );
        }
    }

    fn assert_whole(&self, before: &Objects) {
        let there = self.far.objects();
        for (name, bytes) in before {
            let is_tried_out = name.starts_with("probe/") || name.starts_with("junk/");
            assert!(
                is_tried_out || there.get(name) == Some(bytes),
                "{name} was deleted or overwritten"
            );
        }
        for (name, bytes) in &there {
            if let Ok(here) = std::fs::read(self.place.path().join(name))
                && name != IDENTITY
            {
                assert!(here == *bytes, "{name} has other bytes there");
            }
        }
        self.assert_nothing_is_sent_that_is_not_there();
        let status = self.volume.status();
        assert!(
            !matches!(status.upload, UploadState::Refused { .. }),
            "{:?}",
            status.upload
        );
        assert_eq!(status.packs.unsent_count, 0);
        self.assert_comes_back();
    }

    /// From the external volume alone.
    fn assert_comes_back(&self) {
        let away = external::open_external(self.far.clean()).unwrap();
        let tree = away.tree(None).unwrap();
        for (name, bytes) in &self.written {
            assert!(
                content(&*tree, name).unwrap() == *bytes,
                "{name} comes back wrong"
            );
        }
    }
}

fn layered(kind: Kind) -> Guarded {
    let stop = StopSignal::new();
    let retry = Retry::new(kind, RetryPolicy::default(), stop.clone());
    let policy = BreakerPolicy {
        silence_max: Duration::from_secs(1),
        quiet_max: Duration::from_millis(300),
        ..BreakerPolicy::default()
    };
    Guarded::new(Arc::new(
        Breaker::start(Arc::new(retry), policy, stop).unwrap(),
    ))
}

fn read_all(layers: Guarded, written: &BTreeMap<String, Vec<u8>>) -> tidefs::error::Result<()> {
    let tree = external::open_guarded(layers)?.tree(None)?;
    for (name, bytes) in written {
        assert!(content(&*tree, name)? == *bytes, "{name} is read wrongly");
    }
    Ok(())
}

/// All cells of a fault; the first that fails, by name.
fn row(fault: Fault, is_bucket: bool) -> Result<u64, String> {
    let kind = if is_bucket { "bucket" } else { "dir" };
    let mut cell = format!("{kind}, {fault:?}, before any fault");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(is_bucket);
        let mut count = 0;
        for (story, op, below) in CELLS {
            // A bucket has one request for both, and knows no room.
            if is_bucket && (op == Op::Space || (story, op) == (Story::Write, Op::Head)) {
                continue;
            }
            cell = format!("{kind}, {fault:?}, {story:?}: {op:?} {below}");
            world.run((story, op, below), fault);
            count += 1;
        }
        close(Arc::clone(&world.volume));
        count
    }));
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        format!("{cell}\n    {}", text.unwrap_or_default())
    })
}

#[test]
fn whatever_goes_wrong_with_an_external_volume_nothing_is_lost_and_nothing_is_believed() {
    let rows: Vec<(Fault, bool)> = FAULTS
        .into_iter()
        .flat_map(|fault| [(fault, false), (fault, true)])
        // Of system calls only.
        .filter(|(fault, is_bucket)| !is_bucket || !matches!(fault, Fault::Stale | Fault::Io))
        .collect();
    let (next, cells, failures) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        Mutex::new(Vec::new()),
    );
    thread::scope(|scope| {
        for _ in 0..ROWS {
            scope.spawn(|| {
                while let Some((fault, is_bucket)) = rows.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let start = Instant::now();
                    match row(*fault, *is_bucket) {
                        Ok(count) => {
                            cells.fetch_add(usize::try_from(count).unwrap(), Ordering::Relaxed);
                        }
                        Err(failure) => failures.lock().unwrap().push(failure),
                    }
                    println!("{fault:?} {is_bucket} {:?}", start.elapsed());
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} rows have a cell that fails (kind, fault, who makes which call on what):\n{}",
        failures.len(),
        rows.len(),
        failures.join("\n")
    );
    println!("{} cells", cells.into_inner());
}
