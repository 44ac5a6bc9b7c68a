//! Epoch records and the volume's identity: the small JSON objects below `server/`.
//!
//! JSON, so that a person in a disaster can read them. An epoch record is the manifest that commits an
//! epoch: it names the live segments and its parent by the parent's hash.
//!
//! The last field of each is a checksum of all bytes before it (invariant 13): a changed digit in a time or
//! a count would read as well as the right one.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chunk::ChunkerParams;
use crate::error::{Error, Result};
use crate::format::segment::{SegmentName, SegmentSummary};
use crate::types::{Epoch, Lsn, SessionId, Uuid, parse_hex};

/// The format that this version writes and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Name of the identity, below the backup path and on the external volume.
pub const IDENTITY_NAME: &str = "server/volume.json";
/// Where claims are.
pub const CLAIMS_PREFIX: &str = "server/claims/";
/// Where epoch records are.
pub const EPOCHS_PREFIX: &str = "server/epochs/";

/// Who a volume is. Written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Format of everything else.
    pub format: u32,
    /// The volume's UUID, 32 hex digits.
    pub volume: String,
    /// UUID of this copy on an external volume; absent in the backup path. What was verified on one
    /// external volume says nothing of another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// Machine that owns it.
    pub owner: String,
    /// Seconds since 1970.
    pub created: u64,
    /// How blobs are named.
    pub id_scheme: String,
    /// Where files are cut.
    pub chunker: ChunkerParams,
    /// Seconds that readers on other machines may rely on a deleted object to stay.
    pub grace_secs: u64,
    /// Room for a message authentication code.
    #[serde(default)]
    pub mac: Option<String>,
}

/// Says that a volume has another owner from here on. Written once for each take-over, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Format of everything else.
    pub format: u32,
    /// The volume.
    pub volume: String,
    /// The copy on this external volume.
    pub store: String,
    /// How often it was taken over, this time included.
    pub generation: u64,
    /// Machine that owns it now.
    pub owner: String,
    /// When, seconds since 1970.
    pub time: u64,
    /// The newest epoch there was: what the new owner goes on from.
    pub epoch: Epoch,
    /// Room for a message authentication code.
    #[serde(default)]
    pub mac: Option<String>,
}

/// One live segment, as a record names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEntry {
    /// Object name.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// Entries in it.
    pub entries: u64,
    /// SHA-256 from its footer.
    pub sha256: String,
}

/// Commits an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Format of everything it names.
    pub format: u32,
    /// The volume.
    pub volume: String,
    /// Its number.
    pub epoch: Epoch,
    /// The session that closed it.
    pub session: String,
    /// Seconds since 1970, for people; order is by number.
    pub time: i64,
    /// SHA-256 of the record of the epoch before, as stored; absent for the first.
    pub parent: Option<String>,
    /// Number of the last journal frame it covers.
    pub lsn: u64,
    /// The live segments, oldest first.
    pub segments: Vec<SegmentEntry>,
    /// Room for a message authentication code.
    #[serde(default)]
    pub mac: Option<String>,
}

impl Identity {
    /// Parses what `object` holds.
    pub fn parse(object: &str, bytes: &[u8]) -> Result<Identity> {
        let identity: Identity = parse_json(object, bytes)?;
        check_form(object, identity.format, bytes)?;
        identity
            .uuid()
            .map(|_| identity.clone())
            .ok_or_else(|| Error::corrupt(object, 0, "no volume UUID"))
    }

    /// The volume's UUID.
    pub fn uuid(&self) -> Option<Uuid> {
        Uuid::parse(&self.volume)
    }

    /// As stored.
    pub fn encode(&self) -> Vec<u8> {
        encode_json(self)
    }
}

impl Claim {
    /// Object name of the claim `generation` by whoever drew `nonce`.
    pub fn name(generation: u64, nonce: SessionId) -> String {
        format!("{CLAIMS_PREFIX}{generation:08x}-{nonce}.json")
    }

    /// The generation in an object name.
    pub fn parse_name(name: &str) -> Option<u64> {
        let (generation, nonce) = name
            .strip_prefix(CLAIMS_PREFIX)?
            .strip_suffix(".json")?
            .split_once('-')?;
        SessionId::parse(nonce)?;
        parse_hex(generation).map(|bytes| u64::from(u32::from_be_bytes(bytes)))
    }

    /// Parses what `object` holds.
    pub fn parse(object: &str, bytes: &[u8]) -> Result<Claim> {
        let claim: Claim = parse_json(object, bytes)?;
        check_form(object, claim.format, bytes)?;
        Ok(claim)
    }

    /// As stored.
    pub fn encode(&self) -> Vec<u8> {
        encode_json(self)
    }
}

