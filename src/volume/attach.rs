//! Making an external volume ours: the sentinel `server/volume.json` is written once, by one of all who try.
//!
//! Where a store keeps `IfAbsent`, that alone decides. Some ignore it without a word, so that it is never relied on:
//! whoever wants to attach first writes an object of a name that only it can have, then looks who else did. If two
//! come at one time, at least one sees the other and steps back; perhaps both do, and neither is there twice. Behind
//! that the sentinel is looked for again, written, and read back. `docs/decisions/0016` has the argument.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use vfs::identity::SENTINEL_LEN_MAX;
use vfs::{Body, ErrorClass, Likeness, ObjectKey, Precondition, Volume, VolumeExt};

use crate::clock::random;
use crate::error::{Error, Result};
use crate::format::record::{EPOCHS_PREFIX, IDENTITY_NAME, Identity};
use crate::types::Uuid;
use crate::volume::init::external_identity;

/// Where those who want to attach say so.
const INTENTS_PREFIX: &str = "server/attaching/";
/// One that is older was left by somebody who died over it.
const INTENT_SECS_MAX: u64 = 600;
const INTENT_LEN_MAX: u64 = 64 << 10;

/// Who wants to attach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    volume: String,
    owner: String,
    /// Seconds since 1970.
    time: u64,
}

/// Makes the external volume ours, or recognises it as ours. Returns the UUID of the copy there.
///
/// Only an empty volume is taken: anything else belongs to somebody.
pub fn attach(volume: &dyn Volume, ours: &Identity, now_secs: u64) -> Result<String> {
    if let Some(there) = external_identity(volume)? {
        return recognise(volume, ours, there);
    }
    for prefix in ["items/", "accounts/", EPOCHS_PREFIX] {
        if !volume
            .list(prefix, None, NonZeroUsize::MIN)?
            .objects
            .is_empty()
        {
            return Err(Error::Refused(format!(
                "{volume} has objects below {prefix} but no {IDENTITY_NAME}: it is damaged or somebody else's. \
                 Use an empty directory or prefix"
            )));
        }
    }
    let store = Uuid(random()?).to_string();
    let intent = Intent {
        volume: ours.volume.clone(),
        owner: ours.owner.clone(),
        time: now_secs,
    };
    let key = ObjectKey::new(format!("{INTENTS_PREFIX}{store}.json"))?;
    let body = serde_json::to_vec(&intent).map_err(|error| Error::Refused(error.to_string()))?;
    volume.put(&key, Body::Bytes(&body), Precondition::None)?;
    let outcome = write_identity(volume, ours, &store, (&key, &intent));
    // Left behind it keeps others away for ten minutes, and us not at all.
    if let Err(error) = volume.delete(std::slice::from_ref(&key)) {
        tracing::warn!("{key} stays on {volume}: {}", error.chain());
    }
    outcome
}

fn recognise(volume: &dyn Volume, ours: &Identity, there: Identity) -> Result<String> {
    match there.store {
        Some(store) if there.volume == ours.volume => Ok(store),
        _ => Err(Error::Refused(format!(
            "{volume} belongs to volume {} of {}, this backup path is volume {}: use another directory or prefix; or, \
             if that server is gone for good, a new backup path and --take-over",
            there.volume, there.owner, ours.volume
        ))),
    }
}

/// Writes the sentinel, while `intent` stands under `key`.
fn write_identity(
    volume: &dyn Volume,
    ours: &Identity,
    store: &str,
    intent: (&ObjectKey, &Intent),
) -> Result<String> {
    step_back_for_others(volume, intent)?;
    // Whoever was here before our intent has written it by now, or will see the intent.
    if let Some(there) = external_identity(volume)? {
        return recognise(volume, ours, there);
    }
    let identity = Identity {
        store: Some(store.into()),
        ..ours.clone()
    };
    let key = ObjectKey::new(IDENTITY_NAME)?;
    let body = identity.encode();
    match volume.put(&key, Body::Bytes(&body), Precondition::IfAbsent) {
        Ok(_) => make_sure(volume, &key, &body)?,
        // Somebody else was quicker, or our own put was done and its answer lost: what is there decides.
        Err(error) if error.is_already_exists() => {}
        Err(error) => return Err(error.into()),
    }
    match external_identity(volume)? {
        Some(there) if there.volume == ours.volume && there.store.is_some() => {
            recognise(volume, ours, there)
        }
        _ => Err(Error::Refused(format!(
            "{volume} was taken by another server just now: use another directory or prefix"
        ))),
    }
}

