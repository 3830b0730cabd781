//! What an agent and its guard say to each other: one JSON object a packet.
//!
//! An agent and a guard of another version may meet, for a guard outlives the agent that started it. So each packet
//! names the version of these words, and one that is not understood is refused in words that every version reads.

use lockstep_core::id::MemberId;
use lockstep_core::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The version of these words.
pub(crate) const VERSION: u32 = 1;

/// The largest packet, in bytes: a dozen members with as many pids as a handler may name. Half of what a socket's
/// buffer holds by default.
pub(crate) const PACKET_BYTES_MAX: usize = 96 * 1024;

/// The guard's socket in the agent's directory.
pub(crate) const SOCKET: &str = "guard.sock";
/// The file that one guard at a time has locked, with its process id.
pub(crate) const LOCK: &str = "guard.lock";
/// What the guard has to tell people.
pub(crate) const LOG: &str = "guard.log";

/// Processes by the member that they are.
pub type Pids = BTreeMap<MemberId, BTreeSet<u32>>;

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// [`VERSION`] of who says it.
    pub(crate) v: u32,
    /// Repeated in the answer: an answer that comes too late is told from the one that is waited for.
    pub(crate) n: u64,
    #[serde(flatten)]
    pub(crate) say: Say,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(crate) enum Say {
    /// All that is to be guarded from now on.
    Watch {
        /// When this is said, in milliseconds of CLOCK_BOOTTIME. A process that started later is not one that is
        /// named here, but another that got its id.
        at: Time,
        /// When the lease ends, by the same clock.
        until: Time,
        members: Pids,
        /// Whether handlers of these members that are at work then are ended too.
        calls: bool,
    },
    /// What is guarded?
    Ask,
    /// Nothing is to be guarded any more: the guard ends.
    Goodbye,
}

/// What the guard answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) v: u32,
    pub(crate) n: u64,
    #[serde(flatten)]
    pub(crate) what: Said,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(crate) enum Said {
    Taken(Taken),
    Watching(Watching),
    /// It will end as soon as this is sent.
    Goodbye,
    /// It was not understood; what was guarded before still is.
    Refused {
        why: String,
    },
}

/// The guard has taken what it was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Named processes that it cannot guard: there are none of these ids, or none that it may kill. A member with one
    /// of them, or with no process named at all, is not guarded.
    pub unknown: Pids,
    /// By how much before the lease's end it acts, in ms: with a watchdog there is time left for that to reset the
    /// machine, if the guard cannot act. 0 without one, also where one is configured and could not be armed.
    pub early_ms: u64,
}

/// What the guard has taken last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watching {
    /// When the lease ends, or ended, in milliseconds of CLOCK_BOOTTIME. None: it was told nothing yet.
    pub until: Option<Time>,
    /// Whom it guards, by the processes that it found when they were named.
    pub members: Pids,
    /// Whether it has acted: the lease was over and what was named has been killed, or `left` says what has not.
    pub over: bool,
    /// Processes that got SIGKILL and have not ended.
    pub left: BTreeSet<u32>,
}

impl Request {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a request is plain data")
    }

    /// Reads one; errs with the answer to one that cannot be read.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Answer> {
        /// What each version has.
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            v: u32,
            #[serde(default)]
            n: u64,
        }
        let head = serde_json::from_slice(bytes).unwrap_or(Head { v: 0, n: 0 });
        serde_json::from_slice(bytes).map_err(|error| {
            let why = format!("this guard speaks version {VERSION}, this is of {}: {error}", head.v);
            Answer { v: VERSION, n: head.n, what: Said::Refused { why } }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_they_say_stays_as_it_is() {
        let pids = |pids: &[u32]| Pids::from([("db@a".parse().unwrap(), pids.iter().copied().collect())]);
        let requests = [
            (
                Say::Watch { at: Time(1), until: Time(2), members: pids(&[7, 8]), calls: true },
                r#"{"v":1,"n":3,"say":"watch","at":1,"until":2,"members":{"db@a":[7,8]},"calls":true}"#,
            ),
            (Say::Ask, r#"{"v":1,"n":3,"say":"ask"}"#),
            (Say::Goodbye, r#"{"v":1,"n":3,"say":"goodbye"}"#),
        ];
        for (say, text) in requests {
            let request = Request { v: VERSION, n: 3, say };
            assert_eq!(String::from_utf8(request.bytes()).unwrap(), text);
            assert_eq!(Request::read(text.as_bytes()), Ok(request));
        }
        let answers = [
            (
                Said::Taken(Taken { unknown: pids(&[8]), early_ms: 0 }),
                r#"{"v":1,"n":3,"answer":"taken","unknown":{"db@a":[8]},"early_ms":0}"#,
            ),
            (
                Said::Watching(Watching {
                    until: Some(Time(2)),
                    members: pids(&[7]),
                    over: true,
                    left: BTreeSet::from([7]),
                }),
                r#"{"v":1,"n":3,"answer":"watching","until":2,"members":{"db@a":[7]},"over":true,"left":[7]}"#,
            ),
            (Said::Goodbye, r#"{"v":1,"n":3,"answer":"goodbye"}"#),
        ];
        for (what, text) in answers {
            let answer = Answer { v: VERSION, n: 3, what };
            assert_eq!(serde_json::to_string(&answer).unwrap(), text);
            assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_and_never_taken_for_a_goodbye() {
        for bad in [
            r#"{"v":1,"n":9}"#,
            r#"{"v":2,"n":9,"say":"leave"}"#,
            r#"{"v":1,"n":9,"say":"watch","at":1,"members":{},"calls":true}"#,
            r#"{"v":1,"n":9,"say":"watch","at":1,"until":null,"members":{},"calls":true}"#,
            r#"{"v":1,"n":9,"say":"watch","at":1,"until":2,"members":{"db":[1]},"calls":true}"#,
        ] {
            let Err(Answer { n: 9, what: Said::Refused { .. }, .. }) = Request::read(bad.as_bytes()) else {
                panic!("{bad}");
            };
        }
        for bad in ["", "[]", "\u{0}"] {
            assert!(matches!(Request::read(bad.as_bytes()), Err(Answer { n: 0, .. })), "{bad}");
        }
    }
}
