//! The oracle: what was asked of a mount and when, and whether a tree that is found is what all of it
//! had made at one moment.
//!
//! Every step takes the number of the moment before its system call, and another after the call has
//! returned; it took effect somewhere between. A commit is a prefix of what was done, so there must be
//! one moment that explains every path that is found: each step that took effect before it is there, and
//! none that took effect after it. An fsync that was answered says that this moment is not before it.
//! So one comparison holds what was acknowledged, that renames are whole, and the order of all the rest.
//!
//! No file system here: a tree comes in as a table.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub type Moment = u64;
/// Of what was not answered.
pub const NEVER: Moment = u64::MAX;

/// Bytes that a program wrote in one call. How many of them took effect is known after a crash only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    pub offset: usize,
    pub len: usize,
    pub seed: u64,
    pub applied: usize,
}

impl Patch {
    pub fn new(offset: usize, len: usize, seed: u64) -> Patch {
        Patch {
            offset,
            len,
            seed,
            applied: len,
        }
    }

    /// Half of it does not compress, and every seed makes its own.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = super::common::noise(self.seed, self.len.div_ceil(2));
        let line = format!("{} the quick brown fox ", self.seed);
        let missing = self.len - bytes.len();
        let text = line.repeat(missing / line.len() + 1);
        bytes.extend_from_slice(&text.as_bytes()[..missing]);
        bytes
    }
}

/// The content of a file as how to make it again: hundreds of megabytes are not kept in memory.
#[derive(Clone, Debug, Default)]
pub struct Content {
    patches: Arc<Vec<Patch>>,
    pub len: usize,
    hash: [u8; 32],
}

impl Content {
    pub fn of(patches: Vec<Patch>) -> Content {
        let mut content = Content {
            patches: Arc::new(patches),
            ..Content::default()
        };
        let bytes = content.bytes();
        content.len = bytes.len();
        content.hash = Sha256::digest(&bytes).into();
        content
    }

    pub fn with(&self, patch: Patch) -> Content {
        let mut patches = self.patches.to_vec();
        patches.push(patch);
        Content::of(patches)
    }

    pub fn patches(&self) -> usize {
        self.patches.len()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for patch in self.patches.iter() {
            let end = patch.offset + patch.applied;
            if patch.applied > 0 && bytes.len() < end {
                bytes.resize(end, 0);
            }
            let applied = &patch.bytes()[..patch.applied];
            bytes[patch.offset..][..patch.applied].copy_from_slice(applied);
        }
        bytes
    }

    /// The content of which the last patch took effect only as far as `found` shows, if that is what
    /// `found` is: new bytes up to some point, and behind it what was there before.
    fn partly(&self, found: &[u8]) -> Option<Content> {
        let mut patches = self.patches.to_vec();
        let last = patches.last_mut()?;
        let (new, start) = (last.bytes(), last.offset.min(found.len()));
        let same = found[start..].iter().zip(&new).take_while(|(a, b)| a == b);
        last.applied = same.count();
        let partial = Content::of(patches);
        (partial.bytes() == found).then_some(partial)
    }
}

#[derive(Clone, Debug)]
pub enum Node {
    Absent,
    Dir,
    File(Content),
}

/// What a path became by one step.
#[derive(Clone, Debug)]
pub struct Version {
    /// Taken before the call: the step is not in a tree of an earlier moment.
    pub begin: Moment,
    /// The step is in every tree of this moment or a later one.
    pub certain: Moment,
    /// Bytes written to an open file: they may arrive late, and a part of them first.
    pub is_write: bool,
    pub node: Node,
}

pub type Paths = BTreeMap<String, Vec<Version>>;

/// What was found at a path.
#[derive(Clone, Debug)]
pub enum Found {
    Dir,
    File(Vec<u8>),
    /// A file whose bytes were not read, of this length.
    Unread(u64),
}

pub type Tree = BTreeMap<String, Found>;

/// Which version of a path is there, and at which moments that is right.
#[derive(Clone, Debug)]
struct Place {
    index: usize,
    partial: Option<Content>,
    from: Moment,
    until: Moment,
}

/// What a tree turned out to be.
#[derive(Debug)]
pub struct Verdict {
    places: BTreeMap<String, Place>,
    pub from: Moment,
    pub until: Moment,
}

