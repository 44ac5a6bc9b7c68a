//! From what the operator typed to an open volume.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::dir::DirVolume;
use crate::error::{Error, ErrorClass, Result};
use crate::key::ObjectKey;
use crate::s3::{S3Config, S3Url};
use crate::volume::Volume;

/// Where a volume is, as `kind:place`. Prints as it is parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Spec {
    /// `local:/path`: a directory on this machine's own file system, in the backup path.
    Local(PathBuf),
    /// `dir:/path`: any mounted directory.
    Dir(PathBuf),
    /// `s3://endpoint/bucket[/prefix][?..]`: a bucket in full, keys from the environment or a profile.
    S3Url(S3Url),
    /// `s3:BUCKET[/prefix]`: a bucket whose configuration is kept elsewhere, under an id or a label.
    S3Bucket {
        /// The id or the label.
        bucket_id: String,
        /// Where in the bucket, below the configuration's own prefix; empty for all of it.
        prefix: String,
    },
}

impl Spec {
    /// Reads a specification.
    pub fn parse(text: &str) -> Result<Spec> {
        let refuse = |message: &str| {
            let shown: String = text
                .chars()
                .take(200)
                .flat_map(char::escape_debug)
                .collect();
            Err(Error::new(
                ErrorClass::Permanent,
                "use the external volume",
                "",
                &format!("'{shown}'"),
                message,
            ))
        };
        let Some((kind, place)) = text.split_once(':') else {
            return refuse(
                "it has no kind: write dir:/path for a mounted directory, s3:BUCKET for a bucket",
            );
        };
        match kind {
            "dir" | "local" if !Path::new(place).is_absolute() => refuse(
                "the path must be absolute, for a daemon has another working directory: write dir:/path",
            ),
            "dir" => Ok(Spec::Dir(place.into())),
            "local" => Ok(Spec::Local(place.into())),
            // Not shown whole: what is wrong with it may be a key that stands there.
            "s3" if place.starts_with("//") => S3Url::parse(text).map(Spec::S3Url).map_err(|why| {
                Error::new(
                    ErrorClass::Permanent,
                    "use the external volume",
                    "",
                    "'s3://..'",
                    format!("{why}; write s3://endpoint/bucket/prefix?region=NAME"),
                )
            }),
            "s3" => match bucket_of(place) {
                Some(spec) => Ok(spec),
                None => refuse(
                    "write s3:BUCKET or s3:BUCKET/prefix with the id or label of a bucket that was added, or \
                     s3://endpoint/bucket/prefix",
                ),
            },
            _ => refuse(
                "there is no such kind of volume: write dir:/path for a mounted directory, s3:BUCKET for a bucket",
            ),
        }
    }
}

/// The bucket behind `s3:`. A prefix is a key, so that it can be a directory in a bridge too.
fn bucket_of(place: &str) -> Option<Spec> {
    let (bucket_id, prefix) = place.split_once('/').unwrap_or((place, ""));
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let named = (1..=128).contains(&bucket_id.len()) && bucket_id.bytes().all(word);
    let placed = !place.ends_with('/') && (prefix.is_empty() || ObjectKey::new(prefix).is_ok());
    (named && placed).then(|| Spec::S3Bucket {
        bucket_id: bucket_id.into(),
        prefix: prefix.into(),
    })
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Spec> {
        Spec::parse(text)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Local(path) => write!(f, "local:{}", path.display()),
            Spec::Dir(path) => write!(f, "dir:{}", path.display()),
            Spec::S3Url(url) => write!(f, "{url}"),
            Spec::S3Bucket { bucket_id, prefix } if prefix.is_empty() => {
                write!(f, "s3:{bucket_id}")
            }
            Spec::S3Bucket { bucket_id, prefix } => write!(f, "s3:{bucket_id}/{prefix}"),
        }
    }
}

/// What knows the buckets that were added: from id or label to configuration.
pub type Resolver<'a> = &'a dyn Fn(&str) -> Result<S3Config>;

