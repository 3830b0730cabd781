//! Lockstep's doubting half: production's own engines and logs under seeded networks, disks, hosts and clocks, and the
//! invariants that must hold whatever happens.
//!
//! What is promised is in `docs/guarantee.md`; each file in [`invariant`] checks one promise of it, by what is durable,
//! sent, shown and really running, never by asking the engines whether they are right.

pub mod exhaust;
mod fault;
pub mod invariant;
mod journal;
pub mod run;
mod shape;
pub mod sim;
pub mod tally;
