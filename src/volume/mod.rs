//! The engine's one door.

pub mod account;
pub mod dirty;
pub mod extents;
pub mod files;
pub mod namespace;
pub mod tree;
