//! The bytes of a pack by themselves: what is written comes back, what is not is refused.

use proptest::prelude::*;

use super::*;
use crate::chunk::{self, Codec};
use crate::types::{BlobHash, SessionId};

fn pack_id() -> PackId {
    PackId::new(SessionId(*b"session!"), 1)
}

/// What a writer does: the bytes before the index, and the entries. A pad follows each blob whose
/// number is in `synced`.
fn unsealed(blobs: &[Vec<u8>], synced: &[usize]) -> (Vec<u8>, Vec<IndexEntry>) {
    let mut pack = PackHeader {
        volume: [7; 16],
        id: pack_id(),
        created_ns: 1,
    }
    .encode()
    .to_vec();
    let mut entries = Vec::new();
    let mut scratch = Vec::new();
    for (no, blob) in blobs.iter().enumerate() {
        let offset = u32::try_from(pack.len()).unwrap();
        let (codec, stored) = chunk::encode(blob, &mut scratch);
        let header = RecordHeader::new(
            chunk::hash(blob),
            codec,
            blob.len().try_into().unwrap(),
            stored,
        )
        .unwrap();
        pack.extend(header.encode(pack_id(), offset));
        pack.extend(stored);
        pack.resize((offset + record_len(header.stored_len)) as usize, 0);
        entries.push(IndexEntry::of(&header, offset));
        if synced.contains(&no) {
            pad(&mut pack);
        }
    }
    pad(&mut pack);
    (pack, entries)
}

fn pad(pack: &mut Vec<u8>) {
    let offset = u32::try_from(pack.len()).unwrap();
    if !offset.is_multiple_of(BLOCK_LEN) {
        pack.extend(pad_mark(pack_id(), offset));
        pack.resize(block_up(offset) as usize, 0);
    }
}

fn sealed(blobs: &[Vec<u8>], synced: &[usize]) -> (Vec<u8>, Vec<IndexEntry>) {
    let (mut pack, entries) = unsealed(blobs, synced);
    let tail = encode_index(pack_id(), u32::try_from(pack.len()).unwrap(), &entries).unwrap();
    pack.extend(tail);
    (pack, entries)
}

/// Blobs that do not compress, so that offsets are easy to reason about.
fn noise(no: u32, len: usize) -> Vec<u8> {
    let hashes =
        (0..).flat_map(|n: u32| chunk::hash(&[no.to_le_bytes(), n.to_le_bytes()].concat()).0);
    hashes.take(len).collect()
}

/// The blobs a scan of `bytes` finds whole.
fn whole(bytes: &[u8]) -> Vec<BlobHash> {
    let records = Scanner::new(pack_id(), bytes).filter_map(|found| match found {
        Found::Record { header, stored, .. } => {
            let plain = chunk::decode(header.codec, stored, header.plain_len).unwrap();
            assert_eq!(
                chunk::hash(&plain),
                header.hash,
                "a scan never shows wrong bytes"
            );
            Some(header.hash)
        }
        _ => None,
    });
    records.collect()
}

fn names(blobs: &[Vec<u8>]) -> Vec<BlobHash> {
    blobs.iter().map(|blob| chunk::hash(blob)).collect()
}

#[test]
fn a_header_comes_back_and_a_changed_one_is_refused() {
    let header = PackHeader {
        volume: [3; 16],
        id: pack_id(),
        created_ns: u64::MAX,
    };
    let block = header.encode();
    assert_eq!(PackHeader::decode(&block), Ok(header));
    for at in [0, 9, 20, 40, 50, 2000, 4095] {
        let mut changed = block;
        changed[at] ^= 1;
        assert!(PackHeader::decode(&changed).is_err(), "byte {at}");
    }
    assert!(PackHeader::decode(&block[..4095]).is_err());
}

