//! What can go wrong on a volume, sorted by what the caller should do about it.
//!
//! The class decides: ask again at once, ask again later, or tell a person. It is chosen here and nowhere else: the
//! table from errno to class is [`classify`], and only `layer::retry` acts on [`Error::is_transient`]. An error names
//! the operation, the key and the volume once; the cause is chained and never repeated in the text.

use std::fmt;
use std::io;
use std::time::Duration;

use nix::errno::Errno;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ErrorClass {
    /// The object is not there, said by a volume that was able to tell. Nothing else may be read as "missing".
    NotFound,
    /// Asking again soon gives the same answer: permissions, a full or read-only volume, a broken precondition. What was
    /// to be sent is kept, and tried again when a person has changed something or much time has passed.
    Permanent,
    /// Asking again in a moment may well work.
    Transient,
    /// The volume cannot be reached, or what is reached is not this volume. Says nothing about any object: keep
    /// everything, delete nothing, try again later.
    Unreachable,
}

/// Cases within a class that callers treat specially.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum ErrorCase {
    /// Nothing beyond the class.
    General,
    /// `Precondition::IfAbsent` was broken: the key has an object. Permanent.
    AlreadyExists,
    /// The object ends before the range that was asked for. Permanent if it is simply shorter, transient if the volume
    /// stopped in the middle of bytes it had announced.
    ShortRead,
    /// Another volume, or none, stands where this one stood: nothing may be written. Unreachable.
    WrongVolume,
    /// The right volume, but mounted anew since the last look: what was sent in between has to be sent or checked again.
    /// The volume goes on working with the new mount. Transient.
    Remounted,
    /// The volume or its quota is full. Permanent.
    NoSpace,
    /// A handle of a network file system went stale. Transient where the volume has opened its root again; unreachable
    /// where that is stale too.
    Stale,
    /// There was no answer in time: whoever asked goes on without one. Unreachable.
    TimedOut,
    /// The volume was not asked, because it did not answer before: the circuit is open. Unreachable.
    CircuitOpen,
}

/// Why an operation on a volume failed.
pub struct Error {
    class: ErrorClass,
    case: ErrorCase,
    op: &'static str,
    key: Box<str>,
    volume: Box<str>,
    message: Box<str>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `class` in `op` (a verb: "put", "get", ..) on `key` of `volume`; either may be empty where there is
    /// none. `message` says what happened and what the operator can do.
    pub fn new(
        class: ErrorClass,
        op: &'static str,
        volume: &str,
        key: &str,
        message: impl Into<String>,
    ) -> Error {
        let case = ErrorCase::General;
        Error {
            class,
            case,
            op,
            key: key.into(),
            volume: volume.into(),
            message: message.into().into(),
            retry_after: None,
            source: None,
        }
    }

    /// The same with a case.
    pub fn with_case(mut self, case: ErrorCase) -> Error {
        self.case = case;
        self
    }

