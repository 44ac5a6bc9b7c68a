//! Reading and writing numbers and byte strings as they lie on disk.
//!
//! Everything is little-endian and of a stated width; small counts are varints. Reading returns
//! `None` when the bytes do not hold what was asked for: the caller, who knows the object and the
//! offset, makes the error. Nothing here allocates on the word of a length it has read, and no
//! format's own rules may enter.

use crate::types::Timestamp;

/// The most bytes a varint takes: 64 bits in groups of seven.
pub const VARINT_LEN_MAX: usize = 10;

/// Takes values off the front of a byte slice.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// The next `len` bytes, or nothing if there are fewer.
    #[inline]
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(len)?;
        self.rest = tail;
        Some(head)
    }

    /// The next `N` bytes.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.rest.split_first_chunk::<N>()?;
        self.rest = tail;
        Some(*head)
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Option<u8> {
        let (head, tail) = self.rest.split_first()?;
        self.rest = tail;
        Some(*head)
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A varint: seven bits a byte, lowest first, the top bit set on all but the last.
    ///
    /// Only the shortest form is accepted, so that a value has one encoding.
    #[inline]
    pub fn varint(&mut self) -> Option<u64> {
        let first = self.u8()?;
        if first < 0x80 {
            return Some(u64::from(first));
        }
        self.varint_tail(u64::from(first & 0x7f))
    }

    fn varint_tail(&mut self, mut value: u64) -> Option<u64> {
        for shift in (7..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return (byte != 0).then_some(value);
            }
        }
        None
    }

    /// A varint that counts bytes or things in memory, if it is at most `max`.
    #[inline]
    pub fn varint_len(&mut self, max: usize) -> Option<usize> {
        let len = usize::try_from(self.varint()?).ok()?;
        (len <= max).then_some(len)
    }

    /// A byte string led by its length as a varint, if that length is at most `max`.
    pub fn prefixed(&mut self, max: usize) -> Option<&'a [u8]> {
        let len = self.varint_len(max)?;
        self.bytes(len)
    }

    /// A varint that must fit in 32 bits.
    pub fn varint_u32(&mut self) -> Option<u32> {
        self.varint().and_then(|value| u32::try_from(value).ok())
    }

    /// A time as [`put_timestamp`] writes it.
    pub fn timestamp(&mut self) -> Option<Timestamp> {
        let zigzag = self.varint()?;
        let secs = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
        let nanos = self.varint_u32()?;
        (nanos < 1_000_000_000).then_some(Timestamp { secs, nanos })
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything has been read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Appends one byte.
pub fn put_u8(out: &mut Vec<u8>, value: u8) {
    out.push(value);
}

/// Appends two bytes, little-endian.
pub fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends four bytes, little-endian.
pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends eight bytes, little-endian.
pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends `value` in the shortest varint form.
#[expect(
    clippy::cast_possible_truncation,
    reason = "masked to seven bits, or below 0x80"
)]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length as a varint.
pub fn put_len(out: &mut Vec<u8>, len: usize) {
    put_varint(out, len as u64);
}

/// Appends raw bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}

/// Appends a byte string led by its length as a varint.
pub fn put_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    put_bytes(out, bytes);
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
    fn times_before_and_after_1970_read_back() {
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
    use proptest::prelude::*;

    #[test]
    fn fixed_numbers_are_little_endian_and_read_back() {
        let mut out = Vec::new();
        put_u8(&mut out, 1);
        put_u16(&mut out, 0x0203);
        put_u32(&mut out, 0x0405_0607);
        put_u64(&mut out, 0x0809_0a0b_0c0d_0e0f);
        put_prefixed(&mut out, b"name");
        assert_eq!(out[..3], [1, 3, 2]);
        let mut reader = Reader::new(&out);
        assert_eq!(reader.u8(), Some(1));
        assert_eq!(reader.u16(), Some(0x0203));
        assert_eq!(reader.u32(), Some(0x0405_0607));
        assert_eq!(reader.u64(), Some(0x0809_0a0b_0c0d_0e0f));
        assert_eq!(reader.prefixed(4), Some(&b"name"[..]));
        assert!(reader.is_empty());
    }

    #[test]
    fn a_read_past_the_end_gives_nothing_and_takes_nothing() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!(reader.u32(), None);
        assert_eq!(reader.bytes(4), None);
        assert_eq!(reader.rest(), [1, 2, 3]);
        assert_eq!(reader.bytes(3), Some(&[1, 2, 3][..]));
        assert_eq!(reader.u8(), None);
    }

    #[test]
    fn a_varint_that_is_longer_than_needed_or_than_64_bits_is_refused() {
        assert_eq!(Reader::new(&[0x80, 0x00]).varint(), None);
        assert_eq!(Reader::new(&[0x80]).varint(), None);
        let mut eleven = [0xff; 11];
        eleven[10] = 0x01;
        assert_eq!(Reader::new(&eleven).varint(), None);
        let mut too_big = [0xff; 10];
        too_big[9] = 0x02;
        assert_eq!(Reader::new(&too_big).varint(), None);
        too_big[9] = 0x01;
        assert_eq!(Reader::new(&too_big).varint(), Some(u64::MAX));
    }

    #[test]
    fn a_prefixed_string_longer_than_allowed_is_refused_before_it_is_read() {
        let mut out = Vec::new();
        put_prefixed(&mut out, b"name");
        assert_eq!(Reader::new(&out).prefixed(3), None);
    }

    proptest! {
        #[test]
        fn every_varint_reads_back_and_takes_no_more_than_ten_bytes(value: u64, shift in 0_u32..64) {
            let mut out = Vec::new();
            put_varint(&mut out, value >> shift);
            prop_assert!(out.len() <= VARINT_LEN_MAX);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint(), Some(value >> shift));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn whatever_bytes_decode_as_a_varint_are_its_only_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new(&bytes);
            if let Some(value) = reader.varint() {
                let mut again = Vec::new();
                put_varint(&mut again, value);
                prop_assert_eq!(&bytes[..bytes.len() - reader.rest().len()], &again[..]);
            }
        }
    }
}
