//! The worker's side: one directory volume, one request at a time, until its input ends.
//!
//! It has no lock, no socket but the one it is asked through, and no thread. Whatever of the asking process it inherited
//! by mistake is closed before anything else is done, so that a worker that hangs for ever holds nothing up.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use crate::dir::DirVolume;
use crate::error::{At, Error, ErrorClass, Result};
use crate::identity::{SENTINEL_LEN_MAX, Sentinel};
use crate::key::ObjectKey;
use crate::volume::{Meta, Outgoing, Precondition, Volume};

use super::message::{Answer, Answered, Request};
use super::wire::{PAGE_LEN_MAX, malformed, read_frame, read_piece, write_frame};

/// The whole life of a worker process: what the program that [`super::IsolatedDir`] starts has to do, and nothing else.
pub fn run_worker() -> ExitCode {
    // What it would not get to do without /proc only keeps the process from being recognised, or from being lean.
    let _ = close_inherited();
    let _ = fs::write("/proc/self/comm", "tidefs-dir");
    let (input, output) = (io::stdin(), io::stdout());
    match serve(Unbuffered(input.as_fd()), Unbuffered(output.as_fd())) {
        Ok(()) => ExitCode::SUCCESS,
        // The one who asked is gone, or asked for what cannot be: there is nobody to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Closes everything but the three standard descriptors.
fn close_inherited() -> io::Result<()> {
    let mut open: Vec<i32> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // Among them is the directory that listed them, which is closed by now.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// Standard input and output as they are: a buffer of lines is no help to frames.
struct Unbuffered<F>(F);

impl<F: AsFd> Read for Unbuffered<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.0, buffer)?)
    }
}

impl<F: AsFd> Write for Unbuffered<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Answers what comes from `input` on `output` until there is no more. An error is a broken conversation.
pub fn serve(mut input: impl Read, mut output: impl Write) -> io::Result<()> {
    let mut volume: Option<DirVolume> = None;
    while let Some(frame) = read_frame(&mut input)? {
        let request = Request::decode(&frame)?;
        let (outcome, bytes) = match request {
            Request::Get { key, range } => {
                match opened(volume.as_ref(), "get").and_then(|volume| volume.get(&key, range)) {
                    Ok(bytes) => (Ok(Answer::Bytes(bytes.len() as u64)), Some(bytes)),
                    Err(error) => (Err(error), None),
                }
            }
            Request::Put {
                key,
                len,
                if_absent,
            } => {
                let precondition = if if_absent {
                    Precondition::IfAbsent
                } else {
                    Precondition::None
                };
                let outcome = put(volume.as_ref(), &mut input, (&key, len, precondition))?;
                (outcome.map(|meta| Answer::Meta(Some(meta))), None)
            }
            other => (answer(&mut volume, other), None),
        };
        let answered = Answered {
            place: volume.as_ref().map(DirVolume::place),
            answer: outcome.unwrap_or_else(Answer::Failed),
        };
        write_frame(&mut output, &answered.encode())?;
        if let Some(bytes) = bytes {
            output.write_all(&bytes)?;
        }
    }
    Ok(())
}

fn opened<'v>(volume: Option<&'v DirVolume>, op: &'static str) -> Result<&'v DirVolume> {
    volume.ok_or_else(|| Error::new(ErrorClass::Transient, op, "", "", "no root was opened yet"))
}

fn answer(volume: &mut Option<DirVolume>, request: Request) -> Result<Answer> {
    let op = request.verb();
    match request {
        Request::Resolve { path } => resolve(&path),
        Request::Peek { path, key } => peek(&path, &key),
        Request::Open {
            path,
            sentinel,
            tag,
            first,
        } => {
            // The one before stays open until here: so the same device number is the same mount.
            let fresh = DirVolume::open(path)?.sharing_temporary_names(tag, first);
            if let Some((key, bytes)) = sentinel {
                fresh.bind(Sentinel::exact(key, bytes))?;
            }
            *volume = Some(fresh);
            Ok(Answer::Done)
        }
        Request::Head { key } => opened(volume.as_ref(), op)?.head(&key).map(Answer::Meta),
        Request::List {
            prefix,
            after,
            limit,
        } => {
            let limit =
                usize::try_from(limit).map_or(PAGE_LEN_MAX, |limit| limit.min(PAGE_LEN_MAX));
            let limit = NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN);
            let page = opened(volume.as_ref(), op)?.list(&prefix, after.as_ref(), limit);
            page.map(Answer::Page)
        }
        Request::Delete { keys } => opened(volume.as_ref(), op)?
            .delete(&keys)
            .map(|()| Answer::Done),
        Request::Space => opened(volume.as_ref(), op)?.space().map(Answer::Space),
        Request::Probe => {
            let found = opened(volume.as_ref(), op)?.probe();
            found.map(|found| Answer::Capabilities(Box::new(found)))
        }
        Request::Sum { key, len } => opened(volume.as_ref(), op)?.sum(&key, len).map(Answer::Sum),
        Request::Sweep { below, older_than } => {
            let below: Vec<&str> = below.iter().map(String::as_str).collect();
            let swept = opened(volume.as_ref(), op)?.sweep_temporary(&below, older_than);
            swept.map(Answer::Count)
        }
        Request::Get { .. } | Request::Put { .. } => Err(Error::new(
            ErrorClass::Permanent,
            op,
            "",
            "",
            "it is answered elsewhere",
        )),
    }
}

