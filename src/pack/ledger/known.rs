//! The ledger in memory: each pack's entry, the queue of what is to be sent, and their sums.

use std::collections::BTreeMap;

use super::{Kind, PackEntry, PackState, Record, Totals};
use crate::types::{Epoch, PackId, Uuid};

/// What the records say, taken together.
#[derive(Debug)]
pub(super) struct Known {
    external: Uuid,
    packs: BTreeMap<PackId, Held>,
    /// What is sealed and not uploaded, by the order in which it was sealed: names of packs are ordered by
    /// session, and those are random.
    queue: BTreeMap<u64, PackId>,
    next_place: u64,
    totals: Totals,
    archived: Epoch,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    entry: PackEntry,
    /// Its place in the queue, as long as it is there.
    place: u64,
}

impl Known {
    /// Nothing yet; uploads count for the volume `external`.
    pub(super) fn new(external: Uuid) -> Known {
        Known {
            external,
            packs: BTreeMap::new(),
            queue: BTreeMap::new(),
            next_place: 0,
            totals: Totals::default(),
            archived: Epoch(0),
        }
    }

    pub(super) fn external(&self) -> Uuid {
        self.external
    }

    pub(super) fn archived(&self) -> Epoch {
        self.archived
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    pub(super) fn get(&self, pack: PackId) -> Option<PackEntry> {
        self.packs.get(&pack).map(|held| held.entry)
    }

    /// By name.
    pub(super) fn all(&self) -> impl Iterator<Item = (PackId, PackEntry)> + '_ {
        self.packs.iter().map(|(pack, held)| (*pack, held.entry))
    }

    /// By age.
    pub(super) fn unsent(&self) -> impl Iterator<Item = (PackId, PackEntry)> + '_ {
        let entry = |pack: &PackId| Some((*pack, self.get(*pack)?));
        self.queue.values().filter_map(entry)
    }

    fn remove(&mut self, pack: PackId) -> Option<PackEntry> {
        let Held { entry, place } = self.packs.remove(&pack)?;
        self.queue.remove(&place);
        let totals = &mut self.totals;
        totals.packs -= 1;
        totals.bytes -= u64::from(entry.len);
        if !entry.evicted {
            totals.local_bytes -= u64::from(entry.len);
        }
        if entry.state == PackState::Sealed {
            totals.unsent_packs -= 1;
            totals.unsent_bytes -= u64::from(entry.len);
        }
        Some(entry)
    }

    fn put(&mut self, pack: PackId, entry: PackEntry) {
        self.remove(pack);
        let totals = &mut self.totals;
        totals.packs += 1;
        totals.bytes += u64::from(entry.len);
        if !entry.evicted {
            totals.local_bytes += u64::from(entry.len);
        }
        let place = self.next_place;
        self.next_place += 1;
        if entry.state == PackState::Sealed {
            totals.unsent_packs += 1;
            totals.unsent_bytes += u64::from(entry.len);
            self.queue.insert(place, pack);
        }
        self.packs.insert(pack, Held { entry, place });
    }

    pub(super) fn note(&mut self, record: &Record) {
        let pack = PackId(record.id);
        let sealed = PackEntry {
            len: record.len,
            state: PackState::Sealed,
            evicted: false,
        };
        match record.kind {
            Kind::Uploaded if record.external == self.external => {
                let state = PackState::Uploaded {
                    verified_at: record.time,
                };
                let evicted = self.get(pack).is_some_and(|known| known.evicted);
                let entry = PackEntry {
                    len: record.len,
                    state,
                    evicted,
                };
                self.put(pack, entry);
            }
            // Uploaded to another volume: for this one it is as good as sealed, if it is still whole here.
            Kind::Sealed | Kind::Uploaded => {
                if !self.packs.contains_key(&pack) {
                    self.put(pack, sealed);
                }
            }
            Kind::Archived if record.external == self.external => {
                let number = record
                    .id
                    .first_chunk::<8>()
                    .map_or(0, |bytes| u64::from_le_bytes(*bytes));
                self.archived = self.archived.max(Epoch(number));
            }
            Kind::Archived => {}
            Kind::Evicted => {
                if let Some(entry) = self.get(pack)
                    && !entry.evicted
                {
                    self.totals.local_bytes -= u64::from(entry.len);
                    if let Some(held) = self.packs.get_mut(&pack) {
                        held.entry.evicted = true;
                    }
                }
            }
            Kind::Gone => {
                self.remove(pack);
            }
        }
    }
}
