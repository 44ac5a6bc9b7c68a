//! What the commands that look inside have in common: whose history, which moment, and a row for each thing found.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};
use vfs::Spec;

use crate::cli::args::TIME_HELP;
use crate::cli::output::{clean, moment};
use crate::cli::{Context, time};
use crate::daemon::client::Client;
use crate::daemon::{Failure, Request, Until};
use crate::format::inode::Inode;
use crate::types::{Epoch, FileKind, Timestamp, escape};
use crate::volume::external::open_guarded;
use crate::volume::history::History;
use crate::volume::history::locate::Standing;
use crate::volume::settings::REMOTE_TIMEOUT;
use crate::volume::store::open_spec;

/// The daemon has this long to commit what was written just now; then what it committed before is shown.
const COMMIT_PATIENCE: Duration = Duration::from_secs(10);
/// Rows that were found reach whoever reads them after this at the latest, as far as more are found.
const FLUSH_AFTER: Duration = Duration::from_millis(100);
/// Rows on their way.
const ROWS_LEN: usize = 64 << 10;

/// Where to look, and when.
#[derive(Debug, Default, ClapArgs)]
pub(super) struct LookAt {
    #[arg(long, value_name = "TIME", help = TIME_HELP)]
    pub(super) at: Option<String>,
    /// Look into an external volume alone (dir:/path, s3:BUCKET/prefix, s3://endpoint/bucket/prefix?..), without a
    /// backup path
    #[arg(long, value_name = "SPEC")]
    pub(super) external: Option<String>,
}

/// A history, and the moment of it that was asked for.
#[derive(Debug)]
pub(super) struct Looking {
    pub(super) history: History,
    /// `None` for the present.
    pub(super) at: Option<Epoch>,
}

impl Context {
    /// Opens what `look` names. Of a backup path the present is what its daemon has committed by now.
    pub(super) fn look(&mut self, look: &LookAt) -> Result<Looking, Failure> {
        let history = if let Some(spec) = &look.external {
            let spec = Spec::parse(spec);
            let spec = spec.map_err(|error| Failure::usage(Failure::from(error).text))?;
            History::of_external(&open_guarded(open_spec(&spec, REMOTE_TIMEOUT)?)?)?
        } else {
            let root = self.root()?;
            if let Some(client) = Client::connect(&root)? {
                self.commit(client);
            }
            History::of_path(&root)?
        };
        let at = match &look.at {
            Some(text) => {
                let entry = time::resolve(text, history.epochs(), self.clock.now())?;
                Some(entry.epoch)
            }
            None => None,
        };
        Ok(Looking { history, at })
    }

    /// Has what was written just now enter the journal, where it is looked for.
    fn commit(&mut self, client: Client) {
        let request = Request::Wait {
            until: Until::Local,
            timeout_ms: u64::try_from(COMMIT_PATIENCE.as_millis()).ok(),
            below: None,
        };
        let committed = client
            .with_patience(2 * COMMIT_PATIENCE)
            .and_then(|client| client.ask(&request, &mut |_| true));
        if let Err(failure) = committed {
            self.out.note(&format!(
                "what was written just now may be missing below: {}",
                failure.text
            ));
        }
    }
}

/// The bytes of a path as it was typed.
pub(super) fn bytes_of(path: Option<&OsString>) -> Vec<u8> {
    path.map_or_else(Vec::new, |path| path.as_bytes().to_vec())
}

/// A name or path for people: what is no text, or would move the terminal, as `\xNN`.
pub(super) fn shown(bytes: &[u8]) -> String {
    clean(&escape(bytes))
}

/// Puts a name or path into a document: as text, and where it is none its bytes in hex beside it.
pub(super) fn put_bytes(document: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    document.insert(key.into(), json!(String::from_utf8_lossy(bytes)));
    if std::str::from_utf8(bytes).is_err() {
        let mut hex = String::new();
        for byte in bytes {
            // A string takes all.
            let _ = write!(hex, "{byte:02x}");
        }
        document.insert(format!("{key}_bytes"), json!(hex));
    }
}

/// What a kind is called in documents.
pub(super) fn kind_word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Dir => "dir",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char-device",
        FileKind::BlockDevice => "block-device",
    }
}

