//! What a scan did: counted while it runs, and told at its end.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Paths that are named one by one, of each kind.
pub const NAMED_MAX: usize = 1000;

/// Counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Names seen in the source.
    pub items: u64,
    /// Bytes of the files among them.
    pub bytes: u64,
    /// Items that were not in the volume.
    pub created: u64,
    /// Items whose content was another.
    pub changed: u64,
    /// Items of which only attributes were others.
    pub attributes: u64,
    /// Items found under another name, or under one name more, without reading them.
    pub moved: u64,
    /// Names that are gone.
    pub deleted: u64,
    /// Files that were read.
    pub read_files: u64,
    /// Bytes that were read of them.
    pub read_bytes: u64,
    /// Bytes that came into packs: after deduplication and compression.
    pub stored_bytes: u64,
}

impl Counts {
    /// Whether the volume was changed.
    pub fn has_changes(&self) -> bool {
        self.created + self.changed + self.attributes + self.moved + self.deleted > 0
    }

    fn add(&mut self, other: &Counts) {
        let pairs = [
            (&mut self.items, other.items),
            (&mut self.bytes, other.bytes),
            (&mut self.created, other.created),
            (&mut self.changed, other.changed),
            (&mut self.attributes, other.attributes),
            (&mut self.moved, other.moved),
            (&mut self.deleted, other.deleted),
            (&mut self.read_files, other.read_files),
            (&mut self.read_bytes, other.read_bytes),
            (&mut self.stored_bytes, other.stored_bytes),
        ];
        for (sum, count) in pairs {
            *sum += count;
        }
    }
}

/// The same while it runs, counted by several threads.
#[derive(Debug, Default)]
pub struct Tally {
    /// See [`Counts`].
    pub items: AtomicU64,
    /// See [`Counts`].
    pub bytes: AtomicU64,
    /// See [`Counts`].
    pub created: AtomicU64,
    /// See [`Counts`].
    pub changed: AtomicU64,
    /// See [`Counts`].
    pub attributes: AtomicU64,
    /// See [`Counts`].
    pub moved: AtomicU64,
    /// See [`Counts`].
    pub deleted: AtomicU64,
    /// See [`Counts`].
    pub read_files: AtomicU64,
    /// See [`Counts`].
    pub read_bytes: AtomicU64,
    /// See [`Counts`].
    pub stored_bytes: AtomicU64,
}

/// One more.
pub fn bump(count: &AtomicU64) {
    add(count, 1);
}

/// So many more.
pub fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

impl Tally {
    /// How it stands.
    pub fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            items: read(&self.items),
            bytes: read(&self.bytes),
            created: read(&self.created),
            changed: read(&self.changed),
            attributes: read(&self.attributes),
            moved: read(&self.moved),
            deleted: read(&self.deleted),
            read_files: read(&self.read_files),
            read_bytes: read(&self.read_bytes),
            stored_bytes: read(&self.stored_bytes),
        }
    }
}

/// Paths of one kind: the first of them by name, all of them by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// How many.
    pub count: u64,
    /// The first [`NAMED_MAX`], each as `account/path`, with a reason behind it where there is one.
    pub named: Vec<String>,
}

impl Paths {
    /// One more.
    pub fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(text());
        }
    }
}

/// How a scan went for one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountReport {
    /// Its name.
    pub account: String,
    /// What happened to the account itself: `new`, `renamed`, `revived`, `deleted`, `kept`, `disabled`: it takes no
    /// changes and was passed over, or `unfinished`: the scan ended before.
    pub event: String,
    /// What happened in it.
    #[serde(flatten)]
    pub counts: Counts,
}

/// How a scan went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Where the source is.
    pub source: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether everything was reread.
    pub deep: bool,
    /// When it began, seconds since 1970.
    pub began: i64,
    /// How long it took.
    pub took_ms: u64,
    /// Accounts that were looked at.
    pub accounts_seen: u64,
    /// Those that changed.
    pub accounts: Vec<AccountReport>,
    /// All together.
    pub counts: Counts,
    /// What could not be read: it stays in the volume as it was.
    pub errors: Paths,
    /// Files that changed while they were read: what is in the volume may be of no one moment. They are read again the
    /// next time.
    pub changing: Paths,
    /// What only the rereading found: content that changed though size and times had not.
    pub missed: Paths,
    /// Accounts, or the source, of which nothing was marked as deleted, and why.
    pub refused: Vec<String>,
    /// Whether somebody stopped it. The next scan goes on.
    pub stopped: bool,
    /// Milliseconds that readers were held back by the rate, or because the source was slow.
    pub held_ms: u64,
}

impl Report {
    /// Enters an account.
    pub fn enter(&mut self, account: AccountReport) {
        self.accounts_seen += 1;
        self.counts.add(&account.counts);
        if account.counts.has_changes() || account.event != "kept" {
            self.accounts.push(account);
        }
    }
}
