//! Records and segments on the external volume, from the backup path.

use std::fs::{self, File};
use std::sync::Arc;

use vfs::{Body, ObjectKey, Precondition, VolumeExt};

use crate::error::{Error, Result};
use crate::format::record::{EPOCHS_PREFIX, EpochRecord};
use crate::format::segment::{BlockCache, FileSource, Segment};
use crate::maintain::fix::Fix;
use crate::types::Epoch;
use crate::volume::archive::check_segment;
use crate::volume::external::{RECORD_LEN_MAX, open_segment};

const BLOCK_CACHE_BYTES: usize = 8 << 20;

impl Fix<'_> {
    /// Puts damaged records again, the newest archived one also when it is missing, and its segments first.
    pub(super) fn external_metadata(&mut self) -> Result<()> {
        let Some(external) = self.external.clone() else {
            return Ok(());
        };
        let mut there = Vec::new();
        external.for_each(EPOCHS_PREFIX, |meta| -> Result<()> {
            there.extend(EpochRecord::parse_name(meta.key.as_str()).map(|_| meta.key));
            Ok(())
        })?;
        let archived = self.ledger.archived_epoch();
        if let Some((name, record)) = self.local_record(archived)? {
            for entry in &record.segments {
                self.external_segment(&external, entry)?;
            }
            if !there.iter().any(|key| key.as_str() == name) {
                there.push(ObjectKey::new(name)?);
            }
        }
        for key in there {
            self.external_record_again(&*external, &key)?;
        }
        Ok(())
    }

    fn local_record(&self, epoch: Epoch) -> Result<Option<(String, EpochRecord)>> {
        let dir = self.root.join(EPOCHS_PREFIX);
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let entry = entry.map_err(Error::io("list", &dir))?;
            let name = format!("{EPOCHS_PREFIX}{}", entry.file_name().to_string_lossy());
            let is_it = EpochRecord::parse_name(&name).is_some_and(|(of, _)| of == epoch);
            if let Some(record) = fs::read(entry.path())
                .ok()
                .filter(|_| is_it)
                .and_then(|bytes| EpochRecord::parse(&name, &bytes).ok())
            {
                return Ok(Some((name, record)));
            }
        }
        Ok(None)
    }

    fn external_record_again(&mut self, external: &dyn vfs::Volume, key: &ObjectKey) -> Result<()> {
        let Ok(here) = fs::read(self.root.join(key.as_str())) else {
            return Ok(());
        };
        let is_whole = |bytes: &[u8]| EpochRecord::parse(key.as_str(), bytes).is_ok();
        let there = external.get_whole(key, RECORD_LEN_MAX);
        // Two whole records of one name would be two writers: a person must say which one is meant.
        if !is_whole(&here) || there.as_ref().is_ok_and(|there| is_whole(there)) {
            return Ok(());
        }
        if let Ok(there) = there {
            self.done.keep(key.as_str(), &there, "external")?;
        }
        external.put(key, Body::Bytes(&here), Precondition::None)?;
        self.done.note(format!("{external}/{key}"), "sent again");
        Ok(())
    }

    fn external_segment(
        &mut self,
        external: &Arc<dyn vfs::Volume>,
        entry: &crate::format::record::SegmentEntry,
    ) -> Result<()> {
        let cache = Arc::new(BlockCache::new(BLOCK_CACHE_BYTES));
        if open_segment(external, entry, &cache).is_ok_and(|segment| segment.verify().is_ok()) {
            return Ok(());
        }
        let path = self.root.join(&entry.name);
        let local = FileSource::open(&path)
            .and_then(|source| Segment::open(Arc::new(source), Arc::clone(&cache)))
            .map(Arc::new)
            .and_then(|segment| {
                check_segment(&segment, &entry.name, entry, entry.parsed_name()?)?;
                segment.verify()
            });
        if local.is_err() {
            return Ok(());
        }
        let key = ObjectKey::new(entry.name.clone())?;
        if let Ok(damaged) = external.get_whole(&key, entry.len.saturating_mul(2)) {
            self.done.keep(&entry.name, &damaged, "external")?;
        }
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let body = Body::File {
            file: &file,
            len: entry.len,
        };
        external.put(&key, body, Precondition::None)?;
        self.done
            .note(format!("{external}/{}", entry.name), "sent again");
        Ok(())
    }
}
