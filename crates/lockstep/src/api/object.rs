//! The public API's objects, converted by hand from core's: what core renames does not move under its users.
//!
//! Fields are null until they are known. Readers must ignore fields that they do not know.

use crate::server::handle::{self, View};
use lockstep_core::cluster::{self, Cluster, Mark, StepState};
use lockstep_core::id::{GroupName, HostName, MemberId, StateName, TransitionId};
use lockstep_core::lifecycle::Limit;
use lockstep_core::message::Role;
use lockstep_core::record::{Direction, HoldEnd};
use lockstep_core::request::Rejection;
use lockstep_core::spec::{self, Ask, OnFailure, Recover, Selector};
use lockstep_core::vote::{Answer, Round};
use lockstep_core::{plan, relation};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A list, with the revision that it was read at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub struct List<T> {
    /// The journal index up to which it is true.
    pub revision: u64,
    /// What it lists.
    pub items: Vec<T>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// `alive`, `suspect`, `lost`, `left` or `fenced`.
    pub liveness: String,
    /// Since when.
    #[serde(default)]
    pub since: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where other hosts reach it.
    pub address: Option<String>,
    /// Whether it has been drained: nobody is planned onto it, unless by its name.
    #[serde(default)]
    pub drained: bool,
    /// Whether it has come to this server since that became the active one. One that has not counts as it did before until
    /// its lease is over. Provisional; null from a standby.
    #[serde(default)]
    pub heard: Option<bool>,
}

impl Host {
    /// One host.
    pub fn of(view: &View, name: &HostName, host: &cluster::Host) -> Self {
        Self {
            name: name.to_string(),
            liveness: host.liveness.to_string(),
            since: (host.since.0 > 0).then(|| host.since.to_string()),
            labels: host.labels.clone(),
            address: host.address.clone(),
            drained: host.is_drained,
            heard: (view.role == handle::Role::Active).then(|| view.heard.contains(name)),
        }
    }

    /// All hosts.
    pub fn all(view: &View) -> Vec<Self> {
        view.cluster.hosts.iter().map(|(name, host)| Self::of(view, name, host)).collect()
    }

    /// Its liveness, as people read it: `alive`, `alive (not heard yet)`.
    pub fn stands(&self) -> String {
        let may_come = matches!(self.liveness.as_str(), "alive" | "suspect");
        let unheard = if may_come && self.heard == Some(false) { " (not heard yet)" } else { "" };
        format!("{}{unheard}", self.liveness)
    }
}

/// A group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Labels that its hosts match.
    pub select: BTreeMap<String, Value>,
    /// The lifecycle's name.
    pub lifecycle: String,
    /// The lifecycle's states, lowest first.
    pub states: Vec<String>,
    /// The states in which a member serves.
    pub serving: Vec<String>,
    /// The edges a member may take.
    pub edges: Vec<(String, String)>,
    /// The limits in force.
    pub limits: BTreeMap<String, Limits>,
    /// The settings in force.
    pub settings: Map<String, Value>,
    /// The settings as they are declared: transitions change those in force.
    #[serde(default)]
    pub declared: Map<String, Value>,
    /// Of a group of groups: the groups of members in it. It has none itself.
    #[serde(default)]
    pub groups: Vec<String>,
    /// How many members may be on their way at once: a number, a percentage, `majority` or `all`.
    #[serde(default)]
    pub parallel: Option<Value>,
    /// Capabilities it offers.
    pub provides: Vec<String>,
    /// Capabilities it cannot serve without.
    pub consumes: Vec<String>,
    /// The handler's name.
    pub handler: String,
    /// `undo` or `exclude`.
    pub on_failure: String,
    /// How many members it has.
    pub members: u64,
    /// Whether every serving state's `min` is met.
    pub serves: bool,
    /// Whether a freeze keeps planned transitions from moving it, or a group in it.
    #[serde(default)]
    pub frozen: bool,
    /// When planned transitions may move it, in UTC, such as `mon-fri 22:00-04:00`; always when there are none.
    #[serde(default)]
    pub windows: Vec<String>,
    /// What it does by itself when hosts and members fail: `off`, `fence` or `lease`.
    #[serde(default)]
    pub recover: String,
    /// Why it is not being repaired, although it has to be.
    #[serde(default)]
    pub waits: Option<Waits>,
    /// The states that hosts had which were forgotten since, and that nobody has got in their place.
    #[serde(default)]
    pub vacant: Vec<String>,
}

