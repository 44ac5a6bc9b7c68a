//! What the server behind a bucket can do, tried out: what it says of itself is often not so.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use reqwest::Method;
use reqwest::header::HeaderMap;

use crate::error::{At, Result};
use crate::key::ObjectKey;
use crate::s3::config::Addressing;
use crate::volume::{BucketProfile, Capabilities, MountKind};

use super::S3Volume;
use super::answer::{Fail, Refusal};
use super::body::Payload;
use super::client::Call;
use super::clock;
use super::multipart;
use super::{list, read, xml};

const FIRST: &[u8] = b"first probe";
const SECOND: &[u8] = b"second, longer probe";
/// Clocks further apart than this are worth a word; at fifteen minutes servers refuse everything.
const SKEW_SECS_MAX: u64 = 60;

/// Whether of two puts with `If-None-Match: *` the second is refused. Some servers take the header and ignore it, so
/// nothing but two puts will tell.
pub(super) async fn keeps_conditions(volume: &S3Volume) -> Result<bool, Fail> {
    let key = volume.names.next()?;
    let outcome = two_exclusive_puts(volume, &key).await;
    let removed = delete(volume, &key).await;
    let kept = outcome?;
    removed.map(|()| kept)
}

async fn two_exclusive_puts(volume: &S3Volume, key: &ObjectKey) -> Result<bool, Fail> {
    let put = async |bytes: &'static [u8]| {
        let call = put_call(volume, key, bytes).header("if-none-match", "*");
        volume.client.document(call).await
    };
    match put(FIRST).await {
        Ok(_) => {}
        Err(Fail::Refused(refusal)) if refuses_the_header(&refusal) => return Ok(false),
        Err(fail) => return Err(fail),
    }
    match put(SECOND).await {
        Ok(_) => Ok(false),
        Err(Fail::Refused(refusal)) if refusal.is_precondition_failed() => Ok(true),
        Err(Fail::Refused(refusal)) if refuses_the_header(&refusal) => Ok(false),
        Err(fail) => Err(fail),
    }
}

/// The server knows the header, or at least sees it, and does not do it.
fn refuses_the_header(refusal: &Refusal) -> bool {
    refusal.is_not_implemented()
        || (refusal.status == 400
            && (refusal.is("InvalidArgument") || refusal.is("InvalidRequest")))
}

fn put_call(volume: &S3Volume, key: &ObjectKey, bytes: &'static [u8]) -> Call {
    Call::new(Method::PUT, Some(volume.full(key.as_str()))).payload(Payload::new(bytes.into()))
}

async fn delete(volume: &S3Volume, key: &ObjectKey) -> Result<(), Fail> {
    let at = volume.at("probe", key.as_str());
    Ok(list::delete(volume, at, std::slice::from_ref(key)).await?)
}

pub(super) fn probe(volume: &S3Volume, at: At<'_>) -> Result<Capabilities> {
    // Tried afresh: a server may have been replaced since it was opened.
    let exclusive_create = volume
        .runtime
        .wait(keeps_conditions(volume))
        .map_err(|fail| fail.at(at))?;
    volume.run(at, async {
        let key = volume.names.next()?;
        let outcome = try_out(volume, &key, exclusive_create).await;
        // In any case nothing stays.
        let removed = delete(volume, &key).await;
        let found = outcome?;
        removed.map(|()| found)
    })
}

async fn try_out(
    volume: &S3Volume,
    key: &ObjectKey,
    exclusive_create: bool,
) -> Result<Capabilities, Fail> {
    let config = volume.config();
    let call = put_call(volume, key, FIRST);
    let started = Instant::now();
    let (headers, _) = volume.client.document(call.clone()).await?;
    let put_latency = started.elapsed();
    let etag_is_md5 = header(&headers, "etag")
        .is_some_and(|etag| etag.trim_matches('"') == call.payload.md5_hex());
    let started = Instant::now();
    let back = read::get(volume, key, &(0..FIRST.len() as u64)).await?;
    let get_latency = started.elapsed();
    volume
        .client
        .document(put_call(volume, key, SECOND))
        .await?;
    let page = list::list(volume, key.as_str(), None, NonZeroUsize::MIN).await?;
    let listed = page.objects.first();
    let profile = BucketProfile {
        endpoint: config.endpoint.clone(),
        region: config.region.clone(),
        path_style: config.addressing == Addressing::Path,
        server: header(&headers, "server")
            .map(xml::shorten)
            .unwrap_or_default(),
        etag_is_md5,
        checks_content: checks_content(volume, key).await?,
        multipart: takes_parts(volume, key).await?,
        batch_delete: deletes_batches(volume, key).await?,
        versioning: versioning(volume).await,
        clock_skew_secs: header(&headers, "date")
            .and_then(|date| clock::skew_secs(date, clock::now())),
    };
    let mut found = Capabilities {
        kind: MountKind::ObjectStore,
        file_system: "s3".into(),
        source: config.to_string(),
        mount_point: PathBuf::new(),
        atomic_rename: true,
        exclusive_create,
        fsync: true,
        fsync_directory: true,
        direct_io: false,
        list_after_put: listed
            .is_some_and(|meta| meta.key == *key && meta.len == SECOND.len() as u64),
        put_latency,
        get_latency,
        bucket: None,
        warnings: Vec::new(),
    };
    found.warnings = warnings(volume, &found, &profile, &back);
    found.bucket = Some(profile);
    Ok(found)
}

