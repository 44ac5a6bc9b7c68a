//! What has to be looked at, gathered until somebody looks: by account, the directories in which something changed.
//!
//! It is bounded, and never forgets: what does not fit makes the whole account dirty, or the whole source.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use crate::scan::globs::Filter;

/// Directories of one account. Beyond that, a look at the whole account costs about as much.
const DIRS_MAX: usize = 2000;
/// Accounts of one source. Beyond that, so does a look at all.
const ACCOUNTS_MAX: usize = 50_000;

/// Changed directories that are in no account.
const ELSEWHERE_MAX: usize = 10_000;

/// What changed. Paths are below the root of the source; an empty one is the root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// In this directory: a name, what a name stands for, or the directory itself.
    Dir(PathBuf),
    /// In this directory, and perhaps anywhere below.
    Subtree(PathBuf),
    /// Perhaps anywhere.
    Everything,
}

/// The directories that are accounts, below the root of the source: as the last scan found them.
pub type Accounts = BTreeSet<PathBuf>;

/// How the paths of a source are looked at.
#[derive(Clone, Default, Debug)]
pub struct Lens {
    /// See [`Accounts`].
    pub accounts: Accounts,
    /// What is left out of an account.
    pub filter: Filter,
    /// Places of our own below the root, such as the backup path: what we write there is no change of the source.
    pub ours: Vec<PathBuf>,
}

impl Lens {
    fn is_ours(&self, path: &Path) -> bool {
        self.ours.iter().any(|ours| path.starts_with(ours))
    }

    /// The account that a directory is in, and where it is in it.
    fn account_of<'p>(&self, path: &'p Path) -> Option<(&'p Path, &'p Path)> {
        let account = path
            .ancestors()
            .find(|above| self.accounts.contains(*above))?;
        Some((account, path.strip_prefix(account).ok()?))
    }

    /// Whether a directory of an account, or one above it, is left out.
    fn is_left_out(&self, dir: &Path) -> bool {
        !self.filter.is_empty()
            && dir.ancestors().any(|above| {
                let path = above.as_os_str().as_encoded_bytes();
                let name = above.file_name().unwrap_or_default().as_encoded_bytes();
                !path.is_empty() && self.filter.leaves_out(path, name, true)
            })
    }
}

/// What of an account has to be looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Area {
    /// All of it.
    Whole,
    /// The names in these directories, and these themselves; below the account's own, which is the empty one.
    Dirs(BTreeSet<PathBuf>),
}

/// What of a source has to be looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dirty {
    everything: bool,
    accounts: BTreeMap<PathBuf, Area>,
    /// Directories that are in no account that is known, each with whether all below it counts.
    elsewhere: BTreeMap<PathBuf, bool>,
}

