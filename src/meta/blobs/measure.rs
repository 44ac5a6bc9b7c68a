//! What the blob index costs. Not a test: run by hand as `index::measure` is, with `MEASURE_DIR` and `MEASURE_ENTRIES`.

use std::time::{Duration, Instant};

use super::*;
use crate::types::SessionId;

/// A random hash from a number, much faster than SHA-256.
fn hash(n: u64) -> BlobHash {
    let mut bytes = [0; 32];
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        let mut mixed = n
            .wrapping_mul(4)
            .wrapping_add(at as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
    }
    BlobHash(bytes)
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let lines = status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    lines
        .map(|line| {
            line.split_whitespace()
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect::<Vec<_>>()
        .join("  ")
}

#[test]
#[ignore = "a measurement"]
fn fill_and_look_up() {
    let dir = Path::new(&std::env::var("MEASURE_DIR").unwrap()).join("blobs");
    let count: u64 = std::env::var("MEASURE_ENTRIES").unwrap().parse().unwrap();
    let index = BlobIndex::open(&dir).unwrap().index;
    let (start, mut merging, mut longest) = (Instant::now(), Duration::ZERO, Duration::ZERO);
    for n in 0..count {
        let pack = PackId::new(SessionId([1; 8]), n / 500);
        index.insert(
            hash(n),
            BlobLocation {
                pack,
                offset: 1,
                stored_len: 2,
                plain_len: 3,
            },
        );
        if n % 500 == 499 {
            index.pack_complete(pack);
        }
        if index.wants_flush() {
            index.flush().unwrap();
            let merge = Instant::now();
            index.merge_if_needed(|_| true).unwrap();
            merging += merge.elapsed();
            longest = longest.max(merge.elapsed());
        }
    }
    index.pack_complete(PackId::new(SessionId([1; 8]), (count - 1) / 500));
    index.flush().unwrap();
    println!(
        "fill {:?}, of it merging {merging:?}, longest {longest:?}; {}",
        start.elapsed(),
        memory()
    );
    println!(
        "{} runs, {} MiB on disk",
        index.run_count(),
        index.len_on_disk().unwrap() >> 20
    );
    drop(index);
    let start = Instant::now();
    let index = BlobIndex::open(&dir).unwrap().index;
    println!("open {:?}; {}", start.elapsed(), memory());
    let look_up = |what: &str, from: u64, there: bool| {
        let start = Instant::now();
        let numbers = (0..100_000).map(|n| from + n * 7919 % count);
        let found = numbers.filter(|n| index.get(&hash(*n)).is_some()).count();
        println!(
            "100 000 lookups of {what}: {:?}; {}",
            start.elapsed(),
            memory()
        );
        assert_eq!(found, if there { 100_000 } else { 0 });
    };
    look_up("what is there", 0, true);
    look_up("what is not", count, false);
}
