//! Patterns for names, as a shell has them: `*`, `?`, `[a-z]`, `[!a-z]`, and `\` before one that means itself.
//!
//! Names are bytes. Where they are UTF-8 a `?` is a letter, else a byte. There is no recursion: a pattern from anybody
//! takes time proportional to its length times that of the name.

/// A pattern.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Glob(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    /// Anything, or nothing.
    Any,
    /// One letter.
    One,
    /// This letter.
    Letter(u32),
    /// One of these, or with `true` none of these.
    Class(bool, Vec<(u32, u32)>),
}

/// Letters as numbers, and bytes that are part of none as numbers above all letters.
fn letters(bytes: &[u8]) -> Vec<u32> {
    const BYTES_FROM: u32 = 0x11_0000;
    let mut out = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.extend(chunk.valid().chars().map(u32::from));
        out.extend(
            chunk
                .invalid()
                .iter()
                .map(|byte| BYTES_FROM + u32::from(*byte)),
        );
    }
    out
}

const fn code(letter: char) -> u32 {
    letter as u32
}

const STAR: u32 = code('*');
const QUESTION: u32 = code('?');
const BRACKET: u32 = code('[');
const BRACKET_END: u32 = code(']');
const BACKSLASH: u32 = code('\\');
const DASH: u32 = code('-');

impl Glob {
    /// Reads a pattern. A `[` that no `]` follows is a letter like others, as in a shell.
    pub fn new(pattern: &[u8]) -> Glob {
        let letters = letters(pattern);
        let mut rest = letters.as_slice();
        let mut parts = Vec::new();
        while let Some((&letter, after)) = rest.split_first() {
            rest = after;
            parts.push(match letter {
                STAR => Part::Any,
                QUESTION => Part::One,
                BRACKET => match class(after) {
                    Some((class, behind)) => {
                        rest = behind;
                        class
                    }
                    None => Part::Letter(letter),
                },
                BACKSLASH => match after.split_first() {
                    Some((&escaped, behind)) => {
                        rest = behind;
                        Part::Letter(escaped)
                    }
                    None => Part::Letter(letter),
                },
                other => Part::Letter(other),
            });
        }
        Glob(parts)
    }

    /// Whether the whole name fits.
    pub fn fits(&self, name: &[u8]) -> bool {
        let name = letters(name);
        let (mut at, mut part) = (0, 0);
        // Where to go on after a mismatch: behind the last star, which takes one letter more.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match (self.0.get(part), name.get(at)) {
                (Some(Part::Any), _) => {
                    part += 1;
                    retry = Some((at, part));
                    continue;
                }
                (Some(wanted), Some(letter)) if wanted.is(*letter) => {
                    at += 1;
                    part += 1;
                    continue;
                }
                (None, None) => return true,
                _ => {}
            }
            match retry {
                Some((from, behind)) if from < name.len() => {
                    at = from + 1;
                    part = behind;
                    retry = Some((at, part));
                }
                _ => return false,
            }
        }
    }
}

impl Part {
    fn is(&self, letter: u32) -> bool {
        match self {
            Part::Any => false,
            Part::One => true,
            Part::Letter(wanted) => *wanted == letter,
            Part::Class(is_not, ranges) => {
                let is_in = |(low, high): &(u32, u32)| (*low..=*high).contains(&letter);
                ranges.iter().any(is_in) != *is_not
            }
        }
    }
}

/// What stands behind a `[`, and what behind its `]`.
fn class(letters: &[u32]) -> Option<(Part, &[u32])> {
    let negated = |letter: &u32| [code('!'), code('^')].contains(letter);
    let is_not = letters.first().is_some_and(negated);
    let mut rest = letters.get(usize::from(is_not)..)?;
    let mut ranges = Vec::new();
    loop {
        let (&low, after) = rest.split_first()?;
        rest = after;
        // As the first one a `]` is a letter.
        if low == BRACKET_END && !ranges.is_empty() {
            return Some((Part::Class(is_not, ranges), rest));
        }
        match *rest {
            [DASH, high, ..] if high != BRACKET_END => {
                rest = rest.get(2..)?;
                ranges.push((low, high));
            }
            _ => ranges.push((low, low)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fits(pattern: &str, name: &str) -> bool {
        Glob::new(pattern.as_bytes()).fits(name.as_bytes())
    }

    #[test]
    fn patterns_mean_what_they_mean_in_a_shell() {
        for (pattern, name) in [
            ("*", ""),
            ("*", "anything"),
            ("*.txt", ".txt"),
            ("*.txt", "a.txt.txt"),
            ("a*b*c", "a-b-b-c"),
            ("?", "a"),
            ("?", "\u{e9}"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[^a-c]x", "dx"),
            ("[]a]", "]"),
            ("[a-]", "-"),
            ("[a", "[a"),
            (r"\*", "*"),
            (r"a\", r"a\"),
            ("[\u{e0}-\u{ea}]", "\u{e9}"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("", "a"),
            ("a", ""),
            ("*.txt", "a.txt~"),
            ("?", ""),
            ("?", "ab"),
            ("[a-c]", "d"),
            ("[!a-c]", "a"),
            (r"\*", "a"),
            ("A", "a"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        assert!(
            Glob::new(b"caf?").fits(b"caf\xe9"),
            "a byte that is no letter"
        );
        assert!(Glob::new(b"caf\xe9").fits(b"caf\xe9"));
        assert!(!Glob::new(b"caf\xe9").fits("caf\u{e9}".as_bytes()));
    }

    #[test]
    fn a_pattern_of_stars_ends_in_time() {
        let pattern = "*a".repeat(100) + "b";
        assert!(!fits(&pattern, &"a".repeat(250)));
    }

    proptest! {
        #[test]
        fn a_name_fits_itself_and_whatever_has_it_within(name in "[a-z.]{0,12}", around in "[a-z]{0,3}") {
            prop_assert!(fits(&name, &name));
            let longer = format!("{around}{name}{around}");
            let pattern = format!("*{name}*");
            prop_assert!(fits(&pattern, &longer));
        }
    }
}
