//! Handlers: what an agent runs for a member.
//!
//! A handler is a program that the host's own configuration names ([`crate::config`]); the server knows its name
//! and never its command line. [`exec::run`] makes one call of it and says how the call ended; [`answer`] reads
//! what it printed. Nothing here decides when to call, retries, or knows of groups and transitions.

pub mod answer;
pub mod exec;
mod reason;

pub use exec::{Call, CallEnd, Program, User, run};
pub(crate) use reason::printable;
