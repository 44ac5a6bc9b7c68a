//! `bucket add` and `bucket update`: what was typed becomes a configuration, is tried out, and is kept.

use serde_json::{Value, json};
use vfs::s3::{Addressing, StorageClasses};
use vfs::{ObjectKey, S3Config, Spec, Volume};

use super::secret;
use super::words::{Add, Place, Update};
use crate::buckets::{Bucket, Expectation, Preset, Registry, Use, check_label, find};
use crate::cli::output::clean;
use crate::cli::trial::{Trial, table, try_out};
use crate::cli::{Context, Outcome, absolute};
use crate::clock::random;
use crate::daemon::client::Client;
use crate::daemon::{Failure, FailureKind, Request};
use crate::format::record::IDENTITY_NAME;
use crate::types::Uuid;
use crate::volume::init::external_identity;

pub(super) fn add(context: &mut Context, words: Add) -> Outcome {
    check_label(&words.label).map_err(Failure::usage)?;
    let registry = Registry::of_this_machine();
    // Before anything is asked: a damaged list, or a label that is taken, is told at once.
    if find(&registry.buckets()?, &words.label).is_ok() {
        return Err(taken(&words.label));
    }
    let mut s3 = S3Config::new("", words.bucket);
    s3.addressing = words.preset.addressing();
    let region = words.place.region.clone();
    s3.region = region
        .or_else(|| words.preset.region().map(str::to_owned))
        .ok_or_else(|| {
            Failure::usage(format!(
                "which region? {} has no usual one: --region",
                words.preset.title()
            ))
        })?;
    s3.endpoint = words
        .preset
        .endpoint(&s3.region)
        .or_else(|| words.place.endpoint.clone())
        .ok_or_else(|| Failure::usage("where is the server? --endpoint https://host[:port]"))?;
    apply(&mut s3, &words.place)?;
    s3.check()?;
    s3.credentials = secret::credentials(&words.keys)?;
    let mut bucket = Bucket {
        id: Uuid(random()?).to_string(),
        label: words.label,
        preset: words.preset,
        notes: words.place.notes.unwrap_or_default(),
        s3,
        created: context.clock.now_secs(),
        profile: None,
        used_by: Vec::new(),
    };
    let trial = examine(context, &mut bucket, words.no_test)?;
    registry.change(|buckets| {
        buckets.push(bucket.clone());
        Ok(())
    })?;
    let text = format!("The bucket '{}' is known as {}.", bucket.label, bucket.id);
    told(context, &bucket, trial.as_ref(), &text)
}

fn taken(label: &str) -> Failure {
    let label = clean(label);
    Failure::failed(format!(
        "there is a bucket '{label}' already: choose another label, or change that one with tidefs bucket update"
    ))
}

pub(super) fn update(context: &mut Context, words: Update) -> Outcome {
    let registry = Registry::of_this_machine();
    let known = registry.buckets()?;
    let before = find(&known, &words.which)?.clone();
    let mut after = before.clone();
    if let Some(label) = words.label {
        check_label(&label).map_err(Failure::usage)?;
        if find(&known, &label).is_ok_and(|other| other.id != before.id) {
            return Err(taken(&label));
        }
        after.label = label;
    }
    after.preset = words.preset.unwrap_or(before.preset);
    if let Some(name) = words.bucket {
        after.s3.bucket = name;
    }
    if let Some(notes) = &words.place.notes {
        after.notes.clone_from(notes);
    }
    // A server of the maker's own follows its region.
    if let Some(region) = &words.place.region
        && let Some(endpoint) = after.preset.endpoint(region)
    {
        after.s3.endpoint = endpoint;
    }
    apply(&mut after.s3, &words.place)?;
    after.s3.check()?;
    let keys = &words.keys;
    let is_rekeyed = words.new_secret
        || keys.environment
        || [
            keys.access_key.is_some(),
            keys.secret_file.is_some(),
            keys.profile.is_some(),
        ]
        .contains(&true);
    if is_rekeyed {
        after.s3.credentials = secret::credentials(keys)?;
    }
    let is_same_place = after.s3 == before.s3;
    let trial = examine(context, &mut after, words.no_test || is_same_place)?;
    if !is_same_place && !words.no_test {
        find_volumes(&after)?;
    }
    registry.change(|buckets| {
        let place = buckets.iter_mut().find(|bucket| bucket.id == after.id);
        let place = place.ok_or_else(|| {
            crate::error::Error::Refused(format!("the bucket '{}' was just removed", before.label))
        })?;
        // Who uses it may have changed meanwhile.
        after.used_by.clone_from(&place.used_by);
        place.clone_from(&after);
        Ok(())
    })?;
    for user in &after.used_by {
        tell_daemon(context, user);
    }
    let text = format!("The bucket '{}' is changed.", after.label);
    told(context, &after, trial.as_ref(), &text)
}

