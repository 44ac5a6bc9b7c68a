//! What is asked and what is answered. A request is a frame, a put's body follows it in pieces; an answer is a frame, the
//! bytes of a get follow it.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::dir::sum::Sum;
use crate::error::Error;
use crate::identity::SENTINEL_LEN_MAX;
use crate::key::ObjectKey;
use crate::volume::{Capabilities, Meta, Page, Space};

use super::wire::{In, Out, PAGE_LEN_MAX, malformed};

/// Device and inode of a root: one that is mounted anew has another.
pub(super) type Place = (u64, u64);

/// What a worker is asked.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Request {
    /// The directory's path without symbolic links.
    Resolve {
        path: PathBuf,
    },
    /// The bytes of the sentinel, on a fresh look at the path: the asking side judges them.
    Peek {
        path: PathBuf,
        key: ObjectKey,
    },
    /// Opens the root anew, together with a look at the sentinel, which must be these very bytes.
    Open {
        path: PathBuf,
        sentinel: Option<(ObjectKey, Vec<u8>)>,
        /// Which temporary names are those of this volume, and where this worker begins.
        tag: u64,
        first: u64,
    },
    /// Its body follows.
    Put {
        key: ObjectKey,
        len: u64,
        if_absent: bool,
    },
    Get {
        key: ObjectKey,
        range: Range<u64>,
    },
    Head {
        key: ObjectKey,
    },
    /// What it is, if it has so many bytes.
    Sum {
        key: ObjectKey,
        len: u64,
    },
    List {
        prefix: String,
        after: Option<ObjectKey>,
        limit: u64,
    },
    Delete {
        keys: Vec<ObjectKey>,
    },
    Space,
    Probe,
    Sweep {
        below: Vec<String>,
        older_than: Duration,
    },
}

impl Request {
    /// As the operation is called in an error.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Request::Resolve { .. } | Request::Open { .. } => "open",
            Request::Peek { .. } => "identify",
            Request::Put { .. } => "put",
            Request::Get { .. } => "get",
            Request::Head { .. } => "look up",
            Request::Sum { .. } => "compare",
            Request::List { .. } => "list",
            Request::Delete { .. } => "delete",
            Request::Space => "measure",
            Request::Probe => "probe",
            Request::Sweep { .. } => "sweep",
        }
    }

    /// Whether this is an answer to it; an error always is.
    pub(super) fn is_answered_by(&self, answer: &Answer) -> bool {
        match self {
            _ if matches!(answer, Answer::Failed(_)) => true,
            Request::Resolve { .. } => matches!(answer, Answer::Path(_)),
            Request::Peek { .. } => matches!(answer, Answer::Sentinel(_)),
            Request::Open { .. } | Request::Delete { .. } => matches!(answer, Answer::Done),
            Request::Put { key, .. } => {
                matches!(answer, Answer::Meta(Some(meta)) if meta.key == *key)
            }
            Request::Get { .. } => matches!(answer, Answer::Bytes(_)),
            Request::Head { key } => {
                matches!(answer, Answer::Meta(meta) if meta.as_ref().is_none_or(|meta| meta.key == *key))
            }
            Request::Sum { .. } => matches!(answer, Answer::Sum(_)),
            Request::List { .. } => matches!(answer, Answer::Page(_)),
            Request::Space => matches!(answer, Answer::Space(_)),
            Request::Probe => matches!(answer, Answer::Capabilities(_)),
            Request::Sweep { .. } => matches!(answer, Answer::Count(_)),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Request::Resolve { path } => {
                let mut out = Out::tagged(1);
                out.path(path);
                out.finish()
            }
            Request::Peek { path, key } => {
                let mut out = Out::tagged(2);
                out.path(path);
                out.key(key);
                out.finish()
            }
            Request::Open {
                path,
                sentinel,
                tag,
                first,
            } => {
                let mut out = Out::tagged(3);
                out.path(path);
                out.option(sentinel.as_ref(), |out, (key, bytes)| {
                    out.key(key);
                    out.bytes(bytes);
                });
                out.u64(*tag);
                out.u64(*first);
                out.finish()
            }
            Request::Put {
                key,
                len,
                if_absent,
            } => {
                let mut out = Out::tagged(4);
                out.key(key);
                out.u64(*len);
                out.bool(*if_absent);
                out.finish()
            }
            Request::Get { key, range } => {
                let mut out = Out::tagged(5);
                out.key(key);
                out.u64(range.start);
                out.u64(range.end);
                out.finish()
            }
            Request::Head { key } => {
                let mut out = Out::tagged(6);
                out.key(key);
                out.finish()
            }
            Request::List {
                prefix,
                after,
                limit,
            } => {
                let mut out = Out::tagged(7);
                out.text(prefix);
                out.option(after.as_ref(), Out::key);
                out.u64(*limit);
                out.finish()
            }
            Request::Delete { keys } => {
                let mut out = Out::tagged(8);
                out.u64(keys.len() as u64);
                for key in keys {
                    out.key(key);
                }
                out.finish()
            }
            Request::Space => Out::tagged(9).finish(),
            Request::Probe => Out::tagged(10).finish(),
            Request::Sweep { below, older_than } => {
                let mut out = Out::tagged(11);
                out.u64(below.len() as u64);
                for prefix in below {
                    out.text(prefix);
                }
                out.duration(*older_than);
                out.finish()
            }
            Request::Sum { key, len } => {
                let mut out = Out::tagged(12);
                out.key(key);
                out.u64(*len);
                out.finish()
            }
        }
    }

    pub(super) fn decode(payload: &[u8]) -> io::Result<Request> {
        let mut from = In::new(payload);
        let request = match from.u8()? {
            1 => Request::Resolve { path: from.path()? },
            2 => Request::Peek {
                path: from.path()?,
                key: from.key()?,
            },
            3 => Request::Open {
                path: from.path()?,
                sentinel: from.option(|from| Ok((from.key()?, sentinel_bytes(from)?)))?,
                tag: from.u64()?,
                first: from.u64()?,
            },
            4 => Request::Put {
                key: from.key()?,
                len: from.u64()?,
                if_absent: from.bool()?,
            },
            5 => Request::Get {
                key: from.key()?,
                range: from.u64()?..from.u64()?,
            },
            6 => Request::Head { key: from.key()? },
            7 => Request::List {
                prefix: from.text()?.to_owned(),
                after: from.option(In::key)?,
                limit: from.u64()?,
            },
            8 => {
                let count = from.count(PAGE_LEN_MAX)?;
                let keys = (0..count).map(|_| from.key()).collect::<io::Result<_>>()?;
                Request::Delete { keys }
            }
            9 => Request::Space,
            10 => Request::Probe,
            11 => {
                let count = from.count(PAGE_LEN_MAX)?;
                let below = (0..count).map(|_| from.text().map(str::to_owned));
                Request::Sweep {
                    below: below.collect::<io::Result<_>>()?,
                    older_than: from.duration()?,
                }
            }
            12 => Request::Sum {
                key: from.key()?,
                len: from.u64()?,
            },
            _ => return Err(malformed("request")),
        };
        from.end()?;
        Ok(request)
    }
}

