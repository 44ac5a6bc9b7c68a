//! Numbers for paths: what the kernel calls an inode.
//!
//! A number means one path *with one content*: an object that somebody replaced gets another number, so that nothing the
//! kernel keeps of the old one can be taken for the new. Numbers are never given twice. An entry lives for as long as
//! the kernel holds its number, or somebody has it open; of the rest the newest are kept, for a listing is followed by a
//! question for each of its names.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The directory that is mounted.
pub(super) const ROOT: u64 = 1;
/// Entries that nobody holds.
const UNHELD_MAX: usize = 1 << 16;
/// What was seen of an object is believed for this long: somebody else may change it.
const FRESH: Duration = Duration::from_secs(2);

/// What stands at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Directory,
    File {
        len: u64,
        modified: Option<SystemTime>,
    },
}

impl What {
    /// Whether the two can be one content: a store need not tell the time of what was just put.
    fn is_same(self, other: What) -> bool {
        match (self, other) {
            (What::Directory, What::Directory) => true,
            (
                What::File { len, modified },
                What::File {
                    len: other_len,
                    modified: other_modified,
                },
            ) => {
                len == other_len
                    && (modified == other_modified
                        || modified.is_none()
                        || other_modified.is_none())
            }
            _ => false,
        }
    }
}

#[derive(Debug)]
struct Entry {
    path: Arc<str>,
    what: What,
    seen: Instant,
    /// How often the kernel was told of it and has not forgotten it.
    held: u64,
    /// By openings and files that are being written.
    pins: u64,
}

#[derive(Debug)]
pub(super) struct Names {
    by_number: HashMap<u64, Entry>,
    by_path: HashMap<Arc<str>, u64>,
    /// Numbers that were not held when they were put in here, oldest first.
    unheld: VecDeque<u64>,
    next: u64,
}

impl Names {
    pub(super) fn new(now: Instant) -> Names {
        let mut names = Names {
            by_number: HashMap::new(),
            by_path: HashMap::new(),
            unheld: VecDeque::new(),
            next: ROOT,
        };
        let root = names.add("", What::Directory, now);
        names.pin(root);
        names
    }

    fn add(&mut self, path: &str, what: What, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        let path: Arc<str> = path.into();
        self.by_path.insert(Arc::clone(&path), number);
        let entry = Entry {
            path,
            what,
            seen: now,
            held: 0,
            pins: 0,
        };
        self.by_number.insert(number, entry);
        self.let_go(number);
        number
    }

    /// The number of what was just seen at `path`.
    pub(super) fn note(&mut self, path: &str, what: What, now: Instant) -> u64 {
        if let Some(number) = self.by_path.get(path).copied()
            && let Some(entry) = self.by_number.get_mut(&number)
            && entry.what.is_same(what)
        {
            entry.seen = now;
            if let What::File {
                modified: Some(_), ..
            } = what
            {
                entry.what = what;
            }
            return number;
        }
        self.add(path, what, now)
    }