    /// The same with its cause.
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        self.source = Some(source.into());
        self
    }

    /// The same from a server that said when to come back.
    pub fn with_retry_after(mut self, pause: Duration) -> Error {
        self.retry_after = Some(pause);
        self
    }

    /// The same once more, for another who waited for the same thing: its causes become part of the text.
    pub(crate) fn again(&self) -> Error {
        let mut message = self.message.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            next = cause.source();
        }
        Error::new(self.class, self.op, &self.volume, &self.key, message).with_case(self.case)
    }

    /// The same for a look that was to tell which volume this is: whatever was in its way, it is not known.
    pub(crate) fn into_unreachable(mut self) -> Error {
        self.class = ErrorClass::Unreachable;
        self
    }

    /// The same where the root was to be opened anew: a handle that is stale then too is no single one that the server
    /// forgot. The whole mount is.
    pub(crate) fn of_root(mut self) -> Error {
        if self.case == ErrorCase::Stale {
            self.class = ErrorClass::Unreachable;
            self.message = STALE_MOUNT.into();
        }
        self
    }

    /// The same as the answer to what was asked at `at`, which led to it.
    pub(crate) fn asked_at(mut self, at: At<'_>) -> Error {
        self.op = at.op;
        self.key = at.key.into();
        self.volume = at.volume.into();
        self
    }

    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// The special case, if it is one.
    pub fn case(&self) -> ErrorCase {
        self.case
    }

    /// How long the volume asked to be left alone, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The operation, as a verb.
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// The key or path it was about; empty for the whole volume.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The volume, as it prints itself.
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// An authoritative "there is no such object".
    pub fn is_not_found(&self) -> bool {
        self.class == ErrorClass::NotFound
    }

    /// Worth asking again in a moment. The only place that decides it.
    pub fn is_transient(&self) -> bool {
        self.class == ErrorClass::Transient
    }

    /// The volume is away, or another is in its place.
    pub fn is_unreachable(&self) -> bool {
        self.class == ErrorClass::Unreachable
    }

    /// `IfAbsent` met an object.
    pub fn is_already_exists(&self) -> bool {
        self.case == ErrorCase::AlreadyExists
    }

    /// The object ended too early.
    pub fn is_short_read(&self) -> bool {
        self.case == ErrorCase::ShortRead
    }

    /// Another volume, or none, is in the place of this one.
    pub fn is_wrong_volume(&self) -> bool {
        self.case == ErrorCase::WrongVolume
    }

    /// The volume was mounted anew since the last look.
    pub fn is_remounted(&self) -> bool {
        self.case == ErrorCase::Remounted
    }

    /// The error and its causes on one line.
    pub fn chain(&self) -> String {
        self.with_causes(self.to_string())
    }

    /// What happened and why, without what it was asked to do: for a text that names that itself.
    pub(crate) fn reason(&self) -> String {
        self.with_causes(self.message.to_string())
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    fn with_causes(&self, mut text: String) -> String {
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.op)?;
        match (self.key.is_empty(), self.volume.is_empty()) {
            (false, false) => write!(f, " {} on {}", self.key, self.volume)?,
            (false, true) => write!(f, " {}", self.key)?,
            (true, false) => write!(f, " {}", self.volume)?,
            (true, true) => {}
        }
        write!(f, ": {}", self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}: {}", self.class, self.case, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// Where an operation is: lets the code below a public method name it without carrying three strings about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    pub(crate) volume: &'a str,
    pub(crate) op: &'static str,
    pub(crate) key: &'a str,
}

impl<'a> At<'a> {
    pub(crate) fn key(self, key: &'a str) -> At<'a> {
        At { key, ..self }
    }

    pub(crate) fn error(self, class: ErrorClass, message: impl Into<String>) -> Error {
        Error::new(class, self.op, self.volume, self.key, message)
    }

    pub(crate) fn not_found(self) -> Error {
        self.error(ErrorClass::NotFound, "there is no such object")
    }

    pub(crate) fn already_exists(self) -> Error {
        let message = "an object with this key exists and was to be created anew";
        self.error(ErrorClass::Permanent, message)
            .with_case(ErrorCase::AlreadyExists)
    }

    pub(crate) fn wrong_volume(self, message: impl Into<String>) -> Error {
        self.error(ErrorClass::Unreachable, message)
            .with_case(ErrorCase::WrongVolume)
    }

    /// Every operation's answer after a look that found the wrong volume.
    pub(crate) fn barred(self) -> Error {
        self.wrong_volume("another volume, or none, was found in its place: mount the right one; nothing is written before")
    }

    pub(crate) fn errno(self, errno: Errno) -> Error {
        let (class, case, message) = classify(errno);
        self.error(class, message)
            .with_case(case)
            .with_source(io::Error::from(errno))
    }

    pub(crate) fn io(self, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(code) => self.errno(Errno::from_raw(code)),
            None => self
                .error(
                    ErrorClass::Transient,
                    "the system call did less than it should",
                )
                .with_source(error),
        }
    }
}

const STALE_MOUNT: &str = "the mount went stale, its server does not know the directory any more: export it again, or \
                           unmount (umount -l) and mount it";