/// What keeps a group from being repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waits {
    /// A rejection code.
    pub code: String,
    /// What is in the way.
    pub message: String,
    /// What to do about it.
    pub help: String,
    /// The host that is in the way, if it is one.
    #[serde(default)]
    pub host: Option<String>,
    /// Since when that host is as it is.
    #[serde(default)]
    pub since: Option<String>,
}

impl Waits {
    fn of(cluster: &Cluster, rejection: &Rejection) -> Self {
        let Rejection { code, message, help, host } = rejection;
        let since = host.as_ref().and_then(|host| cluster.hosts.get(host)).map(|host| host.since);
        Self {
            code: code.to_string(),
            message: message.clone(),
            help: help.clone(),
            host: host.as_ref().map(ToString::to_string),
            since: since.filter(|since| since.0 > 0).map(|since| since.to_string()),
        }
    }
}

/// The limits of one state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// At least so many: a number, a percentage, `majority` or `all`.
    pub min: Option<Value>,
    /// At most so many.
    pub max: Option<Value>,
}

impl Group {
    /// One group.
    pub fn of(view: &View, name: &GroupName, group: &spec::Group) -> Self {
        let cluster = &view.cluster;
        let written = cluster.spec_file.as_ref().and_then(|file| file.groups.get(name));
        let selector = |selector: &Selector| match selector {
            Selector::One(value) => Value::from(value.as_str()),
            Selector::OneOf(values) => Value::from(values.as_slice()),
        };
        let amount = |limit: Option<lockstep_core::lifecycle::Amount>| {
            limit.map(|amount| serde_json::to_value(amount).expect("an amount is plain data"))
        };
        let limits = |limit: &Limit| Limits { min: amount(limit.min), max: amount(limit.max) };
        Self {
            name: name.to_string(),
            select: group.select.iter().map(|(key, value)| (key.clone(), selector(value))).collect(),
            lifecycle: written.map(|file| file.lifecycle.to_string()).unwrap_or_default(),
            states: strings(&group.lifecycle.states),
            serving: strings(&group.lifecycle.serving),
            edges: group
                .lifecycle
                .edges
                .iter()
                .map(|(from, to)| (from.to_string(), to.to_string()))
                .collect(),
            limits: group.limits.iter().map(|(state, limit)| (state.to_string(), limits(limit))).collect(),
            settings: settings(&cluster.settings(name)),
            declared: settings(&group.settings),
            groups: Vec::new(),
            parallel: amount(Some(group.parallel)),
            provides: strings(&group.provides),
            consumes: strings(&group.consumes),
            handler: group.handler.to_string(),
            on_failure: match group.on_failure {
                OnFailure::Undo => "undo".to_owned(),
                OnFailure::Exclude => "exclude".to_owned(),
            },
            members: cluster.members_of(name).count() as u64,
            serves: cluster.serves(name),
            frozen: cluster.freeze_of(name).is_some(),
            windows: strings(group.windows.iter()),
            recover: match group.recover {
                Recover::Off => "off".to_owned(),
                Recover::Fence => "fence".to_owned(),
                Recover::Lease => "lease".to_owned(),
            },
            waits: view.waits.get(name).map(|rejection| Waits::of(cluster, rejection)),
            vacant: strings(cluster.vacant_in(name)),
        }
    }

    /// A group of groups.
    pub fn composite(view: &View, name: &GroupName, leaves: &BTreeSet<GroupName>) -> Self {
        Self {
            name: name.to_string(),
            groups: strings(leaves),
            members: leaves.iter().map(|leaf| view.cluster.members_of(leaf).count() as u64).sum(),
            serves: view.cluster.serves(name),
            frozen: leaves.iter().any(|leaf| view.cluster.freeze_of(leaf).is_some()),
            ..Self::default()
        }
    }

