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
                min: 64 << 10,
                avg: 256 << 10,
                max: 1 << 20,
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
mod tests;
