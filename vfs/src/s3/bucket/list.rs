//! Listings, deletion of many, and the sweep of uploads that nobody finished.

use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Method;
use tracing::warn;

use crate::error::{At, ErrorClass, Result};
use crate::key::ObjectKey;
use crate::volume::{Meta, Page};

use super::S3Volume;
use super::answer::{Fail, Refusal};
use super::body::Payload;
use super::client::Call;
use super::clock;
use super::multipart;
use super::xml;

/// As many as S3 gives, or takes, at once.
const BATCH_MAX: usize = 1000;

/// Pages of S3 until `limit` keys of ours are found or the end is. Names that are no keys were put by others: not shown.
pub(super) async fn list(
    volume: &S3Volume,
    prefix: &str,
    after: Option<&ObjectKey>,
    limit: NonZeroUsize,
) -> Result<Page, Fail> {
    let limit = limit.get();
    let start_after = after.map(|key| volume.full(key.as_str()));
    let mut page = Page::default();
    let mut next: Option<String> = None;
    let mut last = start_after.clone().unwrap_or_default();
    loop {
        // One more than is wanted tells whether there are more; S3 says so itself at its own limit.
        let wanted = (limit - page.objects.len())
            .saturating_add(1)
            .min(BATCH_MAX);
        let mut call = Call::new(Method::GET, None)
            .query("list-type", "2")
            .query("encoding-type", "url")
            .query("prefix", volume.full(prefix))
            .query("max-keys", wanted.to_string());
        call = match (&next, &start_after) {
            (Some(token), _) => call.query("continuation-token", token.as_str()),
            (None, Some(after)) => call.query("start-after", after.as_str()),
            (None, None) => call,
        };
        let (_, bytes) = volume.client.document(call).await?;
        let listing: xml::Listing = xml::read("ListBucketResult", &bytes).map_err(Fail::foreign)?;
        for listed in listing.objects {
            let Some(name) = xml::decode(&listed.key) else {
                continue;
            };
            if name <= last {
                return Err(Fail::Wrong {
                    class: ErrorClass::Permanent,
                    message: format!(
                        "'{}' is listed behind '{}': listings here are in no order that can be trusted",
                        xml::shorten(&name),
                        xml::shorten(&last)
                    ),
                });
            }
            let key = volume
                .stripped(&name)
                .and_then(|key| ObjectKey::new(key).ok());
            last = name;
            if let Some(key) = key.filter(|key| key.as_str().starts_with(prefix)) {
                if page.objects.len() == limit {
                    page.more = true;
                    return Ok(page);
                }
                let modified = listed.modified.as_deref().and_then(clock::document_date);
                page.objects.push(Meta {
                    key,
                    len: listed.size,
                    modified: modified.and_then(clock::system_time),
                });
            }
        }
        if !listing.is_truncated {
            return Ok(page);
        }
        if page.objects.len() == limit && limit >= BATCH_MAX {
            page.more = true;
            return Ok(page);
        }
        match listing.next.filter(|token| next.as_ref() != Some(token)) {
            Some(token) => next = Some(token),
            None => return Err(Fail::foreign("a listing that has more and does not go on")),
        }
    }
}

pub(super) async fn delete(volume: &S3Volume, at: At<'_>, keys: &[ObjectKey]) -> Result<()> {
    for batch in keys.chunks(BATCH_MAX) {
        if batch.len() == 1 || volume.single_deletes.load(Ordering::Relaxed) {
            delete_each(volume, at, batch).await?;
            continue;
        }
        match delete_batch(volume, at, batch).await {
            Ok(outcome) => outcome?,
            Err(Fail::Refused(refusal)) if refusal.is_not_implemented() => {
                volume.single_deletes.store(true, Ordering::Relaxed);
                delete_each(volume, at, batch).await?;
            }
            Err(fail) => return Err(fail.at(at)),
        }
    }
    Ok(())
}

async fn delete_each(volume: &S3Volume, at: At<'_>, keys: &[ObjectKey]) -> Result<()> {
    for key in keys {
        delete_one(volume, at, key).await?;
    }
    Ok(())
}

