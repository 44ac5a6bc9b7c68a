//! Whether an object is what it should be, by its ETag: nothing is read for it.
//!
//! On most servers the ETag is the MD5 of the bytes, and of an object in parts that of the parts' MD5s. It is not where
//! the server encrypts with a key of its own. An ETag that matches is proof anywhere; one that does not is, once this
//! server was seen to answer with sums.

use std::sync::atomic::Ordering;

use crate::error::At;
use crate::key::ObjectKey;
use crate::volume::{Body, Likeness};

use super::S3Volume;
use super::answer::Fail;
use super::body::hex;
use super::multipart::{part_len, sum_of_sums};
use super::put::bytes_of;
use super::read;

pub(super) async fn compare(
    volume: &S3Volume,
    at: At<'_>,
    key: &ObjectKey,
    body: Body<'_>,
) -> Result<Option<Likeness>, Fail> {
    let Some(seen) = read::see(volume, key).await? else {
        return Ok(Some(Likeness::Absent));
    };
    if seen.meta.len != body.len() {
        return Ok(Some(Likeness::Other));
    }
    let has_parts = seen.etag.contains('-');
    let part_len = if has_parts {
        part_len(&volume.config.limits, body.len())
    } else {
        body.len()
    };
    let sums = sums_of(at, body, part_len)?;
    let expected = match sums.first() {
        Some(sum) if !has_parts => hex(sum),
        _ => sum_of_sums(sums.into_iter()),
    };
    if seen.etag.eq_ignore_ascii_case(&expected) {
        return Ok(Some(Likeness::Same));
    }
    // Parts may have had another length when it was sent.
    let is_comparable = expected.len() == seen.etag.len() && count(&expected) == count(&seen.etag);
    let is_sum = volume.etag_is_sum.load(Ordering::Relaxed)
        && !volume.etag_is_opaque.load(Ordering::Relaxed)
        && !seen.encrypted;
    Ok((is_sum && is_comparable).then_some(Likeness::Other))
}

fn count(etag: &str) -> Option<&str> {
    etag.split_once('-').map(|(_, count)| count)
}

/// The MD5 of each part of `body`.
fn sums_of(at: At<'_>, body: Body<'_>, part_len: u64) -> Result<Vec<[u8; 16]>, Fail> {
    let mut sums = Vec::new();
    let mut start = 0;
    while start < body.len() || sums.is_empty() {
        let end = body.len().min(start + part_len);
        sums.push(md5::compute(bytes_of(at, body, start..end)?).0);
        start = end;
    }
    Ok(sums)
}
