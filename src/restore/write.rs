//! One item that is no directory: made under a temporary name, complete, then given its own.

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, fstat, makedev, mknodat};
use nix::unistd::{linkat, symlinkat};

use crate::error::Error;
use crate::fetch::ReadPlan;
use crate::format::inode::Extent;
use crate::meta::view::View;
use crate::restore::attributes::{Rights, Xattrs};
use crate::restore::dest::{Dest, give_name, handle, make_file, remove};
use crate::restore::existing::{device_of, flag_of, kind_of};
use crate::restore::name::SafeName;
use crate::restore::plan::Leaf;
use crate::restore::report::Obstacle;
use crate::types::{Epoch, FileKind};
use crate::volume::extents;
use crate::volume::view_tree::ViewTree;

/// Bytes read and written in one step.
const STEP_LEN_MAX: u64 = 2 << 20;
/// A file of more is not begun where the disk has no room for it.
const ROOM_ASKED_FROM: u64 = 1 << 20;
/// The longest file of Linux.
const SIZE_MAX: u64 = i64::MAX as u64;

/// Told each time that content was written; `false` when it is to stop.
pub(super) type OnBytes<'a> = &'a dyn Fn(u64) -> bool;

/// What is needed to write items.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    pub(super) tree: &'a ViewTree,
    pub(super) dest: &'a Dest,
    pub(super) rights: Rights,
}

/// An item that was written.
#[derive(Debug)]
pub(super) struct Written {
    /// What it does not have.
    pub(super) lacks: Vec<String>,
    /// Bytes of content.
    pub(super) bytes: u64,
}

/// Removes a temporary name that was not given its own.
struct Unfinished<'a> {
    dir: &'a OwnedFd,
    name: Option<SafeName>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // What stays is removed by the next restore into the directory.
            let _ = remove(self.dir, name);
        }
    }
}

impl Writer<'_> {
    /// Writes `leaf` as `name` of `dir`. `None` if it was told to stop.
    pub(super) fn write(
        &self,
        leaf: &Leaf,
        xattrs: &Xattrs,
        (dir, name): (&OwnedFd, &SafeName),
        on_bytes: OnBytes<'_>,
    ) -> Result<Option<Written>, Obstacle> {
        let mut unfinished = Unfinished {
            dir,
            name: Some(self.dest.temporary()),
        };
        let Some(temporary) = unfinished.name.clone() else {
            return Ok(None);
        };
        let (fd, bytes) = if leaf.inode.kind == FileKind::File {
            let Some(file) = self.write_file(leaf, (dir, &temporary), on_bytes)? else {
                return Ok(None);
            };
            file
        } else {
            (self.make_special(leaf, dir, &temporary)?, 0)
        };
        let lacks = self.rights.give(&fd, &leaf.inode, xattrs)?;
        give_name(dir, &temporary, name).map_err(Obstacle::call("put it in its place"))?;
        unfinished.name = None;
        Ok(Some(Written { lacks, bytes }))
    }

    /// Gives what stands at `from` the name `to` as well.
    pub(super) fn link(
        &self,
        from: (&OwnedFd, &SafeName),
        to: (&OwnedFd, &SafeName),
        is_free: bool,
    ) -> Result<(), Obstacle> {
        let linked = |name: &SafeName| {
            let (from, to) = ((from.0, from.1.bytes()), (to.0, name.bytes()));
            linkat(from.0, from.1, to.0, to.1, AtFlags::empty()).map_err(Obstacle::call("link it"))
        };
        if is_free {
            return linked(to.1);
        }
        let temporary = self.dest.temporary();
        linked(&temporary)?;
        // Two names of one file stay both where one is renamed to the other: so it is removed in any case.
        let _unfinished = Unfinished {
            dir: to.0,
            name: Some(temporary.clone()),
        };
        give_name(to.0, &temporary, to.1).map_err(Obstacle::call("put it in its place"))
    }

    fn make_special(
        &self,
        leaf: &Leaf,
        dir: &OwnedFd,
        name: &SafeName,
    ) -> Result<OwnedFd, Obstacle> {
        let inode = &leaf.inode;
        if inode.kind == FileKind::Symlink {
            symlinkat(&inode.target[..], dir, name.bytes()).map_err(Obstacle::call("make it"))?;
        } else {
            let (major, minor) = device_of(inode.rdev);
            let is_device = matches!(inode.kind, FileKind::CharDevice | FileKind::BlockDevice);
            if is_device && !self.rights.is_root() {
                return Err(Obstacle::Refused(
                    "it is a device, and only root makes those".into(),
                ));
            }
            let owner_only = Mode::S_IRUSR | Mode::S_IWUSR;
            mknodat(
                dir,
                name.bytes(),
                flag_of(inode.kind),
                owner_only,
                makedev(major, minor),
            )
            .map_err(Obstacle::call("make it"))?;
        }
        let fd = handle(dir, name).map_err(Obstacle::call("open it"))?;
        let found = fstat(&fd).map_err(Obstacle::call("look at it"))?;
        // Whoever may write to the directory may have put a link to something else in its place.
        if kind_of(&found) == flag_of(inode.kind) && found.st_nlink == 1 {
            Ok(fd)
        } else {
            Err(Obstacle::Refused(
                "it was replaced while it was being made".into(),
            ))
        }
    }

    fn write_file(
        &self,
        leaf: &Leaf,
        (dir, name): (&OwnedFd, &SafeName),
        on_bytes: OnBytes<'_>,
    ) -> Result<Option<(OwnedFd, u64)>, Obstacle> {
        let size = leaf.inode.size;
        let needed = leaf.inode.allocated.min(size);
        if size > SIZE_MAX {
            return Err(Obstacle::Refused(format!(
                "it claims to have {size} bytes, which no file can have"
            )));
        }
        if needed >= ROOM_ASKED_FROM && self.dest.free_bytes().is_some_and(|free| free < needed) {
            return Err(Obstacle::Refused(format!(
                "there is no room for its {needed} bytes"
            )));
        }
        let file = File::from(make_file(dir, name).map_err(Obstacle::call("make it"))?);
        let view = view_of(self.tree, leaf.state);
        let mut written = 0;
        let mut end = 0;
        let mut from = 0;
        loop {
            let found = extents::some_from(&*view, leaf.ino, &leaf.inode, from)?;
            let Some(last) = found.last().map(Extent::end) else {
                break;
            };
            for (start, piece) in pieces(&found, size) {
                let len = piece.len;
                let bytes = self.tree.read_now(&piece)?;
                file.write_all_at(&bytes, start).map_err(write_error)?;
                written += len as u64;
                end = start + len as u64;
                if !on_bytes(len as u64) {
                    return Ok(None);
                }
            }
            from = last;
            if from >= size {
                break;
            }
        }
        if end < size {
            file.set_len(size).map_err(write_error)?;
        }
        Ok(Some((file.into(), written)))
    }
}

