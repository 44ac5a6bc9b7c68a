//! Sources: trees from which accounts are fed, kept in the volume's own metadata.
//!
//! A source says where it is, which directories below it are accounts, and what is left out. So the volume knows its
//! sources wherever it is opened, and they are archived with everything else.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, random};
use crate::error::{Error, Result};
use crate::scan::globs::{Filter, Glob};
use crate::scan::identity::Identity;
use crate::scan::look::look;
use crate::scan::skips::Skips;
use crate::types::{Uuid, escape, unescape};
use crate::volume::Volume;

/// Which directories below a source are accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountRule {
    /// Those so many levels below; 0: the source itself is one.
    Depth(u32),
    /// Those that the pattern matches. The account is called as what its wildcards stand for.
    Glob(String),
    /// Those that hold a Maildir, or are one.
    Maildirs,
}

/// A kind of tree that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Mailboxes as Maildir, of one domain or of many.
    Maildir,
    /// Home directories.
    Homes,
    /// The message store of a Zimbra mailbox server.
    Zimbra,
}

/// How the last scan of a source ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastScan {
    /// When it began, seconds since 1970.
    pub began: i64,
    /// When it ended.
    pub ended: i64,
    /// Names that it saw.
    pub items: u64,
    /// Bytes of the files that it saw.
    pub bytes: u64,
    /// Items that could not be read.
    pub errors: u64,
}

/// A source. Paths are text as [`crate::types::escape`] writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its UUID, 32 hex digits.
    pub uuid: String,
    /// Where it is, absolute.
    pub path: String,
    /// What it was added as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Which directories are accounts.
    pub accounts: AccountRule,
    /// Brings back what an exclude leaves out.
    #[serde(default)]
    pub include: Vec<String>,
    /// What is left out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Whether a daemon watches it.
    #[serde(default)]
    pub watch: bool,
    /// Whether file systems that are mounted below an account are left out.
    #[serde(default)]
    pub one_file_system: bool,
    /// When it was added, seconds since 1970.
    pub added: i64,
    /// What it stands on, as of its last scan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// How its last whole scan ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastScan>,
    /// When the deep scan began that has not come to its end: the next one goes on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deep_since: Option<i64>,
}

impl Preset {
    /// Which directories are its accounts, and what it leaves out.
    pub fn rules(self) -> (AccountRule, Vec<String>) {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        match self {
            // What is being delivered gets its name in `new` when it is whole.
            Preset::Maildir => (AccountRule::Maildirs, words(&["**/tmp/*"])),
            Preset::Homes => (
                AccountRule::Depth(1),
                words(&["/.cache", "/.local/share/Trash", "lost+found/"]),
            ),
            // store/<volume group>/<mailbox>/msg/<part>/<message>
            Preset::Zimbra => (AccountRule::Glob("[0-9]*/*".into()), Vec::new()),
        }
    }
}

impl Source {
    /// A new source at `path`.
    pub fn new(path: &Path, accounts: AccountRule, clock: &dyn Clock) -> Result<Source> {
        Ok(Source {
            uuid: Uuid(random()?).to_string(),
            path: escape(path.as_os_str().as_bytes()),
            preset: None,
            accounts,
            include: Vec::new(),
            exclude: Vec::new(),
            watch: false,
            one_file_system: false,
            added: clock.now().secs,
            identity: None,
            last: None,
            deep_since: None,
        })
    }

    /// Where it is.
    pub fn dir(&self) -> PathBuf {
        let bytes = unescape(&self.path).unwrap_or_default();
        PathBuf::from(OsString::from_vec(bytes))
    }

    /// What it leaves out.
    pub fn filter(&self) -> Result<Filter> {
        Filter::new(&self.include, &self.exclude).map_err(Error::Refused)
    }

    /// Puts it, new or changed, into the volume.
    pub fn put(&self, volume: &Volume) -> Result<()> {
        let uuid = Uuid::parse(&self.uuid)
            .ok_or_else(|| Error::Refused(format!("{} is no UUID", self.uuid)))?;
        let document =
            serde_json::to_vec(self).map_err(|error| Error::Refused(error.to_string()))?;
        volume.put_source(uuid, Some(document))
    }
}

/// The sources of a volume, in order of their paths.
pub fn list(volume: &Volume) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for (uuid, document) in volume.sources()? {
        let source: Source = serde_json::from_slice(&document)
            .map_err(|error| Error::corrupt(format!("source {uuid}"), 0, error.to_string()))?;
        sources.push(source);
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

/// The source that `word` names: its path, or its UUID or the beginning of it.
pub fn find(volume: &Volume, word: &str) -> Result<Source> {
    let sources = list(volume)?;
    let by_path = |source: &&Source| source.dir() == Path::new(word.trim_end_matches('/'));
    if let Some(source) = sources.iter().find(by_path) {
        return Ok(source.clone());
    }
    let is_id = word.len() >= 4 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut by_uuid = sources
        .iter()
        .filter(|source| is_id && source.uuid.starts_with(word));
    match (by_uuid.next(), by_uuid.next()) {
        (Some(source), None) => Ok(source.clone()),
        _ => Err(Error::Refused(format!(
            "there is no source '{}': tidefs source list shows them, by path and UUID",
            escape(word.as_bytes())
        ))),
    }
}

/// Adds a source, if it makes sense.
pub fn add(volume: &Volume, source: &Source) -> Result<()> {
    let dir = source.dir();
    let shown = dir.display();
    source.filter()?;
    if let AccountRule::Glob(pattern) = &source.accounts {
        Glob::new(pattern).map_err(Error::Refused)?;
    }
    let found = std::fs::metadata(&dir).map_err(Error::io("look at the source", &dir))?;
    if !found.is_dir() {
        return Err(Error::Refused(format!("{shown} is not a directory")));
    }
    let root = std::fs::canonicalize(volume.root()).map_err(Error::io("find", volume.root()))?;
    if dir.starts_with(&root) {
        return Err(Error::Refused(format!(
            "{shown} is in the backup path itself: choose what is to be backed up"
        )));
    }
    let bytes = dir.as_os_str().as_bytes();
    let seen = look(rustix::fs::CWD, bytes).map_err(Error::io("look at the source", &dir))?;
    if Skips::new(volume.root())?.is_ours(&seen) {
        return Err(Error::Refused(format!(
            "{shown} is a mount of tidefs: name what is backed up, not the backup"
        )));
    }
    if let Some(other) = list(volume)?.iter().find(|other| other.dir() == dir) {
        return Err(Error::Refused(format!(
            "{shown} is a source already, {}: remove that first, its accounts stay",
            other.uuid
        )));
    }
    source.put(volume)
}

/// Removes a source. Its accounts stay as they are, and are no longer read-only.
pub fn remove(volume: &Volume, source: &Source) -> Result<()> {
    let uuid = Uuid::parse(&source.uuid)
        .ok_or_else(|| Error::Refused(format!("{} is no UUID", source.uuid)))?;
    volume.put_source(uuid, None)
}
