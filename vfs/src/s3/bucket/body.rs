//! The bytes of a request, measured on their way out, so that a standstill is told from a slow line.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// Bytes handed to the socket at once: small enough that a slow line shows movement before the stall timeout.
const SLICE_LEN: usize = 128 << 10;

/// Bytes to send, and the sums by which their arrival is checked.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    pub(super) bytes: Bytes,
    /// Lower-case hex: part of the signature, so that a server that checks signatures checks the bytes.
    pub(super) sha256: String,
    /// What the server's ETag is compared with, and what it can compare the bytes with.
    pub(super) md5: [u8; 16],
}

impl Payload {
    /// Sums up `bytes`: a tenth of a second for a pack.
    pub(super) fn new(bytes: Bytes) -> Payload {
        let sha256 = hex(&Sha256::digest(&bytes));
        let md5 = md5::compute(&bytes).0;
        Payload { bytes, sha256, md5 }
    }

    /// No body.
    pub(super) fn none() -> Payload {
        Payload::new(Bytes::new())
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn md5_hex(&self) -> String {
        hex(&self.md5)
    }

    /// The value of `Content-MD5`.
    pub(super) fn content_md5(&self) -> String {
        base64(&self.md5)
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| {
        DIGITS
            .get(usize::from(nibble))
            .map_or('0', |&d| char::from(d))
    };
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .chain([&0, &0])
            .take(3)
            .fold(0_usize, |word, &byte| (word << 8) | usize::from(byte));
        for place in 0..4 {
            let digit = DIGITS.get((word >> (18 - 6 * place)) & 63);
            let padded = place > group.len();
            text.push(digit.filter(|_| !padded).map_or('=', |&d| char::from(d)));
        }
    }
    text
}

/// How far a body has come, seen from outside.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    moved_ms: AtomicU64,
    finished: AtomicBool,
}

impl Progress {
    pub(super) fn new(empty: bool) -> Arc<Progress> {
        Arc::new(Progress {
            started: Instant::now(),
            moved_ms: AtomicU64::new(0),
            finished: AtomicBool::new(empty),
        })
    }

    fn moved(&self, finished: bool) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(ms, Ordering::Release);
        self.finished.store(finished, Ordering::Release);
    }

    /// When a byte was last taken.
    pub(super) fn last_move(&self) -> Instant {
        self.started + Duration::from_millis(self.moved_ms.load(Ordering::Acquire))
    }

    /// Whether there are no more bytes to take.
    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }
}

/// A body that says when it is read.
pub(super) struct Measured {
    pub(super) rest: Bytes,
    pub(super) progress: Arc<Progress>,
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.rest.len().min(SLICE_LEN);
        let slice = self.rest.split_to(len);
        self.progress.moved(self.rest.is_empty());
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_standards() {
        let payload = Payload::new(Bytes::from_static(b"abc"));
        assert_eq!(payload.md5_hex(), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(payload.content_md5(), "kAFQmDzST7DWlj99KOF/cg==");
        assert!(
            payload.sha256.starts_with("ba7816bf8f01cfea"),
            "{}",
            payload.sha256
        );
        let texts = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let coded = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        for (text, coded) in texts.iter().zip(coded) {
            assert_eq!(base64(text.as_bytes()), coded);
        }
    }
}
