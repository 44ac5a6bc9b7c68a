//! Every kind of volume keeps the contract.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use vfs::testkit::conformance;
use vfs::{
    Breaker, BreakerPolicy, DirVolume, FaultControls, Faulty, MemoryVolume, Retry, RetryPolicy,
    StopSignal, Volume, VolumeExt,
};

/// Makes volumes in directories that live as long as this.
#[derive(Default)]
struct Directories(Mutex<Vec<TempDir>>);

impl Directories {
    fn make(&self, parent: &Path) -> Arc<dyn Volume> {
        let directory = TempDir::new_in(parent).unwrap();
        let volume = DirVolume::open(directory.path()).unwrap();
        self.0.lock().unwrap().push(directory);
        Arc::new(volume)
    }
}

/// What `std` and the build put on a disk, and not on tmpfs where /tmp is one.
fn disk() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

#[test]
fn memory_keeps_the_contract() {
    conformance(&|| Arc::new(MemoryVolume::new()));
}

#[test]
fn a_directory_on_disk_keeps_the_contract() {
    let directories = Directories::default();
    conformance(&|| directories.make(disk()));
}

#[test]
fn a_directory_on_tmpfs_keeps_the_contract() {
    let shm = Path::new("/dev/shm");
    let Ok(probe) = TempDir::new_in(shm) else {
        eprintln!("skipped: /dev/shm cannot be written");
        return;
    };
    drop(probe);
    let directories = Directories::default();
    conformance(&|| directories.make(shm));
}

#[test]
fn a_local_directory_keeps_the_contract() {
    let directories = Mutex::new(Vec::new());
    conformance(&|| {
        let directory = TempDir::new_in(disk()).unwrap();
        let volume = DirVolume::open_local(directory.path()).unwrap();
        directories.lock().unwrap().push(directory);
        Arc::new(volume)
    });
}

#[test]
fn a_faulty_volume_without_faults_keeps_the_contract() {
    conformance(&|| {
        Arc::new(Faulty::new(
            Arc::new(MemoryVolume::new()),
            FaultControls::new(),
        ))
    });
}

#[test]
fn a_retrying_directory_keeps_the_contract() {
    let directories = Directories::default();
    conformance(&|| {
        Arc::new(Retry::new(
            directories.make(disk()),
            RetryPolicy::default(),
            StopSignal::new(),
        ))
    });
}

#[test]
fn a_limited_directory_keeps_the_contract() {
    let directories = Directories::default();
    conformance(&|| {
        let limits = vfs::LimitHandle::new(vfs::LimitPlan {
            base: vfs::Limits {
                upload: NonZeroU64::new(1 << 30),
                download: NonZeroU64::new(1 << 30),
                requests: NonZeroU64::new(1 << 20),
            },
            timetable: vfs::Timetable::default(),
        });
        Arc::new(vfs::Limited::new(directories.make(disk()), limits))
    });
}

#[test]
fn a_directory_behind_a_breaker_keeps_the_contract() {
    let directories = Directories::default();
    conformance(&|| {
        let inner = directories.make(disk());
        Arc::new(Breaker::start(inner, BreakerPolicy::default(), StopSignal::new()).unwrap())
    });
}

#[test]
fn a_volume_that_lies_does_not_keep_the_contract() {
    use vfs::{Fault, Op};
    let controls = FaultControls::new();
    let outcome = std::panic::catch_unwind(|| {
        conformance(&|| {
            controls.inject(Op::Put, 1, Fault::Lie);
            Arc::new(Faulty::new(Arc::new(MemoryVolume::new()), controls.clone()))
        });
    });
    assert!(outcome.is_err(), "the kit would let anything pass");
}

#[test]
fn a_listing_of_many_pages_is_visited_whole() {
    let volume = MemoryVolume::new();
    for number in 0..2500 {
        let key = vfs::ObjectKey::new(format!("k/{number:05}")).unwrap();
        volume
            .put(&key, vfs::Body::Bytes(b""), vfs::Precondition::None)
            .unwrap();
    }
    let mut seen = 0;
    volume
        .for_each("k/", |meta| -> vfs::Result<()> {
            assert_eq!(meta.key.as_str(), format!("k/{seen:05}"));
            seen += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, 2500);
    assert_eq!(volume.sweep_temporary(&[""], Duration::ZERO).unwrap(), 0);
}
