//! Bytes to values and back. No I/O and no locks here, so that everything can be fuzzed.

pub mod bloom;
pub mod frame;
pub mod inode;
pub mod keys;
pub mod pack;
pub mod record;
pub mod segment;
pub mod wire;
