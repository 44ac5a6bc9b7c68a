//! A path at a moment: the account, by its name or UUID, and the names below it.

use crate::error::{Error, Result};
use crate::format::inode::Inode;
use crate::meta::view::View;
use crate::types::{Epoch, Ino, Uuid};
use crate::volume::history::accounts;
use crate::volume::history::names::{self, End, Span};

/// Whether an item is there at the moment looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is.
    Present,
    /// It was, and epoch `in_epoch` was the first without it.
    Deleted {
        /// That epoch.
        in_epoch: Epoch,
    },
}

/// An item that a path led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Located {
    /// The path as it is now called: the account by its name, without slashes at the ends. Empty for the root.
    pub path: Vec<u8>,
    /// The inode.
    pub ino: Ino,
    /// As it is, or was last.
    pub inode: Inode,
    /// The epoch of that state: as of it, the inode has the content that it has, or had last.
    pub state: Epoch,
    /// Whether it is there.
    pub standing: Standing,
}

/// The parts of a path, without empty ones.
pub fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
}

/// What `path` (`ACCOUNT[/PATH]`, or nothing for the root) leads to at the moment of `view`; with `gone`, also what it
/// led to last. `None` if it leads nowhere.
pub fn locate(view: &View, path: &[u8], gone: bool) -> Result<Option<Located>> {
    let mut at = Step {
        ino: Ino::ROOT,
        standing: Standing::Present,
        path: Vec::new(),
    };
    let mut parts = parts(path).peekable();
    if let Some(first) = parts.peek()
        && names::spans_of(view, Ino::ROOT, first)?.is_empty()
        && let Some(account) = accounts::by_uuid(view, first)?
    {
        at = Step {
            ino: Ino::account_root(account.id),
            standing: account.standing,
            path: account.name.to_vec(),
        };
        parts.next();
    }
    for part in parts {
        match at.below(view, part, gone)? {
            Some(next) => at = next,
            None => return Ok(None),
        }
    }
    if !gone && at.standing != Standing::Present {
        return Ok(None);
    }
    at.located(view)
}

struct Step {
    ino: Ino,
    standing: Standing,
    path: Vec<u8>,
}

impl Step {
    /// The newest moment at which it was there.
    fn moment(&self, view: &View) -> View {
        match self.standing {
            Standing::Present => view.clone(),
            Standing::Deleted { in_epoch } => view.as_of(in_epoch),
        }
    }

    fn below(&self, view: &View, name: &[u8], gone: bool) -> Result<Option<Step>> {
        let view = self.moment(view);
        let Some(span) = names::spans_of(&view, self.ino, name)?.pop() else {
            return Ok(None);
        };
        let Some(standing) = standing_of(&view, &span, self.standing)? else {
            return Ok(None);
        };
        if standing != Standing::Present && !gone {
            return Ok(None);
        }
        let mut path = self.path.clone();
        push(&mut path, name);
        Ok(Some(Step {
            ino: span.target.ino,
            standing,
            path,
        }))
    }

    fn located(self, view: &View) -> Result<Option<Located>> {
        let found = match self.standing {
            Standing::Present => Some(names::inode_at(view, self.ino)?),
            Standing::Deleted { .. } => names::last_inode(&self.moment(view), self.ino)?,
        };
        Ok(found.map(|(state, inode)| Located {
            path: self.path,
            ino: self.ino,
            inode,
            state,
            standing: self.standing,
        }))
    }
}

/// How what a span led to stands, in a directory that stands as `above`; `None` if it goes on under another name.
pub fn standing_of(view: &View, span: &Span, above: Standing) -> Result<Option<Standing>> {
    let Some(until) = span.until else {
        return Ok(Some(above));
    };
    Ok(match names::end_of(view, span.target.ino, until)? {
        End::Elsewhere => None,
        End::Removed | End::AccountDeleted => Some(Standing::Deleted { in_epoch: until }),
    })
}

/// One name more.
pub(super) fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// The UUID that a path may begin with in place of a name.
pub(super) fn uuid_of(part: &[u8]) -> Option<Uuid> {
    Uuid::parse(std::str::from_utf8(part).ok()?)
}

/// The same as [`locate`], where nothing there is an error that says what to do.
pub fn expect(view: &View, path: &[u8]) -> Result<Located> {
    let found = locate(view, path, true)?;
    let shown = path.escape_ascii();
    found.ok_or_else(|| {
        Error::Refused(format!(
            "there is no '{shown}', and up to that moment there never was: tidefs account list and tidefs find show what \
             there is"
        ))
    })
}
