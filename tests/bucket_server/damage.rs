//! Right answers made wrong.

use super::s3_server::{Action, answer};
use super::{md5_of, quoted};

/// The answer that `sent` should have had.
pub(super) fn promised(performed: Action, sent: &[u8]) -> Action {
    match performed {
        Action::Raw(bytes) if bytes.starts_with(b"HTTP/1.1 200") => {
            answer("200 OK", &[("etag", &quoted(&md5_of(sent)))], b"")
        }
        other => other,
    }
}

pub(super) fn split(bytes: &[u8]) -> usize {
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n");
    head.map_or(bytes.len(), |head| head + 4)
}

/// The head and half of the body, and then nothing.
pub(super) fn half_and_cut(performed: Action) -> Action {
    match performed {
        Action::Raw(mut bytes) => {
            let (head, len) = (split(&bytes), bytes.len());
            if len == head {
                return Action::Cut;
            }
            bytes.truncate(head + (len - head) / 2);
            Action::RawThenCut(bytes)
        }
        other => other,
    }
}

/// Half of the body, as if that were all.
pub(super) fn half(performed: Action) -> Action {
    let Action::Raw(bytes) = performed else {
        return performed;
    };
    let (head, body) = bytes.split_at(split(&bytes));
    let text = String::from_utf8_lossy(head).into_owned();
    let kept = &body[..body.len() / 2];
    let lines = text.lines().map(|line| match line.split_once(": ") {
        Some(("content-length", len)) if body.is_empty() => {
            format!("content-length: {}", len.parse::<usize>().unwrap() / 2)
        }
        Some(("content-length", _)) => format!("content-length: {}", kept.len()),
        _ => line.to_owned(),
    });
    let mut bytes = lines.collect::<Vec<_>>().join("\r\n").into_bytes();
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(kept);
    Action::Raw(bytes)
}

pub(super) fn flipped(performed: Action) -> Action {
    match performed {
        Action::Raw(mut bytes) => {
            let head = split(&bytes);
            flip(&mut bytes[head..]);
            Action::Raw(bytes)
        }
        other => other,
    }
}

pub(super) fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x10;
    }
}
