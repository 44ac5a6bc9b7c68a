//! A tree as the engine shows it, and its comparison with the reference.

use std::collections::BTreeMap;
use std::fmt::Write;

use tidefs::error::{Error, Result};
use tidefs::types::{FileKind, Ino};
use tidefs::volume::tree::{Attr, Tree};

use super::state::{Node, NodeId, State};

/// Entries asked for at once: few, so that listings go on in the middle.
const LISTING_STEP: usize = 3;
/// Bytes asked for at once: no divisor of any chunk.
const READ_STEP: u32 = 333_333;

pub struct Seen {
    pub attr: Attr,
    pub parent: Ino,
    pub content: Vec<u8>,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub type Dump = BTreeMap<Vec<u8>, Seen>;

/// Everything of a tree, by path; the root is the empty one.
pub fn dump(tree: &dyn Tree) -> Result<Dump> {
    let mut found = Dump::new();
    let root = tree.getattr(Ino::ROOT)?;
    let mut waiting = vec![(Vec::new(), root, Ino::ROOT)];
    while let Some((path, attr, parent)) = waiting.pop() {
        if attr.kind == FileKind::Dir {
            for (name, below) in listed(tree, attr.ino)? {
                let mut child = path.clone();
                child.push(b'/');
                child.extend_from_slice(&name);
                waiting.push((child, below, attr.ino));
            }
        }
        let seen = seen(tree, attr, parent)?;
        found.insert(path, seen);
    }
    Ok(found)
}

fn listed(tree: &dyn Tree, dir: Ino) -> Result<Vec<(Vec<u8>, Attr)>> {
    let mut found: Vec<(Vec<u8>, Attr)> = Vec::new();
    loop {
        let after = found.last().map(|(name, _)| name.clone());
        let step = tree.readdir(dir, after.as_deref(), LISTING_STEP)?;
        for entry in &step {
            let looked_up = tree.lookup(dir, &entry.name)?;
            if looked_up != entry.attr || tree.getattr(looked_up.ino)? != entry.attr {
                let text = format!("a listing says {:?}, a lookup {looked_up:?}", entry.attr);
                return Err(Error::Refused(text));
            }
            found.push((entry.name.to_vec(), entry.attr));
        }
        if step.is_empty() {
            return Ok(found);
        }
    }
}

fn seen(tree: &dyn Tree, attr: Attr, parent: Ino) -> Result<Seen> {
    let mut xattrs = BTreeMap::new();
    for name in tree.listxattr(attr.ino)? {
        let value = tree.getxattr(attr.ino, &name)?;
        xattrs.insert(name.to_vec(), value.to_vec());
    }
    Ok(Seen {
        attr,
        parent: if attr.kind == FileKind::Dir {
            tree.parent(attr.ino)?
        } else {
            parent
        },
        content: if attr.kind == FileKind::File {
            read_whole(tree, attr)?
        } else {
            Vec::new()
        },
        target: if attr.kind == FileKind::Symlink {
            tree.readlink(attr.ino)?.to_vec()
        } else {
            Vec::new()
        },
        xattrs,
    })
}

/// The content of a file, by reads that do not fall on its blobs; the last one asks for more than there is.
pub fn read_whole(tree: &dyn Tree, attr: Attr) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let offset = content.len() as u64;
        let piece = super::common::read(tree, attr.ino, offset, READ_STEP)?;
        if piece.is_empty() {
            return Ok(content);
        }
        content.extend_from_slice(&piece);
    }
}

/// What of `dump` is not as `state` has it; empty if they agree.
pub fn differences(dump: &Dump, state: &State) -> String {
    let paths = state.paths();
    let mut text = String::new();
    let mut note = |path: &[u8], what: String| {
        if text.len() < 2000 {
            let path = String::from_utf8_lossy(path);
            let short: String = path.chars().take(40).collect();
            writeln!(text, "  \"{short}\": {what}").unwrap();
        }
    };
    for path in dump.keys().filter(|path| !paths.contains_key(*path)) {
        note(path, "is there and should not be".into());
    }
    for (path, id) in paths {
        match dump.get(&path) {
            None => note(&path, "is missing".into()),
            Some(seen) => {
                for what in compare(seen, state, id) {
                    note(&path, what);
                }
            }
        }
    }
    text
}

fn compare(seen: &Seen, state: &State, id: NodeId) -> Vec<String> {
    let node = state.node(id);
    let mut found = Vec::new();
    let mut same = |what: &str, is: String, should_be: String| {
        if is != should_be {
            found.push(format!("{what} is {is}, should be {should_be}"));
        }
    };
    let attr = &seen.attr;
    same(
        "kind",
        format!("{:?}", attr.kind),
        format!("{:?}", node.kind),
    );
    same("inode", attr.ino.to_string(), node.ino.to_string());
    same(
        "mode",
        format!("{:o}", attr.mode),
        format!("{:o}", node.mode),
    );
    same("nlink", attr.nlink.to_string(), state.nlink(id).to_string());
    let (is, should_be) = ((attr.uid, attr.gid), (node.uid, node.gid));
    same("owner", format!("{is:?}"), format!("{should_be:?}"));
    same("rdev", attr.rdev.to_string(), node.rdev.to_string());
    same(
        "xattrs",
        format!("{:?}", seen.xattrs),
        format!("{:?}", node.xattrs),
    );
    same(
        "target",
        format!("{:?}", seen.target),
        format!("{:?}", node.target),
    );
    if node.kind == FileKind::Dir {
        let parent = state.node(node.parent).ino;
        same("parent", seen.parent.to_string(), parent.to_string());
    }
    if node.pending.is_empty() {
        same(
            "mtime",
            format!("{:?}", attr.mtime),
            format!("{:?}", node.mtime),
        );
        same(
            "ctime",
            format!("{:?}", attr.ctime),
            format!("{:?}", node.ctime),
        );
    }
    if node.kind == FileKind::File {
        same(
            "size",
            attr.size.to_string(),
            seen.content.len().to_string(),
        );
        found.extend(compare_content(seen, node));
    }
    found
}

/// A file that nothing has settled is at one of its versions, byte by byte.
fn compare_content(seen: &Seen, node: &Node) -> Option<String> {
    if seen.content == *node.content && (node.pending.is_empty() || seen.attr.mtime == node.mtime) {
        return None;
    }
    if node.pending.is_empty() {
        return Some(first_difference(&seen.content, &node.content));
    }
    let versions = || {
        node.pending
            .iter()
            .map(|version| &*version.content)
            .chain([&*node.content])
    };
    let mut times = node
        .pending
        .iter()
        .map(|version| version.mtime)
        .chain([node.mtime]);
    if !times.any(|time| time == seen.attr.mtime) {
        return Some(format!("mtime {:?} is of no version", seen.attr.mtime));
    }
    let lens = versions().map(Vec::len);
    let (shortest, longest) = (lens.clone().min(), lens.max());
    let len = Some(seen.content.len());
    if len < shortest || len > longest {
        return Some(format!("length {len:?} is of no version"));
    }
    for (at, byte) in seen.content.iter().enumerate() {
        if versions().all(|version| version.get(at).unwrap_or(&0) != byte) {
            return Some(format!("byte {at} is of no version"));
        }
    }
    None
}

fn first_difference(is: &[u8], should_be: &[u8]) -> String {
    let at = is.iter().zip(should_be).position(|(a, b)| a != b);
    format!(
        "content of {} bytes differs from the {} expected at byte {}",
        is.len(),
        should_be.len(),
        at.unwrap_or(is.len().min(should_be.len())),
    )
}
