//! `tidefs bucket`: the buckets that this machine knows.
//!
//! `words` (what can be typed), `secret` (where keys come from), `edit` (add and update); the rest is here.

mod edit;
mod secret;
mod words;

use std::path::Path;

use serde_json::{Value, json};

use crate::buckets::{Bucket, Registry, Use, find};
use crate::cli::output::{clean, columns, count, moment, size};
use crate::cli::trial::table;
use crate::cli::{Context, Outcome};
use crate::daemon::Failure;
use crate::error::{Error, Result as EngineResult};
use crate::maintain::usage::{Usage, usage};
use crate::volume::settings::{Settings, Store};

pub(super) use words::Bucket as Command;

pub(super) fn run(context: &mut Context, command: Command) -> Outcome {
    match command {
        Command::Add(words) => edit::add(context, words),
        Command::Update(words) => edit::update(context, words),
        Command::Remove { bucket, force } => remove(context, &bucket, force),
        Command::List { usage } => list(context, usage),
        Command::Show { bucket, reveal } => show(context, &bucket, reveal),
        Command::Test { bucket } => test(context, &bucket),
    }
}

/// What a backup path that was entered as a user says itself.
enum Says {
    Uses,
    DoesNot,
    /// Not to be had: its disk may be away.
    Nothing,
}

fn asked(path: &Path, id: &str) -> Says {
    match Settings::read(path) {
        Ok(Settings {
            store: Store::S3 { bucket, .. },
            ..
        }) if bucket == id => Says::Uses,
        Ok(_) => Says::DoesNot,
        Err(_) => Says::Nothing,
    }
}

fn remove(context: &Context, name: &str, force: bool) -> Outcome {
    let registry = Registry::of_this_machine();
    let removed = registry.change(|buckets| {
        let bucket = find(buckets, name)?.clone();
        refuse_used(&bucket, force)?;
        buckets.retain(|other| other.id != bucket.id);
        Ok(bucket)
    })?;
    let document = json!({ "removed": { "id": removed.id, "label": removed.label } });
    let text = format!(
        "The bucket '{}' is forgotten, with its keys; what is in it stays.",
        clean(&removed.label)
    );
    context.out.done(&document, &text)
}

/// Entries whose backup path says otherwise are stale.
fn refuse_used(bucket: &Bucket, force: bool) -> EngineResult<()> {
    let shown = |paths: &[&Use]| {
        let paths = paths.iter().map(|user| user.path.display().to_string());
        paths.collect::<Vec<_>>().join(", ")
    };
    let (mut users, mut silent) = (Vec::new(), Vec::new());
    for user in &bucket.used_by {
        match asked(&user.path, &bucket.id) {
            Says::Uses => users.push(user),
            Says::Nothing => silent.push(user),
            Says::DoesNot => {}
        }
    }
    if !users.is_empty() {
        return Err(Error::Refused(format!(
            "the bucket '{}' is in use by {}: set another external volume there first (tidefs -p PATH store set)",
            bucket.label,
            shown(&users)
        )));
    }
    if !silent.is_empty() && !force {
        return Err(Error::Refused(format!(
            "the bucket '{}' was in use by {}, which cannot be looked at: mount its disk; or, if it is gone for good, \
             use --force",
            bucket.label,
            shown(&silent)
        )));
    }
    Ok(())
}

fn list(context: &Context, with_usage: bool) -> Outcome {
    let buckets = Registry::of_this_machine().buckets()?;
    let mut documents = Vec::new();
    let mut rows = vec![
        ["LABEL", "TYPE", "PLACE", "USED BY", "ID"]
            .map(String::from)
            .to_vec(),
    ];
    let mut text = String::new();
    let mut failure = None;
    for bucket in &buckets {
        let mut document = bucket.document(false)?;
        rows.push(vec![
            bucket.label.clone(),
            bucket.preset.to_string(),
            bucket.s3.to_string(),
            used_by(bucket),
            bucket.id.clone(),
        ]);
        if with_usage {
            // One that is away is no reason not to tell of the others.
            let counted = edit::open(bucket, "").and_then(|volume| Ok(usage(&*volume)?));
            let (told, shown) = match counted {
                Ok(usage) => (json!(usage), usage_text(bucket, &usage)),
                Err(error) => {
                    let shown = format!("\n{}: {}\n", bucket.label, error.text);
                    let told = json!({ "error": error.text });
                    failure.get_or_insert(error.kind);
                    (told, shown)
                }
            };
            text.push_str(&shown);
            if let Some(document) = document.as_object_mut() {
                document.insert("usage".into(), told);
            }
        }
        documents.push(document);
    }
    let table = if buckets.is_empty() {
        "no buckets are known on this machine: tidefs bucket add adds one".into()
    } else {
        columns(&rows)
    };
    let text = format!("{table}{text}");
    context
        .out
        .result(&json!({ "buckets": documents }), &text)?;
    failure.map_or(Ok(()), |kind| Err(Failure::told(kind)))
}

