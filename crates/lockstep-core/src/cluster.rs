//! The cluster as the journal tells it: a fold over its records, and nothing else.
//!
//! These types are the stored form of a snapshot too ([`crate::snapshot`]): whoever adds a field gives it
//! `#[serde(default)]`, so that snapshots taken before it can be read.

mod restore;
mod retention;
mod vacant;

pub use restore::Restored;
pub use retention::{
    BRIEF_MAX, BRIEF_MS, Brief, NOTICES_MAX, Notices, PARTS_MAX, Retention, UNACKNOWLEDGED_FACTOR, WHOLE_MAX,
};

use crate::freeze::Freeze;
use crate::id::{
    AgentId, ClusterId, GroupName, HostName, Index, MemberId, Reign, SettingId, StateName, StepId, Token,
    TransitionId,
};
use crate::lifecycle::{Amount, Lifecycle};
use crate::message::{Assignment, Decision, Outcome};
use crate::mutant::{self, Mutant};
use crate::plan::Plan;
use crate::record::{
    Body, Cause, Direction, Evidence, HoldEnd, HostChange, Left, Liveness, Record, StepResult, Turn,
};
use crate::relation::{Published, Relations, Since, setting_in};
use crate::request::{Request, Target};
use crate::spec::{Group, Kind, LEASE_MS_DEFAULT, Recover, SettingValue, Settings, Spec, SpecFile};
use crate::time::WallTime;
use crate::vote::Vote;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// All that is durable, up to [`Cluster::revision`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cluster {
    /// The index of the last record in it.
    pub revision: Index,
    /// What it is known by to its hosts; none before its first reign, and where a version from before there was one left
    /// it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<ClusterId>,
    /// The reign of the active server: the index of the record that its take-over appended.
    pub reign: Reign,
    /// The lease of hosts where the spec has none, in milliseconds, as that record says; none: 3000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_default_ms: Option<u64>,
    /// The declared cluster, checked. Not stored: it is what `spec_file` comes to.
    #[serde(skip)]
    pub spec: Arc<Spec>,
    /// The declared cluster as it was written; none before the first `apply`.
    pub spec_file: Option<Arc<SpecFile>>,
    /// The first is the longest lease that a host may still go by, in milliseconds: they may not have heard of a shorter
    /// one yet, and servers may take over from each other faster than hosts follow. The others are of earlier versions.
    pub leases_ms: [u64; 4],
    /// The settings in force, of every group that has some.
    pub settings: BTreeMap<GroupName, Arc<Settings>>,
    /// The relations that exist now: what spec, labels, capabilities and settings come to.
    pub relations: Arc<Relations>,
    /// The hosts.
    pub hosts: BTreeMap<HostName, Arc<Host>>,
    /// The members: every host that a group selects, and those that are still leaving it.
    pub members: BTreeMap<MemberId, Arc<Member>>,
    /// The states that only so many may be in, once for each place that nobody has taken since its host was forgotten.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    vacant: BTreeMap<GroupName, Vec<StateName>>,
    /// The transitions: those that are open, and those that are kept whole. [`Cluster::transition`] knows more.
    pub transitions: BTreeMap<TransitionId, Arc<Transition>>,
    /// Which of them a request id asked for.
    pub requests: BTreeMap<Arc<str>, TransitionId>,
    /// The transitions that have no outcome yet, in order of arrival.
    pub open: BTreeSet<TransitionId>,
    /// The notices of each host.
    pub notices: BTreeMap<HostName, Notices>,
    /// What is kept of those that have ended.
    pub retention: Retention,
    /// The freezes in force, each by the index of its record.
    pub freezes: BTreeMap<Index, Freeze>,
    /// When it was last restored from a backup, if it was.
    pub restored: Option<Restored>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Host {
    /// Its agent's identity.
    pub agent: AgentId,
    /// Where other hosts reach it.
    pub address: Option<String>,
    /// Its labels: those of its configuration, and over them those that were set.
    pub labels: BTreeMap<String, String>,
    /// The labels of its configuration, as its agent has told them.
    #[serde(default)]
    pub configured: BTreeMap<String, String>,
    /// The labels that were set over them.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// How it is seen.
    pub liveness: Liveness,
    /// Since when it is seen so; 0 where a snapshot from before this was kept does not tell.
    #[serde(default)]
    pub since: WallTime,
    /// Whether it has been drained: nobody is planned onto it, unless by its name.
    #[serde(default)]
    pub is_drained: bool,
}

impl Host {
    /// A host that has come, or come back: what was set of it before stays.
    pub fn joined(
        agent: AgentId,
        address: Option<String>,
        configured: BTreeMap<String, String>,
        known: Option<&Self>,
    ) -> Self {
        let set = known.map(|known| known.set.clone()).unwrap_or_default();
        let labels = overlaid(&configured, &set);
        let is_drained = known.is_some_and(|known| known.is_drained);
        let since = known.map(|known| known.since).unwrap_or_default();
        Self { agent, address, labels, configured, set, liveness: Liveness::Alive, since, is_drained }
    }

