//! The packs of an external volume: ranges of records, and the index of a pack.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use vfs::{Breaker, ErrorCase, ErrorClass, Guarded, ObjectKey};

use crate::error::Result;
use crate::pack::read::{PackIndex, ReadAt, read_index};
use crate::types::PackId;

/// Operations that are left to reads that somebody waits for, and to uploads: reads ahead use the others.
const LEFT_TO_OTHERS: usize = 2;
/// What a volume of which nothing is known makes at the same time.
const AT_ONCE: usize = 5;

/// The packs of an external volume.
#[derive(Debug)]
pub struct ExternalPacks {
    volume: Arc<dyn vfs::Volume>,
    breaker: Option<Arc<Breaker>>,
    /// Taken places of reads ahead, and who gives one back.
    ahead: (Sender<()>, Receiver<()>),
}

/// A read ahead may use the volume.
pub(super) struct Place<'a>(&'a Receiver<()>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // Whoever took it has put something in.
        let _ = self.0.try_recv();
    }
}

impl ExternalPacks {
    /// The packs of `volume`.
    pub fn new(volume: Arc<dyn vfs::Volume>) -> ExternalPacks {
        ExternalPacks {
            volume,
            breaker: None,
            ahead: bounded(AT_ONCE - LEFT_TO_OTHERS),
        }
    }

    /// The same where the volume makes so many operations at the same time.
    pub(super) fn at_once(self, count: usize) -> ExternalPacks {
        ExternalPacks {
            ahead: bounded(count.saturating_sub(LEFT_TO_OTHERS).max(1)),
            ..self
        }
    }

    /// The same where it is known whether the volume answers.
    pub fn guarded(guarded: Guarded) -> ExternalPacks {
        let packs = ExternalPacks::new(guarded.volume).at_once(guarded.at_once);
        ExternalPacks {
            breaker: Some(guarded.breaker),
            ..packs
        }
    }

    /// What knows whether the volume answers.
    pub(super) fn breaker(&self) -> Option<&Arc<Breaker>> {
        self.breaker.as_ref()
    }

    /// A place for a read ahead; waits for one. None of them may take the volume from those who wait for it.
    pub(super) fn place(&self) -> Place<'_> {
        // We hold the other end: it cannot be closed.
        let _ = self.ahead.0.send(());
        Place(&self.ahead.1)
    }

    /// These bytes of a pack, all of them or none.
    pub(super) fn get(&self, pack: PackId, range: &Range<u32>) -> vfs::Result<Bytes> {
        let key = ObjectKey::new(pack.object_name())?;
        get(
            &*self.volume,
            &key,
            u64::from(range.start)..u64::from(range.end),
        )
    }

    /// The error of a read that waited for another one's range in vain.
    pub(super) fn is_away(&self, pack: PackId) -> vfs::Error {
        let (volume, key) = (self.volume.to_string(), pack.object_name());
        let message = "it could not be reached by another read of the same bytes just now";
        vfs::Error::new(ErrorClass::Unreachable, "get", &volume, &key, message)
    }

    /// The index of a pack; `None` if there is no such pack.
    pub(super) fn index(&self, pack: PackId) -> Result<Option<PackIndex>> {
        let key = ObjectKey::new(pack.object_name())?;
        let Some(meta) = self.volume.head(&key)? else {
            return Ok(None);
        };
        let object = Object {
            volume: &*self.volume,
            key,
            len: meta.len,
        };
        read_index(&object, pack).map(Some)
    }
}

fn get(volume: &dyn vfs::Volume, key: &ObjectKey, range: Range<u64>) -> vfs::Result<Bytes> {
    let len = range.end - range.start;
    let bytes = volume.get(key, range)?;
    if bytes.len() as u64 == len {
        return Ok(bytes);
    }
    let message = format!("{} bytes came where {len} were asked for", bytes.len());
    let error = vfs::Error::new(
        ErrorClass::Transient,
        "get",
        &volume.to_string(),
        key.as_str(),
        message,
    );
    Err(error.with_case(ErrorCase::ShortRead))
}

struct Object<'a> {
    volume: &'a dyn vfs::Volume,
    key: ObjectKey,
    len: u64,
}

impl ReadAt for Object<'_> {
    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        Ok(get(self.volume, &self.key, offset..offset + len as u64)?)
    }

    fn name(&self) -> String {
        format!("{}/{}", self.volume, self.key)
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }
}
