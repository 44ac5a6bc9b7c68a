#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of a test are small"
)]

use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::layer::faulty::{Fault, FaultControls, Faulty, Op};
use crate::memory::MemoryVolume;
use crate::volume::{Body, Precondition};

const NUMBER: u64 = 7;

struct Fixture {
    reads: Reads,
    controls: FaultControls,
    content: Vec<u8>,
}

fn fixture(len: usize) -> Fixture {
    let content: Vec<u8> = (0..len).map(|at| (at / 7 + at / 1000) as u8).collect();
    let volume = MemoryVolume::new();
    let key = ObjectKey::new("a").unwrap();
    volume
        .put(&key, Body::Bytes(&content), Precondition::None)
        .unwrap();
    let controls = FaultControls::new();
    let volume = Faulty::new(Arc::new(volume), controls.clone());
    let reads = Reads::start(Arc::new(volume)).unwrap();
    reads.open(NUMBER, &key, len as u64);
    Fixture {
        reads,
        controls,
        content,
    }
}

impl Fixture {
    fn ask(&self, offset: u64, len: u32) -> mpsc::Receiver<Result<Bytes>> {
        let (sender, answer) = mpsc::channel();
        let send = Box::new(move |bytes| sender.send(bytes).unwrap());
        self.reads.read(NUMBER, offset, len, send);
        answer
    }

    fn read(&self, offset: u64, len: u32) -> Result<Bytes> {
        self.ask(offset, len)
            .recv_timeout(Duration::from_secs(60))
            .unwrap()
    }

    #[track_caller]
    fn same(&self, offset: usize, len: usize) {
        let end = (offset + len).min(self.content.len());
        let read = self.read(offset as u64, len as u32).unwrap();
        assert!(read == self.content[offset.min(end)..end], "{offset} {len}");
    }

    fn gets(&self) -> u64 {
        self.controls.calls(Op::Get)
    }
}

#[test]
fn a_reading_front_to_back_takes_few_ranges_whatever_its_steps() {
    for step in [4096, 131_072, 1 << 20, 700_001] {
        let fixture = fixture((40 << 20) + 333);
        for offset in (0..fixture.content.len()).step_by(step) {
            fixture.same(offset, step);
        }
        assert!(fixture.gets() <= 16, "{step}: {}", fixture.gets());
    }
}

#[test]
fn questions_that_overtake_each_other_are_one_reading() {
    let fixture = fixture(16 << 20);
    for base in (0..16 << 20).step_by(1 << 20) {
        let turned = [3, 0, 2, 1].map(|part| base + part * (256 << 10));
        let asked = turned.map(|offset| (offset, fixture.ask(offset as u64, 256 << 10)));
        for (offset, answer) in asked {
            let bytes = answer
                .recv_timeout(Duration::from_secs(60))
                .unwrap()
                .unwrap();
            assert!(bytes == fixture.content[offset..offset + (256 << 10)]);
        }
    }
    assert!(fixture.gets() <= 8, "{}", fixture.gets());
}

#[test]
fn a_reader_who_jumps_gets_just_what_he_asks_for() {
    let fixture = fixture(64 << 20);
    let mut offset: usize = 30 << 20;
    for _ in 0..20 {
        let before = fixture.gets();
        fixture.same(offset, 4096);
        assert_eq!(fixture.gets(), before + 1);
        offset = (offset + (13 << 20)) % (60 << 20);
    }
    let cache = fixture.reads.shared.cache();
    assert_eq!((cache.blocks.len(), cache.pending), (0, 0));
}

#[test]
fn the_end_is_short_and_behind_it_is_nothing() {
    let fixture = fixture((1 << 20) + 5);
    fixture.same((1 << 20) - 3, 100);
    fixture.same(1 << 20, 100);
    assert_eq!(fixture.read(2 << 20, 100).unwrap(), Bytes::new());
    let empty = self::fixture(0);
    assert_eq!(empty.read(0, 100).unwrap(), Bytes::new());
    assert_eq!(empty.gets(), 0);
}

#[test]
fn a_failure_is_told_to_all_who_wait_and_the_next_question_asks_again() {
    let fixture = fixture(2 << 20);
    fixture.controls.inject(Op::Get, 1, Fault::Hang);
    let first = fixture.ask(0, 4096);
    assert!(
        fixture
            .controls
            .wait_until_hanging(1, Duration::from_secs(60))
    );
    let second = fixture.ask(4096, 4096);
    let count = fixture.gets();
    assert_eq!(count, 1, "both wait for the same range");
    fixture.controls.release();
    for answer in [first, second] {
        answer
            .recv_timeout(Duration::from_secs(60))
            .unwrap()
            .unwrap();
    }
    let other = self::fixture(2 << 20);
    other.controls.inject(Op::Get, 1, Fault::Io);
    let error = other.read(0, 4096).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    other.same(0, 4096);
}

#[test]
fn memory_is_bounded_and_goes_with_the_last_reader() {
    let fixture = fixture(130 << 20);
    for offset in (0..fixture.content.len()).step_by(1 << 20) {
        fixture.same(offset, 1 << 20);
        let cache = fixture.reads.shared.cache();
        assert!(cache.by_use.len() <= CACHE_LEN && cache.pending <= AHEAD_MAX + 32);
    }
    fixture.reads.close(NUMBER);
    let cache = fixture.reads.shared.cache();
    assert_eq!((cache.by_use.len(), cache.files.len()), (0, 0));
    drop(cache);
    assert!(fixture.read(0, 1).is_err());
}