fn used_by(bucket: &Bucket) -> String {
    match &bucket.used_by[..] {
        [] => "nobody".into(),
        [user] => user.path.display().to_string(),
        several => count(several.len() as u64, "backup path"),
    }
}

fn usage_text(bucket: &Bucket, usage: &Usage) -> String {
    let mut rows = vec![
        ["", "VOLUME BELOW", "OBJECTS", "SIZE", "OWNER"]
            .map(String::from)
            .to_vec(),
    ];
    for volume in &usage.volumes {
        rows.push(vec![
            String::new(),
            if volume.prefix.is_empty() {
                "(all of it)".into()
            } else {
                volume.prefix.clone()
            },
            volume.objects.to_string(),
            size(volume.bytes),
            volume.owner.clone().unwrap_or_else(|| "unknown".into()),
        ]);
    }
    if usage.other_objects > 0 {
        rows.push(vec![
            String::new(),
            "(of no volume)".into(),
            usage.other_objects.to_string(),
            size(usage.other_bytes),
            String::new(),
        ]);
    }
    format!("\n{}:\n{}", clean(&bucket.label), columns(&rows))
}

fn show(context: &Context, name: &str, reveal: bool) -> Outcome {
    let buckets = Registry::of_this_machine().buckets()?;
    let bucket = find(&buckets, name)?;
    let document = bucket.document(reveal)?;
    let mut lines = vec![
        ("label", bucket.label.clone()),
        ("id", bucket.id.clone()),
        ("type", bucket.preset.title().to_owned()),
        ("place", bucket.s3.to_string()),
        ("region", bucket.s3.region.clone()),
    ];
    lines.extend(keys_text(&document));
    if !bucket.notes.is_empty() {
        lines.push(("notes", bucket.notes.clone()));
    }
    for user in &bucket.used_by {
        let stale = match asked(&user.path, &bucket.id) {
            Says::Uses => "",
            Says::DoesNot => " (no longer)",
            Says::Nothing => " (cannot be looked at)",
        };
        let path = user.path.display();
        lines.push(("used by", format!("{path}, below '{}'{stale}", user.prefix)));
    }
    let probed = bucket
        .profile
        .as_ref()
        .and_then(|profile| profile.get("probed")?.as_i64());
    let tested = probed.map_or_else(|| "never".into(), moment);
    lines.push(("tested", tested));
    context.out.result(&document, &table(&lines))
}

/// Whose keys are used, and with `--reveal` the secret ones, as the document has them.
fn keys_text(document: &Value) -> Vec<(&'static str, String)> {
    let keys = document.pointer("/s3/credentials");
    let word = |path: &str| {
        let found = keys.and_then(|keys| keys.pointer(path))?.as_str()?;
        Some(found.to_owned())
    };
    let whose = word("/static/access_key")
        .or_else(|| word("/profile/name").map(|name| format!("of the profile {name}")))
        .unwrap_or_else(|| "from the environment".into());
    let mut lines = vec![("keys", whose)];
    lines.extend(word("/static/secret").map(|secret| ("SECRET", secret)));
    lines.extend(word("/static/session_token").map(|token| ("SESSION TOKEN", token)));
    lines
}

fn test(context: &Context, name: &str) -> Outcome {
    let registry = Registry::of_this_machine();
    let mut bucket = find(&registry.buckets()?, name)?.clone();
    let Some(trial) = edit::examine(context, &mut bucket, false)? else {
        return Ok(());
    };
    // Of one that was changed or removed meanwhile nothing is known yet.
    registry.change(|buckets| {
        let same = |other: &&mut Bucket| other.id == bucket.id && other.s3 == bucket.s3;
        if let Some(kept) = buckets.iter_mut().find(same) {
            kept.profile.clone_from(&bucket.profile);
        }
        Ok(())
    })?;
    let mut lines = vec![("bucket", format!("{} ({})", bucket.label, bucket.s3))];
    lines.extend(trial.lines());
    let warnings = &trial.profile.warnings;
    lines.extend(warnings.iter().map(|warning| ("WARNING", warning.clone())));
    lines.push((
        "verdict",
        if warnings.is_empty() {
            "put, read back, listed and deleted: all well".into()
        } else {
            format!("usable, with {}", count(warnings.len() as u64, "warning"))
        },
    ));
    let document = json!({ "id": bucket.id, "label": bucket.label, "profile": bucket.profile });
    context.out.result(&document, &table(&lines))
}