/// The metadata in which something is as it is, or was last.
pub(super) fn view_of(tree: &ViewTree, state: Option<Epoch>) -> Cow<'_, View> {
    match state {
        Some(state) => Cow::Owned(tree.view().as_of(state)),
        None => Cow::Borrowed(tree.view()),
    }
}

fn write_error(error: std::io::Error) -> Obstacle {
    match error.raw_os_error() {
        Some(code) => Obstacle::Call {
            op: "write it",
            errno: nix::errno::Errno::from_raw(code),
        },
        None => Obstacle::Source(Error::io("write", "it")(error)),
    }
}

/// Extents that follow each other as reads of a bounded length, none beyond `size`.
fn pieces(extents: &[Extent], size: u64) -> Vec<(u64, ReadPlan)> {
    let mut plans: Vec<(u64, ReadPlan)> = Vec::new();
    for extent in extents {
        let mut start = extent.start;
        let end = extent.end().min(size);
        while start < end {
            let cut = end.min(start.saturating_add(STEP_LEN_MAX));
            let len = cut - start;
            let part = extent.slice(start, cut);
            match plans.last_mut() {
                Some((first, plan))
                    if *first + plan.len as u64 == start
                        && plan.len as u64 + len <= STEP_LEN_MAX =>
                {
                    plan.extents.push(part);
                    plan.len += usize::try_from(len).unwrap_or(usize::MAX);
                }
                _ => plans.push((
                    start,
                    ReadPlan {
                        offset: start,
                        len: usize::try_from(len).unwrap_or(usize::MAX),
                        extents: vec![part],
                        newer: Vec::new(),
                    },
                )),
            }
            start = cut;
        }
    }
    plans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BlobHash, BlobLocation, PackId};

    fn extent(start: u64, len: u32) -> Extent {
        let location = BlobLocation {
            pack: PackId([0; 16]),
            offset: 4096,
            stored_len: 10,
            plain_len: len,
        };
        Extent {
            start,
            len,
            blob: BlobHash([0; 32]),
            blob_offset: 0,
            location,
        }
    }

    #[test]
    fn reads_are_bounded_leave_holes_out_and_end_with_the_file() {
        let found = [
            extent(0, 1 << 20),
            extent(1 << 20, 1 << 20),
            extent(2 << 20, 5 << 20),
            extent(100 << 20, 100),
        ];
        let plans = pieces(&found, (100 << 20) + 60);
        let spans: Vec<(u64, usize)> = plans
            .iter()
            .map(|(start, plan)| (*start, plan.len))
            .collect();
        assert_eq!(
            spans,
            [
                (0, 2 << 20),
                (2 << 20, 2 << 20),
                (4 << 20, 2 << 20),
                (6 << 20, 1 << 20),
                (100 << 20, 60)
            ]
        );
        assert!(pieces(&found, 0).is_empty());
        let far = pieces(&[extent(u64::MAX - 10, 10)], 1 << 60);
        assert!(far.is_empty());
    }
}
