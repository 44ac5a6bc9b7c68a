//! A command that serves a mount: in the foreground, or as the process in the background that somebody waits for.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::output::print;
use crate::cli::{Context, Outcome};
use crate::daemon::protocol::Answer;
use crate::daemon::serve::clear_dead_mount;
use crate::daemon::{Failure, background, log, signals};

/// Called once when it serves, with what is told of it.
pub(super) type Ready<'a> = &'a mut dyn FnMut(Value) -> io::Result<()>;

/// Finds what is wrong with a mount point before anything is begun; a dead mount of ours is removed.
pub(super) fn check_mountpoint(context: &Context, mountpoint: &Path) -> Outcome {
    let shown = mountpoint.display();
    if clear_dead_mount(mountpoint)? {
        context.out.note(&format!(
            "removed the dead mount at {shown}: its daemon had ended without unmounting"
        ));
    }
    match fs::metadata(mountpoint) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Failure::failed(format!(
            "{shown} is not a directory: mount on an empty one"
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::failed(format!(
            "the mount point {shown} does not exist: create it first"
        ))),
        Err(error) => Err(Failure::failed(format!(
            "cannot look at the mount point {shown}: {error}"
        ))),
    }
}

/// Serves here, and says on standard output when it does.
pub(super) fn in_foreground(
    context: &mut Context,
    mountpoint: &Path,
    serve: impl FnOnce(&mut Context, Ready<'_>) -> Outcome,
) -> Outcome {
    signals::block()?;
    log::start("info");
    let is_json = context.out.is_json();
    serve(context, &mut |ready| {
        let text = if is_json {
            json!({ "ready": ready }).to_string()
        } else {
            format!("ready {}", mountpoint.display())
        };
        // Served all the same if nobody reads it.
        let _ = print(&text);
        Ok(())
    })
}

/// Serves as the process that somebody started and waits for. `is_own_log`: the log is this mount's alone, and empty it
/// is of no use.
pub(super) fn in_background(
    context: &mut Context,
    (log_path, is_own_log): (&Path, bool),
    serve: impl FnOnce(&mut Context, Ready<'_>) -> Outcome,
) -> Outcome {
    signals::block()?;
    log::start("info");
    background::detach()?;
    let mut is_told = false;
    let outcome = serve(context, &mut |mut ready| {
        is_told = true;
        if let Some(ready) = ready.as_object_mut() {
            ready.insert("log".into(), json!(log_path));
        }
        background::tell(&Answer::Done(ready))
    });
    if is_own_log && outcome.is_ok() {
        discard_empty(log_path);
    }
    match outcome {
        // Who waits shows it; if nobody does, the log has it.
        Err(failure) if !is_told => {
            background::tell(&Answer::Failed(failure.clone())).or(Err(failure))
        }
        outcome => outcome,
    }
}

/// A log in which nothing stands is no use to anybody.
pub(super) fn discard_empty(path: &Path) {
    if fs::metadata(path).is_ok_and(|found| found.len() == 0) {
        // It stays then: an empty file.
        let _ = fs::remove_file(path);
    }
}
