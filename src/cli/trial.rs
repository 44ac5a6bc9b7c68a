//! Trying out a volume: put, read back, list, delete, and what it turned out to be able to do. For `store test` and
//! `bucket test` alike.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vfs::{Body, Capabilities, ObjectKey, Precondition, Space, VolumeExt};

use crate::cli::output::{clean, size};
use crate::clock::random;
use crate::daemon::Failure;
use crate::types::SessionId;

/// What a test puts and reads back: long enough for a rate, short enough for a slow line.
const TEST_LEN: usize = 4 << 20;

/// What a volume showed.
pub(super) struct Trial {
    pub(super) profile: Capabilities,
    speed: Speed,
    space: Option<Space>,
}

/// Tries it out. What was written is deleted again.
pub(super) fn try_out(volume: &dyn vfs::Volume) -> Result<Trial, Failure> {
    let speed = put_and_read_back(volume)?;
    // Last, for it takes the directory of both away.
    let profile = volume.probe()?;
    let space = volume.space()?;
    Ok(Trial {
        profile,
        speed,
        space,
    })
}

impl Trial {
    /// For programs: what goes beside the profile.
    pub(super) fn document(&self) -> Value {
        json!({
            "profile": self.profile_document(),
            "put_bytes_per_sec": self.speed.put,
            "get_bytes_per_sec": self.speed.get,
            "space": self.space.map(|space| json!({
                "total_bytes": space.total_bytes,
                "available_bytes": space.available_bytes,
            })),
        })
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let profile = &self.profile;
        let mut lines = vec![(
            "mount",
            format!(
                "{} ({}) at {}",
                profile.file_system,
                profile.source,
                profile.mount_point.display()
            ),
        )];
        if let Some(space) = self.space {
            let (available, total) = (size(space.available_bytes), size(space.total_bytes));
            lines.push(("free space", format!("{available} of {total}")));
        }
        lines.push(("can", abilities(profile)));
        lines.push((
            "latency",
            format!(
                "put {}, get {}",
                millis(profile.put_latency),
                millis(profile.get_latency)
            ),
        ));
        lines.push((
            "speed",
            format!(
                "put {}/s, get {}/s (with {})",
                size(self.speed.put),
                size(self.speed.get),
                size(TEST_LEN as u64)
            ),
        ));
        lines
    }

    /// What was found, to be kept.
    pub(super) fn profile_document(&self) -> Value {
        profile_document(&self.profile)
    }
}

/// A line for each key.
pub(super) fn table(lines: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (key, value) in lines {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key:<16} {}", clean(value));
    }
    text
}

struct Speed {
    put: u64,
    get: u64,
}

/// Puts an object, reads it back, compares, and deletes it in any case.
fn put_and_read_back(volume: &dyn vfs::Volume) -> Result<Speed, Failure> {
    let seed: [u8; 32] = random()?;
    let bytes = noise(seed, TEST_LEN);
    // Random, so that two tests at one time do not meet.
    let key = ObjectKey::new(format!("probe/test-{}", SessionId(random()?)))?;
    let outcome = (|| {
        let started = Instant::now();
        volume.put(&key, Body::Bytes(&bytes), Precondition::IfAbsent)?;
        let put = rate(started.elapsed());
        let started = Instant::now();
        let read = volume.get_whole(&key, TEST_LEN as u64)?;
        let get = rate(started.elapsed());
        if read != bytes {
            return Err(Failure::failed(format!(
                "{volume} gave back other bytes than were put there: do not use it, look for its fault"
            )));
        }
        Ok(Speed { put, get })
    })();
    let deleted = volume.delete(std::slice::from_ref(&key));
    let speed = outcome?;
    deleted?;
    Ok(speed)
}

/// Bytes that neither compress nor repeat: a xorshift from `seed`.
fn noise(seed: [u8; 32], len: usize) -> Vec<u8> {
    let mut state = seed
        .first_chunk()
        .map_or(1, |first| u64::from_le_bytes(*first) | 1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn rate(elapsed: Duration) -> u64 {
    let micros = elapsed.as_micros().max(1);
    u64::try_from(TEST_LEN as u128 * 1_000_000 / micros).unwrap_or(u64::MAX)
}

fn millis(latency: Duration) -> String {
    format!(
        "{}.{} ms",
        latency.as_millis(),
        latency.as_micros() / 100 % 10
    )
}

fn abilities(profile: &Capabilities) -> String {
    let all = [
        ("rename at once", profile.atomic_rename),
        ("create only if absent", profile.exclusive_create),
        ("fsync", profile.fsync),
        ("fsync directories", profile.fsync_directory),
        ("direct I/O", profile.direct_io),
        ("list what was just put", profile.list_after_put),
    ];
    let word = |(name, can): &(&str, bool)| format!("{}{name}", if *can { "" } else { "NOT " });
    all.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn profile_document(profile: &Capabilities) -> Value {
    json!({
        "kind": format!("{:?}", profile.kind).to_lowercase(),
        "file_system": profile.file_system,
        "source": profile.source,
        "mount_point": profile.mount_point,
        "atomic_rename": profile.atomic_rename,
        "exclusive_create": profile.exclusive_create,
        "fsync": profile.fsync,
        "fsync_directory": profile.fsync_directory,
        "direct_io": profile.direct_io,
        "list_after_put": profile.list_after_put,
        "put_latency_us": u64::try_from(profile.put_latency.as_micros()).unwrap_or(u64::MAX),
        "get_latency_us": u64::try_from(profile.get_latency.as_micros()).unwrap_or(u64::MAX),
        "warnings": profile.warnings,
    })
}
