//! `tidefs item show|history|cat`

use std::ffi::OsString;
use std::fmt::Write as _;

use bytes::Bytes;
use clap::{Args as ClapArgs, Subcommand};
use crossbeam_channel::bounded;
use serde_json::{Map, Value, json};

use crate::cli::find::gone;
use crate::cli::look::{self, LookAt, Looking, Rows};
use crate::cli::output::size;
use crate::cli::{Context, Outcome};
use crate::daemon::Failure;
use crate::error::Result;
use crate::format::inode::Inode;
use crate::maintain::look::{Content, content_of};
use crate::meta::view::View;
use crate::types::{Epoch, FileKind, Ino};
use crate::volume::history::History;
use crate::volume::history::locate::{self, Located, Standing};
use crate::volume::history::states::{self, Event, ItemState};
use crate::volume::namespace;
use crate::volume::tree::Tree;
use crate::volume::view_tree::ViewTree;

/// Bytes of a file that are read at once.
const READ_LEN: u32 = 1 << 20;

/// What to see of an item.
#[derive(Debug, Subcommand)]
pub(super) enum Item {
    /// Everything that is known of it: attributes, extended ones, where its bytes are
    Show(Chosen),
    /// Its states, the oldest first: when each came to be, how, and what it was
    History {
        #[command(flatten)]
        look: LookAt,
        /// An account by its name or UUID, and a path in it
        #[arg(value_name = "ACCOUNT/PATH")]
        item: OsString,
    },
    /// Its bytes, on standard output
    Cat(Chosen),
}

/// A state of an item.
#[derive(Debug, ClapArgs)]
pub(super) struct Chosen {
    /// The state of this number (tidefs item history shows them)
    #[arg(long, value_name = "N", conflicts_with = "at")]
    state: Option<u64>,
    #[command(flatten)]
    look: LookAt,
    /// An account by its name or UUID, and a path in it
    #[arg(value_name = "ACCOUNT/PATH")]
    item: OsString,
}

/// An item, and the moment as of which its content is what it was.
struct Found {
    item: Located,
    as_of: Epoch,
}

pub(super) fn run(context: &mut Context, item: Item) -> Outcome {
    match item {
        Item::Show(chosen) => show(context, &chosen),
        Item::History { look, item } => history(context, &look, &item),
        Item::Cat(chosen) => cat(context, &chosen),
    }
}

fn history(context: &mut Context, look: &LookAt, item: &OsString) -> Outcome {
    let looking = context.look(look)?;
    let view = looking.history.view(looking.at);
    let path = look::bytes_of(Some(item));
    let states = states::states_of(&view, &path)?;
    if states.is_empty() {
        // Says that there is nothing, and what to do.
        locate::expect(&view, &path)?;
    }
    let mut rows = Rows::new(context);
    if !context.out.is_json() {
        let head = format!(
            "{:>5} {:>7}  {:<23}  {:>9}  {:<23}  {:<6} {:<11}  {}",
            "STATE", "EPOCH", "CLOSED", "SIZE", "CHANGED", "MODE", "OWNER", "WHAT"
        );
        rows.bytes(head.as_bytes())?;
        rows.bytes(b"\n")?;
    }
    for state in &states {
        let history = &looking.history;
        if !rows.put(|| document(history, state), || line(history, state))? {
            return Ok(());
        }
    }
    rows.end()
}

/// What happened, as a word and the path beside it.
fn event_words(event: &Event) -> (&'static str, Option<(&'static str, &[u8])>) {
    match event {
        Event::Created => ("created", None),
        Event::Content => ("content", None),
        Event::Attributes => ("attributes", None),
        Event::Replaced => ("replaced", None),
        Event::Renamed { from } => ("renamed", Some(("renamed_from", from))),
        Event::Linked { from } => ("linked", Some(("linked_from", from))),
        Event::Moved { to } => ("moved", Some(("renamed_to", to))),
        Event::Unlinked { still_at } => ("unlinked", Some(("still_at", still_at))),
        Event::Deleted => ("deleted", None),
    }
}

