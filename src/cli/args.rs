//! The words of the command line. What they mean is in the file of each command.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::cli::{account, bucket, find, item, ops, restore, scan, source, undelete, units};
use crate::daemon::Until;

/// How a moment may be written.
pub(super) const TIME_HELP: &str = "A moment of the past: a snapshot's name, '2026-01-31 14:00' (UTC), \
    '2026-01-31T14:00:00+01:00', 'yesterday 18:00', '3 hours ago', or an epoch's number";

/// A FUSE-aware storage engine for backup volumes.
#[derive(Debug, Parser)]
#[command(
    name = "tidefs",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong use, 3 stopped before it was done, 4 problems found, \
    5 external volume unreachable"
)]
pub(super) struct Args {
    /// The backup path: the local root of the volume
    #[arg(
        short = 'p',
        long = "path",
        value_name = "BACKUP_PATH",
        env = "TIDEFS_PATH",
        global = true
    )]
    pub(super) path: Option<PathBuf>,
    /// Print one JSON document; long commands print progress before it, a document a line
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Print progress as lines, also where no terminal is
    #[arg(long, global = true, conflicts_with = "quiet")]
    pub(super) progress: bool,
    /// Print no progress, and nothing that only says that it is done
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a backup path, in a new or empty directory
    Init,
    /// Show how things are, and what would be lost if this machine burned down now
    Status,
    /// The external volume, where packs and archived metadata go
    #[command(subcommand)]
    Store(Store),
    /// The buckets that this machine knows, for all its backup paths
    #[command(subcommand)]
    Bucket(Box<bucket::Command>),
    /// Trees from which accounts are fed: mail stores, home directories
    #[command(subcommand)]
    Source(Box<source::Command>),
    /// Take in what changed in the sources; exit code 4 if something could not be read or was refused
    Scan(Box<scan::Scan>),
    /// Show what runs; watch or stop it
    Ops {
        #[command(subcommand)]
        command: Option<ops::Command>,
    },
    /// Mount the volume, a moment of it, or an external volume alone
    Mount(Mount),
    /// Show the raw objects of an external volume as a directory, for ls, find, cp and rsync
    Bridge(Bridge),
    /// Take a mount away; uploads may go on for a while
    Umount(Umount),
    /// Serve without a mount: uploads go on
    Daemon(Daemon),
    /// Close the epoch now, as a moment with a name
    Snapshot(Snapshot),
    /// Wait until what was written so far is safe
    Wait(Wait),
    /// How much of the line to the external volume is used, and when
    #[command(subcommand)]
    Limits(Limits),
    /// Every volume in a bucket or below a directory: whose it is, how fresh, what is wrong; exit code 4 if something is
    Fleet(Fleet),
    /// Look whether everything is there and whole; exit code 4 if not
    Check(Check),
    /// The accounts: what there is, and which take changes
    #[command(subcommand)]
    Account(account::Command),
    /// One file, directory or link: its states, and the bytes of each
    #[command(subcommand)]
    Item(item::Item),
    /// Find items, now or at a moment, also those that were deleted
    Find(Box<find::Find>),
    /// Get an account, a directory or a file back, as it is or was; exit code 4 if some items could not be restored
    Restore(Box<restore::Restore>),
    /// Bring back what was deleted from an account, in place; exit code 4 if some items could not be brought back
    Undelete(undelete::Undelete),
}

