//! Bytes between the two processes: frames, and the small values in them. Nothing is allocated for a length that was
//! not compared with its limit, and what does not decode ends the conversation.

use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, ErrorCase, ErrorClass};
use crate::key::ObjectKey;
use crate::volume::{Capabilities, Meta, MountKind, Page, Space};

/// Longest frame: a page of [`PAGE_LEN_MAX`] names, or as many names to delete, or a sentinel.
pub(super) const FRAME_LEN_MAX: usize = 4 << 20;
/// Names in one answer or one deletion, each of at most 512 bytes.
pub(super) const PAGE_LEN_MAX: usize = 1024;
/// Longest piece of a body.
pub(super) const PIECE_LEN_MAX: usize = crate::volume::CHUNK_LEN;
/// In place of a piece's length: the body ends here, for it cannot be read.
const GIVEN_UP: u32 = u32::MAX;

/// What the other side sent makes no sense.
pub(super) fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the other process sent a wrong {what}"),
    )
}

pub(super) fn write_frame(out: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    if payload.len() > FRAME_LEN_MAX {
        return Err(malformed("length"));
    }
    let len = u32::try_from(payload.len()).map_err(|_| malformed("length"))?;
    let mut frame = Vec::with_capacity(4 + payload.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(payload);
    out.write_all(&frame)
}

/// `None` where the other side closed between two frames.
pub(super) fn read_frame(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    let mut have = 0;
    while let Some(rest) = len.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let len = usize::try_from(u32::from_le_bytes(len)).map_err(|_| malformed("length"))?;
    if len > FRAME_LEN_MAX {
        return Err(malformed("length"));
    }
    let mut payload = vec![0; len];
    input.read_exact(&mut payload)?;
    Ok(Some(payload))
}

/// One piece of a body, at most [`PIECE_LEN_MAX`] bytes and not empty.
pub(super) fn write_piece(out: &mut impl Write, piece: &[u8]) -> io::Result<()> {
    let len = u32::try_from(piece.len()).map_err(|_| malformed("piece"))?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(piece)
}

/// There will be no further piece.
pub(super) fn give_up_body(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&GIVEN_UP.to_le_bytes())
}

/// Reads the next piece of a body of which `left` bytes are to come into `buffer`; `None` if it was given up.
pub(super) fn read_piece<'b>(
    input: &mut impl Read,
    left: u64,
    buffer: &'b mut Vec<u8>,
) -> io::Result<Option<&'b [u8]>> {
    let mut len = [0; 4];
    input.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len == GIVEN_UP {
        return Ok(None);
    }
    if len == 0 || len as usize > PIECE_LEN_MAX || u64::from(len) > left {
        return Err(malformed("piece"));
    }
    buffer.resize(len as usize, 0);
    input.read_exact(buffer)?;
    Ok(Some(buffer))
}

/// A message that is being put together.
#[derive(Debug, Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    pub(super) fn tagged(tag: u8) -> Out {
        Out(vec![tag])
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.u64(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    pub(super) fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    pub(super) fn path(&mut self, value: &Path) {
        self.bytes(value.as_os_str().as_bytes());
    }

    pub(super) fn key(&mut self, value: &ObjectKey) {
        self.text(value.as_str());
    }

    pub(super) fn duration(&mut self, value: Duration) {
        self.u64(value.as_secs());
        self.u64(u64::from(value.subsec_nanos()));
    }

    pub(super) fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Out, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            put(self, value);
        }
    }

    pub(super) fn meta(&mut self, meta: &Meta) {
        self.key(&meta.key);
        self.u64(meta.len);
        let since = meta
            .modified
            .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.option(since, Out::duration);
    }

    pub(super) fn page(&mut self, page: &Page) {
        self.u64(page.objects.len() as u64);
        for meta in &page.objects {
            self.meta(meta);
        }
        self.bool(page.more);
    }

    pub(super) fn space(&mut self, space: Space) {
        self.u64(space.total_bytes);
        self.u64(space.available_bytes);
    }

    pub(super) fn error(&mut self, error: &Error) {
        self.u8(code_of(&CLASSES, error.class()));
        self.u8(code_of(&CASES, error.case()));
        self.text(error.op());
        self.text(error.key());
        self.text(error.volume());
        self.text(error.message());
        let source = std::error::Error::source(error);
        let errno = source
            .and_then(|source| source.downcast_ref::<io::Error>())
            .and_then(io::Error::raw_os_error)
            .and_then(|errno| u64::try_from(errno).ok());
        self.option(errno, Out::u64);
        self.option(
            source.filter(|_| errno.is_none()).map(ToString::to_string),
            |out, text| out.text(&text),
        );
    }

    pub(super) fn capabilities(&mut self, found: &Capabilities) {
        // Without a rest pattern, so that a field that is added has to be sent.
        let Capabilities {
            kind,
            file_system,
            source,
            mount_point,
            atomic_rename,
            exclusive_create,
            fsync,
            fsync_directory,
            direct_io,
            list_after_put,
            put_latency,
            get_latency,
            warnings,
            // A directory is no bucket.
            bucket: _,
        } = found;
        self.u8(code_of(&KINDS, *kind));
        self.text(file_system);
        self.text(source);
        self.path(mount_point);
        for can in [
            atomic_rename,
            exclusive_create,
            fsync,
            fsync_directory,
            direct_io,
            list_after_put,
        ] {
            self.bool(*can);
        }
        self.duration(*put_latency);
        self.duration(*get_latency);
        self.u64(warnings.len() as u64);
        for warning in warnings {
            self.text(warning);
        }
    }
}

