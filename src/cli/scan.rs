//! `tidefs scan`

use std::fmt::Write as _;
use std::sync::Arc;

use clap::Args as ClapArgs;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::output::{clean, count, size, span};
use crate::cli::{Context, Outcome, units};
use crate::daemon::opening::{Reach, reach};
use crate::daemon::protocol::ScanRequest;
use crate::daemon::serve::Serving;
use crate::daemon::{Failure, FailureKind, Request};
use crate::scan::report::{Paths, Report};

/// Paths of a kind that are shown to people; documents have more.
const SHOWN_MAX: usize = 20;

#[derive(Debug, ClapArgs)]
pub(super) struct Scan {
    /// Only this source: its path, or its UUID or the beginning of it
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Only this account, by the name of its directory in the volume; may be given several times
    #[arg(long, value_name = "NAME")]
    account: Vec<String>,
    /// Read everything again and compare it: finds what changed though size and times did not. Goes on where it was
    /// stopped
    #[arg(long)]
    deep: bool,
    /// Believe that what is gone was meant to go, however much it is, and that the source is the one it was
    #[arg(long)]
    accept_deletions: bool,
    /// At the end, wait until the external volume alone could give all of it back
    #[arg(long)]
    upload_metadata: bool,
    /// Give up after so many items that could not be read; without it they are told at the end
    #[arg(long, value_name = "N")]
    max_read_errors: Option<u64>,
    /// Read at most so many bytes a second: 20M
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    read_rate: Option<u64>,
}

#[derive(Deserialize)]
struct Answer {
    scans: Vec<Report>,
    is_archived: Option<bool>,
}

pub(super) fn run(context: &mut Context, scan: Scan) -> Outcome {
    let request = Request::Scan(Box::new(ScanRequest {
        source: scan.source,
        accounts: scan.account,
        deep: scan.deep,
        accept_deletions: scan.accept_deletions,
        upload_metadata: scan.upload_metadata,
        max_read_errors: scan.max_read_errors,
        read_rate: scan.read_rate,
    }));
    let document = ask(context, &request);
    context.reporter.clear();
    let document = document?;
    let answer = Answer::deserialize(&document)
        .map_err(|error| Failure::failed(format!("the answer is not understood: {error}")))?;
    let mut text: String = answer.scans.iter().map(said).collect();
    if answer.is_archived == Some(true) {
        text.push_str("All of it is archived: the external volume alone gives it back.\n");
    }
    let is_well = answer
        .scans
        .iter()
        .all(|report| report.errors.count == 0 && report.refused.is_empty());
    if is_well {
        context.out.done(&document, &text)?;
    } else {
        context.out.result(&document, &text)?;
    }
    if answer.scans.iter().any(|report| report.stopped) {
        Err(Failure::told(FailureKind::Stopped))
    } else if is_well {
        Ok(())
    } else {
        Err(Failure::told(FailureKind::Problems))
    }
}

/// Through the daemon, else as one for as long as it takes: others can ask how far it is.
fn ask(context: &mut Context, request: &Request) -> Result<Value, Failure> {
    let root = context.root()?;
    let clock = Arc::clone(&context.clock);
    match reach(&root, &clock)? {
        Reach::Daemon(client) => client.ask(request, &mut |step| context.report(&step)),
        Reach::Open(volume) => {
            let since = clock.now().secs;
            Serving::once(volume, since, request, &mut |step| context.report(&step))
        }
    }
}

fn said(report: &Report) -> String {
    let mut text = String::new();
    let counts = &report.counts;
    let source = clean(&report.source);
    let took = span(report.took_ms.div_ceil(1000));
    let how = if report.deep { "Reread" } else { "Scanned" };
    let how = if report.stopped {
        "Stopped scanning"
    } else {
        how
    };
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{how} {source}: {}, {} in {} in {took}.",
        count(counts.items, "item"),
        size(counts.bytes),
        count(report.accounts_seen, "account"),
    );
    if counts.has_changes() {
        let _ = writeln!(
            text,
            "{} new, {} changed, {} moved or linked, {} with other attributes, {} deleted; read {}, stored {}.",
            counts.created,
            counts.changed,
            counts.moved,
            counts.attributes,
            counts.deleted,
            size(counts.read_bytes),
            size(counts.stored_bytes),
        );
    } else if report.refused.is_empty() {
        text.push_str("Nothing has changed.\n");
    }
    for event in ["new", "renamed", "revived", "deleted", "disabled"] {
        accounts(&mut text, report, event);
    }
    named(
        &mut text,
        &report.missed,
        "changed though size and times had not",
    );
    named(
        &mut text,
        &report.changing,
        "changed while it was read, and will be read again",
    );
    named(
        &mut text,
        &report.errors,
        "could not be read, and stays as it was",
    );
    for refused in &report.refused {
        let _ = writeln!(text, "REFUSED {}", clean(refused));
    }
    if report.stopped {
        text.push_str("The next scan goes on where this one was stopped.\n");
    }
    text
}

/// The accounts to which this happened.
fn accounts(text: &mut String, report: &Report, event: &str) {
    let names: Vec<String> = report
        .accounts
        .iter()
        .filter(|account| account.event == event)
        .map(|account| clean(&account.account))
        .collect();
    let Some(shown) = names.get(..names.len().min(SHOWN_MAX)) else {
        return;
    };
    if shown.is_empty() {
        return;
    }
    let more = match names.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let noun = if names.len() == 1 {
        "account"
    } else {
        "accounts"
    };
    let _ = writeln!(text, "{event} {noun}: {}{more}", shown.join(", "));
}

fn named(text: &mut String, paths: &Paths, what: &str) {
    if paths.count == 0 {
        return;
    }
    let _ = writeln!(text, "{} {what}:", count(paths.count, "item"));
    for path in paths.named.iter().take(SHOWN_MAX) {
        let _ = writeln!(text, "  {}", clean(path));
    }
    let more = paths.count.saturating_sub(SHOWN_MAX as u64);
    if more > 0 {
        let _ = writeln!(text, "  and {more} more: --json names up to 1000");
    }
}