#[derive(Debug, Subcommand)]
pub(super) enum Store {
    /// Choose the external volume
    #[command(subcommand)]
    Set(StoreSet),
    /// Show which one it is
    Show,
    /// Show settings of the cache and of outages, or change them, from now on
    Update(StoreUpdate),
    /// Try out what it can do: rename, fsync, listing, put and read back
    Test {
        /// The place to try: dir:/path; without it, the external volume of the backup path
        spec: Option<String>,
        /// Read from this file, in place of /etc/fstab, what is to be mounted where
        #[arg(long, value_name = "FILE")]
        fstab: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum StoreSet {
    /// None: packs stay in the backup path
    Local,
    /// A bucket that this machine knows (tidefs bucket add), or a prefix of one
    S3 {
        /// Its label or id
        bucket: String,
        /// Where in it: a-z, 0-9, '.', '-', '_' and '/'. By default a prefix of the volume's own, its UUID
        #[arg(long)]
        prefix: Option<String>,
        /// Become the owner of the volume there, which another server or another state of this one has written. Go on
        /// from its newest epoch; what is only here goes to lost+found
        #[arg(long)]
        take_over: bool,
    },
    /// A mounted directory: a disk, NFS, SMB, FUSE. It must exist, and be empty or ours
    Dir {
        /// The directory
        #[arg(value_name = "PATH")]
        directory: PathBuf,
        /// Become the owner of the volume there, which another server or another state of this one has written. Go on
        /// from its newest epoch; what is only here goes to lost+found
        #[arg(long)]
        take_over: bool,
        /// Go on where that is sane: with an NFS mount that is soft. Never under a mount point
        #[arg(long)]
        force: bool,
        /// Read from this file, in place of /etc/fstab, what is to be mounted where
        #[arg(long, value_name = "FILE")]
        fstab: Option<PathBuf>,
    },
}

#[derive(Debug, Default, ClapArgs)]
pub(super) struct StoreUpdate {
    /// What is not on the external volume yet may take up this much: 200G, or auto for as much as the disk holds.
    /// Writers are slowed above four fifths of it, and refused above all of it
    #[arg(long, value_name = "SIZE", value_parser = units::budget)]
    pub(super) unsent_budget: Option<u64>,
    /// Local copies of what is on the external volume may take up this much
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(super) cache: Option<u64>,
    /// What is read again of packs that were emptied may take up this much beside them; 0 keeps it in memory only
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(super) read_cache: Option<u64>,
    /// Those copies stay for at least this long: 24h, 3d
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(super) evict_after: Option<u64>,
    /// This much of the backup path's disk stays free
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(super) reserve: Option<u64>,
    /// The external volume is down when it is silent for this long
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(super) remote_timeout: Option<u64>,
    /// So many packs are on their way at the same time
    #[arg(long, value_name = "N")]
    pub(super) uploads: Option<u32>,
    /// What fsync waits for: the local disk, the external volume, or nothing
    #[arg(long, value_enum)]
    pub(super) ack: Option<AckMode>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum AckMode {
    Local,
    Remote,
    PageCache,
}

#[derive(Debug, Subcommand)]
pub(super) enum Limits {
    /// Show what is set, and what holds now
    Show,
    /// Set limits, from now on; what is not named stays
    Set(LimitsSet),
}

/// Help of a timetable.
const TIMETABLE_HELP: &str = "When others hold: rules, the first that fits counts, as in \
    'Mon-Fri 08:00-18:00 up=10M down=20M; Sat,Sun unlimited; else up=50M'. What a rule does not name stays as it is set \
    here. Times are UTC, or at an offset: 'UTC+1 Mon-Fri ...'. 'none' takes it away";

#[derive(Debug, ClapArgs)]
pub(super) struct LimitsSet {
    /// Bytes sent in a second: 10M, 500K, 80Mbit, unlimited
    #[arg(long, value_name = "RATE")]
    pub(super) upload: Option<String>,
    /// Bytes fetched in a second
    #[arg(long, value_name = "RATE")]
    pub(super) download: Option<String>,
    /// Operations in a second: 50, unlimited
    #[arg(long, value_name = "N")]
    pub(super) requests: Option<String>,
    #[arg(long, value_name = "TEXT", help = TIMETABLE_HELP)]
    pub(super) timetable: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Mount {
    #[arg(long, value_name = "TIME", help = TIME_HELP)]
    pub(super) at: Option<String>,
    /// Mount read-only from an external volume (dir:/path, s3:BUCKET/prefix, s3://endpoint/bucket/prefix?..), without
    /// a backup path. Without --at it shows newer epochs as its owner archives them
    #[arg(long, value_name = "SPEC")]
    pub(super) external: Option<String>,
    /// Only this account, by its name or UUID: its directory is the root of the mount
    #[arg(long, value_name = "ACCOUNT")]
    pub(super) account: Option<String>,
    /// How often an external volume is looked at for a newer epoch; 0 for never
    #[arg(long, value_name = "SECONDS", requires = "external")]
    pub(super) poll: Option<u64>,
    /// Mount options, separated by commas, as in /etc/fstab
    #[arg(short = 'o', value_name = "OPTIONS", action = clap::ArgAction::Append)]
    pub(super) options: Vec<String>,
    /// Stay in the foreground; prints "ready MOUNTPOINT" when it serves
    #[arg(short = 'f', long)]
    pub(super) foreground: bool,
    /// We are the background process: talk to who started us, and log to this file
    #[arg(long, hide = true, requires = "foreground")]
    pub(super) background_log: Option<PathBuf>,
    /// An existing directory
    pub(super) mountpoint: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Bridge {
    /// Change nothing
    #[arg(long)]
    pub(super) read_only: bool,
    /// Mount options, separated by commas, as in /etc/fstab
    #[arg(short = 'o', value_name = "OPTIONS", action = clap::ArgAction::Append)]
    pub(super) options: Vec<String>,
    /// Stay in the foreground; prints "ready MOUNTPOINT" when it serves
    #[arg(short = 'f', long)]
    pub(super) foreground: bool,
    /// We are the background process: talk to who started us, and log to this file
    #[arg(long, hide = true, requires = "foreground")]
    pub(super) background_log: Option<PathBuf>,
    /// The external volume: dir:/path
    pub(super) spec: String,
    /// An existing directory
    pub(super) mountpoint: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Umount {
    /// Take it away though somebody is in it; they go on until they leave
    #[arg(short, long)]
    pub(super) lazy: bool,
    /// Let uploads go on for at most this long; the rest is sent the next time
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(super) drain: u64,
    /// Where it is mounted
    pub(super) mountpoint: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Daemon {
    /// End the daemon that serves the backup path, after uploads went on for at most 30 seconds
    #[arg(long)]
    pub(super) stop: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Snapshot {
    /// List the moments that can be mounted
    #[arg(long, conflicts_with = "name")]
    pub(super) list: bool,
    /// What to call it
    pub(super) name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Fleet {
    /// Where: dir:/path, s3:BUCKET[/prefix], s3://endpoint/bucket[/prefix][?..]
    pub(super) spec: String,
    /// A volume whose newest epoch is older is stale: 90m, 26h, 7d; a bare number is seconds
    #[arg(long, value_name = "DURATION")]
    pub(super) max_age: Option<String>,
    /// Add up the packs of each volume: lists all of them
    #[arg(long)]
    pub(super) size: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Check {
    /// Read every pack whole and compare every blob with its name
    #[arg(long)]
    pub(super) read_data: bool,
    /// Look at the external volume too
    #[arg(long)]
    pub(super) external: bool,
    /// Remove the index first, which nobody may have open: the next mount fills it anew
    #[arg(long)]
    pub(super) rebuild_index: bool,
    /// Put right what the external volume or the backup path still has whole; what is replaced goes to lost+found.
    /// Nobody may have the backup path open
    #[arg(long)]
    pub(super) fix: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Wait {
    /// How safe: on the local disk, its bytes on the external volume, or recoverable from there alone
    #[arg(long, value_enum, default_value_t = Level::Archived)]
    pub(super) until: Level,
    /// Give up after this (exit code 3, or 5 if the external volume is away)
    #[arg(long, value_name = "SECONDS")]
    pub(super) timeout: Option<u64>,
    /// Only for this file or directory of the mount, as it is now
    #[arg(value_name = "PATH")]
    pub(super) below: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Level {
    Local,
    External,
    Archived,
}

impl From<Level> for Until {
    fn from(level: Level) -> Until {
        match level {
            Level::Local => Until::Local,
            Level::External => Until::External,
            Level::Archived => Until::Archived,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_words_contradict_each_other_nowhere() {
        Args::command().debug_assert();
    }
}
