//! How much of the line a volume may take, and when: rates and timetables as people write them. Text to values, and the
//! time of day to the limits that hold then; no clock of its own.
//!
//! ```text
//! UTC+1 Mon-Fri 08:00-18:00 up=10M down=20M; Sat,Sun unlimited; else up=50M
//! ```
//!
//! The first rule that fits the moment counts. A rule names days, hours, both or neither, then what holds: `unlimited`,
//! or any of `up=`, `down=` and `requests=`; what it does not name stays as it is set without a timetable, and so does
//! everything when no rule fits. Hours that run backwards go past midnight and belong to the day they begin on. Times are
//! UTC, or at the offset that the text begins with: the daylight saving time of some country is nobody's business here.

use std::fmt;
use std::num::NonZeroU64;
use std::time::{SystemTime, UNIX_EPOCH};

/// What may be done in a second; `None`: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Bytes put.
    pub upload: Option<NonZeroU64>,
    /// Bytes got.
    pub download: Option<NonZeroU64>,
    /// Operations of any kind.
    pub requests: Option<NonZeroU64>,
}

/// Limits, and when others hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LimitPlan {
    /// Without a timetable, or where it says nothing.
    pub base: Limits,
    /// What holds when.
    pub timetable: Timetable,
}

impl LimitPlan {
    /// What holds at this moment.
    pub fn in_force(&self, now: SystemTime) -> Limits {
        self.timetable.in_force(now, self.base)
    }
}

/// Rules, each for some hours of some days. Prints as it was written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Timetable {
    text: String,
    offset_min: i32,
    rules: Vec<Rule>,
}

const DAY_MIN: u32 = 24 * 60;
/// Monday first.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const EVERY_DAY: u8 = 0x7f;
/// The first of January 1970 was a Thursday.
const EPOCH_WEEKDAY: i64 = 3;
/// More is no timetable that a person could check.
const RULES_MAX: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rule {
    /// A bit for each day, Monday the lowest.
    days: u8,
    /// Minutes of the day; the end is not included.
    from_min: u32,
    until_min: u32,
    change: Change,
}

/// What a rule puts in place of the base; `None`: nothing, `Some(None)`: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(
    clippy::option_option,
    reason = "to say nothing and to lift a limit are different"
)]
struct Change {
    upload: Option<Option<NonZeroU64>>,
    download: Option<Option<NonZeroU64>>,
    requests: Option<Option<NonZeroU64>>,
}

impl Timetable {
    /// Reads a timetable. The empty text is the one without rules. `Err` says what is not understood.
    pub fn parse(text: &str) -> Result<Timetable, String> {
        let text = text.trim();
        let (offset_min, rest) = take_zone(text)?;
        let mut rules = Vec::new();
        let mut is_over = false;
        for part in rest.split([';', '\n']).map(str::trim) {
            if part.is_empty() {
                continue;
            }
            if is_over {
                return Err(format!(
                    "'{part}' stands behind 'else', which holds for all the rest"
                ));
            }
            let words: Vec<&str> = part.split_whitespace().collect();
            is_over = words
                .first()
                .is_some_and(|word| word.eq_ignore_ascii_case("else"));
            rules.push(parse_rule(
                part,
                words.get(usize::from(is_over)..).unwrap_or_default(),
                is_over,
            )?);
        }
        if rules.len() > RULES_MAX {
            return Err(format!("it has more than {RULES_MAX} rules"));
        }
        if rules.is_empty() && !rest.trim().is_empty() {
            return Err("it has no rule".to_owned());
        }
        Ok(Timetable {
            text: text.to_owned(),
            offset_min,
            rules,
        })
    }

    /// Whether it has no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What holds at `now` for somebody who has `base` otherwise.
    pub fn in_force(&self, now: SystemTime, base: Limits) -> Limits {
        let (day, minute) = self.moment(now);
        let rule = self.rules.iter().find(|rule| rule.fits(day, minute));
        let Some(Rule { change, .. }) = rule else {
            return base;
        };
        Limits {
            upload: change.upload.unwrap_or(base.upload),
            download: change.download.unwrap_or(base.download),
            requests: change.requests.unwrap_or(base.requests),
        }
    }

