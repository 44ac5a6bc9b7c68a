//! The content of a file of the source: read once, cut as everything else is cut, holes left out.
//!
//! What others have in the page cache stays there, and what they have not does not come to stay.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::fs::{Advice, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use crate::error::Error;
use crate::format::inode::Extent;
use crate::scan::throttle::Throttle;
use crate::volume::Volume;

/// Bytes read in one call.
const STEP: usize = 1 << 20;
/// Extents that are handed on at a time.
const PART_EXTENTS: usize = 1024;

/// Why a file was not read to its end.
#[derive(Debug)]
pub enum Broken {
    /// The source could not give it.
    Source(io::Error),
    /// The volume could not take it.
    Volume(Error),
    /// Somebody stopped the scan.
    Stopped,
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Broken {
        Broken::Source(errno.into())
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken::Volume(error)
    }
}

/// Where the content goes: a range of the file, and the extents in it; the rest of it is holes.
pub type Sink<'a> = &'a mut dyn FnMut(Range<u64>, Vec<Extent>) -> Result<(), Broken>;

/// Reads files; one for each thread, with its buffers.
#[derive(Debug, Default)]
pub struct FileReader {
    window: Vec<u8>,
    scratch: Vec<u8>,
    /// Bytes read so far.
    pub read_bytes: u64,
    /// Bytes that came into packs so far.
    pub stored_bytes: u64,
}

/// What reading needs to know of the scan.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Where blobs go.
    pub volume: &'a Volume,
    /// How fast.
    pub throttle: &'a Throttle,
    /// Whether to go on.
    pub stopped: &'a dyn Fn() -> bool,
}

impl std::fmt::Debug for Means<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Means").finish_non_exhaustive()
    }
}

impl FileReader {
    /// Reads an open file of `size` bytes into `sink`. `is_sparse`: it takes up less room than that, so that holes are
    /// looked for. Returns the length that it really had.
    pub fn read(
        &mut self,
        file: &impl AsFd,
        (size, is_sparse): (u64, bool),
        means: Means<'_>,
        sink: Sink<'_>,
    ) -> Result<u64, Broken> {
        let file = file.as_fd();
        if size == 0 {
            return Ok(0);
        }
        self.window.clear();
        let was_cached = if is_sparse || size > STEP as u64 {
            is_cached(file)
        } else {
            self.fill_cached(file, size, means)
        };
        if size > STEP as u64 {
            let _ = rustix::fs::fadvise(file, 0, None, Advice::Sequential);
        }
        let mut part = Part::default();
        let mut at = 0;
        let mut len = size;
        while at < size {
            let data = if is_sparse {
                match next_data(file, at, size)? {
                    Some(data) => data,
                    None => break,
                }
            } else {
                at..size
            };
            let end = self.segment(file, data.clone(), means, &mut part, sink)?;
            self.window.clear();
            if end < data.end {
                len = end;
                break;
            }
            at = data.end;
        }
        part.hand_on(len, sink)?;
        if !was_cached {
            let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
        }
        Ok(len)
    }

    /// Takes a short file from the page cache, if all of it is there: in one call. Tells whether its beginning is.
    fn fill_cached(&mut self, file: BorrowedFd<'_>, size: u64, means: Means<'_>) -> bool {
        means.throttle.before(size, means.stopped);
        let len = usize::try_from(size).unwrap_or(STEP);
        self.window.resize(len, 0);
        let mut target = [io::IoSliceMut::new(&mut self.window)];
        let count = rustix::io::preadv2(file, &mut target, 0, ReadWriteFlags::NOWAIT);
        let is_whole = count == Ok(len);
        if is_whole {
            self.read_bytes += size;
        } else {
            self.window.clear();
        }
        matches!(count, Ok(1..))
    }

