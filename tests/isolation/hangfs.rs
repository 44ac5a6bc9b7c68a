//! A FUSE file system that can stop answering, or forget its handles: a directory, passed through, in a process of its
//! own.
//!
//! The process is this test program again, as the ignored test `hangfs_process`. Its standard input takes `hang`,
//! `stale` and `go`, each is confirmed on its standard output; at the end of the input it lets go of everything and unmounts.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, SessionACL,
    TimeOrNow, WriteFlags,
};
use nix::mount::{MntFlags, umount2};

const BACKING: &str = "HANGFS_BACKING";
const MOUNT: &str = "HANGFS_MOUNT";
/// Requests that it takes out of the kernel and holds: those who asked cannot be killed then.
const THREADS: usize = 8;
/// Nothing is answered from the kernel's memory: every question comes to us.
const NO_TIME: Duration = Duration::ZERO;

/// The process, as its tests see it.
pub struct HangFs {
    child: Child,
    orders: Option<ChildStdin>,
    said: BufReader<ChildStdout>,
    mount: PathBuf,
}

impl HangFs {
    pub fn start(backing: &Path, mount: &Path) -> HangFs {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hangfs_process", "--ignored", "--nocapture"])
            .env(BACKING, backing)
            .env(MOUNT, mount)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut hangfs = HangFs {
            child,
            orders,
            said,
            mount: mount.to_owned(),
        };
        hangfs.hears("mounted");
        hangfs
    }

    fn hears(&mut self, word: &str) {
        let mut line = String::new();
        // The harness of the tests says things too, on the same line even.
        while !line.trim_end().ends_with(word) {
            line.clear();
            let len = self.said.read_line(&mut line).unwrap();
            assert!(len > 0, "hangfs ended before it said '{word}'");
        }
    }

    fn orders(&mut self, word: &str) {
        let orders = self.orders.as_mut().unwrap();
        writeln!(orders, "{word}").unwrap();
        self.hears(word);
    }

    /// From here on nothing is answered.
    pub fn hang(&mut self) {
        self.orders("hang");
    }

    /// From here on everything is answered with ESTALE: as by a server that exports the directory no longer.
    pub fn stale(&mut self) {
        self.orders("stale");
    }

    /// Everything is answered again.
    pub fn go(&mut self) {
        self.orders("go");
    }
}

