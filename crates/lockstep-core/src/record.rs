//! The journal's records: all that a cluster is, is a fold over them. These types are the stored format;
//! golden fixtures hold it still.

use crate::id::{AgentId, ClusterId, GroupName, HostName, Index, MemberId, StateName, StepId, TransitionId};
use crate::message::{Decision, Outcome};
use crate::plan::Plan;
use crate::relation::Published;
use crate::request::Request;
use crate::spec::SpecFile;
use crate::time::WallTime;
use crate::vote::Vote;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// One record, with the wall-clock time at which it was proposed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// When, for people.
    pub at: WallTime,
    /// What.
    #[serde(flatten)]
    pub body: Body,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Body {
    /// A server has become the active one; its reign, as agents see it, is this record's index.
    Reign {
        /// The server's name.
        server: String,
        /// The lease of hosts where the spec has none, in milliseconds; none: 3000. Whoever takes over on a shared
        /// store says more: hosts have to outlast that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease_ms: Option<u64>,
        /// What the cluster is known by from now on; none: it has its identity already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster: Option<ClusterId>,
    },
    /// The declared cluster.
    Spec {
        /// As it was written.
        spec: Arc<SpecFile>,
        /// Who applied it.
        principal: String,
    },
    /// A host.
    Host {
        /// Which.
        host: HostName,
        /// What became of it.
        change: HostChange,
    },
    /// An operator's request; the transition is named by this record's index.
    Request {
        /// What was asked for.
        request: Arc<Request>,
    },
    /// A plan that is about to be prepared; the token of its orders is this record's index.
    Begin {
        /// Which.
        transition: TransitionId,
        /// The plan.
        plan: Arc<Plan>,
    },
    /// The decision.
    Decision {
        /// Which.
        transition: TransitionId,
        /// Commit or abort.
        decision: Decision,
        /// Why it was aborted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<Cause>,
        /// The votes that were cast.
        votes: Arc<Vec<Vote>>,
        /// The plan that they are on, of a transition that is aborted before it has begun: no other record has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan: Option<Arc<Plan>>,
    },
    /// What has come of steps and holds.
    Step {
        /// Which.
        transition: TransitionId,
        /// In the order in which they were reported.
        results: Vec<StepResult>,
    },
    /// A decided transition changes its course; the token of its further orders is this record's index.
    Turn {
        /// Which.
        transition: TransitionId,
        /// Where to.
        turn: Turn,
        /// The member whose failure it answers.
        member: MemberId,
        /// That member's reason.
        reason: String,
    },
    /// The end.
    Outcome {
        /// Which.
        transition: TransitionId,
        /// How.
        outcome: Outcome,
        /// The members that were left elsewhere than planned.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        left: BTreeMap<MemberId, Left>,
        /// The observers that had not acknowledged the intent by then; nobody waits for them.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        untold: BTreeSet<MemberId>,
    },
    /// The state of a member, changed outside a transition.
    Report {
        /// Which.
        member: MemberId,
        /// The state; none when it could not be told.
        actual: Option<StateName>,
    },
    /// Where members of a host that cannot be asked surely are, and how that is known.
    Evidence {
        /// The members, and the states that they count as being in.
        members: BTreeMap<MemberId, StateName>,
        /// How it is known.
        by: Evidence,
    },
    /// The server is going to be away: hosts are told of a longer lease first.
    Away {
        /// That lease, in milliseconds.
        lease_ms: u64,
        /// Who said so.
        principal: String,
    },
    /// No planned transition is to move these groups.
    Freeze {
        /// Which; none: the whole cluster.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        groups: BTreeSet<GroupName>,
        /// When that is over by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<WallTime>,
        /// Why, in the operator's words.
        reason: String,
        /// Who wants it.
        principal: String,
    },
    /// Freezes are over.
    Thaw {
        /// Which, each by the index of its record.
        freezes: BTreeSet<Index>,
        /// Of these groups only; none: wholly.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        groups: BTreeSet<GroupName>,
        /// Who has thawed them; none: their time was over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
    },
    /// No host goes by a longer lease than this any more.
    Lease {
        /// That lease, in milliseconds.
        lease_ms: u64,
    },
    /// What hosts know by now: it need not be kept for them any longer.
    Acknowledged {
        /// Of each, what is new since it was last recorded.
        hosts: BTreeMap<HostName, Acknowledged>,
    },
}

