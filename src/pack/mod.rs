//! Pack files: written once, read by record, sealed, verified, punched, refilled.
//!
//! `store` is the door; what is on the external volume is `ledger`'s to remember, and going there is
//! not this room's business.

mod buffer;
pub mod ledger;
pub mod punch;
pub mod read;
pub mod recover;
pub mod refill;
pub mod store;
pub mod sync;
#[cfg(test)]
mod testkit;
pub mod verify;
pub mod writer;
