//! One tree's blobs, from the nearest place: memory, local packs, the external volume.
//!
//! What comes from the external volume comes in ranges: the missing records of one read together, and more of
//! the pack ahead of reads that follow each other. A range is asked for once, whoever needs it, and what is in
//! it stays: in the holes of the local pack, else (no backup path, no room) in memory. Every record is checked
//! before it is kept and again before it is served.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use crossbeam_channel::Sender;

use super::cache::BlobCache;
use super::external::ExternalPacks;
use super::flights::{Flights, Lead, Outcome, Turn};
use super::maps::Maps;
use super::streams::{RANGE_LEN_MAX, Streams, Wanted};
use super::{ReadPlan, assemble, part_of};
use crate::error::{Error, Result};
use crate::format::inode::Extent;
use crate::format::pack::{BLOCK_LEN, IndexEntry, RecordHeader, pad_mark, record_len};
use crate::pack::read::{PackIndex, RecordRead, is_record, parse_record, record_read_len};
use crate::pack::refill::Fetched;
use crate::pack::store::PackStore;
use crate::types::{BlobHash, BlobLocation, PackId};

/// Missing records of one read are fetched together if at most this is between them.
const GAP_MAX: u32 = 64 << 10;
/// What a read alone fetches begins and ends near multiples of this, if that adds whole records.
const ALIGN_LEN: u32 = 64 << 10;

/// Something to fetch before it is asked for.
#[derive(Debug)]
pub(super) enum Ahead {
    /// What a sequence of reads will need, where it is not here yet.
    Window(Wanted),
    /// A range that a read is about to need, which begins with this record.
    Range(Wanted, BlobHash, BlobLocation),
}

/// Where a tree's blobs come from.
#[derive(Debug)]
pub(super) struct Reader {
    cache: BlobCache,
    local: Option<Arc<PackStore>>,
    external: Mutex<Option<Arc<ExternalPacks>>>,
    flights: Flights,
    streams: Streams,
    maps: Maps,
    /// The read cache on disk refused a write, which was said once.
    is_fill_failing: AtomicBool,
}

/// A range that arrived and is not put away yet; until then it is served from here.
#[derive(Debug)]
pub(super) struct Arrived<'a> {
    pack: PackId,
    start: u32,
    bytes: Bytes,
    _lead: Lead<'a>,
}

/// The bytes of a record in its pack.
fn span_of(location: &BlobLocation) -> Range<u32> {
    let len = u32::try_from(record_read_len(location)).unwrap_or(u32::MAX);
    location.offset..location.offset.saturating_add(len)
}

impl Reader {
    pub(super) fn new(cache_len_max: usize, local: Option<Arc<PackStore>>) -> Reader {
        Reader {
            cache: BlobCache::new(cache_len_max),
            local,
            external: Mutex::new(None),
            flights: Flights::default(),
            streams: Streams::default(),
            maps: Maps::default(),
            is_fill_failing: AtomicBool::new(false),
        }
    }

    pub(super) fn set_external(&self, external: Option<Arc<ExternalPacks>>) {
        *self.external.lock().unwrap_or_else(PoisonError::into_inner) = external;
    }

    /// The blob, if somebody was quicker to fetch it since it was not here.
    fn blob_since(&self, blob: BlobHash, location: &BlobLocation) -> Result<Option<Bytes>> {
        if let Some(local) = &self.local
            && local.is_evicted(location.pack)
        {
            return self.blob_here(blob, location);
        }
        Ok(self.cache.get(&blob))
    }

