//! The documents of S3: few, small, and from somebody else.
//!
//! A parser that fills in what is missing would read an error page as an empty listing, so the root element is
//! compared first and what a decision hangs on must be there (invariant 10).

use std::fmt::Write as _;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// `<Error>`: why a request, or one key of it, was refused.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorDocument {
    #[serde(rename = "Code")]
    pub(super) code: String,
    #[serde(rename = "Message", default)]
    pub(super) message: String,
    /// Where the bucket is, if it is elsewhere.
    #[serde(rename = "Region", default)]
    pub(super) region: Option<String>,
    #[serde(rename = "Endpoint", default)]
    pub(super) endpoint: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    #[serde(rename = "IsTruncated")]
    pub(super) is_truncated: bool,
    #[serde(rename = "NextContinuationToken", default)]
    pub(super) next: Option<String>,
    #[serde(rename = "Contents", default)]
    pub(super) objects: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    #[serde(rename = "Key")]
    pub(super) key: String,
    #[serde(rename = "Size")]
    pub(super) size: u64,
    #[serde(rename = "LastModified", default)]
    pub(super) modified: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Deletion {
    #[serde(rename = "Error", default)]
    pub(super) errors: Vec<DeletionError>,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeletionError {
    #[serde(rename = "Key")]
    pub(super) key: String,
    #[serde(rename = "Code")]
    pub(super) code: String,
    #[serde(rename = "Message", default)]
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Initiation {
    #[serde(rename = "UploadId")]
    pub(super) upload_id: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Completion {
    #[serde(rename = "ETag")]
    pub(super) etag: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Uploads {
    #[serde(rename = "IsTruncated")]
    pub(super) is_truncated: bool,
    #[serde(rename = "NextKeyMarker", default)]
    pub(super) next_key: Option<String>,
    #[serde(rename = "NextUploadIdMarker", default)]
    pub(super) next_upload_id: Option<String>,
    #[serde(rename = "Upload", default)]
    pub(super) uploads: Vec<Upload>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Upload {
    #[serde(rename = "Key")]
    pub(super) key: String,
    #[serde(rename = "UploadId")]
    pub(super) upload_id: String,
    #[serde(rename = "Initiated")]
    pub(super) initiated: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Versioning {
    #[serde(rename = "Status", default)]
    pub(super) status: Option<String>,
}

/// The document `bytes`, if its root is `root` and nothing that matters is missing.
pub(super) fn read<T: DeserializeOwned>(root: &str, bytes: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{root} is not text"))?;
    match root_of(text) {
        Some(found) if found == root => {
            quick_xml::de::from_str(text).map_err(|error| format!("{root} cannot be read: {error}"))
        }
        Some(found) => Err(format!("{root} was expected and '{}' came", shorten(found))),
        None => Err(format!("{root} was expected and '{}' came", shorten(text))),
    }
}

/// The refusal in `bytes`, if that is what they are.
pub(super) fn refusal(bytes: &[u8]) -> Option<ErrorDocument> {
    read("Error", bytes).ok()
}

/// The name of the first element, without its namespace.
fn root_of(text: &str) -> Option<&str> {
    let mut rest = text.trim_start_matches('\u{feff}').trim_start();
    loop {
        let end = if rest.starts_with("<?") {
            "?>"
        } else if rest.starts_with("<!--") {
            "-->"
        } else {
            break;
        };
        rest = rest.split_once(end)?.1.trim_start();
    }
    let name = rest.strip_prefix('<')?;
    let name = name.split([' ', '>', '/', '\t', '\r', '\n']).next()?;
    let name = name.rsplit(':').next()?;
    (!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(name)
}

/// The first words of something foreign, fit for an error's text.
pub(super) fn shorten(text: &str) -> String {
    text.trim()
        .chars()
        .take(120)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// What asks for the removal of `keys`; a key of ours has no character that XML takes for its own.
pub(super) fn deletion<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::from("<Delete><Quiet>true</Quiet>");
    for key in keys {
        // Writing to a string does not fail.
        let _ = write!(text, "<Object><Key>{key}</Key></Object>");
    }
    text.push_str("</Delete>");
    text
}

/// What puts the parts together, in order.
pub(super) fn completion<'a>(etags: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::from("<CompleteMultipartUpload>");
    for (index, etag) in etags.enumerate() {
        let number = index + 1;
        let _ = write!(
            text,
            "<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>"
        );
    }
    text.push_str("</CompleteMultipartUpload>");
    text
}

/// A name in a listing with `encoding-type=url`; none if it is not text.
pub(super) fn decode(name: &str) -> Option<String> {
    let bytes = name.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let digits = name.get(at + 1..at + 3)?;
            decoded.push(u8::from_str_radix(digits, 16).ok()?);
            at += 3;
        } else {
            decoded.push(if byte == b'+' { b' ' } else { byte });
            at += 1;
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
        <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix>p/</Prefix>\
        <MaxKeys>2</MaxKeys><IsTruncated>true</IsTruncated><NextContinuationToken>a+b/=</NextContinuationToken>\
        <Contents><Key>p/a</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified><ETag>&quot;x&quot;</ETag>\
        <Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>\
        <Contents><Key>p%2Fb</Key><Size>0</Size></Contents></ListBucketResult>";

    #[test]
    fn a_listing_is_read() {
        let listing: Listing = read("ListBucketResult", LISTING.as_bytes()).unwrap();
        assert!(listing.is_truncated);
        assert_eq!(listing.next.as_deref(), Some("a+b/="));
        assert_eq!(listing.objects.len(), 2);
        assert_eq!(listing.objects[0].size, 7);
        assert_eq!(decode(&listing.objects[1].key).unwrap(), "p/b");
    }

    #[test]
    fn nothing_else_is_taken_for_a_listing() {
        let cut = &LISTING[..LISTING.len() - 40];
        for text in [
            "",
            "<html><body>404</body></html>",
            "<Error><Code>InternalError</Code></Error>",
            "<ListBucketResult></ListBucketResult>",
            "<!DOCTYPE html><html></html>",
            "<?xml version=\"1.0\"?><!-- a --><Error/>",
            cut,
        ] {
            assert!(
                read::<Listing>("ListBucketResult", text.as_bytes()).is_err(),
                "{text}"
            );
        }
        assert!(read::<Listing>("ListBucketResult", b"\xff\xfe").is_err());
    }

    #[test]
    fn a_refusal_is_known_by_its_root() {
        let text = b"  <?xml version='1.0'?><Error><Code>NoSuchKey</Code><BucketName>b</BucketName></Error>";
        assert_eq!(refusal(text).unwrap().code, "NoSuchKey");
        assert!(refusal(LISTING.as_bytes()).is_none());
        assert!(refusal(b"<html><Code>NoSuchKey</Code></html>").is_none());
        assert!(refusal(b"<Error><Message>without a code</Message></Error>").is_none());
    }

    #[test]
    fn names_are_decoded_or_refused() {
        assert_eq!(decode("a%2Fb+c%C3%A4").unwrap(), "a/b c\u{e4}");
        for broken in ["%", "%2", "%zz", "%ff", "a%\u{e4}"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }
}
