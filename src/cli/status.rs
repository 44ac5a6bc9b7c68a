//! `tidefs status`

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::cli::limits::in_words;
use crate::cli::output::{clean, count, moment, size, span};
use crate::cli::store::place_of;
use crate::cli::{Context, Outcome};
use crate::daemon::{Failure, Request};
use crate::volume::settings::Store;

/// What is shown of the document; a program sees all of it.
#[derive(Deserialize)]
struct Shown {
    backup_path: PathBuf,
    volume: String,
    ack: String,
    epoch_local: u64,
    epoch_archived: u64,
    recovery_point_secs: Option<i64>,
    packs: Packs,
    backlog: Backlog,
    time_to_full_secs: Option<u64>,
    store: Store,
    upload: Upload,
    #[serde(default)]
    limits: Value,
    circuit: Option<Circuit>,
    free_bytes: u64,
    cache_bytes: u64,
    read_cache_bytes: u64,
    losses: Vec<String>,
    recovery: Recovery,
    failure: Option<String>,
    daemon: Option<Daemon>,
    #[serde(default)]
    watch: Vec<Watch>,
}

#[derive(Deserialize)]
struct Packs {
    count: u64,
    bytes: u64,
    unsent_count: u64,
    unsent_bytes: u64,
}

#[derive(Deserialize)]
struct Backlog {
    bytes: u64,
    budget_bytes: u64,
    phase: String,
    allowed_bytes_per_sec: Option<u64>,
    drain_bytes_per_sec: u64,
}

#[derive(Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum Upload {
    Off,
    Connecting,
    Up,
    Down { since: u64, reason: String },
    Refused { reason: String },
}

#[derive(Deserialize)]
struct Circuit {
    state: String,
    reason: Option<String>,
    hung_workers: u64,
}

#[derive(Deserialize)]
struct Recovery {
    frames: u64,
    packs_sealed: u64,
    index_note: Option<String>,
}

#[derive(Deserialize)]
struct Daemon {
    pid: u32,
    since: i64,
    phase: String,
    mountpoint: Option<PathBuf>,
}

/// A source that is to be watched.
#[derive(Deserialize)]
struct Watch {
    source: String,
    kind: Option<String>,
    since: Option<i64>,
    watches: Option<u64>,
    note: Option<String>,
    reason: Option<String>,
    events: u64,
    overflows: u64,
    dirty_accounts: u64,
    is_all_dirty: bool,
}

pub(super) fn run(context: &mut Context) -> Outcome {
    let document = context.ask(&Request::Status)?;
    let shown = Shown::deserialize(&document)
        .map_err(|error| Failure::failed(format!("the answer is not understood: {error}")))?;
    let text = shown.text(context.clock.now().secs);
    context.out.result(&document, &text)
}

