//! The plan of a take-over, and carrying it out: renames on one disk, each of which is done or not.
//!
//! A part of the backup path is old until it is in the set-aside directory, and new from then on; so what is left to
//! do is seen from what is where, and doing it again after a stop does no harm.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::stage::STAGE_DIR;
use crate::error::{Error, Result};
use crate::types::PackId;
use crate::volume::open::TAKE_OVER_PLAN;
use crate::volume::settings::{NAME as SETTINGS_NAME, Settings, rewrite, sync_dir};

/// Directories that are exchanged whole. `index` is a cache, and has no place among what is kept.
const EXCHANGED: [&str; 3] = ["server", "accounts", "journal"];

/// What is to be done. The settings say where packs go afterwards.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Where what is only here goes; none if nothing of the metadata changes.
    pub(super) aside: Option<String>,
    /// Packs that go with it.
    pub(super) packs: Vec<String>,
    pub(super) settings: Settings,
}

impl Plan {
    pub(super) fn read(root: &Path) -> Result<Option<Plan>> {
        let path = root.join(TAKE_OVER_PLAN);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::corrupt(path.display().to_string(), 0, error.to_string()))
    }

    /// From here on it has to be carried out.
    pub(super) fn write(&self, root: &Path) -> Result<()> {
        let bytes =
            serde_json::to_vec_pretty(self).map_err(|error| Error::Refused(error.to_string()))?;
        rewrite(&root.join(TAKE_OVER_PLAN), &bytes)
    }

    pub(super) fn carry_out(&self, root: &Path) -> Result<()> {
        let stage = root.join(STAGE_DIR);
        match &self.aside {
            Some(aside) => {
                self.exchange(root, &stage, &root.join(aside))?;
                // It is of what went aside, and is filled anew.
                remove_dir(&root.join("index"))?;
                make_dir(&root.join("index"))?;
            }
            None => take_in(root, &stage)?,
        }
        install_packs(root, &stage.join("items"))?;
        self.settings.write(root)?;
        remove_dir(&stage)?;
        sync_dir(root)?;
        let plan = root.join(TAKE_OVER_PLAN);
        fs::remove_file(&plan).map_err(Error::io("remove", &plan))?;
        sync_dir(root)
    }

    /// The backup path's own metadata goes aside, what was fetched takes its place.
    fn exchange(&self, root: &Path, stage: &Path, aside: &Path) -> Result<()> {
        for dir in ["items", "index"] {
            make_dir(&aside.join(dir))?;
        }
        sync_dir(&root.join("lost+found"))?;
        for name in EXCHANGED {
            let (old, kept, new) = (root.join(name), aside.join(name), stage.join(name));
            if !kept.exists() {
                rename(&old, &kept)?;
            }
            if new.exists() {
                rename(&new, &old)?;
            }
            sync_dir(aside)?;
            sync_dir(root)?;
        }
        for name in &self.packs {
            let Some(pack) = PackId::parse(name) else {
                continue;
            };
            let name = pack.object_name();
            let (old, kept) = (root.join(&name), aside.join(&name));
            if old.exists() {
                make_dir(kept.parent().unwrap_or(aside))?;
                rename(&old, &kept)?;
            }
        }
        // So that it can be looked at as it is, with what only the external volume has.
        let kept = aside.join(SETTINGS_NAME);
        if !kept.exists() {
            self.settings.write(aside)?;
        }
        sync_dir(aside)
    }
}

/// Only the ledger and the claims change.
fn take_in(root: &Path, stage: &Path) -> Result<()> {
    for dir in ["journal", "server/claims"] {
        let from = stage.join(dir);
        if !from.exists() {
            continue;
        }
        make_dir(&root.join(dir))?;
        for name in names(&from)? {
            rename(&from.join(&name), &root.join(dir).join(&name))?;
        }
        sync_dir(&root.join(dir))?;
    }
    sync_dir(&root.join("server"))
}

