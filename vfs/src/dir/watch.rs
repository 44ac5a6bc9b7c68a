//! Notices when another mount than before stands where a volume is: then it is worth a look, before any pause is over.
//!
//! Asks the kernel's table of mounts and never the path itself, so that a mount that hangs cannot hold it.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::mountinfo::{self, Mount};

/// Watches one path until it is dropped.
#[derive(Debug)]
pub struct MountWatch {
    /// The other end is the thread's: it ends with this one.
    line: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl MountWatch {
    /// Calls `changed` whenever `path`, which has no symbolic link in it, has come to lie in another mount. It must not
    /// wait for the volume.
    pub fn start(
        path: impl Into<PathBuf>,
        changed: impl Fn() + Send + 'static,
    ) -> io::Result<MountWatch> {
        let path = path.into();
        let (line, end) = UnixStream::pair()?;
        let mut table = Table::open()?;
        // Before the thread runs: what changes from here on is told.
        let known = table.holding(&path)?;
        let body = move || {
            if let Err(error) = watch(&mut table, &end, (&path, known), &changed) {
                tracing::warn!("the table of mounts is not watched any more: {error}");
            }
        };
        let thread = thread::Builder::new()
            .name("mount-watch".into())
            .spawn(body)?;
        Ok(MountWatch {
            line: Some(line),
            thread: Some(thread),
        })
    }
}

impl Drop for MountWatch {
    fn drop(&mut self) {
        self.line = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic of whoever was called is told by itself.
            let _ = thread.join();
        }
    }
}

fn watch(
    table: &mut Table,
    end: &UnixStream,
    (path, mut known): (&Path, Option<Mount>),
    changed: &dyn Fn(),
) -> io::Result<()> {
    while table.changes_before(end)? {
        let now = table.holding(path)?;
        if now != known {
            known = now;
            changed();
        }
    }
    Ok(())
}

/// The kernel's table. What has changed since it was last waited for is told by the next wait: nothing is missed.
struct Table(File);

impl Table {
    fn open() -> io::Result<Table> {
        File::open("/proc/self/mountinfo").map(Table)
    }

    fn holding(&mut self, path: &Path) -> io::Result<Option<Mount>> {
        let mut text = Vec::new();
        self.0.rewind()?;
        self.0.read_to_end(&mut text)?;
        Ok(mountinfo::holding(&text, path))
    }

    /// Waits for a change of the table, or for the other end of `end` to be gone: then it is false.
    fn changes_before(&self, end: &UnixStream) -> io::Result<bool> {
        let mut watched = [
            PollFd::new(self.0.as_fd(), PollFlags::POLLPRI),
            PollFd::new(end.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut watched, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => break,
            }
        }
        let [_, end] = watched;
        Ok(!end.any().unwrap_or(true))
    }
}
