//! Accounts that take no changes: disabled until they are enabled again, or deleted with all that is in them.
//!
//! Deleting an account takes its directory's name out of the root, and nothing else: however much is in it, that is one
//! change. What was in it stays as it was in the account's own range of the metadata, where no name leads any more, until
//! retention lets go of it; every moment before shows it, and giving the name back gives back all of it.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format::keys;
use crate::meta::overlay::{Entries, Transaction};
use crate::types::{AccountId, Ino};
use crate::volume::account::AccountRecord;
use crate::volume::engine::Volume;
use crate::volume::fed::AccountEntry;
use crate::volume::namespace::{self, inode_of, put_inode};

/// What becomes of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountChange {
    /// No scan and no mount changes it from now on.
    Disable,
    /// They do again.
    Enable,
    /// It is gone from the present.
    Delete,
}

impl Volume {
    /// Disables, enables or deletes the account with this UUID. When it returns, that survives a power cut and the mount
    /// shows it.
    pub fn change_tenancy(&self, uuid: &str, change: AccountChange) -> Result<AccountRecord> {
        let accounts = self.accounts()?;
        let found = accounts.into_iter().find(|entry| entry.record.uuid == uuid);
        let account = found.ok_or_else(|| {
            Error::Refused(format!(
                "there is no account {uuid}: tidefs account list shows those that there are"
            ))
        })?;
        refuse(&account, change)?;
        // What was written so far belongs to it.
        self.commit()?;
        match change {
            AccountChange::Disable => {
                let now = self.clock.now().secs;
                self.set_record(account.id, |record| {
                    record.disabled.get_or_insert(now);
                })?;
            }
            AccountChange::Enable => {
                self.set_record(account.id, |record| record.disabled = None)?;
            }
            AccountChange::Delete => self.delete_account(&account)?,
        }
        self.commit()?;
        if let Some(witness) = self.witness() {
            witness.settle();
        }
        let record = self.account_record(account.id)?;
        record.ok_or_else(|| Errno::ENOENT.into())
    }

    fn set_record(
        &self,
        account: AccountId,
        change: impl FnOnce(&mut AccountRecord),
    ) -> Result<()> {
        self.admit()?;
        self.overlay
            .transact(|tx| put_record(tx, account, change))?;
        self.forget_fed(account);
        Ok(())
    }

    fn delete_account(&self, account: &AccountEntry) -> Result<()> {
        let Some(name) = &account.name else {
            return Err(Errno::ENOENT.into());
        };
        self.admit()?;
        let now = self.clock.now();
        self.overlay.transact(|tx| {
            let target = namespace::lookup(tx, Ino::ROOT, name)?;
            if target.ino != Ino::account_root(account.id) {
                return Err(Errno::ESTALE.into());
            }
            tx.delete(keys::dir_entry(Ino::ROOT, name));
            let mut root = inode_of(tx, Ino::ROOT)?;
            root.nlink = root.nlink.saturating_sub(1);
            root.mtime = now;
            root.ctime = now;
            put_inode(tx, Ino::ROOT, &root);
            put_record(tx, account.id, |record| record.deleted = Some(now.secs))
        })?;
        self.forget_fed(account.id);
        if let Some(witness) = self.witness() {
            witness.entry(Ino::ROOT, name);
        }
        Ok(())
    }
}

fn put_record(
    tx: &mut Transaction<'_>,
    account: AccountId,
    change: impl FnOnce(&mut AccountRecord),
) -> Result<()> {
    let key = keys::account(account);
    let bytes = tx.get(&key)?.ok_or(Errno::ENOENT)?;
    let mut record = AccountRecord::decode(&bytes)?;
    change(&mut record);
    tx.put(key, record.encode());
    Ok(())
}

fn refuse(account: &AccountEntry, change: AccountChange) -> Result<()> {
    let name = &account.record.name;
    if account.name.is_none() {
        return Err(Error::Refused(format!(
            "the account '{}' is deleted already: tidefs account show {} says since when",
            name.escape_debug(),
            account.record.uuid
        )));
    }
    match (change, &account.record.fed) {
        (AccountChange::Delete, Some(fed)) => Err(Error::Refused(format!(
            "the account '{}' is fed by source {}, whose next scan would bring it back: remove the source first, or \
             disable the account",
            name.escape_debug(),
            fed.source
        ))),
        _ => Ok(()),
    }
}
