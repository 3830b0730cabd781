//! The server: one task owns the engine, everything else sends it inputs or performs its outputs.

pub mod handle;
