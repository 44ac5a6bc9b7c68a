//! Listings in key order, and the sweep of what a crash left behind.
//!
//! Key order is the order of whole keys as bytes, which is not the order of directory entries: `a-b` comes before `a/b`.
//! Sorting each directory's entries with a `/` behind the names of directories gives it.
//!
//! Entries that cannot be part of a key (temporary names, `lost+found`, what a server hides behind a dot) are not ours
//! and are passed over without being opened. Anything else that cannot be read fails the listing (invariant 10).

use std::num::NonZeroUsize;
use std::time::Duration;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::{At, Result};
use crate::key::{ObjectKey, is_component};
use crate::volume::{Meta, Page};

use super::anchor::{Anchor, beneath};
use super::{TEMPORARY_PREFIX, TemporaryNames, kind_of, meta_of, modified};

pub(super) fn list(
    anchor: &Anchor,
    at: At<'_>,
    prefix: &str,
    after: Option<&ObjectKey>,
    limit: NonZeroUsize,
) -> Result<Page> {
    let after = after.map_or("", ObjectKey::as_str);
    let mut listing = Listing {
        at,
        prefix,
        after,
        wanted: limit.get().saturating_add(1),
        found: Vec::new(),
    };
    let root = open_directory(anchor.root(), ".").map_err(|errno| at.errno(errno))?;
    listing.visit(root, "")?;
    // An empty mount point lists without error, and so does the root of a disk that was swapped under its own daemon.
    anchor.confirm(at)?;
    let more = listing.found.len() > limit.get();
    listing.found.truncate(limit.get());
    Ok(Page {
        objects: listing.found,
        more,
    })
}

struct Listing<'a> {
    at: At<'a>,
    prefix: &'a str,
    after: &'a str,
    wanted: usize,
    found: Vec<Meta>,
}

impl Listing<'_> {
    /// Collects from `directory`, whose keys begin with `base` (empty, or ending in `/`).
    fn visit(&mut self, mut directory: Dir, base: &str) -> Result<()> {
        let mut paths = Vec::new();
        for (name, is_directory) in entries(&mut directory).map_err(|errno| self.at.errno(errno))? {
            let path = format!("{base}{name}{}", if is_directory { "/" } else { "" });
            let wanted = if is_directory {
                self.may_hold_wanted(&path)
            } else {
                self.is_wanted(&path)
            };
            if is_component(&name) && wanted {
                paths.push(path);
            }
        }
        paths.sort_unstable();
        for path in paths {
            if self.found.len() == self.wanted {
                break;
            }
            let name = path
                .strip_prefix(base)
                .unwrap_or(&path)
                .trim_end_matches('/');
            if path.ends_with('/') {
                match open_directory(&directory, name) {
                    Ok(child) => self.visit(child, &path)?,
                    Err(Errno::ENOENT) => {} // Removed since it was seen.
                    Err(errno) => return Err(self.at.key(&path).errno(errno)),
                }
            } else {
                self.add(&directory, name, &path)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, directory: &Dir, name: &str, path: &str) -> Result<()> {
        // Too long a path is nothing that was put here.
        let Ok(key) = ObjectKey::new(path) else {
            return Ok(());
        };
        match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if kind_of(&stat) == SFlag::S_IFREG => {
                let at = self.at.key(path);
                self.found.extend(meta_of(&key, &stat, at)?);
                Ok(())
            }
            Ok(_) | Err(Errno::ENOENT) => Ok(()), // Changed since it was seen.
            Err(errno) => Err(self.at.key(path).errno(errno)),
        }
    }

    fn is_wanted(&self, key: &str) -> bool {
        key.starts_with(self.prefix) && key > self.after
    }

    /// Whether `directory` (ending in `/`) may have keys with the prefix and behind `after`.
    fn may_hold_wanted(&self, directory: &str) -> bool {
        let under_prefix = directory.starts_with(self.prefix) || self.prefix.starts_with(directory);
        under_prefix && (directory > self.after || self.after.starts_with(directory))
    }
}

fn open_directory(base: impl std::os::fd::AsFd, name: &str) -> nix::Result<Dir> {
    Dir::from_fd(beneath(
        base,
        name,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY,
        Mode::empty(),
    )?)
}

/// Names of regular files (`false`) and directories (`true`). A name that is not UTF-8 is none of ours.
fn entries(directory: &mut Dir) -> nix::Result<Vec<(String, bool)>> {
    let seen: Vec<_> = directory.iter().collect::<nix::Result<_>>()?;
    let mut kept = Vec::with_capacity(seen.len());
    for entry in seen {
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        let is_directory = match entry.file_type() {
            Some(Type::File) => false,
            Some(Type::Directory) => name != "." && name != "..",
            Some(_) => continue,
            // File systems that do not say have to be asked.
            None => match fstatat(&*directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map(|stat| kind_of(&stat))
            {
                Ok(SFlag::S_IFREG) => false,
                Ok(SFlag::S_IFDIR) => true,
                Ok(_) | Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno),
            },
        };
        kept.push((name.to_owned(), is_directory));
    }
    Ok(kept)
}

/// Removes temporary files of keys below `below` that are older than `older_than`, except those of this value.
pub(super) fn sweep(
    anchor: &Anchor,
    at: At<'_>,
    names: &TemporaryNames,
    (below, older_than): (&[&str], Duration),
) -> Result<u64> {
    let fail = |errno| at.errno(errno);
    let root = anchor.directory(None).map_err(fail)?;
    // The age is measured by the clock that stamps the files: a server's may differ from ours by hours.
    let name = names.next();
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let stamp = beneath(&root, &name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(fail)?;
    let stat = fstat(&stamp);
    unlinkat(&root, name.as_str(), UnlinkatFlags::NoRemoveDir).map_err(fail)?;
    let Some(oldest) =
        modified(&stat.map_err(fail)?).and_then(|present| present.checked_sub(older_than))
    else {
        return Ok(0);
    };
    let mut removed = 0;
    let mut visit = |directory: &Dir, name: &str| {
        if !name.starts_with(TEMPORARY_PREFIX) || name.starts_with(&names.prefix) {
            return Ok(());
        }
        let stat = match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        if kind_of(&stat) == SFlag::S_IFREG && modified(&stat).is_some_and(|time| time <= oldest) {
            unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?;
            removed += 1;
        }
        Ok(())
    };
    for prefix in below {
        let directory = match prefix.trim_end_matches('/') {
            "" => ".",
            directory => directory,
        };
        match open_directory(anchor.root(), directory) {
            Ok(directory) => sweep_directory(directory, &mut visit).map_err(fail)?,
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(fail(errno)),
        }
    }
    Ok(removed)
}

fn sweep_directory(
    mut directory: Dir,
    visit: &mut dyn FnMut(&Dir, &str) -> nix::Result<()>,
) -> nix::Result<()> {
    for (name, is_directory) in entries(&mut directory)? {
        if !is_directory {
            visit(&directory, &name)?;
        } else if is_component(&name) {
            match open_directory(&directory, &name) {
                Ok(child) => sweep_directory(child, visit)?,
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}
