//! One process for a backup path.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Holds a backup path until it is dropped, or its process dies.
#[derive(Debug)]
pub struct PathLock {
    file: File,
}

impl PathLock {
    /// Takes the lock, or says which process has it.
    pub fn take(root: &Path) -> Result<PathLock> {
        let path = root.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Whoever has the lock may not have written its number yet: then the number is unknown.
                let _ = file.read_to_string(&mut pid);
                let pid = if pid.trim().is_empty() {
                    "unknown".into()
                } else {
                    pid.trim().to_owned()
                };
                return Err(Error::Locked {
                    path: root.to_owned(),
                    pid,
                });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        file.set_len(0).map_err(Error::io("truncate", &path))?;
        file.rewind().map_err(Error::io("seek", &path))?;
        writeln!(file, "{}", std::process::id()).map_err(Error::io("write", &path))?;
        Ok(PathLock { file })
    }
}

impl Drop for PathLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread is just starting has it open too,
        // until its program begins. If this fails, that closing is what is left.
        let _ = self.file.unlock();
    }
}
