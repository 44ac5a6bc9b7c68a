//! Which blob holds which range of a file.
//!
//! Up to [`INLINE_EXTENTS_MAX`] extents stand in the inode; more go to leaves, one for each
//! [`LEAF_SPAN`] of the file, keyed by where the span begins. An extent that crosses two spans is cut
//! in two references to the same blob, so that a leaf is found by arithmetic and nothing is searched.
//! Writing, cutting and punching never read file content.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::inode::{self, Extent, INLINE_EXTENTS_MAX, Inode};
use crate::format::keys;
use crate::meta::overlay::{Entries, Transaction};
use crate::types::Ino;

/// Bytes of a file that one leaf describes. At most 256 extents of 4 KiB, 16 KiB of metadata, when
/// every page was written on its own; two or three when the file was written in one go.
pub const LEAF_SPAN: u64 = 1 << 20;

/// Leaves read in one step.
const LEAVES_STEP: usize = 64;

fn span_start(offset: u64) -> u64 {
    offset - offset % LEAF_SPAN
}

fn decode_leaf(ino: Ino, bytes: &[u8]) -> Result<Vec<Extent>> {
    inode::decode_extents(bytes).ok_or_else(|| {
        Error::corrupt(
            format!("the extents of inode {ino}"),
            0,
            "not in the format",
        )
    })
}

/// The extents that overlap `range`, cut to it, in order.
pub fn read(
    entries: &impl Entries,
    ino: Ino,
    of: &Inode,
    range: Range<u64>,
) -> Result<Vec<Extent>> {
    let mut found = Vec::new();
    if range.is_empty() {
        return Ok(found);
    }
    if !of.has_leaves {
        clip_into(&mut found, &of.extents, &range);
        return Ok(found);
    }
    let mut from = keys::extents(ino, span_start(range.start));
    let to = keys::extents(ino, range.end);
    loop {
        let leaves = entries.range(&from, &to, LEAVES_STEP)?;
        for (_, leaf) in &leaves {
            clip_into(&mut found, &decode_leaf(ino, leaf)?, &range);
        }
        match leaves.last() {
            Some((last, _)) if leaves.len() == LEAVES_STEP => {
                let offset = keys::extents_offset(last).unwrap_or(u64::MAX);
                from = keys::extents(ino, offset.saturating_add(1));
            }
            _ => return Ok(found),
        }
    }
}

/// The extents from `offset` on, in order, up to where the leaves read in one step end: empty at the end. Overlapping
/// ones, which only damage makes, are cut.
pub fn some_from(entries: &impl Entries, ino: Ino, of: &Inode, offset: u64) -> Result<Vec<Extent>> {
    let mut found = Vec::new();
    let rest = offset..u64::MAX;
    if !of.has_leaves {
        clip_into(&mut found, &of.extents, &rest);
        return Ok(found);
    }
    let mut from = keys::extents(ino, span_start(offset));
    let to = keys::extents_end(ino);
    // A leaf before `offset` may have nothing behind it.
    while found.is_empty() {
        let leaves = entries.range(&from, &to, LEAVES_STEP)?;
        for (_, leaf) in &leaves {
            let behind = found.last().map_or(offset, Extent::end);
            clip_into(&mut found, &decode_leaf(ino, leaf)?, &(behind..u64::MAX));
        }
        match leaves.last() {
            Some((last, _)) if leaves.len() == LEAVES_STEP => {
                let offset = keys::extents_offset(last).unwrap_or(u64::MAX);
                from = keys::extents(ino, offset.saturating_add(1));
            }
            _ => break,
        }
    }
    Ok(found)
}

fn clip_into(found: &mut Vec<Extent>, extents: &[Extent], range: &Range<u64>) {
    for extent in extents {
        let (start, end) = (extent.start.max(range.start), extent.end().min(range.end));
        if start < end {
            found.push(extent.slice(start, end));
        }
    }
}

