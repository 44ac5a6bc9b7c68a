//! Reading by range, and looking up.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use reqwest::Method;
use reqwest::header::HeaderMap;

use crate::error::ErrorClass;
use crate::key::ObjectKey;
use crate::volume::Meta;

use super::S3Volume;
use super::answer::{Fail, Refusal};
use super::client::{Call, Reply};
use super::clock;

/// Beyond every object there can be (5 TiB), and within what every server can count.
const RANGE_END_MAX: u64 = 1 << 52;

/// An object as a look finds it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) meta: Meta,
    pub(super) etag: String,
    /// The server encrypts with a key of its own, and its ETags say nothing about the bytes.
    pub(super) encrypted: bool,
}

/// What is known of `key`; none only if S3 itself says so.
pub(super) async fn head(volume: &S3Volume, key: &ObjectKey) -> Result<Option<Meta>, Fail> {
    Ok(see(volume, key).await?.map(|seen| seen.meta))
}

/// The same with the ETag.
///
/// A refused HEAD has no body, and so no word of S3 in it: any proxy's "404" looks the same. What was refused is asked
/// once more by a GET, whose refusal says who speaks (invariant 6).
pub(super) async fn see(volume: &S3Volume, key: &ObjectKey) -> Result<Option<Seen>, Fail> {
    let full = volume.full(key.as_str());
    let call = Call::new(Method::HEAD, Some(full.clone()));
    match volume.client.send(&call).await {
        Ok(reply) => seen(key, &reply).map(Some),
        Err(Fail::Refused(refusal)) if refusal.status < 500 => {
            let call = Call::new(Method::GET, Some(full)).header("range", "bytes=0-0");
            match volume.client.send(&call).await {
                Err(Fail::Refused(reason)) if reason.is("NoSuchKey") => Ok(None),
                // An empty object has no first byte. Whoever refused HEAD and gives this has it, and is odd.
                Err(Fail::Refused(reason)) if !reason.is("InvalidRange") => {
                    Err(Fail::Refused(reason))
                }
                Err(other @ (Fail::Broken { .. } | Fail::Wrong { .. })) => Err(other),
                _ => Err(Fail::timeout(
                    "it was not there, and then it was: somebody is just storing it",
                )),
            }
        }
        Err(fail) => Err(fail),
    }
}

fn seen(key: &ObjectKey, reply: &Reply) -> Result<Seen, Fail> {
    let (Some(etag), Some(len)) = (reply.etag(), reply.content_length()) else {
        return Err(Fail::foreign("an object without ETag or length"));
    };
    let modified = reply
        .header("last-modified")
        .and_then(clock::http_date)
        .and_then(clock::system_time);
    Ok(Seen {
        meta: Meta {
            key: key.clone(),
            len,
            modified,
        },
        etag: etag.to_owned(),
        encrypted: is_encrypted(reply.headers()),
    })
}

/// Whether ETags are of what the server made of the bytes.
pub(super) fn is_encrypted(headers: &HeaderMap) -> bool {
    let kind = headers.get("x-amz-server-side-encryption");
    kind.is_some_and(|kind| kind != "AES256")
        || headers.contains_key("x-amz-server-side-encryption-customer-algorithm")
}

/// Exactly the bytes of `range`.
pub(super) async fn get(
    volume: &S3Volume,
    key: &ObjectKey,
    range: &Range<u64>,
) -> Result<Bytes, Fail> {
    let Some(len) = range.end.checked_sub(range.start) else {
        return Err(Fail::Wrong {
            class: ErrorClass::Permanent,
            message: format!("the range {range:?} runs backwards"),
        });
    };
    if len == 0 || range.end > RANGE_END_MAX {
        // HTTP has no empty range, and servers count differently beyond what they can hold.
        return match head(volume, key).await? {
            None => Err(Fail::Refused(Refusal::of_key("NoSuchKey", ""))),
            Some(meta) if range.end > meta.len => Err(short(range, meta.len)),
            Some(_) => Ok(Bytes::new()),
        };
    }
    let mut call = Call::new(Method::GET, Some(volume.full(key.as_str())))
        .header("range", format!("bytes={}-{}", range.start, range.end - 1));
    call.answer_len = len;
    let reply = volume.client.send(&call).await?;
    match reply.status() {
        206 => part(reply, range, len).await,
        200 => whole(reply, range, len).await,
        status => Err(Fail::foreign(format!("{status} for a part of an object"))),
    }
}

