//! Names and inodes: the POSIX rules of making, moving and removing, as changes of the metadata.
//!
//! Everything here happens inside one transaction of the overlay and knows nothing of open files but
//! what it is told: whether an inode whose last name goes is still in use.

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::format::inode::{self, EntryTarget, Inode};
use crate::format::keys::{self, NAME_LEN_MAX};
use crate::meta::overlay::{Entries, Transaction};
use crate::types::{AccountId, FileKind, Ino, Timestamp};
use crate::volume::account::AccountRecord;
use crate::volume::extents;
use crate::volume::tree::{Attr, Caller, DirEntry, MODE_BITS, NewNode, RenameMode, XattrMode};

/// Name of the directory of moments in the volume's root; nothing else may be called so there.
pub const SNAPSHOTS_NAME: &[u8] = b".snapshots";

const SET_GID: u16 = 0o2000;
/// Levels of directories that are walked to find a cycle before we believe there is one.
const DEPTH_MAX: usize = 100_000;
/// Linux's own limit for a symbolic link.
const TARGET_LEN_MAX: usize = 4095;
/// As ext4: a directory can hold only so many directories.
const NLINK_MAX: u32 = 1 << 30;

/// Answers whether an inode is open, so that its content outlives its last name.
pub type IsOpen<'a> = &'a dyn Fn(Ino) -> bool;

/// The inode, or `ENOENT`.
pub fn inode_of(entries: &impl Entries, ino: Ino) -> Result<Inode> {
    let bytes = entries.get(&keys::inode(ino))?.ok_or(Errno::ENOENT)?;
    Inode::decode(&bytes)
        .ok_or_else(|| Error::corrupt(format!("inode {ino}"), 0, "not in the format"))
}

/// Sets the inode.
pub fn put_inode(tx: &mut Transaction<'_>, ino: Ino, inode: &Inode) {
    tx.put(keys::inode(ino), inode.encode());
}

/// What `stat` shows of an inode.
pub fn attr_of(ino: Ino, inode: &Inode) -> Attr {
    let size = match inode.kind {
        FileKind::Symlink => inode.target.len() as u64,
        FileKind::Dir => 4096,
        _ => inode.size,
    };
    Attr {
        ino,
        kind: inode.kind,
        mode: inode.mode,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size,
        blocks: inode.allocated.div_ceil(512),
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
    }
}

pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_LEN_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    let is_plain = !name.is_empty()
        && name != b"."
        && name != b".."
        && !name.contains(&b'/')
        && !name.contains(&0);
    if is_plain {
        Ok(())
    } else {
        Err(Errno::EINVAL.into())
    }
}

pub(super) fn dir_of(entries: &impl Entries, ino: Ino) -> Result<Inode> {
    let dir = inode_of(entries, ino)?;
    if dir.kind == FileKind::Dir {
        Ok(dir)
    } else {
        Err(Errno::ENOTDIR.into())
    }
}

fn decode_entry(bytes: &[u8]) -> Result<EntryTarget> {
    inode::decode_entry(bytes)
        .ok_or_else(|| Error::corrupt("a directory entry", 0, "not in the format"))
}

pub(super) fn entry(
    entries: &impl Entries,
    parent: Ino,
    name: &[u8],
) -> Result<Option<EntryTarget>> {
    entries
        .get(&keys::dir_entry(parent, name))?
        .map(|bytes| decode_entry(&bytes))
        .transpose()
}

/// What a name stands for.
pub fn lookup(entries: &impl Entries, parent: Ino, name: &[u8]) -> Result<EntryTarget> {
    if name.len() > NAME_LEN_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    match entry(entries, parent, name)? {
        Some(target) => Ok(target),
        None => dir_of(entries, parent).and(Err(Errno::ENOENT.into())),
    }
}

/// Up to `count_max` names of a directory behind the name `after`, and what they stand for, in order.
pub fn entries(
    entries: &impl Entries,
    ino: Ino,
    after: Option<&[u8]>,
    count_max: usize,
) -> Result<Vec<(Bytes, EntryTarget)>> {
    let mut from = keys::dir_entry(ino, after.unwrap_or_default()).to_vec();
    if after.is_some() {
        from.push(0); // the least key above `after`
    }
    let found = entries.range(&from, &keys::dir_entries_end(ino), count_max)?;
    found
        .into_iter()
        .map(|(key, value)| Ok((key.slice_ref(keys::name_of(&key)), decode_entry(&value)?)))
        .collect()
}

