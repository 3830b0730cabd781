//! Lockstep's deciding half.
//!
//! Everything here is a pure function of its inputs: no IO, clock, randomness or threads. The `lockstep`
//! crate performs what this crate decides, and [`world`] plays it, so that tests can doubt it.

pub mod agent;
pub mod append;
pub mod backup;
pub mod cluster;
pub mod engine;
mod flow;
pub mod freeze;
mod held_back;
pub mod id;
mod lease;
pub mod lifecycle;
pub mod log;
pub mod message;
pub mod mutant;
mod outbox;
pub mod plan;
pub mod record;
pub mod refusal;
pub mod rehearse;
pub mod relation;
mod repair;
pub mod request;
pub mod snapshot;
pub mod spec;
pub mod time;
mod transition;
pub mod vote;
pub mod window;
pub mod world;
