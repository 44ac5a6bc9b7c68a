//! What was typed, what it means, one call, and how the outcome is shown.
//!
//! In reading order: `args` (the words), `output` and `progress` (the only places that print), `time` (moments
//! as people write them), then a file for each command; `mount8` is the same mount as mount(8) calls it. No
//! decision about volumes is made here.

mod account;
mod args;
mod bridge;
mod bucket;
mod check;
mod daemon;
mod find;
mod fleet;
mod init;
mod item;
mod limits;
mod look;
mod mount;
mod mount8;
mod ops;
mod output;
mod progress;
mod restore;
mod scan;
mod serving;
mod snapshot;
mod source;
mod status;
mod store;
mod take_over;
mod time;
mod trial;
mod umount;
mod undelete;
mod units;
mod update;
mod wait;

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use serde_json::Value;

use crate::clock::{Clock, SystemClock};
use crate::daemon::opening::{Reach, reach};
use crate::daemon::operations::perform;
use crate::daemon::{Failure, FailureKind, Progress, Request, log, signals};
use crate::volume::store::{WORKER_WORD, work_in_processes};

use args::{Args, Command};
use output::Output;
use progress::Reporter;

/// What a command did, or why not.
type Outcome = Result<(), Failure>;

/// Runs the program as it was called.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let is_mount8 = args
        .first()
        .is_some_and(|name| name.as_bytes().ends_with(b"mount.tidefs"));
    // Before anything else: a worker has nothing of ours.
    if !is_mount8 && args.get(1).is_some_and(|word| word == WORKER_WORD) {
        return vfs::isolate::run_worker();
    }
    work_in_processes();
    if is_mount8 {
        return mount8::run(&args);
    }
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // 2 for wrong use, 0 for --help and --version; nobody to read it is no failure of ours.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let out = Output::new(args.json, args.quiet);
    let context = Context {
        path: args.path,
        reporter: Reporter::new(args.json, args.progress, args.quiet),
        out,
        clock: Arc::new(SystemClock),
    };
    out.finish(context.dispatch(args.command))
}

/// What every command has.
#[derive(Debug)]
struct Context {
    path: Option<PathBuf>,
    out: Output,
    reporter: Reporter,
    clock: Arc<dyn Clock>,
}

impl Context {
    fn dispatch(mut self, command: Command) -> Outcome {
        match &command {
            // Those that may serve, or have something to say when they are stopped, decide for themselves.
            Command::Mount(_) | Command::Bridge(_) | Command::Daemon(_) | Command::Restore(_) => {}
            _ => begin_command()?,
        }
        match command {
            Command::Init => init::run(&self),
            Command::Status => status::run(&mut self),
            Command::Bucket(command) => bucket::run(&mut self, *command),
            Command::Source(command) => source::run(&mut self, *command),
            Command::Scan(scan) => scan::run(&mut self, *scan),
            Command::Ops { command } => ops::run(&mut self, command),
            Command::Store(command) => store::run(&mut self, command),
            Command::Mount(mount) => mount::run(&mut self, mount),
            Command::Bridge(bridge) => bridge::run(&mut self, bridge),
            Command::Umount(umount) => umount::run(&mut self, &umount),
            Command::Daemon(daemon) => daemon::run(&mut self, &daemon),
            Command::Snapshot(snapshot) => snapshot::run(&mut self, snapshot),
            Command::Wait(wait) => wait::run(&mut self, &wait),
            Command::Limits(command) => limits::run(&mut self, command),
            Command::Fleet(fleet) => fleet::run(&mut self, &fleet),
            Command::Check(check) => check::run(&mut self, &check),
            Command::Restore(restore) => restore::run(&mut self, &restore),
            Command::Undelete(undelete) => undelete::run(&mut self, &undelete),
            Command::Account(command) => account::run(&mut self, command),
            Command::Item(item) => item::run(&mut self, item),
            Command::Find(find) => find::run(&mut self, &find),
        }
    }

    /// The backup path that was named, absolute.
    fn root(&self) -> Result<PathBuf, Failure> {
        let path = self
            .path
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty());
        let path = path.ok_or_else(|| {
            Failure::usage("which backup path? Name it with -p BACKUP_PATH, or set TIDEFS_PATH")
        })?;
        absolute(path)
    }

    /// Asks the volume: through its daemon, else by opening it.
    fn ask(&mut self, request: &Request) -> Result<Value, Failure> {
        let root = self.root()?;
        match reach(&root, &self.clock)? {
            Reach::Daemon(client) => client.ask(request, &mut |step| self.report(&step)),
            Reach::Open(volume) => {
                let outcome = perform(&volume, request, &mut |step| self.report(&step));
                let closed = volume.close(Duration::ZERO, &mut |_| {});
                let value = outcome?;
                closed?;
                Ok(value)
            }
        }
    }

    fn report(&mut self, step: &Progress) -> bool {
        self.reporter.show(step);
        true
    }
}

/// For a command that serves nothing: warnings are shown, and a signal ends it with the code for that. What
/// was acknowledged is safe wherever it ends.
fn begin_command() -> Outcome {
    signals::block()?;
    log::start("warn");
    signals::listen(|signal| {
        // Nobody to read it is no failure.
        let _ = writeln!(std::io::stderr(), "\ntidefs: stopped by {signal}");
        std::process::exit(i32::from(FailureKind::Stopped.exit_code()))
    })?;
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("'{}' is no path: {error}", path.display())))
}
