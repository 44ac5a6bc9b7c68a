//! Closed epochs become segments and epoch records, and enter the index.
//!
//! One thread, in this order for each epoch, each step durable before the next (invariants 2 and 4):
//! segment, merged neighbours, epoch record, index, and only then is the journal's file dropped.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::failpoint;
use crate::format::keys::Changes;
use crate::format::record::{EpochRecord, FORMAT, SegmentEntry};
use crate::format::segment::{
    BlockCache, FileSource, Segment, SegmentName, SegmentScope, SegmentSummary, SegmentWriter,
};
use crate::meta::view::{View, merge_segments};
use crate::types::{Epoch, Lsn, PackId, SessionId, Uuid};
use crate::upload::{LocalEpochs, PackGate, WaitingEpoch};
use crate::volume::live::free_bytes;
use crate::volume::lost;
use crate::volume::settings::{rewrite, sync_dir};
use crate::volume::waiting::Waiting;

/// Name of the directory of segments.
pub const SEGMENTS_DIR: &str = "accounts";

/// Neighbouring segments of one size class that are merged into one.
const TIER_COUNT: usize = 8;
/// Upper bound of the smallest size class; each further one is [`TIER_COUNT`] times as large.
const TIER_LEN_FIRST: u64 = 64 << 10;

/// An epoch that was closed, with everything its segment needs.
#[derive(Debug)]
pub struct ClosedEpoch {
    /// Its number.
    pub epoch: Epoch,
    /// When it was closed.
    pub time: i64,
    /// Its changes.
    pub changes: Arc<Changes>,
    /// Number of its last journal frame.
    pub lsn: Lsn,
    /// The newest pack it may refer to; `None` when the packs of earlier sessions are all it needs.
    pub last_pack: Option<PackId>,
    /// Packs that were sealed since the epoch before, all of whose blobs are committed.
    pub sealed: Vec<PackId>,
}

/// The newest epoch that is whole on the local disk, and what it consists of.
#[derive(Clone, Debug)]
pub struct Archived {
    /// Its record; the empty volume has none.
    pub record: Option<EpochRecord>,
    /// Its segments.
    pub view: View,
    /// The newest pack it may refer to.
    pub last_pack: Option<PackId>,
}

/// The segments and epoch records of a backup path.
#[derive(Debug)]
pub struct Archive {
    root: PathBuf,
    volume: Uuid,
    session: SessionId,
    cache: Arc<BlockCache>,
    newest: Mutex<Archived>,
    waiting: Waiting,
}

impl Archive {
    /// Reads the newest record of the backup path `root` and opens its segments.
    pub fn open(
        root: &Path,
        volume: Uuid,
        session: SessionId,
        cache: Arc<BlockCache>,
    ) -> Result<Archive> {
        let record = newest_known_record(root)?;
        if let Some(record) = record
            .as_ref()
            .filter(|record| record.volume != volume.to_string())
        {
            let object = root.join(EpochRecord::name(record.epoch, session_of(record)?));
            return Err(Error::corrupt(
                object.display().to_string(),
                0,
                "it is another volume's record",
            ));
        }
        let mut segments = Vec::new();
        for entry in record.iter().flat_map(|record| &record.segments) {
            segments.push(open_segment(root, entry, &cache)?);
        }
        let at = record.as_ref().map_or(Epoch(0), |record| record.epoch);
        let newest = Archived {
            record,
            view: View::new(at, segments)?,
            last_pack: None,
        };
        Ok(Archive {
            root: root.to_owned(),
            volume,
            session,
            cache,
            newest: Mutex::new(newest),
            waiting: Waiting::default(),
        })
    }

    /// The epochs that wait for the external volume.
    pub fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// The newest epoch as one that may wait.
    fn newest_waiting(&self) -> Option<WaitingEpoch> {
        let newest = self.newest();
        let gate = PackGate {
            session: self.session,
            last_pack: newest.last_pack,
        };
        newest.record.map(|record| WaitingEpoch { record, gate })
    }

