//! The metadata as every operation sees it: changes in memory over a base that holds the rest.
//!
//! ```text
//! active      changes of answered operations, not yet in the journal
//! committing  frozen, on their way into the journal
//! epoch       in the journal, of the epoch that is open
//! closing     of epochs that are closed and on their way into a segment and the index
//! base        everything older: the index, or a view of the segments while the index is refilled
//! ```
//!
//! A read takes the newest layer that knows the key. An operation writes through [`Overlay::transact`]:
//! its changes enter the active layer together or not at all, and a freeze falls between operations, so
//! that a commit never splits one (invariant 3).
//!
//! One lock guards the layers. A base may read from disk while it is held; it never waits for the network.

use std::collections::VecDeque;
use std::fmt;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::error::Result;
use crate::format::keys::{Changes, Key};

/// Where the entries are that no layer in memory has.
pub trait Base: fmt::Debug + Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// The first `count_max` entries of `from..to`.
    fn range(&self, from: &[u8], to: &[u8], count_max: usize) -> Result<Vec<(Bytes, Bytes)>>;
}

/// Entries read from a base in one step of a range.
const BASE_STEP: usize = 128;
/// What an entry costs in memory beside its bytes: map node, two allocations.
const ENTRY_OVERHEAD_BYTES: usize = 96;

#[derive(Debug, Default)]
struct Layer {
    changes: Changes,
    len_bytes: usize,
}

#[derive(Debug)]
struct Layers {
    active: Layer,
    committing: Option<Arc<Changes>>,
    epoch: Layer,
    closing: VecDeque<Arc<Changes>>,
    base: Arc<dyn Base>,
}

/// The layers.
#[derive(Debug)]
pub struct Overlay {
    layers: RwLock<Layers>,
}

/// How much the layers hold, in bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayLen {
    /// Not yet in the journal.
    pub active: usize,
    /// In the journal, of the open epoch.
    pub epoch: usize,
    /// Closed epochs not yet in the index.
    pub closing: usize,
}

/// Where a change is on its way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeLayer {
    /// In memory only.
    Active,
    /// In the journal, not yet in a segment.
    Journal,
    /// In a segment.
    Base,
}

/// A consistent look at the metadata. Holds the lock: keep it short.
#[derive(Debug)]
pub struct Reading<'a> {
    layers: RwLockReadGuard<'a, Layers>,
}

/// An operation under way. Reads see its own changes.
#[derive(Debug)]
pub struct Transaction<'a> {
    layers: RwLockWriteGuard<'a, Layers>,
    pending: Changes,
}

impl Layer {
    fn insert(&mut self, key: Key, value: Option<Bytes>) {
        let value_len = value.as_ref().map_or(0, Bytes::len);
        let key_len = key.len();
        if let Some(old) = self.changes.insert(key, value) {
            self.len_bytes -= old.map_or(0, |old| old.len());
            self.len_bytes += value_len;
        } else {
            self.len_bytes += key_len + value_len + ENTRY_OVERHEAD_BYTES;
        }
    }
}

impl Layers {
    /// The layers in memory, newest first.
    fn changes(&self) -> impl Iterator<Item = &Changes> {
        std::iter::once(&self.active.changes)
            .chain(self.committing.as_deref())
            .chain(std::iter::once(&self.epoch.changes))
            .chain(self.closing.iter().rev().map(Arc::as_ref))
    }

    fn get(&self, pending: Option<&Changes>, key: &[u8]) -> Result<Option<Bytes>> {
        match pending
            .into_iter()
            .chain(self.changes())
            .find_map(|changes| changes.get(key))
        {
            Some(known) => Ok(known.clone()),
            None => self.base.get(key),
        }
    }

