//! The operations on names, files and handles, each done to both sides.

use std::sync::Arc;

use nix::errno::Errno;
use tidefs::clock::Clock;
use tidefs::types::{FileKind, Timestamp};
use tidefs::volume::tree::{
    Caller, Fallocate, NewNode, OpenMode, RenameMode, SetAttr, SetTime, Tree, XattrMode,
};

use super::common::{self, noise};
use super::dump::read_whole;
use super::ops::{Fill, MadeKind, Name, Space};
use super::state::{Made, NodeId, overwrite};
use super::world::{Verdict, World, failed};

const WRITE_STEP: usize = 200_000;

impl World {
    pub fn create(&mut self, at: Name, kind: MadeKind, mode: u16, gid: u8) -> Verdict {
        let (dir, name) = self.name(at);
        let (kind, rdev, target): (_, _, &[u8]) = match kind {
            MadeKind::File => (FileKind::File, 0, b""),
            MadeKind::Dir => (FileKind::Dir, 0, b""),
            MadeKind::Symlink => (FileKind::Symlink, 0, b"../some/where"),
            MadeKind::Fifo => (FileKind::Fifo, 0, b""),
            MadeKind::Device => (FileKind::CharDevice, 0x0105, b""),
        };
        let caller = Caller {
            uid: 1000,
            gid: u32::from(gid),
        };
        let node = NewNode {
            kind,
            mode,
            rdev,
            target,
        };
        let outcome = self
            .volume()
            .create(self.state.node(dir).ino, &name, node, caller);
        if let Some(attr) = self.agree("create", outcome, &self.state.refuse_create(dir, &name))? {
            if self.state.nodes.values().any(|node| node.ino == attr.ino) {
                return Err(format!("inode {} was given twice", attr.ino));
            }
            let made = Made {
                kind,
                mode,
                rdev,
                target,
                caller,
            };
            self.state.create(dir, &name, made, attr.ino);
        }
        Ok(())
    }

    fn bytes(fill: Fill, len: u32) -> Vec<u8> {
        match fill {
            Fill::Noise(seed) => noise(u64::from(seed), len as usize),
            Fill::Same(byte) => vec![byte; len as usize],
        }
    }

    pub fn write(&mut self, file: u8, offset: u32, len: u32, fill: Fill, sync: bool) -> Verdict {
        let Some(id) = self.file(file) else {
            return Ok(());
        };
        let (bytes, offset) = (Self::bytes(fill, len), offset as usize);
        let ino = self.state.node(id).ino;
        let mode = OpenMode {
            write: true,
            sync,
            ..OpenMode::default()
        };
        // A write of many chunks is not atomic: a commit may fall between them.
        self.state.keep_version(id);
        self.state
            .set_content(id, |content| overwrite(content, offset, &bytes));
        self.since_durable.push(self.state.clone());
        let volume = Arc::clone(self.volume());
        let written = (|| {
            volume.open(ino, mode)?;
            let pieces = bytes.chunks(WRITE_STEP).enumerate();
            let last = bytes.len().div_ceil(WRITE_STEP).saturating_sub(1);
            for (n, piece) in pieces {
                let at = (offset + n * WRITE_STEP) as u64;
                common::wait(|answer| volume.write(ino, at, piece, sync && n == last, answer))?;
            }
            let attr = volume.getattr(ino)?;
            let content = read_whole(&*volume, attr)?;
            volume.flush(ino)?;
            volume.release(ino, mode)?;
            Ok(content)
        })();
        let content = written.map_err(failed("write"))?;
        if bytes.is_empty() {
            // Nothing was written: no time changes, and the file was settled by its flush all the same.
            self.state = self.since_durable[self.since_durable.len() - 2].clone();
            self.state.now = self.clock.now();
        } else if content != *self.state.node(id).content {
            return Err("a file reads otherwise than it was written".into());
        }
        self.state.settle(id);
        if sync && !bytes.is_empty() {
            self.durable();
        }
        Ok(())
    }

    pub fn truncate(&mut self, file: u8, size: u32) -> Verdict {
        let Some(id) = self.file(file) else {
            return Ok(());
        };
        let change = SetAttr {
            size: Some(u64::from(size)),
            ..SetAttr::default()
        };
        self.volume()
            .setattr(self.state.node(id).ino, change)
            .map_err(failed("truncate"))?;
        self.state.settle(id);
        self.state
            .set_content(id, |content| content.resize(size as usize, 0));
        Ok(())
    }