    /// All groups, groups of groups among them.
    pub fn all(view: &View) -> Vec<Self> {
        let spec = &view.cluster.spec;
        let groups = spec.groups.iter().map(|(name, group)| Self::of(view, name, group));
        let composites = spec.composites.iter().map(|(name, leaves)| Self::composite(view, name, leaves));
        let mut all: Vec<_> = groups.chain(composites).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

pub(super) fn strings<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

pub(super) fn settings(settings: &spec::Settings) -> Map<String, Value> {
    settings.iter().map(|(key, set)| (key.to_string(), setting(set))).collect()
}

fn setting(value: &spec::SettingValue) -> Value {
    match value {
        spec::SettingValue::Flag(flag) => Value::from(*flag),
        spec::SettingValue::Number(number) => Value::from(*number),
        spec::SettingValue::Text(text) => Value::from(text.as_str()),
    }
}

/// Somebody wants no planned change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Freeze {
    /// The groups that no planned transition may move; none: the whole cluster.
    pub groups: Vec<String>,
    /// The operator's words.
    pub reason: String,
    /// Who wants it.
    pub principal: String,
    /// Since when.
    pub since_at: String,
    /// The revision that brought it.
    pub since: u64,
    /// When it ends by itself; null: not before it is thawed.
    pub until: Option<String>,
}

impl Freeze {
    /// All that is frozen.
    pub fn all(view: &View) -> Vec<Self> {
        let freezes = view.cluster.freezes.iter().map(|(index, freeze)| Self {
            groups: strings(&freeze.groups),
            reason: freeze.reason.clone(),
            principal: freeze.principal.clone(),
            since_at: freeze.at.to_string(),
            since: index.0,
            until: freeze.until.map(|until| until.to_string()),
        });
        freezes.collect()
    }
}

/// A member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// Its group.
    pub group: String,
    /// Its host.
    pub host: String,
    /// Its host's liveness: with `lost` and `left`, `actual` without `evidence` is only what was last known.
    #[serde(default)]
    pub liveness: String,
    /// The state it should have; null until its first status.
    pub goal: Option<String>,
    /// The state it last reported; null while that is not known.
    pub actual: Option<String>,
    /// The transition that drives it.
    pub transition: Option<String>,
    /// The settings that it has taken; none before its first status.
    pub settings: Map<String, Value>,
    /// Capabilities that it says it provides, beside those that its group declares.
    #[serde(default)]
    pub provides: Vec<String>,
    /// Capabilities that it says it consumes.
    #[serde(default)]
    pub consumes: Vec<String>,
    /// `pending`, `failed`, `in-doubt` or null.
    pub mark: Option<String>,
    /// While its last transition has left it in doubt: the states that it may be in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub may_be: Vec<String>,
    /// Whether its host no longer matches the group's labels.
    pub leaving: bool,
    /// Where it goes back to by itself, once what it requires serves again.
    #[serde(default)]
    pub returns_to: Option<String>,
    /// The states in which it is surely stopped when its host's lease ends.
    #[serde(default)]
    pub guarded: Vec<String>,
    /// How it is known where it is, if somebody else than its own host has said so last.
    #[serde(default)]
    pub evidence: Option<String>,
    /// What it last published.
    pub facts: Map<String, Value>,
    /// How fit it last said to be; more is better.
    pub score: Option<i64>,
    /// Why its state is not known.
    pub reason: Option<String>,
}

impl Member {
    /// One member.
    pub fn of(view: &View, id: &MemberId, member: &cluster::Member) -> Self {
        let reported = view.reported.get(id);
        Self {
            group: id.group.to_string(),
            host: id.host.to_string(),
            liveness: view
                .cluster
                .hosts
                .get(&id.host)
                .map(|host| host.liveness.to_string())
                .unwrap_or_default(),
            goal: member.goal.as_ref().map(ToString::to_string),
            actual: member.actual.as_ref().map(ToString::to_string),
            transition: member.transition.map(|id| id.to_string()),
            settings: member.settings.as_deref().map(settings).unwrap_or_default(),
            provides: strings(&member.published.provides),
            consumes: strings(&member.published.consumes),
            mark: mark(view, id, member).map(str::to_owned),
            may_be: strings(&member.may_be),
            leaving: member.leaving,
            returns_to: member.returns_to.as_ref().map(ToString::to_string),
            guarded: strings(&member.guarded),
            evidence: member.evidence.as_ref().map(ToString::to_string),
            facts: reported.map(|reported| reported.facts.clone()).unwrap_or_default(),
            score: reported.and_then(|reported| reported.score),
            reason: reported.and_then(|reported| reported.reason.clone()),
        }
    }

    /// All members.
    pub fn all(view: &View) -> Vec<Self> {
        view.cluster.members.iter().map(|(id, member)| Self::of(view, id, member)).collect()
    }

