//! How much of what is packed dies before its epoch closes: what compaction before upload could spare. Measurements
//! for docs/decisions/0014; real programs on a real mount.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{Place, close};
use tidefs::format::inode::{Inode, decode_extents};
use tidefs::format::keys::Kind;
use tidefs::format::segment::BlockCache;
use tidefs::fuse::{MountOptions, mount};
use tidefs::pack::read::{LocalPack, read_index};
use tidefs::types::{BlobHash, PackId, SessionId};
use tidefs::volume::archive::Archive;

/// Every record that any kept moment refers to.
fn referenced(root: &Path) -> HashSet<(PackId, BlobHash)> {
    let identity = tidefs::volume::init::read_identity(root).unwrap();
    let cache = Arc::new(BlockCache::new(32 << 20));
    let archive = Archive::open(root, identity.uuid().unwrap(), SessionId([0; 8]), cache).unwrap();
    let mut live = HashSet::new();
    for segment in archive.newest().view.segments() {
        for entry in segment.range(&[], Bound::Unbounded) {
            let entry = entry.unwrap();
            let Some(value) = entry.value else { continue };
            let extents = match entry.key.get(3) {
                Some(kind) if *kind == Kind::Inode as u8 => Inode::decode(&value).unwrap().extents,
                Some(kind) if *kind == Kind::Extents as u8 => decode_extents(&value).unwrap(),
                _ => continue,
            };
            live.extend(
                extents
                    .iter()
                    .map(|extent| (extent.location.pack, extent.blob)),
            );
        }
    }
    live
}

fn packs_of(root: &Path) -> HashSet<PathBuf> {
    let shards = fs::read_dir(root.join("items")).unwrap();
    let files = shards.flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

/// Bytes of packs but `before`, of what is referenced in them, and of packs of which less than half is.
fn tell(what: &str, root: &Path, before: &HashSet<PathBuf>) {
    let live = referenced(root);
    let mut packs: HashMap<PackId, (u64, u64)> = HashMap::new();
    for path in packs_of(root).difference(before) {
        let pack = PackId::parse(path.file_stem().unwrap().to_str().unwrap()).unwrap();
        let index = read_index(&LocalPack::open(path).unwrap(), pack).unwrap();
        let (all, used) = packs.entry(pack).or_default();
        for entry in &index.entries {
            let len = u64::from(entry.end() - entry.offset);
            *all += len;
            *used += u64::from(live.contains(&(pack, entry.hash))) * len;
        }
    }
    let (all, used) = packs
        .values()
        .fold((0, 0), |(all, used), (a, u)| (all + a, used + u));
    let sparse = packs.values().filter(|(all, used)| used * 2 < *all);
    let (sparse_count, spared) =
        sparse.fold((0, 0), |(n, len), (all, used)| (n + 1, len + all - used));
    let whole = packs
        .values()
        .filter(|(all, used)| *used == 0 && *all > 0)
        .count();
    println!(
        "{what}: {} packs, {:.1} MB of records, {:.0} % dead; under half live: {sparse_count} packs, \
         compaction spares {:.1} MB ({:.0} %); wholly dead: {whole}",
        packs.len(),
        all as f64 / 1e6,
        (all - used) as f64 * 100.0 / all as f64,
        spared as f64 / 1e6,
        spared as f64 * 100.0 / all as f64,
    );
}

/// Runs a shell script in an account of a mounted volume, closes one epoch behind it, and tells.
fn measure(what: &str, prepare: &str, script: &str) {
    let place = Place::with(tidefs::volume::settings::Settings {
        reserve_bytes: 0,
        epoch_interval_secs: 3600,
        ..Default::default()
    });
    let volume = place.open();
    let mountpoint = place.dir.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let mounted = mount(volume.clone(), &mountpoint, &MountOptions::default()).unwrap();
    fs::create_dir(mountpoint.join("a")).unwrap();
    let run = |script: &str| {
        let status = Command::new("bash")
            .args(["-ec", script])
            .current_dir(mountpoint.join("a"))
            .status()
            .unwrap();
        assert!(status.success());
    };
    run(prepare);
    volume.close_epoch(None).unwrap();
    let before = packs_of(&place.path());
    run(script);
    volume.close_epoch(None).unwrap();
    mounted.unmount(false).unwrap();
    mounted.wait_unmounted().unwrap();
    close(volume);
    tell(what, &place.path(), &before);
}

#[test]
#[ignore = "a measurement: needs root, /dev/fuse and sqlite3, and takes minutes"]
fn measure_what_dies_within_an_epoch() {
    let table = "sqlite3 db 'pragma journal_mode=MODE; create table t(k integer primary key, v text); \
                 with recursive n(i) as (select 1 union all select i+1 from n where i<100000) \
                 insert into t select i, hex(randomblob(60)) from n;' >/dev/null";
    let updates = "for i in $(seq COUNT); do \
                   echo \"update t set v=hex(randomblob(60)) where k=abs(random()) % 100000;\"; done | sqlite3 db";
    for (mode, name) in [
        ("delete", "sqlite, rollback journal"),
        ("wal", "sqlite, write-ahead log"),
    ] {
        for count in ["300", "3000"] {
            let what = format!("{name}, {count} commits in the epoch");
            measure(
                &what,
                &table.replace("MODE", mode),
                &updates.replace("COUNT", count),
            );
        }
    }
    let paged = "dd if=/dev/urandom of=f bs=1M count=64 status=none; sync f";
    let pages = "for i in $(seq 4000); do dd if=/dev/urandom of=f bs=8k count=1 seek=$((RANDOM % 8192)) \
                 conv=notrunc,fsync status=none; done";
    measure(
        "8 KiB pages, each synced, of a file of 64 MiB",
        paged,
        pages,
    );
    measure(
        "a log, 2000 lines of 1 KiB, each synced",
        ":",
        "for i in $(seq 2000); do \
        head -c 1024 /dev/urandom | dd of=log oflag=append conv=notrunc,fsync status=none; done",
    );
    measure(
        "a tree copied as rsync does",
        ":",
        "for d in 1 2 3; do cp -a /usr/include t.tmp; rm -rf t; mv t.tmp t; done",
    );
    measure(
        "files of 1 MiB written and removed",
        ":",
        "for i in $(seq 200); do \
        head -c 1048576 /dev/urandom >tmp; sync tmp; rm tmp; done",
    );
}
