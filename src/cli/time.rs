//! Moments as people write them, and the epoch they mean.
//!
//! Times without an offset are UTC. A time to the second means the end of that second, so that a time copied
//! from a list of epochs finds the epoch it was copied from.

use crate::clock::civil;
use crate::daemon::Failure;
use crate::types::{Epoch, Timestamp};
use crate::volume::EpochEntry;

const DAY_SECS: i64 = 86_400;
const NANOS_LAST: u32 = 999_999_999;

/// What was written, if it is a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Epoch(Epoch),
    At(Timestamp),
}

/// Whether `text` means a time or an epoch, and so cannot be a name.
pub(super) fn is_time(text: &str, now: Timestamp) -> bool {
    parse(text, now).is_some()
}

/// The epoch that `text` means among `epochs`: the snapshot of that name, the epoch of that number, or the
/// newest one that was closed by that time.
pub(super) fn resolve(
    text: &str,
    epochs: &[EpochEntry],
    now: Timestamp,
) -> Result<EpochEntry, Failure> {
    let newest_first = || epochs.iter().rev();
    if let Some(named) = newest_first().find(|entry| entry.name.as_deref() == Some(text)) {
        return Ok(named.clone());
    }
    let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    let Some(first) = epochs.iter().min_by_key(|entry| entry.epoch) else {
        return Err(Failure::failed(
            "no epoch is closed yet, so there is no moment to show: tidefs snapshot closes one",
        ));
    };
    match parse(text, now) {
        None => Err(Failure::usage(format!(
            "'{shown}' is neither a snapshot's name (tidefs snapshot --list shows them) nor a time: write \
             '2026-01-31 14:00', 'yesterday 18:00', '3 hours ago', or an epoch's number"
        ))),
        Some(Moment::Epoch(number)) => newest_first()
            .find(|entry| entry.epoch == number)
            .cloned()
            .ok_or_else(|| {
                Failure::failed(format!(
                    "there is no epoch {number}: tidefs snapshot --list shows those that there are"
                ))
            }),
        Some(Moment::At(time)) => epochs
            .iter()
            .filter(|entry| (entry.time, entry.nanos) <= (time.secs, time.nanos))
            .max_by_key(|entry| entry.epoch)
            .cloned()
            .ok_or_else(|| {
                Failure::failed(format!(
                    "nothing was closed by {}: the first epoch is {}, closed at {}",
                    civil(time),
                    first.epoch,
                    civil(Timestamp {
                        secs: first.time,
                        nanos: 0
                    })
                ))
            }),
    }
}

/// The point in time that `text` means; a snapshot or an epoch means when it was closed.
pub(super) fn instant(
    text: &str,
    epochs: &[EpochEntry],
    now: Timestamp,
) -> Result<Timestamp, Failure> {
    let is_name = epochs
        .iter()
        .any(|entry| entry.name.as_deref() == Some(text));
    if !is_name && let Some(Moment::At(time)) = parse(text, now) {
        return Ok(time);
    }
    let entry = resolve(text, epochs, now)?;
    Ok(Timestamp {
        secs: entry.time,
        nanos: entry.nanos,
    })
}

/// The newest epoch that was closed by the moment that `text` means, and the one in which what was done at that moment
/// is: the next one, unless `text` names an epoch. Before the first one that is epoch 0.
pub(super) fn around(
    text: &str,
    epochs: &[EpochEntry],
    now: Timestamp,
) -> Result<(Epoch, Epoch), Failure> {
    let is_name = epochs
        .iter()
        .any(|entry| entry.name.as_deref() == Some(text));
    let Some(Moment::At(time)) = parse(text, now).filter(|_| !is_name) else {
        let epoch = resolve(text, epochs, now)?.epoch;
        return Ok((epoch, epoch));
    };
    let is_closed = |entry: &&EpochEntry| (entry.time, entry.nanos) <= (time.secs, time.nanos);
    let closed = epochs
        .iter()
        .filter(is_closed)
        .map(|entry| entry.epoch)
        .max();
    let closed = closed.unwrap_or(Epoch(0));
    Ok((closed, closed.next()))
}

fn parse(text: &str, now: Timestamp) -> Option<Moment> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("now") {
        return Some(Moment::At(now));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(|number| Moment::Epoch(Epoch(number)));
    }
    let lower = text.to_ascii_lowercase();
    let relative = ago(&lower, now).or_else(|| yesterday(&lower, now));
    if let Some(time) = relative {
        return Some(Moment::At(time));
    }
    // As a moment is called in /.snapshots: its time, a dot, its number.
    if let Some((time, number)) = text.rsplit_once("Z.")
        && date_time(time).is_some()
    {
        return number
            .parse()
            .ok()
            .map(|number| Moment::Epoch(Epoch(number)));
    }
    date_time(text).map(Moment::At)
}

