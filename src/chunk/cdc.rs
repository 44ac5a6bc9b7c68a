//! Where a chunk ends: content-defined chunking after FastCDC (Xia et al., USENIX ATC 2016 and IEEE
//! TPDS 2020) with normalized chunking level 2.
//!
//! A cut depends only on the volume's parameters, the chunk's own bytes and whether it starts in the
//! head of its file, so equal stretches of two files fall into equal chunks wherever they stand.
//! The cut points are format: `docs/format/pack.md` says how anyone can recompute them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::BLOB_LEN_MAX;
use crate::error::{Error, Result};

/// Bounds of one size class of chunks, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkSizes {
    /// No chunk is shorter, save the last of a range.
    pub min: u32,
    /// Where the strict mask gives way to the loose one; a power of two.
    pub avg: u32,
    /// No chunk is longer.
    pub max: u32,
}

/// The name of the cut rule. A volume with a name this version does not know does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ChunkRule {
    /// The one of this file.
    #[serde(rename = "fastcdc-gear64-nc2")]
    FastCdcGear64Nc2,
}

/// Everything that decides the cut points of a volume. Chosen at init, kept in `volume.json`, fixed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkerParams {
    /// The rule these numbers are for.
    pub rule: ChunkRule,
    /// Makes the cut points of each volume its own, so that chunk lengths do not betray known files.
    /// Sixteen hex digits in JSON, since many readers of JSON round large numbers.
    #[serde(with = "hex_seed")]
    pub seed: u64,
    /// Chunks that start below this offset of their file use `head`, all others `tail`: small files
    /// and file starts dedupe finely, large files do not drown the metadata in extents.
    pub head_len: u64,
    /// Sizes in the head of a file.
    pub head: ChunkSizes,
    /// Sizes behind it.
    pub tail: ChunkSizes,
}

impl ChunkerParams {
    /// The default sizes with this seed.
    pub fn new(seed: u64) -> ChunkerParams {
        ChunkerParams {
            rule: ChunkRule::FastCdcGear64Nc2,
            seed,
            head_len: 16 << 20,
            head: ChunkSizes {
                min: 16 << 10,
                avg: 64 << 10,
                max: 256 << 10,
            },
            tail: ChunkSizes {
                min: 128 << 10,
                avg: 512 << 10,
                max: 2 << 20,
            },
        }
    }
}

/// Cuts. Cheap to share, 4 KiB of table, no state between calls.
#[derive(Clone)]
pub struct Chunker {
    params: ChunkerParams,
    head: Cutter,
    tail: Cutter,
    gear: Box<[u64; 256]>,
    /// `gear`, each entry shifted left by one.
    gear_doubled: Box<[u64; 256]>,
}

impl fmt::Debug for Chunker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunker")
            .field("params", &self.params)
            .finish_non_exhaustive()
    }
}

/// One size class, ready for the loop.
#[derive(Clone)]
struct Cutter {
    min: usize,
    avg: usize,
    max: usize,
    strict: u64,
    loose: u64,
}

/// How many mask bits normalized chunking adds before the average length and takes away after it.
const NORMALIZATION: u32 = 2;
/// Start of the gear table's generator, before the volume's seed is mixed in: "tidefs\0\1" as
/// little-endian bytes. Any constant would do; this one says whose table it is.
const GEAR_SEED: u64 = u64::from_le_bytes(*b"tidefs\0\x01");
/// Below this a mask would look at fewer bytes than a cut rule should, and extents cost more than
/// they describe.
const CHUNK_LEN_MIN: u32 = 256;

impl Chunker {
    /// A chunker for a volume with these parameters; refuses parameters that make no sense, as a
    /// damaged `volume.json` might hold.
    pub fn new(params: &ChunkerParams) -> Result<Chunker> {
        let gear = Box::new(gear_table(params.seed));
        Ok(Chunker {
            params: params.clone(),
            head: Cutter::new("head", params.head)?,
            tail: Cutter::new("tail", params.tail)?,
            gear_doubled: Box::new(gear.map(|entry| entry << 1)),
            gear,
        })
    }

