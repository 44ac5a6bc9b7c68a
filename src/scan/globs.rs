//! Patterns of file names, and what a source leaves out by them.
//!
//! `*` and `?` stop at a slash, `**` does not, `**/` stands for any number of directories, also none; `[a-z]`, `[!a-z]`;
//! a backslash makes the next letter mean itself. Bytes, because file names are. Matched by a set of places in the
//! pattern, in time proportional to both lengths: no pattern makes a scan hang.

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    Any,
    /// `*`
    Star,
    /// `**`
    Deep,
    /// `**/`: this token and the one after stand for it, outside of a directory's name and inside.
    Dirs,
    InDirs,
    Class {
        is_negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<Token>,
    /// A pattern without a slash is for names at any depth.
    is_for_names: bool,
    /// It ended with a slash.
    is_for_dirs: bool,
}

impl Glob {
    /// Reads a pattern.
    pub fn new(text: &str) -> Result<Glob, String> {
        let fault = |what: &str| {
            format!(
                "the pattern '{}' {what}",
                crate::types::escape(text.as_bytes())
            )
        };
        let mut bytes = text.as_bytes();
        let is_for_dirs = bytes.len() > 1 && bytes.ends_with(b"/");
        bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
        let is_for_names = !bytes.contains(&b'/');
        bytes = bytes.strip_prefix(b"/").unwrap_or(bytes);
        if bytes.is_empty() {
            return Err(fault("is empty"));
        }
        let mut tokens = Vec::new();
        while let Some((&byte, rest)) = bytes.split_first() {
            bytes = rest;
            match byte {
                b'\\' => {
                    let (&next, rest) = bytes
                        .split_first()
                        .ok_or_else(|| fault("ends with a backslash"))?;
                    bytes = rest;
                    tokens.push(Token::Byte(next));
                }
                b'?' => tokens.push(Token::Any),
                b'*' if bytes.starts_with(b"*/") => {
                    bytes = bytes.get(2..).unwrap_or_default();
                    tokens.extend([Token::Dirs, Token::InDirs]);
                }
                b'*' if bytes.starts_with(b"*") => {
                    bytes = bytes.get(1..).unwrap_or_default();
                    tokens.push(Token::Deep);
                }
                b'*' => tokens.push(Token::Star),
                b'[' => {
                    let (class, rest) =
                        class(bytes).ok_or_else(|| fault("has a '[' without its ']'"))?;
                    bytes = rest;
                    tokens.push(class);
                }
                byte => tokens.push(Token::Byte(byte)),
            }
        }
        Ok(Glob {
            tokens,
            is_for_names,
            is_for_dirs,
        })
    }

    /// Whether it means the item at `path` (from the account's directory) with this name.
    pub fn means(&self, path: &[u8], name: &[u8], is_dir: bool) -> bool {
        if self.is_for_dirs && !is_dir {
            return false;
        }
        self.matches(if self.is_for_names { name } else { path })
    }

    /// Whether it matches all of `text`.
    pub fn matches(&self, text: &[u8]) -> bool {
        let mut places = vec![false; self.tokens.len() + 1];
        self.enter(&mut places, 0);
        for &byte in text {
            let mut next = vec![false; places.len()];
            for (at, token) in self.tokens.iter().enumerate() {
                if places.get(at) == Some(&true) {
                    self.step(token, at, byte, &mut next);
                }
            }
            places = next;
        }
        places.last() == Some(&true)
    }

    /// Stands at `at`, and wherever nothing leads from there.
    fn enter(&self, places: &mut [bool], at: usize) {
        if let Some(place) = places.get_mut(at) {
            *place = true;
        }
        match self.tokens.get(at) {
            Some(Token::Star | Token::Deep) => self.enter(places, at + 1),
            Some(Token::Dirs) => {
                if let Some(inside) = places.get_mut(at + 1) {
                    *inside = true;
                }
                self.enter(places, at + 2);
            }
            _ => {}
        }
    }

    fn step(&self, token: &Token, at: usize, byte: u8, next: &mut [bool]) {
        match token {
            Token::Byte(wanted) if *wanted == byte => self.enter(next, at + 1),
            Token::Any if byte != b'/' => self.enter(next, at + 1),
            Token::Star if byte != b'/' => self.enter(next, at),
            Token::Deep => self.enter(next, at),
            Token::InDirs => {
                if let Some(inside) = next.get_mut(at) {
                    *inside = true;
                }
                if byte == b'/' {
                    self.enter(next, at + 1);
                }
            }
            Token::Class { is_negated, ranges } if byte != b'/' => {
                let is_in = ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&byte));
                if is_in != *is_negated {
                    self.enter(next, at + 1);
                }
            }
            _ => {}
        }
    }
}

