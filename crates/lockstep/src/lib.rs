//! Lockstep's doing half: the server, the agent, the handlers and the command line.

pub mod config;
pub mod handler;
pub mod server;
pub mod store;