impl SegmentEntry {
    /// Of a segment that was just written.
    pub fn of(summary: &SegmentSummary) -> SegmentEntry {
        let sha256 = crate::types::BlobHash(summary.sha256).to_string();
        SegmentEntry {
            name: summary.name().to_string(),
            len: summary.len,
            entries: summary.entries,
            sha256,
        }
    }

    /// Its parsed name.
    pub fn parsed_name(&self) -> Result<SegmentName> {
        SegmentName::parse(&self.name).ok_or_else(|| {
            Error::corrupt(
                "an epoch record",
                0,
                format!("\"{}\" is no segment's name", self.name),
            )
        })
    }
}

impl EpochRecord {
    /// Object name of the record of `epoch` by `session`.
    pub fn name(epoch: Epoch, session: SessionId) -> String {
        format!("{EPOCHS_PREFIX}{:016x}-{session}.json", epoch.0)
    }

    /// The epoch and the session in an object name.
    pub fn parse_name(name: &str) -> Option<(Epoch, SessionId)> {
        let (epoch, session) = name
            .strip_prefix(EPOCHS_PREFIX)?
            .strip_suffix(".json")?
            .split_once('-')?;
        Some((
            Epoch(u64::from_be_bytes(parse_hex(epoch)?)),
            SessionId::parse(session)?,
        ))
    }

    /// Parses what `object` holds.
    pub fn parse(object: &str, bytes: &[u8]) -> Result<EpochRecord> {
        let record: EpochRecord = parse_json(object, bytes)?;
        check_form(object, record.format, bytes)?;
        let named = EpochRecord::parse_name(object);
        if named.is_some_and(|(epoch, session)| {
            epoch != record.epoch || session.to_string() != record.session
        }) {
            return Err(Error::corrupt(
                object,
                0,
                "its content is of another epoch or session",
            ));
        }
        Ok(record)
    }

    /// As stored.
    pub fn encode(&self) -> Vec<u8> {
        encode_json(self)
    }

    /// How a child names this record, given as stored.
    pub fn hash(stored: &[u8]) -> String {
        crate::types::BlobHash(Sha256::digest(stored).into()).to_string()
    }

    /// The last frame it covers.
    pub fn last_lsn(&self) -> Lsn {
        Lsn(self.lsn)
    }
}

/// What stands around the checksum, and how many digits it has.
const CHECKSUM_BEFORE: &[u8] = b",\n  \"checksum\": \"";
const CHECKSUM_AFTER: &[u8] = b"\"\n}\n";
const CHECKSUM_DIGITS: usize = 8;

fn encode_json(value: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and lists always serialise.
    let mut out = serde_json::to_vec_pretty(value).unwrap_or_default();
    out.truncate(out.len().saturating_sub(b"\n}".len()));
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(CHECKSUM_BEFORE);
    out.extend_from_slice(format!("{checksum:08x}").as_bytes());
    out.extend_from_slice(CHECKSUM_AFTER);
    out
}

fn parse_json<T: serde::de::DeserializeOwned>(object: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::corrupt(object, 0, format!("not readable: {error}")))
}

/// Whether the bytes end in the checksum of what is before it.
fn is_whole(bytes: &[u8]) -> bool {
    let body = bytes.strip_suffix(CHECKSUM_AFTER).and_then(|rest| {
        let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(CHECKSUM_DIGITS)?)?;
        Some((rest.strip_suffix(CHECKSUM_BEFORE)?, digits))
    });
    body.is_some_and(|(body, digits)| format!("{:08x}", crc32c::crc32c(body)).as_bytes() == digits)
}

/// Another format first: it may end differently.
fn check_form(object: &str, format: u32, bytes: &[u8]) -> Result<()> {
    if format == FORMAT && is_whole(bytes) {
        return Ok(());
    }
    if format == FORMAT {
        return Err(Error::corrupt(object, 0, "its checksum does not match"));
    }
    Err(Error::Refused(format!(
        "{object} is in format {format}; this version reads format {FORMAT}: use a newer tidefs"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_its_name_must_agree() {
        let session = SessionId([3; 8]);
        let record = EpochRecord {
            format: FORMAT,
            volume: Uuid([1; 16]).to_string(),
            epoch: Epoch(12),
            session: session.to_string(),
            time: 5,
            parent: None,
            lsn: 9,
            segments: Vec::new(),
            mac: None,
        };
        let name = EpochRecord::name(Epoch(12), session);
        assert_eq!(EpochRecord::parse(&name, &record.encode()).unwrap(), record);
        let other = EpochRecord::name(Epoch(13), session);
        assert!(matches!(
            EpochRecord::parse(&other, &record.encode()),
            Err(Error::Corrupt { .. })
        ));
        assert!(EpochRecord::parse(&name, b"{").is_err());
        let bytes = record.encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(EpochRecord::parse(&name, &damaged).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(EpochRecord::parse(&name, &bytes[..len]).is_err(), "{len}");
        }
    }
}
