//! Directories, seen in a flat list of keys.
//!
//! A volume lists keys and knows no directories: `a/x` and `a/y` are one name, `a`, in their parent. So a listing walks
//! the keys and steps over the rest of a directory as soon as it has seen one key in it. The order is that of keys, in
//! which a directory counts as its name with a `/` behind; names that only this mount knows come first.
//!
//! A reader continues behind a *name*. What was listed is kept for a while, so that he is found where he was and the
//! volume is not asked for everything again; a reader who comes too late is put behind his name anew.

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::key::ObjectKey;
use crate::volume::{Meta, Volume};

use super::join;

/// Keys asked for at once: what S3 gives in one answer.
const PAGE_LEN: usize = 1000;
/// The same behind a directory: the next one may be as deep, and most of its keys would be for nothing.
const PAGE_LEN_BEHIND_DIRECTORY: usize = 8;
/// Names kept of one reading, behind where the reader is.
const KEPT_MAX: usize = 4096;
/// Readings kept at once.
const READINGS_MAX: usize = 16;
/// A reading is kept for this long without being asked for.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Child {
    pub(super) name: Arc<str>,
    /// None: a directory.
    pub(super) meta: Option<Meta>,
}

/// The readings that go on.
#[derive(Debug, Default)]
pub(super) struct Readings(VecDeque<Reading>);

/// One reading of one directory.
#[derive(Debug)]
pub(super) struct Reading {
    directory: Arc<str>,
    /// The newest names that were handed out, and those that wait to be.
    found: VecDeque<Child>,
    /// Names that only this mount knew when the reading began.
    own: HashSet<Arc<str>>,
    /// The volume's keys are known up to here.
    behind: Option<ObjectKey>,
    /// The directory that was seen last.
    inside: Option<Arc<str>>,
    page_len: usize,
    is_whole: bool,
    used: Instant,
}

impl Readings {
    /// Takes out the reading that has got to the name `after`.
    pub(super) fn take(&mut self, directory: &str, after: &str, now: Instant) -> Option<Reading> {
        self.0
            .retain(|reading| now.saturating_duration_since(reading.used) < KEPT_FOR);
        let at = self.0.iter().rposition(|reading| {
            &*reading.directory == directory && reading.place_behind(after).is_some()
        })?;
        self.0.remove(at)
    }

    /// Keeps a reading for the next question.
    pub(super) fn keep(&mut self, mut reading: Reading, now: Instant) {
        reading.used = now;
        if self.0.len() >= READINGS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(reading);
    }
}

impl Reading {
    /// From the start. `own`: what only this mount knows, in order.
    pub(super) fn new(directory: &Arc<str>, own: Vec<Child>, now: Instant) -> Reading {
        Reading {
            directory: Arc::clone(directory),
            own: own.iter().map(|child| Arc::clone(&child.name)).collect(),
            found: own.into(),
            behind: None,
            inside: None,
            page_len: PAGE_LEN,
            is_whole: false,
            used: now,
        }
    }

    /// Anew, behind the name `after`, for a reader whose reading is not kept any more. `is_directory`: as far as one can
    /// tell by now.
    pub(super) fn resume(
        directory: &Arc<str>,
        mut own: Vec<Child>,
        (after, is_directory): (&str, bool),
        now: Instant,
    ) -> Reading {
        let names: HashSet<Arc<str>> = own.iter().map(|child| Arc::clone(&child.name)).collect();
        let behind = if names.contains(after) {
            own.retain(|child| &*child.name > after);
            None
        } else {
            // Its own names come first, and he has had them.
            own.clear();
            key_behind(&join(directory, after), is_directory)
        };
        Reading {
            own: names,
            behind,
            ..Reading::new(directory, own, now)
        }
    }

    fn place_behind(&self, after: &str) -> Option<usize> {
        let at = self.found.iter().rposition(|child| &*child.name == after)?;
        Some(at + 1)
    }

