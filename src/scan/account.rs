//! One account while it is scanned: what is counted, what is gone, and how it ends.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::scan::dirs::DirTask;
use crate::scan::goners::{Goner, Goners};
use crate::scan::guard::{self, Going};
use crate::scan::report::{AccountReport, Tally, add};
use crate::scan::run::Scan;
use crate::types::{AccountId, FileKind, Ino};
use crate::volume::feed::FeedTx;

/// Names of a directory read in one step.
const LISTING_STEP: usize = 256;
/// Names removed in one transaction.
const REMOVED_STEP: usize = 256;

/// An account under way.
#[derive(Debug)]
pub struct AccountRun {
    /// Which.
    pub id: AccountId,
    /// Its name, for people.
    pub shown: String,
    /// What happened to the account itself.
    pub event: &'static str,
    /// Counts.
    pub tally: Tally,
    /// Tasks that are not done.
    pub pending: AtomicU64,
    /// Names that were there before and still are.
    pub kept: AtomicU64,
    /// Whether everything of it is looked at, and not some directories.
    pub is_whole: bool,
    has_ended: AtomicBool,
    has_begun: AtomicBool,
    /// Whether a scan before this one was cut off: only one that looks at everything ends that.
    was_broken: AtomicBool,
    begin: Mutex<()>,
    ends: Mutex<Ends>,
}

/// What is left for the end.
#[derive(Debug)]
struct Ends {
    goners: Goners,
    /// Inodes whose last name was taken.
    parked: Vec<Ino>,
    /// Directories in which something waits for a name to be free.
    again: Vec<DirTask>,
}

