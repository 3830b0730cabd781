//! The `lockstep` command.

use std::process::ExitCode;

/// A server of many hosts mostly allocates and frees messages: a twentieth of a transition's time is won by this.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lockstep::cli::main()
}
