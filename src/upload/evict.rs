//! Giving back the local space of packs that the external volume holds.
//!
//! Only what was verified there, and only after a while: a NAS may lose what it acknowledged (invariant
//! 8). A pack keeps its header, index and trailer, so that dedupe and recovery need no network.

use std::path::Path;

use crate::error::Result;
use crate::pack::ledger::{Ledger, PackEntry, PackState};
use crate::pack::punch::punch;
use crate::types::PackId;

/// When local packs are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Above this many bytes of packs.
    pub high_bytes: u64,
    /// Until at most this many are left.
    pub low_bytes: u64,
    /// Not before the pack was on the external volume for this long.
    pub evict_after_secs: u64,
}

impl Default for CacheLimits {
    fn default() -> CacheLimits {
        CacheLimits {
            high_bytes: u64::MAX,
            low_bytes: u64::MAX,
            evict_after_secs: u64::MAX,
        }
    }
}

impl CacheLimits {
    /// The limits for a cache of `cache_bytes`: down to nine tenths once it is full.
    pub fn new(cache_bytes: u64, evict_after_secs: u64) -> CacheLimits {
        CacheLimits {
            high_bytes: cache_bytes,
            low_bytes: cache_bytes / 10 * 9,
            evict_after_secs,
        }
    }
}

/// Evicts the packs that were verified longest ago until the cache is small enough.
pub fn evict(root: &Path, ledger: &Ledger, limits: CacheLimits, now: u64) -> Result<()> {
    let local = ledger.totals().local_bytes;
    if local <= limits.high_bytes {
        return Ok(());
    }
    let mut candidates: Vec<(u64, PackId, PackEntry)> = ledger
        .all()
        .into_iter()
        .filter_map(|(pack, entry)| match entry.state {
            PackState::Uploaded { verified_at } if !entry.evicted => {
                Some((verified_at, pack, entry))
            }
            _ => None,
        })
        .filter(|(verified_at, ..)| verified_at.saturating_add(limits.evict_after_secs) <= now)
        .collect();
    candidates.sort_by_key(|(verified_at, pack, _)| (*verified_at, *pack));
    // What says "uploaded" must not be lost after the bytes are.
    ledger.sync()?;
    let mut left = local;
    for (_, pack, entry) in candidates {
        if left <= limits.low_bytes {
            break;
        }
        ledger.evicted(pack)?;
        ledger.sync()?;
        punch(&root.join(pack.object_name()), pack, 0..u32::MAX)?;
        left = left.saturating_sub(u64::from(entry.len));
    }
    Ok(())
}
