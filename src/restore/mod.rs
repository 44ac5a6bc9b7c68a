//! Getting it back: the items of a moment, written into a directory; and deleted ones, back in place.
//!
//! In reading order: `report` (what is told), `name` and `dest` (nothing is written outside the destination, whatever
//! the volume says), `target` (the destination as a whole), `plan` (what there is, in batches), `existing` (what stands
//! there already), `dirs`, `leaf`, `write`, `attributes` and `links` (one item), `run` (all of them, in the order in which packs are read), `undelete`. What was typed, and where the
//! moment comes from, may not enter.

mod attributes;
mod dest;
mod dirs;
mod existing;
mod leaf;
mod links;
mod name;
mod plan;
mod report;
mod run;
mod target;
mod undelete;
mod write;

pub use report::{Named, RestoreReport};
pub use run::{Options, Overwrite, SoFar, restore};
pub use undelete::{Undelete, undelete};