async fn delete_one(volume: &S3Volume, at: At<'_>, key: &ObjectKey) -> Result<()> {
    let call = Call::new(Method::DELETE, Some(volume.full(key.as_str())));
    match volume.client.document(call).await {
        Err(Fail::Refused(refusal)) if refusal.is("NoSuchKey") => Ok(()),
        other => other
            .map(|_| ())
            .map_err(|fail| fail.at(at.key(key.as_str()))),
    }
}

/// The outer result is the request's, the inner one that of its keys: the worst of what the server says of them.
async fn delete_batch(
    volume: &S3Volume,
    at: At<'_>,
    keys: &[ObjectKey],
) -> Result<Result<()>, Fail> {
    let names: Vec<String> = keys.iter().map(|key| volume.full(key.as_str())).collect();
    let payload = Payload::new(xml::deletion(names.iter().map(String::as_str)).into());
    let call = Call::new(Method::POST, None)
        .query("delete", "")
        .header("content-type", "application/xml")
        .header("content-md5", payload.content_md5())
        .payload(payload);
    let (_, bytes) = volume.client.document(call).await?;
    let answer: xml::Deletion = xml::read("DeleteResult", &bytes).map_err(Fail::foreign)?;
    let refused: Vec<_> = answer
        .errors
        .iter()
        .filter(|error| error.code != "NoSuchKey")
        .collect();
    let errors = refused.iter().map(|error| {
        let key = xml::decode(&error.key).unwrap_or_default();
        let key = volume.stripped(&key).unwrap_or_default();
        Fail::Refused(Refusal::of_key(&error.code, &error.message)).at(at.key(key))
    });
    // What passes by itself is reported last: who hears "transient" asks again for nothing.
    let worst = errors.max_by_key(|error| !error.is_transient());
    Ok(worst.map_or(Ok(()), Err))
}

/// Aborts uploads of keys below `prefix` that were begun longer ago than `older_than`, by the server's clock, and that
/// this value is not writing.
pub(super) async fn sweep(
    volume: &S3Volume,
    prefix: &str,
    older_than: Duration,
) -> Result<u64, Fail> {
    let mut swept = 0;
    let mut marker: Option<(String, String)> = None;
    loop {
        let mut call = Call::new(Method::GET, None)
            .query("uploads", "")
            .query("encoding-type", "url")
            .query("prefix", volume.full(prefix))
            .query("max-uploads", BATCH_MAX.to_string());
        if let Some((key, id)) = &marker {
            call = call
                .query("key-marker", key.as_str())
                .query("upload-id-marker", id.as_str());
        }
        let (headers, bytes) = match volume.client.document(call).await {
            Err(Fail::Refused(refusal)) if refusal.is_not_implemented() => {
                warn!(volume = %volume, "the server does not list uploads in parts: what a crash left of them stays");
                return Ok(swept);
            }
            other => other?,
        };
        let listing: xml::Uploads =
            xml::read("ListMultipartUploadsResult", &bytes).map_err(Fail::foreign)?;
        let date = headers.get("date").and_then(|date| date.to_str().ok());
        let now = date.and_then(clock::http_date).unwrap_or_else(clock::now);
        for upload in &listing.unfinished {
            let began = clock::document_date(&upload.initiated);
            // A header's time has no fractions: what was just begun lies before it.
            let age = began.map(|began| Duration::try_from(now - began).unwrap_or_default());
            let is_meant = |name: &str| {
                let key = volume.stripped(name);
                key.is_some_and(|key| key.starts_with(prefix))
            };
            let name = xml::decode(&upload.key).filter(|name| is_meant(name));
            let ours = volume.state().uploads.contains(&upload.id);
            if let (Some(name), Some(age), false) = (name, age, ours)
                && age >= older_than
            {
                multipart::abort(&volume.client, &name, &upload.id).await?;
                swept += 1;
            }
        }
        if !listing.is_truncated {
            return Ok(swept);
        }
        let next_key = listing.next_key.as_deref().and_then(xml::decode);
        let next = (
            next_key.unwrap_or_default(),
            listing.next_upload_id.unwrap_or_default(),
        );
        if next.0.is_empty() || marker.as_ref() == Some(&next) {
            return Err(Fail::foreign(
                "a listing of uploads that has more and does not go on",
            ));
        }
        marker = Some(next);
    }
}
