//! One worker as its owner sees it: started, asked one thing at a time with a deadline, ended.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Error, ErrorClass};
use crate::key::ObjectKey;
use crate::volume::Body;

use super::message::{Answer, Answered, Request};
use super::serve::serve;
use super::wire::{give_up_body, malformed, read_frame, write_frame, write_piece};

/// How a worker is started.
#[derive(Clone)]
pub enum Start {
    /// As a process: the command's program must end in [`super::run_worker`]. Its standard descriptors, working
    /// directory and process group are chosen here.
    Process(Arc<dyn Fn() -> Command + Send + Sync>),
    /// As a thread of this process, for tests and for whoever embeds this crate: there are deadlines too, but a thread
    /// that hangs in the kernel keeps this process from ending.
    Thread,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Start::Process(_) => "Process",
            Start::Thread => "Thread",
        })
    }
}

#[derive(Debug)]
enum Life {
    Process(Child),
    Thread(JoinHandle<()>),
}

/// A worker that runs.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: u64,
    stream: Arc<UnixStream>,
    life: Life,
}

/// The line to a worker that is about to be started: whoever has the near end can cut it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) near: Arc<UnixStream>,
    far: UnixStream,
}

impl Line {
    pub(super) fn new() -> io::Result<Line> {
        let (near, far) = UnixStream::pair()?;
        Ok(Line {
            near: Arc::new(near),
            far,
        })
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Silence {
    /// None until the deadline: the worker is stuck.
    Late,
    /// The worker ended, or talks nonsense.
    Broken(io::Error),
    /// What was to be sent cannot be read here; the worker is well.
    Local(Error),
}

impl From<io::Error> for Silence {
    fn from(error: io::Error) -> Silence {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Silence::Late,
            _ => Silence::Broken(error),
        }
    }
}

impl Worker {
    pub(super) fn start(start: &Start, id: u64, line: Line) -> io::Result<Worker> {
        let Line { near, far } = line;
        let life = match start {
            Start::Process(command) => Life::Process(spawn(&mut command(), far)?),
            Start::Thread => {
                let input = far.try_clone()?;
                let name = format!("dir-worker-{id}");
                let body = move || {
                    // A broken line is its end.
                    let _ = serve(input, far);
                };
                Life::Thread(thread::Builder::new().name(name).spawn(body)?)
            }
        };
        Ok(Worker {
            id,
            stream: near,
            life,
        })
    }

    /// For errors: which process a person would look for.
    pub(super) fn name(&self) -> String {
        match &self.life {
            Life::Process(child) => format!("process {}", child.id()),
            Life::Thread(_) => format!("thread dir-worker-{}", self.id),
        }
    }

    /// Its line, for whoever may have to cut it.
    pub(super) fn line(&self) -> Arc<UnixStream> {
        Arc::clone(&self.stream)
    }

    /// The process, if it is one.
    pub(super) fn pid(&self) -> Option<u32> {
        match &self.life {
            Life::Process(child) => Some(child.id()),
            Life::Thread(_) => None,
        }
    }

    /// Asks, and waits for the answer until `deadline`.
    pub(super) fn ask(&self, request: &Request, deadline: Instant) -> Result<Answered, Silence> {
        let mut line = self.until(deadline);
        write_frame(&mut line, &request.encode())?;
        self.answered(request, deadline)
    }

    /// Asks for bytes, of which `len` are expected.
    pub(super) fn ask_bytes(
        &self,
        request: &Request,
        len: u64,
        deadline: Instant,
    ) -> Result<(Answered, Bytes), Silence> {
        let answered = self.ask(request, deadline)?;
        let Answer::Bytes(coming) = answered.answer else {
            return Ok((answered, Bytes::new()));
        };
        if coming != len {
            return Err(malformed("length").into());
        }
        // The worker holds as many in its memory: that much there is.
        let len = usize::try_from(len).map_err(|_| malformed("length"))?;
        let mut bytes = vec![0; len];
        self.until(deadline).read_exact(&mut bytes)?;
        Ok((answered, bytes.into()))
    }

