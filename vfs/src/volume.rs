//! The trait every kind of volume has, and the types it speaks in.

use std::fmt;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::error::{Error, ErrorCase, ErrorClass, Result};
use crate::identity::Sentinel;
use crate::key::ObjectKey;

/// A place that keeps immutable objects: a directory, a mount, a bucket.
///
/// Every method may be called from any thread and may block for as long as the volume does. A key must not be a
/// directory of another (`a` and `a/b`): kinds that cannot hold both refuse the second with a permanent error.
/// `testkit::conformance` is this contract as code.
pub trait Volume: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Stores `body` under `key`, in place of what may be there.
    ///
    /// On `Ok` the object is durable, its size was checked, and `get`, `head` and `list` see it. At no time is a part
    /// of it seen. On `Err` it is there whole or not at all, and which of the two is not known; to ask again is safe.
    /// With [`Precondition::IfAbsent`] exactly one of several callers wins; the others get `AlreadyExists`.
    fn put(&self, key: &ObjectKey, body: Body<'_>, precondition: Precondition) -> Result<Meta>;

    /// Reads `range` of `key`: exactly that many bytes or an error, `ShortRead` if the object ends before.
    fn get(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes>;

    /// What is known of `key` without reading it. `None` only if the volume was able to tell that there is no such
    /// object (invariant 6); whatever else happened is an error.
    fn head(&self, key: &ObjectKey) -> Result<Option<Meta>>;

    /// Whether the object at `key` is `body`, by a fresh look and a sum that is taken where the object lies. `None` if
    /// that cannot be told without reading it: [`VolumeExt::holds`] does then. A kind that has no sums answers so always.
    fn compare(&self, key: &ObjectKey, body: Body<'_>) -> Result<Option<Likeness>> {
        let _ = (key, body);
        Ok(None)
    }

    /// Objects whose key begins with `prefix`, in byte order of their keys, from the first one behind `after`, at most
    /// `limit` of them. All or an error: never a listing with silent gaps (invariant 10). A prefix need not end at a `/`.
    fn list(&self, prefix: &str, after: Option<&ObjectKey>, limit: NonZeroUsize) -> Result<Page>;

    /// Removes the objects. What is not there counts as removed. On `Err` some may be gone; to ask again is safe.
    fn delete(&self, keys: &[ObjectKey]) -> Result<()>;

    /// Room on the volume, where it knows: a bucket does not.
    fn space(&self) -> Result<Option<Space>>;

    /// Tries out what the volume can do. Writes under `probe/` only, and removes what it wrote.
    fn probe(&self) -> Result<Capabilities>;

    /// From here on this is the volume that holds `sentinel`, and no other. Checks at once, on a fresh look.
    fn bind(&self, sentinel: Sentinel) -> Result<()>;

    /// Looks afresh whether this is still the volume that was opened and bound, and goes on with what it found.
    ///
    /// `WrongVolume`: another one, or an empty mount point; every operation is refused until a later look finds the
    /// right one. `Remounted`: the right one, mounted anew; puts since the last good look do not count. `Unreachable`:
    /// cannot be told. Call it before a batch, and again behind it before anything in it counts as stored.
    fn verify_identity(&self) -> Result<()>;

    /// Removes leftovers of puts that a crash interrupted, if they are older than `older_than` by the volume's own clock;
    /// says how many. What this value is writing is never touched; another process' is protected by the age alone.
    /// Only those of keys that begin with one of `below`, each of which is empty (everything) or ends in a `/`: what lies
    /// beside a volume's own keys may be another volume.
    fn sweep_temporary(&self, below: &[&str], older_than: Duration) -> Result<u64>;
}

/// What follows from the trait, written once for every kind.
pub trait VolumeExt: Volume {
    /// The whole object, if it has at most `len_max` bytes; a larger one is a permanent error, and is not read.
    fn get_whole(&self, key: &ObjectKey, len_max: u64) -> Result<Bytes>;

    /// Whether the object at `key` is `body`: by the volume's own sums, else byte for byte, by ranged gets.
    fn holds(&self, key: &ObjectKey, body: Body<'_>) -> Result<Likeness>;

    /// Visits every object whose key begins with `prefix`, in order, page by page; stops at the first error.
    fn for_each<E: From<Error>>(
        &self,
        prefix: &str,
        visit: impl FnMut(Meta) -> Result<(), E>,
    ) -> Result<(), E>;
}

/// Objects fetched at once by [`VolumeExt::for_each`]: what S3 gives in one answer.
const PAGE_LEN: NonZeroUsize = NonZeroUsize::new(1000).unwrap();

impl<V: Volume + ?Sized> VolumeExt for V {
    fn get_whole(&self, key: &ObjectKey, len_max: u64) -> Result<Bytes> {
        let Some(meta) = self.head(key)? else {
            let volume = self.to_string();
            return Err(Error::new(
                ErrorClass::NotFound,
                "get",
                &volume,
                key.as_str(),
                "there is no such object",
            ));
        };
        if meta.len > len_max {
            let message = format!(
                "it has {} bytes where at most {len_max} are expected: it is damaged or foreign",
                meta.len
            );
            return Err(Error::new(
                ErrorClass::Permanent,
                "get",
                &self.to_string(),
                key.as_str(),
                message,
            ));
        }
        self.get(key, 0..meta.len)
    }

    fn holds(&self, key: &ObjectKey, body: Body<'_>) -> Result<Likeness> {
        if let Some(likeness) = self.compare(key, body)? {
            return Ok(likeness);
        }
        match self.head(key)? {
            None => return Ok(Likeness::Absent),
            Some(meta) if meta.len != body.len() => return Ok(Likeness::Other),
            Some(_) => {}
        }
        let volume = self.to_string();
        let mut offset = 0;
        let mut same = true;
        body.for_each_chunk(("compare", &volume, key), |chunk| {
            for piece in chunk.chunks(CHUNK_LEN) {
                let end = offset + piece.len() as u64;
                same = same && self.get(key, offset..end)? == piece;
                offset = end;
            }
            Ok(())
        })?;
        Ok(if same {
            Likeness::Same
        } else {
            Likeness::Other
        })
    }

    fn for_each<E: From<Error>>(
        &self,
        prefix: &str,
        mut visit: impl FnMut(Meta) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after: Option<ObjectKey> = None;
        loop {
            let page = self.list(prefix, after.as_ref(), PAGE_LEN)?;
            let more = page.more;
            let last = page.objects.last().map(|meta| meta.key.clone());
            for meta in page.objects {
                visit(meta)?;
            }
            if !more {
                return Ok(());
            }
            // A volume that says "more" and gives nothing further would keep us here for ever.
            if last.is_none() || last <= after {
                let message = "the listing does not advance: the volume is faulty";
                return Err(Error::new(
                    ErrorClass::Permanent,
                    "list",
                    &self.to_string(),
                    prefix,
                    message,
                )
                .into());
            }
            after = last;
        }
    }
}

/// The bytes of a put. Copied freely: a retry reads it again from the start.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// The first `len` bytes of a file, streamed; its cursor is neither used nor moved.
    File {
        /// Open for reading.
        file: &'a File,
        /// How many bytes of it. If it has fewer, nothing is stored.
        len: u64,
    },
}

impl<'a> From<&'a [u8]> for Body<'a> {
    fn from(bytes: &'a [u8]) -> Body<'a> {
        Body::Bytes(bytes)
    }
}

/// Bytes of a file body in memory at once.
pub(crate) const CHUNK_LEN: usize = 1 << 20;

/// What a put sends: a [`Body`], or bytes that arrive while they are written and come only once.
pub(crate) trait Outgoing {
    /// How many bytes.
    fn len(&self) -> u64;

    /// Hands all bytes, in order, to `sink`; `place` names the put in an error.
    fn send(
        &self,
        place: (&'static str, &str, &ObjectKey),
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()>;
}

impl Outgoing for Body<'_> {
    fn len(&self) -> u64 {
        Body::len(self)
    }

    fn send(
        &self,
        place: (&'static str, &str, &ObjectKey),
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.for_each_chunk(place, sink)
    }
}

impl Body<'_> {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { len, .. } => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands all bytes, in order, to `sink`, a chunk at a time. `op`, `volume` and `key` name the put in an error: a
    /// local file that cannot be read is permanent, whatever the errno, for it says nothing about the volume.
    pub(crate) fn for_each_chunk(
        &self,
        (op, volume, key): (&'static str, &str, &ObjectKey),
        mut sink: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (file, len) = match *self {
            Body::Bytes(bytes) => {
                return if bytes.is_empty() {
                    Ok(())
                } else {
                    sink(bytes)
                };
            }
            Body::File { file, len } => (file, len),
        };
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(CHUNK_LEN).min(CHUNK_LEN)];
        let mut offset = 0;
        while offset < len {
            let wanted = usize::try_from(len - offset)
                .unwrap_or(CHUNK_LEN)
                .min(buffer.len());
            let (chunk, _) = buffer.split_at_mut(wanted);
            file.read_exact_at(chunk, offset).map_err(|source| {
                let message = format!("the local file to send cannot be read at byte {offset} of {len}; nothing was stored");
                Error::new(ErrorClass::Permanent, op, volume, key.as_str(), message).with_source(source)
            })?;
            sink(chunk)?;
            offset += wanted as u64;
        }
        Ok(())
    }
}

/// What must hold for a put to take place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Precondition {
    /// Nothing: replace what is there.
    #[default]
    None,
    /// The key has no object.
    IfAbsent,
}

/// What is known of an object without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Its name.
    pub key: ObjectKey,
    /// Its size in bytes.
    pub len: u64,
    /// When it was stored, by the volume's clock, where the volume says so.
    pub modified: Option<SystemTime>,
}