/// Up to `count_max` entries behind the name `after`.
pub fn read_dir(
    entries: &impl Entries,
    ino: Ino,
    after: Option<&[u8]>,
    count_max: usize,
) -> Result<Vec<DirEntry>> {
    dir_of(entries, ino)?;
    let mut found = Vec::new();
    for (name, target) in self::entries(entries, ino, after, count_max)? {
        let inode = match inode_of(entries, target.ino) {
            Err(Error::Posix(Errno::ENOENT)) => {
                let name = String::from_utf8_lossy(&name).into_owned();
                return Err(Error::corrupt(
                    format!("directory {ino}"),
                    0,
                    format!("\"{name}\" names inode {}, which is not there", target.ino),
                ));
            }
            other => other?,
        };
        found.push(DirEntry {
            name,
            attr: attr_of(target.ino, &inode),
        });
    }
    Ok(found)
}

pub(super) fn is_empty(entries: &impl Entries, dir: Ino) -> Result<bool> {
    Ok(entries
        .range(&keys::dir_entry(dir, b""), &keys::dir_entries_end(dir), 1)?
        .is_empty())
}

fn read_number(entries: &impl Entries, key: &[u8], first: u64) -> Result<u64> {
    let Some(bytes) = entries.get(key)? else {
        return Ok(first);
    };
    let number = bytes.first_chunk::<8>().copied().map(u64::from_le_bytes);
    number.ok_or_else(|| Error::corrupt("a counter", 0, "not in the format"))
}

/// The next inode number of an account. Numbers are never used twice.
pub(super) fn allocate_ino(tx: &mut Transaction<'_>, account: AccountId) -> Result<Ino> {
    let key = keys::next_ino(account);
    let number = read_number(tx, &key, Ino::ROOT_LOCAL + 1)?;
    if number > Ino::LOCAL_MAX {
        return Err(Errno::ENOSPC.into());
    }
    tx.put(key, (number + 1).to_le_bytes().to_vec());
    Ok(Ino::new(account, number))
}

pub(super) fn allocate_account(tx: &mut Transaction<'_>) -> Result<AccountId> {
    let key = keys::next_account();
    let number = read_number(tx, &key, 1)?;
    let account = u32::try_from(number)
        .ok()
        .and_then(AccountId::new)
        .ok_or(Errno::ENOSPC)?;
    tx.put(key, (number + 1).to_le_bytes().to_vec());
    Ok(account)
}

/// A directory as it is when it was just made.
pub fn new_dir(mode: u16, owner: Caller, parent: Ino, now: Timestamp) -> Inode {
    Inode {
        kind: FileKind::Dir,
        mode,
        nlink: 2,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: now,
        mtime: now,
        ctime: now,
        parent: Some(parent),
        target: Vec::new(),
        extents: Vec::new(),
        has_leaves: false,
        origin: None,
    }
}

/// Makes a node. A directory in the volume's root is a new account, named by `uuid`.
pub fn create(
    tx: &mut Transaction<'_>,
    parent: Ino,
    name: &[u8],
    node: NewNode<'_>,
    caller: Caller,
    now: Timestamp,
    uuid: impl FnOnce() -> [u8; 16],
) -> Result<Attr> {
    check_name(name)?;
    let mut dir = dir_of(tx, parent)?;
    if entry(tx, parent, name)?.is_some() || (parent == Ino::ROOT && name == SNAPSHOTS_NAME) {
        return Err(Errno::EEXIST.into());
    }
    if node.kind == FileKind::Symlink && node.target.len() > TARGET_LEN_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    let is_dir = node.kind == FileKind::Dir;
    if is_dir && dir.nlink >= NLINK_MAX {
        return Err(Errno::EMLINK.into());
    }
    let ino = if is_dir && parent == Ino::ROOT {
        let account = allocate_account(tx)?;
        let record = AccountRecord::new(uuid(), name, now);
        tx.put(keys::account(account), record.encode());
        Ino::account_root(account)
    } else {
        allocate_ino(tx, parent.account())?
    };
    let inherits_group = dir.mode & SET_GID != 0;
    let gid = if inherits_group { dir.gid } else { caller.gid };
    let mode = if inherits_group && is_dir {
        node.mode | SET_GID
    } else {
        node.mode
    };
    let mut inode = new_dir(mode & MODE_BITS, Caller { gid, ..caller }, parent, now);
    if !is_dir {
        inode.kind = node.kind;
        inode.nlink = 1;
        inode.parent = None;
        inode.rdev = node.rdev;
        inode.target = node.target.to_vec();
    }
    put_inode(tx, ino, &inode);
    put_entry(
        tx,
        parent,
        name,
        EntryTarget {
            ino,
            kind: node.kind,
        },
    );
    dir.nlink += u32::from(is_dir);
    touch(&mut dir, now);
    put_inode(tx, parent, &dir);
    Ok(attr_of(ino, &inode))
}

