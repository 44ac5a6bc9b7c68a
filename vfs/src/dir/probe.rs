//! What a mounted directory can do: looked up where the kernel knows, tried out where only trying tells.

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstatat};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, fsync, geteuid, unlinkat};

use crate::error::{At, Result};
use crate::key::ObjectKey;
use crate::volume::{Body, Capabilities, MountKind, Precondition, Space, Volume};

use super::anchor::{Anchor, beneath};
use super::assess::bucket_warning;
use super::mountinfo::{self, Mount};
use super::{DirVolume, TemporaryNames};

/// Where a probe may write.
const DIRECTORY: &str = "probe";

/// Alignment that satisfies O_DIRECT on every disk in use.
const BLOCK_LEN: usize = 4096;

pub(super) fn space(anchor: &Anchor, at: At<'_>) -> Result<Option<Space>> {
    let stat = fstatvfs(anchor.root()).map_err(|errno| at.errno(errno))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    // A FUSE daemon without the call says zero of everything.
    Ok((stat.blocks() > 0).then(|| Space {
        total_bytes: bytes(stat.blocks()),
        available_bytes: bytes(stat.blocks_available()),
    }))
}

pub(super) fn probe(volume: &DirVolume, anchor: &Anchor, at: At<'_>) -> Result<Capabilities> {
    let key = ObjectKey::new(format!(
        "{DIRECTORY}/{:x}-{:x}",
        std::process::id(),
        volume.temporary.number()
    ))?;
    let outcome = try_out(volume, anchor, at, &key);
    // In any case nothing stays. The directory goes too, unless somebody else is probing.
    let removed = volume.delete(std::slice::from_ref(&key));
    anchor.forget_durable(DIRECTORY);
    let _ = unlinkat(anchor.root(), DIRECTORY, UnlinkatFlags::RemoveDir);
    outcome.and_then(|capabilities| removed.map(|()| capabilities))
}

fn try_out(
    volume: &DirVolume,
    anchor: &Anchor,
    at: At<'_>,
    key: &ObjectKey,
) -> Result<Capabilities> {
    let mount = mount_of(anchor);
    let kind = kind_of(anchor, &mount);
    let mut warnings = Vec::new();
    let directory = anchor
        .directory_for_put(key)
        .map_err(|errno| at.errno(errno))?;
    let fsync_directory = match fsync(&directory) {
        Ok(()) => true,
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => false,
        Err(errno) => return Err(at.errno(errno)),
    };
    let fsync = accepts_fsync(&directory, &volume.temporary, at)?;
    let direct_io = accepts_direct_io(&directory, &volume.temporary);
    let traits = look_at_a_file(&directory, &volume.temporary).map_err(|errno| at.errno(errno))?;
    warnings.extend(owner_warning(kind, geteuid().as_raw(), traits.owner));
    if traits.ignores_case {
        warnings.push(
            "Upper and lower case are the same here: harmless, all names of a volume are lower-case."
                .to_owned(),
        );
    }
    let mut capabilities = Capabilities {
        kind,
        file_system: mount.file_system,
        source: mount.source,
        mount_point: mount.place,
        atomic_rename: false,
        exclusive_create: false,
        fsync,
        fsync_directory,
        direct_io,
        list_after_put: false,
        put_latency: Duration::ZERO,
        get_latency: Duration::ZERO,
        bucket: None,
        warnings: Vec::new(),
    };
    if fsync {
        put_and_look(volume, key, &mut capabilities, &mut warnings)?;
    } else {
        warnings.push(
            "fsync is refused: nothing can be stored safely here. Use another file system."
                .to_owned(),
        );
    }
    if !fsync_directory {
        warnings.push(
            "fsync of a directory is refused: a power cut there may take back the last objects."
                .to_owned(),
        );
    }
    capabilities.warnings = warnings;
    Ok(capabilities)
}

fn put_and_look(
    volume: &DirVolume,
    key: &ObjectKey,
    found: &mut Capabilities,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let first = b"first probe".as_slice();
    let second = b"second, longer probe".as_slice();
    let started = Instant::now();
    found.exclusive_create = match volume.put(key, Body::Bytes(first), Precondition::IfAbsent) {
        Ok(_) => {
            let again = volume.put(key, Body::Bytes(second), Precondition::IfAbsent);
            again.is_err_and(|error| error.is_already_exists())
        }
        Err(error) if error.is_transient() || error.is_unreachable() => return Err(error),
        Err(_) => false,
    };
    let started = if found.exclusive_create {
        started
    } else {
        Instant::now()
    };
    if !found.exclusive_create {
        warnings.push(
            "A file cannot be created only if absent: a second writer is not noticed early."
                .to_owned(),
        );
    }
    volume.put(key, Body::Bytes(second), Precondition::None)?;
    found.put_latency = started.elapsed() / if found.exclusive_create { 2 } else { 1 };
    let started = Instant::now();
    let read = volume.get(key, 0..second.len() as u64)?;
    found.get_latency = started.elapsed();
    let bucket = bucket_warning(&found.file_system, &found.source);
    found.atomic_rename = read == second && bucket.is_none();
    if read != second {
        warnings.push(
            "An object was replaced and its old bytes came back: nothing is safe here. Use another file system.".to_owned(),
        );
    }
    warnings.extend(bucket);
    let page = volume.list(key.as_str(), None, NonZeroUsize::MIN)?;
    found.list_after_put = page
        .objects
        .first()
        .is_some_and(|meta| meta.key == *key && meta.len == second.len() as u64);
    if !found.list_after_put {
        warnings.push(
            "A listing does not show what was just put: listings here are not trusted.".to_owned(),
        );
    }
    Ok(())
}