/// The same in one letter, as in `find -type`.
pub(super) fn kind_letter(kind: FileKind) -> char {
    match kind {
        FileKind::File => 'f',
        FileKind::Dir => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    }
}

/// Attributes of an inode for a document.
pub(super) fn put_inode(document: &mut Map<String, Value>, inode: &Inode) {
    let size = match inode.kind {
        FileKind::Symlink => inode.target.len() as u64,
        _ => inode.size,
    };
    document.insert("type".into(), json!(kind_word(inode.kind)));
    document.insert("size".into(), json!(size));
    document.insert("mtime".into(), json!(inode.mtime.secs));
    document.insert("mtime_nanos".into(), json!(inode.mtime.nanos));
    document.insert("mode".into(), json!(format!("{:04o}", inode.mode)));
    document.insert("uid".into(), json!(inode.uid));
    document.insert("gid".into(), json!(inode.gid));
}

/// An epoch for a document: its number, and when it was closed. One that is not closed yet has no time.
pub(super) fn epoch_document(history: &History, epoch: Epoch) -> Value {
    json!({ "epoch": epoch, "time": history.time_of(epoch).map(|time| time.secs) })
}

/// When an epoch was closed, in words of equal length.
pub(super) fn epoch_moment(history: &History, epoch: Epoch) -> String {
    let time = history.time_of(epoch);
    time.map_or_else(|| "not closed yet".into(), |time| moment(time.secs))
}

/// Puts into a document whether something is there, or since when not.
pub(super) fn put_standing(
    document: &mut Map<String, Value>,
    history: &History,
    standing: Standing,
) {
    if let Standing::Deleted { in_epoch } = standing {
        document.insert("deleted".into(), epoch_document(history, in_epoch));
    }
}

/// A moment to the second, for people.
pub(super) fn instant(time: Timestamp) -> String {
    moment(time.secs)
}

/// Rows on standard output, as they are found.
#[derive(Debug)]
pub(super) struct Rows {
    is_json: bool,
    out: BufWriter<StdoutLock<'static>>,
    flushed: Option<Instant>,
}

impl Rows {
    pub(super) fn new(context: &Context) -> Rows {
        Rows {
            is_json: context.out.is_json(),
            out: BufWriter::with_capacity(ROWS_LEN, io::stdout().lock()),
            flushed: None,
        }
    }

    /// A row: a document, or its words. Says whether anybody still reads.
    pub(super) fn put(
        &mut self,
        document: impl FnOnce() -> Value,
        text: impl FnOnce() -> String,
    ) -> Result<bool, Failure> {
        let line = if self.is_json {
            document().to_string()
        } else {
            text()
        };
        self.write(line.as_bytes(), b"\n")
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        self.write(bytes, b"")
    }

    fn write(&mut self, line: &[u8], end: &[u8]) -> Result<bool, Failure> {
        let is_due = self.flushed.is_none_or(|at| at.elapsed() >= FLUSH_AFTER);
        let written = self
            .out
            .write_all(line)
            .and_then(|()| self.out.write_all(end));
        let written = match written {
            Ok(()) if is_due => {
                self.flushed = Some(Instant::now());
                self.out.flush()
            }
            other => other,
        };
        still_read(written)
    }

    /// The last of them.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        still_read(self.out.flush()).map(drop)
    }
}

/// A reader that has seen enough is no failure.
fn still_read(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("cannot print: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_text_is_shown_safely_and_documented_exactly() {
        let name = b"caf\xe9\x1b[2J";
        let words = shown(name);
        assert_eq!(words, r"caf\xe9\x1b[2J");
        assert!(!shown("a\u{202e}b".as_bytes()).contains('\u{202e}'));
        let mut document = Map::new();
        put_bytes(&mut document, "path", name);
        assert_eq!(document["path_bytes"], "636166e91b5b324a");
        let mut document = Map::new();
        put_bytes(&mut document, "path", "caf\u{e9}\n".as_bytes());
        assert_eq!(document["path"], "caf\u{e9}\n");
        assert!(document.get("path_bytes").is_none());
    }
}
