//! Changes that do not come through the mount: what a scan brings in, item by item.
//!
//! Everything here happens in transactions of the overlay ([`Volume::feed`]), so that an item is in the volume with its
//! content, its attributes and its origin, or not at all. Whoever shows the volume hears of each change through the
//! [`Witness`], after it, with no lock of the engine held: that is the one door past which such changes go.
//!
//! Attributes are the source's, also the change time: nothing here touches a directory because something in it changed.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use crate::error::{Error, Result};
use crate::format::inode::{EntryTarget, Extent, Inode, Origin};
use crate::format::keys;
use crate::meta::overlay::{Entries, Transaction};
use crate::types::{AccountId, FileKind, Ino, Timestamp};
use crate::volume::engine::Volume;
use crate::volume::files::Files;
use crate::volume::namespace::{self, inode_of, put_inode};
use crate::volume::tree::Caller;
use crate::volume::{extents, tree};

/// Hears of changes that did not come through the mount. Called by threads that hold no lock of the engine; it may
/// let them wait.
pub trait Witness: fmt::Debug + Send + Sync {
    /// A name came, went, or names something else.
    fn entry(&self, parent: Ino, name: &[u8]);
    /// Content or attributes of an inode changed.
    fn inode(&self, ino: Ino);
    /// Returns when all that was told before is known everywhere.
    fn settle(&self);
}

/// An item of a source, as it shall be in the volume.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file, else 0.
    pub rdev: u32,
    /// Length of a file.
    pub size: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Target of a symbolic link, else empty.
    pub target: Vec<u8>,
    /// Which inode of the source it is.
    pub origin: Origin,
    /// All its extended attributes; `None` leaves those that are there.
    pub xattrs: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    /// All its content, in order; `None` leaves what is there.
    pub content: Option<Vec<Extent>>,
}

enum Notice {
    Entry(Ino, Box<[u8]>),
    Inode(Ino),
    Resized(Ino, u64),
}

/// A transaction of a feed.
pub struct FeedTx<'a, 't> {
    tx: &'a mut Transaction<'t>,
    files: &'a Files,
    notices: Vec<Notice>,
}

impl fmt::Debug for FeedTx<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedTx").finish_non_exhaustive()
    }
}

impl Volume {
    /// Runs `work` as one transaction: all of it, or nothing if it fails. Waits while too much is uncommitted.
    pub fn feed<T>(&self, work: impl FnOnce(&mut FeedTx<'_, '_>) -> Result<T>) -> Result<T> {
        self.admit_name()?;
        let mut notices = Vec::new();
        let answer = self.overlay.transact(|tx| {
            let mut feed = FeedTx {
                tx,
                files: &self.files,
                notices: Vec::new(),
            };
            let answer = work(&mut feed)?;
            notices = std::mem::take(&mut feed.notices);
            Ok(answer)
        })?;
        self.tell(notices);
        Ok(answer)
    }

    /// Who hears of changes that did not come through the mount; `None` when nobody shows the volume any more.
    pub fn set_witness(&self, witness: Option<Arc<dyn Witness>>) {
        *self.witness.write().unwrap_or_else(PoisonError::into_inner) = witness;
    }

