//! Storing an object with one request, and making sure of what the server has.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use reqwest::Method;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use crate::error::{At, ErrorClass, Result};
use crate::key::ObjectKey;
use crate::volume::{Body, Meta};

use super::S3Volume;
use super::answer::{Fail, Refusal};
use super::body::Payload;
use super::client::{Call, Lane};
use super::clock;
use super::read;

/// How `IfAbsent` is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Condition {
    /// There is none.
    None,
    /// By the server: `If-None-Match: *`.
    Header,
    /// By a look before and one behind: an early warning and no more.
    Lookup,
}

/// Bodies up to this length are signed for in any case, and wait for nobody's bulk.
const SMALL_LEN_MAX: u64 = 1 << 20;

/// Whether the signature covers large bodies: when it is wished, or when ETags do not say what was stored.
pub(super) fn signs_bodies(volume: &S3Volume) -> bool {
    volume.config.sign_bodies || volume.etag_is_opaque.load(Ordering::Relaxed)
}

/// The body with its sums.
pub(super) fn summed_up(bytes: Bytes, signed: bool) -> Payload {
    if signed || bytes.len() as u64 <= SMALL_LEN_MAX {
        Payload::new(bytes)
    } else {
        Payload::unsigned(bytes)
    }
}

/// Takes room for `len` bytes of a body; waits until others have given up theirs.
pub(super) async fn room(volume: &S3Volume, len: u64) -> Result<OwnedSemaphorePermit, Fail> {
    // The configuration was checked: one body always fits.
    let kib = u32::try_from(len.div_ceil(1024)).unwrap_or(u32::MAX);
    Arc::clone(&volume.memory)
        .acquire_many_owned(kib)
        .await
        .map_err(|_| Fail::timeout("the volume is being closed"))
}

/// The bytes `range` of a body, in memory of our own.
pub(super) fn bytes_of(at: At<'_>, body: Body<'_>, range: Range<u64>) -> Result<Bytes> {
    let unfit = |_| {
        at.error(
            ErrorClass::Permanent,
            format!("bytes {range:?} do not fit into memory"),
        )
    };
    let start = usize::try_from(range.start).map_err(unfit)?;
    let end = usize::try_from(range.end).map_err(unfit)?;
    match body {
        Body::Bytes(bytes) => Ok(Bytes::copy_from_slice(
            bytes.get(start..end).unwrap_or_default(),
        )),
        Body::File { file, len } => {
            let mut bytes = vec![0; end.saturating_sub(start)];
            file.read_exact_at(&mut bytes, range.start).map_err(|source| {
                let message = format!(
                    "the local file to send cannot be read at byte {} of {len}; nothing was stored",
                    range.start
                );
                at.error(ErrorClass::Permanent, message).with_source(source)
            })?;
            Ok(bytes.into())
        }
    }
}

pub(super) async fn put(
    volume: &S3Volume,
    at: At<'_>,
    key: &ObjectKey,
    body: Body<'_>,
    condition: Condition,
) -> Result<Meta, Fail> {
    let _room = room(volume, body.len()).await?;
    let payload = summed_up(bytes_of(at, body, 0..body.len())?, signs_bodies(volume));
    refuse_if_present(volume, key, condition).await?;
    let mut call = Call::new(Method::PUT, Some(volume.full(key.as_str())))
        .header("content-md5", payload.content_md5())
        .payload(payload);
    if let Some(class) = volume.config.storage_class.of(key.as_str()) {
        call = call.header("x-amz-storage-class", class);
    }
    if condition == Condition::Header {
        call = call.header("if-none-match", "*");
    }
    if body.len() > SMALL_LEN_MAX {
        call.lane = Lane::Bulk;
    }
    let stored = Stored::by(volume, &call).await?;
    if let Err(fail) = stored.verify(volume, key, &call.payload).await {
        if condition != Condition::None {
            // Wrong bytes under a name that may be given once would stay there for ever. They are ours: we won.
            remove(volume, key).await;
        }
        return Err(fail);
    }
    if condition == Condition::Lookup {
        stored.refuse_if_replaced(volume, key).await?;
    }
    Ok(Meta {
        key: key.clone(),
        len: body.len(),
        modified: stored
            .date
            .as_deref()
            .and_then(clock::http_date)
            .and_then(clock::system_time),
    })
}