    /// Up to `count_max` names behind `after` (`None`: from where it begins). Empty at the end.
    pub(super) fn next(
        &mut self,
        volume: &dyn Volume,
        after: Option<&str>,
        count_max: usize,
    ) -> Result<Vec<Child>> {
        let mut at = after
            .and_then(|after| self.place_behind(after))
            .unwrap_or(0);
        while self.found.len() - at < count_max && !self.is_whole {
            self.fetch(volume)?;
        }
        // Only what lies before the reader may go.
        while self.found.len() > KEPT_MAX && at > count_max {
            self.found.pop_front();
            at -= 1;
        }
        Ok(self
            .found
            .iter()
            .skip(at)
            .take(count_max)
            .cloned()
            .collect())
    }

    fn fetch(&mut self, volume: &dyn Volume) -> Result<()> {
        let prefix = join(&self.directory, "");
        let limit = NonZeroUsize::new(self.page_len).unwrap_or(NonZeroUsize::MIN);
        let page = volume.list(&prefix, self.behind.as_ref(), limit)?;
        let last = page.objects.last().map(|meta| meta.key.clone());
        let is_stuck = last.is_none() || last <= self.behind;
        let mut count_files = 0;
        for meta in page.objects {
            let Some(rest) = meta.key.as_str().strip_prefix(&prefix) else {
                continue;
            };
            if let Some((name, _)) = rest.split_once('/') {
                self.add_directory(name);
            } else {
                count_files += 1;
                let name: Arc<str> = rest.into();
                self.inside = None;
                if !self.own.contains(&name) {
                    let meta = Some(meta);
                    self.found.push_back(Child { name, meta });
                }
            }
        }
        // "More" without getting on would keep us here for ever.
        self.is_whole = !page.more || is_stuck;
        self.behind = match &self.inside {
            Some(name) => key_behind(&join(&self.directory, name), true).max(last),
            None => last,
        };
        self.page_len = if self.inside.is_some() && count_files == 0 {
            PAGE_LEN_BEHIND_DIRECTORY
        } else {
            PAGE_LEN
        };
        Ok(())
    }

    fn add_directory(&mut self, name: &str) {
        if self.inside.as_deref() == Some(name) {
            return;
        }
        let name: Arc<str> = name.into();
        self.inside = Some(Arc::clone(&name));
        // An object of this name beside it is hidden by it, as a directory is what leads to more.
        let is_object = |child: &Child| child.name == name && child.meta.is_some();
        if self.found.back().is_some_and(is_object) {
            self.found.pop_back();
        }
        if !self.own.contains(&name) {
            self.found.push_back(Child { name, meta: None });
        }
    }
}

