//! The sum of an object, taken by the process that is near it.
//!
//! A put has just left the bytes in the page cache of whatever keeps one: reading them costs no disk and no line there,
//! and shows what the mount took in. They are dropped behind the look, because nobody reads a pack again soon.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::{Mode, fstat};

use crate::error::{At, Result};
use crate::key::ObjectKey;
use crate::volume::{Body, CHUNK_LEN, Likeness};

use super::anchor::Anchor;
use super::meta_of;

/// What an object is, without its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sum {
    /// There is none.
    Absent,
    /// It has another length, and was not read.
    OtherLen,
    /// CRC-32C of all its bytes: enough against accidents, and as fast as they are read.
    Crc(u32),
}

impl Sum {
    /// How an object with this sum compares with a body with the sum `ours`.
    pub(crate) fn compared(self, ours: u32) -> Likeness {
        match self {
            Sum::Absent => Likeness::Absent,
            Sum::Crc(theirs) if theirs == ours => Likeness::Same,
            Sum::Crc(_) | Sum::OtherLen => Likeness::Other,
        }
    }
}

/// The sum of a body. `volume` and `key` name the comparison in an error.
pub(crate) fn of_body(volume: &str, key: &ObjectKey, body: Body<'_>) -> Result<u32> {
    let mut crc = 0;
    body.for_each_chunk(("compare", volume, key), |chunk| {
        crc = crc32c::crc32c_append(crc, chunk);
        Ok(())
    })?;
    Ok(crc)
}

/// The sum of the object at `key`, if it has `len` bytes.
pub(super) fn of_object(anchor: &Anchor, at: At<'_>, key: &ObjectKey, len: u64) -> Result<Sum> {
    // As in `get`: not to hang on a planted pipe.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match anchor.open_beneath(key.as_str(), flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            return anchor.confirm(at).map(|()| Sum::Absent);
        }
        Err(errno) => return Err(at.errno(errno)),
    };
    let stat = fstat(&file).map_err(|errno| at.errno(errno))?;
    match meta_of(key, &stat, at)? {
        None => return Ok(Sum::Absent),
        Some(meta) if meta.len != len => return Ok(Sum::OtherLen),
        Some(_) => {}
    }
    let mut buffer = vec![0; usize::try_from(len).unwrap_or(CHUNK_LEN).min(CHUNK_LEN)];
    let (mut crc, mut offset) = (0, 0);
    while offset < len {
        let wanted = usize::try_from(len - offset)
            .unwrap_or(CHUNK_LEN)
            .min(buffer.len());
        let (piece, _) = buffer.split_at_mut(wanted);
        file.read_exact_at(piece, offset)
            .map_err(|error| at.io(error))?;
        crc = crc32c::crc32c_append(crc, piece);
        offset += wanted as u64;
    }
    // Advice: a file system without a page cache has nothing to drop.
    let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    Ok(Sum::Crc(crc))
}
