//! The engine's one door.

pub mod account;
pub mod extents;
pub mod namespace;
pub mod tree;
