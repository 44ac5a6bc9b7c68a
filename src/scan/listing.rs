//! The names of a directory of the volume, in order, as they are asked for.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::error::Result;
use crate::format::inode::Inode;
use crate::types::Ino;
use crate::volume::Volume;

/// Names read in one step, under one lock of the metadata.
const STEP: usize = 256;

/// Goes through a directory once.
#[derive(Debug)]
pub struct Listing<'a> {
    volume: &'a Volume,
    dir: Ino,
    ready: VecDeque<(Bytes, Ino, Inode)>,
    last: Option<Bytes>,
    is_over: bool,
}

impl<'a> Listing<'a> {
    /// From its first name on.
    pub fn new(volume: &'a Volume, dir: Ino) -> Listing<'a> {
        Listing {
            volume,
            dir,
            ready: VecDeque::new(),
            last: None,
            is_over: false,
        }
    }

    fn front(&mut self) -> Result<Option<&(Bytes, Ino, Inode)>> {
        if self.ready.is_empty() && !self.is_over {
            let found = self.volume.listing(self.dir, self.last.as_deref(), STEP)?;
            self.is_over = found.len() < STEP;
            self.last = found.last().map(|(name, ..)| name.clone());
            self.ready = found.into();
        }
        Ok(self.ready.front())
    }

    /// The next name, if it is below `name`; without one, the next name.
    pub fn next_below(&mut self, name: Option<&[u8]>) -> Result<Option<(Bytes, Ino, Inode)>> {
        let is_below = self
            .front()?
            .is_some_and(|(next, ..)| name.is_none_or(|name| **next < *name));
        Ok(if is_below {
            self.ready.pop_front()
        } else {
            None
        })
    }

    /// What the next name leads to, if it is `name`.
    pub fn take(&mut self, name: &[u8]) -> Result<Option<(Ino, Inode)>> {
        let is_it = self.front()?.is_some_and(|(next, ..)| **next == *name);
        let taken = if is_it { self.ready.pop_front() } else { None };
        Ok(taken.map(|(_, ino, inode)| (ino, inode)))
    }
}
