//! Signals as events: blocked in every thread, taken by one that waits for them.
//!
//! Nothing runs in a signal handler, so nothing has to be safe there.

use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::error::{Error, Result};

/// What asks a process to end.
fn ending() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set
}

/// From here on, in this thread and those it starts, the signals wait to be taken. Call it before any thread
/// is started.
pub fn block() -> Result<()> {
    ending()
        .thread_block()
        .map_err(Error::nix("block", "signals"))
}

/// Calls `on_signal` for each signal, from a thread of its own, until it says that it wants no more.
pub fn listen(mut on_signal: impl FnMut(&'static str) -> bool + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while let Ok(signal) = ending().wait() {
                if !on_signal(signal.as_str()) {
                    return;
                }
            }
        })
        .map(drop)
        .map_err(Error::io("start", "the signal thread"))
}
