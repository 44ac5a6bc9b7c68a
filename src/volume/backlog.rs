//! What is not on the external volume yet: how much it may become, and what happens as it nears that
//! (invariant 8).
//!
//! ```text
//! free -> slowed (above four fifths of the budget) -> full (new data is refused) -> and back, as it drains
//! ```
//!
//! Only new data is refused. Nothing here waits, and nothing here is asked by reads, deletes, renames or
//! anything else that is metadata alone.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::format::pack::PACK_LEN_TARGET;
use crate::ingest::Ingest;
use crate::pack::ledger::{Ledger, PackEntry, PackState};
use crate::pack::store::PackStore;
use crate::volume::ballast::Ballast;
use crate::volume::flow::{FlowMeter, allowed_rate, soft_limit};
use crate::volume::settings::{Settings, Store};
use crate::volume::space::SpaceWatch;

/// The smallest budget: a pack that is being written, and what is on its way into it.
pub const UNSENT_BYTES_MIN: u64 = 64 << 20;
/// After a refusal there must be room for this much before it is over.
const RESUME_BYTES: u64 = 4 << 20;
/// Uploaded packs are evicted early when less than this is free above the reserve.
const PRESSURE_MARGIN_BYTES: u64 = 4 * PACK_LEN_TARGET as u64;
/// With less than this free, and the ballast given up, nothing new is named any more: what is left is for
/// deletes.
const LAST_BYTES: u64 = 8 << 20;
/// While the external volume is away, packs that may be evicted are counted after this.
const MEASURE_INTERVAL: Duration = Duration::from_secs(30);
/// The forecast is told when it falls below these.
const FORECASTS: [Duration; 2] = [Duration::from_secs(24 * 3600), Duration::from_secs(3600)];

/// How writers are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// As they come.
    #[default]
    Free,
    /// Slowed toward the rate at which data leaves.
    Slowed,
    /// Refused.
    Full,
}

/// For `status`.
#[derive(Clone, Debug, Serialize)]
pub struct BacklogStatus {
    /// Bytes that are only here, those included that are in no pack yet.
    pub bytes: u64,
    /// How many they may become: what is set, or what the disk holds.
    pub budget_bytes: u64,
    /// How writers are treated.
    pub phase: Phase,
    /// How fast all writers together may be, where they are slowed.
    pub allowed_bytes_per_sec: Option<u64>,
    /// How fast data leaves.
    pub drain_bytes_per_sec: u64,
    /// By how much it grows; absent where not enough was seen.
    pub growth_bytes_per_sec: Option<i64>,
    /// Writes that wait for their answer.
    pub waiting_writes: usize,
}

/// The backlog.
#[derive(Debug)]
pub struct Backlog {
    root: PathBuf,
    ledger: Arc<Ledger>,
    packs: Arc<PackStore>,
    ingest: Arc<Ingest>,
    space: SpaceWatch,
    ballast: Arc<Ballast>,
    has_store: AtomicBool,
    unsent_bytes_max: AtomicU64,
    reserve_bytes: AtomicU64,
    evict_after_secs: AtomicU64,
    /// Bytes of uploaded packs that would give way to new ones.
    evictable_bytes: AtomicU64,
    /// As of the last look.
    budget: AtomicU64,
    /// As of the last look.
    drain_per_sec: AtomicU64,
    /// Somebody was refused since the last look.
    was_refused: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    meter: FlowMeter,
    phase: Phase,
    /// How many of the forecasts were told.
    told: usize,
    /// When evictable packs were measured last, while the external volume is away.
    measured: Option<Instant>,
}

