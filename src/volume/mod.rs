//! The engine's one door.
pub mod tree;
