//! The accounts of a volume at a moment, and what each takes up.

use std::collections::HashMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::error::Result;
use crate::format::keys::{self, Kind};
use crate::format::segment::CacheUse;
use crate::meta::view::View;
use crate::types::{AccountId, Epoch, FileKind, Ino};
use crate::volume::account::AccountRecord;
use crate::volume::history::locate::{self, Standing};
use crate::volume::history::names;

/// Names of the root that are read at once.
const NAMES_STEP: usize = 512;

/// An account at a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccountAt {
    /// Its number.
    pub id: AccountId,
    /// What the volume keeps of it.
    pub record: AccountRecord,
    /// What its directory is called, or was last.
    pub name: Bytes,
    /// Whether it is there.
    pub standing: Standing,
}

/// What is in an account at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AccountUsage {
    /// Regular files.
    pub files: u64,
    /// Directories, without its own.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, pipes and sockets.
    pub others: u64,
    /// Plain bytes of its files: what they would take up elsewhere, holes and doubles included.
    pub bytes: u64,
    /// States of all its items, of the past too.
    pub states: u64,
    /// The epoch of the first of them.
    pub first: Option<Epoch>,
    /// The epoch of the newest.
    pub last: Option<Epoch>,
}

impl AccountUsage {
    /// All items.
    pub fn items(&self) -> u64 {
        self.files + self.dirs + self.symlinks + self.others
    }
}

/// All accounts up to the moment of `view`, by number: also those that are deleted.
pub fn accounts(view: &View) -> Result<Vec<AccountAt>> {
    let mut named = names_of_accounts(view)?;
    let first = keys::account(AccountId::SERVER);
    let end = keys::accounts_end();
    let mut found = Vec::new();
    for entry in view.range(&first, Bound::Excluded(&end)) {
        let (key, value) = entry?;
        let record = AccountRecord::decode(&value)?;
        if let Some(id) = keys::account_in(&key) {
            let known = named.remove(&id);
            let (name, standing) =
                known.unwrap_or_else(|| (record.name.clone().into(), Standing::Present));
            found.push(AccountAt {
                id,
                record,
                name,
                standing,
            });
        }
    }
    Ok(found)
}

/// The newest name of each account, and whether it still leads there.
fn names_of_accounts(view: &View) -> Result<HashMap<AccountId, (Bytes, Standing)>> {
    let mut found: HashMap<AccountId, (Bytes, Standing, Epoch)> = HashMap::new();
    let mut after: Option<Bytes> = None;
    loop {
        let names = names::names_of(view, Ino::ROOT, after.as_deref(), NAMES_STEP)?;
        let Some(last) = names.last() else { break };
        after = Some(last.name.clone());
        for name in names {
            for span in std::iter::once(&name.newest).chain(&name.former_dirs) {
                let ino = span.target.ino;
                if ino.local() != Ino::ROOT_LOCAL || span.target.kind != FileKind::Dir {
                    continue;
                }
                // A name that it no longer has, as it goes on under another, is the older one.
                let standing = span
                    .until
                    .map_or(Standing::Present, |in_epoch| Standing::Deleted { in_epoch });
                let newest = found.get(&ino.account()).map(|(.., since)| *since);
                if newest.is_none_or(|newest| span.since > newest) {
                    found.insert(ino.account(), (name.name.clone(), standing, span.since));
                }
            }
        }
    }
    let found = found.into_iter();
    Ok(found
        .map(|(id, (name, standing, _))| (id, (name, standing)))
        .collect())
}

/// The account that `uuid` names, if it is a UUID and there is one.
pub(super) fn by_uuid(view: &View, uuid: &[u8]) -> Result<Option<AccountAt>> {
    let Some(uuid) = locate::uuid_of(uuid) else {
        return Ok(None);
    };
    let uuid = uuid.to_string();
    let found = accounts(view)?;
    Ok(found
        .into_iter()
        .find(|account| account.record.uuid == uuid))
}

/// The account called `name`, or with this UUID. Of several that had the name, the one that is there, else the newest.
pub fn find(view: &View, name: &[u8]) -> Result<Option<AccountAt>> {
    let found = accounts(view)?;
    let called = found.iter().filter(|account| *account.name == *name);
    let called = called.max_by_key(|account| (account.standing == Standing::Present, account.id));
    if let Some(account) = called {
        return Ok(Some(account.clone()));
    }
    by_uuid(view, name)
}

/// Counts what is in `account` at the moment of `view`: reads its inodes once, in order.
pub fn usage(view: &View, account: &AccountAt) -> Result<AccountUsage> {
    let view = match account.standing {
        Standing::Present => view.clone(),
        Standing::Deleted { in_epoch } => view.as_of(in_epoch),
    };
    let first = keys::inode(Ino::new(account.id, 0));
    let end = keys::kind_end(account.id, Kind::Inode);
    let mut usage = AccountUsage::default();
    let mut key = Bytes::new();
    for entry in view.versions(&first, Bound::Excluded(&end), CacheUse::Bypass) {
        let entry = entry?;
        let is_newest = entry.key != key;
        usage.last = usage.last.max(Some(entry.epoch));
        usage.first = usage
            .first
            .map_or(Some(entry.epoch), |first| Some(first.min(entry.epoch)));
        let (Some(value), Some(ino)) = (&entry.value, keys::ino_of(&entry.key)) else {
            key = entry.key;
            continue;
        };
        usage.states += 1;
        if is_newest && ino.local() != Ino::ROOT_LOCAL {
            let inode = names::decode_inode(ino, value)?;
            match inode.kind {
                _ if inode.nlink == 0 => {}
                FileKind::File => {
                    usage.files += 1;
                    usage.bytes += inode.size;
                }
                FileKind::Dir => usage.dirs += 1,
                FileKind::Symlink => usage.symlinks += 1,
                _ => usage.others += 1,
            }
        }
        key = entry.key;
    }
    Ok(usage)
}
