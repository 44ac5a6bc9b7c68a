//! The indexes of packs that are read from: where records begin and end, so that a range is cut between two.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::pack::read::PackIndex;
use crate::types::PackId;

/// Entries kept, of 48 bytes each: some hundred packs of a usual tree, and always the newest one.
const ENTRIES_MAX: usize = 256 << 10;

/// Indexes, the least recently used of which go first.
#[derive(Debug, Default)]
pub(super) struct Maps {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    maps: HashMap<PackId, Slot>,
    next_use: u64,
}

#[derive(Debug, Default)]
struct Slot {
    used: u64,
    /// Held while the index is read, so that of several who need it one reads it.
    index: Arc<Mutex<Option<Arc<PackIndex>>>>,
    entries: usize,
}

impl Maps {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index of `pack`, by `load` if it is not at hand. What is not there is asked for again the next time.
    pub(super) fn get(
        &self,
        pack: PackId,
        load: impl FnOnce() -> Result<Option<PackIndex>>,
    ) -> Result<Option<Arc<PackIndex>>> {
        let slot = {
            let mut table = self.lock();
            let used = table.next_use;
            table.next_use += 1;
            let slot = table.maps.entry(pack).or_default();
            slot.used = used;
            Arc::clone(&slot.index)
        };
        let mut index = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = &*index {
            return Ok(Some(Arc::clone(index)));
        }
        let loaded = load();
        let mut table = self.lock();
        let Ok(Some(loaded)) = loaded else {
            table.maps.remove(&pack);
            return loaded.map(|_| None);
        };
        let loaded = Arc::new(loaded);
        *index = Some(Arc::clone(&loaded));
        if let Some(slot) = table.maps.get_mut(&pack) {
            slot.entries = loaded.entries.len();
        }
        table.trim(pack);
        Ok(Some(loaded))
    }
}

impl Table {
    fn trim(&mut self, newest: PackId) {
        let mut entries: usize = self.maps.values().map(|slot| slot.entries).sum();
        while entries > ENTRIES_MAX {
            let others = self.maps.iter().filter(|(pack, _)| **pack != newest);
            let Some((pack, count)) = others
                .min_by_key(|(_, slot)| slot.used)
                .map(|(pack, slot)| (*pack, slot.entries))
            else {
                return;
            };
            self.maps.remove(&pack);
            entries -= count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Codec;
    use crate::format::pack::IndexEntry;
    use crate::types::{BlobHash, SessionId};

    fn index(entries: usize) -> PackIndex {
        let entry = IndexEntry {
            hash: BlobHash([0; 32]),
            offset: 4096,
            stored_len: 1,
            plain_len: 1,
            codec: Codec::Raw,
        };
        PackIndex {
            entries: vec![entry; entries],
            offset: 8192,
            pack_len: 12_288,
        }
    }

    #[test]
    fn an_index_is_read_once_until_it_is_the_one_used_longest_ago() {
        let maps = Maps::default();
        let pack = |n| PackId::new(SessionId([7; 8]), n);
        let get = |n, entries| {
            let mut was_read = false;
            let load = || {
                was_read = true;
                Ok(Some(index(entries)))
            };
            maps.get(pack(n), load).unwrap().unwrap();
            was_read
        };
        assert!(get(1, ENTRIES_MAX / 2) && get(2, ENTRIES_MAX / 2));
        assert!(!get(1, 0));
        assert!(get(3, 1), "above the bound");
        assert!(!get(1, 0) && get(2, 1));
        assert!(get(4, ENTRIES_MAX + 1) && !get(4, 0), "the newest stays");
    }

    #[test]
    fn what_is_not_there_is_asked_for_again() {
        let maps = Maps::default();
        let pack = PackId::new(SessionId([7; 8]), 1);
        assert!(maps.get(pack, || Ok(None)).unwrap().is_none());
        assert!(maps.get(pack, || Ok(Some(index(1)))).unwrap().is_some());
    }
}
