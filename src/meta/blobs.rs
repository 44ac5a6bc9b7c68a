//! Where each blob is.
use crate::error::Result;
use crate::types::{BlobHash, BlobLocation};
use std::collections::HashMap;
use std::sync::Mutex;
/// In memory until the runs on disk arrive.
#[derive(Debug, Default)]
pub struct BlobIndex(Mutex<HashMap<BlobHash, BlobLocation>>);
impl BlobIndex {
    /// Where a blob is.
    pub fn get(&self, blob: &BlobHash) -> Option<BlobLocation> {
        self.0.lock().ok()?.get(blob).copied()
    }
    /// Notes it.
    pub fn insert(&self, blob: BlobHash, location: BlobLocation) -> Result<()> {
        if let Ok(mut map) = self.0.lock() {
            map.insert(blob, location);
        }
        Ok(())
    }
}
