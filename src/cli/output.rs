//! The one place that prints results and errors. What is read by people never moves their terminal: control
//! characters of foreign names are shown, not obeyed.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::clock::civil;
use crate::daemon::Failure;
use crate::types::Timestamp;

/// Prints for people or for programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(super) fn new(json: bool, quiet: bool) -> Output {
        Output { json, quiet }
    }

    pub(super) fn is_json(self) -> bool {
        self.json
    }

    /// What was asked for.
    pub(super) fn result(self, document: &Value, text: &str) -> Result<(), Failure> {
        if self.json {
            print(&document.to_string())
        } else {
            print(text)
        }
    }

    /// That something is done: a result for programs, and for people who want to hear it.
    pub(super) fn done(self, document: &Value, text: &str) -> Result<(), Failure> {
        if self.json || !self.quiet {
            self.result(document, text)
        } else {
            Ok(())
        }
    }

    /// Something that people should know beside the result.
    pub(super) fn note(self, text: &str) {
        if !self.quiet && !self.json {
            // Nobody to read it is no failure.
            let _ = writeln!(io::stderr(), "tidefs: {}", clean(text));
        }
    }

    /// Says why it failed, if it did, and turns it into the exit code.
    pub(super) fn finish(self, outcome: Result<(), Failure>) -> ExitCode {
        let Err(failure) = outcome else {
            return ExitCode::SUCCESS;
        };
        if failure.text.is_empty() {
            // The result has said it.
        } else if self.json {
            let document = json!({ "error": failure });
            // The exit code tells it too.
            let _ = print(&document.to_string());
        } else {
            let _ = writeln!(io::stderr(), "tidefs: {}", clean(&failure.text));
        }
        ExitCode::from(failure.kind.exit_code())
    }
}

/// A line, or several, on standard output. A reader that has seen enough is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

/// Text without control characters, and without those that turn the direction of writing.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        let turns = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if letter.is_control() || turns {
            out.extend(letter.escape_default());
        } else {
            out.push(letter);
        }
    }
    out
}

/// Rows under each other, a column as wide as its widest cell; the last one as it is.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let cleaned: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| clean(cell)).collect())
        .collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &cleaned {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &cleaned {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `1.4 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).clamp(1, 6);
    let unit = UNITS.get(power as usize - 1).copied().unwrap_or("EiB");
    // Tenths in whole numbers, rounded down: 1023.99 MiB never shows as 1024.0.
    let tenths = u128::from(bytes) * 10 / (1_u128 << (10 * power));
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if whole < 100 {
        format!("{whole}.{tenth} {unit}")
    } else {
        format!("{whole} {unit}")
    }
}

/// `3 days 4 hours`, `12 seconds`: the two largest units.
pub(super) fn span(secs: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (86_400, "day"),
        (3600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let mut rest = secs;
    let mut words = String::new();
    let mut count = 0;
    for (len, name) in UNITS {
        let number = rest / len;
        rest %= len;
        if number == 0 || count == 2 {
            continue;
        }
        let space = if count == 0 { "" } else { " " };
        let plural = if number == 1 { "" } else { "s" };
        // Writing to a string does not fail.
        let _ = write!(words, "{space}{number} {name}{plural}");
        count += 1;
    }
    if words.is_empty() {
        "0 seconds".into()
    } else {
        words
    }
}

/// `2026-01-31 14:00:00 UTC`.
pub(super) fn moment(secs: i64) -> String {
    let text = civil(Timestamp { secs, nanos: 0 });
    format!("{} UTC", text.trim_end_matches('Z').replace('T', " "))
}

/// `1 pack`, `2 packs`.
pub(super) fn count(number: u64, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_at_a_glance() {
        let sizes = [0, 1023, 1024, 1536, 1_048_575, 150 << 20, u64::MAX].map(size);
        assert_eq!(
            sizes,
            [
                "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1023 KiB", "150 MiB", "15.9 EiB"
            ]
        );
        let spans = [0, 1, 59, 61, 3600, 90_000, 86_461].map(span);
        assert_eq!(
            spans,
            [
                "0 seconds",
                "1 second",
                "59 seconds",
                "1 minute 1 second",
                "1 hour",
                "1 day 1 hour",
                "1 day 1 minute"
            ]
        );
        assert_eq!(moment(0), "1970-01-01 00:00:00 UTC");
    }

    #[test]
    fn columns_stand_under_each_other() {
        let rows = [["A", "B"], ["longer", "x\ny"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(columns(&rows), "A       B\nlonger  x\\ny\n");
    }

    #[test]
    fn a_name_from_a_stranger_cannot_move_the_terminal() {
        let shown = clean("a\x1b[2Jb\u{9b}c\u{202e}d\ne");
        assert!(shown.chars().all(|letter| !letter.is_control()), "{shown}");
        assert_eq!(shown, r"a\u{1b}[2Jb\u{9b}c\u{202e}d\ne");
    }
}
