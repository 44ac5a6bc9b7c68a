//! Open directories: from the kernel's offsets to the tree's names and back.
//!
//! The tree continues after a *name*, the kernel at a *number*. A listing numbers the entries as it
//! meets them: `.` is 1, `..` is 2, the first entry 3. When the reader's buffer was full the kernel
//! asks again from the middle of the last reply, so the names of the last two replies are kept; older
//! offsets (`seekdir`) are found from the nearest remembered boundary by counting. Memory is bounded
//! whatever the directory's size, and what is shown comes fresh from the tree each time: an entry kept
//! from an earlier reply could bring a removed name back into the kernel's cache.
//!
//! The kernel's directory cache (`FOPEN_CACHE_DIR`) is not used: it replays one listing's offsets to
//! another, which after a removal would skip names that were there all the time.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fuser::FileHandle;
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::types::Ino;
use crate::volume::tree::{Attr, DirEntry, Tree};

/// Offset behind `.` and `..`.
const DOTS: u64 = 2;
/// `lseek` on a directory takes any number.
const OFFSET_MAX: u64 = u64::MAX / 2;
/// Replies whose names are kept.
const REPLIES: usize = 2;
/// When there are more boundaries, every other one is dropped.
const BOUNDARIES_MAX: usize = 4096;
/// A 4 KiB reply with attributes holds about 24 entries, a 32 KiB one 190: ask for few, then for more.
const BATCH_MIN: usize = 32;
const BATCH_MAX: usize = 256;

/// All open directories of one mount.
#[derive(Default)]
pub(super) struct Dirs {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Mutex<Listing>>>>,
}

