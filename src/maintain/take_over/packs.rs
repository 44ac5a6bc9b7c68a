//! The packs of a take-over: which are there, which are only here, and for those that are only there a copy without
//! its records: header, index and trailer, as an evicted pack keeps them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use vfs::{ObjectKey, VolumeExt};

use super::stage::{Stage, each};
use super::{OnStep, Scene};
use crate::error::{Error, Result};
use crate::format::pack::BLOCK_LEN;
use crate::pack::ledger::{Ledger, PackEntry};
use crate::pack::read::{ReadAt, read_index};
use crate::types::PackId;

/// First read of the end of a pack: its index, mostly.
const TAIL_LEN: u64 = 64 << 10;

/// Where each pack is.
#[derive(Debug, Default)]
pub(super) struct Packs {
    /// By the listing just made.
    there: BTreeMap<PackId, u32>,
    /// By the directory.
    here: BTreeMap<PackId, u32>,
    known: HashMap<PackId, PackEntry>,
    /// Of those that are there: only as a stub here.
    stubs: BTreeSet<PackId>,
}

impl Packs {
    pub(super) fn is_there(&self, pack: PackId) -> bool {
        self.there.contains_key(&pack)
    }

    pub(super) fn there_count(&self) -> u64 {
        self.there.len() as u64
    }

    /// Those that no external volume has, by name.
    pub(super) fn only_here(&self) -> Vec<String> {
        let only = self.here.keys().filter(|pack| !self.is_there(**pack));
        only.map(ToString::to_string).collect()
    }

    /// Enters what is known now. What is only here is entered if it stays here.
    pub(super) fn enter(&self, ledger: &Ledger, now_secs: u64, keeps_unsent: bool) -> Result<()> {
        for (pack, len) in &self.there {
            ledger.sealed(*pack, *len)?;
            ledger.uploaded(*pack, *len, now_secs)?;
            if self.stubs.contains(pack) {
                ledger.evicted(*pack)?;
            }
        }
        let unsent = self
            .here
            .iter()
            .filter(|(pack, _)| keeps_unsent && !self.is_there(**pack));
        for (pack, len) in unsent {
            ledger.sealed(*pack, *len)?;
        }
        Ok(())
    }
}

impl Stage {
    /// Looks where each pack is, and makes stubs of those that are not here, or not as they are there.
    pub(super) fn packs(&self, scene: &Scene<'_>, progress: OnStep<'_>) -> Result<Packs> {
        let mut packs = Packs {
            here: local_packs(scene.root)?,
            known: scene.ledger.packs.iter().copied().collect(),
            ..Packs::default()
        };
        scene.external.for_each("items/", |meta| -> Result<()> {
            let name = meta.key.name().strip_suffix(".pack");
            let Some(pack) = name
                .and_then(PackId::parse)
                .filter(|pack| pack.object_name() == meta.key.as_str())
            else {
                return Ok(());
            };
            let len = u32::try_from(meta.len)
                .map_err(|_| Error::corrupt(meta.key.to_string(), 0, "a pack of over 4 GiB"))?;
            packs.there.insert(pack, len);
            Ok(())
        })?;
        let mut missing = Vec::new();
        for (pack, len) in &packs.there {
            let is_evicted = packs.known.get(pack).is_some_and(|entry| entry.evicted);
            if packs.here.get(pack) != Some(len) {
                missing.push((*pack, *len));
                packs.stubs.insert(*pack);
            } else if is_evicted {
                packs.stubs.insert(*pack);
            }
        }
        progress("fetching the indexes of packs", 0, missing.len() as u64);
        each(&missing, |(pack, len)| self.stub(scene, *pack, *len))?;
        Ok(packs)
    }

    fn stub(&self, scene: &Scene<'_>, pack: PackId, len: u32) -> Result<()> {
        let far = FarPack::open(&*scene.external, pack, u64::from(len))?;
        let index = match read_index(&far, pack) {
            Ok(index) => index,
            // It is there and cannot be read: the check names it. Blobs of it are stored again when they are met.
            Err(error @ Error::Corrupt { .. }) => {
                tracing::warn!("{}", error.chain());
                return self.write_stub(pack, len, &[]);
            }
            Err(error) => return Err(error),
        };
        let head_len = u64::from(BLOCK_LEN.min(len));
        let head = far.read_at(0, usize::try_from(head_len).unwrap_or(0))?;
        let offset = u64::from(index.offset);
        let tail = far.read_at(
            offset,
            usize::try_from(u64::from(len) - offset).unwrap_or(0),
        )?;
        self.write_stub(pack, len, &[(0, head), (offset, tail)])
    }

    fn write_stub(&self, pack: PackId, len: u32, parts: &[(u64, Bytes)]) -> Result<()> {
        let path = self.dir.join(pack.object_name());
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        file.set_len(u64::from(len))
            .map_err(Error::io("lengthen", &path))?;
        for (offset, bytes) in parts {
            file.write_all_at(bytes, *offset)
                .map_err(Error::io("write", &path))?;
        }
        Ok(())
    }
}

/// Sealed packs below `root`, with their lengths.
fn local_packs(root: &Path) -> Result<BTreeMap<PackId, u32>> {
    let mut found = BTreeMap::new();
    let items = root.join("items");
    for shard in fs::read_dir(&items).map_err(Error::io("list", &items))? {
        let shard = shard.map_err(Error::io("list", &items))?.path();
        if !shard.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&shard).map_err(Error::io("list", &shard))? {
            let path = entry.map_err(Error::io("list", &shard))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let pack = name.and_then(|name| PackId::parse(name.strip_suffix(".pack")?));
            let Some(pack) = pack else { continue };
            let len = fs::metadata(&path).map_err(Error::io("stat", &path))?.len();
            let shown = path.display().to_string();
            let len = u32::try_from(len).map_err(|_| Error::corrupt(shown, 0, "over 4 GiB"))?;
            found.insert(pack, len);
        }
    }
    Ok(found)
}

/// A pack of the external volume, with its end in memory.
struct FarPack<'a> {
    volume: &'a dyn vfs::Volume,
    key: ObjectKey,
    len: u64,
    tail_begin: u64,
    tail: Bytes,
}

impl FarPack<'_> {
    fn open(volume: &dyn vfs::Volume, pack: PackId, len: u64) -> Result<FarPack<'_>> {
        let key = ObjectKey::new(pack.object_name())?;
        let tail_begin = len.saturating_sub(TAIL_LEN);
        let tail = volume.get(&key, tail_begin..len)?;
        Ok(FarPack {
            volume,
            key,
            len,
            tail_begin,
            tail,
        })
    }
}

impl ReadAt for FarPack<'_> {
    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let end = offset + len as u64;
        if end > self.len {
            return Err(Error::corrupt(
                self.name(),
                offset,
                format!("the pack ends before {len} bytes from here"),
            ));
        }
        if offset < self.tail_begin {
            return Ok(self.volume.get(&self.key, offset..end)?);
        }
        let start = usize::try_from(offset - self.tail_begin).unwrap_or(usize::MAX);
        Ok(self.tail.slice(start..start + len))
    }

    fn name(&self) -> String {
        format!("{}/{}", self.volume, self.key)
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }
}