    /// The newest epoch that is whole here.
    pub fn newest(&self) -> Archived {
        self.newest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Writes the segment and the record of a closed epoch, merging where a tier is full. Returns the
    /// segments that no newer record names any more.
    pub fn close(&self, closed: &ClosedEpoch) -> Result<Vec<SegmentEntry>> {
        let before = self.newest();
        let scope = SegmentScope {
            volume: self.volume.0,
            session: self.session,
            first: closed.epoch,
            last: closed.epoch,
        };
        let written = self.write_segment(|out, path| {
            let mut writer = SegmentWriter::new(out, path, scope)?;
            for (key, value) in closed.changes.iter() {
                writer.add(key, closed.epoch, value.as_deref())?;
            }
            writer.finish()
        })?;
        let mut segments: Vec<SegmentEntry> = before
            .record
            .iter()
            .flat_map(|record| record.segments.clone())
            .collect();
        let mut open = before.view.segments().to_vec();
        segments.push(SegmentEntry::of(&written));
        open.push(self.reopen(segments.last())?);
        let mut replaced = Vec::new();
        while let Some(from) = full_tier(&segments) {
            let merged_len: u64 = segments.iter().skip(from).map(|entry| entry.len).sum();
            // Merging is for later reads: it never takes the room that commits need.
            if !self.has_room(merged_len) {
                break;
            }
            let inputs = open.split_off(from);
            let merged =
                self.write_segment(|out, path| merge_segments(&inputs, out, path, self.session))?;
            replaced.extend(segments.split_off(from));
            segments.push(SegmentEntry::of(&merged));
            open.push(self.reopen(segments.last())?);
        }
        let record = EpochRecord {
            format: FORMAT,
            volume: self.volume.to_string(),
            epoch: closed.epoch,
            session: self.session.to_string(),
            time: closed.time,
            parent: before
                .record
                .as_ref()
                .map(|parent| EpochRecord::hash(&parent.encode())),
            lsn: closed.lsn.0,
            segments,
            mac: None,
        };
        failpoint::hit(failpoint::AFTER_SEGMENT);
        rewrite(
            &self
                .root
                .join(EpochRecord::name(record.epoch, self.session)),
            &record.encode(),
        )?;
        let newest = Archived {
            view: View::new(record.epoch, open)?,
            record: Some(record),
            last_pack: closed.last_pack,
        };
        // Whoever may be sending the one before holds its segments.
        if let Some(before) = self.newest_waiting() {
            self.waiting.push(before);
        }
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = newest;
        Ok(replaced)
    }

    /// Removes local segments that no record needs: neither the newest, nor one that waits for the
    /// external volume. An open view keeps reading them.
    pub fn remove_segments(&self, replaced: Vec<SegmentEntry>) -> Result<()> {
        for entry in self.waiting.let_go(replaced) {
            self.remove_segment(&entry)?;
        }
        Ok(())
    }

    fn remove_segment(&self, entry: &SegmentEntry) -> Result<()> {
        let path = self.root.join(&entry.name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.map_err(Error::io("remove", &path)),
        }
    }

    /// Removes what a stop left: segments that were merged into one of the newest record's.
    pub fn sweep_merged(&self) -> Result<()> {
        // The newest first: what is written from here on is of a later epoch.
        let Some(record) = self.newest().record else {
            return Ok(());
        };
        let named: Vec<SegmentName> = record
            .segments
            .iter()
            .map(SegmentEntry::parsed_name)
            .collect::<Result<_>>()?;
        let dir = self.root.join(SEGMENTS_DIR);
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let entry = entry.map_err(Error::io("list", &dir))?;
            let file_name = entry.file_name();
            let Some(found) = file_name.to_str().and_then(SegmentName::parse_file_name) else {
                continue;
            };
            let is_merged = named
                .iter()
                .any(|name| *name != found && name.first <= found.first && found.last <= name.last);
            if is_merged && !self.waiting.needs(&found.to_string()) {
                tracing::debug!(segment = %found, "a merged segment was left by a stop");
                fs::remove_file(entry.path()).map_err(Error::io("remove", entry.path()))?;
            }
        }
        Ok(())
    }

    fn has_room(&self, len: u64) -> bool {
        // A disk that cannot be asked tells at the write.
        free_bytes(&self.root).map_or(true, |free| free / 2 > len)
    }

    fn reopen(&self, entry: Option<&SegmentEntry>) -> Result<Arc<Segment>> {
        let entry = entry.ok_or_else(|| Error::Refused("no segment was written".into()))?;
        open_segment(&self.root, entry, &self.cache)
    }

    /// Writes a segment under a temporary name, syncs it, and gives it its own.
    fn write_segment(
        &self,
        write: impl FnOnce(BufWriter<File>, &Path) -> Result<(SegmentSummary, BufWriter<File>)>,
    ) -> Result<SegmentSummary> {
        let dir = self.root.join(SEGMENTS_DIR);
        let temporary = dir.join(".new");
        let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        let (summary, out) = write(BufWriter::with_capacity(1 << 20, file), &temporary)?;
        let file = out
            .into_inner()
            .map_err(|error| Error::io("write", &temporary)(error.into_error()))?;
        file.sync_all().map_err(Error::io("sync", &temporary))?;
        let path = self.root.join(summary.name().to_string());
        fs::rename(&temporary, &path).map_err(Error::io("rename", &temporary))?;
        sync_dir(&dir)?;
        Ok(summary)
    }
}

impl LocalEpochs for Archive {
    fn waiting(&self) -> Vec<Arc<WaitingEpoch>> {
        self.waiting.lend(self.newest_waiting())
    }

