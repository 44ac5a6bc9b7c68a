//! `tidefs account list|show|disable|enable|delete`

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Map, Value, json};

use crate::cli::look::{self, LookAt, Looking, Rows};
use crate::cli::output::{count, moment, size};
use crate::cli::{Context, Outcome};
use crate::daemon::{Failure, Request};
use crate::types::Ino;
use crate::volume::history::accounts::{self, AccountAt, AccountUsage, usage};
use crate::volume::history::locate::Standing;
use crate::volume::history::names;
use crate::volume::tenancy::AccountChange;

/// What to do with accounts.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// All of them, also those that are deleted
    List {
        /// Do not count what is in them, which reads all of it
        #[arg(long)]
        no_count: bool,
        #[command(flatten)]
        look: LookAt,
    },
    /// Everything that is known of one
    Show {
        #[command(flatten)]
        look: LookAt,
        /// Its name or UUID
        account: OsString,
    },
    /// Let nothing change it until it is enabled: no scan, and read-only in the mount
    Disable {
        /// Its name or UUID
        account: OsString,
    },
    /// Let it change again
    Enable {
        /// Its name or UUID
        account: OsString,
    },
    /// Take it out of the present, with all that is in it; every moment before still shows it
    Delete(Delete),
}

/// Which account goes, and who says so.
#[derive(Debug, ClapArgs)]
pub(super) struct Delete {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Its name or UUID
    account: OsString,
}

pub(super) fn run(context: &mut Context, command: Command) -> Outcome {
    match command {
        Command::List { no_count, look } => list(context, &look, no_count),
        Command::Show { look, account } => show(context, &look, &account),
        Command::Disable { account } => {
            let said = "takes no changes until it is enabled: no scan, and read-only in the mount";
            change(context, &account, AccountChange::Disable, said)
        }
        Command::Enable { account } => change(
            context,
            &account,
            AccountChange::Enable,
            "takes changes again",
        ),
        Command::Delete(command) => delete(context, &command),
    }
}

fn list(context: &mut Context, look: &LookAt, no_count: bool) -> Outcome {
    let looking = context.look(look)?;
    let view = looking.history.view(looking.at);
    let mut rows = Rows::new(context);
    if !context.out.is_json() {
        let head = format!(
            "{:<32}  {:<9} {:>10}  {:>9}  {:<23}  {:<6}  NAME\n",
            "UUID", "STATE", "ITEMS", "BYTES", "LAST STATE", "FED BY"
        );
        rows.bytes(head.as_bytes())?;
    }
    for account in accounts::accounts(&view)? {
        let used = if no_count {
            None
        } else {
            Some(usage(&view, &account)?)
        };
        let goes_on = rows.put(
            || Value::Object(document(&looking, &account, used.as_ref())),
            || line(&looking, &account, used.as_ref()),
        )?;
        if !goes_on {
            return Ok(());
        }
    }
    rows.end()
}

/// In one word.
fn state_word(account: &AccountAt) -> &'static str {
    match account.standing {
        Standing::Deleted { .. } => "deleted",
        Standing::Present if account.record.disabled.is_some() => "disabled",
        Standing::Present => "live",
    }
}

/// Who writes into it.
fn fed_word(account: &AccountAt) -> &'static str {
    if account.record.fed.is_some() {
        "source"
    } else {
        "mount"
    }
}

fn document(
    looking: &Looking,
    account: &AccountAt,
    used: Option<&AccountUsage>,
) -> Map<String, Value> {
    let record = &account.record;
    let mut document = Map::new();
    look::put_bytes(&mut document, "account", &account.name);
    document.insert("uuid".into(), json!(record.uuid));
    document.insert("number".into(), json!(account.id.get()));
    document.insert("state".into(), json!(state_word(account)));
    document.insert("created".into(), json!(record.created));
    if let Some(at) = record.disabled {
        document.insert("disabled_at".into(), json!(at));
    }
    if let Some(at) = record.deleted {
        document.insert("deleted_at".into(), json!(at));
    }
    look::put_standing(&mut document, &looking.history, account.standing);
    document.insert("fed_by".into(), json!(fed_word(account)));
    if let Some(used) = used {
        document.insert("items".into(), json!(used.items()));
        document.insert("bytes".into(), json!(used.bytes));
        let last = used
            .last
            .map(|epoch| look::epoch_document(&looking.history, epoch));
        document.insert("last_state".into(), json!(last));
    }
    document
}

fn line(looking: &Looking, account: &AccountAt, used: Option<&AccountUsage>) -> String {
    let (items, bytes, last) = match used {
        Some(used) => (
            used.items().to_string(),
            size(used.bytes),
            used.last.map_or_else(String::new, |epoch| {
                look::epoch_moment(&looking.history, epoch)
            }),
        ),
        None => ("-".into(), "-".into(), "-".into()),
    };
    let (uuid, state, fed) = (&account.record.uuid, state_word(account), fed_word(account));
    let name = look::shown(&account.name);
    format!("{uuid:<32}  {state:<9} {items:>10}  {bytes:>9}  {last:<23}  {fed:<6}  {name}")
}

/// The account that is called so.
fn find(looking: &Looking, account: &OsString) -> Result<AccountAt, Failure> {
    let view = looking.history.view(looking.at);
    let name = look::bytes_of(Some(account));
    let name = name.strip_suffix(b"/").unwrap_or(&name);
    accounts::find(&view, name)?.ok_or_else(|| {
        Failure::failed(format!(
            "there is no account '{}': tidefs account list shows those that there are",
            look::shown(name)
        ))
    })
}

