//! `tidefs check`

use std::fmt::Write as _;

use serde_json::json;

use crate::cli::args::Check;
use crate::cli::output::{clean, size};
use crate::cli::{Context, Outcome};
use crate::daemon::{Failure, FailureKind, Progress};
use crate::maintain::{self, CheckOptions, CheckReport};

pub(super) fn run(context: &mut Context, check: &Check) -> Outcome {
    let root = context.root()?;
    if check.rebuild_index {
        maintain::rebuild_index(&root)?;
        let text = "The index is gone; the next mount fills it anew, and serves meanwhile.";
        context.out.done(&json!({ "rebuilt": true }), text)?;
    }
    let options = CheckOptions {
        read_data: check.read_data,
        external: check.external,
    };
    let report = {
        let reporter = &mut context.reporter;
        maintain::check(&root, options, &mut |step, done_bytes| {
            reporter.show(&Progress {
                step: step.to_owned(),
                done_bytes,
                total_bytes: None,
                note: None,
            });
        })?
    };
    context.reporter.clear();
    let document =
        serde_json::to_value(&report).map_err(|error| Failure::failed(error.to_string()))?;
    context.out.result(&document, &told(&report))?;
    if report.problems.is_empty() {
        return Ok(());
    }
    let text = format!("{} problems were found", report.problems.len());
    Err(Failure::new(FailureKind::Problems, text))
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
