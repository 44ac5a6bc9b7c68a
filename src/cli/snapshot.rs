//! `tidefs snapshot`

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;

use crate::cli::args::Snapshot;
use crate::cli::output::{clean, moment};
use crate::cli::{Context, Outcome, time};
use crate::daemon::{Failure, Request};

#[derive(Deserialize)]
struct Row {
    epoch: u64,
    #[serde(default)]
    time: Option<i64>,
    #[serde(default)]
    name: Option<String>,
}

pub(super) fn run(context: &mut Context, snapshot: Snapshot) -> Outcome {
    if snapshot.list {
        return list(context);
    }
    if let Some(name) = &snapshot.name
        && time::is_time(name, context.clock.now())
    {
        return Err(Failure::usage(format!(
            "a snapshot cannot be called '{}', which means a time: choose another name",
            clean(name)
        )));
    }
    let document = context.ask(&Request::Snapshot {
        name: snapshot.name,
    })?;
    let row: Row = read(&document)?;
    let called = match (&row.name, row.time) {
        (Some(name), Some(time)) => format!(", '{}', of {}", clean(name), moment(time)),
        (None, Some(time)) => format!(", of {}", moment(time)),
        _ => String::new(),
    };
    let text = format!("Closed epoch {}{called}.", row.epoch);
    context.out.done(&document, &text)
}

fn list(context: &mut Context) -> Outcome {
    let document = context.ask(&Request::Epochs)?;
    let rows: Vec<Row> = read(&document)?;
    let mut text = format!("{:>8}  {:<23}  {}\n", "EPOCH", "CLOSED", "NAME");
    for row in &rows {
        let time = row.time.map(moment).unwrap_or_default();
        let name = clean(row.name.as_deref().unwrap_or(""));
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:>8}  {time:<23}  {name}", row.epoch);
    }
    if rows.is_empty() {
        text = "No epoch is closed yet: tidefs snapshot closes one.".into();
    }
    context.out.result(&document, &text)
}

fn read<T: serde::de::DeserializeOwned>(document: &Value) -> Result<T, Failure> {
    T::deserialize(document)
        .map_err(|error| Failure::failed(format!("the answer is not understood: {error}")))
}