impl Dirs {
    pub(super) fn open(&self, ino: Ino) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let listing = Arc::new(Mutex::new(Listing::new(ino)));
        self.lock().insert(handle, listing);
        FileHandle(handle)
    }

    pub(super) fn close(&self, handle: FileHandle) {
        self.lock().remove(&handle.0);
    }

    /// Hands the entries behind `offset` to `add`, each with the offset behind itself, until `add`
    /// says that the reply is full.
    pub(super) fn read(
        &self,
        tree: &dyn Tree,
        handle: FileHandle,
        offset: u64,
        add: &mut dyn FnMut(&[u8], &Attr, u64) -> bool,
    ) -> Result<()> {
        let listing = self.lock().get(&handle.0).cloned();
        let listing = listing.ok_or(Error::Posix(Errno::EBADF))?;
        // Held while the tree is asked: the kernel reads one open directory from one thread at a time.
        let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.read(tree, offset, add)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Mutex<Listing>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reading of one directory.
struct Listing {
    ino: Ino,
    /// The last replies, oldest first.
    replies: VecDeque<Reply>,
    /// Offset and name of the last entry of earlier replies, ascending.
    boundaries: Vec<(u64, Bytes)>,
}

/// The names of one reply: the entry before offset `first` is `names[0]`.
struct Reply {
    first: u64,
    names: Vec<Bytes>,
}

/// Where to continue: after a name (`None`: at the start), passing over some entries.
struct Start {
    after: Option<Bytes>,
    pass: u64,
}

impl Listing {
    fn new(ino: Ino) -> Listing {
        Listing {
            ino,
            replies: VecDeque::new(),
            boundaries: Vec::new(),
        }
    }

    fn read(
        &mut self,
        tree: &dyn Tree,
        offset: u64,
        add: &mut dyn FnMut(&[u8], &Attr, u64) -> bool,
    ) -> Result<()> {
        if offset == 0 {
            // The start, or rewinddir: numbers are given anew.
            *self = Listing::new(self.ino);
        }
        if offset < DOTS && self.add_dots(tree, offset, add)? {
            return Ok(());
        }
        let offset = offset.clamp(DOTS, OFFSET_MAX);
        let Start {
            mut after,
            mut pass,
        } = self.start(offset);
        let mut reply = Reply {
            first: offset + 1,
            names: Vec::new(),
        };
        let mut batch_len = BATCH_MIN;
        'full: loop {
            let batch = tree.readdir(self.ino, after.as_deref(), batch_len)?;
            let Some(last) = batch.last() else { break };
            after = Some(last.name.clone());
            for DirEntry { name, attr } in &batch {
                if pass > 0 {
                    pass -= 1;
                    continue;
                }
                let behind = reply.first + reply.names.len() as u64;
                if add(name, attr, behind) {
                    break 'full;
                }
                reply.names.push(name.clone());
            }
            batch_len = (batch_len * 2).min(BATCH_MAX);
        }
        self.remember(reply);
        Ok(())
    }

    /// `.` and `..`: the kernel wants them to be there and counts no lookup for them. Returns whether
    /// the reply is full.
    fn add_dots(
        &self,
        tree: &dyn Tree,
        offset: u64,
        add: &mut dyn FnMut(&[u8], &Attr, u64) -> bool,
    ) -> Result<bool> {
        let own = tree.getattr(self.ino)?;
        if offset < 1 && add(b".", &own, 1) {
            return Ok(true);
        }
        // A directory that was removed while open has no parent.
        let parent = tree.parent(self.ino).and_then(|ino| tree.getattr(ino));
        Ok(add(b"..", &parent.unwrap_or(own), DOTS))
    }

    fn start(&self, offset: u64) -> Start {
        let known = self.replies.iter().find_map(|reply| {
            let place = usize::try_from(offset.checked_sub(reply.first)?).ok()?;
            reply.names.get(place).cloned()
        });
        if known.is_some() {
            return Start {
                after: known,
                pass: 0,
            };
        }
        let before = self.boundaries.partition_point(|(at, _)| *at <= offset);
        match before.checked_sub(1).and_then(|at| self.boundaries.get(at)) {
            Some((at, name)) => Start {
                after: Some(name.clone()),
                pass: offset - at,
            },
            None => Start {
                after: None,
                pass: offset - DOTS,
            },
        }
    }

    fn remember(&mut self, reply: Reply) {
        let Some(last) = reply.names.last() else {
            return;
        };
        let behind = reply.first + reply.names.len() as u64 - 1;
        if self.boundaries.last().is_none_or(|(at, _)| *at < behind) {
            if self.boundaries.len() >= BOUNDARIES_MAX {
                let mut keep = false;
                self.boundaries.retain(|_| {
                    keep = !keep;
                    keep
                });
            }
            self.boundaries.push((behind, last.clone()));
        }
        if self.replies.len() == REPLIES {
            self.replies.pop_front();
        }
        self.replies.push_back(reply);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::types::Timestamp;
    use crate::volume::tree::{Answer, FileKind, OpenMode, SeekFor, Space};

    /// One directory, inode 1, of names.
    #[derive(Default)]
    struct Names(Mutex<BTreeSet<Vec<u8>>>);

    impl Names {
        fn of(count: usize) -> Names {
            let names = (0..count).map(|n| format!("{n:06}").into_bytes());
            Names(Mutex::new(names.collect()))
        }

        fn remove(&self, name: &[u8]) {
            assert!(self.0.lock().unwrap().remove(name));
        }
    }

    fn attr(ino: Ino) -> Attr {
        Attr {
            ino,
            kind: FileKind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
        }
    }

    impl Tree for Names {
        fn readdir(&self, _: Ino, after: Option<&[u8]>, max: usize) -> Result<Vec<DirEntry>> {
            let names = self.0.lock().unwrap();
            let behind = names
                .iter()
                .filter(|name| after.is_none_or(|after| name.as_slice() > after));
            Ok(behind
                .take(max)
                .map(|name| DirEntry {
                    name: Bytes::copy_from_slice(name),
                    attr: attr(Ino(9)),
                })
                .collect())
        }
        fn getattr(&self, ino: Ino) -> Result<Attr> {
            Ok(attr(ino))
        }
        fn parent(&self, _: Ino) -> Result<Ino> {
            Err(Errno::ENOENT.into())
        }
        fn lookup(&self, _: Ino, _: &[u8]) -> Result<Attr> {
            unimplemented!()
        }
        fn readlink(&self, _: Ino) -> Result<Bytes> {
            unimplemented!()
        }
        fn getxattr(&self, _: Ino, _: &[u8]) -> Result<Bytes> {
            unimplemented!()
        }
        fn listxattr(&self, _: Ino) -> Result<Vec<Bytes>> {
            unimplemented!()
        }
        fn open(&self, _: Ino, _: OpenMode) -> Result<()> {
            unimplemented!()
        }
        fn read(&self, _: Ino, _: u64, _: u32, _: Answer<Bytes>) {
            unimplemented!()
        }
        fn seek(&self, _: Ino, _: u64, _: SeekFor) -> Result<u64> {
            unimplemented!()
        }
        fn release(&self, _: Ino, _: OpenMode) -> Result<()> {
            unimplemented!()
        }
        fn space(&self) -> Result<Space> {
            unimplemented!()
        }
    }

    /// One reply with room for `room` entries.
    fn ask(
        dirs: &Dirs,
        tree: &Names,
        handle: FileHandle,
        from: u64,
        room: usize,
    ) -> Vec<(String, u64)> {
        let mut got = Vec::new();
        dirs.read(tree, handle, from, &mut |name, _, behind| {
            if got.len() == room {
                return true;
            }
            got.push((String::from_utf8_lossy(name).into_owned(), behind));
            false
        })
        .unwrap();
        got
    }

    #[test]
    fn a_directory_is_read_whole_whatever_the_size_of_the_replies() {
        for room in [1, 2, 3, 40, 10_000] {
            let (dirs, tree) = (Dirs::default(), Names::of(700));
            let handle = dirs.open(Ino::ROOT);
            let mut names = Vec::new();
            let mut at = 0;
            loop {
                let got = ask(&dirs, &tree, handle, at, room);
                let Some((_, behind)) = got.last() else { break };
                at = *behind;
                names.extend(got.into_iter().map(|(name, _)| name));
            }
            assert_eq!(names.len(), 702);
            assert_eq!(&names[..3], [".", "..", "000000"]);
            assert_eq!(names[701], "000699");
        }
    }

    #[test]
    fn the_kernel_may_ask_again_from_the_middle_of_a_reply_though_names_went_away() {
        let (dirs, tree) = (Dirs::default(), Names::of(100));
        let handle = dirs.open(Ino::ROOT);
        let first = ask(&dirs, &tree, handle, 0, 50);
        let (name, at) = first[20].clone();
        for n in 0..=18 {
            tree.remove(format!("{n:06}").as_bytes());
        }
        assert_eq!(name, "000018");
        assert_eq!(ask(&dirs, &tree, handle, at, 1)[0].0, "000019");
    }

    #[test]
    fn an_old_offset_is_found_again_and_one_behind_the_end_is_the_end() {
        let (dirs, tree) = (Dirs::default(), Names::of(60_000));
        let handle = dirs.open(Ino::ROOT);
        let mut at = 0;
        let mut seen = Vec::new();
        while let Some((name, behind)) = ask(&dirs, &tree, handle, at, 7).last().cloned() {
            at = behind;
            seen.push((name, behind));
        }
        for (name, behind) in [&seen[0], &seen[1], &seen[4321], &seen[8000]] {
            let next = &ask(&dirs, &tree, handle, *behind, 1)[0].0;
            let expected = match name.parse::<u32>() {
                Ok(n) => format!("{:06}", n + 1),
                Err(_) => "000000".to_owned(),
            };
            assert_eq!(*next, expected);
        }
        assert_eq!(ask(&dirs, &tree, handle, u64::MAX, 1), []);
        let listing = dirs.lock()[&handle.0].clone();
        let listing = listing.lock().unwrap();
        assert!(listing.boundaries.len() <= BOUNDARIES_MAX && listing.replies.len() <= REPLIES);
    }

    #[test]
    fn a_closed_handle_is_refused() {
        let (dirs, tree) = (Dirs::default(), Names::of(1));
        let handle = dirs.open(Ino::ROOT);
        dirs.close(handle);
        let outcome = dirs.read(&tree, handle, 0, &mut |_, _, _| false);
        assert!(matches!(outcome, Err(Error::Posix(Errno::EBADF))));
    }
}
