//! What the event stream says: one event for each record of the journal, and beside them what is provisional.
//!
//! Converted by hand from the records, like the objects. What is large and has a place of its own is left out: a
//! spec is at `/v1/spec`, plan and votes of a transition are at `/v1/transitions/{id}`.

use super::object::{Left, Vote, direction, hold_end, settings, strings};
use crate::server::handle::View;
use lockstep_core::cluster::Transition;
use lockstep_core::id::{GroupName, Index, MemberId, StepId, TransitionId};
use lockstep_core::record::{Body, Direction, Evidence, HostChange, Record, StepResult, Turn};
use lockstep_core::{plan, vote};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// The journal index of its record, from which a stream resumes; null of what is provisional.
    pub revision: Option<u64>,
    /// When it was recorded; null of what is provisional.
    pub at: Option<String>,
    /// Whether it is in no record: it is shown as it goes, may be left out, and does not come again.
    pub provisional: bool,
    /// What has happened.
    #[serde(flatten)]
    pub what: What,
}

/// What has happened. Readers must ignore kinds that they do not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum What {
    /// A server has become the active one.
    Reign {
        /// Its name.
        server: String,
    },
    /// A cluster was declared.
    Spec {
        /// Its name.
        cluster: String,
        /// Who declared it.
        principal: String,
    },
    /// A host's agent has come, or come back.
    HostJoined {
        /// Which host.
        host: String,
        /// Where other hosts reach it.
        address: Option<String>,
        /// Its labels.
        labels: BTreeMap<String, String>,
    },
    /// A host is seen differently.
    HostLiveness {
        /// Which.
        host: String,
        /// `alive`, `suspect`, `lost`, `left` or `fenced`.
        liveness: String,
    },
    /// A member says anew what it provides and consumes, beside what its group declares.
    MemberPublished {
        /// Which.
        member: String,
        /// The capabilities that it provides.
        provides: Vec<String>,
        /// Those that it consumes.
        consumes: Vec<String>,
    },
    /// Labels of a host were set, or taken away again.
    HostLabelled {
        /// Which.
        host: String,
        /// The labels; null: the one of its configuration counts again.
        labels: BTreeMap<String, Option<String>>,
    },
    /// A host is gone for good.
    HostForgotten {
        /// Which.
        host: String,
    },
    /// A host takes members again after it was drained.
    HostUndrained {
        /// Which.
        host: String,
    },
    /// A transition was asked for.
    Request {
        /// Its name.
        transition: String,
        /// The groups that are named.
        groups: Vec<String>,
        /// What makes the request idempotent.
        request_id: String,
        /// Who asked.
        principal: String,
        /// What was asked for.
        targets: Vec<String>,
        /// The operator's words.
        reason: Option<String>,
        /// The voters and holders whose no, or silence, is not to count.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        overrides: Vec<String>,
        /// Whether freezes and closed windows are not to be in the way.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        override_freeze: bool,
    },
    /// Everybody has voted yes in check, and prepare begins.
    Begin {
        /// Of which transition.
        transition: String,
        /// The groups that it claims: those with actors or holders.
        groups: Vec<String>,
        /// The fencing number of its orders.
        token: u64,
        /// The plan's hash.
        plan: String,
        /// How many steps the plan has.
        steps: u64,
        /// How many take part; one that has two roles counts twice.
        participants: u64,
        /// Groups that stop serving inside their own move.
        gaps: Vec<String>,
    },
    /// A transition is decided.
    Decision {
        /// Which.
        transition: String,
        /// As in `begin`, or in `request` while nothing has begun.
        groups: Vec<String>,
        /// `commit` or `abort`.
        decision: String,
        /// Why it was aborted: an abort reason or a rejection code.
        cause: Option<String>,
        /// The cause, for people.
        message: Option<String>,
        /// The member that stood in the way.
        member: Option<String>,
    },
    /// Steps or holds have ended.
    Step {
        /// Of which transition.
        transition: String,
        /// As in `decision`.
        groups: Vec<String>,
        /// What has come of them.
        results: Vec<Ended>,
    },
    /// A decided transition changes its course.
    Turn {
        /// Which.
        transition: String,
        /// As in `decision`.
        groups: Vec<String>,
        /// `undo` or `exclude`.
        turn: String,
        /// The member whose failure it answers.
        member: String,
        /// That member's reason.
        reason: String,
    },
    /// A transition has ended.
    Outcome {
        /// Which.
        transition: String,
        /// As in `decision`.
        groups: Vec<String>,
        /// `committed`, `aborted`, `undone` or `degraded`.
        outcome: String,
        /// The members that were left elsewhere than planned.
        left: Vec<Left>,
        /// The observers that had not acknowledged the intent.
        untold: Vec<String>,
    },
    /// It is known where members are that cannot tell.
    Evidence {
        /// The state of each.
        members: BTreeMap<String, String>,
        /// How it is known: `lease`, `fence` or `person`.
        by: String,
        /// On which host the fence handler ran.
        on: Option<String>,
        /// Which person.
        principal: Option<String>,
        /// In that person's words.
        reason: Option<String>,
    },
    /// The server is going to be away: hosts are told of a longer lease.
    Away {
        /// That lease, in milliseconds.
        lease_ms: u64,
        /// Who said so.
        principal: String,
    },
    /// No host goes by a longer lease than this any more.
    Lease {
        /// That lease, in milliseconds.
        lease_ms: u64,
    },
    /// In which states a member is surely stopped when its host's lease ends.
    MemberGuarded {
        /// Which.
        member: String,
        /// The states.
        states: Vec<String>,
    },
    /// No planned transition is to move some groups.
    Freeze {
        /// Which; none: the whole cluster.
        groups: Vec<String>,
        /// When that ends by itself; null: not before they are thawed.
        until: Option<String>,
        /// The operator's words.
        reason: String,
        /// Who wants it.
        principal: String,
    },
    /// Freezes are over.
    Thaw {
        /// Which, each by the revision that brought it.
        freezes: Vec<u64>,
        /// Of these groups only; none: wholly.
        groups: Vec<String>,
        /// Who has thawed them; null: their time was over.
        principal: Option<String>,
    },
    /// Some hosts have taken outcomes and notices, which need not be kept for them any longer.
    Acknowledged {
        /// Which.
        hosts: Vec<String>,
    },
    /// The state of a member has changed outside a transition.
    Report {
        /// Which.
        member: String,
        /// The state; null when it could not be told.
        actual: Option<String>,
    },
    /// Provisional: a transition has come to a phase.
    Phase {
        /// Which.
        transition: String,
        /// As in `decision`.
        groups: Vec<String>,
        /// `queued`, `check`, `prepare`, `commit` or `release`.
        phase: String,
    },
    /// Provisional: a vote was counted.
    Vote {
        /// In which transition.
        transition: String,
        /// As in `decision`.
        groups: Vec<String>,
        /// The vote.
        vote: Vote,
    },
}

