//! Pack files: written once, read by record, sealed, verified, punched.

pub mod buffer;
pub mod ledger;
pub mod punch;
pub mod read;
pub mod recover;
pub mod store;
pub mod sync;
pub mod verify;
pub mod writer;
