//! What the index costs. Not a test: run by hand, the numbers are in `docs/decisions/0002-sled-holds-pages.md`.
//!
//! ```sh
//! export MEASURE_DIR=/tmp/measure MEASURE_ENTRIES=1000000
//! for step in fill load reopen; do cargo test --lib index::measure::$step -- --ignored --nocapture; done
//! ```

use std::time::Instant;

use super::*;

const VOLUME: [u8; 16] = [3; 16];
const BATCH: u32 = 50_000;
const DIRECTORY: u32 = 200;

fn dir(name: &str) -> PathBuf {
    Path::new(&std::env::var("MEASURE_DIR").unwrap()).join(name)
}

fn entries() -> u32 {
    std::env::var("MEASURE_ENTRIES").unwrap().parse().unwrap()
}

/// A directory entry: one byte of kind, the parent's inode, the name.
fn key(n: u32) -> Vec<u8> {
    let mut key = vec![b'D'];
    key.extend_from_slice(&(u64::from(n / DIRECTORY) + 1000).to_be_bytes());
    key.extend_from_slice(format!("message-{:06}.eml", n % DIRECTORY * 7).as_bytes());
    key
}

/// An embedded inode and first extent: 100 bytes that hardly compress.
fn value(n: u32, round: u32) -> Vec<u8> {
    let mut state = u64::from(n) << 32 | u64::from(round);
    (0..100)
        .map(|_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect()
}

fn apply(index: &Index, numbers: impl Iterator<Item = u32>, round: u32) -> Applied {
    let batch: Vec<_> = numbers.map(|n| (key(n), value(n, round))).collect();
    index
        .apply(
            batch
                .iter()
                .map(|(key, value)| (key.as_slice(), Some(value.as_slice()))),
        )
        .unwrap()
}

/// Numbers below `entries` in no order.
fn scattered(count: u32, seed: u64) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        u32::try_from((state >> 33) % u64::from(entries())).unwrap()
    };
    (0..count).map(|_| next()).collect()
}

fn count(range: Range<'_>) -> u32 {
    u32::try_from(range.map(Result::unwrap).count()).unwrap()
}

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    let took = start.elapsed();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let memory: Vec<String> = status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
        .map(|line| {
            line.split_whitespace()
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    println!(
        "{what:<44} {:>10.1} ms   {} kB",
        took.as_secs_f64() * 1e3,
        memory.join("  ")
    );
    result
}

fn sizes(index: &Index) {
    println!(
        "pages {:?}, {} MiB on disk",
        index.page_count(),
        index.len_on_disk().unwrap() >> 20
    );
}

#[test]
#[ignore = "a measurement"]
fn fill() {
    let index = Index::create(&dir("filled"), VOLUME).unwrap();
    timed("apply all in sorted batches of 50 000", || {
        for first in (0..entries()).step_by(BATCH as usize) {
            apply(&index, first..(first + BATCH).min(entries()), 0);
        }
    });
    sizes(&index);
    timed("checkpoint", || index.checkpoint(Epoch(1)).unwrap());
    let mut numbers = scattered(BATCH, 1);
    numbers.sort_unstable();
    numbers.dedup();
    let applied = timed("apply one scattered batch of 50 000", || {
        apply(&index, numbers.into_iter(), 1)
    });
    println!("{applied:?}");
    timed("checkpoint after it", || {
        index.checkpoint(Epoch(2)).unwrap();
    });
    timed("checkpoint with nothing to do", || {
        index.checkpoint(Epoch(3)).unwrap();
    });
    let neighbours = entries() / 2..entries() / 2 + 2000;
    timed("apply 2 000 neighbours", || apply(&index, neighbours, 2));
    timed("checkpoint after it", || {
        index.checkpoint(Epoch(4)).unwrap();
    });
    sizes(&index);
    timed("close", || drop(index));
}

#[test]
#[ignore = "a measurement"]
fn load() {
    let mut index = Index::create(&dir("loaded"), VOLUME).unwrap();
    timed("load all", || {
        index
            .load((0..entries()).map(|n| Ok::<_, Error>((key(n).into(), value(n, 0).into()))))
            .unwrap();
    });
    timed("checkpoint", || index.checkpoint(Epoch(1)).unwrap());
    sizes(&index);
    timed("close", || drop(index));
}

#[test]
#[ignore = "a measurement"]
fn reopen() {
    let index = timed("open", || {
        Index::open(&dir("filled"), VOLUME).index.unwrap()
    });
    sizes(&index);
    let some = scattered(100_000, 2);
    let look_up = |numbers: &[u32]| {
        for n in numbers {
            assert!(index.get(&key(*n)).unwrap().is_some());
        }
    };
    timed("100 000 scattered lookups, cold", || look_up(&some));
    timed("100 000 scattered lookups again", || look_up(&some));
    let few: Vec<u32> = some.iter().map(|n| n % 20_000).collect();
    look_up(&few);
    timed("100 000 lookups among 20 000 hot entries", || look_up(&few));
    timed("1 000 listings of a directory of 200", || {
        for n in &some[..1000] {
            let first = key(n / DIRECTORY * DIRECTORY);
            let mut after = first[..9].to_vec();
            after.push(0xff);
            assert_eq!(count(index.range(&first[..9], Some(&after))), DIRECTORY);
        }
    });
    timed("scan of everything", || {
        assert_eq!(count(index.range(b"", None)), entries());
    });
    println!("{:?}", timed("verify", || index.verify().unwrap()));
}