/// A step or a hold that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ended {
    /// Whose; null when the transition is not kept any more.
    pub member: Option<String>,
    /// The step's number in the plan; null of a hold, and of a member that was left out and has stopped.
    pub step: Option<u32>,
    /// `forward` or `back`, of a step.
    pub direction: Option<String>,
    /// The state that the step leads to, that way.
    pub to: Option<String>,
    /// The settings that the step takes; none when it is taken back.
    pub set: Map<String, Value>,
    /// Of a step `confirmed`, `failed` or `unknown`; of a hold `released`, `ended` (by itself, at its end) or `presumed`
    /// (not heard of until its end); `stopped` of a member that was left out.
    pub result: String,
    /// Why it failed.
    pub reason: Option<String>,
}

impl Event {
    /// A record as an event. What the record does not say of its transition, `view` does, which includes the record.
    pub fn of(view: &View, index: Index, record: &Record) -> Self {
        let at = Some(record.at.to_string());
        Self { revision: Some(index.0), at, provisional: false, what: What::of(view, index, &record.body) }
    }

    /// A phase that a transition has come to.
    pub fn phase(view: &View, id: TransitionId, phase: &str) -> Self {
        let (transition, groups, phase) = (id.to_string(), groups(view, id), phase.to_owned());
        Self::provisional(What::Phase { transition, groups, phase })
    }

    /// A vote in a transition that is not decided yet.
    pub fn vote(view: &View, id: TransitionId, vote: &vote::Vote) -> Self {
        let (transition, groups, vote) = (id.to_string(), groups(view, id), Vote::of(vote, true));
        Self::provisional(What::Vote { transition, groups, vote })
    }