    /// The one who hears of them. Whoever changes a live volume beside its mount tells it afterwards.
    pub fn witness(&self) -> Option<Arc<dyn Witness>> {
        self.witness
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn tell(&self, notices: Vec<Notice>) {
        let witness = self.witness();
        for notice in notices {
            match (notice, &witness) {
                (Notice::Resized(ino, size), _) => self.files.resized(ino, size),
                (Notice::Entry(parent, name), Some(witness)) => witness.entry(parent, &name),
                (Notice::Inode(ino), Some(witness)) => witness.inode(ino),
                (_, None) => {}
            }
        }
    }
}

impl<'t> FeedTx<'_, 't> {
    pub(super) fn tx(&mut self) -> &mut Transaction<'t> {
        self.tx
    }

    pub(super) fn entry_changed(&mut self, parent: Ino, name: &[u8]) {
        self.notices.push(Notice::Entry(parent, name.into()));
    }

    /// The inode, if it is there.
    pub fn inode(&self, ino: Ino) -> Result<Option<Inode>> {
        match inode_of(self.tx, ino) {
            Ok(inode) => Ok(Some(inode)),
            Err(Error::Posix(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a name stands for.
    pub fn entry(&self, parent: Ino, name: &[u8]) -> Result<Option<EntryTarget>> {
        namespace::entry(self.tx, parent, name)
    }

    /// The inode that was copied from the inode `number` of the source's file system `place`.
    pub fn by_origin(
        &self,
        account: AccountId,
        place: u32,
        number: u64,
    ) -> Result<Option<(Ino, Inode)>> {
        find_origin(self.tx, account, place, number)
    }

    /// Makes an item under a name that is free.
    pub fn make(&mut self, parent: Ino, name: &[u8], item: &Item) -> Result<Ino> {
        namespace::check_name(name)?;
        let ino = namespace::allocate_ino(self.tx, parent.account())?;
        let mut inode = blank(item, parent);
        self.fill(ino, &mut inode, item)?;
        put_inode(self.tx, ino, &inode);
        let kind = item.kind;
        namespace::put_entry(self.tx, parent, name, EntryTarget { ino, kind });
        if kind == FileKind::Dir {
            self.count_subdirs(parent, 1)?;
        }
        self.entry_changed(parent, name);
        Ok(ino)
    }

    /// Makes the inode what the item is. Its kind stays.
    pub fn change(&mut self, ino: Ino, item: &Item) -> Result<()> {
        let old = inode_of(self.tx, ino)?;
        let mut inode = old.clone();
        self.fill(ino, &mut inode, item)?;
        if inode != old {
            put_inode(self.tx, ino, &inode);
        }
        if inode.size != old.size {
            self.notices.push(Notice::Resized(ino, inode.size));
        }
        self.notices.push(Notice::Inode(ino));
        Ok(())
    }

    fn fill(&mut self, ino: Ino, inode: &mut Inode, item: &Item) -> Result<()> {
        if inode.origin != Some(item.origin) {
            namespace::forget_origin(self.tx, ino, inode)?;
            self.put_origin(ino, item.origin);
        }
        inode.mode = item.mode & tree::MODE_BITS;
        inode.uid = item.uid;
        inode.gid = item.gid;
        inode.rdev = item.rdev;
        inode.atime = item.atime;
        inode.mtime = item.mtime;
        inode.ctime = item.ctime;
        inode.target.clone_from(&item.target);
        inode.origin = Some(item.origin);
        if let Some(xattrs) = &item.xattrs {
            self.set_xattrs(ino, xattrs)?;
        }
        if let Some(content) = &item.content {
            extents::truncate(self.tx, ino, inode, 0)?;
            extents::replace(self.tx, ino, inode, 0..u64::MAX, content)?;
            inode.size = item.size;
        }
        Ok(())
    }

    fn put_origin(&mut self, ino: Ino, origin: Origin) {
        let key = keys::origin(ino.account(), origin.place, origin.number);
        self.tx.put(key, ino.local().to_le_bytes().to_vec());
    }

    fn set_xattrs(&mut self, ino: Ino, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        let old = self
            .tx
            .range(&keys::xattr(ino, b""), &keys::xattrs_end(ino), usize::MAX)?;
        for (key, _) in &old {
            let name = keys::name_of(key);
            if !xattrs.iter().any(|(kept, _)| kept == name) {
                self.tx.delete(keys::Key::from_bytes(key));
            }
        }
        for (name, value) in xattrs {
            let key = keys::xattr(ino, name);
            let is_there = old
                .iter()
                .any(|(had, old)| **had == *key && **old == **value);
            if !is_there {
                self.tx.put(key, value.clone());
            }
        }
        Ok(())
    }

    /// Puts `content` in the place of a range of a file: for those too large for one transaction. Until
    /// [`FeedTx::change`] says otherwise nobody trusts its size and times.
    pub fn write_range(&mut self, ino: Ino, range: Range<u64>, content: &[Extent]) -> Result<()> {
        let mut inode = inode_of(self.tx, ino)?;
        extents::replace(self.tx, ino, &mut inode, range.clone(), content)?;
        let before = inode.size;
        inode.size = inode.size.max(range.end);
        if let Some(origin) = &mut inode.origin {
            origin.is_settled = false;
        }
        put_inode(self.tx, ino, &inode);
        if inode.size != before {
            self.notices.push(Notice::Resized(ino, inode.size));
        }
        self.notices.push(Notice::Inode(ino));
        Ok(())
    }

    /// Cuts a file off, or lets it grow by a hole.
    pub fn set_size(&mut self, ino: Ino, size: u64) -> Result<()> {
        let mut inode = inode_of(self.tx, ino)?;
        extents::truncate(self.tx, ino, &mut inode, size)?;
        inode.size = size;
        put_inode(self.tx, ino, &inode);
        self.notices.push(Notice::Resized(ino, size));
        Ok(())
    }

    /// Gives an inode one more name, which is free; also one that was parked.
    pub fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Result<()> {
        namespace::check_name(name)?;
        let mut inode = inode_of(self.tx, ino)?;
        if inode.nlink == 0 {
            self.tx.delete(keys::orphan(ino));
        }
        inode.nlink += 1;
        put_inode(self.tx, ino, &inode);
        let kind = inode.kind;
        namespace::put_entry(self.tx, parent, name, EntryTarget { ino, kind });
        self.entry_changed(parent, name);
        self.notices.push(Notice::Inode(ino));
        Ok(())
    }

    /// Takes a name away from what is no directory. If it was the last one the inode is parked: nameless, for a
    /// name of it that may still be found. [`FeedTx::drop_parked`] ends that, as does the next opening of the volume.
    /// Tells whether it was the last.
    pub fn park(&mut self, parent: Ino, name: &[u8]) -> Result<bool> {
        let target = namespace::lookup(self.tx, parent, name)?;
        self.tx.delete(keys::dir_entry(parent, name));
        let mut inode = inode_of(self.tx, target.ino)?;
        inode.nlink = inode.nlink.saturating_sub(1);
        put_inode(self.tx, target.ino, &inode);
        if inode.nlink == 0 && std::env::var("MUT").is_ok_and(|m| m == "park") {
            namespace::remove_inode(self.tx, target.ino, &inode)?;
        } else if inode.nlink == 0 {
            self.tx.put(keys::orphan(target.ino), bytes::Bytes::new());
        }
        self.entry_changed(parent, name);
        self.notices.push(Notice::Inode(target.ino));
        Ok(inode.nlink == 0)
    }

    /// Removes a parked inode that found no name, unless somebody has it open: then it goes when it is closed.
    pub fn drop_parked(&mut self, ino: Ino) -> Result<()> {
        if self.files.is_open(ino) {
            return Ok(());
        }
        namespace::remove_orphan(self.tx, ino)
    }

    /// Removes a name, of a file or of an empty directory.
    pub fn remove(&mut self, parent: Ino, name: &[u8]) -> Result<()> {
        let target = namespace::lookup(self.tx, parent, name)?;
        if target.kind != FileKind::Dir {
            if self.park(parent, name)? {
                self.drop_parked(target.ino)?;
            }
            return Ok(());
        }
        if !namespace::is_empty(self.tx, target.ino)? {
            return Err(nix::errno::Errno::ENOTEMPTY.into());
        }
        self.tx.delete(keys::dir_entry(parent, name));
        let inode = inode_of(self.tx, target.ino)?;
        namespace::remove_inode(self.tx, target.ino, &inode)?;
        self.count_subdirs(parent, -1)?;
        self.entry_changed(parent, name);
        Ok(())
    }

    /// Moves a directory within its account, to a name that is free. Not below itself.
    pub fn move_dir(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> Result<()> {
        namespace::check_name(to.1)?;
        let target = namespace::lookup(self.tx, from.0, from.1)?;
        if namespace::is_below(self.tx, to.0, target.ino)? {
            return Err(nix::errno::Errno::EINVAL.into());
        }
        self.tx.delete(keys::dir_entry(from.0, from.1));
        namespace::put_entry(self.tx, to.0, to.1, target);
        let mut inode = inode_of(self.tx, target.ino)?;
        inode.parent = Some(to.0);
        put_inode(self.tx, target.ino, &inode);
        self.count_subdirs(from.0, -1)?;
        self.count_subdirs(to.0, 1)?;
        self.entry_changed(from.0, from.1);
        self.entry_changed(to.0, to.1);
        Ok(())
    }

    /// Whether the directory `ino` is `ancestor` or lies below it.
    pub fn is_below(&self, ino: Ino, ancestor: Ino) -> Result<bool> {
        namespace::is_below(self.tx, ino, ancestor)
    }

    /// The name of a directory in its parent, if it still has one.
    pub fn name_of_dir(&self, ino: Ino) -> Result<Option<(Ino, Vec<u8>)>> {
        let Some(parent) = self.inode(ino)?.and_then(|inode| inode.parent) else {
            return Ok(None);
        };
        let (mut from, to) = (
            keys::dir_entry(parent, b"").to_vec(),
            keys::dir_entries_end(parent),
        );
        loop {
            let found = self.tx.range(&from, &to, 256)?;
            for (key, value) in &found {
                if crate::format::inode::decode_entry(value).is_some_and(|entry| entry.ino == ino) {
                    return Ok(Some((parent, keys::name_of(key).to_vec())));
                }
            }
            let Some((last, _)) = found.last() else {
                return Ok(None);
            };
            from = last.to_vec();
            from.push(0); // the least key above
        }
    }

    fn count_subdirs(&mut self, dir: Ino, by: i32) -> Result<()> {
        let mut inode = inode_of(self.tx, dir)?;
        inode.nlink = inode.nlink.saturating_add_signed(by);
        put_inode(self.tx, dir, &inode);
        Ok(())
    }
}

/// As [`FeedTx::by_origin`]: the hint is followed, and the inode there has to agree.
pub(super) fn find_origin(
    entries: &impl Entries,
    account: AccountId,
    place: u32,
    number: u64,
) -> Result<Option<(Ino, Inode)>> {
    let Some(bytes) = entries.get(&keys::origin(account, place, number))? else {
        return Ok(None);
    };
    let Some(local) = bytes.first_chunk::<8>() else {
        return Ok(None);
    };
    let ino = Ino::new(account, u64::from_le_bytes(*local));
    match inode_of(entries, ino) {
        Ok(inode) => {
            let is_it = inode
                .origin
                .is_some_and(|origin| (origin.place, origin.number) == (place, number));
            Ok(is_it.then_some((ino, inode)))
        }
        Err(Error::Posix(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The inode of an item before it is filled.
fn blank(item: &Item, parent: Ino) -> Inode {
    let owner = Caller {
        uid: item.uid,
        gid: item.gid,
    };
    let mut inode = namespace::new_dir(item.mode, owner, parent, item.mtime);
    if item.kind != FileKind::Dir {
        inode.kind = item.kind;
        inode.nlink = 1;
        inode.parent = None;
        inode.size = item.size;
    }
    inode
}