pub(super) fn put_entry(tx: &mut Transaction<'_>, parent: Ino, name: &[u8], target: EntryTarget) {
    tx.put(keys::dir_entry(parent, name), inode::encode_entry(target));
}

fn touch(dir: &mut Inode, now: Timestamp) {
    dir.mtime = now;
    dir.ctime = now;
}

/// Removes a name that is not a directory's.
pub fn unlink(
    tx: &mut Transaction<'_>,
    parent: Ino,
    name: &[u8],
    now: Timestamp,
    is_open: IsOpen<'_>,
) -> Result<()> {
    let target = lookup(tx, parent, name)?;
    if target.kind == FileKind::Dir {
        return Err(Errno::EISDIR.into());
    }
    tx.delete(keys::dir_entry(parent, name));
    drop_name(tx, target.ino, now, is_open)?;
    let mut dir = dir_of(tx, parent)?;
    touch(&mut dir, now);
    put_inode(tx, parent, &dir);
    Ok(())
}

/// One name less for a file; the last one takes the file with it, or makes it an orphan while it is open.
pub(super) fn drop_name(
    tx: &mut Transaction<'_>,
    ino: Ino,
    now: Timestamp,
    is_open: IsOpen<'_>,
) -> Result<()> {
    let mut inode = inode_of(tx, ino)?;
    inode.nlink = inode.nlink.saturating_sub(1);
    inode.ctime = now;
    if inode.nlink > 0 {
        put_inode(tx, ino, &inode);
    } else if is_open(ino) {
        put_inode(tx, ino, &inode);
        tx.put(keys::orphan(ino), Bytes::new());
    } else {
        remove_inode(tx, ino, &inode)?;
    }
    Ok(())
}

/// The hint from the source's inode goes, unless it leads to another one by now.
pub(super) fn forget_origin(tx: &mut Transaction<'_>, ino: Ino, inode: &Inode) -> Result<()> {
    if let Some(origin) = inode.origin {
        let key = keys::origin(ino.account(), origin.place, origin.number);
        if tx.get(&key)?.as_deref() == Some(&ino.local().to_le_bytes()) {
            tx.delete(key);
        }
    }
    Ok(())
}

pub(super) fn remove_inode(tx: &mut Transaction<'_>, ino: Ino, inode: &Inode) -> Result<()> {
    extents::remove_all(tx, ino, inode)?;
    extents::remove_keys(tx, &keys::xattr(ino, b""), &keys::xattrs_end(ino))?;
    forget_origin(tx, ino, inode)?;
    tx.delete(keys::inode(ino));
    Ok(())
}

