//! The answering end of the control socket: `control.sock` in the backup path.
//!
//! Whoever may enter the backup path (0700) and open the socket (0600) is its owner or root; nothing else is
//! checked. One thread accepts, one more for each connection, at most [`CONNECTIONS_MAX`].

use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::daemon::failure::Failure;
use crate::daemon::protocol::{self, Answer, Progress, Request};
use crate::error::{Error, Result};

/// Name of the socket in the backup path.
pub const NAME: &str = "control.sock";
/// Connections at one time: commands are typed by people and scripts, and each has a thread.
pub const CONNECTIONS_MAX: usize = 32;
/// A connection that asks nothing, or takes nothing, for this long is closed.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a socket's address holds, less its final zero.
const ADDRESS_LEN_MAX: usize = 107;

/// Answers requests; `progress` returns false when nobody listens any more.
pub trait Respond: Send + Sync {
    /// Answers one.
    fn respond(
        &self,
        request: &Request,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Value, Failure>;
}

/// Where the socket of a backup path is. A path that is too long for an address goes through the
/// directory's descriptor.
#[derive(Debug)]
pub struct SocketAddress {
    path: PathBuf,
    _dir: Option<File>,
}

impl SocketAddress {
    /// The socket of `root`; `None` if there is no such directory.
    pub fn of(root: &Path) -> Result<Option<SocketAddress>> {
        let path = root.join(NAME);
        if path.as_os_str().as_bytes().len() <= ADDRESS_LEN_MAX {
            return Ok(Some(SocketAddress { path, _dir: None }));
        }
        let dir = match File::open(root) {
            Ok(dir) => dir,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", root)(error)),
        };
        let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()));
        Ok(Some(SocketAddress {
            path,
            _dir: Some(dir),
        }))
    }

    /// For `bind` and `connect`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The socket, served until this is dropped.
#[derive(Debug)]
pub struct Control {
    address: SocketAddress,
    stop: Arc<AtomicBool>,
    connections: Arc<Connections>,
    thread: Option<JoinHandle<()>>,
}

/// How many connections are being answered.
#[derive(Debug, Default)]
struct Connections {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl Connections {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Serves the socket of `root`. The caller holds the lock of the backup path, so that a socket that is
    /// there was left by a process that is gone.
    pub fn start(root: &Path, responder: Arc<dyn Respond>) -> Result<Control> {
        let address = SocketAddress::of(root)?
            .ok_or_else(|| Error::Refused(format!("{} is not there", root.display())))?;
        match fs::remove_file(address.path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("remove", root.join(NAME))(error));
            }
            _ => {}
        }
        let listener =
            UnixListener::bind(address.path()).map_err(Error::io("bind", root.join(NAME)))?;
        fs::set_permissions(address.path(), Permissions::from_mode(0o600))
            .map_err(Error::io("chmod", root.join(NAME)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Connections::default());
        let thread = {
            let (stop, connections) = (Arc::clone(&stop), Arc::clone(&connections));
            thread::Builder::new()
                .name("control".into())
                .spawn(move || accept(&listener, &responder, &stop, &connections))
                .map_err(Error::io("start", "the control thread"))?
        };
        Ok(Control {
            address,
            stop,
            connections,
            thread: Some(thread),
        })
    }

    /// Waits until nobody is being answered, for at most `patience`.
    pub fn settle(&self, patience: Duration) {
        let count = self.connections.count();
        let waited = self
            .connections
            .fewer
            .wait_timeout_while(count, patience, |count| *count > 0);
        drop(waited);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread out of `accept`.
        let woken = UnixStream::connect(self.address.path()).is_ok();
        if let Some(thread) = self.thread.take()
            && woken
        {
            // It holds nothing that a panic could have spoilt.
            let _ = thread.join();
        }
        if let Err(error) = fs::remove_file(self.address.path()) {
            tracing::debug!("cannot remove the control socket: {error}");
        }
    }
}

