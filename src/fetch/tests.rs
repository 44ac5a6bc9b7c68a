//! A tree's blobs from packs that are far away, with and without a backup path beside them.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use vfs::{
    Body, ErrorClass, Fault, FaultControls, Faulty, MemoryVolume, ObjectKey, Op, Precondition,
    Volume,
};

use super::*;
use crate::chunk;
use crate::clock::SystemClock;
use crate::meta::blobs::BlobIndex;
use crate::pack::ledger::Ledger;
use crate::pack::punch::punch;
use crate::pack::refill::ReadCacheLimits;
use crate::pack::writer::{PackIo, PackWriter};
use crate::types::{PackId, SessionId, Uuid};

const RECORD_LEN: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// Packs in a backup path, their copies far away, and the file that they hold: a blob for each 64 KiB.
struct Place {
    root: tempfile::TempDir,
    ledger: Arc<Ledger>,
    far: Arc<MemoryVolume>,
    controls: FaultControls,
    extents: Vec<Extent>,
    plain: Vec<u8>,
}

impl Place {
    fn new(packs: u64, records: u64) -> Place {
        let root = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Ledger::open(root.path(), Uuid([1; 16])).unwrap());
        let far = Arc::new(MemoryVolume::new());
        let (mut extents, mut plain) = (Vec::new(), Vec::new());
        for n in 1..=packs {
            let pack = PackId::new(SessionId([7; 8]), n);
            let io = PackIo::default();
            let mut writer = PackWriter::create(root.path(), [0; 16], pack, 0, io).unwrap();
            for _ in 0..records {
                let start = plain.len() as u64;
                let bytes: Vec<u8> = (0..RECORD_LEN as u64 / 32)
                    .flat_map(|n| chunk::hash(&(start + n).to_le_bytes()).0)
                    .collect();
                let blob = chunk::hash(&bytes);
                let len = u32::try_from(bytes.len()).unwrap();
                let location = writer.append(blob, chunk::Codec::Raw, len, &bytes).unwrap();
                extents.push(Extent {
                    start,
                    len,
                    blob,
                    blob_offset: 0,
                    location,
                });
                plain.extend(bytes);
            }
            let len = writer.seal().unwrap().len;
            let path = root.path().join(pack.object_name());
            let key = ObjectKey::new(pack.object_name()).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            far.put(&key, Body::Bytes(&bytes), Precondition::None)
                .unwrap();
            ledger.sealed(pack, len).unwrap();
            ledger.uploaded(pack, len, 1).unwrap();
            ledger.evicted(pack).unwrap();
            punch(&path, pack, 0..u32::MAX).unwrap();
        }
        Place {
            root,
            ledger,
            far,
            controls: FaultControls::new(),
            extents,
            plain,
        }
    }

    fn external(&self) -> ExternalPacks {
        let far: Arc<dyn Volume> = Arc::clone(&self.far) as _;
        ExternalPacks::new(Arc::new(Faulty::new(far, self.controls.clone())))
    }

    /// As without a backup path.
    fn far_only(&self) -> Fetch {
        let fetch = Fetch::start(96 << 20, None).unwrap();
        fetch.set_external(Some(self.external()));
        fetch
    }

    fn local(&self, memory: usize, bytes_max: u64) -> (Fetch, Arc<PackStore>) {
        let blobs = BlobIndex::open(&self.root.path().join("blobs"))
            .unwrap()
            .index;
        let packs = PackStore::start(
            self.root.path(),
            [0; 16],
            SessionId([8; 8]),
            PackIo::default(),
            Arc::new(SystemClock),
            Arc::clone(&self.ledger),
            Arc::new(blobs),
            Box::new(|_| {}),
        );
        let packs = Arc::new(packs.unwrap());
        packs.read_cache().set_limits(ReadCacheLimits {
            bytes_max,
            free_bytes_min: 0,
        });
        let fetch = Fetch::start(memory, Some(Arc::clone(&packs))).unwrap();
        fetch.set_external(Some(self.external()));
        (fetch, packs)
    }

    fn begin_read(&self, fetch: &Fetch, offset: usize, len: usize) -> Receiver<Result<Bytes>> {
        let (start, end) = (offset as u64, (offset + len) as u64);
        let touched = self.extents.iter();
        let touched = touched.filter(|extent| extent.start < end && extent.end() > start);
        let plan = ReadPlan {
            offset: start,
            len,
            extents: touched
                .map(|extent| extent.slice(extent.start.max(start), extent.end().min(end)))
                .collect(),
            newer: Vec::new(),
        };
        let (sender, answer) = channel();
        let sender = Mutex::new(sender);
        fetch.read(
            plan,
            Box::new(move |outcome| drop(sender.lock().unwrap().send(outcome))),
        );
        answer
    }

    fn read(&self, fetch: &Fetch, offset: usize, len: usize) -> Result<()> {
        let bytes = self.begin_read(fetch, offset, len).recv().unwrap()?;
        assert!(
            bytes == self.plain[offset..offset + len],
            "wrong bytes at {offset}"
        );
        Ok(())
    }

    fn read_all(&self, fetch: &Fetch) {
        for offset in (0..self.plain.len()).step_by(128 << 10) {
            let len = (128 << 10).min(self.plain.len() - offset);
            self.read(fetch, offset, len).unwrap();
        }
    }

    fn gets(&self) -> u64 {
        self.controls.calls(Op::Get)
    }
}

