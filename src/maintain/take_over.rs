//! Taking a volume over: going on where another writer, or a lost state of this one, left off (invariant 7).
//!
//! Two cases. What is newest on the external volume is of our own past: then nothing is lost and nothing is moved;
//! whatever counted as verified there counts only if a listing shows it now. Or it is somebody else's, or of a future
//! that this backup path does not know: then the backup path becomes the working copy of what is there, and what is
//! only here goes to `lost+found/take-over-<time>/`, which is a backup path that can be looked at itself.
//!
//! In this order, so that a stop anywhere leaves something to go on from:
//!
//! 1. everything that is needed is fetched into `take-over.stage/` and verified (`stage`, `packs`);
//! 2. a claim is written to the external volume, and looked for others: from here on the former owner refuses to write;
//! 3. a plan is written to `take-over.json`: from here on the backup path is not opened until it is carried out;
//! 4. the plan is carried out, by renames that can be repeated (`switch`).

mod packs;
mod stage;
mod switch;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use vfs::{Body, ObjectKey, Precondition, VolumeExt};

use crate::clock::{Clock, civil, random};
use crate::error::{Error, Result};
use crate::format::record::{Claim, EpochRecord, FORMAT, Identity};
use crate::format::segment::BlockCache;
use crate::journal;
use crate::pack::ledger::{Peeked, peek};
use crate::types::{Epoch, Ino, SessionId, Uuid};
use crate::upload::fork::{RECORD_LEN_MAX, RecordObject, claims, newest_records};
use crate::volume::archive::Archive;
use crate::volume::choice::{Choice, Chosen, enter_use, leave_use};
use crate::volume::init::{external_identity, hostname, read_identity};
use crate::volume::lock::PathLock;
use crate::volume::namespace;
use crate::volume::settings::{Settings, Store, rewrite};
use crate::volume::store::sentinel;

use stage::Stage;
use switch::Plan;

/// Memory for decoded blocks of segments that are looked at once.
const BLOCK_CACHE_BYTES: usize = 16 << 20;
/// Threads that fetch.
const THREADS: usize = 8;

/// Told what is being done, and how much of how much of it is.
pub type OnStep<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// What a take-over did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TakeOver {
    /// Where packs go now.
    pub store: Store,
    /// The volume that the backup path is of now.
    pub volume: String,
    /// The newest epoch that was there: the next one is the first of ours.
    pub epoch: Epoch,
    /// When that was closed, seconds since 1970.
    pub time: i64,
    /// Whether it was of our own past.
    pub is_our_past: bool,
    /// What was only here, as a backup path of its own.
    pub set_aside: Option<PathBuf>,
    /// Packs that were only here and went with it.
    pub packs_set_aside: u64,
    /// Packs that are there.
    pub packs: u64,
}

/// What is known before anything is changed.
struct Scene<'a> {
    root: &'a Path,
    settings: Settings,
    there: Identity,
    store: Store,
    external: Arc<dyn vfs::Volume>,
    newest: RecordObject,
    record: EpochRecord,
    /// As stored.
    record_bytes: Vec<u8>,
    is_our_past: bool,
    ledger: Peeked,
}

/// Makes the backup path `root`, which nobody may have open, the owner of the volume at `choice`.
pub fn take_over(
    root: &Path,
    choice: &Choice,
    clock: &dyn Clock,
    progress: OnStep<'_>,
) -> Result<TakeOver> {
    let _lock = PathLock::take(root)?;
    // One that was stopped in the middle is carried out first: it says itself where it goes.
    if let Some(plan) = Plan::read(root)? {
        plan.carry_out(root)?;
    }
    let outcome = prepare_and_switch(root, choice, clock, progress);
    if outcome.is_err() && Plan::read(root).is_ok_and(|plan| plan.is_none()) {
        // Nothing was changed; what stays of this is in nobody's way.
        let _ = switch::remove_dir(&root.join(stage::STAGE_DIR));
    }
    outcome
}