impl Drop for HangFs {
    fn drop(&mut self) {
        // Lets go first, so that nobody stays stuck; then the process, by its id, and what is left of the mount.
        self.orders = None;
        let _ = umount2(&self.mount, MntFlags::MNT_DETACH);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process does.
pub fn serve() {
    let (Some(backing), Some(mount)) = (std::env::var_os(BACKING), std::env::var_os(MOUNT)) else {
        return;
    };
    let gate = Arc::new(Gate::default());
    let fs = PassThrough {
        nodes: Mutex::new(HashMap::from([(1, PathBuf::from(backing))])),
        files: Mutex::default(),
        next: AtomicU64::new(1),
        gate: Arc::clone(&gate),
    };
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let session = Session::new(fs, &mount, &config).unwrap();
    let session = session.spawn().unwrap();
    println!("\nmounted");
    for order in io::stdin().lines() {
        let order = order.unwrap();
        gate.set(match order.as_str() {
            "hang" => Mood::Hangs,
            "stale" => Mood::Stale,
            _ => Mood::Well,
        });
        println!("\n{order}");
    }
    gate.set(Mood::Well);
    let _ = umount2(mount.as_os_str(), MntFlags::MNT_DETACH);
    drop(session);
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Mood {
    #[default]
    Well,
    Hangs,
    Stale,
}

#[derive(Default)]
struct Gate {
    mood: Mutex<Mood>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
        self.changed.notify_all();
    }

    /// Waits while it hangs.
    fn pass(&self) -> Mood {
        let mood = self.mood.lock().unwrap();
        let hangs = |mood: &mut Mood| *mood == Mood::Hangs;
        *self.changed.wait_while(mood, hangs).unwrap()
    }
}

struct PassThrough {
    /// Where each inode was seen last.
    nodes: Mutex<HashMap<u64, PathBuf>>,
    files: Mutex<HashMap<u64, Arc<File>>>,
    next: AtomicU64,
    gate: Arc<Gate>,
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

fn nix_errno(errno: nix::errno::Errno) -> Errno {
    Errno::from_i32(errno as i32)
}

fn kind_of(file_type: fs::FileType) -> FileType {
    if file_type.is_dir() {
        FileType::Directory
    } else if file_type.is_symlink() {
        FileType::Symlink
    } else {
        FileType::RegularFile
    }
}

impl PassThrough {
    fn path(&self, ino: INodeNo) -> io::Result<PathBuf> {
        let gone = || io::Error::from_raw_os_error(libc::ESTALE);
        if self.gate.pass() == Mood::Stale {
            return Err(gone());
        }
        let nodes = self.nodes.lock().unwrap();
        nodes.get(&ino.0).cloned().ok_or_else(gone)
    }

    fn below(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    fn attr(path: &Path) -> io::Result<FileAttr> {
        let found = fs::symlink_metadata(path)?;
        let time = |secs: i64, nanos: i64| {
            let since = Duration::new(
                u64::try_from(secs).unwrap_or(0),
                u32::try_from(nanos).unwrap_or(0),
            );
            SystemTime::UNIX_EPOCH + since
        };
        Ok(FileAttr {
            ino: INodeNo(found.ino()),
            size: found.len(),
            blocks: found.blocks(),
            atime: time(found.atime(), found.atime_nsec()),
            mtime: time(found.mtime(), found.mtime_nsec()),
            ctime: time(found.ctime(), found.ctime_nsec()),
            crtime: SystemTime::UNIX_EPOCH,
            kind: kind_of(found.file_type()),
            perm: (found.mode() & 0o7777) as u16,
            nlink: found.nlink() as u32,
            uid: found.uid(),
            gid: found.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// Its attributes, and from here on its inode's number is known.
    fn enter(&self, path: PathBuf) -> io::Result<FileAttr> {
        let attr = Self::attr(&path)?;
        self.nodes.lock().unwrap().insert(attr.ino.0, path);
        Ok(attr)
    }

    fn keep(&self, file: File) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.files.lock().unwrap().insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    fn file(&self, handle: FileHandle) -> Arc<File> {
        self.gate.pass();
        Arc::clone(&self.files.lock().unwrap()[&handle.0])
    }

    fn entry(&self, made: io::Result<PathBuf>, reply: ReplyEntry) {
        match made.and_then(|path| self.enter(path)) {
            Ok(attr) => reply.entry(&NO_TIME, &attr, Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }
}

fn done(outcome: io::Result<()>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

impl Filesystem for PassThrough {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(self.below(parent, name), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.path(ino).and_then(|path| Self::attr(&path)) {
            Ok(attr) => reply.attr(&NO_TIME, &FileAttr { ino, ..attr }),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let outcome = self.path(ino).and_then(|path| {
            if let Some(mode) = mode {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&path)?.set_len(size)?;
            }
            Self::attr(&path)
        });
        match outcome {
            Ok(attr) => reply.attr(&NO_TIME, &FileAttr { ino, ..attr }),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.below(parent, name).and_then(|path| {
            fs::create_dir(&path)?;
            Ok(path)
        });
        self.entry(made, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.below(parent, name).and_then(fs::remove_file), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.below(parent, name).and_then(fs::remove_dir), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (Ok(from), Ok(to)) = (self.below(parent, name), self.below(to_parent, to_name)) else {
            return reply.error(Errno::from_i32(libc::ESTALE));
        };
        let flags = nix::fcntl::RenameFlags::from_bits_truncate(flags.bits());
        let here = nix::fcntl::AT_FDCWD;
        match nix::fcntl::renameat2(here, &from, here, &to, flags) {
            Ok(()) => {
                for path in self.nodes.lock().unwrap().values_mut() {
                    if *path == from {
                        path.clone_from(&to);
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(nix_errno(errno)),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.below(parent, name).and_then(|path| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(flags & libc::O_EXCL != 0)
                .create(true)
                .truncate(false)
                .open(&path)?;
            file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
            Ok((file, self.enter(path)?))
        });
        match made {
            Ok((file, attr)) => {
                let handle = self.keep(file);
                reply.created(&NO_TIME, &attr, Generation(0), handle, FopenFlags::empty());
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let wants_write = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        let opened = self
            .path(ino)
            .and_then(|path| OpenOptions::new().read(true).write(wants_write).open(path));
        match opened {
            Ok(file) => reply.opened(self.keep(file), FopenFlags::empty()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        match self.file(handle).read_at(&mut bytes, offset) {
            Ok(len) => reply.data(&bytes[..len]),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.file(handle).write_all_at(bytes, offset) {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.gate.pass();
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files.lock().unwrap().remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.file(handle).sync_all(), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.path(ino).and_then(File::open);
        done(synced.and_then(|dir| dir.sync_all()), reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.path(ino).and_then(|path| {
            let mut names: Vec<(OsString, u64, FileType)> = vec![
                (".".into(), ino.0, FileType::Directory),
                ("..".into(), 1, FileType::Directory),
            ];
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                names.push((entry.file_name(), entry.ino(), kind_of(entry.file_type()?)));
            }
            names[2..].sort_by(|a, b| a.0.cmp(&b.0));
            Ok(names)
        });
        match listed {
            Ok(names) => {
                let from = usize::try_from(offset).unwrap();
                for (at, (name, ino, kind)) in names.iter().enumerate().skip(from) {
                    if reply.add(INodeNo(*ino), at as u64 + 1, *kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.gate.pass();
        reply.statfs(1 << 30, 1 << 29, 1 << 29, 1 << 20, 1 << 19, 4096, 255, 4096);
    }
}
