//! What an operator asks for, and the refusal of it.

use crate::id::{GroupName, HostName, MemberId, SettingKey, StateName};
use crate::spec::{OnFailure, SpecError, SpecFile, text_problem};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The most targets one request may have.
pub const TARGETS_MAX: usize = 10_000;
/// The longest request id, in bytes: a UUID, or a build number with its pipeline's name.
pub const REQUEST_ID_LEN_MAX: usize = 128;
/// The longest reason, in bytes.
pub const REASON_LEN_MAX: usize = 1000;

/// One thing that an operator wants to be so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// `GROUP=STATE`: every member of the group.
    Group(GroupName, StateName),
    /// `GROUP@HOST=STATE`: one member.
    Member(MemberId, StateName),
    /// `GROUP=up`: states are filled from the highest, each to its `max`.
    Up(GroupName),
    /// `GROUP=down`: every member to the lowest state.
    Down(GroupName),
    /// `GROUP.KEY=VALUE`: a setting.
    Setting(GroupName, SettingKey, String),
    /// `drain HOST`: every member there to its lifecycle's drained state.
    Drain(HostName),
    /// `repair GROUP`: back to where its goals want it, as far as its living members can.
    Repair(GroupName),
}

impl Target {
    /// The group it names, if it names one.
    pub fn group(&self) -> Option<&GroupName> {
        match self {
            Self::Group(group, _)
            | Self::Up(group)
            | Self::Down(group)
            | Self::Repair(group)
            | Self::Setting(group, _, _) => Some(group),
            Self::Member(member, _) => Some(&member.group),
            Self::Drain(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group, state) => write!(f, "{group}={state}"),
            Self::Member(member, state) => write!(f, "{member}={state}"),
            Self::Up(group) => write!(f, "{group}=up"),
            Self::Down(group) => write!(f, "{group}=down"),
            Self::Setting(group, key, value) => write!(f, "{group}.{key}={value}"),
            Self::Drain(host) => write!(f, "drain {host}"),
            Self::Repair(group) => write!(f, "repair {group}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown = || text.chars().take(80).collect::<String>();
        if let Some(host) = text.strip_prefix("drain ") {
            return Ok(Self::Drain(host.parse().map_err(|error| format!("target {:?}: {error}", shown()))?));
        }
        if let Some(group) = text.strip_prefix("repair ") {
            return Ok(Self::Repair(
                group.parse().map_err(|error| format!("target {:?}: {error}", shown()))?,
            ));
        }
        let Some((left, right)) = text.split_once('=') else {
            return Err(format!(
                "target {:?} is none of GROUP=STATE, GROUP@HOST=STATE, GROUP=up, GROUP=down, GROUP.KEY=VALUE, \"drain HOST\", \
                 \"repair GROUP\"",
                shown()
            ));
        };
        let named = |error: crate::id::NameError| format!("target {:?}: {error}", shown());
        if left.contains('@') {
            return Ok(Self::Member(left.parse().map_err(named)?, right.parse().map_err(named)?));
        }
        if let Some((group, key)) = left.split_once('.') {
            if let Some(problem) = text_problem(right) {
                return Err(format!("target {:?}: {problem}", shown()));
            }
            return Ok(Self::Setting(
                group.parse().map_err(named)?,
                key.parse().map_err(named)?,
                right.to_owned(),
            ));
        }
        let group = left.parse().map_err(named)?;
        Ok(match right {
            "up" => Self::Up(group),
            "down" => Self::Down(group),
            state => Self::Group(group, state.parse().map_err(named)?),
        })
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// An operator's request for a transition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Request {
    /// What makes it idempotent: the same id asks for the same transition.
    pub request_id: String,
    /// Who asks.
    pub principal: String,
    /// What is to be so.
    pub targets: Vec<Target>,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What happens when a step fails for good; each group's own policy when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// Milliseconds from the request's arrival within which the decision must be taken; none: the phases'
    /// own deadlines only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// The plan that was shown: any other is refused with `plan-changed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
    /// Voters and holders whose no or silence does not count; never actors.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub overrides: BTreeSet<MemberId>,
    /// Members of lost hosts are left out rather than in the way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclude_lost: bool,
    /// The server asks for it by itself, to repair a group: it goes before whatever operators ask for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_automatic: bool,
    /// Freezes and closed windows are not in the way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub override_freeze: bool,
}

impl Request {
    /// Whether it goes ahead where a freeze or a closed window keeps planned change away: what repairs is not planned.
    pub fn passes_freezes(&self) -> bool {
        self.override_freeze || self.is_automatic
    }
}

/// What is in the way of what was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// It stays until somebody changes something: what is asked for, what is declared, a host, a freeze.
    Lasting,
    /// Where members are, which may be another place in a moment.
    States,
    /// Another request has the same id.
    SameId,
    /// Too much waits already.
    Load,
    /// The server, which may not decide now.
    Server,
}

macro_rules! codes {
    ($($code:ident $text:literal $obstacle:ident,)*) => {
        /// The stable code of a [`Rejection`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[expect(
            missing_docs,
            reason = "docs/errors/ has a page for each that is given; the others are kept for what is to come"
        )]
        pub enum Code {
            $(#[serde(rename = $text)] $code,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$code),*];

            /// The code as users see it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$code => $text,)*
                }
            }

            /// What is in the way.
            pub fn obstacle(self) -> Obstacle {
                match self {
                    $(Self::$code => Obstacle::$obstacle,)*
                }
            }
        }
    };
}

