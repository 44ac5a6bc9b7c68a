//! pack

mod buffer;
pub mod punch;
pub mod read;
pub mod recover;
pub mod sync;
#[cfg(test)]
mod testkit;
pub mod verify;
pub mod writer;