    /// The number goes on with another content: its own file was written.
    pub(super) fn set(&mut self, number: u64, what: What, now: Instant) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.what = what;
            entry.seen = now;
        }
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.by_path.get(path).copied()
    }

    pub(super) fn get(&self, number: u64) -> Option<(Arc<str>, What)> {
        let entry = self.by_number.get(&number)?;
        Some((Arc::clone(&entry.path), entry.what))
    }

    /// What was seen at `path` a moment ago.
    pub(super) fn fresh(&self, path: &str, now: Instant) -> Option<u64> {
        let number = self.number(path)?;
        let entry = self.by_number.get(&number)?;
        (now.saturating_duration_since(entry.seen) < FRESH).then_some(number)
    }

    /// Nothing stands at `path` any more; whoever has the number open goes on with it.
    pub(super) fn remove(&mut self, path: &str) {
        self.by_path.remove(path);
    }

    /// The same, unless somebody else has the path by now.
    pub(super) fn remove_number(&mut self, number: u64) {
        if let Some(entry) = self.by_number.get(&number)
            && self.by_path.get(&entry.path) == Some(&number)
        {
            self.by_path.remove(&entry.path);
        }
    }

    /// The number goes to another path, in place of what stood there.
    pub(super) fn rename(&mut self, number: u64, to: &str) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            self.by_path.remove(&entry.path);
            entry.path = to.into();
            self.by_path.insert(Arc::clone(&entry.path), number);
        }
    }

    pub(super) fn hold(&mut self, number: u64) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.held += 1;
        }
    }

    pub(super) fn forget(&mut self, number: u64, count: u64) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.held = entry.held.saturating_sub(count);
            self.let_go(number);
        }
    }

    pub(super) fn pin(&mut self, number: u64) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.pins += 1;
        }
    }

    pub(super) fn unpin(&mut self, number: u64) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.pins = entry.pins.saturating_sub(1);
            self.let_go(number);
        }
    }

    /// Remembers that nobody may hold the number any more, and drops the oldest of those.
    fn let_go(&mut self, number: u64) {
        if self.is_in_use(number) {
            return;
        }
        self.unheld.push_back(number);
        while self.unheld.len() > UNHELD_MAX {
            let Some(oldest) = self.unheld.pop_front() else {
                return;
            };
            if self.is_in_use(oldest) {
                continue;
            }
            if let Some(entry) = self.by_number.remove(&oldest)
                && self.by_path.get(&entry.path) == Some(&oldest)
            {
                self.by_path.remove(&entry.path);
            }
        }
    }

    fn is_in_use(&self, number: u64) -> bool {
        let entry = self.by_number.get(&number);
        entry.is_some_and(|entry| entry.held > 0 || entry.pins > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: u64, secs: Option<u64>) -> What {
        What::File {
            len,
            modified: secs.map(|secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs)),
        }
    }

    #[test]
    fn a_replaced_object_gets_another_number_and_the_same_one_keeps_it() {
        let now = Instant::now();
        let mut names = Names::new(now);
        let one = names.note("a", file(3, None), now);
        assert_eq!(names.note("a", file(3, Some(7)), now), one);
        assert_eq!(names.note("a", file(3, Some(7)), now), one);
        let two = names.note("a", file(3, Some(8)), now);
        assert_ne!(one, two);
        assert_ne!(names.note("a", What::Directory, now), two);
        assert_eq!(
            names.get(one).unwrap().1,
            file(3, Some(7)),
            "still held by somebody"
        );
    }

    #[test]
    fn what_was_seen_is_believed_for_a_moment() {
        let now = Instant::now();
        let mut names = Names::new(now);
        let number = names.note("a", What::Directory, now);
        assert_eq!(names.fresh("a", now), Some(number));
        assert_eq!(names.fresh("a", now + FRESH), None);
        names.remove("a");
        assert_eq!(names.fresh("a", now), None);
    }

    #[test]
    fn memory_is_bounded_and_what_is_held_stays() {
        let now = Instant::now();
        let mut names = Names::new(now);
        let held = names.note("held", file(1, None), now);
        names.hold(held);
        names.hold(held);
        let open = names.note("open", file(1, None), now);
        names.pin(open);
        for n in 0..2 * UNHELD_MAX {
            names.note(&format!("k{n}"), file(1, None), now);
        }
        assert!(names.by_number.len() <= UNHELD_MAX + 3);
        assert_eq!(names.by_number.len(), names.by_path.len());
        assert!(names.get(held).is_some() && names.get(open).is_some());
        names.forget(held, 2);
        names.unpin(open);
        for n in 0..2 * UNHELD_MAX {
            names.note(&format!("l{n}"), file(1, None), now);
        }
        assert!(names.get(held).is_none() && names.get(open).is_none());
        assert_eq!(names.number(""), Some(ROOT));
    }

    #[test]
    fn a_number_follows_its_file_to_a_new_path() {
        let now = Instant::now();
        let mut names = Names::new(now);
        let (a, b) = (
            names.note("a", file(1, None), now),
            names.note("b", file(2, None), now),
        );
        names.rename(a, "b");
        assert_eq!((names.number("a"), names.number("b")), (None, Some(a)));
        assert_eq!(&*names.get(a).unwrap().0, "b");
        assert!(names.get(b).is_some());
    }
}
