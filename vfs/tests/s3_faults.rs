//! What a bucket's volume makes of answers that real servers give in trouble only: the right class of error, never a
//! missing object, never an acknowledgement of what was not stored (invariants 2 and 6).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "s3")]

mod s3_server;

use std::sync::Arc;
use std::time::{Duration, Instant};

use s3_server::{Action, Request, Server, answer, error, raw};
use vfs::s3::{Credentials, S3Volume};
use vfs::{
    Body, Error, ErrorCase, ErrorClass, ObjectKey, Precondition, Retry, RetryPolicy, S3Config,
    Secret, Sentinel, StopSignal, Volume, VolumeExt,
};

const SENT: &[u8] = b"what was sent";
/// Its MD5.
const ETAG: &str = "\"983077626377966c1cf3546025025721\"";

fn key() -> ObjectKey {
    ObjectKey::new("items/ab/x.pack").unwrap()
}

fn config(server: &Server) -> S3Config {
    let mut config = S3Config::new(server.endpoint.clone(), "backup").below("host-7");
    config.credentials = Credentials::Static {
        access_key: "AK".into(),
        secret: Secret::new("SK"),
        session_token: None,
    };
    config
}

/// For a server that hangs: it is over soon.
fn hasty(server: &Server) -> S3Volume {
    let mut config = config(server);
    config.limits.connect_timeout_ms = 200;
    config.limits.request_timeout_ms = 400;
    config.limits.stall_timeout_ms = 400;
    S3Volume::open(config).unwrap()
}

fn volume(server: &Server) -> S3Volume {
    S3Volume::open(config(server)).unwrap()
}

fn put(volume: &dyn Volume) -> vfs::Result<()> {
    volume
        .put(&key(), Body::Bytes(SENT), Precondition::None)
        .map(drop)
}

fn html(status: &str) -> Action {
    answer(
        status,
        &[("content-type", "text/html")],
        b"<html><body>no such page</body></html>",
    )
}

/// What every kind of call ends with when each request is answered like this.
fn outcomes(
    decide: impl Fn(&Request, usize) -> Action + Send + Sync + 'static,
) -> Vec<(&'static str, Error)> {
    outcomes_of(&volume(&Server::start(decide)))
}