/// `3 hours ago`
fn ago(text: &str, now: Timestamp) -> Option<Timestamp> {
    let mut words = text.split_whitespace();
    let (number, unit, last) = (words.next()?, words.next()?, words.next()?);
    if last != "ago" || words.next().is_some() {
        return None;
    }
    let number: i64 = match number {
        "a" | "an" => 1,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    let unit_secs = match unit.strip_suffix('s').unwrap_or(unit) {
        "second" => 1,
        "minute" => 60,
        "hour" => 3600,
        "day" => DAY_SECS,
        "week" => 7 * DAY_SECS,
        _ => return None,
    };
    let secs = now.secs.checked_sub(number.checked_mul(unit_secs)?)?;
    Some(Timestamp { secs, ..now })
}

/// `yesterday`: a day ago; `yesterday 18:00`: that time of the day before this one, in UTC.
fn yesterday(text: &str, now: Timestamp) -> Option<Timestamp> {
    let rest = text.strip_prefix("yesterday")?;
    let secs = now.secs.checked_sub(DAY_SECS)?;
    if rest.is_empty() {
        return Some(Timestamp { secs, ..now });
    }
    let clock = clock_time(rest.strip_prefix(' ')?.trim())?;
    Some(Timestamp {
        secs: secs.div_euclid(DAY_SECS) * DAY_SECS + clock.secs,
        nanos: clock.nanos,
    })
}

/// RFC 3339, with a space or a `T`, with or without an offset; or the date alone, which means its beginning.
fn date_time(text: &str) -> Option<Timestamp> {
    let (date, rest) = text.split_at_checked(10)?;
    let days = date_days(date)?;
    if rest.is_empty() {
        return Some(Timestamp {
            secs: days * DAY_SECS,
            nanos: 0,
        });
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, offset_secs) = split_offset(rest)?;
    let clock = clock_time(clock)?;
    Some(Timestamp {
        secs: days * DAY_SECS + clock.secs - offset_secs,
        nanos: clock.nanos,
    })
}

/// Cuts `Z`, `+01:00` or `-0530` off; the offset in seconds east of UTC.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        return Some((clock.trim_end(), 0));
    }
    let Some(at) = text.rfind(['+', '-']) else {
        return Some((text, 0));
    };
    let (clock, offset) = text.split_at_checked(at)?;
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = match offset.get(1..)? {
        digits if digits.len() == 5 => digits.split_once(':')?,
        digits if digits.len() == 4 => digits.split_at_checked(2)?,
        digits if digits.len() == 2 => (digits, "00"),
        _ => return None,
    };
    let (hours, minutes) = (two(hours, 23)?, two(minutes, 59)?);
    Some((clock.trim_end(), sign * (hours * 3600 + minutes * 60)))
}

/// `HH:MM[:SS[.fraction]]` as seconds of the day.
fn clock_time(text: &str) -> Option<Timestamp> {
    let (text, nanos) = match text.split_once('.') {
        Some((text, fraction)) => (text, Some(fraction_nanos(fraction)?)),
        None => (text, None),
    };
    let mut parts = text.split(':');
    let hours = two(parts.next()?, 23)?;
    let minutes = two(parts.next()?, 59)?;
    let seconds = parts.next().map(|part| two(part, 60));
    if parts.next().is_some() || (nanos.is_some() && seconds.is_none()) {
        return None;
    }
    let (seconds, nanos) = match seconds {
        None => (0, 0),
        Some(seconds) => (seconds?, nanos.unwrap_or(NANOS_LAST)),
    };
    Some(Timestamp {
        secs: hours * 3600 + minutes * 60 + seconds,
        nanos,
    })
}

fn fraction_nanos(digits: &str) -> Option<u32> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nine: String = digits.chars().chain("000000000".chars()).take(9).collect();
    nine.parse().ok()
}

/// Two digits, at most `max`.
fn two(text: &str, max: i64) -> Option<i64> {
    let is_two = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_two && *number <= max)
}

