//! `user.tidefs.*`: what the engine tells of an inode through `getfattr`. Read-only, not listed, so that
//! tools that copy attributes do not copy them.

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::Result;
use crate::pack::ledger::PackState;
use crate::types::{Ino, PackId};
use crate::volume::engine::{Durability, Volume};
use crate::volume::{extents, namespace};

const PREFIX: &[u8] = b"user.tidefs.";

/// The part of a name behind `user.tidefs.`, if it is one of ours.
pub fn own(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(PREFIX)
}

impl Volume {
    /// The value of `user.tidefs.<own>`.
    pub(super) fn own_xattr(&self, ino: Ino, own: &[u8]) -> Result<Bytes> {
        let text = match own {
            b"item" => ino.to_string(),
            b"durability" => match self.durability(ino)? {
                Durability::Memory => "memory".into(),
                Durability::Local => "local".into(),
                Durability::External => "external".into(),
                Durability::Archived => "archived".into(),
            },
            b"pack" => {
                let packs = self.packs_of(ino)?;
                let packs: Vec<String> = packs.iter().map(PackId::to_string).collect();
                packs.join("\n")
            }
            b"stored_size" => {
                let extents = self.extents_of(ino)?;
                extents
                    .iter()
                    .map(|extent| u64::from(extent.location.stored_len))
                    .sum::<u64>()
                    .to_string()
            }
            _ => return Err(Errno::ENODATA.into()),
        };
        Ok(text.into())
    }

    fn extents_of(&self, ino: Ino) -> Result<Vec<crate::format::inode::Extent>> {
        let reading = self.overlay.read();
        let inode = namespace::inode_of(&reading, ino)?;
        extents::read(&reading, ino, &inode, 0..u64::MAX)
    }

    /// How safe the inode is as it is now.
    pub fn durability(&self, ino: Ino) -> Result<Durability> {
        if self.files.look_ahead(ino, || Ok(()))?.1.is_some() {
            return Ok(Durability::Memory);
        }
        let changed = self
            .overlay
            .newest_change(&crate::format::keys::inode(ino))?;
        let extents = self.extents_of(ino)?;
        let is_external = extents.iter().all(|extent| {
            matches!(self.ledger.get(extent.location.pack), Some(entry) if matches!(entry.state, PackState::Uploaded { .. }))
        });
        use crate::meta::overlay::ChangeLayer;
        Ok(match changed {
            ChangeLayer::Active => Durability::Memory,
            ChangeLayer::Base if is_external && self.is_archived(ino)? => Durability::Archived,
            _ if is_external && !extents.is_empty() => Durability::External,
            _ => Durability::Local,
        })
    }

    /// The packs that the inode's content is in.
    pub(super) fn packs_of(&self, ino: Ino) -> Result<Vec<PackId>> {
        let extents = self.extents_of(ino)?;
        let mut packs: Vec<PackId> = extents.iter().map(|extent| extent.location.pack).collect();
        packs.dedup();
        Ok(packs)
    }

    /// Whether the external volume has the inode as it is now; its content apart.
    pub(super) fn is_metadata_archived(&self, ino: Ino) -> Result<bool> {
        use crate::meta::overlay::ChangeLayer;
        let changed = self
            .overlay
            .newest_change(&crate::format::keys::inode(ino))?;
        Ok(changed == ChangeLayer::Base && self.is_archived(ino)?)
    }

    /// Whether the inode's newest state is in an epoch that the external volume has.
    fn is_archived(&self, ino: Ino) -> Result<bool> {
        let archived = self.ledger.archived_epoch();
        let newest = self.archive.newest();
        if newest.record.is_none_or(|record| archived >= record.epoch) {
            return Ok(archived.0 > 0);
        }
        let key = crate::format::keys::inode(ino);
        Ok(newest.view.as_of(archived).get(&key)? == newest.view.get(&key)?)
    }
}