/// How an object compares with what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Likeness {
    /// It has the very bytes.
    Same,
    /// It has others, or another number of them.
    Other,
    /// There is no such object.
    Absent,
}

/// A piece of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// In byte order of their keys.
    pub objects: Vec<Meta>,
    /// Whether there are further ones behind the last.
    pub more: bool,
}

/// Room on a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Size of the volume in bytes.
    pub total_bytes: u64,
    /// What may still be written, without the reserve of the superuser.
    pub available_bytes: u64,
}

/// What sort of place a volume is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MountKind {
    /// The memory of this process.
    Memory,
    /// A file system of this machine's own kernel and disks.
    Disk,
    /// NFS.
    Nfs,
    /// SMB.
    Cifs,
    /// A FUSE file system, whose daemon may do as it likes.
    Fuse,
    /// Some other network or cluster file system.
    Network,
    /// A bucket of an object store.
    ObjectStore,
}

/// What a volume can do, as tried out by [`Volume::probe`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// What sort of place it is.
    pub kind: MountKind,
    /// The file system's name, as in `/proc/self/mountinfo`: `ext4`, `nfs4`, `fuse.sshfs`.
    pub file_system: String,
    /// What is mounted there: a device, `server:/export`.
    pub source: String,
    /// Where that is mounted.
    pub mount_point: PathBuf,
    /// A put replaces an object in one step, also in the eyes of others.
    pub atomic_rename: bool,
    /// [`Precondition::IfAbsent`] can be kept.
    pub exclusive_create: bool,
    /// fsync of a file is accepted.
    pub fsync: bool,
    /// fsync of a directory is accepted.
    pub fsync_directory: bool,
    /// O_DIRECT is accepted.
    pub direct_io: bool,
    /// A listing shows what was just put.
    pub list_after_put: bool,
    /// How long a small put took.
    pub put_latency: Duration,
    /// How long it took to read it back.
    pub get_latency: Duration,
    /// What only a bucket has to say.
    pub bucket: Option<BucketProfile>,
    /// What the operator should know, in whole sentences.
    pub warnings: Vec<String>,
}

