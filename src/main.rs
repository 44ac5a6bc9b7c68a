//! The `tidefs` program, and `mount.tidefs` when it is called by that name.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidefs::cli::run(std::env::args_os().collect())
}
