//! The tree of a check: every name leads to an inode, every inode has its names, every extent its blob.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::path::Path;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::format::inode::{self, Extent, Inode};
use crate::format::keys::{self, Kind};
use crate::maintain::check::CheckReport;
use crate::maintain::packs::Ledgered;
use crate::meta::view::View;
use crate::pack::read::{LocalPack, read_index};
use crate::types::{AccountId, BlobHash, FileKind, Ino, PackId};

const ADVICE: &str =
    "mount an earlier moment (tidefs mount --at) and copy from there what this one has lost";
/// Pack indexes in memory at a time, each up to a few hundred KiB.
const INDEXES_MAX: usize = 64;
/// Problems of the tree that are named one by one.
const NAMED_MAX: usize = 1000;

/// A pack's records by their offsets: name and stored length.
type Records = HashMap<u32, (BlobHash, u32)>;

struct Walk<'a> {
    root: &'a Path,
    view: &'a View,
    known: HashSet<PackId>,
    indexes: BTreeMap<PackId, Option<Records>>,
    /// Names seen of inodes that have, or should have, another number than one.
    names: HashMap<Ino, (u32, u32)>,
    inodes: u64,
    named: u64,
    report: &'a mut CheckReport,
}

/// Checks the tree that `view` shows.
pub(super) fn check(root: &Path, view: &View, ledger: &Ledgered, report: &mut CheckReport) {
    let known = ledger.iter().map(|(pack, _)| *pack).collect();
    let mut walk = Walk {
        root,
        view,
        known,
        indexes: BTreeMap::new(),
        names: HashMap::new(),
        inodes: 0,
        named: 0,
        report,
    };
    for entry in view.range(&[], Bound::Unbounded) {
        let outcome = entry.and_then(|(key, value)| walk.entry(&key, &value));
        if let Err(error) = outcome {
            walk.report.add_error("the metadata", error, ADVICE);
            return;
        }
        if walk.report.problems.len() > NAMED_MAX {
            walk.report.add(
                "the metadata",
                None,
                "there is more: only the first problems are named",
                ADVICE,
            );
            return;
        }
    }
    walk.finish();
}

impl Walk<'_> {
    fn entry(&mut self, key: &Bytes, value: &Bytes) -> Result<()> {
        let (Some(kind), Some(ino)) = (key.get(3).copied(), ino_of(key)) else {
            return Ok(());
        };
        let is = |wanted: Kind| kind == wanted as u8;
        if is(Kind::Inode) {
            self.inode(ino, value)
        } else if is(Kind::DirEntry) {
            self.dir_entry(ino, key, value)
        } else if is(Kind::Extents) {
            let extents = inode::decode_extents(value);
            self.extents(
                ino,
                &extents.ok_or_else(|| not_in_format(format!("the extents of inode {ino}")))?,
            );
            Ok(())
        } else {
            Ok(())
        }
    }

    fn inode(&mut self, ino: Ino, value: &[u8]) -> Result<()> {
        let inode = Inode::decode(value).ok_or_else(|| not_in_format(format!("inode {ino}")))?;
        self.inodes += 1;
        self.report.inodes += 1;
        self.extents(ino, &inode.extents);
        let names = if inode.kind == FileKind::Dir {
            1
        } else {
            inode.nlink
        };
        let is_orphan = names == 0 && self.view.get(&keys::orphan(ino))?.is_some();
        if is_orphan || ino.local() == Ino::ROOT_LOCAL {
            self.named += 1;
        } else if names != 1 {
            // Inodes sort before directory entries within an account: the names come later.
            self.names.insert(ino, (names, 0));
        }
        Ok(())
    }

    fn dir_entry(&mut self, parent: Ino, key: &[u8], value: &[u8]) -> Result<()> {
        let object = || {
            format!(
                "\"{}\" in directory {parent}",
                String::from_utf8_lossy(keys::name_of(key))
            )
        };
        let target = inode::decode_entry(value).ok_or_else(|| not_in_format(object()))?;
        let found = self.view.get(&keys::inode(target.ino))?;
        match found.as_deref().and_then(Inode::decode) {
            Some(inode) if inode.kind == target.kind => {}
            Some(_) => self
                .report
                .add(object(), None, "its inode is of another kind", ADVICE),
            None => self.report.add(
                object(),
                None,
                format!("inode {} is not there", target.ino),
                ADVICE,
            ),
        }
        if target.ino.local() != Ino::ROOT_LOCAL {
            match self.names.get_mut(&target.ino) {
                Some((_, seen)) => *seen += 1,
                None => self.named += 1,
            }
        }
        Ok(())
    }

    fn extents(&mut self, ino: Ino, extents: &[Extent]) {
        for extent in extents {
            let location = extent.location;
            let object = location.pack.object_name();
            let Some(index) = self.index(location.pack) else {
                if !self.known.contains(&location.pack) {
                    let reason =
                        format!("inode {ino} needs it, and it is neither here nor uploaded");
                    self.report.add(object, None, reason, ADVICE);
                }
                continue;
            };
            if index.get(&location.offset) != Some(&(extent.blob, location.stored_len)) {
                let reason = format!("inode {ino} needs blob {} there", extent.blob);
                self.report
                    .add(object, Some(u64::from(location.offset)), reason, ADVICE);
            }
        }
    }

    /// The index of a pack's local copy. A copy that cannot be read is the pack check's to name.
    fn index(&mut self, pack: PackId) -> Option<&Records> {
        if self.indexes.len() >= INDEXES_MAX && !self.indexes.contains_key(&pack) {
            self.indexes.pop_first();
        }
        let root = self.root;
        let load = || {
            let local = LocalPack::open(&root.join(pack.object_name())).ok()?;
            let entries = read_index(&local, pack).ok()?.entries;
            Some(
                entries
                    .iter()
                    .map(|entry| (entry.offset, (entry.hash, entry.stored_len)))
                    .collect(),
            )
        };
        self.indexes.entry(pack).or_insert_with(load).as_ref()
    }

    fn finish(self) {
        let mut named = self.named;
        for (ino, (names, seen)) in &self.names {
            named += u64::from(*seen > 0);
            if names != seen {
                let reason = format!("it should have {names} names and has {seen}");
                self.report
                    .add(format!("inode {ino}"), None, reason, ADVICE);
            }
        }
        if named < self.inodes {
            let reason = format!("{} inodes have no name", self.inodes - named);
            self.report.add("the metadata", None, reason, ADVICE);
        }
    }
}

fn ino_of(key: &[u8]) -> Option<Ino> {
    let account = key
        .first_chunk::<3>()
        .map(|b| u32::from_be_bytes([0, b[0], b[1], b[2]]))?;
    let local = key
        .get(4..9)?
        .iter()
        .fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    Some(Ino::new(AccountId::new(account)?, local))
}

fn not_in_format(object: String) -> Error {
    Error::corrupt(object, 0, "not in the format")
}
