//! The words of the engine as types: identities, positions and moments.
//!
//! No logic beyond construction, order and printing; every other module speaks in these.

use std::fmt;

use serde::{Deserialize, Serialize};

/// SHA-256 of a blob's plain bytes: its name everywhere in the engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobHash(pub [u8; 32]);

/// Names a pack: eight random bytes of the session that wrote it, then that session's counter.
///
/// Because the session is part of the name, two servers that believe they own the same volume can
/// never write the same pack name. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub [u8; 16]);

/// One opening of the backup path for writing: random, part of every name written during it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 8]);

/// A random identity: of a volume, of an account.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

/// A numbered, consistent moment of the whole volume. Epoch 0 is the empty volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Sequence number of a journal frame. Grows by one with each commit, over the life of the volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// Number of an account: 24 bits, never reused. Account 0 is the server's own partition (the root).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AccountId(u32);

/// An inode of the volume: the account's number in the upper 24 bits, the inode's own in the lower 40.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

/// Where a blob's record is: a hint that the record itself proves right or wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobLocation {
    /// The pack that holds the record.
    pub pack: PackId,
    /// Byte offset of the record's header in the pack.
    pub offset: u32,
    /// Length of the payload as stored, without the record header.
    pub stored_len: u32,
    /// Length of the plain bytes.
    pub plain_len: u32,
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Nanoseconds since 1970 as seconds and a positive fraction; times before 1970 have negative seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp {
    /// Whole seconds, rounded towards minus infinity.
    pub secs: i64,
    /// Nanoseconds to add, below 1 000 000 000.
    pub nanos: u32,
}

impl AccountId {
    /// The server's own partition, which holds the volume's root directory.
    pub const SERVER: AccountId = AccountId(0);
    /// The largest number an account of a volume may have; the ones above are for views in the mount.
    pub const MAX: u32 = 0xEF_FFFF;

    /// An account's number, if it fits.
    pub fn new(number: u32) -> Option<AccountId> {
        (number <= Self::MAX).then_some(AccountId(number))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Ino {
    /// The volume's root directory; FUSE's root inode is the same number.
    pub const ROOT: Ino = Ino(1);
    /// Inode number of the root directory within each account.
    pub const ROOT_LOCAL: u64 = 1;
    const LOCAL_BITS: u32 = 40;
    /// The largest inode number within an account.
    pub const LOCAL_MAX: u64 = (1 << Self::LOCAL_BITS) - 1;

    /// The inode `local` of `account`. `local` above [`Ino::LOCAL_MAX`] is cut to its 40 bits.
    pub fn new(account: AccountId, local: u64) -> Ino {
        Ino((u64::from(account.0) << Self::LOCAL_BITS) | (local & Self::LOCAL_MAX))
    }

    /// The account it belongs to.
    pub fn account(self) -> AccountId {
        AccountId(u32::try_from(self.0 >> Self::LOCAL_BITS).unwrap_or(u32::MAX))
    }

    /// Its number within the account.
    pub fn local(self) -> u64 {
        self.0 & Self::LOCAL_MAX
    }

    /// The root directory of `account`.
    pub fn account_root(account: AccountId) -> Ino {
        Ino::new(account, Self::ROOT_LOCAL)
    }
}

impl PackId {
    /// The `count`-th pack of `session`.
    pub fn new(session: SessionId, count: u64) -> PackId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&session.0);
        id[8..].copy_from_slice(&count.to_be_bytes());
        PackId(id)
    }

    /// The pack that the same session began after this one, if it did.
    pub fn successor(self) -> PackId {
        let count = self
            .0
            .last_chunk()
            .map_or(0, |count| u64::from_be_bytes(*count));
        let count = count.wrapping_add(1);
        let mut id = self.0;
        id[8..].copy_from_slice(&count.to_be_bytes());
        PackId(id)
    }

    /// Parses 32 lower-case hex digits.
    pub fn parse(text: &str) -> Option<PackId> {
        parse_hex(text).map(PackId)
    }

    /// The object's name in a backup path and on an external volume. Sharded by the *last* byte, the
    /// fastest counting one, so that one session's packs spread over all 256 directories.
    pub fn object_name(self) -> String {
        format!("items/{:02x}/{self}.pack", self.0[15])
    }
}

impl SessionId {
    /// Parses 16 lower-case hex digits.
    pub fn parse(text: &str) -> Option<SessionId> {
        parse_hex(text).map(SessionId)
    }
}

impl Uuid {
    /// Parses 32 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Uuid> {
        parse_hex(text).map(Uuid)
    }
}

impl Epoch {
    /// The one after.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// A name or path as text that leads back to it: bytes that are not UTF-8, control characters and the backslash
/// become `\\xNN`.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter == '\\' || letter.is_control() {
                let mut buffer = [0; 4];
                let encoded = letter.encode_utf8(&mut buffer);
                out.extend(encoded.bytes().map(|byte| format!("\\x{byte:02x}")));
            } else {
                out.push(letter);
            }
        }
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    out
}

/// The bytes that [`escape`] wrote.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let &[b'x', high, low] = rest.first_chunk::<3>()? else {
            return None;
        };
        out.push((nibble(high)? << 4) | nibble(low)?);
        rest = rest.get(3..)?;
    }
    Some(out)
}

/// Parses exactly `N` bytes of lower-case hex.
pub fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let &[high, low] = pair else { return None };
        *byte = (nibble(high)? << 4) | nibble(low)?;
    }
    Some(out)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

macro_rules! hex_display {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }
    )*};
}
hex_display!(BlobHash, PackId, SessionId, Uuid);

macro_rules! number_display {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )*};
}
number_display!(Epoch, Lsn, AccountId);

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lsn {}", self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "account {}", self.0)
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.account(), self.local())
    }
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ino {self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_number_keeps_its_account_and_its_own_number() {
        let account = AccountId::new(77).unwrap();
        let ino = Ino::new(account, 12_345);
        assert_eq!((ino.account(), ino.local()), (account, 12_345));
        assert_eq!(Ino::account_root(AccountId::SERVER), Ino::ROOT);
        assert_eq!(AccountId::new(AccountId::MAX + 1), None);
    }

    #[test]
    fn a_name_that_is_no_text_comes_back_from_its_text() {
        for name in [
            &b"plain"[..],
            b"caf\xe9",
            b"a\\b\n",
            "\u{e9}\u{85}".as_bytes(),
            b"",
        ] {
            assert_eq!(unescape(&escape(name)).as_deref(), Some(name));
        }
        assert_eq!(escape(b"caf\xe9"), r"caf\xe9");
        assert_eq!(unescape(r"a\x4"), None);
        assert_eq!(unescape(r"a\n41"), None);
    }

    #[test]
    fn a_pack_name_parses_back_and_rejects_what_is_not_its_own_form() {
        let id = PackId::new(SessionId([0xab; 8]), 258);
        assert_eq!(
            id.object_name(),
            "items/02/abababababababab0000000000000102.pack"
        );
        assert_eq!(PackId::parse(&id.to_string()), Some(id));
        assert_eq!(id.successor(), PackId::new(SessionId([0xab; 8]), 259));
        assert_eq!(PackId::parse(&id.to_string().to_uppercase()), None);
        assert_eq!(PackId::parse("ab"), None);
    }
}
