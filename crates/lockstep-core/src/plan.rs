//! Plans: what would be done, in which order, by whom, before anything is done. Pure: the same cluster and the
//! same request give the same plan, byte for byte.
//!
//! A plan leaves no choice for later. Its steps form a graph; sets that wait for sets go through a barrier, so
//! that large plans stay linear in size.
//!
//! The stages are leaves, in the order in which [`plan`] goes through them: `target`, `displace`, `check`, `build`. Here
//! are the types, and what several stages ask of what is wanted so far.

mod build;
mod check;
mod digest;
mod displace;
mod order;
mod repair;
mod rule;
mod target;

pub use digest::{digest, names};

use crate::cluster::{Cluster, Place, group_serves};
use crate::id::{GroupName, HostName, MemberId, StateName, StepId};
use crate::message::Role;
use crate::relation::Relation;
use crate::request::{Code, Rejection, Request, TARGETS_MAX, Target};
use crate::spec::{Ask, Group, OnFailure, Settings, list};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use target::drained;

/// Barriers are numbered from the next multiple of this on that leaves all numbers below it to steps.
pub const BARRIER_FIRST: u32 = 10_000;
/// The most steps a plan may have.
pub const STEPS_MAX: usize = 100_000;

/// The largest plan, written out, in bytes. It is one record of the journal, and each has to fit with room.
pub const PLAN_BYTES_MAX: usize = 8 << 20;

/// How fit members are to be chosen; more is better, absent is 0.
pub type Scores = BTreeMap<MemberId, i64>;

/// What would be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Names the plan: two plans with one hash do the same to the same cluster.
    pub hash: String,
    /// The steps, by id.
    pub steps: Vec<Step>,
    /// Points that wait for several steps so that several others wait for one.
    pub barriers: Vec<Barrier>,
    /// Who takes part, and as what; one entry per role.
    pub participants: Vec<Participant>,
    /// The relations that concern the groups that move.
    pub relations: Vec<Relation>,
    /// Groups that stop serving inside their own move.
    pub gaps: Vec<GroupName>,
    /// Where each member that moves is to end.
    pub goals: BTreeMap<MemberId, StateName>,
    /// The goals those members have had.
    pub goals_before: BTreeMap<MemberId, Option<StateName>>,
    /// The settings that change, as they are to be.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<GroupName, Settings>,
    /// The same settings as they have been.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings_before: BTreeMap<GroupName, Settings>,
    /// The hosts that are drained: nobody is planned onto them until that is taken back.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drains: BTreeSet<HostName>,
    /// Where members go back to by themselves once what they require serves again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub returns_to: BTreeMap<MemberId, StateName>,
    /// Where those that this plan moves would have gone back to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub returns_before: BTreeMap<MemberId, StateName>,
    /// Those among whom scores have chosen: they are asked for their status before the choice counts.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub candidates: BTreeSet<MemberId>,
    /// Entries into a serving state limited by `max` for which nobody holds: once confirmed, undo would lose
    /// something.
    pub no_return: BTreeSet<StepId>,
    /// Groups that no other transition may touch meanwhile.
    pub exclusive: BTreeSet<GroupName>,
    /// Groups that no other transition may claim exclusively meanwhile.
    pub shared: BTreeSet<GroupName>,
    /// How long the phases may take, in milliseconds: the longest that a group which takes part allows.
    pub check_ms: u64,
    /// Like `check_ms`.
    pub prepare_ms: u64,
    /// Groups that it moves although they are frozen: the request says so.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub frozen: BTreeSet<GroupName>,
    /// A digest of all that was read: another one as soon as something that the plan rests on has changed.
    pub digest: String,
}

/// One member taking one edge, or, with `from` = `to`, new settings where it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Step {
    /// Its number: its place in the plan.
    pub id: StepId,
    /// Who.
    pub member: MemberId,
    /// The state to leave.
    pub from: StateName,
    /// The state to enter.
    pub to: StateName,
    /// The settings to take, of a step that stays where it is. Steps that move take those in force.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: Settings,
    /// The same settings as the member has them, where it has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub was: Settings,
    /// Steps and barriers that come directly before it.
    pub after: Vec<StepId>,
}

impl Step {
    /// Whether it takes an edge, rather than settings where the member is.
    pub fn moves(&self) -> bool {
        self.from != self.to
    }
}

