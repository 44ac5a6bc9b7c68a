//! The local write-ahead log of metadata changes: one file for each epoch, one frame for each commit.
//!
//! A frame is written after the packs it needs are synced and before anyone is told; an epoch's file is
//! dropped when its segment, its epoch record and the index's checkpoint are all durable (invariant 4).

pub mod replay;
mod write;

pub use write::JournalWriter;

use crate::types::{Epoch, SessionId};

/// Name of the journal's directory in a backup path.
pub const DIR: &str = "journal";

/// The file of an epoch that `session` writes; names sort by epoch.
fn file_name(epoch: Epoch, session: SessionId) -> String {
    format!("{:016x}-{session}.log", epoch.0)
}

/// The epoch and the session in a file's name.
fn parse_file_name(name: &str) -> Option<(Epoch, SessionId)> {
    let (epoch, session) = name.strip_suffix(".log")?.split_once('-')?;
    let epoch = crate::types::parse_hex::<8>(epoch).map(u64::from_be_bytes)?;
    Some((Epoch(epoch), SessionId::parse(session)?))
}