/// Puts `new` (in order, disjoint, within `range`) in the place of whatever was in `range`.
/// Changes `of` and its leaves; the caller puts the inode.
pub fn replace(
    tx: &mut Transaction<'_>,
    ino: Ino,
    of: &mut Inode,
    range: Range<u64>,
    new: &[Extent],
) -> Result<()> {
    if !of.has_leaves {
        let spliced = splice(&of.extents, &range, new);
        of.allocated = covered(&spliced);
        if spliced.len() <= INLINE_EXTENTS_MAX {
            of.extents = spliced;
        } else {
            of.extents = Vec::new();
            of.has_leaves = true;
            put_spans(tx, ino, &spliced);
        }
        return Ok(());
    }
    remove_from_leaves(tx, ino, of, &range, new)?;
    of.allocated += covered(new);
    add_to_leaves(tx, ino, new)
}

/// Removes everything from `offset` on.
pub fn truncate(tx: &mut Transaction<'_>, ino: Ino, of: &mut Inode, offset: u64) -> Result<()> {
    replace(tx, ino, of, offset..u64::MAX, &[])
}

/// Removes all leaves of a file that goes.
pub fn remove_all(tx: &mut Transaction<'_>, ino: Ino, of: &Inode) -> Result<()> {
    if of.has_leaves {
        remove_keys(tx, &keys::extents(ino, 0), &keys::extents_end(ino))?;
    }
    Ok(())
}

/// Deletes every entry of a range of keys.
pub fn remove_keys(tx: &mut Transaction<'_>, from: &[u8], to: &[u8]) -> Result<()> {
    loop {
        let entries = tx.range(from, to, LEAVES_STEP)?;
        for (key, _) in &entries {
            tx.delete(keys::Key::from_bytes(key));
        }
        if entries.len() < LEAVES_STEP {
            return Ok(());
        }
    }
}

fn covered(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| u64::from(extent.len)).sum()
}

/// `old` without what lies in `range`, with `new` in its place.
fn splice(old: &[Extent], range: &Range<u64>, new: &[Extent]) -> Vec<Extent> {
    let mut out = Vec::with_capacity(old.len() + new.len() + 1);
    for extent in old {
        if extent.start < range.start {
            out.push(extent.slice(extent.start, extent.end().min(range.start)));
        }
    }
    out.extend_from_slice(new);
    for extent in old {
        if extent.end() > range.end {
            out.push(extent.slice(extent.start.max(range.end), extent.end()));
        }
    }
    out
}

/// Clears `range` in the leaves that are there. Spans that `new` covers again are left to
/// [`add_to_leaves`], which rewrites them once.
fn remove_from_leaves(
    tx: &mut Transaction<'_>,
    ino: Ino,
    of: &mut Inode,
    range: &Range<u64>,
    new: &[Extent],
) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let mut from = keys::extents(ino, span_start(range.start));
    let to = keys::extents(ino, range.end);
    loop {
        let leaves = tx.range(&from, &to, LEAVES_STEP)?;
        for (key, leaf) in &leaves {
            let old = decode_leaf(ino, leaf)?;
            let kept = splice(&old, range, &[]);
            of.allocated = of.allocated.saturating_sub(covered(&old) - covered(&kept));
            let key = keys::Key::from_bytes(key);
            if kept.is_empty() && new.is_empty() {
                tx.delete(key);
            } else if kept != old {
                tx.put(key, inode::encode_extents(&kept));
            }
        }
        match leaves.last() {
            Some((last, _)) if leaves.len() == LEAVES_STEP => {
                let offset = keys::extents_offset(last).unwrap_or(u64::MAX);
                from = keys::extents(ino, offset.saturating_add(1));
            }
            _ => return Ok(()),
        }
    }
}

/// Adds extents whose ranges are free to their leaves.
fn add_to_leaves(tx: &mut Transaction<'_>, ino: Ino, new: &[Extent]) -> Result<()> {
    for (start, pieces) in by_span(new) {
        let key = keys::extents(ino, start);
        let old = match tx.get(&key)? {
            Some(leaf) => decode_leaf(ino, &leaf)?,
            None => Vec::new(),
        };
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            continue;
        };
        let merged = splice(&old, &(first.start..last.end()), &pieces);
        tx.put(key, inode::encode_extents(&merged));
    }
    Ok(())
}