    /// `group@host`.
    pub fn id(&self) -> String {
        format!("{}@{}", self.group, self.host)
    }

    /// Whether its state is only what was last known: its host is not heard, and nobody else has said anything.
    pub fn is_last_known(&self) -> bool {
        matches!(self.liveness.as_str(), "lost" | "left") && self.actual.is_some() && self.evidence.is_none()
    }
}

/// A member that is driven is not where it is to go until its handler has confirmed; on a host that does not
/// answer, nobody can tell.
fn mark(view: &View, id: &MemberId, member: &cluster::Member) -> Option<&'static str> {
    let is_on_its_way = member.transition.is_some() && member.actual != member.goal;
    match member.mark {
        Mark::InDoubt => Some("in-doubt"),
        Mark::Failed => Some("failed"),
        Mark::None if !is_on_its_way => None,
        Mark::None => {
            let is_reachable = view.cluster.hosts.get(&id.host).is_some_and(|host| host.is_reachable());
            Some(if is_reachable { "pending" } else { "in-doubt" })
        }
    }
}

/// The relations: a list that tells of those beside it which are declared and do not exist now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RelationList")]
pub struct Relations {
    /// The journal index up to which it is true.
    pub revision: u64,
    /// Those that exist.
    pub items: Vec<Relation>,
    /// Those that a `when` keeps from existing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<Relation>,
}

impl Relations {
    /// All relations of a cluster, served or read from files.
    pub fn of(cluster: &Cluster) -> Self {
        let edges = |relation| Relation::of(cluster, relation);
        let holds = |relation: &&Arc<relation::Relation>| relation.holds(|id| cluster.setting(id));
        let declared = cluster.spec.declared.iter();
        Self {
            revision: cluster.revision.0,
            items: cluster.relations.iter().flat_map(|relation| edges(relation)).collect(),
            absent: declared.filter(|known| !holds(known)).flat_map(|relation| edges(relation)).collect(),
        }
    }
}

/// A relation, one for each group that it leads to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Relation {
    /// The group that depends, or is told.
    pub from: String,
    /// The group it depends on, or is told of.
    pub to: String,
    /// `requires`, `after`, `excludes` or `watches`.
    pub kind: String,
    /// `vote`, `hold` or null.
    pub ask: Option<String>,
    /// Settings of `to` before whose change members of `from` are asked too.
    pub on: Vec<String>,
    /// How many of the groups in `among` must serve; null: this one must.
    pub need: Option<Value>,
    /// The groups of which so many must serve, this one among them.
    pub among: Vec<String>,
    /// The label in which paired members are equal.
    pub scope: Option<String>,
    /// The settings with which it exists, `group.key` to value.
    pub when: Map<String, Value>,
    /// The settings among them that have another value now, with that value: what keeps it from existing.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub unmet: Map<String, Value>,
    /// Whether `from` is taken down rather than a request refused.
    pub cascade: bool,
    /// Of `excludes`: both may serve, and never move at once.
    pub moving: bool,
    /// `declared` or `capability`.
    pub origin: String,
    /// The capability that `from` consumes and `to` provides, where that made it.
    pub capability: Option<String>,
    /// The revision that brought it; 0 while it does not exist.
    pub since: u64,
    /// When that was.
    pub since_at: Option<String>,
}

impl Relation {
    /// The edges of one relation.
    pub fn of(cluster: &Cluster, relation: &relation::Relation) -> Vec<Self> {
        let is_choice = relation.to.count() > 1;
        let unmet = relation.when.iter().filter_map(|(id, wanted)| {
            let now = cluster.setting(id);
            (now.as_ref() != Some(wanted))
                .then(|| (id.to_string(), now.as_ref().map_or(Value::Null, setting)))
        });
        let unmet: Map<_, _> = unmet.collect();
        let edge = |to: &GroupName| {
            let since = cluster.relations.since(relation, to).unwrap_or_default();
            Self {
                from: relation.from.to_string(),
                to: to.to_string(),
                kind: relation.kind.to_string(),
                ask: relation.ask.map(|ask| match ask {
                    Ask::Vote => "vote".to_owned(),
                    Ask::Hold => "hold".to_owned(),
                }),
                on: strings(&relation.on),
                need: is_choice
                    .then(|| serde_json::to_value(relation.need).expect("an amount is plain data")),
                among: if is_choice { strings(&relation.to) } else { Vec::new() },
                scope: relation.scope.clone(),
                when: relation.when.iter().map(|(id, value)| (id.to_string(), setting(value))).collect(),
                unmet: unmet.clone(),
                cascade: relation.cascade,
                moving: relation.moving,
                origin: origin(relation.origin).to_owned(),
                capability: relation.capability.as_ref().map(ToString::to_string),
                since: since.revision.0,
                since_at: (since.at.0 > 0).then(|| since.at.to_string()),
            }
        };
        relation.to.iter().map(edge).collect()
    }
}

