//! One request and its answer: signed, sent, timed, and read in full or not at all.
//!
//! rust-s3 signs and knows the regions; the bytes are sent by the HTTP client below it, for reasons in
//! `docs/decisions/0011-s3-client.md`. Nothing is asked twice here, but for keys that were renewed: repetition is the
//! business of `layer::retry`.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::HeaderMap;
use reqwest::{Method, Response, Url};
use s3::region::Region;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::ErrorClass;

use super::answer::{Fail, Refusal};
use super::body::{Measured, Payload, Progress};
use super::credentials::{KeyRing, Keys};
use super::{endpoint, sign};
use crate::s3::config::{S3Config, S3Limits};

/// Longest document that is read: a thousand keys of a thousand bytes, and then some.
const DOCUMENT_LEN_MAX: u64 = 8 << 20;

/// Which connections a call may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// Any: reads, and whatever is small.
    Quick,
    /// Not the last quarter: bodies of puts.
    Bulk,
}

/// A request, before it is signed.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    /// The object, with the volume's prefix; none for the bucket.
    pub(super) key: Option<String>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) payload: Payload,
    pub(super) lane: Lane,
    /// Bytes that the answer will have, for its deadline.
    pub(super) answer_len: u64,
    /// How many times the usual time the server may take to think.
    pub(super) patience: u32,
}

