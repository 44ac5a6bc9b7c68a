//! `tidefs store`

use std::path::Path;

use serde_json::{Value, json};
use vfs::Spec;
use vfs::dir::Assessment;

use crate::buckets::{Registry, find};
use crate::cli::args::{Store as Command, StoreSet};
use crate::cli::output::{clean, count};
use crate::cli::take_over;
use crate::cli::trial::{table, try_out};
use crate::cli::{Context, Outcome, absolute, update};
use crate::daemon::client::Client;
use crate::daemon::{BucketPlace, Failure, Request};
use crate::volume::choice::Choice;
use crate::volume::init::{external_identity, read_identity};
use crate::volume::place::{self, Look};
use crate::volume::settings::{REMOTE_TIMEOUT, Settings, Store};
use crate::volume::store::open_spec;

pub(super) fn run(context: &mut Context, command: Command) -> Outcome {
    match command {
        Command::Set(StoreSet::Local) => set(context, Request::store_set(None, None)),
        Command::Set(StoreSet::S3 {
            bucket,
            prefix,
            take_over: true,
        }) => take_over::run(context, &Choice::S3 { bucket, prefix }),
        Command::Set(StoreSet::S3 { bucket, prefix, .. }) => {
            let place = BucketPlace { bucket, prefix };
            set(context, Request::store_set(None, Some(place)))
        }
        Command::Set(StoreSet::Dir {
            directory,
            take_over: true,
            force,
            fstab,
        }) => {
            let directory = absolute(&directory)?;
            let look = Look {
                fstab: fstab.as_deref(),
                forced: force,
            };
            place::admit(&directory, look)?;
            take_over::run(context, &Choice::Dir(directory))
        }
        Command::Set(StoreSet::Dir {
            directory,
            force,
            fstab,
            ..
        }) => {
            let request = Request::StoreSet {
                path: Some(absolute(&directory)?),
                force,
                // For a daemon has another working directory.
                fstab: fstab.as_deref().map(absolute).transpose()?,
                bucket: None,
            };
            set(context, request)
        }
        Command::Show => show(context),
        Command::Update(change) => update::run(context, &change),
        Command::Test { spec, fstab } => test(context, spec.as_deref(), fstab.as_deref()),
    }
}

fn set(context: &mut Context, request: Request) -> Outcome {
    let document = context.ask(&request)?;
    for warning in words(&document, "warnings") {
        context.out.note(&warning);
    }
    let text = match store_of(&document) {
        None | Some(Store::Local) => {
            "Packs stay in the backup path: they are the only copy.".into()
        }
        Some(store) => format!("Packs and metadata go to {} from now on.", place_of(&store)),
    };
    context.out.done(&document, &text)
}

