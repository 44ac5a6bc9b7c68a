//! Looking inside: which of the items that a walk gives are the ones somebody looks for, and where their bytes are.

mod content;
mod glob;

use crate::types::{FileKind, Timestamp};
use crate::volume::history::locate::Located;

pub use content::{Content, content_of};
pub use glob::Glob;

/// How large an item is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeTest {
    /// Larger than this.
    Above(u64),
    /// Smaller than this.
    Below(u64),
    /// Exactly this.
    Exactly(u64),
}

/// What an item must be to be found: all of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Its name fits.
    pub name: Option<Glob>,
    /// Its name has all of these words, in lower case.
    pub words: Vec<String>,
    /// It is one of these; of no matter which kind if there are none.
    pub kinds: Vec<FileKind>,
    /// A regular file of this size.
    pub size: Option<SizeTest>,
    /// Its content changed after this.
    pub newer: Option<Timestamp>,
    /// Its content did not change after this.
    pub older: Option<Timestamp>,
}

impl Filter {
    /// The words of `text`, as [`Filter::words`] wants them.
    pub fn words_of(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_lowercase).collect()
    }

    /// Whether it is one of those.
    pub fn fits(&self, item: &Located) -> bool {
        let inode = &item.inode;
        let name = item.path.rsplit(|byte| *byte == b'/').next();
        let name = name.unwrap_or_default();
        (self.kinds.is_empty() || self.kinds.contains(&inode.kind))
            && self.newer.is_none_or(|time| inode.mtime > time)
            && self.older.is_none_or(|time| inode.mtime <= time)
            && self.fits_size(item)
            && self.name.as_ref().is_none_or(|glob| glob.fits(name))
            && self.has_words(name)
    }

    fn fits_size(&self, item: &Located) -> bool {
        let Some(test) = self.size else { return true };
        let size = item.inode.size;
        // The size of a directory or a link says nothing about its content.
        item.inode.kind == FileKind::File
            && match test {
                SizeTest::Above(least) => size > least,
                SizeTest::Below(most) => size < most,
                SizeTest::Exactly(wanted) => size == wanted,
            }
    }

    fn has_words(&self, name: &[u8]) -> bool {
        if self.words.is_empty() {
            return true;
        }
        let name = String::from_utf8_lossy(name).to_lowercase();
        self.words.iter().all(|word| name.contains(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::inode::Inode;
    use crate::types::{Epoch, Ino};
    use crate::volume::history::locate::Standing;
    use crate::volume::namespace::new_dir;
    use crate::volume::tree::Caller;

    fn item(path: &str, kind: FileKind, size: u64, mtime: i64) -> Located {
        let time = Timestamp {
            secs: mtime,
            nanos: 0,
        };
        let dir = new_dir(0o755, Caller { uid: 0, gid: 0 }, Ino::ROOT, time);
        Located {
            path: path.into(),
            ino: Ino::ROOT,
            inode: Inode { kind, size, ..dir },
            state: Epoch(1),
            standing: Standing::Present,
        }
    }

    #[test]
    fn an_item_is_found_when_it_is_all_of_what_is_looked_for() {
        let report = item("alice/Docs/Annual Report.PDF", FileKind::File, 1000, 50);
        let fits = |filter: Filter| filter.fits(&report);
        assert!(fits(Filter::default()));
        let words = |text| Filter {
            words: Filter::words_of(text),
            ..Filter::default()
        };
        assert!(fits(words("report annual")));
        assert!(!fits(words("report alice")), "in the name, not in the path");
        let named = |text: &str| Filter {
            name: Some(Glob::new(text.as_bytes())),
            ..Filter::default()
        };
        assert!(fits(named("*.PDF")) && !fits(named("*.pdf")) && !fits(named("Docs*")));
        let sized = |test| Filter {
            size: Some(test),
            ..Filter::default()
        };
        assert!(fits(sized(SizeTest::Above(999))) && !fits(sized(SizeTest::Above(1000))));
        assert!(fits(sized(SizeTest::Below(1001))) && !fits(sized(SizeTest::Below(1000))));
        assert!(fits(sized(SizeTest::Exactly(1000))));
        let dir = item("alice/Docs", FileKind::Dir, 1000, 50);
        assert!(
            !sized(SizeTest::Above(0)).fits(&dir),
            "a directory has no size"
        );
        let at = |secs| Timestamp { secs, nanos: 0 };
        let since = |secs| Filter {
            newer: Some(at(secs)),
            ..Filter::default()
        };
        assert!(fits(since(49)) && !fits(since(50)));
        let until = |secs| Filter {
            older: Some(at(secs)),
            ..Filter::default()
        };
        assert!(fits(until(50)) && !fits(until(49)));
        let both = Filter {
            kinds: vec![FileKind::Dir, FileKind::Symlink],
            ..Filter::default()
        };
        assert!(!fits(both.clone()) && both.fits(&dir));
    }
}
