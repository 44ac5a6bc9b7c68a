//! `tidefs store set .. --take-over`

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::output::{clean, count, moment};
use crate::cli::store::place_of;
use crate::cli::{Context, Outcome};
use crate::clock::civil;
use crate::daemon::client::Client;
use crate::daemon::{Failure, Progress};
use crate::maintain::take_over::{TakeOver, take_over};
use crate::volume::choice::Choice;
use crate::volume::open::TAKE_OVER_PLAN;
use crate::volume::{Durability, Volume};

/// How long the first epoch of ours may take to be there.
const FIRST_EPOCH_PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn run(context: &mut Context, choice: &Choice) -> Outcome {
    let root = context.root()?;
    if Client::connect(&root)?.is_some() {
        return Err(Failure::failed(format!(
            "{} is served by a daemon: end it first (tidefs umount, or tidefs daemon --stop)",
            root.display()
        )));
    }
    if !root.join(TAKE_OVER_PLAN).exists() {
        // Recovered, and everything in a closed epoch: so that what is only here can be looked at afterwards.
        let volume = Volume::open(&root, Arc::clone(&context.clock))?;
        volume.close(Duration::ZERO, &mut |_| {})?;
    }
    let clock = Arc::clone(&context.clock);
    let taken = take_over(&root, choice, &*clock, &mut |step, done, all| {
        context.report(&Progress {
            step: step.to_owned(),
            done_bytes: done,
            total_bytes: Some(all),
            note: None,
            files: None,
        });
    })?;
    let first = first_epoch(context, &root);
    context.reporter.clear();
    let document = json!({ "take_over": taken, "is_archived": first.is_ok() });
    let mut text = told(&taken);
    if let Err(failure) = first {
        let _ = write!(
            text,
            " The first epoch of ours is not there yet, and is sent at the next mount: {}",
            clean(&failure.text)
        );
    }
    context.out.done(&document, &text)
}

/// Archives an epoch of ours at once: whoever wrote there before is refused from then on, whatever its version.
fn first_epoch(context: &Context, root: &Path) -> Result<(), Failure> {
    let volume = Volume::open(root, Arc::clone(&context.clock))?;
    let time = civil(context.clock.now()).replace(':', "-");
    let deadline = Instant::now() + FIRST_EPOCH_PATIENCE;
    let archived = volume
        .close_epoch(Some(format!("take-over-{time}")))
        .and_then(|_| volume.wait(Durability::Archived, &mut |_| Instant::now() < deadline));
    let closed = volume.close(Duration::ZERO, &mut |_| {});
    archived?;
    closed?;
    Ok(())
}

fn told(taken: &TakeOver) -> String {
    let mut text = format!(
        "Volume {} at {} is ours from here on. Its newest epoch was {}, closed {}.",
        taken.volume,
        place_of(&taken.store),
        taken.epoch,
        moment(taken.time)
    );
    match &taken.set_aside {
        None => text
            .push_str(" It is of our own past: nothing was set aside, and what it lacks is sent."),
        Some(aside) => {
            let aside = clean(&aside.display().to_string());
            let _ = write!(
                text,
                " What was only here ({}) is in {aside}; look at it with tidefs -p {aside} mount --at now DIRECTORY.",
                count(taken.packs_set_aside, "pack")
            );
        }
    }
    text
}