codes! {
    SpecInvalid "spec-invalid" Lasting,
    Cycle "cycle" Lasting,
    UnknownGroup "unknown-group" Lasting,
    UnknownHost "unknown-host" Lasting,
    UnknownMember "unknown-member" Lasting,
    UnknownState "unknown-state" Lasting,
    UnknownSetting "unknown-setting" Lasting,
    NoPath "no-path" States,
    LimitBroken "limit-broken" States,
    WouldBreakRequires "would-break-requires" States,
    RequirementDown "requirement-down" States,
    Excluded "excluded" States,
    NoCandidate "no-candidate" States,
    ActualUnknown "actual-unknown" States,
    MemberInDoubt "member-in-doubt" States,
    HostLost "host-lost" Lasting,
    Busy "busy" Load,
    Frozen "frozen" Lasting,
    WindowClosed "window-closed" Lasting,
    PlanChanged "plan-changed" Lasting,
    RequestConflict "request-conflict" SameId,
    NotAllowed "not-allowed" Lasting,
    TooLarge "too-large" Lasting,
    NotActive "not-active" Server,
    StoreUnavailable "store-unavailable" Server,
    ServerBehind "server-behind" Lasting,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal of what an operator asked for. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// What kind of refusal.
    pub code: Code,
    /// What is in the way.
    pub message: String,
    /// What to do about it.
    pub help: String,
    /// The host that is in the way by not being heard. Since when is not said here: messages become causes in the journal,
    /// and what is recorded does not hang on the wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
}

impl From<SpecError> for Rejection {
    fn from(error: SpecError) -> Self {
        let code = if error.is_cycle { Code::Cycle } else { Code::SpecInvalid };
        Self::new(code, error.to_string(), error.help)
    }
}

impl Rejection {
    /// A refusal of that kind.
    pub fn new(code: Code, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: help.into(), host: None }
    }

    /// The same, because of a host.
    pub fn because_of(self, host: &HostName) -> Self {
        Self { host: Some(host.clone()), ..self }
    }
}

/// Refuses a spec of another cluster than the one in force: it is almost surely meant for another server, and would
/// take every group away here that it does not declare.
///
/// # Errors
/// If the names differ.
pub fn check_same_cluster(known: &SpecFile, file: &SpecFile) -> Result<(), Rejection> {
    if known.cluster == file.cluster {
        return Ok(());
    }
    let message =
        format!("this server has cluster {:?}, and this declares cluster {:?}", known.cluster, file.cluster);
    let help = format!(
        "see whether it is the right server (--addr, LOCKSTEP_ADDR); a cluster keeps its name: to change this one \
         write cluster = {:?}",
        known.cluster
    );
    Err(Rejection::new(Code::NotAllowed, message, help))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_back_as_they_are_written() {
        for text in [
            "db=online",
            "db@pg-a.example=primary",
            "db=up",
            "db=down",
            "edge.live=a=b",
            "drain pg-a",
            "repair db",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        let long = format!("edge.live={}", "x".repeat(300));
        for bad in [
            "",
            "db",
            "=",
            "db=",
            "=online",
            "db@=x",
            "@h=x",
            "db@h=",
            "edge.=x",
            "a.b.c=x",
            "drain ",
            "drain a b",
            &long,
        ] {
            bad.parse::<Target>().unwrap_err();
        }
    }
}
