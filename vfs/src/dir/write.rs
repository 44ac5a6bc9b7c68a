//! Putting and deleting files so that a power cut finds each whole or absent.
//!
//! The order is the point, and each step has its reason: the bytes are durable before the name points at them, the name
//! is durable before `Ok`, and the size is looked at twice because a remote may accept bytes that it does not have.
//! A failed fsync is never repeated on the same file: the pages it could not write count as clean afterwards.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, close, linkat, unlinkat};

use crate::error::{At, ErrorClass, Result};
use crate::key::ObjectKey;
use crate::volume::{Meta, Outgoing, Precondition};

use super::anchor::{Anchor, beneath, sync_directory};
use super::{TemporaryNames, meta_of};

/// Only the owner: these are backups.
const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

pub(super) fn put(
    anchor: &Anchor,
    at: At<'_>,
    key: &ObjectKey,
    body: &dyn Outgoing,
    precondition: Precondition,
    names: &TemporaryNames,
) -> Result<Meta> {
    if precondition == Precondition::IfAbsent && anchor.stat_beneath(key.as_str()).is_ok() {
        return Err(at.already_exists()); // Not the decision, which is publish's; it spares sending the body.
    }
    let fail = |errno| put_failed(anchor, at, errno);
    let directory = anchor.directory_for_put(key).map_err(fail)?;
    let mut temporary = Temporary::create(&directory, names).map_err(fail)?;
    temporary.fill(at, key, body)?;
    temporary.sync_and_close(at, body.len())?;
    temporary.publish(at, key.name(), precondition)?;
    sync_directory(&directory).map_err(fail)?;
    let stat = fstatat(&directory, key.name(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(fail)?;
    match meta_of(key, &stat, at)? {
        Some(meta) if meta.len == body.len() => Ok(meta),
        other => Err(wrong_size(at, body.len(), other.map_or(0, |meta| meta.len))),
    }
}

/// ENOENT within a put: the root was removed, or somebody removes directories below it.
fn put_failed(anchor: &Anchor, at: At<'_>, errno: Errno) -> crate::Error {
    let gone = if errno == Errno::ENOENT {
        anchor.confirm(at).err()
    } else {
        None
    };
    gone.unwrap_or_else(|| at.errno(errno))
}

fn wrong_size(at: At<'_>, expected: u64, found: u64) -> crate::Error {
    let message = format!(
        "{expected} bytes were written and the volume has {found}: it is sent again; check the volume"
    );
    at.error(ErrorClass::Transient, message)
}

/// A file on its way to its name; removed if it does not get there.
struct Temporary<'d> {
    directory: &'d OwnedFd,
    name: String,
    file: Option<File>,
    published: bool,
}

impl<'d> Temporary<'d> {
    fn create(directory: &'d OwnedFd, names: &TemporaryNames) -> nix::Result<Temporary<'d>> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        loop {
            let name = names.next();
            match beneath(directory, &name, flags, FILE_MODE) {
                Ok(fd) => {
                    return Ok(Temporary {
                        directory,
                        name,
                        file: Some(File::from(fd)),
                        published: false,
                    });
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn fill(&mut self, at: At<'_>, key: &ObjectKey, body: &dyn Outgoing) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        body.send((at.op, at.volume, key), &mut |chunk| {
            file.write_all(chunk).map_err(|error| at.io(error))
        })
    }

    /// Looks at the answer of close as well: FUSE and NFS report there what they could not store.
    fn sync_and_close(&mut self, at: At<'_>, len: u64) -> Result<()> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        file.sync_all().map_err(|error| at.io(error))?;
        let stat = fstat(&file).map_err(|errno| at.errno(errno))?;
        close(file).map_err(|errno| at.errno(errno))?;
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        if found == len {
            Ok(())
        } else {
            Err(wrong_size(at, len, found))
        }
    }

    fn publish(&mut self, at: At<'_>, name: &str, precondition: Precondition) -> Result<()> {
        let outcome = match precondition {
            Precondition::None => {
                renameat(self.directory, self.name.as_str(), self.directory, name)
            }
            Precondition::IfAbsent => match self.rename_exclusively(name) {
                // NFS and many FUSE file systems: there, a hard link is what refuses to replace.
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                    self.link_exclusively(name)
                }
                other => other,
            },
        };
        match outcome {
            Ok(()) => {
                self.published = true;
                Ok(())
            }
            Err(Errno::EEXIST) if precondition == Precondition::IfAbsent => {
                Err(at.already_exists())
            }
            Err(Errno::EPERM | Errno::EMLINK | Errno::EOPNOTSUPP | Errno::ENOSYS)
                if precondition == Precondition::IfAbsent =>
            {
                let message = "this file system cannot create a file only if it is absent: put without that condition";
                Err(at.error(ErrorClass::Permanent, message))
            }
            Err(Errno::ENOTEMPTY) => Err(at.errno(Errno::EISDIR)),
            Err(errno) => Err(at.errno(errno)),
        }
    }

    #[cfg(target_env = "gnu")]
    fn rename_exclusively(&self, name: &str) -> nix::Result<()> {
        use nix::fcntl::{RenameFlags, renameat2};
        renameat2(
            self.directory,
            self.name.as_str(),
            self.directory,
            name,
            RenameFlags::RENAME_NOREPLACE,
        )
    }

    /// The C library has no wrapper.
    #[cfg(not(target_env = "gnu"))]
    fn rename_exclusively(&self, _name: &str) -> nix::Result<()> {
        Err(Errno::ENOSYS)
    }

    fn link_exclusively(&self, name: &str) -> nix::Result<()> {
        match linkat(
            self.directory,
            self.name.as_str(),
            self.directory,
            name,
            AtFlags::empty(),
        ) {
            // An NFS request whose answer was lost is sent again, and then meets its own work.
            Err(Errno::EEXIST) if self.is_linked_as(name) => {}
            Err(errno) => return Err(errno),
            Ok(()) => {}
        }
        // The object stands; a leftover second name is for the sweep.
        let _ = unlinkat(
            self.directory,
            self.name.as_str(),
            UnlinkatFlags::NoRemoveDir,
        );
        Ok(())
    }

    fn is_linked_as(&self, name: &str) -> bool {
        let place = |name: &str| {
            let stat = fstatat(self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
            stat.map(|stat| (stat.st_dev, stat.st_ino))
        };
        matches!((place(&self.name), place(name)), (Ok(ours), Ok(theirs)) if ours == theirs)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.published {
            self.file = None;
            let _ = unlinkat(
                self.directory,
                self.name.as_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
    }
}

pub(super) fn delete(anchor: &Anchor, at: At<'_>, keys: &[ObjectKey]) -> Result<()> {
    let mut keys: Vec<&ObjectKey> = keys.iter().collect();
    keys.sort_unstable_by_key(|key| (key.parent(), key.name()));
    for group in keys.chunk_by(|a, b| a.parent() == b.parent()) {
        let Some(first) = group.first() else { continue };
        let directory = match anchor.directory(first.parent()) {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ENOTDIR) => {
                anchor.confirm(at.key(first.as_str()))?;
                continue;
            }
            Err(errno) => return Err(at.key(first.as_str()).errno(errno)),
        };
        for key in group {
            match unlinkat(&directory, key.name(), UnlinkatFlags::NoRemoveDir) {
                Err(Errno::ENOENT) => anchor.confirm(at.key(key.as_str()))?,
                // EISDIR: a directory of other keys, so no object of this name.
                Ok(()) | Err(Errno::EISDIR) => {}
                Err(errno) => return Err(at.key(key.as_str()).errno(errno)),
            }
        }
        sync_directory(&directory).map_err(|errno| at.key(first.as_str()).errno(errno))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What NFS takes instead of an exclusive rename: tried directly, for local file systems never come to it.
    #[test]
    fn an_exclusive_link_has_one_winner_and_leaves_no_second_name() {
        let root = tempfile::tempdir().unwrap();
        let anchor = Anchor::open(
            root.path(),
            None,
            At {
                volume: "dir:t",
                op: "open",
                key: "",
            },
        )
        .unwrap();
        let names = TemporaryNames::new();
        let directory = anchor.directory(None).unwrap();
        let first = Temporary::create(&directory, &names).unwrap();
        let second = Temporary::create(&directory, &names).unwrap();
        assert_eq!(first.link_exclusively("x"), Ok(()));
        assert_eq!(second.link_exclusively("x"), Err(Errno::EEXIST));
        drop((first, second));
        let left: Vec<_> = std::fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["x"]);
    }

    #[test]
    fn a_link_whose_answer_was_lost_counts_as_made() {
        let root = tempfile::tempdir().unwrap();
        let anchor = Anchor::open(
            root.path(),
            None,
            At {
                volume: "dir:t",
                op: "open",
                key: "",
            },
        )
        .unwrap();
        let directory = anchor.directory(None).unwrap();
        let temporary = Temporary::create(&directory, &TemporaryNames::new()).unwrap();
        std::fs::hard_link(root.path().join(&temporary.name), root.path().join("x")).unwrap();
        assert_eq!(temporary.link_exclusively("x"), Ok(()));
    }
}