/// A point that waits for several steps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Barrier {
    /// Its number: above those of all steps, from [`BARRIER_FIRST`] on.
    pub id: StepId,
    /// Steps and barriers that come directly before it.
    pub after: Vec<StepId>,
}

/// Somebody who takes part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Participant {
    /// Who.
    pub member: MemberId,
    /// As what.
    pub role: Role,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let sets = !self.settings.is_empty() || !self.drains.is_empty();
        self.steps.is_empty() && self.goals.is_empty() && !sets
    }

    /// How large it is: its steps and participants.
    pub fn parts(&self) -> usize {
        self.steps.len() + self.participants.len()
    }

    /// Who takes part in that role.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &MemberId> {
        self.participants.iter().filter(move |participant| participant.role == role).map(|who| &who.member)
    }

    /// Who is asked: everybody who is not only told.
    pub fn asked(&self) -> impl Iterator<Item = &Participant> {
        self.participants.iter().filter(|who| who.role != Role::Observer)
    }

    /// The groups that move.
    pub fn moving(&self) -> BTreeSet<&GroupName> {
        // Members of a group stand side by side.
        let mut groups: Vec<&GroupName> = self.goals.keys().map(|member| &member.group).collect();
        groups.dedup();
        groups.into_iter().chain(self.settings.keys()).collect()
    }

    /// The groups for which members of `group` are asked in this way.
    pub fn asked_for(&self, group: &GroupName, ask: Ask) -> Vec<GroupName> {
        let asked =
            self.relations.iter().filter(|relation| relation.from == *group && relation.ask == Some(ask));
        let moving = self.moving();
        let to = asked.flat_map(|relation| &relation.to).filter(|to| moving.contains(to));
        to.cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The settings that a member has after its steps and before them, with those of its group that are in force now.
    pub fn settings_of(&self, now: &Settings, member: &MemberId) -> (Settings, Settings) {
        let (mut after, mut before) = (now.clone(), now.clone());
        let put = |settings: &mut Settings, set: &Settings| {
            settings.extend(set.iter().map(|(key, value)| (key.clone(), value.clone())));
        };
        self.settings.get(&member.group).into_iter().for_each(|set| put(&mut after, set));
        self.settings_before.get(&member.group).into_iter().for_each(|set| put(&mut before, set));
        for step in self.steps_of(member) {
            put(&mut before, &step.was);
        }
        (after, before)
    }

    /// The steps of one member, in order.
    pub fn steps_of<'a>(&'a self, member: &'a MemberId) -> impl Iterator<Item = &'a Step> {
        // Steps stand in order of their members.
        let first = self.steps.partition_point(|step| step.member < *member);
        self.steps[first..].iter().take_while(move |step| step.member == *member)
    }
}

/// Plans what `targets` ask for, or says why it cannot be.
pub fn plan(cluster: &Cluster, targets: &[Target], scores: &Scores) -> Result<Plan, Rejection> {
    plan_request(cluster, &Request { targets: targets.to_vec(), ..Request::default() }, scores)
}

/// Plans what a request asks for, or says why it cannot be.
pub fn plan_request(cluster: &Cluster, request: &Request, scores: &Scores) -> Result<Plan, Rejection> {
    plan_without(cluster, request, scores, &BTreeSet::new())
}

/// The same, and what is repaired is not repaired with members of the hosts named.
pub(crate) fn plan_without(
    cluster: &Cluster,
    request: &Request,
    scores: &Scores,
    unsteady: &BTreeSet<HostName>,
) -> Result<Plan, Rejection> {
    let targets = &request.targets;
    if targets.len() > TARGETS_MAX {
        let message = format!("{} targets, at most {TARGETS_MAX}", targets.len());
        return Err(Rejection::new(Code::TooLarge, message, "split the request"));
    }
    let mut planner = Planner {
        cluster,
        scores,
        request,
        unsteady,
        wanted: BTreeMap::new(),
        whole: BTreeSet::new(),
        set: BTreeMap::new(),
        takes: BTreeSet::new(),
        // Known before any other target is looked at: it does not matter in which order they are written.
        drains: targets.iter().filter_map(drained).cloned().collect(),
        come: Vec::new(),
        gone: BTreeSet::new(),
        goals_only: BTreeMap::new(),
        returns: BTreeMap::new(),
        candidates: BTreeSet::new(),
        repairs: targets.iter().any(|target| matches!(target, Target::Repair(_))),
    };
    for target in targets {
        planner.resolve(target)?;
    }
    planner.switch_relations()?;
    planner.move_roles()?;
    planner.displace()?;
    // Who is displaced may stop a group from serving, and who is pulled along may be in others' way.
    if planner.cascade()? {
        planner.displace()?;
    }
    planner.forget_overruled();
    planner.check_members()?;
    planner.check_limits()?;
    planner.check_requires()?;
    planner.finish()
}

