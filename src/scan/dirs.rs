//! A directory of the source beside the same directory of the volume: both in order of names, compared name by name.
//!
//! What needs no reading is done here; files that do are handed on in groups, for any worker.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::Result;
use crate::format::inode::Inode;
use crate::scan::account::AccountRun;
use crate::scan::accounts::joined;
use crate::scan::compare::{Verdict, compare, has_content_of, is_settled, item_of};
use crate::scan::files::{FileWork, FilesTask};
use crate::scan::listing::Listing;
use crate::scan::look::{Seen, look, look_at, open_dir, target, xattrs};
use crate::scan::names::{NAMES_MAX, names_after};
use crate::scan::put::{Put, put, put_dir};
use crate::scan::read::FileReader;
use crate::scan::report::{add, bump};
use crate::scan::run::{Scan, Task};
use crate::types::{FileKind, Ino};
use crate::volume::feed::Item;

/// Files that are handed on together, and bytes in them.
const GROUP_FILES: usize = 64;
const GROUP_BYTES: u64 = 4 << 20;

/// A directory to be compared.
#[derive(Clone, Debug)]
pub struct DirTask {
    /// Whose.
    pub account: Arc<AccountRun>,
    /// The directory above it, open.
    pub parent: Arc<OwnedFd>,
    /// Its name there.
    pub entry: Vec<u8>,
    /// Its path from the account's directory; empty for that itself.
    pub path: Vec<u8>,
    /// The same directory in the volume.
    pub ino: Ino,
    /// What it was when it was found.
    pub seen: Seen,
    /// Which file system it is on: see [`crate::format::inode::Origin`].
    pub place: u32,
    /// Whether directories in it are compared too, which were there before. New ones always are.
    pub is_deep: bool,
    /// Whether it was compared in this scan before, and only what waited there is meant.
    pub is_again: bool,
}

/// A name of the volume and its inode.
type Old = Option<(Ino, Inode)>;

/// A directory while it is compared.
struct At<'a, 's> {
    scan: &'a Scan<'s>,
    reader: &'a mut FileReader,
    task: &'a DirTask,
    dir: Arc<OwnedFd>,
    group: Vec<FileWork>,
    group_bytes: u64,
}

/// Compares a directory. What could not be read stays as it is.
pub fn compare_dir(scan: &Scan<'_>, reader: &mut FileReader, task: &DirTask) -> Result<()> {
    let opened = open_dir(&task.parent, &task.entry).and_then(|dir| Ok((look_at(&dir)?, dir)));
    let (now, dir) = match opened {
        Ok(opened) => opened,
        // It went after it was found: the next scan sees that its name is gone.
        Err(error) if error.kind() == ErrorKind::NotFound && !task.path.is_empty() => return Ok(()),
        Err(error) => return scan.cannot_read(&task.account, &task.path, &error),
    };
    if (now.number, now.device) != (task.seen.number, task.seen.device) {
        scan.is_changing(&task.account, &task.path);
        return Ok(());
    }
    let mut at = At {
        scan,
        reader,
        task,
        dir: Arc::new(dir),
        group: Vec::new(),
        group_bytes: 0,
    };
    at.all()?;
    at.hand_on();
    Ok(())
}

impl At<'_, '_> {
    fn all(&mut self) -> Result<()> {
        let (scan, task) = (self.scan, self.task);
        let mut known = Listing::new(scan.volume, task.ino);
        let mut after: Option<Box<[u8]>> = None;
        loop {
            let (names, has_more) = match names_after(&self.dir, after.as_deref(), NAMES_MAX) {
                Ok(names) => names,
                Err(error) => return scan.cannot_read(&task.account, &task.path, &error),
            };
            for name in &names {
                scan.go_on()?;
                while let Some((gone, ino, _)) = known.next_below(Some(name))? {
                    task.account.vanished(task.ino, &gone, ino)?;
                }
                let old = known.take(name)?;
                self.item(name, old)?;
            }
            if !has_more {
                break;
            }
            after = names.last().cloned();
        }
        while let Some((gone, ino, _)) = known.next_below(None)? {
            task.account.vanished(task.ino, &gone, ino)?;
        }
        Ok(())
    }

