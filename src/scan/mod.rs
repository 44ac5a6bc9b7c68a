//! Accounts from a source tree.

pub mod watch;
