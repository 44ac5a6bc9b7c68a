//! What fanotify(7) writes into a buffer, as events. Pure bytes to values: arbitrary ones give an error and no panic.
//!
//! An event is a header of 24 bytes and then, up to its own length, records: the handle of the directory it happened in
//! with the name there, and the handle of the object itself. Numbers are in the machine's own order.

use std::fmt;

/// Header of an event, `struct fanotify_event_metadata`.
const HEADER_LEN: usize = 24;
/// The version of that header; another one means another layout.
const VERSION: u8 = libc::FANOTIFY_METADATA_VERSION;
/// Header of a record, then the identity of the file system, then length and type of the handle.
const RECORD_HEADER_LEN: usize = 4;
const FSID_LEN: usize = 8;
const HANDLE_HEADER_LEN: usize = 8;
/// The kernel makes no handle longer than this (`MAX_HANDLE_SZ`).
pub(super) const HANDLE_LEN_MAX: usize = 128;

/// What a file system calls one of its files or directories, whatever its name is just now.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Handle {
    pub(super) kind: i32,
    pub(super) bytes: Box<[u8]>,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Event {
    /// What happened, as `FAN_...` bits. Several things that happened to one name come as one event.
    pub(super) mask: u64,
    /// The directory in which it happened; for what happened to a directory itself, that directory.
    pub(super) dir: Option<Handle>,
    /// The name there; `None` when it is the directory itself.
    pub(super) name: Option<Box<[u8]>>,
    /// The object itself.
    pub(super) object: Option<Handle>,
}

/// Bytes that are no events: of a kernel that speaks another language, or not of the kernel at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Garbled {
    /// Where in the buffer.
    pub(super) at: usize,
    /// What was expected there.
    pub(super) expected: &'static str,
}

impl fmt::Display for Garbled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} expected at byte {}", self.expected, self.at)
    }
}

/// The events in `buffer`, as read(2) filled it.
pub(super) fn decode(buffer: &[u8]) -> Result<Vec<Event>, Garbled> {
    let mut events = Vec::new();
    let mut rest = buffer;
    while !rest.is_empty() {
        let at = buffer.len() - rest.len();
        let garbled = |expected| Garbled { at, expected };
        let event_len = u32_at(rest, 0)
            .and_then(|len| usize::try_from(len).ok())
            .filter(|len| *len >= HEADER_LEN)
            .ok_or(garbled("the length of an event"))?;
        let (event, after) = rest
            .split_at_checked(event_len)
            .ok_or(garbled("a whole event"))?;
        events.push(decode_event(event).map_err(garbled)?);
        rest = after;
    }
    Ok(events)
}

fn decode_event(bytes: &[u8]) -> Result<Event, &'static str> {
    if bytes.get(4) != Some(&VERSION) {
        return Err("version 3 of an event");
    }
    let metadata_len = u16_at(bytes, 6).map_or(0, usize::from);
    if metadata_len < HEADER_LEN {
        return Err("the length of a header");
    }
    let mask = u64_at(bytes, 8).ok_or("the mask of an event")?;
    let mut event = Event {
        mask,
        dir: None,
        name: None,
        object: None,
    };
    let mut rest = bytes.get(metadata_len..).ok_or("a whole header")?;
    while !rest.is_empty() {
        let record_len = u16_at(rest, 2).map_or(0, usize::from);
        if record_len < RECORD_HEADER_LEN {
            return Err("the length of a record");
        }
        let (record, after) = rest.split_at_checked(record_len).ok_or("a whole record")?;
        let (kind, body) = match record {
            [kind, _, _, _, body @ ..] => (*kind, body),
            _ => return Err("the header of a record"),
        };
        match kind {
            libc::FAN_EVENT_INFO_TYPE_FID => event.object = Some(decode_handle(body)?.0),
            libc::FAN_EVENT_INFO_TYPE_DFID => event.dir = Some(decode_handle(body)?.0),
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => {
                let (handle, name) = decode_handle(body)?;
                event.dir = Some(handle);
                event.name = decode_name(name);
            }
            // What we did not ask for says nothing that we need.
            _ => {}
        }
        rest = after;
    }
    Ok(event)
}

/// The handle, and what follows it.
fn decode_handle(body: &[u8]) -> Result<(Handle, &[u8]), &'static str> {
    let body = body.get(FSID_LEN..).ok_or("the file system of a record")?;
    let len = u32_at(body, 0)
        .and_then(|len| usize::try_from(len).ok())
        .filter(|len| *len <= HANDLE_LEN_MAX)
        .ok_or("the length of a handle")?;
    let kind = u32_at(body, 4).ok_or("the type of a handle")?;
    let after = body.get(HANDLE_HEADER_LEN..).ok_or("a handle")?;
    let (bytes, after) = after.split_at_checked(len).ok_or("a whole handle")?;
    let handle = Handle {
        kind: kind.cast_signed(),
        bytes: bytes.into(),
    };
    Ok((handle, after))
}

