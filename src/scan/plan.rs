//! Which accounts a scan is about: what is found in the source beside what the volume has, and what came of each.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::scan::account::{AccountRun, count_below};
use crate::scan::accounts::{self, Found, Search};
use crate::scan::compare::{Verdict, compare, is_settled, item_of};
use crate::scan::dirs::DirTask;
use crate::scan::dirty;
use crate::scan::guard::{self, Going};
use crate::scan::look::{look, xattrs};
use crate::scan::report::{AccountReport, Counts, bump};
use crate::scan::run::{Dirty, Scan, Scope, Task};
use crate::types::{Ino, escape};
use crate::volume::account::{AccountRecord, Fed};
use crate::volume::fed::AccountEntry;
use crate::volume::feed::Item;

/// An account of the source that the volume knows.
struct Known {
    entry: AccountEntry,
    fed: Fed,
    /// Number of its directory's inode in the source.
    number: Option<u64>,
}

impl Known {
    /// Whether somebody said that nothing is to change it.
    fn is_disabled(&self) -> bool {
        self.entry.name.is_some() && self.entry.record.disabled.is_some()
    }
}

/// What becomes of a directory that is an account.
struct Match {
    found: Found,
    known: Option<Known>,
}

/// Does all of a scan but its beginning and its report.
pub fn all(scan: &Scan<'_>, root: &Arc<OwnedFd>) -> Result<()> {
    let known = known(scan)?;
    if let Scope::Dirty(dirty) = &scan.ask.scope
        && let Some(found) = dirty::found_again(root, dirty, |path| {
            let path = escape(path);
            let is_it = |known: &&Known| known.fed.path == path && known.entry.name.is_some();
            known
                .iter()
                .find(is_it)
                .and_then(|known| known.entry.name.clone())
        })
    {
        let (matches, _) = pair(found, known);
        return run(scan, matches);
    }
    let Search {
        found,
        errors,
        clashes,
    } = accounts::find(scan.source, root)
        .map_err(Error::io("read the source", scan.source.dir()))?;
    for (path, error) in &errors {
        scan.source_error(|| format!("{}: {error}", escape(path)))?;
    }
    for (name, path) in clashes {
        scan.refuse(format!(
            "{}: it would be the account '{}', as another directory is: it was passed over",
            escape(&path),
            escape(&name)
        ));
    }
    let had_accounts = known.iter().any(|known| known.entry.name.is_some());
    if found.is_empty() && had_accounts && !scan.ask.accept_deletions {
        scan.refuse(format!(
            "{}: none of its accounts is there any more, and nothing was marked as deleted: see whether it is mounted. If \
             they were meant to go: tidefs scan --accept-deletions",
            scan.source.path
        ));
        return Ok(());
    }
    let (matches, mut gone) = pair(found.into_values().collect(), known);
    let is_below_error = |known: &Known| {
        let path = crate::types::unescape(&known.fed.path).unwrap_or_default();
        errors.iter().any(|(error, _)| path.starts_with(error))
    };
    let may_go = |known: &Known| {
        matches!(scan.ask.scope, Scope::DirtyAccounts(_))
            || is_asked(scan, known.entry.name.as_deref())
    };
    gone.retain(|known| !is_below_error(known) && may_go(known));
    check_scope(scan, &matches, &gone)?;
    let is_meant = |one: &Match| {
        is_asked(scan, Some(&one.found.name))
            || is_dirty(scan, &one.found.path)
            || is_another(scan, one)
    };
    run(scan, matches.into_iter().filter(is_meant).collect())?;
    for known in gone {
        if known.is_disabled() {
            pass_over(scan, &known);
        } else if !scan.is_stopped() {
            remove(scan, &known)?;
        }
    }
    Ok(())
}

fn is_asked(scan: &Scan<'_>, name: Option<&[u8]>) -> bool {
    match &scan.ask.scope {
        Scope::All => true,
        Scope::Accounts(names) => name.is_some_and(|name| names.contains(name)),
        Scope::Dirty(_) | Scope::DirtyAccounts(_) => false,
    }
}

fn is_dirty(scan: &Scan<'_>, path: &[u8]) -> bool {
    let dirty = scan.ask.scope.dirty().unwrap_or_default();
    dirty.iter().any(|dirty| dirty.account == path)
}

/// Whether the scan is about which accounts there are, and the directory is not the one that the account had.
fn is_another(scan: &Scan<'_>, one: &Match) -> bool {
    let is_as_before = one.known.as_ref().is_some_and(|known| {
        known.entry.name.is_some()
            && known.fed.path == escape(&one.found.path)
            && known.number == Some(one.found.seen.number)
    });
    matches!(scan.ask.scope, Scope::DirtyAccounts(_)) && !is_as_before
}

