//! The asking end of the control socket.

use std::io::{self, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::daemon::control::SocketAddress;
use crate::daemon::failure::{Failure, FailureKind};
use crate::daemon::protocol::{self, Answer, Progress, Request};
use crate::error::Error;

/// A connection to the process that has a backup path open. One request each.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    root: PathBuf,
}

impl Client {
    /// Connects to the daemon of the backup path; `None` if there is none.
    pub fn connect(root: &Path) -> Result<Option<Client>, Failure> {
        let Some(address) = SocketAddress::of(root)? else {
            return Ok(None);
        };
        match UnixStream::connect(address.path()) {
            Ok(stream) => Ok(Some(Client {
                stream,
                root: root.to_owned(),
            })),
            Err(error) => match error.kind() {
                // A socket that nobody listens at is left by a process that was killed.
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
                    Ok(None)
                }
                ErrorKind::PermissionDenied => Err(Failure::failed(format!(
                    "the backup path {} is not yours to control: run this as its owner or as root",
                    root.display()
                ))),
                _ => Err(Error::io("connect to the daemon of", root)(error).into()),
            },
        }
    }

    /// Gives up on a daemon that says nothing for this long.
    pub fn with_patience(self, patience: Duration) -> Result<Client, Failure> {
        let limited = self.stream.set_read_timeout(Some(patience));
        limited.map_err(|error| self.broken(error))?;
        Ok(self)
    }

    /// Asks, and waits for the end. `progress` says whether to go on; when it does not, the daemon is left
    /// to notice that nobody listens.
    pub fn ask(
        mut self,
        request: &Request,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Value, Failure> {
        protocol::write(&mut self.stream, request).map_err(|error| self.broken(error))?;
        let mut source = BufReader::new(&self.stream);
        loop {
            let answer = protocol::read(&mut source).map_err(|error| self.broken(error))?;
            match answer {
                Some(Answer::Progress(step)) => {
                    if !progress(step) {
                        return Err(Failure::stopped("stopped; the daemon goes on"));
                    }
                }
                Some(Answer::Failed(failure)) => return Err(failure),
                Some(Answer::Done(value)) => {
                    if request.is_farewell(&value) {
                        wait_for_end(&mut source);
                    }
                    return Ok(value);
                }
                None => {
                    return Err(self.broken(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "it ended without an answer",
                    )));
                }
            }
        }
    }

    fn broken(&self, error: io::Error) -> Failure {
        let root = self.root.display();
        Failure::new(
            FailureKind::Failed,
            format!(
                "the daemon of {root} did not answer: {error}. Look into {root}/{}",
                crate::daemon::log::NAME
            ),
        )
    }
}

/// The daemon's end of the connection closes with its process: after that the backup path is free.
fn wait_for_end(source: &mut impl io::Read) {
    // Whatever comes or fails here, the answer was given.
    let _ = io::copy(source, &mut io::sink());
}
