use super::super::read::{RecordRead, read_index, read_record};
use super::super::testkit::{NOW_NS, VOLUME, append, create, id, noise, on_mounted, text};
use super::super::verify::verify_pack;
use super::*;
use crate::chunk;

/// A writer whose every write or sync fails, depending on the device.
fn on_device(device: &str) -> PackWriter {
    let open = || File::options().read(true).write(true).open(device).unwrap();
    PackWriter::on(
        open(),
        LocalPack {
            file: open(),
            path: device.into(),
        },
        id(1),
    )
}

#[test]
fn what_was_appended_can_be_read_before_it_is_written_and_after_it_is_sealed() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = create(root.path(), 1);
    let mut stored = Vec::new();
    for no in 0..30 {
        // Together above the buffer's capacity, so that some records lie half in the file.
        stored.push(append(&mut writer, noise(no, 100_000 + no as usize)));
        stored.push(append(&mut writer, text(no, 5000)));
        if no == 20 {
            writer.flush_and_pad().unwrap().sync().unwrap();
        }
        for one in &stored {
            assert_eq!(
                one.read(&writer).unwrap(),
                one.plain(),
                "record at {}",
                one.loc.offset
            );
        }
    }
    let across = stored.iter().filter(|one| {
        let capacity = u32::try_from(AlignedBuffer::CAPACITY).unwrap();
        one.loc.offset / capacity != (one.loc.offset + one.loc.stored_len) / capacity
    });
    assert!(
        across.count() > 0,
        "the test is about records across two writes"
    );

    let reader = writer.reader();
    let sealed = writer.seal().unwrap();
    assert_eq!(sealed.records.len(), 60);
    assert_eq!(reader.len().unwrap(), u64::from(sealed.len));
    assert_eq!(read_index(&*reader, id(1)).unwrap().entries, sealed.records);
    for one in &stored {
        assert_eq!(one.read(&*reader).unwrap(), one.plain());
    }
    let report = verify_pack(&*reader, id(1), true).unwrap();
    assert!(
        report.sealed && report.intact == sealed.records,
        "{report:?}"
    );
}

#[test]
fn bytes_once_synced_are_never_written_again() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(id(1).object_name());
    let mut writer = create(root.path(), 1);
    let mut synced: Vec<u8> = Vec::new();
    for no in 0..6 {
        append(&mut writer, noise(no, 3000));
        let ticket = writer.flush_and_pad().unwrap();
        ticket.sync().unwrap();
        assert!(ticket.len().is_multiple_of(BLOCK_LEN));
        let now = fs::read(&path).unwrap();
        assert!(now.starts_with(&synced));
        synced = now[..ticket.len() as usize].to_vec();
    }
    writer.seal().unwrap();
    assert!(fs::read(&path).unwrap().starts_with(&synced));
}

#[test]
fn the_golden_pack_of_version_1_is_what_is_written_today() {
    let golden = include_bytes!("../../../tests/golden/pack-v1.bin");
    let root = tempfile::tempdir().unwrap();
    let mut writer =
        PackWriter::create(root.path(), VOLUME, id(1), NOW_NS, PackIo::default()).unwrap();
    let sea = b"sea ".repeat(64);
    let noise: Vec<u8> = (0..157u32)
        .flat_map(|n| chunk::hash(&n.to_le_bytes()).0)
        .take(5000)
        .collect();
    let block = b"\x4fsea \x04\x00\xe4\x50 sea ";
    let first = writer
        .append(chunk::hash(b"tide"), Codec::Raw, 4, b"tide")
        .unwrap();
    let second = writer
        .append(chunk::hash(&sea), Codec::Lz4, 256, block)
        .unwrap();
    writer.flush_and_pad().unwrap().sync().unwrap();
    let third = writer
        .append(chunk::hash(&noise), Codec::Raw, 5000, &noise)
        .unwrap();
    writer.seal().unwrap();
    let written = fs::read(root.path().join(id(1).object_name())).unwrap();
    assert!(
        written == golden,
        "the bytes of a pack changed: that is a new version of the format"
    );

    let pack = super::super::read::MemoryPack {
        name: "golden".into(),
        bytes: Bytes::from_static(golden),
    };
    for (loc, plain) in [(first, b"tide".to_vec()), (second, sea), (third, noise)] {
        let read = read_record(&pack, &loc, chunk::hash(&plain)).unwrap();
        assert_eq!(read, RecordRead::Plain(plain.into()));
    }
    assert_eq!(verify_pack(&pack, id(1), true).unwrap().intact.len(), 3);
}

