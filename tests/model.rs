//! Random operations on the engine and on a reference tree in memory: both must always agree, live, at
//! every closed epoch, after closing, after a crash, and from the external volume alone.
//!
//! Invariants 1 (what was acknowledged as durable is there), 2 (the external volume is complete at every
//! instant), 3 (a commit is whole or absent) and 4 (the index is a cache).
//!
//! `TIDEFS_MODEL_CASES` sets how many cases are tried, `TIDEFS_MODEL_SEED` tries that one alone.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

#[path = "model/acts.rs"]
mod acts;
mod common;
#[path = "model/dump.rs"]
mod dump;
#[path = "model/image.rs"]
mod image;
#[path = "model/ops.rs"]
mod ops;
#[path = "model/state.rs"]
mod state;
#[path = "model/world.rs"]
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use world::{Counts, World};

/// Cases in an ordinary run.
const CASES: u64 = 100;
/// Steps of shrinking: each runs a case.
const SHRINK_STEPS_MAX: u32 = 400;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn try_case(ops: &[ops::Op], has_external: bool, totals: &Mutex<Counts>) -> Result<(), String> {
    let mut world = World::new(has_external);
    let outcome = ops
        .iter()
        .enumerate()
        .try_for_each(|(n, op)| {
            world
                .run(op)
                .map_err(|wrong| format!("operation {n}, {op:?}: {wrong}"))
        })
        .and_then(|()| {
            world
                .finish()
                .map_err(|wrong| format!("at the end: {wrong}"))
        });
    totals.lock().unwrap().add(world.counts);
    outcome
}

/// Every second case has an external volume.
fn run_seed(seed: u64, totals: &Mutex<Counts>) -> Result<(), String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: SHRINK_STEPS_MAX,
        ..Config::default()
    };
    let mut runner =
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&ops::case(), |ops| {
        try_case(&ops, seed.is_multiple_of(2), totals).map_err(TestCaseError::fail)
    });
    outcome.map_err(|error| match error {
        TestError::Fail(reason, ops) => {
            format!("TIDEFS_MODEL_SEED={seed}: {reason}\nafter: {ops:#?}")
        }
        TestError::Abort(reason) => format!("TIDEFS_MODEL_SEED={seed}: {reason}"),
    })
}

#[test]
fn the_engine_and_the_reference_agree() {
    let first = setting("TIDEFS_MODEL_SEED").unwrap_or(0);
    let default_count = if setting("TIDEFS_MODEL_SEED").is_some() {
        1
    } else {
        CASES
    };
    let count = setting("TIDEFS_MODEL_CASES").unwrap_or(default_count);
    let (next, totals) = (AtomicU64::new(first), Mutex::new(Counts::default()));
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= first + count || failures.lock().unwrap().len() >= 3 {
                        return;
                    }
                    if let Err(failure) = run_seed(seed, &totals) {
                        eprintln!("{failure}");
                        failures.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap();
    eprintln!("seeds {first}..{}: {totals:?}", first + count);
    if count >= CASES {
        let seen = [
            totals.refused,
            totals.crashes,
            totals.went_back,
            totals.replayed,
            totals.with_index,
            totals.external_images,
            totals.epochs,
        ];
        assert!(!seen.contains(&0), "something was never tried: {totals:?}");
    }
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "seeds {failures:?} failed: run each with TIDEFS_MODEL_SEED"
    );
}

/// A name must not be durable before the bytes it was given to: the other file's fsync commits both.
#[test]
fn a_file_renamed_while_it_is_written_is_whole_when_another_ones_fsync_commits_its_name() {
    use ops::{Fill, MadeKind, Name, Op};
    use tidefs::volume::tree::RenameMode;
    let name = |name| Name { dir: 0, name };
    let file = |at| Op::Create {
        at,
        kind: MadeKind::File,
        mode: 0o644,
        gid: 0,
    };
    let ops = [
        file(name(0)),
        file(name(1)),
        Op::Open {
            file: 0,
            truncate: false,
        },
        Op::Open {
            file: 1,
            truncate: false,
        },
        Op::HandleWrite {
            handle: 0,
            offset: 0,
            len: 5000,
            fill: Fill::Noise(1),
        },
        Op::HandleRename {
            handle: 0,
            to: name(2),
            mode: RenameMode::Replace,
        },
        Op::HandleFsync { handle: 1 },
        Op::Crash { with_index: false },
    ];
    try_case(&ops, false, &Mutex::default()).unwrap();
}
