//! A volume in memory: the reference implementation, and the fast one for tests.
//!
//! What the contract leaves open it does as `dir` does, so that a test against memory says something about a disk.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Bound, Range};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::error::{At, ErrorClass, Result};
use crate::identity::Sentinel;
use crate::key::ObjectKey;
use crate::volume::{
    Body, Capabilities, Meta, MountKind, Page, Precondition, Space, Volume, checked_len,
};

const NAME: &str = "memory:";

/// Objects in the memory of this process. Durable only in name.
#[derive(Debug, Default)]
pub struct MemoryVolume {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<ObjectKey, Object>,
    sentinel: Option<Sentinel>,
    barred: bool,
}

struct Object {
    bytes: Bytes,
    modified: SystemTime,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

impl Object {
    fn meta(&self, key: &ObjectKey) -> Meta {
        Meta {
            key: key.clone(),
            len: self.bytes.len() as u64,
            modified: Some(self.modified),
        }
    }
}

impl State {
    /// Whether `key` is a directory of an object, or has an object for a directory.
    fn collides(&self, key: &ObjectKey) -> bool {
        let below = format!("{key}/");
        let next = self
            .objects
            .range::<str, _>((Bound::Included(below.as_str()), Bound::Unbounded))
            .next();
        next.is_some_and(|(other, _)| other.as_str().starts_with(&below))
            || key
                .ancestors()
                .any(|parent| self.objects.contains_key(parent))
    }
}

impl MemoryVolume {
    /// An empty volume.
    pub fn new() -> MemoryVolume {
        MemoryVolume::default()
    }

    /// A panic of another thread cannot leave the map half changed: each change is one insert or remove.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, unless the last look found the wrong volume.
    fn usable(&self, at: At<'_>) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.barred {
            Err(at.barred())
        } else {
            Ok(state)
        }
    }

    fn judge(&self, op: &'static str, sentinel: &Sentinel) -> Result<()> {
        let found = self
            .state()
            .objects
            .get(sentinel.key())
            .map(|object| object.bytes.clone());
        let verdict = sentinel.judge(at(op, ""), found.as_deref());
        self.state().barred = verdict.is_err();
        verdict
    }
}

fn at<'a>(op: &'static str, key: &'a str) -> At<'a> {
    At {
        volume: NAME,
        op,
        key,
    }
}

impl fmt::Display for MemoryVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

impl Volume for MemoryVolume {
    fn put(&self, key: &ObjectKey, body: Body<'_>, precondition: Precondition) -> Result<Meta> {
        let at = at("put", key.as_str());
        let mut bytes = Vec::new();
        body.for_each_chunk(("put", NAME, key), |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        let object = Object {
            bytes: bytes.into(),
            modified: SystemTime::now(),
        };
        let meta = object.meta(key);
        let mut state = self.usable(at)?;
        if precondition == Precondition::IfAbsent && state.objects.contains_key(key) {
            return Err(at.already_exists());
        }
        if state.collides(key) {
            return Err(at.error(
                ErrorClass::Permanent,
                "this key is a directory of another, or has an object for one",
            ));
        }
        state.objects.insert(key.clone(), object);
        Ok(meta)
    }

    fn get(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        let at = at("get", key.as_str());
        let bytes = self
            .usable(at)?
            .objects
            .get(key)
            .map(|object| object.bytes.clone());
        let bytes = bytes.ok_or_else(|| at.not_found())?;
        let len = checked_len(NAME, key, &range, bytes.len() as u64)?;
        // Fits: the whole object is in memory, and the range is within it.
        let start = bytes
            .len()
            .min(usize::try_from(range.start).unwrap_or(usize::MAX));
        Ok(bytes.slice(start..start + len))
    }

    fn head(&self, key: &ObjectKey) -> Result<Option<Meta>> {
        Ok(self
            .usable(at("look up", key.as_str()))?
            .objects
            .get(key)
            .map(|object| object.meta(key)))
    }

    fn list(&self, prefix: &str, after: Option<&ObjectKey>, limit: NonZeroUsize) -> Result<Page> {
        let state = self.usable(at("list", prefix))?;
        let start = match after.map(ObjectKey::as_str) {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut objects: Vec<Meta> = state
            .objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .take(limit.get().saturating_add(1))
            .map(|(key, object)| object.meta(key))
            .collect();
        let more = objects.len() > limit.get();
        objects.truncate(limit.get());
        Ok(Page { objects, more })
    }

    fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        let mut state = self.usable(at("delete", ""))?;
        for key in keys {
            state.objects.remove(key);
        }
        Ok(())
    }

    fn space(&self) -> Result<Option<Space>> {
        Ok(None)
    }

    fn probe(&self) -> Result<Capabilities> {
        Ok(Capabilities {
            kind: MountKind::Memory,
            file_system: "memory".to_owned(),
            source: String::new(),
            mount_point: PathBuf::new(),
            atomic_rename: true,
            exclusive_create: true,
            fsync: true,
            fsync_directory: true,
            direct_io: false,
            list_after_put: true,
            put_latency: Duration::ZERO,
            get_latency: Duration::ZERO,
            bucket: None,
            warnings: vec!["Objects in memory end with the process.".to_owned()],
        })
    }

    fn bind(&self, sentinel: Sentinel) -> Result<()> {
        self.judge("bind", &sentinel)?;
        self.state().sentinel = Some(sentinel);
        Ok(())
    }

    fn verify_identity(&self) -> Result<()> {
        let sentinel = self.state().sentinel.clone();
        sentinel.map_or(Ok(()), |sentinel| self.judge("identify", &sentinel))
    }

    fn sweep_temporary(&self, _below: &[&str], _older_than: Duration) -> Result<u64> {
        Ok(0)
    }
}