/// For a directory that is to become a volume: then one that is missing is a mistake, and not an outage.
fn resolve(path: &Path) -> Result<Answer> {
    let name = format!("dir:{}", path.display());
    let at = At {
        volume: &name,
        op: "open",
        key: "",
    };
    fs::canonicalize(path)
        .map(Answer::Path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => at
                .error(
                    ErrorClass::Permanent,
                    "the directory does not exist: mount the volume, or create it if this is to be a new one",
                )
                .with_source(error),
            _ => at.io(error),
        })
}

fn peek(path: &Path, key: &ObjectKey) -> Result<Answer> {
    let fresh = DirVolume::open(path)?;
    let Some(meta) = fresh.head(key)? else {
        return Ok(Answer::Sentinel(None));
    };
    if meta.len > SENTINEL_LEN_MAX {
        let message = format!(
            "it has {} bytes and is no sentinel: mount the right volume",
            meta.len
        );
        let volume = fresh.to_string();
        let at = At {
            volume: &volume,
            op: "identify",
            key: key.as_str(),
        };
        return Err(at.wrong_volume(message));
    }
    let bytes = fresh.get(key, 0..meta.len)?;
    Ok(Answer::Sentinel(Some(bytes.to_vec())))
}

/// The outer error is a broken conversation, the inner one the put's.
fn put(
    volume: Option<&DirVolume>,
    input: &mut impl Read,
    (key, len, precondition): (&ObjectKey, u64, Precondition),
) -> io::Result<Result<Meta>> {
    let arriving = Arriving {
        input: RefCell::new(input),
        len,
        left: Cell::new(len),
        broken: Cell::new(None),
    };
    let outcome =
        opened(volume, "put").and_then(|volume| volume.put_once(key, &arriving, precondition));
    arriving.pass_over_rest()?;
    Ok(outcome)
}

/// A body that is read off the input while it is written.
struct Arriving<'i, R> {
    input: RefCell<&'i mut R>,
    len: u64,
    left: Cell<u64>,
    broken: Cell<Option<io::Error>>,
}

impl<R: Read> Arriving<'_, R> {
    /// The next piece, `None` if the sender gave up.
    fn next<'b>(&self, buffer: &'b mut Vec<u8>) -> io::Result<Option<&'b [u8]>> {
        let mut input = self
            .input
            .try_borrow_mut()
            .map_err(|_| malformed("order"))?;
        let piece = read_piece(&mut **input, self.left.get(), buffer)?;
        let taken = piece.map_or(self.left.get(), |piece| piece.len() as u64);
        self.left.set(self.left.get() - taken);
        Ok(piece)
    }

    /// After a put that failed early: the next request begins behind the body.
    fn pass_over_rest(&self) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        let mut buffer = Vec::new();
        while self.left.get() > 0 {
            self.next(&mut buffer)?;
        }
        Ok(())
    }
}

impl<R: Read> Outgoing for Arriving<'_, R> {
    fn len(&self) -> u64 {
        self.len
    }

    fn send(
        &self,
        (op, volume, key): (&'static str, &str, &ObjectKey),
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let ended =
            |message: &str| Error::new(ErrorClass::Transient, op, volume, key.as_str(), message);
        let mut buffer = Vec::new();
        while self.left.get() > 0 {
            match self.next(&mut buffer) {
                Ok(Some(piece)) => sink(piece)?,
                Ok(None) => return Err(ended("the sender could not read what it was sending")),
                Err(error) => {
                    self.broken.set(Some(error));
                    return Err(ended("the sender is gone"));
                }
            }
        }
        Ok(())
    }
}
