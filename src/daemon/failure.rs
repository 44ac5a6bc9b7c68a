//! How an operation ends that did not end well: a kind, which is the exit code, and a text for the operator.
//!
//! It crosses the control socket, so that a command fails the same way with a daemon and without.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The kinds of failure, each with its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// It could not be done.
    Failed,
    /// It was asked for in a way that makes no sense.
    Usage,
    /// Somebody stopped it, or its time was over.
    Stopped,
    /// It was done, and what it found is not well.
    Problems,
    /// The external volume does not answer.
    Unreachable,
}

impl FailureKind {
    /// The exit code of the contract.
    pub fn exit_code(self) -> u8 {
        match self {
            FailureKind::Failed => 1,
            FailureKind::Usage => 2,
            FailureKind::Stopped => 3,
            FailureKind::Problems => 4,
            FailureKind::Unreachable => 5,
        }
    }
}

/// Why something was not done: what, to what, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which kind.
    pub kind: FailureKind,
    /// For the operator; empty if the result that was printed tells it.
    pub text: String,
}

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Failure {
        Failure {
            kind,
            text: text.into(),
        }
    }

    /// A failure that the printed result tells: only the exit code is left to say.
    pub fn told(kind: FailureKind) -> Failure {
        Failure::new(kind, String::new())
    }

    /// It could not be done.
    pub fn failed(text: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Failed, text)
    }

    /// It was asked for wrongly.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Usage, text)
    }

    /// It was stopped.
    pub fn stopped(text: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Stopped, text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let kind = match &error {
            Error::External(external) if external.is_unreachable() || external.is_transient() => {
                FailureKind::Unreachable
            }
            _ => FailureKind::Failed,
        };
        Failure::new(kind, error.chain())
    }
}

impl From<vfs::Error> for Failure {
    fn from(error: vfs::Error) -> Failure {
        Failure::from(Error::from(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_external_volume_that_does_not_answer_is_unreachable() {
        let missing = vfs::DirVolume::open("/nowhere/at/all").unwrap_err();
        assert_eq!(Failure::from(missing).kind, FailureKind::Unreachable);
        let permanent = vfs::Spec::parse("ftp:x").unwrap_err();
        assert_eq!(Failure::from(permanent).kind, FailureKind::Failed);
        let refused = Error::Refused("no".into());
        assert_eq!(Failure::from(refused).kind.exit_code(), 1);
    }
}