/// What was typed, over what was there. An empty text takes an option away.
fn apply(s3: &mut S3Config, place: &Place) -> Result<(), Failure> {
    let set = |target: &mut String, typed: &Option<String>| {
        if let Some(typed) = typed {
            target.clone_from(typed);
        }
    };
    set(&mut s3.endpoint, &place.endpoint);
    set(&mut s3.region, &place.region);
    set(&mut s3.prefix, &place.prefix);
    s3.endpoint
        .truncate(s3.endpoint.trim_end_matches('/').len());
    let bare = s3.prefix.trim_matches('/').to_owned();
    s3.prefix = bare;
    match place.style.as_deref() {
        Some("path") => s3.addressing = Addressing::Path,
        Some(_) => s3.addressing = Addressing::VirtualHost,
        None => {}
    }
    if let Some(file) = &place.ca_file {
        let named = Some(file).filter(|file| !file.is_empty());
        s3.ca_file = named.map(|file| absolute(file.as_ref())).transpose()?;
    }
    let StorageClasses {
        items,
        accounts,
        server,
    } = &mut s3.storage_class;
    for (class, typed) in [
        (items, &place.class_items),
        (accounts, &place.class_accounts),
        (server, &place.class_server),
    ] {
        if let Some(typed) = typed {
            *class = Some(typed.clone()).filter(|typed| !typed.is_empty());
        }
    }
    Ok(())
}

/// The bucket as a volume, whether it is known already or not.
pub(super) fn open(bucket: &Bucket, prefix: &str) -> Result<std::sync::Arc<dyn Volume>, Failure> {
    let spec = Spec::S3Bucket {
        bucket_id: bucket.label.clone(),
        prefix: prefix.to_owned(),
    };
    let config = bucket.s3.clone();
    Ok(vfs::open_with(&spec, &|_| Ok(config.clone()))?)
}

/// Tries it out, and notes what it showed.
pub(super) fn examine(
    context: &Context,
    bucket: &mut Bucket,
    is_taken_on_trust: bool,
) -> Result<Option<Trial>, Failure> {
    if is_taken_on_trust {
        return Ok(None);
    }
    let mut trial = try_out(&*open(bucket, "")?)?;
    trial
        .profile
        .warnings
        .extend(surprise(bucket.preset, trial.profile.exclusive_create));
    let mut profile = trial.document();
    if let Some(profile) = profile.as_object_mut() {
        profile.insert("probed".into(), json!(context.clock.now_secs()));
    }
    bucket.profile = Some(profile);
    Ok(Some(trial))
}

/// What was found is not what is known of this maker.
fn surprise(preset: Preset, keeps: bool) -> Option<String> {
    let title = preset.title();
    match (preset.conditional_put(), keeps) {
        (Expectation::Kept, false) => Some(format!(
            "{title} should refuse to create an object that is there, and this server does not: it is an old release, \
             or something stands before it. A second writer is noticed late."
        )),
        _ => None,
    }
}

/// Whoever keeps a volume in the bucket must find it where the bucket is said to be now.
fn find_volumes(bucket: &Bucket) -> Result<(), Failure> {
    for Use {
        path,
        prefix,
        store,
    } in &bucket.used_by
    {
        let volume = open(bucket, prefix)?;
        let there = external_identity(&*volume)?;
        if there.and_then(|there| there.store).as_ref() != Some(store) {
            let key = ObjectKey::new(format!("{prefix}/{IDENTITY_NAME}"));
            let key = key.map_or_else(|_| IDENTITY_NAME.to_owned(), |key| key.to_string());
            return Err(Failure::failed(format!(
                "the volume of {} is not there: {key} is missing or another's. Nothing was changed; with --no-test it \
                 is changed all the same, and that volume's uploads stop",
                path.display()
            )));
        }
    }
    Ok(())
}

/// A daemon goes on with the old keys until it opens the bucket anew.
fn tell_daemon(context: &Context, user: &Use) {
    let asked = match Client::connect(&user.path) {
        Ok(Some(client)) => client.ask(&Request::StoreReopen, &mut |_| true).map(drop),
        Ok(None) => Ok(()),
        Err(failure) => Err(failure),
    };
    if let Err(failure) = asked
        && failure.kind != FailureKind::Stopped
    {
        let shown = user.path.display();
        context.out.note(&format!(
            "the daemon of {shown} was not told, mount it anew: {}",
            failure.text
        ));
    }
}

fn told(context: &Context, bucket: &Bucket, trial: Option<&Trial>, text: &str) -> Outcome {
    let document: Value = json!({ "bucket": bucket.document(false)? });
    let mut whole = clean(text);
    if let Some(trial) = trial {
        let warnings = trial.profile.warnings.iter();
        let lines: Vec<_> = trial
            .lines()
            .into_iter()
            .chain(warnings.map(|warning| ("WARNING", warning.clone())))
            .collect();
        whole = format!("{}{whole}", table(&lines));
    }
    context.out.done(&document, &whole)
}
