//! A segment's object name, which sorts by first epoch.

use std::fmt;

use crate::types::{Epoch, SessionId, parse_hex};

const FOLDER: &str = "accounts/";
const SUFFIX: &str = ".seg";

/// `accounts/<first>-<last>-<session>-<digest>.seg`: epochs as 16 hex digits, the first eight bytes of the digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentName {
    /// No entry is older.
    pub first: Epoch,
    /// No entry is newer.
    pub last: Epoch,
    /// The session that wrote it.
    pub session: SessionId,
    /// The first eight bytes of the SHA-256 in its footer.
    pub digest: [u8; 8],
}

impl SegmentName {
    /// Parses an object name, in exactly the form that `Display` gives.
    pub fn parse(object: &str) -> Option<SegmentName> {
        SegmentName::parse_file_name(object.strip_prefix(FOLDER)?)
    }

    /// Parses the part after the folder.
    pub fn parse_file_name(name: &str) -> Option<SegmentName> {
        let mut parts = name.strip_suffix(SUFFIX)?.split('-');
        let first = Epoch(u64::from_be_bytes(parse_hex(parts.next()?)?));
        let last = Epoch(u64::from_be_bytes(parse_hex(parts.next()?)?));
        let session = SessionId(parse_hex(parts.next()?)?);
        let digest = parse_hex(parts.next()?)?;
        let whole = parts.next().is_none() && first <= last;
        whole.then_some(SegmentName {
            first,
            last,
            session,
            digest,
        })
    }

    /// The part of the name after the folder.
    pub fn file_name(&self) -> String {
        let digest = u64::from_be_bytes(self.digest);
        format!(
            "{:016x}-{:016x}-{}-{digest:016x}{SUFFIX}",
            self.first.0, self.last.0, self.session
        )
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FOLDER}{}", self.file_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(first: u64, last: u64) -> SegmentName {
        SegmentName {
            first: Epoch(first),
            last: Epoch(last),
            session: SessionId([0xab; 8]),
            digest: [0, 1, 2, 3, 4, 5, 6, 0xff],
        }
    }

    #[test]
    fn a_segment_name_parses_back() {
        let text = name(2, 0x1f).to_string();
        assert_eq!(
            text,
            "accounts/0000000000000002-000000000000001f-abababababababab-00010203040506ff.seg"
        );
        assert_eq!(SegmentName::parse(&text), Some(name(2, 0x1f)));
    }

    #[test]
    fn segment_names_sort_by_their_first_epoch() {
        assert!(name(9, 9).to_string() < name(10, 10).to_string());
        assert!(name(0xff, u64::MAX).to_string() < name(0x100, 0x100).to_string());
    }

    #[test]
    fn what_is_not_exactly_a_segment_name_is_not_parsed() {
        let good = name(2, 3).to_string();
        assert_eq!(SegmentName::parse(&good.to_uppercase()), None);
        assert_eq!(SegmentName::parse(&good.replace(".seg", "")), None);
        assert_eq!(SegmentName::parse(&good.replace(".seg", "-00.seg")), None);
        assert_eq!(SegmentName::parse(&good.replace("accounts", "items")), None);
        assert_eq!(SegmentName::parse(&name(3, 2).to_string()), None);
        assert_eq!(SegmentName::parse("accounts/.seg"), None);
    }
}
