//! The house's own rules, read from its sources: which floor may use which, what may stand where.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules in floors, lowest first. A module may use those of lower floors and itself.
const FLOORS: [&[&str]; 13] = [
    &["types"],
    &["error"],
    &["clock", "failpoint"],
    &["chunk"],
    &["format"],
    &["journal", "meta"],
    // Above `meta` for the index of blobs, which names where they are.
    &["pack"],
    &["fetch", "ingest", "upload", "buckets"],
    &["volume"],
    &["fuse", "scan", "restore", "maintain"],
    &["daemon"],
    &["cli"],
    &["main"],
];

/// (module, what it uses against the floors, why it may).
const FLOOR_EXCEPTIONS: [(&str, &str, &str); 0] = [];

/// Crates that one part alone may use.
const OWNERS: [(&str, &[&str]); 5] = [
    ("fuser", &["src/fuse/", "src/fuse.rs"]),
    ("sled", &["src/meta/index/", "src/meta/index.rs"]),
    ("clap", &["src/cli/", "src/cli.rs"]),
    ("reqwest", &["vfs/src/s3/bucket/"]),
    ("tokio", &["vfs/src/s3/bucket/"]),
];

/// The only file with unsafe code: see docs/decisions/0022.
const UNSAFE_FILE: &str = "src/scan/watch/handle.rs";

const LINES_MAX: usize = 600;
/// Longer files, and why each is still one idea.
const LONG_FILES: [(&str, &str); 8] = [
    (
        "vfs/tests/s3_faults.rs",
        "every answer that a server should not give, with one set of tools",
    ),
    (
        "tests/cli.rs",
        "the program as it is called, one story after the other",
    ),
    (
        "src/fuse/adapter.rs",
        "fuser's one trait, a short method for each request of the kernel",
    ),
    (
        "src/volume/namespace.rs",
        "the POSIX rules of names, which only make sense side by side",
    ),
    (
        "src/meta/index/tests.rs",
        "every way in which sled lost something, with one set of tools",
    ),
    ("tests/mount.rs", "the system calls on one mounted tree"),
    (
        "tests/common/memory_tree.rs",
        "a whole tree in memory, the reference of the mount tests",
    ),
    (
        "vfs/src/testkit.rs",
        "the contract of a volume as one suite",
    ),
];
/// `main` says which door is taken, nothing else.
const MAIN_LINES_MAX: usize = 40;

struct Source {
    /// From the root of the repository.
    name: String,
    path: PathBuf,
    text: String,
}

