//! From a directory and a tree to a connected FUSE session.
//!
//! As root we call mount(2) ourselves and hand fuser the connected descriptor: then the source may
//! contain anything, the type is `fuse.tidefs`, and fuser 0.18 never unmounts by path on its own (its
//! way out would take down whatever stands there by then). Without the right to mount, fuser asks
//! `fusermount3`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use fuser::{Config, MountOption, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{getegid, geteuid};

use crate::error::{Error, Result};

use super::adapter::Adapter;
use super::mounts;
use super::options::MountOptions;

const DEVICE: &str = "/dev/fuse";
const SUBTYPE: &str = "subtype=tidefs";

/// The mount point, canonical, if it can be one.
pub(super) fn check(mountpoint: &Path, nonempty: bool) -> Result<PathBuf> {
    let shown = mountpoint.display();
    let refused = |text: String| Err(Error::Refused(text));
    let path = match fs::canonicalize(mountpoint).and_then(|path| Ok((path.metadata()?, path))) {
        Ok((found, path)) if found.is_dir() => path,
        Ok(_) => return refused(format!("{shown} is not a directory: mount on an empty one")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refused(format!(
                "the mount point {shown} does not exist: create it first"
            ));
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            return refused(format!(
                "a dead mount is left at {shown}: remove it with 'umount -l {shown}', then mount again"
            ));
        }
        Err(error) => return Err(Error::io("look at", mountpoint)(error)),
    };
    match mounts::at(&path)? {
        // systemd's automount waits there for us; to look into it would wait for ourselves.
        Some(mount) if mount.kind == "autofs" => return Ok(path),
        Some(mount) => {
            return refused(format!(
                "{shown} is a mount point of {} already: unmount it first (tidefs umount {shown})",
                mount.kind
            ));
        }
        None => {}
    }
    let mut entries = fs::read_dir(&path).map_err(Error::io("look into", &path))?;
    if !nonempty && entries.next().is_some() {
        return refused(format!(
            "{shown} is not empty, and a mount would hide what is in it: use an empty directory, or -o nonempty"
        ));
    }
    Ok(path)
}

/// A mount that waits to be served.
pub(super) struct Attached {
    pub(super) session: Session<Adapter>,
    /// `fusermount3` made it, and fuser keeps a record of that.
    pub(super) by_helper: bool,
}

/// Mounts and shakes hands. Nothing is served yet, and nothing stays mounted on an error.
pub(super) fn attach(
    adapter: Adapter,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Attached> {
    let device = open_device()?;
    let config = config(options);
    let by_helper = match kernel_mount(&device, mountpoint, options) {
        Ok(()) => false,
        Err(Errno::EPERM) => true,
        Err(errno) => return Err(Error::nix("mount", mountpoint)(errno)),
    };
    let session = if by_helper {
        drop(device);
        Session::new(adapter, mountpoint, &config)
    } else {
        Session::from_fd(adapter, OwnedFd::from(device), config.acl, config).inspect_err(|_| {
            if let Err(errno) = umount2(mountpoint, MntFlags::MNT_DETACH) {
                tracing::warn!("cannot unmount {}: {errno}", mountpoint.display());
            }
        })
    };
    Ok(Attached {
        session: session.map_err(Error::io("mount", mountpoint))?,
        by_helper,
    })
}

fn open_device() -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::Refused(format!(
            "there is no {DEVICE}: load the kernel's module ('modprobe fuse'), or give it to this container"
        )),
        _ => Error::io("open", DEVICE)(error),
    })
}

fn kernel_mount(device: &File, mountpoint: &Path, options: &MountOptions) -> Result<(), Errno> {
    let mut words = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions,{SUBTYPE}",
        device.as_raw_fd(),
        libc::S_IFDIR,
        geteuid(),
        getegid()
    );
    if acl(options) == SessionACL::All {
        words.push_str(",allow_other");
    }
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, options.read_only);
    flags.set(MsFlags::MS_NOSUID, !options.suid);
    flags.set(MsFlags::MS_NODEV, !options.dev);
    flags.set(MsFlags::MS_NOEXEC, !options.exec);
    flags.set(MsFlags::MS_SYNCHRONOUS, options.sync);
    let source = mounts::source_name(&options.source);
    nix::mount::mount(
        Some(source.as_str()),
        mountpoint,
        Some("fuse"),
        flags,
        Some(words.as_str()),
    )
}

/// For fuser; the mount options count only where `fusermount3` mounts. Never `AutoUnmount`: with it
/// fuser 0.18 cannot unmount from inside.
fn config(options: &MountOptions) -> Config {
    let either = |yes, then, otherwise| if yes { then } else { otherwise };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(mounts::source_name(&options.source)),
        MountOption::CUSTOM(SUBTYPE.to_owned()),
        MountOption::DefaultPermissions,
        either(options.read_only, MountOption::RO, MountOption::RW),
        either(options.suid, MountOption::Suid, MountOption::NoSuid),
        either(options.dev, MountOption::Dev, MountOption::NoDev),
        either(options.exec, MountOption::Exec, MountOption::NoExec),
        either(options.sync, MountOption::Sync, MountOption::Async),
    ];
    config.acl = acl(options);
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    config
}

fn acl(options: &MountOptions) -> SessionACL {
    if options.allow_other.unwrap_or_else(|| geteuid().is_root()) {
        SessionACL::All
    } else {
        SessionACL::Owner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_mount_point_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let refusal = |path: &Path| check(path, false).unwrap_err().to_string();
        assert!(refusal(&dir.path().join("none")).contains("does not exist"));
        assert!(refusal(&file).contains("not a directory"));
        assert!(refusal(dir.path()).contains("not empty"));
        assert!(refusal(Path::new("/proc")).contains("already"));
        assert_eq!(
            check(dir.path(), true).unwrap(),
            dir.path().canonicalize().unwrap()
        );
    }
}