impl Backlog {
    /// Of the backup path `root`.
    pub fn new(
        root: &Path,
        ledger: Arc<Ledger>,
        packs: Arc<PackStore>,
        ingest: Arc<Ingest>,
        settings: &Settings,
    ) -> Backlog {
        let backlog = Backlog {
            root: root.to_owned(),
            ledger,
            packs,
            ingest,
            space: SpaceWatch::default(),
            ballast: Arc::new(Ballast::new(root, settings.reserve_bytes)),
            has_store: AtomicBool::new(false),
            unsent_bytes_max: AtomicU64::new(0),
            reserve_bytes: AtomicU64::new(0),
            evict_after_secs: AtomicU64::new(0),
            evictable_bytes: AtomicU64::new(0),
            budget: AtomicU64::new(u64::MAX),
            drain_per_sec: AtomicU64::new(0),
            was_refused: AtomicBool::new(false),
            seen: Mutex::default(),
        };
        backlog.set(settings);
        backlog
    }

    /// These settings hold from now on.
    pub fn set(&self, settings: &Settings) {
        let has_store = settings.store != Store::Local;
        self.has_store.store(has_store, Ordering::Relaxed);
        self.unsent_bytes_max
            .store(settings.unsent_bytes_max, Ordering::Relaxed);
        self.reserve_bytes
            .store(settings.reserve_bytes, Ordering::Relaxed);
        self.evict_after_secs
            .store(settings.evict_after_secs, Ordering::Relaxed);
        self.ballast.set_reserve(settings.reserve_bytes);
        self.evictable_bytes
            .store(self.uploaded_here(), Ordering::Relaxed);
        self.space.look_again();
        self.budget.store(self.budget_now(), Ordering::Relaxed);
    }

    /// The backup path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The reserve for an emergency.
    pub fn ballast(&self) -> &Arc<Ballast> {
        &self.ballast
    }

    /// Bytes that are only here: in packs that were not sent, and in none yet.
    pub fn bytes(&self) -> u64 {
        self.ledger.unsent_bytes() + self.packs.open_bytes() + self.ingest.budget.used() as u64
    }

    /// Takes in `len` new bytes, or refuses them. What was taken in has its space.
    pub fn admit(&self, len: u64) -> Result<()> {
        if self.fits(len) {
            self.space.promise(len);
            return Ok(());
        }
        self.was_refused.store(true, Ordering::Relaxed);
        Err(self.no_space())
    }

    /// Whether there is room for `len` more bytes, in the budget and on the disk.
    pub fn fits(&self, len: u64) -> bool {
        !self.is_over_budget(len) && !self.is_disk_short(len)
    }

    fn is_over_budget(&self, len: u64) -> bool {
        let max = self.unsent_bytes_max.load(Ordering::Relaxed);
        max > 0 && self.has_store.load(Ordering::Relaxed) && self.bytes().saturating_add(len) > max
    }

    /// Whether `len` bytes more, with what is on its way into packs and the next pack, would touch the reserve.
    fn is_disk_short(&self, len: u64) -> bool {
        let on_its_way = self.ingest.budget.used() as u64 + u64::from(PACK_LEN_TARGET);
        let reserve = self.reserve_beside_ballast();
        let needed = reserve.saturating_add(on_its_way).saturating_add(len);
        if !self.space.is_short(&self.root, needed) {
            return false;
        }
        // What was only read goes before what is new is refused.
        let missing = needed.saturating_sub(self.space.free(&self.root));
        if self.packs.read_cache().give_back(missing) == 0 {
            return true;
        }
        self.space.look_again();
        self.space.is_short(&self.root, needed)
    }

    /// The reserve is on the disk in two parts, and one of them does not look free.
    fn reserve_beside_ballast(&self) -> u64 {
        let reserve = self.reserve_bytes.load(Ordering::Relaxed);
        reserve.saturating_sub(self.ballast.held_bytes())
    }

    fn no_space(&self) -> Error {
        Error::NoSpace {
            path: self.root.clone(),
        }
    }

    /// Before something new is named: refused only when what is left is needed for deletes.
    pub fn admit_name(&self) -> Result<()> {
        if self.ballast.is_given_up() && self.space.is_short(&self.root, LAST_BYTES) {
            return Err(self.no_space());
        }
        Ok(())
    }

    /// Whether an epoch whose changes take `len` bytes of memory can be closed: its segment is about as long,
    /// and so may be what the index writes.
    pub fn has_room_to_close(&self, len: usize) -> bool {
        let needed = (len as u64).saturating_mul(2).saturating_add(LAST_BYTES);
        !self.space.is_short(&self.root, needed)
    }

