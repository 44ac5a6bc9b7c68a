//! `tidefs store`

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vfs::dir::Assessment;
use vfs::{Body, Capabilities, ObjectKey, Precondition, Spec, VolumeExt};

use crate::cli::args::{Store as Command, StoreSet};
use crate::cli::output::{clean, count, size};
use crate::cli::{Context, Outcome, absolute, update};
use crate::clock::random;
use crate::daemon::client::Client;
use crate::daemon::{Failure, Request};
use crate::types::SessionId;
use crate::volume::init::{external_identity, read_identity};
use crate::volume::place::{self, Look};
use crate::volume::settings::{Settings, Store};

/// What a test puts and reads back: long enough for a rate, short enough for a slow line.
const TEST_LEN: usize = 4 << 20;

pub(super) fn run(context: &mut Context, command: Command) -> Outcome {
    match command {
        Command::Set(StoreSet::Local) => set(
            context,
            Request::StoreSet {
                path: None,
                force: false,
                fstab: None,
            },
        ),
        Command::Set(StoreSet::Dir {
            directory,
            force,
            fstab,
        }) => {
            let request = Request::StoreSet {
                path: Some(absolute(&directory)?),
                force,
                // For a daemon has another working directory.
                fstab: fstab.as_deref().map(absolute).transpose()?,
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
        Some(Store::Dir { path, .. }) => format!(
            "Packs and metadata go to dir:{} from now on.",
            clean(&path.display().to_string())
        ),
        _ => "Packs stay in the backup path: they are the only copy.".into(),
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
    let text = match &store {
        Store::Local => "local: packs stay in the backup path; there is no external volume".into(),
        Store::Dir { path, store } => {
            let place = clean(&path.display().to_string());
            let state = match (word("state"), word("reason")) {
                (Some(state), Some(reason)) => format!(", {state}: {reason}"),
                (Some(state), None) => format!(", {state}"),
                _ => String::new(),
            };
            format!("dir:{place} (copy {store}){state}")
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
        Spec::Dir(path) => Some((path.as_path(), look_at(path, fstab)?)),
        _ => None,
    };
    let volume = vfs::open(&spec)?;
    let belongs = external_identity(&*volume)?;
    let speed = put_and_read_back(&*volume)?;
    // Last, for it takes the directory of both away.
    let profile = volume.probe()?;
    let space = volume.space()?;
    let mut warnings = place
        .as_ref()
        .map_or_else(Vec::new, |(path, found)| place::concerns(path, found, None));
    // The bucket behind a mount is known from outside and by trying.
    let tried = profile
        .warnings
        .iter()
        .filter(|text| !warnings.contains(text));
    let tried: Vec<String> = tried.cloned().collect();
    warnings.extend(tried);
    let document = json!({
        "spec": spec.to_string(),
        "volume": belongs.as_ref().map(|identity| &identity.volume),
        "owner": belongs.as_ref().map(|identity| &identity.owner),
        "profile": profile_document(&profile),
        "place": place.as_ref().map(|(_, found)| place_document(found)),
        "warnings": warnings,
        "put_bytes_per_sec": speed.put,
        "get_bytes_per_sec": speed.get,
        "space": space.map(|space| json!({
            "total_bytes": space.total_bytes,
            "available_bytes": space.available_bytes,
        })),
    });
    let holds = match &belongs {
        Some(identity) => format!("volume {} of {}", identity.volume, identity.owner),
        None => "no tidefs volume yet".into(),
    };
    let mut lines = vec![
        ("external volume", spec.to_string()),
        ("holds", holds),
        (
            "mount",
            format!(
                "{} ({}) at {}",
                profile.file_system,
                profile.source,
                profile.mount_point.display()
            ),
        ),
    ];
    if let Some(space) = space {
        let (available, total) = (size(space.available_bytes), size(space.total_bytes));
        lines.push(("free space", format!("{available} of {total}")));
    }
    lines.push(("can", abilities(&profile)));
    lines.push((
        "latency",
        format!(
            "put {}, get {}",
            millis(profile.put_latency),
            millis(profile.get_latency)
        ),
    ));
    lines.push((
        "speed",
        format!(
            "put {}/s, get {}/s (with {})",
            size(speed.put),
            size(speed.get),
            size(TEST_LEN as u64)
        ),
    ));
    lines.extend(warnings.iter().map(|warning| ("WARNING", warning.clone())));
    let is_refused = place.is_some_and(|(_, found)| found.refusal(false).is_some());
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

/// A line for each key.
fn table(lines: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (key, value) in lines {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key:<16} {}", clean(value));
    }
    text
}

fn spec_of(context: &Context) -> Result<Spec, Failure> {
    let root = context.root()?;
    read_identity(&root)?;
    match Settings::read(&root)?.store {
        Store::Dir { path, .. } => Ok(Spec::Dir(path)),
        Store::Local => Err(Failure::usage(
            "there is no external volume to test: name one (tidefs store test dir:/path), or set one with \
             tidefs store set dir PATH",
        )),
    }
}

struct Speed {
    put: u64,
    get: u64,
}

/// Puts an object, reads it back, compares, and deletes it in any case.
fn put_and_read_back(volume: &dyn vfs::Volume) -> Result<Speed, Failure> {
    let seed: [u8; 32] = random()?;
    let bytes = noise(seed, TEST_LEN);
    // Random, so that two tests at one time do not meet.
    let key = ObjectKey::new(format!("probe/test-{}", SessionId(random()?)))?;
    let outcome = (|| {
        let started = Instant::now();
        volume.put(&key, Body::Bytes(&bytes), Precondition::IfAbsent)?;
        let put = rate(started.elapsed());
        let started = Instant::now();
        let read = volume.get_whole(&key, TEST_LEN as u64)?;
        let get = rate(started.elapsed());
        if read != bytes {
            return Err(Failure::failed(format!(
                "{volume} gave back other bytes than were put there: do not use it, look for its fault"
            )));
        }
        Ok(Speed { put, get })
    })();
    let deleted = volume.delete(std::slice::from_ref(&key));
    let speed = outcome?;
    deleted?;
    Ok(speed)
}

/// Bytes that neither compress nor repeat: a xorshift from `seed`.
fn noise(seed: [u8; 32], len: usize) -> Vec<u8> {
    let mut state = seed
        .first_chunk()
        .map_or(1, |first| u64::from_le_bytes(*first) | 1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn rate(elapsed: Duration) -> u64 {
    let micros = elapsed.as_micros().max(1);
    u64::try_from(TEST_LEN as u128 * 1_000_000 / micros).unwrap_or(u64::MAX)
}

fn millis(latency: Duration) -> String {
    format!(
        "{}.{} ms",
        latency.as_millis(),
        latency.as_micros() / 100 % 10
    )
}

fn abilities(profile: &Capabilities) -> String {
    let all = [
        ("rename at once", profile.atomic_rename),
        ("create only if absent", profile.exclusive_create),
        ("fsync", profile.fsync),
        ("fsync directories", profile.fsync_directory),
        ("direct I/O", profile.direct_io),
        ("list what was just put", profile.list_after_put),
    ];
    let word = |(name, can): &(&str, bool)| format!("{}{name}", if *can { "" } else { "NOT " });
    all.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn profile_document(profile: &Capabilities) -> Value {
    json!({
        "kind": format!("{:?}", profile.kind).to_lowercase(),
        "file_system": profile.file_system,
        "source": profile.source,
        "mount_point": profile.mount_point,
        "atomic_rename": profile.atomic_rename,
        "exclusive_create": profile.exclusive_create,
        "fsync": profile.fsync,
        "fsync_directory": profile.fsync_directory,
        "direct_io": profile.direct_io,
        "list_after_put": profile.list_after_put,
        "put_latency_us": u64::try_from(profile.put_latency.as_micros()).unwrap_or(u64::MAX),
        "get_latency_us": u64::try_from(profile.get_latency.as_micros()).unwrap_or(u64::MAX),
        "warnings": profile.warnings,
    })
}
