//! A bucket in this process' memory, behind a socket: an S3 server as far as a volume asks one, that breaks on command.
//!
//! Signatures are not checked. What was promised for a body is kept in mind: a server that lies about it is one of the
//! faults.

#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_debug_implementations,
    reason = "each test uses a part; a test fails by panicking"
)]

#[path = "../../vfs/tests/s3_server/mod.rs"]
mod s3_server;

mod answers;
mod damage;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use damage::{flip, flipped, half, half_and_cut, promised};
use s3_server::{Action, Request, Server, answer, error};
use vfs::s3::{ConditionalPut, Credentials, S3Config};
use vfs::{Op, Secret};

pub(crate) const BUCKET: &str = "backup";
pub(crate) const ACCESS_KEY: &str = "AK";
pub(crate) const SECRET: &str = "SK";

/// What goes wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HttpFault {
    /// No answer, and nothing is done.
    Hang,
    /// The answer comes late.
    Slow,
    /// It is done, and the connection is cut before the answer, or in its middle.
    Reset,
    /// Half of the body is taken, or given.
    Truncated,
    /// A byte of the body is changed.
    WrongBytes,
    /// Success is answered, and nothing is done; a listing shows nothing.
    Lie,
    /// Access denied.
    Forbidden,
    /// A proxy's page: the server behind it is not there.
    Proxy404,
    /// The server has trouble.
    Error500,
    /// The server has too much to do, and says when to come back.
    Busy503,
    /// An error under the status of a success.
    ErrorIn200,
    /// The bucket is full.
    Full,
}

struct Object {
    bytes: Vec<u8>,
    /// As it is told; that of a body stored wrongly tells so.
    etag: String,
}

struct Upload {
    key: String,
    began: SystemTime,
    parts: BTreeMap<u32, Vec<u8>>,
}

struct Armed {
    op: Op,
    part: String,
    left: usize,
    fault: HttpFault,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    next_upload: u64,
    armed: Vec<Armed>,
    given: u64,
    /// Requests that go on only when this is below zero: how many pass before all wait.
    held: Option<Held>,
    puts: BTreeMap<String, u64>,
}

/// Where requests are stopped.
struct Held {
    prefix: String,
    part: Option<u32>,
    waiting: usize,
}

/// The bucket and its server. Both end with the process.
#[derive(Clone)]
pub(crate) struct Bucket {
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Bucket {
    pub(crate) fn start() -> Bucket {
        let shared = Arc::new(Shared::default());
        let served = Arc::clone(&shared);
        let server = Server::start(move |request, _| served.decide(request));
        let endpoint = server.endpoint.clone();
        Bucket { endpoint, shared }
    }

    /// How a volume below `prefix` is opened; it is not waited for long.
    pub(crate) fn config(&self, prefix: &str) -> S3Config {
        let mut config = S3Config::new(self.endpoint.clone(), BUCKET).below(prefix);
        config.credentials = Credentials::Static {
            access_key: ACCESS_KEY.into(),
            secret: Secret::new(SECRET),
            session_token: None,
        };
        config.conditional_put = ConditionalPut::Kept;
        config.limits.connect_timeout_ms = 150;
        config.limits.request_timeout_ms = 250;
        config.limits.stall_timeout_ms = 250;
        config
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// The next `count` requests for `op` on names with this `part` go wrong like this. A list's name is its prefix; a
    /// look is a HEAD.
    pub(crate) fn arm(&self, op: Op, part: &str, count: usize, fault: HttpFault) {
        self.state().armed.push(Armed {
            op,
            part: part.to_owned(),
            left: count,
            fault,
        });
    }

    pub(crate) fn clear(&self) {
        self.state().armed.clear();
    }

    /// How many requests went wrong.
    pub(crate) fn given(&self) -> u64 {
        self.state().given
    }

    /// The objects below `prefix`, without it.
    pub(crate) fn objects(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let all = state.objects.iter();
        all.filter_map(|(name, object)| {
            let key = name.strip_prefix(prefix)?.trim_start_matches('/');
            Some((key.to_owned(), object.bytes.clone()))
        })
        .collect()
    }

    /// Stores an object without asking anybody.
    pub(crate) fn place(&self, name: &str, bytes: &[u8]) {
        let object = Object {
            bytes: bytes.to_vec(),
            etag: md5_of(bytes),
        };
        self.state().objects.insert(name.to_owned(), object);
    }

    /// Begins an upload in parts that nobody will end, so long ago.
    pub(crate) fn place_upload(&self, name: &str, age: Duration) {
        let mut state = self.state();
        let id = state.begin(name);
        if let Some(upload) = state.uploads.get_mut(&id) {
            upload.began -= age;
        }
    }

    /// Names of uploads in parts that are neither ended nor aborted.
    pub(crate) fn uploads(&self) -> Vec<String> {
        let state = self.state();
        let uploads = state.uploads.values();
        uploads.map(|upload| upload.key.clone()).collect()
    }

    /// How often objects below `prefix` were stored, by name.
    pub(crate) fn puts(&self, prefix: &str) -> BTreeMap<String, u64> {
        let state = self.state();
        let puts = state.puts.iter();
        puts.filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, count)| (name.clone(), *count))
            .collect()
    }

