//! Small files that are whole or absent, and directories that are really on the disk.
//!
//! What is known about the bytes belongs to the callers.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Puts `bytes` in the place of the file at `path`. After a crash it has the old content or the new.
pub(super) fn rewrite(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
    file.write_all(bytes)
        .map_err(Error::io("write", &temporary))?;
    file.sync_all().map_err(Error::io("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("rename", &temporary))?;
    sync_parent(path)
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    let file = File::open(dir).map_err(Error::io("open", dir))?;
    file.sync_all().map_err(Error::io("sync", dir))
}

/// Makes the name of `path` itself durable.
pub(super) fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// Makes every file and directory below `dir` durable, and `dir`.
///
/// A file that goes away meanwhile needs no sync.
pub(super) fn sync_tree(dir: &Path) -> Result<()> {
    visit_files(dir, &mut |path, _| match File::open(path) {
        Ok(file) => file.sync_all().map_err(Error::io("sync", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("open", path)(error)),
    })?;
    visit_dirs(dir)
}

/// Bytes that the files below `dir` take up.
pub(super) fn len_on_disk(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    const UNIT: u64 = 512;
    let mut len = 0;
    visit_files(dir, &mut |_, metadata| {
        len += metadata.blocks() * UNIT;
        Ok(())
    })?;
    Ok(len)
}

/// Takes `path` out of the way at once and then deletes it, so that half a deleted directory is never
/// met under its own name.
pub(super) fn discard_dir(path: &Path) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".discarded");
    let away = path.with_file_name(name);
    remove_dir(&away)?;
    match fs::rename(path, &away) {
        Ok(()) => remove_dir(&away),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("rename", path)(error)),
    }
}

/// Removes a directory, or whatever was put in its place.
fn remove_dir(path: &Path) -> Result<()> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        other => other,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

type FileVisit<'a> = dyn FnMut(&Path, &fs::Metadata) -> Result<()> + 'a;

fn visit_files(dir: &Path, visit: &mut FileVisit<'_>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => visit_files(&path, visit)?,
            Ok(metadata) => visit(&path, &metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("look at", &path)(error)),
        }
    }
    Ok(())
}

fn visit_dirs(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        if path.is_dir() {
            visit_dirs(&path)?;
        }
    }
    sync_dir(dir)
}
