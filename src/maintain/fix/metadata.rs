//! Identity, epoch records and segments of the backup path: from the external volume, or a record from its
//! own segments.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use vfs::{ObjectKey, VolumeExt};

use crate::error::{Error, Result};
use crate::format::keys;
use crate::format::record::{
    EPOCHS_PREFIX, EpochRecord, FORMAT, IDENTITY_NAME, Identity, SegmentEntry,
};
use crate::format::segment::{BlockCache, FileSource, Segment, SegmentName};
use crate::journal::{self, replay};
use crate::maintain::fix::{Done, Fix};
use crate::meta::view::View;
use crate::types::{Epoch, Lsn, SessionId};
use crate::volume::archive::{SEGMENTS_DIR, check_segment, newest_local_record};
use crate::volume::commit::decode_epoch;
use crate::volume::external::RECORD_LEN_MAX;
use crate::volume::init::{external_identity, read_identity};
use crate::volume::lost::trace_of_lost_record;
use crate::volume::settings::{Settings, rewrite, sync_dir};
use crate::volume::store::open_spec;

/// Memory for decoded blocks of segments that are looked at once.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// Bytes of a segment that are fetched at once.
const PIECE_LEN: u64 = 8 << 20;
/// Added to the last frame number that is known where the true one is lost: numbers may be left out, and are
/// never used twice.
const LSN_GAP: u64 = 1 << 20;

/// The identity; from the external volume if the one here cannot be read.
pub(super) fn identity(root: &Path, settings: &Settings, done: &mut Done) -> Result<Identity> {
    let failure = match read_identity(root) {
        Ok(identity) => return Ok(identity),
        Err(failure) => failure,
    };
    let (Some(spec), Some(copy)) = (settings.store.spec(), settings.store.copy()) else {
        return Err(failure);
    };
    let external = open_spec(&spec, settings.remote_timeout())?;
    match external_identity(&*external.volume)? {
        Some(there) if there.store.as_deref() == Some(copy) => {
            let here = root.join(IDENTITY_NAME);
            let identity = Identity {
                store: None,
                ..there
            };
            if here.exists() {
                done.set_aside(&here, "replaced")?;
            }
            rewrite(&here, &identity.encode())?;
            done.note(here.display().to_string(), "taken from the external volume");
            Ok(identity)
        }
        _ => Err(failure),
    }
}

