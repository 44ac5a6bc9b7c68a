//! Local metadata: the overlay that operations see, the index below it, and views over segments.

pub mod overlay;
pub mod view;
pub mod blobs;