#[test]
fn a_record_counts_only_where_it_was_written() {
    let header = RecordHeader::new(chunk::hash(b"tide"), Codec::Raw, 4, b"tide").unwrap();
    let bytes = header.encode(pack_id(), 4096);
    assert_eq!(RecordHeader::decode(pack_id(), 4096, &bytes), Ok(header));
    assert!(
        RecordHeader::decode(pack_id(), 4104, &bytes).is_err(),
        "a misdirected write"
    );
    let other = PackId::new(SessionId(*b"session!"), 2);
    assert!(
        RecordHeader::decode(other, 4096, &bytes).is_err(),
        "a block of another pack"
    );
}

#[test]
fn lengths_no_writer_means_are_refused_before_anything_is_allocated() {
    let new = |codec, plain_len, stored: &[u8]| {
        RecordHeader::new(BlobHash([0; 32]), codec, plain_len, stored)
    };
    assert!(new(Codec::Raw, 5, b"tide").is_err());
    assert!(
        new(Codec::Lz4, 3, b"tide").is_err(),
        "stored longer than plain"
    );
    assert!(new(Codec::Lz4, chunk::BLOB_LEN_MAX + 1, b"tide").is_err());
    assert!(new(Codec::Lz4, chunk::BLOB_LEN_MAX, b"tide").is_ok());
}

#[test]
fn what_a_later_version_may_write_is_refused_by_name() {
    let refused = |at: usize, what: &str| {
        let header = RecordHeader::new(chunk::hash(b"tide"), Codec::Raw, 4, b"tide").unwrap();
        let mut bytes = header.encode(pack_id(), 4096);
        bytes[at] = 9;
        let crc = place_crc(pack_id(), 4096, &bytes[..84]);
        bytes[84..].copy_from_slice(&crc.to_le_bytes());
        let reason = RecordHeader::decode(pack_id(), 4096, &bytes).unwrap_err();
        assert!(reason.contains(what), "{reason}");
    };
    refused(4, "flags");
    refused(6, "codec");
    refused(7, "cipher");
}

#[test]
fn a_scan_passes_over_pads_and_stops_at_the_index() {
    let blobs: Vec<_> = (0..5)
        .map(|no| noise(no, 700 * (no as usize + 1)))
        .collect();
    let (pack, entries) = sealed(&blobs, &[0, 2]);
    let found: Vec<_> = Scanner::new(pack_id(), &pack).collect();
    assert_eq!(found.len(), 6, "{found:?}");
    assert_eq!(whole(&pack), names(&blobs));
    let index_offset = block_up(entries[4].end());
    assert_eq!(
        found[5],
        Found::Index {
            offset: index_offset
        }
    );
    assert_eq!(
        decode_index(pack_id(), index_offset, &pack[index_offset as usize..]),
        Ok(entries)
    );
}

#[test]
fn the_trailer_leads_to_the_index() {
    let (pack, entries) = sealed(&[noise(1, 100), noise(2, 200)], &[]);
    let trailer = Trailer::decode(pack_id(), pack.len() as u64, &pack).unwrap();
    assert_eq!(trailer.records, 2);
    assert_eq!(trailer.pack_len as usize, pack.len());
    let index = &pack[trailer.index_offset as usize..][..trailer.index_len as usize];
    assert_eq!(crc32c::crc32c(index), trailer.index_crc);
    assert_eq!(
        decode_index(pack_id(), trailer.index_offset, index),
        Ok(entries)
    );

    let longer = [pack.clone(), vec![0; 64]].concat();
    assert!(Trailer::decode(pack_id(), longer.len() as u64, &longer).is_err());
    assert!(Trailer::decode(pack_id(), pack.len() as u64 + 4096, &pack).is_err());
    let other = PackId::new(SessionId(*b"session!"), 2);
    assert!(Trailer::decode(other, pack.len() as u64, &pack).is_err());
}

