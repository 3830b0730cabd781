//! Lockstep's doing half: the server, the agent, the handlers and the command line.

pub mod agent;
pub mod api;
mod cause;
pub mod cli;
pub mod config;
pub mod conformance;
pub mod dev;
pub mod guard;
pub mod handler;
pub mod json;
mod process;
pub mod server;
pub mod spec_file;
pub mod store;

#[cfg(lockstep_mutants)]
compile_error!("mutants are for the simulator: nothing that runs may be built with them");