fn outcomes_of(volume: &S3Volume) -> Vec<(&'static str, Error)> {
    let keys = [key(), ObjectKey::new("items/ab/y.pack").unwrap()];
    let calls: [(&'static str, vfs::Result<()>); 7] = [
        ("put", put(volume)),
        ("get", volume.get(&key(), 0..9).map(drop)),
        ("get nothing", volume.get(&key(), 0..0).map(drop)),
        ("look up", volume.head(&key()).map(drop)),
        (
            "list",
            volume.list("", None, 10.try_into().unwrap()).map(drop),
        ),
        ("delete", volume.delete(&keys)),
        (
            "sweep",
            volume.sweep_temporary(&[""], Duration::ZERO).map(drop),
        ),
    ];
    calls
        .into_iter()
        .map(|(name, outcome)| (name, outcome.unwrap_err()))
        .collect()
}

fn assert_all(
    class: ErrorClass,
    decide: impl Fn(&Request, usize) -> Action + Send + Sync + 'static,
) {
    for (name, error) in outcomes(decide) {
        assert_eq!(error.class(), class, "{name}: {error:?}");
    }
}

#[test]
fn a_page_that_is_not_s3s_says_nothing_about_an_object() {
    for status in [
        "404 Not Found",
        "200 OK",
        "401 Unauthorized",
        "403 Forbidden",
        "418 I'm a teapot",
    ] {
        assert_all(ErrorClass::Unreachable, move |_, _| html(status));
    }
    let error = outcomes(|_, _| html("404 Not Found")).remove(3).1;
    assert!(error.to_string().contains("not an S3 server"), "{error}");
}

#[test]
fn a_404_without_a_word_is_not_missing() {
    assert_all(ErrorClass::Unreachable, |_, _| {
        answer("404 Not Found", &[], b"")
    });
}

#[test]
fn a_bucket_that_is_gone_is_not_a_missing_object() {
    assert_all(ErrorClass::Permanent, |_, _| {
        error("404 Not Found", "NoSuchBucket")
    });
}

#[test]
fn a_server_in_trouble_is_asked_again() {
    for status in [
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "429 Too Many Requests",
    ] {
        assert_all(ErrorClass::Transient, move |_, _| html(status));
    }
    assert_all(ErrorClass::Transient, |_, _| {
        error("503 Slow Down", "SlowDown")
    });
    assert_all(ErrorClass::Transient, |_, _| {
        error("500 Internal Server Error", "InternalError")
    });
}

#[test]
fn an_error_in_a_200_is_an_error() {
    assert_all_but_head(ErrorClass::Transient, "InternalError");
    assert_all_but_head(ErrorClass::Permanent, "AccessDenied");
}

/// A HEAD has no body to say it in: without an ETag it is nobody's object.
fn assert_all_but_head(class: ErrorClass, code: &'static str) {
    for (name, error) in outcomes(move |_, _| error("200 OK", code)) {
        let class = match name {
            "look up" | "get nothing" => ErrorClass::Unreachable,
            _ => class,
        };
        assert_eq!(error.class(), class, "{name}: {error:?}");
    }
}

#[test]
fn a_connection_that_is_cut_is_transient_and_none_at_all_is_unreachable() {
    assert_all(ErrorClass::Transient, |_, _| Action::Cut);
    let server = Server::start(|_, _| Action::Cut);
    let mut config = config(&server);
    config.endpoint = "http://127.0.0.1:1".into();
    let error = put(&S3Volume::open(config).unwrap()).unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    assert!(error.chain().contains("refused"), "{}", error.chain());
}

#[test]
fn a_hang_ends() {
    let started = Instant::now();
    for (name, error) in outcomes_of(&hasty(&Server::start(|_, _| Action::Hang))) {
        assert!(error.is_transient(), "{name}: {error:?}");
    }
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_body_that_stands_still_ends() {
    let head = raw(
        "206 Partial Content",
        &[("etag", ETAG), ("content-range", "bytes 0-8/13")],
        b"what",
        9,
    );
    let server = Server::start(move |_, _| Action::RawThenHang(head.clone()));
    let error = hasty(&server).get(&key(), 0..9).unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("standstill"),
        "{error:?}"
    );
}

#[test]
fn a_server_that_stops_taking_bytes_is_left() {
    // It reads nothing: what does not fit into the sockets' buffers stays here.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = Server::start(|_, _| Action::Cut);
    server.endpoint = format!("http://{}", listener.local_addr().unwrap());
    let body = vec![7; 40 << 20];
    let error = hasty(&server)
        .put(&key(), Body::Bytes(&body), Precondition::None)
        .unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("stopped taking"),
        "{error:?}"
    );
    drop(listener);
}

#[test]
fn a_truncated_body_is_a_short_read() {
    let head = raw(
        "206 Partial Content",
        &[("etag", ETAG), ("content-range", "bytes 0-8/13")],
        b"what",
        9,
    );
    let server = Server::start(move |_, _| Action::RawThenCut(head.clone()));
    let error = volume(&server).get(&key(), 0..9).unwrap_err();
    assert!(error.is_short_read() && error.is_transient(), "{error:?}");
    // Announced as short as it is: the object may still have the rest.
    let server = Server::start(|_, _| {
        answer(
            "206 Partial Content",
            &[("etag", ETAG), ("content-range", "bytes 0-3/13")],
            b"what",
        )
    });
    let error = volume(&server).get(&key(), 0..9).unwrap_err();
    assert!(error.is_transient() && !error.is_not_found(), "{error:?}");
}

#[test]
fn a_server_without_ranges_is_understood() {
    let server = Server::start(|_, _| answer("200 OK", &[("etag", ETAG)], SENT));
    let volume = volume(&server);
    assert_eq!(volume.get(&key(), 5..8).unwrap(), &SENT[5..8]);
    assert_eq!(volume.get(&key(), 0..13).unwrap(), SENT);
    let error = volume.get(&key(), 5..14).unwrap_err();
    assert!(
        error.is_short_read() && error.class() == ErrorClass::Permanent,
        "{error:?}"
    );
}

