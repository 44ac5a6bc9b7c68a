//! The external volumes of the matrix: a directory whose calls go wrong above the system calls, and a bucket whose
//! server answers wrongly. Each is a kind with the faults in it, for the engine to put its layers on, and another way to
//! it on which nothing goes wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidefs::format::record::{IDENTITY_NAME, Identity};
use tidefs::volume::store;
use vfs::s3::S3Volume;
use vfs::{DirVolume, ErrorClass, FaultControls, Faulty, Op, Volume};

use crate::Fault;
use crate::bucket_server::{Bucket, HttpFault};

pub(crate) type Kind = Arc<dyn Volume>;
pub(crate) type Objects = BTreeMap<String, Vec<u8>>;

const SLOW: Duration = Duration::from_millis(150);
/// Every operation: a mount that hangs hangs whatever is asked of it.
const ALL: [Op; 11] = [
    Op::Put,
    Op::Get,
    Op::Head,
    Op::Compare,
    Op::List,
    Op::Delete,
    Op::Space,
    Op::Probe,
    Op::Bind,
    Op::VerifyIdentity,
    Op::SweepTemporary,
];

pub(crate) trait Far: Send + Sync {
    /// Above this or in it calls go wrong. `inner` is what the settings name.
    fn faulty(&self, inner: Kind, identity: &Identity, copy: &str) -> Kind;

    /// The same volume without faults.
    fn clean(&self) -> Kind;

    /// An empty place beside it: with faults, and without.
    fn beside(&self, name: &str) -> (Kind, Kind);

    /// The next `count` calls of `op` below `prefix` go wrong, there and beside.
    fn arm(&self, op: Op, prefix: &str, count: usize, fault: Fault);

    /// All goes well from here on, also what hangs now.
    fn clear(&self);

    /// How many calls went wrong.
    fn given(&self) -> u64;

    /// What it holds.
    fn objects(&self) -> Objects;
}

pub(crate) struct Dir {
    controls: FaultControls,
    path: PathBuf,
}

impl Dir {
    pub(crate) fn new(path: PathBuf) -> Dir {
        Dir {
            controls: FaultControls::new(),
            path,
        }
    }
}

fn in_calls(fault: Fault) -> vfs::Fault {
    use vfs::Fault as F;
    match fault {
        Fault::Hang => F::Hang,
        Fault::Slow => F::Delay(SLOW),
        Fault::Reset => F::ApplyThenFail(ErrorClass::Transient),
        Fault::Truncated => F::Truncate,
        Fault::WrongBytes => F::WrongBytes,
        Fault::Lie => F::Lie,
        Fault::Forbidden => F::Fail(ErrorClass::Permanent),
        Fault::NotFound => F::Fail(ErrorClass::NotFound),
        Fault::Error500 => F::Fail(ErrorClass::Transient),
        Fault::Busy503 => F::Fail(ErrorClass::Unreachable),
        Fault::ErrorIn200 => F::ShortRead,
        Fault::NoSpace => F::NoSpace,
        Fault::Stale => F::Stale,
        Fault::Io => F::Io,
    }
}

fn files(dir: &Path, base: &str, found: &mut Objects) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{base}{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), &format!("{name}/"), found);
        } else if let Ok(bytes) = fs::read(entry.path()) {
            found.insert(name, bytes);
        }
    }
}

impl Far for Dir {
    fn faulty(&self, inner: Kind, _: &Identity, _: &str) -> Kind {
        Arc::new(Faulty::new(inner, self.controls.clone()))
    }

    fn clean(&self) -> Kind {
        Arc::new(DirVolume::open(&self.path).unwrap())
    }

    fn beside(&self, name: &str) -> (Kind, Kind) {
        let path = self.path.with_file_name(name);
        fs::create_dir(&path).unwrap();
        let clean: Kind = Arc::new(DirVolume::open(&path).unwrap());
        let faulty = Faulty::new(Arc::clone(&clean), self.controls.clone());
        (Arc::new(faulty), clean)
    }

    fn arm(&self, op: Op, prefix: &str, count: usize, fault: Fault) {
        let injected = in_calls(fault);
        self.controls.inject_below(op, prefix, count, injected);
        if fault == Fault::Hang {
            for op in ALL {
                self.controls.inject_below(op, "", usize::MAX, injected);
            }
        }
    }

    fn clear(&self) {
        self.controls.clear();
        self.controls.release();
    }

    fn given(&self) -> u64 {
        self.controls.given()
    }

    fn objects(&self) -> Objects {
        let mut found = Objects::new();
        files(&self.path, "", &mut found);
        found.retain(|name, _| !name.contains(".tmp-"));
        found
    }
}

const PREFIX: &str = "host-7";

pub(crate) struct BucketFar {
    bucket: Bucket,
}

impl BucketFar {
    /// A bucket that holds what the directory `path` has: the engine is attached to that, and then given this.
    pub(crate) fn new(path: &Path) -> BucketFar {
        let bucket = Bucket::start();
        let mut found = Objects::new();
        files(path, "", &mut found);
        for (name, bytes) in found {
            bucket.place(&format!("{PREFIX}/{name}"), &bytes);
        }
        BucketFar { bucket }
    }

    fn open(&self, prefix: &str) -> S3Volume {
        S3Volume::open(self.bucket.config(prefix)).unwrap()
    }
}

fn in_answers(fault: Fault) -> HttpFault {
    match fault {
        Fault::Hang => HttpFault::Hang,
        Fault::Slow => HttpFault::Slow,
        Fault::Reset | Fault::Stale | Fault::Io => HttpFault::Reset,
        Fault::Truncated => HttpFault::Truncated,
        Fault::WrongBytes => HttpFault::WrongBytes,
        Fault::Lie => HttpFault::Lie,
        Fault::Forbidden => HttpFault::Forbidden,
        Fault::NotFound => HttpFault::Proxy404,
        Fault::Error500 => HttpFault::Error500,
        Fault::Busy503 => HttpFault::Busy503,
        Fault::ErrorIn200 => HttpFault::ErrorIn200,
        Fault::NoSpace => HttpFault::Full,
    }
}

impl Far for BucketFar {
    fn faulty(&self, _: Kind, identity: &Identity, copy: &str) -> Kind {
        let volume = self.open(PREFIX);
        volume.expect_sentinel(store::sentinel(identity, copy).unwrap());
        Arc::new(volume)
    }

    fn clean(&self) -> Kind {
        Arc::new(self.open(PREFIX))
    }

    fn beside(&self, name: &str) -> (Kind, Kind) {
        (Arc::new(self.open(name)), Arc::new(self.open(name)))
    }

    fn arm(&self, op: Op, prefix: &str, count: usize, fault: Fault) {
        let (op, prefix) = match op {
            // A look and a comparison are the same request.
            Op::Compare => (Op::Head, prefix),
            Op::VerifyIdentity => (Op::Get, IDENTITY_NAME),
            Op::Probe => (Op::Put, "probe/"),
            other => (other, prefix),
        };
        let part = format!("/{prefix}");
        self.bucket.arm(op, &part, count, in_answers(fault));
    }

    fn clear(&self) {
        self.bucket.clear();
    }

    fn given(&self) -> u64 {
        self.bucket.given()
    }

    fn objects(&self) -> Objects {
        self.bucket.objects(PREFIX)
    }
}