fn words(document: &Value, key: &str) -> Vec<String> {
    let list = document.get(key).and_then(Value::as_array);
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

fn store_of(document: &Value) -> Option<Store> {
    serde_json::from_value(document.get("store")?.clone()).ok()
}

fn show(context: &mut Context) -> Outcome {
    let root = context.root()?;
    read_identity(&root)?;
    let store = Settings::read(&root)?.store;
    let upload = match Client::connect(&root)? {
        None => None,
        Some(client) => {
            let status = client.ask(&Request::Status, &mut |_| true)?;
            status.get("upload").cloned()
        }
    };
    let word = |key: &str| {
        let value = upload.as_ref()?.get(key)?.as_str()?;
        Some(clean(value))
    };
    let text = match store.copy() {
        None => "local: packs stay in the backup path; there is no external volume".into(),
        Some(copy) => {
            let state = match (word("state"), word("reason")) {
                (Some(state), Some(reason)) => format!(", {state}: {reason}"),
                (Some(state), None) => format!(", {state}"),
                _ => String::new(),
            };
            format!("{} (copy {copy}){state}", place_of(&store))
        }
    };
    context
        .out
        .result(&json!({ "store": store, "upload": upload }), &text)
}

fn test(context: &mut Context, spec: Option<&str>, fstab: Option<&Path>) -> Outcome {
    let spec = match spec {
        Some(text) => Spec::parse(text)?,
        None => spec_of(context)?,
    };
    let place = match &spec {
        Spec::Dir(path) => Some(look_at(path, fstab)?),
        _ => None,
    };
    let volume = open_spec(&spec, REMOTE_TIMEOUT)?.volume;
    let belongs = external_identity(&*volume)?;
    let trial = try_out(&*volume)?;
    tell_daemon(context, &spec);
    let mut warnings = place
        .as_ref()
        .map_or_else(Vec::new, |found| place::concerns(found, None));
    // The bucket behind a mount is known from outside and by trying.
    let tried = trial
        .profile
        .warnings
        .iter()
        .filter(|text| !warnings.contains(text));
    let tried: Vec<String> = tried.cloned().collect();
    warnings.extend(tried);
    let mut document = trial.document();
    let more = json!({
        "spec": spec.to_string(),
        "volume": belongs.as_ref().map(|identity| &identity.volume),
        "owner": belongs.as_ref().map(|identity| &identity.owner),
        "place": place.as_ref().map(place_document),
        "warnings": warnings,
    });
    if let (Some(document), Value::Object(more)) = (document.as_object_mut(), more) {
        document.extend(more);
    }
    let holds = match &belongs {
        Some(identity) => format!("volume {} of {}", identity.volume, identity.owner),
        None => "no tidefs volume yet".into(),
    };
    let mut lines = vec![("external volume", spec.to_string()), ("holds", holds)];
    lines.extend(trial.lines());
    lines.extend(warnings.iter().map(|warning| ("WARNING", warning.clone())));
    let is_refused = place.is_some_and(|found| found.refusal(false).is_some());
    let verdict = if is_refused {
        "put, read back and deleted, but store set refuses it without --force".into()
    } else if warnings.is_empty() {
        "put, read back and deleted: all well".into()
    } else {
        format!("usable, with {}", count(warnings.len() as u64, "warning"))
    };
    lines.push(("verdict", verdict));
    context.out.result(&document, &table(&lines))
}

/// A daemon that looks for this very volume in pauses may look now. That nobody hears it is no failure of the test.
fn tell_daemon(context: &Context, tested: &Spec) {
    let Ok(root) = context.root() else { return };
    let is_its_own = Settings::read(&root).is_ok_and(|it| it.store.spec().as_ref() == Some(tested));
    if is_its_own && let Ok(Some(client)) = Client::connect(&root) {
        let _ = client.ask(&Request::StoreLook, &mut |_| true);
    }
}

/// Nothing is written where nothing ever should be; what can be forced can be tried.
fn look_at(path: &Path, fstab: Option<&Path>) -> Result<Assessment, Failure> {
    let look = Look {
        fstab,
        forced: true,
    };
    Ok(place::admit(path, look)?)
}

fn place_document(found: &Assessment) -> Value {
    let refusals: Vec<&str> = found
        .refusals
        .iter()
        .map(|refusal| refusal.text.as_str())
        .collect();
    json!({
        "mount_point": found.mount_point,
        "file_system": found.file_system,
        "source": found.source,
        "options": found.options,
        "fstab_expects_mount": found.fstab_expects_mount,
        "refusals": refusals,
    })
}

fn spec_of(context: &Context) -> Result<Spec, Failure> {
    let root = context.root()?;
    read_identity(&root)?;
    Settings::read(&root)?.store.spec().ok_or_else(|| {
        Failure::usage(
            "there is no external volume to test: name one (tidefs store test dir:/path), or set one with \
             tidefs store set",
        )
    })
}

/// Where it is, for people: a bucket by its label, where there is one.
pub(super) fn place_of(store: &Store) -> String {
    let text = match store {
        Store::S3 { bucket, prefix, .. } => {
            let known = Registry::of_this_machine().buckets().unwrap_or_default();
            let label = find(&known, bucket).map_or(bucket, |bucket| &bucket.label);
            let bucket_id = label.clone();
            let prefix = prefix.clone();
            Spec::S3Bucket { bucket_id, prefix }.to_string()
        }
        other => other.to_string(),
    };
    clean(&text)
}
