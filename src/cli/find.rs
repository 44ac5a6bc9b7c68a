//! `tidefs find`

use std::ffi::OsString;

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::{Map, Value, json};

use crate::cli::look::{self, LookAt, Looking, Rows};
use crate::cli::output::size;
use crate::cli::{Context, Outcome, time, units};
use crate::daemon::Failure;
use crate::maintain::look::{Filter, Glob, SizeTest};
use crate::types::FileKind;
use crate::volume::history::History;
use crate::volume::history::locate::{self, Located, Standing};
use crate::volume::history::walk::{Wanted, walk};

/// What to look for.
#[derive(Debug, ClapArgs)]
pub(super) struct Find {
    /// Names that fit this pattern: '*.pdf', 'report-[0-9]?.txt'
    #[arg(long, value_name = "GLOB")]
    name: Option<OsString>,
    /// Names that have all of these words in them, large letters or small
    #[arg(long, value_name = "WORDS")]
    grep: Option<String>,
    /// Files, directories, symbolic links; several with commas between
    #[arg(long = "type", value_name = "f|d|l", value_enum, value_delimiter = ',')]
    kinds: Vec<KindWord>,
    /// Files larger than +10M, smaller than -10M, or of exactly 4096 bytes
    #[arg(long, value_name = "[+-]SIZE", value_parser = size_test, allow_hyphen_values = true)]
    size: Option<SizeTest>,
    /// Their content changed after this time
    #[arg(long, value_name = "TIME")]
    newer: Option<String>,
    /// Their content did not change after this time
    #[arg(long, value_name = "TIME")]
    older: Option<String>,
    /// What is not there any more, as it was last
    #[arg(long)]
    deleted: bool,
    #[command(flatten)]
    look: LookAt,
    /// Where to look: an account by its name or UUID, or a directory in it. By default everywhere
    #[arg(value_name = "ACCOUNT[/PATH]")]
    place: Option<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindWord {
    #[value(name = "f", alias = "file")]
    File,
    #[value(name = "d", alias = "dir")]
    Dir,
    #[value(name = "l", alias = "symlink")]
    Symlink,
    /// Named pipe
    #[value(name = "p")]
    Fifo,
    /// Socket
    #[value(name = "s")]
    Socket,
    /// Character device
    #[value(name = "c")]
    CharDevice,
    /// Block device
    #[value(name = "b")]
    BlockDevice,
}

impl From<KindWord> for FileKind {
    fn from(word: KindWord) -> FileKind {
        match word {
            KindWord::File => FileKind::File,
            KindWord::Dir => FileKind::Dir,
            KindWord::Symlink => FileKind::Symlink,
            KindWord::Fifo => FileKind::Fifo,
            KindWord::Socket => FileKind::Socket,
            KindWord::CharDevice => FileKind::CharDevice,
            KindWord::BlockDevice => FileKind::BlockDevice,
        }
    }
}

fn size_test(text: &str) -> Result<SizeTest, String> {
    match text.split_at_checked(1) {
        Some(("+", rest)) => units::size(rest).map(SizeTest::Above),
        Some(("-", rest)) => units::size(rest).map(SizeTest::Below),
        _ => units::size(text).map(SizeTest::Exactly),
    }
}

pub(super) fn run(context: &mut Context, find: &Find) -> Outcome {
    let looking = context.look(&find.look)?;
    let filter = filter_of(context, &looking.history, find)?;
    let view = looking.history.view(looking.at);
    let from = locate::expect(&view, &look::bytes_of(find.place.as_ref()))?;
    let wanted = if find.deleted {
        Wanted::Deleted
    } else {
        Wanted::Present
    };
    if wanted == Wanted::Present && from.standing != Standing::Present {
        return Err(gone(&looking, &from));
    }
    let is_gone = from.standing != Standing::Present;
    // What is not a directory has nothing in it, and is meant itself.
    let is_meant = from.inode.kind != FileKind::Dir && is_gone == find.deleted;
    let itself = is_meant.then(|| Ok(from.clone()));
    let mut rows = Rows::new(context);
    for item in itself.into_iter().chain(walk(&view, &from, wanted)) {
        let item = item?;
        if filter.fits(&item) {
            let history = &looking.history;
            let goes_on = rows.put(|| document(history, &item), || line(history, &item))?;
            if !goes_on {
                return Ok(());
            }
        }
    }
    rows.end()
}

fn filter_of(context: &Context, history: &History, find: &Find) -> Result<Filter, Failure> {
    let now = context.clock.now();
    let instant = |text: &Option<String>| {
        let text = text.as_deref();
        text.map(|text| time::instant(text, history.epochs(), now))
            .transpose()
    };
    let name = find.name.as_ref();
    Ok(Filter {
        name: name.map(|name| Glob::new(&look::bytes_of(Some(name)))),
        words: find.grep.as_deref().map_or_else(Vec::new, Filter::words_of),
        kinds: find
            .kinds
            .iter()
            .map(|kind| FileKind::from(*kind))
            .collect(),
        size: find.size,
        newer: instant(&find.newer)?,
        older: instant(&find.older)?,
    })
}

/// What to do where something is not there any more.
pub(super) fn gone(looking: &Looking, item: &Located) -> Failure {
    let path = look::shown(&item.path);
    let when = match item.standing {
        Standing::Deleted { in_epoch } => {
            let closed = look::epoch_moment(&looking.history, in_epoch);
            format!(" since epoch {in_epoch} ({closed})")
        }
        Standing::Present => String::new(),
    };
    Failure::failed(format!(
        "'{path}' is not there any more{when}: tidefs find --deleted shows what was in it, tidefs item history '{path}' its \
         states, and --at TIME looks at an earlier moment"
    ))
}

fn document(history: &History, item: &Located) -> Value {
    let mut document = Map::new();
    look::put_bytes(&mut document, "path", &item.path);
    look::put_inode(&mut document, &item.inode);
    document.insert("item".into(), json!(item.ino.to_string()));
    document.insert("state_epoch".into(), json!(item.state));
    look::put_standing(&mut document, history, item.standing);
    Value::Object(document)
}

fn line(history: &History, item: &Located) -> String {
    let inode = &item.inode;
    let len = match inode.kind {
        FileKind::File => size(inode.size),
        _ => "-".into(),
    };
    let path = look::shown(&item.path);
    let kind = look::kind_letter(inode.kind);
    let changed = look::instant(inode.mtime);
    match item.standing {
        Standing::Present => format!("{kind}  {len:>9}  {changed}  {path}"),
        Standing::Deleted { in_epoch } => {
            let gone = look::epoch_moment(history, in_epoch);
            format!("{kind}  {len:>9}  {changed}  deleted {gone:<23} epoch {in_epoch:<6} {path}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_with_its_sign() {
        assert_eq!(size_test("+10M"), Ok(SizeTest::Above(10 << 20)));
        assert_eq!(size_test("-1K"), Ok(SizeTest::Below(1024)));
        assert_eq!(size_test("4096"), Ok(SizeTest::Exactly(4096)));
        assert!(size_test("").is_err() && size_test("+").is_err() && size_test("+-1").is_err());
    }
}
