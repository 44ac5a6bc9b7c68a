//! Which files are open, how often, and whether their bytes pass the kernel's page cache.
//!
//! Two ways of reading and writing a file: *direct* (requests go straight to the tree: two to four
//! times as fast for what is written once) and *cached* (page cache and read-ahead: for what is read).
//! How far the kernel keeps the two coherent depends on its age: 6.18 drops cached pages before and
//! after a direct write, older ones only before, so that a page read in between stays for ever, and
//! those before 6.6 not at all. Hence one rule that needs none of it: **all openings of an inode that
//! exist at the same time go the same way**, and the first decides. Between the phases the kernel drops
//! the pages itself, at an opening without `FOPEN_KEEP_CACHE`.
//!
//! Also the proof that every opening is matched by one release: what the kernel never released when a
//! mount ends is released here.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuser::{FileHandle, FopenFlags};

use crate::types::Ino;
use crate::volume::tree::OpenMode;

/// How many inodes are known to have only sound pages in the cache. Forgetting one costs a re-read.
const SOUND_MAX: usize = 1 << 17;

/// All openings of one mount.
#[derive(Default)]
pub(super) struct Opens {
    /// Files may be opened for direct I/O at all.
    direct: bool,
    /// The kernel can map files that are open for direct I/O (`FUSE_DIRECT_IO_ALLOW_MMAP`, Linux 6.6).
    maps_direct: bool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: HashMap<Ino, Openings>,
    /// Inodes opened for cached I/O whose bytes did not change behind the page cache since.
    sound: HashSet<Ino>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Path {
    Direct,
    Cached,
}

struct Openings {
    path: Path,
    /// How many there are of each mode, by its bits.
    by_mode: [u32; 16],
}

impl Opens {
    /// `direct`: files may be opened for direct I/O.
    pub(super) fn new(direct: bool) -> Opens {
        Opens {
            direct,
            ..Opens::default()
        }
    }

    /// Tells what the kernel offered, before the first opening.
    pub(super) fn set_maps_direct(&mut self, offered: bool) {
        self.maps_direct = offered;
    }

    /// Counts an opening and says how the kernel is to treat it. `created`: by this very call.
    pub(super) fn add(&self, ino: Ino, mode: OpenMode, created: bool) -> (FileHandle, FopenFlags) {
        let mut table = self.lock();
        let Table { open, sound } = &mut *table;
        let openings = open.entry(ino).or_insert_with(|| {
            let path = self.choose(mode, created);
            if path == Path::Direct {
                sound.remove(&ino);
            }
            Openings {
                path,
                by_mode: [0; 16],
            }
        });
        let bits = mode_bits(mode);
        if let Some(count) = openings.by_mode.get_mut(usize::from(bits)) {
            *count += 1;
        }
        let mut flags = match openings.path {
            Path::Direct => FopenFlags::FOPEN_DIRECT_IO,
            Path::Cached if keep_cache(sound, ino) => FopenFlags::FOPEN_KEEP_CACHE,
            Path::Cached => FopenFlags::empty(),
        };
        if !mode.write {
            // Nothing was written through it: spare the FLUSH at each close.
            flags |= FopenFlags::FOPEN_NOFLUSH;
        }
        (FileHandle(u64::from(bits)), flags)
    }

    /// An opening ends; `None` if there was none.
    pub(super) fn remove(&self, ino: Ino, handle: FileHandle) -> Option<OpenMode> {
        let bits = u8::try_from(handle.0).ok()?;
        let mut table = self.lock();
        let openings = table.open.get_mut(&ino)?;
        let count = openings.by_mode.get_mut(usize::from(bits))?;
        *count = count.checked_sub(1)?;
        if openings.by_mode.iter().all(|count| *count == 0) {
            table.open.remove(&ino);
        }
        Some(bits_mode(bits))
    }

    /// Ends all openings.
    pub(super) fn drain(&self) -> Vec<(Ino, OpenMode)> {
        let open = std::mem::take(&mut self.lock().open);
        let mut left = Vec::new();
        for (ino, openings) in open {
            for (bits, count) in (0..).zip(openings.by_mode) {
                left.extend((0..count).map(|_| (ino, bits_mode(bits))));
            }
        }
        left
    }