/// What is wanted so far, from the first target to the plan.
struct Planner<'a> {
    cluster: &'a Cluster,
    scores: &'a Scores,
    request: &'a Request,
    /// Hosts that come and go.
    unsteady: &'a BTreeSet<HostName>,
    /// Where members are to end, those that are there already included.
    wanted: BTreeMap<MemberId, StateName>,
    /// Groups that the request names whole.
    whole: BTreeSet<GroupName>,
    /// The settings that are asked for.
    set: BTreeMap<GroupName, Settings>,
    /// The members that serve, and take new settings where they are.
    takes: BTreeSet<MemberId>,
    /// The hosts that are drained.
    drains: BTreeSet<HostName>,
    /// The relations that come with the settings.
    come: Vec<Arc<Relation>>,
    /// The relations that go with the settings.
    gone: BTreeSet<Arc<Relation>>,
    /// New goals of members that take no step: they are known to be out of the way, cannot be asked or come back later.
    goals_only: BTreeMap<MemberId, StateName>,
    /// Where members go back to once what they require serves again.
    returns: BTreeMap<MemberId, StateName>,
    /// Those among whom scores have chosen.
    candidates: BTreeSet<MemberId>,
    /// Something is repaired: nobody who serves gives way to it.
    repairs: bool,
}