    fn range(
        &self,
        pending: Option<&Changes>,
        from: &[u8],
        to: &[u8],
        count_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        let mut found = Vec::new();
        if from >= to {
            return Ok(found);
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut layers: Vec<_> = pending
            .into_iter()
            .chain(self.changes())
            .map(|changes| changes.range::<[u8], _>(bounds).peekable())
            .filter_map(|mut layer| layer.peek().is_some().then_some(layer))
            .collect();
        let mut base = BaseEntries::new(self.base.as_ref(), from, to, count_max.min(BASE_STEP));
        while found.len() < count_max {
            let Some(entry) = next_entry(&mut layers, &mut base)? else {
                break;
            };
            if let (key, Some(value)) = entry {
                found.push((key, value));
            }
        }
        Ok(found)
    }
}

type LayerEntries<'a> = Peekable<std::collections::btree_map::Range<'a, Key, Option<Bytes>>>;

/// The entry with the least key, as the newest layer that has it says; older ones are passed over.
fn next_entry(
    layers: &mut [LayerEntries<'_>],
    base: &mut BaseEntries<'_>,
) -> Result<Option<(Bytes, Option<Bytes>)>> {
    let least = layers
        .iter_mut()
        .filter_map(|layer| layer.peek().map(|(key, _)| &***key))
        .min();
    let Some(least) = least else {
        return Ok(base.next()?.map(|(key, value)| (key, Some(value))));
    };
    let base_is_less = base.peek()?.is_some_and(|key| key < least);
    if base_is_less {
        return Ok(base.next()?.map(|(key, value)| (key, Some(value))));
    }
    let key = Bytes::copy_from_slice(least);
    if base.peek()?.is_some_and(|in_base| *in_base == key) {
        base.next()?;
    }
    let mut newest = None;
    for layer in layers {
        if let Some((_, value)) = layer.next_if(|(in_layer, _)| ***in_layer == *key) {
            newest.get_or_insert_with(|| value.clone());
        }
    }
    Ok(newest.map(|value| (key, value)))
}

/// The base's entries of a range, a step at a time.
struct BaseEntries<'a> {
    base: &'a dyn Base,
    step: usize,
    ready: VecDeque<(Bytes, Bytes)>,
    from: Vec<u8>,
    to: &'a [u8],
    is_done: bool,
}

impl<'a> BaseEntries<'a> {
    fn new(base: &'a dyn Base, from: &[u8], to: &'a [u8], step: usize) -> BaseEntries<'a> {
        BaseEntries {
            base,
            step: step.max(1),
            ready: VecDeque::new(),
            from: from.to_vec(),
            to,
            is_done: false,
        }
    }

    fn fill(&mut self) -> Result<()> {
        if self.ready.is_empty() && !self.is_done {
            self.ready = self.base.range(&self.from, self.to, self.step)?.into();
            self.is_done = self.ready.len() < self.step;
            if let Some((last, _)) = self.ready.back() {
                self.from = last.to_vec();
                self.from.push(0); // the least key above `last`
            }
        }
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<&[u8]>> {
        self.fill()?;
        Ok(self.ready.front().map(|(key, _)| &**key))
    }

    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        self.fill()?;
        Ok(self.ready.pop_front())
    }
}

impl Overlay {
    /// Over `base`, with the changes of closed epochs that the base does not have, oldest first.
    pub fn new(base: Arc<dyn Base>, closing: Vec<Arc<Changes>>) -> Overlay {
        let layers = Layers {
            active: Layer::default(),
            committing: None,
            epoch: Layer::default(),
            closing: closing.into(),
            base,
        };
        Overlay {
            layers: RwLock::new(layers),
        }
    }