#[test]
fn what_was_read_once_is_local_also_when_nothing_else_is() {
    let place = Place::new(2, 64);
    let (fetch, packs) = place.local(0, u64::MAX);
    place.read_all(&fetch);
    // The last range may still be on its way into the pack: to stop is to wait for that.
    drop(fetch);
    assert!(packs.read_cache().bytes() >= place.plain.len() as u64);
    drop(packs);
    place.controls.go_down();
    let before = place.gets();
    let (fetch, _packs) = place.local(0, u64::MAX);
    place.read_all(&fetch);
    fetch.set_external(None);
    place.read_all(&fetch);
    assert_eq!(place.gets(), before);
}

#[test]
fn a_sequence_is_fetched_in_ranges_of_many_records() {
    for with_local in [true, false] {
        let place = Place::new(2, 256);
        if with_local {
            place.read_all(&place.local(0, u64::MAX).0);
        } else {
            place.read_all(&place.far_only());
        }
        // Two packs of 16 MiB take some twenty; a reader that outruns the read-ahead asks for what it needs itself.
        assert!(
            place.gets() <= 512 / 4,
            "{} reads, local {with_local}",
            place.gets()
        );
    }
}

#[test]
fn several_ranges_of_a_sequence_are_on_their_way_at_the_same_time() {
    let place = Place::new(1, 400);
    // A directory, and a bucket: of that, all that is left of the pack.
    for (at_once, expected) in [(5, 3), (16, 5)] {
        let fetch = place.far_only();
        fetch.set_external(Some(place.external().at_once(at_once)));
        // Until the window is long enough.
        let offset = 7 << 20;
        for at in (0..offset).step_by(RECORD_LEN) {
            place.read(&fetch, at, RECORD_LEN).unwrap();
        }
        place.controls.inject(Op::Get, expected, Fault::Hang);
        // On until enough hangs: each read waits, and so do the ranges behind it.
        let hang = |patience| place.controls.wait_until_hanging(expected, patience);
        let answers: Vec<_> = (0..240)
            .map(|n| place.begin_read(&fetch, offset + n * RECORD_LEN, RECORD_LEN))
            .take_while(|_| !hang(Duration::from_millis(1)))
            .collect();
        assert!(hang(PATIENCE), "{expected} of {}", answers.len());
        place.controls.release();
        place.controls.clear();
        place.read_all(&fetch);
    }
}