    /// From here on whatever would store an object below `prefix`, or its part with this number, waits until
    /// [`Bucket::let_go`], and is then not done.
    pub(crate) fn hold(&self, prefix: &str, part: Option<u32>) {
        self.state().held = Some(Held {
            prefix: prefix.to_owned(),
            part,
            waiting: 0,
        });
    }

    /// Waits until somebody waits; a minute is for ever.
    pub(crate) fn wait_until_held(&self) {
        let nobody = |state: &mut State| state.held.as_ref().is_none_or(|held| held.waiting == 0);
        let minute = Duration::from_secs(60);
        let waited = self
            .shared
            .changed
            .wait_timeout_while(self.state(), minute, nobody);
        assert!(
            !waited.unwrap().1.timed_out(),
            "nothing is on its way to the bucket"
        );
    }

    pub(crate) fn let_go(&self) {
        self.state().held = None;
        self.shared.changed.notify_all();
    }
}

impl State {
    fn fault(&mut self, op: Op, name: &str) -> Option<HttpFault> {
        let is_meant =
            |armed: &&mut Armed| armed.op == op && armed.left > 0 && name.contains(&armed.part);
        let armed = self.armed.iter_mut().find(is_meant)?;
        armed.left -= 1;
        self.given += 1;
        Some(armed.fault)
    }

    fn begin(&mut self, name: &str) -> String {
        self.next_upload += 1;
        let id = format!("upload-{}", self.next_upload);
        let upload = Upload {
            key: name.to_owned(),
            began: SystemTime::now(),
            parts: BTreeMap::new(),
        };
        self.uploads.insert(id.clone(), upload);
        id
    }

    fn store(&mut self, name: &str, bytes: Vec<u8>, etag: String) {
        *self.puts.entry(name.to_owned()).or_default() += 1;
        self.objects.insert(name.to_owned(), Object { bytes, etag });
    }
}

/// A request taken apart.
struct Asked<'r> {
    request: &'r Request,
    name: String,
    query: BTreeMap<String, String>,
    op: Op,
}

impl<'r> Asked<'r> {
    fn of(request: &'r Request) -> Asked<'r> {
        let (path, query) = request
            .target
            .split_once('?')
            .unwrap_or((&request.target, ""));
        let path = decode(path);
        let below = path.strip_prefix(&format!("/{BUCKET}")).unwrap_or("");
        let mut name = below.trim_start_matches('/').to_owned();
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let query: BTreeMap<String, String> = pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (decode(key), decode(value)))
            .collect();
        let op = match request.method.as_str() {
            "HEAD" => Op::Head,
            "GET" if query.contains_key("uploads") => Op::SweepTemporary,
            "GET" if query.contains_key("list-type") => Op::List,
            "GET" => Op::Get,
            "DELETE" => Op::Delete,
            "POST" if query.contains_key("delete") => Op::Delete,
            _ => Op::Put,
        };
        if matches!(op, Op::List | Op::SweepTemporary) {
            name = query.get("prefix").cloned().unwrap_or_default();
        }
        if op == Op::Delete && name.is_empty() {
            name = keys_in(&request.body)
                .into_iter()
                .next()
                .unwrap_or_default();
        }
        Asked {
            request,
            name,
            query,
            op,
        }
    }

