//! From what the operator typed to an open volume.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::dir::DirVolume;
use crate::error::{Error, ErrorClass, Result};
use crate::volume::Volume;

/// Where a volume is, as `kind:place`. Prints as it is parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Spec {
    /// `local:/path`: a directory on this machine's own file system, in the backup path.
    Local(PathBuf),
    /// `dir:/path`: any mounted directory.
    Dir(PathBuf),
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
            return refuse("it has no kind: write dir:/path for a mounted directory");
        };
        match kind {
            "dir" | "local" if !Path::new(place).is_absolute() => refuse(
                "the path must be absolute, for a daemon has another working directory: write dir:/path",
            ),
            "dir" => Ok(Spec::Dir(place.into())),
            "local" => Ok(Spec::Local(place.into())),
            "s3" => {
                refuse("S3 is not built in this version: mount a directory and write dir:/path")
            }
            _ => refuse("there is no such kind of volume: write dir:/path for a mounted directory"),
        }
    }
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
        }
    }
}

/// Opens the volume, without any layer around it. A directory must exist: none is ever created.
pub fn open(spec: &Spec) -> Result<Arc<dyn Volume>> {
    Ok(match spec {
        Spec::Local(path) => Arc::new(DirVolume::open_local(path)?),
        Spec::Dir(path) => Arc::new(DirVolume::open(path)?),
    })
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
        for text in [
            "s3:bucket",
            "s3:bucket/prefix",
            "s3://host/bucket/prefix?region=x",
        ] {
            assert!(
                Spec::parse(text)
                    .unwrap_err()
                    .to_string()
                    .contains("not built in this version"),
                "{text}"
            );
        }
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
