//! `mount.tidefs SOURCE TARGET [-sfnv] [-o OPTIONS]`: the same mount, as mount(8) and fstab call it.
//!
//! SOURCE is a backup path, or an external volume (`dir:/path`), which is mounted read-only. mount(8) reads the
//! exit codes of its own table: 0 mounted, 1 wrong use, 32 the mount failed.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use crate::cli::Context;
use crate::cli::mount::Plan;
use crate::cli::output::{Output, clean};
use crate::cli::progress::Reporter;
use crate::clock::SystemClock;
use crate::daemon::{Failure, FailureKind, mounts};
use crate::fuse::OptionList;

const EXIT_USAGE: u8 = 1;
const EXIT_MOUNT: u8 = 32;

/// Mounts as mount(8) asks.
pub(super) fn run(args: &[OsString]) -> ExitCode {
    let outcome = Call::parse(args.get(1..).unwrap_or_default()).and_then(Call::mount);
    let Err(failure) = outcome else {
        return ExitCode::SUCCESS;
    };
    // The exit code tells it too.
    let _ = writeln!(std::io::stderr(), "mount.tidefs: {}", clean(&failure.text));
    ExitCode::from(if failure.kind == FailureKind::Usage {
        EXIT_USAGE
    } else {
        EXIT_MOUNT
    })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    source: String,
    target: PathBuf,
    options: String,
    /// `-f`: do everything but the mount.
    fake: bool,
    /// `-s`: unknown options are not an error.
    sloppy: bool,
    /// `-v`: say what was done.
    verbose: bool,
}

impl Call {
    fn parse(args: &[OsString]) -> Result<Call, Failure> {
        let usage = || Failure::usage("usage: mount.tidefs SOURCE TARGET [-sfnv] [-o OPTIONS]");
        let mut call = Call::default();
        let mut places: Vec<&OsString> = Vec::new();
        let mut options: Vec<String> = Vec::new();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let text = arg.to_str();
            let Some(letters) = text.and_then(|text| text.strip_prefix('-')) else {
                places.push(arg);
                continue;
            };
            let mut letters = letters.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    's' => call.sloppy = true,
                    'f' => call.fake = true,
                    'v' => call.verbose = true,
                    'n' => {}
                    'o' | 't' | 'N' => {
                        let attached: String = letters.by_ref().collect();
                        let value = if attached.is_empty() {
                            let next = rest.next().and_then(|next| next.to_str());
                            next.ok_or_else(usage)?.to_owned()
                        } else {
                            attached
                        };
                        if letter == 'o' {
                            options.push(value);
                        }
                    }
                    _ => return Err(usage()),
                }
            }
        }
        let &[source, target] = &places[..] else {
            return Err(usage());
        };
        Ok(Call {
            source: source.to_str().ok_or_else(usage)?.to_owned(),
            target: target.into(),
            options: options.join(","),
            ..call
        })
    }

    fn mount(self) -> Result<(), Failure> {
        let (options_text, options) = self.options()?;
        let plan = Plan::from_source(&self.source, &self.target, options_text, options)?;
        let mut context = Context {
            path: None,
            out: Output::new(false, !self.verbose),
            reporter: Reporter::new(false, false, !self.verbose),
            clock: Arc::new(SystemClock),
        };
        if self.fake {
            return plan.check(&context);
        }
        if self.is_mounted()? {
            context.out.note(&format!(
                "{} is mounted at {} already",
                self.source,
                self.target.display()
            ));
            return Ok(());
        }
        plan.run(&mut context)
    }

    /// Whether this very source is mounted there and alive. `mount -a` compares the source that the kernel
    /// shows with fstab's, and ours says `tidefs:` before it: so it asks again and again.
    fn is_mounted(&self) -> Result<bool, Failure> {
        let found = mounts::ours_at(&self.target)?.filter(|mount| !mounts::is_dead(&mount.point));
        Ok(found.is_some_and(|mount| {
            let shown = mount.source.to_string_lossy();
            let view = shown.split_once("@epoch-").map(|(source, _)| source);
            shown == self.source || view == Some(&self.source)
        }))
    }

    fn options(&self) -> Result<(String, OptionList), Failure> {
        let whole = OptionList::parse(&self.options);
        match whole {
            Ok(parsed) => Ok((self.options.clone(), parsed)),
            Err(error) if !self.sloppy => Err(Failure::usage(error.chain())),
            Err(_) => {
                let known = |option: &&str| OptionList::parse(option).is_ok();
                let text = self.options.split(',').filter(known).collect::<Vec<_>>();
                let text = text.join(",");
                let parsed =
                    OptionList::parse(&text).map_err(|error| Failure::usage(error.chain()))?;
                Ok((text, parsed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Call, Failure> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        Call::parse(&args)
    }

    #[test]
    fn the_call_of_mount8_is_understood_in_its_orders() {
        let expected = Call {
            source: "/backup".into(),
            target: "/mnt".into(),
            options: "rw,noatime".into(),
            fake: true,
            sloppy: true,
            verbose: false,
        };
        for args in [
            &["/backup", "/mnt", "-s", "-f", "-n", "-o", "rw,noatime"][..],
            &["/backup", "/mnt", "-sfn", "-orw,noatime"],
            &[
                "-o", "rw", "/backup", "-sf", "/mnt", "-o", "noatime", "-t", "tidefs",
            ],
        ] {
            assert_eq!(parse(args).as_ref(), Ok(&expected), "{args:?}");
        }
        for args in [
            &["/backup"][..],
            &["/backup", "/mnt", "/x"],
            &["/b", "/m", "-o"],
            &["/b", "/m", "-z"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn sloppy_drops_what_is_unknown_and_nothing_else() {
        let call = |sloppy| Call {
            options: "ro,rsize=4096,at=yesterday".into(),
            sloppy,
            ..Call::default()
        };
        assert!(call(false).options().unwrap_err().text.contains("rsize"));
        let (text, parsed) = call(true).options().unwrap();
        assert_eq!(text, "ro,at=yesterday");
        assert!(parsed.mount.read_only && parsed.at.is_some());
    }
}
