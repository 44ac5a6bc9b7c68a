//! The words of `tidefs bucket`. No option takes a secret: a command line can be read by everybody.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::buckets::Preset;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Bucket {
    /// Make a bucket known to this machine. It must exist: none is ever created
    ///
    /// The secret key comes from TIDEFS_S3_SECRET or AWS_SECRET_ACCESS_KEY, from --secret-file, or is asked for.
    Add(Add),
    /// Change what is known of it; tried out before it is kept
    Update(Update),
    /// Forget a bucket that no backup path uses. Nothing in it is touched
    Remove {
        /// Its label or id
        bucket: String,
        /// Also where a backup path that was entered cannot be looked at. Never one that names it
        #[arg(long)]
        force: bool,
    },
    /// List those that this machine knows, and who uses them
    List {
        /// Count the objects and bytes of each volume in them: lists all there is
        #[arg(long)]
        usage: bool,
    },
    /// Show what is known of one
    Show {
        /// Its label or id
        bucket: String,
        /// With its secret key
        #[arg(long)]
        reveal: bool,
    },
    /// Try it out: put, read back, list, delete, and what its server can do
    Test {
        /// Its label or id
        bucket: String,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Add {
    /// What to call it
    #[arg(long)]
    pub(super) label: String,
    /// Whose S3 it is: aws, minio, ceph, garage, cloudian, scality, emc-ecs, alibaba, custom
    #[arg(long = "type", value_name = "TYPE", default_value = "custom")]
    pub(super) preset: Preset,
    /// Its name on the server
    #[arg(long)]
    pub(super) bucket: String,
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    pub(super) keys: Keys,
    /// Add it without trying it out
    #[arg(long)]
    pub(super) no_test: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Update {
    /// Its label or id
    pub(super) which: String,
    /// What to call it from now on
    #[arg(long)]
    pub(super) label: Option<String>,
    /// Whose S3 it is
    #[arg(long = "type", value_name = "TYPE")]
    pub(super) preset: Option<Preset>,
    /// Its name on the server
    #[arg(long)]
    pub(super) bucket: Option<String>,
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    pub(super) keys: Keys,
    /// Take the secret key from the environment, or ask for it
    #[arg(long)]
    pub(super) new_secret: bool,
    /// Keep it without trying it out
    #[arg(long)]
    pub(super) no_test: bool,
}

/// Where it is, and how it is spoken to.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Where the server is: https://host[:port], or http:// in a network of your own
    #[arg(long, value_name = "URL")]
    pub(super) endpoint: Option<String>,
    /// The region to sign for
    #[arg(long)]
    pub(super) region: Option<String>,
    /// What all keys of this machine begin with
    #[arg(long)]
    pub(super) prefix: Option<String>,
    /// Where the bucket's name stands in a request
    #[arg(long, value_name = "path|virtual", value_parser = ["path", "virtual"])]
    pub(super) style: Option<String>,
    /// Certificates (PEM) to trust beside those of the system; '' for none
    #[arg(long, value_name = "FILE")]
    pub(super) ca_file: Option<String>,
    /// Storage class of packs (STANDARD_IA, ..); '' leaves it to the server
    #[arg(long, value_name = "CLASS")]
    pub(super) class_items: Option<String>,
    /// Storage class of archived metadata
    #[arg(long, value_name = "CLASS")]
    pub(super) class_accounts: Option<String>,
    /// Storage class of identity and epoch records
    #[arg(long, value_name = "CLASS")]
    pub(super) class_server: Option<String>,
    /// For people
    #[arg(long)]
    pub(super) notes: Option<String>,
}

/// Who asks.
#[derive(Debug, Args)]
pub(super) struct Keys {
    /// The public half of the keys; by default AWS_ACCESS_KEY_ID
    #[arg(long, value_name = "KEY_ID")]
    pub(super) access_key: Option<String>,
    /// Read the secret key from this file, which others may not read; /dev/stdin for a pipe
    #[arg(long, value_name = "FILE")]
    pub(super) secret_file: Option<PathBuf>,
    /// Keep no keys: read them from this section of the AWS tools' file each time
    #[arg(long, value_name = "NAME", conflicts_with_all = ["access_key", "secret_file"])]
    pub(super) profile: Option<String>,
    /// That file; by default ~/.aws/credentials
    #[arg(long, value_name = "FILE", requires = "profile")]
    pub(super) credentials: Option<PathBuf>,
    /// Keep no keys: take them from the environment of each process
    #[arg(long, conflicts_with_all = ["access_key", "secret_file", "profile"])]
    pub(super) environment: bool,
}
