//! Which items with several names have one already, for the names that come later.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::restore::plan::Place;
use crate::types::Ino;

/// The first name of each item that has more to come.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<HashMap<Ino, First>>);

#[derive(Debug)]
struct First {
    place: Place,
    /// Names that were not seen yet.
    to_come: u32,
}

impl Links {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Ino, First>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name under which `ino` was restored, if it was.
    pub(super) fn first(&self, ino: Ino) -> Option<Place> {
        self.lock().get(&ino).map(|first| first.place.clone())
    }

    /// `seen` more of the `nlink` names of `ino` are dealt with, and `place` is one of them.
    pub(super) fn seen(&self, ino: Ino, place: &Place, seen: usize, nlink: u32) {
        let mut links = self.lock();
        let seen = u32::try_from(seen).unwrap_or(u32::MAX);
        let first = links.entry(ino).or_insert_with(|| First {
            place: place.clone(),
            to_come: nlink,
        });
        first.to_come = first.to_come.saturating_sub(seen);
        if first.to_come == 0 {
            links.remove(&ino);
        }
    }
}
