//! `tidefs check`

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::args::Check;
use crate::cli::output::{clean, size};
use crate::cli::progress::Reporter;
use crate::cli::{Context, Outcome};
use crate::daemon::{Failure, FailureKind, Progress};
use crate::maintain::{self, CheckOptions, CheckReport, FixReport};
use crate::volume::init::read_identity;
use crate::volume::settings::Settings;
use crate::volume::store::open_spec;

pub(super) fn run(context: &mut Context, check: &Check) -> Outcome {
    let root = context.root()?;
    if check.rebuild_index {
        maintain::rebuild_index(&root)?;
        let text = "The index is gone; the next mount fills it anew, and serves meanwhile.";
        // With --json the report of the check that follows is the one document.
        if !context.out.is_json() {
            context.out.done(&json!({ "rebuilt": true }), text)?;
        }
    }
    if check.fix {
        return fix(context, &root, check);
    }
    let away = if check.external { away(&root)? } else { None };
    let options = CheckOptions {
        read_data: check.read_data,
        external: check.external && away.is_none(),
    };
    let report = maintain::check(&root, options, &mut |step, done_bytes| {
        show(&mut context.reporter, step, done_bytes);
    })?;
    context.reporter.clear();
    let mut document = to_document(&report)?;
    if let (Some(away), Some(document)) = (&away, document.as_object_mut()) {
        document.insert("unreachable".into(), json!(away.text));
    }
    context.out.result(&document, &told(&report))?;
    if let Some(away) = &away {
        context
            .out
            .note(&format!("{}; what is here was checked", away.text));
    }
    match away {
        _ if !report.problems.is_empty() => Err(Failure::told(FailureKind::Problems)),
        Some(away) => Err(Failure::told(away.kind)),
        None => Ok(()),
    }
}

fn fix(context: &mut Context, root: &Path, check: &Check) -> Outcome {
    let fixed = maintain::fix(
        root,
        check.read_data,
        &*context.clock,
        &mut |step, done_bytes| {
            show(&mut context.reporter, step, done_bytes);
        },
    )?;
    context.reporter.clear();
    context
        .out
        .result(&to_document(&fixed)?, &told_of_fix(&fixed))?;
    if fixed.after.problems.is_empty() {
        Ok(())
    } else {
        Err(Failure::told(FailureKind::Problems))
    }
}

fn show(reporter: &mut Reporter, step: &str, done_bytes: u64) {
    reporter.show(&Progress {
        step: step.to_owned(),
        done_bytes,
        total_bytes: None,
        note: None,
        files: None,
    });
}

/// Why the external volume cannot be looked at, if it cannot: then what is here is checked all the same.
fn away(root: &Path) -> Result<Option<Failure>, Failure> {
    read_identity(root)?;
    // Settings that are damaged are for the check to find.
    let Ok(settings) = Settings::read(root) else {
        return Ok(None);
    };
    let Some(spec) = settings.store.spec() else {
        return Ok(None);
    };
    let opened = open_spec(&spec, settings.remote_timeout());
    Ok(opened
        .err()
        .map(Failure::from)
        .filter(|failure| failure.kind == FailureKind::Unreachable))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maintain::Problem;

    #[test]
    fn a_problem_is_shown_with_its_place_and_what_to_do() {
        let problem = Problem {
            object: "items/ab/x\u{1b}.pack".into(),
            offset: Some(7),
            reason: "a blob is damaged".into(),
            advice: "copy it back".into(),
        };
        let report = CheckReport {
            problems: vec![problem],
            objects: 3,
            bytes: 2048,
            inodes: 1,
        };
        let shown = told(&report);
        for part in [
            "at byte 7: a blob",
            "copy it back",
            "1 problem found",
            "2.0 KiB of packs",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(!shown.contains('\u{1b}'), "{shown}");
        assert!(told(&CheckReport::default()).contains("No problems found"));
    }
}