fn prepare_and_switch(
    root: &Path,
    choice: &Choice,
    clock: &dyn Clock,
    progress: OnStep<'_>,
) -> Result<TakeOver> {
    let scene = Scene::look(root, choice)?;
    let time = civil(clock.now()).replace(':', "-");
    let stage = Stage::begin(root)?;
    let packs = stage.packs(&scene, progress)?;
    if scene.is_our_past {
        stage.link_claims(&scene)?;
    } else {
        stage.metadata(&scene, progress)?;
    }
    scene.refuse_lost(&packs)?;
    stage.ledger(&scene, &packs, clock.now_secs())?;
    stage.settle()?;
    enter_use(root, &scene.store)?;
    let claim = scene.claim(clock.now_secs(), &stage)?;
    let aside = format!("lost+found/take-over-{time}");
    let plan = Plan {
        aside: (!scene.is_our_past).then_some(aside),
        packs: if scene.is_our_past {
            Vec::new()
        } else {
            packs.only_here()
        },
        settings: Settings {
            store: scene.store.clone(),
            ..scene.settings.clone()
        },
    };
    plan.write(root).inspect_err(|_| scene.withdraw(&claim))?;
    plan.carry_out(root)?;
    leave_use(root, &scene.store);
    Ok(TakeOver {
        volume: scene.there.volume.clone(),
        epoch: scene.record.epoch,
        time: scene.record.time,
        is_our_past: scene.is_our_past,
        set_aside: plan.aside.map(|aside| root.join(aside)),
        packs_set_aside: plan.packs.len() as u64,
        packs: packs.there_count(),
        store: scene.store,
    })
}

impl Scene<'_> {
    fn look<'a>(root: &'a Path, choice: &Choice) -> Result<Scene<'a>> {
        let ours = read_identity(root)?;
        let settings = Settings::read(root)?;
        let chosen = choice
            .open(root, &ours.volume, settings.remote_timeout())?
            .ok_or_else(|| {
                Error::Refused(
                    "there is nothing to take over where packs stay in the backup path".into(),
                )
            })?;
        let external = Arc::clone(&chosen.volume);
        let there = external_identity(&*external)?.ok_or_else(|| {
            Error::Refused(format!(
                "{external} holds no volume that could be taken over: attach it without --take-over"
            ))
        })?;
        let (copy, store) = copy_of(&chosen, &there)?;
        external.bind(sentinel(&there, &copy)?)?;
        if there.volume != ours.volume {
            refuse_filled(root, &ours, &there)?;
        }
        let newest = the_newest(&*external)?;
        let record_bytes = external
            .get_whole(&newest.meta.key, RECORD_LEN_MAX)?
            .to_vec();
        let record = EpochRecord::parse(newest.meta.key.as_str(), &record_bytes)?;
        if record.volume != there.volume {
            let object = format!("{external}/{}", newest.meta.key);
            return Err(Error::corrupt(object, 0, "it is another volume's record"));
        }
        let here = fs::read(root.join(newest.meta.key.as_str()));
        let is_our_past =
            there.volume == ours.volume && here.is_ok_and(|here| here == record_bytes);
        let ledger = peek(&root.join(journal::DIR), settings.store.copy_uuid())?;
        Ok(Scene {
            root,
            settings,
            there,
            store,
            external,
            newest,
            record,
            record_bytes,
            is_our_past,
            ledger,
        })
    }

    /// What was evicted here must be there: nobody else has it.
    fn refuse_lost(&self, packs: &packs::Packs) -> Result<()> {
        let evicted = self.ledger.packs.iter().filter(|(_, entry)| entry.evicted);
        let lost: Vec<_> = evicted.filter(|(pack, _)| !packs.is_there(*pack)).collect();
        let Some((first, _)) = lost.first() else {
            return Ok(());
        };
        Err(Error::Refused(format!(
            "{} packs, {first} the first of them, were on the external volume alone, and {} does not have them: it is \
             an older or another copy. Nothing was changed",
            lost.len(),
            self.external
        )))
    }

    /// Says on the external volume that it is ours, unless somebody else says so too. Returns the claim's key.
    fn claim(&self, now_secs: u64, stage: &Stage) -> Result<ObjectKey> {
        let before = claims(&*self.external, "")?;
        let last = before.iter().map(|(_, claim)| claim.generation).max();
        let claim = Claim {
            format: FORMAT,
            volume: self.there.volume.clone(),
            store: self.store.copy().unwrap_or_default().into(),
            generation: last.unwrap_or(0) + 1,
            owner: hostname(),
            time: now_secs,
            epoch: self.record.epoch,
            mac: None,
        };
        let name = Claim::name(claim.generation, SessionId(random()?));
        let key = ObjectKey::new(name.clone())?;
        let bytes = claim.encode();
        // Here first: one that is there and not here keeps us out as well.
        stage.put(&name, &bytes)?;
        let put = self
            .external
            .put(&key, Body::Bytes(&bytes), Precondition::IfAbsent);
        put.map_err(Error::from)
            .and_then(|_| self.refuse_rivals(&key, &claim))
            .inspect_err(|_| self.withdraw(&key))?;
        Ok(key)
    }

    /// Whoever put before us and looks now sees us, and the other way round: at most one goes on.
    fn refuse_rivals(&self, key: &ObjectKey, claim: &Claim) -> Result<()> {
        for (other, theirs) in claims(&*self.external, "")? {
            if other != *key && theirs.generation >= claim.generation {
                return Err(Error::Refused(format!(
                    "{} is taking {} over at this moment ({other}). Nothing was changed here: see who is to have it",
                    theirs.owner, self.external
                )));
            }
        }
        let newest = the_newest(&*self.external)?;
        if newest.meta.key != self.newest.meta.key {
            return Err(Error::Refused(format!(
                "{} wrote epoch {} to {} just now: its owner is not gone. Nothing was changed here: end it first",
                newest.session, newest.epoch, self.external
            )));
        }
        self.external.verify_identity().map_err(Error::from)
    }

    /// Takes back a claim that came to nothing: its name is nobody else's.
    fn withdraw(&self, key: &ObjectKey) {
        if let Err(error) = self.external.delete(std::slice::from_ref(key)) {
            tracing::warn!(
                "{key} stays on {}, and keeps its owner from writing: remove it. {}",
                self.external,
                error.chain()
            );
        }
    }
}