fn accept(
    listener: &UnixListener,
    responder: &Arc<dyn Respond>,
    stop: &AtomicBool,
    connections: &Arc<Connections>,
) {
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Acquire) {
            return;
        }
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                // Out of descriptors, most likely: those who ask wait a moment.
                tracing::warn!("cannot accept at the control socket: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let Some(counted) = Counted::enter(connections) else {
            refuse(stream);
            continue;
        };
        let responder = Arc::clone(responder);
        let spawned = thread::Builder::new()
            .name("control-line".into())
            .spawn(move || {
                let _counted = counted;
                if let Err(error) = converse(stream, &*responder) {
                    tracing::debug!("a connection to the control socket broke: {error}");
                }
            });
        if let Err(error) = spawned {
            tracing::warn!("cannot answer at the control socket: {error}");
        }
    }
}

/// Counts a connection for as long as it lives.
struct Counted(Arc<Connections>);

impl Counted {
    fn enter(connections: &Arc<Connections>) -> Option<Counted> {
        let mut count = connections.count();
        if *count >= CONNECTIONS_MAX {
            return None;
        }
        *count += 1;
        Some(Counted(Arc::clone(connections)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.count() -= 1;
        self.0.fewer.notify_all();
    }
}

fn refuse(mut stream: UnixStream) {
    let text = "too many commands are talking to the daemon: try again in a moment";
    // Who does not take the refusal sees a closed connection.
    let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
    let _ = protocol::write(&mut stream, &Answer::Failed(Failure::failed(text)));
}

fn converse(mut stream: UnixStream, responder: &dyn Respond) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request: Request = match protocol::read(&mut BufReader::new(&stream)) {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(error) => {
            let text = format!(
                "the daemon does not understand the command ({error}): both must be of the same version"
            );
            return protocol::write(&mut stream, &Answer::Failed(Failure::failed(text)));
        }
    };
    tracing::debug!(?request, "asked");
    let mut out = &stream;
    let outcome = responder.respond(&request, &mut |step| {
        protocol::write(&mut out, &Answer::Progress(step)).is_ok()
    });
    let is_farewell = outcome
        .as_ref()
        .is_ok_and(|value| request.is_farewell(value));
    let answer = match outcome {
        Ok(value) => Answer::Done(value),
        Err(failure) => Answer::Failed(failure),
    };
    protocol::write(&mut stream, &answer)?;
    if is_farewell {
        // The kernel closes it with the process: that is how the other side knows that we are gone.
        std::mem::forget(stream);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};

    use serde_json::json;

    use super::*;
    use crate::daemon::client::Client;

    struct Echo;

    impl Respond for Echo {
        fn respond(
            &self,
            request: &Request,
            progress: &mut dyn FnMut(Progress) -> bool,
        ) -> Result<Value, Failure> {
            let step = Progress {
                step: "thinking".into(),
                done_bytes: 1,
                total_bytes: None,
                note: None,
                files: None,
            };
            assert!(progress(step));
            match request {
                Request::Status => Ok(json!({ "well": true })),
                _ => Err(Failure::usage("only status")),
            }
        }
    }

    fn ask(root: &Path, request: &Request) -> (u32, Result<Value, Failure>) {
        let mut steps = 0;
        let client = Client::connect(root).unwrap().unwrap();
        let outcome = client.ask(request, &mut |_| {
            steps += 1;
            true
        });
        (steps, outcome)
    }

    #[test]
    fn a_request_gets_its_progress_and_its_end_also_where_the_path_is_too_long_for_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        for root in [dir.path(), &deep] {
            assert!(Client::connect(root).unwrap().is_none());
            let control = Control::start(root, Arc::new(Echo)).unwrap();
            let mode = root.join(NAME).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert_eq!(
                ask(root, &Request::Status),
                (1, Ok(json!({ "well": true })))
            );
            let refused = (1, Err(Failure::usage("only status")));
            assert_eq!(ask(root, &Request::Epochs), refused);
            drop(control);
            assert!(!root.join(NAME).exists());
        }
    }

    #[test]
    fn a_socket_of_a_dead_process_is_no_daemon_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(dir.path().join(NAME)).unwrap());
        assert!(Client::connect(dir.path()).unwrap().is_none());
        let _control = Control::start(dir.path(), Arc::new(Echo)).unwrap();
        assert!(ask(dir.path(), &Request::Status).1.is_ok());
    }

    #[test]
    fn garbage_gets_an_answer_and_the_next_one_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let _control = Control::start(dir.path(), Arc::new(Echo)).unwrap();
        let mut stream = UnixStream::connect(dir.path().join(NAME)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains("same version"), "{line}");
        assert!(ask(dir.path(), &Request::Status).1.is_ok());
    }
}