/// What follows a `[`, and the rest behind its `]`.
fn class(mut bytes: &[u8]) -> Option<(Token, &[u8])> {
    let is_negated = matches!(bytes.first(), Some(b'!' | b'^'));
    if is_negated {
        bytes = bytes.get(1..)?;
    }
    let mut ranges = Vec::new();
    loop {
        let (&low, rest) = bytes.split_first()?;
        bytes = rest;
        if low == b']' && !ranges.is_empty() {
            return Some((Token::Class { is_negated, ranges }, bytes));
        }
        match bytes {
            [b'-', high, rest @ ..] if *high != b']' => {
                ranges.push((low, *high));
                bytes = rest;
            }
            _ => ranges.push((low, low)),
        }
    }
}

/// What a source leaves out.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    include: Vec<Glob>,
    exclude: Vec<Glob>,
}

impl Filter {
    /// From the patterns of a source.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Filter, String> {
        let read = |texts: &[String]| -> Result<Vec<Glob>, String> {
            texts.iter().map(|text| Glob::new(text)).collect()
        };
        Ok(Filter {
            include: read(include)?,
            exclude: read(exclude)?,
        })
    }

    /// Whether the item is left out: an exclude means it and no include does.
    pub fn leaves_out(&self, path: &[u8], name: &[u8], is_dir: bool) -> bool {
        let means = |globs: &[Glob]| globs.iter().any(|glob| glob.means(path, name, is_dir));
        means(&self.exclude) && !means(&self.include)
    }

    /// Whether nothing is ever left out.
    pub fn is_empty(&self) -> bool {
        self.exclude.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Glob::new(pattern).unwrap().matches(text.as_bytes())
    }

    #[test]
    fn stars_stop_at_slashes_and_double_stars_do_not() {
        for (pattern, text) in [
            ("*", "abc"),
            ("a*c", "ac"),
            ("a*b*c", "aXbYbZc"),
            ("*/cur", "x/cur"),
            ("**/cur", "cur"),
            ("**/cur", "a/b/cur"),
            ("a/**", "a/b/c"),
            ("a/**/z", "a/z"),
            ("a/**/z", "a/b/c/z"),
            ("[a-c]?[!x]", "bqy"),
            ("[]]", "]"),
            (r"\*", "*"),
        ] {
            assert!(matches(pattern, text), "{pattern} should match {text}");
        }
        for (pattern, text) in [
            ("*", "a/b"),
            ("?", "/"),
            ("**/cur", "xcur"),
            ("a/**/z", "a/bz"),
            ("[!a]", "/"),
            ("[a-c]", "d"),
            (r"\*", "x"),
            ("abc", "abcd"),
        ] {
            assert!(!matches(pattern, text), "{pattern} should not match {text}");
        }
    }

    #[test]
    fn a_pattern_that_makes_no_sense_is_refused() {
        for pattern in ["", "/", "[a", "a\\"] {
            assert!(Glob::new(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn an_include_brings_back_what_an_exclude_leaves_out() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let filter = Filter::new(
            &words(&["keep.tmp"]),
            &words(&["*.tmp", "/cache/", "**/tmp/*"]),
        );
        let filter = filter.unwrap();
        assert!(filter.leaves_out(b"a/b/x.tmp", b"x.tmp", false));
        assert!(!filter.leaves_out(b"a/keep.tmp", b"keep.tmp", false));
        assert!(filter.leaves_out(b"cache", b"cache", true));
        assert!(!filter.leaves_out(b"cache", b"cache", false));
        assert!(!filter.leaves_out(b"a/cache", b"cache", true));
        assert!(filter.leaves_out(b".Sent/tmp/1", b"1", false));
        assert!(!filter.leaves_out(b".Sent/tmp", b"tmp", true));
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_time() {
        let text = vec![b'a'; 4000];
        assert!(
            !Glob::new(&"*a".repeat(60))
                .unwrap()
                .matches(&[&text[..], b"b"].concat())
        );
    }
}