#[test]
fn another_range_than_was_asked_for_is_refused() {
    for range in ["bytes 1-9/13", "bytes 0-9/13", "bytes */13", "nonsense"] {
        let server = Server::start(move |_, _| {
            answer(
                "206 Partial Content",
                &[("etag", ETAG), ("content-range", range)],
                b"what was ",
            )
        });
        let error = volume(&server).get(&key(), 0..9).unwrap_err();
        assert!(!error.is_not_found(), "{range}: {error:?}");
    }
}

#[test]
fn wrong_bytes_in_the_store_are_noticed() {
    // The ETag is another sum, and what is read back is not what was sent.
    let server = Server::start(|request, _| match request.method.as_str() {
        "PUT" => answer(
            "200 OK",
            &[("etag", "\"00000000000000000000000000000000\"")],
            b"",
        ),
        "HEAD" => Action::Raw(raw("200 OK", &[("etag", "\"0\"")], b"", SENT.len())),
        _ => answer(
            "206 Partial Content",
            &[("etag", "\"0\""), ("content-range", "bytes 0-12/13")],
            b"what was seen",
        ),
    });
    let error = put(&volume(&server)).unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("not what was sent"),
        "{error:?}"
    );
    let puts = server.requests();
    let put = puts.iter().find(|request| request.method == "PUT").unwrap();
    assert_eq!(put.body, SENT);
    assert!(
        put.header("content-md5").is_some()
            && put.header("x-amz-content-sha256").unwrap().len() == 64
    );
}

#[test]
fn a_store_of_another_size_is_noticed() {
    let server = Server::start(|request, _| match request.method.as_str() {
        "PUT" => answer("200 OK", &[("etag", "\"opaque\"")], b""),
        _ => Action::Raw(raw(
            "200 OK",
            &[("etag", "\"opaque\"")],
            b"",
            SENT.len() - 1,
        )),
    });
    let error = put(&volume(&server)).unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("13 bytes were sent"),
        "{error:?}"
    );
}

#[test]
fn an_etag_that_is_no_sum_is_found_out_once_and_believed_then() {
    let server = Server::start(|request, _| match request.method.as_str() {
        "PUT" => answer(
            "200 OK",
            &[("etag", "\"00000000000000000000000000000000\"")],
            b"",
        ),
        "HEAD" => Action::Raw(raw("200 OK", &[("etag", "\"0\"")], b"", SENT.len())),
        _ => answer("200 OK", &[("etag", "\"0\"")], SENT),
    });
    let volume = volume(&server);
    put(&volume).unwrap();
    put(&volume).unwrap();
    let methods: Vec<String> = server
        .requests()
        .into_iter()
        .map(|request| request.method)
        .collect();
    assert_eq!(methods, ["PUT", "HEAD", "GET", "PUT", "HEAD"]);
}

#[test]
fn success_without_effect_is_no_success() {
    let server = Server::start(|request, _| match request.method.as_str() {
        "PUT" => answer("200 OK", &[], b""),
        _ => error("404 Not Found", "NoSuchKey"),
    });
    assert!(put(&volume(&server)).unwrap_err().is_unreachable());
    let server = Server::start(|request, _| match request.method.as_str() {
        "PUT" => answer("200 OK", &[("etag", "\"opaque\"")], b""),
        _ => error("404 Not Found", "NoSuchKey"),
    });
    let error = put(&volume(&server)).unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("has none"),
        "{error:?}"
    );
}

