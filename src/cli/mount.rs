//! `tidefs mount`: what to show, where; checked here, served from the background.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use vfs::Spec;

use crate::cli::args::Mount;
use crate::cli::output::{clean, moment};
use crate::cli::serving::{Ready, check_mountpoint, discard_empty, in_background, in_foreground};
use crate::cli::{Context, Outcome, absolute, begin_command, time};
use crate::daemon::follow::{Follower, POLL_DEFAULT};
use crate::daemon::opening::open_to_serve;
use crate::daemon::serve::{Serving, serve_view};
use crate::daemon::{Failure, arenas, background, log};
use crate::fuse::{self, MountOptions, OptionList};
use crate::meta::view::View;
use crate::types::AccountId;
use crate::volume::account_tree::AccountTree;
use crate::volume::external::{ExternalVolume, open_guarded};
use crate::volume::follow::FollowTree;
use crate::volume::history::accounts;
use crate::volume::history::locate::Standing;
use crate::volume::init::read_identity;
use crate::volume::moment::open_moments;
use crate::volume::settings::REMOTE_TIMEOUT;
use crate::volume::snapshots::SnapshotsTree;
use crate::volume::store::open_spec;
use crate::volume::tree::Tree;
use crate::volume::{EpochEntry, Volume};

/// What is mounted, and how.
#[derive(Debug)]
pub(super) struct Plan {
    what: What,
    /// Of it one account alone, by its name or UUID.
    account: Option<String>,
    mountpoint: PathBuf,
    options: MountOptions,
    /// As they were given, for the process in the background.
    options_text: String,
    foreground: bool,
    background_log: Option<PathBuf>,
}

#[derive(Debug)]
enum What {
    /// The volume of a backup path, to be written.
    Live(PathBuf),
    /// A moment of it, from what is on the local disk. Needs no lock: what it reads never changes.
    Moment(PathBuf, String),
    /// An external volume, alone.
    External(Spec, Option<String>, Duration),
}

pub(super) fn run(context: &mut Context, mount: Mount) -> Outcome {
    Plan::new(context, mount)?.run(context)
}

impl Plan {
    fn new(context: &Context, mount: Mount) -> Result<Plan, Failure> {
        let options_text = mount.options.join(",");
        let options =
            OptionList::parse(&options_text).map_err(|error| Failure::usage(error.chain()))?;
        let external = mount.external.or_else(|| options.external.clone());
        let at = mount.at.or_else(|| options.at.clone());
        let account = mount.account.or_else(|| options.account.clone());
        let what = match external {
            Some(spec) => {
                let poll = poll_of(mount.poll.or(options.poll_secs));
                What::External(parse_spec(&spec)?, at, poll)
            }
            None => of_path(context.root()?, at),
        };
        Plan::with(
            (what, account),
            &mount.mountpoint,
            options,
            options_text,
            mount.foreground,
            mount.background_log,
        )
    }

    /// As mount(8) names it: the source is a backup path or an external volume.
    pub(super) fn from_source(
        source: &str,
        mountpoint: &Path,
        options_text: String,
        options: OptionList,
    ) -> Result<Plan, Failure> {
        let at = options.at.clone();
        let poll = poll_of(options.poll_secs);
        let what = match &options.external {
            Some(spec) => What::External(parse_spec(spec)?, at, poll),
            None if !source.starts_with('/') && source.contains(':') => {
                What::External(parse_spec(source)?, at, poll)
            }
            None => of_path(absolute(Path::new(source))?, at),
        };
        let account = options.account.clone();
        Plan::with(
            (what, account),
            mountpoint,
            options,
            options_text,
            false,
            None,
        )
    }

    fn with(
        (what, account): (What, Option<String>),
        mountpoint: &Path,
        options: OptionList,
        options_text: String,
        foreground: bool,
        background_log: Option<PathBuf>,
    ) -> Result<Plan, Failure> {
        let mut mount_options = options.mount.clone();
        mount_options.read_only |= !matches!(what, What::Live(_));
        Ok(Plan {
            what,
            account,
            mountpoint: absolute(mountpoint)?,
            options: mount_options,
            options_text,
            foreground: foreground || options.foreground,
            background_log,
        })
    }

    /// Finds what is wrong before anything is begun.
    pub(super) fn check(&self, context: &Context) -> Result<(), Failure> {
        match &self.what {
            What::Live(root) | What::Moment(root, _) => drop(read_identity(root)?),
            What::External(..) => {}
        }
        check_mountpoint(context, &self.mountpoint)
    }

