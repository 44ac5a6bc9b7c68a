//! Where the bytes of a file are.

use std::collections::HashSet;
use std::ops::Bound;

use crate::error::{Error, Result};
use crate::format::inode::{Extent, Inode, decode_extents};
use crate::format::keys;
use crate::meta::view::View;
use crate::types::{BlobHash, Ino, PackId};

/// What the content of a file consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Content {
    /// Ranges of it that are no holes.
    pub extents: u64,
    /// Different blobs that they refer to.
    pub blobs: u64,
    /// Different packs that those are in.
    pub packs: u64,
    /// Bytes that those blobs take up in their packs, shared or not.
    pub stored_bytes: u64,
}

/// Of the inode `ino` at the moment of `view`.
pub fn content_of(view: &View, ino: Ino, inode: &Inode) -> Result<Content> {
    let mut found = Found::default();
    found.add(&inode.extents);
    if inode.has_leaves {
        let (from, to) = (keys::extents(ino, 0), keys::extents_end(ino));
        for leaf in view.range(&from, Bound::Excluded(&to)) {
            let (_, leaf) = leaf?;
            let extents = decode_extents(&leaf).ok_or_else(|| {
                Error::corrupt(
                    format!("the extents of inode {ino}"),
                    0,
                    "not in the format",
                )
            })?;
            found.add(&extents);
        }
    }
    Ok(Content {
        blobs: found.blobs.len() as u64,
        packs: found.packs.len() as u64,
        ..found.content
    })
}

#[derive(Default)]
struct Found {
    content: Content,
    blobs: HashSet<BlobHash>,
    packs: HashSet<PackId>,
}

impl Found {
    fn add(&mut self, extents: &[Extent]) {
        for extent in extents {
            self.content.extents += 1;
            self.packs.insert(extent.location.pack);
            if self.blobs.insert(extent.blob) {
                self.content.stored_bytes += u64::from(extent.location.stored_len);
            }
        }
    }
}