impl AccountRun {
    /// Nothing done yet.
    pub fn new(
        scan: &Scan<'_>,
        id: AccountId,
        name: &[u8],
        event: &'static str,
        is_whole: bool,
    ) -> AccountRun {
        AccountRun {
            id,
            shown: crate::types::escape(name),
            event,
            tally: Tally::default(),
            pending: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            is_whole,
            has_ended: AtomicBool::new(false),
            has_begun: AtomicBool::new(false),
            was_broken: AtomicBool::new(false),
            begin: Mutex::default(),
            ends: Mutex::new(Ends {
                goners: Goners::new(scan.volume.root()),
                parked: Vec::new(),
                again: Vec::new(),
            }),
        }
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name is gone, as far as is known.
    pub fn vanished(&self, parent: Ino, name: &[u8], ino: Ino) -> Result<()> {
        let name = name.to_vec();
        self.ends().goners.add(&Goner { parent, ino, name })
    }

    /// An inode lost its last name to another one.
    pub fn parked(&self, ino: Option<Ino>) {
        self.ends().parked.extend(ino);
    }

    /// A directory stands where a file shall be: it goes first, then this directory is looked at again.
    pub fn blocked(&self, parent: Ino, name: &[u8], ino: Ino, task: DirTask) -> Result<()> {
        self.vanished(parent, name, ino)?;
        let mut ends = self.ends();
        if !ends.again.iter().any(|other| other.ino == task.ino) {
            ends.again.push(DirTask {
                is_deep: false,
                is_again: true,
                ..task
            });
        }
        Ok(())
    }

    /// Changes the account. The first change notes that it is no longer whole.
    pub fn feed<T>(
        &self,
        scan: &Scan<'_>,
        work: impl FnOnce(&mut FeedTx<'_, '_>) -> Result<T>,
    ) -> Result<T> {
        if !self.has_begun.load(Ordering::Acquire) {
            let _one = self.begin.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.has_begun.load(Ordering::Acquire) {
                let before = scan.base_epoch;
                scan.volume.change_account(self.id, |record| {
                    if let Some(fed) = &mut record.fed {
                        self.was_broken
                            .store(fed.whole_at.is_some(), Ordering::Relaxed);
                        fed.whole_at.get_or_insert(before);
                    }
                })?;
                self.has_begun.store(true, Ordering::Release);
            }
        }
        scan.volume.feed(work)
    }

    /// All of it is seen: what is gone goes, if that is believable. Returns tasks that could not be done before.
    pub fn finish(&self, scan: &Scan<'_>) -> Result<Vec<DirTask>> {
        let (mut goners, parked, again) = {
            let mut ends = self.ends();
            let goners = std::mem::replace(&mut ends.goners, Goners::new(scan.volume.root()));
            (
                goners,
                std::mem::take(&mut ends.parked),
                std::mem::take(&mut ends.again),
            )
        };
        for some in parked.chunks(REMOVED_STEP) {
            self.feed(scan, |feed| {
                some.iter().try_for_each(|ino| feed.drop_parked(*ino))
            })?;
        }
        if goners.count() > 0 {
            if let Some(refusal) = self.judge(scan, &mut goners)? {
                scan.refuse(refusal);
                return Ok(Vec::new());
            }
            goners.each(&mut |goner| self.remove(scan, &goner))?;
        }
        Ok(again)
    }

    /// Whether so much would go that it is refused.
    fn judge(&self, scan: &Scan<'_>, goners: &mut Goners) -> Result<Option<String>> {
        if scan.ask.accept_deletions {
            return Ok(None);
        }
        let mut names = 0;
        goners.each(&mut |goner| {
            if stands(scan, &goner)? {
                names += 1 + count_below(scan, goner.ino)?;
            }
            Ok(())
        })?;
        let seen = self.kept.load(Ordering::Relaxed) + names;
        let of = if self.is_whole {
            seen
        } else {
            let record = scan.volume.account_record(self.id)?;
            let known = record.and_then(|record| record.fed);
            seen.max(known.map_or(0, |fed| fed.items))
        };
        let moved = self.tally.counts().moved;
        let names = names.saturating_sub(moved);
        Ok(guard::refusal(&self.shown, Going { names, of }))
    }

    /// Removes a name, and all below it.
    fn remove(&self, scan: &Scan<'_>, goner: &Goner) -> Result<()> {
        if !stands(scan, goner)? {
            return Ok(());
        }
        if is_dir(scan, goner.ino)? {
            self.remove_below(scan, goner.ino)?;
        }
        self.feed(scan, |feed| feed.remove(goner.parent, &goner.name))?;
        add(&self.tally.deleted, 1);
        Ok(())
    }

    /// Empties a directory, from below.
    pub fn remove_below(&self, scan: &Scan<'_>, dir: Ino) -> Result<()> {
        let mut path = vec![dir];
        while let Some(&at) = path.last() {
            scan.go_on()?;
            let listing = scan.volume.listing(at, None, REMOVED_STEP)?;
            let subdir = listing
                .iter()
                .find(|(_, _, inode)| inode.kind == FileKind::Dir);
            if let Some((name, ino, _)) = subdir {
                if scan.volume.listing(*ino, None, 1)?.is_empty() {
                    self.feed(scan, |feed| feed.remove(at, name))?;
                    add(&self.tally.deleted, 1);
                } else {
                    path.push(*ino);
                }
                continue;
            }
            if listing.is_empty() {
                path.pop();
                continue;
            }
            self.feed(scan, |feed| {
                let mut names = listing.iter();
                names.try_for_each(|(name, ..)| feed.remove(at, name))
            })?;
            add(&self.tally.deleted, listing.len() as u64);
        }
        Ok(())
    }

    /// It has come to its end: notes that it is whole, and tells how it went.
    pub fn end(&self, scan: &Scan<'_>) -> Result<AccountReport> {
        let counts = self.tally.counts();
        let now = scan.clock.now().secs;
        let has_begun = self.has_begun.load(Ordering::Acquire);
        if has_begun || scan.ask.deep || self.event != "kept" {
            scan.volume.change_account(self.id, |record| {
                if let Some(fed) = &mut record.fed {
                    if self.is_whole || !self.was_broken.load(Ordering::Relaxed) {
                        fed.whole_at = None;
                    }
                    if has_begun {
                        fed.scanned = Some(now);
                    }
                    if self.is_whole {
                        fed.items = counts.items;
                    }
                    if scan.ask.deep {
                        fed.verified = Some(now);
                    }
                }
            })?;
        }
        self.has_ended.store(true, Ordering::Release);
        Ok(self.report(self.event))
    }

    /// Whether it came to its end.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// How it went so far.
    pub fn report(&self, event: &str) -> AccountReport {
        AccountReport {
            account: self.shown.clone(),
            event: event.into(),
            counts: self.tally.counts(),
        }
    }
}

/// Whether the name still leads to what was gone.
fn stands(scan: &Scan<'_>, goner: &Goner) -> Result<bool> {
    let entry = scan.volume.entry(goner.parent, &goner.name)?;
    Ok(entry.is_some_and(|entry| entry.ino == goner.ino))
}

fn is_dir(scan: &Scan<'_>, ino: Ino) -> Result<bool> {
    match scan.volume.inode(ino) {
        Ok(inode) => Ok(inode.kind == FileKind::Dir),
        Err(Error::Posix(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Names below a directory; 0 for all else.
pub fn count_below(scan: &Scan<'_>, ino: Ino) -> Result<u64> {
    let mut count = 0;
    let mut waiting = VecDeque::new();
    if is_dir(scan, ino)? {
        waiting.push_back(ino);
    }
    while let Some(dir) = waiting.pop_back() {
        scan.go_on()?;
        let mut after: Option<bytes::Bytes> = None;
        loop {
            let listing = scan.volume.listing(dir, after.as_deref(), LISTING_STEP)?;
            count += listing.len() as u64;
            let subdirs = listing
                .iter()
                .filter(|(_, _, inode)| inode.kind == FileKind::Dir);
            waiting.extend(subdirs.map(|(_, ino, _)| *ino));
            match listing.last() {
                Some((last, ..)) if listing.len() == LISTING_STEP => after = Some(last.clone()),
                _ => break,
            }
        }
    }
    Ok(count)
}
