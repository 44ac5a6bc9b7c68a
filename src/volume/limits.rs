//! How much of the line to the external volume is used: from the settings to the layer that holds back, and changed
//! while the volume is open.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use vfs::{LimitHandle, LimitPlan, Limited, Limits, Timetable};

use crate::error::{Error, Result};
use crate::volume::engine::Volume;
use crate::volume::open::whole;
use crate::volume::settings::Settings;

/// The limits of the settings. What is absent is not limited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Bytes sent in a second.
    pub upload_bytes_per_sec: Option<NonZeroU64>,
    /// Bytes fetched in a second.
    pub download_bytes_per_sec: Option<NonZeroU64>,
    /// Operations in a second.
    pub requests_per_sec: Option<NonZeroU64>,
    /// When others hold, as [`Timetable::parse`] reads it; empty for never.
    pub timetable: String,
}

/// What to change; `None` stays, 0 lifts a limit, and an empty timetable takes it away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct LimitChange {
    /// Bytes sent in a second.
    pub upload_bytes_per_sec: Option<u64>,
    /// Bytes fetched in a second.
    pub download_bytes_per_sec: Option<u64>,
    /// Operations in a second.
    pub requests_per_sec: Option<u64>,
    /// When others hold.
    pub timetable: Option<String>,
}

/// What holds at a moment. What is absent is not limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Default)]
pub struct LimitsInForce {
    /// Bytes sent in a second.
    pub upload_bytes_per_sec: Option<NonZeroU64>,
    /// Bytes fetched in a second.
    pub download_bytes_per_sec: Option<NonZeroU64>,
    /// Operations in a second.
    pub requests_per_sec: Option<NonZeroU64>,
}

impl From<Limits> for LimitsInForce {
    fn from(limits: Limits) -> LimitsInForce {
        LimitsInForce {
            upload_bytes_per_sec: limits.upload,
            download_bytes_per_sec: limits.download,
            requests_per_sec: limits.requests,
        }
    }
}

/// What is set, and what comes of it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitStatus {
    /// As it is set.
    pub set: LimitSettings,
    /// What holds now.
    pub in_force: LimitsInForce,
    /// Operations that wait for their turn.
    pub waiting: usize,
}

impl LimitSettings {
    /// For the layer that holds back.
    pub fn plan(&self) -> Result<LimitPlan> {
        let timetable = Timetable::parse(&self.timetable).map_err(|reason| {
            Error::Refused(format!(
                "the timetable '{}' is not understood: {reason}",
                self.timetable
            ))
        })?;
        Ok(LimitPlan {
            base: Limits {
                upload: self.upload_bytes_per_sec,
                download: self.download_bytes_per_sec,
                requests: self.requests_per_sec,
            },
            timetable,
        })
    }

    /// With what is set, what holds at `now`.
    pub fn status(&self, now: SystemTime) -> Result<LimitStatus> {
        Ok(LimitStatus {
            in_force: self.plan()?.in_force(now).into(),
            set: self.clone(),
            waiting: 0,
        })
    }

    fn changed(&self, change: &LimitChange) -> LimitSettings {
        let limit = |change: Option<u64>, set| change.map_or(set, NonZeroU64::new);
        LimitSettings {
            upload_bytes_per_sec: limit(change.upload_bytes_per_sec, self.upload_bytes_per_sec),
            download_bytes_per_sec: limit(
                change.download_bytes_per_sec,
                self.download_bytes_per_sec,
            ),
            requests_per_sec: limit(change.requests_per_sec, self.requests_per_sec),
            timetable: match &change.timetable {
                Some(text) => text.trim().to_owned(),
                None => self.timetable.clone(),
            },
        }
    }
}

/// The limits of a volume that is opened with these settings. A timetable that cannot be read any more is no reason not to
/// open: it is told, and the rest holds.
pub(super) fn handle(settings: &Settings) -> LimitHandle {
    let plan = settings.limits.plan().unwrap_or_else(|error| {
        tracing::error!("{error}: set it anew with tidefs limits set --timetable");
        let rest = LimitSettings {
            timetable: String::new(),
            ..settings.limits.clone()
        };
        rest.plan().unwrap_or_default()
    });
    LimitHandle::new(plan)
}

/// `external`, held back. Put it outermost.
pub fn hold_back(external: Arc<dyn vfs::Volume>, limits: &LimitHandle) -> Arc<dyn vfs::Volume> {
    Arc::new(Limited::new(external, limits.clone()))
}

impl Volume {
    /// What is set, and what holds now.
    pub fn limits(&self) -> LimitStatus {
        LimitStatus {
            set: self.settings().limits,
            in_force: self.limits.in_force().into(),
            waiting: self.limits.waiting(),
        }
    }

    /// Sets limits, from now on and for later. Whoever waits because of the old ones goes by the new ones at once.
    pub fn change_limits(&self, change: &LimitChange) -> Result<LimitStatus> {
        let mut held = whole(&self.settings);
        let changed = held.limits.changed(change);
        let plan = changed.plan()?;
        let settings = Settings {
            limits: changed,
            ..held.clone()
        };
        // Held while it is written, which is the local disk, so that two changes cannot mix.
        settings.write(&self.root)?;
        *held = settings;
        drop(held);
        self.limits.set(plan);
        Ok(self.limits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name() {
        let set = LimitSettings {
            upload_bytes_per_sec: NonZeroU64::new(7),
            download_bytes_per_sec: NonZeroU64::new(8),
            timetable: "Mon unlimited".into(),
            ..LimitSettings::default()
        };
        let changed = set.changed(&LimitChange {
            download_bytes_per_sec: Some(0),
            requests_per_sec: Some(9),
            ..LimitChange::default()
        });
        let expected = LimitSettings {
            download_bytes_per_sec: None,
            requests_per_sec: NonZeroU64::new(9),
            ..set.clone()
        };
        assert_eq!(changed, expected);
        let lifted = LimitChange {
            timetable: Some(" ".into()),
            ..LimitChange::default()
        };
        assert_eq!(set.changed(&lifted).timetable, "");
    }

    #[test]
    fn a_timetable_that_is_not_understood_is_refused_and_a_damaged_one_keeps_nobody_out() {
        let limits = LimitSettings {
            upload_bytes_per_sec: NonZeroU64::new(7),
            timetable: "Mon-Fry up=1".into(),
            ..LimitSettings::default()
        };
        assert!(limits.plan().unwrap_err().to_string().contains("Mon-Fry"));
        let settings = Settings {
            limits,
            ..Settings::default()
        };
        assert_eq!(handle(&settings).in_force().upload, NonZeroU64::new(7));
    }
}