#[test]
fn two_readers_of_one_range_ask_for_it_once() {
    for with_local in [true, false] {
        let place = Place::new(1, 4);
        let fetch = if with_local {
            place.local(0, u64::MAX).0
        } else {
            place.far_only()
        };
        place.controls.inject(Op::Get, 1, Fault::Hang);
        let first = place.begin_read(&fetch, 0, RECORD_LEN);
        assert!(place.controls.wait_until_hanging(1, PATIENCE));
        let others: Vec<_> = (0..3)
            .map(|n| place.begin_read(&fetch, n * 1000, 500))
            .collect();
        place.controls.release();
        assert!(first.recv().unwrap().unwrap() == place.plain[..RECORD_LEN]);
        for (n, other) in others.into_iter().enumerate() {
            assert!(other.recv().unwrap().unwrap() == place.plain[n * 1000..n * 1000 + 500]);
        }
        assert_eq!(place.gets(), 1, "local {with_local}");
    }
}

#[test]
fn reads_here_and_there_fetch_little_more_than_they_need() {
    let place = Place::new(1, 256);
    let (fetch, packs) = place.local(0, u64::MAX);
    for n in 0..16 {
        place
            .read(&fetch, n * 5 % 16 * 16 * RECORD_LEN + 100, 4096)
            .unwrap();
    }
    drop(fetch);
    assert_eq!(place.gets(), 16);
    let bytes = packs.read_cache().bytes();
    assert!(bytes <= 16 * (RECORD_LEN as u64 + 8192), "{bytes}");
}

#[test]
fn without_a_budget_reads_ahead_stay_in_memory() {
    let place = Place::new(1, 128);
    let (fetch, packs) = place.local(48 << 20, 0);
    place.read_all(&fetch);
    assert_eq!(packs.read_cache().bytes(), 0);
    let gets = place.gets();
    assert!(gets < 20, "{gets}");
    place.read_all(&fetch);
    assert_eq!(place.gets(), gets);
}

#[test]
fn a_damaged_copy_far_away_is_an_error_and_its_neighbours_are_read() {
    let place = Place::new(1, 16);
    let object = place.extents[5].location;
    let key = ObjectKey::new(object.pack.object_name()).unwrap();
    let whole = place.far.head(&key).unwrap().unwrap().len;
    let mut bytes = place.far.get(&key, 0..whole).unwrap().to_vec();
    bytes[object.offset as usize + 1000] ^= 1;
    place
        .far
        .put(&key, Body::Bytes(&bytes), Precondition::None)
        .unwrap();
    for with_local in [true, false] {
        let fetch = if with_local {
            place.local(0, u64::MAX).0
        } else {
            place.far_only()
        };
        for n in 0..16 {
            let outcome = place.read(&fetch, n * RECORD_LEN, RECORD_LEN);
            assert_eq!(outcome.is_err(), n == 5, "record {n}: {outcome:?}");
        }
        let all = place.read(&fetch, 0, 16 * RECORD_LEN);
        assert!(matches!(all, Err(Error::Corrupt { .. })), "{all:?}");
    }
}

#[test]
fn bytes_that_change_or_end_on_the_way_are_asked_for_again_or_refused() {
    for fault in [
        Fault::WrongBytes,
        Fault::Truncate,
        Fault::Fail(ErrorClass::Transient),
    ] {
        for times in [1, 100] {
            let place = Place::new(1, 32);
            let (fetch, _packs) = place.local(0, u64::MAX);
            place.controls.inject(Op::Get, times, fault);
            // A range of several records: read as such, then each as it is needed.
            let outcome = place.read(&fetch, 0, 8 * RECORD_LEN);
            assert_eq!(outcome.is_ok(), times == 1, "{fault:?}: {outcome:?}");
            place.controls.clear();
            place.read_all(&fetch);
        }
    }
}

#[test]
fn a_volume_that_is_away_fails_the_read_and_is_used_again_when_it_is_back() {
    let place = Place::new(1, 64);
    let (fetch, _packs) = place.local(0, u64::MAX);
    place.read(&fetch, 0, RECORD_LEN).unwrap();
    place.controls.go_down();
    assert!(place.read(&fetch, 8 * RECORD_LEN, RECORD_LEN).is_err());
    place.read(&fetch, 0, RECORD_LEN).unwrap();
    place.controls.go_up();
    place.read_all(&fetch);
}