fn origin(origin: relation::Origin) -> &'static str {
    match origin {
        relation::Origin::Declared => "declared",
        relation::Origin::Capability => "capability",
    }
}

/// A plan, the same online and offline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// What it is called.
    pub hash: String,
    /// The steps.
    pub steps: Vec<Step>,
    /// Points that wait for several steps so that several others wait for one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub barriers: Vec<Barrier>,
    /// Who takes part; one entry per role.
    pub participants: Vec<Participant>,
    /// The relations that concern the groups that move.
    pub relations: Vec<PlanRelation>,
    /// Groups that stop serving inside their own move.
    pub gaps: Vec<String>,
    /// The settings that change, `group.key` to the new value.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    /// The hosts that are drained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drains: Vec<String>,
    /// New goals of members, `group@host`, that take no step: their place is given to another, or they are where they are
    /// to be. Goals of those that do are in `steps`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub goals: BTreeMap<String, String>,
    /// Groups that it moves although they are frozen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frozen: Vec<String>,
}

/// One member taking one edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// Its number.
    pub id: u32,
    /// The member's group.
    pub group: String,
    /// The member's host.
    pub host: String,
    /// The state to leave.
    pub from: String,
    /// The state to enter; the same for a step that takes settings where the member is.
    pub to: String,
    /// The settings that such a step takes.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub set: Map<String, Value>,
    /// Steps and barriers that come directly before it.
    pub after: Vec<u32>,
}

/// A point that waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Barrier {
    /// Its number.
    pub id: u32,
    /// Steps and barriers that come directly before it.
    pub after: Vec<u32>,
}

/// Somebody who takes part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Participant {
    /// The member's group.
    pub group: String,
    /// The member's host.
    pub host: String,
    /// `actor`, `voter`, `holder` or `observer`.
    pub role: String,
}

/// A relation that a plan rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanRelation {
    /// The group that depends, or is told.
    pub from: String,
    /// The group it depends on, or is told of.
    pub to: String,
    /// `requires`, `after`, `excludes` or `watches`.
    pub kind: String,
    /// `declared` or `capability`.
    pub origin: String,
}

impl Plan {
    /// A plan.
    pub fn of(plan: &plan::Plan) -> Self {
        let after = |after: &[lockstep_core::id::StepId]| after.iter().map(|step| step.0).collect();
        let step = |step: &plan::Step| Step {
            id: step.id.0,
            group: step.member.group.to_string(),
            host: step.member.host.to_string(),
            from: step.from.to_string(),
            to: step.to.to_string(),
            set: settings(&step.set),
            after: after(&step.after),
        };
        let barrier = |barrier: &plan::Barrier| Barrier { id: barrier.id.0, after: after(&barrier.after) };
        let participant = |participant: &plan::Participant| Participant {
            group: participant.member.group.to_string(),
            host: participant.member.host.to_string(),
            role: participant.role.to_string(),
        };
        let relation = |relation: &relation::Relation, to: &GroupName| PlanRelation {
            from: relation.from.to_string(),
            to: to.to_string(),
            kind: relation.kind.to_string(),
            origin: origin(relation.origin).to_owned(),
        };
        let relations = plan.relations.iter().flat_map(|known| known.to.iter().map(|to| relation(known, to)));
        let stays = |(member, goal): &(&MemberId, &StateName)| {
            let is_other = plan.goals_before.get(*member).and_then(Option::as_ref) != Some(*goal);
            is_other && plan.steps_of(member).next().is_none()
        };
        let goals = plan.goals.iter().filter(stays);
        Self {
            hash: plan.hash.clone(),
            steps: plan.steps.iter().map(step).collect(),
            barriers: plan.barriers.iter().map(barrier).collect(),
            participants: plan.participants.iter().map(participant).collect(),
            relations: relations.collect(),
            gaps: strings(&plan.gaps),
            settings: plan
                .settings
                .iter()
                .flat_map(|(group, set)| {
                    set.iter().map(move |(key, value)| (format!("{group}.{key}"), setting(value)))
                })
                .collect(),
            drains: strings(&plan.drains),
            goals: goals.map(|(member, goal)| (member.to_string(), goal.to_string())).collect(),
            frozen: strings(&plan.frozen),
        }
    }
}

