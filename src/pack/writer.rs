//! The one open pack: records are appended to it, made readable at once, and durable by a ticket.
//!
//! Bytes once handed to the file are never written again (invariant 1): writes are whole blocks, a
//! sync fills its last block with a pad. After a failed write or sync nothing more is taken; what was
//! appended can still be read.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::buffer::AlignedBuffer;
use super::read::{LocalPack, ReadAt};
use super::sync::{SyncState, SyncTicket};
use super::verify::Damage;
use crate::chunk::Codec;
use crate::error::{Error, Result};
use crate::format::pack::{
    BLOCK_LEN, IndexEntry, PACK_LEN_TARGET, PackHeader, RecordHeader, block_up, encode_index,
    pad_mark, record_len, sealed_tail_len,
};
use crate::types::{BlobHash, BlobLocation, PackId};

/// How the file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackIo {
    /// Try O_DIRECT: backup data that was just written is rarely read soon, and should not push
    /// everything else out of the page cache.
    pub direct: bool,
}

impl Default for PackIo {
    fn default() -> PackIo {
        PackIo { direct: true }
    }
}

/// A pack that got its index and its trailer, and is never written again.
#[derive(Clone, Debug)]
pub struct SealedPack {
    /// Which.
    pub id: PackId,
    /// Its final length.
    pub len: u32,
    /// What is in it, in the order of the offsets.
    pub records: Vec<IndexEntry>,
    /// What recovery found lost below the committed length; empty unless the pack was recovered.
    pub damage: Vec<Damage>,
}

/// Appends to a new pack. One thread at a time; [`SyncTicket`] and [`PackWriter::reader`] are for
/// outside of the lock.
#[derive(Debug)]
pub struct PackWriter {
    id: PackId,
    /// For writing: with O_DIRECT if that works.
    file: Arc<File>,
    /// For reading, always through the page cache.
    reader: Arc<LocalPack>,
    direct: bool,
    /// The bytes from `written_len` on.
    buffer: AlignedBuffer,
    /// How much was handed to the file: a whole number of blocks.
    written_len: u32,
    entries: Vec<IndexEntry>,
    state: Arc<SyncState>,
}

impl PackWriter {
    /// Begins the pack `id` in the backup path `root`.
    ///
    /// Its full length is allocated first, so that a full disk is an answer here and not a failed
    /// write later (invariant 8): then there is no file, and the error is [`Error::NoSpace`].
    pub fn create(
        root: &Path,
        volume: [u8; 16],
        id: PackId,
        now_ns: u64,
        io: PackIo,
    ) -> Result<PackWriter> {
        let path = root.join(id.object_name());
        if let Some(shard) = path.parent() {
            fs::create_dir_all(shard).map_err(or_no_space("create", shard, root))?;
        }
        // Opened without O_DIRECT first: where it is refused, the open fails but leaves the file.
        let open = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        let file = open.map_err(or_no_space("create", &path, root))?;
        let header = PackHeader {
            volume,
            id,
            created_ns: now_ns,
        }
        .encode();
        PackWriter::begin(file, &path, id, &header, io).map_err(|error| {
            // Not begun is not there; if even this fails, an empty file is all that stays behind.
            let _ = fs::remove_file(&path);
            or_no_space("begin", &path, root)(error)
        })
    }