/// The mount that the root's descriptor is in, by its number: unlike a path it cannot mean another one meanwhile.
fn mount_of(anchor: &Anchor) -> Mount {
    let number = fs::read_to_string(format!("/proc/self/fdinfo/{}", anchor.root().as_raw_fd()))
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        });
    let mount = number.and_then(|id| mountinfo::find(&fs::read("/proc/self/mountinfo").ok()?, id));
    mount.unwrap_or_else(Mount::unknown)
}

/// By name, and where /proc is not to be had by the magic number of statfs.
fn kind_of(anchor: &Anchor, mount: &Mount) -> MountKind {
    let by_name = mountinfo::kind(&mount.file_system);
    match fstatfs(anchor.root()).map(|stat| stat.filesystem_type()) {
        Ok(NFS_SUPER_MAGIC) => MountKind::Nfs,
        Ok(SMB_SUPER_MAGIC) => MountKind::Cifs,
        Ok(FUSE_SUPER_MAGIC) if by_name == MountKind::Disk => MountKind::Fuse,
        _ => by_name,
    }
}

/// What a new file tells of the place it is in.
struct Traits {
    owner: u32,
    ignores_case: bool,
}

fn look_at_a_file(directory: &OwnedFd, names: &TemporaryNames) -> nix::Result<Traits> {
    let name = names.next();
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let file = beneath(directory, &name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // Asked by name, as everybody else will see it: a squashing server may show the open file otherwise.
    let found = fstatat(directory, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
    let shouted = fstatat(
        directory,
        name.to_ascii_uppercase().as_str(),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    );
    drop(file);
    unlinkat(directory, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
    let found = found?;
    Ok(Traits {
        owner: found.st_uid,
        ignores_case: shouted.is_ok_and(|other| other.st_ino == found.st_ino),
    })
}

/// A server that does not let root be root shows it in whom our files belong to.
fn owner_warning(kind: MountKind, we: u32, owner: u32) -> Option<String> {
    if kind != MountKind::Nfs || we == owner {
        return None;
    }
    Some(if we == 0 {
        format!(
            "The server turns root into user {owner} (root squash): the directory must belong to {owner}, and whoever is \
             {owner} on any client can change the backup. Export it with no_root_squash for this machine, or keep others out."
        )
    } else {
        format!(
            "Files of user {we} belong to {owner} on the server: check its user mapping, or others may change the backup."
        )
    })
}

/// A file that is written beside the objects, for a try, and removed.
fn with_file<T>(
    directory: &OwnedFd,
    names: &TemporaryNames,
    flags: OFlag,
    attempt: impl FnOnce(&mut File) -> T,
) -> nix::Result<T> {
    let name = names.next();
    let flags = flags | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let fd = beneath(directory, &name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
    let outcome = fd.map(|fd| attempt(&mut File::from(fd)));
    match unlinkat(directory, name.as_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => outcome,
        Err(errno) => outcome.and(Err(errno)),
    }
}

fn accepts_fsync(directory: &OwnedFd, names: &TemporaryNames, at: At<'_>) -> Result<bool> {
    let outcome = with_file(directory, names, OFlag::empty(), |file| {
        file.write_all(b"probe")?;
        file.sync_all()
    });
    match outcome.map_err(|errno| at.errno(errno))? {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(false),
            _ => Err(at.io(error)),
        },
    }
}

/// Some file systems take the flag and refuse the write, so a block is written.
fn accepts_direct_io(directory: &OwnedFd, names: &TemporaryNames) -> bool {
    let buffer = vec![0u8; 2 * BLOCK_LEN];
    let start = buffer.as_ptr().align_offset(BLOCK_LEN);
    let Some(block) = buffer.get(start..start.saturating_add(BLOCK_LEN)) else {
        return false;
    };
    let outcome = with_file(directory, names, OFlag::O_DIRECT, |file| {
        file.write_all(block)
    });
    matches!(outcome, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_squashed_root_is_told_whom_it_was_turned_into() {
        let told = owner_warning(MountKind::Nfs, 0, 65534).unwrap();
        assert!(
            told.contains("root squash") && told.contains("65534"),
            "{told}"
        );
        assert!(
            owner_warning(MountKind::Nfs, 1000, 99)
                .unwrap()
                .contains("mapping")
        );
        assert_eq!(owner_warning(MountKind::Nfs, 0, 0), None);
        assert_eq!(owner_warning(MountKind::Cifs, 0, 65534), None);
    }
}
