//! Accounts from a source tree: SmartScan.

pub mod accounts;
pub mod compare;
pub mod globs;
pub mod guard;
pub mod identity;
pub mod look;
pub mod names;
pub mod report;
pub mod source;
pub mod throttle;
pub mod watch;