/// The look before, where the server keeps no condition.
pub(super) async fn refuse_if_present(
    volume: &S3Volume,
    key: &ObjectKey,
    condition: Condition,
) -> Result<(), Fail> {
    if condition == Condition::Lookup && read::head(volume, key).await?.is_some() {
        return Err(Fail::Refused(Refusal::of_key("PreconditionFailed", "")));
    }
    Ok(())
}

async fn remove(volume: &S3Volume, key: &ObjectKey) {
    let call = Call::new(Method::DELETE, Some(volume.full(key.as_str())));
    if let Err(fail) = volume.client.send(&call).await {
        let error = fail.at(volume.at("delete", key.as_str()));
        warn!(error = %error.chain(), "an object that was stored wrongly could not be removed");
    }
}

/// What the server says it has stored.
struct Stored {
    etag: String,
    date: Option<String>,
    /// The server encrypts with a key of its own, and its ETags say nothing about the bytes.
    encrypted: bool,
}

impl Stored {
    async fn by(volume: &S3Volume, call: &Call) -> Result<Stored, Fail> {
        let reply = volume.client.send(call).await?;
        let (status, headers) = (reply.status(), reply.headers().clone());
        let etag = reply.etag().map(str::to_owned);
        let header = |name: &str| headers.get(name)?.to_str().ok();
        let encrypted = read::is_encrypted(&headers);
        let date = header("date").map(str::to_owned);
        let bytes = reply.document().await?;
        if let Some(refusal) = Refusal::in_success(status, &headers, &bytes) {
            return Err(Fail::Refused(refusal));
        }
        let etag = etag.ok_or_else(|| Fail::foreign("an object was stored and has no ETag"))?;
        Ok(Stored {
            etag,
            date,
            encrypted,
        })
    }

    /// Compares what is there with what was sent: by the ETag where it is the MD5, by size where it is known to be
    /// something else, and by reading everything back where that is not known yet.
    async fn verify(&self, volume: &S3Volume, key: &ObjectKey, sent: &Payload) -> Result<(), Fail> {
        if self.etag.eq_ignore_ascii_case(&sent.md5_hex()) {
            volume.etag_is_sum.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let is_sum = self.etag.len() == 32 && self.etag.bytes().all(|b| b.is_ascii_hexdigit());
        let says_nothing =
            self.encrypted || !is_sum || volume.etag_is_opaque.load(Ordering::Relaxed);
        let found = read::head(volume, key).await?;
        if found.as_ref().map(|meta| meta.len) != Some(sent.len()) {
            return Err(mismatch(&format!(
                "{} bytes were sent, and the server has {}",
                sent.len(),
                found.map_or_else(|| "none".into(), |meta| meta.len.to_string())
            )));
        }
        if says_nothing {
            return Ok(());
        }
        let back = read::get(volume, key, &(0..sent.len())).await?;
        if back != sent.bytes {
            return Err(mismatch("what the server has is not what was sent"));
        }
        volume.etag_is_opaque.store(true, Ordering::Relaxed);
        warn!(volume = %volume, "the server's ETags are not MD5 sums: objects are checked by their size from here on");
        Ok(())
    }

    /// The look behind: of two who met, the one whose object was replaced hears of it.
    async fn refuse_if_replaced(&self, volume: &S3Volume, key: &ObjectKey) -> Result<(), Fail> {
        let call = Call::new(Method::HEAD, Some(volume.full(key.as_str())));
        let reply = volume.client.send(&call).await?;
        if reply.etag() == Some(&self.etag) {
            Ok(())
        } else {
            Err(Fail::Refused(Refusal::of_key("PreconditionFailed", "")))
        }
    }
}

/// What is stored is not what was sent. Worth another attempt, which replaces it.
pub(super) fn mismatch(what: &str) -> Fail {
    Fail::Wrong {
        class: ErrorClass::Transient,
        message: format!("{what}: it is sent again; if this lasts, look for the server's fault"),
    }
}