#[test]
fn an_object_is_missing_only_if_a_body_says_so() {
    let server = Server::start(|request, _| match request.method.as_str() {
        "HEAD" => answer("404 Not Found", &[], b""),
        _ => error("404 Not Found", "NoSuchKey"),
    });
    assert_eq!(volume(&server).head(&key()).unwrap(), None);
    assert!(
        volume(&server)
            .get(&key(), 0..9)
            .unwrap_err()
            .is_not_found()
    );
    // A proxy that answers HEAD with 404 before a server that has the object.
    let server = Server::start(|request, _| match request.method.as_str() {
        "HEAD" => answer("404 Not Found", &[], b""),
        _ => answer(
            "206 Partial Content",
            &[("etag", ETAG), ("content-range", "bytes 0-0/13")],
            b"w",
        ),
    });
    let error = volume(&server).head(&key()).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
}

fn listed(name: &str) -> String {
    format!("<Contents><Key>{name}</Key><Size>1</Size></Contents>")
}

#[test]
fn a_listing_of_errors_or_without_order_is_no_listing() {
    let listing = |names: &[&str]| {
        let mut text = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
        for name in names {
            text += &listed(&format!("host-7/{name}"));
        }
        text + "</ListBucketResult>"
    };
    for (names, fine) in [(["a", "b"], true), (["b", "a"], false), (["a", "a"], false)] {
        let text = listing(&names);
        let server = Server::start(move |_, _| answer("200 OK", &[], text.as_bytes()));
        let page = volume(&server).list("", None, 10.try_into().unwrap());
        assert_eq!(page.is_ok(), fine, "{names:?}: {page:?}");
    }
    let cut = listing(&["a", "b"]);
    let server =
        Server::start(move |_, _| answer("200 OK", &[], &cut.as_bytes()[..cut.len() - 30]));
    assert!(
        volume(&server)
            .list("", None, 10.try_into().unwrap())
            .is_err()
    );
}

#[test]
fn what_others_put_is_not_listed() {
    let names = [
        "host-7/My%20File",
        "host-7/items/a",
        "host-7/items/%C3%A4",
        "host-7/items/b",
    ];
    let mut text = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
    for name in names {
        text += &listed(name);
    }
    text += "</ListBucketResult>";
    let text = text.replace("%C3%A4</Key>", "a%C3%A4</Key>");
    let server = Server::start(move |_, _| answer("200 OK", &[], text.as_bytes()));
    let page = volume(&server)
        .list("", None, 10.try_into().unwrap())
        .unwrap();
    let keys: Vec<String> = page
        .objects
        .iter()
        .map(|meta| meta.key.to_string())
        .collect();
    assert_eq!(keys, ["items/a", "items/b"]);
}

#[test]
fn one_key_that_cannot_be_deleted_is_named() {
    let body = "<DeleteResult><Error><Key>host-7/items/ab/y.pack</Key><Code>AccessDenied</Code><Message>no</Message></Error>\
                <Error><Key>host-7/items/ab/x.pack</Key><Code>InternalError</Code></Error></DeleteResult>";
    let server = Server::start(move |_, _| answer("200 OK", &[], body.as_bytes()));
    let keys = [key(), ObjectKey::new("items/ab/y.pack").unwrap()];
    let error = volume(&server).delete(&keys).unwrap_err();
    assert_eq!(
        (error.class(), error.key()),
        (ErrorClass::Permanent, "items/ab/y.pack"),
        "{error:?}"
    );
}

#[test]
fn a_server_without_batches_gets_one_request_for_each_key() {
    let server = Server::start(|request, _| match request.method.as_str() {
        "POST" => error("501 Not Implemented", "NotImplemented"),
        _ => answer("204 No Content", &[], b""),
    });
    let keys = [key(), ObjectKey::new("items/ab/y.pack").unwrap()];
    let volume = volume(&server);
    volume.delete(&keys).unwrap();
    volume.delete(&keys).unwrap();
    let methods: Vec<String> = server
        .requests()
        .into_iter()
        .map(|request| request.method)
        .collect();
    assert_eq!(methods, ["POST", "DELETE", "DELETE", "DELETE", "DELETE"]);
}

