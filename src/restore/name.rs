//! Names that may be given to a system call: one component of a path, whatever a volume says.

use std::fmt;

use crate::format::keys::NAME_LEN_MAX;
use crate::types::{Epoch, escape};

/// Temporary names begin so; what a stop left of them is removed by the next restore into that directory.
const TEMPORARY_PREFIX: &str = ".tidefs-restore-";
/// Hex digits of a run, then a dash, then the number of the file.
const RUN_DIGITS: usize = 16;

/// A name that leads nowhere but into its own directory.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct SafeName(Box<[u8]>);

/// Why a name of the volume cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum BadName {
    #[error("its name is empty")]
    Empty,
    #[error("its name is '.' or '..', which leads elsewhere")]
    Dots,
    #[error("its name has a '/', which leads elsewhere")]
    Slash,
    #[error("its name has a zero byte")]
    Zero,
    #[error("its name is longer than 255 bytes")]
    Long,
}

impl SafeName {
    pub(super) fn parse(name: &[u8]) -> Result<SafeName, BadName> {
        match name {
            [] => Err(BadName::Empty),
            b"." | b".." => Err(BadName::Dots),
            _ if name.contains(&b'/') => Err(BadName::Slash),
            _ if name.contains(&0) => Err(BadName::Zero),
            _ if name.len() > NAME_LEN_MAX => Err(BadName::Long),
            _ => Ok(SafeName(name.into())),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for SafeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

/// A name for a file that is not complete: of this run, and of no other.
pub(super) fn temporary(run: u64, number: u64) -> SafeName {
    SafeName(
        format!("{TEMPORARY_PREFIX}{run:0RUN_DIGITS$x}-{number}")
            .into_bytes()
            .into(),
    )
}

/// What an item of the past is called where another one has its name by now.
pub(super) fn beside(name: &[u8], in_epoch: Epoch) -> SafeName {
    let suffix = format!(".deleted-in-epoch-{in_epoch}");
    let kept = name.len().min(NAME_LEN_MAX - suffix.len());
    let kept = name.get(..kept).unwrap_or_default();
    SafeName([kept, suffix.as_bytes()].concat().into())
}

/// Whether a run of ours gave this name to something that it did not complete.
pub(super) fn is_temporary(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(TEMPORARY_PREFIX.as_bytes()) else {
        return false;
    };
    let Some((run, [b'-', number @ ..])) = rest.split_at_checked(RUN_DIGITS) else {
        return false;
    };
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    run.iter().all(is_hex) && !number.is_empty() && number.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_elsewhere_is_no_name() {
        for (name, why) in [
            (&b""[..], BadName::Empty),
            (b".", BadName::Dots),
            (b"..", BadName::Dots),
            (b"/etc", BadName::Slash),
            (b"a/b", BadName::Slash),
            (b"../x", BadName::Slash),
            (b"a\0b", BadName::Zero),
            (&[b'n'; 256], BadName::Long),
        ] {
            assert_eq!(SafeName::parse(name), Err(why));
        }
        for name in [&b"..."[..], b"a\nb", b"caf\xe9", &[b'n'; 255]] {
            assert_eq!(SafeName::parse(name).unwrap().bytes(), name);
        }
    }

    #[test]
    fn what_stands_beside_another_has_a_name_that_is_not_too_long() {
        let beside = |name: &[u8]| beside(name, Epoch(u64::MAX)).bytes().to_vec();
        assert_eq!(beside(b"a"), b"a.deleted-in-epoch-18446744073709551615");
        assert_eq!(beside(&[b'n'; 255]).len(), 255);
    }

    #[test]
    fn only_our_own_temporary_names_are_taken_for_such() {
        assert!(is_temporary(temporary(0xab, 7).bytes()));
        assert!(is_temporary(temporary(u64::MAX, u64::MAX).bytes()));
        for name in [
            &b".tidefs-restore-"[..],
            b".tidefs-restore-00000000000000ab-",
            b".tidefs-restore-00000000000000AB-1",
            b".tidefs-restore-00000000000000ab-1x",
            b".tidefs-restore-notes",
            b"a.tidefs-restore-00000000000000ab-1",
        ] {
            assert!(!is_temporary(name));
        }
    }
}
