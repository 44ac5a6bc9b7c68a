//! `tidefs undelete`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args as ClapArgs;
use serde::Deserialize;

use crate::cli::args::TIME_HELP;
use crate::cli::look::LookAt;
use crate::cli::restore::{told, verdict};
use crate::cli::{Context, Outcome, time};
use crate::daemon::{Failure, Request};
use crate::restore::RestoreReport;
use crate::types::escape;

#[derive(Debug, ClapArgs)]
pub(super) struct Undelete {
    /// What was deleted after this moment. It is written as that of --to
    #[arg(long, value_name = "TIME")]
    from: String,
    #[arg(long, value_name = "TIME", default_value = "now", help = TIME_HELP)]
    to: String,
    /// Into this directory of the account, in place of where it was
    #[arg(long, value_name = "PATH")]
    into: Option<OsString>,
    /// Change nothing, and tell what would come back
    #[arg(long)]
    dry_run: bool,
    /// The account, or a directory in it
    #[arg(value_name = "ACCOUNT[/PATH]")]
    item: OsString,
}

pub(super) fn run(context: &mut Context, args: &Undelete) -> Outcome {
    let now = context.clock.now();
    let history = context.look(&LookAt::default())?.history;
    let (after, _) = time::around(&args.from, history.epochs(), now)?;
    let (_, until) = time::around(&args.to, history.epochs(), now)?;
    drop(history);
    let document = context.ask(&Request::Undelete {
        item: escape(args.item.as_bytes()),
        after,
        until,
        into: args.into.as_ref().map(|path| escape(path.as_bytes())),
        dry_run: args.dry_run,
    })?;
    context.reporter.clear();
    let report = RestoreReport::deserialize(&document)
        .map_err(|error| Failure::failed(format!("the answer is not understood: {error}")))?;
    let verb = if args.dry_run {
        "Would bring back"
    } else {
        "Brought back"
    };
    context.out.result(&document, &told(&report, verb))?;
    verdict(&report)
}