    /// Length of the chunk that starts at `window[0]`, which is byte `file_offset` of its file.
    ///
    /// `end` says that the dirty range ends with the window, and so does its last chunk. Without it
    /// the answer is `None` until the window holds the longest possible chunk ([`Chunker::max_len`]):
    /// so a cut never depends on how the bytes arrived. `None` for an empty window.
    pub fn cut(&self, file_offset: u64, window: &[u8], end: bool) -> Option<usize> {
        let cutter = self.cutter(file_offset);
        let window = match window.get(..cutter.max) {
            Some(longest) => longest,
            None if end && !window.is_empty() => window,
            None => return None,
        };
        let Some((_, behind_min)) = window.split_at_checked(cutter.min) else {
            return Some(window.len());
        };
        let (before_avg, behind_avg) =
            behind_min.split_at(behind_min.len().min(cutter.avg - cutter.min));
        let print = match self.roll(0, before_avg, cutter.strict) {
            Ok(at) => return Some(cutter.min + at),
            Err(print) => print,
        };
        match self.roll(print, behind_avg, cutter.loose) {
            Ok(at) => Some(cutter.avg + at),
            Err(_) => Some(window.len()),
        }
    }

    /// The longest chunk that may start at `file_offset`: the window [`Chunker::cut`] wants.
    pub fn max_len(&self, file_offset: u64) -> usize {
        self.cutter(file_offset).max
    }

    fn cutter(&self, file_offset: u64) -> &Cutter {
        if file_offset < self.params.head_len {
            &self.head
        } else {
            &self.tail
        }
    }

    /// Rolls the fingerprint over `bytes`; `Ok` is how many were taken when it first had no bit of
    /// `mask`, `Err` the fingerprint behind the last byte.
    ///
    /// Two bytes a step, as in the 2020 paper: with bit 63 in no mask, the fingerprint after the first
    /// of them may be tested one place further left, which saves a shift in the chain that bounds the
    /// speed. The cut points are those of the plain rule; a test holds them together.
    fn roll(&self, mut print: u64, bytes: &[u8], mask: u64) -> Result<usize, u64> {
        let (gear, doubled) = (&*self.gear, &*self.gear_doubled);
        let mask_doubled = mask << 1;
        let (groups, rest) = bytes.as_chunks::<8>();
        let mut taken = 0;
        macro_rules! pair {
            ($first:expr, $second:expr, $at:expr) => {
                print = (print << 2).wrapping_add(doubled[usize::from($first)]);
                if print & mask_doubled == 0 {
                    return Ok(taken + $at + 1);
                }
                print = print.wrapping_add(gear[usize::from($second)]);
                if print & mask == 0 {
                    return Ok(taken + $at + 2);
                }
            };
        }
        for &[a, b, c, d, e, f, g, h] in groups {
            pair!(a, b, 0);
            pair!(c, d, 2);
            pair!(e, f, 4);
            pair!(g, h, 6);
            taken += 8;
        }
        for &byte in rest {
            print = (print << 1).wrapping_add(gear[usize::from(byte)]);
            taken += 1;
            if print & mask == 0 {
                return Ok(taken);
            }
        }
        Err(print)
    }
}

impl Cutter {
    fn new(class: &str, sizes: ChunkSizes) -> Result<Cutter> {
        let ChunkSizes { min, avg, max } = sizes;
        let ordered = CHUNK_LEN_MIN <= min && min < avg && avg < max && max <= BLOB_LEN_MAX;
        if !ordered || !avg.is_power_of_two() {
            return Err(Error::Refused(format!(
                "chunk sizes of the {class} ({min}, {avg}, {max}) must grow from {CHUNK_LEN_MIN} to at most \
                 {BLOB_LEN_MAX}, with a power of two as the average: volume.json is damaged or from elsewhere"
            )));
        }
        let bits = avg.ilog2();
        Ok(Cutter {
            min: min as usize,
            avg: avg as usize,
            max: max as usize,
            strict: high_mask(bits + NORMALIZATION),
            loose: high_mask(bits - NORMALIZATION),
        })
    }
}

/// The `bits` highest bits below bit 63: bit k of a gear fingerprint depends on the last k + 1 bytes
/// only, so the highest ones see the widest window; bit 63 stays free for [`Chunker::roll`].
fn high_mask(bits: u32) -> u64 {
    (u64::MAX >> 1) & !(u64::MAX >> (bits + 1))
}

/// 256 outputs of SplitMix64 (Steele, Lea, Flood 2014; the constants are the published ones).
fn gear_table(seed: u64) -> [u64; 256] {
    let mut state = GEAR_SEED ^ seed;
    std::array::from_fn(|_| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// The seed as sixteen hex digits.
mod hex_seed {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature is serde's"
    )]
    pub(super) fn serialize<S: Serializer>(seed: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{seed:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        crate::types::parse_hex(&text)
            .map(u64::from_be_bytes)
            .ok_or_else(|| D::Error::custom("the chunker seed must be 16 lower-case hex digits"))
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(behind_the_head, Some(669_961));
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
            let secs = begin.elapsed().as_secs_f64();
            println!(
                "cut: {:.0} MB/s, {count} chunks",
                file.len() as f64 / secs / 1e6
            );
        }
    }
}
