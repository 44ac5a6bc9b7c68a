//! Files that have to be read: read, and put into the volume together.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::inode::Extent;
use crate::scan::accounts::joined;
use crate::scan::compare::{is_settled, item_of};
use crate::scan::dirs::DirTask;
use crate::scan::look::{Seen, look_at, open_file, xattrs};
use crate::scan::put::{Put, put};
use crate::scan::read::{Broken, FileReader, Means};
use crate::scan::report::{add, bump};
use crate::scan::run::Scan;
use crate::types::{FileKind, Ino};
use crate::volume::feed::Item;

/// Longer files go into the volume in parts, which are not held in memory.
const WHOLE_LEN_MAX: u64 = 64 << 20;
/// A file that changes while it is read is read again so often ..
const ATTEMPTS: u32 = 3;
/// .. unless it is so long.
const AGAIN_LEN_MAX: u64 = 1 << 30;

/// A file to be read.
#[derive(Debug)]
pub struct FileWork {
    /// Its name.
    pub name: Box<[u8]>,
    /// What it was when it was found.
    pub seen: Seen,
    /// Whether it seems to be the same as in the volume.
    pub is_verify: bool,
}

/// Some files of one directory.
#[derive(Debug)]
pub struct FilesTask {
    /// Their directory.
    pub dir_task: DirTask,
    /// The same, open.
    pub dir: Arc<OwnedFd>,
    /// Which.
    pub work: Vec<FileWork>,
}

/// Reads the files and puts them into the volume.
pub fn read_files(scan: &Scan<'_>, reader: &mut FileReader, task: &FilesTask) -> Result<()> {
    let mut ready = Vec::with_capacity(task.work.len());
    // What was read is put into the volume also when the scan is stopped.
    for work in &task.work {
        if scan.is_stopped() {
            break;
        }
        let (read_before, stored_before) = (reader.read_bytes, reader.stored_bytes);
        let outcome = one(scan, reader, task, work);
        let account = &task.dir_task.account;
        for tally in [&account.tally, &scan.progress] {
            add(&tally.read_files, u64::from(outcome.is_ok()));
            add(&tally.read_bytes, reader.read_bytes - read_before);
            add(&tally.stored_bytes, reader.stored_bytes - stored_before);
        }
        let path = || joined(&task.dir_task.path, &work.name);
        match outcome {
            Ok(Some(item)) => ready.push((work, item)),
            Ok(None) => {}
            Err(Broken::Source(error)) if error.kind() == ErrorKind::NotFound => {}
            Err(Broken::Source(error)) => scan.cannot_read(account, &path(), &error)?,
            Err(Broken::Volume(error)) => return Err(error),
            Err(Broken::Stopped) => break,
        }
    }
    put_all(scan, task, &ready)
}

/// Puts what was read into the volume, in one transaction.
fn put_all(scan: &Scan<'_>, task: &FilesTask, ready: &[(&FileWork, Item)]) -> Result<()> {
    if ready.is_empty() {
        return Ok(());
    }
    let (account, parent) = (&task.dir_task.account, task.dir_task.ino);
    let done = account.feed(scan, |feed| {
        let put = |(work, item): &(&FileWork, Item)| put(feed, (parent, &work.name), item);
        ready.iter().map(put).collect::<Result<Vec<_>>>()
    })?;
    for ((work, _), (put, parked)) in ready.iter().zip(done) {
        account.parked(parked);
        match put {
            Put::Made(_) => bump(&account.tally.created),
            Put::Changed(_) | Put::Moved(_) => bump(&account.tally.changed),
            Put::Blocked(ino) => {
                account.blocked(parent, &work.name, ino, task.dir_task.clone())?;
            }
            Put::Unknown => {}
        }
    }
    Ok(())
}

