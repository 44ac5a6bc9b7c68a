//! A directory of this machine, brought into a volume with all that it is, without a mount.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use nix::unistd::Whence;
use tidefs::types::{FileKind, Ino, Timestamp};
use tidefs::volume::Volume;
use tidefs::volume::tree::{Caller, NewNode, OpenMode, SetAttr, SetTime, Tree, XattrMode};

use crate::common::write;

const WRITE: OpenMode = OpenMode {
    read: false,
    write: true,
    truncate: false,
    sync: false,
};

/// Makes `name` in the root of `volume` the same as the directory `from`.
pub fn load(volume: &Volume, name: &str, from: &Path) -> Ino {
    let mut links = HashMap::new();
    item(volume, (Ino::ROOT, name.as_bytes()), from, &mut links)
}

fn kind_of(meta: &fs::Metadata) -> FileKind {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => FileKind::Dir,
        () if kind.is_symlink() => FileKind::Symlink,
        () if kind.is_fifo() => FileKind::Fifo,
        () if kind.is_socket() => FileKind::Socket,
        () if kind.is_char_device() => FileKind::CharDevice,
        () if kind.is_block_device() => FileKind::BlockDevice,
        () => FileKind::File,
    }
}

fn packed(device: u64) -> u32 {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    u32::try_from((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)).unwrap()
}

fn item(
    volume: &Volume,
    (parent, name): (Ino, &[u8]),
    from: &Path,
    links: &mut HashMap<(u64, u64), Ino>,
) -> Ino {
    let meta = fs::symlink_metadata(from).unwrap();
    let kind = kind_of(&meta);
    let identity = (meta.dev(), meta.ino());
    if kind != FileKind::Dir
        && let Some(known) = links.get(&identity)
    {
        volume.link(*known, parent, name).unwrap();
        return *known;
    }
    let target = if kind == FileKind::Symlink {
        fs::read_link(from).unwrap().into_os_string()
    } else {
        "".into()
    };
    let node = NewNode {
        kind,
        mode: 0o600,
        rdev: packed(meta.rdev()),
        target: target.as_bytes(),
    };
    let owner = Caller {
        uid: meta.uid(),
        gid: meta.gid(),
    };
    let ino = volume.create(parent, name, node, owner).unwrap().ino;
    links.insert(identity, ino);
    match kind {
        FileKind::Dir => {
            for entry in fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                item(
                    volume,
                    (ino, entry.file_name().as_bytes()),
                    &entry.path(),
                    links,
                );
            }
        }
        FileKind::File => content(volume, ino, from, meta.len()),
        _ => {}
    }
    let xattrs = std::process::Command::new("getfattr")
        .args(["-h", "-d", "-m", "-", "-e", "hex", "--absolute-names"])
        .arg(from)
        .output();
    for (name, value) in parsed(&xattrs.map(|output| output.stdout).unwrap_or_default()) {
        volume
            .setxattr(ino, name.as_bytes(), &value, XattrMode::Any)
            .unwrap();
    }
    let time = |secs, nanos: i64| {
        SetTime::At(Timestamp {
            secs,
            nanos: u32::try_from(nanos).unwrap(),
        })
    };
    let change = SetAttr {
        mode: Some(u16::try_from(meta.mode() & 0o7777).unwrap()),
        atime: Some(time(meta.atime(), meta.atime_nsec())),
        mtime: Some(time(meta.mtime(), meta.mtime_nsec())),
        ..SetAttr::default()
    };
    volume.setattr(ino, change).unwrap();
    ino
}

/// `name=0x..` lines.
fn parsed(listing: &[u8]) -> Vec<(String, Vec<u8>)> {
    let text = String::from_utf8_lossy(listing);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (name, hex) = line.split_once("=0x").or_else(|| line.split_once('='))?;
            let bytes = (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16));
            Some((name.to_owned(), bytes.map(Result::unwrap).collect()))
        })
        .collect()
}

/// Only what is no hole.
fn content(volume: &Volume, ino: Ino, from: &Path, len: u64) {
    volume.open(ino, WRITE).unwrap();
    let file = fs::File::open(from).unwrap();
    let end = i64::try_from(len).unwrap();
    let mut at = 0;
    while at < end {
        let Ok(start) = nix::unistd::lseek(&file, at, Whence::SeekData) else {
            break;
        };
        at = nix::unistd::lseek(&file, start, Whence::SeekHole).unwrap();
        let mut bytes = vec![0; usize::try_from(at - start).unwrap()];
        let start = u64::try_from(start).unwrap();
        file.read_exact_at(&mut bytes, start).unwrap();
        write(volume, ino, start, &bytes);
    }
    let change = SetAttr {
        size: Some(len),
        ..SetAttr::default()
    };
    volume.setattr(ino, change).unwrap();
    volume.release(ino, WRITE).unwrap();
}