    /// Reads a range that has no hole, the beginning of which may be in the window. Returns where it really ended.
    fn segment(
        &mut self,
        file: BorrowedFd<'_>,
        data: Range<u64>,
        means: Means<'_>,
        part: &mut Part,
        sink: Sink<'_>,
    ) -> Result<u64, Broken> {
        let chunker = means.volume.chunker();
        // Of the window, what lies before `taken` is in blobs; it begins at `start` of the file.
        let (mut taken, mut start) = (0, data.start);
        let mut filled = start + self.window.len() as u64;
        let mut is_over = filled >= data.end;
        loop {
            while !is_over && self.window.len() - taken < chunker.max_len(start + taken as u64) {
                if taken > 0 {
                    self.window.drain(..taken);
                    start += taken as u64;
                    taken = 0;
                }
                let step = usize::try_from(data.end - filled).unwrap_or(STEP).min(STEP);
                let count = self.fill(file, filled, step, means)?;
                filled += count as u64;
                is_over = count == 0 || filled >= data.end;
            }
            let rest = self.window.get(taken..).unwrap_or_default();
            let at = start + taken as u64;
            let Some(len) = chunker.cut(at, rest, is_over) else {
                return Ok(at);
            };
            let plain = rest.get(..len).unwrap_or_default();
            let brought = means.volume.bring(plain, &mut self.scratch)?;
            if brought.is_new {
                self.stored_bytes += u64::from(brought.placed.location.stored_len);
            }
            part.add(at, len, &brought.placed);
            taken += len;
            if part.extents.len() >= PART_EXTENTS {
                part.hand_on(at + len as u64, sink)?;
            }
        }
    }

    /// Appends up to `step` bytes to the window; 0 at the end of the file.
    fn fill(
        &mut self,
        file: BorrowedFd<'_>,
        at: u64,
        step: usize,
        means: Means<'_>,
    ) -> Result<usize, Broken> {
        if (means.stopped)() {
            return Err(Broken::Stopped);
        }
        means.throttle.before(step as u64, means.stopped);
        let len = self.window.len();
        self.window.resize(len + step, 0);
        let asked = Instant::now();
        let count = loop {
            let target = self.window.get_mut(len..).unwrap_or_default();
            match rustix::io::pread(file, target, at) {
                Err(Errno::INTR) => {}
                outcome => break outcome,
            }
        };
        means.throttle.answered(asked.elapsed());
        self.window.truncate(len + count.unwrap_or(0));
        let count = count?;
        self.read_bytes += count as u64;
        Ok(count)
    }
}

/// Extents that are not handed on yet, and where they begin.
#[derive(Default)]
struct Part {
    start: u64,
    extents: Vec<Extent>,
}

impl Part {
    fn add(&mut self, start: u64, len: usize, placed: &crate::ingest::Placed) {
        self.extents.push(Extent {
            start,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            blob: placed.blob,
            blob_offset: 0,
            location: placed.location,
        });
    }

    fn hand_on(&mut self, end: u64, sink: Sink<'_>) -> Result<(), Broken> {
        if end > self.start {
            sink(self.start..end, std::mem::take(&mut self.extents))?;
            self.start = end;
        }
        Ok(())
    }
}

/// The next range of data at or after `at`; `None` if only a hole follows.
fn next_data(file: BorrowedFd<'_>, at: u64, size: u64) -> Result<Option<Range<u64>>, Broken> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // No such seeking here: all of it is data.
        Err(Errno::INVAL) => return Ok(Some(at..size)),
        Err(errno) => return Err(errno.into()),
    };
    if start >= size {
        return Ok(None);
    }
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
    // A file that changes under us must not hold us up.
    Ok(Some(start..end.max(start + 1).min(size)))
}

/// Whether its first page is in the page cache: then it is somebody's, and we leave it there.
fn is_cached(file: BorrowedFd<'_>) -> bool {
    let mut byte = [0];
    let mut target = [io::IoSliceMut::new(&mut byte)];
    matches!(
        rustix::io::preadv2(file, &mut target, 0, ReadWriteFlags::NOWAIT),
        Ok(1..)
    )
}