impl Dirty {
    /// Whatever there is.
    pub fn everything() -> Dirty {
        Dirty {
            everything: true,
            ..Dirty::default()
        }
    }

    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.accounts.is_empty() && self.elsewhere.is_empty()
    }

    /// All of the source has to be looked at.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Something changed outside of the known accounts: which there are has to be looked at.
    pub fn has_new_accounts(&self) -> bool {
        !self.elsewhere.is_empty()
    }

    /// The accounts in which something changed, by their directories.
    pub fn accounts(&self) -> &BTreeMap<PathBuf, Area> {
        &self.accounts
    }

    /// Adds a change. What is in no account may make a new one, or be on the way to some.
    pub(super) fn add(&mut self, change: Change, lens: &Lens) {
        let (path, is_deep) = match change {
            _ if self.everything => return,
            Change::Everything => return self.set_everything(),
            Change::Dir(path) => (path, false),
            Change::Subtree(path) => (path, true),
        };
        if lens.is_ours(&path) {
            return;
        }
        if let Some((account, dir)) = lens.account_of(&path) {
            if lens.is_left_out(dir) {
                return;
            }
            let dir = (!is_deep).then(|| dir.to_owned());
            return self.add_dir(account.to_owned(), dir);
        }
        if is_deep {
            let from = (Bound::Included(path.as_path()), Bound::Unbounded);
            let below = lens.accounts.range::<Path, _>(from);
            for account in below.take_while(|account| account.starts_with(&path)) {
                self.add_dir(account.clone(), None);
            }
        }
        *self.elsewhere.entry(path).or_default() |= is_deep;
        if self.elsewhere.len() > ELSEWHERE_MAX {
            self.set_everything();
        }
    }

    /// What was in no account may be in one that is known by now.
    pub(super) fn look_through(&mut self, lens: &Lens) {
        for (path, is_deep) in std::mem::take(&mut self.elsewhere) {
            let change = if is_deep {
                Change::Subtree(path)
            } else {
                Change::Dir(path)
            };
            self.add(change, lens);
        }
    }

    /// Adds all of `other`: what could not be looked at, and is to be looked at later.
    pub(super) fn merge(&mut self, other: Dirty) {
        if self.everything || other.everything {
            return self.set_everything();
        }
        for (path, is_deep) in other.elsewhere {
            *self.elsewhere.entry(path).or_default() |= is_deep;
        }
        for (account, area) in other.accounts {
            match area {
                Area::Whole => self.add_dir(account, None),
                Area::Dirs(dirs) => {
                    for dir in dirs {
                        self.add_dir(account.clone(), Some(dir));
                    }
                }
            }
        }
    }

    fn set_everything(&mut self) {
        *self = Dirty::everything();
    }

    /// `None` is the whole account.
    fn add_dir(&mut self, account: PathBuf, dir: Option<PathBuf>) {
        if self.everything {
            return;
        }
        let area = self
            .accounts
            .entry(account)
            .or_insert_with(|| Area::Dirs(BTreeSet::new()));
        match (&mut *area, dir) {
            (Area::Whole, _) => {}
            (Area::Dirs(dirs), Some(dir)) if dirs.len() < DIRS_MAX || dirs.contains(&dir) => {
                dirs.insert(dir);
            }
            (Area::Dirs(_), _) => *area = Area::Whole,
        }
        if self.accounts.len() > ACCOUNTS_MAX {
            self.set_everything();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirty(changes: &[Change]) -> Dirty {
        of(
            changes,
            &Lens {
                accounts: ["a", "b", "c", "other/d"].map(PathBuf::from).into(),
                filter: Filter::new(&[], &["**/.cache".into()]).unwrap(),
                ours: vec!["a/backup".into()],
            },
        )
    }

    fn of(changes: &[Change], lens: &Lens) -> Dirty {
        let mut dirty = Dirty::default();
        for change in changes {
            dirty.add(change.clone(), lens);
        }
        dirty
    }

    fn dir(path: &str) -> Change {
        Change::Dir(path.into())
    }

    fn subtree(path: &str) -> Change {
        Change::Subtree(path.into())
    }

    fn dirs(dirty: &Dirty, account: &str) -> Vec<String> {
        match &dirty.accounts()[Path::new(account)] {
            Area::Whole => vec!["whole".into()],
            Area::Dirs(dirs) => dirs.iter().map(|dir| dir.display().to_string()).collect(),
        }
    }

    #[test]
    fn changes_are_gathered_by_account_each_directory_once() {
        let found = dirty(&[dir("a/x"), dir("b"), dir("a/x"), dir("a/x/y")]);
        assert_eq!(found.accounts().len(), 2);
        assert_eq!(dirs(&found, "a"), ["x", "x/y"]);
        assert_eq!(dirs(&found, "b"), [""]);
        assert!(!found.has_new_accounts() && !found.is_everything());
    }

    #[test]
    fn what_is_left_out_and_what_is_ours_is_no_change() {
        assert!(dirty(&[dir("a/.cache/x"), dir("b/c/.cache"), subtree("a/.cache")]).is_empty());
        assert!(dirty(&[dir("a/backup"), dir("a/backup/journal")]).is_empty());
        assert!(!dirty(&[dir("a/backups"), dir("a/x.cache")]).is_empty());
    }

    #[test]
    fn a_change_of_a_subtree_is_one_of_the_whole_account() {
        assert_eq!(dirs(&dirty(&[dir("a/x"), subtree("a/y")]), "a"), ["whole"]);
        assert_eq!(dirs(&dirty(&[subtree("a"), dir("a/x")]), "a"), ["whole"]);
    }

    #[test]
    fn a_change_above_the_accounts_is_a_change_of_which_there_are() {
        for above in ["", "other", "ab", "other/z"] {
            let found = dirty(&[dir(above)]);
            assert!(found.has_new_accounts() && found.accounts().is_empty());
        }
        let moved = dirty(&[subtree("other")]);
        assert!(moved.has_new_accounts() && moved.accounts().len() == 1);
        assert_eq!(dirs(&moved, "other/d"), ["whole"]);
        assert_eq!(dirty(&[subtree("")]).accounts().len(), 4);
        assert!(dirty(&[dir("a"), Change::Everything]).is_everything());
    }

    #[test]
    fn what_changed_in_an_account_before_it_was_known_is_not_forgotten() {
        let mut found = dirty(&[dir(""), dir("new/x"), subtree("more")]);
        let lens = Lens {
            accounts: ["new", "more/y"].map(PathBuf::from).into(),
            ..Lens::default()
        };
        found.look_through(&lens);
        assert_eq!(dirs(&found, "new"), ["x"]);
        assert_eq!(dirs(&found, "more/y"), ["whole"]);
        assert!(found.has_new_accounts(), "the root is in none");
    }

    #[test]
    fn a_source_that_is_one_account_has_it_at_its_root() {
        let lens = Lens {
            accounts: Accounts::from([PathBuf::new()]),
            ..Lens::default()
        };
        let found = of(&[dir(""), dir("x/y")], &lens);
        assert_eq!(dirs(&found, ""), ["", "x/y"]);
        assert!(!found.has_new_accounts());
    }

    #[test]
    fn what_does_not_fit_makes_more_dirty_and_never_less() {
        let many: Vec<Change> = (0..=DIRS_MAX).map(|n| dir(&format!("a/{n}"))).collect();
        assert_eq!(dirs(&dirty(&many), "a"), ["whole"]);
        assert_eq!(dirs(&dirty(&many[1..]), "a").len(), DIRS_MAX);
        let names = || (0..=ACCOUNTS_MAX).map(|n| n.to_string());
        let lens = Lens {
            accounts: names().map(PathBuf::from).collect(),
            ..Lens::default()
        };
        let many: Vec<Change> = names().map(|name| dir(&name)).collect();
        assert!(of(&many, &lens).is_everything());
        assert!(!of(&many[1..], &lens).is_everything());
    }

    #[test]
    fn what_is_given_back_joins_what_came_meanwhile() {
        let mut now = dirty(&[dir("a/x"), dir("b/y")]);
        now.merge(dirty(&[subtree("a"), dir("b/z"), dir("c"), dir("")]));
        assert_eq!(dirs(&now, "a"), ["whole"]);
        assert_eq!(dirs(&now, "b"), ["y", "z"]);
        assert_eq!(now.accounts().len(), 3);
        assert!(now.has_new_accounts());
        now.merge(Dirty::everything());
        assert!(now.is_everything() && now.accounts().is_empty());
    }
}
