//! Every volume below a place, from its `server/` objects alone: whose it is, how fresh, what is wrong with it.
//!
//! `search` finds them; here each is looked at, several at a time. Nothing is written, and nothing but identity, claims
//! and the newest epoch record is read, so that a thousand servers are a few thousand small requests.

mod search;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde::Serialize;
use vfs::{ObjectKey, Spec, Volume, VolumeExt};

use crate::error::{Error, Result};
use crate::format::record::{EpochRecord, IDENTITY_NAME, Identity};
use crate::types::Epoch;
use crate::upload::fork::{RECORD_LEN_MAX, claims, newest_records};

/// Volumes that are looked at at one time: enough to hide a server's latency, too few to trouble it.
const THREADS: usize = 8;
/// Clocks that differ by less agree.
const SKEW_SECS_MAX: i64 = 300;
const IDENTITY_LEN_MAX: u64 = 1 << 20;

/// What to look at.
#[derive(Clone, Copy, Debug, Default)]
pub struct FleetOptions {
    /// A volume whose newest epoch is older is stale.
    pub max_age_secs: Option<u64>,
    /// Add up the packs.
    pub size: bool,
    /// The present, seconds since 1970.
    pub now: i64,
}

/// A volume as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Where it is, as a SPEC.
    pub place: String,
    /// Its UUID.
    pub volume: Option<String>,
    /// UUID of the copy there.
    pub store: Option<String>,
    /// Who owns it: whoever took it over last, else whoever made it.
    pub owner: Option<String>,
    /// How often it was taken over.
    pub take_overs: u64,
    /// Its newest epoch.
    pub epoch: Option<Epoch>,
    /// When that was closed, by its owner's clock, seconds since 1970.
    pub time: Option<i64>,
    /// How long ago: what would be lost with its server.
    pub recovery_point_secs: Option<u64>,
    /// Packs, with `size`.
    pub packs: Option<u64>,
    /// Their bytes, with `size`.
    pub bytes: Option<u64>,
    /// When it was last checked, if it says so.
    pub last_check: Option<i64>,
    /// Older than it may be.
    pub is_stale: bool,
    /// It could not be looked at: nothing is known, and nothing is said to be wrong.
    pub is_unreachable: bool,
    /// What is wrong, for people.
    pub trouble: Vec<String>,
}

/// A volume that was found, and its prefix on `volume`, empty or ending in a slash.
#[derive(Clone, Debug)]
struct Found {
    place: String,
    volume: Arc<dyn Volume>,
    below: String,
}

/// Looks at every volume below `spec`, in the order of their places.
pub fn fleet(
    spec: &Spec,
    options: FleetOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Member>> {
    let found = search::search(spec)?;
    let next = AtomicUsize::new(0);
    let members: Mutex<Vec<(usize, Member)>> = Mutex::default();
    let collected = || members.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| -> Result<()> {
        let mut workers = Vec::new();
        for n in 0..THREADS.min(found.len()) {
            let (found, next, collected) = (&found, &next, &collected);
            let work = move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = found.get(at) else { return };
                    let member = look_at(one, options);
                    collected().push((at, member));
                }
            };
            let worker = thread::Builder::new()
                .name(format!("fleet-{n}"))
                .spawn_scoped(scope, work)
                .map_err(Error::io("start", "a thread"))?;
            workers.push(worker);
        }
        for worker in workers {
            let panicked = worker.join().is_err();
            if panicked {
                return Err(Error::Poisoned("a thread panicked".into()));
            }
            progress(collected().len(), found.len());
        }
        Ok(())
    })?;
    let mut members = members.into_inner().unwrap_or_else(PoisonError::into_inner);
    members.sort_by_key(|(at, _)| *at);
    let mut members: Vec<Member> = members.into_iter().map(|(_, member)| member).collect();
    name_copies(&mut members);
    Ok(members)
}

fn look_at(found: &Found, options: FleetOptions) -> Member {
    let mut member = Member {
        place: found.place.clone(),
        ..Member::default()
    };
    let outcome = found.look(&mut member, options);
    if let Err(error) = outcome {
        member.is_unreachable = matches!(
            &error,
            Error::External(error) if error.is_unreachable() || error.is_transient()
        );
        member.trouble.push(error.chain());
    }
    member
}

impl Found {
    fn look(&self, member: &mut Member, options: FleetOptions) -> Result<()> {
        let identity = self.identity(member)?;
        if let Some(identity) = &identity {
            member.volume = Some(identity.volume.clone());
            member.store.clone_from(&identity.store);
            member.owner = Some(identity.owner.clone());
        }
        self.claims(member)?;
        self.newest(identity.as_ref(), member, options)?;
        if options.size {
            let (mut packs, mut bytes) = (0, 0);
            let prefix = format!("{}items/", self.below);
            self.volume.for_each(&prefix, |meta| -> Result<()> {
                packs += 1;
                bytes += meta.len;
                Ok(())
            })?;
            (member.packs, member.bytes) = (Some(packs), Some(bytes));
        }
        Ok(())
    }