    /// Sends a body and waits for the answer. A piece that is not taken within `piece_patience` is late too.
    pub(super) fn ask_put(
        &self,
        (request, volume, key): (&Request, &str, &ObjectKey),
        body: Body<'_>,
        (deadline, piece_patience): (Instant, Duration),
    ) -> Result<Answered, Silence> {
        write_frame(&mut self.until(deadline), &request.encode())?;
        let mut broken = None;
        let sent = body.for_each_chunk(("put", volume, key), |bytes| {
            for piece in bytes.chunks(super::wire::PIECE_LEN_MAX) {
                let until = deadline.min(Instant::now() + piece_patience);
                if let Err(error) = write_piece(&mut self.until(until), piece) {
                    broken = Some(error);
                    return Err(Error::new(
                        ErrorClass::Transient,
                        "put",
                        volume,
                        key.as_str(),
                        "the worker takes no more",
                    ));
                }
            }
            Ok(())
        });
        if let Some(error) = broken {
            return Err(error.into());
        }
        if let Err(error) = sent {
            give_up_body(&mut self.until(deadline))?;
            self.answered(request, deadline)?;
            return Err(Silence::Local(error));
        }
        self.answered(request, deadline)
    }

    fn answered(&self, request: &Request, deadline: Instant) -> Result<Answered, Silence> {
        let Some(frame) = read_frame(&mut self.until(deadline))? else {
            return Err(Silence::Broken(io::ErrorKind::UnexpectedEof.into()));
        };
        let answered = Answered::decode(&frame, request.verb())?;
        if request.is_answered_by(&answered.answer) {
            Ok(answered)
        } else {
            Err(malformed("answer").into())
        }
    }

    fn until(&self, deadline: Instant) -> Until<'_> {
        Until {
            stream: &self.stream,
            deadline,
        }
    }

    /// Cuts the line and kills it. Does not wait: what is returned does, for as long as the kernel keeps it.
    pub(super) fn kill(self) -> impl FnOnce() + Send + 'static {
        // Fails only where the line is cut already.
        let _ = self.stream.shutdown(Shutdown::Both);
        let mut life = self.life;
        if let Life::Process(child) = &mut life {
            // Fails only where it has ended by itself.
            let _ = child.kill();
        }
        move || wait(life)
    }

    /// Lets it end by itself, at the end of its input. As with [`Worker::kill`], somebody has to wait.
    pub(super) fn dismiss(self) -> impl FnOnce() + Send + 'static {
        let _ = self.stream.shutdown(Shutdown::Both);
        let life = self.life;
        move || wait(life)
    }
}

fn wait(life: Life) {
    match life {
        // It is collected, or was; its panic was its own.
        Life::Process(mut child) => drop(child.wait()),
        Life::Thread(thread) => drop(thread.join()),
    }
}

fn spawn(command: &mut Command, far: UnixStream) -> io::Result<Child> {
    let output = far.try_clone()?;
    command
        .stdin(Stdio::from(OwnedFd::from(far)))
        .stdout(Stdio::from(OwnedFd::from(output)))
        // Nowhere: whoever waits for the end of our own messages must not wait for a worker that hangs.
        .stderr(Stdio::null())
        // Holds no directory, and is no part of what a key at the terminal interrupts.
        .current_dir("/")
        .process_group(0)
        .spawn()
    // The command, and with it our copy of the far end, is dropped by the caller: the line ends with the worker.
}

/// A stream that is read and written until a moment.
#[derive(Debug)]
struct Until<'s> {
    stream: &'s UnixStream,
    deadline: Instant,
}

impl Until<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// For whoever has only the near end: the one who waits on it gets an error.
pub(super) fn cut(near: &UnixStream) {
    // Fails only where it is cut already.
    let _ = near.shutdown(Shutdown::Both);
}

/// Starts what waits for ended workers.
pub(super) fn reap(wait: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name("dir-reaper".into())
        .spawn(wait)
        .map(drop)
}
