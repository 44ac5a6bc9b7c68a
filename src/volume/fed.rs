//! Accounts that a source feeds, and the sources themselves, as the volume keeps them; and accounts that nobody writes
//! into: disabled and deleted ones.
//!
//! What a source is and when it is scanned is known above; here are records in the metadata, so that they are as durable
//! as everything else, and the rule that nobody else writes into such an account.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::format::inode::{EntryTarget, Inode};
use crate::format::keys;
use crate::meta::overlay::{Entries, Reading};
use crate::types::{AccountId, FileKind, Ino, Uuid};
use crate::volume::account::AccountRecord;
use crate::volume::engine::Volume;
use crate::volume::feed::{FeedTx, Item, find_origin};
use crate::volume::namespace::{self, inode_of, put_inode};
use crate::volume::tree::{Caller, MODE_BITS};

/// Which accounts take no changes through the mount, as far as somebody asked: asked for each change.
#[derive(Debug, Default)]
pub(super) struct FedAccounts(RwLock<HashMap<AccountId, bool>>);

impl FedAccounts {
    fn forget(&self, account: AccountId) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(&account);
    }
}

/// An account as it stands in the volume.
#[derive(Clone, Debug)]
pub struct AccountEntry {
    /// Its number.
    pub id: AccountId,
    /// Its directory's name; `None` if that is gone.
    pub name: Option<Bytes>,
    /// What is kept of it.
    pub record: AccountRecord,
}

impl Volume {
    /// What is known of an account is asked for anew.
    pub(super) fn forget_fed(&self, account: AccountId) {
        self.fed.forget(account);
    }

    /// Refuses a change through the mount of what a source feeds, and of what takes no changes.
    pub(super) fn refuse_fed(&self, ino: Ino) -> Result<()> {
        if !std::env::var("MUT").is_ok_and(|m| m == "fed") && self.is_fed(ino.account())? {
            return Err(Errno::EROFS.into());
        }
        Ok(())
    }

    /// The same for a name of the root, which may be an account's directory.
    pub(super) fn refuse_fed_name(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.refuse_fed(parent)?;
        if parent == Ino::ROOT
            && let Some(target) = namespace::entry(&self.overlay.read(), parent, name)?
        {
            return self.refuse_fed(target.ino);
        }
        Ok(())
    }

    fn is_fed(&self, account: AccountId) -> Result<bool> {
        if account == AccountId::SERVER {
            return Ok(false);
        }
        let known = self.fed.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(fed) = known.get(&account) {
            return Ok(*fed);
        }
        drop(known);
        let fed = match self.overlay.read().get(&keys::account(account))? {
            Some(bytes) => {
                let record = AccountRecord::decode(&bytes)?;
                record.fed.is_some() || record.disabled.is_some() || record.deleted.is_some()
            }
            None => false,
        };
        let mut known = self.fed.0.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(account, fed);
        Ok(fed)
    }

    /// All accounts, also those whose directory is gone.
    pub fn accounts(&self) -> Result<Vec<AccountEntry>> {
        let reading = self.overlay.read();
        let mut names = account_names(&reading)?;
        let from = keys::account(AccountId::SERVER);
        let found = reading.range(&from, &keys::accounts_end(), usize::MAX)?;
        let mut accounts = Vec::with_capacity(found.len());
        for (key, value) in found {
            let Some(id) = keys::account_in(&key) else {
                continue;
            };
            accounts.push(AccountEntry {
                id,
                name: names.remove(&id),
                record: AccountRecord::decode(&value)?,
            });
        }
        Ok(accounts)
    }

    /// What is kept of an account.
    pub fn account_record(&self, account: AccountId) -> Result<Option<AccountRecord>> {
        let found = self.overlay.read().get(&keys::account(account))?;
        found.map(|bytes| AccountRecord::decode(&bytes)).transpose()
    }

    /// Changes what is kept of an account, in a transaction of its own.
    pub fn change_account(
        &self,
        account: AccountId,
        change: impl FnOnce(&mut AccountRecord),
    ) -> Result<()> {
        self.feed(|feed| feed.change_account(account, change))?;
        self.fed.forget(account);
        Ok(())
    }

    /// The inode that was copied from this inode of the source, if it is in the volume.
    pub fn find_origin(
        &self,
        account: AccountId,
        place: u32,
        number: u64,
    ) -> Result<Option<(Ino, Inode)>> {
        find_origin(&self.overlay.read(), account, place, number)
    }

    /// The names in a directory behind `after`, at most `count_max`, each with its inode.
    pub fn listing(
        &self,
        dir: Ino,
        after: Option<&[u8]>,
        count_max: usize,
    ) -> Result<Vec<(Bytes, Ino, Inode)>> {
        let reading = self.overlay.read();
        let mut from = keys::dir_entry(dir, after.unwrap_or_default()).to_vec();
        if after.is_some() {
            from.push(0); // the least key above `after`
        }
        let mut listing = Vec::new();
        for (key, value) in reading.range(&from, &keys::dir_entries_end(dir), count_max)? {
            let target = crate::format::inode::decode_entry(&value)
                .ok_or_else(|| Error::corrupt("a directory entry", 0, "not in the format"))?;
            let inode = inode_of(&reading, target.ino)?;
            listing.push((key.slice_ref(keys::name_of(&key)), target.ino, inode));
        }
        Ok(listing)
    }

    /// The extended attributes of an inode, by name.
    pub fn xattrs_of(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let found = self.overlay.read().range(
            &keys::xattr(ino, b""),
            &keys::xattrs_end(ino),
            usize::MAX,
        )?;
        let pairs = found
            .into_iter()
            .map(|(key, value)| (keys::name_of(&key).to_vec(), value.to_vec()));
        Ok(pairs.collect())
    }

