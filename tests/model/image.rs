//! What a killed process leaves: all files of a directory as they were at one moment.
//!
//! Files are copied one after the other while others may change. Afterwards everything is read again: if
//! nothing differs from its copy, all of it was as copied between the end of the copying and the beginning
//! of the reading, since no file of the engine takes back a change.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

const ATTEMPTS: usize = 200;

/// Copies `from` to `to`, without what `is_left_out` names by its path below `from`.
pub fn copy(from: &Path, to: &Path, is_left_out: &dyn Fn(&Path) -> bool) {
    for _ in 0..ATTEMPTS {
        if to.exists() {
            fs::remove_dir_all(to).unwrap();
        }
        if try_copy(from, to, is_left_out).is_ok_and(|still| still) {
            return;
        }
    }
    panic!("{} never stood still", from.display());
}

/// Whether it stood still.
fn try_copy(from: &Path, to: &Path, is_left_out: &dyn Fn(&Path) -> bool) -> io::Result<bool> {
    let listed = list(from, is_left_out)?;
    fs::create_dir_all(to)?;
    for (path, is_dir) in &listed {
        if *is_dir {
            fs::create_dir(to.join(path))?;
        } else {
            copy_file(&from.join(path), &to.join(path))?;
        }
    }
    for (path, is_dir) in &listed {
        if !is_dir && !is_same(&from.join(path), &to.join(path))? {
            return Ok(false);
        }
    }
    Ok(list(from, is_left_out)? == listed)
}

/// Paths below `root` and whether each is a directory; parents first.
pub fn list(root: &Path, is_left_out: &dyn Fn(&Path) -> bool) -> io::Result<Vec<(PathBuf, bool)>> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        let mut entries = fs::read_dir(root.join(&dir))?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = dir.join(entry.file_name());
            if is_left_out(&path) {
                continue;
            }
            let is_dir = entry.file_type()?.is_dir();
            if is_dir {
                waiting.push(path.clone());
            }
            found.push((path, is_dir));
        }
    }
    Ok(found)
}

/// The parts of a file that are not holes: packs and journals are allocated far ahead.
fn for_each_part(
    file: &mut File,
    mut visit: impl FnMut(u64, &[u8]) -> io::Result<bool>,
) -> io::Result<bool> {
    let mut at = 0;
    let mut buffer = Vec::new();
    loop {
        let start = match lseek(&*file, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        };
        let end = lseek(&*file, start, Whence::SeekHole)?;
        file.seek(SeekFrom::Start(start.cast_unsigned()))?;
        buffer.resize(usize::try_from(end - start).unwrap(), 0);
        file.read_exact(&mut buffer)?;
        if !visit(start.cast_unsigned(), &buffer)? {
            return Ok(false);
        }
        at = end;
    }
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut copy = File::create(to)?;
    copy.set_len(source.metadata()?.len())?;
    for_each_part(&mut source, |start, bytes| {
        copy.seek(SeekFrom::Start(start))?;
        copy.write_all(bytes)?;
        Ok(true)
    })?;
    Ok(())
}

fn is_same(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let covers = |of: &mut File, other: &mut File| {
        let mut buffer = Vec::new();
        for_each_part(of, |start, bytes| {
            buffer.resize(bytes.len(), 0);
            other.seek(SeekFrom::Start(start))?;
            other.read_exact(&mut buffer)?;
            Ok(buffer == bytes)
        })
    };
    Ok(covers(&mut a, &mut b)? && covers(&mut b, &mut a)?)
}
