use std::fs;

use super::super::testkit::{Stored, append, change, create, id, noise};
use super::*;
use crate::types::Uuid;

/// Evicted packs of eight records each in one backup path.
struct Place {
    root: tempfile::TempDir,
    ledger: Arc<Ledger>,
    packs: Vec<(PackId, PackIndex, Vec<Stored>, Vec<u8>)>,
}

const RECORD_LEN: usize = 20_000;

impl Place {
    fn new(count: u64) -> Option<Place> {
        let root = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Ledger::open(root.path(), Uuid([1; 16])).unwrap());
        let mut packs = Vec::new();
        for n in 0..count {
            let mut writer = create(root.path(), n);
            let blobs = (0..8).map(|no| noise(u32::try_from(n * 8 + no).unwrap(), RECORD_LEN));
            let stored: Vec<Stored> = blobs.map(|blob| append(&mut writer, blob)).collect();
            let sealed = writer.seal().unwrap();
            let path = root.path().join(id(n).object_name());
            let whole = fs::read(&path).unwrap();
            ledger.sealed(id(n), sealed.len).unwrap();
            ledger.uploaded(id(n), sealed.len, 1).unwrap();
            ledger.evicted(id(n)).unwrap();
            if let Err(error) = punch(&path, id(n), 0..u32::MAX) {
                println!("skipped: no holes here ({error})");
                return None;
            }
            let index = read_index(&LocalPack::open(&path).unwrap(), id(n)).unwrap();
            packs.push((id(n), index, stored, whole));
        }
        Some(Place {
            root,
            ledger,
            packs,
        })
    }

    fn cache(&self, bytes_max: u64) -> ReadCache {
        let cache = ReadCache::new(self.root.path(), Arc::clone(&self.ledger));
        cache.set_limits(ReadCacheLimits {
            bytes_max,
            free_bytes_min: 0,
        });
        cache
    }

    fn path(&self, n: usize) -> PathBuf {
        self.root.path().join(self.packs[n].0.object_name())
    }

    /// These records of pack `n` as they come from far away.
    fn fetched(&self, n: usize, records: std::ops::Range<usize>) -> Vec<Fetched> {
        let (_, _, stored, whole) = &self.packs[n];
        let one = |one: &Stored| {
            let begin = one.loc.offset as usize;
            Fetched {
                location: one.loc,
                blob: one.hash,
                bytes: Bytes::copy_from_slice(&whole[begin..begin + record_read_len(&one.loc)]),
            }
        };
        stored[records].iter().map(one).collect()
    }

    fn fill(&self, cache: &ReadCache, n: usize, records: std::ops::Range<usize>) -> Result<bool> {
        let (pack, index, ..) = &self.packs[n];
        cache.fill(*pack, index, &self.fetched(n, records))
    }

    /// Which records of pack `n` can be read here.
    fn here(&self, n: usize) -> Vec<usize> {
        let local = LocalPack::open(&self.path(n)).unwrap();
        let stored = self.packs[n].2.iter().enumerate();
        let here = stored.filter(|(_, one)| one.read(&local).unwrap() == one.plain());
        here.map(|(no, _)| no).collect()
    }
}

#[test]
fn records_come_back_to_where_they_were_and_nothing_else_changes() {
    let Some(place) = Place::new(1) else { return };
    let cache = place.cache(u64::MAX);
    assert!(place.fill(&cache, 0, 2..4).unwrap());
    assert_eq!(place.here(0), [2, 3]);
    assert!(place.fill(&cache, 0, 0..8).unwrap());
    assert_eq!(place.here(0).len(), 8);
    let (_, index, stored, whole) = &place.packs[0];
    let now = fs::read(place.path(0)).unwrap();
    let last = stored[7].loc.offset as usize + record_read_len(&stored[7].loc);
    assert!(now[..last] == whole[..last]);
    assert!(now[index.offset as usize..] == whole[index.offset as usize..]);
    let bytes = cache.bytes();
    assert!(
        (8 * RECORD_LEN as u64..9 * RECORD_LEN as u64).contains(&bytes),
        "{bytes}"
    );
    assert!(place.fill(&cache, 0, 0..8).unwrap());
    assert_eq!(cache.bytes(), bytes, "what is there is not counted twice");
    assert_eq!(cache.give_back(1), bytes);
    assert_eq!((cache.bytes(), place.here(0).len()), (0, 0));
}

