//! `lockstep-sim`: runs seeds, and tells what they found.

fn main() {}
