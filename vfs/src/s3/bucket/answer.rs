//! What an answer that is not the wished one means: the only table from status and code to the four classes.
//!
//! Only a server that proves to be one of S3, by an error document with a code, is believed. Anything else that answers
//! at the endpoint (a proxy's page, a captive portal, another service) says nothing about any object: unreachable, never
//! missing (invariant 6).

use std::time::Duration;

use reqwest::header::HeaderMap;

use crate::error::{At, Error, ErrorCase, ErrorClass};

use super::clock;
use super::xml::{self, ErrorDocument};

/// Why a call brought nothing.
#[derive(Debug)]
pub(super) enum Fail {
    /// The server, or what stands in its place, answered with a refusal.
    Refused(Refusal),
    /// The way there, or back, is broken.
    Broken {
        class: ErrorClass,
        message: String,
        source: Option<reqwest::Error>,
    },
    /// It was answered, and the answer cannot be right.
    Wrong { class: ErrorClass, message: String },
    /// The object ends before the range that was wanted.
    Short { class: ErrorClass, message: String },
    /// Nothing to do with the server: the local file, the keys.
    Local(Error),
}

/// An answer that refuses.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// S3's own word for it; empty if it was not S3 that spoke, or if it spoke without a body.
    pub(super) code: String,
    message: String,
    retry_after: Option<Duration>,
    clock_skew_secs: Option<i64>,
    elsewhere: Option<String>,
    without_body: bool,
}

impl Refusal {
    /// Reads an answer; `without_body` if its kind never has one.
    pub(super) fn read(
        status: u16,
        headers: &HeaderMap,
        body: &[u8],
        without_body: bool,
    ) -> Refusal {
        let header = |name: &str| headers.get(name)?.to_str().ok();
        let document = xml::refusal(body);
        let elsewhere = header("location")
            .or(header("x-amz-bucket-region"))
            .or(document
                .as_ref()
                .and_then(|d| d.endpoint.as_deref().or(d.region.as_deref())))
            .map(xml::shorten);
        let (code, message) = match document {
            Some(ErrorDocument { code, message, .. }) => {
                (xml::shorten(&code), xml::shorten(&message))
            }
            None => (String::new(), String::new()),
        };
        let now = clock::now();
        Refusal {
            status,
            code,
            message,
            retry_after: header("retry-after").and_then(|text| clock::retry_after(text, now)),
            clock_skew_secs: header("date").and_then(|date| clock::skew_secs(date, now)),
            elsewhere,
            without_body,
        }
    }

    /// An error document inside an answer whose status says that all is well.
    pub(super) fn in_success(status: u16, headers: &HeaderMap, body: &[u8]) -> Option<Refusal> {
        xml::refusal(body).map(|_| Refusal::read(status, headers, body, false))
    }

    /// The refusal of one key among several.
    pub(super) fn of_key(code: &str, message: &str) -> Refusal {
        Refusal {
            status: 200,
            code: xml::shorten(code),
            message: xml::shorten(message),
            ..Refusal::default()
        }
    }

    pub(super) fn is(&self, code: &str) -> bool {
        self.code == code
    }

    /// `If-None-Match` met an object.
    pub(super) fn is_precondition_failed(&self) -> bool {
        self.is("PreconditionFailed") || (self.status == 412 && self.code.is_empty())
    }

    /// The server does not know how to do this at all.
    pub(super) fn is_not_implemented(&self) -> bool {
        matches!(self.code.as_str(), "NotImplemented" | "MethodNotAllowed")
            || matches!(self.status, 501 | 405)
    }

    /// The keys have expired, or are not the right ones any more: newer ones may lie ready.
    pub(super) fn wants_other_keys(&self) -> bool {
        matches!(
            self.code.as_str(),
            "ExpiredToken"
                | "InvalidToken"
                | "TokenRefreshRequired"
                | "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
        )
    }

