//! Bytes for a feed: a piece of a file becomes a blob on the caller's thread, within the limits that writers to the mount
//! have too.

use std::ops::Range;

use crossbeam_channel::bounded;

use crate::chunk::Chunker;
use crate::error::Result;
use crate::format::inode::{EntryTarget, Extent, Inode};
use crate::ingest::Placed;
use crate::types::Ino;
use crate::volume::engine::Volume;
use crate::volume::{extents, namespace};

/// A piece that is in a pack.
#[derive(Clone, Copy, Debug)]
pub struct Brought {
    /// Where.
    pub placed: Placed,
    /// Whether it was not there before.
    pub is_new: bool,
}

impl Volume {
    /// Where files are cut.
    pub fn chunker(&self) -> &Chunker {
        &self.files.ingest().chunker
    }

    /// Brings a piece into a pack, unless it is in one. What is new is refused when there is no room, and made to wait
    /// while writers are slowed.
    pub fn bring(&self, plain: &[u8], scratch: &mut Vec<u8>) -> Result<Brought> {
        let len = plain.len() as u64;
        let ingest = self.files.ingest();
        let (placed, is_new) = ingest.place_admitted(plain, scratch, || self.backlog.admit(len))?;
        if is_new && self.backlog.allowed_rate().is_some() {
            let (sender, answered) = bounded(1);
            self.pacer
                .hold(len, Box::new(move |outcome| drop(sender.send(outcome))));
            // Without an answer the pacer is gone, and with it the volume: the next change is refused.
            answered.recv().unwrap_or(Ok(()))?;
        }
        Ok(Brought { placed, is_new })
    }

    /// The extents of a file that overlap `range`, cut to it.
    pub fn extents_in(&self, ino: Ino, inode: &Inode, range: Range<u64>) -> Result<Vec<Extent>> {
        extents::read(&self.overlay.read(), ino, inode, range)
    }

    /// What a name stands for.
    pub fn entry(&self, parent: Ino, name: &[u8]) -> Result<Option<EntryTarget>> {
        namespace::entry(&self.overlay.read(), parent, name)
    }

    /// An inode as it is in the metadata.
    pub fn inode(&self, ino: Ino) -> Result<Inode> {
        namespace::inode_of(&self.overlay.read(), ino)
    }
}
