//! `tidefs daemon`

use std::sync::Arc;

use serde_json::{Value, json};

use crate::cli::args::Daemon;
use crate::cli::output::print;
use crate::cli::umount::ended;
use crate::cli::{Context, Outcome, begin_command};
use crate::daemon::client::Client;
use crate::daemon::opening::open_to_serve;
use crate::daemon::serve::{DRAIN_DEFAULT, Serving};
use crate::daemon::{Failure, Request, arenas, log, signals};

pub(super) fn run(context: &mut Context, daemon: &Daemon) -> Outcome {
    let root = context.root()?;
    if daemon.stop {
        begin_command()?;
        return stop(context, &root);
    }
    arenas::limit()?;
    signals::block()?;
    log::start("info");
    let clock = Arc::clone(&context.clock);
    let volume = open_to_serve(&root, &clock, &mut |step| context.report(&step))?;
    context.reporter.clear();
    let (serving, control) = Serving::start(volume, None, clock.now().secs)?;
    let document = json!({ "ready": { "backup_path": root, "pid": std::process::id() } });
    let text = if context.out.is_json() {
        document.to_string()
    } else {
        format!("ready {}", root.display())
    };
    serving.run(control, None, || {
        // A log that nobody reads is no reason to end.
        let _ = print(&text);
        Ok(())
    })
}

fn stop(context: &mut Context, root: &std::path::Path) -> Outcome {
    let Some(client) = Client::connect(root)? else {
        return Err(Failure::failed(format!(
            "no daemon serves {}: there is nothing to stop",
            root.display()
        )));
    };
    let drain_ms = u64::try_from(DRAIN_DEFAULT.as_millis()).unwrap_or(u64::MAX);
    let left: Value = client.ask(&Request::Stop { drain_ms }, &mut |step| {
        context.report(&step)
    })?;
    context.reporter.clear();
    let text = format!("Stopped. {}", ended(&left));
    context.out.done(&left, &text)
}
