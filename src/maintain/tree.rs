//! The tree of a check: every name leads to an inode, every inode has its names and can be reached, every
//! extent has its blob.
//!
//! Account by account, and within it in windows of inodes: a window's inodes are read in order, with their
//! extents and attributes beside them, and then every directory entry of the account passes once and is
//! counted at the inodes of the window. So a million files are read once and a hundred million a hundred
//! times, in order each time, and memory is bounded: 48 MiB for a window, 32 MiB of pack indexes (`blobs`),
//! a bit for each inode of the largest account, and a number for each account and each pack.

use std::collections::HashMap;
use std::iter::Peekable;
use std::ops::Bound;
use std::path::Path;

use bytes::Bytes;

use crate::error::Result;
use crate::format::inode::{self, EntryTarget, Inode};
use crate::format::keys::{self, Kind};
use crate::maintain::blobs::Blobs;
use crate::maintain::check::CheckReport;
use crate::maintain::packs::Ledgered;
use crate::meta::view::{View, ViewRange};
use crate::types::{AccountId, FileKind, Ino};
use crate::volume::account::AccountRecord;

pub(super) const ADVICE: &str =
    "mount an earlier moment (tidefs mount --at) and copy from there what this one has lost";
/// Inodes in memory at a time.
const WINDOW_LEN: usize = 1 << 20;
/// Problems of the tree that are named one by one.
const NAMED_MAX: usize = 1000;
/// Bits for inodes known to be reachable; those with higher numbers are walked up from each time.
const REACHED_MAX: u64 = 1 << 29;

/// What is known of an inode in the window.
struct Node {
    ino: Ino,
    /// `None` if it cannot be read.
    kind: Option<FileKind>,
    nlink: u32,
    parent: Option<Ino>,
    names: u32,
    subdirs: u32,
}

struct Walk<'a> {
    view: &'a View,
    blobs: Blobs<'a>,
    /// How many names the root has for each account.
    accounts: HashMap<AccountId, u32>,
    report: &'a mut CheckReport,
}

/// Checks the tree that `view` shows.
pub(super) fn check(root: &Path, view: &View, ledger: &Ledgered, report: &mut CheckReport) {
    let mut walk = Walk {
        view,
        blobs: Blobs::new(root, ledger),
        accounts: HashMap::new(),
        report,
    };
    let outcome = walk.all();
    let is_cut = walk.report.problems.len() > NAMED_MAX;
    if let Err(error) = outcome {
        report.add_error("the metadata", error, ADVICE);
    } else if is_cut {
        let reason = "there is more: only the first problems are named";
        report.add("the metadata", None, reason, ADVICE);
    }
}

