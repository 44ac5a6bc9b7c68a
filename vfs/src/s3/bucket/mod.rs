//! A volume in a bucket.
//!
//! The callers wait on their own threads for futures that two threads named `s3-*` drive; nothing asynchronous is seen
//! outside. A request is sent once: asking again is `layer::retry`'s, with the class that the table in `answer` gave.
//!
//! What went out is compared with what is there: the server checks the bytes against `Content-MD5`, which is signed, and
//! small ones against their SHA-256 too; the ETag it answers is compared with ours; the object's size is looked up where
//! that says nothing. A mismatch is an error.
//!
//! - `runtime`, `endpoint`, `sign`, `client`: threads, the way, the signature, one request and its answer;
//! - `answer`, `xml`, `clock`: what an answer means; `credentials`: which keys;
//! - `read`: get and look up; `compare`: by the ETag; `put`, `multipart`: one request, or parts; `list`: listings, deletion, sweep; `probe`.
//!
//! Locks: `state` is held across no request; `conditional` is, on purpose (see [`S3Volume::keeps_conditions`]).

mod answer;
mod body;
mod client;
mod clock;
mod compare;
mod credentials;
mod endpoint;
mod list;
mod multipart;
mod probe;
mod put;
mod read;
mod runtime;
mod sign;
mod xml;

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::error::{At, Error, ErrorClass, Result};
use crate::identity::{SENTINEL_LEN_MAX, Sentinel};
use crate::key::ObjectKey;
use crate::s3::config::{ConditionalPut, S3Config};
use crate::volume::{Body, Capabilities, Likeness, Meta, Page, Precondition, Space, Volume};

use answer::Fail;
use client::Client;
use runtime::Runtime;

/// A volume in a bucket that exists, or in a prefix of it.
#[derive(Debug)]
pub struct S3Volume {
    name: String,
    config: S3Config,
    client: Arc<Client>,
    runtime: Arc<Runtime>,
    /// KiB of bodies that may be in memory.
    memory: Arc<Semaphore>,
    state: Mutex<State>,
    /// Whether the server keeps `If-None-Match`, once that is known.
    conditional: Mutex<Option<bool>>,
    /// The ETag of what is put in one request turned out not to be the MD5 of its bytes.
    etag_is_opaque: AtomicBool,
    /// The ETag of what was put turned out to be the MD5: from then on another ETag means other bytes.
    etag_is_sum: AtomicBool,
    /// The server refused to delete several objects with one request.
    single_deletes: AtomicBool,
    names: ProbeNames,
}

#[derive(Debug, Default)]
struct State {
    sentinel: Option<Sentinel>,
    barred: bool,
    /// Multipart uploads of this value, which no sweep may take.
    uploads: BTreeSet<String>,
}

/// Names of objects that are put for a try: this value's random part, then a counter.
#[derive(Debug)]
struct ProbeNames {
    random: u64,
    next: AtomicU64,
}

impl ProbeNames {
    fn next(&self) -> Result<ObjectKey> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        ObjectKey::new(format!("probe/{:016x}-{number:x}", self.random))
    }
}

impl S3Volume {
    /// The volume that `config` names. Nothing is sent: a server that is away now may be there when it is needed.
    pub fn open(config: S3Config) -> Result<S3Volume> {
        S3Volume::open_as(config.to_string(), config)
    }

    /// The same under another name, by which errors call it: what the operator typed.
    pub fn open_as(name: String, config: S3Config) -> Result<S3Volume> {
        config.check()?;
        let refuse = |why: String| Error::new(ErrorClass::Permanent, "open", &name, "", why);
        let client = Client::new(&config).map_err(refuse)?;
        let runtime =
            Runtime::shared().map_err(|error| refuse(format!("no threads for S3: {error}")))?;
        let memory = usize::try_from(config.limits.memory_max.div_ceil(1024)).unwrap_or(usize::MAX);
        let conditional = match config.conditional_put {
            ConditionalPut::Unknown => None,
            ConditionalPut::Kept => Some(true),
            ConditionalPut::Ignored => Some(false),
        };
        let random = RandomState::new().hash_one((std::process::id(), SystemTime::now()));
        Ok(S3Volume {
            name,
            client: Arc::new(client),
            runtime,
            memory: Arc::new(Semaphore::new(memory.min(Semaphore::MAX_PERMITS))),
            state: Mutex::default(),
            conditional: Mutex::new(conditional),
            etag_is_opaque: AtomicBool::new(false),
            etag_is_sum: AtomicBool::new(false),
            single_deletes: AtomicBool::new(false),
            names: ProbeNames {
                random,
                next: AtomicU64::new(0),
            },
            config,
        })
    }

    /// As [`Volume::bind`], but the first look is for whoever asks for the identity.
    pub fn expect_sentinel(&self, sentinel: Sentinel) {
        self.state().sentinel = Some(sentinel);
    }

    /// What it was opened with.
    pub fn config(&self) -> &S3Config {
        &self.config
    }

