//! Directories in which a watcher saw something change: found again without looking at anything else.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::scan::accounts::{Found, joined};
use crate::scan::compare::{Verdict, compare, is_settled, item_of};
use crate::scan::dirs::DirTask;
use crate::scan::look::{look, open_dir, xattrs};
use crate::scan::plan::ByIno;
use crate::scan::report::bump;
use crate::scan::run::{Dirty, Scan};
use crate::types::FileKind;

/// The accounts that are meant, by the names that `name_of` knows for their paths. `None` if one is not known, or is no
/// directory any more: then all accounts have to be looked for.
pub fn found_again(
    root: &Arc<OwnedFd>,
    dirty: &[Dirty],
    name_of: impl Fn(&[u8]) -> Option<Bytes>,
) -> Option<Vec<Found>> {
    let paths: BTreeSet<&[u8]> = dirty.iter().map(|dirty| dirty.account.as_slice()).collect();
    paths
        .into_iter()
        .map(|path| {
            let name = name_of(path)?.to_vec();
            let mut parent = Arc::clone(root);
            let mut parts = path.split(|byte| *byte == b'/').peekable();
            let mut entry: &[u8] = b".";
            while let Some(part) = parts.next() {
                if parts.peek().is_some() {
                    parent = Arc::new(open_dir(parent.as_fd(), part).ok()?);
                } else if !part.is_empty() {
                    entry = part;
                }
            }
            let seen = look(parent.as_fd(), entry).ok()?;
            (seen.kind == FileKind::Dir).then(|| Found {
                name,
                path: path.to_vec(),
                parent,
                entry: entry.to_vec(),
                seen,
            })
        })
        .collect()
}

/// What is to be compared for these directories of an account: each of them, or the nearest above it that is in the
/// source and in the volume.
pub fn tasks<'d>(
    scan: &Scan<'_>,
    root: &DirTask,
    dirs: impl Iterator<Item = &'d Vec<u8>>,
) -> Result<Vec<DirTask>> {
    let mut found = ByIno::new();
    for dir in dirs {
        let task = nearest(scan, root, dir)?;
        renew(scan, &task)?;
        found.insert(task.ino, task);
    }
    if found.is_empty() {
        found.insert(root.ino, root.clone());
    }
    Ok(found.into_values().collect())
}

/// What is said of the directory itself, which no directory above it is looked at for.
fn renew(scan: &Scan<'_>, task: &DirTask) -> Result<()> {
    let inode = scan.volume.inode(task.ino)?;
    if compare(&task.seen, task.place, &inode) == Verdict::Same {
        return Ok(());
    }
    let is_settled = is_settled(&task.seen, scan.clock.now());
    let mut item = item_of(&task.seen, task.place, is_settled);
    match xattrs(&task.parent, &task.entry) {
        Ok(xattrs) => item.xattrs = Some(xattrs),
        Err(error) => return scan.cannot_read(&task.account, &task.path, &error),
    }
    task.account
        .feed(scan, |feed| feed.change(task.ino, &item))?;
    bump(&task.account.tally.attributes);
    Ok(())
}

fn nearest(scan: &Scan<'_>, root: &DirTask, dir: &[u8]) -> Result<DirTask> {
    let mut at = root.clone();
    for part in dir
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
    {
        let Some(entry) = scan.volume.entry(at.ino, part)? else {
            break;
        };
        let opened = open_dir(&at.parent, &at.entry);
        let Some((opened, seen)) = opened
            .ok()
            .and_then(|dir| look(&dir, part).ok().map(|seen| (dir, seen)))
        else {
            break;
        };
        let is_left_out = scan.filter.leaves_out(&joined(&at.path, part), part, true);
        if entry.kind != FileKind::Dir || seen.kind != FileKind::Dir || is_left_out {
            break;
        }
        let path = joined(&at.path, part);
        let is_crossing = seen.is_mount || seen.device != at.seen.device;
        at = DirTask {
            parent: Arc::new(opened),
            entry: part.to_vec(),
            place: if is_crossing {
                crc32c::crc32c(&path).max(1)
            } else {
                at.place
            },
            path,
            ino: entry.ino,
            seen,
            ..at
        };
    }
    Ok(at)
}