/// Names that were asked for and are nowhere.
fn check_scope(scan: &Scan<'_>, matches: &[Match], gone: &[Known]) -> Result<()> {
    let Scope::Accounts(names) = &scan.ask.scope else {
        return Ok(());
    };
    let there: BTreeSet<&[u8]> = matches
        .iter()
        .map(|one| one.found.name.as_slice())
        .chain(gone.iter().filter_map(|known| known.entry.name.as_deref()))
        .collect();
    match names.iter().find(|name| !there.contains(name.as_slice())) {
        Some(name) => Err(Error::Refused(format!(
            "the source {} has no account '{}': tidefs scan without --account shows what it finds",
            scan.source.path,
            escape(name)
        ))),
        None => Ok(()),
    }
}

fn known(scan: &Scan<'_>) -> Result<Vec<Known>> {
    let mut all = Vec::new();
    for entry in scan.volume.accounts()? {
        let Some(fed) = entry.record.fed.clone() else {
            continue;
        };
        if fed.source != scan.source.uuid {
            continue;
        }
        let number = match &entry.name {
            Some(_) => scan.volume.inode(Ino::account_root(entry.id))?.origin,
            None => None,
        };
        all.push(Known {
            entry,
            fed,
            number: number.map(|origin| origin.number),
        });
    }
    Ok(all)
}

/// Brings together what is found and what is known: by the directory's own inode first, so that a renamed directory is
/// the account that it was; then by its path, so that one that was made anew is too. What is left of the known is gone.
fn pair(found: Vec<Found>, mut known: Vec<Known>) -> (Vec<Match>, Vec<Known>) {
    let is_same = |known: &Known, found: &Found| {
        let born = found.seen.born.map(|born| (born.secs, born.nanos));
        known.entry.name.is_some()
            && known.number == Some(found.seen.number)
            && born.is_some()
            && known.fed.born == born
    };
    let mut matches: Vec<Match> = Vec::new();
    for found in found {
        let at = known.iter().position(|known| is_same(known, &found));
        matches.push(Match {
            known: at.map(|at| known.swap_remove(at)),
            found,
        });
    }
    for one in matches.iter_mut().filter(|one| one.known.is_none()) {
        let path = escape(&one.found.path);
        // One that is there before one that was removed.
        let mut candidates: Vec<usize> = (0..known.len())
            .filter(|at| known.get(*at).is_some_and(|known| known.fed.path == path))
            .collect();
        candidates.sort_by_key(|at| known.get(*at).map(|known| known.entry.record.deleted));
        one.known = candidates.first().map(|at| known.swap_remove(*at));
    }
    known.retain(|known| known.entry.name.is_some());
    (matches, known)
}

/// Prepares every account, then has all of them compared.
fn run(scan: &Scan<'_>, matches: Vec<Match>) -> Result<()> {
    // Names of accounts may change places: those that are taken become free by and by.
    let mut waiting = matches;
    loop {
        let before = waiting.len();
        let mut blocked = Vec::new();
        for one in waiting {
            if scan.is_stopped() {
                return Ok(());
            }
            if let Some(known) = one.known.as_ref().filter(|known| known.is_disabled()) {
                pass_over(scan, known);
                continue;
            }
            if is_verified(scan, &one) {
                continue;
            }
            match prepare(scan, &one) {
                Err(Error::Posix(Errno::EEXIST)) => blocked.push(one),
                Err(Error::Io { op, path, source }) => {
                    let path = path.display();
                    scan.source_error(|| format!("cannot {op} {path}: {source}"))?;
                }
                outcome => outcome?,
            }
        }
        if blocked.is_empty() || blocked.len() == before {
            for one in blocked {
                scan.refuse(format!(
                    "{}: something else is called '{}' at the root of the volume: rename that, then scan again",
                    escape(&one.found.path),
                    escape(&one.found.name)
                ));
            }
            break;
        }
        waiting = blocked;
    }
    scan.run();
    Ok(())
}

/// Leaves an account that is disabled as it is, and says so.
fn pass_over(scan: &Scan<'_>, known: &Known) {
    let name = known.entry.name.as_deref().unwrap_or_default();
    let report = AccountReport {
        account: escape(name),
        event: "disabled".into(),
        counts: Counts::default(),
    };
    scan.report(|all| all.enter(report));
}

/// Whether this deep scan has been through it already, before it was stopped.
fn is_verified(scan: &Scan<'_>, one: &Match) -> bool {
    let verified = one.known.as_ref().and_then(|known| known.fed.verified);
    let is_resumed = scan.ask.deep && scan.ask.scope == Scope::All;
    is_resumed
        && scan
            .source
            .deep_since
            .is_some_and(|since| verified > Some(since))
}

