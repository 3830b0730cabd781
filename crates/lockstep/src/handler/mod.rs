//! Handlers: what an agent runs for a member.