impl Call {
    pub(super) fn new(method: Method, key: Option<String>) -> Call {
        Call {
            method,
            key,
            query: Vec::new(),
            headers: Vec::new(),
            payload: Payload::none(),
            lane: Lane::Quick,
            answer_len: 0,
            patience: 1,
        }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Call {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Call {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn payload(mut self, payload: Payload) -> Call {
        self.payload = payload;
        self
    }
}

/// An answer that says that all is well, up to its body.
#[derive(Debug)]
pub(super) struct Reply {
    response: Response,
    stall: Duration,
    deadline: Instant,
    _places: Vec<OwnedSemaphorePermit>,
}

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The ETag without its quotes; every object of S3 has one, and no page of anybody else needs to.
    pub(super) fn etag(&self) -> Option<&str> {
        let etag = self.header("etag")?.trim_matches('"');
        (!etag.is_empty()).then_some(etag)
    }

    /// The length that the answer announces.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The next bytes; none at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Fail> {
        let patience = self.deadline.min(Instant::now() + self.stall);
        match timeout_at(patience, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(Fail::transport(error)),
            Err(_) => Err(Fail::timeout("the answer came to a standstill")),
        }
    }

    /// The whole body, which is a document and short.
    pub(super) async fn document(mut self) -> Result<Bytes, Fail> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() as u64 + chunk.len() as u64 > DOCUMENT_LEN_MAX {
                return Err(Fail::foreign("the answer does not end"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}

/// The way to one bucket.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    bucket: Url,
    region: Region,
    keys: KeyRing,
    limits: S3Limits,
    places: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
}

impl Client {
    /// Nothing is sent yet. A refusal says what in the configuration cannot be used.
    pub(super) fn new(config: &S3Config) -> Result<Client, String> {
        let limits = config.limits;
        let places = usize::from(limits.connections_max);
        let bulk = places - places / 4;
        Ok(Client {
            http: endpoint::client(config)?,
            bucket: endpoint::bucket(config)?,
            region: Region::Custom {
                region: config.region.clone(),
                endpoint: config.endpoint.clone(),
            },
            keys: KeyRing::open(config.credentials.clone())?,
            limits,
            places: Arc::new(Semaphore::new(places)),
            bulk: Arc::new(Semaphore::new(bulk)),
        })
    }

    /// The document that answers `call`, with the headers it came under.
    pub(super) async fn document(&self, call: Call) -> Result<(HeaderMap, Bytes), Fail> {
        let reply = self.send(&call).await?;
        let (status, headers) = (reply.status(), reply.headers().clone());
        let bytes = reply.document().await?;
        match Refusal::in_success(status, &headers, &bytes) {
            Some(refusal) => Err(Fail::Refused(refusal)),
            None => Ok((headers, bytes)),
        }
    }

    /// Sends `call`; `Ok` for an answer of 2xx whose body is still to be read. Keys that the server calls expired are
    /// looked for once more, because a tool beside us may have renewed them.
    pub(super) async fn send(&self, call: &Call) -> Result<Reply, Fail> {
        let keys = self.keys.keys();
        match self.send_once(call, &keys).await {
            Err(Fail::Refused(refusal)) if refusal.wants_other_keys() && self.keys.renew(&keys) => {
                self.send_once(call, &self.keys.keys()).await
            }
            other => other,
        }
    }

    async fn send_once(&self, call: &Call, keys: &Keys) -> Result<Reply, Fail> {
        let places = self.places_for(call.lane).await?;
        let progress = Progress::new(call.payload.bytes.is_empty());
        let request = self.request(call, keys, &progress)?;
        let body_len = call.payload.len().saturating_add(call.answer_len);
        let deadline = Instant::now() + self.limits.timeout(body_len) * call.patience;
        let response = self
            .await_answer(call, request, &progress, deadline)
            .await?;
        let status = response.status();
        let reply = Reply {
            response,
            stall: Duration::from_millis(self.limits.stall_timeout_ms),
            deadline,
            _places: places,
        };
        if status.is_success() {
            return Ok(reply);
        }
        let headers = reply.headers().clone();
        let without_body = call.method == Method::HEAD;
        // A refusal counts, even if the page that goes with it does not arrive.
        let body = if without_body {
            Bytes::new()
        } else {
            reply.document().await.unwrap_or_default()
        };
        Err(Fail::Refused(Refusal::read(
            status.as_u16(),
            &headers,
            &body,
            without_body,
        )))
    }

    async fn places_for(&self, lane: Lane) -> Result<Vec<OwnedSemaphorePermit>, Fail> {
        let take = async |places: &Arc<Semaphore>| {
            Arc::clone(places)
                .acquire_owned()
                .await
                .map_err(|_| Fail::timeout("the volume is being closed"))
        };
        let mut taken = Vec::with_capacity(2);
        // In this order: a body that waits for its lane keeps nobody else out.
        if lane == Lane::Bulk {
            taken.push(take(&self.bulk).await?);
        }
        taken.push(take(&self.places).await?);
        Ok(taken)
    }

    /// Waits for the head of the answer as long as bytes move, and then as long as a server may think.
    async fn await_answer(
        &self,
        call: &Call,
        request: reqwest::Request,
        progress: &Progress,
        deadline: Instant,
    ) -> Result<Response, Fail> {
        let connect = Duration::from_millis(self.limits.connect_timeout_ms);
        let think = Duration::from_millis(self.limits.request_timeout_ms) * call.patience;
        let stall = Duration::from_millis(self.limits.stall_timeout_ms);
        let mut answer = std::pin::pin!(self.http.execute(request));
        loop {
            let finished = progress.is_finished();
            let pause = if finished { think } else { stall };
            let give_up = deadline.min(progress.last_move() + connect + pause);
            if let Ok(answer) = timeout_at(give_up, &mut answer).await {
                return answer.map_err(Fail::transport);
            }
            let moved = progress.last_move() + connect + pause > give_up;
            if Instant::now() >= deadline || (!moved && finished == progress.is_finished()) {
                return Err(Fail::timeout(if finished {
                    "the server did not answer in time"
                } else {
                    "the server stopped taking bytes"
                }));
            }
        }
    }

    fn request(
        &self,
        call: &Call,
        keys: &Keys,
        progress: &Arc<Progress>,
    ) -> Result<reqwest::Request, Fail> {
        let url = self.url(call);
        let headers = sign::headers(call, keys, &url, &self.region).map_err(|why| Fail::Wrong {
            class: ErrorClass::Permanent,
            message: format!("the request cannot be signed: {why}"),
        })?;
        let mut request = self.http.request(call.method.clone(), url).headers(headers);
        if !call.payload.bytes.is_empty() {
            request = request.body(reqwest::Body::wrap(Measured {
                rest: call.payload.bytes.clone(),
                progress: Arc::clone(progress),
            }));
        } else if matches!(call.method, Method::PUT | Method::POST) {
            // The client leaves it out where there is no body, and servers insist.
            request = request.header("content-length", "0");
        }
        request.build().map_err(Fail::transport)
    }

    fn url(&self, call: &Call) -> Url {
        let mut url = self.bucket.clone();
        if let Some(key) = &call.key {
            let path = format!("{}/{key}", self.bucket.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        url
    }
}