    /// Whether its agent has left, and its members run on.
    pub fn has_left(&self) -> bool {
        self.liveness == Liveness::Left
    }

    /// Whether anything can be ordered there. A suspect host may answer yet.
    pub fn is_reachable(&self) -> bool {
        match self.liveness {
            Liveness::Alive | Liveness::Suspect => true,
            Liveness::Lost | Liveness::Left | Liveness::Fenced => false,
        }
    }
}

fn overlaid(labels: &BTreeMap<String, String>, set: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels.iter().chain(set).map(|(label, value)| (label.clone(), value.clone())).collect()
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// The state it should have; none until its first status, which is adopted.
    pub goal: Option<StateName>,
    /// The state it last reported; none while it cannot be told.
    pub actual: Option<StateName>,
    /// The transition that drives it, while one does.
    pub transition: Option<TransitionId>,
    /// What its last transition left open.
    pub mark: Mark,
    /// While it is in doubt: the states that its last transition may have left it in.
    pub may_be: BTreeSet<StateName>,
    /// Its host no longer matches the group's labels; it counts until it is in the lowest state.
    pub leaving: bool,
    /// The settings that it has taken; none until its first status, which is taken to have them as they are in force.
    pub settings: Option<Arc<Settings>>,
    /// The capabilities that it says it provides and consumes, beside what the spec declares.
    pub published: Arc<Published>,
    /// The states in which it is surely stopped when its host's lease ends.
    pub guarded: BTreeSet<StateName>,
    /// Where it goes back to by itself once what it requires serves again: the goal that it had before it was taken down
    /// because that failed.
    pub returns_to: Option<StateName>,
    /// How it is known where it is, if somebody else than its own host has said so last.
    pub evidence: Option<Arc<Evidence>>,
    /// Its host has come back after it was lost, was fenced or had left, and it has not been seen since where it may
    /// stay.
    pub is_returning: bool,
}

/// The label that every host has without being given it: its name.
const LABEL_HOST: &str = "host";

/// A label and a value of it: where members of two groups are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place<'a> {
    /// The label's name.
    pub label: &'a str,
    /// Its value.
    pub value: &'a str,
}

impl Member {
    /// Whether its last transition left it in a state that is not known.
    pub fn is_in_doubt(&self) -> bool {
        self.mark == Mark::InDoubt
    }

    /// Where it should be: its goal, or what it goes back to by itself.
    pub fn should_be(&self) -> Option<&StateName> {
        self.returns_to.as_ref().or(self.goal.as_ref())
    }

    /// In the lowest state nothing runs that a guard could have been told of; what is started next is nothing that it
    /// knows, until its agent says so.
    fn forget_guard(&mut self, lowest: Option<&StateName>) {
        if self.actual.as_ref() == lowest {
            self.guarded.clear();
        }
    }
}

/// What a transition left open about a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// Nothing.
    #[default]
    None,
    /// It is known to be elsewhere than planned.
    Failed,
    /// It may be where it was or where it was to go.
    InDoubt,
}

/// A transition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Transition {
    /// What was asked for.
    pub request: Arc<Request>,
    /// When.
    pub requested_at: WallTime,
    /// The plan, from `begin` on.
    pub plan: Option<Arc<Plan>>,
    /// The plan that its members were asked about, when it was aborted before it had begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unbegun: Option<Arc<Plan>>,
    /// `begin`'s token.
    pub token: Option<Token>,
    /// The token of orders now: `begin`'s, or the last turn's.
    pub current_token: Option<Token>,
    /// The decision.
    pub decision: Option<Decision>,
    /// When it was taken.
    pub decided_at: Option<WallTime>,
    /// Why it was aborted.
    pub cause: Option<Cause>,
    /// The votes that it rests on.
    pub votes: Arc<Vec<Vote>>,
    /// Whether, and why, every step is taken back.
    pub undo: Option<(MemberId, String)>,
    /// The members that are left out, and why.
    pub excluded: BTreeMap<MemberId, String>,
    /// What has come of the steps, each way.
    #[serde(with = "crate::snapshot::pairs")]
    pub steps: BTreeMap<(StepId, Direction), StepState>,
    /// What has come of the holds.
    pub holds: BTreeMap<MemberId, HoldEnd>,
    /// The excluded members that are known to have stopped.
    pub stopped: BTreeSet<MemberId>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// When it ended.
    pub ended_at: Option<WallTime>,
    /// The members that were left elsewhere than planned.
    pub left: BTreeMap<MemberId, Left>,
    /// The observers that had not acknowledged the intent when it ended.
    #[serde(default)]
    pub untold: BTreeSet<MemberId>,
}

/// What has come of a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Confirmed by its handler.
    Confirmed,
    /// Its handler ended and failed, for good.
    Failed(String),
    /// Its end is not known.
    Unknown,
}

