//! How much memory a serving process keeps for nothing.
//!
//! glibc gives threads heaps ("arenas") of their own, up to eight for each processor, and hardly ever gives their
//! pages back. Here buffers are filled by one thread and freed by another, so each arena comes to hold its own
//! high-water mark: a file of 20 GiB took 1 GiB of memory, of which the budgets account for a fifth. With two
//! arenas it takes 130 MiB, in the same time (`scripts/bounded`).

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::{Error, Result};

/// What glibc reads, once, when a program begins: mallopt(3).
const VARIABLE: &str = "MALLOC_ARENA_MAX";
const ARENAS: &str = "2";

/// Starts this program again in its place, with few arenas, unless the environment names a number already. Call
/// before anything is opened; returns only if it was so, or if there is an error.
pub fn limit() -> Result<()> {
    if std::env::var_os(VARIABLE).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
    let mut args = std::env::args_os();
    // The name decides what the program is: tidefs or mount.tidefs.
    let name = args.next().unwrap_or_else(|| OsString::from("tidefs"));
    let mut again = Command::new(&program);
    again.arg0(name).args(args).env(VARIABLE, ARENAS);
    Err(Error::io("start", &program)(again.exec()))
}
