//! The one key encoder: the same bytes in the overlay, the journal, the index and the segments.
//!
//! ```text
//! account (3 bytes, big-endian) | kind (1 byte) | rest, big-endian so that bytes sort as numbers
//! ```
//!
//! The account leads, so that one account is one range. Within it the kinds are ordered by how they
//! are read together: a listing touches directory entries and inodes, a read touches extents.
//! The kinds from 0x10 on exist only under account 0: they belong to the volume as a whole.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::Deref;

use bytes::Bytes;

use crate::types::{AccountId, Epoch, Ino, Uuid};

/// Longest file name, as everywhere on Linux.
pub const NAME_LEN_MAX: usize = 255;

/// What an entry is; the fourth byte of its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// The first inode number of an account that was never reserved.
    NextIno = 0x01,
    /// An inode's attributes, with the extents of a small file.
    Inode = 0x02,
    /// A name in a directory.
    DirEntry = 0x03,
    /// A run of extents of a larger file.
    Extents = 0x04,
    /// An extended attribute.
    Xattr = 0x05,
    /// What an inode of a source is here: a hint, which the inode's own origin proves.
    Origin = 0x06,
    /// An account of the volume.
    Account = 0x10,
    /// A closed epoch: its time and its snapshot name.
    Epoch = 0x11,
    /// An inode without a name that is still open: removed at the next recovery.
    Orphan = 0x12,
    /// The first account number that was never used.
    NextAccount = 0x13,
    /// A source that feeds accounts.
    Source = 0x14,
}

/// An encoded key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Key(Box<[u8]>);

/// Sorted changes of the metadata; `None` removes the key.
pub type Changes = BTreeMap<Key, Option<Bytes>>;

impl Key {
    /// A key from bytes that were encoded before.
    pub fn from_bytes(bytes: &[u8]) -> Key {
        Key(bytes.into())
    }
}

impl Deref for Key {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

fn start(account: AccountId, kind: Kind, rest_len: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + rest_len);
    key.extend_from_slice(&account.get().to_be_bytes()[1..]);
    key.push(kind as u8);
    key
}

fn of_ino(ino: Ino, kind: Kind, rest_len: usize) -> Vec<u8> {
    let mut key = start(ino.account(), kind, 5 + rest_len);
    key.extend_from_slice(&ino.local().to_be_bytes()[3..]);
    key
}

/// [`Kind::NextIno`] of an account.
pub fn next_ino(account: AccountId) -> Key {
    Key(start(account, Kind::NextIno, 0).into())
}

/// [`Kind::Inode`].
pub fn inode(ino: Ino) -> Key {
    Key(of_ino(ino, Kind::Inode, 0).into())
}

/// [`Kind::DirEntry`]; an empty name is the lower end of the directory's range.
pub fn dir_entry(parent: Ino, name: &[u8]) -> Key {
    let mut key = of_ino(parent, Kind::DirEntry, name.len());
    key.extend_from_slice(name);
    Key(key.into())
}

/// The upper end of a directory's range of entries.
pub fn dir_entries_end(parent: Ino) -> Key {
    Key(after_prefix(&of_ino(parent, Kind::DirEntry, 0)))
}

/// [`Kind::Extents`] that begin at or after `offset`.
pub fn extents(ino: Ino, offset: u64) -> Key {
    let mut key = of_ino(ino, Kind::Extents, 8);
    key.extend_from_slice(&offset.to_be_bytes());
    Key(key.into())
}

/// The upper end of a file's extents.
pub fn extents_end(ino: Ino) -> Key {
    Key(after_prefix(&of_ino(ino, Kind::Extents, 0)))
}

/// The offset in an [`extents`] key.
pub fn extents_offset(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*key.get(9..)?.first_chunk::<8>()?))
}

/// [`Kind::Xattr`]; an empty name is the lower end of the inode's range.
pub fn xattr(ino: Ino, name: &[u8]) -> Key {
    let mut key = of_ino(ino, Kind::Xattr, name.len());
    key.extend_from_slice(name);
    Key(key.into())
}

/// The upper end of an inode's extended attributes.
pub fn xattrs_end(ino: Ino) -> Key {
    Key(after_prefix(&of_ino(ino, Kind::Xattr, 0)))
}

/// [`Kind::Origin`]: the inode `number` of the source, in its file system `place`.
pub fn origin(account: AccountId, place: u32, number: u64) -> Key {
    let mut key = start(account, Kind::Origin, 12);
    key.extend_from_slice(&place.to_be_bytes());
    key.extend_from_slice(&number.to_be_bytes());
    Key(key.into())
}

/// The upper end of an account's entries of one kind.
pub fn kind_end(account: AccountId, kind: Kind) -> Key {
    Key(after_prefix(&start(account, kind, 0)))
}

/// The account that leads a key.
pub fn account_of(key: &[u8]) -> Option<AccountId> {
    let &[a, b, c] = key.first_chunk::<3>()?;
    AccountId::new(u32::from_be_bytes([0, a, b, c]))
}