fn patient(server: &Server) -> Retry {
    let policy = RetryPolicy {
        delay_first: Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    Retry::new(Arc::new(volume(server)), policy, StopSignal::new())
}

fn busy(pause: &'static str) -> Action {
    answer(
        "503 Slow Down",
        &[("retry-after", pause)],
        b"<Error><Code>SlowDown</Code></Error>",
    )
}

#[test]
fn a_pause_that_the_server_asks_for_is_kept() {
    let server = Server::start(|_, before| match before {
        0 => busy("1"),
        _ => answer(
            "206 Partial Content",
            &[("etag", ETAG), ("content-range", "bytes 0-3/13")],
            b"what",
        ),
    });
    let started = Instant::now();
    assert_eq!(
        patient(&server).get(&key(), 0..4).unwrap(),
        b"what".as_slice()
    );
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_pause_of_an_hour_is_left_to_the_queue() {
    let server = Server::start(|_, _| busy("3600"));
    let error = patient(&server).get(&key(), 0..4).unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
    assert_eq!(server.requests().len(), 1);
}

/// A server that ignores conditions, or keeps them: it has one object, or none.
fn conditional(kept: bool) -> Server {
    let stored = std::sync::Mutex::new(std::collections::BTreeMap::<String, Vec<u8>>::new());
    Server::start(move |request, _| {
        let mut stored = stored.lock().unwrap();
        let path = request.target.split('?').next().unwrap().to_owned();
        match request.method.as_str() {
            "PUT"
                if kept
                    && request.header("if-none-match") == Some("*")
                    && stored.contains_key(&path) =>
            {
                error("412 Precondition Failed", "PreconditionFailed")
            }
            "PUT" => {
                stored.insert(path, request.body.clone());
                let sum = format!("\"{:x}\"", md5::compute(&request.body));
                answer("200 OK", &[("etag", &sum)], b"")
            }
            "DELETE" => {
                stored.remove(&path);
                answer("204 No Content", &[], b"")
            }
            method => match (stored.get(&path), method) {
                (None, "HEAD") => answer("404 Not Found", &[], b""),
                (None, _) => error("404 Not Found", "NoSuchKey"),
                (Some(bytes), "HEAD") => {
                    let sum = format!("\"{:x}\"", md5::compute(bytes));
                    Action::Raw(raw("200 OK", &[("etag", &sum)], b"", bytes.len()))
                }
                (Some(bytes), _) => answer("200 OK", &[("etag", ETAG)], bytes),
            },
        }
    })
}

#[test]
fn a_server_that_ignores_conditions_is_told_from_one_that_keeps_them() {
    for kept in [true, false] {
        let server = conditional(kept);
        let volume = volume(&server);
        let put =
            |bytes: &'static [u8]| volume.put(&key(), Body::Bytes(bytes), Precondition::IfAbsent);
        put(b"first").unwrap();
        assert!(
            put(b"second").unwrap_err().is_already_exists(),
            "kept: {kept}"
        );
        assert_eq!(volume.get_whole(&key(), 9).unwrap(), b"first".as_slice());
        // The try is over and has left nothing.
        let tries = server
            .requests()
            .into_iter()
            .filter(|request| request.target.contains("/probe/"));
        let methods: Vec<String> = tries.map(|request| request.method).collect();
        assert_eq!(methods, ["PUT", "PUT", "DELETE"], "kept: {kept}");
        let asked = server
            .requests()
            .into_iter()
            .filter(|request| request.is("PUT", "x.pack"));
        let conditions: Vec<bool> = asked
            .map(|request| request.header("if-none-match").is_some())
            .collect();
        assert_eq!(conditions.first(), Some(&kept));
    }
}

#[test]
fn a_look_at_the_identity_that_fails_is_unreachable_and_another_volume_is_wrong() {
    let sentinel = || Sentinel::exact(ObjectKey::new("server/volume.json").unwrap(), "volume 7");
    for status in ["403 Forbidden", "503 Slow Down", "404 Not Found"] {
        let server = Server::start(move |_, _| html(status));
        let error = volume(&server).bind(sentinel()).unwrap_err();
        assert!(
            error.is_unreachable() && error.case() == ErrorCase::General,
            "{error:?}"
        );
    }
    let server = Server::start(|_, _| answer("200 OK", &[("etag", ETAG)], b"volume 8"));
    let volume = volume(&server);
    assert!(volume.bind(sentinel()).unwrap_err().is_wrong_volume());
    assert!(
        put(&volume).unwrap_err().is_wrong_volume(),
        "nothing may be written after such a look"
    );
}

/// Five MiB and a bit in two parts.
fn two_parts(server: &Server) -> (S3Volume, Vec<u8>) {
    let mut config = config(server);
    config.limits.single_put_len_max = 1 << 20;
    config.limits.part_len = 5 << 20;
    (S3Volume::open(config).unwrap(), vec![7; (5 << 20) + 9])
}

fn multipart(complete: impl Fn(&Request) -> Action + Send + Sync + 'static) -> Server {
    Server::start(move |request, _| {
        if request.is("POST", "uploads") {
            let body = "<InitiateMultipartUploadResult><UploadId>u-1</UploadId></InitiateMultipartUploadResult>";
            answer("200 OK", &[], body.as_bytes())
        } else if request.is("PUT", "partNumber") {
            let sum = format!("\"{:x}\"", md5::compute(&request.body));
            answer("200 OK", &[("etag", &sum)], b"")
        } else {
            complete(request)
        }
    })
}

#[test]
fn a_completion_that_fails_in_a_200_is_a_failure_and_is_aborted() {
    let server = multipart(|request| match request.method.as_str() {
        "POST" => error("200 OK", "InternalError"),
        _ => answer("204 No Content", &[], b""),
    });
    let (volume, body) = two_parts(&server);
    let error = volume
        .put(&key(), Body::Bytes(&body), Precondition::None)
        .unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    server.wait_for("DELETE", "uploadId=u-1");
    let completion = server.wait_for("POST", "uploadId=u-1");
    let text = String::from_utf8(completion.body).unwrap();
    assert!(text.contains("<PartNumber>2</PartNumber>"), "{text}");
}

#[test]
fn parts_that_were_put_together_wrongly_are_noticed() {
    let etag = "00000000000000000000000000000000-2";
    let server = multipart(move |request| {
        match request.method.as_str() {
        "POST" => answer(
            "200 OK",
            &[],
            format!("<CompleteMultipartUploadResult><ETag>\"{etag}\"</ETag></CompleteMultipartUploadResult>").as_bytes(),
        ),
        _ => answer("204 No Content", &[], b""),
    }
    });
    let (volume, body) = two_parts(&server);
    let error = volume
        .put(&key(), Body::Bytes(&body), Precondition::None)
        .unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("put together wrongly"),
        "{error:?}"
    );
}

#[test]
fn a_part_that_fails_aborts_the_upload() {
    let server = Server::start(|request, _| {
        if request.is("POST", "uploads") {
            let body = "<InitiateMultipartUploadResult><UploadId>u-2</UploadId></InitiateMultipartUploadResult>";
            answer("200 OK", &[], body.as_bytes())
        } else if request.is("PUT", "partNumber=2") {
            error("503 Slow Down", "SlowDown")
        } else if request.method == "PUT" {
            let sum = format!("\"{:x}\"", md5::compute(&request.body));
            answer("200 OK", &[("etag", &sum)], b"")
        } else {
            answer("204 No Content", &[], b"")
        }
    });
    let (volume, body) = two_parts(&server);
    let error = volume
        .put(&key(), Body::Bytes(&body), Precondition::None)
        .unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    server.wait_for("DELETE", "uploadId=u-2");
    assert!(
        !server
            .requests()
            .iter()
            .any(|request| request.is("POST", "uploadId"))
    );
}

#[test]
fn a_sweep_takes_old_uploads_of_our_prefix_only() {
    let server = Server::start(|request, _| {
        if request.method == "GET" {
            assert!(
                request.target.contains("prefix=host-7%2F"),
                "{}",
                request.target
            );
            let upload = |key: &str, id: &str, day: u8| {
                format!(
                    "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>2026-01-{day:02}T00:00:00.000Z</Initiated></Upload>"
                )
            };
            let body = format!(
                "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{}{}{}</ListMultipartUploadsResult>",
                upload("host-7/items/a", "old", 1),
                upload("host-7/items/b", "new", 9),
                upload("host-8/items/a", "foreign", 1),
            );
            answer(
                "200 OK",
                &[("date", "Sat, 10 Jan 2026 00:00:00 GMT")],
                body.as_bytes(),
            )
        } else {
            answer("204 No Content", &[], b"")
        }
    });
    let swept = volume(&server)
        .sweep_temporary(&[""], Duration::from_secs(3 * 86_400))
        .unwrap();
    assert_eq!(swept, 1);
    let deleted: Vec<Request> = server
        .requests()
        .into_iter()
        .filter(|request| request.method == "DELETE")
        .collect();
    assert!(
        deleted.len() == 1 && deleted[0].is("DELETE", "uploadId=old"),
        "{deleted:?}"
    );
}

#[test]
fn expired_keys_are_looked_for_once_more() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("credentials");
    let write = |token: &str| {
        std::fs::write(
            &file,
            format!(
                "[nas]\naws_access_key_id=AK\naws_secret_access_key=SK\naws_session_token={token}\n"
            ),
        )
        .unwrap();
    };
    write("old");
    let server = Server::start(|request, _| match request.header("x-amz-security-token") {
        Some("new") => answer(
            "206 Partial Content",
            &[("etag", ETAG), ("content-range", "bytes 0-3/13")],
            b"what",
        ),
        _ => error("400 Bad Request", "ExpiredToken"),
    });
    let mut config = config(&server);
    config.credentials = Credentials::Profile {
        file: Some(file.clone()),
        name: "nas".into(),
    };
    let volume = S3Volume::open(config).unwrap();
    let error = volume.get(&key(), 0..4).unwrap_err();
    assert!(
        error.class() == ErrorClass::Permanent && error.to_string().contains("expired"),
        "{error:?}"
    );
    assert_eq!(
        server.requests().len(),
        1,
        "nothing has changed, so nothing is asked twice"
    );
    write("new");
    assert_eq!(volume.get(&key(), 0..4).unwrap(), b"what".as_slice());
}