/// Reads a file; `None` if nothing is left to be put.
fn one(
    scan: &Scan<'_>,
    reader: &mut FileReader,
    task: &FilesTask,
    work: &FileWork,
) -> Result<Option<Item>, Broken> {
    let file = open_file(&task.dir, &work.name).map_err(Broken::Source)?;
    let mut before = look_at(&file).map_err(Broken::Source)?;
    if before.kind != FileKind::File {
        return Err(Broken::Source(io::Error::other(
            "it became something else while it was looked at",
        )));
    }
    let is_long = before.size > WHOLE_LEN_MAX;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let begun = scan.clock.now();
        let mut target = if is_long {
            Target::Parts(Parts::begin(scan, task, work, &before)?)
        } else {
            Target::Whole(Vec::new())
        };
        let means = Means {
            volume: scan.volume,
            throttle: &scan.throttle,
            stopped: &|| scan.is_stopped(),
        };
        let is_sparse = before.blocks.saturating_mul(512) < before.size;
        let mut sink = |range: Range<u64>, extents: Vec<Extent>| target.take(range, extents);
        let len = reader.read(&file, (before.size, is_sparse), means, &mut sink)?;
        let after = look_at(&file).map_err(Broken::Source)?;
        let is_same = len == before.size
            && (after.size, after.mtime, after.ctime) == (before.size, before.mtime, before.ctime);
        let is_last = attempt >= ATTEMPTS || before.size > AGAIN_LEN_MAX;
        if !is_same && !is_last {
            before = after;
            continue;
        }
        let mut item = item_of(
            &after,
            task.dir_task.place,
            is_same && is_settled(&after, begun),
        );
        item.size = len;
        item.xattrs = Some(xattrs(&task.dir, &work.name).map_err(Broken::Source)?);
        let is_needed = target.finish(scan, task, work, &mut item)?;
        if !is_same {
            let path = joined(&task.dir_task.path, &work.name);
            scan.is_changing(&task.dir_task.account, &path);
        }
        return Ok(is_needed.then_some(item));
    }
}

/// Where the content of a file goes.
enum Target<'a, 's> {
    Whole(Vec<Extent>),
    Parts(Parts<'a, 's>),
}

impl Target<'_, '_> {
    fn take(&mut self, range: Range<u64>, extents: Vec<Extent>) -> Result<(), Broken> {
        match self {
            Target::Whole(all) => {
                all.extend(extents);
                Ok(())
            }
            Target::Parts(parts) => parts.take(range, &extents),
        }
    }

    /// Gives the item its content. Tells whether there is something to be put.
    fn finish(
        self,
        scan: &Scan<'_>,
        task: &FilesTask,
        work: &FileWork,
        item: &mut Item,
    ) -> Result<bool, Broken> {
        match self {
            Target::Parts(parts) => {
                parts.finish(item)?;
                Ok(false)
            }
            Target::Whole(content) => {
                let is_new = !work.is_verify || is_missed(scan, task, work, (item, &content))?;
                item.content = Some(content);
                Ok(is_new)
            }
        }
    }
}

/// Of a file that seemed to be the same: whether it is not. What is stored under another place than before, because it
/// was lost there, is put without a word.
fn is_missed(
    scan: &Scan<'_>,
    task: &FilesTask,
    work: &FileWork,
    (item, content): (&Item, &[Extent]),
) -> Result<bool> {
    let parent = task.dir_task.ino;
    let Some(entry) = scan.volume.entry(parent, &work.name)? else {
        return Ok(true);
    };
    let inode = scan.volume.inode(entry.ino)?;
    let old = scan.volume.extents_in(entry.ino, &inode, 0..u64::MAX)?;
    let xattrs = scan.volume.xattrs_of(entry.ino)?;
    if same_bytes(&old, content) && item.xattrs.as_ref() == Some(&xattrs) && inode.size == item.size
    {
        return Ok(false);
    }
    if item.origin.is_settled {
        let path = joined(&task.dir_task.path, &work.name);
        scan.was_missed(&task.dir_task.account, &path);
    }
    Ok(true)
}

/// Whether two lists of extents have the same bytes, wherever those are: cut at other places they would have other
/// blobs, but a file is always cut at the same.
fn same_bytes(old: &[Extent], new: &[Extent]) -> bool {
    let joined_old = join(old);
    joined_old.len() == new.len()
        && joined_old.iter().zip(new).all(|(a, b)| {
            (a.start, a.len, a.blob, a.blob_offset) == (b.start, b.len, b.blob, b.blob_offset)
        })
}