    /// One of the names of an open file.
    pub fn name_of_handle(&self, handle: u8) -> Option<(NodeId, Vec<u8>)> {
        let open = self.handle(handle)?;
        self.state.nodes.iter().find_map(|(dir, node)| {
            let mut entries = node.entries.iter();
            let (name, _) = entries.find(|(_, id)| **id == open)?;
            Some((*dir, name.clone()))
        })
    }

    pub fn rename(&mut self, from: (NodeId, Vec<u8>), to: Name, mode: RenameMode) -> Verdict {
        let to = self.name(to);
        let outcome = self.volume().rename(
            (self.state.node(from.0).ino, &from.1),
            (self.state.node(to.0).ino, &to.1),
            mode,
        );
        let (from, to) = ((from.0, &from.1[..]), (to.0, &to.1[..]));
        let refusals = self.state.refuse_rename(from, to, mode);
        let moved = self.state.child(from.0, from.1);
        let other = self.state.child(to.0, to.1);
        if self.agree("rename", outcome, &refusals)?.is_none() {
            return Ok(());
        }
        // Bytes join the order before their name moves.
        self.state.settle(moved.unwrap());
        if let (Some(other), RenameMode::Exchange) = (other, mode) {
            self.state.settle(other);
        }
        let is_open = self.is_open();
        self.state.rename(from, to, mode, is_open);
        Ok(())
    }

    pub fn link(&mut self, node: u8, to: Name) -> Verdict {
        let (id, (dir, name)) = (self.any_node(node), self.name(to));
        let (ino, parent) = (self.state.node(id).ino, self.state.node(dir).ino);
        let outcome = self.volume().link(ino, parent, &name);
        if self
            .agree("link", outcome, &self.state.refuse_link(id, dir, &name))?
            .is_some()
        {
            self.state.settle(id);
            self.state.link(id, dir, &name);
        }
        Ok(())
    }

    pub fn set_attr(
        &mut self,
        node: u8,
        mode: Option<u16>,
        mtime: Option<i32>,
        owner: Option<u8>,
    ) -> Verdict {
        let id = self.any_node(node);
        let mtime = mtime.map(|secs| Timestamp {
            secs: i64::from(secs),
            nanos: 5,
        });
        let change = SetAttr {
            mode,
            mtime: mtime.map(SetTime::At),
            uid: owner.map(u32::from),
            gid: owner.map(u32::from),
            ..SetAttr::default()
        };
        self.volume()
            .setattr(self.state.node(id).ino, change)
            .map_err(failed("setattr"))?;
        if self.handles.contains(&id) {
            self.state.settle(id);
        }
        let now = self.state.now;
        let node = self.state.change(id);
        node.mode = mode.unwrap_or(node.mode);
        node.mtime = mtime.unwrap_or(node.mtime);
        node.uid = owner.map_or(node.uid, u32::from);
        node.gid = owner.map_or(node.gid, u32::from);
        node.ctime = now;
        Ok(())
    }

    pub fn set_xattr(&mut self, node: u8, name: u8, value: u8, mode: XattrMode) -> Verdict {
        let id = self.any_node(node);
        let name = format!("user.{name}").into_bytes();
        let value = vec![value; usize::from(value) * usize::from(value)];
        let is_there = self.state.node(id).xattrs.contains_key(&name);
        let refusals: &[_] = match (mode, is_there) {
            (XattrMode::Create, true) => &[Errno::EEXIST],
            (XattrMode::Replace, false) => &[Errno::ENODATA],
            _ => &[],
        };
        let outcome = self
            .volume()
            .setxattr(self.state.node(id).ino, &name, &value, mode);
        if self.agree("setxattr", outcome, refusals)?.is_some() {
            let now = self.state.now;
            let node = self.state.change(id);
            node.xattrs.insert(name, value);
            node.ctime = now;
        }
        Ok(())
    }

    pub fn remove_xattr(&mut self, node: u8, name: u8) -> Verdict {
        let id = self.any_node(node);
        let name = format!("user.{name}").into_bytes();
        let is_there = self.state.node(id).xattrs.contains_key(&name);
        let refusals: &[_] = if is_there { &[] } else { &[Errno::ENODATA] };
        let outcome = self.volume().removexattr(self.state.node(id).ino, &name);
        if self.agree("removexattr", outcome, refusals)?.is_some() {
            let now = self.state.now;
            let node = self.state.change(id);
            node.xattrs.remove(&name);
            node.ctime = now;
        }
        Ok(())
    }

