//! A damaged journal: what is whole up to the damage stays, the rest goes to `lost+found`, with a list of
//! what was lost there.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::frame::BLOCK_LEN;
use crate::format::keys::{self, Changes, Kind};
use crate::journal::{self, replay};
use crate::maintain::fix::Fix;
use crate::types::{Epoch, Lsn};
use crate::volume::archive::newest_local_record;
use crate::volume::settings::{rewrite, sync_dir};

/// Names listed in a README; a journal that lost more is lost enough.
const NAMES_MAX: usize = 10_000;

impl Fix<'_> {
    /// Cuts the journal at the first damage, again until it can be replayed.
    pub(super) fn journal(&mut self) -> Result<()> {
        let dir = self.root.join(journal::DIR);
        // Each cut leaves less behind: as many cuts as files, at most.
        let cuts_max = replay::files(&dir)?.len() + 1;
        for _ in 0..cuts_max {
            let covered = match newest_local_record(self.root) {
                Ok(record) => {
                    record.map_or_else(Default::default, |record| (record.epoch, record.last_lsn()))
                }
                Err(_) => (Epoch(u64::MAX), Lsn(0)),
            };
            match replay::replay(&dir, self.volume.0, Epoch(0), covered) {
                Ok(_) => return Ok(()),
                Err(Error::Corrupt {
                    object,
                    offset,
                    reason,
                }) => self.cut(&dir, Path::new(&object), offset, &reason)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Keeps the frames of the file at `path` before `offset`; everything behind it, later files included,
    /// would be changes on top of ones that are lost.
    fn cut(&mut self, dir: &Path, path: &Path, offset: u64, reason: &str) -> Result<()> {
        let files = replay::files(dir)?;
        let at = files.iter().position(|(file, _)| file == path);
        let Some((_, behind)) = at.and_then(|at| files.get(at..)?.split_first()) else {
            return Err(Error::Refused(format!("{} is gone", path.display())));
        };
        let aside = self.done.aside("journal")?;
        let text = self.told(path, offset, reason, behind);
        rewrite(&aside.join("README"), text.as_bytes())?;
        // The newest first: a stop in between leaves a shorter journal and never a gap.
        for (later, _) in behind.iter().rev() {
            self.done.set_aside(later, "journal")?;
        }
        if offset <= BLOCK_LEN as u64 {
            self.done.set_aside(path, "journal")?;
        } else {
            let copy = aside.join(path.file_name().unwrap_or_default());
            fs::copy(path, &copy).map_err(Error::io("copy", path))?;
            let copied = File::open(&copy).map_err(Error::io("open", &copy))?;
            copied.sync_all().map_err(Error::io("sync", &copy))?;
            sync_dir(&aside)?;
            let file = File::options()
                .write(true)
                .open(path)
                .map_err(Error::io("open", path))?;
            file.set_len(offset).map_err(Error::io("truncate", path))?;
            file.sync_all().map_err(Error::io("sync", path))?;
        }
        sync_dir(dir)?;
        let done = format!(
            "cut at byte {offset}; what was behind it is in {}",
            aside.display()
        );
        self.done.note(path.display().to_string(), done);
        Ok(())
    }

    /// What a person needs to know of the part that is taken out.
    fn told(&self, path: &Path, offset: u64, reason: &str, behind: &[(PathBuf, Epoch)]) -> String {
        let mut text = format!(
            "tidefs check --fix took this out of the journal of {}.\n\n\
             {} is damaged at byte {offset}. What was committed before it is in the volume; the changes in it and \
             behind it were acknowledged, and are not.\n\n{reason}\n\nWhole commits behind the damage changed these \
             names (the number in front is the directory's inode):\n\n",
            self.root.display(),
            path.display(),
        );
        let mut names = BTreeSet::new();
        let mut frames = 0_u64;
        let mut visit = |changes: &Changes| {
            frames += 1;
            names.extend(changes.keys().filter_map(|key| name_of(key)));
        };
        let others = behind.iter().map(|(later, _)| (later.as_path(), 0));
        for (file, from) in std::iter::once((path, offset)).chain(others) {
            // A list as long as can be had: the files themselves are kept.
            let _ = replay::whole_frames(file, from, &mut visit);
        }
        for name in names.iter().take(NAMES_MAX) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name}");
        }
        let _ = writeln!(text, "\n{} names in {frames} whole commits.", names.len());
        text
    }
}

/// A directory entry's directory and name.
fn name_of(key: &[u8]) -> Option<String> {
    let ino = keys::ino_of(key)?;
    let is_entry = key.get(3) == Some(&(Kind::DirEntry as u8));
    is_entry.then(|| format!("{ino}  {}", keys::name_of(key).escape_ascii()))
}