    fn read_layers(&self) -> RwLockReadGuard<'_, Layers> {
        // Changes enter a layer whole (`transact`), so that a panic elsewhere leaves nothing half done.
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_layers(&self) -> RwLockWriteGuard<'_, Layers> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A consistent look at everything.
    pub fn read(&self) -> Reading<'_> {
        Reading {
            layers: self.read_layers(),
        }
    }

    /// Runs an operation: its changes take effect together when it returns `Ok`, else none does.
    pub fn transact<T>(
        &self,
        operation: impl FnOnce(&mut Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut transaction = Transaction {
            layers: self.write_layers(),
            pending: Changes::new(),
        };
        let answer = operation(&mut transaction)?;
        let Transaction {
            mut layers,
            pending,
        } = transaction;
        for (key, value) in pending {
            layers.active.insert(key, value);
        }
        Ok(answer)
    }

    /// Takes what is active for a commit. `None` when nothing changed.
    ///
    /// One commit at a time: [`Overlay::committed`] must follow before the next freeze.
    pub fn freeze(&self) -> Option<Arc<Changes>> {
        let mut layers = self.write_layers();
        debug_assert!(layers.committing.is_none(), "one commit at a time");
        if layers.active.changes.is_empty() {
            return None;
        }
        let frozen = Arc::new(std::mem::take(&mut layers.active).changes);
        layers.committing = Some(Arc::clone(&frozen));
        Some(frozen)
    }

    /// What was frozen is in the journal and joins the open epoch.
    pub fn committed(&self, frozen: Arc<Changes>) {
        drop(frozen);
        let mut layers = self.write_layers();
        let Some(changes) = layers.committing.take() else {
            return;
        };
        let changes = Arc::try_unwrap(changes).unwrap_or_else(|shared| (*shared).clone());
        for (key, value) in changes {
            layers.epoch.insert(key, value);
        }
    }

    /// Closes the open epoch's layer. `None` when it is empty.
    pub fn close_epoch(&self) -> Option<Arc<Changes>> {
        let mut layers = self.write_layers();
        if layers.epoch.changes.is_empty() {
            return None;
        }
        let changes = Arc::new(std::mem::take(&mut layers.epoch).changes);
        layers.closing.push_back(Arc::clone(&changes));
        Some(changes)
    }

    /// The base has the oldest closing layer: it is dropped.
    pub fn absorbed(&self) {
        self.write_layers().closing.pop_front();
    }

    /// Another base takes over, one that holds the same entries.
    pub fn set_base(&self, base: Arc<dyn Base>) {
        self.write_layers().base = base;
    }

    /// In which layer the newest change of `key` is.
    pub fn newest_change(&self, key: &[u8]) -> Result<ChangeLayer> {
        let layers = self.read_layers();
        if layers.active.changes.contains_key(key)
            || layers
                .committing
                .as_ref()
                .is_some_and(|c| c.contains_key(key))
        {
            return Ok(ChangeLayer::Active);
        }
        let is_closing = layers
            .closing
            .iter()
            .any(|changes| changes.contains_key(key));
        if layers.epoch.changes.contains_key(key) || is_closing {
            return Ok(ChangeLayer::Journal);
        }
        Ok(ChangeLayer::Base)
    }

    /// How much the layers hold.
    pub fn len(&self) -> OverlayLen {
        let layers = self.read_layers();
        OverlayLen {
            active: layers.active.len_bytes,
            epoch: layers.epoch.len_bytes,
            closing: layers.closing.len(),
        }
    }

    /// Whether nothing waits for a commit.
    pub fn is_clean(&self) -> bool {
        let layers = self.read_layers();
        layers.active.changes.is_empty() && layers.committing.is_none()
    }
}

/// What an operation may ask of the metadata.
pub trait Entries {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// The first `count_max` entries of `from..to`.
    fn range(&self, from: &[u8], to: &[u8], count_max: usize) -> Result<Vec<(Bytes, Bytes)>>;
}

impl Entries for Reading<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.layers.get(None, key)
    }

    fn range(&self, from: &[u8], to: &[u8], count_max: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.layers.range(None, from, to, count_max)
    }
}

impl Entries for Transaction<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.layers.get(Some(&self.pending), key)
    }

    fn range(&self, from: &[u8], to: &[u8], count_max: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.layers.range(Some(&self.pending), from, to, count_max)
    }
}