fn show(context: &mut Context, look: &LookAt, account: &OsString) -> Outcome {
    let looking = context.look(look)?;
    let view = looking.history.view(looking.at);
    let account = find(&looking, account)?;
    let used = usage(&view, &account)?;
    let root = names::last_inode(&view, Ino::account_root(account.id))?;
    let mut document = document(&looking, &account, Some(&used));
    for (key, number) in [
        ("files", used.files),
        ("dirs", used.dirs),
        ("symlinks", used.symlinks),
        ("others", used.others),
        ("states", used.states),
    ] {
        document.insert(key.into(), json!(number));
    }
    let first = used
        .first
        .map(|epoch| look::epoch_document(&looking.history, epoch));
    document.insert("first_state".into(), json!(first));
    if let Some((_, inode)) = &root {
        document.insert("mode".into(), json!(format!("{:04o}", inode.mode)));
        document.insert("uid".into(), json!(inode.uid));
        document.insert("gid".into(), json!(inode.gid));
    }
    document.insert("fed".into(), json!(account.record.fed));
    let text = told(&looking, &account, &used);
    context.out.result(&Value::Object(document), &text)
}

fn change(context: &mut Context, account: &OsString, change: AccountChange, said: &str) -> Outcome {
    let looking = context.look(&LookAt::default())?;
    let account = find(&looking, account)?;
    send(context, &account, change, said)
}

fn send(context: &mut Context, account: &AccountAt, change: AccountChange, said: &str) -> Outcome {
    let record = context.ask(&Request::Account {
        uuid: account.record.uuid.clone(),
        change,
    })?;
    let mut document = Map::new();
    look::put_bytes(&mut document, "account", &account.name);
    document.insert("uuid".into(), json!(account.record.uuid));
    for key in ["disabled", "deleted"] {
        let at = record.get(key).cloned().unwrap_or(Value::Null);
        document.insert(format!("{key}_at"), at);
    }
    let name = look::shown(&account.name);
    let text = format!("Account '{name}' {said}.");
    context.out.done(&Value::Object(document), &text)
}

fn delete(context: &mut Context, command: &Delete) -> Outcome {
    let looking = context.look(&LookAt::default())?;
    let account = find(&looking, &command.account)?;
    let name = look::shown(&account.name);
    if let Standing::Deleted { in_epoch } = account.standing {
        let closed = look::epoch_moment(&looking.history, in_epoch);
        return Err(Failure::failed(format!(
            "the account '{name}' is deleted already, since epoch {in_epoch} ({closed})"
        )));
    }
    let used = usage(&looking.history.view(None), &account)?;
    let what = format!(
        "account '{name}' ({}, {}; UUID {})",
        count(used.items(), "item"),
        size(used.bytes),
        account.record.uuid
    );
    if command.dry_run {
        let mut document = document(&looking, &account, Some(&used));
        document.insert("dry_run".into(), json!(true));
        let text = format!("Would delete {what}. Moments before would still show it.");
        return context.out.result(&Value::Object(document), &text);
    }
    if !command.yes {
        confirm(&what, &account)?;
    }
    let said = "is deleted; every moment before still shows it (--at, .snapshots)";
    send(context, &account, AccountChange::Delete, said)
}

/// Asks whoever sits at the terminal; nobody there has said yes.
fn confirm(what: &str, account: &AccountAt) -> Outcome {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(format!(
            "this deletes {what}: say --yes, or look with --dry-run first"
        )));
    }
    let mut stderr = io::stderr();
    let asked = write!(stderr, "Delete {what}?\nType its name to go on: ");
    let mut answer = String::new();
    let read = asked.and_then(|()| stdin.read_line(&mut answer));
    let is_meant = answer.trim_end_matches('\n') == look::shown(&account.name);
    match read {
        Ok(_) if is_meant => Ok(()),
        _ => Err(Failure::stopped("not deleted: that is not its name")),
    }
}

fn told(looking: &Looking, account: &AccountAt, used: &AccountUsage) -> String {
    let record = &account.record;
    let mut text = String::new();
    let mut row = |key: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key:<14}{value}");
    };
    let state = match (account.standing, record.disabled) {
        (Standing::Deleted { in_epoch }, _) => {
            let closed = look::epoch_moment(&looking.history, in_epoch);
            format!("deleted in epoch {in_epoch} ({closed}); every moment before shows it")
        }
        (Standing::Present, Some(at)) => {
            format!("disabled since {}: it takes no changes", moment(at))
        }
        (Standing::Present, None) => "live".into(),
    };
    row("account", look::shown(&account.name));
    row("uuid", record.uuid.clone());
    row("number", account.id.to_string());
    row("state", state);
    row("created", moment(record.created));
    row(
        "fed by",
        match &record.fed {
            Some(fed) => format!("source {}, directory {}", fed.source, fed.path),
            None => "the mount".into(),
        },
    );
    row(
        "items",
        format!(
            "{}: {}, {} directories, {}, {}",
            used.items(),
            count(used.files, "file"),
            used.dirs,
            count(used.symlinks, "symlink"),
            count(used.others, "other")
        ),
    );
    row(
        "bytes",
        format!("{} ({} bytes)", size(used.bytes), used.bytes),
    );
    for (key, epoch) in [("first state", used.first), ("last state", used.last)] {
        if let Some(epoch) = epoch {
            let closed = look::epoch_moment(&looking.history, epoch);
            row(key, format!("epoch {epoch} ({closed})"));
        }
    }
    row("states", used.states.to_string());
    text
}
