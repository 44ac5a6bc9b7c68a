//! Bytes of a file <-> blobs: where a chunk ends, what it is called, how it is stored.
//!
//! Pure functions of their arguments: no I/O, no locks, no clock, no randomness. The cut points, the
//! blob names and the codecs are format (`docs/format/pack.md`): what they answer today they must
//! answer for ever, or dedupe against older packs is lost.

pub mod cdc;
pub mod codec;
pub mod hash;

pub use cdc::{ChunkSizes, Chunker, ChunkerParams};
pub use codec::{Codec, decode, encode};
pub use hash::hash;

/// The longest plain blob any reader has to accept. Twice the largest chunk of the default sizes, so
/// that a volume may be given larger chunks without a new format; and small enough that a length from
/// a damaged header costs one modest allocation at worst (invariant 13).
pub const BLOB_LEN_MAX: u32 = 4 << 20;
