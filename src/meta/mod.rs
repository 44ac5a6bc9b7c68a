//! Local metadata: the overlay that operations see, the index below it, and views over segments.

mod atomic;
pub mod base;
pub mod blobs;
pub mod index;
pub mod overlay;
pub mod view;
