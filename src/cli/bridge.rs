//! `tidefs bridge`: the raw objects of an external volume as a directory.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use vfs::Spec;

use crate::cli::args::Bridge as Command;
use crate::cli::output::clean;
use crate::cli::serving::{Ready, check_mountpoint, discard_empty, in_background, in_foreground};
use crate::cli::{Context, Outcome, absolute, begin_command};
use crate::daemon::serve::serve_view;
use crate::daemon::{Failure, background, log};
use crate::error::Error;
use crate::fuse::{self, BridgeTree, Lifetimes, MountOptions, OptionList};
use crate::volume::place;
use crate::volume::settings::REMOTE_TIMEOUT;
use crate::volume::store::open_spec;

/// Each takes a request and may wait for the volume with it.
const THREADS: usize = 16;
/// Somebody else may change the volume, its owner above all.
const LIFETIMES: Lifetimes = Lifetimes {
    known: Duration::from_secs(1),
    missing: Duration::ZERO,
};

/// What is shown, and where.
#[derive(Debug)]
struct Plan {
    spec: Spec,
    mountpoint: PathBuf,
    options: MountOptions,
    options_text: String,
}

pub(super) fn run(context: &mut Context, command: Command) -> Outcome {
    let (foreground, background_log) = (command.foreground, command.background_log.clone());
    let (plan, is_foreground) = Plan::new(command)?;
    if let Some(log) = background_log {
        return in_background(context, (&log, true), |_, ready| plan.serve(ready));
    }
    check_mountpoint(context, &plan.mountpoint)?;
    if foreground || is_foreground {
        let mountpoint = plan.mountpoint.clone();
        return in_foreground(context, &mountpoint, |_, ready| plan.serve(ready));
    }
    begin_command()?;
    let ready = plan.launch()?;
    context.out.done(&ready, &said(&ready))
}

impl Plan {
    /// Also tells whether the options want it in the foreground.
    fn new(command: Command) -> Result<(Plan, bool), Failure> {
        let spec = Spec::parse(&command.spec)
            .map_err(|error| Failure::usage(Failure::from(error).text))?;
        let options_text = command.options.join(",");
        let list =
            OptionList::parse(&options_text).map_err(|error| Failure::usage(error.chain()))?;
        if list.external.is_some() || list.at.is_some() || list.account.is_some() {
            return Err(Failure::usage(
                "a bridge shows the objects of a volume, not its files: external=, at= and account= belong to tidefs mount",
            ));
        }
        let options = MountOptions {
            source: format!("bridge:{spec}"),
            read_only: list.mount.read_only || command.read_only,
            threads: THREADS,
            lifetimes: LIFETIMES,
            ..list.mount
        };
        let plan = Plan {
            spec,
            mountpoint: absolute(&command.mountpoint)?,
            options,
            options_text,
        };
        Ok((plan, list.foreground))
    }

    fn launch(&self) -> Result<Value, Failure> {
        let (log_path, log) = log::open_temporary()?;
        let mut args: Vec<OsString> = vec!["bridge".into(), "--foreground".into()];
        args.extend(["--background-log".into(), log_path.clone().into()]);
        if self.options.read_only {
            args.push("--read-only".into());
        }
        if !self.options_text.is_empty() {
            args.extend(["-o".into(), (&self.options_text).into()]);
        }
        args.extend(["--".into(), self.spec.to_string().into()]);
        args.push((&self.mountpoint).into());
        let ready = background::launch(&args, log, &log_path);
        if ready.is_err() {
            discard_empty(&log_path);
        }
        ready
    }

    fn serve(&self, ready: Ready<'_>) -> Outcome {
        let volume = open(&self.spec)?;
        let temporary = std::env::temp_dir();
        let bridge = vfs::bridge::Bridge::new(volume, temporary, self.options.read_only)
            .map_err(Error::io("start", "the threads of the bridge"))?;
        let tree = BridgeTree::new(bridge, self.options.allow_other == Some(true));
        let mounted = fuse::mount(tree, &self.mountpoint, &self.options)?;
        let document = json!({
            "mountpoint": mounted.mountpoint(),
            "bridge": self.spec.to_string(),
            "read_only": self.options.read_only,
            "pid": std::process::id(),
        });
        serve_view(mounted, || ready(document))
    }
}

fn open(spec: &Spec) -> Result<Arc<dyn vfs::Volume>, Failure> {
    if let Spec::Dir(path) = spec {
        place::admit_a_look(path)?;
    }
    Ok(open_spec(spec, REMOTE_TIMEOUT)?.volume)
}

fn said(ready: &Value) -> String {
    let word = |key: &str| ready.get(key).and_then(Value::as_str).map(clean);
    let spec = word("bridge").unwrap_or_default();
    let mountpoint = word("mountpoint").unwrap_or_default();
    let how = if ready.get("read_only").and_then(Value::as_bool) == Some(true) {
        ", read-only"
    } else {
        ""
    };
    format!("The objects of {spec} are at {mountpoint}{how}.")
}