impl Transition {
    fn new(request: Arc<Request>, at: WallTime) -> Self {
        Self {
            request,
            requested_at: at,
            plan: None,
            unbegun: None,
            token: None,
            current_token: None,
            decision: None,
            decided_at: None,
            cause: None,
            votes: Arc::default(),
            undo: None,
            excluded: BTreeMap::new(),
            steps: BTreeMap::new(),
            holds: BTreeMap::new(),
            stopped: BTreeSet::new(),
            outcome: None,
            ended_at: None,
            left: BTreeMap::new(),
            untold: BTreeSet::new(),
        }
    }

    /// Whether that step has been confirmed that way.
    pub fn is_confirmed(&self, step: StepId, direction: Direction) -> bool {
        self.steps.get(&(step, direction)) == Some(&StepState::Confirmed)
    }
}

/// Whether a group serves with these members, in states as `is_in` says: every serving state's `min` is met. Of a part
/// of its members a `min` that is a number, which is meant for the whole group, asks for one.
pub fn group_serves(
    group: &Group,
    members: &[&MemberId],
    is_part: bool,
    is_in: impl Fn(&MemberId, &StateName) -> bool,
) -> bool {
    group.lifecycle.serving.iter().all(|state| {
        let min = match group.limits.get(state).and_then(|limit| limit.min) {
            Some(Amount::Count(min)) if is_part => usize::from(min > 0),
            Some(_) | None => group.min(state, members.len()),
        };
        members.iter().filter(|id| is_in(id, state)).count() >= min
    })
}

