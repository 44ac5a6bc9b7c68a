//! Looking after a volume: what is wrong with it, and putting it right. Nothing here is on the way of a
//! read or a write.

mod blobs;
pub mod check;
mod external;
pub mod fix;
pub mod fleet;
pub mod look;
mod packs;
pub mod take_over;
mod tree;
pub mod usage;

pub use check::{CheckOptions, CheckReport, Problem, check, rebuild_index};
pub use fix::{FixReport, Repair, fix};