impl Shown {
    fn text(&self, now: i64) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{key:<16} {}", clean(&value));
        };
        line("backup path", self.backup_path.display().to_string());
        line("volume", self.volume.clone());
        line("served", self.served(now));
        if let Some(failure) = &self.failure {
            line(
                "FAILURE",
                format!("nothing is acknowledged any more: {failure}"),
            );
        }
        line("recovery point", self.recovery_point());
        line("external volume", self.external(now));
        if let Some(limits) = in_words(self.limits.get("in_force")) {
            line("limited to", limits);
        }
        line(
            "epochs",
            format!(
                "{} closed, {} archived",
                self.epoch_local, self.epoch_archived
            ),
        );
        line("packs", self.packs());
        if self.store != Store::Local {
            line("unsent", self.unsent());
        }
        if let Some(secs) = self.time_to_full_secs {
            line(
                "forecast",
                format!("at this rate the cache is full in {}", span(secs)),
            );
        }
        for loss in &self.losses {
            line("LOST", loss.clone());
        }
        for watch in &self.watch {
            line("watching", watch.text(now));
        }
        line("free space", size(self.free_bytes));
        line("fsync means", fsync_means(&self.ack));
        if let Some(recovery) = self.recovery.text() {
            line("last opening", recovery);
        }
        text
    }

    fn served(&self, now: i64) -> String {
        let Some(daemon) = &self.daemon else {
            return "no".into();
        };
        let place = match &daemon.mountpoint {
            Some(mountpoint) => format!("at {}", mountpoint.display()),
            None => "without a mount".into(),
        };
        let phase = if daemon.phase == "serving" {
            String::new()
        } else {
            format!(", {}", daemon.phase)
        };
        let since = span(u64::try_from(now - daemon.since).unwrap_or(0));
        format!("{place}, by process {} for {since}{phase}", daemon.pid)
    }

    /// The answer to: if this machine burned down now, what would I lose?
    fn recovery_point(&self) -> String {
        match self.recovery_point_secs {
            None => "NONE: there is no external volume, all would be lost with this machine. \
                     Set one with tidefs store set"
                .into(),
            Some(secs) if secs <= 0 && self.is_archived() => {
                "now: nothing would be lost with this machine".into()
            }
            Some(secs) => {
                let unsent = if self.packs.unsent_bytes > 0 {
                    format!(", {} unsent", size(self.packs.unsent_bytes))
                } else {
                    String::new()
                };
                let span = span(u64::try_from(secs).unwrap_or(0).max(1));
                format!("{span}: that much work would be lost with this machine{unsent}")
            }
        }
    }

    fn is_archived(&self) -> bool {
        self.packs.unsent_bytes == 0 && self.epoch_archived >= self.epoch_local
    }

    fn external(&self, now: i64) -> String {
        if self.store == Store::Local {
            return "none (store local)".into();
        }
        let place = place_of(&self.store);
        let circuit = self.circuit.as_ref();
        let state = match &self.upload {
            Upload::Off => "not in use".to_owned(),
            Upload::Connecting => "has not answered yet".to_owned(),
            Upload::Up => circuit.map_or_else(|| "up".to_owned(), Circuit::text),
            Upload::Down { since, reason } => {
                let secs = now - since.cast_signed();
                format!(
                    "DOWN for {} since {}; backups go on, uploads are tried again: {reason}",
                    span(u64::try_from(secs).unwrap_or(0)),
                    moment(since.cast_signed())
                )
            }
            Upload::Refused { reason } => format!("REFUSED: {reason}"),
        };
        let hung = circuit.map(Circuit::hung).unwrap_or_default();
        format!("{place}, {state}{hung}")
    }

    fn packs(&self) -> String {
        let packs = &self.packs;
        let mut all = format!("{}, {}", count(packs.count, "pack"), size(packs.bytes));
        if self.cache_bytes < packs.bytes {
            let here = self.cache_bytes + self.read_cache_bytes;
            // Writing to a string does not fail.
            let _ = write!(all, ", {} of it here", size(here));
        }
        if packs.unsent_count == 0 || self.store == Store::Local {
            return all;
        }
        let unsent = size(packs.unsent_bytes);
        format!("{all}; {} of them unsent, {unsent}", packs.unsent_count)
    }
}

impl Shown {
    fn unsent(&self) -> String {
        let backlog = &self.backlog;
        let mut text = format!(
            "{} of at most {}",
            size(backlog.bytes),
            size(backlog.budget_bytes)
        );
        if backlog.drain_bytes_per_sec > 0 {
            // Writing to a string does not fail.
            let _ = write!(text, ", sent at {}/s", size(backlog.drain_bytes_per_sec));
        }
        match (backlog.phase.as_str(), backlog.allowed_bytes_per_sec) {
            ("full", _) => text.push_str(
                "; FULL: new data is refused until some of it was sent, deletes and reads go on",
            ),
            (_, Some(rate)) => {
                // As above.
                let _ = write!(
                    text,
                    "; WRITERS ARE SLOWED to {}/s, as it is nearly full",
                    size(rate)
                );
            }
            _ => {}
        }
        text
    }
}

fn fsync_means(ack: &str) -> String {
    match ack {
        "local" => "on the local disk, also after a power cut".into(),
        "remote" => "on the external volume, which alone gives it back (ack = remote)".into(),
        "page-cache" => {
            "NOTHING: a crash takes the last second of work with it (ack = page-cache)".into()
        }
        other => other.to_owned(),
    }
}

impl Watch {
    fn text(&self, now: i64) -> String {
        let source = &self.source;
        let (Some(kind), Some(since)) = (&self.kind, self.since) else {
            let reason = self.reason.as_deref().unwrap_or("it begins");
            return format!("{source} is not watched: {reason}");
        };
        let since = span(u64::try_from(now - since).unwrap_or(0));
        let mut text = format!(
            "{source} by {kind} for {since}, {}, {}",
            count(self.events, "change"),
            count(self.overflows, "overflow"),
        );
        if let Some(watches) = self.watches {
            let _ = write!(text, ", {watches} directories");
        }
        if self.is_all_dirty {
            text.push_str(", all of it to be looked at");
        } else if self.dirty_accounts > 0 {
            let _ = write!(
                text,
                ", {} to be looked at",
                count(self.dirty_accounts, "account")
            );
        }
        if let Some(note) = &self.note {
            let _ = write!(text, ". Not by fanotify: {note}");
        }
        text
    }
}