    /// Mounts, from the background unless told otherwise.
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        if let Some(log) = &self.background_log {
            arenas::limit()?;
            let is_own_log = !matches!(self.what, What::Live(_));
            return in_background(context, (log, is_own_log), |context, ready| {
                self.serve(context, ready)
            });
        }
        if self.foreground {
            arenas::limit()?;
        }
        self.check(context)?;
        if self.foreground {
            return in_foreground(context, &self.mountpoint, |context, ready| {
                self.serve(context, ready)
            });
        }
        begin_command()?;
        let ready = self.launch()?;
        context.out.done(&ready, &said(&ready))
    }

    fn launch(&self) -> Result<Value, Failure> {
        let (log_path, log) = match &self.what {
            What::Live(root) => log::open(root)?,
            What::Moment(..) | What::External(..) => log::open_temporary()?,
        };
        let mut args: Vec<OsString> = Vec::new();
        let (path, at) = match &self.what {
            What::Live(root) => (Some(root), None),
            What::Moment(root, at) => (Some(root), Some(at)),
            What::External(_, at, _) => (None, at.as_ref()),
        };
        if let Some(path) = path {
            args.extend(["--path".into(), path.into()]);
        }
        args.extend(["mount".into(), "--foreground".into()]);
        args.extend(["--background-log".into(), log_path.clone().into()]);
        if let Some(at) = at {
            args.push(format!("--at={at}").into());
        }
        if let What::External(spec, _, poll) = &self.what {
            args.push(format!("--external={spec}").into());
            args.push(format!("--poll={}", poll.as_secs()).into());
        }
        if let Some(account) = &self.account {
            args.push(format!("--account={account}").into());
        }
        if !self.options_text.is_empty() {
            args.extend(["-o".into(), (&self.options_text).into()]);
        }
        args.extend(["--".into(), (&self.mountpoint).into()]);
        let ready = background::launch(&args, log, &log_path);
        if ready.is_err() && !matches!(self.what, What::Live(_)) {
            discard_empty(&log_path);
        }
        ready
    }

    fn serve(&self, context: &mut Context, ready: Ready<'_>) -> Outcome {
        match &self.what {
            What::Live(root) => self.serve_live(context, root, ready),
            What::Moment(root, at) => {
                let shown = root.display().to_string();
                self.serve_view(context, (&open_moments(root)?, &shown), Some(at), ready)
            }
            What::External(spec, None, poll) if !poll.is_zero() => {
                self.serve_following(spec, *poll, ready)
            }
            What::External(spec, at, _) => {
                let external = open_guarded(open_spec(spec, REMOTE_TIMEOUT)?)?;
                self.serve_view(
                    context,
                    (&external, &spec.to_string()),
                    at.as_deref(),
                    ready,
                )
            }
        }
    }

    fn serve_live(&self, context: &mut Context, root: &Path, ready: Ready<'_>) -> Outcome {
        let clock = Arc::clone(&context.clock);
        let volume = open_to_serve(root, &clock, &mut |step| context.report(&step))?;
        context.reporter.clear();
        let account = self.account.as_deref();
        let account = account
            .map(|name| live_account(&volume, name))
            .transpose()?;
        let tree: Arc<dyn Tree> = match account {
            Some(account) => AccountTree::new(Arc::clone(&volume), account),
            None => SnapshotsTree::new(Arc::clone(&volume)),
        };
        let (serving, control) = Serving::start(volume, account, clock.now().secs)?;
        let options = MountOptions {
            source: root.display().to_string(),
            ..self.options.clone()
        };
        let mounted = fuse::mount(tree, &self.mountpoint, &options)?;
        let document = json!({
            "mountpoint": mounted.mountpoint(),
            "backup_path": root,
            "account": self.account,
            "read_only": options.read_only,
            "pid": std::process::id(),
        });
        serving.run(control, Some(mounted), || ready(document))
    }

    fn serve_following(
        &self,
        spec: &Spec,
        poll: Duration,
        ready: impl FnOnce(Value) -> std::io::Result<()>,
    ) -> Outcome {
        let external = open_guarded(open_spec(spec, REMOTE_TIMEOUT)?)?;
        let shown = spec.to_string();
        let epochs = external.epochs()?;
        let entry = epochs.into_iter().max_by_key(|entry| entry.epoch);
        let mut document = self.view_document(&external, &shown, entry);
        if let Some(document) = document.as_object_mut() {
            document.insert("poll_secs".into(), json!(poll.as_secs()));
        }
        let options = MountOptions {
            source: shown,
            read_only: true,
            ..self.options.clone()
        };
        let account = self.account_in(external.view())?;
        let tree = FollowTree::new(external, account)?;
        let mounted = fuse::mount(tree.clone(), &self.mountpoint, &options)?;
        if let Some(document) = document.as_object_mut() {
            document.insert("mountpoint".into(), json!(mounted.mountpoint()));
        }
        let _follower = Follower::start(tree, mounted.notifier(), poll)?;
        serve_view(mounted, || ready(document))
    }

    /// The account that is to be shown alone, at the moment of `view`.
    fn account_in(&self, view: &View) -> Result<Option<AccountId>, Failure> {
        let Some(name) = &self.account else {
            return Ok(None);
        };
        match accounts::find(view, name.as_bytes())? {
            Some(account) if account.standing == Standing::Present => Ok(Some(account.id)),
            _ => Err(no_account(name)),
        }
    }

    /// What is said of a view that is mounted.
    fn view_document(
        &self,
        external: &ExternalVolume,
        shown: &str,
        entry: Option<EpochEntry>,
    ) -> Value {
        let epoch = entry
            .as_ref()
            .map_or(external.record().epoch, |entry| entry.epoch);
        json!({
            "mountpoint": self.mountpoint,
            "external": matches!(self.what, What::External(..)).then_some(shown),
            "backup_path": matches!(self.what, What::Moment(..)).then_some(shown),
            "volume": external.identity().volume,
            "owner": external.identity().owner,
            "account": self.account,
            "epoch": epoch,
            "time": entry.as_ref().map(|entry| entry.time),
            "name": entry.and_then(|entry| entry.name),
            "read_only": true,
            "pid": std::process::id(),
        })
    }

    fn serve_view(
        &self,
        context: &Context,
        (external, shown): (&ExternalVolume, &str),
        at: Option<&str>,
        ready: Ready<'_>,
    ) -> Outcome {
        let epochs = external.epochs()?;
        let entry = match at {
            Some(at) => Some(time::resolve(at, &epochs, context.clock.now())?),
            None => epochs.iter().max_by_key(|entry| entry.epoch).cloned(),
        };
        let moment = at.and(entry.as_ref()).map(|entry| entry.epoch);
        let whole = external.tree(moment)?;
        let shown_view =
            moment.map_or_else(|| external.view().clone(), |at| external.view().as_of(at));
        let tree: Arc<dyn Tree> = match self.account_in(&shown_view)? {
            Some(account) => AccountTree::new(whole, account),
            None => whole,
        };
        let epoch = entry
            .as_ref()
            .map_or(external.record().epoch, |entry| entry.epoch);
        let options = MountOptions {
            source: format!("{shown}@epoch-{epoch}"),
            read_only: true,
            ..self.options.clone()
        };
        let mounted = fuse::mount(tree, &self.mountpoint, &options)?;
        let mut document = self.view_document(external, shown, entry);
        if let Some(document) = document.as_object_mut() {
            document.insert("mountpoint".into(), json!(mounted.mountpoint()));
        }
        serve_view(mounted, || ready(document))
    }
}

