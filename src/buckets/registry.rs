//! The file itself: read whole, changed under a lock, rewritten in one step.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vfs::S3Config;

use super::preset::Preset;
use crate::error::{Error, Result};
use crate::types::Uuid;

/// Where the registry is, unless `TIDEFS_CONFIG_DIR` says otherwise.
const DIR: &str = "/etc/tidefs";
const NAME: &str = "buckets.json";
const LOCK_NAME: &str = "buckets.lock";
/// The format that is written, and the newest that is read.
const FORMAT: u32 = 1;
/// Longest file that is read: thousands of buckets.
const LEN_MAX: u64 = 16 << 20;
const LABEL_LEN_MAX: usize = 64;

/// A backup path that keeps its volume in a bucket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Use {
    /// The backup path.
    pub path: PathBuf,
    /// Where in the bucket, below the bucket's own prefix.
    pub prefix: String,
    /// UUID of the copy there.
    pub store: String,
}

/// A bucket as it was added.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// 32 hex digits. What settings name it by: a label may change.
    pub id: String,
    /// What people call it; unique.
    pub label: String,
    /// Whose S3 it is.
    #[serde(rename = "type")]
    pub preset: Preset,
    /// For people.
    #[serde(default)]
    pub notes: String,
    /// How it is spoken to. Shown without its secrets: see [`Bucket::document`].
    #[serde(skip_serializing)]
    pub s3: S3Config,
    /// When it was added, seconds since 1970.
    pub created: u64,
    /// What the last test found, and when.
    #[serde(default)]
    pub profile: Option<Value>,
    /// Who uses it.
    #[serde(default)]
    pub used_by: Vec<Use>,
}

impl Bucket {
    /// The bucket as a document; its secrets only if they are to be revealed.
    pub fn document(&self, reveal: bool) -> Result<Value> {
        let failed = |error: serde_json::Error| Error::Refused(error.to_string());
        let mut document = serde_json::to_value(self).map_err(failed)?;
        let s3 = if reveal {
            serde_json::to_value(self.s3.revealed())
        } else {
            serde_json::to_value(&self.s3)
        };
        document
            .as_object_mut()
            .map(|fields| s3.map(|s3| fields.insert("s3".into(), s3)))
            .transpose()
            .map_err(failed)?;
        Ok(document)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "format")]
    _format: u32,
    buckets: Vec<Bucket>,
}

/// Only this much is read of a file of another format.
#[derive(Deserialize)]
struct Formatted {
    format: u32,
}

/// The registry in a directory.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// That of this machine: in `$TIDEFS_CONFIG_DIR`, else in `/etc/tidefs`.
    pub fn of_this_machine() -> Registry {
        let named = std::env::var_os("TIDEFS_CONFIG_DIR").filter(|dir| !dir.is_empty());
        Registry::at(named.map_or_else(|| PathBuf::from(DIR), PathBuf::from))
    }

    /// The one in `dir`.
    pub fn at(dir: impl Into<PathBuf>) -> Registry {
        Registry { dir: dir.into() }
    }

    /// Where the file is, whether there is one or not.
    pub fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// All buckets. None were added yet: an empty list.
    pub fn buckets(&self) -> Result<Vec<Bucket>> {
        let path = self.path();
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let found = file.metadata().map_err(Error::io("stat", &path))?;
        if found.permissions().mode() & 0o077 != 0 {
            tracing::warn!(
                "{} holds keys, and others than its owner may open it: chmod 600, and think of whether they did",
                path.display()
            );
        }
        if found.len() > LEN_MAX {
            return Err(damaged(&path, "it is longer than any list of buckets"));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(Error::io("read", &path))?;
        parse(&path, &bytes)
    }

    /// Changes the list, alone among all processes, and rewrites the file. On an error nothing is written.
    pub fn change<T>(&self, change: impl FnOnce(&mut Vec<Bucket>) -> Result<T>) -> Result<T> {
        self.make_dir()?;
        let _lock = self.lock()?;
        let before = self.buckets()?;
        let mut after = before.clone();
        let outcome = change(&mut after)?;
        if after != before {
            if let Some(fault) = fault_of(&after) {
                return Err(Error::Refused(fault));
            }
            self.write(&after)?;
        }
        Ok(outcome)
    }

    fn make_dir(&self) -> Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let mode = fs::Permissions::from_mode(0o700);
                fs::set_permissions(&self.dir, mode).map_err(Error::io("chmod", &self.dir))
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let dir = self.dir.display();
                Err(Error::Refused(format!(
                    "buckets are kept in {dir}, which you may not make: be root, or set TIDEFS_CONFIG_DIR to a \
                     directory of your own for all commands"
                )))
            }
            Err(error) => Err(Error::io("create", &self.dir)(error)),
        }
    }

    /// Held until it is dropped.
    fn lock(&self) -> Result<File> {
        let path = self.dir.join(LOCK_NAME);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(file)
    }

    /// Under the lock. After a power cut there is the old file or the new one.
    fn write(&self, buckets: &[Bucket]) -> Result<()> {
        let documents: Vec<Value> = buckets
            .iter()
            .map(|bucket| bucket.document(true))
            .collect::<Result<_>>()?;
        let document = json!({ "format": FORMAT, "buckets": documents });
        let mut bytes = serde_json::to_vec_pretty(&document)
            .map_err(|error| Error::Refused(error.to_string()))?;
        bytes.push(b'\n');
        let temporary = self.dir.join(format!("{NAME}.new"));
        // Left by a crash: whoever made it had the lock that we have now. Made anew, it has our mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("remove", &temporary)(error));
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(Error::io("create", &temporary))?;
        file.write_all(&bytes)
            .map_err(Error::io("write", &temporary))?;
        file.sync_all().map_err(Error::io("sync", &temporary))?;
        fs::rename(&temporary, self.path()).map_err(Error::io("rename", &temporary))?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::io("sync", &self.dir))
    }

    /// Notes that `user` keeps its volume in the bucket `id`, and in no other.
    pub fn enter(&self, id: &str, user: Use) -> Result<()> {
        self.change(|buckets| {
            super::find(buckets, id)?;
            for bucket in buckets.iter_mut() {
                bucket.used_by.retain(|other| other.path != user.path);
                if bucket.id == id {
                    bucket.used_by.push(user.clone());
                }
            }
            Ok(())
        })
    }

    /// Notes that the backup path `path` uses no bucket any more.
    pub fn leave(&self, path: &Path) -> Result<()> {
        let uses = |bucket: &Bucket| bucket.used_by.iter().any(|other| other.path == path);
        // A machine without buckets gets no directory for them.
        if !self.buckets()?.iter().any(uses) {
            return Ok(());
        }
        self.change(|buckets| {
            for bucket in buckets.iter_mut() {
                bucket.used_by.retain(|other| other.path != path);
            }
            Ok(())
        })
    }
}

