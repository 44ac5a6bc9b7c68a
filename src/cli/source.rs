//! `tidefs source`

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::cli::output::{clean, columns, count, moment, size};
use crate::cli::{Context, Outcome};
use crate::daemon::{Failure, Request};
use crate::scan::source::{AccountRule, Preset, Source};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Name a tree from which accounts are fed by scans
    Add(Add),
    /// Forget a source. Its accounts stay, with their history, and can be written to from then on
    Remove {
        /// Its path, or its UUID or the beginning of it
        source: String,
    },
    /// Show the sources
    List,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Add {
    /// A directory
    directory: PathBuf,
    /// Which directories below it are accounts: so many levels down (0: itself), or a pattern such as '*/users/*'; an
    /// account is called as what the pattern leaves open, joined by '+'. By default 1, or as the preset says
    #[arg(long, value_name = "DEPTH|GLOB")]
    accounts_at: Option<String>,
    /// What kind of tree it is
    #[arg(long, value_enum)]
    preset: Option<PresetWord>,
    /// Leave out what this pattern means. Without a slash it is for names at any depth, else for the path from the
    /// account's directory; '**' crosses directories, a slash at the end means directories only
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Bring back what an exclude means. What is below an excluded directory is not looked at
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Have the daemon watch it, and take in changes as they happen
    #[arg(long)]
    watch: bool,
    /// Do not enter file systems that are mounted below an account
    #[arg(long)]
    one_file_system: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum PresetWord {
    /// Mailboxes: every directory that is a Maildir or holds one, up to three levels down. Leaves out what is in tmp
    Maildir,
    /// Home directories, one level down. Leaves out .cache and the trash
    Homes,
    /// The store of a Zimbra mailbox server, such as /opt/zimbra/store: mailboxes in volumes
    Zimbra,
}

impl From<PresetWord> for Preset {
    fn from(word: PresetWord) -> Preset {
        match word {
            PresetWord::Maildir => Preset::Maildir,
            PresetWord::Homes => Preset::Homes,
            PresetWord::Zimbra => Preset::Zimbra,
        }
    }
}

pub(super) fn run(context: &mut Context, command: Command) -> Outcome {
    match command {
        Command::Add(new) => add(context, new),
        Command::Remove { source } => {
            let document = context.ask(&Request::SourceRemove { source })?;
            let path = text(&document, "path");
            let said = format!("{path} is no source any more; its accounts stay as they are.");
            context.out.done(&document, &said)
        }
        Command::List => list(context),
    }
}

fn add(context: &mut Context, new: Add) -> Outcome {
    let shown = new.directory.display();
    let path = std::fs::canonicalize(&new.directory)
        .map_err(|error| Failure::failed(format!("cannot find the source {shown}: {error}")))?;
    let preset = new.preset.map(Preset::from);
    let (rule, excluded) = match preset {
        Some(preset) => preset.rules(),
        None => (AccountRule::Depth(1), Vec::new()),
    };
    let rule = match new.accounts_at {
        Some(text) => text
            .parse()
            .map_or_else(|_| AccountRule::Glob(text.clone()), AccountRule::Depth),
        None => rule,
    };
    let mut source = Source::new(&path, rule, &*context.clock)?;
    source.preset = preset;
    source.exclude = [excluded, new.exclude].concat();
    source.include = new.include;
    source.watch = new.watch;
    source.one_file_system = new.one_file_system;
    let document = context.ask(&Request::SourceAdd {
        source: Box::new(source),
    })?;
    let uuid = text(&document, "uuid");
    let said = format!(
        "{} is a source, {uuid}. Its first scan takes all of it: tidefs scan",
        text(&document, "path")
    );
    context.out.done(&document, &said)
}

fn list(context: &mut Context) -> Outcome {
    let document = context.ask(&Request::SourceList)?;
    let sources = document.as_array().cloned().unwrap_or_default();
    if sources.is_empty() {
        let said = "There is no source: tidefs source add names one.";
        return context.out.result(&document, said);
    }
    let mut rows = vec![
        ["SOURCE", "ID", "ACCOUNTS AT", "LAST SCAN", "ITEMS", "SIZE"]
            .map(String::from)
            .to_vec(),
    ];
    rows.extend(sources.iter().map(row));
    context.out.result(&document, &columns(&rows))
}

fn row(source: &Value) -> Vec<String> {
    let rule = match source.get("accounts") {
        Some(Value::String(_)) => "Maildirs".to_owned(),
        Some(rule) => rule.get("glob").and_then(Value::as_str).map_or_else(
            || format!("depth {}", rule.get("depth").unwrap_or(&json!(1))),
            str::to_owned,
        ),
        None => String::new(),
    };
    let last = |key: &str| source.pointer(&format!("/last/{key}"));
    let number = |key: &str| last(key).and_then(Value::as_u64);
    let ended = last("ended").and_then(Value::as_i64);
    let mut scanned = ended.map_or_else(|| "never".to_owned(), moment);
    if let Some(errors) = number("errors").filter(|errors| *errors > 0) {
        scanned = format!("{scanned}, {}", count(errors, "read error"));
    }
    vec![
        text(source, "path"),
        text(source, "uuid").chars().take(8).collect(),
        rule,
        scanned,
        number("items").map_or_else(String::new, |items| items.to_string()),
        number("bytes").map_or_else(String::new, size),
    ]
}

fn text(document: &Value, key: &str) -> String {
    clean(document.get(key).and_then(Value::as_str).unwrap_or(""))
}
