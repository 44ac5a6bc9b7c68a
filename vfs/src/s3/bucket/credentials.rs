//! From what the configuration says to keys that sign.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::s3::config::{Credentials, Secret};

/// A pair of keys, and the token that goes with those that expire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Keys {
    pub(super) access_key: String,
    pub(super) secret: Secret,
    pub(super) session_token: Option<Secret>,
}

/// Longest file of profiles that is read.
const FILE_LEN_MAX: u64 = 1 << 20;

/// The keys in use, and where newer ones would come from.
#[derive(Debug)]
pub(super) struct KeyRing {
    source: Credentials,
    keys: RwLock<Arc<Keys>>,
}

impl KeyRing {
    /// Finds the keys; a refusal says where they were looked for, and never what they are.
    pub(super) fn open(source: Credentials) -> Result<KeyRing, String> {
        let keys = RwLock::new(Arc::new(find(&source)?));
        Ok(KeyRing { source, keys })
    }

    pub(super) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks for the keys again, after the server called `used` expired or unknown; says whether there are others now.
    pub(super) fn renew(&self, used: &Arc<Keys>) -> bool {
        let now = self.keys();
        if !Arc::ptr_eq(&now, used) {
            return true;
        }
        match find(&self.source) {
            Ok(found) if found != *now => {
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
                true
            }
            _ => false,
        }
    }
}

fn find(source: &Credentials) -> Result<Keys, String> {
    let keys = match source {
        Credentials::Static {
            access_key,
            secret,
            session_token,
        } => Keys {
            access_key: access_key.clone(),
            secret: secret.clone(),
            session_token: session_token.clone(),
        },
        Credentials::Environment => from_environment(&|name| std::env::var(name).ok())?,
        Credentials::Profile { file, name } => from_profile(file.as_deref(), name)?,
    };
    // A line break would end the header that carries it.
    let printable = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    let all = [Some(&keys.secret), keys.session_token.as_ref()];
    if printable(&keys.access_key) && all.into_iter().flatten().all(|key| printable(key.reveal())) {
        Ok(keys)
    } else {
        Err("a key is empty or has a blank or a line break in it".into())
    }
}

fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Keys, String> {
    let value = |name: &str| variable(name).filter(|value| !value.is_empty());
    let required = |name: &str| {
        value(name).ok_or_else(|| {
            format!(
                "{name} is not set: set it with its other half, or name a profile (profile=NAME)"
            )
        })
    };
    Ok(Keys {
        access_key: required("AWS_ACCESS_KEY_ID")?,
        secret: Secret::new(required("AWS_SECRET_ACCESS_KEY")?),
        session_token: value("AWS_SESSION_TOKEN").map(Secret::new),
    })
}

fn from_profile(file: Option<&Path>, name: &str) -> Result<Keys, String> {
    let path = match file {
        Some(path) => path.to_owned(),
        None => {
            default_file().ok_or("there is no home directory to look for .aws/credentials in")?
        }
    };
    let shown = path.display();
    let len = fs::metadata(&path)
        .map_err(|error| format!("{shown} cannot be read: {error}"))?
        .len();
    if len > FILE_LEN_MAX {
        return Err(format!(
            "{shown} has {len} bytes: that is no file of profiles"
        ));
    }
    let text =
        fs::read_to_string(&path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    section(&text, name).ok_or_else(|| {
        format!(
            "{shown} has no section [{}] with both keys",
            name.escape_debug()
        )
    })
}

fn default_file() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    given("AWS_SHARED_CREDENTIALS_FILE")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&given("HOME")?).join(".aws/credentials")))
}

/// The keys of `[name]` in a file as the AWS tools keep it.
fn section(text: &str, name: &str) -> Option<Keys> {
    let (mut access_key, mut secret, mut session_token) = (None, None, None);
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(title) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            // The configuration file writes `[profile name]` where the credentials file writes `[name]`.
            inside = title.trim().trim_start_matches("profile ").trim() == name;
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            let slot = match key.trim() {
                "aws_access_key_id" => &mut access_key,
                "aws_secret_access_key" => &mut secret,
                "aws_session_token" => &mut session_token,
                _ => continue,
            };
            *slot = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    Some(Keys {
        access_key: access_key?,
        secret: Secret::new(secret?),
        session_token: session_token.map(Secret::new),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[default]\naws_access_key_id = AK0\naws_secret_access_key=SK0\n\n\
        # a comment\n[profile nas]\n aws_access_key_id=AK1\n;aws_access_key_id=no\naws_secret_access_key = SK1==\n\
        aws_session_token = ST1\nregion=x\n[half]\naws_access_key_id=AK2\n";

    #[test]
    fn a_section_gives_its_own_keys() {
        let keys = section(FILE, "nas").unwrap();
        assert_eq!(keys.access_key, "AK1");
        assert_eq!(keys.secret.reveal(), "SK1==");
        assert_eq!(keys.session_token.unwrap().reveal(), "ST1");
        assert_eq!(section(FILE, "default").unwrap().secret.reveal(), "SK0");
        assert_eq!(section(FILE, "half"), None);
        assert_eq!(section(FILE, "none"), None);
    }

    #[test]
    fn the_environment_needs_both_halves() {
        let set = |name: &str| (name != "AWS_SECRET_ACCESS_KEY").then(|| name.to_lowercase());
        let refusal = from_environment(&set).unwrap_err();
        assert!(refusal.contains("AWS_SECRET_ACCESS_KEY"), "{refusal}");
        let keys = from_environment(&|name| Some(name.to_lowercase())).unwrap();
        assert_eq!(keys.session_token.unwrap().reveal(), "aws_session_token");
    }

    #[test]
    fn keys_that_were_changed_in_the_file_are_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("credentials");
        fs::write(&file, FILE).unwrap();
        let ring = KeyRing::open(Credentials::Profile {
            file: Some(file.clone()),
            name: "nas".into(),
        })
        .unwrap();
        let old = ring.keys();
        assert!(!ring.renew(&old), "nothing has changed");
        fs::write(&file, FILE.replace("ST1", "ST2")).unwrap();
        assert!(ring.renew(&old));
        assert_eq!(ring.keys().session_token.as_ref().unwrap().reveal(), "ST2");
        assert!(!format!("{ring:?}").contains("SK1"));
    }

    #[test]
    fn a_key_that_would_break_a_header_is_refused() {
        let refused = KeyRing::open(Credentials::Static {
            access_key: "AK".into(),
            secret: Secret::new("sk\nhost: evil"),
            session_token: None,
        });
        assert!(!refused.unwrap_err().contains("evil"));
    }
}