/// What a bucket and its server can do, as tried out by [`Volume::probe`]. Whether they keep `If-None-Match` is
/// [`Capabilities::exclusive_create`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BucketProfile {
    /// Where the server is.
    pub endpoint: String,
    /// What requests are signed for.
    pub region: String,
    /// The bucket's name stands in the path, not in the host's name.
    pub path_style: bool,
    /// What the server calls itself, if it does.
    pub server: String,
    /// The ETag of an object is the MD5 of its bytes: what was stored can be compared without reading it.
    pub etag_is_md5: bool,
    /// Bytes that do not have the MD5 that was announced for them are refused.
    pub checks_content: bool,
    /// Objects can be sent in parts.
    pub multipart: bool,
    /// Several objects can be deleted with one request.
    pub batch_delete: bool,
    /// The bucket keeps what is deleted or replaced, and bills for it. None if it would not say.
    pub versioning: Option<bool>,
    /// How far the server's clock is ahead of this machine's, in seconds; negative if it is behind.
    pub clock_skew_secs: Option<i64>,
}

/// Refuses a range that runs backwards or beyond the object; its length otherwise. Called before anything is allocated.
pub(crate) fn checked_len(
    volume: &str,
    key: &ObjectKey,
    range: &Range<u64>,
    object_len: u64,
) -> Result<usize> {
    let permanent =
        |message: String| Error::new(ErrorClass::Permanent, "get", volume, key.as_str(), message);
    let Some(len) = range.end.checked_sub(range.start) else {
        return Err(permanent(format!("the range {range:?} runs backwards")));
    };
    if range.end > object_len {
        let message = format!(
            "bytes {range:?} are wanted and it has {object_len}: it is damaged; check the volume"
        );
        return Err(permanent(message).with_case(ErrorCase::ShortRead));
    }
    usize::try_from(len).map_err(|_| permanent(format!("{len} bytes do not fit into memory")))
}