/// `YYYY-MM-DD` as days since 1970. The calendar is Howard Hinnant's `days_from_civil`.
fn date_days(text: &str) -> Option<i64> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if year.len() != 4 || !year.bytes().all(|byte| byte.is_ascii_digit()) || parts.next().is_some()
    {
        return None;
    }
    let year: i64 = year.parse().ok()?;
    let (month, day) = (two(month, 12)?, two(day, 31)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_in_month = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if month == 0 || day == 0 || day > days_in_month {
        return None;
    }
    // The year begins in March, so that the leap day is its last.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::FailureKind;

    /// 2026-03-01T12:30:15.5Z
    const NOW: Timestamp = Timestamp {
        secs: 1_772_368_215,
        nanos: 500_000_000,
    };

    fn secs(text: &str) -> Option<i64> {
        match parse(text, NOW)? {
            Moment::At(time) => Some(time.secs),
            Moment::Epoch(_) => None,
        }
    }

    fn entry(epoch: u64, time: i64, name: Option<&str>) -> EpochEntry {
        EpochEntry {
            epoch: Epoch(epoch),
            time,
            nanos: 300,
            name: name.map(str::to_owned),
        }
    }

    #[test]
    fn the_calendar_goes_there_and_back_over_every_day_of_eight_centuries() {
        for day in -135_140..157_054 {
            let text = civil(Timestamp {
                secs: day * DAY_SECS,
                nanos: 0,
            });
            assert_eq!(date_days(&text[..10]), Some(day), "{text}");
        }
        for wrong in [
            "2025-02-29",
            "2100-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-01-00",
            "2026-04-31",
        ] {
            assert_eq!(date_days(wrong), None, "{wrong}");
        }
        assert!(date_days("2000-02-29").is_some());
    }

    #[test]
    fn times_are_read_in_every_form_that_is_promised() {
        let noon = 1_772_368_200; // 2026-03-01 12:30
        for (text, expected) in [
            ("2026-03-01T12:30:00Z", noon),
            ("2026-03-01t12:30:00z", noon),
            ("2026-03-01 12:30", noon),
            ("2026-03-01 12:30:00", noon),
            ("2026-03-01T12:30:00.25Z", noon),
            ("2026-03-01T13:30:00+01:00", noon),
            ("2026-03-01T07:00:00-0530", noon),
            ("2026-03-01 13:30 +01:00", noon),
            ("2026-03-01", noon - 45_000),
            ("yesterday", NOW.secs - DAY_SECS),
            ("yesterday 12:30", noon - DAY_SECS),
            ("Yesterday 12:30", noon - DAY_SECS),
            ("now", NOW.secs),
            ("90 seconds ago", NOW.secs - 90),
            ("1 minute ago", NOW.secs - 60),
            ("an hour ago", NOW.secs - 3600),
            ("3 hours ago", NOW.secs - 10_800),
            ("2 days ago", NOW.secs - 2 * DAY_SECS),
            ("2 weeks ago", NOW.secs - 14 * DAY_SECS),
        ] {
            assert_eq!(secs(text), Some(expected), "{text}");
        }
        assert_eq!(parse("17", NOW), Some(Moment::Epoch(Epoch(17))));
        let called = "2026-03-01T12:30:00Z.17";
        assert_eq!(parse(called, NOW), Some(Moment::Epoch(Epoch(17))));
    }

    #[test]
    fn what_is_no_time_is_not_taken_for_one() {
        for text in [
            "",
            " ",
            "tomorrow",
            "yesterdays",
            "yesterday 25:00",
            "3 hours",
            "hours ago",
            "-3 hours ago",
            "3 fortnights ago",
            "3 hours ago ago",
            "2026-3-1",
            "2026-03-01T",
            "2026-03-01T12",
            "2026-03-01 1:30",
            "2026-03-01T12:30:00.Z",
            "2026-03-01T12:30.5Z",
            "2026-03-01T12:60Z",
            "2026-03-01X12:30",
            "2026-03-01T12:30:00+1:00",
            "2026-03-01T12:30:00+24:00",
            "99999999999999999999 days ago",
            "9223372036854775807 weeks ago",
            "99999999999999999999",
            "\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}",
            "+2026-03-01",
            "before the upgrade",
            "Z.17",
        ] {
            assert_eq!(parse(text, NOW), None, "{text}");
        }
    }

    #[test]
    fn a_time_means_the_newest_epoch_closed_by_then() {
        let epochs = [
            entry(3, 100, None),
            entry(4, 200, Some("four")),
            entry(7, 300, None),
        ];
        let at = |text: &str| resolve(text, &epochs, NOW).map(|entry| entry.epoch.0);
        assert_eq!(
            at("1970-01-01T00:03:20Z"),
            Ok(4),
            "the second it was closed in"
        );
        assert_eq!(at("1970-01-01T00:03:19Z"), Ok(3));
        assert_eq!(
            at("1970-01-01T00:03:20.0000001Z"),
            Ok(3),
            "before it, to the nanosecond"
        );
        assert_eq!(at("now"), Ok(7));
        assert_eq!(at("four"), Ok(4));
        assert_eq!(at("7"), Ok(7));
    }

    #[test]
    fn a_span_of_time_has_the_epochs_in_which_what_was_done_in_it_is() {
        let epochs = [
            entry(3, 100, None),
            entry(4, 200, Some("four")),
            entry(5, 300, None),
        ];
        let at = |text: &str| around(text, &epochs, NOW).map(|(a, b)| (a.0, b.0));
        assert_eq!(at("1970-01-01"), Ok((0, 1)));
        assert_eq!(at("1970-01-01T00:01:50Z"), Ok((3, 4)));
        assert_eq!(at("now"), Ok((5, 6)));
        assert_eq!(at("four"), Ok((4, 4)));
        assert_eq!(at("5"), Ok((5, 5)));
        assert!(at("7").is_err() && at("monday").is_err());
    }

    #[test]
    fn a_moment_that_there_is_not_says_what_there_is() {
        let epochs = [entry(3, 100, None), entry(4, 200, None)];
        let fail = |text: &str, epochs: &[EpochEntry]| resolve(text, epochs, NOW).unwrap_err();
        let early = fail("1970-01-01", &epochs);
        assert!(
            early.text.contains("the first epoch is 3") && early.text.contains("00:01:40Z"),
            "{early:?}"
        );
        assert!(fail("5", &epochs).text.contains("no epoch 5"));
        assert_eq!(fail("monday", &epochs).kind, FailureKind::Usage);
        assert!(fail("now", &[]).text.contains("no epoch is closed"));
    }
}
