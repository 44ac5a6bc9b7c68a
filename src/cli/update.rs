//! `tidefs store update`

use serde::Deserialize;

use crate::cli::args::{AckMode, StoreUpdate};
use crate::cli::output::{size, span};
use crate::cli::{Context, Outcome};
use crate::daemon::{Failure, Request};
use crate::volume::ack::Ack;
use crate::volume::init::read_identity;
use crate::volume::settings::Settings;
use crate::volume::update::SettingsChange;

impl From<AckMode> for Ack {
    fn from(mode: AckMode) -> Ack {
        match mode {
            AckMode::Local => Ack::Local,
            AckMode::Remote => Ack::Remote,
            AckMode::PageCache => Ack::PageCache,
        }
    }
}

pub(super) fn run(context: &mut Context, words: &StoreUpdate) -> Outcome {
    let change = SettingsChange {
        unsent_bytes_max: words.unsent_budget,
        cache_bytes: words.cache,
        read_cache_bytes: words.read_cache,
        evict_after_secs: words.evict_after,
        reserve_bytes: words.reserve,
        remote_timeout_secs: words.remote_timeout,
        uploads_in_flight: words.uploads,
        ack: words.ack.map(Ack::from),
    };
    if change == SettingsChange::default() {
        return show(context);
    }
    let document = context.ask(&Request::StoreUpdate { change })?;
    let settings = Settings::deserialize(&document)
        .map_err(|error| Failure::failed(format!("the answer is not understood: {error}")))?;
    context.out.done(&document, &text(&settings))
}

/// What is set, which needs no volume to be open.
fn show(context: &Context) -> Outcome {
    let root = context.root()?;
    read_identity(&root)?;
    let settings = Settings::read(&root)?;
    let document =
        serde_json::to_value(&settings).map_err(|error| Failure::failed(error.to_string()))?;
    context.out.result(&document, &text(&settings))
}

fn text(settings: &Settings) -> String {
    let budget = match settings.unsent_bytes_max {
        0 => "auto: as much as the disk holds".into(),
        bytes => size(bytes),
    };
    let lines = [
        ("unsent budget", budget),
        ("cache", size(settings.cache_bytes)),
        ("read cache", size(settings.read_cache_bytes)),
        ("evict after", span(settings.evict_after_secs)),
        ("reserve", size(settings.reserve_bytes)),
        ("remote timeout", span(settings.remote_timeout_secs)),
        ("uploads", settings.uploads_in_flight.to_string()),
        ("ack", settings.ack.name().into()),
    ];
    let line = |(key, value): &(&str, String)| format!("{key:<16} {value}\n");
    lines.iter().map(line).collect()
}
