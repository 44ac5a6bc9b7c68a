//! Storing an object in parts, several at a time, each checked for itself.
//!
//! An upload that does not come to its end is aborted, also when the future that drives it is dropped; one whose process
//! died is left to the sweep. Parts are billed and no listing of objects shows them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Method;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::error::{At, ErrorClass};
use crate::key::ObjectKey;
use crate::s3::config::S3Limits;
use crate::volume::{Body, Meta};

use super::S3Volume;
use super::answer::{Fail, Refusal};
use super::body::{Payload, hex};
use super::client::{Call, Client, Lane};
use super::put::{Condition, bytes_of, mismatch, refuse_if_present, room, signs_bodies, summed_up};
use super::read;
use super::xml;

/// As many as S3 takes.
const PARTS_MAX: u64 = 10_000;
/// How many times the usual time a server may take to put the parts together.
const COMPLETION_PATIENCE: u32 = 10;
/// Longest wait for an abort that nobody waits for.
const ABORT_TIMEOUT: Duration = Duration::from_secs(60);

/// Length of a part of an object of `len` bytes: all alike but the last, as some servers want it.
pub(super) fn part_len(limits: &S3Limits, len: u64) -> u64 {
    limits.part_len.max(len.div_ceil(PARTS_MAX))
}

pub(super) async fn put(
    volume: &S3Volume,
    at: At<'_>,
    key: &ObjectKey,
    body: Body<'_>,
    condition: Condition,
) -> Result<Meta, Fail> {
    let len = body.len();
    let part_len = part_len(&volume.config.limits, len);
    if part_len > volume.config.limits.memory_max {
        return Err(Fail::Wrong {
            class: ErrorClass::Permanent,
            message: format!(
                "{len} bytes in {PARTS_MAX} parts: each would be larger than memory_max"
            ),
        });
    }
    if condition != Condition::None {
        // The server may not know the condition on what ends an upload; the header there is an addition.
        refuse_if_present(volume, key, Condition::Lookup).await?;
    }
    let upload = Upload::begin(volume, key).await?;
    let parts = send_parts(volume, at, &upload, body, part_len).await?;
    upload.complete(&parts, condition).await?;
    if parts.iter().all(|part| part.checked) {
        volume.etag_is_sum.store(true, Ordering::Relaxed);
    }
    drop(upload);
    match read::head(volume, key).await? {
        Some(meta) if meta.len == len => Ok(meta),
        Some(meta) => Err(mismatch(&format!(
            "{len} bytes were sent in parts, and the server has {}",
            meta.len
        ))),
        None => Err(mismatch(
            "all parts were sent, and the server has no object",
        )),
    }
}

async fn send_parts(
    volume: &S3Volume,
    at: At<'_>,
    upload: &Upload<'_>,
    body: Body<'_>,
    part_len: u64,
) -> Result<Vec<Part>, Fail> {
    let signed = signs_bodies(volume);
    let mut running = JoinSet::new();
    let mut parts = Vec::new();
    let mut start = 0;
    let mut number = 0;
    while start < body.len() {
        let end = body.len().min(start + part_len);
        let room = room(volume, end - start).await?;
        // Whoever failed meanwhile ends it before more is read.
        while let Some(done) = running.try_join_next() {
            parts.push(joined(done)?);
        }
        let bytes = bytes_of(at, body, start..end)?;
        number += 1;
        let (client, full, id) = (
            Arc::clone(&volume.client),
            upload.full.clone(),
            upload.id.clone(),
        );
        running.spawn(async move {
            // A thread that may take its time: the workers have other connections to serve.
            let sums = spawn_blocking(move || summed_up(bytes, signed)).await;
            let sent = match sums {
                Ok(payload) => send_part(&client, full, &id, number, payload).await,
                Err(error) => Err(Fail::timeout(format!("a thread for S3 failed: {error}"))),
            };
            drop(room);
            sent
        });
        start = end;
    }
    while let Some(done) = running.join_next().await {
        parts.push(joined(done)?);
    }
    parts.sort_by_key(|part| part.number);
    Ok(parts)
}

fn joined(done: Result<Result<Part, Fail>, tokio::task::JoinError>) -> Result<Part, Fail> {
    done.unwrap_or_else(|error| Err(Fail::timeout(format!("a thread for S3 failed: {error}"))))
}

/// A part that the server has.
#[derive(Debug)]
struct Part {
    number: u32,
    etag: String,
    md5: [u8; 16],
    /// The ETag is the MD5.
    checked: bool,
}