/// How it is known where a member is that cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Evidence {
    /// Its host's lease has ended, and it is stopped by then.
    Lease,
    /// A fence handler has made sure of it.
    Fence {
        /// On which host it ran.
        on: HostName,
    },
    /// A person has.
    Person {
        /// Who.
        principal: String,
        /// In that person's words.
        reason: String,
    },
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lease => f.write_str("its lease has ended"),
            Self::Fence { on } => write!(f, "fenced from {on}"),
            Self::Person { principal, reason } => write!(f, "{principal} says so, {reason:?}"),
        }
    }
}

/// What a host knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The newest notice that it has taken; 0 when that is not new.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub noticed: Index,
    /// The transitions whose outcome it has taken.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub outcomes: BTreeSet<TransitionId>,
}

fn is_zero(index: &Index) -> bool {
    index.0 == 0
}

/// What became of a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum HostChange {
    /// Its agent has come, or come back.
    Joined {
        /// The agent's identity.
        agent: AgentId,
        /// Where other hosts reach it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
        /// Its labels.
        labels: BTreeMap<String, String>,
    },
    /// What a member of its says that it provides and consumes.
    Published {
        /// The member's group.
        group: GroupName,
        /// All of it.
        published: Arc<Published>,
    },
    /// In which states a member of its is surely stopped when its lease ends.
    Guarded {
        /// The member's group.
        group: GroupName,
        /// All of them.
        states: BTreeSet<StateName>,
    },
    /// It takes members again after it was drained.
    Undrained,
    /// An operator, or a program of its own, has set labels of it: over those of its configuration, until they are
    /// taken away again.
    Labelled {
        /// The labels; none: the one of its configuration counts again.
        labels: BTreeMap<String, Option<String>>,
    },
    /// It is gone for good, and its name is free.
    Forgotten,
    /// It is seen differently.
    Liveness {
        /// How.
        liveness: Liveness,
    },
}

/// How a host is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Liveness {
    /// Its session stands.
    #[default]
    Alive,
    /// Its session is closed or its renewal late.
    Suspect,
    /// Its lease has run out.
    Lost,
    /// It has left by itself.
    Left,
    /// Somebody made sure that it has stopped.
    Fenced,
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Lost => "lost",
            Self::Left => "left",
            Self::Fenced => "fenced",
        })
    }
}

/// Why a transition was aborted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cause {
    /// An abort reason or a rejection code.
    pub code: String,
    /// What happened, for people.
    pub message: String,
    /// The member that stood in the way, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberId>,
}

/// Which way a step was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// As planned.
    Forward,
    /// Taken back.
    Back,
}

/// What has come of a step or a hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum StepResult {
    /// The handler confirmed the step.
    Confirmed {
        /// Which.
        step: StepId,
        /// Which way.
        direction: Direction,
    },
    /// The handler ended and failed, for good.
    Failed {
        /// Which.
        step: StepId,
        /// Which way.
        direction: Direction,
        /// Its reason.
        reason: String,
    },
    /// The handler's end is not known, and the deadline has passed.
    Unknown {
        /// Which.
        step: StepId,
        /// Which way.
        direction: Direction,
    },
    /// An excluded member was stopped: the evidence that it is in the lowest state.
    Stopped {
        /// Which.
        member: MemberId,
    },
    /// A hold has ended.
    HoldEnded {
        /// The holder.
        member: MemberId,
        /// How.
        end: HoldEnd,
    },
}

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldEnd {
    /// The holder released it when it was told to.
    Released,
    /// The holder released it by itself at its end.
    Ended,
    /// Nothing was heard of it until its stated end.
    Presumed,
}

/// How a decided transition changes its course.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turn {
    /// Every step taken is taken back.
    Undo,
    /// The member is left out.
    Exclude,
}

/// A member that a transition could neither finish nor take back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Left {
    /// What is known of it.
    pub problem: String,
    /// Who has to act, and how.
    pub next: String,
    /// Whether its state is not known, rather than known and wrong.
    pub in_doubt: bool,
}
