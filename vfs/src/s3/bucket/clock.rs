//! Times as servers write them, and how far two clocks are apart.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};

/// This machine's time. Signatures carry it, so it cannot be handed in from above.
pub(super) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// The time in a `Date` or `Last-Modified` header.
pub(super) fn http_date(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc2822).ok()
}

/// The time in a document.
pub(super) fn document_date(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// In whole seconds: a header has no fractions and a document has, and an object has one time.
pub(super) fn system_time(date: OffsetDateTime) -> Option<SystemTime> {
    let secs = u64::try_from(date.unix_timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(secs))
}

/// By how many seconds the clock that wrote the `Date` header is ahead of `now`.
pub(super) fn skew_secs(date: &str, now: OffsetDateTime) -> Option<i64> {
    Some((http_date(date)? - now).whole_seconds())
}

/// How long a `Retry-After` asks to wait: seconds, or a date.
pub(super) fn retry_after(text: &str, now: OffsetDateTime) -> Option<Duration> {
    if let Ok(secs) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(secs));
    }
    let pause = http_date(text.trim())? - now;
    Some(Duration::try_from(pause).unwrap_or_default())
}

/// "3 min behind the server's" for a server that is 180 seconds ahead.
pub(super) fn in_words(skew_secs: i64) -> String {
    let secs = skew_secs.unsigned_abs();
    let amount = match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => format!("{} h", secs / 3600),
        _ => format!("{} days", secs / 86_400),
    };
    let side = if skew_secs > 0 { "behind" } else { "ahead of" };
    format!("{amount} {side} the server's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_headers_and_documents_are_the_same_second() {
        let header = http_date("Fri, 02 Jan 2026 03:04:05 GMT").unwrap();
        let document = document_date("2026-01-02T03:04:05.678Z").unwrap();
        assert_eq!(system_time(header), system_time(document));
        assert_eq!(http_date("yesterday"), None);
    }

    #[test]
    fn a_pause_is_given_in_seconds_or_as_a_date() {
        let now = http_date("Fri, 02 Jan 2026 03:04:05 GMT").unwrap();
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        let later = "Fri, 02 Jan 2026 03:04:35 GMT";
        assert_eq!(retry_after(later, now), Some(Duration::from_secs(30)));
        let earlier = "Fri, 02 Jan 2026 03:00:00 GMT";
        assert_eq!(retry_after(earlier, now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }

    #[test]
    fn a_difference_has_a_side() {
        assert_eq!(in_words(180), "3 min behind the server's");
        assert_eq!(in_words(-7200), "2 h ahead of the server's");
    }
}