    fn provisional(what: What) -> Self {
        Self { revision: None, at: None, provisional: true, what }
    }
}

impl What {
    fn of(view: &View, index: Index, body: &Body) -> Self {
        match body {
            Body::Reign { server, .. } => Self::Reign { server: server.clone() },
            Body::Spec { spec, principal } => {
                Self::Spec { cluster: spec.cluster.to_string(), principal: principal.clone() }
            }
            Body::Host { host, change: HostChange::Joined { agent: _, address, labels } } => {
                let (address, labels) = (address.clone(), labels.clone());
                Self::HostJoined { host: host.to_string(), address, labels }
            }
            Body::Host { host, change: HostChange::Liveness { liveness } } => {
                Self::HostLiveness { host: host.to_string(), liveness: liveness.to_string() }
            }
            Body::Host { host, change: HostChange::Published { group, published } } => {
                let (provides, consumes) = (strings(&published.provides), strings(&published.consumes));
                let member = MemberId { group: group.clone(), host: host.clone() };
                Self::MemberPublished { member: member.to_string(), provides, consumes }
            }
            Body::Host { host, change: HostChange::Labelled { labels } } => {
                Self::HostLabelled { host: host.to_string(), labels: labels.clone() }
            }
            Body::Host { host, change: HostChange::Forgotten } => {
                Self::HostForgotten { host: host.to_string() }
            }
            Body::Host { host, change: HostChange::Guarded { group, states } } => {
                Self::MemberGuarded { member: format!("{group}@{host}"), states: strings(states) }
            }
            Body::Host { host, change: HostChange::Undrained } => {
                Self::HostUndrained { host: host.to_string() }
            }
            Body::Request { request } => Self::Request {
                transition: TransitionId(index.0).to_string(),
                groups: strings(named(request)),
                request_id: request.request_id.clone(),
                principal: request.principal.clone(),
                targets: strings(&request.targets),
                reason: request.reason.clone(),
                overrides: strings(&request.overrides),
                override_freeze: request.override_freeze,
            },
            Body::Begin { transition, plan } => Self::Begin {
                transition: transition.to_string(),
                groups: strings(&plan.exclusive),
                token: index.0,
                plan: plan.hash.clone(),
                steps: plan.steps.len() as u64,
                participants: plan.participants.len() as u64,
                gaps: strings(&plan.gaps),
            },
            Body::Decision { transition, decision, cause, votes: _, plan: _ } => Self::Decision {
                transition: transition.to_string(),
                groups: groups(view, *transition),
                decision: decision.to_string(),
                cause: cause.as_ref().map(|cause| cause.code.clone()),
                message: cause.as_ref().map(|cause| cause.message.clone()),
                member: cause.as_ref().and_then(|cause| cause.member.as_ref()).map(ToString::to_string),
            },
            Body::Step { transition, results } => {
                let kept = view.cluster.transitions.get(transition);
                let plan = kept.and_then(|kept| kept.plan.as_deref());
                Self::Step {
                    transition: transition.to_string(),
                    groups: groups(view, *transition),
                    results: results.iter().map(|result| Ended::of(plan, result)).collect(),
                }
            }
            Body::Turn { transition, turn, member, reason } => Self::Turn {
                transition: transition.to_string(),
                groups: groups(view, *transition),
                turn: match turn {
                    Turn::Undo => "undo".to_owned(),
                    Turn::Exclude => "exclude".to_owned(),
                },
                member: member.to_string(),
                reason: reason.clone(),
            },
            Body::Outcome { transition, outcome, left, untold } => Self::Outcome {
                transition: transition.to_string(),
                groups: groups(view, *transition),
                outcome: outcome.to_string(),
                left: left.iter().map(Left::of).collect(),
                untold: strings(untold),
            },
            Body::Evidence { members, by } => {
                let members = members.iter().map(|(id, state)| (id.to_string(), state.to_string())).collect();
                let (by, on, principal, reason) = match by {
                    Evidence::Lease => ("lease", None, None, None),
                    Evidence::Fence { on } => ("fence", Some(on.to_string()), None, None),
                    Evidence::Person { principal, reason } => {
                        ("person", None, Some(principal.clone()), Some(reason.clone()))
                    }
                };
                Self::Evidence { members, by: by.to_owned(), on, principal, reason }
            }
            Body::Away { lease_ms, principal } => {
                Self::Away { lease_ms: *lease_ms, principal: principal.clone() }
            }
            Body::Freeze { groups, until, reason, principal } => Self::Freeze {
                groups: strings(groups),
                until: until.map(|until| until.to_string()),
                reason: reason.clone(),
                principal: principal.clone(),
            },
            Body::Thaw { freezes, groups, principal } => Self::Thaw {
                freezes: freezes.iter().map(|index| index.0).collect(),
                groups: strings(groups),
                principal: principal.clone(),
            },
            Body::Lease { lease_ms } => Self::Lease { lease_ms: *lease_ms },
            Body::Acknowledged { hosts } => Self::Acknowledged { hosts: strings(hosts.keys()) },
            Body::Report { member, actual } => {
                Self::Report { member: member.to_string(), actual: actual.as_ref().map(ToString::to_string) }
            }
        }
    }
}

