//! Which directories of a source are accounts, and what they are called.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::scan::globs::Glob;
use crate::scan::look::{Seen, look, look_at, open_dir};
use crate::scan::names::{NAMES_MAX, names_after};
use crate::scan::source::{AccountRule, Preset, Source};
use crate::types::FileKind;

/// Between the parts of a name that stand for several directories.
const JOINT: u8 = b'+';
/// Levels of directories in which a Maildir is looked for: domain, user, Maildir.
const MAILDIR_DEPTH_MAX: u32 = 3;

/// A directory that is an account.
#[derive(Clone, Debug)]
pub struct Found {
    /// What the account is called in the volume.
    pub name: Vec<u8>,
    /// Where it is, from the source's directory; empty for that itself.
    pub path: Vec<u8>,
    /// The directory above it, and its name there.
    pub parent: Arc<OwnedFd>,
    /// Its name there.
    pub entry: Vec<u8>,
    /// What it is.
    pub seen: Seen,
}

/// What was found, and what could not be looked at: a path and why.
#[derive(Debug, Default)]
pub struct Search {
    /// The accounts, by their names.
    pub found: BTreeMap<Vec<u8>, Found>,
    /// Paths that could not be read: accounts below them are not gone.
    pub errors: Vec<(Vec<u8>, io::Error)>,
    /// Two directories that would be the same account: its name, and the second's path.
    pub clashes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Finds the accounts of a source, whose directory is `root`.
pub fn find(source: &Source, root: &Arc<OwnedFd>) -> io::Result<Search> {
    let mut search = Search::default();
    match &source.accounts {
        AccountRule::Depth(0) => {
            let seen = look_at(root)?;
            let name = source
                .dir()
                .file_name()
                .map_or_else(|| b"root".to_vec(), |name| name.as_encoded_bytes().to_vec());
            search.take(Found {
                name,
                path: Vec::new(),
                parent: Arc::clone(root),
                entry: b".".to_vec(),
                seen,
            });
        }
        AccountRule::Depth(depth) => {
            let parts = vec![None; usize::try_from(*depth).unwrap_or(usize::MAX)];
            search.walk(root, &parts, &mut Place::default(), Naming::All);
        }
        AccountRule::Glob(pattern) => {
            let parts: Vec<Option<&str>> = pattern.trim_matches('/').split('/').map(Some).collect();
            let naming = match source.preset {
                // The number of a mailbox is its own in all volumes of a server.
                Some(Preset::Zimbra) => Naming::Last,
                _ => Naming::Wild,
            };
            search.walk(root, &parts, &mut Place::default(), naming);
        }
        AccountRule::Maildirs => {
            search.maildirs(root, &mut Place::default(), MAILDIR_DEPTH_MAX);
        }
    }
    Ok(search)
}

/// Which parts of a path an account is called after.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    All,
    /// Those that the pattern leaves open.
    Wild,
    Last,
}

/// Where a walk is: the path, and the parts that make the name.
#[derive(Default)]
struct Place {
    path: Vec<u8>,
    name_parts: Vec<Vec<u8>>,
}

impl Place {
    fn below(&self, entry: &[u8], is_named: bool) -> Place {
        let mut below = Place {
            path: joined(&self.path, entry),
            name_parts: self.name_parts.clone(),
        };
        if is_named {
            below.name_parts.push(entry.to_vec());
        }
        below
    }
}

/// A path and a name in it.
pub fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(path.len() + 1 + name.len());
    whole.extend_from_slice(path);
    if !path.is_empty() {
        whole.push(b'/');
    }
    whole.extend_from_slice(name);
    whole
}

impl Search {
    fn take(&mut self, found: Found) {
        if self.found.contains_key(&found.name) {
            self.clashes.push((found.name, found.path));
        } else {
            self.found.insert(found.name.clone(), found);
        }
    }

