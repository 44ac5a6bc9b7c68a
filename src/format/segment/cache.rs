//! Decoded blocks kept in memory, shared by all segments and bounded in bytes.
//!
//! CLOCK: a block that was asked for again survives one turn of the hand, one that a long scan passed
//! through does not. Each shard has one lock, held for a look-up or an insert and never across I/O.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::block::Block;

/// A shard below this size could not hold the largest block.
const SHARD_LEN_MIN: usize = 8 << 20;
/// More threads than this do not read at once.
const SHARDS_MAX: usize = 16;
/// What a block costs beside its bytes: map, slot and allocation.
const BLOCK_OVERHEAD: usize = 128;

/// Segment (by a number unique in the process), and block within it.
type BlockKey = (u64, u64);

/// A bounded cache of blocks.
#[derive(Debug)]
pub struct BlockCache {
    shards: Vec<Mutex<Shard>>,
    shard_len_max: usize,
    next_segment: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// How often the cache was asked, and what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheCounts {
    /// Blocks found.
    pub hits: u64,
    /// Blocks that had to be read.
    pub misses: u64,
    /// Bytes held now.
    pub len: u64,
}

#[derive(Debug, Default)]
struct Shard {
    places: HashMap<BlockKey, usize>,
    slots: Vec<Slot>,
    hand: usize,
    len: usize,
}

#[derive(Debug)]
struct Slot {
    key: BlockKey,
    block: Arc<Block>,
    asked_again: bool,
}

impl BlockCache {
    /// A cache of at most `len_max` bytes.
    pub fn new(len_max: usize) -> BlockCache {
        let shards = (len_max / SHARD_LEN_MIN).clamp(1, SHARDS_MAX);
        BlockCache {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_len_max: len_max / shards,
            next_segment: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// Hits, misses and size.
    pub fn counts(&self) -> CacheCounts {
        let len = |shard: &Mutex<Shard>| lock(shard).len as u64;
        CacheCounts {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            len: self.shards.iter().map(len).sum(),
        }
    }

    /// A number for a segment that was opened on this cache.
    pub(super) fn next_segment(&self) -> u64 {
        self.next_segment.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self, key: BlockKey) -> Option<Arc<Block>> {
        let found = self.shard(key).and_then(|mut shard| shard.get(key));
        let count = if found.is_some() {
            &self.hits
        } else {
            &self.misses
        };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    pub(super) fn insert(&self, key: BlockKey, block: Arc<Block>) {
        if cost(&block) <= self.shard_len_max
            && let Some(mut shard) = self.shard(key)
        {
            shard.insert(key, block, self.shard_len_max);
        }
    }

    fn shard(&self, key: BlockKey) -> Option<MutexGuard<'_, Shard>> {
        // Neighbouring blocks go to different shards.
        let mixed = key.0.wrapping_mul(7).wrapping_add(key.1);
        let number = usize::try_from(mixed % (self.shards.len() as u64)).ok()?;
        self.shards.get(number).map(lock)
    }
}

/// Whoever panicked while holding it left a whole shard: it is changed in single steps.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cost(block: &Block) -> usize {
    block.len() + BLOCK_OVERHEAD
}

impl Shard {
    fn get(&mut self, key: BlockKey) -> Option<Arc<Block>> {
        let slot = self.slots.get_mut(*self.places.get(&key)?)?;
        slot.asked_again = true;
        Some(slot.block.clone())
    }

    fn insert(&mut self, key: BlockKey, block: Arc<Block>, len_max: usize) {
        if self.places.contains_key(&key) {
            return;
        }
        let cost = cost(&block);
        while self.len + cost > len_max && !self.slots.is_empty() {
            self.turn();
        }
        self.len += cost;
        self.places.insert(key, self.slots.len());
        self.slots.push(Slot {
            key,
            block,
            asked_again: false,
        });
    }

    /// Moves the hand by one: spares the block under it once, or drops it.
    fn turn(&mut self) {
        if self.hand >= self.slots.len() {
            self.hand = 0;
        }
        let Some(slot) = self.slots.get_mut(self.hand) else {
            return;
        };
        if std::mem::take(&mut slot.asked_again) {
            self.hand += 1;
            return;
        }
        let gone = self.slots.swap_remove(self.hand);
        self.len -= cost(&gone.block);
        self.places.remove(&gone.key);
        if let Some(moved) = self.slots.get(self.hand) {
            self.places.insert(moved.key, self.hand);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;
    use bytes::Bytes;

    fn block(len: usize) -> Arc<Block> {
        let mut plain = vec![0; len - 8];
        plain.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
        Arc::new(Block::decode(Bytes::from(plain), Epoch(0)).unwrap())
    }

    #[test]
    fn it_never_holds_more_than_it_may() {
        let cache = BlockCache::new(10_000);
        for number in 0..200 {
            cache.insert((1, number), block(300 + usize::try_from(number).unwrap()));
            assert!(cache.counts().len <= 10_000);
        }
        assert!(cache.counts().len > 9000);
        let kept = (0..200).filter(|number| cache.get((1, *number)).is_some());
        assert!((10..=30).contains(&kept.count()));
    }

    #[test]
    fn a_block_asked_for_again_outlives_a_scan() {
        let cache = BlockCache::new(10_000);
        cache.insert((1, 0), block(872));
        for number in 0..100 {
            assert!(cache.get((1, 0)).is_some(), "lost after {number}");
            cache.insert((2, number), block(872));
        }
        assert!(cache.get((2, 0)).is_none());
        let counts = cache.counts();
        assert_eq!((counts.hits, counts.misses), (100, 1));
    }

    #[test]
    fn a_block_bigger_than_the_cache_is_let_through() {
        let cache = BlockCache::new(1000);
        cache.insert((1, 0), block(500));
        cache.insert((1, 1), block(1000));
        assert!(cache.get((1, 0)).is_some());
        assert!(cache.get((1, 1)).is_none());
    }
}