    /// New files and those opened to be written only are written once, front to back. The others are
    /// read, or mapped, which direct I/O forbids before Linux 6.6.
    fn choose(&self, mode: OpenMode, created: bool) -> Path {
        let write_only = mode.write && !mode.read;
        if self.direct && (write_only || (created && self.maps_direct)) {
            Path::Direct
        } else {
            Path::Cached
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the pages of an earlier cached opening are sound; from now on they are.
fn keep_cache(sound: &mut HashSet<Ino>, ino: Ino) -> bool {
    if sound.contains(&ino) {
        return true;
    }
    if sound.len() >= SOUND_MAX {
        sound.clear();
    }
    sound.insert(ino);
    false
}

fn mode_bits(mode: OpenMode) -> u8 {
    u8::from(mode.read)
        | u8::from(mode.write) << 1
        | u8::from(mode.truncate) << 2
        | u8::from(mode.sync) << 3
}

fn bits_mode(bits: u8) -> OpenMode {
    OpenMode {
        read: bits & 1 != 0,
        write: bits & 2 != 0,
        truncate: bits & 4 != 0,
        sync: bits & 8 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Ino = Ino(7);

    fn mode(read: bool, write: bool) -> OpenMode {
        OpenMode {
            read,
            write,
            ..OpenMode::default()
        }
    }

    fn modern() -> Opens {
        let mut opens = Opens::new(true);
        opens.set_maps_direct(true);
        opens
    }

    fn is_direct(flags: FopenFlags) -> bool {
        flags.contains(FopenFlags::FOPEN_DIRECT_IO)
    }

    #[test]
    fn while_a_file_is_open_all_openings_go_the_way_of_the_first() {
        let opens = modern();
        let (writer, flags) = opens.add(FILE, mode(false, true), true);
        assert!(is_direct(flags));
        let (reader, flags) = opens.add(FILE, mode(true, false), false);
        assert!(is_direct(flags));
        opens.remove(FILE, writer).unwrap();
        opens.remove(FILE, reader).unwrap();

        let (_, flags) = opens.add(FILE, mode(true, false), false);
        assert!(!is_direct(flags));
        let (_, flags) = opens.add(FILE, mode(false, true), false);
        assert!(!is_direct(flags));
    }

    #[test]
    fn pages_are_kept_from_one_cached_opening_to_the_next_but_not_past_a_direct_one() {
        let opens = modern();
        let reopen = || {
            let (handle, flags) = opens.add(FILE, mode(true, false), false);
            opens.remove(FILE, handle).unwrap();
            flags.contains(FopenFlags::FOPEN_KEEP_CACHE)
        };
        assert!(!reopen());
        assert!(reopen());
        let (writer, _) = opens.add(FILE, mode(false, true), false);
        opens.remove(FILE, writer).unwrap();
        assert!(!reopen());
        assert!(reopen());
    }

    #[test]
    fn a_kernel_that_cannot_map_direct_files_gets_them_only_write_only() {
        let opens = Opens::new(true);
        assert!(!is_direct(opens.add(Ino(1), mode(true, true), true).1));
        assert!(is_direct(opens.add(Ino(2), mode(false, true), true).1));
        assert!(!is_direct(
            Opens::new(false).add(Ino(3), mode(false, true), true).1
        ));
        assert!(!is_direct(modern().add(Ino(4), mode(true, true), false).1));
    }

    #[test]
    fn each_opening_is_released_once_with_its_own_mode() {
        let opens = modern();
        let read = opens.add(FILE, mode(true, false), false).0;
        let write = opens.add(FILE, mode(true, true), false).0;
        opens.add(FILE, mode(true, true), false);
        assert_eq!(opens.remove(FILE, read), Some(mode(true, false)));
        assert_eq!(opens.remove(FILE, read), None);
        assert_eq!(opens.remove(Ino(8), write), None);
        assert_eq!(opens.drain(), vec![(FILE, mode(true, true)); 2]);
        assert_eq!(opens.remove(FILE, write), None);
    }
}