async fn send_part(
    client: &Client,
    full: String,
    id: &str,
    number: u32,
    payload: Payload,
) -> Result<Part, Fail> {
    let md5 = payload.md5;
    let expected = payload.md5_hex();
    let mut call = Call::new(Method::PUT, Some(full))
        .query("partNumber", number.to_string())
        .query("uploadId", id)
        .header("content-md5", payload.content_md5())
        .payload(payload);
    call.lane = Lane::Bulk;
    let reply = client.send(&call).await?;
    let (status, headers) = (reply.status(), reply.headers().clone());
    let etag = reply.etag().map(str::to_owned);
    let body = reply.document().await?;
    if let Some(refusal) = Refusal::in_success(status, &headers, &body) {
        return Err(Fail::Refused(refusal));
    }
    let etag = etag.ok_or_else(|| Fail::foreign("a part was stored and has no ETag"))?;
    let checked = etag.eq_ignore_ascii_case(&expected);
    let encrypted = headers.contains_key("x-amz-server-side-encryption")
        || headers.contains_key("x-amz-server-side-encryption-customer-algorithm");
    let is_sum = etag.len() == 32 && etag.bytes().all(|b| b.is_ascii_hexdigit());
    if !checked && is_sum && !encrypted {
        return Err(mismatch(&format!("part {number} is not what was sent")));
    }
    Ok(Part {
        number,
        etag,
        md5,
        checked,
    })
}

/// An upload that is aborted unless it is completed.
struct Upload<'a> {
    volume: &'a S3Volume,
    full: String,
    id: String,
}

impl<'a> Upload<'a> {
    async fn begin(volume: &'a S3Volume, key: &ObjectKey) -> Result<Upload<'a>, Fail> {
        let full = volume.full(key.as_str());
        let mut call = Call::new(Method::POST, Some(full.clone())).query("uploads", "");
        if let Some(class) = volume.config.storage_class.of(key.as_str()) {
            call = call.header("x-amz-storage-class", class);
        }
        let (_, bytes) = volume.client.document(call).await?;
        let answer: xml::Initiation =
            xml::read("InitiateMultipartUploadResult", &bytes).map_err(Fail::foreign)?;
        volume.state().uploads.insert(answer.upload_id.clone());
        Ok(Upload {
            volume,
            full,
            id: answer.upload_id,
        })
    }

    /// Puts the parts together. "200" is not yet success here: the server may find out later that it cannot, and says so
    /// in the body.
    async fn complete(&self, parts: &[Part], condition: Condition) -> Result<(), Fail> {
        let text = xml::completion(parts.iter().map(|part| part.etag.as_str()));
        let mut call = Call::new(Method::POST, Some(self.full.clone()))
            .query("uploadId", self.id.as_str())
            .header("content-type", "application/xml")
            .payload(Payload::new(text.into()));
        call.patience = COMPLETION_PATIENCE;
        if condition == Condition::Header {
            call = call.header("if-none-match", "*");
        }
        let (_, bytes) = self.volume.client.document(call).await?;
        let answer: xml::Completion =
            xml::read("CompleteMultipartUploadResult", &bytes).map_err(Fail::foreign)?;
        let etag = answer.etag.trim_matches('"');
        let has_count = etag.ends_with(&format!("-{}", parts.len()));
        if has_count
            && parts.iter().all(|part| part.checked)
            && !etag.eq_ignore_ascii_case(&sum_of_sums(parts.iter().map(|part| part.md5)))
        {
            return Err(mismatch("the parts were put together wrongly"));
        }
        self.volume.state().uploads.remove(&self.id);
        Ok(())
    }
}

/// The ETag of an object in parts: the MD5 of the parts' MD5s, and how many they are.
pub(super) fn sum_of_sums(parts: impl ExactSizeIterator<Item = [u8; 16]>) -> String {
    let count = parts.len();
    let sums: Vec<u8> = parts.flatten().collect();
    format!("{}-{count}", hex(&md5::compute(sums).0))
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if !self.volume.state().uploads.remove(&self.id) {
            return;
        }
        let (client, full, id) = (
            Arc::clone(&self.volume.client),
            self.full.clone(),
            self.id.clone(),
        );
        // Nobody waits for it: whoever is here has an error to report, or is being stopped.
        self.volume.runtime.handle().spawn(async move {
            match timeout(ABORT_TIMEOUT, abort(&client, &full, &id)).await {
                Ok(Ok(())) => debug!(key = full, "an upload in parts was aborted"),
                Ok(Err(_)) | Err(_) => {
                    warn!(key = full, "an upload in parts is left to the next sweep");
                }
            }
        });
    }
}

/// Ends an upload without an object. One that is gone already is as good.
pub(super) async fn abort(client: &Client, full: &str, id: &str) -> Result<(), Fail> {
    let call = Call::new(Method::DELETE, Some(full.to_owned())).query("uploadId", id);
    match client.document(call).await {
        Err(Fail::Refused(refusal)) if refusal.is("NoSuchUpload") => Ok(()),
        other => other.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_never_more_than_s3_takes() {
        let limits = S3Limits::default();
        assert_eq!(part_len(&limits, 100 << 20), limits.part_len);
        for len in [1 << 40, 5 << 40, PARTS_MAX * limits.part_len + 1] {
            assert!(len.div_ceil(part_len(&limits, len)) <= PARTS_MAX, "{len}");
        }
    }

    #[test]
    fn the_sum_of_sums_is_the_one_that_servers_give() {
        let sums = ["a", "b"].map(|text| md5::compute(text).0);
        // printf a | md5sum, printf b | md5sum; both as bytes | md5sum
        assert_eq!(
            sum_of_sums(sums.into_iter()),
            "96e024ba2074fe77e8e965ba43a704be-2"
        );
    }
}
