//! Blobs from the packs of an external volume, by ranged reads with read-ahead.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use vfs::{Breaker, Guarded, ObjectKey};

use crate::error::{Error, Result};
use crate::fetch::cache::BlobCache;
use crate::format::pack::{RECORD_HEADER_LEN, RecordHeader, record_len};
use crate::pack::read::{RecordRead, parse_record, record_read_len};
use crate::types::{BlobHash, BlobLocation, PackId};

/// Bytes read at once where reads follow each other through a pack.
const READ_AHEAD_LEN: u64 = 4 << 20;

/// The packs of an external volume.
#[derive(Debug)]
pub struct ExternalPacks {
    volume: Arc<dyn vfs::Volume>,
    breaker: Option<Arc<Breaker>>,
    /// Where the last read of a pack ended: the next one that begins near it reads ahead.
    last: Mutex<Option<(PackId, u64)>>,
}

impl ExternalPacks {
    /// The packs of `volume`.
    pub fn new(volume: Arc<dyn vfs::Volume>) -> ExternalPacks {
        ExternalPacks {
            volume,
            breaker: None,
            last: Mutex::new(None),
        }
    }

    /// The same where it is known whether the volume answers.
    pub fn guarded(guarded: Guarded) -> ExternalPacks {
        ExternalPacks {
            breaker: Some(guarded.breaker),
            ..ExternalPacks::new(guarded.volume)
        }
    }

    /// What knows whether the volume answers.
    pub(super) fn breaker(&self) -> Option<&Arc<Breaker>> {
        self.breaker.as_ref()
    }

    /// Reads a blob, and when reads are following each other the ones behind it into `cache`.
    pub fn blob(
        &self,
        blob: BlobHash,
        location: &BlobLocation,
        cache: &BlobCache,
    ) -> Result<Bytes> {
        let name = location.pack.object_name();
        let key = ObjectKey::new(name.clone())?;
        let start = u64::from(location.offset);
        let needed = record_read_len(location) as u64;
        let bytes = self.read(&key, location.pack, start, needed)?;
        let record = bytes.slice(
            ..usize::try_from(needed)
                .unwrap_or(usize::MAX)
                .min(bytes.len()),
        );
        let plain = match parse_record(&name, record, location, blob)? {
            RecordRead::Plain(plain) => plain,
            RecordRead::Absent => {
                return Err(Error::corrupt(
                    name,
                    start,
                    format!("blob {blob} is not there: zeros are"),
                ));
            }
        };
        keep_following(&name, location.pack, start, &bytes, cache);
        Ok(plain)
    }

    fn read(&self, key: &ObjectKey, pack: PackId, start: u64, needed: u64) -> Result<Bytes> {
        let follows = {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.is_some_and(|(of, end)| of == pack && start >= end && start - end < READ_AHEAD_LEN)
        };
        let mut end = start + needed;
        if follows && let Some(meta) = self.volume.head(key)? {
            end = end.max((start + READ_AHEAD_LEN).min(meta.len));
        }
        let bytes = self.volume.get(key, start..end)?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((pack, end));
        Ok(bytes)
    }
}

/// Keeps the whole records behind the first one of `bytes`, which begin at `start` of the pack.
fn keep_following(name: &str, pack: PackId, start: u64, bytes: &Bytes, cache: &BlobCache) {
    let mut at = 0_usize;
    while let Some(rest) = bytes
        .get(at..)
        .filter(|rest| rest.len() > RECORD_HEADER_LEN as usize)
    {
        let Ok(offset) = u32::try_from(start + at as u64) else {
            return;
        };
        let Ok(header) = RecordHeader::decode(pack, offset, rest) else {
            return;
        };
        let location = BlobLocation {
            pack,
            offset,
            stored_len: header.stored_len,
            plain_len: header.plain_len,
        };
        let len = record_read_len(&location);
        if len > rest.len() {
            return;
        }
        if at > 0
            && let Ok(RecordRead::Plain(plain)) =
                parse_record(name, bytes.slice(at..at + len), &location, header.hash)
        {
            cache.put(header.hash, plain);
        }
        at += record_len(header.stored_len) as usize;
    }
}
