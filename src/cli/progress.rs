//! How far a long operation is, for those who watch: a bar on a terminal, lines where they were asked for,
//! documents for programs. Nothing before it has taken a moment.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::output::{clean, print, size, span};
use crate::daemon::Progress;
use crate::daemon::protocol::FileProgress;

/// Quicker operations show nothing.
const QUIET_FOR: Duration = Duration::from_secs(2);
/// Between two pictures of the bar, and between two lines.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// Width of the bar in letters.
const BAR_LEN: u64 = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Silent,
    Bar,
    Lines,
    Documents,
}

/// Shows progress.
#[derive(Debug)]
pub(super) struct Reporter {
    style: Style,
    begun: Option<(Instant, u64)>,
    shown: Option<Instant>,
    is_drawn: bool,
}

impl Reporter {
    pub(super) fn new(json: bool, lines: bool, quiet: bool) -> Reporter {
        let style = match (quiet, json, lines) {
            (true, ..) => Style::Silent,
            (_, true, _) => Style::Documents,
            (_, _, true) => Style::Lines,
            _ if io::stderr().is_terminal() => Style::Bar,
            _ => Style::Silent,
        };
        Reporter {
            style,
            begun: None,
            shown: None,
            is_drawn: false,
        }
    }

    /// Shows how far it is.
    pub(super) fn show(&mut self, step: &Progress) {
        let now = Instant::now();
        let (begun, done_first) = *self.begun.get_or_insert((now, step.done_bytes));
        let interval = match self.style {
            Style::Silent => return,
            Style::Bar => BAR_INTERVAL,
            Style::Lines | Style::Documents => LINE_INTERVAL,
        };
        let elapsed = now.duration_since(begun);
        let is_early = self.style != Style::Lines && elapsed < QUIET_FOR;
        if is_early
            || self
                .shown
                .is_some_and(|shown| now.duration_since(shown) < interval)
        {
            return;
        }
        self.shown = Some(now);
        let pace = Pace::of(step, step.done_bytes.saturating_sub(done_first), elapsed);
        match self.style {
            Style::Silent => {}
            Style::Bar => {
                self.is_drawn = true;
                // A terminal that is gone sees no progress; the operation goes on.
                let _ = write!(io::stderr(), "\r\x1b[K{}", pace.line(step, true));
                let _ = io::stderr().flush();
            }
            Style::Lines => {
                let _ = writeln!(io::stderr(), "{}", pace.line(step, false));
            }
            Style::Documents => {
                let document = json!({
                    "progress": step,
                    "bytes_per_sec": pace.bytes_per_sec,
                    "eta_secs": pace.eta_secs,
                });
                let _ = print(&document.to_string());
            }
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            // As above.
            let _ = write!(io::stderr(), "\r\x1b[K");
            let _ = io::stderr().flush();
        }
        self.begun = None;
        self.shown = None;
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How fast it goes, and for how long it will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    bytes_per_sec: u64,
    eta_secs: Option<u64>,
}

impl Pace {
    fn of(step: &Progress, done_since: u64, elapsed: Duration) -> Pace {
        let millis = elapsed.as_millis().max(1);
        let rate = u128::from(done_since) * 1000 / millis;
        let bytes_per_sec = u64::try_from(rate).unwrap_or(u64::MAX);
        let left = step
            .total_bytes
            .map(|total| total.saturating_sub(step.done_bytes));
        let eta_secs = left.and_then(|left| match (left, bytes_per_sec) {
            (0, _) => Some(0),
            (_, 0) => None,
            (left, rate) => Some(left.div_ceil(rate)),
        });
        Pace {
            bytes_per_sec,
            eta_secs,
        }
    }

