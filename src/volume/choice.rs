//! Choosing where packs go, and what must not be chosen: a place of somebody else's, or within one.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vfs::{ObjectKey, S3Config, Spec};

use crate::buckets::{self, Registry, Use};
use crate::error::{Error, Result};
use crate::format::record::IDENTITY_NAME;
use crate::volume::ack;
use crate::volume::attach::attach;
use crate::volume::engine::Volume;
use crate::volume::open::{store_uuid, whole};
use crate::volume::settings::Store;
use crate::volume::store;

/// Names that are a volume's own below its prefix. A prefix of one volume with such a part would lie within another.
const OWN_NAMES: [&str; 6] = [
    "accounts",
    "items",
    "server",
    "backupstat",
    "lost+found",
    "probe",
];
/// Objects that are looked at for one that is nobody's probe.
const LOOK_LEN: NonZeroUsize = NonZeroUsize::new(100).unwrap();

/// What an operator chooses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// No external volume.
    Local,
    /// A mounted directory.
    Dir(PathBuf),
    /// A bucket that this machine knows.
    S3 {
        /// Its id or label.
        bucket: String,
        /// Where in it; by default a prefix of the volume's own, its UUID.
        prefix: Option<String>,
    },
}

/// A place that was chosen, open.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The volume there, unbound.
    pub volume: Arc<dyn vfs::Volume>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Dir(PathBuf),
    S3 { id: String, prefix: String },
}

impl Chosen {
    /// As the settings keep it, with the UUID of the copy there.
    pub fn store(&self, copy: String) -> Store {
        match self.place.clone() {
            Place::Dir(path) => Store::Dir { path, store: copy },
            Place::S3 { id, prefix } => Store::S3 {
                bucket: id,
                prefix,
                store: copy,
            },
        }
    }
}

impl Choice {
    /// Opens the place for the backup path `root` of the volume `uuid`; none is `Local`.
    pub fn open(
        &self,
        root: &Path,
        uuid: &str,
        remote_timeout: Duration,
    ) -> Result<Option<Chosen>> {
        match self {
            Choice::Local => Ok(None),
            Choice::Dir(path) => open_dir(path, root, remote_timeout).map(Some),
            Choice::S3 { bucket, prefix } => {
                let prefix = prefix.clone().unwrap_or_else(|| uuid.to_owned());
                open_bucket(bucket, prefix, remote_timeout).map(Some)
            }
        }
    }
}

fn open_dir(path: &Path, root: &Path, remote_timeout: Duration) -> Result<Chosen> {
    let path = store::resolve(path, remote_timeout)?;
    if path.starts_with(root) || root.starts_with(&path) {
        let (path, root) = (path.display(), root.display());
        return Err(Error::Refused(format!(
            "{path} and the backup path {root} lie in each other: use another disk"
        )));
    }
    let around = path.ancestors().skip(1);
    for parent in around {
        if parent.join(IDENTITY_NAME).exists() {
            return Err(within(
                &format!("dir:{}", path.display()),
                &format!("dir:{}", parent.display()),
            ));
        }
    }
    let volume = store::open_spec(&Spec::Dir(path.clone()), remote_timeout)?.volume;
    let place = Place::Dir(path);
    Ok(Chosen { volume, place })
}

fn within(place: &str, other: &str) -> Error {
    Error::Refused(format!(
        "{place} lies within the volume at {other}: use a directory or prefix beside it"
    ))
}

fn open_bucket(name: &str, prefix: String, remote_timeout: Duration) -> Result<Chosen> {
    let known = Registry::of_this_machine().buckets()?;
    let bucket = buckets::find(&known, name)?;
    let fault = prefix_fault(&prefix);
    if let Some(fault) = fault {
        return Err(Error::Refused(format!(
            "the prefix '{}' {fault}",
            prefix.escape_debug()
        )));
    }
    let spec = Spec::S3Bucket {
        bucket_id: bucket.id.clone(),
        prefix: prefix.clone(),
    };
    let volume = store::open_spec(&spec, remote_timeout)?.volume;
    refuse_neighbours(&*volume, &bucket.s3.clone().below(&prefix))?;
    let place = Place::S3 {
        id: bucket.id.clone(),
        prefix,
    };
    Ok(Chosen { volume, place })
}

fn prefix_fault(prefix: &str) -> Option<String> {
    if prefix.is_empty() {
        return None;
    }
    if ObjectKey::new(prefix).is_err() {
        return Some(
            "is not one: it is made of a-z, 0-9, '.', '-', '_' and single '/' between them".into(),
        );
    }
    let own = prefix.split('/').find(|part| OWN_NAMES.contains(part))?;
    Some(format!(
        "has a part '{own}', which is a volume's own: choose another"
    ))
}