    fn error(&self, at: At<'_>) -> Error {
        let (class, case, advice) = self.classify();
        let mut text = advice.to_owned();
        if let (Some(place), 300..=399) = (&self.elsewhere, self.status) {
            text.push_str(&format!(" (it points to {place})"));
        }
        if self.is("RequestTimeTooSkewed")
            && let Some(skew) = self.clock_skew_secs
        {
            text.push_str(&format!(
                " (this machine's clock is {})",
                clock::in_words(skew)
            ));
        }
        text.push_str(&format!(" [{}", self.status));
        for word in [&self.code, &self.message] {
            if !word.is_empty() {
                text.push_str(&format!(" {word}"));
            }
        }
        text.push(']');
        let error = at.error(class, text).with_case(case);
        match self.retry_after {
            Some(pause) if class == ErrorClass::Transient => error.with_retry_after(pause),
            _ => error,
        }
    }

    /// The table: first by S3's own word, then by the status of an answer that has none.
    fn classify(&self) -> (ErrorClass, ErrorCase, &'static str) {
        use ErrorClass::{NotFound, Permanent, Transient};
        let general = |class, advice| (class, ErrorCase::General, advice);
        match self.code.as_str() {
            "" => self.classify_status(),
            "NoSuchKey" => general(NotFound, "there is no such object"),
            "NoSuchBucket" => general(
                Permanent,
                "there is no such bucket: create it, or correct its name",
            ),
            "PreconditionFailed" => (
                Permanent,
                ErrorCase::AlreadyExists,
                "an object with this key exists and was to be created anew",
            ),
            "InvalidRange" => (
                Permanent,
                ErrorCase::ShortRead,
                "the object ends before the range that is wanted",
            ),
            "QuotaExceeded"
            | "QuotaExceededException"
            | "XMinioStorageFull"
            | "InsufficientStorage"
            | "XMinioAdminBucketQuotaExceeded"
            | "ServiceQuotaExceededException" => (
                Permanent,
                ErrorCase::NoSpace,
                "the bucket or its quota is full: raise it or free some space",
            ),
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "UnauthorizedAccess" => {
                general(
                    Permanent,
                    "access is denied: the keys need GetObject, PutObject, DeleteObject, ListBucket and \
                 AbortMultipartUpload here",
                )
            }
            "InvalidAccessKeyId" => general(
                Permanent,
                "the server does not know this access key: correct it",
            ),
            "SignatureDoesNotMatch" => general(
                Permanent,
                "the secret key does not fit the access key: correct it",
            ),
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
                general(Permanent, "the session token has expired: get new keys")
            }
            "RequestTimeTooSkewed" | "RequestExpired" => general(
                Permanent,
                "the clocks differ too much: set the time here, or on the server",
            ),
            "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => general(
                Permanent,
                "requests are signed for another region than the bucket's: set the region",
            ),
            "PermanentRedirect" | "TemporaryRedirect" | "Redirect" => general(
                Permanent,
                "the bucket is elsewhere: set its endpoint and region",
            ),
            "InvalidObjectState" => general(
                Permanent,
                "the object lies in a storage class that must be thawed first: restore it",
            ),
            "EntityTooLarge" => general(
                Permanent,
                "the server takes no object this large: lower single_put_len_max",
            ),
            "EntityTooSmall" => general(Permanent, "the server wants larger parts: raise part_len"),
            "InvalidStorageClass" => general(
                Permanent,
                "the server has no such storage class: correct it",
            ),
            "ObjectLocked" | "ObjectLockConfigurationNotFoundError" => {
                general(Permanent, "the object is locked against changes")
            }
            // The body was changed on its way, or part of it is missing: send it again.
            "BadDigest"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch"
            | "IncompleteBody" => general(
                Transient,
                "the body did not arrive as it was sent; nothing was stored",
            ),
            // A sweep, or the server's own tidying, took it away: begin anew.
            "NoSuchUpload" | "InvalidPart" => {
                general(Transient, "the upload in parts is gone; it begins anew")
            }
            "SlowDown"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequests"
            | "TooManyRequestsException"
            | "RequestLimitExceeded"
            | "ServiceUnavailable"
            | "Busy"
            | "ServerBusy" => general(Transient, "the server is busy"),
            "InternalError"
            | "InternalServerError"
            | "RequestTimeout"
            | "OperationAborted"
            | "ConditionalRequestConflict"
            | "XMinioServerNotInitialized" => general(
                Transient,
                "the server could not do it this time: if it lasts, look into its log",
            ),
            "NotImplemented" | "MethodNotAllowed" => general(
                Permanent,
                "the server cannot do this: test the bucket (bucket test), or use another",
            ),
            _ => self.classify_unknown_word(),
        }
    }

    /// S3 spoke, in a word of its own.
    fn classify_unknown_word(&self) -> (ErrorClass, ErrorCase, &'static str) {
        let general = |class, advice| (class, ErrorCase::General, advice);
        match self.status {
            507 => (
                ErrorClass::Permanent,
                ErrorCase::NoSpace,
                "the server is full: free some space on it",
            ),
            400..=499 if !matches!(self.status, 408 | 425 | 429) => {
                general(ErrorClass::Permanent, "the server refuses the request")
            }
            // Also an error in an answer that says "200": it may work the next time.
            _ => general(
                ErrorClass::Transient,
                "the server could not do it this time",
            ),
        }
    }

    /// No word of S3: a server in trouble, or something else in its place.
    fn classify_status(&self) -> (ErrorClass, ErrorCase, &'static str) {
        use ErrorClass::{Permanent, Transient, Unreachable};
        let general = |class, advice| (class, ErrorCase::General, advice);
        match self.status {
            408 | 425 | 429 | 500 | 502 | 503 | 504 => general(
                Transient,
                "the server, or a proxy before it, is busy or in trouble",
            ),
            507 => (
                Permanent,
                ErrorCase::NoSpace,
                "the server is full: free some space on it",
            ),
            412 => (
                Permanent,
                ErrorCase::AlreadyExists,
                "an object with this key exists and was to be created anew",
            ),
            407 => general(
                Unreachable,
                "a proxy wants a password: set it, or go past the proxy (NO_PROXY)",
            ),
            300..=399 => general(
                Permanent,
                "the bucket is elsewhere: set its endpoint and region",
            ),
            401 | 403 if self.without_body => general(
                Permanent,
                "access is denied: check the keys and what they may do",
            ),
            _ => general(
                Unreachable,
                "what answers there is not an S3 server: check the endpoint, and the proxies on the way",
            ),
        }
    }
}

