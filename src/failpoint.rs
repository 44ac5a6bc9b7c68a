//! Where a crash is tried out, and what must hold if we die there.
//!
//! `TIDEFS_FAILPOINT=name[:count]` makes the process abort at the `count`-th passing of a point. Tests
//! of a crash use it; it does nothing otherwise.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blobs are in the pack's file, not synced, and no frame names them: recovery cuts or removes them.
pub const BEFORE_PACK_SYNC: &str = "before-pack-sync";
/// Packs are synced, the frame that names them is not written: nobody was told, nothing refers to them.
pub const BEFORE_FRAME: &str = "before-frame";
/// The frame is durable, nobody was told: recovery replays it. Durable and not acknowledged is allowed.
pub const AFTER_FRAME: &str = "after-frame";
/// The epoch's segment is durable, no record names it: recovery closes the epoch again from the journal.
pub const AFTER_SEGMENT: &str = "after-segment";
/// Segment and record are durable, the index has nothing of the epoch: the journal still has it.
pub const AFTER_RECORD: &str = "after-record";
/// The index is checkpointed, the journal's file of the epoch is still there: it is passed over.
pub const AFTER_CHECKPOINT: &str = "after-checkpoint";
/// A pack is on the external volume, the ledger does not know: it is found there and not sent twice.
pub const AFTER_PACK_PUT: &str = "after-pack-put";
/// Segments are on the external volume, their record is not: the newest record there is still the one before.
pub const BEFORE_RECORD_PUT: &str = "before-record-put";
/// The record is on the external volume, the ledger does not know: it is recognised as ours.
pub const AFTER_RECORD_PUT: &str = "after-record-put";

/// Every point, for the test that passes them all.
pub const ALL: [&str; 9] = [
    BEFORE_PACK_SYNC,
    BEFORE_FRAME,
    AFTER_FRAME,
    AFTER_SEGMENT,
    AFTER_RECORD,
    AFTER_CHECKPOINT,
    AFTER_PACK_PUT,
    BEFORE_RECORD_PUT,
    AFTER_RECORD_PUT,
];

struct Armed {
    name: String,
    left: AtomicU64,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let read = || {
        let text = std::env::var("TIDEFS_FAILPOINT").ok()?;
        let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
        Some(Armed {
            name: name.to_owned(),
            left: AtomicU64::new(count.parse().ok()?),
        })
    };
    ARMED.get_or_init(read).as_ref()
}

/// Dies here if this point is armed.
pub fn hit(point: &'static str) {
    if let Some(armed) = armed()
        && armed.name == point
        && armed.left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        std::process::abort();
    }
}
