//! Packs: a damaged local copy is replaced from the external volume; a damaged or missing external one loses
//! its standing, so that the uploader sends it again from the local copy (invariant 9).

use std::collections::HashMap;

use bytes::Bytes;
use vfs::{ObjectKey, VolumeExt};

use crate::error::{Error, Result};
use crate::maintain::check::OnProgress;
use crate::maintain::fix::Fix;
use crate::maintain::packs::is_uploaded;
use crate::pack::ledger::PackEntry;
use crate::pack::read::{LocalPack, MemoryPack, ReadAt};
use crate::pack::verify::verify_pack;
use crate::types::PackId;
use crate::volume::settings::{rewrite, sync_dir};

/// Whether it has the length it should and nothing of it is damaged or, unless `may_lack`, absent.
fn is_whole(
    pack: &impl ReadAt,
    id: PackId,
    entry: &PackEntry,
    read_data: bool,
    may_lack: bool,
) -> bool {
    let has_len = pack.len().is_ok_and(|len| len == u64::from(entry.len));
    has_len
        && verify_pack(pack, id, read_data).is_ok_and(|found| {
            found.sealed && found.damaged.is_empty() && (may_lack || found.absent.is_empty())
        })
}

impl Fix<'_> {
    /// Replaces damaged local copies.
    pub(super) fn local_packs(&mut self, read_data: bool, progress: OnProgress<'_>) -> Result<()> {
        let mut read_bytes = 0;
        for (pack, entry) in self.ledger.all() {
            let path = self.root.join(pack.object_name());
            let is_read = read_data && !entry.evicted;
            let is_good = LocalPack::open(&path)
                .is_ok_and(|local| is_whole(&local, pack, &entry, is_read, entry.evicted));
            read_bytes += u64::from(entry.len);
            progress("verifying local packs", read_bytes);
            if is_good {
                continue;
            }
            let Some(bytes) = self.whole_external(pack, &entry) else {
                continue;
            };
            if path.exists() {
                self.done.set_aside(&path, "replaced")?;
            }
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
                sync_dir(&self.root.join("items"))?;
            }
            rewrite(&path, &bytes)?;
            self.done
                .note(path.display().to_string(), "taken from the external volume");
        }
        Ok(())
    }

    fn external_bytes(&self, pack: PackId, len: u64) -> Result<Bytes> {
        let external = self
            .external
            .as_ref()
            .ok_or_else(|| Error::Refused("there is no external volume".into()))?;
        Ok(external.get(&ObjectKey::new(pack.object_name())?, 0..len)?)
    }

    /// The external copy, if all of it is right.
    fn whole_external(&self, pack: PackId, entry: &PackEntry) -> Option<Bytes> {
        let bytes = self.external_bytes(pack, u64::from(entry.len)).ok()?;
        let copy = MemoryPack {
            name: pack.object_name(),
            bytes: bytes.clone(),
        };
        is_whole(&copy, pack, entry, true, false).then_some(bytes)
    }

    /// Has bad external copies sent again.
    pub(super) fn external_packs(
        &mut self,
        read_data: bool,
        progress: OnProgress<'_>,
    ) -> Result<()> {
        let Some(external) = self.external.clone() else {
            return Ok(());
        };
        let mut there = HashMap::new();
        external.for_each("items/", |meta| -> Result<()> {
            there.insert(meta.key.to_string(), meta.len);
            Ok(())
        })?;
        let mut read_bytes = 0;
        let uploaded = self.ledger.all().into_iter();
        for (pack, entry) in uploaded.filter(|(_, entry)| is_uploaded(entry)) {
            let name = pack.object_name();
            let len = there.get(&name).copied();
            if read_data {
                read_bytes += len.unwrap_or(0);
                progress("verifying external packs", read_bytes);
            }
            let is_good = len == Some(u64::from(entry.len))
                && (!read_data || self.whole_external(pack, &entry).is_some());
            if is_good || entry.evicted {
                continue;
            }
            // Whatever is worth sending must be worth replacing the other.
            let is_here = LocalPack::open(&self.root.join(&name))
                .is_ok_and(|local| is_whole(&local, pack, &entry, true, false));
            if is_here {
                self.send_again(&*external, pack, &entry, len)?;
            }
        }
        Ok(())
    }

    fn send_again(
        &mut self,
        external: &dyn vfs::Volume,
        pack: PackId,
        entry: &PackEntry,
        len: Option<u64>,
    ) -> Result<()> {
        let name = pack.object_name();
        if let Some(len) = len {
            // What cannot be read cannot be kept, and is no reason not to have it right again.
            if let Ok(bytes) = self.external_bytes(pack, len) {
                self.done.keep(&name, &bytes, "external")?;
            }
        }
        // First of all it counts as not sent: from here on it is sent whatever happens.
        self.ledger.unsent(pack, entry.len)?;
        self.ledger.sync()?;
        if len.is_some() {
            // The uploader takes an object of the right length for a pack that was sent before a crash.
            external.delete(&[ObjectKey::new(name.clone())?])?;
        }
        self.done.note(
            format!("{external}/{name}"),
            "is sent again at the next mount",
        );
        Ok(())
    }
}
