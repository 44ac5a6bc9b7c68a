//! The name of a blob. Only the id scheme "SHA-256 of the plain bytes" lives here; a keyed one will
//! stand beside it, chosen by `volume.json`.

use sha2::{Digest, Sha256};

use crate::types::BlobHash;

/// The SHA-256 of `plain`.
pub fn hash(plain: &[u8]) -> BlobHash {
    BlobHash(Sha256::digest(plain).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_abc_is_the_one_in_the_sha_256_standard() {
        assert_eq!(
            hash(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