impl Walk<'_> {
    fn is_full(&self) -> bool {
        self.report.problems.len() > NAMED_MAX
    }

    fn add(&mut self, object: impl Into<String>, reason: impl Into<String>) {
        self.report.add(object, None, reason, ADVICE);
    }

    fn all(&mut self) -> Result<()> {
        for entry in range(self.view, &dir_entries(Ino::ROOT)) {
            let (_, value) = entry?;
            if let Some(target) = inode::decode_entry(&value)
                && target.ino.account() != AccountId::SERVER
            {
                *self.accounts.entry(target.ino.account()).or_default() += 1;
            }
        }
        let mut next = Some(AccountId::SERVER);
        while let Some(account) = next.filter(|_| !self.is_full()) {
            self.account(account)?;
            next = self.account_after(account)?;
        }
        let named: Vec<AccountId> = self.accounts.keys().copied().collect();
        for account in named {
            let root = Ino::account_root(account);
            if self.view.get(&keys::inode(root))?.is_none() {
                self.add("the root directory", format!("inode {root} is not there"));
            }
        }
        Ok(())
    }

    /// The next account that has entries.
    fn account_after(&self, account: AccountId) -> Result<Option<AccountId>> {
        let Some(next) = AccountId::new(account.get() + 1) else {
            return Ok(None);
        };
        let first = self
            .view
            .range(&keys::next_ino(next), Bound::Unbounded)
            .next()
            .transpose()?;
        Ok(first.and_then(|(key, _)| keys::account_of(&key)))
    }

    fn account(&mut self, account: AccountId) -> Result<()> {
        let mut reached = Vec::new();
        let mut first = Some(0);
        while let Some(local) = first.filter(|_| !self.is_full()) {
            let mut window = self.window(account, local)?;
            first = window.next_local;
            self.count_names(account, &mut window)?;
            for node in &window.nodes {
                self.judge(node)?;
            }
            for node in &window.nodes {
                if node.kind == Some(FileKind::Dir) && !self.is_full() {
                    self.reach(node.ino, &window, &mut reached)?;
                }
            }
        }
        Ok(())
    }

    /// Reads the inodes of `account` from number `local` on, as many as a window holds, with what hangs on them.
    fn window(&mut self, account: AccountId, local: u64) -> Result<Window> {
        let (from, end) = (Ino::new(account, local), Ino::new(account, Ino::LOCAL_MAX));
        let after = |kind: Kind| keys::kind_end(account, kind);
        let span = (keys::inode(from), after(Kind::Inode));
        let mut leaves =
            range(self.view, &(keys::extents(from, 0), after(Kind::Extents))).peekable();
        let mut xattrs = range(self.view, &(keys::xattr(from, b""), after(Kind::Xattr))).peekable();
        let mut window = Window {
            first: from,
            last: end,
            nodes: Vec::new(),
            next_local: None,
        };
        for entry in range(self.view, &span) {
            let (key, value) = entry?;
            let Some(ino) = keys::ino_of(&key) else {
                continue;
            };
            if window.nodes.len() >= WINDOW_LEN {
                window.next_local = Some(ino.local());
                window.last = Ino::new(account, ino.local() - 1);
                break;
            }
            self.strays(&mut leaves, ino, "extents")?;
            self.strays(&mut xattrs, ino, "an extended attribute")?;
            let node = self.node(ino, &value, &mut leaves)?;
            while next_of(&mut xattrs)? == Some(ino) {
                xattrs.next();
            }
            window.nodes.push(node);
            self.report.inodes += 1;
        }
        if window.next_local.is_none() {
            let behind = Ino(end.0 + 1);
            self.strays(&mut leaves, behind, "extents")?;
            self.strays(&mut xattrs, behind, "an extended attribute")?;
        }
        Ok(window)
    }

    /// Names what hangs on inodes before `ino`: those are not there.
    fn strays(&mut self, entries: &mut Peekable<ViewRange>, ino: Ino, what: &str) -> Result<()> {
        while let Some(of) = next_of(entries)?
            && of < ino
            && !self.is_full()
        {
            entries.next();
            self.add(
                format!("inode {of}"),
                format!("there are {what} of it, and no inode"),
            );
        }
        Ok(())
    }

    /// An inode, its extents checked.
    fn node(&mut self, ino: Ino, value: &[u8], leaves: &mut Peekable<ViewRange>) -> Result<Node> {
        let decoded = Inode::decode(value);
        let mut covered = 0;
        let mut is_readable = decoded.is_some();
        for extent in decoded.iter().flat_map(|inode| &inode.extents) {
            covered += u64::from(extent.len);
            self.blobs.extent(ino, extent, self.report);
        }
        while next_of(leaves)? == Some(ino) {
            let Some(leaf) = leaves.next().transpose()? else {
                break;
            };
            let extents = inode::decode_extents(&leaf.1);
            is_readable &= extents.is_some();
            for extent in extents.iter().flatten() {
                covered += u64::from(extent.len);
                self.blobs.extent(ino, extent, self.report);
            }
        }
        if !is_readable {
            self.add(format!("inode {ino}"), "it is not in the format");
        } else if let Some(inode) = &decoded
            && inode.kind == FileKind::File
            && inode.allocated != covered
        {
            let reason = format!(
                "its extents cover {covered} bytes, and it counts {}",
                inode.allocated
            );
            self.add(format!("inode {ino}"), reason);
        }
        Ok(Node {
            ino,
            kind: decoded.as_ref().map(|inode| inode.kind),
            nlink: decoded.as_ref().map_or(0, |inode| inode.nlink),
            parent: decoded.and_then(|inode| inode.parent),
            names: 0,
            subdirs: 0,
        })
    }

    /// Counts every directory entry of the account at the inodes of the window.
    fn count_names(&mut self, account: AccountId, window: &mut Window) -> Result<()> {
        let first = keys::dir_entry(Ino::new(account, 0), b"");
        let span = (first, keys::kind_end(account, Kind::DirEntry));
        let mut dir = None;
        for entry in range(self.view, &span) {
            let (key, value) = entry?;
            if self.is_full() {
                return Ok(());
            }
            let Some(parent) = keys::ino_of(&key) else {
                continue;
            };
            if window.holds(parent) && dir != Some(parent) {
                dir = Some(parent);
                match window.find(parent).map(|node| node.kind) {
                    Some(Some(FileKind::Dir) | None) => {}
                    Some(_) => self.add(
                        format!("inode {parent}"),
                        "there are names in it, and it is not a directory",
                    ),
                    None => self.add(
                        format!("inode {parent}"),
                        "there are names in it, and no inode",
                    ),
                }
            }
            match inode::decode_entry(&value) {
                Some(target) => self.name(parent, &key, target, window),
                None if window.holds(parent) => {
                    self.add(shown(parent, &key), "it is not in the format");
                }
                None => {}
            }
        }
        Ok(())
    }

    fn name(&mut self, parent: Ino, key: &Bytes, target: EntryTarget, window: &mut Window) {
        let is_dir = target.kind == FileKind::Dir;
        if is_dir && let Some(node) = window.find(parent) {
            node.subdirs += 1;
        }
        if target.ino.account() != parent.account() {
            let is_account = parent == Ino::ROOT && is_dir && target.ino.local() == Ino::ROOT_LOCAL;
            if !is_account && window.holds(parent) {
                let reason = format!("it leads to inode {}, of another account", target.ino);
                self.add(shown(parent, key), reason);
            }
            return;
        }
        if !window.holds(target.ino) {
            return;
        }
        let Some(node) = window.find(target.ino) else {
            let reason = format!("inode {} is not there", target.ino);
            return self.add(shown(parent, key), reason);
        };
        node.names += 1;
        let (kind, above) = (node.kind, node.parent);
        if kind.is_some_and(|kind| kind != target.kind) {
            let reason = format!("inode {} is of another kind", target.ino);
            self.add(shown(parent, key), reason);
        } else if kind == Some(FileKind::Dir) && above != Some(parent) {
            let above = above.map_or_else(|| "no other".to_owned(), |above| above.to_string());
            let reason = format!("inode {} says that {above} is its parent", target.ino);
            self.add(shown(parent, key), reason);
        }
    }

    /// Compares what was counted with what the inode says.
    fn judge(&mut self, node: &Node) -> Result<()> {
        let Some(kind) = node.kind else {
            return Ok(());
        };
        let object = format!("inode {}", node.ino);
        let is_root = node.ino.local() == Ino::ROOT_LOCAL;
        let names = match node.ino.account() {
            AccountId::SERVER => node.names,
            account if is_root => self.accounts.get(&account).copied().unwrap_or(0),
            _ => node.names,
        };
        let names_meant = match kind {
            _ if node.ino == Ino::ROOT => 0,
            _ if is_root && self.is_deleted(node.ino.account())? => 0,
            FileKind::Dir => 1,
            _ => node.nlink,
        };
        if names != names_meant {
            let reason = if names == 0 {
                "it has no name".to_owned()
            } else {
                format!("it should have {names_meant} names and has {names}")
            };
            self.add(object.as_str(), reason);
        } else if names == 0 && !is_root && self.view.get(&keys::orphan(node.ino))?.is_none() {
            self.add(object.as_str(), "it has no name and is not noted as open");
        }
        if kind == FileKind::Dir && node.nlink != node.subdirs.saturating_add(2) {
            let reason = format!(
                "its nlink is {}, and it has {} directories",
                node.nlink, node.subdirs
            );
            self.add(object, reason);
        }
        Ok(())
    }

    /// Whether an account was deleted with all that was in it: then no name leads to it.
    fn is_deleted(&self, account: AccountId) -> Result<bool> {
        let record = self.view.get(&keys::account(account))?;
        let record = record.and_then(|bytes| AccountRecord::decode(&bytes).ok());
        Ok(record.is_some_and(|record| record.deleted.is_some()))
    }

    /// Walks from a directory up to one that is known to be reachable.
    fn reach(&mut self, from: Ino, window: &Window, reached: &mut Vec<u64>) -> Result<()> {
        let mut path = Vec::new();
        let mut at = from;
        // Where the walk was at the last power of two: a cycle comes by again.
        let (mut mark, mut mark_at) = (from, 1);
        while at.local() != Ino::ROOT_LOCAL && !has_bit(reached, at) {
            path.push(at);
            let parent = match window.get(at) {
                Some(node) => node.parent,
                None => match self.view.get(&keys::inode(at))? {
                    Some(bytes) => Inode::decode(&bytes).and_then(|inode| inode.parent),
                    None => None,
                },
            };
            let Some(parent) = parent else {
                // Told where its name is.
                return Ok(());
            };
            at = parent;
            if at == mark {
                let reason = "it cannot be reached: the directories above it are in each other";
                self.add(format!("inode {from}"), reason);
                return Ok(());
            }
            if path.len() >= mark_at {
                (mark, mark_at) = (at, mark_at * 2);
            }
        }
        for ino in path {
            set_bit(reached, ino);
        }
        Ok(())
    }
}