    fn path(&self, name: &[u8]) -> Vec<u8> {
        joined(&self.task.path, name)
    }

    fn item(&mut self, name: &[u8], old: Old) -> Result<()> {
        let (scan, task) = (self.scan, self.task);
        let seen = match look(&self.dir, name) {
            Ok(seen) => seen,
            Err(error) if error.kind() == ErrorKind::NotFound => return self.gone(name, old),
            Err(error) => return scan.cannot_read(&task.account, &self.path(name), &error),
        };
        let is_dir = seen.kind == FileKind::Dir;
        let is_left_out =
            !scan.filter.is_empty() && scan.filter.leaves_out(&self.path(name), name, is_dir);
        if is_left_out || scan.skips.is_ours(&seen) {
            return self.gone(name, old);
        }
        if !task.is_again {
            if old.is_some() {
                bump(&task.account.kept);
            }
            scan.count(&task.account, &seen);
        }
        match seen.kind {
            FileKind::Dir => self.subdir(name, &seen, old),
            FileKind::File => self.file(name, &seen, old),
            _ => self.other(name, &seen, old),
        }
    }

    fn gone(&self, name: &[u8], old: Old) -> Result<()> {
        match old {
            Some((ino, _)) => self.task.account.vanished(self.task.ino, name, ino),
            None => Ok(()),
        }
    }