    /// Day of the week and minute of the day, where the timetable is at home.
    fn moment(&self, now: SystemTime) -> (u32, u32) {
        let secs = match now.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX / 2),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX / 2),
        };
        let minutes = secs.div_euclid(60) + i64::from(self.offset_min);
        let day = (minutes.div_euclid(i64::from(DAY_MIN)) + EPOCH_WEEKDAY).rem_euclid(7);
        let minute = minutes.rem_euclid(i64::from(DAY_MIN));
        (
            u32::try_from(day).unwrap_or(0),
            u32::try_from(minute).unwrap_or(0),
        )
    }
}

impl fmt::Display for Timetable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Rule {
    fn fits(&self, day: u32, minute: u32) -> bool {
        let has = |day: u32| self.days & (1 << (day % 7)) != 0;
        if self.from_min < self.until_min {
            has(day) && (self.from_min..self.until_min).contains(&minute)
        } else {
            (has(day) && minute >= self.from_min) || (has(day + 6) && minute < self.until_min)
        }
    }
}

/// `UTC`, `UTC+1`, `UTC-03:30` in front, if it is there.
fn take_zone(text: &str) -> Result<(i32, &str), String> {
    let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let Some(zone) = first
        .get(..3)
        .filter(|zone| zone.eq_ignore_ascii_case("utc"))
        .and_then(|_| first.get(3..))
    else {
        return Ok((0, text));
    };
    let refuse = || format!("'{first}' is no offset: write UTC, UTC+1 or UTC-03:30");
    let sign = match zone.chars().next() {
        None => return Ok((0, rest)),
        Some('+') => 1,
        Some('-') => -1,
        Some(_) => return Err(refuse()),
    };
    let (hours, minutes) = zone
        .get(1..)
        .unwrap_or("")
        .split_once(':')
        .unwrap_or((zone.get(1..).unwrap_or(""), "0"));
    let (hours, minutes) = (small(hours, 14), small(minutes, 59));
    match (hours, minutes) {
        (Some(hours), Some(minutes)) => {
            let offset = i32::try_from(hours * 60 + minutes).unwrap_or(0);
            Ok((sign * offset, rest))
        }
        _ => Err(refuse()),
    }
}

fn parse_rule(part: &str, words: &[&str], is_else: bool) -> Result<Rule, String> {
    let mut rule = Rule {
        days: EVERY_DAY,
        from_min: 0,
        until_min: DAY_MIN,
        change: Change::default(),
    };
    let mut words = words.iter().copied().peekable();
    if !is_else {
        if let Some(days) = words.peek().copied().and_then(parse_days) {
            rule.days = days;
            words.next();
        }
        if let Some(hours) =
            words.next_if(|word| word.starts_with(|first: char| first.is_ascii_digit()))
        {
            (rule.from_min, rule.until_min) = parse_hours(hours).ok_or_else(|| {
                format!("'{hours}' are no hours: write 08:00-18:00, or 22:00-06:00 past midnight")
            })?;
        }
    }
    for word in words {
        let unlimited = word.eq_ignore_ascii_case("unlimited");
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name.to_ascii_lowercase().as_str() {
            _ if unlimited => {
                rule.change = Change {
                    upload: Some(None),
                    download: Some(None),
                    requests: Some(None),
                }
            }
            "up" | "upload" => rule.change.upload = Some(parse_rate(value)?),
            "down" | "download" => rule.change.download = Some(parse_rate(value)?),
            "requests" => rule.change.requests = Some(parse_count(value)?),
            _ => {
                return Err(format!(
                    "'{word}' in '{part}' is neither days (Mon-Fri, Sat,Sun), hours (08:00-18:00) nor a limit \
                     (up=10M, down=10M, requests=50, unlimited)"
                ));
            }
        }
    }
    if rule.change == Change::default() {
        return Err(format!(
            "'{part}' sets no limit: add up=10M, down=10M, requests=50 or unlimited"
        ));
    }
    Ok(rule)
}