fn copy_of(chosen: &Chosen, there: &Identity) -> Result<(String, Store)> {
    let copy = there.store.clone().ok_or_else(|| {
        let object = format!("{}/server/volume.json", chosen.volume);
        Error::corrupt(
            object,
            0,
            "it is a backup path's identity, not an external volume's",
        )
    })?;
    let store = chosen.store(copy.clone());
    Ok((copy, store))
}

fn the_newest(external: &dyn vfs::Volume) -> Result<RecordObject> {
    let mut newest = newest_records(external, "")?;
    if newest.len() > 1 {
        let names: Vec<_> = newest
            .iter()
            .map(|record| record.meta.key.to_string())
            .collect();
        return Err(Error::Refused(format!(
            "{external} has two records of one epoch: {}. Set aside those of the branch that is not to go on, then \
             take it over",
            names.join(" and ")
        )));
    }
    newest.pop().ok_or_else(|| {
        Error::Refused(format!(
            "{external} holds no epoch that could be gone on from: attach an empty directory or prefix"
        ))
    })
}

/// A backup path with content of its own never becomes another volume.
fn refuse_filled(root: &Path, ours: &Identity, there: &Identity) -> Result<()> {
    let uuid = ours.uuid().unwrap_or(Uuid([0; 16]));
    let cache = Arc::new(BlockCache::new(BLOCK_CACHE_BYTES));
    let archive = Archive::open(root, uuid, SessionId([0; 8]), cache)?;
    let view = archive.newest().view;
    let has_root = view.get(&crate::format::keys::inode(Ino::ROOT))?.is_some();
    if !has_root || namespace::read_dir(&view, Ino::ROOT, None, 1)?.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "volume {} of {} can be taken over by a new backup path only, and {} has files of its own: make one with \
         tidefs -p NEW_PATH init",
        there.volume,
        there.owner,
        root.display()
    )))
}

/// Writes `bytes` where a crash leaves them whole or absent.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    rewrite(path, bytes)
}