    fn at<'a>(&'a self, op: &'static str, key: &'a str) -> At<'a> {
        At {
            volume: &self.name,
            op,
            key,
        }
    }

    /// No panic can leave it half changed: each change is one assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses everything after a look that found the wrong volume.
    fn usable(&self, at: At<'_>) -> Result<()> {
        if self.state().barred {
            Err(at.barred())
        } else {
            Ok(())
        }
    }

    /// The name of `key` in the bucket.
    fn full(&self, key: &str) -> String {
        if self.config.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}/{key}", self.config.prefix)
        }
    }

    /// The part of a name in the bucket that belongs to this volume.
    fn stripped<'a>(&self, name: &'a str) -> Option<&'a str> {
        if self.config.prefix.is_empty() {
            Some(name)
        } else {
            name.strip_prefix(&self.config.prefix)?.strip_prefix('/')
        }
    }

    /// Runs `work` on the runtime while the caller waits, unless the wrong volume was found.
    fn run<T>(&self, at: At<'_>, work: impl Future<Output = Result<T, Fail>>) -> Result<T> {
        self.usable(at)?;
        self.runtime.wait(work).map_err(|fail| fail.at(at))
    }

    /// Fetches the sentinel afresh and judges it.
    fn judge(&self, at: At<'_>, sentinel: &Sentinel) -> Result<()> {
        let found = self.runtime.wait(async {
            match read::head(self, sentinel.key()).await? {
                Some(meta) if meta.len > SENTINEL_LEN_MAX => Err(Fail::foreign(format!(
                    "{} has {} bytes",
                    sentinel.key(),
                    meta.len
                ))),
                Some(meta) => read::get(self, sentinel.key(), &(0..meta.len))
                    .await
                    .map(Some),
                None => Ok(None),
            }
        });
        // Whatever kept it from being looked at, the volume is not known.
        let found = found.map_err(|fail| fail.at(at).into_unreachable())?;
        let verdict = sentinel.judge(at, found.as_deref());
        self.state().barred = verdict.is_err();
        verdict
    }

    /// Whether the server keeps `If-None-Match`; tried out by the first who wants to know. The lock is held meanwhile:
    /// the others want the same answer, and can do nothing without it.
    fn keeps_conditions(&self) -> Result<bool, Fail> {
        let mut known = self
            .conditional
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = *known {
            return Ok(known);
        }
        let found = self.runtime.wait(probe::keeps_conditions(self))?;
        *known = Some(found);
        Ok(found)
    }
}

impl fmt::Display for S3Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Volume for S3Volume {
    /// With [`Precondition::IfAbsent`] on a server that does not keep `If-None-Match` the key is looked up before and the
    /// object behind: two writers who meet within that moment may both win. It is an early warning there and no more;
    /// what keeps writers apart is that their names carry the session (invariant 7). The same holds everywhere for an
    /// object that is sent in parts.
    fn put(&self, key: &ObjectKey, body: Body<'_>, precondition: Precondition) -> Result<Meta> {
        let at = self.at("put", key.as_str());
        self.usable(at)?;
        let condition = match precondition {
            Precondition::None => put::Condition::None,
            Precondition::IfAbsent if self.keeps_conditions().map_err(|fail| fail.at(at))? => {
                put::Condition::Header
            }
            Precondition::IfAbsent => put::Condition::Lookup,
        };
        if body.len() <= self.config.limits.single_put_len_max {
            self.run(at, put::put(self, at, key, body, condition))
        } else {
            self.run(at, multipart::put(self, at, key, body, condition))
        }
    }

    fn get(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        self.run(self.at("get", key.as_str()), read::get(self, key, &range))
    }

    fn head(&self, key: &ObjectKey) -> Result<Option<Meta>> {
        self.run(self.at("look up", key.as_str()), read::head(self, key))
    }

    fn compare(&self, key: &ObjectKey, body: Body<'_>) -> Result<Option<Likeness>> {
        let at = self.at("compare", key.as_str());
        self.run(at, compare::compare(self, at, key, body))
    }

    fn list(&self, prefix: &str, after: Option<&ObjectKey>, limit: NonZeroUsize) -> Result<Page> {
        self.run(
            self.at("list", prefix),
            list::list(self, prefix, after, limit),
        )
    }

    fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        let at = self.at("delete", "");
        self.usable(at)?;
        self.runtime.wait(list::delete(self, at, keys))
    }

    fn space(&self) -> Result<Option<Space>> {
        self.usable(self.at("measure", "")).map(|()| None)
    }

    fn probe(&self) -> Result<Capabilities> {
        let at = self.at("probe", "");
        self.usable(at)?;
        probe::probe(self, at)
    }

    fn bind(&self, sentinel: Sentinel) -> Result<()> {
        self.judge(self.at("bind", ""), &sentinel)?;
        self.state().sentinel = Some(sentinel);
        Ok(())
    }

    fn verify_identity(&self) -> Result<()> {
        let sentinel = self.state().sentinel.clone();
        sentinel.map_or(Ok(()), |sentinel| {
            self.judge(self.at("identify", ""), &sentinel)
        })
    }

    /// Aborts uploads in parts that nobody finished. Whole objects are never half there, so nothing else is left behind.
    fn sweep_temporary(&self, below: &[&str], older_than: Duration) -> Result<u64> {
        let mut swept = 0;
        for prefix in below {
            swept += self.run(
                self.at("sweep", prefix),
                list::sweep(self, prefix, older_than),
            )?;
        }
        Ok(swept)
    }
}
