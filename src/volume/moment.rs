//! Reading the moments of a backup path beside the process that has it open: without its lock, from files
//! that never change. A pack that was evicted is read from the external volume.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use vfs::{
    Body, Capabilities, DirVolume, ErrorClass, Meta, ObjectKey, Page, Precondition, Sentinel,
    Space, Volume,
};

use crate::error::Result;
use crate::format::pack::BLOCK_LEN;
use crate::format::record::Identity;
use crate::volume::external::{ExternalVolume, open_external};
use crate::volume::init::read_identity;
use crate::volume::settings::Settings;
use crate::volume::store::connect;

/// Where the packs are.
const PACKS_PREFIX: &str = "items/";

/// Opens the newest epoch that is closed in the backup path `root`.
pub fn open_moments(root: &Path) -> Result<ExternalVolume> {
    open_external(objects(root, &read_identity(root)?)?)
}

/// The objects of the backup path `root`, and of its external volume those that are only there.
pub(super) fn objects(root: &Path, identity: &Identity) -> Result<Arc<dyn Volume>> {
    let local = Arc::new(DirVolume::open_local(root)?);
    // One that is away is no reason not to look at what is here.
    let away = connect(identity, &Settings::read(root)?)?.map(|store| store.guarded().volume);
    Ok(Arc::new(LocalFirst { local, away }))
}

/// Whether a block of `bytes`, which begin at `offset` of a pack, is all zeros: an evicted pack keeps its
/// header and index, and has holes for records.
fn has_hole(offset: u64, bytes: &[u8]) -> bool {
    let within = offset % u64::from(BLOCK_LEN);
    let first_len = usize::try_from(u64::from(BLOCK_LEN) - within).unwrap_or(usize::MAX);
    let (first, rest) = bytes.split_at(first_len.min(bytes.len()));
    let is_zeros = |block: &[u8]| !block.is_empty() && block.iter().all(|byte| *byte == 0);
    is_zeros(first) || rest.chunks(BLOCK_LEN as usize).any(is_zeros)
}

/// What is here, and of what is not, what is away. Nothing is ever written through it.
#[derive(Debug)]
struct LocalFirst {
    local: Arc<DirVolume>,
    away: Option<Arc<dyn Volume>>,
}

impl LocalFirst {
    fn refuse<T>(&self, op: &'static str) -> vfs::Result<T> {
        let message = "a view writes nothing";
        let error = vfs::Error::new(ErrorClass::Permanent, op, &self.to_string(), "", message);
        Err(error.with_source(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)))
    }
}

impl fmt::Display for LocalFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.local.fmt(f)
    }
}

impl Volume for LocalFirst {
    fn get(&self, key: &ObjectKey, range: Range<u64>) -> vfs::Result<Bytes> {
        let here = self.local.get(key, range.clone());
        let is_absent = match &here {
            Ok(bytes) => key.as_str().starts_with(PACKS_PREFIX) && has_hole(range.start, bytes),
            Err(error) => error.is_not_found(),
        };
        match &self.away {
            Some(away) if is_absent => match away.get(key, range) {
                // That it may be there is to be known: what is here is no answer then.
                Err(error) if error.is_unreachable() => Err(error),
                // Zeros may be what was stored: then they are there as well, and without it they are all we have.
                there => there.or(here),
            },
            _ => here,
        }
    }

    fn head(&self, key: &ObjectKey) -> vfs::Result<Option<Meta>> {
        match (self.local.head(key)?, &self.away) {
            (None, Some(away)) => away.head(key),
            (found, _) => Ok(found),
        }
    }

    /// Only what is here: epoch records and segments are never evicted.
    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectKey>,
        limit: NonZeroUsize,
    ) -> vfs::Result<Page> {
        self.local.list(prefix, after, limit)
    }

    fn space(&self) -> vfs::Result<Option<Space>> {
        self.local.space()
    }

    fn verify_identity(&self) -> vfs::Result<()> {
        self.local.verify_identity()
    }

    fn put(&self, _: &ObjectKey, _: Body<'_>, _: Precondition) -> vfs::Result<Meta> {
        self.refuse("put")
    }

    fn delete(&self, _: &[ObjectKey]) -> vfs::Result<()> {
        self.refuse("delete")
    }

    fn probe(&self) -> vfs::Result<Capabilities> {
        self.refuse("probe")
    }

    fn bind(&self, _: Sentinel) -> vfs::Result<()> {
        self.refuse("bind")
    }

    fn sweep_temporary(&self, _: &[&str], _: Duration) -> vfs::Result<u64> {
        self.refuse("sweep")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_seen_wherever_it_lies() {
        let block = BLOCK_LEN as usize;
        let mut bytes = vec![1_u8; 3 * block];
        assert!(!has_hole(0, &bytes) && !has_hole(100, &bytes) && !has_hole(0, &[]));
        bytes[block..2 * block].fill(0);
        assert!(has_hole(0, &bytes));
        assert!(!has_hole(1, &bytes), "zeros, and no block of them");
        assert!(has_hole(block as u64 * 2 - 7, &[0, 0, 0, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn what_was_evicted_is_read_from_away_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let away = vfs::MemoryVolume::new();
        let key = |name: &str| ObjectKey::new(name).unwrap();
        away.put(&key("a"), Body::Bytes(b"away"), Precondition::None)
            .unwrap();
        away.put(&key("b"), Body::Bytes(b"away"), Precondition::None)
            .unwrap();
        std::fs::write(dir.path().join("a"), b"here").unwrap();
        let both = LocalFirst {
            local: Arc::new(DirVolume::open_local(dir.path()).unwrap()),
            away: Some(Arc::new(away)),
        };
        assert_eq!(both.get(&key("a"), 0..4).unwrap(), &b"here"[..]);
        assert_eq!(both.get(&key("b"), 0..4).unwrap(), &b"away"[..]);
        assert!(both.head(&key("b")).unwrap().is_some());
        assert!(both.get(&key("c"), 0..1).unwrap_err().is_not_found());
        assert!(
            both.put(&key("c"), Body::Bytes(b"x"), Precondition::None)
                .is_err()
        );
        assert!(both.delete(&[key("a")]).is_err());
        assert_eq!(both.get(&key("a"), 0..4).unwrap(), &b"here"[..]);
    }
}