impl Cluster {
    /// The members of a group, by host name.
    pub fn members_of<'a>(&'a self, group: &'a GroupName) -> impl Iterator<Item = &'a MemberId> + 'a {
        let lowest = HostName::new("0").expect("a constant that is a valid name");
        let from = MemberId { group: group.clone(), host: lowest };
        self.members.range(from..).map(|(id, _)| id).take_while(move |id| id.group == *group)
    }

    /// Whether a member can be ordered to move.
    pub fn can_act(&self, id: &MemberId) -> bool {
        let member = &self.members[id];
        self.hosts[&id.host].is_reachable() && member.actual.is_some() && !member.is_in_doubt()
    }

    /// Whether a member may be in a state, for `max`: where it is, and, while it is driven, in doubt or not
    /// known, wherever it may be.
    pub fn may_be_in(&self, id: &MemberId, state: &StateName) -> bool {
        let member = &self.members[id];
        if mutant::is(Mutant::DoubtUncounted) {
            return member.actual.as_ref() == Some(state);
        }
        let Some(actual) = &member.actual else { return true };
        // Its goal does not tell: once its transition has turned back, that is where it was before.
        let is_on_the_way = || {
            let plan = member.transition.and_then(|id| self.transitions.get(&id)?.plan.as_ref());
            plan.is_some_and(|plan| plan.steps_of(id).any(|step| step.from == *state || step.to == *state))
        };
        actual == state || (member.is_in_doubt() && member.may_be.contains(state)) || is_on_the_way()
    }

    /// Whether a member may be in a state, its goal left aside: for those who know what its steps have come to.
    pub(crate) fn may_be_in_now(&self, id: &MemberId, state: &StateName) -> bool {
        self.members.get(id).is_some_and(|member| member.actual.as_ref().is_none_or(|actual| actual == state))
    }

    /// Whether a member that has come back may stay where it says it is: it is not above its goal, and there is room.
    pub(crate) fn may_stay(&self, id: &MemberId, state: &StateName) -> bool {
        let Some(group) = self.spec.groups.get(&id.group) else { return true };
        let rank = |state| group.lifecycle.rank(state);
        let is_above = self.members[id].goal.as_ref().is_some_and(|goal| rank(state) > rank(goal));
        let is_lowest = state == group.lifecycle.lowest();
        // The members of a large group are counted only where it matters: ten thousand may come back at once.
        if is_lowest || is_above || group.limits.get(state).is_none_or(|limit| limit.max.is_none()) {
            return is_lowest || !is_above;
        }
        let others = || self.members_of(&id.group).filter(|other| *other != id);
        let is_there = |other: &&MemberId| self.is_surely_in(other, state);
        group.max(state, others().count() + 1).is_none_or(|max| others().filter(is_there).count() < max)
    }

    /// Whether a member is surely in a state, for `min`.
    pub fn is_surely_in(&self, id: &MemberId, state: &StateName) -> bool {
        let member = &self.members[id];
        member.actual.as_ref() == Some(state) && !member.is_in_doubt() && self.hosts[&id.host].is_reachable()
    }

    /// Whether a group serves: every serving state's `min` is met. A composite serves when all its groups do.
    pub fn serves(&self, name: &GroupName) -> bool {
        match self.spec.leaves(name) {
            Some(leaves) => leaves.into_iter().all(|leaf| self.serves_at(leaf, None)),
            None => false,
        }
    }

    /// Whether a group of members serves; at a place, as far as its members there go.
    pub fn serves_at(&self, name: &GroupName, place: Option<Place<'_>>) -> bool {
        let Some(group) = self.spec.groups.get(name) else { return false };
        let here = self.members_of(name).filter(|id| place.is_none_or(|place| self.is_at(id, place)));
        let here: Vec<_> = here.collect();
        group_serves(group, &here, place.is_some(), |id, state| self.is_surely_in(id, state))
    }

    /// Whether a member's host has that label with that value.
    pub fn is_at(&self, id: &MemberId, place: Place<'_>) -> bool {
        self.place(id, place.label).is_some_and(|here| here.value == place.value)
    }

    /// The value of a label on a member's host, as a place. `host` is the host itself, unless it is labelled otherwise.
    pub fn place<'a>(&'a self, id: &MemberId, label: &'a str) -> Option<Place<'a>> {
        let (name, host) = self.hosts.get_key_value(&id.host)?;
        let itself = || (label == LABEL_HOST).then_some(name.as_str());
        let value = host.labels.get(label).map(String::as_str).or_else(itself)?;
        Some(Place { label, value })
    }

    /// The settings of a group, as they are in force.
    pub fn settings(&self, name: &GroupName) -> Arc<Settings> {
        self.settings.get(name).cloned().unwrap_or_default()
    }

    /// The groups that a target names, or that its members are in.
    pub fn groups_of(&self, target: &Target) -> Vec<GroupName> {
        match target {
            Target::Drain(host) => {
                let here = |group: &&GroupName| self.members.contains_key(&MemberId::new(group, host));
                self.spec.groups.keys().filter(here).cloned().collect()
            }
            Target::Group(group, _)
            | Target::Up(group)
            | Target::Down(group)
            | Target::Setting(group, _, _)
            | Target::Repair(group)
            | Target::Member(MemberId { group, .. }, _) => {
                self.spec.leaves(group).unwrap_or_else(|| vec![group]).into_iter().cloned().collect()
            }
        }
    }

    /// The members on a host, as its agent needs to know them.
    pub fn assignments(&self, host: &HostName) -> Vec<Assignment> {
        let here = self.spec.groups.iter().filter_map(|(name, group)| {
            let member = MemberId::new(name, host);
            self.members.contains_key(&member).then(|| Assignment {
                member,
                handler: group.handler.clone(),
                lowest: group.lifecycle.lowest().clone(),
                leased: self.leased(name, group),
            })
        });
        here.collect()
    }

    /// The states in which a group's members may be only while their hosts' leases last.
    fn leased(&self, name: &GroupName, group: &Group) -> BTreeSet<StateName> {
        match group.recover {
            Recover::Lease => self.limited(name, group).cloned().collect(),
            Recover::Off | Recover::Fence => BTreeSet::new(),
        }
    }

    /// Where no lease is asked for any more, no guard counts: agents are told to let go of it. Asked for once more, it
    /// counts when it is said once more.
    fn drop_guards(&mut self) {
        let mut kept = BTreeMap::new();
        for (id, member) in self.members.iter().filter(|(_, member)| !member.guarded.is_empty()) {
            let group = self.spec.groups.get(&id.group);
            let leased = group.map(|group| self.leased(&id.group, group)).unwrap_or_default();
            if !member.guarded.is_subset(&leased) {
                kept.insert(id.clone(), &member.guarded & &leased);
            }
        }
        for (id, states) in kept {
            self.member_mut(&id).guarded = states;
        }
    }

    /// Whether a member is surely out of all limited states once its host's lease has ended.
    pub fn ends_with_lease(&self, id: &MemberId) -> bool {
        let Some(group) = self.spec.groups.get(&id.group) else { return false };
        let leased = self.leased(&id.group, group);
        !leased.is_empty()
            && (leased.is_subset(&self.members[id].guarded) || mutant::is(Mutant::GuardPresumed))
    }

    /// Whether a member may be in one of those states that only so many may be in.
    pub fn may_hold_a_place(&self, id: &MemberId) -> bool {
        let Some(group) = self.spec.groups.get(&id.group) else { return false };
        self.limited(&id.group, group).any(|state| self.may_be_in(id, state))
    }

    /// The states of a group that only so many may be in, because of a `max` or of what it excludes: those places are
    /// given away on evidence only.
    pub fn limited<'a>(
        &'a self,
        name: &'a GroupName,
        group: &'a Group,
    ) -> impl Iterator<Item = &'a StateName> + 'a {
        let excludes =
            self.relations.of(name).any(|relation| relation.kind == Kind::Excludes && !relation.moving);
        group.lifecycle.states.iter().filter(move |state| {
            let has_max = group.limits.get(*state).is_some_and(|limit| limit.max.is_some());
            *state != group.lifecycle.lowest() && (has_max || (excludes && group.lifecycle.serves(state)))
        })
    }

    /// The lease that hosts are told of, in milliseconds, unless the server is about to go away.
    pub fn lease_ms(&self) -> u64 {
        self.spec.lease_ms.or(self.lease_default_ms).unwrap_or(LEASE_MS_DEFAULT)
    }

    /// Takes one record in. Records come in order and were valid when they were appended.
    pub fn apply(&mut self, index: Index, record: &Record) {
        assert!(index > self.revision, "record {index} does not follow {}", self.revision);
        self.revision = index;
        let since = Since { revision: index, at: record.at };
        match &record.body {
            Body::Reign { .. } if mutant::is(Mutant::ReignReused) && self.reign != Reign(0) => {}
            Body::Reign { lease_ms, cluster, .. } => {
                self.reign = Reign(index.0);
                self.id = cluster.clone().or(self.id.take());
                // Hosts go by what was in force until now.
                let longest_ms = self.leases_ms.into_iter().fold(self.lease_ms(), u64::max);
                self.lease_default_ms = *lease_ms;
                self.leases_ms = [longest_ms.max(self.lease_ms()), 0, 0, 0];
            }
            Body::Spec { spec, .. } => {
                let before_ms = self.lease_ms();
                self.spec = Arc::new(spec.check().expect("a spec is checked before it is recorded"));
                self.leases_ms[0] = self.leases_ms[0].max(before_ms).max(self.lease_ms());
                self.spec_file = Some(spec.clone());
                self.settings = self.settings_under(&self.spec);
                let spec = self.spec.clone();
                self.vacant.retain(|group, _| spec.groups.contains_key(group));
                self.select_members(None);
                self.relations = Arc::new(self.relations_under(&self.spec, &self.settings, since));
                self.drop_guards();
            }
            Body::Host { host, change } => self.apply_host(host, change, since),
            Body::Request { request } => {
                let id = TransitionId(index.0);
                self.requests.insert(request.request_id.as_str().into(), id);
                self.transitions.insert(id, Arc::new(Transition::new(request.clone(), record.at)));
                self.open.insert(id);
            }
            Body::Begin { transition, plan } => {
                let token = Token(index.0);
                self.tell(index, *transition, plan);
                let transition = self.transition_mut(*transition);
                transition.plan = Some(plan.clone());
                transition.token = Some(token);
                transition.current_token = Some(token);
            }
            Body::Decision { transition: id, decision, cause, votes, plan } => {
                let transition = self.transition_mut(*id);
                assert!(transition.decision.is_none(), "{id} is decided once");
                transition.decision = Some(*decision);
                transition.decided_at = Some(record.at);
                transition.cause = cause.clone();
                transition.votes = votes.clone();
                transition.unbegun = plan.clone();
                if *decision == Decision::Commit {
                    let plan = transition.plan.clone().expect("a plan is begun before it is decided");
                    self.put_goals(*id, &plan, since);
                }
            }
            Body::Step { transition, results } => {
                results.iter().for_each(|result| self.apply_step(*transition, result));
            }
            Body::Turn { transition: id, turn, member, reason } => {
                let transition = self.transition_mut(*id);
                transition.current_token = Some(Token(index.0));
                match turn {
                    Turn::Undo => {
                        transition.undo = Some((member.clone(), reason.clone()));
                        let plan = transition.plan.clone().expect("only a begun transition turns");
                        self.take_goals_back(&plan, since);
                    }
                    Turn::Exclude => {
                        transition.excluded.insert(member.clone(), reason.clone());
                        let lowest = self.spec.groups[&member.group].lifecycle.lowest().clone();
                        self.member_mut(member).goal = Some(lowest);
                    }
                }
            }
            Body::Outcome { transition, outcome, left, untold } => {
                self.transition_mut(*transition).untold = untold.clone();
                self.apply_outcome(index, record.at, *transition, *outcome, left);
                self.retire(*transition, record.at);
            }
            Body::Evidence { members, by } => {
                let by = Arc::new(by.clone());
                for (id, state) in
                    members.iter().filter(|(id, _)| self.members.contains_key(id)).collect::<Vec<_>>()
                {
                    self.member_mut(id).evidence = Some(by.clone());
                    self.put_actual(id, Some(state));
                }
            }
            Body::Away { lease_ms, .. } => self.leases_ms[0] = self.leases_ms[0].max(*lease_ms),
            Body::Freeze { groups, until, reason, principal } => {
                let (groups, reason, principal) = (groups.clone(), reason.clone(), principal.clone());
                self.put_freeze(index, Freeze { groups, until: *until, reason, principal, at: record.at });
            }
            Body::Thaw { freezes, groups, principal: _ } => self.thaw(freezes, groups),
            Body::Lease { lease_ms } => self.leases_ms = [*lease_ms, 0, 0, 0],
            Body::Acknowledged { hosts } => self.acknowledge(hosts, record.at),
            Body::Report { member: id, actual } => {
                if self.members.contains_key(id) {
                    let was_returning = self.members[id].is_returning;
                    let stays =
                        was_returning && actual.as_ref().is_some_and(|state| self.may_stay(id, state));
                    let member = self.member_mut(id);
                    (member.evidence, member.is_returning) = (None, was_returning && !stays);
                    self.put_actual(id, actual.as_ref());
                }
            }
        }
    }

    /// A member is known to be somewhere, outside of a transition.
    fn put_actual(&mut self, id: &MemberId, actual: Option<&StateName>) {
        let settings = self.settings(&id.group);
        let lifecycle = self.spec.groups.get(&id.group).map(|group| group.lifecycle.clone());
        let member = self.member_mut(id);
        member.actual = actual.cloned();
        member.forget_guard(lifecycle.as_ref().map(Lifecycle::lowest));
        if let Some(actual) = actual {
            member.mark = Mark::None;
            member.may_be.clear();
            member.settings = member.settings.take().or(Some(settings));
            if member.goal.is_none() {
                member.goal = Some(actual.clone());
                self.occupy(&id.group, actual);
            }
        }
        self.drop_if_left(id);
    }

    /// What would be in force under a spec: what has been set stays, as far as it is declared and of the same kind.
    pub fn settings_under(&self, spec: &Spec) -> BTreeMap<GroupName, Arc<Settings>> {
        let has_some = spec.groups.iter().filter(|(_, group)| !group.settings.is_empty());
        let settings = has_some.map(|(name, group)| {
            let now = self.settings(name);
            let set = group.settings.iter().map(|(key, declared)| {
                let kept = now.get(key).filter(|value| value.is_alike(declared));
                (key.clone(), kept.unwrap_or(declared).clone())
            });
            (name.clone(), Arc::new(set.collect()))
        });
        settings.collect()
    }

    /// The relations that there would be with this spec and these settings.
    pub fn relations_under(
        &self,
        spec: &Spec,
        settings: &BTreeMap<GroupName, Arc<Settings>>,
        since: Since,
    ) -> Relations {
        let published = self.members.iter().map(|(id, member)| (&id.group, &*member.published));
        Relations::derive(spec, published, settings, &self.relations, since)
    }

    /// Puts all that a plan is for in force at once: goals, settings and drains.
    fn put_goals(&mut self, id: TransitionId, plan: &Plan, since: Since) {
        for (member, goal) in &plan.goals {
            let member = self.member_mut(member);
            member.goal = Some(goal.clone());
            (member.returns_to, member.is_returning) = (None, false);
            member.transition = Some(id);
            member.mark = Mark::None;
            member.may_be.clear();
        }
        for (member, state) in &plan.returns_to {
            self.member_mut(member).returns_to = Some(state.clone());
        }
        self.put_settings(&plan.settings, since);
        plan.drains.iter().for_each(|host| self.put_drained(host, true));
    }

    /// And as it was before again. Where members are follows from the steps that are taken back.
    fn take_goals_back(&mut self, plan: &Plan, since: Since) {
        for (member, goal) in &plan.goals_before {
            let known = self.member_mut(member);
            known.goal = goal.clone();
            known.returns_to = plan.returns_before.get(member).cloned();
        }
        if !mutant::is(Mutant::UndoKeepsSettings) {
            self.put_settings(&plan.settings_before, since);
        }
        plan.drains.iter().for_each(|host| self.put_drained(host, false));
    }

    fn put_drained(&mut self, host: &HostName, is_drained: bool) {
        if let Some(host) = self.hosts.get_mut(host) {
            Arc::make_mut(host).is_drained = is_drained;
        }
    }

    /// Puts settings in force, and lets the relations follow.
    fn put_settings(&mut self, changes: &BTreeMap<GroupName, Settings>, since: Since) {
        for (group, changed) in changes {
            let settings = Arc::make_mut(self.settings.entry(group.clone()).or_default());
            settings.extend(changed.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        if !changes.is_empty() {
            let (spec, settings) = (self.spec.clone(), &self.settings);
            let relations = Arc::make_mut(&mut self.relations);
            relations.settings_changed(&spec, changes.keys(), setting_in(settings), since);
            self.drop_guards();
        }
    }

    /// A setting as it is in force.
    pub fn setting(&self, id: &SettingId) -> Option<SettingValue> {
        setting_in(&self.settings)(id)
    }

    /// Notes what a member publishes, and lets the relations follow.
    fn publish(&mut self, id: &MemberId, published: &Arc<Published>, since: Since) {
        let Some(member) = self.members.get_mut(id) else { return };
        let was = std::mem::replace(&mut Arc::make_mut(member).published, published.clone());
        if was != *published && self.spec.groups.contains_key(&id.group) {
            Arc::make_mut(&mut self.relations).publish(&id.group, &was, published, since);
        }
    }

    fn apply_host(&mut self, name: &HostName, change: &HostChange, since: Since) {
        let was_away = self.hosts.get(name).is_some_and(|host| !host.is_reachable());
        self.change_host(name, change, since);
        if was_away && self.hosts.get(name).is_some_and(|host| host.is_reachable()) {
            self.host_returns(name);
        }
    }

    /// Those of its members that no transition drives are to be judged by what they say next.
    fn host_returns(&mut self, name: &HostName) {
        let here: Vec<_> = self.spec.groups.keys().map(|group| MemberId::new(group, name)).collect();
        for id in here {
            if self.members.get(&id).is_some_and(|member| member.transition.is_none()) {
                self.member_mut(&id).is_returning = true;
            }
        }
    }

    fn change_host(&mut self, name: &HostName, change: &HostChange, since: Since) {
        match change {
            HostChange::Labelled { labels } => {
                let host = self.hosts.get_mut(name).expect("labels are set of hosts that have joined");
                let host = Arc::make_mut(host);
                for (label, value) in labels {
                    match value {
                        Some(value) => drop(host.set.insert(label.clone(), value.clone())),
                        None => drop(host.set.remove(label)),
                    }
                }
                host.labels = overlaid(&host.configured, &host.set);
                self.select_members(Some(name));
            }
            HostChange::Forgotten => {
                self.acknowledge_all_of(name);
                if !mutant::is(Mutant::PlaceForgotten) {
                    self.vacate(name);
                }
                let here: Vec<MemberId> =
                    self.members.keys().filter(|id| id.host == *name).cloned().collect();
                for id in here {
                    self.publish(&id, &Arc::default(), since);
                    self.members.remove(&id);
                }
                self.hosts.remove(name);
            }
            HostChange::Undrained => self.put_drained(name, false),
            HostChange::Guarded { group, states } => {
                if let Some(member) = self.members.get_mut(&MemberId::new(group, name)) {
                    Arc::make_mut(member).guarded.clone_from(states);
                }
            }
            HostChange::Published { group, published } => {
                self.publish(&MemberId::new(group, name), published, since);
            }
            HostChange::Joined { agent, address, labels } => {
                let known = self.hosts.get(name).map(|known| &**known);
                let mut host = Host::joined(agent.clone(), address.clone(), labels.clone(), known);
                if known.is_none_or(|known| known.liveness != host.liveness) {
                    host.since = since.at;
                }
                self.drop_evidence(name);
                self.hosts.insert(name.clone(), Arc::new(host));
                self.select_members(Some(name));
            }
            HostChange::Liveness { liveness } => {
                if *liveness == Liveness::Alive {
                    self.drop_evidence(name);
                }
                let host = self.hosts.get_mut(name).expect("liveness is recorded of hosts that have joined");
                let host = Arc::make_mut(host);
                (host.liveness, host.since) = (*liveness, since.at);
            }
        }
    }

    /// A host that was away is back: from now on it says itself where its members are.
    fn drop_evidence(&mut self, host: &HostName) {
        if self.hosts.get(host).is_none_or(|known| known.is_reachable()) {
            return;
        }
        let spec = self.spec.clone();
        for id in spec.groups.keys().map(|group| MemberId::new(group, host)) {
            if let Some(member) = self.members.get_mut(&id).filter(|member| member.evidence.is_some()) {
                Arc::make_mut(member).evidence = None;
            }
        }
    }

    /// Recomputes who belongs where, for one host or for all.
    fn select_members(&mut self, only: Option<&HostName>) {
        let mut leaving = Vec::new();
        let spec = self.spec.clone();
        let known: Vec<MemberId> = match only {
            // Not all members are looked at for one host: ten thousand hosts may join in a row.
            Some(host) => spec.groups.keys().map(|group| MemberId::new(group, host)).collect(),
            None => self.members.keys().cloned().collect(),
        };
        for id in known {
            let Some(member) = self.members.get_mut(&id) else { continue };
            let labels = &self.hosts[&id.host].labels;
            let stays = spec.groups.get(&id.group).is_some_and(|group| group.selects(labels));
            if member.leaving == stays {
                Arc::make_mut(member).leaving = !stays;
            }
            if !stays {
                leaving.push(id);
            }
        }
        let mut join = |name: &HostName, host: &Host| {
            for (group, declared) in &spec.groups {
                if declared.selects(&host.labels) {
                    self.members.entry(MemberId::new(group, name)).or_default();
                }
            }
        };
        match only {
            Some(name) => join(name, &self.hosts[name].clone()),
            None => self.hosts.iter().for_each(|(name, host)| join(name, host)),
        }
        leaving.iter().for_each(|id| self.drop_if_left(id));
    }

    /// Forgets a member that has left its group once nothing of it is left.
    fn drop_if_left(&mut self, id: &MemberId) {
        let Some(member) =
            self.members.get(id).filter(|member| member.leaving && member.transition.is_none())
        else {
            return;
        };
        let is_down = match self.spec.groups.get(&id.group) {
            // In doubt it may be elsewhere, and counts until evidence settles it.
            Some(group) => !member.is_in_doubt() && member.actual.as_ref() == Some(group.lifecycle.lowest()),
            None => true,
        };
        // What it was asked to prepare it still has to be told to forget.
        let is_asked = self
            .open
            .iter()
            .any(|open| self.transitions[open].plan.as_ref().is_some_and(|plan| plan.goals.contains_key(id)));
        if is_down && !is_asked {
            let since = Since { revision: self.revision, at: WallTime(0) };
            self.publish(id, &Arc::default(), since);
            self.members.remove(id);
        }
    }

    pub(crate) fn apply_step(&mut self, id: TransitionId, result: &StepResult) {
        let transition = self.transition_mut(id);
        match result {
            StepResult::Confirmed { step, direction } => {
                transition.steps.insert((*step, *direction), StepState::Confirmed);
                let plan = transition.plan.clone().expect("only a begun transition has steps");
                let step = &plan.steps[step.0 as usize];
                let (member, group) = (&step.member, &step.member.group);
                // With the step came the settings, whatever has been decided about them since.
                let (after, before) = plan.settings_of(&self.settings(group), member);
                let (actual, settings) = match direction {
                    Direction::Forward => (&step.to, after),
                    Direction::Back => (&step.from, before),
                };
                let settings = match self.settings.get(group) {
                    // Most take what is in force, and share it.
                    Some(now) if **now == settings => now.clone(),
                    Some(_) | None => Arc::new(settings),
                };
                let lowest = self.spec.groups.get(group).map(|group| group.lifecycle.lowest().clone());
                let member = self.member_mut(member);
                member.actual = Some(actual.clone());
                member.evidence = None;
                member.settings = Some(settings);
                member.forget_guard(lowest.as_ref());
            }
            StepResult::Failed { step, direction, reason } => {
                transition.steps.insert((*step, *direction), StepState::Failed(reason.clone()));
            }
            StepResult::Unknown { step, direction } => {
                transition.steps.insert((*step, *direction), StepState::Unknown);
            }
            StepResult::Stopped { member } => {
                transition.stopped.insert(member.clone());
                let lowest = self.spec.groups[&member.group].lifecycle.lowest().clone();
                let member = self.member_mut(member);
                member.actual = Some(lowest.clone());
                member.forget_guard(Some(&lowest));
                member.is_returning = false;
            }
            StepResult::HoldEnded { member, end } => {
                // What is heard late of a hold whose end was presumed is still news; nothing undoes a release.
                let known = transition.holds.entry(member.clone()).or_insert(*end);
                if *end == HoldEnd::Released || *known == HoldEnd::Presumed {
                    *known = *end;
                }
            }
        }
    }

    fn apply_outcome(
        &mut self,
        index: Index,
        at: WallTime,
        id: TransitionId,
        outcome: Outcome,
        left: &BTreeMap<MemberId, Left>,
    ) {
        let transition = self.transition_mut(id);
        let is_first = transition.outcome.is_none() || mutant::is(Mutant::OutcomeTwice);
        assert!(is_first, "{id} ends once");
        transition.outcome = Some(outcome);
        transition.ended_at = Some(at);
        transition.left = left.clone();
        self.open.remove(&id);
        let Some(plan) = self.transitions[&id].plan.clone() else { return };
        for member in plan.goals.keys() {
            let mark = match left.get(member) {
                Some(left) if left.in_doubt => Mark::InDoubt,
                Some(_) => Mark::Failed,
                None => Mark::None,
            };
            // A member that has left its labels before the decision may be gone by the abort.
            let Some(known) = self.members.get_mut(member).map(Arc::make_mut) else { continue };
            if known.transition == Some(id) {
                known.transition = None;
                known.mark = mark;
                if mark == Mark::InDoubt {
                    let ends = plan.steps_of(member).flat_map(|step| [step.from.clone(), step.to.clone()]);
                    known.may_be = ends.collect();
                    // Whatever step it was, the settings in force came with it. A status tells the state, and not which of
                    // them the software has: it takes them anew.
                    if let Some(settings) = self.settings.get(&member.group) {
                        let is_known = mutant::is(Mutant::DoubtTakesSettings);
                        known.settings = Some(if is_known { settings.clone() } else { Arc::default() });
                    }
                }
            }
            self.drop_if_left(member);
        }
        let targets = self.transitions[&id].request.targets.clone();
        self.occupy_by(&targets, &plan, outcome);
        self.tell(index, id, &plan);
    }

    fn transition_mut(&mut self, id: TransitionId) -> &mut Transition {
        Arc::make_mut(self.transitions.get_mut(&id).expect("records name transitions that were requested"))
    }

    fn member_mut(&mut self, id: &MemberId) -> &mut Member {
        Arc::make_mut(self.members.get_mut(id).expect("records name members that are there"))
    }

    /// Whatever else is true, this is. Debug builds call it after every batch.
    pub fn assert_invariants(&self) {
        for id in &self.open {
            assert!(self.transitions[id].outcome.is_none(), "{id} is open and has ended");
        }
        for (id, member) in &self.members {
            assert!(self.hosts.contains_key(&id.host), "{id} is on a host that never joined");
            if let Some(transition) = member.transition {
                assert!(self.open.contains(&transition), "{id} is driven by {transition}, which has ended");
            }
        }
        for id in &self.open {
            let transition = &self.transitions[id];
            if let (Some(Decision::Commit), None) = (transition.decision, transition.outcome) {
                assert!(transition.token.is_some(), "{id} is decided and was never begun");
            }
        }
    }
}
