//! Where log lines go: to stderr, always. In the background stderr *is* the log file, so that a panic is in it too.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};

/// Name of the log in a backup path.
pub const NAME: &str = "tidefs.log";
/// A log longer than this is put aside when the next process begins to write it.
const LEN_MAX: u64 = 8 << 20;
/// Names tried for the log of a view, which has no backup path.
const NAMES_MAX: u32 = 100;

/// Lines of at least `level` go to stderr; `TIDEFS_LOG` overrides it.
pub fn start(level: &str) {
    let filter = EnvFilter::try_from_env("TIDEFS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .finish();
    // Refused only where one was set before: then that one counts.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Opens the log of a backup path for the next process.
pub fn open(root: &Path) -> Result<(PathBuf, File)> {
    let path = root.join(NAME);
    if fs::metadata(&path).is_ok_and(|found| found.len() > LEN_MAX) {
        let old = root.join(format!("{NAME}.1"));
        fs::rename(&path, &old).map_err(Error::io("rename", &path))?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    Ok((path, file))
}

/// A new log for a view, among the temporary files, where names may be somebody else's.
pub fn open_temporary() -> Result<(PathBuf, File)> {
    let pid = std::process::id();
    let mut number = 0;
    loop {
        let path = std::env::temp_dir().join(format!("tidefs-view-{pid}-{number}.log"));
        let opened = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match opened {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < NAMES_MAX => {
                number += 1;
            }
            Err(error) => return Err(Error::io("create", &path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_log_is_appended_to_and_put_aside_when_it_is_long() {
        let dir = tempfile::tempdir().unwrap();
        for line in ["one\n", "two\n"] {
            let (path, mut file) = open(dir.path()).unwrap();
            file.write_all(line.as_bytes()).unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        let path = dir.path().join(NAME);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        open(dir.path()).unwrap().1.set_len(LEN_MAX + 1).unwrap();
        open(dir.path()).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 0);
        assert!(dir.path().join("tidefs.log.1").exists());
    }
}
