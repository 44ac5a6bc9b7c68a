use super::*;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(len);
    out
}

fn cuts(chunker: &Chunker, file: &[u8]) -> Vec<usize> {
    let mut at = 0;
    let mut out = Vec::new();
    while let Some(len) = chunker.cut(at as u64, &file[at..], true) {
        at += len;
        out.push(at);
    }
    out
}

/// The rule as docs/format/pack.md words it, one byte at a time and nothing clever.
fn cut_by_the_book(params: &ChunkerParams, file_offset: u64, window: &[u8]) -> usize {
    let sizes = if file_offset < params.head_len {
        params.head
    } else {
        params.tail
    };
    let bits = sizes.avg.ilog2();
    let gear = gear_table(params.seed);
    let mut print = 0u64;
    for (at, &byte) in window
        .iter()
        .enumerate()
        .take(sizes.max as usize)
        .skip(sizes.min as usize)
    {
        print = (print << 1).wrapping_add(gear[usize::from(byte)]);
        let zeros = if at < sizes.avg as usize {
            bits + 2
        } else {
            bits - 2
        };
        if (print >> (63 - zeros)) & ((1 << zeros) - 1) == 0 {
            return at + 1;
        }
    }
    window.len().min(sizes.max as usize)
}

fn small(seed: u64) -> ChunkerParams {
    ChunkerParams {
        head_len: 20_000,
        head: ChunkSizes {
            min: 300,
            avg: 1024,
            max: 5001,
        },
        tail: ChunkSizes {
            min: 1001,
            avg: 4096,
            max: 16_000,
        },
        ..ChunkerParams::new(seed)
    }
}

#[test]
fn the_fast_loop_cuts_where_the_plain_rule_does() {
    for seed in 0..20 {
        let params = small(seed);
        let chunker = Chunker::new(&params).unwrap();
        let file = noise(200_000, seed + 99);
        let mut at = 0;
        while let Some(len) = chunker.cut(at as u64, &file[at..], true) {
            assert_eq!(
                len,
                cut_by_the_book(&params, at as u64, &file[at..]),
                "seed {seed}, byte {at}"
            );
            at += len;
        }
        assert_eq!(at, file.len());
    }
}

#[test]
fn the_gear_table_and_the_cut_points_are_the_ones_in_the_format_document() {
    let gear = gear_table(0x0123_4567_89ab_cdef);
    assert_eq!(
        (gear[0], gear[1], gear[255]),
        (
            0x873a_853b_e255_d91c,
            0x8fab_dfa1_7b73_8e73,
            0x18de_4bfa_4c76_456b
        )
    );
    let chunker = Chunker::new(&ChunkerParams::new(0x0123_4567_89ab_cdef)).unwrap();
    // The file is SHA-256 of the little-endian u32 numbers 0, 1, 2, ...: easy to make anywhere.
    let file: Vec<u8> = (0..32_768u32)
        .flat_map(|n| crate::chunk::hash(&n.to_le_bytes()).0)
        .collect();
    assert_eq!(
        cuts(&chunker, &file),
        [
            71_427, 145_470, 218_472, 299_120, 373_887, 447_688, 521_987, 629_130, 697_550,
            767_641, 835_052, 994_712, 1_048_576
        ]
    );
    let behind_the_head = chunker.cut(16 << 20, &file, true);
    assert_eq!(behind_the_head, Some(398_934));
}

#[test]
fn another_seed_cuts_elsewhere() {
    let file = noise(100_000, 3);
    let of = |seed| cuts(&Chunker::new(&small(seed)).unwrap(), &file);
    assert_ne!(of(1), of(2));
}

#[test]
fn chunks_behind_an_insertion_at_the_front_stay_the_same() {
    let file = noise(300_000, 5);
    let longer: Vec<u8> = b"inserted"
        .iter()
        .copied()
        .chain(file.iter().copied())
        .collect();
    // One size class, so that the insertion shifts no chunk into the other.
    let params = ChunkerParams {
        head_len: u64::MAX,
        ..small(9)
    };
    let chunker = Chunker::new(&params).unwrap();
    let before = cuts(&chunker, &file);
    let after: Vec<usize> = cuts(&chunker, &longer).iter().map(|at| at - 8).collect();
    let kept = before.iter().filter(|at| after.contains(at)).count();
    assert!(
        kept * 10 >= before.len() * 9,
        "{kept} of {} cuts survive",
        before.len()
    );
}

#[test]
fn a_cut_does_not_depend_on_how_the_bytes_arrive() {
    let chunker = Chunker::new(&small(4)).unwrap();
    let file = noise(6000, 8);
    let max_len = chunker.max_len(0);
    assert_eq!(
        chunker.cut(0, &file[..max_len - 1], false),
        None,
        "more bytes are needed"
    );
    assert_eq!(chunker.cut(0, &[], true), None);
    let whole = chunker.cut(0, &file, true);
    assert_eq!(chunker.cut(0, &file[..max_len], false), whole);
    assert_eq!(chunker.cut(0, &file, false), whole);
}

#[test]
fn lengths_stay_within_the_bounds_of_their_size_class() {
    let chunker = Chunker::new(&small(11)).unwrap();
    for file in [noise(150_000, 12), vec![0; 150_000], b"ab".repeat(75_000)] {
        let cuts = cuts(&chunker, &file);
        let mut begin = 0;
        for &end in &cuts {
            let (min, max) = if begin < 20_000 {
                (300, 5001)
            } else {
                (1001, 16_000)
            };
            assert!(end - begin <= max && (end - begin >= min || end == file.len()));
            begin = end;
        }
    }
    assert_eq!(
        chunker.cut(0, &[7; 300], true),
        Some(300),
        "the end of a range ends a chunk"
    );
    assert_eq!(chunker.cut(0, &[7], true), Some(1));
}

#[test]
fn parameters_survive_json_and_senseless_ones_are_refused() {
    let params = ChunkerParams::new(u64::MAX - 1);
    let json = serde_json::to_string(&params).unwrap();
    assert!(
        json.contains(r#""rule":"fastcdc-gear64-nc2","seed":"fffffffffffffffe""#),
        "{json}"
    );
    assert_eq!(
        serde_json::from_str::<ChunkerParams>(&json).unwrap(),
        params
    );
    assert!(serde_json::from_str::<ChunkerParams>(&json.replace("nc2", "nc3")).is_err());

    for (min, avg, max) in [
        (0, 64, 128),
        (512, 512, 1024),
        (512, 1000, 2048),
        (512, 2048, 1024),
        (512, 1024, BLOB_LEN_MAX + 1),
    ] {
        let mut params = ChunkerParams::new(1);
        params.tail = ChunkSizes { min, avg, max };
        assert!(Chunker::new(&params).is_err(), "{min} {avg} {max}");
    }
}

#[test]
#[ignore = "a measurement"]
fn measure_cutting() {
    let file = noise(256 << 20, 7);
    let chunker = Chunker::new(&ChunkerParams::new(1)).unwrap();
    for _ in 0..3 {
        let begin = std::time::Instant::now();
        let count = cuts(&chunker, &file).len();
        let mb_per_s = file.len() as u128 * 1000 / begin.elapsed().as_nanos().max(1);
        println!("cut: {mb_per_s} MB/s, {count} chunks");
    }
}