    fn archived(&self, epoch: Epoch) {
        for entry in self.waiting.archived(epoch) {
            if let Err(error) = self.remove_segment(&entry) {
                // The next opening removes it.
                tracing::warn!(error = %error.chain(), "a merged segment stays");
            }
        }
    }
}

/// Opens a local segment and checks that it is the one the record means.
fn open_segment(
    root: &Path,
    entry: &SegmentEntry,
    cache: &Arc<BlockCache>,
) -> Result<Arc<Segment>> {
    let name = entry.parsed_name()?;
    let path = root.join(&entry.name);
    let segment = Segment::open(Arc::new(FileSource::open(&path)?), Arc::clone(cache))?;
    check_segment(&segment, &path.display().to_string(), entry, name)?;
    Ok(Arc::new(segment))
}

/// Compares a segment's own footer with what the record says of it.
pub fn check_segment(
    segment: &Segment,
    object: &str,
    entry: &SegmentEntry,
    name: crate::format::segment::SegmentName,
) -> Result<()> {
    let summary = segment.summary();
    if summary.name() == name && summary.len == entry.len {
        Ok(())
    } else {
        Err(Error::corrupt(
            object,
            0,
            "its footer is not the one the epoch record names",
        ))
    }
}

fn session_of(record: &EpochRecord) -> Result<SessionId> {
    SessionId::parse(&record.session)
        .ok_or_else(|| Error::corrupt("an epoch record", 0, "its session is not in the format"))
}

/// The newest epoch record below `root`; refused if a newer one was there once.
fn newest_known_record(root: &Path) -> Result<Option<EpochRecord>> {
    let mut record = newest_local_record(root)?;
    loop {
        let newest = record.as_ref().map_or(Epoch(0), |record| record.epoch);
        let Some(trace) = lost::trace_of_lost_record(root, newest)? else {
            return Ok(record);
        };
        // Whoever looks without the lock may have seen a segment before its record.
        let again = newest_local_record(root)?;
        if again.as_ref().map_or(Epoch(0), |record| record.epoch) == newest {
            return Err(lost::lost_record(root, newest, &trace));
        }
        record = again;
    }
}

/// The newest epoch record below `root` that is there.
pub fn newest_local_record(root: &Path) -> Result<Option<EpochRecord>> {
    let dir = root.join(crate::format::record::EPOCHS_PREFIX);
    let mut newest: Option<(Epoch, SessionId)> = None;
    for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
        let entry = entry.map_err(Error::io("list", &dir))?;
        let name = format!(
            "{}{}",
            crate::format::record::EPOCHS_PREFIX,
            entry.file_name().to_string_lossy()
        );
        if let Some(found) = EpochRecord::parse_name(&name) {
            newest = newest.max(Some(found));
        }
    }
    let Some((epoch, session)) = newest else {
        return Ok(None);
    };
    let name = EpochRecord::name(epoch, session);
    let path = root.join(&name);
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    EpochRecord::parse(&name, &bytes)
        .map(Some)
        .map_err(|error| match error {
            Error::Corrupt { offset, reason, .. } => {
                Error::corrupt(path.display().to_string(), offset, reason)
            }
            other => other,
        })
}

/// Where the last full tier begins: the newest segments, as many as a tier holds, none larger than it.
fn full_tier(segments: &[SegmentEntry]) -> Option<usize> {
    let from = segments.len().checked_sub(TIER_COUNT)?;
    let tier_of = |segment: &SegmentEntry| {
        let mut tier = 0_u32;
        let mut len_max = TIER_LEN_FIRST;
        while segment.len > len_max {
            tier += 1;
            len_max = len_max.saturating_mul(TIER_COUNT as u64);
        }
        tier
    };
    let newest = segments.get(from..)?;
    let oldest_tier = newest.first().map(tier_of)?;
    newest
        .iter()
        .all(|segment| tier_of(segment) <= oldest_tier)
        .then_some(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(len: u64) -> SegmentEntry {
        SegmentEntry {
            name: String::new(),
            len,
            entries: 0,
            sha256: String::new(),
        }
    }

    #[test]
    fn a_tier_is_full_when_its_newest_neighbours_are_alike() {
        let small = || entry(1000);
        let few: Vec<_> = (0..7).map(|_| small()).collect();
        assert_eq!(full_tier(&few), None);
        let full: Vec<_> = std::iter::once(entry(1 << 30))
            .chain((0..8).map(|_| small()))
            .collect();
        assert_eq!(full_tier(&full), Some(1));
        let mixed: Vec<_> = (0..7).map(|_| small()).chain([entry(1 << 30)]).collect();
        assert_eq!(
            full_tier(&mixed),
            None,
            "a large new one waits for its own tier"
        );
    }
}
