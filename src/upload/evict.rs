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

/// How many bytes are wanted back because the disk is nearly full, and from which packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Only from those that were on the external volume long enough: it does not answer, and may have lost
    /// what it acknowledged last.
    Old(u64),
    /// From younger ones too.
    Young(u64),
}

/// Evicts the packs that were verified longest ago until the cache is small enough, and `pressure` gone.
pub fn evict(
    root: &Path,
    ledger: &Ledger,
    limits: CacheLimits,
    pressure: Pressure,
    now: u64,
) -> Result<()> {
    let local = ledger.totals().local_bytes;
    let over = if local > limits.high_bytes {
        local.saturating_sub(limits.low_bytes)
    } else {
        0
    };
    let (old_wanted, young_wanted) = match pressure {
        Pressure::Old(wanted) => (over.max(wanted), 0),
        Pressure::Young(wanted) => (over.max(wanted), wanted),
    };
    if old_wanted == 0 {
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
        .collect();
    candidates.sort_by_key(|(verified_at, pack, _)| (*verified_at, *pack));
    // What says "uploaded" must not be lost after the bytes are.
    ledger.sync()?;
    let mut freed = 0;
    for (verified_at, pack, entry) in candidates {
        let is_old = verified_at.saturating_add(limits.evict_after_secs) <= now;
        let wanted = if is_old { old_wanted } else { young_wanted };
        if freed >= wanted {
            break;
        }
        ledger.evicted(pack)?;
        ledger.sync()?;
        punch(&root.join(pack.object_name()), pack, 0..u32::MAX)?;
        freed += u64::from(entry.len);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk;
    use crate::pack::writer::{PackIo, PackWriter};
    use crate::types::{SessionId, Uuid};

    const NOW: u64 = 1_000_000;
    const HOUR: u64 = 3600;

    fn pack(root: &Path, ledger: &Ledger, count: u64, verified_at: Option<u64>) -> PackId {
        let id = PackId::new(SessionId([5; 8]), count);
        let mut writer = PackWriter::create(root, [1; 16], id, 0, PackIo::default()).unwrap();
        let plain = vec![u8::try_from(count).unwrap(); 50_000];
        writer
            .append(chunk::hash(&plain), chunk::Codec::Raw, 50_000, &plain)
            .unwrap();
        let len = writer.seal().unwrap().len;
        ledger.sealed(id, len).unwrap();
        if let Some(verified_at) = verified_at {
            ledger.uploaded(id, len, verified_at).unwrap();
        }
        id
    }

    #[test]
    fn young_packs_go_only_under_pressure_and_while_the_volume_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), Uuid([1; 16])).unwrap();
        let old = pack(dir.path(), &ledger, 1, Some(NOW - 30 * HOUR));
        let young = pack(dir.path(), &ledger, 2, Some(NOW - HOUR));
        let newer = pack(dir.path(), &ledger, 3, Some(NOW));
        let unsent = pack(dir.path(), &ledger, 4, None);
        let evicted = || -> Vec<PackId> {
            let all = [old, young, newer, unsent];
            let gone = |pack: &PackId| ledger.get(*pack).unwrap().evicted;
            all.into_iter().filter(gone).collect()
        };
        let limits = CacheLimits::new(1 << 30, 24 * HOUR);
        let evict = |pressure| evict(dir.path(), &ledger, limits, pressure, NOW).unwrap();
        evict(Pressure::Young(0));
        assert_eq!(evicted(), []);
        evict(Pressure::Old(u64::MAX));
        assert_eq!(evicted(), [old], "the others may be lost when it is back");
        evict(Pressure::Young(1));
        assert_eq!(evicted(), [old, young]);
        evict(Pressure::Young(u64::MAX));
        assert_eq!(
            evicted(),
            [old, young, newer],
            "unsent data is never evicted"
        );
    }
}