impl Ended {
    fn of(plan: Option<&plan::Plan>, result: &StepResult) -> Self {
        let of_step = |step: StepId, way: Direction, result: &str, reason: Option<&String>| {
            let planned = plan.and_then(|plan| plan.steps.get(step.0 as usize));
            let to = planned.map(|planned| match way {
                Direction::Forward => planned.to.to_string(),
                Direction::Back => planned.from.to_string(),
            });
            let set = planned.filter(|_| way == Direction::Forward).map(|planned| settings(&planned.set));
            Self {
                member: planned.map(|planned| planned.member.to_string()),
                step: Some(step.0),
                direction: Some(direction(way).to_owned()),
                to,
                set: set.unwrap_or_default(),
                result: result.to_owned(),
                reason: reason.cloned(),
            }
        };
        let of_member = |member: &MemberId, result: &str| Self {
            member: Some(member.to_string()),
            step: None,
            direction: None,
            to: None,
            set: Map::new(),
            result: result.to_owned(),
            reason: None,
        };
        match result {
            StepResult::Confirmed { step, direction } => of_step(*step, *direction, "confirmed", None),
            StepResult::Failed { step, direction, reason } => {
                of_step(*step, *direction, "failed", Some(reason))
            }
            StepResult::Unknown { step, direction } => of_step(*step, *direction, "unknown", None),
            StepResult::Stopped { member } => of_member(member, "stopped"),
            StepResult::HoldEnded { member, end } => of_member(member, hold_end(*end)),
        }
    }
}

/// The groups that a transition concerns, as far as is known: none when it is not kept any more.
fn groups(view: &View, id: TransitionId) -> Vec<String> {
    let of = |transition: &Transition| match &transition.plan {
        Some(plan) => strings(&plan.exclusive),
        None => strings(named(&transition.request)),
    };
    view.cluster.transitions.get(&id).map(|transition| of(transition)).unwrap_or_default()
}