fn of_path(root: PathBuf, at: Option<String>) -> What {
    match at {
        Some(at) => What::Moment(root, at),
        None => What::Live(root),
    }
}

fn live_account(volume: &Volume, name: &str) -> Result<AccountId, Failure> {
    let found = volume.accounts()?.into_iter().find(|account| {
        let is_called = account.name.as_deref() == Some(name.as_bytes());
        is_called || (account.name.is_some() && account.record.uuid == name)
    });
    found
        .map(|account| account.id)
        .ok_or_else(|| no_account(name))
}

fn no_account(name: &str) -> Failure {
    Failure::failed(format!(
        "there is no account '{}' at that moment: tidefs account list (with --at or --external) shows those that there are",
        clean(name)
    ))
}

/// Half a minute, unless it was said.
fn poll_of(secs: Option<u64>) -> Duration {
    secs.map_or(POLL_DEFAULT, Duration::from_secs)
}

fn parse_spec(text: &str) -> Result<Spec, Failure> {
    Spec::parse(text).map_err(|error| Failure::usage(Failure::from(error).text))
}

/// What is mounted now, in words.
fn said(ready: &Value) -> String {
    let word = |key: &str| ready.get(key).and_then(Value::as_str).map(clean);
    let number = |key: &str| ready.get(key).and_then(Value::as_i64);
    let mountpoint = word("mountpoint").unwrap_or_default();
    let what = word("external")
        .or_else(|| word("backup_path"))
        .unwrap_or_default();
    let mut text = match word("account") {
        Some(account) => format!("{what}, account {account}, is mounted at {mountpoint}"),
        None => format!("{what} is mounted at {mountpoint}"),
    };
    // Writing to a string does not fail.
    if let Some(epoch) = number("epoch") {
        let _ = write!(text, ", read-only, as of epoch {epoch}");
        if let Some(time) = number("time") {
            let _ = write!(text, ", closed {}", moment(time));
        }
        if let Some(name) = word("name") {
            let _ = write!(text, ", '{name}'");
        }
    }
    text.push('.');
    if ready.get("poll_secs").is_some() {
        text.push_str(" Newer epochs are shown as its owner archives them.");
    }
    text
}