#[test]
fn a_storage_class_is_that_of_the_kind_of_object() {
    let server = multipart(|request| match request.method.as_str() {
        "PUT" => answer("200 OK", &[("etag", ETAG)], b""),
        _ => error("500 Internal Server Error", "InternalError"),
    });
    let mut config = config(&server);
    config.storage_class.items = Some("COLD".into());
    config.limits.single_put_len_max = 13;
    let volume = S3Volume::open(config).unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let key = ObjectKey::new(name).unwrap();
        volume.put(&key, Body::Bytes(bytes), Precondition::None)
    };
    put("items/x", SENT).unwrap();
    put("server/x", SENT).unwrap();
    put("items/large", &[7; 14]).unwrap_err();
    let classes: Vec<Option<String>> = server
        .requests()
        .iter()
        .filter(|request| !request.target.contains("uploadId"))
        .map(|request| request.header("x-amz-storage-class").map(str::to_owned))
        .collect();
    assert_eq!(classes, [Some("COLD".into()), None, Some("COLD".into())]);
}

#[test]
fn a_large_body_goes_with_its_md5_and_is_signed_for_when_that_is_wished() {
    for wished in [false, true] {
        let server = Server::start(|request, _| {
            let sum = format!("\"{:x}\"", md5::compute(&request.body));
            answer("200 OK", &[("etag", &sum)], b"")
        });
        let mut config = config(&server);
        config.sign_bodies = wished;
        let volume = S3Volume::open(config).unwrap();
        for len in [1 << 20, (1 << 20) + 1] {
            volume
                .put(&key(), Body::Bytes(&vec![7; len]), Precondition::None)
                .unwrap();
        }
        let signed: Vec<bool> = server
            .requests()
            .iter()
            .map(|request| {
                let authorization = request.header("authorization").unwrap();
                assert!(authorization.contains("content-md5"), "{authorization}");
                request.header("x-amz-content-sha256").unwrap() != "UNSIGNED-PAYLOAD"
            })
            .collect();
        assert_eq!(signed, [true, wished]);
    }
}