fn named(request: &lockstep_core::request::Request) -> BTreeSet<&GroupName> {
    request.targets.iter().filter_map(|target| target.group()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::path::Path;

    /// Every kind of record that there is: the journal's golden fixtures.
    #[test]
    fn each_record_is_one_event() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lockstep-core/tests/data/golden");
        let text = std::fs::read_to_string(dir.join("record.jsonl")).unwrap();
        let mut told = String::new();
        for (index, line) in (1..).map(Index).zip(text.lines()) {
            let record: Record = serde_json::from_str(line).unwrap();
            // Nothing is kept of the transitions that they speak of.
            let event = Event::of(&View::default(), index, &record);
            let shown = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&shown).unwrap(), event);
            told.push_str(&format!("{shown}\n"));
        }
        expect![[r#"
            {"revision":1,"at":"2023-11-14T22:13:20.000Z","provisional":false,"kind":"reign","server":"server-1"}
            {"revision":2,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"spec","cluster":"shop","principal":"ann"}
            {"revision":3,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"host-joined","host":"a","address":"10.0.0.1","labels":{"role":"db"}}
            {"revision":4,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"host-liveness","host":"a","liveness":"suspect"}
            {"revision":5,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"request","transition":"t5","groups":["db","edge"],"request_id":"r-1","principal":"ann","targets":["db=primary","db@a=standby","db=up","db=down","edge.live=green","drain a"],"reason":"kernel"}
            {"revision":6,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"begin","transition":"t7","groups":["db","pool"],"token":6,"plan":"0123abcd","steps":1,"participants":2,"gaps":["db"]}
            {"revision":7,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"decision","transition":"t7","groups":[],"decision":"abort","cause":"vote-no","message":"db@a said no","member":"db@a"}
            {"revision":8,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"decision","transition":"t7","groups":[],"decision":"commit","cause":null,"message":null,"member":null}
            {"revision":9,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"decision","transition":"t7","groups":[],"decision":"abort","cause":"operator","message":"an operator aborted it","member":null}
            {"revision":10,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"step","transition":"t7","groups":[],"results":[{"member":null,"step":0,"direction":"forward","to":null,"set":{},"result":"confirmed","reason":null},{"member":null,"step":1,"direction":"back","to":null,"set":{},"result":"failed","reason":"disk"},{"member":null,"step":2,"direction":"forward","to":null,"set":{},"result":"unknown","reason":null},{"member":"db@a","step":null,"direction":null,"to":null,"set":{},"result":"stopped","reason":null},{"member":"pool@p","step":null,"direction":null,"to":null,"set":{},"result":"released","reason":null},{"member":"pool@p","step":null,"direction":null,"to":null,"set":{},"result":"ended","reason":null},{"member":"pool@p","step":null,"direction":null,"to":null,"set":{},"result":"presumed","reason":null}]}
            {"revision":11,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"turn","transition":"t7","groups":[],"turn":"undo","member":"db@a","reason":"disk"}
            {"revision":12,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"turn","transition":"t7","groups":[],"turn":"exclude","member":"db@a","reason":"disk"}
            {"revision":13,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"outcome","transition":"t7","groups":[],"outcome":"degraded","left":[{"member":"db@a","problem":"nobody knows","next":"look","in_doubt":true}],"untold":[]}
            {"revision":14,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"outcome","transition":"t7","groups":[],"outcome":"committed","left":[],"untold":[]}
            {"revision":15,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"outcome","transition":"t7","groups":[],"outcome":"committed","left":[],"untold":["app@w"]}
            {"revision":16,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"acknowledged","hosts":["a","b","c"]}
            {"revision":17,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"report","member":"db@a","actual":"standby"}
            {"revision":18,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"report","member":"db@a","actual":null}
            {"revision":19,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"member-published","member":"db@a","provides":["sql"],"consumes":["disk"]}
            {"revision":20,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"host-undrained","host":"a"}
            {"revision":21,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"host-labelled","host":"a","labels":{"role":null,"zone":"z1"}}
            {"revision":22,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"host-forgotten","host":"a"}
            {"revision":23,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"member-guarded","member":"db@a","states":["primary"]}
            {"revision":24,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"evidence","members":{"db@a":"offline"},"by":"lease","on":null,"principal":null,"reason":null}
            {"revision":25,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"evidence","members":{"db@a":"offline"},"by":"fence","on":"b","principal":null,"reason":null}
            {"revision":26,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"evidence","members":{"db@a":"offline"},"by":"person","on":null,"principal":"ann","reason":"pulled the plug"}
            {"revision":27,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"away","lease_ms":60000,"principal":"ann"}
            {"revision":28,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"request","transition":"t28","groups":["db"],"request_id":"repair-db-9","principal":"lockstep","targets":["repair db"],"reason":"host a is lost"}
            {"revision":29,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"freeze","groups":["db","web"],"until":"2023-11-14T22:13:20.000Z","reason":"audit","principal":"ann"}
            {"revision":30,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"freeze","groups":[],"until":null,"reason":"audit","principal":"ann"}
            {"revision":31,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"thaw","freezes":[22,23],"groups":["db"],"principal":"ann"}
            {"revision":32,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"thaw","freezes":[22],"groups":[],"principal":null}
            {"revision":33,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"lease","lease_ms":3000}
            {"revision":34,"at":"2023-11-14T22:13:20.000Z","provisional":false,"kind":"reign","server":"server-1"}
            {"revision":35,"at":"1970-01-01T00:00:00.001Z","provisional":false,"kind":"reign","server":"server-1"}
        "#]].assert_eq(&told);
    }
}