fn sentinel_bytes(from: &mut In<'_>) -> io::Result<Vec<u8>> {
    let bytes = from.bytes()?;
    if bytes.len() as u64 > SENTINEL_LEN_MAX {
        return Err(malformed("sentinel"));
    }
    Ok(bytes.to_vec())
}

/// What a worker answers.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Path(PathBuf),
    Sentinel(Option<Vec<u8>>),
    Meta(Option<Meta>),
    /// So many bytes follow.
    Bytes(u64),
    Page(Page),
    Space(Option<Space>),
    Capabilities(Box<Capabilities>),
    Count(u64),
    Sum(Sum),
    Failed(Error),
}

/// An answer, and which root it is about; none before one was opened.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) place: Option<Place>,
    pub(super) answer: Answer,
}

impl Answered {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Out::default();
        out.option(self.place, |out, (device, inode)| {
            out.u64(device);
            out.u64(inode);
        });
        match &self.answer {
            Answer::Done => out.u8(1),
            Answer::Path(path) => {
                out.u8(2);
                out.path(path);
            }
            Answer::Sentinel(bytes) => {
                out.u8(3);
                out.option(bytes.as_ref(), |out, bytes| out.bytes(bytes));
            }
            Answer::Meta(meta) => {
                out.u8(4);
                out.option(meta.as_ref(), Out::meta);
            }
            Answer::Bytes(len) => {
                out.u8(5);
                out.u64(*len);
            }
            Answer::Page(page) => {
                out.u8(6);
                out.page(page);
            }
            Answer::Space(space) => {
                out.u8(7);
                out.option(*space, Out::space);
            }
            Answer::Capabilities(found) => {
                out.u8(8);
                out.capabilities(found);
            }
            Answer::Count(count) => {
                out.u8(9);
                out.u64(*count);
            }
            Answer::Failed(error) => {
                out.u8(10);
                out.error(error);
            }
            Answer::Sum(sum) => {
                out.u8(11);
                match sum {
                    Sum::Absent => out.u8(0),
                    Sum::OtherLen => out.u8(1),
                    Sum::Crc(crc) => {
                        out.u8(2);
                        out.u64(u64::from(*crc));
                    }
                }
            }
        }
        out.finish()
    }

    /// `verb` is what was asked.
    pub(super) fn decode(payload: &[u8], verb: &'static str) -> io::Result<Answered> {
        let mut from = In::new(payload);
        let place = from.option(|from| Ok((from.u64()?, from.u64()?)))?;
        let answer = match from.u8()? {
            1 => Answer::Done,
            2 => Answer::Path(from.path()?),
            3 => Answer::Sentinel(from.option(sentinel_bytes)?),
            4 => Answer::Meta(from.option(In::meta)?),
            5 => Answer::Bytes(from.u64()?),
            6 => Answer::Page(from.page()?),
            7 => Answer::Space(from.option(In::space)?),
            8 => Answer::Capabilities(Box::new(from.capabilities()?)),
            9 => Answer::Count(from.u64()?),
            10 => Answer::Failed(from.error(verb)?),
            11 => Answer::Sum(match from.u8()? {
                0 => Sum::Absent,
                1 => Sum::OtherLen,
                2 => Sum::Crc(u32::try_from(from.u64()?).map_err(|_| malformed("sum"))?),
                _ => return Err(malformed("sum")),
            }),
            _ => return Err(malformed("answer")),
        };
        from.end()?;
        Ok(Answered { place, answer })
    }
}

#[cfg(test)]
mod tests;