impl<'a> Planner<'a> {
    fn group(&self, name: &GroupName) -> Result<&'a Group, Rejection> {
        self.cluster.spec.groups.get(name).ok_or_else(|| {
            if self.cluster.spec.composites.contains_key(name) {
                let message = format!("group {name} is made of groups, and has no members of its own");
                return Rejection::new(Code::UnknownMember, message, "name the group that the host is in");
            }
            let groups = list(self.cluster.spec.groups.keys().take(20));
            Rejection::new(
                Code::UnknownGroup,
                format!("there is no group {name}"),
                format!("there are: {groups}"),
            )
        })
    }

    fn score(&self, member: &MemberId) -> i64 {
        self.scores.get(member).copied().unwrap_or(0)
    }

    fn is_drained(&self, host: &HostName) -> bool {
        self.cluster.hosts[host].is_drained || self.drains.contains(host)
    }

    /// Whether a member's host is lost, and the request says to go on without such hosts.
    fn is_left_out(&self, id: &MemberId) -> bool {
        self.request.exclude_lost && !self.cluster.hosts[&id.host].is_reachable()
    }

    fn want(&mut self, member: &MemberId, state: &StateName) -> Result<(), Rejection> {
        match self.wanted.insert(member.clone(), state.clone()) {
            Some(other) if other != *state => {
                let message = format!("{member} is asked to be both {other} and {state}");
                Err(Rejection::new(Code::LimitBroken, message, "name each member once"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The settings of a group as they would be at the end.
    fn settings_at_end(&self, name: &GroupName) -> Arc<Settings> {
        let mut settings = self.cluster.settings(name);
        if let Some(set) = self.set.get(name) {
            Arc::make_mut(&mut settings).extend(set.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        settings
    }

    /// The settings that a member which stays where it serves has not taken.
    fn set_of(&self, id: &MemberId, state: &StateName) -> Settings {
        let serves = self.cluster.spec.groups[&id.group].lifecycle.serves(state);
        if !serves || !self.takes.contains(id) {
            return Settings::new();
        }
        let has = self.cluster.members[id].settings.clone().unwrap_or_default();
        let at_end = self.settings_at_end(&id.group);
        let missing = at_end.iter().filter(|(key, value)| has.get(*key) != Some(value));
        missing.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Whether a relation exists, now or with the settings at the end.
    fn exists(&self, relation: &Arc<Relation>, at_end: bool) -> bool {
        let is_switched = if at_end { self.gone.contains(relation) } else { self.come.contains(relation) };
        !is_switched
    }

    /// The relations of these groups that exist now, or will at the end.
    fn relations_of<'b>(&self, groups: impl IntoIterator<Item = &'b GroupName>) -> BTreeSet<Arc<Relation>> {
        let mut relations = BTreeSet::new();
        for group in groups {
            relations.extend(self.cluster.relations.of(group).cloned());
            relations.extend(
                self.come.iter().filter(|relation| relation.groups().any(|end| end == group)).cloned(),
            );
        }
        relations
    }

    /// The relations that a plan has to do with: those of the groups that move, and those that come and go with its
    /// settings, whichever groups they relate.
    fn relations_beside<'b>(
        &self,
        moved: impl IntoIterator<Item = &'b GroupName>,
    ) -> BTreeSet<Arc<Relation>> {
        let mut relations = self.relations_of(moved);
        relations.extend(self.come.iter().chain(&self.gone).cloned());
        relations
    }

    /// The groups of which something moves or changes.
    fn moved(&self) -> BTreeSet<GroupName> {
        let members = self.wanted.keys().map(|member| &member.group);
        // Members of a group stand side by side.
        let mut moved: Vec<&GroupName> = members.collect();
        moved.dedup();
        moved.into_iter().chain(self.set.keys()).cloned().collect()
    }

    /// Whether a member is to end in a state that it is not in now.
    fn is_entered(&self, group: &GroupName, state: &StateName) -> bool {
        let members = self.cluster.members_of(group);
        members
            .filter(|id| self.wanted.get(id) == Some(state))
            .any(|id| self.cluster.members[id].actual.as_ref() != Some(state))
    }

    /// How many members may be in a state at the end, those counted that may be anywhere.
    fn count_at_end(&self, group: &GroupName, state: &StateName) -> usize {
        let members = self.cluster.members_of(group);
        members
            .filter(|id| match self.wanted.get(id) {
                Some(wanted) => wanted == state,
                None => self.cluster.may_be_in(id, state),
            })
            .count()
    }

    /// How many members are surely in a state, before or at the end.
    fn surely(&self, group: &GroupName, state: &StateName, at_end: bool) -> usize {
        let members = self.cluster.members_of(group);
        members.filter(|id| self.is_surely_in(id, state, at_end)).count()
    }

    /// Whether every serving state's `min` is met.
    fn serves(&self, name: &GroupName, at_end: bool) -> bool {
        let members: Vec<&MemberId> = self.cluster.members_of(name).collect();
        self.part_serves(name, &members, None, at_end)
    }

    /// Whether a group serves, at a place as far as its members there go.
    fn part_serves(
        &self,
        name: &GroupName,
        members: &[&MemberId],
        place: Option<Place<'_>>,
        at_end: bool,
    ) -> bool {
        let group = &self.cluster.spec.groups[name];
        group_serves(group, members, place.is_some(), |id, state| self.is_surely_in(id, state, at_end))
    }

    /// Whether a member is surely in a state, before or at the end. That it should stay where it was last seen is no
    /// evidence that it is there.
    fn is_surely_in(&self, id: &MemberId, state: &StateName, at_end: bool) -> bool {
        match self.wanted.get(id).filter(|_| at_end) {
            Some(wanted) if self.cluster.members[id].actual.as_ref() != Some(wanted) => wanted == state,
            Some(_) | None => self.cluster.is_surely_in(id, state),
        }
    }

    /// Whether the members of `from` serve that a relation pairs at a place.
    fn pair_serves(&self, relation: &Relation, pair: &rule::Pair<'_>, at_end: bool) -> bool {
        self.part_serves(&relation.from, &pair.from, pair.place, at_end)
    }

    /// Whether so many of the groups that a relation leads to serve at a place as it needs.
    fn is_pair_met(&self, relation: &Relation, pair: &rule::Pair<'_>, at_end: bool) -> bool {
        let ends = relation.to.iter().zip(&pair.to);
        let serving = ends.filter(|(to, members)| self.part_serves(to, members, pair.place, at_end)).count();
        serving >= relation.need.as_min(relation.to.count())
    }
}

/// What happens to a group's steps that fail for good.
pub fn on_failure(cluster: &Cluster, asked: Option<OnFailure>, group: &GroupName) -> OnFailure {
    asked.or(cluster.spec.groups.get(group).map(|group| group.on_failure)).unwrap_or_default()
}
