//! What was, again in the live volume: an item of the past gets a name and an inode of its own, and its content by
//! reference, so that no byte is read and none is written but metadata.

use std::collections::HashMap;

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::format::inode::{EntryTarget, Extent, Inode};
use crate::format::keys;
use crate::meta::view::View;
use crate::types::{FileKind, Ino, Timestamp};
use crate::volume::engine::Volume;
use crate::volume::extents;
use crate::volume::feed::FeedTx;
use crate::volume::namespace::{self, inode_of, put_inode};

/// Extents of one file that are brought back in one transaction, some 100 MB of memory: a file of 4 GiB where every
/// page was written on its own, of 60 GiB where it was written in one go.
const EXTENTS_MAX: usize = 1 << 20;

/// An item of the past with all that it was.
#[derive(Debug)]
pub struct Past {
    inode: Inode,
    xattrs: Vec<(Bytes, Bytes)>,
    content: Vec<Extent>,
}

impl Past {
    /// The inode `ino` as of the moment of `view`.
    pub fn read(view: &View, ino: Ino, inode: &Inode) -> Result<Past> {
        let mut xattrs = Vec::new();
        for name in namespace::xattr_names(view, ino)? {
            let value = namespace::xattr(view, ino, &name)?;
            xattrs.push((name, value));
        }
        Ok(Past {
            inode: inode.clone(),
            xattrs,
            content: content_of(view, ino, inode)?,
        })
    }
}

fn content_of(view: &View, ino: Ino, inode: &Inode) -> Result<Vec<Extent>> {
    let mut content: Vec<Extent> = Vec::new();
    loop {
        let from = content.last().map_or(0, Extent::end);
        let some = extents::some_from(view, ino, inode, from)?;
        if some.is_empty() {
            return Ok(content);
        }
        content.extend(some);
        if content.len() > EXTENTS_MAX {
            return Err(Error::Refused(
                "it has too many pieces to be brought back in one step: restore it into a directory, and copy".into(),
            ));
        }
    }
}

impl FeedTx<'_, '_> {
    /// Gives `past` a name that is free, as a new inode of the parent's account.
    pub fn revive(&mut self, parent: Ino, name: &[u8], past: &Past, now: Timestamp) -> Result<Ino> {
        namespace::check_name(name)?;
        let kind = past.inode.kind;
        let is_dir = kind == FileKind::Dir;
        if self.entry(parent, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        let tx = self.tx();
        let ino = namespace::allocate_ino(tx, parent.account())?;
        let mut inode = Inode {
            nlink: if is_dir { 2 } else { 1 },
            parent: is_dir.then_some(parent),
            allocated: 0,
            extents: Vec::new(),
            has_leaves: false,
            origin: None,
            ctime: now,
            ..past.inode.clone()
        };
        if !past.content.is_empty() {
            extents::replace(tx, ino, &mut inode, 0..u64::MAX, &past.content)?;
        }
        put_inode(tx, ino, &inode);
        for (name, value) in &past.xattrs {
            tx.put(keys::xattr(ino, name), value.clone());
        }
        namespace::put_entry(tx, parent, name, EntryTarget { ino, kind });
        let mut dir = inode_of(tx, parent)?;
        dir.nlink += u32::from(is_dir);
        dir.mtime = now;
        dir.ctime = now;
        put_inode(tx, parent, &dir);
        self.entry_changed(parent, name);
        Ok(ino)
    }
}

/// Which inodes of the past are here again, for their other names.
pub type Revived = HashMap<Ino, Ino>;

impl Volume {
    /// Brings one item back. One that has several names is linked where it is here again.
    pub fn revive(
        &self,
        (parent, name): (Ino, &[u8]),
        (ino, past): (Ino, &Past),
        revived: &mut Revived,
    ) -> Result<Ino> {
        let now = self.clock.now();
        let has_more = past.inode.kind != FileKind::Dir && past.inode.nlink > 1;
        if has_more && let Some(known) = revived.get(&ino) {
            self.feed(|tx| tx.link(*known, parent, name))?;
            return Ok(*known);
        }
        let made = self.feed(|tx| tx.revive(parent, name, past, now))?;
        if has_more {
            revived.insert(ino, made);
        }
        Ok(made)
    }
}