    fn begin(
        file: File,
        path: &Path,
        id: PackId,
        header: &[u8],
        io: PackIo,
    ) -> io::Result<PackWriter> {
        match fallocate(
            &file,
            FallocateFlags::empty(),
            0,
            libc::off_t::from(PACK_LEN_TARGET),
        ) {
            // NFS before 4.2 and some FUSE file systems cannot: then a write may meet ENOSPC after all.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut buffer = AlignedBuffer::new();
        buffer.put(header);
        let mut direct = None;
        if io.direct {
            let reopened = File::options()
                .write(true)
                .custom_flags(libc::O_DIRECT)
                .open(path);
            // The open may succeed where only the write is refused.
            direct = match reopened
                .and_then(|file| file.write_all_at(buffer.filled(), 0).map(|()| file))
            {
                Ok(file) => Some(file),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
                Err(error) => return Err(error),
            };
        }
        if direct.is_none() {
            file.write_all_at(buffer.filled(), 0)?;
        }
        buffer.clear();
        let reader = LocalPack {
            file: file.try_clone()?,
            path: path.to_owned(),
        };
        Ok(PackWriter {
            direct: direct.is_some(),
            buffer,
            ..PackWriter::on(direct.unwrap_or(file), reader, id)
        })
    }

    /// On files that are there, with the header block written.
    fn on(file: File, reader: LocalPack, id: PackId) -> PackWriter {
        PackWriter {
            id,
            file: Arc::new(file),
            state: Arc::new(SyncState::new(reader.path.clone())),
            reader: Arc::new(reader),
            direct: false,
            buffer: AlignedBuffer::new(),
            written_len: BLOCK_LEN,
            entries: Vec::new(),
        }
    }

    /// Which pack this is.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// Whether O_DIRECT is in use.
    pub fn direct_io(&self) -> bool {
        self.direct
    }

    /// How many bytes of the pack exist, buffered ones included.
    pub fn pack_len(&self) -> u32 {
        // The buffer is far below 4 GiB.
        self.written_len + u32::try_from(self.buffer.filled().len()).unwrap_or(0)
    }

    /// Everything below this can be read through [`PackWriter::reader`], without the writer.
    pub fn written_len(&self) -> u32 {
        self.written_len
    }

    /// The file, for reading below [`PackWriter::written_len`]; stays good after sealing.
    pub fn reader(&self) -> Arc<LocalPack> {
        Arc::clone(&self.reader)
    }

    /// How many records it has.
    pub fn record_count(&self) -> usize {
        self.entries.len()
    }

    /// Whether a record of this stored length would make the sealed pack longer than
    /// [`PACK_LEN_TARGET`], which is also what was allocated.
    pub fn is_full(&self, next_stored_len: u32) -> bool {
        let records = u32::try_from(self.entries.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let records_end = block_up(self.pack_len() + record_len(next_stored_len));
        records_end.saturating_add(sealed_tail_len(records)) > PACK_LEN_TARGET
    }

    /// Appends a blob as [`chunk::encode`](crate::chunk::encode) stored it. It can be read at once and
    /// is durable when a ticket drawn later has been redeemed. Refused when [`PackWriter::is_full`].
    pub fn append(
        &mut self,
        hash: BlobHash,
        codec: Codec,
        plain_len: u32,
        stored: &[u8],
    ) -> Result<BlobLocation> {
        self.state.check()?;
        let offset = self.pack_len();
        let header = RecordHeader::new(hash, codec, plain_len, stored)
            .map_err(|reason| Error::Refused(format!("blob {hash} cannot be stored: {reason}")))?;
        if self.is_full(header.stored_len) {
            return Err(Error::Refused(format!(
                "pack {} is full: seal it and begin another",
                self.id
            )));
        }
        self.put(&header.encode(self.id, offset))?;
        self.put(stored)?;
        let filling = offset + record_len(header.stored_len) - self.pack_len();
        self.put([0; 8].get(..filling as usize).unwrap_or_default())?;
        let entry = IndexEntry::of(&header, offset);
        self.entries.push(entry);
        Ok(entry.location(self.id))
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let taken = self.buffer.put(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.buffer.is_full() {
                self.write_out()?;
            }
        }
        Ok(())
    }

    /// Writes the buffer, which holds whole blocks.
    fn write_out(&mut self) -> Result<()> {
        let written = self
            .file
            .write_all_at(self.buffer.filled(), u64::from(self.written_len));
        self.state
            .keep(written.map_err(Error::io("write", self.state.path())))?;
        self.written_len = self.pack_len();
        self.buffer.clear();
        Ok(())
    }

    /// Hands everything to the file, the last block filled with a pad, and draws a ticket for it. Let
    /// go of the writer before redeeming the ticket.
    pub fn flush_and_pad(&mut self) -> Result<SyncTicket> {
        self.state.check()?;
        let offset = self.pack_len();
        let pad_len = (block_up(offset) - offset) as usize;
        if pad_len > 0 {
            // Records end at multiples of eight, so there is always room for the mark.
            let mut pad = [0; BLOCK_LEN as usize];
            pad[..8].copy_from_slice(&pad_mark(self.id, offset));
            self.put(pad.get(..pad_len).unwrap_or_default())?;
        }
        if !self.buffer.filled().is_empty() {
            self.write_out()?;
        }
        Ok(SyncTicket {
            file: Arc::clone(&self.file),
            len: self.written_len,
            state: Arc::clone(&self.state),
        })
    }

    /// Writes index and trailer, cuts the file to its length, and makes all of it durable.
    ///
    /// Consumes the writer so that it can be called outside of the lock: put the next pack's writer in
    /// its place first, after a [`PackWriter::flush_and_pad`] that lets readers find everything in
    /// [`PackWriter::reader`].
    pub fn seal(mut self) -> Result<SealedPack> {
        let records_end = self.flush_and_pad()?.len();
        let tail = encode_index(self.id, records_end, &self.entries).map_err(|reason| {
            Error::Refused(format!("pack {} cannot be sealed: {reason}", self.id))
        })?;
        self.put(&tail)?;
        let ticket = self.flush_and_pad()?;
        let cut = self.file.set_len(u64::from(ticket.len()));
        self.state
            .keep(cut.map_err(Error::io("truncate", self.state.path())))?;
        ticket.sync()?;
        Ok(SealedPack {
            id: self.id,
            len: ticket.len(),
            records: self.entries,
            damage: Vec::new(),
        })
    }

    /// Removes the pack, if it has no records.
    pub fn discard(self) -> Result<()> {
        if !self.entries.is_empty() {
            return Err(Error::Refused(format!(
                "pack {} has records: it must be sealed, not discarded",
                self.id
            )));
        }
        fs::remove_file(self.state.path()).map_err(Error::io("remove", self.state.path()))
    }
}

/// Reads what was appended, whether it is still in the buffer or already in the file, also after a
/// failure. Below [`PackWriter::written_len`] prefer [`PackWriter::reader`], which needs no lock.
impl ReadAt for PackWriter {
    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let end = offset.saturating_add(len as u64);
        if end > u64::from(self.pack_len()) {
            return Err(Error::corrupt(
                self.name(),
                offset,
                format!("the pack ends before {len} bytes from here"),
            ));
        }
        let written_len = u64::from(self.written_len);
        if end <= written_len {
            return self.reader.read_at(offset, len);
        }
        let from_file = usize::try_from(written_len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(len);
        if from_file > 0 {
            bytes.extend_from_slice(&self.reader.read_at(offset, from_file)?);
        }
        let skip = usize::try_from(offset.saturating_sub(written_len)).unwrap_or(usize::MAX);
        let buffered = self.buffer.filled().get(skip..).unwrap_or_default();
        bytes.extend(buffered.iter().take(len - bytes.len()));
        Ok(bytes.into())
    }

    fn name(&self) -> String {
        self.reader.name()
    }

    fn len(&self) -> Result<u64> {
        Ok(u64::from(self.pack_len()))
    }
}

/// An error of a call that makes something new below `root`: a full disk is not a failure.
pub(super) fn or_no_space<'a>(
    op: &'static str,
    path: &'a Path,
    root: &'a Path,
) -> impl FnOnce(io::Error) -> Error + 'a {
    move |error| match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Error::NoSpace {
            path: PathBuf::from(root),
        },
        _ => Error::io(op, path)(error),
    }
}

#[cfg(test)]
mod tests;