/// The part that was asked for, or less if the object ends before.
async fn part(reply: Reply, range: &Range<u64>, len: u64) -> Result<Bytes, Fail> {
    let Some((start, last, total)) = reply.header("content-range").and_then(content_range) else {
        return Err(Fail::foreign("a part that does not say which"));
    };
    if let Some(total) = total
        && range.end > total
    {
        return Err(short(range, total));
    }
    if start != range.start || last.checked_add(1) != Some(range.end) {
        return Err(Fail::Wrong {
            class: ErrorClass::Transient,
            message: format!("bytes {start} to {last} came in place of {range:?}"),
        });
    }
    collect(reply, 0, len).await
}

/// A server, or a cache before it, that does not know ranges sends everything: what is wanted is cut out.
async fn whole(reply: Reply, range: &Range<u64>, len: u64) -> Result<Bytes, Fail> {
    if reply.etag().is_none() {
        return Err(stranger(reply).await);
    }
    match reply.content_length() {
        Some(total) if range.end > total => Err(short(range, total)),
        _ => collect(reply, range.start, len).await,
    }
}

/// "200", and no object: S3's own error under a wrong status, or somebody else's page.
async fn stranger(reply: Reply) -> Fail {
    let (status, headers) = (reply.status(), reply.headers().clone());
    match reply.document().await {
        Ok(bytes) => match Refusal::in_success(status, &headers, &bytes) {
            Some(refusal) => Fail::Refused(refusal),
            None => Fail::foreign("an object without ETag"),
        },
        Err(fail) => fail,
    }
}

/// `len` bytes behind the first `skip`; what comes after them is not read.
async fn collect(mut reply: Reply, skip: u64, len: u64) -> Result<Bytes, Fail> {
    let too_long = |_| Fail::Wrong {
        class: ErrorClass::Permanent,
        message: format!("{len} bytes do not fit into memory"),
    };
    let wanted = usize::try_from(len).map_err(too_long)?;
    let mut skip = skip;
    let mut bytes = BytesMut::with_capacity(wanted);
    while let Some(mut chunk) = reply
        .chunk()
        .await
        .map_err(|fail| broken_off(fail, len, bytes.len()))?
    {
        let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
        skip -= skipped as u64;
        let _ = chunk.split_to(skipped);
        chunk.truncate(wanted - bytes.len());
        if bytes.is_empty() && chunk.len() == wanted {
            return Ok(chunk);
        }
        bytes.extend_from_slice(&chunk);
        if bytes.len() == wanted {
            return Ok(bytes.freeze());
        }
    }
    Err(ended_early(len, bytes.len()))
}

/// A body that breaks off is a short read, whatever the reason that the connection gives.
fn broken_off(fail: Fail, len: u64, got: usize) -> Fail {
    match fail {
        Fail::Broken {
            class: ErrorClass::Transient,
            source: Some(_),
            ..
        } => ended_early(len, got),
        other => other,
    }
}

fn ended_early(len: u64, got: usize) -> Fail {
    Fail::Short {
        class: ErrorClass::Transient,
        message: format!(
            "{got} of {len} bytes came, and then the connection ended: it is read again"
        ),
    }
}

fn short(range: &Range<u64>, object_len: u64) -> Fail {
    Fail::Short {
        class: ErrorClass::Permanent,
        message: format!(
            "bytes {range:?} are wanted and it has {object_len}: it is damaged; check the volume"
        ),
    }
}

/// First byte, last byte, and the object's length if it is told: `bytes 0-9/100`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_where_it_lies() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0, 9, Some(100))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5, 5, None)));
        for broken in [
            "",
            "bytes */100",
            "bytes 0-9",
            "0-9/100",
            "bytes a-9/100",
            "bytes 0-9/many",
        ] {
            assert_eq!(content_range(broken), None, "{broken}");
        }
    }
}