/// A message that is being taken apart.
#[derive(Debug)]
pub(super) struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    pub(super) fn new(payload: &'a [u8]) -> In<'a> {
        In(payload)
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> io::Result<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(malformed("end"))
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (first, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| malformed("length"))?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn u8(&mut self) -> io::Result<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(super) fn bool(&mut self) -> io::Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(malformed("flag")),
        }
    }

    pub(super) fn u64(&mut self) -> io::Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let len = usize::try_from(self.u64()?).map_err(|_| malformed("length"))?;
        let (bytes, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| malformed("length"))?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn text(&mut self) -> io::Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| malformed("text"))
    }

    pub(super) fn path(&mut self) -> io::Result<PathBuf> {
        let bytes = self.bytes()?.to_vec();
        Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
    }

    pub(super) fn key(&mut self) -> io::Result<ObjectKey> {
        ObjectKey::new(self.text()?).map_err(|_| malformed("key"))
    }

    pub(super) fn duration(&mut self) -> io::Result<Duration> {
        let secs = self.u64()?;
        match u32::try_from(self.u64()?) {
            Ok(nanos) if nanos < 1_000_000_000 => Ok(Duration::new(secs, nanos)),
            _ => Err(malformed("time")),
        }
    }

    pub(super) fn option<T>(
        &mut self,
        take: impl FnOnce(&mut In<'a>) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        if self.bool()? {
            take(self).map(Some)
        } else {
            Ok(None)
        }
    }

    /// How many follow, each of at least one byte.
    pub(super) fn count(&mut self, max: usize) -> io::Result<usize> {
        let count = usize::try_from(self.u64()?).map_err(|_| malformed("count"))?;
        if count > max || count > self.0.len() {
            return Err(malformed("count"));
        }
        Ok(count)
    }

    pub(super) fn meta(&mut self) -> io::Result<Meta> {
        let (key, len) = (self.key()?, self.u64()?);
        let since = self.option(In::duration)?;
        let modified = since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
        Ok(Meta { key, len, modified })
    }

    pub(super) fn page(&mut self) -> io::Result<Page> {
        let count = self.count(PAGE_LEN_MAX)?;
        let objects = (0..count).map(|_| self.meta()).collect::<io::Result<_>>()?;
        let more = self.bool()?;
        Ok(Page { objects, more })
    }

    pub(super) fn space(&mut self) -> io::Result<Space> {
        Ok(Space {
            total_bytes: self.u64()?,
            available_bytes: self.u64()?,
        })
    }

    /// An error of the other process; one whose verb is not known here was about `verb`.
    pub(super) fn error(&mut self, verb: &'static str) -> io::Result<Error> {
        let class = value_of(&CLASSES, self.u8()?)?;
        let case = value_of(&CASES, self.u8()?)?;
        let op = self.text()?;
        let op = VERBS
            .iter()
            .find(|known| **known == op)
            .copied()
            .unwrap_or(verb);
        let (key, volume, message) = (self.text()?, self.text()?, self.text()?);
        let error = Error::new(class, op, volume, key, message).with_case(case);
        let errno = self.option(In::u64)?;
        let cause = self.option(In::text)?;
        Ok(match (errno, cause) {
            (Some(errno), _) => {
                let errno = i32::try_from(errno).map_err(|_| malformed("errno"))?;
                error.with_source(io::Error::from_raw_os_error(errno))
            }
            (None, Some(cause)) => error.with_source(cause.to_owned()),
            (None, None) => error,
        })
    }

    pub(super) fn capabilities(&mut self) -> io::Result<Capabilities> {
        Ok(Capabilities {
            kind: value_of(&KINDS, self.u8()?)?,
            file_system: self.text()?.to_owned(),
            source: self.text()?.to_owned(),
            mount_point: self.path()?,
            atomic_rename: self.bool()?,
            exclusive_create: self.bool()?,
            fsync: self.bool()?,
            fsync_directory: self.bool()?,
            direct_io: self.bool()?,
            list_after_put: self.bool()?,
            put_latency: self.duration()?,
            get_latency: self.duration()?,
            warnings: {
                let count = self.count(PAGE_LEN_MAX)?;
                (0..count)
                    .map(|_| self.text().map(str::to_owned))
                    .collect::<io::Result<_>>()?
            },
            bucket: None,
        })
    }
}

/// What an error of a directory volume may say it did.
const VERBS: [&str; 12] = [
    "put", "get", "look up", "compare", "list", "delete", "measure", "probe", "bind", "identify",
    "sweep", "open",
];

const CLASSES: [ErrorClass; 4] = [
    ErrorClass::NotFound,
    ErrorClass::Permanent,
    ErrorClass::Transient,
    ErrorClass::Unreachable,
];

/// Those that a directory volume has; any other is [`ErrorCase::General`].
const CASES: [ErrorCase; 7] = [
    ErrorCase::General,
    ErrorCase::AlreadyExists,
    ErrorCase::ShortRead,
    ErrorCase::WrongVolume,
    ErrorCase::Remounted,
    ErrorCase::NoSpace,
    ErrorCase::Stale,
];

const KINDS: [MountKind; 6] = [
    MountKind::Network,
    MountKind::Memory,
    MountKind::Disk,
    MountKind::Nfs,
    MountKind::Cifs,
    MountKind::Fuse,
];

/// The place of `value` in its table; the first one's stands for those that are not in it.
fn code_of<T: PartialEq>(table: &[T], value: T) -> u8 {
    let at = table.iter().position(|known| *known == value).unwrap_or(0);
    u8::try_from(at).unwrap_or(0)
}

fn value_of<T: Copy>(table: &[T], code: u8) -> io::Result<T> {
    table
        .get(usize::from(code))
        .copied()
        .ok_or_else(|| malformed("code"))
}
