//! Mount options: what [`mount`](super::mount) takes, and the lists that mount(8) and fstab hand over.

use std::time::Duration;

use crate::error::{Error, Result};

/// How long the kernel may believe what it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// Names and attributes. Long, as nobody else writes: every change goes through the mount or
    /// through [`Notifier`](super::Notifier).
    pub known: Duration,
    /// That a name does not exist; zero: never. Short, so that a name made elsewhere shows up even
    /// where nobody thought of the door.
    pub missing: Duration,
}

impl Default for Lifetimes {
    fn default() -> Lifetimes {
        Lifetimes {
            known: Duration::from_secs(24 * 60 * 60),
            missing: Duration::from_secs(10),
        }
    }
}

/// How a tree is mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// The source that `df` and `findmnt` show, after `tidefs:`; usually the backup path.
    pub source: String,
    /// Refuse changes in the kernel already.
    pub read_only: bool,
    /// Let other users in, checked by the permission bits. `None`: as root yes, else no.
    pub allow_other: Option<bool>,
    /// Mount over a directory that is not empty.
    pub nonempty: bool,
    /// Honour set-uid and set-gid bits.
    pub suid: bool,
    /// Honour device files.
    pub dev: bool,
    /// Allow execution.
    pub exec: bool,
    /// Every write is durable before it is answered.
    pub sync: bool,
    /// Write new files past the page cache (see `opens.rs`).
    pub direct_io: bool,
    /// Threads that take requests. Each reserves a buffer of 16 MiB and touches the first one.
    pub threads: usize,
    /// What the kernel may keep.
    pub lifetimes: Lifetimes,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            source: String::new(),
            read_only: false,
            allow_other: None,
            nonempty: false,
            suid: false,
            dev: false,
            exec: true,
            sync: false,
            direct_io: true,
            threads: 4,
            lifetimes: Lifetimes::default(),
        }
    }
}

/// A parsed `-o` list: the mount's options, and what the command needs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OptionList {
    /// For [`mount`](super::mount).
    pub mount: MountOptions,
    /// `external=SPEC`: mount from an external volume.
    pub external: Option<String>,
    /// `at=TIME`: a moment of the past.
    pub at: Option<String>,
    /// `poll=SECONDS`: how often an external volume is looked at for a newer epoch; 0: never.
    pub poll_secs: Option<u64>,
    /// `account=NAME`: one account only.
    pub account: Option<String>,
    /// `foreground`: do not become a daemon.
    pub foreground: bool,
}

const KNOWN: &str = "ro, rw, allow_other, nonempty, suid, nosuid, dev, nodev, exec, noexec, sync, async, \
    external=SPEC, at=TIME, poll=SECONDS, account=NAME, foreground";

/// What fstab, mount(8) and systemd read themselves, or what is so anyway: permissions are always
/// checked, and reading never changes the access time.
const IGNORED: [&str; 24] = [
    "defaults",
    "_netdev",
    "nofail",
    "fail",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "nogroup",
    "bg",
    "fg",
    "default_permissions",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "nolazytime",
    "loud",
];
const IGNORED_PREFIXES: [&str; 6] = ["x-", "X-", "comment=", "uhelper=", "helper=", "user="];

impl OptionList {
    /// Parses a comma-separated list. A comma within a value is written `\,` or the value is put in
    /// double quotes; the last of two contradicting options counts.
    pub fn parse(list: &str) -> Result<OptionList> {
        let mut parsed = OptionList::default();
        for option in split(list) {
            parsed.take(&option)?;
        }
        Ok(parsed)
    }

    fn take(&mut self, option: &str) -> Result<()> {
        let mount = &mut self.mount;
        match option {
            "ro" => mount.read_only = true,
            "rw" => mount.read_only = false,
            "allow_other" => mount.allow_other = Some(true),
            "nonempty" => mount.nonempty = true,
            "suid" => mount.suid = true,
            "nosuid" => mount.suid = false,
            "dev" => mount.dev = true,
            "nodev" => mount.dev = false,
            "exec" => mount.exec = true,
            "noexec" => mount.exec = false,
            "sync" => mount.sync = true,
            "async" => mount.sync = false,
            "foreground" => self.foreground = true,
            "remount" => {
                return Err(Error::Refused(
                    "tidefs cannot remount: unmount and mount again with the new options".into(),
                ));
            }
            _ if IGNORED.contains(&option) => {}
            _ if IGNORED_PREFIXES
                .iter()
                .any(|prefix| option.starts_with(prefix)) => {}
            _ => return self.take_value(option),
        }
        Ok(())
    }

