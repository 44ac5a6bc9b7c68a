//! `tidefs restore`
//!
//! It reads beside the daemon and writes as whoever calls it: a destination that hangs holds up nobody else, and
//! nothing is written that the caller could not write.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::cli::args::Restore;
use crate::cli::output::{clean, count, moment, size};
use crate::cli::{Context, Outcome, absolute, time};
use crate::daemon::moment::open_moments;
use crate::daemon::protocol::FileProgress;
use crate::daemon::{Failure, FailureKind, Progress, Request, log, signals};
use crate::restore::{self, Named, Options, RestoreReport, SoFar};
use crate::types::escape;
use crate::volume::EpochEntry;
use crate::volume::external::{ExternalVolume, open_guarded};
use crate::volume::settings::REMOTE_TIMEOUT;
use crate::volume::store::open_spec;

/// Items of each kind that people are shown; `--json` has more.
const SHOWN_MAX: usize = 50;

pub(super) fn run(context: &mut Context, args: &Restore) -> Outcome {
    let stop = stop_on_signal()?;
    let to = absolute(&args.dest)?;
    let source = Source::open(context, args)?;
    if let Some(root) = &source.root
        && to.starts_with(root)
    {
        return Err(Failure::usage(format!(
            "{} is in the backup path: restore to another place",
            to.display()
        )));
    }
    let tree = source.volume.tree(source.at)?;
    let item = restore::find(tree.view(), args.item.as_bytes())?;
    let options = Options {
        overwrite: args.overwrite.into(),
        dry_run: args.dry_run,
        is_alone: source.root.is_none(),
    };
    let reporter = &mut context.reporter;
    let report = restore::restore(&tree, &item, &to, options, &mut |so_far| {
        reporter.show(&step_of(so_far));
        !stop.load(Ordering::Relaxed)
    })?;
    context.reporter.clear();
    let document = to_document(&report, &source, args)?;
    context
        .out
        .result(&document, &told(&report, &source, args.dry_run))?;
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

/// Where it comes from.
struct Source {
    volume: ExternalVolume,
    /// The backup path; none where an external volume alone is read.
    root: Option<std::path::PathBuf>,
    at: Option<crate::types::Epoch>,
    entry: Option<EpochEntry>,
}

impl Source {
    fn open(context: &mut Context, args: &Restore) -> Result<Source, Failure> {
        let (volume, root) = if let Some(spec) = &args.external {
            let spec = vfs::Spec::parse(spec)
                .map_err(|error| Failure::usage(Failure::from(error).text))?;
            (open_guarded(open_spec(&spec, REMOTE_TIMEOUT)?)?, None)
        } else {
            let root = context.root()?;
            if args.at.is_none() {
                // What was written until now is a moment too.
                context.ask(&Request::Snapshot { name: None })?;
            }
            (open_moments(&root)?, Some(root))
        };
        let epochs = volume.epochs()?;
        let entry = match &args.at {
            Some(at) => Some(time::resolve(at, &epochs, context.clock.now())?),
            None => epochs.iter().max_by_key(|entry| entry.epoch).cloned(),
        };
        let at = args.at.as_ref().and(entry.as_ref());
        Ok(Source {
            at: at.map(|entry| entry.epoch),
            volume,
            root,
            entry,
        })
    }
}

fn step_of(so_far: SoFar) -> Progress {
    Progress {
        step: "restoring".into(),
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

fn to_document(report: &RestoreReport, source: &Source, args: &Restore) -> Result<Value, Failure> {
    let mut document =
        serde_json::to_value(report).map_err(|error| Failure::failed(error.to_string()))?;
    if let Some(document) = document.as_object_mut() {
        let entry = source.entry.as_ref();
        document.insert("item".into(), json!(escape(args.item.as_bytes())));
        document.insert("destination".into(), json!(args.dest));
        document.insert("epoch".into(), json!(entry.map(|entry| entry.epoch)));
        document.insert("time".into(), json!(entry.map(|entry| entry.time)));
        document.insert("dry_run".into(), json!(args.dry_run));
    }
    Ok(document)
}

fn told(report: &RestoreReport, source: &Source, dry_run: bool) -> String {
    let mut text = String::new();
    let failed = report.unrestored;
    list(&mut text, "Not restored", failed, &report.failures);
    list(&mut text, "Left as it is", report.kept_count, &report.kept);
    let stripped = report.stripped_count;
    list(&mut text, "Restored in part", stripped, &report.stripped);
    // Writing to a string does not fail.
    let verb = if dry_run { "Would restore" } else { "Restored" };
    let _ = write!(
        text,
        "{verb} {}, {}",
        count(report.restored, "item"),
        size(report.bytes)
    );
    if let Some(entry) = &source.entry {
        let _ = write!(
            text,
            ", as of epoch {}, closed {}",
            entry.epoch,
            moment(entry.time)
        );
    }
    let _ = write!(text, "; {} there already", report.skipped);
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

fn verdict(report: &RestoreReport) -> Outcome {
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
