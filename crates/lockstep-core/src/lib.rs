//! Lockstep's deciding half.
//!
//! Everything here is a pure function of its inputs: no IO, clock, randomness or threads. The `lockstep`
//! crate performs what this crate decides, and the simulator doubts it.

pub mod log;