fn document(history: &History, state: &ItemState) -> Value {
    let mut document = Map::new();
    let (event, path) = event_words(&state.event);
    document.insert("state".into(), json!(state.number));
    document.insert("epoch".into(), json!(state.epoch));
    let time = history.time_of(state.epoch);
    document.insert("time".into(), json!(time.map(|time| time.secs)));
    document.insert("event".into(), json!(event));
    if let Some((key, path)) = path {
        look::put_bytes(&mut document, key, path);
    }
    document.insert("item".into(), json!(state.ino.to_string()));
    if let Some(inode) = &state.inode {
        look::put_inode(&mut document, inode);
        if let Some(digest) = state.digest() {
            document.insert("sha256".into(), json!(digest.to_string()));
        }
    }
    Value::Object(document)
}

fn line(history: &History, state: &ItemState) -> String {
    let (event, path) = event_words(&state.event);
    let what = match (&state.event, path) {
        (Event::Renamed { .. }, Some((_, from))) => format!("renamed from {}", look::shown(from)),
        (Event::Linked { .. }, Some((_, from))) => format!("linked to {}", look::shown(from)),
        (Event::Moved { .. }, Some((_, to))) => format!("renamed to {}", look::shown(to)),
        (Event::Unlinked { .. }, Some((_, at))) => {
            format!("this name removed, still at {}", look::shown(at))
        }
        _ => event.to_owned(),
    };
    let (number, epoch) = (state.number, state.epoch);
    let closed = look::epoch_moment(history, epoch);
    let Some(inode) = &state.inode else {
        let gap = "";
        return format!(
            "{number:>5} {epoch:>7}  {closed:<23}  {gap:>9}  {gap:<23}  {gap:<6} {gap:<11}  {what}"
        );
    };
    let len = match inode.kind {
        FileKind::File => size(inode.size),
        _ => "-".into(),
    };
    let changed = look::instant(inode.mtime);
    let mode = mode_of(inode);
    let owner = format!("{}:{}", inode.uid, inode.gid);
    format!(
        "{number:>5} {epoch:>7}  {closed:<23}  {len:>9}  {changed:<23}  {mode:<6} {owner:<11}  {what}"
    )
}

fn mode_of(inode: &Inode) -> String {
    format!("{}{:04o}", look::kind_letter(inode.kind), inode.mode)
}

/// The item that was asked for: one of its states, or as it is at a moment.
fn find(looking: &Looking, chosen: &Chosen) -> Result<Found, Failure> {
    let view = looking.history.view(looking.at);
    let path = look::bytes_of(Some(&chosen.item));
    let Some(number) = chosen.state else {
        let item = locate::expect(&view, &path)?;
        let as_of = item.state;
        return Ok(Found { item, as_of });
    };
    let states = states::states_of(&view, &path)?;
    if states.is_empty() {
        locate::expect(&view, &path)?;
    }
    let shown = look::shown(&path);
    let state = states.iter().find(|state| state.number == number);
    let state = state.ok_or_else(|| {
        Failure::failed(format!(
            "'{shown}' has no state {number}: it has {}, as tidefs item history shows",
            states.len()
        ))
    })?;
    let Some(inode) = &state.inode else {
        return Err(Failure::failed(format!(
            "in state {number} '{shown}' was not there: choose an earlier one (tidefs item history)"
        )));
    };
    Ok(Found {
        item: Located {
            path,
            ino: state.ino,
            inode: inode.clone(),
            state: state.epoch,
            standing: Standing::Present,
        },
        as_of: state.epoch,
    })
}

fn cat(context: &mut Context, chosen: &Chosen) -> Outcome {
    let looking = context.look(&chosen.look)?;
    let Found { item, as_of } = find(&looking, chosen)?;
    if item.standing != Standing::Present {
        return Err(gone(&looking, &item));
    }
    if item.inode.kind != FileKind::File {
        let path = look::shown(&item.path);
        let what = match item.inode.kind {
            FileKind::Dir => format!("a directory: tidefs find '{path}' shows what is in it"),
            FileKind::Symlink => {
                format!("a symbolic link to '{}'", look::shown(&item.inode.target))
            }
            _ => "a special file, which has no content".into(),
        };
        return Err(Failure::failed(format!("'{path}' is {what}")));
    }
    let tree = looking.history.tree(Some(as_of))?;
    let mut rows = Rows::new(context);
    let mut offset = 0;
    while offset < item.inode.size {
        let bytes = read(&tree, item.ino, offset)?;
        if bytes.is_empty() || !rows.bytes(&bytes)? {
            break;
        }
        offset += bytes.len() as u64;
    }
    rows.end()
}

