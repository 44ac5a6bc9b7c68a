//! Whether the record that an extent names is in its pack, by the pack's own index.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;

use crate::format::inode::Extent;
use crate::format::pack::IndexEntry;
use crate::maintain::check::CheckReport;
use crate::maintain::packs::Ledgered;
use crate::maintain::tree::ADVICE;
use crate::pack::read::{LocalPack, read_index};
use crate::types::{Ino, PackId};

/// Index entries in memory at a time, some 32 MiB of them. Files name packs roughly in the order in which both were
/// written, so that few indexes serve many files.
const ENTRIES_MAX: usize = 600_000;

/// The indexes of some packs.
pub(super) struct Blobs<'a> {
    root: &'a Path,
    known: HashSet<PackId>,
    /// `None` for a pack whose local copy cannot be read: that is the pack check's to name.
    indexes: HashMap<PackId, Option<Vec<IndexEntry>>>,
    /// In the order in which they were read.
    order: VecDeque<PackId>,
    held: usize,
    /// Packs that were already told to be missing.
    missing: HashSet<PackId>,
}

impl Blobs<'_> {
    pub(super) fn new<'a>(root: &'a Path, ledger: &Ledgered) -> Blobs<'a> {
        Blobs {
            root,
            known: ledger.iter().map(|(pack, _)| *pack).collect(),
            indexes: HashMap::new(),
            order: VecDeque::new(),
            held: 0,
            missing: HashSet::new(),
        }
    }

    /// Checks an extent of `ino`.
    pub(super) fn extent(&mut self, ino: Ino, extent: &Extent, report: &mut CheckReport) {
        let location = extent.location;
        let object = location.pack.object_name();
        let Some(index) = self.index(location.pack) else {
            if !self.known.contains(&location.pack) && self.missing.insert(location.pack) {
                let reason = format!("inode {ino} needs it, and it is neither here nor uploaded");
                report.add(object, None, reason, ADVICE);
            }
            return;
        };
        let found = index
            .binary_search_by_key(&location.offset, |entry| entry.offset)
            .ok()
            .and_then(|at| index.get(at));
        let is_it = found.is_some_and(|entry| {
            entry.hash == extent.blob && entry.location(location.pack) == location
        });
        if !is_it {
            let reason = format!("inode {ino} needs blob {} there", extent.blob);
            report.add(object, Some(u64::from(location.offset)), reason, ADVICE);
        }
    }

    fn index(&mut self, pack: PackId) -> Option<&Vec<IndexEntry>> {
        if !self.indexes.contains_key(&pack) {
            let read = LocalPack::open(&self.root.join(pack.object_name()))
                .and_then(|local| read_index(&local, pack))
                .map(|index| index.entries)
                .ok();
            self.held += read.as_ref().map_or(0, Vec::len);
            self.order.push_back(pack);
            self.indexes.insert(pack, read);
            while self.held > ENTRIES_MAX && self.order.len() > 1 {
                let oldest = self.order.pop_front();
                let gone = oldest.and_then(|oldest| self.indexes.remove(&oldest));
                self.held -= gone.flatten().map_or(0, |entries| entries.len());
            }
        }
        self.indexes.get(&pack)?.as_ref()
    }
}