    pub(super) fn external(&self) -> Option<Arc<ExternalPacks>> {
        self.external
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The blob, if no external volume is needed for it.
    fn blob_here(&self, blob: BlobHash, location: &BlobLocation) -> Result<Option<Bytes>> {
        if let Some(bytes) = self.cache.get(&blob) {
            return Ok(Some(bytes));
        }
        let Some(local) = &self.local else {
            return Ok(None);
        };
        match local.read(blob, location) {
            Ok(RecordRead::Plain(bytes)) => {
                self.cache.put(blob, bytes.clone());
                Ok(Some(bytes))
            }
            Ok(RecordRead::Absent) => Ok(None),
            // The copy here is damaged: the one on the external volume may not be.
            Err(error @ Error::Corrupt { .. }) if self.external().is_some() => {
                if local.is_evicted(location.pack) {
                    // Torn by a crash, or being written just now: a cache, and no loss.
                    tracing::debug!(error = %error.chain(), "a record of the read cache is fetched again");
                } else {
                    tracing::error!(error = %error.chain(), "a local pack is damaged, reading the external copy");
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What `plan` says, if no external volume is needed for it.
    pub(super) fn read_here(
        &self,
        plan: &ReadPlan,
        ahead: &Sender<Ahead>,
    ) -> Result<Option<Bytes>> {
        let mut parts = Vec::with_capacity(plan.extents.len());
        for extent in &plan.extents {
            match self.blob_here(extent.blob, &extent.location)? {
                Some(bytes) => parts.push(part_of(extent, bytes)?),
                None => return Ok(None),
            }
        }
        self.note_read(plan, false, ahead);
        Ok(Some(assemble(plan, parts)))
    }

    fn note_read(&self, plan: &ReadPlan, missed: bool, ahead: &Sender<Ahead>) {
        let locations = plan.extents.iter().map(|extent| &extent.location);
        self.streams.read(locations, missed, &mut |wanted| {
            ahead.try_send(Ahead::Window(wanted)).is_ok()
        });
    }

    /// What `plan` says; waits. The second part is what came for it, to be kept once the reader has its answer.
    pub(super) fn read(
        &self,
        plan: &ReadPlan,
        ahead: &Sender<Ahead>,
    ) -> (Result<Bytes>, Vec<Arrived<'_>>) {
        let mut arrived = Vec::new();
        let answer = self.read_into(plan, ahead, &mut arrived);
        (answer, arrived)
    }

    fn read_into<'a>(
        &'a self,
        plan: &ReadPlan,
        ahead: &Sender<Ahead>,
        arrived: &mut Vec<Arrived<'a>>,
    ) -> Result<Bytes> {
        let mut here = Vec::with_capacity(plan.extents.len());
        for extent in &plan.extents {
            here.push(self.blob_here(extent.blob, &extent.location)?);
        }
        let missing = plan.extents.iter().zip(&here);
        let missing = missing.filter(|(_, found)| found.is_none());
        let ranges = ranges(missing.map(|(extent, _)| extent));
        // The first is fetched by this thread. Too many at once for the others wait for their turn here.
        for (range, first) in ranges.iter().skip(1) {
            let range = Ahead::Range(range.clone(), first.blob, first.location);
            let _ = ahead.try_send(range);
        }
        self.note_read(plan, !ranges.is_empty(), ahead);
        let mut parts = Vec::with_capacity(plan.extents.len());
        for (extent, found) in plan.extents.iter().zip(here) {
            let bytes = match found {
                Some(bytes) => bytes,
                None => self.fetch(extent.blob, &extent.location, &ranges, arrived)?,
            };
            parts.push(part_of(extent, bytes)?);
        }
        Ok(assemble(plan, parts))
    }

    /// One blob, wherever it is; waits.
    pub(super) fn blob(&self, blob: BlobHash, location: &BlobLocation) -> Result<Bytes> {
        if let Some(bytes) = self.blob_here(blob, location)? {
            return Ok(bytes);
        }
        let mut arrived = Vec::new();
        let bytes = self.fetch(blob, location, &[], &mut arrived);
        for arrived in arrived {
            self.keep(arrived);
        }
        bytes
    }

    fn fetch<'a>(
        &'a self,
        blob: BlobHash,
        location: &BlobLocation,
        ranges: &[(Wanted, &Extent)],
        arrived: &mut Vec<Arrived<'a>>,
    ) -> Result<Bytes> {
        let external = self.external().ok_or_else(|| {
            let object = location.pack.object_name();
            Error::corrupt(
                object,
                u64::from(location.offset),
                format!("blob {blob} is not in the local pack, and no external volume is set"),
            )
        })?;
        let (pack, needed) = (location.pack, span_of(location));
        let planned = ranges.iter().map(|(wanted, _)| wanted).find(|wanted| {
            let range = &wanted.range;
            wanted.pack == pack && range.start <= needed.start && needed.end <= range.end
        });
        let wanted = planned.map_or_else(|| needed.clone(), |wanted| wanted.range.clone());
        let name = || pack.object_name();
        match self
            .flights
            .begin(pack, &needed, self.widened(pack, wanted))
        {
            Turn::Follow(flight) => match flight.wait(&needed) {
                Outcome::Arrived(bytes) => {
                    if let Ok(RecordRead::Plain(bytes)) =
                        parse_record(&name(), bytes, location, blob)
                    {
                        let bytes = Bytes::copy_from_slice(&bytes);
                        self.cache.put(blob, bytes.clone());
                        return Ok(bytes);
                    }
                }
                Outcome::Unreachable => return Err(external.is_away(pack).into()),
                Outcome::Failed => {}
            },
            Turn::Lead(lead) => {
                if let Some(bytes) = self.blob_since(blob, location)? {
                    return Ok(bytes);
                }
                let wanted = lead.range();
                match external.get(pack, &wanted) {
                    Ok(bytes) => {
                        lead.arrived(bytes.clone());
                        let from = (needed.start - wanted.start) as usize;
                        let record = bytes.slice(from..from + needed.len());
                        arrived.push(Arrived {
                            pack,
                            start: wanted.start,
                            bytes,
                            _lead: lead,
                        });
                        if let Ok(RecordRead::Plain(plain)) =
                            parse_record(&name(), record, location, blob)
                        {
                            // A part of the range would keep all of it in memory.
                            let plain = Bytes::copy_from_slice(&plain);
                            self.cache.put(blob, plain.clone());
                            return Ok(plain);
                        }
                    }
                    Err(error) => {
                        lead.failed(&error);
                        if error.is_unreachable() || wanted == needed {
                            return Err(error.into());
                        }
                    }
                }
            }
        }
        self.fetch_alone(&external, blob, location)
    }

    /// Just this record: after a range that should have had it did not give it.
    fn fetch_alone(
        &self,
        external: &ExternalPacks,
        blob: BlobHash,
        location: &BlobLocation,
    ) -> Result<Bytes> {
        if let Some(bytes) = self.blob_since(blob, location)? {
            return Ok(bytes);
        }
        let name = location.pack.object_name();
        let bytes = external.get(location.pack, &span_of(location))?;
        match parse_record(&name, bytes, location, blob)? {
            RecordRead::Plain(bytes) => {
                self.cache.put(blob, bytes.clone());
                Ok(bytes)
            }
            RecordRead::Absent => Err(Error::corrupt(
                name,
                u64::from(location.offset),
                format!("blob {blob} is not there: zeros are"),
            )),
        }
    }

    /// A short range with the whole records around it, where a local index tells where they are.
    fn widened(&self, pack: PackId, range: Range<u32>) -> Range<u32> {
        let Some(local) = &self.local else {
            return range;
        };
        if range.len() >= ALIGN_LEN as usize || !local.is_evicted(pack) {
            return range;
        }
        let Ok(Some(index)) = self.local_index(local, pack) else {
            return range;
        };
        let from = range.start - range.start % ALIGN_LEN;
        let to = range.end.next_multiple_of(ALIGN_LEN);
        let mut wide = range;
        for entry in index.entries_in(from..to) {
            let span = span_of(&entry.location(pack));
            if span.end <= to {
                wide = wide.start.min(span.start)..wide.end.max(span.end);
            }
        }
        wide
    }

    fn local_index(&self, local: &PackStore, pack: PackId) -> Result<Option<Arc<PackIndex>>> {
        self.maps.get(pack, || local.index(pack))
    }

    fn index(&self, external: &ExternalPacks, pack: PackId) -> Result<Option<Arc<PackIndex>>> {
        self.maps.get(pack, || match &self.local {
            None => external.index(pack),
            Some(local) => match local.index(pack) {
                // The external volume has nothing that the ledger does not know.
                Ok(index) => Ok(index),
                Err(Error::Corrupt { .. }) => external.index(pack),
                Err(error) => Err(error),
            },
        })
    }

    fn seems_here(&self, blob: &BlobHash, location: &BlobLocation) -> bool {
        let local = self.local.as_ref();
        self.cache.contains(blob) || local.is_some_and(|local| local.seems_here(location))
    }

    /// Fetches what was asked for before it is needed. A failure ends the sequence: the next read of it says why.
    pub(super) fn fetch_ahead(&self, ahead: Ahead) {
        let Some(external) = self.external() else {
            return;
        };
        let _place = external.place();
        let wanted = match ahead {
            Ahead::Range(wanted, blob, location) => {
                (!self.seems_here(&blob, &location)).then_some(wanted)
            }
            Ahead::Window(wanted) => match self.missing_in(&external, &wanted) {
                Ok(missing) => missing,
                Err(error) => {
                    tracing::debug!(error = %error.chain(), "no read-ahead");
                    self.streams.forget(wanted.pack);
                    None
                }
            },
        };
        let Some(Wanted { pack, range }) = wanted else {
            return;
        };
        let Turn::Lead(lead) = self.flights.begin(pack, &range, range.clone()) else {
            return;
        };
        match external.get(pack, &range) {
            Ok(bytes) => {
                lead.arrived(bytes.clone());
                self.keep(Arrived {
                    pack,
                    start: range.start,
                    bytes,
                    _lead: lead,
                });
            }
            Err(error) => {
                lead.failed(&error);
                tracing::debug!(error = %error.chain(), "no read-ahead");
                self.streams.forget(pack);
            }
        }
    }

    /// The part of a window that is neither here nor on its way.
    fn missing_in(&self, external: &ExternalPacks, window: &Wanted) -> Result<Option<Wanted>> {
        let pack = window.pack;
        let Some(index) = self.index(external, pack)? else {
            self.streams.forget(pack);
            return Ok(None);
        };
        let end = index.entries.last().map_or(index.offset, IndexEntry::end);
        self.streams.ends_at(pack, end);
        let entries = index.entries_in(window.range.clone()).iter();
        let mut missing = entries.filter_map(|entry| {
            let location = entry.location(pack);
            let span = span_of(&location);
            let is_coming = self.flights.covers(pack, &span);
            (!is_coming && !self.seems_here(&entry.hash, &location)).then_some(span)
        });
        let first = missing.next();
        Ok(first.map(|first| {
            let range = missing.fold(first, |all, next| all.start..next.end);
            Wanted { pack, range }
        }))
    }

    /// Puts what arrived where the next reader finds it.
    pub(super) fn keep(&self, arrived: Arrived<'_>) {
        let records = records(arrived.pack, arrived.start, &arrived.bytes);
        if self.fill(arrived.pack, &records) {
            return;
        }
        let name = arrived.pack.object_name();
        for record in records {
            if !self.cache.contains(&record.blob)
                && let Ok(RecordRead::Plain(plain)) =
                    parse_record(&name, record.bytes, &record.location, record.blob)
            {
                // A part of the range would keep all of it in memory.
                self.cache.put(record.blob, Bytes::copy_from_slice(&plain));
            }
        }
    }

    /// Puts records into the read cache on disk. A failure costs only that they are fetched again.
    fn fill(&self, pack: PackId, records: &[Fetched]) -> bool {
        let Some(local) = self.local.as_ref().filter(|local| local.is_evicted(pack)) else {
            return false;
        };
        let filled = match self.local_index(local, pack) {
            Ok(Some(index)) => local.read_cache().fill(pack, &index, records),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        match filled {
            Ok(filled) => {
                self.is_fill_failing.fetch_and(!filled, Ordering::Relaxed);
                filled
            }
            Err(error) => {
                if !self.is_fill_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(error = %error.chain(), "what was fetched is not kept on the local disk");
                }
                false
            }
        }
    }
}

/// The records of these extents as ranges to be fetched at once, each with the extent of its first record.
fn ranges<'a>(missing: impl Iterator<Item = &'a Extent>) -> Vec<(Wanted, &'a Extent)> {
    let mut missing: Vec<&Extent> = missing.collect();
    missing.sort_by_key(|extent| (extent.location.pack, extent.location.offset));
    let mut ranges: Vec<(Wanted, &Extent)> = Vec::new();
    for extent in missing {
        let (pack, span) = (extent.location.pack, span_of(&extent.location));
        if let Some((last, _)) = ranges.last_mut()
            && last.pack == pack
            && span.start <= last.range.end.saturating_add(GAP_MAX)
            && span.end.saturating_sub(last.range.start) <= RANGE_LEN_MAX
        {
            last.range.end = last.range.end.max(span.end);
            continue;
        }
        ranges.push((Wanted { pack, range: span }, extent));
    }
    ranges
}

/// The whole records in `bytes`, which begin with one at `start` of the pack.
fn records(pack: PackId, start: u32, bytes: &Bytes) -> Vec<Fetched> {
    let mut records = Vec::new();
    let mut at = 0_usize;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let Some(offset) = u32::try_from(at).ok().and_then(|at| start.checked_add(at)) else {
            break;
        };
        if rest.starts_with(&pad_mark(pack, offset)) && !offset.is_multiple_of(BLOCK_LEN) {
            at += (BLOCK_LEN - offset % BLOCK_LEN) as usize;
            continue;
        }
        let Ok(header) = RecordHeader::decode(pack, offset, rest) else {
            break;
        };
        let location = BlobLocation {
            pack,
            offset,
            stored_len: header.stored_len,
            plain_len: header.plain_len,
        };
        let Some(record) = rest.get(..record_read_len(&location)) else {
            break;
        };
        if is_record(record, &location, header.hash) {
            records.push(Fetched {
                location,
                blob: header.hash,
                bytes: bytes.slice_ref(record),
            });
        }
        at += record_len(header.stored_len) as usize;
    }
    records
}
