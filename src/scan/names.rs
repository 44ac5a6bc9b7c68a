//! The names in a directory of the source, sorted, as many at a time as memory allows.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{RawDir, SeekFrom};

/// Names that are held at a time. A directory with more is read once for each so many.
pub const NAMES_MAX: usize = 200_000;
/// Bytes of a listing asked for at a time.
const BUFFER_LEN: usize = 64 << 10;

/// The least names of a directory above `after`, sorted, at most `count_max`; and whether there are more.
pub fn names_after(
    dir: impl AsFd,
    after: Option<&[u8]>,
    count_max: usize,
) -> io::Result<(Vec<Box<[u8]>>, bool)> {
    let dir = dir.as_fd();
    rustix::fs::seek(dir, SeekFrom::Start(0))?;
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_LEN];
    let mut listing = RawDir::new(dir, &mut buffer);
    let mut names: Vec<Box<[u8]>> = Vec::new();
    let mut has_more = false;
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let is_asked = after.is_none_or(|after| name > after);
        if name == b"." || name == b".." || !is_asked {
            continue;
        }
        names.push(name.into());
        if names.len() >= count_max.saturating_mul(2) {
            keep_least(&mut names, count_max);
            has_more = true;
        }
    }
    has_more |= names.len() > count_max;
    keep_least(&mut names, count_max);
    names.sort_unstable();
    // Some file systems list a name twice when a directory changes meanwhile.
    names.dedup();
    Ok((names, has_more))
}

fn keep_least(names: &mut Vec<Box<[u8]>>, count: usize) {
    if names.len() > count {
        names.select_nth_unstable(count);
        names.truncate(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_directory_is_read_in_parts_that_make_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        for n in 0..500_u32 {
            let name = format!("{:03}", n * 7919 % 1000);
            std::fs::write(dir.path().join(&name), b"").unwrap();
            expected.push(name.into_bytes().into_boxed_slice());
        }
        expected.sort();
        expected.dedup();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let (mut all, mut after, mut parts) = (Vec::new(), None::<Box<[u8]>>, 0);
        loop {
            let (names, has_more) = names_after(&fd, after.as_deref(), 60).unwrap();
            assert!(names.len() <= 60 && names.is_sorted());
            after = names.last().cloned();
            all.extend(names);
            parts += 1;
            if !has_more {
                break;
            }
        }
        assert_eq!(all, expected);
        assert_eq!(parts, expected.len().div_ceil(60));
    }
}