/// Makes sure that the sentinel we put is there, or another's, and nothing that nobody could read.
fn make_sure(volume: &dyn Volume, key: &ObjectKey, body: &[u8]) -> Result<()> {
    let what = match volume.holds(key, Body::Bytes(body))? {
        Likeness::Same => return Ok(()),
        Likeness::Absent => "it is not there",
        Likeness::Other => {
            let there = volume.get_whole(key, SENTINEL_LEN_MAX)?;
            if Identity::parse(IDENTITY_NAME, &there).is_ok() {
                return Ok(());
            }
            // It is what became of ours: nothing else was there. Left, it would keep everybody away. One that only
            // reads badly at this moment is another's perhaps, and stays.
            if volume.get_whole(key, SENTINEL_LEN_MAX)? == there {
                volume.delete(std::slice::from_ref(key))?;
            }
            "other bytes are there"
        }
    };
    let message = format!("it was told to be stored, and {what}: test the volume, and try again");
    let (volume, key) = (volume.to_string(), key.as_str());
    Err(vfs::Error::new(ErrorClass::Transient, "put", &volume, key, message).into())
}

fn step_back_for_others(volume: &dyn Volume, (own, ours): (&ObjectKey, &Intent)) -> Result<()> {
    let mut others = Vec::new();
    volume.for_each(INTENTS_PREFIX, |meta| -> Result<()> {
        if meta.key != *own {
            others.push(meta.key);
        }
        Ok(())
    })?;
    for key in others {
        let bytes = match volume.get_whole(&key, INTENT_LEN_MAX) {
            // Its owner is done: what it wrote is seen next.
            Err(error) if error.is_not_found() => continue,
            outcome => outcome?,
        };
        let other: Intent = serde_json::from_slice(&bytes).map_err(|error| {
            let object = format!("{volume}/{key}");
            Error::corrupt(
                object,
                0,
                format!("not readable: {error}; remove it, if no server is attaching"),
            )
        })?;
        let age = ours.time.saturating_sub(other.time);
        // The same server may only be here again: a backup path has one process.
        let is_own = other.volume == ours.volume && other.owner == ours.owner;
        if is_own || age > INTENT_SECS_MAX {
            volume.delete(std::slice::from_ref(&key))?;
            continue;
        }
        return Err(Error::Refused(format!(
            "{} is attaching {volume} for volume {} at this moment ({key}): use another directory or prefix. If it is \
             not, try again in ten minutes",
            other.owner, other.volume
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use vfs::MemoryVolume;

    use super::*;
    use crate::chunk::ChunkerParams;
    use crate::format::record::FORMAT;

    fn identity(n: u8) -> Identity {
        Identity {
            format: FORMAT,
            volume: Uuid([n; 16]).to_string(),
            store: None,
            owner: format!("host-{n}"),
            created: 1,
            id_scheme: "sha256".into(),
            chunker: ChunkerParams::new(7),
            grace_secs: 1,
            mac: None,
        }
    }

    /// A store that takes `IfAbsent` and ignores it.
    #[derive(Debug)]
    struct Careless(MemoryVolume);

    impl std::fmt::Display for Careless {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("careless")
        }
    }

    impl Volume for Careless {
        fn put(&self, key: &ObjectKey, body: Body<'_>, _: Precondition) -> vfs::Result<vfs::Meta> {
            self.0.put(key, body, Precondition::None)
        }
        fn get(&self, key: &ObjectKey, range: std::ops::Range<u64>) -> vfs::Result<bytes::Bytes> {
            self.0.get(key, range)
        }
        fn head(&self, key: &ObjectKey) -> vfs::Result<Option<vfs::Meta>> {
            self.0.head(key)
        }
        fn list(
            &self,
            prefix: &str,
            after: Option<&ObjectKey>,
            limit: NonZeroUsize,
        ) -> vfs::Result<vfs::Page> {
            self.0.list(prefix, after, limit)
        }
        fn delete(&self, keys: &[ObjectKey]) -> vfs::Result<()> {
            self.0.delete(keys)
        }
        fn space(&self) -> vfs::Result<Option<vfs::Space>> {
            self.0.space()
        }
        fn probe(&self) -> vfs::Result<vfs::Capabilities> {
            self.0.probe()
        }
        fn bind(&self, sentinel: vfs::Sentinel) -> vfs::Result<()> {
            self.0.bind(sentinel)
        }
        fn verify_identity(&self) -> vfs::Result<()> {
            self.0.verify_identity()
        }
        fn sweep_temporary(
            &self,
            below: &[&str],
            older_than: std::time::Duration,
        ) -> vfs::Result<u64> {
            self.0.sweep_temporary(below, older_than)
        }
    }

    fn keys(volume: &dyn Volume) -> Vec<String> {
        let mut keys = Vec::new();
        volume
            .for_each("", |meta| -> Result<()> {
                keys.push(meta.key.to_string());
                Ok(())
            })
            .unwrap();
        keys
    }

    #[test]
    fn the_sentinel_is_all_that_stays_and_the_owner_is_recognised() {
        let volume = MemoryVolume::new();
        let store = attach(&volume, &identity(1), 100).unwrap();
        assert_eq!(keys(&volume), [IDENTITY_NAME]);
        assert_eq!(attach(&volume, &identity(1), 200).unwrap(), store);
        let refusal = attach(&volume, &identity(2), 200).unwrap_err().to_string();
        assert!(refusal.contains("host-1"), "{refusal}");
    }

    #[test]
    fn of_many_servers_at_once_at_most_one_attaches_even_where_if_absent_is_ignored() {
        for round in 0..50 {
            let volume = Careless(MemoryVolume::new());
            let start = Barrier::new(4);
            let won: Vec<u8> = std::thread::scope(|scope| {
                let attempts: Vec<_> = (1..=4)
                    .map(|n| {
                        let (volume, start) = (&volume, &start);
                        scope.spawn(move || {
                            start.wait();
                            attach(volume, &identity(n), 100).is_ok().then_some(n)
                        })
                    })
                    .collect();
                attempts
                    .into_iter()
                    .filter_map(|one| one.join().unwrap())
                    .collect()
            });
            assert!(won.len() <= 1, "round {round}: {won:?}");
            let there = external_identity(&volume).unwrap();
            let owner = there.map(|there| there.volume);
            assert_eq!(
                owner,
                won.first().map(|n| identity(*n).volume),
                "round {round}"
            );
        }
    }

    #[test]
    fn what_somebody_left_who_died_over_it_is_in_the_way_for_ten_minutes_only() {
        let volume = MemoryVolume::new();
        let key = ObjectKey::new(format!("{INTENTS_PREFIX}{}.json", Uuid([9; 16]))).unwrap();
        let intent = Intent {
            volume: identity(2).volume,
            owner: "host-2".into(),
            time: 1000,
        };
        let body = serde_json::to_vec(&intent).unwrap();
        volume
            .put(&key, Body::Bytes(&body), Precondition::None)
            .unwrap();
        let refusal = attach(&volume, &identity(1), 1000).unwrap_err().to_string();
        assert!(refusal.contains("host-2 is attaching"), "{refusal}");
        assert_eq!(keys(&volume), [key.as_str()]);
        attach(&volume, &identity(1), 1601).unwrap();
        assert_eq!(keys(&volume), [IDENTITY_NAME]);
    }
}