/// Up to the zero that ends it. `.` is the directory itself.
fn decode_name(bytes: &[u8]) -> Option<Box<[u8]>> {
    let name = bytes.split(|byte| *byte == 0).next()?;
    (!name.is_empty() && name != b".").then(|| name.into())
}

#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel of this machine wrote them"
)]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel of this machine wrote them"
)]
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel of this machine wrote them"
)]
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
#[expect(clippy::host_endian_bytes, reason = "as the kernel writes")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = vec![7; FSID_LEN];
        body.extend(u32::try_from(handle.len()).unwrap().to_ne_bytes());
        body.extend(1_i32.to_ne_bytes());
        body.extend(handle);
        body.extend(name);
        body.resize(body.len().next_multiple_of(4), 0);
        let len = u16::try_from(RECORD_HEADER_LEN + body.len()).unwrap();
        [&[kind, 0], &len.to_ne_bytes()[..], &body].concat()
    }

    fn event(mask: u64, records: &[Vec<u8>]) -> Vec<u8> {
        let records = records.concat();
        let len = u32::try_from(HEADER_LEN + records.len()).unwrap();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend([VERSION, 0]);
        bytes.extend(u16::try_from(HEADER_LEN).unwrap().to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend([0xff; 4]);
        bytes.extend([1, 0, 0, 0]);
        [bytes, records].concat()
    }

    fn handle(bytes: &[u8]) -> Handle {
        Handle {
            kind: 1,
            bytes: bytes.into(),
        }
    }

    #[test]
    fn events_are_read_one_after_the_other_with_their_directory_and_name() {
        let named = record(
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME,
            b"directory",
            b"a file\0",
        );
        let object = record(libc::FAN_EVENT_INFO_TYPE_FID, b"object", b"");
        let own = record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, b"itself", b".\0");
        let unknown = record(99, b"", b"whatever");
        let buffer = [
            event(libc::FAN_CREATE, &[named, object]),
            event(libc::FAN_ATTRIB | libc::FAN_ONDIR, &[unknown, own]),
            event(libc::FAN_Q_OVERFLOW, &[]),
        ]
        .concat();
        let events = decode(&buffer).unwrap();
        assert_eq!(events.len(), 3);
        assert_eq!(events[0].mask, libc::FAN_CREATE);
        assert_eq!(events[0].dir, Some(handle(b"directory")));
        assert_eq!(events[0].name.as_deref(), Some(&b"a file"[..]));
        assert_eq!(events[0].object, Some(handle(b"object")));
        assert_eq!(
            (&events[1].dir, &events[1].name),
            (&Some(handle(b"itself")), &None)
        );
        assert_eq!((&events[2].dir, &events[2].name), (&None, &None));
    }

    #[test]
    fn an_event_that_is_cut_off_is_named_and_not_passed_over() {
        let whole = event(1, &[record(libc::FAN_EVENT_INFO_TYPE_FID, b"object", b"")]);
        for len in 1..whole.len() {
            assert!(decode(&whole[..len]).is_err(), "{len} bytes");
        }
        let two = [&whole[..], &whole[..HEADER_LEN]].concat();
        assert_eq!(decode(&two).unwrap_err().at, whole.len());
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let name = libc::FAN_EVENT_INFO_TYPE_DFID_NAME;
        let good = event(1, &[record(name, b"directory", b"name\0")]);
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            decode(&bad)
        };
        let handle_len_at = HEADER_LEN + RECORD_HEADER_LEN + FSID_LEN;
        assert!(with(0, &0_u32.to_ne_bytes()).is_err());
        assert!(with(0, &u32::MAX.to_ne_bytes()).is_err());
        assert!(with(4, &[4]).is_err(), "another version");
        assert!(with(6, &0_u16.to_ne_bytes()).is_err());
        assert!(with(6, &u16::MAX.to_ne_bytes()).is_err());
        assert!(with(HEADER_LEN + 2, &0_u16.to_ne_bytes()).is_err());
        assert!(with(HEADER_LEN + 2, &u16::MAX.to_ne_bytes()).is_err());
        assert!(with(handle_len_at, &129_u32.to_ne_bytes()).is_err());
        assert!(with(handle_len_at, &u32::MAX.to_ne_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn an_event_with_some_bytes_changed_is_survived(
            changes in proptest::collection::vec((0_usize..200, any::<u8>()), 0..8),
            handle_len in 0_usize..HANDLE_LEN_MAX,
        ) {
            let one = record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &vec![1; handle_len], b"name\0");
            let two = record(libc::FAN_EVENT_INFO_TYPE_FID, &[2; 8], b"");
            let mut bytes = event(1, &[one, two]);
            for (at, byte) in changes {
                if let Some(old) = bytes.get_mut(at) {
                    *old = byte;
                }
            }
            let _ = decode(&bytes);
        }
    }
}
