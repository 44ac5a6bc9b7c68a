//! The engine's one door.

pub mod account;
pub mod archive;
pub mod commit;
pub mod dirty;
pub mod extents;
pub mod files;
pub mod health;
pub mod namespace;
pub mod settings;
pub mod tree;
