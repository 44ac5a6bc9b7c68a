//! A server that answers as a test says: for what no real server does on demand.
//!
//! It reads whole requests, notes them, and lets the test's function decide. One thread per connection, which ends with
//! the connection; the listening thread ends with the process.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn is(&self, method: &str, part_of_target: &str) -> bool {
        self.method == method && self.target.contains(part_of_target)
    }

    fn read(from: &mut impl BufRead) -> Option<Request> {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut request = Request {
            method,
            target,
            headers,
            body: Vec::new(),
        };
        let len = request
            .header("content-length")
            .map_or(0, |len| len.parse().unwrap());
        request.body = vec![0; len];
        from.read_exact(&mut request.body).ok()?;
        Some(request)
    }

    /// The same bytes again, for the real server.
    fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("connection: close\r\n\r\n");
        to.write_all(head.as_bytes())?;
        to.write_all(&self.body)
    }
}

/// What happens to a request.
pub(crate) enum Action {
    /// These bytes, exactly, and the connection stays.
    Raw(Vec<u8>),
    /// These bytes, and then the connection is cut.
    RawThenCut(Vec<u8>),
    /// The connection is cut without a word.
    Cut,
    /// No answer, until the client gives up.
    Hang,
    /// These bytes, and then nothing more, until the client gives up.
    RawThenHang(Vec<u8>),
    /// The real server (`host:port`) answers.
    Forward(String),
    /// The real server does it, and its answer is lost.
    ForwardThenCut(String),
}

/// An answer with a body of the right length.
pub(crate) fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Action {
    Action::Raw(raw(status, headers, body, body.len()))
}

/// An answer that announces `len` bytes, whatever comes.
pub(crate) fn raw(status: &str, headers: &[(&str, &str)], body: &[u8], len: usize) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\ncontent-length: {len}\r\n");
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn error(status: &str, code: &str) -> Action {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>"
    );
    answer(
        status,
        &[("content-type", "application/xml")],
        body.as_bytes(),
    )
}

type Handler = dyn Fn(&Request, usize) -> Action + Send + Sync;

/// The server, and what it was asked.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `decide` gets each request and how many there were before it.
    pub(crate) fn start(
        decide: impl Fn(&Request, usize) -> Action + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let decide: Arc<Handler> = Arc::new(decide);
        let noted = Arc::clone(&log);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (decide, noted) = (Arc::clone(&decide), Arc::clone(&noted));
                std::thread::spawn(move || serve(stream, &*decide, &noted));
            }
        });
        Server { endpoint, log }
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until there was a request like this; a minute is for ever.
    pub(crate) fn wait_for(&self, method: &str, part_of_target: &str) -> Request {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let found = self
                .requests()
                .into_iter()
                .find(|request| request.is(method, part_of_target));
            if let Some(request) = found {
                return request;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "no {method} {part_of_target}"
            );
            std::thread::yield_now();
        }
    }
}

fn serve(stream: TcpStream, decide: &Handler, log: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(request) = Request::read(&mut reader) {
        let before = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let (bytes, then) = match decide(&request, before) {
            Action::Raw(bytes) => (bytes, Then::Stay),
            Action::RawThenCut(bytes) => (bytes, Then::Cut),
            Action::Cut => (Vec::new(), Then::Cut),
            Action::Hang => (Vec::new(), Then::Hang),
            Action::RawThenHang(bytes) => (bytes, Then::Hang),
            Action::ForwardThenCut(address) => {
                forward(&request, &address);
                (Vec::new(), Then::Cut)
            }
            Action::Forward(address) => (forward(&request, &address), Then::Cut),
        };
        if writer.write_all(&bytes).is_err() {
            return;
        }
        match then {
            Then::Stay => {}
            Then::Cut => {
                let _ = writer.shutdown(Shutdown::Both);
                return;
            }
            // Ends when the client closes.
            Then::Hang => {
                let _ = reader.read(&mut [0; 1]);
                return;
            }
        }
    }
}

enum Then {
    Stay,
    Cut,
    Hang,
}

fn forward(request: &Request, address: &str) -> Vec<u8> {
    let mut upstream = TcpStream::connect(address).unwrap();
    request.write(&mut upstream).unwrap();
    let mut bytes = Vec::new();
    upstream.read_to_end(&mut bytes).unwrap();
    bytes
}
