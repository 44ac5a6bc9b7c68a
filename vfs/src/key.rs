//! What an object may be called.
//!
//! The alphabet is the smallest that every store takes unchanged, case-insensitive ones included. A component never
//! begins with a dot, so that temporary names, `.nfs*` leftovers of a server and `..` can never be objects.

use std::fmt;

use crate::error::{Error, ErrorClass, Result};

/// The name of an object: `/`-separated components of `a-z 0-9 . _ -`, none empty, none beginning with a dot, at most
/// [`ObjectKey::LEN_MAX`] bytes in all. Ordered by bytes, as every listing is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(Box<str>);

impl ObjectKey {
    /// Longest key in bytes; S3 takes 1024, and a prefix needs room.
    pub const LEN_MAX: usize = 512;
    /// Longest component in bytes: what a directory entry holds.
    pub const COMPONENT_LEN_MAX: usize = 255;

    /// The key `text`, if it is one.
    pub fn new(text: impl Into<String>) -> Result<ObjectKey> {
        let text: String = text.into();
        match fault_of(&text) {
            None => Ok(ObjectKey(text.into())),
            Some(fault) => {
                let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
                Err(Error::new(
                    ErrorClass::Permanent,
                    "use the key",
                    "",
                    &format!("'{shown}'"),
                    fault,
                ))
            }
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the last `/`; none for a key of one component.
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// All directories above the key, outermost first: `a`, then `a/b`, for `a/b/c`.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = &str> {
        self.0
            .match_indices('/')
            .filter_map(|(at, _)| self.0.get(..at))
    }
}

/// Why `text` is not a key.
fn fault_of(text: &str) -> Option<&'static str> {
    if text.len() > ObjectKey::LEN_MAX {
        return Some("a key has at most 512 bytes");
    }
    text.split('/').find_map(component_fault)
}

/// Why `name` is not a component of a key.
fn component_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("a key is relative and has no empty component")
    } else if name.len() > ObjectKey::COMPONENT_LEN_MAX {
        Some("a component of a key has at most 255 bytes")
    } else if name.starts_with('.') {
        Some("a component of a key does not begin with a dot")
    } else if !name
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
    {
        Some("a key is made of a-z, 0-9, '.', '_', '-' and '/'")
    } else {
        None
    }
}

/// Whether a directory entry's name can be part of a key.
pub(crate) fn is_component(name: &str) -> bool {
    component_fault(name).is_none()
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lets ordered maps of keys be searched by text.
impl std::borrow::Borrow<str> for ObjectKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for ObjectKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<ObjectKey> {
        ObjectKey::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_layout_are_keys() {
        for text in [
            "server/volume.json",
            "server/epochs/00000000000000ff-0123456789abcdef.json",
            "items/ab/abcdef.pack",
            "accounts/1-2-3-4.seg",
            "backupstat/2024_01.json",
            "a",
        ] {
            assert_eq!(ObjectKey::new(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_could_escape_hide_or_collide_is_refused() {
        let long = "a/".repeat(256) + "a";
        let long_component = "a".repeat(256);
        for text in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/./b",
            ".tmp-1",
            "a/.nfs01",
            "A",
            "a b",
            "a\\b",
            "a\0b",
            "a\nb",
            "\u{e4}",
            "a+b",
            &long,
            &long_component,
        ] {
            let error = ObjectKey::new(text).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Permanent, "{text:?}");
        }
        assert!(ObjectKey::new("a".repeat(255)).is_ok());
        assert!(ObjectKey::new("a/".repeat(255) + "ab").is_ok());
    }

    #[test]
    fn a_key_knows_its_directories() {
        let key = ObjectKey::new("a/b/c").unwrap();
        assert_eq!((key.parent(), key.name()), (Some("a/b"), "c"));
        assert_eq!(key.ancestors().collect::<Vec<_>>(), ["a", "a/b"]);
        let key = ObjectKey::new("a").unwrap();
        assert_eq!(
            (key.parent(), key.name(), key.ancestors().count()),
            (None, "a", 0)
        );
    }
}