#[test]
fn an_index_whose_entries_overlap_or_leave_the_pack_is_refused() {
    let (_, entries) = sealed(&[noise(1, 100), noise(2, 200)], &[]);
    let decode = |entries: &[IndexEntry]| {
        let bytes = encode_index(pack_id(), 8192, entries).unwrap();
        decode_index(pack_id(), 8192, &bytes)
    };
    assert!(decode(&entries).is_ok());
    let with = |change: &dyn Fn(&mut IndexEntry)| {
        let mut entries = entries.clone();
        change(&mut entries[1]);
        decode(&entries)
    };
    assert!(
        with(&|entry| entry.offset -= 8).is_err(),
        "across the first record"
    );
    assert!(
        with(&|entry| entry.offset += 4).is_err(),
        "not at a multiple of eight"
    );
    assert!(
        with(&|entry| entry.offset = 8192 - 8).is_err(),
        "into the index"
    );
    assert!(
        with(&|entry| entry.offset = u32::MAX - 7).is_err(),
        "beyond everything"
    );
    assert!(
        with(&|entry| entry.plain_len += 1).is_err(),
        "raw, with two lengths"
    );
}

#[test]
fn records_behind_a_damaged_stretch_are_found_again() {
    let blobs: Vec<_> = (0..6).map(|no| noise(no, 3000)).collect();
    let (pack, entries) = sealed(&blobs, &[3]);
    // From within record 1 over the header of record 2.
    let begin = entries[1].offset as usize + 500;
    let end = entries[2].offset as usize + 90;
    for filling in [0xff, 0x00, 0x93] {
        let mut damaged = pack.clone();
        damaged[begin..end].fill(filling);
        let mut expected = names(&blobs);
        expected.drain(1..3);
        assert_eq!(whole(&damaged), expected, "filled with {filling:#x}");
        let broken = Scanner::new(pack_id(), &damaged)
            .any(|found| matches!(found, Found::Broken { header, .. } if header.hash == chunk::hash(&blobs[1])));
        assert!(broken, "the blob with a sound header is named");
        let passed_over: u32 = Scanner::new(pack_id(), &damaged)
            .filter_map(|found| match found {
                Found::Damage { offset, len } | Found::Zeros { offset, len } => {
                    assert!(offset >= entries[2].offset && offset + len <= entries[3].offset);
                    Some(len)
                }
                _ => None,
            })
            .sum();
        assert_eq!(passed_over, entries[3].offset - entries[2].offset);
    }
}

#[test]
fn a_pack_kept_as_a_blob_is_never_mistaken_for_records_of_the_pack_around_it() {
    let (inner, _) = sealed(&[noise(1, 500), noise(2, 500)], &[0]);
    // Raw, so that the inner pack's records stand at multiples of eight, and the header destroyed, so
    // that the scan has to look for the next one within the payload.
    let header = RecordHeader::new(
        chunk::hash(&inner),
        Codec::Raw,
        inner.len().try_into().unwrap(),
        &inner,
    )
    .unwrap();
    let mut outer = PackHeader {
        volume: [7; 16],
        id: pack_id(),
        created_ns: 1,
    }
    .encode()
    .to_vec();
    outer.extend(header.encode(pack_id(), BLOCK_LEN));
    outer.extend(&inner);
    outer[BLOCK_LEN as usize + 20] ^= 1;
    assert_eq!(whole(&outer), []);
}

#[test]
fn preallocated_and_punched_blocks_are_zeros_and_not_damage() {
    let blobs = [noise(1, 9000), noise(2, 9000), noise(3, 100)];
    let (mut pack, entries) = unsealed(&blobs, &[]);
    let (begin, end) = (
        block_up(entries[0].offset + 1),
        entries[2].offset - entries[2].offset % BLOCK_LEN,
    );
    pack[begin as usize..end as usize].fill(0);
    pack.resize(pack.len() + 50_000, 0);
    let found: Vec<_> = Scanner::new(pack_id(), &pack).collect();
    assert!(
        matches!(found[0], Found::Broken { absent: true, .. }),
        "{:?}",
        found[0]
    );
    assert!(matches!(
        found[found.len() - 1],
        Found::Zeros { len: 50_000, .. }
    ));
    assert_eq!(whole(&pack), [chunk::hash(&blobs[2])]);
}

