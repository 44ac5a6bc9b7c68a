//! `tidefs ops`

use std::path::Path;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::output::{clean, columns, moment, size};
use crate::cli::{Context, Outcome};
use crate::daemon::client::Client;
use crate::daemon::{Failure, Request};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show how far an operation is until it ends, and end as it does
    Watch {
        /// Its number
        id: u64,
    },
    /// End an operation. What it did stays, and the next one goes on
    Stop {
        /// Its number
        id: u64,
    },
}

pub(super) fn run(context: &mut Context, command: Option<Command>) -> Outcome {
    let root = context.root()?;
    match command {
        None => list(context, &root),
        Some(Command::Watch { id }) => {
            let client = connect(&root, id)?;
            let outcome = client.ask(&Request::OpsWatch { id }, &mut |step| context.report(&step));
            context.reporter.clear();
            let document = outcome?;
            context
                .out
                .done(&document, &format!("Operation {id} is done."))
        }
        Some(Command::Stop { id }) => {
            let client = connect(&root, id)?;
            let document = client.ask(&Request::OpsStop { id }, &mut |_| true)?;
            let about = clean(document.get("about").and_then(Value::as_str).unwrap_or(""));
            let kind = clean(document.get("kind").and_then(Value::as_str).unwrap_or(""));
            let said = format!("Operation {id}, {kind} of {about}, is told to end.");
            context.out.done(&document, &said)
        }
    }
}

fn connect(root: &Path, id: u64) -> Result<Client, Failure> {
    Client::connect(root)?.ok_or_else(|| {
        Failure::failed(format!(
            "there is no operation {id}: nobody is at {}",
            root.display()
        ))
    })
}

fn list(context: &mut Context, root: &Path) -> Outcome {
    let document = match Client::connect(root)? {
        Some(client) => client.ask(&Request::Ops, &mut |_| true)?,
        None => json!([]),
    };
    let ops = document.as_array().cloned().unwrap_or_default();
    if ops.is_empty() {
        return context.out.result(&document, "Nothing is running.");
    }
    let mut rows = vec![
        ["ID", "STATE", "SINCE", "OPERATION", "PROGRESS"]
            .map(String::from)
            .to_vec(),
    ];
    rows.extend(ops.iter().map(row));
    context.out.result(&document, &columns(&rows))
}

fn row(op: &Value) -> Vec<String> {
    let text = |key: &str| op.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let since = op.get("since").and_then(Value::as_i64);
    let done = op.pointer("/progress/done_bytes").and_then(Value::as_u64);
    let items = op.pointer("/progress/files/done").and_then(Value::as_u64);
    let progress = match (items, done) {
        (Some(items), Some(done)) => format!("{items} items, {}", size(done)),
        (None, Some(done)) => size(done),
        _ => op
            .pointer("/failure/text")
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned(),
    };
    vec![
        op.get("id").map(Value::to_string).unwrap_or_default(),
        text("state"),
        since.map(moment).unwrap_or_default(),
        format!("{} {}", text("kind"), text("about")),
        progress,
    ]
}