#[test]
fn a_full_pack_refuses_and_its_sealed_length_stays_within_the_target() {
    for len in [chunk::BLOB_LEN_MAX, 300] {
        let root = tempfile::tempdir().unwrap();
        let mut writer = create(root.path(), 1);
        let blob = noise(1, len as usize);
        let hash = chunk::hash(&blob);
        while !writer.is_full(len) {
            writer.append(hash, Codec::Raw, len, &blob).unwrap();
        }
        assert!(matches!(
            writer.append(hash, Codec::Raw, len, &blob),
            Err(Error::Refused(_))
        ));
        writer.flush_and_pad().unwrap().sync().unwrap();
        let sealed = writer.seal().unwrap();
        assert!(sealed.len <= PACK_LEN_TARGET);
        assert!(
            sealed.len > PACK_LEN_TARGET - len - 3 * BLOCK_LEN,
            "{} leaves too much unused",
            sealed.len
        );
    }
}

#[test]
fn after_a_failed_write_nothing_more_is_taken_but_what_was_can_be_read() {
    let mut writer = on_device("/dev/full");
    let one = append(&mut writer, text(1, 500));
    assert!(matches!(
        writer.flush_and_pad(),
        Err(Error::Io { op: "write", .. })
    ));
    assert!(matches!(
        writer.append(one.hash, Codec::Raw, 4, b"tide"),
        Err(Error::Poisoned(_))
    ));
    assert!(matches!(writer.flush_and_pad(), Err(Error::Poisoned(_))));
    assert_eq!(one.read(&writer).unwrap(), one.plain());
    assert!(matches!(writer.seal(), Err(Error::Poisoned(_))));
}

#[test]
fn after_a_failed_sync_nothing_more_is_taken_and_no_sync_is_tried_again() {
    // Takes every write and knows no fsync.
    let mut writer = on_device("/dev/null");
    append(&mut writer, text(1, 500));
    let first = writer.flush_and_pad().unwrap();
    let second = writer.flush_and_pad().unwrap();
    assert!(matches!(first.sync(), Err(Error::Io { op: "sync", .. })));
    assert!(matches!(first.sync(), Err(Error::Poisoned(_))));
    assert!(matches!(second.sync(), Err(Error::Poisoned(_))));
    assert!(matches!(
        writer.append(id_hash(), Codec::Raw, 4, b"tide"),
        Err(Error::Poisoned(_))
    ));
}

fn id_hash() -> BlobHash {
    chunk::hash(b"tide")
}

#[test]
fn a_ticket_drawn_while_another_is_unredeemed_is_not_a_no_op() {
    let mut writer = on_device("/dev/null");
    append(&mut writer, text(1, 500));
    let _unredeemed = writer.flush_and_pad().unwrap();
    let second = writer.flush_and_pad().unwrap();
    assert!(
        second.sync().is_err(),
        "it must try to sync, which fails here"
    );
}

#[test]
fn a_ticket_for_what_is_durable_already_does_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = create(root.path(), 1);
    append(&mut writer, text(1, 500));
    writer.flush_and_pad().unwrap().sync().unwrap();
    let mut again = writer.flush_and_pad().unwrap();
    again.file = Arc::new(File::open("/dev/null").unwrap());
    again.sync().unwrap();
    append(&mut writer, text(2, 500));
    let mut more = writer.flush_and_pad().unwrap();
    more.file = Arc::clone(&again.file);
    assert!(more.sync().is_err(), "something was appended");
}

#[test]
fn the_space_of_a_whole_pack_is_allocated_at_once_and_given_back_when_sealed() {
    use std::os::unix::fs::MetadataExt;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(id(1).object_name());
    let mut writer = create(root.path(), 1);
    let allocated = || fs::metadata(&path).unwrap().blocks() * 512;
    if allocated() < u64::from(PACK_LEN_TARGET) {
        println!("skipped: this file system does not allocate");
        return;
    }
    append(&mut writer, noise(1, 10_000));
    writer.seal().unwrap();
    assert!(
        allocated() < 100_000,
        "{} bytes stay allocated",
        allocated()
    );
}

#[test]
fn a_full_disk_is_an_answer_and_leaves_no_file() {
    on_mounted("tmpfs", "size=8m", |root| {
        let created = PackWriter::create(root, VOLUME, id(1), NOW_NS, PackIo::default());
        assert!(matches!(created, Err(Error::NoSpace { path }) if path == root));
        assert!(!root.join(id(1).object_name()).exists());
    });
}

#[test]
fn a_file_system_that_refuses_direct_writes_and_allocation_gets_neither() {
    on_mounted("ramfs", "", |root| {
        let mut writer = create(root, 1);
        assert!(!writer.direct_io(), "ramfs has no O_DIRECT");
        let stored = [
            append(&mut writer, text(1, 5000)),
            append(&mut writer, noise(2, 2_000_000)),
        ];
        writer.flush_and_pad().unwrap().sync().unwrap();
        let reader = writer.reader();
        writer.seal().unwrap();
        for one in stored {
            assert_eq!(one.read(&*reader).unwrap(), one.plain());
        }
    });
}

