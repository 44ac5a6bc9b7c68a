//! Signatures (AWS version 4), put together from the pieces of rust-s3.
//!
//! Every header that is set here is signed, and the sum of the body is a part of what is signed.

use hmac::Mac;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use s3::error::S3Error;
use s3::region::Region;
use s3::signing::{self, HmacSha256};
use time::OffsetDateTime;

use super::body::hex;
use super::client::Call;
use super::clock;
use super::credentials::Keys;

/// The headers of `call`, signed now.
pub(super) fn headers(
    call: &Call,
    keys: &Keys,
    url: &Url,
    region: &Region,
) -> Result<HeaderMap, String> {
    headers_at(call, keys, url, region, clock::now())
}

fn headers_at(
    call: &Call,
    keys: &Keys,
    url: &Url,
    region: &Region,
    now: OffsetDateTime,
) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let mut put = |name: &str, value: &str| -> Result<(), String> {
        let refuse = |_| format!("the header {name} cannot hold its value");
        let mut held = HeaderValue::from_str(value).map_err(refuse)?;
        held.set_sensitive(name == "x-amz-security-token");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
        headers.insert(name, held);
        Ok(())
    };
    put("host", &host(url))?;
    put("x-amz-content-sha256", &call.payload.sha256)?;
    put("x-amz-date", &date(now, region)?)?;
    if let Some(token) = &keys.session_token {
        put("x-amz-security-token", token.reveal())?;
    }
    for (name, value) in &call.headers {
        put(name, value)?;
    }
    let authorization =
        authorization(call, keys, url, region, &headers, now).map_err(|error| error.to_string())?;
    let mut held = HeaderValue::from_str(&authorization).map_err(|error| error.to_string())?;
    held.set_sensitive(true);
    headers.insert("authorization", held);
    Ok(headers)
}

fn authorization(
    call: &Call,
    keys: &Keys,
    url: &Url,
    region: &Region,
    headers: &HeaderMap,
    now: OffsetDateTime,
) -> Result<String, S3Error> {
    let canonical =
        signing::canonical_request(call.method.as_str(), url, headers, &call.payload.sha256)?;
    let text = signing::string_to_sign(&now, region, &canonical)?;
    let key = signing::signing_key(&now, keys.secret.reveal(), region, "s3")?;
    let mut hmac = HmacSha256::new_from_slice(&key)?;
    hmac.update(text.as_bytes());
    let signature = hex(&hmac.finalize().into_bytes());
    let signed = signing::signed_header_string(headers);
    signing::authorization_header(&keys.access_key, &now, region, &signed, &signature)
}

/// The time as the signature has it: the second line of what is signed, which the header repeats to the letter.
fn date(now: OffsetDateTime, region: &Region) -> Result<String, String> {
    let text = signing::string_to_sign(&now, region, "").map_err(|error| error.to_string())?;
    let line = text
        .lines()
        .nth(1)
        .ok_or("there is no time in the signature")?;
    Ok(line.to_owned())
}

/// The header as the HTTP client would send it: with the port only where it is not the scheme's own.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::config::Secret;
    use reqwest::Method;

    /// The example "GET Object" of Amazon's documentation of the signature.
    #[test]
    fn a_signature_is_the_one_of_the_documentation() {
        let keys = Keys {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session_token: None,
        };
        let region = Region::Custom {
            region: "us-east-1".into(),
            endpoint: "https://s3.amazonaws.com".into(),
        };
        let url = Url::parse("https://examplebucket.s3.amazonaws.com/test.txt").unwrap();
        let call = Call::new(Method::GET, Some("test.txt".into())).header("range", "bytes=0-9");
        let now = clock::http_date("Fri, 24 May 2013 00:00:00 GMT").unwrap();
        let headers = headers_at(&call, &keys, &url, &region, now).unwrap();
        let authorization = headers["authorization"].to_str().unwrap();
        let signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        assert!(authorization.ends_with(signature), "{authorization}");
        assert!(
            !format!("{headers:?}").contains(signature),
            "a signature is not for logs"
        );
        assert_eq!(headers["x-amz-date"], "20130524T000000Z");
    }

    #[test]
    fn a_token_is_signed_and_a_foreign_port_is_named() {
        let keys = Keys {
            access_key: "AK".into(),
            secret: Secret::new("SK"),
            session_token: Some(Secret::new("ST")),
        };
        let region = Region::Custom {
            region: "garage".into(),
            endpoint: "http://h:9000".into(),
        };
        let url = Url::parse("http://h:9000/b/k?a=b%2Bc").unwrap();
        let call = Call::new(Method::PUT, Some("k".into())).header("if-none-match", "*");
        let headers = headers(&call, &keys, &url, &region).unwrap();
        let authorization = headers["authorization"].to_str().unwrap();
        let signed = "SignedHeaders=host;if-none-match;x-amz-content-sha256;x-amz-date;x-amz-security-token,";
        assert!(authorization.contains(signed), "{authorization}");
        assert_eq!(headers["host"], "h:9000");
    }
}