/// `Mon-Fri`, `Sat,Sun`, `daily`.
fn parse_days(word: &str) -> Option<u8> {
    if word.eq_ignore_ascii_case("daily") {
        return Some(EVERY_DAY);
    }
    let day = |name: &str| {
        let name = name.to_ascii_lowercase();
        DAYS.iter().position(|day| *day == name)
    };
    let mut days = 0;
    for piece in word.split(',') {
        let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
        let (mut at, last) = (day(first)?, day(last)?);
        // From Saturday to Monday is three days.
        loop {
            days |= 1 << at;
            if at == last {
                break;
            }
            at = (at + 1) % DAYS.len();
        }
    }
    Some(days)
}

/// `08:00-18:00` in minutes. The same minute twice is nothing anybody means.
fn parse_hours(word: &str) -> Option<(u32, u32)> {
    let minute = |text: &str| {
        let (hours, minutes) = text.split_once(':')?;
        let minute = small(hours, 24)? * 60 + small(minutes, 59)?;
        (minute <= DAY_MIN).then_some(minute)
    };
    let (from, until) = word.split_once('-')?;
    let (from, until) = (minute(from)?, minute(until)?);
    (from != until && from < DAY_MIN).then_some((from, until))
}

/// A number of at most two digits.
fn small(text: &str, max: u32) -> Option<u32> {
    let is_number = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = is_number.then(|| text.parse().ok()).flatten()?;
    (number <= max).then_some(number)
}

/// Bytes in a second: `10M`, `1.5M`, `500K`, `80Mbit`, `unlimited`. `K`, `M` and `G` are powers of 1024, and of 1000 for
/// bits, as lines are sold by them.
pub fn parse_rate(text: &str) -> Result<Option<NonZeroU64>, String> {
    let refuse =
        || format!("'{text}' is no rate: write 10M (MiB a second), 500K, 80Mbit or unlimited");
    if is_unlimited(text) {
        return Ok(None);
    }
    let short = text.strip_suffix("/s").unwrap_or(text);
    let end = short
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(short.len());
    let (number, unit) = short.split_at(end);
    let (factor, divisor): (u64, u64) = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => (1, 1),
        "k" | "kb" | "kib" => (1 << 10, 1),
        "m" | "mb" | "mib" => (1 << 20, 1),
        "g" | "gb" | "gib" => (1 << 30, 1),
        "kbit" => (1000, 8),
        "mbit" => (1_000_000, 8),
        "gbit" => (1_000_000_000, 8),
        _ => return Err(refuse()),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if part.len() > 3 || whole.is_empty() || number.ends_with('.') || part.contains('.') {
        return Err(refuse());
    }
    // In thousandths, so that no rounding of floating numbers gets in.
    let thousandths = format!("{whole}{part:0<3}")
        .parse::<u64>()
        .map_err(|_| refuse())?;
    let rate = thousandths
        .checked_mul(factor)
        .map(|rate| rate / 1000 / divisor)
        .ok_or_else(refuse)?;
    NonZeroU64::new(rate)
        .map(Some)
        .ok_or_else(|| format!("'{text}' would let nothing through: write a rate, or unlimited"))
}

/// Operations in a second: `50`, `unlimited`.
pub fn parse_count(text: &str) -> Result<Option<NonZeroU64>, String> {
    if is_unlimited(text) {
        return Ok(None);
    }
    let refuse = |_| format!("'{text}' is no number of requests a second: write 50, or unlimited");
    text.parse::<NonZeroU64>().map(Some).map_err(refuse)
}