impl Fail {
    /// The way is broken or blocked, as the HTTP client tells it. Nothing was there to be spoken to: unreachable; it
    /// broke off in the middle: transient.
    pub(super) fn transport(error: reqwest::Error) -> Fail {
        // The error names the address a second time; the volume's name is enough.
        let error = error.without_url();
        let (class, message) = if error.is_connect() {
            let advice =
                "no connection: check the network, the server's name and port, and its certificate";
            (ErrorClass::Unreachable, advice)
        } else if error.is_timeout() {
            (ErrorClass::Transient, "the server did not answer in time")
        } else if error.is_builder() {
            (ErrorClass::Permanent, "the request cannot be made")
        } else {
            (ErrorClass::Transient, "the connection broke off")
        };
        Fail::Broken {
            class,
            message: message.into(),
            source: Some(error),
        }
    }

    pub(super) fn timeout(message: impl Into<String>) -> Fail {
        Fail::Broken {
            class: ErrorClass::Transient,
            message: message.into(),
            source: None,
        }
    }

    /// An answer that no S3 server gives.
    pub(super) fn foreign(message: impl Into<String>) -> Fail {
        Fail::Wrong {
            class: ErrorClass::Unreachable,
            message: format!(
                "what answers there is not an S3 server ({}): check the endpoint, and the proxies on the way",
                message.into()
            ),
        }
    }