/// Opens the volume, without any layer around it. A directory must exist: none is ever created. A bucket that is named
/// by its id is refused: see [`open_with`].
pub fn open(spec: &Spec) -> Result<Arc<dyn Volume>> {
    open_with(spec, &|bucket_id| {
        Err(Error::new(
            ErrorClass::Permanent,
            "use the bucket",
            "",
            &format!("'{bucket_id}'"),
            "no buckets are known here: write s3://endpoint/bucket/prefix?region=NAME",
        ))
    })
}

/// The same where buckets have been added: `resolver` knows them by id and label.
pub fn open_with(spec: &Spec, resolver: Resolver<'_>) -> Result<Arc<dyn Volume>> {
    Ok(match spec {
        Spec::Local(path) => Arc::new(DirVolume::open_local(path)?),
        Spec::Dir(path) => Arc::new(DirVolume::open(path)?),
        Spec::S3Url(url) => open_bucket(spec, url.config().clone())?,
        Spec::S3Bucket { bucket_id, prefix } => {
            open_bucket(spec, resolver(bucket_id)?.below(prefix))?
        }
    })
}

#[cfg(feature = "s3")]
fn open_bucket(spec: &Spec, config: S3Config) -> Result<Arc<dyn Volume>> {
    Ok(Arc::new(crate::s3::S3Volume::open_as(
        spec.to_string(),
        config,
    )?))
}

#[cfg(not(feature = "s3"))]
fn open_bucket(spec: &Spec, _config: S3Config) -> Result<Arc<dyn Volume>> {
    Err(Error::new(
        ErrorClass::Permanent,
        "open",
        &spec.to_string(),
        "",
        "this program was built without S3: mount a directory and write dir:/path",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_parsed_prints_the_same() {
        for text in ["dir:/mnt/nas", "local:/var/backup", "dir:/a:b c"] {
            assert_eq!(Spec::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_a_way_out() {
        for text in [
            "",
            "dir",
            "dir:",
            "dir:relative",
            "local:x",
            "/mnt/nas",
            "ftp:/x",
            "DIR:/x",
        ] {
            let error = Spec::parse(text).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Permanent, "{text}");
            assert!(error.to_string().contains("dir:/path"), "{error}");
        }
    }

    #[test]
    fn a_bucket_is_named_by_its_id_or_in_full() {
        for text in [
            "s3:nas",
            "s3:0b6f2a3c-7d5e-4a0e-9b61-000000000007/host-7/a",
            "s3://host/bucket/prefix?region=x&tls=off",
            "s3://host:9000/bucket",
        ] {
            assert_eq!(Spec::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "s3:",
            "s3:/",
            "s3:a b",
            "s3:nas/",
            "s3:nas//a",
            "s3:nas/..",
            "s3:nas/A",
            "s3://",
            "s3://host",
        ] {
            let error = Spec::parse(text).unwrap_err();
            assert!(
                error.to_string().contains("s3://endpoint/bucket"),
                "{error}"
            );
        }
        let error = Spec::parse("s3://ak:sk-secret@host/b").unwrap_err();
        assert!(!error.chain().contains("sk-secret"), "{error}");
    }

    #[test]
    fn a_bucket_that_nobody_added_is_refused() {
        let error = open(&Spec::parse("s3:nas/a").unwrap()).unwrap_err();
        assert!(error.to_string().contains("'nas'"), "{error}");
        let asked = std::cell::RefCell::new(Vec::new());
        let refused = open_with(&Spec::parse("s3:nas/a").unwrap(), &|id| {
            asked.borrow_mut().push(id.to_owned());
            Err(Error::new(
                ErrorClass::Permanent,
                "use the bucket",
                "",
                id,
                "gone",
            ))
        });
        assert!(refused.is_err());
        assert_eq!(*asked.borrow(), ["nas"]);
    }

    #[test]
    fn a_missing_directory_is_unreachable_and_is_not_created() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("nas");
        let error = open(&Spec::Dir(path.clone())).unwrap_err();
        assert!(error.is_unreachable() && !error.is_not_found(), "{error:?}");
        assert!(!path.exists());
    }
}