/// Some inodes of one account, in order, and the numbers between which they are all.
struct Window {
    first: Ino,
    last: Ino,
    nodes: Vec<Node>,
    next_local: Option<u64>,
}

impl Window {
    fn holds(&self, ino: Ino) -> bool {
        (self.first..=self.last).contains(&ino)
    }

    fn find(&mut self, ino: Ino) -> Option<&mut Node> {
        let at = self
            .nodes
            .binary_search_by_key(&ino, |node| node.ino)
            .ok()?;
        self.nodes.get_mut(at)
    }

    fn get(&self, ino: Ino) -> Option<&Node> {
        let at = self
            .nodes
            .binary_search_by_key(&ino, |node| node.ino)
            .ok()?;
        self.nodes.get(at)
    }
}

fn range(view: &View, (from, to): &(keys::Key, keys::Key)) -> ViewRange {
    view.range(from, Bound::Excluded(to))
}

fn dir_entries(dir: Ino) -> (keys::Key, keys::Key) {
    (keys::dir_entry(dir, b""), keys::dir_entries_end(dir))
}

/// The inode that the next entry hangs on.
fn next_of(entries: &mut Peekable<ViewRange>) -> Result<Option<Ino>> {
    match entries.peek() {
        Some(Ok((key, _))) => Ok(keys::ino_of(key)),
        Some(Err(_)) => entries
            .next()
            .map_or(Ok(None), |failed| failed.map(|_| None)),
        None => Ok(None),
    }
}

fn shown(parent: Ino, key: &[u8]) -> String {
    let name = keys::name_of(key).escape_ascii();
    format!("\"{name}\" in directory {parent}")
}

fn place_of(ino: Ino) -> Option<(usize, u64)> {
    let at = usize::try_from(ino.local() / 64).ok()?;
    (ino.local() < REACHED_MAX).then_some((at, 1 << (ino.local() % 64)))
}

fn has_bit(bits: &[u64], ino: Ino) -> bool {
    place_of(ino).is_some_and(|(at, bit)| bits.get(at).is_some_and(|word| word & bit != 0))
}

fn set_bit(bits: &mut Vec<u64>, ino: Ino) {
    let Some((at, bit)) = place_of(ino) else {
        return;
    };
    if bits.len() <= at {
        bits.resize(at + 1, 0);
    }
    if let Some(word) = bits.get_mut(at) {
        *word |= bit;
    }
}
