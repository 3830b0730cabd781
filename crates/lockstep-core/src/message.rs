//! What server and agents say to each other. These types are the wire format; golden fixtures hold it still.

use crate::id::{
    AgentId, Capability, ClusterId, GroupName, HandlerName, HostName, Index, MemberId, Reign, RunId,
    SettingId, SettingKey, StateName, StepId, Token, TransitionId,
};
use crate::relation::Published;
use crate::spec::SettingValue;
use crate::time::Time;
use crate::vote::Answer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What a handler is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Would it work? No side effects.
    Check,
    /// Get ready to act; what is said here must be kept.
    Prepare,
    /// Take a step.
    Commit,
    /// Take a step back.
    Undo,
    /// Forget what was prepared.
    Cancel,
    /// Hold clients.
    Hold,
    /// Let clients go.
    Release,
    /// What state is it in?
    Status,
    /// Be told.
    Notice,
    /// Make sure that another host's member has stopped.
    Fence,
    /// Go to the lowest state: the transition that it was part of goes on without it.
    Stop,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 11] = [
        Self::Check,
        Self::Prepare,
        Self::Commit,
        Self::Undo,
        Self::Cancel,
        Self::Hold,
        Self::Release,
        Self::Status,
        Self::Notice,
        Self::Fence,
        Self::Stop,
    ];

    /// The phase as handlers see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Undo => "undo",
            Self::Cancel => "cancel",
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Status => "status",
            Self::Notice => "notice",
            Self::Fence => "fence",
            Self::Stop => "stop",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Phase {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text).ok_or_else(|| format!("no phase {text:?}"))
    }
}

/// As what a member takes part in a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It takes steps.
    Actor,
    /// It is asked.
    Voter,
    /// It is asked, holds before the decision and releases after it.
    Holder,
    /// It is told.
    Observer,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Actor => "actor",
            Self::Voter => "voter",
            Self::Holder => "holder",
            Self::Observer => "observer",
        })
    }
}

/// The durable decision of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// It goes ahead.
    Commit,
    /// It does not.
    Abort,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Commit => "commit",
            Self::Abort => "abort",
        })
    }
}

/// How a transition ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Decided no: no step was ordered.
    Aborted,
    /// Decided yes: every step confirmed, or its member excluded with evidence.
    Committed,
    /// Decided yes, a step failed for good, every step taken was taken back.
    Undone,
    /// Decided yes, and named members could neither finish nor be taken back.
    Degraded,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Aborted => "aborted",
            Self::Committed => "committed",
            Self::Undone => "undone",
            Self::Degraded => "degraded",
        })
    }
}

/// A member's place in a [`Context`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContextMember {
    /// Which member.
    pub member: MemberId,
    /// Its host's address.
    #[serde(default)]
    pub address: Option<String>,
    /// The state it had before the transition.
    #[serde(default)]
    pub from: Option<StateName>,
    /// The state it should have after it.
    #[serde(default)]
    pub goal: Option<StateName>,
    /// The state it last reported.
    #[serde(default)]
    pub actual: Option<StateName>,
}

/// A setting that changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SettingChange {
    /// What it was; none: it had no value.
    #[serde(default)]
    pub from: Option<SettingValue>,
    /// What it is to be.
    #[serde(default)]
    pub to: Option<SettingValue>,
}

/// What a handler learns of the transition it is part of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Context {
    /// The settings of the member's group.
    #[serde(default)]
    pub settings: BTreeMap<SettingKey, SettingValue>,
    /// The settings as they were before; the same while no transition changes settings.
    #[serde(default)]
    pub was: BTreeMap<SettingKey, SettingValue>,
    /// The settings that the transition changes, of any group: what a voter or a holder is asked about.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub changes: BTreeMap<SettingId, SettingChange>,
    /// The members of its own and of related groups.
    pub members: Arc<Vec<ContextMember>>,
    /// What earlier calls handed on.
    #[serde(default)]
    pub out: BTreeMap<MemberId, Map<String, Value>>,
}

