//! An open segment: footer and block index in memory, everything else read when it is asked for.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::Damage;
use super::block::{BLOCK_LEN_MAX, BadEntry, Block, Entries};
use super::cache::BlockCache;
use super::footer::{self, FOOTER_LEN_MAX, Footer, Layout, SEGMENT_LEN_MIN, SegmentSummary};
use super::frame::{self, Kind};
use super::index::{Index, Place, index_len_max};
use super::name::SegmentName;
use super::scope::VERSION;
use super::source::RangeRead;
use crate::error::{Error, Result};
use crate::format::bloom::{FILTER_LEN_MAX, Filter};
use crate::types::Epoch;

/// What is read at once from the end of a segment: footer, and most often index and filter too.
const TAIL_LEN: usize = 64 << 10;
const _: () = assert!(FOOTER_LEN_MAX <= TAIL_LEN);
/// How much a scan reads at once unless told otherwise.
const READ_AHEAD_LEN: usize = 256 << 10;

/// The newest entry of a key that is old enough.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// When it was written.
    pub epoch: Epoch,
    /// Its value; nothing for a tombstone.
    pub value: Option<Bytes>,
}

/// An open segment.
#[derive(Debug)]
pub struct Segment {
    source: Arc<dyn RangeRead>,
    name: String,
    cache: Arc<BlockCache>,
    /// Its number in the cache.
    number: u64,
    summary: SegmentSummary,
    layout: Layout,
    salt: u32,
    index: Index,
    /// Read at the first look-up of a key. Nothing inside if it is damaged: it is then done without.
    filter: OnceLock<Option<Filter>>,
    read_ahead_len: usize,
}

/// The end of the file, in memory while it is opened.
struct Tail<'a> {
    source: &'a dyn RangeRead,
    offset: u64,
    bytes: Bytes,
}

impl Tail<'_> {
    fn holds(&self, offset: u64) -> bool {
        offset >= self.offset
    }

    /// The bytes from `offset` to `end`, which the caller has checked to be within the file.
    fn get(&self, offset: u64, end: u64) -> Result<Bytes> {
        let len = range_len(offset, end).unwrap_or(usize::MAX);
        let held = offset.checked_sub(self.offset);
        let held = held.and_then(|start| usize::try_from(start).ok());
        let held = held.and_then(|start| self.bytes.get(start..)?.get(..len));
        match held {
            Some(bytes) => Ok(self.bytes.slice_ref(bytes)),
            None => read_exact(self.source, offset, len),
        }
    }
}

fn range_len(offset: u64, end: u64) -> Option<usize> {
    usize::try_from(end.checked_sub(offset)?).ok()
}

/// Every read is length-verified, whatever the source says of itself.
fn read_exact(source: &dyn RangeRead, offset: u64, len: usize) -> Result<Bytes> {
    let bytes = source.read_at(offset, len)?;
    if bytes.len() != len {
        let reason = format!("{} bytes were read where {len} should be", bytes.len());
        return Err(Error::corrupt(source.name(), offset, reason));
    }
    Ok(bytes)
}

impl Segment {
    /// Opens a segment: one read of its end, and a second if its index is large.
    pub fn open(source: Arc<dyn RangeRead>, cache: Arc<BlockCache>) -> Result<Segment> {
        let name = source.name();
        let file_len = source.len()?;
        if file_len < SEGMENT_LEN_MIN {
            let reason = "the file is too short for a segment";
            return Err(Error::corrupt(name, file_len, reason));
        }
        let tail_len = usize::try_from(file_len).map_or(TAIL_LEN, |len| len.min(TAIL_LEN));
        let tail_at = file_len - tail_len as u64;
        let tail = Tail {
            source: &*source,
            offset: tail_at,
            bytes: read_exact(&*source, tail_at, tail_len)?,
        };
        let footer = footer::decode(&tail.bytes, file_len).map_err(|damage| damage.of(&name))?;
        check_readable(&name, &footer)?;
        let Footer {
            summary, layout, ..
        } = footer;
        let salt = summary.scope().frame_salt();
        let index = read_index(&tail, layout, salt, summary.first).map_err(named(&name))?;
        let filter = OnceLock::new();
        if tail.holds(layout.filter_at) {
            let frame = tail.get(layout.filter_at, layout.index_at)?;
            let _ = filter.set(decode_filter(&frame, &name, layout, salt));
        }
        let number = cache.next_segment();
        let segment = Segment {
            source: source.clone(),
            name,
            cache,
            number,
            summary,
            layout,
            salt,
            index,
            filter,
            read_ahead_len: READ_AHEAD_LEN,
        };
        if tail.offset == 0 {
            segment.keep_blocks(&tail);
        }
        Ok(segment)
    }

