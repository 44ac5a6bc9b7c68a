//! `tidefs limits`

use std::num::NonZeroU64;
use std::time::SystemTime;

use serde_json::Value;
use vfs::Timetable;
use vfs::layer::timetable::{parse_count, parse_rate};

use crate::cli::args::{Limits as Command, LimitsSet};
use crate::cli::output::{clean, moment, size};
use crate::cli::{Context, Outcome};
use crate::daemon::client::Client;
use crate::daemon::{Failure, Request};
use crate::volume::init::read_identity;
use crate::volume::limits::LimitChange;
use crate::volume::settings::Settings;

pub(super) fn run(context: &mut Context, command: Command) -> Outcome {
    let document = match command {
        Command::Show => show(context)?,
        Command::Set(set) => context.ask(&Request::Limits {
            change: Some(change_of(set)?),
        })?,
    };
    let text = said(&document, context.clock.now().secs);
    context.out.result(&document, &text)
}

/// From the daemon, else from the settings: nothing has to be opened for it.
fn show(context: &Context) -> Result<Value, Failure> {
    let root = context.root()?;
    read_identity(&root)?;
    match Client::connect(&root)? {
        Some(client) => client.ask(&Request::Limits { change: None }, &mut |_| true),
        None => {
            let status = Settings::read(&root)?.limits.status(SystemTime::now())?;
            serde_json::to_value(status).map_err(|error| Failure::failed(error.to_string()))
        }
    }
}

fn change_of(set: LimitsSet) -> Result<LimitChange, Failure> {
    let number = |limit: Option<NonZeroU64>| limit.map_or(0, NonZeroU64::get);
    let read = |text: Option<String>, parse: fn(&str) -> Result<Option<NonZeroU64>, String>| {
        let parsed = text.map(|text| parse(text.trim())).transpose();
        parsed
            .map(|limit| limit.map(number))
            .map_err(Failure::usage)
    };
    let timetable = match set.timetable {
        Some(text) if text.trim().eq_ignore_ascii_case("none") => Some(String::new()),
        Some(text) => {
            Timetable::parse(&text).map_err(|reason| {
                Failure::usage(format!("the timetable is not understood: {reason}"))
            })?;
            Some(text)
        }
        None => None,
    };
    let change = LimitChange {
        upload_bytes_per_sec: read(set.upload, parse_rate)?,
        download_bytes_per_sec: read(set.download, parse_rate)?,
        requests_per_sec: read(set.requests, parse_count)?,
        timetable,
    };
    if change == LimitChange::default() {
        return Err(Failure::usage(
            "what is to be set? Name --upload, --download, --requests or --timetable",
        ));
    }
    Ok(change)
}

/// `upload 10.0 MiB/s, requests 50/s`; `None` where nothing is limited.
pub(super) fn in_words(limits: Option<&Value>) -> Option<String> {
    let number = |key: &str| limits?.get(key)?.as_u64();
    let parts = [
        number("upload_bytes_per_sec").map(|rate| format!("upload {}/s", size(rate))),
        number("download_bytes_per_sec").map(|rate| format!("download {}/s", size(rate))),
        number("requests_per_sec").map(|count| format!("{count} requests/s")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn said(document: &Value, now: i64) -> String {
    let unlimited = || "unlimited".to_owned();
    let set = in_words(document.get("set")).unwrap_or_else(unlimited);
    let table = document
        .pointer("/set/timetable")
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty());
    let Some(table) = table else {
        return set;
    };
    let now_in_force = in_words(document.get("in_force")).unwrap_or_else(unlimited);
    format!(
        "now        {now_in_force} ({})\ntimetable  {}\notherwise  {set}",
        moment(now),
        clean(table)
    )
}