fn put_spans(tx: &mut Transaction<'_>, ino: Ino, extents: &[Extent]) {
    for (start, pieces) in by_span(extents) {
        tx.put(keys::extents(ino, start), inode::encode_extents(&pieces));
    }
}

/// The extents cut at the borders of the spans and grouped by span.
fn by_span(extents: &[Extent]) -> Vec<(u64, Vec<Extent>)> {
    let mut spans: Vec<(u64, Vec<Extent>)> = Vec::new();
    for extent in extents {
        let mut position = extent.start;
        while position < extent.end() {
            let start = span_start(position);
            let end = extent.end().min(start + LEAF_SPAN);
            let piece = extent.slice(position, end);
            match spans.last_mut() {
                Some((last, pieces)) if *last == start => pieces.push(piece),
                _ => spans.push((start, vec![piece])),
            }
            position = end;
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::overlay::{Base, Overlay};
    use crate::types::{AccountId, BlobHash, BlobLocation, FileKind, PackId, Timestamp};
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[derive(Debug)]
    struct Empty;
    impl Base for Empty {
        fn get(&self, _: &[u8]) -> Result<Option<Bytes>> {
            Ok(None)
        }
        fn range(&self, _: &[u8], _: &[u8], _: usize) -> Result<Vec<(Bytes, Bytes)>> {
            Ok(Vec::new())
        }
    }

    fn empty_file() -> Inode {
        let time = Timestamp::default();
        Inode {
            kind: FileKind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            parent: None,
            target: Vec::new(),
            extents: Vec::new(),
            has_leaves: false,
            origin: None,
        }
    }

    proptest! {
        /// Goal: after any writes, punches and cuts, each unit of the file belongs to the write that
        /// touched it last. Method: a model that is an array of "which write", in units of 128 KiB so
        /// that spans are crossed.
        #[test]
        fn each_range_belongs_to_its_last_write(
            steps in proptest::collection::vec((0_u8..10, 0_u64..60, 1_u64..20), 1..60)
        ) {
            const UNIT: u64 = LEAF_SPAN / 8;
            let ino = Ino::new(AccountId::new(1).unwrap(), 5);
            let overlay = Overlay::new(Arc::new(Empty), Vec::new());
            let mut file = empty_file();
            let mut model = vec![0_u8; 80];
            for (write, (step, start, len)) in (1_u8..).zip(steps) {
                let range = start * UNIT..(start + len) * UNIT;
                overlay.transact(|tx| match step {
                    0 => truncate(tx, ino, &mut file, range.start),
                    1 | 2 => replace(tx, ino, &mut file, range.clone(), &[]),
                    _ => {
                        let bytes = u32::try_from(range.end - range.start).unwrap();
                        let location = BlobLocation { pack: PackId([0; 16]), offset: 0, stored_len: 1, plain_len: bytes };
                        let extent = Extent { start: range.start, len: bytes, blob: BlobHash([write; 32]), blob_offset: 0, location };
                        replace(tx, ino, &mut file, range.clone(), &[extent])
                    }
                }).unwrap();
                let units = start as usize..(start + len) as usize;
                match step {
                    0 => model[start as usize..].fill(0),
                    1 | 2 => model[units].fill(0),
                    _ => model[units].fill(write),
                }
                let mut seen = vec![0_u8; 80];
                for extent in read(&overlay.read(), ino, &file, 0..u64::MAX).unwrap() {
                    for unit in extent.start / UNIT..extent.end() / UNIT {
                        prop_assert_eq!(seen[unit as usize], 0, "overlap");
                        seen[unit as usize] = extent.blob.0[0];
                    }
                }
                prop_assert_eq!(&seen, &model);
                prop_assert_eq!(file.allocated, model.iter().filter(|owner| **owner != 0).count() as u64 * UNIT);
            }
        }
    }
}