/// Makes the account what its directory is, and pushes what is to be compared.
fn prepare(scan: &Scan<'_>, one: &Match) -> Result<()> {
    let found = &one.found;
    let path = scan.source.dir();
    let seen = look(&found.parent, &found.entry).map_err(Error::io("look at", &path))?;
    let mut item = item_of(&seen, 0, is_settled(&seen, scan.clock.now()));
    item.xattrs = Some(xattrs(&found.parent, &found.entry).map_err(Error::io("look at", &path))?);
    let (id, event) = match &one.known {
        None => (make(scan, found, &item)?, "new"),
        Some(known) if known.entry.name.is_none() => {
            let change =
                |record: &mut AccountRecord| record.fed = Some(fed(scan, found, Some(known)));
            scan.volume
                .feed(|feed| feed.revive_account(known.entry.id, &found.name, &item, change))?;
            (known.entry.id, "revived")
        }
        Some(known) => (known.entry.id, adapt(scan, found, known)?),
    };
    let dirty = scan.ask.scope.dirty().unwrap_or_default();
    let some_dirs = |dirty: &Dirty| dirty.account == found.path && dirty.dirs.is_some();
    let is_whole = is_another(scan, one) || !dirty.iter().any(some_dirs);
    let account = Arc::new(AccountRun::new(
        scan,
        id,
        &found.name,
        event,
        is_whole || event == "new",
    ));
    scan.takes_on(&account);
    let ino = Ino::account_root(id);
    let verdict = compare(&seen, 0, &scan.volume.inode(ino)?);
    let has_attributes =
        !scan.ask.deep || item.xattrs.as_ref() == Some(&scan.volume.xattrs_of(ino)?);
    if verdict != Verdict::Same || !has_attributes {
        account.feed(scan, |feed| feed.change(ino, &item))?;
        bump(&account.tally.attributes);
    }
    let root = DirTask {
        account: Arc::clone(&account),
        parent: Arc::clone(&found.parent),
        entry: found.entry.clone(),
        path: Vec::new(),
        ino,
        seen,
        place: 0,
        is_deep: account.is_whole,
        is_again: false,
    };
    let tasks = if account.is_whole {
        vec![root]
    } else {
        let of_it = dirty.iter().filter(|dirty| dirty.account == found.path);
        let dirs = of_it.filter_map(|dirty| dirty.dirs.as_ref()).flatten();
        dirty::tasks(scan, &root, dirs)?
    };
    // Counted before any is begun, so that the account does not end between two of them.
    for task in tasks {
        scan.push(Task::Dir(task));
    }
    Ok(())
}

fn fed(scan: &Scan<'_>, found: &Found, known: Option<&Known>) -> Fed {
    let before = known.map(|known| &known.fed);
    Fed {
        source: scan.source.uuid.clone(),
        path: escape(&found.path),
        whole_at: before.and_then(|fed| fed.whole_at),
        scanned: before.and_then(|fed| fed.scanned),
        verified: None,
        items: before.map_or(0, |fed| fed.items),
        born: found.seen.born.map(|born| (born.secs, born.nanos)),
    }
}

fn make(scan: &Scan<'_>, found: &Found, item: &Item) -> Result<crate::types::AccountId> {
    let uuid = crate::clock::random()?;
    let mut record = AccountRecord::new(uuid, &found.name, scan.clock.now());
    record.fed = Some(fed(scan, found, None));
    scan.volume
        .feed(|feed| feed.make_account(&found.name, &record, item))
}

/// An account that is there, perhaps under another name or at another place.
fn adapt(scan: &Scan<'_>, found: &Found, known: &Known) -> Result<&'static str> {
    let old = known.entry.name.clone().unwrap_or_default();
    let is_renamed = known.fed.path != escape(&found.path) && *old != *found.name;
    if is_renamed {
        scan.volume
            .feed(|feed| feed.rename_account(known.entry.id, &old, &found.name))?;
    }
    let mut now = fed(scan, found, Some(known));
    now.verified = known.fed.verified;
    if now != known.fed {
        scan.volume
            .change_account(known.entry.id, |record| record.fed = Some(now))?;
    }
    Ok(if is_renamed { "renamed" } else { "kept" })
}

/// Marks an account as deleted whose directory is gone, if that is believable.
fn remove(scan: &Scan<'_>, known: &Known) -> Result<()> {
    let id = known.entry.id;
    let name = known.entry.name.clone().unwrap_or_default();
    let root = Ino::account_root(id);
    if !scan.ask.accept_deletions {
        let names = count_below(scan, root)?;
        if let Some(refusal) = guard::refusal(&escape(&name), Going { names, of: names }) {
            scan.refuse(refusal);
            return Ok(());
        }
    }
    let account = AccountRun::new(scan, id, &name, "deleted", false);
    match account.remove_below(scan, root) {
        Err(Error::Posix(Errno::ECANCELED)) => return Ok(()),
        outcome => outcome?,
    }
    let now = scan.clock.now().secs;
    account.feed(scan, |feed| feed.remove_account(id, &name, now))?;
    let report = account.end(scan)?;
    scan.report(|all| all.enter(report));
    Ok(())
}

/// The directories of an account by their inodes, so that none is compared twice.
pub type ByIno = BTreeMap<Ino, DirTask>;
