//! Accounts from a source tree: SmartScan.
//!
//! In reading order: `source` (what is backed up, and how it maps to accounts), `accounts`, `globs`, `identity`, `skips`
//! (what is found there, and what is not entered), `run` (a scan from beginning to report), `plan` (which accounts),
//! `dirs` and `compare` (name by name, by what `stat` tells), `files` and `read` (what has to be read), `put` (into the
//! volume), `account`, `goners`, `guard` (what is gone, and when that is believed), `report`.
//! `watch` gathers where something changed.
//! `look`, `names` and `listing` are how both sides are read, `queue` and `throttle` how fast.
//!
//! Everything enters the volume through [`crate::volume::feed`]. Whoever watches a source has [`source::list`], and
//! [`run::Scope::Dirty`] for the directories in which something changed: then nothing else is looked at.

pub mod account;
pub mod accounts;
pub mod compare;
pub mod dirs;
pub mod dirty;
pub mod files;
pub mod globs;
pub mod goners;
pub mod guard;
pub mod identity;
pub mod listing;
pub mod look;
pub mod names;
pub mod plan;
pub mod put;
pub mod queue;
pub mod read;
pub mod report;
pub mod run;
pub mod skips;
pub mod source;
pub mod throttle;
pub mod watch;