/// A transition. Lists leave `plan`, `votes` and `steps` out: of thousands of members each, they are read one by
/// one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = plan_may_be_left_out)]
pub struct Transition {
    /// Its name, such as `t42`; null when there was nothing to do.
    pub id: Option<String>,
    /// The journal index up to which this is true; left out in lists, which have their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// What makes the request idempotent.
    pub request_id: String,
    /// Who asked.
    pub principal: String,
    /// What was asked for.
    pub targets: Vec<String>,
    /// Whether nobody asked: the server repairs a group.
    #[serde(default)]
    pub automatic: bool,
    /// `queued`, `check`, `prepare`, `commit` or `release`; null once it has ended.
    pub phase: Option<String>,
    /// While it is queued: the first transition that is in its way. Provisional, as phases are.
    #[serde(default)]
    pub blocked_by: Option<String>,
    /// `commit` or `abort`.
    pub decision: Option<String>,
    /// `committed`, `aborted`, `undone` or `degraded`.
    pub outcome: Option<String>,
    /// The fencing number of its `begin`.
    pub token: Option<u64>,
    /// The operator's words.
    pub reason: Option<String>,
    /// Why it was aborted: an abort reason or a rejection code.
    pub cause: Option<String>,
    /// The cause, for people.
    pub message: Option<String>,
    /// The member that stood in the way.
    pub member: Option<String>,
    /// What is, or was, to be done; known from `begin` on, or from an abort before it.
    #[serde(default)]
    pub plan: Option<Plan>,
    /// The votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub votes: Option<Vec<Vote>>,
    /// What has come of the steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<StepResult>>,
    /// The holders, and how their holds ended.
    pub holds: Vec<Hold>,
    /// Whose failure made every step be taken back.
    pub undo: Option<Failure>,
    /// The members that were left out.
    pub excluded: Vec<Failure>,
    /// The members that were left elsewhere than planned.
    pub left: Vec<Left>,
    /// The voters and holders whose no, or silence, was not to count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<String>,
    /// Whether freezes and closed windows were not to be in the way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub override_freeze: bool,
    /// The observers that had not acknowledged the intent when it ended; nobody waits for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untold: Vec<String>,
    /// When it was asked for.
    pub requested_at: Option<String>,
    /// When it was decided.
    pub decided_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
}

/// A vote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vote {
    /// Whose.
    pub member: String,
    /// `actor`, `voter` or `holder`.
    pub role: String,
    /// `check` or `prepare`.
    pub round: String,
    /// `yes`, `no` or `again`.
    pub answer: String,
    /// Why.
    pub reason: Option<String>,
    /// What it hands to later calls.
    pub out: Map<String, Value>,
    /// Whether the decision that would record it has not been taken.
    pub provisional: bool,
}

/// What has come of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepResult {
    /// The step's number in the plan.
    pub step: u32,
    /// The member.
    pub member: String,
    /// `forward` or `back`.
    pub direction: String,
    /// `confirmed`, `failed` or `unknown`.
    pub result: String,
    /// Why it failed.
    pub reason: Option<String>,
}

/// A holder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hold {
    /// Who.
    pub member: String,
    /// `released`, `ended` (by itself, at its end), `presumed` (not heard of until its end), or null.
    pub end: Option<String>,
}

/// A member whose failure changed the course of a transition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// Who.
    pub member: String,
    /// Why.
    pub reason: String,
}

/// A member that was left elsewhere than planned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Left {
    /// Who.
    pub member: String,
    /// What is known of it.
    pub problem: String,
    /// Who has to act, and how.
    pub next: String,
    /// Whether its state is not known, rather than known and wrong.
    pub in_doubt: bool,
}