/// The records below `root`, in order: name, epoch, and whether it can be read.
fn local_records(root: &Path) -> Result<Vec<(String, Epoch, Option<EpochRecord>)>> {
    let dir = root.join(EPOCHS_PREFIX);
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
        let entry = entry.map_err(Error::io("list", &dir))?;
        let name = format!("{EPOCHS_PREFIX}{}", entry.file_name().to_string_lossy());
        if let Some((epoch, _)) = EpochRecord::parse_name(&name) {
            let bytes = fs::read(entry.path()).map_err(Error::io("read", entry.path()))?;
            let record = EpochRecord::parse(&name, &bytes).ok();
            found.push((name, epoch, record));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

impl Fix<'_> {
    /// Puts back damaged records, those missing between others, and the newest if it is gone.
    pub(super) fn records(&mut self) -> Result<()> {
        let local = local_records(self.root)?;
        let newest = local.last().map_or(Epoch(0), |(_, epoch, _)| *epoch);
        for (name, epoch, _) in local.iter().filter(|(.., record)| record.is_none()) {
            let away = self.external_record(name);
            if away.is_none() && *epoch < newest {
                // Nothing needs it, and a damaged one tells more than none.
                continue;
            }
            let (session, how) = (
                EpochRecord::parse_name(name),
                "taken from the external volume",
            );
            let (bytes, how) = match (away, session) {
                (Some(bytes), _) => (bytes, how),
                (None, Some((epoch, session))) => match self.record_of_segments(epoch, session)? {
                    Some(bytes) => (bytes, "written anew from its segments"),
                    None => continue,
                },
                (None, None) => continue,
            };
            let path = self.root.join(name);
            self.done.set_aside(&path, "replaced")?;
            rewrite(&path, &bytes)?;
            self.done.note(path.display().to_string(), how);
        }
        self.parents(&local)?;
        self.newest_record(newest)
    }

    fn external_record(&self, name: &str) -> Option<Vec<u8>> {
        let external = self.external.as_ref()?;
        let bytes = external
            .get_whole(&ObjectKey::new(name).ok()?, RECORD_LEN_MAX)
            .ok()?;
        let record = EpochRecord::parse(name, &bytes).ok()?;
        (record.volume == self.identity.volume).then(|| bytes.to_vec())
    }

    /// Fetches records that local ones name as their parents and that are not here.
    fn parents(&mut self, local: &[(String, Epoch, Option<EpochRecord>)]) -> Result<()> {
        let Some(external) = self.external.clone() else {
            return Ok(());
        };
        let is_here = |epoch: Epoch| local.iter().any(|(_, of, _)| *of == epoch);
        let orphans: Vec<(Epoch, &String)> = local
            .iter()
            .filter_map(|(.., record)| record.as_ref())
            .filter_map(|record| Some((record.epoch, record.parent.as_ref()?)))
            .filter(|(epoch, _)| !is_here(Epoch(epoch.0.saturating_sub(1))))
            .collect();
        for (epoch, parent) in orphans {
            let prefix = format!("{EPOCHS_PREFIX}{:016x}-", epoch.0.saturating_sub(1));
            let mut names = Vec::new();
            external.for_each(&prefix, |meta| -> Result<()> {
                names.push(meta.key.to_string());
                Ok(())
            })?;
            for name in names {
                let bytes = self.external_record(&name);
                if let Some(bytes) = bytes.filter(|bytes| EpochRecord::hash(bytes) == *parent) {
                    let path = self.root.join(&name);
                    rewrite(&path, &bytes)?;
                    self.done
                        .note(path.display().to_string(), "taken from the external volume");
                }
            }
        }
        Ok(())
    }

    /// Puts back the newest record when only its traces are there.
    fn newest_record(&mut self, newest: Epoch) -> Result<()> {
        let trace = trace_of_lost_record(self.root, newest)?;
        let archived = self.ledger.archived_epoch();
        let (name, bytes, how) = if let Some(trace) = trace {
            let name = EpochRecord::name(trace.last, trace.session);
            match self.external_record(&name) {
                Some(bytes) => (name, bytes, "taken from the external volume"),
                None => match self.record_of_segments(trace.last, trace.session)? {
                    Some(bytes) => (name, bytes, "written anew from its segments"),
                    None => return Ok(()),
                },
            }
        } else if archived > newest {
            let Some(external) = &self.external else {
                return Ok(());
            };
            let mut names = Vec::new();
            let prefix = format!("{EPOCHS_PREFIX}{:016x}-", archived.0);
            external.for_each(&prefix, |meta| -> Result<()> {
                names.push(meta.key.to_string());
                Ok(())
            })?;
            match &names[..] {
                [name] => match self.external_record(name) {
                    Some(bytes) => (name.clone(), bytes, "taken from the external volume"),
                    None => return Ok(()),
                },
                // Two writers: a person must say which one is meant.
                _ => return Ok(()),
            }
        } else {
            return Ok(());
        };
        let path = self.root.join(&name);
        rewrite(&path, &bytes)?;
        self.done.note(path.display().to_string(), how);
        Ok(())
    }

    /// The record of `epoch`, from segments that together have every epoch up to it.
    fn record_of_segments(&self, epoch: Epoch, session: SessionId) -> Result<Option<Vec<u8>>> {
        let mut names = Vec::new();
        let dir = self.root.join(SEGMENTS_DIR);
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let entry = entry.map_err(Error::io("list", &dir))?;
            let name = entry.file_name();
            names.extend(name.to_str().and_then(SegmentName::parse_file_name));
        }
        // A merged segment has all that the ones it was made of have.
        names.sort_by_key(|name| name.first);
        let cache = Arc::new(BlockCache::new(BLOCK_CACHE_BYTES));
        let (mut open, mut reached) = (Vec::new(), epoch);
        while reached > Epoch(0) {
            let whole = names
                .iter()
                .filter(|name| name.last == reached)
                .find_map(|name| self.whole_segment(name, &cache));
            let Some(segment) = whole else {
                return Ok(None);
            };
            reached = Epoch(segment.summary().first.0.saturating_sub(1));
            open.push(segment);
        }
        open.reverse();
        let segments = open
            .iter()
            .map(|segment| SegmentEntry::of(segment.summary()))
            .collect();
        let closed = View::new(epoch, open)?.get(&keys::epoch(epoch))?;
        let time = closed.as_deref().and_then(decode_epoch);
        let before = Epoch(epoch.0.saturating_sub(1));
        let parent = local_records(self.root)?
            .into_iter()
            .rfind(|(_, of, record)| *of == before && record.is_some());
        let parent_lsn = parent
            .as_ref()
            .and_then(|(.., record)| Some(record.as_ref()?.lsn));
        let parent = match parent {
            Some((name, ..)) => {
                let path = self.root.join(name);
                let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
                Some(EpochRecord::hash(&bytes))
            }
            None => None,
        };
        let record = EpochRecord {
            format: FORMAT,
            volume: self.identity.volume.clone(),
            epoch,
            session: session.to_string(),
            time: time.map_or(self.now, |(time, _)| time.secs),
            parent,
            lsn: self.last_lsn(epoch, parent_lsn.unwrap_or(0)),
            segments,
            mac: None,
        };
        Ok(Some(record.encode()))
    }

    /// A frame number that no frame of `epoch` or before has.
    fn last_lsn(&self, epoch: Epoch, known: u64) -> u64 {
        let dir = self.root.join(journal::DIR);
        let unknown = (Epoch(u64::MAX), Lsn(0));
        match replay::replay(&dir, self.volume.0, epoch, unknown) {
            Ok(replay) if replay.frames > 0 => replay.last_lsn.0,
            _ => known.saturating_add(LSN_GAP),
        }
    }

    fn whole_segment(&self, name: &SegmentName, cache: &Arc<BlockCache>) -> Option<Arc<Segment>> {
        let source = FileSource::open(self.root.join(name.to_string())).ok()?;
        let segment = Arc::new(Segment::open(Arc::new(source), Arc::clone(cache)).ok()?);
        let is_ours = segment.summary().volume == self.volume.0;
        (is_ours && segment.verify().is_ok()).then_some(segment)
    }

    /// Fetches the newest record's segments that are damaged or missing here.
    pub(super) fn segments(&mut self) -> Result<()> {
        let Ok(Some(record)) = newest_local_record(self.root) else {
            return Ok(());
        };
        let cache = Arc::new(BlockCache::new(BLOCK_CACHE_BYTES));
        for entry in &record.segments {
            let name = entry.parsed_name()?;
            if self.whole_segment(&name, &cache).is_some() {
                continue;
            }
            let Ok(fetched) = self.fetch_segment(entry, &cache) else {
                continue;
            };
            let path = self.root.join(&entry.name);
            if path.exists() {
                self.done.set_aside(&path, "replaced")?;
            }
            fs::rename(&fetched, &path).map_err(Error::io("rename", &fetched))?;
            sync_dir(&self.root.join(SEGMENTS_DIR))?;
            self.done
                .note(path.display().to_string(), "taken from the external volume");
        }
        Ok(())
    }

    /// Fetches a segment under a temporary name and verifies it there.
    fn fetch_segment(
        &self,
        entry: &SegmentEntry,
        cache: &Arc<BlockCache>,
    ) -> Result<std::path::PathBuf> {
        let external = self
            .external
            .as_ref()
            .ok_or_else(|| Error::Refused("there is no external volume".into()))?;
        let key = ObjectKey::new(entry.name.clone())?;
        let path = self.root.join(SEGMENTS_DIR).join(".fetched");
        let mut file = File::create(&path).map_err(Error::io("create", &path))?;
        let mut offset = 0;
        while offset < entry.len {
            let end = (offset + PIECE_LEN).min(entry.len);
            let piece = external.get(&key, offset..end)?;
            file.write_all(&piece).map_err(Error::io("write", &path))?;
            offset = end;
        }
        file.sync_all().map_err(Error::io("sync", &path))?;
        let source = Arc::new(FileSource::open(&path)?);
        let segment = Arc::new(Segment::open(source, Arc::clone(cache))?);
        check_segment(&segment, &entry.name, entry, entry.parsed_name()?)?;
        segment.verify()?;
        Ok(path)
    }
}