    pub fn fallocate(&mut self, file: u8, offset: u32, len: u32, how: Space) -> Verdict {
        let Some(id) = self.file(file) else {
            return Ok(());
        };
        let (mode, keeps_size, zeroes) = match how {
            Space::Allocate => (Fallocate::Allocate { keep_size: false }, false, false),
            Space::AllocateKeepSize => (Fallocate::Allocate { keep_size: true }, true, false),
            Space::Punch => (Fallocate::PunchHole, true, true),
            Space::Zero => (Fallocate::ZeroRange { keep_size: false }, false, true),
            Space::ZeroKeepSize => (Fallocate::ZeroRange { keep_size: true }, true, true),
        };
        let ino = self.state.node(id).ino;
        self.volume()
            .fallocate(ino, u64::from(offset), u64::from(len), mode)
            .map_err(failed("fallocate"))?;
        self.state.settle(id);
        let (now, before) = (self.state.now, self.state.node(id).mtime);
        let (start, end) = (offset as usize, (offset + len) as usize);
        self.state.set_content(id, |content| {
            if !keeps_size && content.len() < end {
                content.resize(end, 0);
            }
            let end = end.min(content.len());
            if zeroes && start < end {
                content[start..end].fill(0);
            }
        });
        let node = self.state.change(id);
        node.mtime = if zeroes { now } else { before };
        Ok(())
    }

    pub fn copy_range(&mut self, from: (u8, u32), to: (u8, u32), len: u32) -> Verdict {
        let (Some(source), Some(target)) = (self.file(from.0), self.file(to.0)) else {
            return Ok(());
        };
        let bytes = &self.state.node(source).content;
        let start = bytes.len().min(from.1 as usize);
        let end = bytes.len().min(start + len as usize);
        let moved = bytes[start..end].to_vec();
        let copied = self
            .volume()
            .copy_range(
                (self.state.node(source).ino, u64::from(from.1)),
                (self.state.node(target).ino, u64::from(to.1)),
                u64::from(len),
            )
            .map_err(failed("copy_range"))?;
        if copied != moved.len() as u64 {
            return Err(format!("{copied} bytes were copied, not {}", moved.len()));
        }
        self.state.settle(source);
        if copied > 0 {
            self.state.settle(target);
            self.state
                .set_content(target, |content| overwrite(content, to.1 as usize, &moved));
        }
        Ok(())
    }

    // Handles.

    pub fn open(&mut self, file: u8, truncate: bool) -> Verdict {
        let Some(id) = self.file(file) else {
            return Ok(());
        };
        let mode = OpenMode {
            read: true,
            write: true,
            truncate,
            ..OpenMode::default()
        };
        self.volume()
            .open(self.state.node(id).ino, mode)
            .map_err(failed("open"))?;
        self.handles.push(id);
        if truncate {
            self.state.settle(id);
            self.state.set_content(id, Vec::clear);
        }
        Ok(())
    }

    pub fn handle(&self, n: u8) -> Option<NodeId> {
        World::pick(&self.handles, n)
    }

    pub fn handle_write(&mut self, handle: u8, offset: u32, len: u32, fill: Fill) -> Verdict {
        let Some(id) = self.handle(handle) else {
            return Ok(());
        };
        let bytes = Self::bytes(fill, len);
        let ino = self.state.node(id).ino;
        common::wait(|answer| {
            self.volume()
                .write(ino, u64::from(offset), &bytes, false, answer);
        })
        .map_err(failed("write through a handle"))?;
        if !bytes.is_empty() {
            self.state.keep_version(id);
            self.state.set_content(id, |content| {
                overwrite(content, offset as usize, &bytes);
            });
        }
        Ok(())
    }

    pub fn handle_fsync(&mut self, handle: u8) -> Verdict {
        let Some(id) = self.handle(handle) else {
            return Ok(());
        };
        let ino = self.state.node(id).ino;
        common::wait(|answer| self.volume().fsync(ino, answer)).map_err(failed("fsync"))?;
        self.state.settle(id);
        self.durable();
        Ok(())
    }

    pub fn close_handle(&mut self, handle: u8) -> Verdict {
        let Some(id) = self.handle(handle) else {
            return Ok(());
        };
        let mode = OpenMode {
            read: true,
            write: true,
            ..OpenMode::default()
        };
        let ino = self.state.node(id).ino;
        self.volume().flush(ino).map_err(failed("flush"))?;
        self.volume()
            .release(ino, mode)
            .map_err(failed("release"))?;
        let at = self.handles.iter().position(|open| *open == id).unwrap();
        self.handles.remove(at);
        self.state.settle(id);
        if !self.handles.contains(&id) {
            let has_name = self.state.node(id).names > 0;
            self.state.closed(id);
            if !has_name && self.volume().getattr(ino).is_ok() {
                return Err(format!(
                    "inode {ino} outlives its last name and its last handle"
                ));
            }
        }
        Ok(())
    }
}