/// Alone it is null where there is none yet; lists leave it out.
fn plan_may_be_left_out(schema: &mut schemars::Schema) {
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|field| field != "plan");
    }
}

impl Transition {
    /// One transition, whole.
    pub fn of(view: &View, id: TransitionId, transition: &cluster::Transition) -> Self {
        let plan = transition.plan.as_deref().or(transition.unbegun.as_deref());
        let is_decided = transition.decision.is_some();
        let votes = match view.votes.get(&id) {
            Some(provisional) if !is_decided => provisional.iter().map(|vote| Vote::of(vote, true)).collect(),
            Some(_) | None => transition.votes.iter().map(|vote| Vote::of(vote, false)).collect(),
        };
        let step = |((step, direction), state): (&(lockstep_core::id::StepId, Direction), &StepState)| {
            let member = plan.and_then(|plan| plan.steps.get(step.0 as usize)).map(|step| &step.member);
            StepResult::of(step.0, member, *direction, state)
        };
        Self {
            revision: Some(view.cluster.revision.0),
            plan: plan.map(Plan::of),
            votes: Some(votes),
            steps: Some(transition.steps.iter().map(step).collect()),
            ..Self::brief(view, id, transition)
        }
    }

    /// One transition, as lists show it.
    pub fn brief(view: &View, id: TransitionId, transition: &cluster::Transition) -> Self {
        let request = &transition.request;
        let holders = transition.plan.iter().flat_map(|plan| plan.with_role(Role::Holder));
        let end = |member: &MemberId| transition.holds.get(member).map(|end| hold_end(*end).to_owned());
        let failure = |(member, reason): (&MemberId, &String)| Failure {
            member: member.to_string(),
            reason: reason.clone(),
        };
        let cause = transition.cause.as_ref();
        Self {
            id: Some(id.to_string()),
            phase: phase(view, id, transition).map(str::to_owned),
            blocked_by: view.blockers.get(&id).map(ToString::to_string),
            decision: transition.decision.map(|decision| decision.to_string()),
            outcome: transition.outcome.map(|outcome| outcome.to_string()),
            token: transition.token.map(|token| token.0),
            cause: cause.map(|cause| cause.code.clone()),
            message: cause.map(|cause| cause.message.clone()),
            member: cause.and_then(|cause| cause.member.as_ref()).map(ToString::to_string),
            holds: holders.map(|holder| Hold { member: holder.to_string(), end: end(holder) }).collect(),
            undo: transition.undo.as_ref().map(|(member, reason)| failure((member, reason))),
            excluded: transition.excluded.iter().map(failure).collect(),
            left: transition.left.iter().map(Left::of).collect(),
            untold: strings(&transition.untold),
            requested_at: Some(transition.requested_at.to_string()),
            decided_at: transition.decided_at.map(|at| at.to_string()),
            ended_at: transition.ended_at.map(|at| at.to_string()),
            ..Self::asked(request)
        }
    }

    /// A request for which there was nothing to do.
    pub fn nothing(request: &lockstep_core::request::Request) -> Self {
        Self {
            outcome: Some("committed".to_owned()),
            votes: Some(Vec::new()),
            steps: Some(Vec::new()),
            ..Self::asked(request)
        }
    }

    fn asked(request: &lockstep_core::request::Request) -> Self {
        Self {
            request_id: request.request_id.clone(),
            principal: request.principal.clone(),
            targets: strings(&request.targets),
            automatic: request.is_automatic,
            reason: request.reason.clone(),
            overrides: strings(&request.overrides),
            override_freeze: request.override_freeze,
            ..Self::default()
        }
    }

    /// What it has come to, in a word or a few.
    pub fn stands(&self) -> String {
        let stands = self.outcome.as_ref().or(self.phase.as_ref()).cloned().unwrap_or_default();
        match &self.blocked_by {
            Some(blocker) => format!("{stands} after {blocker}"),
            None => stands,
        }
    }

    /// All transitions, oldest first, as lists show them.
    pub fn all(view: &View) -> Vec<Value> {
        let brief = |(id, transition): (&TransitionId, &Arc<cluster::Transition>)| {
            let brief = Self::brief(view, *id, transition);
            let mut object = serde_json::to_value(brief).expect("the API's objects are plain data");
            // Here null would say that there is none yet.
            object.as_object_mut().expect("a struct is an object").remove("plan");
            object
        };
        view.cluster.transitions.iter().map(brief).collect()
    }
}

