//! Appending to the journal.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};

use crate::error::{Error, Result};
use crate::format::frame::{self, BLOCK_LEN, FileHeader};
use crate::journal::{file_name, replay};
use crate::types::{Epoch, Lsn, SessionId};

/// Space is allocated this far ahead, so that a sync has no size of the file to write as well and a full
/// disk is an answer before anything is written (invariant 8).
const ALLOCATE_STEP_BYTES: u64 = 4 << 20;

/// The journal, open for appending. After a failed write or sync it takes nothing more.
pub struct JournalWriter {
    dir: PathBuf,
    volume: [u8; 16],
    session: SessionId,
    next_lsn: Lsn,
    open: Option<OpenFile>,
    failure: Option<String>,
    on_full: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl std::fmt::Debug for JournalWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalWriter")
            .field("dir", &self.dir)
            .field("next_lsn", &self.next_lsn)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    file: File,
    epoch: Epoch,
    len: u64,
    allocated: u64,
}

impl JournalWriter {
    /// Appends to the journal in `dir`; the next frame is `next_lsn`.
    pub fn new(dir: &Path, volume: [u8; 16], session: SessionId, next_lsn: Lsn) -> JournalWriter {
        JournalWriter {
            dir: dir.to_owned(),
            volume,
            session,
            next_lsn,
            open: None,
            failure: None,
            on_full: None,
        }
    }

    /// What to do when there is no room for a frame; says whether something was freed, so that it is worth
    /// another try.
    pub fn set_on_full(&mut self, on_full: Box<dyn Fn() -> bool + Send + Sync>) {
        self.on_full = Some(on_full);
    }

    /// The number of the next frame.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// Writes and syncs one commit. When it returns `Ok`, the frame survives a power cut.
    pub fn append(
        &mut self,
        epoch: Epoch,
        packs: &[frame::PackExtent],
        changes: &crate::format::keys::Changes,
    ) -> Result<Lsn> {
        if let Some(failure) = &self.failure {
            return Err(Error::Poisoned(failure.clone()));
        }
        let lsn = self.next_lsn;
        let bytes = frame::encode(lsn, epoch, self.session, packs, changes);
        let written = match self.write(epoch, &bytes) {
            // Nothing was written yet.
            Err(Error::NoSpace { .. }) if self.on_full.as_ref().is_some_and(|free| free()) => {
                self.write(epoch, &bytes)
            }
            written => written,
        };
        match written {
            Ok(()) => {
                self.next_lsn = Lsn(lsn.0 + 1);
                Ok(lsn)
            }
            // Nothing was written yet: the caller may try again when there is room.
            Err(error @ Error::NoSpace { .. }) => Err(error),
            Err(error) => {
                self.failure = Some(error.chain());
                Err(error)
            }
        }
    }

    fn write(&mut self, epoch: Epoch, bytes: &[u8]) -> Result<()> {
        let file = self.file_of(epoch)?;
        file.allocate(bytes.len() as u64)?;
        file.file
            .write_all_at(bytes, file.len)
            .map_err(Error::io("write", &file.path))?;
        file.file
            .sync_data()
            .map_err(Error::io("sync", &file.path))?;
        file.len += bytes.len() as u64;
        Ok(())
    }

    /// The file of `epoch`, made and durable under its name if it is the epoch's first frame.
    fn file_of(&mut self, epoch: Epoch) -> Result<&mut OpenFile> {
        let fresh = match self.open.take() {
            Some(open) if open.epoch == epoch => open,
            _ => self.create(epoch)?,
        };
        Ok(self.open.insert(fresh))
    }

    fn create(&self, epoch: Epoch) -> Result<OpenFile> {
        let path = self.dir.join(file_name(epoch, self.session));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| match error.raw_os_error() {
                // Not even a name: as good as no room for the frame.
                Some(libc::ENOSPC | libc::EDQUOT) => Error::NoSpace {
                    path: self.dir.clone(),
                },
                _ => Error::io("create", &path)(error),
            })?;
        let mut open = OpenFile {
            path,
            file,
            epoch,
            len: 0,
            allocated: 0,
        };
        let header = FileHeader {
            volume: self.volume,
            session: self.session,
            epoch,
        };
        let written = open.allocate(BLOCK_LEN as u64).and_then(|()| {
            open.file
                .write_all_at(&frame::encode_file_header(&header), 0)
                .map_err(Error::io("write", &open.path))
        });
        if let Err(error) = written {
            // A file without a header would be taken for damage; it holds nothing.
            std::fs::remove_file(&open.path).map_err(Error::io("remove", &open.path))?;
            return Err(error);
        }
        open.len = BLOCK_LEN as u64;
        open.file
            .sync_all()
            .map_err(Error::io("sync", &open.path))?;
        replay::sync_dir(&self.dir)?;
        Ok(open)
    }

    /// Removes the files of epochs up to `epoch`: everything in them is elsewhere.
    pub fn drop_through(&mut self, epoch: Epoch) -> Result<()> {
        if self.open.as_ref().is_some_and(|open| open.epoch <= epoch) {
            self.open = None;
        }
        for (path, of) in replay::files(&self.dir)? {
            if of <= epoch {
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        replay::sync_dir(&self.dir)
    }
}

impl OpenFile {
    fn allocate(&mut self, len: u64) -> Result<()> {
        let end = self.len + len;
        if end <= self.allocated {
            return Ok(());
        }
        let step = (end - self.allocated).next_multiple_of(ALLOCATE_STEP_BYTES);
        let (from, len) = (self.allocated.cast_signed(), step.cast_signed());
        match fallocate(&self.file, FallocateFlags::empty(), from, len) {
            // A file system that cannot allocate ahead: the write itself will tell.
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => {
                self.allocated += step;
                Ok(())
            }
            Err(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT) => Err(Error::NoSpace {
                path: self.path.parent().unwrap_or(&self.path).to_owned(),
            }),
            Err(errno) => Err(Error::nix("allocate", &self.path)(errno)),
        }
    }
}
