//! What is below a directory at a moment, in the order of names, each directory before what is in it: what is there,
//! what was deleted, or both.
//!
//! Streams: a level of the tree keeps a few names that were read ahead, fewer the deeper it is, and nothing of what was
//! passed.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::error::Result;
use crate::format::inode::Inode;
use crate::meta::view::View;
use crate::types::{Epoch, FileKind, Ino};
use crate::volume::history::locate::{Located, Standing, push, standing_of};
use crate::volume::history::names::{self, Name, Span};

/// Names that the first level reads at once, and that the deepest does.
const STEP_MAX: usize = 256;
const STEP_MIN: usize = 8;

/// Which items a walk gives. Deleted ones are looked for in all directories, also in those that are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Those that are there.
    Present,
    /// Those that are not there any more, each as it was last. What goes on under another name is not deleted, and a
    /// file whose name another one has now is a state of that name.
    Deleted,
    /// Both.
    All,
}

/// The items below a directory; made by [`walk`].
#[derive(Debug)]
pub struct Walk {
    wanted: Wanted,
    levels: Vec<Level>,
    is_over: bool,
}

#[derive(Debug)]
struct Level {
    dir: Ino,
    /// The newest moment at which the directory was there.
    view: View,
    standing: Standing,
    path: Vec<u8>,
    after: Option<Bytes>,
    ready: VecDeque<Name>,
    is_read: bool,
    /// What the last name leads to, and led to.
    found: VecDeque<Located>,
}

/// Walks what is below `from`, at the moment of `view`. What is below something deleted was deleted too.
pub fn walk(view: &View, from: &Located, wanted: Wanted) -> Walk {
    let level = Level::new(view, from);
    let is_dir = from.inode.kind == FileKind::Dir;
    Walk {
        wanted,
        levels: is_dir.then_some(level).into_iter().collect(),
        is_over: false,
    }
}

impl Level {
    fn new(view: &View, dir: &Located) -> Level {
        let view = match dir.standing {
            Standing::Present => view.clone(),
            Standing::Deleted { in_epoch } => view.as_of(in_epoch),
        };
        Level {
            dir: dir.ino,
            view,
            standing: dir.standing,
            path: dir.path.clone(),
            after: None,
            ready: VecDeque::new(),
            is_read: false,
            found: VecDeque::new(),
        }
    }

    fn next(&mut self, step: usize, wanted: Wanted) -> Result<Option<Located>> {
        loop {
            if let Some(found) = self.found.pop_front() {
                return Ok(Some(found));
            }
            match self.next_name(step)? {
                Some(name) => self.visit(&name, wanted)?,
                None => return Ok(None),
            }
        }
    }

    fn next_name(&mut self, step: usize) -> Result<Option<Name>> {
        if self.ready.is_empty() && !self.is_read {
            let names = names::names_of(&self.view, self.dir, self.after.as_deref(), step)?;
            self.is_read = names.len() < step;
            self.after = names.last().map(|name| name.name.clone());
            self.ready = names.into();
        }
        Ok(self.ready.pop_front())
    }

    /// What a name leads to, and the directories it led to before, go to `found`.
    fn visit(&mut self, name: &Name, wanted: Wanted) -> Result<()> {
        let former = name
            .former_dirs
            .iter()
            .filter(|_| wanted != Wanted::Present);
        for span in std::iter::once(&name.newest).chain(former) {
            let is_over = span.until.is_some() || self.standing != Standing::Present;
            let is_dir = span.target.kind == FileKind::Dir;
            let is_passed = match wanted {
                Wanted::All => false,
                Wanted::Present => is_over,
                // What was deleted from a directory is found in it.
                Wanted::Deleted => !is_over && !is_dir,
            };
            if is_passed {
                continue;
            }
            let Some(standing) = standing_of(&self.view, span, self.standing)? else {
                continue;
            };
            if let Some((state, inode)) = state_of(&self.view, span, standing)? {
                let mut path = self.path.clone();
                push(&mut path, &name.name);
                self.found.push_back(Located {
                    path,
                    ino: span.target.ino,
                    inode,
                    state,
                    standing,
                });
            }
        }
        Ok(())
    }
}

impl Walk {
    fn step(&mut self) -> Result<Option<Located>> {
        loop {
            let step = (STEP_MAX / (self.levels.len() + 1)).max(STEP_MIN);
            let Some(level) = self.levels.last_mut() else {
                return Ok(None);
            };
            let Some(found) = level.next(step, self.wanted)? else {
                self.levels.pop();
                continue;
            };
            if found.inode.kind == FileKind::Dir {
                let below = Level::new(&level.view, &found);
                self.levels.push(below);
            }
            let is_wanted = match self.wanted {
                Wanted::All => true,
                Wanted::Present => found.standing == Standing::Present,
                Wanted::Deleted => found.standing != Standing::Present,
            };
            if is_wanted {
                return Ok(Some(found));
            }
        }
    }
}

/// The inode that a span led to, as it is or was last.
fn state_of(view: &View, span: &Span, standing: Standing) -> Result<Option<(Epoch, Inode)>> {
    match standing {
        Standing::Present => names::inode_at(view, span.target.ino).map(Some),
        Standing::Deleted { in_epoch } => names::last_inode(&view.as_of(in_epoch), span.target.ino),
    }
}

impl Iterator for Walk {
    type Item = Result<Located>;

    /// Ends after an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let step = self.step().transpose();
        self.is_over = !matches!(step, Some(Ok(_)));
        step
    }
}