/// The inode in a key of [`Kind::Inode`], [`Kind::DirEntry`] (the directory), [`Kind::Extents`] or
/// [`Kind::Xattr`].
pub fn ino_of(key: &[u8]) -> Option<Ino> {
    let local = key
        .get(4..9)?
        .iter()
        .fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    Some(Ino::new(account_of(key)?, local))
}

/// What follows the inode number in a [`dir_entry`] or [`xattr`] key: the name.
pub fn name_of(key: &[u8]) -> &[u8] {
    key.get(9..).unwrap_or_default()
}

/// [`Kind::Account`].
pub fn account(account: AccountId) -> Key {
    let mut key = start(AccountId::SERVER, Kind::Account, 3);
    key.extend_from_slice(&account.get().to_be_bytes()[1..]);
    Key(key.into())
}

/// [`Kind::Epoch`].
pub fn epoch(epoch: Epoch) -> Key {
    let mut key = start(AccountId::SERVER, Kind::Epoch, 8);
    key.extend_from_slice(&epoch.0.to_be_bytes());
    Key(key.into())
}

/// The accounts, in order of their numbers, from this one on.
pub fn accounts_end() -> Key {
    Key(after_prefix(&start(AccountId::SERVER, Kind::Account, 0)))
}

/// The number in an [`account`] key.
pub fn account_in(key: &[u8]) -> Option<AccountId> {
    let &[a, b, c] = key.get(4..)?.first_chunk::<3>()?;
    AccountId::new(u32::from_be_bytes([0, a, b, c]))
}

/// [`Kind::Source`].
pub fn source(source: Uuid) -> Key {
    let mut key = start(AccountId::SERVER, Kind::Source, 16);
    key.extend_from_slice(&source.0);
    Key(key.into())
}

/// The upper end of the sources.
pub fn sources_end() -> Key {
    Key(after_prefix(&start(AccountId::SERVER, Kind::Source, 0)))
}

/// The upper end of the epochs.
pub fn epochs_end() -> Key {
    Key(after_prefix(&start(AccountId::SERVER, Kind::Epoch, 0)))
}

/// The number in an [`epoch`] key.
pub fn epoch_of(key: &[u8]) -> Option<Epoch> {
    Some(Epoch(u64::from_be_bytes(
        *key.get(4..)?.first_chunk::<8>()?,
    )))
}

/// [`Kind::Orphan`].
pub fn orphan(ino: Ino) -> Key {
    let mut key = start(AccountId::SERVER, Kind::Orphan, 8);
    key.extend_from_slice(&ino.0.to_be_bytes());
    Key(key.into())
}

/// The upper end of the orphans.
pub fn orphans_end() -> Key {
    Key(after_prefix(&start(AccountId::SERVER, Kind::Orphan, 0)))
}

/// The inode in an [`orphan`] key.
pub fn orphan_of(key: &[u8]) -> Option<Ino> {
    Some(Ino(u64::from_be_bytes(*key.get(4..)?.first_chunk::<8>()?)))
}

/// [`Kind::NextAccount`].
pub fn next_account() -> Key {
    Key(start(AccountId::SERVER, Kind::NextAccount, 0).into())
}

/// The least byte string above everything that begins with `prefix`.
fn after_prefix(prefix: &[u8]) -> Box<[u8]> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_range_in_name_order() {
        let account = AccountId::new(300).unwrap();
        let dir = Ino::new(account, 0xFF);
        let low = dir_entry(dir, b"");
        let a = dir_entry(dir, b"a");
        let z = dir_entry(dir, &[0xFF; NAME_LEN_MAX]);
        let end = dir_entries_end(dir);
        assert!(low < a && a < z && z < end);
        assert!(end <= dir_entry(Ino::new(account, 0x100), b""));
        assert_eq!(name_of(&a), b"a");
        assert_eq!((account_of(&a), ino_of(&a)), (Some(account), Some(dir)));
        assert!(z < kind_end(account, Kind::DirEntry));
        assert!(kind_end(account, Kind::DirEntry) <= extents(Ino::new(account, 0), 0));
    }

    #[test]
    fn extents_sort_by_offset_and_give_it_back() {
        let ino = Ino::new(AccountId::new(1).unwrap(), Ino::LOCAL_MAX);
        assert!(extents(ino, 255) < extents(ino, 256));
        assert!(extents(ino, u64::MAX) < extents_end(ino));
        assert_eq!(extents_offset(&extents(ino, 77)), Some(77));
    }

    #[test]
    fn volume_entries_give_their_number_back() {
        assert_eq!(epoch_of(&epoch(Epoch(9))), Some(Epoch(9)));
        assert_eq!(orphan_of(&orphan(Ino(1 << 41))), Some(Ino(1 << 41)));
        let number = AccountId::new(0x01_0203).unwrap();
        assert_eq!(account_in(&account(number)), Some(number));
        assert!(account(number) < accounts_end() && source(Uuid([0xFF; 16])) < sources_end());
    }
}