    /// The error that the operation `at` ends with.
    pub(super) fn at(self, at: At<'_>) -> Error {
        match self {
            Fail::Refused(refusal) => refusal.error(at),
            Fail::Broken {
                class,
                message,
                source,
            } => {
                let error = at.error(class, message);
                match source {
                    Some(source) => error.with_source(source),
                    None => error,
                }
            }
            Fail::Wrong { class, message } => at.error(class, message),
            Fail::Short { class, message } => {
                at.error(class, message).with_case(ErrorCase::ShortRead)
            }
            Fail::Local(error) => error,
        }
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Fail {
        Fail::Local(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    const AT: At<'static> = At {
        volume: "s3:nas",
        op: "put",
        key: "items/ab/x.pack",
    };

    fn error(status: u16, body: &str) -> Error {
        Fail::Refused(Refusal::read(
            status,
            &HeaderMap::new(),
            body.as_bytes(),
            false,
        ))
        .at(AT)
    }

    fn coded(status: u16, code: &str) -> Error {
        error(
            status,
            &format!("<Error><Code>{code}</Code><Message>m</Message></Error>"),
        )
    }

    #[test]
    fn only_the_word_of_s3_itself_means_not_found() {
        assert!(coded(404, "NoSuchKey").is_not_found());
        assert_eq!(coded(404, "NoSuchBucket").class(), ErrorClass::Permanent);
        assert!(coded(404, "NoSuchUpload").is_transient());
        for page in [
            "",
            "<html><body>404 Not Found</body></html>",
            "{\"error\":404}",
            "NoSuchKey",
        ] {
            assert!(error(404, page).is_unreachable(), "{page}");
        }
        for status in 100..600 {
            assert!(!error(status, "").is_not_found(), "{status}");
            assert!(!coded(status, "SomethingNew").is_not_found(), "{status}");
        }
    }

    #[test]
    fn a_busy_server_is_asked_again_and_a_refusing_one_is_not() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(error(status, "<html/>").is_transient(), "{status}");
        }
        for code in [
            "SlowDown",
            "InternalError",
            "RequestTimeout",
            "BadDigest",
            "ConditionalRequestConflict",
        ] {
            assert!(
                coded(400, code).is_transient() && coded(200, code).is_transient(),
                "{code}"
            );
        }
        for code in [
            "AccessDenied",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "NewWord",
        ] {
            assert_eq!(coded(403, code).class(), ErrorClass::Permanent, "{code}");
        }
        assert_eq!(coded(403, "QuotaExceeded").case(), ErrorCase::NoSpace);
        assert!(coded(412, "PreconditionFailed").is_already_exists());
    }

    #[test]
    fn a_message_says_what_to_do_and_what_the_server_said() {
        let text = coded(503, "SlowDown").to_string();
        assert_eq!(
            text,
            "cannot put items/ab/x.pack on s3:nas: the server is busy [503 SlowDown m]"
        );
    }

    #[test]
    fn a_skewed_clock_is_named() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "date",
            HeaderValue::from_static("Thu, 01 Jan 2099 00:00:00 GMT"),
        );
        let body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>";
        let error = Fail::Refused(Refusal::read(403, &headers, body, false)).at(AT);
        assert_eq!(error.class(), ErrorClass::Permanent);
        assert!(
            error.to_string().contains("days behind the server's"),
            "{error}"
        );
    }

    #[test]
    fn a_pause_that_the_server_asks_for_is_passed_on() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_static("7"));
        let busy = Fail::Refused(Refusal::read(503, &headers, b"", false)).at(AT);
        assert_eq!(busy.retry_after(), Some(Duration::from_secs(7)));
        let denied = Fail::Refused(Refusal::read(401, &headers, b"", false)).at(AT);
        assert_eq!(denied.retry_after(), None);
    }

    #[test]
    fn a_redirect_says_where_to() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-bucket-region", HeaderValue::from_static("eu-west-3"));
        let body = b"<Error><Code>PermanentRedirect</Code></Error>";
        let error = Fail::Refused(Refusal::read(301, &headers, body, false)).at(AT);
        assert!(error.to_string().contains("eu-west-3"), "{error}");
        assert_eq!(error.class(), ErrorClass::Permanent);
    }
}
