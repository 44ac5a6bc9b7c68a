//! Where a bucket is, how it is spoken to, and who says so.
//!
//! A secret may be typed in, read from a 0600 file and used to sign; it may never be printed. So [`Secret`] shows stars
//! in `Debug` and `Display`, and [`S3Config`] leaves it out when it is serialised: only [`S3Config::revealed`] writes it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Error, ErrorClass, Result};

/// A bucket, or a prefix of one, as a volume.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct S3Config {
    /// Where the server is: `https://host[:port]`, or `http://` for a network of one's own.
    pub endpoint: String,
    /// The region that requests are signed for.
    #[serde(default = "default_region")]
    pub region: String,
    /// The bucket. It must exist: none is ever created here.
    pub bucket: String,
    /// What every key of this volume begins with, without slashes at its ends; empty for the whole bucket.
    #[serde(default)]
    pub prefix: String,
    /// Where the bucket's name stands in a request.
    #[serde(default)]
    pub addressing: Addressing,
    /// Who asks.
    #[serde(default)]
    pub credentials: Credentials,
    /// Certificates (PEM) that are trusted beside those of the system.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// What each kind of object is stored as.
    #[serde(default)]
    pub storage_class: StorageClasses,
    /// How the server keeps `Precondition::IfAbsent`.
    #[serde(default)]
    pub conditional_put: ConditionalPut,
    /// How much at once, and how patiently.
    #[serde(default)]
    pub limits: S3Limits,
}

/// Where the bucket's name stands in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing {
    /// `https://host/bucket/key`: works everywhere but on AWS for new buckets.
    #[default]
    Path,
    /// `https://bucket.host/key`: needs a name that DNS takes, and a certificate for it.
    VirtualHost,
}

/// Who asks.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Credentials {
    /// Keys that are kept with the configuration.
    Static {
        /// The public half.
        access_key: String,
        /// The secret half.
        secret: Secret,
        /// Goes with keys that expire.
        #[serde(default)]
        session_token: Option<Secret>,
    },
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, where there is one, `AWS_SESSION_TOKEN`.
    #[default]
    Environment,
    /// A section of a file as the AWS tools keep it. Read again when the server calls the keys expired.
    Profile {
        /// The file; by default `$AWS_SHARED_CREDENTIALS_FILE`, else `~/.aws/credentials`.
        #[serde(default)]
        file: Option<PathBuf>,
        /// The section.
        name: String,
    },
}

/// What each kind of object is stored as, in the server's words (`STANDARD_IA`, ..); none leaves it to the server.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageClasses {
    /// Packs: read seldom, and by range. Not one that must be thawed before it can be read.
    pub items: Option<String>,
    /// Archived metadata: small, read to mount a moment.
    pub accounts: Option<String>,
    /// Identity, epoch records, saved configuration: read at every opening. Also for whatever is none of the others.
    pub server: Option<String>,
}

impl StorageClasses {
    /// The class of the object `key`, which is without the volume's prefix.
    pub fn of(&self, key: &str) -> Option<&str> {
        let class = match key.split('/').next() {
            Some("items") => &self.items,
            Some("accounts") => &self.accounts,
            _ => &self.server,
        };
        class.as_deref()
    }
}

/// How the server keeps `Precondition::IfAbsent`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConditionalPut {
    /// Not known: tried out before the first such put.
    #[default]
    Unknown,
    /// `If-None-Match: *` is kept: of several writers one wins.
    Kept,
    /// It is refused or, worse, ignored: looked up before, an early warning and no more.
    Ignored,
}

/// How much at once, and how patiently. Lengths in bytes, times in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct S3Limits {
    /// Connections at once. A quarter of them is never used by bodies of puts, so that a read need not wait for bulk.
    pub connections_max: u16,
    /// Longest object that is sent in one request; a longer one goes in parts.
    pub single_put_len_max: u64,
    /// Length of a part; grows with objects of more than 10 000 of them.
    pub part_len: u64,
    /// Bytes of bodies in memory at once, over all puts of this volume.
    pub memory_max: u64,
    /// Time to open a connection, DNS and TLS included.
    pub connect_timeout_ms: u64,
    /// Time for a request and its answer beside what its body takes.
    pub request_timeout_ms: u64,
    /// Longest time in which not a byte of a body moves.
    pub stall_timeout_ms: u64,
    /// What a body gets time for: slower than this is taken for broken.
    pub bytes_per_sec_min: u64,
}

