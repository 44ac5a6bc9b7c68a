//! `tidefs umount`

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::args::Umount;
use crate::cli::output::{clean, count, size};
use crate::cli::{Context, Outcome};
use crate::daemon::client::Client;
use crate::daemon::mounts::{self, OurMount};
use crate::daemon::{Failure, Request};

pub(super) fn run(context: &mut Context, umount: &Umount) -> Outcome {
    let mount = find(&umount.mountpoint)?;
    let shown = clean(&mount.point.display().to_string());
    let Some(client) = server_of(context, &mount)? else {
        // A view, or what a killed daemon left: there is nothing to drain.
        let is_dead = mounts::is_dead(&mount.point);
        mounts::unmount(&mount.point, umount.lazy || is_dead)?;
        let document = json!({ "mountpoint": mount.point, "was_dead": is_dead });
        let text = if is_dead {
            format!("Removed the dead mount at {shown}: its daemon had ended without unmounting.")
        } else {
            format!("Unmounted {shown}.")
        };
        return context.out.done(&document, &text);
    };
    let request = Request::Umount {
        mountpoint: mount.point.clone(),
        lazy: umount.lazy,
        drain_ms: umount.drain.saturating_mul(1000),
    };
    let left = client.ask(&request, &mut |step| context.report(&step))?;
    context.reporter.clear();
    let mut document = left.clone();
    if let Some(document) = document.as_object_mut() {
        document.insert("mountpoint".into(), json!(mount.point));
    }
    let text = format!("Unmounted {shown}. {}", ended(&left));
    context.out.done(&document, &text)
}

fn find(mountpoint: &Path) -> Result<OurMount, Failure> {
    if let Some(mount) = mounts::ours_at(mountpoint)? {
        return Ok(mount);
    }
    let shown = mountpoint.display();
    let ours = mounts::ours()?;
    let others = match &ours[..] {
        [] => "there is none on this machine".to_owned(),
        some => {
            let points = some.iter().map(|mount| mount.point.display().to_string());
            format!("there are {}", points.collect::<Vec<_>>().join(", "))
        }
    };
    Err(Failure::failed(format!(
        "{shown} is not a mount of tidefs: {others}"
    )))
}

/// The daemon that serves this very mount; `None` for a view, or if it is gone.
fn server_of(context: &Context, mount: &OurMount) -> Result<Option<Client>, Failure> {
    // The source does not tell a path with odd letters: then it has to be named.
    let root = if mount.source.join("control.sock").exists() {
        mount.source.clone()
    } else if let Some(path) = &context.path {
        path.clone()
    } else {
        return Ok(None);
    };
    let Some(client) = Client::connect(&root)? else {
        return Ok(None);
    };
    let status = match client.ask(&Request::Status, &mut |_| true) {
        // It was killed, and its socket outlived the mount by a moment.
        Err(_) if mounts::is_dead(&mount.point) => return Ok(None),
        outcome => outcome?,
    };
    let served = status.pointer("/daemon/mountpoint").and_then(Value::as_str);
    if served.map(Path::new) != Some(&mount.point) {
        return Ok(None);
    }
    Client::connect(&root)
}

/// What is left after the end, in words.
pub(super) fn ended(left: &Value) -> String {
    let number = |key: &str| left.get(key).and_then(Value::as_u64).unwrap_or(0);
    let flag = |key: &str| left.get(key).and_then(Value::as_bool) == Some(true);
    if flag("is_busy") {
        return "Somebody is still in it: the volume closes when they leave.".into();
    }
    if left.pointer("/store/kind").and_then(Value::as_str) == Some("local") {
        return "There is no external volume: the backup path has the only copy.".into();
    }
    let why = left
        .pointer("/upload/reason")
        .and_then(Value::as_str)
        .map(|reason| format!(" The external volume: {}.", clean(reason)))
        .unwrap_or_default();
    match (number("unsent_packs"), flag("is_archived")) {
        (0, true) => "All of it is on the external volume.".into(),
        (0, false) => format!(
            "The newest epoch is not archived yet: that is done the next time the volume is open.{why}"
        ),
        (packs, _) => format!(
            "{} in {} are not on the external volume yet: they are sent the next time the volume is open.{why}",
            size(number("unsent_bytes")),
            count(packs, "pack")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_says_what_is_not_away_yet() {
        let left = |packs: u64, archived: bool| {
            ended(&json!({
                "store": { "kind": "dir" }, "unsent_packs": packs, "unsent_bytes": 2048,
                "is_archived": archived, "upload": { "state": "down", "reason": "no route" },
            }))
        };
        assert!(left(0, true).starts_with("All of it"));
        let text = left(2, false);
        assert!(
            text.contains("2.0 KiB in 2 packs") && text.contains("no route"),
            "{text}"
        );
        assert!(ended(&json!({ "store": { "kind": "local" } })).contains("only copy"));
    }
}