    fn key(&self, name: &str) -> Result<ObjectKey> {
        Ok(ObjectKey::new(format!("{}{name}", self.below))?)
    }

    fn identity(&self, member: &mut Member) -> Result<Option<Identity>> {
        let bytes = match self
            .volume
            .get_whole(&self.key(IDENTITY_NAME)?, IDENTITY_LEN_MAX)
        {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => {
                let text = format!(
                    "there is no {IDENTITY_NAME}: nobody can write there, and it cannot be mounted"
                );
                member.trouble.push(text);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Identity::parse(IDENTITY_NAME, &bytes)
            .inspect_err(|error| member.trouble.push(error.chain()))
            .ok())
    }

    fn claims(&self, member: &mut Member) -> Result<()> {
        let claims = match claims(&*self.volume, &self.below) {
            Err(Error::External(error)) => return Err(error.into()),
            Err(error) => {
                member.trouble.push(error.chain());
                return Ok(());
            }
            Ok(claims) => claims,
        };
        let last = claims.iter().map(|(_, claim)| claim.generation).max();
        let newest: Vec<_> = claims
            .iter()
            .filter(|(_, claim)| Some(claim.generation) == last)
            .collect();
        member.take_overs = last.unwrap_or(0);
        match &newest[..] {
            [] => {}
            [(_, claim)] => member.owner = Some(claim.owner.clone()),
            [(_, one), (_, other), ..] => member.trouble.push(format!(
                "{} and {} took it over at one time: take it over again, from where it is to go on",
                one.owner, other.owner
            )),
        }
        Ok(())
    }

    fn newest(
        &self,
        identity: Option<&Identity>,
        member: &mut Member,
        options: FleetOptions,
    ) -> Result<()> {
        let newest = newest_records(&*self.volume, &self.below)?;
        let Some(first) = newest.first() else {
            if let Some(identity) = identity {
                let created = i64::try_from(identity.created).unwrap_or(0);
                let age = u64::try_from(options.now - created).unwrap_or(0);
                member.is_stale = options.max_age_secs.is_some_and(|max| age > max);
                member.trouble.push("no epoch was archived yet".into());
            }
            return Ok(());
        };
        member.epoch = Some(first.epoch);
        if newest.len() > 1 {
            let sessions: Vec<_> = newest.iter().map(|one| one.session.to_string()).collect();
            member.trouble.push(format!(
                "{} records of epoch {}, by the sessions {}: two servers wrote to it",
                newest.len(),
                first.epoch,
                sessions.join(" and ")
            ));
        }
        let name = first
            .meta
            .key
            .as_str()
            .get(self.below.len()..)
            .unwrap_or_default();
        let bytes = self.volume.get_whole(&first.meta.key, RECORD_LEN_MAX)?;
        let record = match EpochRecord::parse(name, &bytes) {
            Ok(record) => record,
            Err(error) => {
                member.trouble.push(error.chain());
                return Ok(());
            }
        };
        if identity.is_some_and(|identity| identity.volume != record.volume) {
            member
                .trouble
                .push(format!("{name} is another volume's record"));
        }
        let age = options.now - record.time;
        if age < -SKEW_SECS_MAX {
            member.trouble.push(format!(
                "its newest epoch is of {} seconds from now: its owner's clock is ahead, or ours is behind",
                -age
            ));
        }
        let age = u64::try_from(age).unwrap_or(0);
        member.time = Some(record.time);
        member.recovery_point_secs = Some(age);
        member.is_stale = options.max_age_secs.is_some_and(|max| age > max);
        Ok(())
    }
}

/// A copy of a copy has its UUID: whoever writes to one would think it the other.
fn name_copies(members: &mut [Member]) {
    let mut places: HashMap<String, Vec<String>> = HashMap::new();
    for member in members.iter() {
        if let Some(store) = &member.store {
            places
                .entry(store.clone())
                .or_default()
                .push(member.place.clone());
        }
    }
    for member in members {
        let same = member.store.as_ref().and_then(|store| places.get(store));
        let others: Vec<&str> = same
            .into_iter()
            .flatten()
            .filter(|place| **place != member.place)
            .map(String::as_str)
            .collect();
        if !others.is_empty() {
            member.trouble.push(format!(
                "it is the same copy as {}: one was copied from the other",
                others.join(", ")
            ));
        }
    }
}
