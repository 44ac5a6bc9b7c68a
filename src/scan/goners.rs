//! Names that are gone from the source, kept until all of their account is seen.
//!
//! Only then is it known what was only moved, and whether so much is gone that it is likelier a fault. They are few; if
//! they are many they go to a file without a name in the backup path, so that memory is bounded.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::types::Ino;

/// Bytes of names in memory.
const HELD_MAX: usize = 4 << 20;

/// A name that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goner {
    /// The directory.
    pub parent: Ino,
    /// What it stood for: if it stands for something else by now, it is not gone.
    pub ino: Ino,
    /// The name.
    pub name: Vec<u8>,
}

/// All of them of one account.
#[derive(Debug)]
pub struct Goners {
    dir: PathBuf,
    held: Vec<u8>,
    spilled: Option<File>,
    count: u64,
}

impl Goners {
    /// None. The backup path has room for a file.
    pub fn new(dir: &Path) -> Goners {
        Goners {
            dir: dir.to_owned(),
            held: Vec::new(),
            spilled: None,
            count: 0,
        }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// One more.
    pub fn add(&mut self, goner: &Goner) -> Result<()> {
        let len = u8::try_from(goner.name.len()).unwrap_or(u8::MAX);
        self.held.extend_from_slice(&goner.parent.0.to_le_bytes());
        self.held.extend_from_slice(&goner.ino.0.to_le_bytes());
        self.held.push(len);
        self.held.extend_from_slice(&goner.name);
        self.count += 1;
        if self.held.len() >= HELD_MAX {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        let path = self.dir.join("scan.tmp");
        let file = match &mut self.spilled {
            Some(file) => file,
            none => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(true);
                let file = options.open(&path).map_err(Error::io("create", &path))?;
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                none.insert(file)
            }
        };
        file.write_all(&self.held)
            .map_err(Error::io("write", &path))?;
        self.held.clear();
        Ok(())
    }

    /// Each of them, in the order in which they were found.
    pub fn each(&mut self, visit: &mut dyn FnMut(Goner) -> Result<()>) -> Result<()> {
        if let Some(file) = &mut self.spilled {
            let path = self.dir.join("scan.tmp");
            file.seek(SeekFrom::Start(0))
                .map_err(Error::io("read", &path))?;
            let mut source = BufReader::new(&mut *file);
            while let Some(goner) = take(&mut source).map_err(Error::io("read", &path))? {
                visit(goner)?;
            }
        }
        let mut rest = self.held.as_slice();
        while let Some(goner) = take(&mut rest).map_err(Error::io("read", &self.dir))? {
            visit(goner)?;
        }
        Ok(())
    }

    /// All are done with.
    pub fn clear(&mut self) {
        *self = Goners::new(&self.dir);
    }
}

fn take(source: &mut impl Read) -> std::io::Result<Option<Goner>> {
    let mut head = [0; 17];
    match source.read(&mut head[..1])? {
        0 => return Ok(None),
        _ => source.read_exact(&mut head[1..])?,
    }
    let [parent @ .., _, _, _, _, _, _, _, _, _] = head;
    let [_, _, _, _, _, _, _, _, ino @ .., len] = head;
    let mut name = vec![0; usize::from(len)];
    source.read_exact(&mut name)?;
    Ok(Some(Goner {
        parent: Ino(u64::from_le_bytes(parent)),
        ino: Ino(u64::from_le_bytes(ino)),
        name,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_of_them_than_memory_is_given_come_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut goners = Goners::new(dir.path());
        let goner = |n: u64| Goner {
            parent: Ino(n),
            ino: Ino(n << 40),
            name: format!("{n:0>200}").into_bytes(),
        };
        let count = 3 * (HELD_MAX as u64) / 200;
        for n in 0..count {
            goners.add(&goner(n)).unwrap();
        }
        assert!(goners.held.len() < HELD_MAX && goners.spilled.is_some());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for _ in 0..2 {
            let mut next = 0;
            goners
                .each(&mut |found| {
                    assert_eq!(found, goner(next));
                    next += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!((next, goners.count()), (count, count));
        }
    }
}
