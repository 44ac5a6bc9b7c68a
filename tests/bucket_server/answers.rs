//! What a server answers with which nothing is wrong.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use vfs::Op;

use super::s3_server::{Action, answer, error, raw};
use super::{Asked, State, keys_in, md5_of, quoted};

pub(super) fn get(state: &State, asked: &Asked<'_>) -> Action {
    if asked.query.contains_key("versioning") {
        return answer("200 OK", &[], b"<VersioningConfiguration/>");
    }
    let Some(object) = state.objects.get(&asked.name) else {
        return if asked.op == Op::Head {
            answer("404 Not Found", &[], b"")
        } else {
            error("404 Not Found", "NoSuchKey")
        };
    };
    let (etag, len) = (quoted(&object.etag), object.bytes.len());
    if asked.op == Op::Head {
        // The length is announced, and no body comes.
        return Action::Raw(raw("200 OK", &[("etag", &etag)], b"", len));
    }
    let range = asked.request.header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let Some((first, last)) = range else {
        return answer("200 OK", &[("etag", &etag)], &object.bytes);
    };
    if first >= len {
        return error("416 Range Not Satisfiable", "InvalidRange");
    }
    let last = last.min(len - 1);
    let content_range = format!("bytes {first}-{last}/{len}");
    answer(
        "206 Partial Content",
        &[("etag", &etag), ("content-range", &content_range)],
        &object.bytes[first..=last],
    )
}

pub(super) fn list(state: &State, asked: &Asked<'_>) -> Action {
    let text = |name: &str| asked.query.get(name).cloned().unwrap_or_default();
    let max: usize = text("max-keys").parse().unwrap_or(1000);
    let after = text("continuation-token").max(text("start-after"));
    let (mut found, mut more, mut last) = (String::new(), false, String::new());
    let names = state.objects.iter();
    let wanted = names.filter(|(name, _)| name.starts_with(&asked.name) && **name > after);
    for (n, (name, object)) in wanted.enumerate() {
        if n == max {
            more = true;
            break;
        }
        let size = object.bytes.len();
        let _ = write!(
            found,
            "<Contents><Key>{name}</Key><Size>{size}</Size></Contents>"
        );
        last.clone_from(name);
    }
    let next = if more {
        format!("<NextContinuationToken>{last}</NextContinuationToken>")
    } else {
        String::new()
    };
    let body = format!(
        "<ListBucketResult><IsTruncated>{more}</IsTruncated>{next}{found}</ListBucketResult>"
    );
    answer("200 OK", &[], body.as_bytes())
}

pub(super) fn uploads(state: &State, asked: &Asked<'_>) -> Action {
    let mut found = String::new();
    for (id, upload) in &state.uploads {
        if upload.key.starts_with(&asked.name) {
            let (key, began) = (&upload.key, iso(upload.began));
            let _ = write!(
                found,
                "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>{began}</Initiated></Upload>"
            );
        }
    }
    let body = format!(
        "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{found}</ListMultipartUploadsResult>"
    );
    answer("200 OK", &[], body.as_bytes())
}

pub(super) fn delete(state: &mut State, asked: &Asked<'_>) -> Action {
    if let Some(id) = asked.query.get("uploadId") {
        return match state.uploads.remove(id) {
            Some(_) => answer("204 No Content", &[], b""),
            None => error("404 Not Found", "NoSuchUpload"),
        };
    }
    if asked.request.method == "DELETE" {
        state.objects.remove(&asked.name);
        return answer("204 No Content", &[], b"");
    }
    for name in keys_in(&asked.request.body) {
        state.objects.remove(&name);
    }
    answer("200 OK", &[], b"<DeleteResult></DeleteResult>")
}

pub(super) fn put(state: &mut State, asked: &Asked<'_>, body: Vec<u8>) -> Action {
    let exists = state.objects.contains_key(&asked.name);
    let has_condition = asked.request.header("if-none-match").is_some();
    if has_condition && exists {
        return error("412 Precondition Failed", "PreconditionFailed");
    }
    if asked.query.contains_key("uploads") {
        let id = state.begin(&asked.name);
        let body = format!(
            "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
        );
        return answer("200 OK", &[], body.as_bytes());
    }
    let etag = md5_of(&body);
    let Some(id) = asked.query.get("uploadId") else {
        state.store(&asked.name, body, etag.clone());
        return answer("200 OK", &[("etag", &quoted(&etag))], b"");
    };
    let Some(upload) = state.uploads.get_mut(id) else {
        return error("404 Not Found", "NoSuchUpload");
    };
    if let Some(part) = asked.part() {
        upload.parts.insert(part, body);
        return answer("200 OK", &[("etag", &quoted(&etag))], b"");
    }
    let upload = state.uploads.remove(id).unwrap();
    let sums: Vec<u8> = upload
        .parts
        .values()
        .flat_map(|part| md5::compute(part).0)
        .collect();
    let etag = format!("{}-{}", md5_of(&sums), upload.parts.len());
    let bytes = upload.parts.into_values().flatten().collect();
    state.store(&asked.name, bytes, etag.clone());
    let body = format!(
        "<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
    );
    answer("200 OK", &[], body.as_bytes())
}

/// As S3 writes a time.
pub(super) fn iso(time: SystemTime) -> String {
    let secs = time.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (days, rest) = (secs / 86_400, secs % 86_400);
    // Days to a date, as in Howard Hinnant's `civil_from_days`, for years after 1970.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}