impl Transaction<'_> {
    /// Sets `key`.
    pub fn put(&mut self, key: Key, value: impl Into<Bytes>) {
        self.pending.insert(key, Some(value.into()));
    }

    /// Removes `key`.
    pub fn delete(&mut self, key: Key) {
        self.pending.insert(key, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use nix::errno::Errno;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Default)]
    struct MapBase(BTreeMap<Vec<u8>, Bytes>);

    impl Base for MapBase {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
            Ok(self.0.get(key).cloned())
        }
        fn range(&self, from: &[u8], to: &[u8], count_max: usize) -> Result<Vec<(Bytes, Bytes)>> {
            let bounds = (Bound::Included(from), Bound::Excluded(to));
            let entries = self.0.range::<[u8], _>(bounds);
            Ok(entries
                .take(count_max)
                .map(|(k, v)| (Bytes::copy_from_slice(k), v.clone()))
                .collect())
        }
    }

    fn key(n: u8) -> Key {
        Key::from_bytes(&[n])
    }

    #[test]
    fn an_operation_that_fails_leaves_nothing() {
        let overlay = Overlay::new(Arc::new(MapBase::default()), Vec::new());
        let outcome = overlay.transact(|tx| -> Result<()> {
            tx.put(key(1), "half");
            assert_eq!(
                tx.get(&[1])?,
                Some(Bytes::from("half")),
                "an operation sees its own changes"
            );
            Err(Error::Posix(Errno::EEXIST))
        });
        assert!(outcome.is_err());
        assert_eq!(overlay.read().get(&[1]).unwrap(), None);
        assert!(overlay.is_clean());
    }

    proptest! {
        /// Whatever is put, deleted, frozen, committed, closed and absorbed in whatever order, reads
        /// are those of one map.
        #[test]
        fn the_layers_read_as_one_map(steps in proptest::collection::vec((0_u8..8, 0_u8..20, 0_u8..255), 1..200)) {
            let mut model = BTreeMap::new();
            let mut base = BTreeMap::new();
            let mut closed: VecDeque<Arc<Changes>> = VecDeque::new();
            let overlay = Overlay::new(Arc::new(MapBase::default()), Vec::new());
            for (step, n, value) in steps {
                match step {
                    0..=2 => {
                        let value = Bytes::from(vec![value]);
                        model.insert(vec![n], value.clone());
                        overlay.transact(|tx| { tx.put(key(n), value); Ok(()) }).unwrap();
                    }
                    3 => {
                        model.remove(&vec![n]);
                        overlay.transact(|tx| { tx.delete(key(n)); Ok(()) }).unwrap();
                    }
                    4 | 5 => if let Some(frozen) = overlay.freeze() { overlay.committed(frozen) },
                    6 => closed.extend(overlay.close_epoch()),
                    _ => if let Some(changes) = closed.pop_front() {
                        for (k, v) in changes.iter() {
                            match v { Some(v) => base.insert(k.to_vec(), v.clone()), None => base.remove(&k.to_vec()) };
                        }
                        overlay.set_base(Arc::new(MapBase(base.clone())));
                        overlay.absorbed();
                    }
                }
                let all = overlay.read().range(&[0], &[255], usize::MAX).unwrap();
                let expected: Vec<_> = model.iter().map(|(k, v)| (Bytes::from(k.clone()), v.clone())).collect();
                prop_assert_eq!(all, expected);
                prop_assert_eq!(overlay.read().get(&[n]).unwrap(), model.get(&vec![n]).cloned());
                let first = overlay.read().range(&[n], &[255], 2).unwrap();
                let expected: Vec<_> = model.range(vec![n]..).take(2).map(|(k, v)| (Bytes::from(k.clone()), v.clone())).collect();
                prop_assert_eq!(first, expected);
            }
        }
    }
}