impl Source {
    /// The lines that are code: no comments, and no item that only tests have.
    fn code(&self) -> Vec<(usize, &str)> {
        let mut code = Vec::new();
        let mut lines = self.text.lines().enumerate();
        while let Some((n, line)) = lines.next() {
            if line.trim() == "#[cfg(test)]" {
                let indent = line.len() - line.trim_start().len();
                let end = format!("{}}}", &line[..indent]);
                let is_short = lines.next().is_some_and(|(_, line)| line.ends_with(';'));
                if !is_short {
                    lines.by_ref().find(|(_, line)| *line == end);
                }
            } else if !line.trim_start().starts_with("//") {
                code.push((n + 1, line));
            }
        }
        code
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(below: &[&str], extensions: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = below.iter().map(|dir| root().join(dir)).collect();
    while let Some(path) = waiting.pop() {
        if !path.exists() {
            continue;
        }
        if path.is_dir() {
            waiting.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if extensions
            .iter()
            .any(|end| path.extension().is_some_and(|is| is == *end))
        {
            let name = path
                .strip_prefix(root())
                .unwrap()
                .to_string_lossy()
                .into_owned();
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            found.push(Source { name, path, text });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn rust() -> Vec<Source> {
    files(
        &["src", "vfs/src", "vfs/tests", "tests", "examples"],
        &["rs"],
    )
}

/// Files that are only compiled for tests: declared so by the module above them.
fn test_files(sources: &[Source]) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for source in sources {
        let dir = match source.path.file_name().and_then(|name| name.to_str()) {
            Some("mod.rs" | "lib.rs" | "main.rs") => source.path.parent().unwrap().to_owned(),
            _ => source.path.with_extension(""),
        };
        let lines: Vec<&str> = source.text.lines().collect();
        for pair in lines.windows(2) {
            let module = pair[1].trim_end_matches(';').rsplit(' ').next().unwrap();
            if pair[0].starts_with("#[cfg(test)]") && pair[1].contains("mod ") {
                found.insert(dir.join(format!("{module}.rs")));
                found.insert(dir.join(module).join("mod.rs"));
            }
        }
    }
    found
}

fn assert_none(found: Vec<String>, rule: &str) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

/// The module of the crate that a file belongs to; none for `lib.rs`, which declares them all.
fn module_of(name: &str) -> Option<&str> {
    let below = name.strip_prefix("src/")?;
    let module = below.split('/').next()?.trim_end_matches(".rs");
    (module != "lib").then_some(module)
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The first names behind each `crate::` (or, in the program, `tidefs::`) of a line.
fn used_in(line: &str, prefix: &str) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut used = Vec::new();
    for (at, _) in line.match_indices(prefix) {
        if line[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let rest = &line[at + prefix.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let names = group.split([',', '}']).map(str::trim);
            used.extend(names.map(|name| name.chars().take_while(|c| is_word(*c)).collect()));
        } else {
            used.push(rest.chars().take_while(|c| is_word(*c)).collect());
        }
    }
    used.retain(|name: &String| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    });
    used
}

#[test]
fn a_floor_uses_only_the_floors_below_it() {
    let mut found = Vec::new();
    for source in files(&["src"], &["rs"]) {
        let Some(module) = module_of(&source.name) else {
            continue;
        };
        let Some(floor) = floor_of(module) else {
            found.push(format!("{}: {module} is on no floor", source.name));
            continue;
        };
        for (n, line) in source.code() {
            let mut used = used_in(line, "crate::");
            if module == "main" {
                used.extend(used_in(line, "tidefs::"));
            }
            for other in used.iter().filter(|other| *other != module) {
                let is_below = floor_of(other).is_some_and(|other| other < floor);
                let is_excepted = FLOOR_EXCEPTIONS
                    .iter()
                    .any(|(from, to, _)| (*from, *to) == (module, other));
                if !is_below && !is_excepted {
                    found.push(format!("{}:{n}: {module} uses {other}", source.name));
                }
            }
        }
    }
    assert_none(found, "a floor uses only the floors below it");
}

#[test]
fn a_crate_stays_with_the_module_that_owns_it() {
    let mut found = Vec::new();
    for source in files(&["src", "vfs/src"], &["rs"]) {
        for (n, line) in source.code() {
            for (owned, owners) in OWNERS {
                let uses = !used_in(line, &format!("{owned}::")).is_empty()
                    || line.contains(&format!("{owned}::"))
                    || line.trim_start().starts_with(&format!("use {owned}"));
                if uses && !owners.iter().any(|owner| source.name.starts_with(owner)) {
                    found.push(format!("{}:{n}: {owned}", source.name));
                }
            }
        }
    }
    assert_none(found, "a crate with one owner is used elsewhere");
}

#[test]
fn a_file_is_one_idea_and_not_longer_than_that_takes() {
    let long = rust().into_iter().filter_map(|source| {
        let lines = source.text.lines().count();
        let is_listed = LONG_FILES.iter().any(|(name, _)| *name == source.name);
        (lines > LINES_MAX && !is_listed).then(|| format!("{}: {lines} lines", source.name))
    });
    assert_none(
        long.collect(),
        "over 600 lines, and not listed with a reason",
    );
    let main = fs::read_to_string(root().join("src/main.rs")).unwrap();
    assert!(
        main.lines().count() <= MAIN_LINES_MAX,
        "main.rs does more than to choose a door"
    );
}

#[test]
fn unsafe_code_is_in_one_file() {
    // Put together here, so that this file does not name them.
    let marks = [
        "safe {",
        "safe fn",
        "safe impl",
        "safe extern",
        "safe_code,",
        "safe_code)",
    ]
    .map(|rest| ["un", rest].concat());
    let found = rust().into_iter().flat_map(|source| {
        let is_excepted = source.name == UNSAFE_FILE;
        let lines = source.text.lines().enumerate();
        lines
            .filter(|(_, line)| {
                let is_code = !line.trim_start().starts_with("//");
                is_code && !is_excepted && marks.iter().any(|mark| line.contains(mark))
            })
            .map(|(n, _)| format!("{}:{}", source.name, n + 1))
            .collect::<Vec<_>>()
    });
    assert_none(found.collect(), "unsafe code outside of its one file");
    let excepted = fs::read_to_string(root().join(UNSAFE_FILE)).unwrap();
    let blocks = excepted.matches(&["un", "safe {"].concat()).count();
    let reasons = excepted.matches("// SAFETY: ").count();
    assert_eq!(blocks, reasons, "each block says why it is sound");
}

#[test]
fn sources_are_ascii() {
    let found = rust().into_iter().flat_map(|source| {
        let lines = source
            .text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.is_ascii());
        lines
            .map(|(n, _)| format!("{}:{}", source.name, n + 1))
            .collect::<Vec<_>>()
    });
    assert_none(found.collect(), "not ASCII");
}

#[test]
fn only_tests_unwrap() {
    /// How far above a line its `#[expect]` may stand.
    const REACH: usize = 40;
    let sources = files(&["src", "vfs/src"], &["rs"]);
    let tests = test_files(&sources);
    let mut found = Vec::new();
    for source in sources
        .iter()
        .filter(|source| !tests.contains(&source.path))
    {
        // A kit of tests for others is itself one.
        if source.name.ends_with("testkit.rs") || source.text.contains("#![cfg(test)]") {
            continue;
        }
        let lines: Vec<&str> = source.text.lines().collect();
        for (n, line) in source.code() {
            // A constant is unwrapped by the compiler.
            let is_constant = line
                .trim_start()
                .trim_start_matches("pub ")
                .starts_with("const ");
            let unwraps = !is_constant && (line.contains(".unwrap()") || line.contains(".expect("));
            let above = &lines[n.saturating_sub(REACH)..n];
            let is_expected = above.iter().any(|line| {
                line.contains("clippy::unwrap_used") || line.contains("clippy::expect_used")
            });
            if unwraps && !is_expected {
                found.push(format!("{}:{n}: {}", source.name, line.trim()));
            }
        }
    }
    assert_none(
        found,
        "unwrapped outside tests, without an #[expect] that says why it cannot fail",
    );
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not name them.
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    let mut found = Vec::new();
    let sources = files(
        &[
            "src",
            "vfs",
            "tests",
            "examples",
            "docs",
            "README.md",
            "CHANGELOG.md",
        ],
        &["rs", "md", "toml"],
    );
    for source in sources {
        for (n, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                found.push(format!("{}:{}: {}", source.name, n + 1, line.trim()));
            }
        }
    }
    assert_none(found, "left for later");
}

/// The targets of a line's Markdown links.
fn links(line: &str) -> Vec<&str> {
    line.match_indices("](")
        .filter_map(|(at, _)| line[at + 2..].split([')', ' ']).next())
        .collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut found = Vec::new();
    let names: Vec<String> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "md"))
        .collect();
    let mut below: Vec<&str> = names.iter().map(String::as_str).collect();
    below.push("docs");
    for source in files(&below, &["md"]) {
        let mut in_code = false;
        for (n, line) in source.text.lines().enumerate() {
            in_code ^= line.trim_start().starts_with("```");
            for link in links(line).into_iter().filter(|_| !in_code) {
                let target = link.split('#').next().unwrap();
                let is_elsewhere = target.contains("://") || target.starts_with("mailto:");
                if !target.is_empty()
                    && !is_elsewhere
                    && !source.path.parent().unwrap().join(target).exists()
                {
                    found.push(format!("{}:{}: {link}", source.name, n + 1));
                }
            }
        }
    }
    assert_none(found, "links to nothing");
}

#[test]
fn the_reader_of_sources_sees_what_it_should() {
    assert_eq!(
        used_in("use crate::{meta::view, pack};", "crate::"),
        ["meta", "pack"]
    );
    assert_eq!(
        used_in("let a = crate::types::Ino(1); crate::error::E", "crate::"),
        ["types", "error"]
    );
    assert!(used_in("mycrate::types", "crate::").is_empty());
    assert_eq!(
        links("see [a](x.md#y) and [b](https://z)"),
        ["x.md#y", "https://z"]
    );
    assert!(floor_of("format") < floor_of("meta") && floor_of("nobody").is_none());
    assert_eq!(module_of("src/fuse/mod.rs"), Some("fuse"));
}
