//! `tidefs init`

use serde_json::json;

use crate::cli::output::clean;
use crate::cli::{Context, Outcome};
use crate::volume::init::init;
use crate::volume::settings::Settings;

pub(super) fn run(context: &Context) -> Outcome {
    let root = context.root()?;
    let identity = init(&root, &Settings::default(), &*context.clock)?;
    let document = json!({
        "backup_path": root,
        "volume": identity.volume,
        "owner": identity.owner,
    });
    let shown = clean(&root.display().to_string());
    let text = format!(
        "{shown} is a backup path now, volume {}.\n\
         Next: tidefs -p {shown} store set dir DIRECTORY    where backups go, on another disk\n\
         then: tidefs -p {shown} mount MOUNTPOINT",
        identity.volume
    );
    context.out.done(&document, &text)
}