fn warnings(
    volume: &S3Volume,
    found: &Capabilities,
    profile: &BucketProfile,
    back: &[u8],
) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |broken: bool, text: String| {
        if broken {
            warnings.push(text);
        }
    };
    warn(
        back != FIRST,
        "What was put came back as something else: do not use this server.".into(),
    );
    warn(
        !found.exclusive_create,
        "The server does not keep If-None-Match: a second writer is not noticed early.".into(),
    );
    warn(
        !found.list_after_put,
        "A listing does not show what was just put: listings here are not trusted.".into(),
    );
    warn(
        !profile.checks_content,
        "The server takes bytes that are not those it was promised: damage on the way is found by ETag and size only."
            .into(),
    );
    warn(
        !profile.etag_is_md5,
        "ETags are not MD5 sums here: what is stored is compared by its size only.".into(),
    );
    warn(
        !profile.multipart,
        "Objects cannot be sent in parts: packs must stay below single_put_len_max.".into(),
    );
    warn(
        profile.versioning == Some(true),
        "The bucket keeps every version: what is deleted goes on taking room, and If-None-Match may have two winners. \
         Give it a lifecycle rule for old versions, or use another bucket."
            .into(),
    );
    warn(
        volume.config().endpoint.starts_with("http://"),
        "The way to the server is not encrypted: use https outside of a network of your own."
            .into(),
    );
    if let Some(skew) = profile
        .clock_skew_secs
        .filter(|skew| skew.unsigned_abs() > SKEW_SECS_MAX)
    {
        warn(
            true,
            format!(
                "This machine's clock is {}: set the time.",
                clock::in_words(skew)
            ),
        );
    }
    warnings
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A promise of other bytes than those that are sent, signed as if it were true.
async fn checks_content(volume: &S3Volume, key: &ObjectKey) -> Result<bool, Fail> {
    let promised = Payload::new(SECOND.into());
    let mut call = put_call(volume, key, FIRST);
    call = call.header("content-md5", promised.content_md5());
    call.payload.sha256 = promised.sha256;
    match volume.client.document(call).await {
        Ok(_) => Ok(false),
        Err(Fail::Refused(refusal)) if (400..500).contains(&refusal.status) => Ok(true),
        Err(fail) => Err(fail),
    }
}

async fn takes_parts(volume: &S3Volume, key: &ObjectKey) -> Result<bool, Fail> {
    let full = volume.full(key.as_str());
    let call = Call::new(Method::POST, Some(full.clone())).query("uploads", "");
    match volume.client.document(call).await {
        Ok((_, bytes)) => {
            let begun: xml::Initiation =
                xml::read("InitiateMultipartUploadResult", &bytes).map_err(Fail::foreign)?;
            multipart::abort(&volume.client, &full, &begun.upload_id).await?;
            Ok(true)
        }
        Err(Fail::Refused(refusal)) if refusal.is_not_implemented() => Ok(false),
        Err(fail) => Err(fail),
    }
}

/// The key and its neighbour that never was: two are several.
async fn deletes_batches(volume: &S3Volume, key: &ObjectKey) -> Result<bool, Fail> {
    let keys = [key.clone(), volume.names.next()?];
    list::delete(volume, volume.at("probe", key.as_str()), &keys).await?;
    Ok(!volume
        .single_deletes
        .load(std::sync::atomic::Ordering::Relaxed))
}

/// Many servers, and many policies, do not tell.
async fn versioning(volume: &S3Volume) -> Option<bool> {
    let call = Call::new(Method::GET, None).query("versioning", "");
    let (_, bytes) = volume.client.document(call).await.ok()?;
    let found: xml::Versioning = xml::read("VersioningConfiguration", &bytes).ok()?;
    Some(found.status.is_some_and(|status| status == "Enabled"))
}