/// The phase of a transition that has not ended. The engine says it; between its snapshots the records do.
pub(super) fn phase(view: &View, id: TransitionId, transition: &cluster::Transition) -> Option<&'static str> {
    if transition.outcome.is_some() {
        return None;
    }
    let recorded = match (transition.decision, transition.token) {
        (Some(_), _) => "commit",
        (None, Some(_)) => "prepare",
        (None, None) => "queued",
    };
    Some(view.phases.get(&id).copied().unwrap_or(recorded))
}

impl Left {
    pub(super) fn of((member, left): (&MemberId, &lockstep_core::record::Left)) -> Self {
        Self {
            member: member.to_string(),
            problem: left.problem.clone(),
            next: left.next.clone(),
            in_doubt: left.in_doubt,
        }
    }
}

impl Vote {
    pub(super) fn of(vote: &lockstep_core::vote::Vote, provisional: bool) -> Self {
        Self {
            member: vote.member.to_string(),
            role: vote.role.to_string(),
            round: match vote.round {
                Round::Check => "check".to_owned(),
                Round::Prepare => "prepare".to_owned(),
            },
            answer: match vote.answer {
                Answer::Yes => "yes".to_owned(),
                Answer::No => "no".to_owned(),
                Answer::Again => "again".to_owned(),
            },
            reason: vote.reason.clone(),
            out: vote.out.clone(),
            provisional,
        }
    }
}

pub(super) fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Back => "back",
    }
}

pub(super) fn hold_end(end: HoldEnd) -> &'static str {
    match end {
        HoldEnd::Released => "released",
        HoldEnd::Ended => "ended",
        HoldEnd::Presumed => "presumed",
    }
}

impl StepResult {
    fn of(step: u32, member: Option<&MemberId>, way: Direction, state: &StepState) -> Self {
        let (result, reason) = match state {
            StepState::Confirmed => ("confirmed", None),
            StepState::Failed(reason) => ("failed", Some(reason.clone())),
            StepState::Unknown => ("unknown", None),
        };
        Self {
            step,
            member: member.map(ToString::to_string).unwrap_or_default(),
            direction: direction(way).to_owned(),
            result: result.to_owned(),
            reason,
        }
    }
}

/// The answer to a declared cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    /// The journal index from which on it is in force.
    pub revision: u64,
}

/// How many hosts know that the server is going to be away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Away {
    /// The lease that they were told, in milliseconds.
    pub lease_ms: u64,
    /// How many go by it.
    pub told: u64,
    /// How many are connected and have not said that they do.
    pub missing: u64,
    /// Which these are, a hundred at most.
    #[serde(default)]
    pub missing_hosts: Vec<String>,
}

/// How it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `alive`, `ready`, `stopping` or `stepped-down`.
    pub status: String,
    /// With `ready`: `active` or `standby`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// What a server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Where operators and agents reach it.
    pub url: String,
    /// `active`, `standby`, or `starting` while it has not read the journal.
    pub role: String,
    /// How far it has read.
    pub revision: u64,
    /// Whether other servers may share its store.
    pub shared: bool,
    /// The active server, as far as this one knows; null while there is none.
    pub active: Option<ServerName>,
    /// What its store says instead of answering; null while it answers.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// What the cluster is known by to its hosts; null while it has no identity, or is not read yet.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Agents that the active server refuses, a hundred at most. Provisional; none of a standby.
    #[serde(default)]
    pub refused: Vec<Refused>,
}

/// An agent that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// The host that it says it is.
    pub host: String,
    /// Why.
    pub message: String,
    /// What to do about it.
    pub help: String,
    /// Since when agents are refused under that name.
    pub since: String,
}

impl Refused {
    /// All of them that are kept.
    pub fn all(view: &View) -> Vec<Self> {
        let refused = view.refused.iter().map(|(host, refusal)| Self {
            host: host.to_string(),
            message: refusal.message.clone(),
            help: refusal.help.clone(),
            since: refusal.since.to_string(),
        });
        refused.collect()
    }
}

/// A server, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerName {
    /// Its name.
    pub name: String,
    /// Where operators and agents reach it.
    pub url: String,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// The program's version.
    pub version: String,
    /// The server's name.
    pub server: String,
    /// The version of the agent protocol.
    pub protocol: u32,
}