impl Default for S3Limits {
    fn default() -> S3Limits {
        S3Limits {
            connections_max: 16,
            // Above the 32 MiB of a pack, whose upload is then one request.
            single_put_len_max: 48 << 20,
            part_len: 16 << 20,
            memory_max: 192 << 20,
            connect_timeout_ms: 10_000,
            request_timeout_ms: 30_000,
            stall_timeout_ms: 20_000,
            bytes_per_sec_min: 32 << 10,
        }
    }
}

impl S3Limits {
    /// Smallest part that S3 takes, but for the last.
    pub const PART_LEN_MIN: u64 = 5 << 20;
    /// Longest body of one request: what S3 takes.
    pub const SINGLE_PUT_LEN_MAX: u64 = 5 << 30;

    /// Time for one attempt at a request with `body_len` bytes in either direction.
    pub fn timeout(&self, body_len: u64) -> Duration {
        let body_ms = body_len.saturating_mul(1000) / self.bytes_per_sec_min.max(1);
        Duration::from_millis(
            self.connect_timeout_ms
                .saturating_add(self.request_timeout_ms)
                .saturating_add(body_ms),
        )
    }

    fn fault(&self) -> Option<String> {
        let S3Limits {
            single_put_len_max,
            part_len,
            memory_max,
            ..
        } = *self;
        if self.connections_max == 0 {
            Some("connections_max is 0: at least one is needed".into())
        } else if !(S3Limits::PART_LEN_MIN..=S3Limits::SINGLE_PUT_LEN_MAX).contains(&part_len) {
            Some(format!(
                "part_len is {part_len}: S3 takes parts from 5 MiB to 5 GiB"
            ))
        } else if single_put_len_max > S3Limits::SINGLE_PUT_LEN_MAX {
            Some(format!(
                "single_put_len_max is {single_put_len_max}: S3 takes 5 GiB at once"
            ))
        } else if memory_max < single_put_len_max.max(part_len) {
            Some(format!(
                "memory_max is {memory_max}: one body of {} would not fit",
                single_put_len_max.max(part_len)
            ))
        } else if [
            self.connect_timeout_ms,
            self.request_timeout_ms,
            self.stall_timeout_ms,
            self.bytes_per_sec_min,
        ]
        .contains(&0)
        {
            Some("a time or rate of 0 would let nothing through".into())
        } else {
            None
        }
    }
}

fn default_region() -> String {
    DEFAULT_REGION.into()
}

/// What servers that have no regions take requests to be signed for.
pub(super) const DEFAULT_REGION: &str = "us-east-1";

impl S3Config {
    /// The bucket at `endpoint`, path style, with credentials from the environment and everything else at its default.
    pub fn new(endpoint: impl Into<String>, bucket: impl Into<String>) -> S3Config {
        S3Config {
            endpoint: endpoint.into(),
            region: default_region(),
            bucket: bucket.into(),
            prefix: String::new(),
            addressing: Addressing::default(),
            credentials: Credentials::default(),
            ca_file: None,
            storage_class: StorageClasses::default(),
            conditional_put: ConditionalPut::default(),
            limits: S3Limits::default(),
        }
    }

    /// The same with another prefix below its own: the volume of one server of several in a bucket.
    pub fn below(mut self, prefix: &str) -> S3Config {
        let joined = [self.prefix.as_str(), prefix].map(|part| part.trim_matches('/'));
        self.prefix = joined
            .iter()
            .copied()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("/");
        self
    }