/// Holds `tree` against everything that was asked. Whatever took effect before `floor` must be there.
pub fn judge(paths: &Paths, tree: &Tree, floor: Moment) -> Result<Verdict, String> {
    if let Some(stranger) = tree.keys().find(|path| !paths.contains_key(*path)) {
        return Err(format!("{stranger} is there, and nobody ever made it"));
    }
    let mut at_least = (floor, "an acknowledged fsync");
    let mut before = (NEVER, "nothing");
    let mut places = BTreeMap::new();
    let mut doubtful = Vec::new();
    for (path, versions) in paths {
        let options = options(versions, tree.get(path), floor);
        match options.as_slice() {
            [] => return Err(explain(path, versions, tree.get(path), floor)),
            [place] => {
                at_least = at_least.max((place.from, path));
                before = before.min((place.until, path));
                places.insert(path.clone(), place.clone());
            }
            _ => doubtful.push((path, options)),
        }
    }
    if at_least.0 >= before.0 {
        return Err(format!(
            "no moment explains what is there: {} says not before {}, {} says before {}",
            at_least.1, at_least.0, before.1, before.0
        ));
    }
    // A name that was not there, then there, then not there: either absence is right if its time fits.
    for (path, options) in doubtful {
        let mut options = options.into_iter().rev();
        let fits = |place: &Place| place.from < before.0 && place.until > at_least.0;
        let place = options
            .find(fits)
            .ok_or_else(|| explain(path, &paths[path], tree.get(path), floor))?;
        places.insert(path.clone(), place);
    }
    Ok(Verdict {
        places,
        from: at_least.0,
        until: before.0,
    })
}

fn explain(path: &str, versions: &[Version], found: Option<&Found>, floor: Moment) -> String {
    let what_is = match found {
        None => "nothing".to_owned(),
        Some(Found::Dir) => "a directory".to_owned(),
        Some(Found::Unread(len)) => format!("{len} bytes"),
        Some(Found::File(bytes)) => format!("{} bytes", bytes.len()),
    };
    let is_known = !options(versions, found, 0).is_empty();
    let verdict = if is_known {
        "older than what was acknowledged"
    } else {
        "as nobody ever made it"
    };
    let told: Vec<String> = versions
        .iter()
        .rev()
        .take(4)
        .map(|version| {
            let what = match &version.node {
                Node::Absent => "absent".to_owned(),
                Node::Dir => "a directory".to_owned(),
                Node::File(content) => format!("{} bytes", content.len),
            };
            let (begin, certain) = (version.begin, version.certain);
            format!("{what} from {begin}, certain at {certain}")
        })
        .collect();
    format!(
        "{path}: found {what_is}, {verdict}; the newest versions: {}; acknowledged up to {floor}",
        told.join("; ")
    )
}

/// The versions that `found` may be, at `floor` or later.
fn options(versions: &[Version], found: Option<&Found>, floor: Moment) -> Vec<Place> {
    let mut options = Vec::new();
    let hash: Option<[u8; 32]> = match found {
        Some(Found::File(bytes)) => Some(Sha256::digest(bytes).into()),
        _ => None,
    };
    // The moment at which something later than the version in hand is there for certain.
    let mut until = NEVER;
    for (index, version) in versions.iter().enumerate().rev() {
        if until <= floor {
            break;
        }
        let (is_it, partial) = match (&version.node, found) {
            (Node::Absent, None) | (Node::Dir, Some(Found::Dir)) => (true, None),
            (Node::File(content), Some(Found::File(_))) if Some(content.hash) == hash => {
                (true, None)
            }
            (Node::File(content), Some(Found::File(bytes))) if version.is_write => {
                let partial = content.partly(bytes);
                (partial.is_some(), partial)
            }
            // What is not read was settled long ago: only the newest version is right.
            (Node::File(content), Some(Found::Unread(len))) => (
                index + 1 == versions.len() && content.len as u64 == *len,
                None,
            ),
            _ => (false, None),
        };
        if is_it {
            let place = Place {
                index,
                from: version.begin,
                until: if partial.is_some() {
                    until.min(version.certain)
                } else {
                    until
                },
                partial,
            };
            // Nothing arrived of a write: that is the version before it.
            if place.until > floor && !place.partial.as_ref().is_some_and(is_unbegun) {
                options.push(place);
            }
        }
        until = until.min(version.certain);
    }
    options.reverse();
    options
}

fn is_unbegun(content: &Content) -> bool {
    content.patches.last().is_some_and(|last| last.applied == 0)
}

impl Verdict {
    /// What was lost never was, and what is there now is there for certain. Returns how many steps
    /// were lost.
    pub fn settle(mut self, paths: &mut Paths, now: Moment) -> usize {
        let mut lost = 0;
        for (path, versions) in paths {
            let Some(place) = self.places.remove(path) else {
                continue;
            };
            lost += versions.len() - place.index - 1;
            versions.truncate(place.index + 1);
            for version in versions.iter_mut() {
                version.certain = version.certain.min(now);
            }
            if let (Some(partial), Some(last)) = (place.partial, versions.last_mut()) {
                last.node = Node::File(partial);
                lost += 1;
            }
        }
        lost
    }
}

/// How many steps no answered fsync covers.
pub fn uncertain(paths: &Paths, floor: Moment) -> usize {
    let versions = paths.values().flatten();
    versions.filter(|version| version.certain > floor).count()
}