    /// How many bytes a second writers may bring in; `None` while they are not slowed. Without an external
    /// volume nothing drains, and slowing would only delay the end.
    pub fn allowed_rate(&self) -> Option<u64> {
        if !self.has_store.load(Ordering::Relaxed) {
            return None;
        }
        let budget = self.budget.load(Ordering::Relaxed);
        allowed_rate(
            self.bytes(),
            budget,
            self.drain_per_sec.load(Ordering::Relaxed),
        )
    }

    /// What is set, or what the disk holds, whichever is less.
    fn budget_now(&self) -> u64 {
        let free = self.space.free(&self.root);
        let room = free.saturating_sub(self.reserve_beside_ballast());
        let has_store = self.has_store.load(Ordering::Relaxed);
        let evictable = self.evictable_bytes.load(Ordering::Relaxed);
        let held = self
            .bytes()
            .saturating_add(room)
            .saturating_add(self.packs.read_cache().bytes())
            .saturating_add(if has_store { evictable } else { 0 });
        match self.unsent_bytes_max.load(Ordering::Relaxed) {
            max if max > 0 && has_store => held.min(max),
            _ => held,
        }
    }

    /// Bytes of packs that were sent and are here too: they give way to those that were not.
    fn uploaded_here(&self) -> u64 {
        let totals = self.ledger.totals();
        totals.local_bytes.saturating_sub(totals.unsent_bytes)
    }

    /// The same while the external volume is away, which spares the young ones.
    fn uploaded_here_long_ago(&self, now_secs: u64) -> u64 {
        let evict_after_secs = self.evict_after_secs.load(Ordering::Relaxed);
        let is_old = |entry: &PackEntry| match entry.state {
            PackState::Uploaded { verified_at } => {
                !entry.evicted && verified_at.saturating_add(evict_after_secs) <= now_secs
            }
            PackState::Sealed => false,
        };
        let all = self.ledger.all();
        let old = all.iter().filter(|(_, entry)| is_old(entry));
        old.map(|(_, entry)| u64::from(entry.len)).sum()
    }