    /// The same, to be written with its secrets: into a file that only its owner may read.
    pub fn revealed(&self) -> Revealed<'_> {
        Revealed(self)
    }

    /// Refuses what no server could take, before anything is sent.
    pub fn check(&self) -> Result<()> {
        let fault = endpoint_fault(&self.endpoint)
            .or_else(|| bucket_fault(&self.bucket, self.addressing))
            .or_else(|| prefix_fault(&self.prefix))
            .or_else(|| region_fault(&self.region))
            .or_else(|| self.limits.fault());
        match fault {
            None => Ok(()),
            Some(message) => Err(Error::new(
                ErrorClass::Permanent,
                "use the bucket",
                "",
                &format!("'{}'", self.bucket.escape_debug()),
                message,
            )),
        }
    }

    fn shown(&self, secrets: bool) -> Shown<'_> {
        Shown {
            endpoint: &self.endpoint,
            region: &self.region,
            bucket: &self.bucket,
            prefix: &self.prefix,
            addressing: self.addressing,
            credentials: ShownCredentials::of(&self.credentials, secrets),
            ca_file: &self.ca_file,
            storage_class: &self.storage_class,
            conditional_put: self.conditional_put,
            limits: &self.limits,
        }
    }
}

/// `s3://host[:port]/bucket[/prefix]`: what names the volume to a person.
impl fmt::Display for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self
            .endpoint
            .split_once("://")
            .map_or(self.endpoint.as_str(), |(_, host)| host);
        write!(f, "s3://{host}/{}", self.bucket)?;
        if self.prefix.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.prefix)
        }
    }
}

/// Without its secrets: what is read back from it lacks them, and says so.
impl Serialize for S3Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.shown(false).serialize(serializer)
    }
}

/// A configuration that is written with its secrets; see [`S3Config::revealed`].
pub struct Revealed<'a>(&'a S3Config);

impl Serialize for Revealed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.shown(true).serialize(serializer)
    }
}

impl fmt::Debug for Revealed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    endpoint: &'a str,
    region: &'a str,
    bucket: &'a str,
    prefix: &'a str,
    addressing: Addressing,
    credentials: ShownCredentials<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: &'a Option<PathBuf>,
    storage_class: &'a StorageClasses,
    conditional_put: ConditionalPut,
    limits: &'a S3Limits,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum ShownCredentials<'a> {
    Static {
        access_key: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        secret: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        session_token: Option<&'a str>,
    },
    Environment,
    Profile {
        #[serde(skip_serializing_if = "Option::is_none")]
        file: &'a Option<PathBuf>,
        name: &'a str,
    },
}

impl<'a> ShownCredentials<'a> {
    fn of(credentials: &'a Credentials, secrets: bool) -> ShownCredentials<'a> {
        match credentials {
            Credentials::Static {
                access_key,
                secret,
                session_token,
            } => ShownCredentials::Static {
                access_key,
                secret: secrets.then(|| secret.reveal()),
                session_token: session_token
                    .as_ref()
                    .filter(|_| secrets)
                    .map(Secret::reveal),
            },
            Credentials::Environment => ShownCredentials::Environment,
            Credentials::Profile { file, name } => ShownCredentials::Profile { file, name },
        }
    }
}

/// What may be used and not shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself: to sign with, or to store where only its owner reads.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn endpoint_fault(endpoint: &str) -> Option<String> {
    let Some(("http" | "https", host)) = endpoint.split_once("://") else {
        return Some("the endpoint begins with neither https:// nor http://".into());
    };
    if host.contains('@') {
        return Some(
            "the endpoint names a user: keys belong into a profile or the environment".into(),
        );
    }
    let name = host_name(host);
    let is_host = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
    let port = host.get(name.len()..).unwrap_or_default();
    let is_port = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|number| number.parse::<u16>().is_ok_and(|number| number > 0));
    (!is_host || !is_port)
        .then(|| "the endpoint is a host name or address, and a port where it needs one".into())
}

/// `host` without its port; an IPv6 address keeps its brackets.
fn host_name(host: &str) -> &str {
    match host.rfind(']') {
        Some(end) => host.get(..=end).unwrap_or(host),
        None => host.split(':').next().unwrap_or(host),
    }
}

