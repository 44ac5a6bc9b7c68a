//! `tidefs check`

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::args::Check;
use crate::cli::output::{clean, size};
use crate::cli::{Context, Outcome};
use crate::daemon::{Failure, FailureKind, Progress};
use crate::maintain::{self, CheckOptions, CheckReport, FixReport};

pub(super) fn run(context: &mut Context, check: &Check) -> Outcome {
    let root = context.root()?;
    if check.rebuild_index {
        maintain::rebuild_index(&root)?;
        let text = "The index is gone; the next mount fills it anew, and serves meanwhile.";
        context.out.done(&json!({ "rebuilt": true }), text)?;
    }
    let reporter = &mut context.reporter;
    let mut progress = |step: &str, done_bytes| {
        reporter.show(&Progress {
            step: step.to_owned(),
            done_bytes,
            total_bytes: None,
            note: None,
        });
    };
    let (document, text, problems) = if check.fix {
        let fixed = maintain::fix(&root, check.read_data, &*context.clock, &mut progress)?;
        (
            to_document(&fixed)?,
            told_of_fix(&fixed),
            fixed.after.problems.len(),
        )
    } else {
        let options = CheckOptions {
            read_data: check.read_data,
            external: check.external,
        };
        let report = maintain::check(&root, options, &mut progress)?;
        (to_document(&report)?, told(&report), report.problems.len())
    };
    context.reporter.clear();
    context.out.result(&document, &text)?;
    if problems == 0 {
        return Ok(());
    }
    let text = format!("{problems} problems were found");
    Err(Failure::new(FailureKind::Problems, text))
}

fn to_document(report: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(report).map_err(|error| Failure::failed(error.to_string()))
}

fn told_of_fix(fixed: &FixReport) -> String {
    let mut text = String::new();
    for repair in &fixed.repairs {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}: {}", clean(&repair.object), clean(&repair.done));
    }
    for dir in &fixed.lost_and_found {
        let shown = dir.display().to_string();
        let _ = writeln!(
            text,
            "What was replaced or taken out is in {}",
            clean(&shown)
        );
    }
    if fixed.repairs.is_empty() {
        text.push_str("Nothing could be put right, or nothing had to be.\n");
    }
    text + &told(&fixed.after)
}

fn told(report: &CheckReport) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let place = problem
            .offset
            .map(|offset| format!(" at byte {offset}"))
            .unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{}{place}: {}",
            clean(&problem.object),
            clean(&problem.reason)
        );
        let _ = writeln!(text, "    {}", clean(&problem.advice));
    }
    let verdict = match report.problems.len() {
        0 => "No problems found".to_owned(),
        1 => "1 problem found".to_owned(),
        count => format!("{count} problems found"),
    };
    let _ = write!(
        text,
        "{verdict}: {} objects and {} inodes checked, {} of packs read.",
        report.objects,
        report.inodes,
        size(report.bytes)
    );
    text
}
