//! `tidefs wait`

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::cli::args::Wait;
use crate::cli::output::clean;
use crate::cli::{Context, Outcome};
use crate::daemon::client::Client;
use crate::daemon::{Failure, Request, Until};
use crate::error::Error;

pub(super) fn run(context: &mut Context, wait: &Wait) -> Outcome {
    let until = Until::from(wait.until);
    let below = match &wait.below {
        Some(path) => Some(number_of(context, path)?),
        None => None,
    };
    let request = Request::Wait {
        until,
        timeout_ms: wait.timeout.map(|secs| secs.saturating_mul(1000)),
        below,
    };
    let document = context.ask(&request)?;
    context.reporter.clear();
    let what = match &wait.below {
        Some(path) => format!("{} as it was", clean(&path.display().to_string())),
        None => "all that was written so far".into(),
    };
    let text = match until {
        Until::Local => format!("Safe from a power cut of this machine: {what}."),
        Until::External => format!("With its bytes on the external volume: {what}."),
        Until::Archived => format!("Given back by the external volume alone: {what}."),
    };
    context.out.done(&document, &text)
}

/// The inode of `path`, which must lie in the mount of this very backup path.
fn number_of(context: &Context, path: &Path) -> Result<u64, Failure> {
    let root = context.root()?;
    let shown = clean(&path.display().to_string());
    let elsewhere = || {
        Failure::usage(format!(
            "{shown} is not in a mount of {}: name a file or directory below its mount point",
            root.display()
        ))
    };
    let client = Client::connect(&root)?.ok_or_else(elsewhere)?;
    let status = client.ask(&Request::Status, &mut |_| true)?;
    let mountpoint = status
        .get("daemon")
        .and_then(|daemon| daemon.get("mountpoint"))
        .and_then(|mountpoint| mountpoint.as_str())
        .ok_or_else(elsewhere)?;
    let found = fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
    let mount = fs::metadata(mountpoint).map_err(Error::io("look at", mountpoint))?;
    if found.dev() == mount.dev() {
        Ok(found.ino())
    } else {
        Err(elsewhere())
    }
}
