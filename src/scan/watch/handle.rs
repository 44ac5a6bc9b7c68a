//! From what a file system calls a directory to the directory: name_to_handle_at(2) and open_by_handle_at(2), for which
//! there is no safe wrapper. The only file of the program with unsafe code.
//!
//! Both calls get a structure whose last field has the length that its first field tells; here it always has room for
//! the longest handle there is.

#![expect(
    unsafe_code,
    reason = "system calls without a safe wrapper; each block says why it is sound"
)]

use std::ffi::{c_int, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::record::{HANDLE_LEN_MAX, Handle};

/// `struct file_handle`, with room for the longest.
#[repr(C)]
struct RawHandle {
    len: c_uint,
    kind: c_int,
    bytes: [u8; HANDLE_LEN_MAX],
}

impl RawHandle {
    fn as_kernel(&mut self) -> *mut libc::file_handle {
        std::ptr::from_mut(self).cast()
    }
}

/// The handle of an open file or directory.
pub(super) fn of(open: BorrowedFd<'_>) -> Result<Handle, Errno> {
    let mut raw = RawHandle {
        len: c_uint::try_from(HANDLE_LEN_MAX).map_err(|_| Errno::EOVERFLOW)?,
        kind: 0,
        bytes: [0; HANDLE_LEN_MAX],
    };
    let mut mount: c_int = 0;
    // SAFETY: the descriptor is open as long as it is borrowed; the path is a C string; `raw` begins as the kernel's
    // structure does and has as many bytes behind it as `len` says, which is what the kernel may write; `mount` is a
    // c_int of ours. None of them is kept.
    let done = unsafe {
        libc::name_to_handle_at(
            open.as_raw_fd(),
            c"".as_ptr(),
            raw.as_kernel(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(done)?;
    let bytes = usize::try_from(raw.len)
        .ok()
        .and_then(|len| raw.bytes.get(..len))
        .ok_or(Errno::EOVERFLOW)?;
    Ok(Handle {
        kind: raw.kind,
        bytes: bytes.into(),
    })
}

/// Opens what `handle` names, of the file system that `mount` is open on, as a place only: it can be asked for its path
/// and its attributes, and neither read nor written. Needs CAP_DAC_READ_SEARCH. What was deleted gives ESTALE.
pub(super) fn open(mount: BorrowedFd<'_>, handle: &Handle) -> Result<OwnedFd, Errno> {
    let mut raw = RawHandle {
        len: c_uint::try_from(handle.bytes.len()).map_err(|_| Errno::EINVAL)?,
        kind: handle.kind,
        bytes: [0; HANDLE_LEN_MAX],
    };
    raw.bytes
        .get_mut(..handle.bytes.len())
        .ok_or(Errno::EINVAL)?
        .copy_from_slice(&handle.bytes);
    // SAFETY: the descriptor is open as long as it is borrowed; `raw` begins as the kernel's structure does, and `len`
    // is at most what it has bytes for, checked above. The kernel reads it and keeps nothing. It checks the handle
    // itself: a wrong one gives an error, or another object of the same file system.
    let opened = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            raw.as_kernel(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    let opened = Errno::result(opened)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::*;

    fn path(open: &OwnedFd) -> std::path::PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", open.as_raw_fd())).unwrap()
    }

    #[test]
    fn a_directory_is_found_again_under_its_new_name_and_not_after_it_is_gone() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        let mount = File::open(&root).unwrap();
        let handle = of(File::open(root.join("a/b")).unwrap().as_fd()).unwrap();
        assert_eq!(
            path(&open(mount.as_fd(), &handle).unwrap()),
            root.join("a/b")
        );
        fs::rename(root.join("a"), root.join("c")).unwrap();
        assert_eq!(
            path(&open(mount.as_fd(), &handle).unwrap()),
            root.join("c/b")
        );
        fs::remove_dir(root.join("c/b")).unwrap();
        assert_eq!(open(mount.as_fd(), &handle).unwrap_err(), Errno::ESTALE);
    }

    #[test]
    fn a_handle_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mount = File::open(dir.path()).unwrap();
        for len in [0, 1, 8, 127, 128, 129, 4096] {
            let handle = Handle {
                kind: 1,
                bytes: vec![0xee; len].into(),
            };
            assert!(open(mount.as_fd(), &handle).is_err(), "{len} bytes");
        }
    }
}