    /// The item with its extended attributes; `None` if they cannot be read, which is noted.
    fn attributes(&self, name: &[u8], seen: &Seen, place: u32) -> Result<Option<Item>> {
        let now = self.scan.clock.now();
        let mut item = item_of(seen, place, is_settled(seen, now));
        let read = xattrs(&self.dir, name).and_then(|xattrs| {
            let is_link = seen.kind == FileKind::Symlink;
            let target = if is_link {
                target(&self.dir, name)?
            } else {
                Vec::new()
            };
            Ok((xattrs, target))
        });
        match read {
            Ok((xattrs, target)) => {
                item.xattrs = Some(xattrs);
                item.target = target;
                Ok(Some(item))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => {
                let path = self.path(name);
                self.scan.cannot_read(&self.task.account, &path, &error)?;
                Ok(None)
            }
        }
    }

    fn subdir(&mut self, name: &[u8], seen: &Seen, old: Old) -> Result<()> {
        let (scan, task) = (self.scan, self.task);
        let is_crossing = seen.is_mount || seen.device != task.seen.device;
        let place = if is_crossing {
            crc32c::crc32c(&self.path(name)).max(1)
        } else {
            task.place
        };
        let verdict = old.as_ref().map(|(_, inode)| compare(seen, place, inode));
        let (ino, is_known) = match (old, verdict) {
            (Some((ino, _)), Some(Verdict::Same)) if !scan.ask.deep => (ino, true),
            (old, verdict) => {
                let Some(item) = self.attributes(name, seen, place)? else {
                    return Ok(());
                };
                if let (Some((ino, _)), Some(Verdict::Same)) = (&old, verdict) {
                    self.verify_attributes(name, *ino, &item)?;
                    (*ino, true)
                } else {
                    let (put, parked) = task
                        .account
                        .feed(scan, |feed| put_dir(feed, (task.ino, name), &item))?;
                    task.account.parked(parked);
                    match put {
                        Put::Changed(ino) => {
                            bump(&task.account.tally.attributes);
                            (ino, true)
                        }
                        Put::Moved(ino) => {
                            bump(&task.account.tally.moved);
                            (ino, false)
                        }
                        Put::Made(ino) => {
                            bump(&task.account.tally.created);
                            (ino, false)
                        }
                        Put::Blocked(_) | Put::Unknown => return Ok(()),
                    }
                }
            }
        };
        if (is_crossing && scan.source.one_file_system) || (is_known && !task.is_deep) {
            return Ok(());
        }
        scan.push(Task::Dir(DirTask {
            account: Arc::clone(&task.account),
            parent: Arc::clone(&self.dir),
            entry: name.to_vec(),
            path: self.path(name),
            ino,
            seen: *seen,
            place,
            is_deep: true,
            is_again: false,
        }));
        Ok(())
    }

    fn file(&mut self, name: &[u8], seen: &Seen, old: Old) -> Result<()> {
        let (scan, task) = (self.scan, self.task);
        let verdict = old.as_ref().map_or(Verdict::Other, |(_, inode)| {
            compare(seen, task.place, inode)
        });
        match verdict {
            Verdict::Same if !scan.ask.deep => Ok(()),
            Verdict::Attributes if !scan.ask.deep => self.without_reading(name, seen),
            Verdict::Other if !scan.ask.deep => {
                let id = task.account.id;
                let known = scan.volume.find_origin(id, task.place, seen.number)?;
                match known {
                    Some((_, inode)) if has_content_of(&inode, seen) => {
                        self.without_reading(name, seen)
                    }
                    _ => {
                        self.read_later(name, seen, false);
                        Ok(())
                    }
                }
            }
            verdict => {
                self.read_later(name, seen, verdict == Verdict::Same);
                Ok(())
            }
        }
    }

    fn other(&mut self, name: &[u8], seen: &Seen, old: Old) -> Result<()> {
        let same = old.filter(|(_, inode)| compare(seen, self.task.place, inode) == Verdict::Same);
        match same {
            Some(_) if !self.scan.ask.deep => Ok(()),
            Some((ino, _)) => match self.attributes(name, seen, self.task.place)? {
                Some(item) => self.verify_attributes(name, ino, &item),
                None => Ok(()),
            },
            None => self.without_reading(name, seen),
        }
    }

    /// An item whose content is there, or that has none.
    fn without_reading(&mut self, name: &[u8], seen: &Seen) -> Result<()> {
        let (scan, task) = (self.scan, self.task);
        let Some(item) = self.attributes(name, seen, task.place)? else {
            return Ok(());
        };
        let (done, parked) = task
            .account
            .feed(scan, |feed| put(feed, (task.ino, name), &item))?;
        task.account.parked(parked);
        let tally = &task.account.tally;
        match done {
            Put::Changed(_) => bump(&tally.attributes),
            Put::Moved(_) => bump(&tally.moved),
            Put::Made(_) => bump(&tally.created),
            Put::Blocked(ino) => {
                return task.account.blocked(task.ino, name, ino, task.clone());
            }
            Put::Unknown => self.read_later(name, seen, false),
        }
        Ok(())
    }

    /// Of an item that seems to be the same: whether its extended attributes are.
    fn verify_attributes(&self, name: &[u8], ino: Ino, item: &Item) -> Result<()> {
        let (scan, task) = (self.scan, self.task);
        let is_same = item.xattrs.as_ref() == Some(&scan.volume.xattrs_of(ino)?);
        if is_same {
            return Ok(());
        }
        scan.was_missed(&task.account, &self.path(name));
        task.account.feed(scan, |feed| feed.change(ino, item))?;
        bump(&task.account.tally.attributes);
        Ok(())
    }

    fn read_later(&mut self, name: &[u8], seen: &Seen, is_verify: bool) {
        self.group.push(FileWork {
            name: name.into(),
            seen: *seen,
            is_verify,
        });
        self.group_bytes += seen.size;
        if self.group.len() >= GROUP_FILES || self.group_bytes >= GROUP_BYTES {
            self.hand_on();
        }
    }

    fn hand_on(&mut self) {
        if self.group.is_empty() {
            return;
        }
        self.group_bytes = 0;
        self.scan.push(Task::Files(FilesTask {
            dir_task: self.task.clone(),
            dir: Arc::clone(&self.dir),
            work: std::mem::take(&mut self.group),
        }));
        // Others are behind: help, so that what is handed on does not pile up.
        self.scan.help(self.reader);
    }
}

impl Scan<'_> {
    fn count(&self, account: &AccountRun, seen: &Seen) {
        bump(&account.tally.items);
        bump(&self.progress.items);
        if seen.kind == FileKind::File {
            add(&account.tally.bytes, seen.size);
            add(&self.progress.bytes, seen.size);
        }
    }
}