fn install_packs(root: &Path, from: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    for shard in names(from)? {
        let (new, dir) = (from.join(&shard), root.join("items").join(&shard));
        make_dir(&dir)?;
        for name in names(&new)? {
            rename(&new.join(&name), &dir.join(&name))?;
        }
        sync_dir(&dir)?;
    }
    sync_dir(&root.join("items"))
}

fn names(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(Error::io("list", dir))?;
    entries
        .map(|entry| {
            let entry = entry.map_err(Error::io("list", dir))?;
            Ok(PathBuf::from(entry.file_name()))
        })
        .collect()
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("move", from))
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))
}

pub(super) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;
    use crate::volume::settings::Store;

    fn put(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn tree(root: &Path) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut waiting = vec![root.to_owned()];
        while let Some(dir) = waiting.pop() {
            for name in names(&dir).unwrap() {
                let path = dir.join(name);
                if path.is_dir() {
                    waiting.push(path);
                } else {
                    let name = path.strip_prefix(root).unwrap().display().to_string();
                    found.push((name, fs::read_to_string(path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    fn prepared(root: &Path) -> Plan {
        let pack = PackId::new(SessionId([7; 8]), 3);
        for (name, text) in [
            ("server/volume.json", "old"),
            ("accounts/old.seg", "old"),
            ("journal/packs.log", "old"),
            (&pack.object_name(), "unsent"),
            ("items/aa/shared.pack", "shared"),
            ("index/tree/x", "old"),
            ("settings.json", "{}"),
            ("take-over.stage/server/volume.json", "new"),
            ("take-over.stage/accounts/new.seg", "new"),
            ("take-over.stage/journal/packs.log", "new"),
            ("take-over.stage/items/aa/stub.pack", "stub"),
        ] {
            put(root, name, text);
        }
        Plan {
            aside: Some("lost+found/take-over-x".into()),
            packs: vec![pack.to_string()],
            settings: Settings {
                store: Store::Dir {
                    path: "/nas".into(),
                    store: "s".into(),
                },
                ..Settings::default()
            },
        }
    }

    #[test]
    fn a_plan_that_was_stopped_anywhere_is_carried_out_to_the_same_end() {
        let whole = tempfile::tempdir().unwrap();
        let plan = prepared(whole.path());
        plan.write(whole.path()).unwrap();
        plan.carry_out(whole.path()).unwrap();
        let expected = tree(whole.path());
        let has = |name: &str, text: &str| expected.iter().any(|(n, t)| n == name && t == text);
        assert!(
            has("server/volume.json", "new")
                && has("lost+found/take-over-x/server/volume.json", "old")
        );
        assert!(has("items/aa/shared.pack", "shared") && has("items/aa/stub.pack", "stub"));
        let unsent = PackId::new(SessionId([7; 8]), 3).object_name();
        assert!(
            has(&format!("lost+found/take-over-x/{unsent}"), "unsent"),
            "{expected:?}"
        );
        assert!(
            !expected
                .iter()
                .any(|(name, _)| name.starts_with("take-over"))
        );

        // Each rename alone, in the order in which they are done.
        let steps = ["server", "accounts", "journal"];
        for done in 0..=steps.len() * 2 {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            let plan = prepared(root);
            plan.write(root).unwrap();
            let aside = root.join("lost+found/take-over-x");
            fs::create_dir_all(&aside).unwrap();
            for step in 0..done {
                let name = steps[step / 2];
                if step % 2 == 0 {
                    rename(&root.join(name), &aside.join(name)).unwrap();
                } else {
                    rename(&root.join(STAGE_DIR).join(name), &root.join(name)).unwrap();
                }
            }
            let again = Plan::read(root).unwrap().unwrap();
            again.carry_out(root).unwrap();
            assert_eq!(tree(root), expected, "stopped after {done} renames");
        }
    }
}