/// A prefix that is not yet a volume must be empty, and lie within no other: else two servers would share it.
fn refuse_neighbours(volume: &dyn vfs::Volume, config: &S3Config) -> Result<()> {
    if volume.head(&ObjectKey::new(IDENTITY_NAME)?)?.is_some() {
        return Ok(());
    }
    let found = volume.list("", None, LOOK_LEN)?.objects;
    let harmless = ["probe/", "server/attaching/"];
    let foreign = found.iter().find(|meta| {
        !harmless
            .iter()
            .any(|own| meta.key.as_str().starts_with(own))
    });
    if let Some(foreign) = foreign {
        return Err(Error::Refused(format!(
            "{volume} is not empty: it has {} and no {IDENTITY_NAME}. Use a prefix of its own (--prefix)",
            foreign.key
        )));
    }
    let mut prefix = config.prefix.as_str();
    while !prefix.is_empty() {
        prefix = prefix.rsplit_once('/').map_or("", |(parent, _)| parent);
        let mut around = config.clone();
        prefix.clone_into(&mut around.prefix);
        let shown = around.to_string();
        let opened = buckets::open_unlisted("parent", &around)?;
        match opened.head(&ObjectKey::new(IDENTITY_NAME)?) {
            Ok(None) => {}
            Ok(Some(_)) => return Err(within(&config.to_string(), &shown)),
            // Keys that are good for a prefix only cannot look around it, and whoever gave them out knows of it.
            Err(error) if !error.is_unreachable() && !error.is_transient() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Volume {
    /// Sets where packs go, a directory or nowhere. Refused, and nothing changed, if the place is not ours to take.
    pub fn set_store(&self, path: Option<PathBuf>) -> Result<Store> {
        self.choose_store(&path.map_or(Choice::Local, Choice::Dir))
    }

    /// The same for every kind.
    pub fn choose_store(&self, choice: &Choice) -> Result<Store> {
        let store = match choice.open(
            &self.root,
            &self.identity.volume,
            self.settings().remote_timeout(),
        )? {
            None => Store::Local,
            Some(chosen) => {
                let copy = attach(&*chosen.volume, &self.identity, self.clock.now_secs())?;
                chosen.store(copy)
            }
        };
        let mut settings = self.settings();
        let evicted = self
            .ledger
            .all()
            .iter()
            .filter(|(_, entry)| entry.evicted)
            .count();
        // The same copy may have moved: a mount point of another name, a bucket that was added anew.
        if evicted > 0 && settings.store.copy() != store.copy() {
            return Err(Error::Refused(format!(
                "{evicted} packs are only on the external volume that is set now: it cannot be left behind"
            )));
        }
        settings.store = store.clone();
        ack::check(&settings)?;
        // Before the settings: a bucket that is in use and not entered could be removed.
        enter_use(&self.root, &store)?;
        settings.write(&self.root)?;
        *whole(&self.settings) = settings.clone();
        leave_use(&self.root, &store);
        self.ledger.set_external(store_uuid(&settings))?;
        self.connect_store();
        Ok(store)
    }
}

/// Notes in the machine's list of buckets that `root` uses one.
pub fn enter_use(root: &Path, store: &Store) -> Result<()> {
    let Store::S3 {
        bucket,
        prefix,
        store,
    } = store
    else {
        return Ok(());
    };
    let user = Use {
        path: root.to_owned(),
        prefix: prefix.clone(),
        store: store.clone(),
    };
    Registry::of_this_machine().enter(bucket, user)
}

/// Notes that it uses none, if so. An entry too many is found out when the bucket is to be removed.
pub fn leave_use(root: &Path, store: &Store) {
    if matches!(store, Store::S3 { .. }) {
        return;
    }
    if let Err(error) = Registry::of_this_machine().leave(root) {
        tracing::warn!(
            "{} stays entered as a bucket's user: {}",
            root.display(),
            error.chain()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_within_a_volume_or_that_is_no_key_is_refused() {
        for prefix in ["", "a", "host-7/a", "servers", "1f"] {
            assert_eq!(prefix_fault(prefix), None, "{prefix}");
        }
        for prefix in [
            "/a",
            "a/",
            "a//b",
            "A",
            "a b",
            "..",
            "items",
            "a/server",
            "a/items/b",
        ] {
            assert!(prefix_fault(prefix).is_some(), "{prefix}");
        }
    }
}
