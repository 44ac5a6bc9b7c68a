//! `s3://endpoint/bucket/prefix?region=...`: a bucket in one line, without its secrets.

use std::fmt;
use std::path::{Path, PathBuf};

use super::config::{Addressing, Credentials, DEFAULT_REGION, S3Config};

/// A bucket as it was typed. Prints exactly so, and holds no secret: keys come from the environment or from a profile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct S3Url {
    text: Box<str>,
    config: Box<S3Config>,
}

/// What may stand behind the `?`, for the refusals.
const PARAMETERS: &str =
    "region=NAME, style=path|virtual, tls=on|off, ca=FILE, profile=NAME, credentials=FILE";

impl S3Url {
    /// Reads what stands behind `s3:`, beginning with `//`; a refusal says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<S3Url, String> {
        let place = text
            .strip_prefix("s3://")
            .ok_or("it does not begin with s3://")?;
        let (place, query) = place.split_once('?').unwrap_or((place, ""));
        let (host, path) = place.split_once('/').unwrap_or((place, ""));
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        if host.is_empty() || bucket.is_empty() {
            return Err("it names no endpoint or no bucket".into());
        }
        if host.contains('@') {
            return Err(
                "keys do not belong here: put them into the environment or a profile".into(),
            );
        }
        let mut scheme = "https";
        let mut config = S3Config::new("", bucket);
        config.prefix = prefix.strip_suffix('/').unwrap_or(prefix).into();
        config.region = region_of_aws(host).unwrap_or(DEFAULT_REGION).into();
        if host.ends_with(".amazonaws.com") {
            config.addressing = Addressing::VirtualHost;
        }
        let (mut profile, mut file): (Option<String>, Option<PathBuf>) = (None, None);
        for parameter in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match (name, value) {
                ("region", value) if !value.is_empty() => config.region = value.into(),
                ("style", "path") => config.addressing = Addressing::Path,
                ("style", "virtual") => config.addressing = Addressing::VirtualHost,
                ("tls", "on") => scheme = "https",
                ("tls", "off") => scheme = "http",
                ("ca", value) => config.ca_file = Some(absolute(name, value)?),
                ("profile", value) if !value.is_empty() => profile = Some(value.into()),
                ("credentials", value) => file = Some(absolute(name, value)?),
                // The value is not shown: it may be a key that somebody hoped to pass like this.
                _ => {
                    let name: String = name.chars().take(40).flat_map(char::escape_debug).collect();
                    return Err(format!(
                        "'{name}' or its value is not known behind the '?': {PARAMETERS}"
                    ));
                }
            }
        }
        if profile.is_some() || file.is_some() {
            config.credentials = Credentials::Profile {
                file,
                name: profile.unwrap_or_else(|| "default".into()),
            };
        }
        config.endpoint = format!("{scheme}://{host}");
        config.check().map_err(|error| error.to_string())?;
        Ok(S3Url {
            text: text.into(),
            config: Box::new(config),
        })
    }

    /// The bucket it names.
    pub fn config(&self) -> &S3Config {
        &self.config
    }
}

impl fmt::Display for S3Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A daemon has another working directory than the shell.
fn absolute(name: &str, value: &str) -> Result<PathBuf, String> {
    let path = Path::new(value);
    if path.is_absolute() {
        Ok(path.into())
    } else {
        Err(format!("{name}= takes an absolute path"))
    }
}

/// `eu-central-1` of `s3.eu-central-1.amazonaws.com`.
fn region_of_aws(host: &str) -> Option<&str> {
    let name = host.strip_suffix(".amazonaws.com")?;
    let region = name.strip_prefix("s3.")?;
    Some(region.strip_prefix("dualstack.").unwrap_or(region))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_everything_but_the_keys() {
        let url = S3Url::parse(
            "s3://nas.lan:9000/backup/host-7/a?region=garage&style=path&tls=off&ca=/etc/ca.pem&profile=nas",
        )
        .unwrap();
        let config = url.config();
        assert_eq!(config.endpoint, "http://nas.lan:9000");
        assert_eq!(
            (config.bucket.as_str(), config.prefix.as_str()),
            ("backup", "host-7/a")
        );
        assert_eq!(config.region, "garage");
        assert_eq!(config.addressing, Addressing::Path);
        assert_eq!(config.ca_file.as_deref(), Some(Path::new("/etc/ca.pem")));
        assert_eq!(
            config.credentials,
            Credentials::Profile {
                file: None,
                name: "nas".into()
            }
        );
        assert_eq!(config.to_string(), "s3://nas.lan:9000/backup/host-7/a");
    }

    #[test]
    fn what_is_not_said_is_safe() {
        let url = S3Url::parse("s3://s3.eu-central-1.amazonaws.com/backup").unwrap();
        let config = url.config();
        assert_eq!(config.endpoint, "https://s3.eu-central-1.amazonaws.com");
        assert_eq!(config.region, "eu-central-1");
        assert_eq!(config.addressing, Addressing::VirtualHost);
        assert_eq!(config.credentials, Credentials::Environment);
        let url = S3Url::parse("s3://[::1]:9000/backup/").unwrap();
        assert_eq!(url.config().endpoint, "https://[::1]:9000");
        assert_eq!(
            (url.config().region.as_str(), url.config().prefix.as_str()),
            ("us-east-1", "")
        );
    }

    #[test]
    fn a_key_in_the_line_is_refused_and_not_repeated() {
        for text in [
            "s3://ak:sk-secret@host/bucket",
            "s3://host/bucket?secret=sk-secret",
            "s3://host/bucket?access_key=ak&secret_key=sk-secret",
        ] {
            let refusal = S3Url::parse(text).unwrap_err();
            assert!(!refusal.contains("sk-secret"), "{refusal}");
        }
    }

    #[test]
    fn what_no_server_could_take_is_refused() {
        for text in [
            "s3://",
            "s3://host",
            "s3://host/",
            "s3:///bucket",
            "s3://host:x/bucket",
            "s3://host:0/bucket",
            "s3://ho st/bucket",
            "s3://host/bu cket",
            "s3://host/bucket//a",
            "s3://host/bucket/a/../b",
            "s3://host/bucket/a%20b",
            "s3://host/bucket?tls=maybe",
            "s3://host/bucket?style=dns",
            "s3://host/bucket?ca=ca.pem",
            "s3://host/My_Bucket?style=virtual",
            "s3://host/bucket?region=a/b",
        ] {
            assert!(S3Url::parse(text).is_err(), "{text}");
        }
    }
}