impl Circuit {
    /// How an external volume answers that is in use.
    fn text(&self) -> String {
        match (self.state.as_str(), &self.reason) {
            ("up", _) | (_, None) => "up".to_owned(),
            (state, Some(reason)) => format!("{state}: {reason}"),
        }
    }

    fn hung(&self) -> String {
        match self.hung_workers {
            0 => String::new(),
            hung => format!("; hung in it: {} of ours", count(hung, "worker")),
        }
    }
}

impl Recovery {
    fn text(&self) -> Option<String> {
        let mut words = Vec::new();
        if self.frames > 0 {
            words.push(format!("{} replayed", count(self.frames, "commit")));
        }
        if self.packs_sealed > 0 {
            words.push(format!("{} closed", count(self.packs_sealed, "open pack")));
        }
        if let Some(note) = &self.index_note {
            words.push(format!("index rebuilt: {note}"));
        }
        (!words.is_empty()).then(|| words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(
        store: serde_json::Value,
        upload: serde_json::Value,
        (point, epoch_archived): (Option<i64>, u64),
    ) -> String {
        let unsent = 1024 * (7 - epoch_archived);
        let document = json!({
            "backup_path": "/b\u{1b}[2J", "volume": "ab", "session": "cd", "ack": "local",
            "epoch_local": 7, "epoch_archived": epoch_archived, "recovery_point_secs": point,
            "packs": { "count": 3, "bytes": 4096, "unsent_count": 1, "unsent_bytes": unsent },
            "backlog": {
                "bytes": 900 << 20, "budget_bytes": 1 << 30, "phase": "slowed",
                "allowed_bytes_per_sec": 3 << 20, "drain_bytes_per_sec": 2 << 20,
                "growth_bytes_per_sec": 1 << 20, "waiting_writes": 2,
            },
            "time_to_full_secs": 31 * 3600,
            "store": store, "upload": upload, "direct_io": true, "free_bytes": 1 << 30,
            "cache_bytes": 4096, "read_cache_bytes": 0, "losses": [],
            "recovery": { "frames": 0, "packs_sealed": 0, "index_note": null, "took_ms": 1 },
            "failure": null,
        });
        Shown::deserialize(&document).unwrap().text(1000)
    }

    #[test]
    fn status_says_what_would_be_lost_now() {
        let dir = json!({ "kind": "dir", "path": "/nas", "store": "ef" });
        let down = json!({ "state": "down", "since": 940, "reason": "no answer" });
        let text = shown(dir.clone(), down, (Some(60), 5));
        for part in [
            "1 minute: that much work",
            "2.0 KiB unsent",
            "DOWN for 1 minute",
            "no answer",
            "900 MiB of at most 1.0 GiB, sent at 2.0 MiB/s",
            "SLOWED to 3.0 MiB/s",
            "at this rate the cache is full in 1 day 7 hours",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let up = json!({ "state": "up" });
        let text = shown(dir.clone(), up.clone(), (Some(0), 7));
        assert!(text.contains("now: nothing would be lost"), "{text}");
        let text = shown(dir, up, (Some(0), 6));
        assert!(!text.contains("nothing would be lost"), "{text}");
        let text = shown(
            json!({ "kind": "local" }),
            json!({ "state": "off" }),
            (None, 0),
        );
        assert!(text.contains("NONE") && !text.contains("unsent"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn status_says_how_an_external_volume_answers_and_what_hangs_in_it() {
        let text = |circuit: serde_json::Value| {
            let circuit = Circuit::deserialize(&circuit).unwrap();
            circuit.text() + &circuit.hung()
        };
        assert_eq!(text(json!({ "state": "up", "hung_workers": 0 })), "up");
        let degraded =
            json!({ "state": "degraded", "since": 1, "reason": "no route", "hung_workers": 2 });
        assert_eq!(
            text(degraded),
            "degraded: no route; hung in it: 2 workers of ours"
        );
    }
}
