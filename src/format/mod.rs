//! format

pub mod pack;
