//! Giving back the space of records that the external volume holds, without giving up the pack: its
//! header, index and trailer stay (invariant 4), and a punched record reads as absent.

use std::ops::Range;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use super::read::{LocalPack, read_index};
use crate::error::{Error, Result};
use crate::format::pack::BLOCK_LEN;
use crate::types::PackId;

/// Frees the whole blocks within `range` of the sealed pack `id` at `path`, and answers how many bytes
/// that were. Header, index and trailer are never touched, whatever the range. That the pack was
/// uploaded and verified is for the caller to know (invariant 8).
pub fn punch(path: &Path, id: PackId, range: Range<u32>) -> Result<u32> {
    let pack = LocalPack::open_writable(path)?;
    // Also the proof that this is that pack, and sealed.
    let index = read_index(&pack, id)?;
    let begin = range
        .start
        .max(BLOCK_LEN)
        .checked_next_multiple_of(BLOCK_LEN)
        .unwrap_or(u32::MAX);
    let end = range.end.min(index.offset);
    let end = end - end % BLOCK_LEN;
    if begin >= end {
        return Ok(0);
    }
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(
        &pack.file,
        mode,
        libc::off_t::from(begin),
        libc::off_t::from(end - begin),
    )
    .map_err(Error::nix("punch", path))?;
    Ok(end - begin)
}
