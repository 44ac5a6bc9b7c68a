//! Writes a segment in one pass, from entries that come in order.
//!
//! In memory are one block, the block index, and eight bytes for each key; the digest is computed on
//! the way. Syncing and naming the file are the caller's: only `finish` knows the name.

use std::cmp::Ordering;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::block::BlockBuilder;
use super::footer::{self, Layout, SegmentSummary};
use super::frame::{FrameEncoder, Kind};
use super::index::IndexBuilder;
use super::scope::SegmentScope;
use super::{KEY_LEN_MAX, VALUE_LEN_MAX, entry_order};
use crate::error::{Error, Result};
use crate::format::bloom::FilterBuilder;
use crate::types::Epoch;

/// Writes one segment.
#[derive(Debug)]
pub struct SegmentWriter<W> {
    out: Digesting<W>,
    scope: SegmentScope,
    salt: u32,
    block: BlockBuilder,
    frame: FrameEncoder,
    index: IndexBuilder,
    filter: FilterBuilder,
    smallest: Bytes,
    last: Option<(Vec<u8>, Epoch)>,
    entries: u64,
    tombstones: u64,
    keys: u64,
}

/// Counts and digests what passes.
#[derive(Debug)]
struct Digesting<W> {
    out: W,
    path: PathBuf,
    sha256: Sha256,
    len: u64,
    /// A write failed: what is in the file is unknown, and nothing can follow it.
    failed: bool,
}

impl<W: Write> Digesting<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.sha256.update(bytes);
        self.put_undigested(bytes)
    }

    fn put_undigested(&mut self, bytes: &[u8]) -> Result<()> {
        if self.failed {
            let failed = std::io::Error::other("an earlier write to it failed");
            return Err(Error::io("write", &self.path)(failed));
        }
        let written = self.out.write_all(bytes);
        self.failed = written.is_err();
        written.map_err(Error::io("write", &self.path))?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl<W: Write> SegmentWriter<W> {
    /// Begins a segment of `scope` on `out`; errors call it `path`.
    pub fn new(out: W, path: impl AsRef<Path>, scope: SegmentScope) -> Result<SegmentWriter<W>> {
        // The greatest number stands for "the newest" in look-ups and is no epoch.
        if scope.first > scope.last || scope.last == Epoch(u64::MAX) {
            return Err(Error::Refused(format!(
                "a segment cannot reach from epoch {} to {}",
                scope.first, scope.last
            )));
        }
        let mut writer = SegmentWriter {
            out: Digesting {
                out,
                path: path.as_ref().to_owned(),
                sha256: Sha256::new(),
                len: 0,
                failed: false,
            },
            scope,
            salt: scope.frame_salt(),
            block: BlockBuilder::default(),
            frame: FrameEncoder::default(),
            index: IndexBuilder::new(scope.first),
            filter: FilterBuilder::new(u64::from_le_bytes(scope.session.0)),
            smallest: Bytes::new(),
            last: None,
            entries: 0,
            tombstones: 0,
            keys: 0,
        };
        writer.out.put(&scope.header())?;
        Ok(writer)
    }

    /// Adds an entry, a tombstone if it has no value. Keys ascend; within a key, epochs descend.
    pub fn add(&mut self, key: &[u8], epoch: Epoch, value: Option<&[u8]>) -> Result<()> {
        self.check(key, epoch, value)?;
        let is_new_key = self.last.as_ref().is_none_or(|(last, _)| last != key);
        if is_new_key {
            self.filter.add(key);
            self.keys += 1;
        }
        if self.block.is_full_for(key, value) {
            self.flush(Some(key))?;
        }
        self.block.add(key, epoch.0 - self.scope.first.0, value);
        self.entries += 1;
        self.tombstones += u64::from(value.is_none());
        if let Some((last, last_epoch)) = &mut self.last {
            last.clear();
            last.extend_from_slice(key);
            *last_epoch = epoch;
        } else {
            self.smallest = Bytes::copy_from_slice(key);
            self.last = Some((key.to_vec(), epoch));
        }
        Ok(())
    }

    fn check(&self, key: &[u8], epoch: Epoch, value: Option<&[u8]>) -> Result<()> {
        let refuse = |reason: &str| {
            let path = self.out.path.display();
            Err(Error::Refused(format!(
                "{reason}: the segment {path} is not written"
            )))
        };
        if key.len() > KEY_LEN_MAX || value.is_some_and(|value| value.len() > VALUE_LEN_MAX) {
            return refuse("a metadata entry is larger than an entry may be");
        }
        if epoch < self.scope.first || epoch > self.scope.last {
            return refuse("a metadata entry is outside its segment's epochs");
        }
        match &self.last {
            Some((last, last_epoch))
                if entry_order((last, *last_epoch), (key, epoch)) != Ordering::Less =>
            {
                refuse("metadata entries are out of order")
            }
            _ => Ok(()),
        }
    }

    /// Writes the block out; `next` is the key that comes after it.
    fn flush(&mut self, next: Option<&[u8]>) -> Result<()> {
        let Some((_, last_epoch)) = &self.last else {
            return Ok(());
        };
        let offset = self.out.len;
        let plain = self.block.finish();
        let frame = self.frame.encode(Kind::Block, self.salt, offset, plain);
        self.out.put(frame.ok_or_else(too_big)?)?;
        let frame_len = self.out.len - offset;
        let last = (self.block.last_key(), *last_epoch);
        self.index.add(last, next, frame_len);
        self.block.clear();
        Ok(())
    }

    /// Writes what is left: the last block, filter, index and footer. Returns the writer, flushed but not synced.
    pub fn finish(mut self) -> Result<(SegmentSummary, W)> {
        self.flush(None)?;
        let filter_at = self.out.len;
        let filter = std::mem::replace(&mut self.filter, FilterBuilder::new(0)).finish();
        let frame = self
            .frame
            .encode(Kind::Filter, self.salt, filter_at, &filter);
        self.out.put(frame.ok_or_else(too_big)?)?;
        let index_at = self.out.len;
        let plain = self.index.plain();
        let frame = self.frame.encode(Kind::Index, self.salt, index_at, plain);
        self.out.put(frame.ok_or_else(too_big)?)?;
        self.finish_footer(filter_at, index_at)
    }

    fn finish_footer(mut self, filter_at: u64, index_at: u64) -> Result<(SegmentSummary, W)> {
        let layout = Layout {
            filter_at,
            index_at,
            footer_at: self.out.len,
            blocks: self.index.blocks(),
        };
        let mut summary = SegmentSummary {
            volume: self.scope.volume,
            session: self.scope.session,
            first: self.scope.first,
            last: self.scope.last,
            entries: self.entries,
            tombstones: self.tombstones,
            keys: self.keys,
            smallest: self.smallest,
            largest: self.last.map(|(key, _)| key).unwrap_or_default().into(),
            len: 0,
            sha256: [0; 32],
        };
        let digested = footer::encode_digested(&summary, layout).ok_or_else(too_big)?;
        self.out.put(&digested)?;
        summary.sha256 = self.out.sha256.finalize_reset().into();
        let rest = footer::finish(&digested, summary.sha256).ok_or_else(too_big)?;
        self.out.put_undigested(&rest)?;
        summary.len = self.out.len;
        let flushed = self.out.out.flush();
        flushed.map_err(Error::io("write", &self.out.path))?;
        Ok((summary, self.out.out))
    }
}

fn too_big() -> Error {
    Error::Refused("a segment grew beyond what its format can describe: merge fewer at once".into())
}
