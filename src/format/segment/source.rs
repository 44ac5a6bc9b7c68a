//! Where a segment's bytes come from: anything that can be read by range.
//!
//! The one place of this module that touches a file. An external object is one more implementation,
//! made where the external volume is known.

use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::{Error, Result};

/// Reads immutable bytes by range.
pub trait RangeRead: Send + Sync + fmt::Debug {
    /// What errors call it: a path or an object name.
    fn name(&self) -> String;

    /// How many bytes there are.
    fn len(&self) -> Result<u64>;

    /// Exactly `len` bytes from `offset`. Fewer is an error, not an answer.
    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes>;

    /// Whether there are none.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A local file.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    path: PathBuf,
    len: u64,
}

impl FileSource {
    /// Opens `path` for reading.
    pub fn open(path: impl AsRef<Path>) -> Result<FileSource> {
        let path = path.as_ref().to_owned();
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let metadata = file.metadata().map_err(Error::io("stat", &path))?;
        let len = metadata.len();
        Ok(FileSource { file, path, len })
    }
}

impl RangeRead for FileSource {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        check_range(self, self.len, offset, len)?;
        let mut buffer = vec![0; len];
        match self.file.read_exact_at(&mut buffer, offset) {
            Ok(()) => Ok(Bytes::from(buffer)),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let reason = format!("the file was {} bytes long and is now shorter", self.len);
                Err(Error::corrupt(self.name(), offset, reason))
            }
            Err(error) => Err(Error::io("read", &self.path)(error)),
        }
    }
}

/// Bytes in memory.
#[derive(Debug)]
pub struct MemorySource {
    name: String,
    bytes: Bytes,
}

impl MemorySource {
    /// Serves `bytes` under `name`.
    pub fn new(name: impl Into<String>, bytes: impl Into<Bytes>) -> MemorySource {
        MemorySource {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

impl RangeRead for MemorySource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        check_range(self, self.bytes.len() as u64, offset, len)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(self.bytes.slice(start..start + len))
    }
}

/// A read beyond the end allocates nothing.
fn check_range(source: &dyn RangeRead, file_len: u64, offset: u64, len: usize) -> Result<()> {
    let end = offset.checked_add(len as u64);
    if end.is_none_or(|end| end > file_len) {
        let reason = format!("{len} bytes wanted here, but there are {file_len} in all");
        return Err(Error::corrupt(source.name(), offset, reason));
    }
    Ok(())
}