fn is_unlimited(text: &str) -> bool {
    ["unlimited", "off", "none"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BASE: Limits = Limits {
        upload: NonZeroU64::new(1),
        download: NonZeroU64::new(2),
        requests: NonZeroU64::new(3),
    };
    /// Monday, the 5th of January 1970, 00:00 UTC.
    const MONDAY: u64 = 4 * 86_400;

    /// What holds on this day (0: Monday) at this time, UTC, as numbers; 0 for no limit.
    fn at(table: &str, day: u64, hour: u64, minute: u64) -> [u64; 3] {
        let table = Timetable::parse(table).unwrap();
        let now =
            UNIX_EPOCH + Duration::from_secs(MONDAY + day * 86_400 + hour * 3600 + minute * 60);
        let limits = table.in_force(now, BASE);
        [limits.upload, limits.download, limits.requests]
            .map(|limit| limit.map_or(0, NonZeroU64::get))
    }

    #[test]
    fn the_first_rule_that_fits_counts_and_what_it_does_not_name_stays() {
        let table = "Mon-Fri 08:00-18:00 up=10K; Sat,Sun unlimited; daily requests=7; else up=5";
        assert_eq!(at(table, 0, 8, 0), [10_240, 2, 3]);
        assert_eq!(at(table, 4, 17, 59), [10_240, 2, 3]);
        assert_eq!(at(table, 4, 18, 0), [1, 2, 7]);
        assert_eq!(at(table, 0, 7, 59), [1, 2, 7]);
        assert_eq!(at(table, 5, 12, 0), [0, 0, 0]);
        assert_eq!(at("Mon up=9", 1, 0, 0), [1, 2, 3], "no rule fits");
        assert_eq!(at("Mon up=9; else unlimited", 1, 0, 0), [0, 0, 0]);
        assert_eq!(at("", 0, 0, 0), [1, 2, 3]);
        assert_eq!(at("Sat-Mon up=off requests=4", 6, 0, 0), [0, 2, 4]);
    }

    #[test]
    fn hours_past_midnight_belong_to_the_day_they_begin_on() {
        let table = "Fri 22:00-06:00 up=9";
        assert_eq!(at(table, 4, 23, 0)[0], 9);
        assert_eq!(at(table, 5, 5, 59)[0], 9);
        assert_eq!(at(table, 5, 6, 0)[0], 1);
        assert_eq!(
            at(table, 4, 5, 0)[0],
            1,
            "the night to Friday is Thursday's"
        );
        assert_eq!(at("Sun 22:00-06:00 up=9", 0, 3, 0)[0], 9);
        assert_eq!(at("00:00-24:00 up=9", 3, 23, 59)[0], 9);
    }

    #[test]
    fn an_offset_moves_the_day_with_the_hour() {
        assert_eq!(at("UTC+2 Tue 00:00-02:00 up=9", 0, 22, 30)[0], 9);
        assert_eq!(at("utc-03:30 Sun 21:00-22:00 up=9", 0, 0, 45)[0], 9);
        assert_eq!(at("UTC Mon 01:00-02:00 up=9", 0, 1, 0)[0], 9);
    }

    #[test]
    fn a_table_prints_as_it_was_written() {
        let text = "UTC+1 Mon-Fri 08:00-18:00 up=10M; else unlimited";
        assert_eq!(Timetable::parse(text).unwrap().to_string(), text);
        assert!(Timetable::parse("  ").unwrap().is_empty());
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, part) in [
            ("Mon-Fry up=1M", "Mon-Fry"),
            ("Mon 8-18 up=1M", "8-18"),
            ("Mon 08:00-08:00 up=1", "08:00-08:00"),
            ("Mon 25:00-26:00 up=1", "25:00"),
            ("Mon 24:00-06:00 up=1", "24:00"),
            ("Mon", "sets no limit"),
            ("up=fast", "fast"),
            ("up=0", "nothing through"),
            ("requests=1.5", "1.5"),
            ("else up=1M; Mon up=2M", "behind 'else'"),
            ("UTC+25 up=1", "UTC+25"),
            ("UTCx up=1", "UTCx"),
            (";;;", "no rule"),
        ] {
            let error = Timetable::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Timetable::parse(&"up=1;".repeat(101)).is_err());
    }

    #[test]
    fn rates_are_read_as_people_write_them() {
        for (text, rate) in [
            ("10M", 10 << 20),
            ("1.5M", 3 << 19),
            ("500k", 500 << 10),
            ("2GiB/s", 2 << 30),
            ("80Mbit", 10_000_000),
            ("100", 100),
            ("0.5K", 512),
        ] {
            assert_eq!(parse_rate(text).unwrap().unwrap().get(), rate, "{text}");
        }
        assert_eq!(parse_rate("Unlimited"), Ok(None));
        for text in [
            "",
            "M",
            ".5M",
            "1.2345M",
            "1..2M",
            "-1M",
            "10X",
            "99999999999999999999G",
            "9999999999999999G",
        ] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        assert_eq!(parse_count("50").unwrap().unwrap().get(), 50);
    }
}