/// Puts together again what was cut where a leaf of the metadata ends.
fn join(extents: &[Extent]) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match joined.last_mut() {
            Some(last)
                if last.blob == extent.blob
                    && last.end() == extent.start
                    && last.blob_offset + last.len == extent.blob_offset =>
            {
                last.len += extent.len;
            }
            _ => joined.push(*extent),
        }
    }
    joined
}

/// A long file, written into the volume as it is read.
struct Parts<'a, 's> {
    scan: &'a Scan<'s>,
    task: &'a FilesTask,
    work: &'a FileWork,
    ino: Ino,
    is_new: bool,
    has_changed: bool,
}

impl<'a, 's> Parts<'a, 's> {
    /// Makes sure that there is an inode for it, which nobody trusts until it is whole.
    fn begin(
        scan: &'a Scan<'s>,
        task: &'a FilesTask,
        work: &'a FileWork,
        seen: &Seen,
    ) -> Result<Parts<'a, 's>, Broken> {
        let (account, parent) = (&task.dir_task.account, task.dir_task.ino);
        let place = task.dir_task.place;
        let known = scan.volume.find_origin(account.id, place, seen.number)?;
        let entry = scan.volume.entry(parent, &work.name)?;
        let ino = match (known, entry) {
            (Some((ino, _)), Some(entry)) if entry.ino == ino => Some(ino),
            _ => None,
        };
        let is_new = ino.is_none();
        let ino = if let Some(ino) = ino {
            ino
        } else {
            let mut item = item_of(seen, place, false);
            item.content = Some(Vec::new());
            item.size = 0;
            let (put, parked) =
                account.feed(scan, |feed| put(feed, (parent, &work.name), &item))?;
            account.parked(parked);
            match put {
                Put::Made(ino) | Put::Moved(ino) | Put::Changed(ino) => ino,
                Put::Blocked(ino) => {
                    account.blocked(parent, &work.name, ino, task.dir_task.clone())?;
                    return Err(Broken::Source(ErrorKind::NotFound.into()));
                }
                Put::Unknown => return Err(Broken::Source(ErrorKind::NotFound.into())),
            }
        };
        Ok(Parts {
            scan,
            task,
            work,
            ino,
            is_new,
            has_changed: is_new,
        })
    }

    fn take(&mut self, range: Range<u64>, extents: &[Extent]) -> Result<(), Broken> {
        let inode = self.scan.volume.inode(self.ino)?;
        let old = self
            .scan
            .volume
            .extents_in(self.ino, &inode, range.clone())?;
        let is_there = inode.size >= range.end && same_bytes(&old, extents);
        if is_there {
            return Ok(());
        }
        self.has_changed = true;
        let account = &self.task.dir_task.account;
        account.feed(self.scan, |feed| feed.write_range(self.ino, range, extents))?;
        Ok(())
    }

    /// Its length is known, and it can be trusted from here on.
    fn finish(self, item: &mut Item) -> Result<(), Broken> {
        let (account, size) = (&self.task.dir_task.account, item.size);
        let xattrs = self.scan.volume.xattrs_of(self.ino)?;
        let is_verified = self.work.is_verify && item.xattrs.as_ref() == Some(&xattrs);
        if is_verified && !self.has_changed {
            return Ok(());
        }
        account.feed(self.scan, |feed| feed.set_size(self.ino, size))?;
        item.content = None;
        let is_missed = self.work.is_verify && self.has_changed && item.origin.is_settled;
        if is_missed {
            let path = joined(&self.task.dir_task.path, &self.work.name);
            self.scan.was_missed(account, &path);
        }
        let is_there = account.feed(self.scan, |feed| match feed.inode(self.ino)? {
            Some(_) => feed.change(self.ino, item).map(|()| true),
            None => Ok(false),
        })?;
        if !is_there {
            return Err(Broken::Volume(Error::Posix(nix::errno::Errno::ESTALE)));
        }
        if self.is_new {
            bump(&account.tally.created);
        } else if self.has_changed {
            bump(&account.tally.changed);
        }
        Ok(())
    }
}
