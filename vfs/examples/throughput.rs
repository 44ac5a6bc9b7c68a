//! How fast a volume takes, compares and gives objects, several at a time: to be held against another client of the same server.
//!
//! `cargo run -p tidefs-vfs --example throughput -- SPEC [OBJECTS] [MIB] [THREADS]`, by default 32 of 32 MiB over 8.

#![expect(clippy::unwrap_used, reason = "a measurement that fails says where")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use vfs::{Body, Likeness, ObjectKey, Precondition, Spec, VolumeExt};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let spec = Spec::parse(&arguments.next().unwrap()).unwrap();
    let mut number = |default: usize| {
        arguments
            .next()
            .map_or(default, |text| text.parse().unwrap())
    };
    let (objects, mib, threads) = (number(32), number(32), number(8));
    let volume = vfs::open(&spec).unwrap();
    let body = noise(mib << 20);
    let keys: Vec<ObjectKey> = (0..objects)
        .map(|n| ObjectKey::new(format!("probe/throughput-{}-{n}", std::process::id())).unwrap())
        .collect();
    let total_mib = objects * mib;
    let put = in_parallel(threads, &keys, |key| {
        volume
            .put(key, Body::Bytes(&body), Precondition::None)
            .unwrap();
    });
    println!(
        "put {total_mib} MiB over {threads}: {:.1} MiB/s",
        rate(total_mib, put)
    );
    let compare = in_parallel(threads, &keys, |key| {
        let likeness = volume.holds(key, Body::Bytes(&body)).unwrap();
        assert_eq!(likeness, Likeness::Same, "{key} is not what was put");
    });
    println!(
        "compare {total_mib} MiB over {threads}: {:.1} MiB/s",
        rate(total_mib, compare)
    );
    let len = body.len() as u64;
    let get = in_parallel(threads, &keys, |key| {
        let bytes = volume.get(key, 0..len).unwrap();
        assert!(bytes == body.as_slice(), "{key} came back changed");
    });
    println!(
        "get {total_mib} MiB over {threads}: {:.1} MiB/s",
        rate(total_mib, get)
    );
    volume.delete(&keys).unwrap();
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(mib: usize, seconds: f64) -> f64 {
    mib as f64 / seconds
}

fn in_parallel(threads: usize, keys: &[ObjectKey], work: impl Fn(&ObjectKey) + Sync) -> f64 {
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(key);
                }
            });
        }
    });
    started.elapsed().as_secs_f64()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
