//! Little-endian fields and varints, written to a `Vec` and read back with every length checked.
//!
//! A [`Reader`] answers `None` at the first field that is not there; the caller knows the object's
//! name and turns that into an error.

use crate::types::Timestamp;

/// Reads fields off the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of 1 to 10 bytes, seven bits each, the lowest first, the high bit set on all but the last.
    pub fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A varint that must fit in 32 bits.
    pub fn varint_u32(&mut self) -> Option<u32> {
        self.varint().and_then(|value| u32::try_from(value).ok())
    }

    /// A varint length, then that many bytes.
    pub fn prefixed(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        self.bytes(len)
    }

    /// A time as [`put_timestamp`] writes it.
    pub fn timestamp(&mut self) -> Option<Timestamp> {
        let zigzag = self.varint()?;
        let secs = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
        let nanos = self.varint_u32()?;
        (nanos < 1_000_000_000).then_some(Timestamp { secs, nanos })
    }
}

/// Appends a varint, as [`Reader::varint`] reads it.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Appends a varint length and the bytes.
pub fn put_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends seconds (zigzag varint, so that times before 1970 stay short) and nanoseconds (varint).
pub fn put_timestamp(out: &mut Vec<u8>, time: Timestamp) {
    put_varint(out, ((time.secs << 1) ^ (time.secs >> 63)).cast_unsigned());
    put_varint(out, u64::from(time.nanos));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_come_back_as_written() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(Reader::new(&out).varint(), Some(value));
            assert_eq!(
                Reader::new(&out[..out.len() - 1]).varint(),
                None,
                "a cut varint is nothing"
            );
        }
        for secs in [0, -1, 1, i64::MIN, i64::MAX] {
            let time = Timestamp {
                secs,
                nanos: 999_999_999,
            };
            let mut out = Vec::new();
            put_timestamp(&mut out, time);
            assert_eq!(Reader::new(&out).timestamp(), Some(time));
        }
    }

    #[test]
    fn a_varint_beyond_64_bits_is_refused() {
        assert_eq!(Reader::new(&[0xFF; 10]).varint(), None);
        assert_eq!(Reader::new(&[0xFF; 11]).varint(), None);
    }
}