#[test]
fn the_least_recently_used_pack_goes_first_and_the_budget_holds() {
    let Some(place) = Place::new(4) else { return };
    let pack_bytes = 9 * RECORD_LEN as u64;
    let cache = place.cache(2 * pack_bytes + pack_bytes / 2);
    assert!(place.fill(&cache, 0, 0..8).unwrap());
    assert!(place.fill(&cache, 1, 0..8).unwrap());
    cache.touch(place.packs[0].0);
    assert!(place.fill(&cache, 2, 0..8).unwrap());
    assert_eq!(
        (
            place.here(0).len(),
            place.here(1).len(),
            place.here(2).len()
        ),
        (8, 0, 8)
    );
    for n in [3, 1, 0, 2, 3] {
        assert!(place.fill(&cache, n, 0..8).unwrap());
        assert!(cache.bytes() <= 2 * pack_bytes + pack_bytes / 2);
    }
    cache.set_limits(ReadCacheLimits {
        bytes_max: pack_bytes,
        free_bytes_min: 0,
    });
    assert!(
        cache.bytes() <= pack_bytes && place.here(3).len() == 8,
        "a smaller budget"
    );
    let tight = place.cache(RECORD_LEN as u64);
    assert!(
        !place.fill(&tight, 0, 0..8).unwrap(),
        "more than all of the budget"
    );
    let full_disk = place.cache(u64::MAX);
    full_disk.set_limits(ReadCacheLimits {
        bytes_max: u64::MAX,
        free_bytes_min: u64::MAX,
    });
    assert!(
        !place.fill(&full_disk, 0, 0..8).unwrap(),
        "the disk is nearly full"
    );
}

#[test]
fn only_evicted_packs_are_filled_and_only_with_what_their_index_names() {
    let Some(place) = Place::new(2) else { return };
    let cache = place.cache(u64::MAX);
    let (pack, index, ..) = &place.packs[0];
    let empty = fs::read(place.path(0)).unwrap();
    let mut wrong = place.fetched(0, 0..1);
    let mut flipped = wrong[0].bytes.to_vec();
    flipped[5000] ^= 1;
    wrong[0].bytes = flipped.into();
    assert!(
        cache.fill(*pack, index, &wrong).is_err(),
        "damaged on the way"
    );
    let mut moved = place.fetched(0, 1..2);
    moved[0].location.offset = place.packs[0].2[0].loc.offset;
    assert!(
        cache.fill(*pack, index, &moved).is_err(),
        "another record's place"
    );
    assert!(
        cache
            .fill(*pack, &place.packs[1].1, &place.fetched(0, 0..1))
            .is_err()
    );
    assert!(fs::read(place.path(0)).unwrap() == empty);

    // Its only whole copy is here: not a byte is touched, whatever comes.
    place.ledger.unsent(*pack, index.pack_len).unwrap();
    assert!(!place.fill(&cache, 0, 0..8).unwrap());
    assert_eq!((cache.give_back(u64::MAX), place.here(0).len()), (0, 0));
}

#[test]
fn a_torn_fill_is_absent_or_damaged_and_is_mended_by_the_next() {
    let Some(place) = Place::new(1) else { return };
    let cache = place.cache(u64::MAX);
    assert!(place.fill(&cache, 0, 0..8).unwrap());
    let one = place.packs[0].2[3].loc;
    let begin = one.offset as usize;
    // Pages that never reached the disk, and half a page: as a power cut leaves them.
    for torn in [
        begin..begin + 4096,
        begin + 8192..begin + 12_288,
        begin + 700..begin + 1400,
    ] {
        change(&place.path(0), |bytes| bytes[torn.clone()].fill(0));
        let local = LocalPack::open(&place.path(0)).unwrap();
        match place.packs[0].2[3].read(&local) {
            Ok(super::super::read::RecordRead::Absent) | Err(Error::Corrupt { .. }) => {}
            other => panic!("{torn:?} was served: {other:?}"),
        }
        assert!(place.fill(&cache, 0, 3..4).unwrap());
        assert!(place.here(0).contains(&3), "{torn:?}");
    }
}

#[test]
fn after_a_restart_the_blocks_tell_what_is_there_and_what_came_first_goes_first() {
    let Some(place) = Place::new(3) else { return };
    let before = place.cache(u64::MAX);
    for n in [1, 2, 0] {
        assert!(place.fill(&before, n, 0..8).unwrap());
    }
    let times = [3_u64, 1, 2].map(std::time::Duration::from_secs);
    for (n, time) in times.into_iter().enumerate() {
        let file = fs::File::options().write(true).open(place.path(n)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + time).unwrap();
    }
    let cache = place.cache(u64::MAX);
    assert_eq!(cache.bytes(), 0);
    cache.measure(&AtomicBool::new(false));
    assert_eq!(cache.bytes(), before.bytes());
    cache.give_back(1);
    assert_eq!((place.here(1).len(), place.here(2).len()), (0, 8));
    let small = place.cache(10 * RECORD_LEN as u64);
    small.measure(&AtomicBool::new(false));
    assert_eq!(
        (place.here(2).len(), place.here(0).len()),
        (0, 8),
        "down to the budget"
    );
}
