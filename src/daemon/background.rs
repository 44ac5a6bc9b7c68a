//! Going to the background without `fork`: the same program is started again as a session of its own, and says
//! on its standard output, in one line, whether it serves.
//!
//! Whoever started it waits for that line, so that a command that returned means a mount that is there.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::daemon::failure::Failure;
use crate::daemon::protocol::{self, Answer};
use crate::error::Error;

/// Starts this program with `args`, its messages going to `log`; returns what it said when it served.
pub fn launch(args: &[OsString], log: File, log_path: &Path) -> Result<Value, Failure> {
    let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
    let mut child = Command::new(&program)
        // The name decides what the program is: the child is never mount.tidefs.
        .arg0("tidefs")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(Error::io("start", &program))?;
    match first_answer(&mut child) {
        Ok(Some(Answer::Done(value))) => Ok(value),
        Ok(Some(Answer::Failed(failure))) => {
            reap(&mut child);
            Err(failure)
        }
        Ok(None) | Err(_) => Err(died(&mut child, log_path)),
        Ok(Some(Answer::Progress(_))) => Err(Failure::failed("the background process is confused")),
    }
}

fn first_answer(child: &mut Child) -> io::Result<Option<Answer>> {
    let Some(stdout) = child.stdout.take() else {
        return Ok(None);
    };
    let mut source = BufReader::new(stdout);
    loop {
        match protocol::read(&mut source)? {
            Some(Answer::Progress(_)) => {}
            other => return Ok(other),
        }
    }
}

/// A child that failed ends by itself; whoever comes next finds the backup path free.
fn reap(child: &mut Child) {
    if let Err(error) = child.wait() {
        tracing::debug!("cannot wait for the background process: {error}");
    }
}

fn died(child: &mut Child, log_path: &Path) -> Failure {
    let how = child
        .wait()
        .map_or_else(|error| error.to_string(), |status| status.to_string());
    let log = log_path.display();
    Failure::failed(format!(
        "the background process ended before it served ({how}): look into {log}"
    ))
}

/// In the child: away from the terminal and the working directory of whoever started us.
pub fn detach() -> Result<(), Failure> {
    nix::unistd::setsid().map_err(Error::nix("start", "a session"))?;
    std::env::set_current_dir("/").map_err(Error::io("go to", "/"))?;
    Ok(())
}

/// In the child: tells whoever waits. An error means that nobody does.
pub fn tell(answer: &Answer) -> io::Result<()> {
    protocol::write(&mut io::stdout(), answer)?;
    // Closes the pipe: no line goes there any more.
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null).map_err(io::Error::from)
}