fn bucket_fault(bucket: &str, addressing: Addressing) -> Option<String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let well_formed = (1..=255).contains(&bucket.len())
        && edge(bucket.chars().next())
        && edge(bucket.chars().last())
        && bucket
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if !well_formed {
        return Some("the bucket's name is made of letters, digits, '.', '-' and '_'".into());
    }
    let dns = bucket.len() <= 63
        && !bucket
            .bytes()
            .any(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'.'));
    (addressing == Addressing::VirtualHost && !dns).then(|| {
        "this name cannot stand in a host name: use style=path, or a bucket of a-z, 0-9 and '-'"
            .into()
    })
}

fn prefix_fault(prefix: &str) -> Option<String> {
    // Room for the longest key in the 1024 bytes that S3 gives.
    if prefix.len() > 256 {
        return Some("the prefix has more than 256 bytes".into());
    }
    let component = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    (!prefix.is_empty() && !prefix.split('/').all(component)).then(|| {
        "a prefix is made of letters, digits, '.', '-', '_' and single '/' between them".into()
    })
}

fn region_fault(region: &str) -> Option<String> {
    let fine = (1..=64).contains(&region.len())
        && region
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    (!fine).then(|| "the region is made of letters, digits, '-', '_' and '.'".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_secrets() -> S3Config {
        let mut config = S3Config::new("https://nas.lan", "backup");
        config.credentials = Credentials::Static {
            access_key: "AK1".into(),
            secret: Secret::new("sk-secret"),
            session_token: Some(Secret::new("st-secret")),
        };
        config
    }

    #[test]
    fn a_secret_is_written_by_an_explicit_call_and_never_shown() {
        let config = with_secrets();
        let plain = serde_json::to_string(&config).unwrap();
        let shown = format!(
            "{config:?} {config:#?} {config} {:?} {plain}",
            config.revealed()
        );
        assert!(shown.contains("AK1"), "{shown}");
        assert!(!shown.contains("-secret"), "{shown}");
        let refusal = serde_json::from_str::<S3Config>(&plain).unwrap_err();
        assert!(refusal.to_string().contains("secret"), "{refusal}");
        let kept = serde_json::to_string(&config.revealed()).unwrap();
        assert_eq!(serde_json::from_str::<S3Config>(&kept).unwrap(), config);
    }

    #[test]
    fn a_configuration_of_few_words_is_one() {
        let text = r#"{"endpoint":"http://127.0.0.1:9000","bucket":"b","credentials":{"profile":{"name":"nas"}}}"#;
        let config: S3Config = serde_json::from_str(text).unwrap();
        config.check().unwrap();
        assert_eq!(config.limits, S3Limits::default());
        let again = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<S3Config>(&again).unwrap(), config);
    }

    #[test]
    fn prefixes_join() {
        let config = S3Config::new("https://h", "b");
        assert_eq!(config.clone().below("").prefix, "");
        assert_eq!(config.clone().below("a/b").prefix, "a/b");
        assert_eq!(config.below("a").below("b/c").to_string(), "s3://h/b/a/b/c");
    }

    #[test]
    fn each_kind_of_object_has_its_storage_class() {
        let classes = StorageClasses {
            items: Some("COLD".into()),
            accounts: None,
            server: Some("HOT".into()),
        };
        assert_eq!(classes.of("items/ab/x.pack"), Some("COLD"));
        assert_eq!(classes.of("accounts/1-2.seg"), None);
        assert_eq!(classes.of("server/volume.json"), Some("HOT"));
        assert_eq!(classes.of("probe/1"), Some("HOT"));
    }

    #[test]
    fn limits_that_let_nothing_through_are_refused() {
        let refused = |change: fn(&mut S3Limits)| {
            let mut config = S3Config::new("https://h", "b");
            change(&mut config.limits);
            config.check().unwrap_err().to_string()
        };
        assert!(refused(|l| l.connections_max = 0).contains("connections_max"));
        assert!(refused(|l| l.part_len = 1 << 20).contains("part_len"));
        assert!(refused(|l| l.memory_max = 1 << 20).contains("memory_max"));
        assert!(refused(|l| l.stall_timeout_ms = 0).contains("time or rate"));
    }
}