    /// A small segment is in memory by now: far away, its first look-up need not read it again.
    fn keep_blocks(&self, whole: &Tail<'_>) {
        for number in 0..self.index.blocks() {
            let kept = || {
                let place = self.place(number)?;
                let frame = whole.get(place.offset, place.end())?;
                self.decode_block(&frame, place.offset)
            };
            // Damage is for whoever asks for the block.
            if let Ok(block) = kept() {
                self.cache.insert(self.cache_key(number), block);
            }
        }
    }

    /// Lets scans read up to `len` bytes at once: more for a source that is far away.
    pub fn with_read_ahead(mut self, len: usize) -> Segment {
        self.read_ahead_len = len;
        self
    }

    /// What the footer says.
    pub fn summary(&self) -> &SegmentSummary {
        &self.summary
    }

    /// What errors call it.
    pub fn source_name(&self) -> &str {
        &self.name
    }

    /// Bytes of memory it holds beside the shared cache.
    pub fn memory_len(&self) -> usize {
        let filter = self.filter.get().and_then(Option::as_ref);
        self.index.memory_len() + filter.map_or(0, Filter::memory_len)
    }

    /// The newest entry of `key` that is not newer than `at`.
    pub fn get(&self, key: &[u8], at: Epoch) -> Result<Option<Found>> {
        if at < self.summary.first || !self.may_hold_key(key) || !self.passes_filter(key)? {
            return Ok(None);
        }
        let number = self.index.find(key, at);
        if number >= self.index.blocks() {
            return Ok(None);
        }
        let mut entries = Entries::new(self.block(number)?);
        let found = entries
            .seek(key, at)
            .map_err(|bad| self.bad(number, &bad))?;
        Ok((found && entries.key() == key).then(|| Found {
            epoch: entries.epoch(),
            value: entries.value(),
        }))
    }

    fn may_hold_key(&self, key: &[u8]) -> bool {
        key >= &*self.summary.smallest && key <= &*self.summary.largest
    }

    fn passes_filter(&self, key: &[u8]) -> Result<bool> {
        let filter = if let Some(filter) = self.filter.get() {
            filter
        } else {
            let frame = self.read(self.filter_place())?;
            let filter = decode_filter(&frame, &self.name, self.layout, self.salt);
            // Two threads may read it at once; both read the same.
            self.filter.get_or_init(|| filter)
        };
        Ok(filter.as_ref().is_none_or(|filter| filter.may_contain(key)))
    }

    pub(super) fn filter_place(&self) -> Place {
        let offset = self.layout.filter_at;
        let len = self.layout.index_at - offset;
        Place { offset, len }
    }

    /// The filter's frame must decode; for `verify`, which does not let it pass.
    pub(super) fn checked_filter(&self) -> Result<Filter> {
        let frame = self.read(self.filter_place())?;
        let decoded = try_decode_filter(&frame, self.layout, self.salt);
        decoded.map_err(|damage| damage.of(&self.name))
    }

    pub(super) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn read_ahead_len(&self) -> usize {
        self.read_ahead_len
    }

    /// What the cache calls block `number`.
    pub(super) fn cache_key(&self, number: usize) -> (u64, u64) {
        (self.number, number as u64)
    }

    pub(super) fn read(&self, place: Place) -> Result<Bytes> {
        let len = range_len(place.offset, place.end()).unwrap_or(usize::MAX);
        read_exact(&*self.source, place.offset, len)
    }

