//! format

pub mod bloom;
pub mod segment;
pub mod wire;
