//! Settings that are changed while the volume is open, and what the pacer's thread does with them.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::pack::refill::ReadCacheLimits;
use crate::upload::evict::CacheLimits;
use crate::upload::{UploadState, Uploader};
use crate::volume::ack::{self, Ack, Acks};
use crate::volume::backlog::{Backlog, UNSENT_BYTES_MIN};
use crate::volume::engine::Volume;
use crate::volume::open::whole;
use crate::volume::pacer::Chores;
use crate::volume::settings::Settings;

/// Packs in flight: each has its bytes, up to 32 MiB, in memory.
const UPLOADS_MAX: u32 = 32;
/// The disk must not be promised to the last byte, nor kept free for nobody.
const RESERVE_MAX: u64 = 1 << 40;

/// What to change; `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SettingsChange {
    /// Budget for what is not on the external volume; 0: as much as the disk holds.
    pub unsent_bytes_max: Option<u64>,
    /// Local packs may take this much before sent ones are evicted.
    pub cache_bytes: Option<u64>,
    /// What is read of evicted packs stays up to this.
    pub read_cache_bytes: Option<u64>,
    /// Seconds before an uploaded pack may be evicted.
    pub evict_after_secs: Option<u64>,
    /// What stays free.
    pub reserve_bytes: Option<u64>,
    /// Seconds of silence after which the external volume is down.
    pub remote_timeout_secs: Option<u64>,
    /// Packs on their way at the same time.
    pub uploads_in_flight: Option<u32>,
    /// What fsync waits for.
    pub ack: Option<Ack>,
}

impl SettingsChange {
    /// The settings with this change, if they make sense.
    pub fn applied_to(&self, settings: &Settings) -> Result<Settings> {
        let changed = Settings {
            unsent_bytes_max: self.unsent_bytes_max.unwrap_or(settings.unsent_bytes_max),
            cache_bytes: self.cache_bytes.unwrap_or(settings.cache_bytes),
            read_cache_bytes: self.read_cache_bytes.unwrap_or(settings.read_cache_bytes),
            evict_after_secs: self.evict_after_secs.unwrap_or(settings.evict_after_secs),
            reserve_bytes: self.reserve_bytes.unwrap_or(settings.reserve_bytes),
            remote_timeout_secs: self
                .remote_timeout_secs
                .unwrap_or(settings.remote_timeout_secs),
            uploads_in_flight: self.uploads_in_flight.unwrap_or(settings.uploads_in_flight),
            ack: self.ack.unwrap_or(settings.ack),
            ..settings.clone()
        };
        changed.check()?;
        Ok(changed)
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        let budget = self.unsent_bytes_max;
        let fault = if budget > 0 && budget < UNSENT_BYTES_MIN {
            "the budget for unsent data must be 64 MiB at least, for a pack that is being written and what is on its way \
             into it; or 'auto', which is as much as the disk holds"
        } else if self.uploads_in_flight == 0 || self.uploads_in_flight > UPLOADS_MAX {
            "between 1 and 32 packs can be on their way at the same time; each has up to 32 MiB in memory"
        } else if self.remote_timeout_secs == 0 {
            "the remote timeout must be one second at least"
        } else if self.reserve_bytes > RESERVE_MAX {
            "the reserve cannot be larger than 1 TiB"
        } else {
            return ack::check(self);
        };
        Err(Error::Refused(fault.into()))
    }
}

impl Volume {
    /// Changes settings, from now on and for later. Refused, and nothing changed, if they make no sense.
    pub fn update(&self, change: &SettingsChange) -> Result<Settings> {
        let (before, settings) = {
            let mut held = whole(&self.settings);
            let settings = change.applied_to(&held)?;
            // Held while it is written, which is the local disk, so that two changes cannot mix.
            settings.write(&self.root)?;
            (std::mem::replace(&mut *held, settings.clone()), settings)
        };
        if before.remote_timeout_secs == settings.remote_timeout_secs {
            self.apply(&settings);
        } else {
            // It is part of how the external volume is opened.
            self.connect_store();
        }
        tracing::info!(?change, "settings are changed");
        Ok(settings)
    }

    /// Tells everybody whom they concern.
    pub(super) fn apply(&self, settings: &Settings) {
        let limits = CacheLimits::new(settings.cache_bytes, settings.evict_after_secs);
        self.uploader.set_limits(limits);
        self.uploader
            .set_in_flight(usize::try_from(settings.uploads_in_flight).unwrap_or(1));
        let sweep_after = settings.sweep_after_secs;
        self.uploader
            .set_sweep_after((sweep_after > 0).then(|| Duration::from_secs(sweep_after)));
        self.packs.read_cache().set_limits(ReadCacheLimits {
            bytes_max: settings.read_cache_bytes,
            // Long before new data is refused.
            free_bytes_min: settings.reserve_bytes.saturating_mul(2),
        });
        self.backlog.set(settings);
        self.acks.set(settings);
    }
}

/// What the pacer's thread looks after.
#[derive(Debug)]
pub(super) struct Housekeeping {
    pub(super) backlog: Arc<Backlog>,
    pub(super) uploader: Weak<Uploader>,
    pub(super) acks: Arc<Acks>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Chores for Housekeeping {
    fn allowed_rate(&self) -> Option<u64> {
        self.backlog.allowed_rate()
    }

    fn each_second(&self, now: Instant) {
        let Some(uploader) = self.uploader.upgrade() else {
            return;
        };
        let is_down = matches!(uploader.state(), UploadState::Down { .. });
        let pressure = self.backlog.look(now, is_down, self.clock.now_secs());
        uploader.set_pressure(pressure);
    }

    fn each_turn(&self, now: Instant) -> Duration {
        self.acks.turn(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name_and_nonsense_is_refused() {
        let settings = Settings::default();
        let change = SettingsChange {
            unsent_bytes_max: Some(1 << 30),
            uploads_in_flight: Some(7),
            ..SettingsChange::default()
        };
        let changed = change.applied_to(&settings).unwrap();
        let expected = Settings {
            unsent_bytes_max: 1 << 30,
            uploads_in_flight: 7,
            ..settings.clone()
        };
        assert_eq!(changed, expected);
        let refused = [
            SettingsChange {
                unsent_bytes_max: Some(1),
                ..SettingsChange::default()
            },
            SettingsChange {
                uploads_in_flight: Some(0),
                ..SettingsChange::default()
            },
            SettingsChange {
                remote_timeout_secs: Some(0),
                ..SettingsChange::default()
            },
            // There is no external volume.
            SettingsChange {
                ack: Some(Ack::Remote),
                ..SettingsChange::default()
            },
        ];
        for change in refused {
            assert!(change.applied_to(&settings).is_err(), "{change:?}");
        }
    }
}
