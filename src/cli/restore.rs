//! `tidefs restore`
//!
//! It reads beside the daemon and writes as whoever calls it: a destination that hangs holds up nobody else, and
//! nothing is written that the caller could not write.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::json;

use crate::cli::look::LookAt;
use crate::cli::output::{clean, count, moment, size};
use crate::cli::{Context, Outcome, absolute};
use crate::daemon::protocol::FileProgress;
use crate::daemon::{Failure, FailureKind, Progress, log, signals};
use crate::restore::{self, Named, Options, Overwrite, RestoreReport, SoFar};
use crate::types::{Epoch, escape};
use crate::volume::history::locate::{self, Standing};

/// Items of each kind that people are shown; `--json` has more.
const SHOWN_MAX: usize = 50;

#[derive(Debug, ClapArgs)]
pub(super) struct Restore {
    #[command(flatten)]
    look: LookAt,
    /// Also what was deleted before, as it was last. Where something else has its name by now, or had it after it, it
    /// is called NAME.deleted-in-epoch-N
    #[arg(long)]
    with_deleted: bool,
    /// What to do about what is there already: leave it, replace it where size, times, owner, mode or attributes are
    /// others, or replace it. What is only there is never removed
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = OverwriteWhen::Changed)]
    overwrite: OverwriteWhen,
    /// Write nothing, and tell what would be restored
    #[arg(long)]
    dry_run: bool,
    /// What: ACCOUNT, ACCOUNT/PATH, or / for all accounts
    #[arg(value_name = "ACCOUNT[/PATH]")]
    item: OsString,
    /// The directory into which it goes, made if it is not there. A directory's content goes right into it; a file goes
    /// into it by its own name
    dest: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OverwriteWhen {
    Never,
    Changed,
    Always,
}

impl From<OverwriteWhen> for Overwrite {
    fn from(when: OverwriteWhen) -> Overwrite {
        match when {
            OverwriteWhen::Never => Overwrite::Never,
            OverwriteWhen::Changed => Overwrite::Changed,
            OverwriteWhen::Always => Overwrite::Always,
        }
    }
}

pub(super) fn run(context: &mut Context, args: &Restore) -> Outcome {
    let stop = stop_on_signal()?;
    let to = absolute(&args.dest)?;
    if args.look.external.is_none() && to.starts_with(context.root()?) {
        return Err(Failure::usage(format!(
            "{} is in the backup path: restore to another place",
            to.display()
        )));
    }
    let looking = context.look(&args.look)?;
    let view = looking.history.view(looking.at);
    let item = locate::expect(&view, args.item.as_bytes())?;
    let at = match item.standing {
        Standing::Present => looking.at,
        Standing::Deleted { in_epoch } if args.with_deleted => {
            Some(Epoch(in_epoch.0.saturating_sub(1)))
        }
        Standing::Deleted { in_epoch } => {
            return Err(Failure::failed(format!(
                "'{}' was deleted in epoch {in_epoch}: add --with-deleted to get it as it was last",
                escape(&item.path)
            )));
        }
    };
    let tree = looking.history.tree(at)?;
    let options = Options {
        overwrite: args.overwrite.into(),
        dry_run: args.dry_run,
        with_deleted: args.with_deleted,
        is_alone: args.look.external.is_some(),
    };
    let reporter = &mut context.reporter;
    let report = restore::restore(&tree, &item, &to, options, &mut |so_far| {
        reporter.show(&step_of("restoring", so_far));
        !stop.load(Ordering::Relaxed)
    })?;
    context.reporter.clear();
    let time = at.and_then(|at| looking.history.time_of(at));
    let mut text = told(
        &report,
        if args.dry_run {
            "Would restore"
        } else {
            "Restored"
        },
    );
    if let (Some(at), Some(time)) = (at, time) {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            " It is as of epoch {at}, closed {}.",
            moment(time.secs)
        );
    }
    let mut document =
        serde_json::to_value(&report).map_err(|error| Failure::failed(error.to_string()))?;
    if let Some(document) = document.as_object_mut() {
        document.insert("item".into(), json!(escape(&item.path)));
        document.insert("destination".into(), json!(to));
        document.insert("epoch".into(), json!(tree.view().at()));
        document.insert("time".into(), json!(time.map(|time| time.secs)));
        document.insert("dry_run".into(), json!(args.dry_run));
    }
    context.out.result(&document, &text)?;
    verdict(&report)
}