    /// The sources: a UUID and a document each.
    pub fn sources(&self) -> Result<Vec<(Uuid, Bytes)>> {
        let reading = self.overlay.read();
        let found = reading.range(
            &keys::source(Uuid([0; 16])),
            &keys::sources_end(),
            usize::MAX,
        )?;
        let sources = found.into_iter().filter_map(|(key, value)| {
            let uuid = key.get(4..)?.first_chunk::<16>()?;
            Some((Uuid(*uuid), value))
        });
        Ok(sources.collect())
    }

    /// Puts a source's document, or removes it: its accounts then belong to whoever writes to the mount.
    pub fn put_source(&self, source: Uuid, document: Option<Vec<u8>>) -> Result<()> {
        let released = match &document {
            Some(_) => Vec::new(),
            None => self.accounts()?,
        };
        let uuid = source.to_string();
        let is_its = |entry: &&AccountEntry| {
            let fed = entry.record.fed.as_ref();
            fed.is_some_and(|fed| fed.source == uuid)
        };
        self.feed(|feed| {
            match document {
                Some(document) => feed.tx().put(keys::source(source), document),
                None => feed.tx().delete(keys::source(source)),
            }
            for entry in released.iter().filter(is_its) {
                feed.change_account(entry.id, |record| record.fed = None)?;
            }
            Ok(())
        })?;
        for entry in &released {
            self.fed.forget(entry.id);
        }
        Ok(())
    }
}

impl FeedTx<'_, '_> {
    /// Makes a fed account: its record, its directory.
    pub fn make_account(
        &mut self,
        name: &[u8],
        record: &AccountRecord,
        item: &Item,
    ) -> Result<AccountId> {
        self.claim_name(name)?;
        let account = namespace::allocate_account(self.tx())?;
        self.tx().put(keys::account(account), record.encode());
        self.make_root(account, name, item)?;
        Ok(account)
    }

    /// Gives an account whose directory was removed its directory again: the same account, and a new tree.
    pub fn revive_account(
        &mut self,
        account: AccountId,
        name: &[u8],
        item: &Item,
        change: impl FnOnce(&mut AccountRecord),
    ) -> Result<()> {
        self.claim_name(name)?;
        self.make_root(account, name, item)?;
        self.change_account(account, |record| {
            record.deleted = None;
            change(record);
        })
    }

    /// The account's directory has another name from now on.
    pub fn rename_account(&mut self, account: AccountId, old: &[u8], new: &[u8]) -> Result<()> {
        self.claim_name(new)?;
        let target = namespace::lookup(self.tx(), Ino::ROOT, old)?;
        if target.ino.account() != account {
            return Err(Errno::ESTALE.into());
        }
        self.tx().delete(keys::dir_entry(Ino::ROOT, old));
        namespace::put_entry(self.tx(), Ino::ROOT, new, target);
        self.entry_changed(Ino::ROOT, old);
        self.entry_changed(Ino::ROOT, new);
        Ok(())
    }

    /// The account's directory is empty and goes; the account stays, as one that was deleted.
    pub fn remove_account(&mut self, account: AccountId, name: &[u8], now_secs: i64) -> Result<()> {
        self.remove(Ino::ROOT, name)?;
        self.change_account(account, |record| record.deleted = Some(now_secs))
    }

    /// Changes what is kept of an account.
    pub fn change_account(
        &mut self,
        account: AccountId,
        change: impl FnOnce(&mut AccountRecord),
    ) -> Result<()> {
        let key = keys::account(account);
        let Some(bytes) = self.tx().get(&key)? else {
            return Err(Errno::ENOENT.into());
        };
        let old = AccountRecord::decode(&bytes)?;
        let mut record = old.clone();
        change(&mut record);
        if record != old {
            self.tx().put(key, record.encode());
        }
        Ok(())
    }

    fn claim_name(&mut self, name: &[u8]) -> Result<()> {
        namespace::check_name(name)?;
        let is_taken = name == namespace::SNAPSHOTS_NAME
            || namespace::entry(self.tx(), Ino::ROOT, name)?.is_some();
        if is_taken {
            return Err(Errno::EEXIST.into());
        }
        Ok(())
    }

    fn make_root(&mut self, account: AccountId, name: &[u8], item: &Item) -> Result<()> {
        let ino = Ino::account_root(account);
        let owner = Caller {
            uid: item.uid,
            gid: item.gid,
        };
        let root = namespace::new_dir(item.mode & MODE_BITS, owner, Ino::ROOT, item.mtime);
        put_inode(self.tx(), ino, &root);
        let kind = FileKind::Dir;
        namespace::put_entry(self.tx(), Ino::ROOT, name, EntryTarget { ino, kind });
        let mut parent = inode_of(self.tx(), Ino::ROOT)?;
        parent.nlink += 1;
        put_inode(self.tx(), Ino::ROOT, &parent);
        self.entry_changed(Ino::ROOT, name);
        self.change(ino, item)
    }
}

fn account_names(reading: &Reading<'_>) -> Result<HashMap<AccountId, Bytes>> {
    let found = reading.range(
        &keys::dir_entry(Ino::ROOT, b""),
        &keys::dir_entries_end(Ino::ROOT),
        usize::MAX,
    )?;
    let mut names = HashMap::new();
    for (key, value) in found {
        if let Some(target) = crate::format::inode::decode_entry(&value)
            && target.ino.local() == Ino::ROOT_LOCAL
            && target.kind == FileKind::Dir
        {
            names.insert(target.ino.account(), key.slice_ref(keys::name_of(&key)));
        }
    }
    Ok(names)
}
