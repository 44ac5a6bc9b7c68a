//! The border between the kernel's requests and the tree: what crosses it as an error becomes an
//! errno, what crosses it as a panic becomes EIO, and both are told to the operator once.
//!
//! A panic must not end an event loop of fuser: the mount would lose a quarter of its threads, then
//! hang. The engine is poisoned by its own means.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

use super::convert;

/// How many different complaints are remembered, so that a broken pack read in a loop is one line.
const REMEMBERED: usize = 64;

/// Remembers what was said.
#[derive(Default)]
pub(super) struct Guard {
    said: Mutex<VecDeque<String>>,
}

impl Guard {
    /// Runs `call` and turns its outcome into what FUSE can answer.
    pub(super) fn call<T>(
        &self,
        op: &'static str,
        call: impl FnOnce() -> Result<T>,
    ) -> Result<T, fuser::Errno> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(outcome) => self.outcome(op, outcome),
            Err(panic) => {
                self.panicked(op, &*panic);
                Err(fuser::Errno::EIO)
            }
        }
    }

    /// Runs a call that answers for itself. If it panics, the reply it held was dropped, which
    /// answers EIO.
    pub(super) fn start(&self, op: &'static str, call: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
            self.panicked(op, &*panic);
        }
    }

    /// The errno for an error; logs those that are not a plain refusal.
    pub(super) fn outcome<T>(
        &self,
        op: &'static str,
        outcome: Result<T>,
    ) -> Result<T, fuser::Errno> {
        outcome.map_err(|error| {
            match error {
                Error::Posix(_) => {}
                Error::Refused(_) => tracing::debug!("{op}: {error}"),
                _ => self.complain(op, error.chain()),
            }
            convert::reply_errno(convert::errno(&error))
        })
    }

    fn complain(&self, op: &'static str, text: String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.contains(&text) {
            tracing::debug!("{op} failed again: {text}");
            return;
        }
        tracing::error!("{op} failed: {text}");
        if said.len() == REMEMBERED {
            said.pop_front();
        }
        said.push_back(text);
    }

    fn panicked(&self, op: &'static str, panic: &(dyn Any + Send)) {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        self.complain(op, format!("a bug in tidefs, please report it: {text}"));
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_panic_becomes_eio_and_a_refusal_its_own_errno() {
        let guard = Guard::default();
        let outcome: Result<(), _> = guard.call("read", || panic!("bug"));
        assert_eq!(outcome, Err(fuser::Errno::EIO));
        let outcome: Result<(), _> = guard.call("rmdir", || Err(Errno::ENOTEMPTY.into()));
        assert_eq!(outcome.map_err(fuser::Errno::code), Err(libc::ENOTEMPTY));
        guard.start("write", || panic!("bug"));
        assert_eq!(guard.call("getattr", || Ok(7)), Ok(7));
    }

    #[test]
    fn the_memory_of_complaints_is_bounded_and_repeats_add_nothing() {
        let guard = Guard::default();
        for n in 0..200 {
            guard.complain("read", format!("pack {n}"));
            guard.complain("read", format!("pack {n}"));
        }
        let said = guard.said.lock().unwrap();
        assert_eq!(said.len(), REMEMBERED);
        assert_eq!(said.back().map(String::as_str), Some("pack 199"));
        assert_eq!(said.front().map(String::as_str), Some("pack 136"));
    }
}