/// The first signal stops after what is being written, and tells what was done; the second one at once.
fn stop_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    signals::block()?;
    log::start("warn");
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    signals::listen(move |signal| {
        if told.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(FailureKind::Stopped.exit_code()));
        }
        // Nobody to read it is no failure.
        let _ = writeln!(std::io::stderr(), "\ntidefs: {signal}: stopping");
        true
    })?;
    Ok(stop)
}

fn step_of(step: &str, so_far: SoFar) -> Progress {
    Progress {
        step: step.into(),
        done_bytes: so_far.bytes,
        total_bytes: so_far.bytes_total,
        note: None,
        files: Some(FileProgress {
            done: so_far.items,
            total: so_far.items_total,
            read_bytes: so_far.bytes,
            stored_bytes: 0,
        }),
    }
}

/// What was done, for people; `verb` says it in general.
pub(super) fn told(report: &RestoreReport, verb: &str) -> String {
    let mut text = String::new();
    let failed = report.unrestored;
    list(&mut text, "Not restored", failed, &report.failures);
    list(&mut text, "Left as it is", report.kept_count, &report.kept);
    let stripped = report.stripped_count;
    list(&mut text, "Restored in part", stripped, &report.stripped);
    let (items, bytes) = (count(report.restored, "item"), size(report.bytes));
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "{verb} {items}, {bytes}; {} there already",
        report.skipped
    );
    if report.kept_count > 0 {
        let _ = write!(text, ", {} left as it is", count(report.kept_count, "item"));
    }
    if failed > 0 {
        let _ = write!(text, ", {} NOT restored", count(failed, "item"));
    }
    text.push('.');
    if report.is_unreachable {
        text.push_str(" The external volume does not answer: run the same command when it is back; what is there is not read again.");
    } else if report.is_stopped {
        text.push_str(" Stopped before the end: the same command goes on from here.");
    }
    text
}

fn list(text: &mut String, head: &str, total: u64, named: &[Named]) {
    if total == 0 {
        return;
    }
    // Writing to a string does not fail.
    let _ = writeln!(text, "{head}:");
    for Named { path, reason } in named.iter().take(SHOWN_MAX) {
        let _ = writeln!(text, "    {}: {}", clean(path), clean(reason));
    }
    let shown = named.len().min(SHOWN_MAX) as u64;
    if total > shown {
        let _ = writeln!(text, "    and {} more (--json names them)", total - shown);
    }
}

/// The exit code.
pub(super) fn verdict(report: &RestoreReport) -> Outcome {
    let kind = match report {
        report if report.is_unreachable => FailureKind::Unreachable,
        report if report.is_stopped => FailureKind::Stopped,
        report if report.unrestored > 0 => FailureKind::Problems,
        _ => return Ok(()),
    };
    Err(Failure::told(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_says_how_it_ended() {
        let code = |report: RestoreReport| verdict(&report).map_err(|failure| failure.kind);
        let well = RestoreReport::default;
        assert_eq!(code(well()), Ok(()));
        let failed = RestoreReport {
            unrestored: 1,
            ..well()
        };
        assert_eq!(code(failed.clone()), Err(FailureKind::Problems));
        let stopped = RestoreReport {
            is_stopped: true,
            ..failed.clone()
        };
        assert_eq!(code(stopped), Err(FailureKind::Stopped));
        let away = RestoreReport {
            is_unreachable: true,
            ..failed
        };
        assert_eq!(code(away), Err(FailureKind::Unreachable));
    }

    #[test]
    fn what_is_listed_is_bounded_and_says_so() {
        let named: Vec<Named> = (0..60)
            .map(|n| Named {
                path: format!("f{n}\u{1b}"),
                reason: "why".into(),
            })
            .collect();
        let mut text = String::new();
        list(&mut text, "Not restored", 100, &named);
        assert_eq!(text.lines().count(), 1 + SHOWN_MAX + 1, "{text}");
        assert!(
            text.contains("and 50 more") && !text.contains('\u{1b}'),
            "{text}"
        );
    }
}
