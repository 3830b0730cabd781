//! Handlers: what an agent runs for a member.
//!
//! A handler is a program that the host's own configuration names ([`crate::config`]); the server knows its name
//! and never its command line. [`exec::run`] makes one call of it and says how the call ended; [`answer`] reads
//! what it printed. Nothing here decides when to call, retries, or knows of groups and transitions.

pub mod answer;
pub mod exec;
mod reason;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use answer::{Answer, Expect};
pub use exec::{Call, CallEnd, Program, User, Verdict, run};

/// Longest name of a handler, state or label, in bytes. 63 is what DNS labels and Kubernetes allow, so that
/// names survive a copy into either.
pub const NAME_LEN_MAX: usize = 63;

/// Whether `text` is a valid name: 1 to [`NAME_LEN_MAX`] of `A-Z a-z 0-9 . _ -`, the first a letter or a digit.
pub fn is_name(text: &str) -> bool {
    text.len() <= NAME_LEN_MAX
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// What a handler is called for; its name is the call's last argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// May the transition go on? No side effects. Actors, voters and holders.
    Check,
    /// Get ready to take the step, short and late. Actors.
    Prepare,
    /// Take the step. Actors.
    Commit,
    /// Take the step back. Actors.
    Undo,
    /// Forget what was prepared: the transition was aborted. Actors.
    Cancel,
    /// Hold clients back until the release or the hold's end. Holders.
    Hold,
    /// Let clients go on. Holders.
    Release,
    /// Say what state the member is in.
    Status,
    /// Be told of an intent or an outcome. Observers.
    Notice,
    /// Make sure that a lost host does nothing any more.
    Fence,
    /// Leave the state at once: the lease ends, or a returning member must not stay where it is.
    Stop,
}

impl Phase {
    /// Every phase, in the order of a transition.
    pub const ALL: [Phase; 11] = [
        Phase::Check,
        Phase::Prepare,
        Phase::Commit,
        Phase::Undo,
        Phase::Cancel,
        Phase::Hold,
        Phase::Release,
        Phase::Status,
        Phase::Notice,
        Phase::Fence,
        Phase::Stop,
    ];

    /// The phase as handlers and configuration spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Check => "check",
            Phase::Prepare => "prepare",
            Phase::Commit => "commit",
            Phase::Undo => "undo",
            Phase::Cancel => "cancel",
            Phase::Hold => "hold",
            Phase::Release => "release",
            Phase::Status => "status",
            Phase::Notice => "notice",
            Phase::Fence => "fence",
            Phase::Stop => "stop",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not one of [`Phase::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a phase")]
pub struct UnknownPhase;

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(text: &str) -> Result<Phase, UnknownPhase> {
        Phase::ALL.into_iter().find(|phase| phase.as_str() == text).ok_or(UnknownPhase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_has_one_spelling() {
        for phase in Phase::ALL {
            assert_eq!(phase.as_str().parse(), Ok(phase));
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
        for text in ["", "Check", "check ", "decide"] {
            assert_eq!(text.parse::<Phase>(), Err(UnknownPhase), "{text:?}");
        }
    }

    #[test]
    fn names() {
        for good in ["a", "9", "pg-a.example_1", &"x".repeat(NAME_LEN_MAX)] {
            assert!(is_name(good), "{good:?}");
        }
        let long = "x".repeat(NAME_LEN_MAX + 1);
        for bad in ["", "-a", ".", "../a", "a b", "a\n", "a\0", "ä", "a\u{202e}", ";$(x)", "<script>", &long]
        {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
