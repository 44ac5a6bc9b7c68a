//! `tidefs fleet`

use std::fmt::Write as _;

use serde_json::json;
use vfs::Spec;

use crate::cli::args::Fleet;
use crate::cli::output::{clean, columns, count, size, span};
use crate::cli::{Context, Outcome};
use crate::daemon::{Failure, FailureKind, Progress};
use crate::maintain::fleet::{FleetOptions, Member, fleet};

pub(super) fn run(context: &mut Context, words: &Fleet) -> Outcome {
    let spec =
        Spec::parse(&words.spec).map_err(|error| Failure::usage(Failure::from(error).text))?;
    let max_age_secs = words.max_age.as_deref().map(duration).transpose()?;
    let options = FleetOptions {
        max_age_secs,
        size: words.size,
        now: context.clock.now().secs,
    };
    let members = fleet(&spec, options, &mut |done, all| {
        context.report(&Progress {
            step: format!("looked at {done} of {}", count(all as u64, "volume")),
            done_bytes: 0,
            total_bytes: None,
            note: None,
            files: None,
        });
    })?;
    context.reporter.clear();
    let document =
        json!({ "spec": spec.to_string(), "max_age_secs": max_age_secs, "volumes": members });
    context
        .out
        .result(&document, &text(&spec, &members, words.size))?;
    let is_wrong =
        |member: &Member| member.is_stale || (!member.is_unreachable && !member.trouble.is_empty());
    if members.iter().any(is_wrong) {
        Err(Failure::told(FailureKind::Problems))
    } else if members.iter().any(|member| member.is_unreachable) {
        Err(Failure::told(FailureKind::Unreachable))
    } else {
        Ok(())
    }
}

fn text(spec: &Spec, members: &[Member], with_size: bool) -> String {
    if members.is_empty() {
        return format!("no volumes are at {}", clean(&spec.to_string()));
    }
    let mut head = vec![
        "OWNER",
        "VOLUME",
        "RECOVERY POINT",
        "EPOCH",
        "LAST CHECK",
        "STATE",
        "PLACE",
    ];
    if with_size {
        head.insert(4, "SIZE");
    }
    let mut rows = vec![head.iter().map(ToString::to_string).collect::<Vec<_>>()];
    for member in members {
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
        let mut row = vec![
            or_unknown(member.owner.clone()),
            or_unknown(
                member
                    .volume
                    .as_ref()
                    .map(|uuid| uuid.chars().take(8).collect()),
            ),
            or_unknown(
                member
                    .recovery_point_secs
                    .map(|secs| format!("{} ago", span(secs))),
            ),
            or_unknown(member.epoch.map(|epoch| epoch.to_string())),
            or_unknown(member.last_check.map(crate::cli::output::moment)),
            state(member).to_owned(),
            member.place.clone(),
        ];
        if with_size {
            let packs = member.packs.zip(member.bytes);
            row.insert(
                4,
                or_unknown(
                    packs.map(|(packs, bytes)| {
                        format!("{} in {}", size(bytes), count(packs, "pack"))
                    }),
                ),
            );
        }
        rows.push(row);
    }
    let mut text = columns(&rows);
    for member in members {
        for trouble in &member.trouble {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}: {}", clean(&member.place), clean(trouble));
        }
    }
    text
}

fn state(member: &Member) -> &'static str {
    if member.is_unreachable {
        "UNREACHABLE"
    } else if !member.trouble.is_empty() {
        "TROUBLE"
    } else if member.is_stale {
        "STALE"
    } else {
        "ok"
    }
}

/// `90m`, `26h`, `7d`, `3600`.
pub(super) fn duration(text: &str) -> Result<u64, Failure> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..) {
        Some("" | "s") => Some(1),
        Some("m" | "min") => Some(60),
        Some("h") => Some(3600),
        Some("d") => Some(86_400),
        Some("w") => Some(7 * 86_400),
        _ => None,
    };
    let secs = digits.trim_end().parse::<u64>().ok().zip(unit);
    secs.and_then(|(number, unit)| number.checked_mul(unit))
        .ok_or_else(|| {
            Failure::usage(format!(
                "'{}' is no duration: write 90m, 26h or 7d",
                clean(text)
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_short() {
        let read = |text| duration(text).ok();
        assert_eq!(
            ["90", "90s", "90m", "26h", "7d", "2w"].map(read),
            [90, 90, 5400, 93_600, 604_800, 1_209_600].map(Some)
        );
        for text in ["", "h", "-1h", "1.5h", "1y", "99999999999999999999d"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