/// One call of a member's handler, ordered by the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Call {
    /// The member.
    pub member: MemberId,
    /// What for.
    pub phase: Phase,
    /// As what it takes part.
    pub role: Role,
    /// The transition; none for what an agent asks of its own accord, such as `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transition: Option<TransitionId>,
    /// The step: of `commit` and `undo`. With the transition, the phase and the member, the call's
    /// idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepId>,
    /// Counts the tries of one call from 1. A try is carried out once; a higher one is a new try.
    pub attempt: u32,
    /// The fencing token: absent before `begin` has given one (`check`), and in what an agent calls by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// The hash of the plan that a vote is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// The groups that move; for a voter or a holder, those of them that it is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject: Vec<GroupName>,
    /// The state to leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<StateName>,
    /// Where to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<StateName>,
    /// The decision, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Milliseconds left at sending, after which the answer is worth nothing.
    pub within_ms: u64,
    /// How long the hold may last, in milliseconds from receipt: with `hold`, and with the `prepare` of a
    /// member for which somebody holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_ms: Option<u64>,
    /// What the handler is told on its standard input; left out for a member without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Context>,
}

impl Call {
    /// A call of an actor's handler that belongs to no transition and says nothing else yet.
    pub fn bare(member: MemberId, phase: Phase) -> Self {
        Self {
            member,
            phase,
            role: Role::Actor,
            transition: None,
            step: None,
            attempt: 1,
            token: None,
            plan: None,
            subject: Vec::new(),
            from: None,
            to: None,
            decision: None,
            within_ms: 0,
            hold_ms: None,
            context: None,
        }
    }
}

/// A member that an agent looks after.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Assignment {
    /// The member.
    pub member: MemberId,
    /// Its handler's name.
    pub handler: HandlerName,
    /// The lowest state of its lifecycle: where a member without a handler begins.
    pub lowest: StateName,
    /// The states in which it may be only while its host's lease lasts: those limited by `max` or `excludes`, of a
    /// member whose group says `recover = "lease"`. Of all others it is empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub leased: BTreeSet<StateName>,
}

/// A numbered message to the related members on a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Notice {
    /// The journal index of the record it tells of.
    pub index: Index,
    /// The index of the host's previous notice; 0 when this is the first.
    pub previous: Index,
    /// The transition.
    pub transition: TransitionId,
    /// How it ended; none: it is about to be prepared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The calls that tell the handlers.
    pub calls: Vec<Call>,
}

/// What a host is told in place of notices that are no longer kept: how things stand now.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gap {
    /// The index of the last notice that is not told. The next one that is names it as its previous one.
    pub index: Index,
    /// The calls that tell the handlers: of no transition, with the members around them as they are.
    pub calls: Vec<Call>,
}

/// Server to agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "calls are what a server orders most")]
pub enum Order {
    /// The session stands.
    Welcome {
        /// The server's reign; an agent refuses a lower one than it has seen.
        reign: Reign,
        /// What the cluster is known by: an agent remembers it, and says it in its next hello.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster: Option<ClusterId>,
        /// The lease in milliseconds; to be renewed every third of it.
        lease_ms: u64,
        /// The members on this host.
        members: Vec<Assignment>,
    },
    /// The session is refused.
    Refused {
        /// Why, and what to do.
        message: String,
    },
    /// The members on this host have changed.
    Assign {
        /// All of them.
        members: Vec<Assignment>,
    },
    /// Call a handler.
    Call(Call),
    /// A transition has ended; what was kept of it may go.
    Outcome {
        /// Which.
        transition: TransitionId,
        /// How; none when the server knows no such transition: stay prepared.
        #[serde(default)]
        outcome: Option<Outcome>,
    },
    /// Tell the members.
    Notice(Notice),
    /// Tell the members that there was more than can be told.
    Gap(Gap),
    /// The lease goes on.
    Renewed {
        /// The `sent` of the renewal.
        sent: Time,
        /// The lease from now on in milliseconds, when it is another one than this host was told last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease_ms: Option<u64>,
    },
}