#[test]
fn zeros_count_as_a_hole_only_when_they_fill_their_part_of_a_block() {
    let mut bytes = vec![1; 3 * 4096];
    assert!(!zero_block(100, &bytes));
    bytes[4096 - 100..8192 - 101].fill(0);
    assert!(!zero_block(100, &bytes), "one byte of the block is there");
    bytes[8192 - 101] = 0;
    assert!(zero_block(100, &bytes));
    assert!(
        zero_block(4096 - 8, &[0, 0, 0, 0, 0, 0, 0, 0, 1]),
        "the part before a boundary"
    );
    assert!(!zero_block(0, &[]));
}

#[test]
fn a_pack_cut_anywhere_shows_the_records_before_the_cut() {
    let blobs: Vec<_> = (0..4).map(|no| noise(no, 900)).collect();
    let (pack, entries) = sealed(&blobs, &[1]);
    for len in 0..pack.len() {
        let before = entries.iter().take_while(|entry| {
            entry.offset as usize + (RECORD_HEADER_LEN + entry.stored_len) as usize <= len
        });
        assert_eq!(
            whole(&pack[..len]),
            names(&blobs)[..before.count()],
            "cut at {len}"
        );
        assert!(Trailer::decode(pack_id(), len as u64, &pack[..len]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_blobs_come_back_by_scan_and_by_index(
        blobs in proptest::collection::vec(proptest::collection::vec(0u8..3, 0..6000), 0..12),
        synced in proptest::collection::vec(0usize..12, 0..4),
    ) {
        let (pack, entries) = sealed(&blobs, &synced);
        prop_assert_eq!(whole(&pack), names(&blobs));
        let trailer = Trailer::decode(pack_id(), pack.len() as u64, &pack).unwrap();
        let index = &pack[trailer.index_offset as usize..];
        prop_assert_eq!(decode_index(pack_id(), trailer.index_offset, index), Ok(entries));
    }

    #[test]
    fn arbitrary_bytes_never_panic_a_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
        let _ = PackHeader::decode(&bytes);
        let _ = RecordHeader::decode(pack_id(), 4096, &bytes);
        let _ = Trailer::decode(pack_id(), bytes.len() as u64, &bytes);
        let _ = decode_index(pack_id(), 4096, &bytes);
        prop_assert_eq!(whole(&bytes), []);
    }

    #[test]
    fn overwritten_stretches_lose_records_and_never_change_one(
        wounds in proptest::collection::vec((4096usize..24_000, 1usize..3000, any::<u8>()), 1..4),
    ) {
        let blobs: Vec<_> = (0..8).map(|no| noise(no, 1500 + no as usize)).collect();
        let (mut pack, entries) = sealed(&blobs, &[2, 5]);
        for &(at, len, filling) in &wounds {
            let end = (at + len).min(pack.len());
            pack[at.min(end)..end].fill(filling);
        }
        let untouched = entries.iter().filter(|entry| {
            let (begin, end) = (entry.offset as usize, entry.end() as usize);
            wounds.iter().all(|&(at, len, _)| at + len <= begin || at >= end)
        });
        let found = whole(&pack);
        for entry in untouched {
            prop_assert!(found.contains(&entry.hash), "a record outside of all wounds is found");
        }
    }

    #[test]
    fn an_index_of_arbitrary_entries_never_panics(body in proptest::collection::vec(any::<u8>(), 48 * 3)) {
        // Behind a correct checksum, as only a broken or hostile writer would make it.
        let mut bytes = b"\x93idx\x03\0\0\0\x30\0\0\0".to_vec();
        bytes.resize(56, 0);
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend(place_crc(pack_id(), 65_536, &bytes).to_le_bytes());
        bytes.extend(&body);
        for entry in decode_index(pack_id(), 65_536, &bytes).unwrap_or_default() {
            prop_assert!(entry.end() <= 65_536);
        }
    }
}