    fn line(self, step: &Progress, with_bar: bool) -> String {
        let mut words = vec![clean(&step.step)];
        match step.total_bytes {
            Some(total) if total > 0 => {
                if with_bar {
                    words.push(bar(step.done_bytes, total));
                }
                words.push(format!("{} of {}", size(step.done_bytes), size(total)));
            }
            _ if step.done_bytes > 0 => words.push(size(step.done_bytes)),
            _ => {}
        }
        if let Some(files) = &step.files {
            words.push(files_words(files));
        }
        if self.bytes_per_sec > 0 {
            words.push(format!("{}/s", size(self.bytes_per_sec)));
        }
        match self.eta_secs {
            Some(secs) if secs > 0 => words.push(format!("{} left", span(secs))),
            _ => {}
        }
        if let Some(note) = &step.note {
            words.push(format!("({})", clean(note)));
        }
        let mut line = words.join("  ");
        if with_bar {
            // A line that wraps could not be drawn over.
            line = line.chars().take(columns()).collect();
        }
        line
    }
}

/// `1200 of 5000 items`, and how much less is stored than was read.
fn files_words(files: &FileProgress) -> String {
    let of = files
        .total
        .map_or_else(String::new, |total| format!(" of {total}"));
    let words = format!("{}{of} items", files.done);
    // In tenths, and only where it says something.
    let tenths = files
        .read_bytes
        .saturating_mul(10)
        .checked_div(files.stored_bytes)
        .unwrap_or(0);
    if tenths < 10 {
        return words;
    }
    format!("{words}, {}.{} to 1", tenths / 10, tenths % 10)
}

fn bar(done: u64, total: u64) -> String {
    let full = u128::from(done.min(total)) * u128::from(BAR_LEN) / u128::from(total.max(1));
    let full = usize::try_from(full).unwrap_or(0);
    let empty = usize::try_from(BAR_LEN).unwrap_or(0).saturating_sub(full);
    format!("[{}{}]", "#".repeat(full), "-".repeat(empty))
}

/// Width of the terminal, as the shell says; else what every terminal has.
fn columns() -> usize {
    let columns = std::env::var("COLUMNS").ok();
    columns
        .and_then(|columns| columns.parse().ok())
        .unwrap_or(80_usize)
        .max(20)
        - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(done_bytes: u64, total_bytes: Option<u64>) -> Progress {
        Progress {
            step: "uploading".into(),
            done_bytes,
            total_bytes,
            note: None,
            files: None,
        }
    }

    #[test]
    fn the_line_says_how_much_how_fast_and_how_long() {
        let step = step(512 << 20, Some(1 << 30));
        let pace = Pace::of(&step, 512 << 20, Duration::from_secs(8));
        let line = pace.line(&step, false);
        assert_eq!(
            line,
            "uploading  512 MiB of 1.0 GiB  64.0 MiB/s  8 seconds left"
        );
        assert_eq!(bar(1, 2), "[############------------]");
        assert_eq!(bar(5, 2), bar(2, 2));
    }

    #[test]
    fn files_are_counted_beside_the_bytes_with_what_deduplication_saves() {
        let files = |done, total, stored_bytes| FileProgress {
            done,
            total,
            read_bytes: 3100,
            stored_bytes,
        };
        assert_eq!(
            files_words(&files(12, Some(50), 1000)),
            "12 of 50 items, 3.1 to 1"
        );
        assert_eq!(files_words(&files(12, None, 0)), "12 items");
        let scanning = Progress {
            files: Some(files(12, None, 0)),
            ..step(1 << 20, None)
        };
        let line = Pace::of(&scanning, 0, Duration::from_secs(1)).line(&scanning, false);
        assert_eq!(line, "uploading  1.0 MiB  12 items");
    }

    #[test]
    fn what_does_not_move_promises_no_end() {
        for (step, expected) in [
            (step(0, Some(100)), None),
            (step(7, None), None),
            (step(100, Some(100)), Some(0)),
        ] {
            let pace = Pace::of(&step, 0, Duration::ZERO);
            assert_eq!(pace.eta_secs, expected);
        }
        assert_eq!(bar(0, 0), bar(0, 1));
    }
}