impl Order {
    /// The kinds of orders of this version. A later server may have others, which an agent leaves aside.
    pub const KINDS: [&'static str; 8] =
        ["welcome", "refused", "assign", "call", "outcome", "notice", "gap", "renewed"];
}

/// What a handler said on its standard output, or what is known without one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Findings {
    /// For later calls of the same transition.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub out: Map<String, Value>,
    /// How fit it is to be chosen: more is better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    /// Small values for people and other handlers.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub facts: Map<String, Value>,
    /// The state it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<StateName>,
    /// The processes that a guard would stop; none: nothing was said of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<BTreeSet<u32>>,
    /// What the loss of this host would mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// Capabilities that the software offers now: of a status.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub provides: BTreeSet<Capability>,
    /// Capabilities that it cannot serve without: of a status.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub consumes: BTreeSet<Capability>,
}

/// What the loss of a host means for a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// It completes the step.
    Gone,
}

/// The answer to a [`Call`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Done {
    /// The member.
    pub member: MemberId,
    /// What it was called for.
    pub phase: Phase,
    /// The transition, as it was ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transition: Option<TransitionId>,
    /// The step, as it was ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepId>,
    /// The try, as it was ordered.
    pub attempt: u32,
    /// The hash that was voted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Yes or done, no or failed, again.
    pub answer: Answer,
    /// Why, in the handler's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The order came under a lower token than this one and was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Token>,
    /// What the handler said.
    #[serde(default)]
    pub findings: Findings,
}

/// What an agent tells of itself when a session begins.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hello {
    /// The version of this protocol: [`PROTOCOL`].
    pub protocol: u32,
    /// The host.
    pub host: HostName,
    /// The agent's identity, from its data directory.
    pub agent: AgentId,
    /// This run of it.
    pub run: RunId,
    /// Where other hosts reach the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The labels of its configuration.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The highest reign it has seen.
    pub reign: Reign,
    /// The cluster it belongs to; none before its first welcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    /// The highest token it has seen, of any group.
    pub token: Token,
    /// The transitions it has not been told the outcome of.
    #[serde(default)]
    pub open: Vec<TransitionId>,
    /// The index of the last notice it has taken.
    pub noticed: Index,
    /// Whether its host can make sure that another one has stopped: it has a handler called `fence`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fences: bool,
}

/// The version of the agent protocol.
pub const PROTOCOL: u32 = 1;

/// Agent to server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// A session begins.
    Hello(Hello),
    /// The lease is to go on.
    Renew {
        /// The agent's clock at sending.
        sent: Time,
        /// The transitions that it has not been told the outcome of, as with `Hello`; none: it does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        open: Option<Vec<TransitionId>>,
        /// The lease that it goes by, in milliseconds; none: it does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease_ms: Option<u64>,
    },
    /// A call has ended.
    Done(Done),
    /// A hold has ended by itself.
    HoldEnded {
        /// The transition.
        transition: TransitionId,
        /// The holder.
        member: MemberId,
    },
    /// What state a member is in, unasked.
    State {
        /// The member.
        member: MemberId,
        /// The state; none when it could not be told.
        state: Option<StateName>,
        /// How fit it is to be chosen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        score: Option<i64>,
        /// Why the state could not be told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Small values for people and other handlers.
        #[serde(default, skip_serializing_if = "Map::is_empty")]
        facts: Map<String, Value>,
        /// The capabilities that it provides and consumes now, beside what the spec declares; none: as before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        published: Option<Published>,
        /// The states in which it is surely stopped when the lease ends, whatever becomes of the agent.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        guarded: BTreeSet<StateName>,
    },
    /// In which states a member is still surely stopped when the lease ends, whatever becomes of the agent: said at once
    /// when those become fewer, while what its handler does may take long.
    Guarded {
        /// The member.
        member: MemberId,
        /// The states.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        states: BTreeSet<StateName>,
    },
    /// Notices up to here have been taken.
    Noticed {
        /// The last one's index.
        index: Index,
    },
    /// The agent leaves; its members run on.
    Goodbye,
}