#[test]
fn direct_writes_are_used_where_they_work_and_only_when_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let kind = nix::sys::statfs::statfs(root.path())
        .unwrap()
        .filesystem_type();
    let direct = create(root.path(), 1).direct_io();
    if kind == nix::sys::statfs::EXT4_SUPER_MAGIC {
        assert!(direct);
    } else {
        println!("skipped: the temporary directory is not on ext4 (O_DIRECT: {direct})");
    }
    let buffered =
        PackWriter::create(root.path(), VOLUME, id(2), NOW_NS, PackIo { direct: false }).unwrap();
    assert!(!buffered.direct_io());
}

#[test]
fn a_pack_id_is_never_used_twice() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = create(root.path(), 1);
    let one = append(&mut writer, text(1, 500));
    let again = PackWriter::create(root.path(), VOLUME, id(1), NOW_NS, PackIo::default());
    assert!(matches!(again, Err(Error::Io { .. })));
    writer.seal().unwrap();
    let pack = LocalPack::open(&root.path().join(id(1).object_name())).unwrap();
    assert_eq!(
        one.read(&pack).unwrap(),
        one.plain(),
        "the failed attempt did not touch it"
    );
}

#[test]
fn only_a_pack_without_records_can_be_discarded() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(id(1).object_name());
    create(root.path(), 1).discard().unwrap();
    assert!(!path.exists());
    let mut writer = create(root.path(), 1);
    append(&mut writer, text(1, 500));
    assert!(matches!(writer.discard(), Err(Error::Refused(_))));
    assert!(path.exists());
}

#[test]
fn a_blob_with_impossible_lengths_is_refused_without_harm() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = create(root.path(), 1);
    assert!(matches!(
        writer.append(id_hash(), Codec::Raw, 5, b"tide"),
        Err(Error::Refused(_))
    ));
    assert!(matches!(
        writer.append(id_hash(), Codec::Lz4, u32::MAX, b"tide"),
        Err(Error::Refused(_))
    ));
    assert_eq!(writer.pack_len(), BLOCK_LEN);
    append(&mut writer, text(1, 500));
}

/// `cargo test -p tidefs --lib pack::writer::tests::measure -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn measure_hashing_compressing_and_appending() {
    let report = |what: &str, bytes: usize, begin: std::time::Instant| {
        println!(
            "{what}: {} MB/s",
            bytes as u128 * 1000 / begin.elapsed().as_nanos().max(1)
        );
    };
    let blobs: Vec<Vec<u8>> = (0..320).map(|no| noise(no, 64 << 10)).collect();
    let texts: Vec<Vec<u8>> = (0..320)
        .map(|no| include_bytes!("../writer.rs").repeat(8)[no..65_536 + no].to_vec())
        .collect();
    let total = 320 << 16;
    let begin = std::time::Instant::now();
    let hashes: Vec<_> = blobs.iter().map(|blob| chunk::hash(blob)).collect();
    report("sha-256", total, begin);
    let mut scratch = Vec::new();
    for (what, blobs) in [("noise", &blobs), ("source text", &texts)] {
        let begin = std::time::Instant::now();
        let stored: usize = blobs
            .iter()
            .map(|blob| chunk::encode(blob, &mut scratch).1.len())
            .sum();
        report(
            &format!("lz4 encode of {what} to {} %", stored * 100 / total),
            total,
            begin,
        );
    }
    let encoded: Vec<Vec<u8>> = texts
        .iter()
        .map(|blob| chunk::encode(blob, &mut scratch).1.to_vec())
        .collect();
    let begin = std::time::Instant::now();
    for stored in &encoded {
        chunk::decode(Codec::Lz4, stored, 65_536).unwrap();
    }
    report("lz4 decode", total, begin);
    for (direct, root) in [
        (true, tempfile::tempdir().unwrap()),
        (false, tempfile::tempdir().unwrap()),
    ] {
        let begin = std::time::Instant::now();
        let mut packs = Vec::new();
        for no in 0..8 {
            packs.push(
                PackWriter::create(root.path(), VOLUME, id(no), NOW_NS, PackIo { direct }).unwrap(),
            );
        }
        println!("create: {:?} each", begin.elapsed() / 8);
        let begin = std::time::Instant::now();
        for pack in &mut packs {
            for (blob, hash) in blobs.iter().zip(&hashes) {
                pack.append(*hash, Codec::Raw, 65_536, blob).unwrap();
            }
        }
        report(
            &format!("append, direct {direct}, without sync"),
            total * 8,
            begin,
        );
        for pack in packs {
            pack.seal().unwrap();
        }
        report(
            &format!("append, direct {direct}, sealed and synced"),
            total * 8,
            begin,
        );
    }
    let root = tempfile::tempdir().unwrap();
    let mut writer = create(root.path(), 1);
    let begin = std::time::Instant::now();
    for blob in &blobs {
        writer
            .append(chunk::hash(blob), Codec::Raw, 65_536, blob)
            .unwrap();
        writer.flush_and_pad().unwrap().sync().unwrap();
    }
    println!(
        "append of 64 KiB with sync: {:?} each",
        begin.elapsed() / 320
    );
}