    fn take_value(&mut self, option: &str) -> Result<()> {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        if key == "poll" {
            let secs = value.parse().map_err(|_| {
                Error::Refused(format!(
                    "mount option 'poll' takes seconds, not '{value}'; 0 is never"
                ))
            })?;
            self.poll_secs = Some(secs);
            return Ok(());
        }
        let place = match key {
            "external" => &mut self.external,
            "at" => &mut self.at,
            "account" => &mut self.account,
            _ => {
                return Err(Error::Refused(format!(
                    "unknown mount option '{option}': known are {KNOWN}"
                )));
            }
        };
        if value.is_empty() {
            return Err(Error::Refused(format!(
                "mount option '{key}' needs a value: {key}=..."
            )));
        }
        *place = Some(value.to_owned());
        Ok(())
    }
}

/// Cuts at commas that are neither quoted nor escaped; quotes and escapes are taken away.
fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut quoted = false;
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        let letter = match letter {
            '"' => {
                quoted = !quoted;
                continue;
            }
            ',' if !quoted => {
                options.push(String::new());
                continue;
            }
            '\\' => letters
                .next_if(|next| matches!(next, ',' | '\\' | '"'))
                .unwrap_or('\\'),
            other => other,
        };
        if let Some(option) = options.last_mut() {
            option.push(letter);
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fstab_line_keeps_what_is_ours_and_drops_what_is_fstabs() {
        let list = "rw,_netdev,nofail,noauto,user,allow_other,default_permissions,nosuid,nodev,noexec,\
            noatime,relatime,x-systemd.automount,x-gvfs-show,comment=nightly,external=dir:/mnt/nas,\
            at=2026-01-01T00:00:00Z,account=alice,poll=5,foreground,ro";
        let parsed = OptionList::parse(list).unwrap();
        assert!(parsed.mount.read_only && !parsed.mount.exec && parsed.foreground);
        assert_eq!(parsed.mount.allow_other, Some(true));
        assert_eq!(parsed.external.as_deref(), Some("dir:/mnt/nas"));
        assert_eq!(parsed.at.as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(parsed.account.as_deref(), Some("alice"));
        assert_eq!(parsed.poll_secs, Some(5));
    }

    #[test]
    fn the_last_of_two_contradicting_options_counts() {
        assert!(!OptionList::parse("ro,rw").unwrap().mount.read_only);
        assert!(OptionList::parse("nosuid,suid").unwrap().mount.suid);
        assert_eq!(OptionList::parse("").unwrap(), OptionList::default());
        assert_eq!(
            OptionList::parse(",defaults,,").unwrap(),
            OptionList::default()
        );
    }

    #[test]
    fn a_comma_in_a_value_can_be_escaped_or_quoted() {
        for list in [r"external=dir:/a\,b\\c,ro", r#"external="dir:/a,b\\c",ro"#] {
            let parsed = OptionList::parse(list).unwrap();
            assert_eq!(parsed.external.as_deref(), Some(r"dir:/a,b\c"));
            assert!(parsed.mount.read_only);
        }
    }

    #[test]
    fn an_unknown_option_is_named_together_with_the_known_ones() {
        let message = OptionList::parse("ro,cache=yes").unwrap_err().to_string();
        assert!(
            message.contains("'cache=yes'") && message.contains("external=SPEC"),
            "{message}"
        );
        for list in [
            "at",
            "at=",
            "account=",
            "poll=",
            "poll=soon",
            "dirsync",
            "remount",
            "allow_otherx",
        ] {
            assert!(OptionList::parse(list).is_err(), "{list}");
        }
    }
}