/// Removes an orphan that nobody uses any more; nothing happens if it has a name.
pub fn remove_orphan(tx: &mut Transaction<'_>, ino: Ino) -> Result<()> {
    match inode_of(tx, ino) {
        Ok(inode) if inode.nlink == 0 => {
            remove_inode(tx, ino, &inode)?;
            tx.delete(keys::orphan(ino));
            Ok(())
        }
        Ok(_) | Err(Error::Posix(Errno::ENOENT)) => {
            tx.delete(keys::orphan(ino));
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The orphans that a stop left, up to `count_max`.
pub fn orphans(entries: &impl Entries, count_max: usize) -> Result<Vec<Ino>> {
    let found = entries.range(&keys::orphan(Ino(0)), &keys::orphans_end(), count_max)?;
    Ok(found
        .iter()
        .filter_map(|(key, _)| keys::orphan_of(key))
        .collect())
}

/// Removes an empty directory.
pub fn rmdir(tx: &mut Transaction<'_>, parent: Ino, name: &[u8], now: Timestamp) -> Result<()> {
    let target = lookup(tx, parent, name)?;
    if target.kind != FileKind::Dir {
        return Err(Errno::ENOTDIR.into());
    }
    tx.delete(keys::dir_entry(parent, name));
    remove_dir(tx, target.ino, now)?;
    let mut dir = dir_of(tx, parent)?;
    dir.nlink = dir.nlink.saturating_sub(1);
    touch(&mut dir, now);
    put_inode(tx, parent, &dir);
    Ok(())
}

fn remove_dir(tx: &mut Transaction<'_>, ino: Ino, now: Timestamp) -> Result<()> {
    if !is_empty(tx, ino)? {
        return Err(Errno::ENOTEMPTY.into());
    }
    let inode = inode_of(tx, ino)?;
    if ino.local() == Ino::ROOT_LOCAL {
        let key = keys::account(ino.account());
        if let Some(bytes) = tx.get(&key)? {
            let record = AccountRecord::decode(&bytes)?.deleted_at(now);
            tx.put(key, record.encode());
        }
    }
    remove_inode(tx, ino, &inode)
}

/// Gives a file one more name.
pub fn link(
    tx: &mut Transaction<'_>,
    ino: Ino,
    parent: Ino,
    name: &[u8],
    now: Timestamp,
) -> Result<Attr> {
    check_name(name)?;
    if ino.account() != parent.account() {
        return Err(Errno::EXDEV.into());
    }
    let mut inode = inode_of(tx, ino)?;
    let mut dir = dir_of(tx, parent)?;
    if inode.kind == FileKind::Dir {
        return Err(Errno::EPERM.into());
    }
    if inode.nlink == 0 {
        return Err(Errno::ENOENT.into());
    }
    if inode.nlink >= NLINK_MAX {
        return Err(Errno::EMLINK.into());
    }
    if entry(tx, parent, name)?.is_some() || (parent == Ino::ROOT && name == SNAPSHOTS_NAME) {
        return Err(Errno::EEXIST.into());
    }
    inode.nlink += 1;
    inode.ctime = now;
    put_inode(tx, ino, &inode);
    put_entry(
        tx,
        parent,
        name,
        EntryTarget {
            ino,
            kind: inode.kind,
        },
    );
    touch(&mut dir, now);
    put_inode(tx, parent, &dir);
    Ok(attr_of(ino, &inode))
}

/// Moves a name, or lets two names change places.
pub fn rename(
    tx: &mut Transaction<'_>,
    from: (Ino, &[u8]),
    to: (Ino, &[u8]),
    mode: RenameMode,
    now: Timestamp,
    is_open: IsOpen<'_>,
) -> Result<()> {
    check_name(to.1)?;
    if from.0.account() != to.0.account() {
        return Err(Errno::EXDEV.into());
    }
    if to.0 == Ino::ROOT && to.1 == SNAPSHOTS_NAME {
        return Err(Errno::EPERM.into());
    }
    let moved = lookup(tx, from.0, from.1)?;
    dir_of(tx, to.0)?;
    let replaced = entry(tx, to.0, to.1)?;
    if moved.kind == FileKind::Dir && is_below(tx, to.0, moved.ino)? {
        return Err(Errno::EINVAL.into());
    }
    match (mode, replaced) {
        (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
        (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
        (RenameMode::Exchange, Some(other)) => {
            return exchange(tx, (from, moved), (to, other), now);
        }
        (_, Some(other)) if other.ino == moved.ino => return Ok(()),
        (_, Some(other)) => clear_target(tx, moved, to.0, other, now, is_open)?,
        (_, None) => {}
    }
    tx.delete(keys::dir_entry(from.0, from.1));
    put_entry(tx, to.0, to.1, moved);
    moved_to(tx, moved, from.0, to.0, now)?;
    touch_both(tx, from.0, to.0, now)
}

/// Removes what stands at the new name of `moved`.
fn clear_target(
    tx: &mut Transaction<'_>,
    moved: EntryTarget,
    parent: Ino,
    other: EntryTarget,
    now: Timestamp,
    is_open: IsOpen<'_>,
) -> Result<()> {
    match (moved.kind == FileKind::Dir, other.kind == FileKind::Dir) {
        (true, false) => return Err(Errno::ENOTDIR.into()),
        (false, true) => return Err(Errno::EISDIR.into()),
        (false, false) => return drop_name(tx, other.ino, now, is_open),
        (true, true) => {}
    }
    remove_dir(tx, other.ino, now)?;
    let mut dir = dir_of(tx, parent)?;
    dir.nlink = dir.nlink.saturating_sub(1);
    put_inode(tx, parent, &dir);
    Ok(())
}

type Named<'a> = ((Ino, &'a [u8]), EntryTarget);

fn exchange(
    tx: &mut Transaction<'_>,
    (a, a_target): Named<'_>,
    (b, b_target): Named<'_>,
    now: Timestamp,
) -> Result<()> {
    // Two names of one inode: as in Linux, nothing happens.
    if a_target.ino == b_target.ino {
        return Ok(());
    }
    let leaves_root =
        a.0 == Ino::ROOT && (a_target.kind == FileKind::Dir) != (b_target.kind == FileKind::Dir);
    if b_target.kind == FileKind::Dir && is_below(tx, a.0, b_target.ino)? {
        return Err(Errno::EINVAL.into());
    }
    if leaves_root && a.0 != b.0 {
        return Err(Errno::EXDEV.into());
    }
    put_entry(tx, a.0, a.1, b_target);
    put_entry(tx, b.0, b.1, a_target);
    moved_to(tx, a_target, a.0, b.0, now)?;
    moved_to(tx, b_target, b.0, a.0, now)?;
    touch_both(tx, a.0, b.0, now)
}

/// The moved inode's own side of a move: its change time, its parent, its parents' link counts.
fn moved_to(
    tx: &mut Transaction<'_>,
    moved: EntryTarget,
    from: Ino,
    to: Ino,
    now: Timestamp,
) -> Result<()> {
    let mut inode = inode_of(tx, moved.ino)?;
    inode.ctime = now;
    if moved.kind == FileKind::Dir && from != to {
        inode.parent = Some(to);
        let mut old = dir_of(tx, from)?;
        old.nlink = old.nlink.saturating_sub(1);
        put_inode(tx, from, &old);
        let mut new = dir_of(tx, to)?;
        new.nlink += 1;
        put_inode(tx, to, &new);
    }
    put_inode(tx, moved.ino, &inode);
    Ok(())
}

fn touch_both(tx: &mut Transaction<'_>, a: Ino, b: Ino, now: Timestamp) -> Result<()> {
    for parent in [a, b] {
        let mut dir = dir_of(tx, parent)?;
        touch(&mut dir, now);
        put_inode(tx, parent, &dir);
    }
    Ok(())
}

/// Whether the directory `ino` is `ancestor` or lies below it.
pub(super) fn is_below(entries: &impl Entries, ino: Ino, ancestor: Ino) -> Result<bool> {
    let mut at = ino;
    for _ in 0..DEPTH_MAX {
        if at == ancestor {
            return Ok(true);
        }
        if at.local() == Ino::ROOT_LOCAL {
            return Ok(false);
        }
        at = dir_of(entries, at)?.parent.unwrap_or(Ino::ROOT);
    }
    Err(Error::corrupt(
        format!("directory {ino}"),
        0,
        "its parents form a cycle",
    ))
}

/// Sets an extended attribute.
pub fn set_xattr(
    tx: &mut Transaction<'_>,
    ino: Ino,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
    now: Timestamp,
) -> Result<()> {
    let mut inode = inode_of(tx, ino)?;
    let key = keys::xattr(ino, name);
    match (mode, tx.get(&key)?.is_some()) {
        (XattrMode::Create, true) => return Err(Errno::EEXIST.into()),
        (XattrMode::Replace, false) => return Err(Errno::ENODATA.into()),
        _ => {}
    }
    tx.put(key, value.to_vec());
    inode.ctime = now;
    put_inode(tx, ino, &inode);
    Ok(())
}

/// Removes one.
pub fn remove_xattr(tx: &mut Transaction<'_>, ino: Ino, name: &[u8], now: Timestamp) -> Result<()> {
    let mut inode = inode_of(tx, ino)?;
    let key = keys::xattr(ino, name);
    if tx.get(&key)?.is_none() {
        return Err(Errno::ENODATA.into());
    }
    tx.delete(key);
    inode.ctime = now;
    put_inode(tx, ino, &inode);
    Ok(())
}

/// The value of one.
pub fn xattr(entries: &impl Entries, ino: Ino, name: &[u8]) -> Result<Bytes> {
    entries
        .get(&keys::xattr(ino, name))?
        .ok_or_else(|| Errno::ENODATA.into())
}

/// All names.
pub fn xattr_names(entries: &impl Entries, ino: Ino) -> Result<Vec<Bytes>> {
    inode_of(entries, ino)?;
    let found = entries.range(&keys::xattr(ino, b""), &keys::xattrs_end(ino), usize::MAX)?;
    Ok(found
        .into_iter()
        .map(|(key, _)| key.slice_ref(keys::name_of(&key)))
        .collect())
}