/// What a system call's refusal on an external volume means. `ENOENT` is not "not found" here: only the calls that ask
/// for an object by name may read it so, and only after they have made sure of the volume (invariant 6).
fn classify(errno: Errno) -> (ErrorClass, ErrorCase, &'static str) {
    use ErrorClass::{Permanent, Transient, Unreachable};
    let general = |class, message| (class, ErrorCase::General, message);
    match errno {
        Errno::ENOSPC => (
            Permanent,
            ErrorCase::NoSpace,
            "the volume is full: free some space on it or enlarge it",
        ),
        Errno::EDQUOT => (
            Permanent,
            ErrorCase::NoSpace,
            "the quota is used up: raise it or free some space",
        ),
        Errno::EROFS => general(
            Permanent,
            "the volume is mounted read-only: mount it with rw, and look for disk errors",
        ),
        Errno::EACCES | Errno::EPERM => general(
            Permanent,
            "permission denied: check the owner, the mode, and root squashing on the volume",
        ),
        Errno::ELOOP => general(
            Permanent,
            "a symbolic link stands where a directory or object should be: remove it",
        ),
        Errno::EXDEV => general(
            Permanent,
            "another file system is mounted below the volume's root: unmount it, or use it directly",
        ),
        Errno::ENOTDIR => general(
            Permanent,
            "a file stands where a directory should be: move it away",
        ),
        Errno::EISDIR => general(Permanent, "a directory stands at this key: move it away"),
        Errno::EUCLEAN => general(
            Permanent,
            "the file system is damaged: unmount the volume and run fsck",
        ),
        Errno::EFBIG => general(
            Permanent,
            "the object is larger than this file system takes: use another one",
        ),
        Errno::ENAMETOOLONG => general(
            Permanent,
            "this file system does not take names this long: use another one",
        ),
        Errno::ENOSYS => general(
            Permanent,
            "the kernel lacks or forbids a system call: openat2 needs Linux 5.6, and no filter on it",
        ),
        Errno::EOPNOTSUPP | Errno::EINVAL => general(
            Permanent,
            "this file system refuses the operation: test the volume (store test), or use another",
        ),
        Errno::ESTALE => (
            Transient,
            ErrorCase::Stale,
            "the server forgot the file handle; it is opened anew",
        ),
        Errno::EIO | Errno::EREMOTEIO => general(
            Transient,
            "input/output error: check the disk or the server's log",
        ),
        Errno::ETIMEDOUT
        | Errno::ENOTCONN
        | Errno::ECONNREFUSED
        | Errno::ECONNRESET
        | Errno::ECONNABORTED
        | Errno::EHOSTDOWN
        | Errno::EHOSTUNREACH
        | Errno::ENETDOWN
        | Errno::ENETUNREACH
        | Errno::ESHUTDOWN
        | Errno::EPIPE
        | Errno::ENODEV
        | Errno::ENXIO
        | Errno::ENOMEDIUM => general(
            Unreachable,
            "the volume does not answer: check the network, the server, the mount",
        ),
        _ => general(Transient, "the system call failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> At<'static> {
        At {
            volume: "dir:/mnt/nas",
            op: "put",
            key: "items/ab/x.pack",
        }
    }

    #[test]
    fn a_message_names_operation_key_volume_and_cause_once() {
        assert_eq!(
            at().errno(Errno::ENOSPC).chain(),
            "cannot put items/ab/x.pack on dir:/mnt/nas: the volume is full: free some space on it or enlarge it: \
             No space left on device (os error 28)"
        );
    }

    #[test]
    fn no_errno_ever_means_not_found_by_itself() {
        for code in 0..200 {
            assert!(
                !at().errno(Errno::from_raw(code)).is_not_found(),
                "errno {code}"
            );
        }
    }

    #[test]
    fn a_root_that_is_stale_when_it_is_opened_anew_is_a_stale_mount() {
        let error = at().errno(Errno::ESTALE).of_root();
        assert!(error.is_unreachable(), "{error:?}");
        assert!(
            error.chain().contains("the mount went stale")
                && error.chain().contains("os error 116"),
            "{error:?}"
        );
        let other = at().errno(Errno::EIO).of_root();
        assert!(other.is_transient() && !other.chain().contains("stale"));
    }

    #[test]
    fn a_dead_mount_is_unreachable_a_stale_handle_is_transient_a_full_disk_is_permanent() {
        for errno in [Errno::ENOTCONN, Errno::ETIMEDOUT, Errno::EHOSTUNREACH] {
            assert!(at().errno(errno).is_unreachable(), "{errno}");
        }
        for errno in [
            Errno::ESTALE,
            Errno::EIO,
            Errno::EAGAIN,
            Errno::EINTR,
            Errno::ENOENT,
        ] {
            assert!(at().errno(errno).is_transient(), "{errno}");
        }
        for errno in [Errno::ENOSPC, Errno::EROFS, Errno::EACCES] {
            assert_eq!(at().errno(errno).class(), ErrorClass::Permanent, "{errno}");
        }
    }
}
