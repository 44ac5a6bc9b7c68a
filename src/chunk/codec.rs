//! How the plain bytes of a blob become its stored bytes, and back.
//!
//! The codec ids are format. A codec never decides alone: what it is given back is checked against
//! the recorded plain length here, and against the blob's name by whoever reads in full.

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

use super::BLOB_LEN_MAX;

/// How a record's payload is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Codec {
    /// The plain bytes themselves.
    Raw = 0,
    /// One LZ4 block, without a size before it.
    Lz4 = 1,
}

impl Codec {
    /// The codec with this id, if this version knows it.
    pub fn from_id(id: u8) -> Option<Codec> {
        match id {
            0 => Some(Codec::Raw),
            1 => Some(Codec::Lz4),
            _ => None,
        }
    }

    /// Its id on disk.
    pub fn id(self) -> u8 {
        self as u8
    }
}

/// The stored form of `plain`: compressed into `scratch` when that saves at least a sixteenth,
/// otherwise `plain` itself, uncopied. `scratch` only grows, so one per thread serves for ever.
pub fn encode<'a>(plain: &'a [u8], scratch: &'a mut Vec<u8>) -> (Codec, &'a [u8]) {
    let room = get_maximum_output_size(plain.len());
    if scratch.len() < room {
        scratch.resize(room, 0);
    }
    let len_max = plain.len() - plain.len() / 16;
    match compress_into(plain, scratch) {
        // Strictly below: a blob shorter than 16 bytes has no sixteenth to save.
        Ok(len) if len <= len_max && len < plain.len() => {
            (Codec::Lz4, scratch.get(..len).unwrap_or_default())
        }
        _ => (Codec::Raw, plain),
    }
}

/// The plain bytes of `stored`, exactly `plain_len` of them, or why there are none.
///
/// Survives arbitrary bytes: the buffer is bounded by [`BLOB_LEN_MAX`] before it is allocated, and it
/// starts zeroed, so a bad block can never show what was in memory before.
pub fn decode(codec: Codec, stored: &[u8], plain_len: u32) -> Result<Vec<u8>, &'static str> {
    if plain_len > BLOB_LEN_MAX {
        return Err("the plain length is above the limit of a blob");
    }
    let expected = plain_len as usize;
    match codec {
        Codec::Raw if stored.len() == expected => Ok(stored.to_vec()),
        Codec::Raw => Err("the stored length of a raw blob is not its plain length"),
        Codec::Lz4 => {
            let mut plain = vec![0; expected];
            match decompress_into(stored, &mut plain) {
                Ok(len) if len == expected => Ok(plain),
                Ok(_) => Err("the lz4 block is shorter than its plain length"),
                Err(_) => Err("the lz4 block does not decode to its plain length"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_stored_compressed_and_noise_as_it_is() {
        let mut scratch = Vec::new();
        let text = b"all work and no play ".repeat(100);
        let (codec, stored) = encode(&text, &mut scratch);
        assert_eq!(codec, Codec::Lz4);
        assert!(stored.len() < text.len() / 4);
        assert_eq!(decode(codec, stored, 2100).unwrap(), text);

        let noise: Vec<u8> = (0..4096u32)
            .flat_map(|n| crate::chunk::hash(&n.to_le_bytes()).0)
            .collect();
        let (codec, stored) = encode(&noise, &mut scratch);
        assert_eq!(
            (codec, stored.as_ptr()),
            (Codec::Raw, noise.as_ptr()),
            "kept without a copy"
        );
    }

    #[test]
    fn a_saving_below_a_sixteenth_is_not_worth_a_codec() {
        // 1000 bytes of noise and 50 zeros: lz4 saves about 40 of 1050 bytes.
        let mut plain: Vec<u8> = (0..32u32)
            .flat_map(|n| crate::chunk::hash(&n.to_le_bytes()).0)
            .collect();
        plain.truncate(1000);
        plain.extend([0; 50]);
        assert!(lz4_flex::block::compress(&plain).len() < plain.len());
        assert_eq!(encode(&plain, &mut Vec::new()).0, Codec::Raw);
    }

    #[test]
    fn a_wrong_plain_length_is_refused_in_both_directions() {
        let text = b"tide ".repeat(50);
        let mut scratch = Vec::new();
        let (_, stored) = encode(&text, &mut scratch);
        assert!(decode(Codec::Lz4, stored, 249).is_err());
        assert!(decode(Codec::Lz4, stored, 251).is_err());
        assert!(decode(Codec::Raw, &text, 249).is_err());
        assert!(decode(Codec::Lz4, stored, u32::MAX).is_err());
    }

    proptest! {
        #[test]
        fn any_blob_comes_back(plain in proptest::collection::vec(0u8..4, 0..3000)) {
            let mut scratch = Vec::new();
            let (codec, stored) = encode(&plain, &mut scratch);
            prop_assert!(stored.len() <= plain.len());
            prop_assert_eq!(decode(codec, stored, u32::try_from(plain.len()).unwrap()).unwrap(), plain);
        }

        #[test]
        fn arbitrary_bytes_never_panic_the_decoder(stored in proptest::collection::vec(any::<u8>(), 0..300), len in 0u32..5000) {
            for codec in [Codec::Raw, Codec::Lz4] {
                if let Ok(plain) = decode(codec, &stored, len) {
                    prop_assert_eq!(plain.len(), len as usize);
                }
            }
        }
    }
}