fn damaged(path: &Path, reason: impl Into<String>) -> Error {
    let reason: String = reason.into();
    let advice = "nothing was changed. Put it right, or take it from a copy; an empty list is \
                  {\"format\":1,\"buckets\":[]}";
    Error::corrupt(path.display().to_string(), 0, format!("{reason}; {advice}"))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Bucket>> {
    let Formatted { format } =
        serde_json::from_slice(bytes).map_err(|error| damaged(path, unreadable(&error)))?;
    if format != FORMAT {
        return Err(Error::Refused(format!(
            "{} is in format {format}; this version reads format {FORMAT}: use a newer tidefs",
            path.display()
        )));
    }
    let stored: Stored =
        serde_json::from_slice(bytes).map_err(|error| damaged(path, unreadable(&error)))?;
    match fault_of(&stored.buckets) {
        Some(fault) => Err(damaged(path, fault)),
        None => Ok(stored.buckets),
    }
}

/// Where it went wrong, and not with what: serde_json quotes values, and one of them may be a key.
fn unreadable(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    format!("it is not a list of buckets, from line {line}, column {column} on")
}

/// Why these cannot be the buckets of a machine.
fn fault_of(buckets: &[Bucket]) -> Option<String> {
    let mut names = BTreeSet::new();
    for bucket in buckets {
        if Uuid::parse(&bucket.id).is_none() {
            return Some("an id is not a UUID of 32 hex digits".into());
        }
        if let Err(fault) = check_label(&bucket.label) {
            return Some(fault);
        }
        if !names.insert(&bucket.id) || !names.insert(&bucket.label) {
            return Some(format!("there are two buckets '{}'", bucket.label));
        }
        if let Err(error) = bucket.s3.check() {
            return Some(format!("the bucket '{}': {error}", bucket.label));
        }
    }
    None
}

/// Whether a bucket can be called that: as a SPEC names it, and never to be taken for an id.
pub fn check_label(label: &str) -> std::result::Result<(), String> {
    let is_word = (1..=LABEL_LEN_MAX).contains(&label.len())
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if !is_word {
        return Err(format!(
            "a label is made of up to {LABEL_LEN_MAX} letters, digits, '.', '-' and '_'"
        ));
    }
    if Uuid::parse(&label.to_ascii_lowercase()).is_some() {
        return Err("a label that looks like an id would be taken for one".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vfs::Secret;
    use vfs::s3::Credentials;

    use super::*;

    fn bucket(n: u8, label: &str) -> Bucket {
        let mut s3 = S3Config::new("https://nas.lan:9000", "backup");
        s3.credentials = Credentials::Static {
            access_key: "AK1".into(),
            secret: Secret::new("sk-secret"),
            session_token: None,
        };
        Bucket {
            id: Uuid([n; 16]).to_string(),
            label: label.into(),
            preset: Preset::Ceph,
            notes: String::new(),
            s3,
            created: 7,
            profile: None,
            used_by: Vec::new(),
        }
    }

    fn add(registry: &Registry, bucket: Bucket) -> Result<()> {
        registry.change(|buckets| {
            buckets.push(bucket);
            Ok(())
        })
    }

    #[test]
    fn what_was_added_is_read_again_with_its_secrets_and_nobody_else_may_read_it() {
        let parent = tempfile::tempdir().unwrap();
        let registry = Registry::at(parent.path().join("tidefs"));
        assert_eq!(registry.buckets().unwrap(), []);
        add(&registry, bucket(1, "nas")).unwrap();
        let found = registry.buckets().unwrap();
        assert_eq!(found, [bucket(1, "nas")]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&registry.path()), 0o600);
        assert_eq!(mode(registry.path().parent().unwrap()), 0o700);
        let shown = format!("{found:?} {}", found[0].document(false).unwrap());
        assert!(!shown.contains("sk-secret"), "{shown}");
        let revealed = found[0].document(true).unwrap();
        assert!(revealed.to_string().contains("sk-secret"));
    }

    #[test]
    fn a_file_that_others_could_read_is_closed_to_them_by_the_next_change() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path());
        add(&registry, bucket(1, "nas")).unwrap();
        for path in [dir.path().to_owned(), registry.path()] {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        add(&registry, bucket(2, "away")).unwrap();
        let mode = fs::metadata(registry.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mode = fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_damaged_file_is_named_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path());
        add(&registry, bucket(1, "nas")).unwrap();
        let whole = fs::read_to_string(registry.path()).unwrap();
        let cut = &whole[..whole.len() / 2];
        let unknown = whole.replace("\"notes\"", "\"nodes\"");
        let twice = whole.replace(&Uuid([1; 16]).to_string(), "zz");
        let newer = whole.replace("\"format\": 1", "\"format\": 2");
        for text in [cut, "", "{}", &unknown, &twice, &newer] {
            fs::write(registry.path(), text).unwrap();
            let refusal = registry.buckets().unwrap_err().to_string();
            assert!(refusal.contains("buckets.json"), "{refusal}");
            assert!(!refusal.contains("sk-secret"), "{refusal}");
            assert!(add(&registry, bucket(2, "away")).is_err());
            assert_eq!(fs::read_to_string(registry.path()).unwrap(), text);
        }
    }

    #[test]
    fn a_secret_of_the_wrong_kind_is_not_repeated_in_the_complaint() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path());
        add(&registry, bucket(1, "nas")).unwrap();
        let whole = fs::read_to_string(registry.path()).unwrap();
        let strange = whole.replace("\"static\"", "\"sk-secret\"");
        assert_ne!(whole, strange);
        fs::write(registry.path(), strange).unwrap();
        let refusal = registry.buckets().unwrap_err().chain();
        assert!(!refusal.contains("sk-secret"), "{refusal}");
    }

    #[test]
    fn two_buckets_of_one_name_and_names_that_no_spec_could_say_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path());
        add(&registry, bucket(1, "nas")).unwrap();
        let before = fs::read(registry.path()).unwrap();
        let id = Uuid([1; 16]).to_string();
        for label in [
            "nas",
            "",
            "a b",
            "a/b",
            "n\u{e4}s",
            &id,
            &id.to_uppercase(),
            &"x".repeat(65),
        ] {
            assert!(add(&registry, bucket(2, label)).is_err(), "{label:?}");
        }
        assert_eq!(fs::read(registry.path()).unwrap(), before);
    }

    #[test]
    fn a_backup_path_is_a_user_of_one_bucket_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path());
        for (n, label) in [(1, "nas"), (2, "away")] {
            add(&registry, bucket(n, label)).unwrap();
        }
        let user = Use {
            path: "/b".into(),
            prefix: "p".into(),
            store: "s".into(),
        };
        let users = || {
            let buckets = registry.buckets().unwrap();
            buckets
                .iter()
                .map(|bucket| bucket.used_by.len())
                .collect::<Vec<_>>()
        };
        registry
            .enter(&Uuid([1; 16]).to_string(), user.clone())
            .unwrap();
        assert_eq!(users(), [1, 0]);
        registry.enter(&Uuid([2; 16]).to_string(), user).unwrap();
        assert_eq!(users(), [0, 1]);
        registry.leave(Path::new("/b")).unwrap();
        assert_eq!(users(), [0, 0]);
    }

    #[test]
    fn changes_of_several_at_once_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path());
        std::thread::scope(|scope| {
            for n in 0..8 {
                let registry = &registry;
                scope.spawn(move || add(registry, bucket(n, &format!("b{n}"))).unwrap());
            }
        });
        assert_eq!(registry.buckets().unwrap().len(), 8);
    }
}
