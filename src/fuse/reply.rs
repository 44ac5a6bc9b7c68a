//! Sends outcomes as FUSE replies.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{FileAttr, FileType, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyXattr};

use crate::volume::tree::Attr;

use super::convert;

/// Inode 0 with a lifetime: "no such name", to be remembered.
pub(super) const NOBODY: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

/// Done, or why not.
pub(super) fn empty(outcome: Result<(), fuser::Errno>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Bytes.
pub(super) fn data(outcome: Result<Bytes, fuser::Errno>, reply: ReplyData) {
    match outcome {
        Ok(bytes) => reply.data(&bytes),
        Err(errno) => reply.error(errno),
    }
}

/// Attributes, to be believed for `known`.
pub(super) fn attr(known: Duration, outcome: Result<Attr, fuser::Errno>, reply: ReplyAttr) {
    match outcome {
        Ok(attr) => reply.attr(&known, &convert::file_attr(&attr)),
        Err(errno) => reply.error(errno),
    }
}

/// An attribute's value or the list of names. Size 0 asks how long it is.
pub(super) fn xattr(value: Result<&[u8], fuser::Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Err(errno) => reply.error(errno),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(value),
            Ok(_) => reply.error(fuser::Errno::ERANGE),
            Err(_) => reply.error(fuser::Errno::E2BIG),
        },
    }
}