    fn part(&self) -> Option<u32> {
        self.query.get("partNumber")?.parse().ok()
    }

    fn is_body_put(&self) -> bool {
        self.request.method == "PUT"
    }
}

impl Shared {
    fn decide(&self, request: &Request) -> Action {
        let asked = Asked::of(request);
        if asked.is_body_put() && self.is_held(&asked) {
            return Action::Cut;
        }
        let fault = self.state.lock().unwrap().fault(asked.op, &asked.name);
        let mut body = request.body.clone();
        match fault {
            None => self.perform(&asked, body),
            Some(HttpFault::Hang) => Action::Hang,
            Some(HttpFault::Slow) => {
                std::thread::sleep(Duration::from_millis(150));
                self.perform(&asked, body)
            }
            Some(HttpFault::Reset) => half_and_cut(self.perform(&asked, body)),
            Some(HttpFault::Truncated) if asked.is_body_put() => {
                body.truncate(body.len() / 2);
                promised(self.perform(&asked, body), &request.body)
            }
            Some(HttpFault::Truncated) => half(self.perform(&asked, body)),
            Some(HttpFault::WrongBytes) if asked.is_body_put() => {
                flip(&mut body);
                promised(self.perform(&asked, body), &request.body)
            }
            Some(HttpFault::WrongBytes) => flipped(self.perform(&asked, body)),
            Some(HttpFault::Lie) => self.lie(&asked, body),
            Some(HttpFault::Forbidden) => error("403 Forbidden", "AccessDenied"),
            Some(HttpFault::Proxy404) => answer(
                "404 Not Found",
                &[("content-type", "text/html")],
                b"<html><body>no such host</body></html>",
            ),
            Some(HttpFault::Error500) => error("500 Internal Server Error", "InternalError"),
            Some(HttpFault::Busy503) => answer(
                "503 Slow Down",
                &[("retry-after", "0"), ("content-type", "application/xml")],
                b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code></Error>",
            ),
            Some(HttpFault::ErrorIn200) => error("200 OK", "InternalError"),
            Some(HttpFault::Full) => error("507 Insufficient Storage", "InsufficientStorage"),
        }
    }

    /// Waits, if it is to; then whoever sent it has gone or will be told nothing.
    fn is_held(&self, asked: &Asked<'_>) -> bool {
        let mut state = self.state.lock().unwrap();
        let Some(held) = &mut state.held else {
            return false;
        };
        if !asked.name.starts_with(&held.prefix)
            || held.part.is_some_and(|part| asked.part() != Some(part))
        {
            return false;
        }
        held.waiting += 1;
        self.changed.notify_all();
        drop(
            self.changed
                .wait_while(state, |state| state.held.is_some())
                .unwrap(),
        );
        true
    }

    fn lie(&self, asked: &Asked<'_>, body: Vec<u8>) -> Action {
        match asked.op {
            Op::Put if asked.is_body_put() => {
                let etag = quoted(&md5_of(&body));
                answer("200 OK", &[("etag", &etag)], b"")
            }
            Op::Delete if asked.request.method == "POST" => {
                answer("200 OK", &[], b"<DeleteResult></DeleteResult>")
            }
            Op::Delete => answer("204 No Content", &[], b""),
            Op::List => answer(
                "200 OK",
                &[],
                b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
            ),
            _ => self.perform(asked, body),
        }
    }

    fn perform(&self, asked: &Asked<'_>, body: Vec<u8>) -> Action {
        let mut state = self.state.lock().unwrap();
        match asked.op {
            Op::Head | Op::Get => answers::get(&state, asked),
            Op::List => answers::list(&state, asked),
            Op::SweepTemporary => answers::uploads(&state, asked),
            Op::Delete => answers::delete(&mut state, asked),
            _ => answers::put(&mut state, asked, body),
        }
    }
}

fn keys_in(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body).into_owned();
    let keys = text.split("<Key>").skip(1);
    keys.filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned()))
        .collect()
}

fn md5_of(bytes: &[u8]) -> String {
    format!("{:x}", md5::compute(bytes))
}

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            let digits = std::str::from_utf8(&digits).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}
