//! Sizes and durations as people write them.

/// `200G`, `1.5 TiB`, `4096`: powers of 1024 in every case.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [&str; 5] = ["k", "m", "g", "t", "p"];
    let (number, unit) = split(text);
    let unit = unit.to_ascii_lowercase();
    let letter = unit
        .strip_suffix("ib")
        .or_else(|| unit.strip_suffix('b'))
        .unwrap_or(&unit);
    let power = match letter {
        "" => 0,
        letter => UNITS
            .iter()
            .position(|unit| *unit == letter)
            .map_or(u32::MAX, |at| u32::try_from(at).unwrap_or(0) + 1),
    };
    1_u64
        .checked_shl(10_u32.saturating_mul(power))
        .and_then(|unit| times(number, unit))
        .ok_or_else(|| "a size is a number with K, M, G or T: 200G".into())
}

/// A size, or `auto`, which is 0.
pub(super) fn budget(text: &str) -> Result<u64, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(0);
    }
    size(text).map_err(|reason| format!("{reason}, or auto"))
}

/// `24h`, `90 s`, `3d`, in seconds; without a unit, seconds.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let secs = match unit.to_ascii_lowercase().as_str() {
        "" | "s" | "sec" | "second" | "seconds" => Some(1),
        "m" | "min" | "minute" | "minutes" => Some(60),
        "h" | "hour" | "hours" => Some(3600),
        "d" | "day" | "days" => Some(86_400),
        "w" | "week" | "weeks" => Some(7 * 86_400),
        _ => None,
    };
    secs.and_then(|unit| times(number, unit))
        .ok_or_else(|| "a duration is a number with s, m, h or d: 24h".into())
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let at = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    (number, unit.trim())
}

/// A number with at most three digits behind the point, times the unit.
fn times(number: &str, unit: u64) -> Option<u64> {
    let (whole, rest) = number.split_once('.').unwrap_or((number, "0"));
    if rest.is_empty() || rest.len() > 3 {
        return None;
    }
    let parts = u128::from(rest.parse::<u32>().ok()?) * u128::from(unit)
        / 10_u128.pow(u32::try_from(rest.len()).ok()?);
    let whole = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit);
    u64::try_from(whole + parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_read_as_people_write_them() {
        let sizes =
            ["0", "4096", "1K", "1.5 GiB", "200g", "2TB", "16P"].map(|text| size(text).unwrap());
        let expected = [0, 4096, 1024, 3 << 29, 200 << 30, 2 << 40, 16 << 50];
        assert_eq!(sizes, expected);
        let times = ["30", "90 s", "5m", "24h", "1.5h", "7d"].map(|text| duration(text).unwrap());
        assert_eq!(times, [30, 90, 300, 86_400, 5400, 604_800]);
        assert_eq!(budget("Auto"), Ok(0));
        for nonsense in [
            "",
            "G",
            "1X",
            "-1",
            "1.",
            "1.2.3",
            "99999999999T",
            "1 G G",
            "99999P",
        ] {
            assert!(size(nonsense).is_err(), "{nonsense}");
            assert!(budget(nonsense).is_err(), "{nonsense}");
        }
        assert!(duration("soon").is_err() && duration("3 fortnights").is_err());
    }
}