    /// Decodes the frame of a block that was read at `offset`.
    pub(super) fn decode_block(&self, frame: &[u8], offset: u64) -> Result<Arc<Block>> {
        let decode = || {
            let plain = frame::decode(frame, Kind::Block, self.salt, offset, BLOCK_LEN_MAX)?;
            let block = Block::decode(plain, self.summary.first);
            block.map_err(|reason| Damage::new(offset, reason))
        };
        let block = decode().map_err(|damage| damage.of(&self.name))?;
        Ok(Arc::new(block))
    }

    fn block(&self, number: usize) -> Result<Arc<Block>> {
        if let Some(block) = self.cache.get(self.cache_key(number)) {
            return Ok(block);
        }
        let place = self.place(number)?;
        let block = self.decode_block(&self.read(place)?, place.offset)?;
        self.cache.insert(self.cache_key(number), block.clone());
        Ok(block)
    }

    pub(super) fn place(&self, number: usize) -> Result<Place> {
        self.index.place(number).ok_or_else(|| {
            let reason = format!("there is no block {number}");
            Error::corrupt(&self.name, self.layout.index_at, reason)
        })
    }

    /// The error for an entry of block `number` that does not decode.
    pub(super) fn bad(&self, number: usize, bad: &BadEntry) -> Error {
        let offset = self.index.place(number).map_or(0, |place| place.offset);
        let reason = format!("the entry at byte {} of this block is not valid", bad.0);
        Error::corrupt(&self.name, offset, reason)
    }
}

/// Refuses what is whole but not for us, and what lies under another's name.
fn check_readable(name: &str, footer: &Footer) -> Result<()> {
    if footer.version != VERSION || footer.flags != 0 {
        return Err(Error::Refused(format!(
            "{name} is a segment of format version {}.{}, and this program reads version {VERSION}.0: use a newer one",
            footer.version, footer.flags
        )));
    }
    if footer.key_id != 0 {
        return Err(Error::Refused(format!(
            "{name} is encrypted with key {}, and this program knows no keys: use a newer one",
            footer.key_id
        )));
    }
    let file_name = name.rsplit('/').next().unwrap_or(name);
    let differs = SegmentName::parse_file_name(file_name)
        .is_some_and(|stated| stated != footer.summary.name());
    if differs {
        let reason = format!("its footer says that it is {}", footer.summary.name());
        return Err(Error::corrupt(name, footer.layout.footer_at, reason));
    }
    Ok(())
}

/// Either kind of trouble while a part is read.
enum Trouble {
    Failed(Error),
    Damaged(Damage),
}

fn named(name: &str) -> impl FnOnce(Trouble) -> Error + '_ {
    move |trouble| match trouble {
        Trouble::Failed(error) => error,
        Trouble::Damaged(damage) => damage.of(name),
    }
}

fn read_index(tail: &Tail<'_>, layout: Layout, salt: u32, first: Epoch) -> Result<Index, Trouble> {
    let at = layout.index_at;
    let frame = tail.get(at, layout.footer_at).map_err(Trouble::Failed)?;
    let plain_len_max = index_len_max(layout.blocks, layout.filter_at);
    let plain = frame::decode(&frame, Kind::Index, salt, at, plain_len_max);
    let plain = plain.map_err(Trouble::Damaged)?;
    Index::decode(plain, first, layout.blocks, layout.filter_at).ok_or_else(|| {
        let reason = "the block index contradicts itself or the footer";
        Trouble::Damaged(Damage::new(at, reason))
    })
}

fn try_decode_filter(frame: &[u8], layout: Layout, salt: u32) -> Result<Filter, Damage> {
    let at = layout.filter_at;
    let plain = frame::decode(frame, Kind::Filter, salt, at, FILTER_LEN_MAX)?;
    Filter::decode(&plain).ok_or_else(|| Damage::new(at, "the filter contradicts itself"))
}

/// A filter only saves time: a damaged one is reported, and everything is still found without it.
fn decode_filter(frame: &[u8], name: &str, layout: Layout, salt: u32) -> Option<Filter> {
    match try_decode_filter(frame, layout, salt) {
        Ok(filter) => Some(filter),
        Err(damage) => {
            let error = damage.of(name);
            tracing::warn!(%error, "the filter of a segment cannot be used: look-ups in it are slower");
            None
        }
    }
}
