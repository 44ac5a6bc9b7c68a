//! What an opening looks at behind the mount's back: packs that the ledger does not know, blobs that the
//! blob index does not know.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::meta::blobs::BlobIndex;
use crate::pack::ledger::Ledger;
use crate::pack::read::{LocalPack, ReadAt, read_index};
use crate::types::{PackId, SessionId};

/// Where packs go that no commit ever named.
const LOST_AND_FOUND: &str = "lost+found/unsealed";

/// Enters the sealed packs of earlier sessions that the ledger lost. One without an index was never
/// committed, because recovery seals what was: it is moved away, not removed (invariant 11).
///
/// No epoch is archived before this is done: its packs might be among them (invariant 2).
pub(super) fn enter_packs(root: &Path, session: SessionId, ledger: &Ledger) -> Result<()> {
    for shard in list(&root.join("items"))? {
        for path in list(&shard)? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default()
                .to_owned();
            let Some(pack) = name.strip_suffix(".pack").and_then(PackId::parse) else {
                continue;
            };
            let is_ours = pack.0.first_chunk::<8>() == Some(&session.0);
            if is_ours || ledger.get(pack).is_some() {
                continue;
            }
            match LocalPack::open(&path)
                .and_then(|local| Ok((local.len()?, read_index(&local, pack)?)))
            {
                Ok((len, _)) => {
                    tracing::warn!(%pack, "a sealed pack was not in the ledger: it is entered");
                    let len =
                        u32::try_from(len).map_err(|_| Error::corrupt(name, 0, "over 4 GiB"))?;
                    ledger.sealed(pack, len)?;
                }
                Err(Error::Corrupt { .. }) => set_aside(root, &path, &name)?,
                Err(error) => return Err(error),
            }
        }
    }
    ledger.sync()
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(Error::io("list", dir))?;
    entries
        .map(|entry| {
            entry
                .map(|entry| entry.path())
                .map_err(Error::io("list", dir))
        })
        .collect()
}

fn set_aside(root: &Path, path: &Path, name: &str) -> Result<()> {
    let dir = root.join(LOST_AND_FOUND);
    fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    tracing::warn!(
        pack = name,
        "an unsealed pack that no commit names is moved to lost+found"
    );
    fs::rename(path, dir.join(name)).map_err(Error::io("move", path))
}

/// Enters what sealed packs hold into the blob index, where it is not: after the index was lost, and what
/// a crash kept from it. Until then dedupe misses, and lies never.
pub(super) fn refill_blobs(root: &Path, ledger: &Ledger, blobs: &BlobIndex, stop: &AtomicBool) {
    for (pack, _) in ledger.all() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if blobs.covers(pack) {
            continue;
        }
        let path = root.join(pack.object_name());
        match LocalPack::open(&path).and_then(|local| read_index(&local, pack)) {
            Ok(index) => {
                for entry in index.entries {
                    blobs.insert(entry.hash, entry.location(pack));
                }
                blobs.pack_complete(pack);
            }
            Err(error) => {
                tracing::warn!(error = %error.chain(), "the blobs of a pack are not entered: they are stored again when met");
            }
        }
    }
    if blobs.wants_flush()
        && let Err(error) = blobs.flush()
    {
        tracing::warn!(error = %error.chain(), "the blob index could not be written");
    }
}