/// The last key that the object or directory at `path` may have. Nearly: one with 255 times `z` in a directory comes
/// behind it, and makes the directory be seen once more, which is noticed.
fn key_behind(path: &str, is_directory: bool) -> Option<ObjectKey> {
    if !is_directory {
        return ObjectKey::new(path).ok();
    }
    let room = ObjectKey::LEN_MAX
        .saturating_sub(path.len() + 1)
        .min(ObjectKey::COMPONENT_LEN_MAX);
    ObjectKey::new(format!("{path}/{}", "z".repeat(room))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::faulty::{FaultControls, Faulty, Op};
    use crate::memory::MemoryVolume;
    use crate::volume::{Body, Precondition};

    fn volume(keys: &[&str]) -> MemoryVolume {
        let volume = MemoryVolume::new();
        for key in keys {
            let key = ObjectKey::new(*key).unwrap();
            volume
                .put(&key, Body::Bytes(b"x"), Precondition::None)
                .unwrap();
        }
        volume
    }

    fn shown(children: &[Child]) -> Vec<String> {
        let show = |child: &Child| {
            format!(
                "{}{}",
                child.name,
                if child.meta.is_none() { "/" } else { "" }
            )
        };
        children.iter().map(show).collect()
    }

    /// Reads to the end in steps, as `readings` keeps it or, if `lost`, each time anew.
    fn read(
        volume: &dyn Volume,
        directory: &str,
        own: &[&str],
        step: usize,
        lost: bool,
    ) -> Vec<String> {
        let now = Instant::now();
        let directory: Arc<str> = directory.into();
        let own = || -> Vec<Child> {
            let child = |name: &&str| Child {
                name: (*name).into(),
                meta: None,
            };
            own.iter().map(child).collect()
        };
        let mut readings = Readings::default();
        let mut all: Vec<Child> = Vec::new();
        loop {
            let after = all.last().cloned();
            let mut reading = match &after {
                None => Reading::new(&directory, own(), now),
                Some(after) if lost => {
                    let place = (&*after.name, after.meta.is_none());
                    Reading::resume(&directory, own(), place, now)
                }
                Some(after) => readings.take(&directory, &after.name, now).unwrap(),
            };
            let after = after.as_ref().map(|child| &*child.name);
            let step = reading.next(volume, after, step).unwrap();
            readings.keep(reading, now);
            if step.is_empty() {
                return shown(&all);
            }
            all.extend(step);
        }
    }

    #[test]
    fn every_name_comes_once_in_the_order_of_keys_whatever_the_step() {
        let volume = volume(&["a-b", "a/1", "a/2/3", "a0", "b/c/d", "b.x", "c", "zz/z"]);
        for step in [1, 2, 3, 100] {
            for lost in [false, true] {
                assert_eq!(
                    read(&volume, "", &[], step, lost),
                    ["a-b", "a/", "a0", "b.x", "b/", "c", "zz/"],
                    "{step} {lost}"
                );
                assert_eq!(read(&volume, "a", &[], step, lost), ["1", "2/"]);
            }
        }
        assert_eq!(read(&volume, "none", &[], 9, false), [""; 0]);
    }

    #[test]
    fn names_of_our_own_come_first_and_hide_the_volumes() {
        let volume = volume(&["a", "b/c", "d"]);
        for step in [1, 2, 100] {
            for lost in [false, true] {
                let own = [".x.abcdef", "b", "e"];
                assert_eq!(
                    read(&volume, "", &own, step, lost),
                    [".x.abcdef/", "b/", "e/", "a", "d"],
                    "{step} {lost}"
                );
            }
        }
    }

    #[test]
    fn the_inside_of_a_directory_is_stepped_over() {
        let keys: Vec<String> = (0..30_000)
            .map(|n| format!("items/{:02x}/{n:05}", n % 20))
            .collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let controls = FaultControls::new();
        let volume = Faulty::new(Arc::new(volume(&keys)), controls.clone());
        assert_eq!(read(&volume, "items", &[], 256, false).len(), 20);
        assert!(
            controls.calls(Op::List) <= 22,
            "{}",
            controls.calls(Op::List)
        );
        assert_eq!(read(&volume, "items/00", &[], 256, false).len(), 1500);
        assert!(
            controls.calls(Op::List) <= 25,
            "{}",
            controls.calls(Op::List)
        );
    }

    #[test]
    fn a_reader_may_go_back_a_little_and_a_long_directory_is_not_kept_whole() {
        let keys: Vec<String> = (0..20_000).map(|n| format!("{n:05}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let volume = volume(&keys);
        let mut reading = Reading::new(&"".into(), Vec::new(), Instant::now());
        let mut after: Option<String> = None;
        let mut count = 0;
        loop {
            let step = reading.next(&volume, after.as_deref(), 256).unwrap();
            // As the kernel does when its buffer was full.
            let Some(child) = step.get(step.len().saturating_sub(20)).or(step.last()) else {
                break;
            };
            count += step
                .iter()
                .take_while(|other| other.name <= child.name)
                .count();
            let is_end = step.len() <= 20;
            after = Some(if is_end {
                step.last().unwrap().name.to_string()
            } else {
                child.name.to_string()
            });
            count += if is_end { step.len() - 1 } else { 0 };
            assert!(reading.found.len() <= KEPT_MAX + PAGE_LEN + 512);
        }
        assert!(count >= 20_000);
    }
}