fn read(tree: &ViewTree, ino: Ino, offset: u64) -> Result<Bytes> {
    let (answer, answered) = bounded(1);
    tree.read(
        ino,
        offset,
        READ_LEN,
        Box::new(move |outcome| drop(answer.send(outcome))),
    );
    answered
        .recv()
        .unwrap_or_else(|_| Err(nix::errno::Errno::EIO.into()))
}

fn show(context: &mut Context, chosen: &Chosen) -> Outcome {
    let looking = context.look(&chosen.look)?;
    let Found { item, as_of } = find(&looking, chosen)?;
    let view = looking.history.view(Some(as_of));
    let content = content_of(&view, item.ino, &item.inode)?;
    let document = details(&looking.history, &view, &item, &content)?;
    let text = told(&looking.history, &document, &item, &content);
    context.out.result(&document, &text)
}

fn details(
    history: &History,
    view: &View,
    item: &Located,
    content: &Content,
) -> Result<Value, Failure> {
    let inode = &item.inode;
    let mut document = Map::new();
    look::put_bytes(&mut document, "path", &item.path);
    document.insert("item".into(), json!(item.ino.to_string()));
    look::put_inode(&mut document, inode);
    document.insert("atime".into(), json!(inode.atime.secs));
    document.insert("ctime".into(), json!(inode.ctime.secs));
    document.insert("links".into(), json!(inode.nlink));
    document.insert("state".into(), look::epoch_document(history, item.state));
    look::put_standing(&mut document, history, item.standing);
    match inode.kind {
        FileKind::File => {
            document.insert("allocated".into(), json!(inode.allocated));
            document.insert("stored".into(), json!(content.stored_bytes));
            document.insert("extents".into(), json!(content.extents));
            document.insert("blobs".into(), json!(content.blobs));
            document.insert("packs".into(), json!(content.packs));
            if let Some(digest) = states::digest(inode) {
                document.insert("sha256".into(), json!(digest.to_string()));
            }
        }
        FileKind::Symlink => look::put_bytes(&mut document, "target", &inode.target),
        FileKind::CharDevice | FileKind::BlockDevice => {
            document.insert("rdev".into(), json!(inode.rdev));
        }
        _ => {}
    }
    let mut xattrs = Vec::new();
    for name in namespace::xattr_names(view, item.ino)? {
        let mut xattr = Map::new();
        look::put_bytes(&mut xattr, "name", &name);
        look::put_bytes(
            &mut xattr,
            "value",
            &namespace::xattr(view, item.ino, &name)?,
        );
        xattrs.push(Value::Object(xattr));
    }
    document.insert("xattrs".into(), json!(xattrs));
    Ok(Value::Object(document))
}

fn told(history: &History, document: &Value, item: &Located, content: &Content) -> String {
    let inode = &item.inode;
    let mut text = String::new();
    let mut row = |key: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key:<12}{value}");
    };
    row("path", look::shown(&item.path));
    row("type", look::kind_word(inode.kind).into());
    row("item", item.ino.to_string());
    row("mode", format!("{:04o}", inode.mode));
    row("owner", format!("{}:{}", inode.uid, inode.gid));
    row("links", inode.nlink.to_string());
    match inode.kind {
        FileKind::File => {
            row(
                "size",
                format!("{} ({} bytes)", size(inode.size), inode.size),
            );
            row("stored", size(content.stored_bytes));
            row(
                "extents",
                format!("{} in {} packs", content.extents, content.packs),
            );
            if let Some(digest) = states::digest(inode) {
                row("sha256", digest.to_string());
            }
        }
        FileKind::Symlink => row("target", look::shown(&inode.target)),
        FileKind::CharDevice | FileKind::BlockDevice => row("device", inode.rdev.to_string()),
        _ => {}
    }
    row("changed", look::instant(inode.mtime));
    let (state, closed) = (item.state, look::epoch_moment(history, item.state));
    row("state", format!("since epoch {state} ({closed})"));
    if let Standing::Deleted { in_epoch } = item.standing {
        let closed = look::epoch_moment(history, in_epoch);
        row(
            "deleted",
            format!("in epoch {in_epoch} ({closed}); this is what it was"),
        );
    }
    let xattrs = document.get("xattrs").and_then(Value::as_array);
    for xattr in xattrs.into_iter().flatten() {
        let word = |key| xattr.get(key).and_then(Value::as_str).unwrap_or_default();
        let (name, value) = (look::shown(word("name").as_bytes()), word("value"));
        row(
            "xattr",
            format!("{name} = {}", look::shown(value.as_bytes())),
        );
    }
    text
}
