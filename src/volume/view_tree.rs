//! A moment of the volume as a tree: read-only, from segments and packs, local or external.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::Result;
use crate::fetch::{Fetch, ReadPlan};
use crate::meta::view::View;
use crate::types::{FileKind, Ino};
use crate::volume::tree::{Answer, Attr, DirEntry, OpenMode, SeekFor, Space, Tree};
use crate::volume::{extents, namespace};

/// Inodes that are kept decoded: a listing asks for each attribute again and again.
const INODES_MAX: usize = 16_384;

/// The tree of one view.
#[derive(Debug)]
pub struct ViewTree {
    view: View,
    fetch: Arc<Fetch>,
    inodes: Mutex<HashMap<Ino, Arc<crate::format::inode::Inode>>>,
}

impl ViewTree {
    /// Shows `view`; blobs come through `fetch`.
    pub fn new(view: View, fetch: Arc<Fetch>) -> ViewTree {
        ViewTree {
            view,
            fetch,
            inodes: Mutex::default(),
        }
    }

    /// Its metadata.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// What `plan` says, on this thread, which may wait for the external volume.
    pub fn read_now(&self, plan: &ReadPlan) -> Result<Bytes> {
        self.fetch.read_now(plan)
    }

    fn inode(&self, ino: Ino) -> Result<Arc<crate::format::inode::Inode>> {
        if let Some(inode) = self
            .inodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&ino)
        {
            return Ok(Arc::clone(inode));
        }
        let inode = Arc::new(namespace::inode_of(&self.view, ino)?);
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        if inodes.len() >= INODES_MAX {
            inodes.clear();
        }
        inodes.insert(ino, Arc::clone(&inode));
        Ok(inode)
    }
}

impl Tree for ViewTree {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let target = namespace::lookup(&self.view, parent, name)?;
        self.getattr(target.ino)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        Ok(namespace::attr_of(ino, &*self.inode(ino)?))
    }

    fn readlink(&self, ino: Ino) -> Result<Bytes> {
        let inode = self.inode(ino)?;
        if inode.kind == FileKind::Symlink {
            Ok(inode.target.clone().into())
        } else {
            Err(Errno::EINVAL.into())
        }
    }

    fn readdir(&self, ino: Ino, after: Option<&[u8]>, count_max: usize) -> Result<Vec<DirEntry>> {
        namespace::read_dir(&self.view, ino, after, count_max)
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        Ok(self.inode(ino)?.parent.unwrap_or(Ino::ROOT))
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        namespace::xattr(&self.view, ino, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>> {
        namespace::xattr_names(&self.view, ino)
    }

    fn open(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        self.inode(ino)?;
        if mode.write || mode.truncate {
            Err(Errno::EROFS.into())
        } else {
            Ok(())
        }
    }

    fn read(&self, ino: Ino, offset: u64, len: u32, answer: Answer<Bytes>) {
        let plan = self.inode(ino).and_then(|inode| {
            let end = inode.size.min(offset.saturating_add(u64::from(len)));
            if end <= offset {
                return Ok(ReadPlan::default());
            }
            let extents = extents::read(&self.view, ino, &inode, offset..end)?;
            let len = usize::try_from(end - offset).unwrap_or(usize::MAX);
            Ok(ReadPlan {
                offset,
                len,
                extents,
                newer: Vec::new(),
            })
        });
        match plan {
            Ok(plan) => self.fetch.read(plan, answer),
            Err(error) => answer(Err(error)),
        }
    }

    fn seek(&self, ino: Ino, offset: u64, seek: SeekFor) -> Result<u64> {
        let inode = self.inode(ino)?;
        let extents = extents::read(&self.view, ino, &inode, offset..inode.size)?;
        seek_in(&extents, offset, inode.size, seek)
    }

    fn release(&self, _: Ino, _: OpenMode) -> Result<()> {
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        Ok(Space {
            block_len: 4096,
            blocks: 0,
            blocks_free: 0,
            files: 0,
            files_free: 0,
        })
    }
}

/// `lseek` for data or a hole at or behind `offset`, in a file of length `size` whose extents from
/// `offset` on are these.
pub fn seek_in(
    extents: &[crate::format::inode::Extent],
    offset: u64,
    size: u64,
    seek: SeekFor,
) -> Result<u64> {
    if offset >= size {
        return Err(Errno::ENXIO.into());
    }
    match seek {
        SeekFor::Data => extents
            .first()
            .map(|extent| extent.start.max(offset))
            .ok_or_else(|| Errno::ENXIO.into()),
        SeekFor::Hole => {
            let mut at = offset;
            for extent in extents {
                if extent.start > at {
                    break;
                }
                at = at.max(extent.end());
            }
            Ok(at.min(size))
        }
    }
}
