//! Where a secret key comes from: the environment, a file that others may not read, or a person at a terminal.
//!
//! Never an argument, which `ps` shows to everybody. What was read is a [`Secret`] at once, which nothing prints, and
//! no complaint repeats a part of it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use vfs::Secret;
use vfs::s3::Credentials;

use super::words::Keys;
use crate::cli::absolute;
use crate::daemon::Failure;

/// Longest file that is taken for a key.
const FILE_LEN_MAX: usize = 4096;

const ENV_SECRET: [&str; 2] = ["TIDEFS_S3_SECRET", "AWS_SECRET_ACCESS_KEY"];
const ENV_ACCESS_KEY: &str = "AWS_ACCESS_KEY_ID";
const ENV_TOKEN: &str = "AWS_SESSION_TOKEN";

/// Keys that need not be asked for.
pub(super) fn credentials(keys: &Keys) -> Result<Credentials, Failure> {
    if keys.environment {
        return Ok(Credentials::Environment);
    }
    if let Some(name) = &keys.profile {
        let file = keys.credentials.as_deref().map(absolute).transpose()?;
        let name = name.clone();
        return Ok(Credentials::Profile { file, name });
    }
    let from_environment = variable(ENV_ACCESS_KEY);
    let access_key = keys.access_key.clone().or(from_environment.clone());
    let access_key = access_key.ok_or_else(|| {
        Failure::usage(format!(
            "whose keys? Name the public half with --access-key or {ENV_ACCESS_KEY}, or a profile with --profile"
        ))
    })?;
    if let Some(path) = &keys.secret_file {
        return Ok(Credentials::Static {
            access_key,
            secret: from_file(path)?,
            session_token: None,
        });
    }
    for name in ENV_SECRET {
        let Some(secret) = variable(name) else {
            continue;
        };
        let is_pair = name == "AWS_SECRET_ACCESS_KEY";
        if is_pair && from_environment.is_some_and(|other| other != access_key) {
            return Err(Failure::usage(format!(
                "--access-key names another key than {ENV_ACCESS_KEY}, so that {name} is not its other half: unset \
                 them, or set TIDEFS_S3_SECRET"
            )));
        }
        return Ok(Credentials::Static {
            access_key,
            secret: Secret::new(secret),
            session_token: variable(ENV_TOKEN).filter(|_| is_pair).map(Secret::new),
        });
    }
    Ok(Credentials::Static {
        secret: ask(&format!("Secret key of {access_key}: "))?,
        access_key,
        session_token: None,
    })
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn from_file(path: &Path) -> Result<Secret, Failure> {
    let shown = path.display();
    let failed = |error: std::io::Error| Failure::failed(format!("cannot read {shown}: {error}"));
    let mut file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    // Of the file that is open: the name may lead elsewhere by now.
    if found.is_file() && found.mode() & 0o007 != 0 {
        return Err(Failure::failed(format!(
            "{shown} can be opened by everybody on this machine: chmod 600 {shown}, and think of whether somebody did"
        )));
    }
    if !found.is_file() && !found.file_type().is_fifo() {
        return Err(Failure::failed(format!(
            "{shown} is neither a file nor a pipe"
        )));
    }
    let mut bytes = Vec::new();
    let limit = FILE_LEN_MAX as u64 + 1;
    (&mut file)
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let text = std::str::from_utf8(&bytes).ok().map(str::trim);
    match text.filter(|text| is_key(text) && bytes.len() <= FILE_LEN_MAX) {
        Some(text) => Ok(Secret::new(text)),
        None => Err(Failure::failed(format!(
            "{shown} holds no secret key: one line of letters, digits and signs, and nothing else"
        ))),
    }
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The terminal without echo, until this is dropped.
struct Silenced<'a> {
    terminal: &'a File,
    before: Termios,
}

impl Silenced<'_> {
    fn new(terminal: &File) -> nix::Result<Silenced<'_>> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        // Ctrl-C comes as a letter, so that nothing ends us before the echo is back.
        silent
            .local_flags
            .remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        tcsetattr(terminal, SetArg::TCSAFLUSH, &silent)?;
        Ok(Silenced { terminal, before })
    }
}

impl Drop for Silenced<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
        let _ = writeln!(&mut &*self.terminal);
    }
}

fn ask(question: &str) -> Result<Secret, Failure> {
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/tty")
        .map_err(|_| {
            Failure::usage(format!(
                "the secret key is missing, and there is no terminal to ask at: set {}, or use --secret-file",
                ENV_SECRET.join(" or ")
            ))
        })?;
    let failed =
        |error: std::io::Error| Failure::failed(format!("cannot ask at the terminal: {error}"));
    let _silenced = Silenced::new(&terminal).map_err(|errno| failed(errno.into()))?;
    write!(&mut &terminal, "{question}").map_err(failed)?;
    let mut typed = Vec::new();
    let mut letter = [0];
    loop {
        let count = (&mut &terminal).read(&mut letter).map_err(failed)?;
        match letter {
            _ if count == 0 => break,
            [b'\n' | b'\r' | 4] => break,
            [3] => {
                return Err(Failure::stopped(
                    "stopped at the question for the secret key",
                ));
            }
            [8 | 127] => drop(typed.pop()),
            // Ctrl-U.
            [21] => typed.clear(),
            [letter] if typed.len() < FILE_LEN_MAX => typed.push(letter),
            _ => {}
        }
    }
    let text = std::str::from_utf8(&typed).ok().map(str::trim);
    match text.filter(|text| is_key(text)) {
        Some(text) => Ok(Secret::new(text)),
        None => Err(Failure::usage(
            "no secret key was typed: nothing was changed",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_everybody_can_read_is_refused_and_a_line_break_is_no_part_of_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let with = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            from_file(&path)
        };
        assert_eq!(with("sk-secret\n", 0o600).unwrap().reveal(), "sk-secret");
        assert_eq!(with("sk-secret", 0o640).unwrap().reveal(), "sk-secret");
        for mode in [0o644, 0o604, 0o602] {
            let refusal = with("sk-secret", mode).unwrap_err().text;
            assert!(
                refusal.contains("chmod 600") && !refusal.contains("sk-secret"),
                "{refusal}"
            );
        }
        for text in [
            "",
            "\n",
            "sk-secret\nsk-other",
            "sk secret",
            &"k".repeat(5000),
        ] {
            let refusal = with(text, 0o600).unwrap_err().text;
            assert!(!refusal.contains("sk-"), "{refusal}");
        }
        assert!(from_file(dir.path()).is_err());
    }
}
