//! From what is dirty to what a scan looks at.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::scan::run::{self, Scope};

use super::dirty::{Area, Dirty};

impl Dirty {
    /// What a scan has to look at.
    pub fn scope(&self) -> Scope {
        if self.is_everything() {
            return Scope::All;
        }
        let accounts = self.accounts().iter();
        let dirty = accounts.map(|(account, area)| run::Dirty {
            account: bytes(account),
            dirs: match area {
                Area::Whole => None,
                Area::Dirs(dirs) => Some(with_those_above(dirs)),
            },
        });
        if self.has_new_accounts() {
            Scope::DirtyAccounts(dirty.collect())
        } else {
            Scope::Dirty(dirty.collect())
        }
    }
}

/// A scan compares the names in a directory, and what a directory itself is with the names in the one above: its times
/// are others after every change in it.
fn with_those_above(dirs: &BTreeSet<PathBuf>) -> BTreeSet<Vec<u8>> {
    let above = dirs.iter().filter_map(|dir| dir.parent());
    dirs.iter()
        .map(PathBuf::as_path)
        .chain(above)
        .map(bytes)
        .collect()
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::super::dirty::{Change, Lens};
    use super::*;

    #[test]
    fn a_directory_is_looked_at_in_the_one_above_too() {
        let lens = Lens {
            accounts: ["a", "b"].map(PathBuf::from).into(),
            ..Lens::default()
        };
        let mut dirty = Dirty::default();
        for change in [
            Change::Dir("a".into()),
            Change::Dir("a/x/y".into()),
            Change::Subtree("b/z".into()),
            Change::Dir("c".into()),
        ] {
            dirty.add(change, &lens);
        }
        let Scope::DirtyAccounts(dirs) = dirty.scope() else {
            panic!("'c' may be a new account");
        };
        let a: BTreeSet<Vec<u8>> = [&b""[..], b"x", b"x/y"].map(<[u8]>::to_vec).into();
        assert_eq!((&dirs[0].account[..], &dirs[0].dirs), (&b"a"[..], &Some(a)));
        assert_eq!((&dirs[1].account[..], &dirs[1].dirs), (&b"b"[..], &None));
        assert_eq!(dirs.len(), 2);
        assert_eq!(Dirty::everything().scope(), Scope::All);
    }
}