    /// What would be evicted. While the volume is away that takes a look at all packs, which few looks do.
    fn measure_evictable(&self, now: Instant, is_down: bool, now_secs: u64) {
        if !is_down {
            self.evictable_bytes
                .store(self.uploaded_here(), Ordering::Relaxed);
            self.seen().measured = None;
            return;
        }
        let measured = self.seen().measured;
        if measured.is_none_or(|then| now.saturating_duration_since(then) >= MEASURE_INTERVAL) {
            let old = self.uploaded_here_long_ago(now_secs);
            self.evictable_bytes.store(old, Ordering::Relaxed);
            self.seen().measured = Some(now);
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once a second: measures, tends the ballast, tells what changed. Returns how many bytes of uploaded
    /// packs should be evicted before their time.
    pub fn look(&self, now: Instant, is_down: bool, now_secs: u64) -> u64 {
        self.measure_evictable(now, is_down, now_secs);
        self.budget.store(self.budget_now(), Ordering::Relaxed);
        let (bytes, sent) = (self.bytes(), self.ledger.sent_bytes());
        let free = self.space.free(&self.root);
        if let Err(error) = self.ballast.tend(free) {
            tracing::warn!(error = %error.chain(), "there is no ballast for an emergency");
        }
        let mut seen = self.seen();
        seen.meter.sample(now, bytes, sent);
        self.drain_per_sec
            .store(seen.meter.drain_per_sec(), Ordering::Relaxed);
        self.tell_phase(&mut seen);
        self.tell_forecast(&mut seen);
        let wanted = self
            .reserve_beside_ballast()
            .saturating_add(PRESSURE_MARGIN_BYTES);
        wanted.saturating_sub(free)
    }

    fn tell_phase(&self, seen: &mut Seen) {
        let was_refused = self.was_refused.swap(false, Ordering::Relaxed);
        let (bytes, budget) = (self.bytes(), self.budget.load(Ordering::Relaxed));
        let has_store = self.has_store.load(Ordering::Relaxed);
        // A little below the limit, so that it is not told again with each pack that comes and goes.
        let is_slow_still =
            has_store && seen.phase != Phase::Free && bytes > soft_limit(budget) / 16 * 15;
        let phase = if was_refused || (seen.phase == Phase::Full && !self.fits(RESUME_BYTES)) {
            Phase::Full
        } else if self.allowed_rate().is_some() || is_slow_still {
            Phase::Slowed
        } else {
            Phase::Free
        };
        if phase == seen.phase {
            return;
        }
        let (before, drain) = (seen.phase, self.drain_per_sec.load(Ordering::Relaxed));
        seen.phase = phase;
        match (before, phase) {
            (_, Phase::Full) => tracing::warn!(
                unsent_bytes = bytes,
                budget_bytes = budget,
                drain_bytes_per_sec = drain,
                "full: new data is refused; deletes, reads, renames and metadata go on"
            ),
            (Phase::Full, _) => tracing::info!(
                unsent_bytes = bytes,
                budget_bytes = budget,
                "no longer full: new data is taken again"
            ),
            (_, Phase::Slowed) => tracing::warn!(
                unsent_bytes = bytes,
                budget_bytes = budget,
                drain_bytes_per_sec = drain,
                "nearly full: writers are slowed"
            ),
            (_, Phase::Free) => {
                tracing::info!(unsent_bytes = bytes, "writers are no longer slowed");
            }
        }
    }

    fn tell_forecast(&self, seen: &mut Seen) {
        let left = self.left();
        let time = seen.meter.time_to_full(left).unwrap_or(Duration::MAX);
        let due = FORECASTS.iter().filter(|limit| time < **limit).count();
        if due > seen.told {
            tracing::warn!(
                secs = time.as_secs(),
                left_bytes = left,
                "at this rate the cache is full in {}",
                hours(time)
            );
            seen.told = due;
        } else {
            // Told again only after it was twice as long for a while.
            let over = FORECASTS.iter().filter(|limit| time / 2 < **limit).count();
            seen.told = seen.told.min(over);
        }
    }

    /// What `statfs` calls available: as much as writers will get.
    pub fn left_for_writers(&self) -> u64 {
        let on_its_way = u64::from(PACK_LEN_TARGET);
        let taken = self.reserve_beside_ballast().saturating_add(on_its_way);
        let disk = self.space.free(&self.root).saturating_sub(taken);
        match self.unsent_bytes_max.load(Ordering::Relaxed) {
            max if max > 0 && self.has_store.load(Ordering::Relaxed) => {
                disk.min(max.saturating_sub(self.bytes()))
            }
            _ => disk,
        }
    }

    /// Bytes until it is full.
    fn left(&self) -> u64 {
        self.budget
            .load(Ordering::Relaxed)
            .saturating_sub(self.bytes())
    }

    /// Seconds until it is full, if it goes on as in the last minutes.
    pub fn time_to_full_secs(&self) -> Option<u64> {
        let time = self.seen().meter.time_to_full(self.left());
        time.map(|time| time.as_secs())
    }

    /// How things are.
    pub fn status(&self, waiting_writes: usize) -> BacklogStatus {
        self.budget.store(self.budget_now(), Ordering::Relaxed);
        let seen = self.seen();
        BacklogStatus {
            bytes: self.bytes(),
            budget_bytes: self.budget.load(Ordering::Relaxed),
            phase: seen.phase,
            allowed_bytes_per_sec: self.allowed_rate(),
            drain_bytes_per_sec: seen.meter.drain_per_sec(),
            growth_bytes_per_sec: seen.meter.growth_per_sec(),
            waiting_writes,
        }
    }
}

/// `31 h`, `50 min`.
fn hours(time: Duration) -> String {
    let secs = time.as_secs();
    if secs >= 2 * 3600 {
        format!("{} h", secs / 3600)
    } else {
        format!("{} min", secs / 60)
    }
}