    /// The directories in `dir`, or an error that is noted.
    fn subdirs(&mut self, dir: &Arc<OwnedFd>, path: &[u8]) -> Vec<(Vec<u8>, Seen)> {
        let names = match names_after(dir.as_fd(), None, NAMES_MAX * 10) {
            Ok((names, _)) => names,
            Err(error) => {
                self.errors.push((path.to_vec(), error));
                return Vec::new();
            }
        };
        let mut subdirs = Vec::new();
        for name in names {
            match look(dir.as_fd(), &name) {
                Ok(seen) if seen.kind == FileKind::Dir => subdirs.push((name.into_vec(), seen)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.errors.push((joined(path, &name), error)),
            }
        }
        subdirs
    }

    fn open(&mut self, dir: &Arc<OwnedFd>, entry: &[u8], path: &[u8]) -> Option<Arc<OwnedFd>> {
        match open_dir(dir.as_fd(), entry) {
            Ok(opened) => Some(Arc::new(opened)),
            Err(error) => {
                self.errors.push((path.to_vec(), error));
                None
            }
        }
    }

    /// Goes down a level for each part: any name, or those that the pattern matches.
    fn walk(
        &mut self,
        dir: &Arc<OwnedFd>,
        parts: &[Option<&str>],
        place: &mut Place,
        naming: Naming,
    ) {
        let Some((part, rest)) = parts.split_first() else {
            return;
        };
        let glob = part.and_then(|part| Glob::new(part).ok());
        let is_wild = part.is_none_or(|part| part.contains(['*', '?', '[']));
        for (entry, seen) in self.subdirs(dir, &place.path) {
            if glob.as_ref().is_some_and(|glob| !glob.matches(&entry)) {
                continue;
            }
            let is_named = match naming {
                Naming::All => true,
                Naming::Wild => is_wild,
                Naming::Last => rest.is_empty(),
            };
            let mut below = place.below(&entry, is_named);
            if rest.is_empty() {
                let name = if below.name_parts.is_empty() {
                    entry.clone()
                } else {
                    below.name_parts.join(&JOINT)
                };
                self.take(Found {
                    name,
                    path: below.path,
                    parent: Arc::clone(dir),
                    entry,
                    seen,
                });
            } else if let Some(opened) = self.open(dir, &entry, &below.path) {
                self.walk(&opened, rest, &mut below, naming);
            }
        }
    }

    /// Takes every directory that is a Maildir, or holds one of that name.
    fn maildirs(&mut self, dir: &Arc<OwnedFd>, place: &mut Place, depth_left: u32) {
        for (entry, seen) in self.subdirs(dir, &place.path) {
            let mut below = place.below(&entry, true);
            let Some(opened) = self.open(dir, &entry, &below.path) else {
                continue;
            };
            let is_maildir = is_maildir(&opened)
                || open_dir(&opened, b"Maildir").is_ok_and(|in_it| is_maildir(&in_it));
            if is_maildir {
                self.take(Found {
                    name: below.name_parts.join(&JOINT),
                    path: below.path,
                    parent: Arc::clone(dir),
                    entry,
                    seen,
                });
            } else if depth_left > 1 {
                self.maildirs(&opened, &mut below, depth_left - 1);
            }
        }
    }
}

fn is_maildir(dir: &impl AsFd) -> bool {
    let is_dir = |name: &[u8]| look(dir, name).is_ok_and(|seen| seen.kind == FileKind::Dir);
    is_dir(b"cur") && is_dir(b"new")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn names(rule: AccountRule, preset: Option<Preset>, dirs: &[&str]) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        for dir in dirs {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        std::fs::write(root.path().join("a-file"), b"").unwrap();
        let mut source = Source::new(root.path(), rule, &SystemClock).unwrap();
        source.preset = preset;
        let fd = Arc::new(OwnedFd::from(std::fs::File::open(root.path()).unwrap()));
        let search = find(&source, &fd).unwrap();
        assert!(search.errors.is_empty() && search.clashes.is_empty());
        let name = |found: &Found| {
            format!(
                "{}={}",
                String::from_utf8_lossy(&found.name),
                String::from_utf8_lossy(&found.path)
            )
        };
        search.found.values().map(name).collect()
    }

    #[test]
    fn accounts_are_found_by_depth_by_pattern_and_by_what_they_hold() {
        let dirs = [
            "x.org/alice/Maildir/cur",
            "x.org/alice/Maildir/new",
            "y.org/bob/cur",
            "y.org/bob/new",
        ];
        let at = |depth| names(AccountRule::Depth(depth), None, &dirs);
        assert_eq!(at(1), ["x.org=x.org", "y.org=y.org"]);
        assert_eq!(at(2), ["x.org+alice=x.org/alice", "y.org+bob=y.org/bob"]);
        assert_eq!(at(0).len(), 1);
        assert_eq!(names(AccountRule::Maildirs, None, &dirs), at(2));
        let pattern = AccountRule::Glob("x.*/*/Maildir".into());
        assert_eq!(
            names(pattern, None, &dirs),
            ["x.org+alice=x.org/alice/Maildir"]
        );
        let (rule, _) = Preset::Zimbra.rules();
        let store = ["0/17/msg/0", "1/18/msg/0", "other/19"];
        assert_eq!(
            names(rule, Some(Preset::Zimbra), &store),
            ["17=0/17", "18=1/18"]
        );
    }

    #[test]
    fn two_directories_that_would_be_one_account_are_told() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["a+b/c", "a/b+c"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let source = Source::new(root.path(), AccountRule::Depth(2), &SystemClock).unwrap();
        let fd = Arc::new(OwnedFd::from(std::fs::File::open(root.path()).unwrap()));
        let search = find(&source, &fd).unwrap();
        assert_eq!((search.found.len(), search.clashes.len()), (1, 1));
    }
}
