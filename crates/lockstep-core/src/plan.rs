//! Plans: what would be done, in which order, by whom, before anything is done. Pure: the same cluster and the
//! same request give the same plan, byte for byte.
//!
//! A plan leaves no choice for later. Its steps form a graph; sets that wait for sets go through a barrier, so
//! that large plans stay linear in size.

mod order;

use crate::cluster::Cluster;
use crate::id::{GroupName, MemberId, StateName, StepId};
use crate::message::Role;
use crate::relation::Relation;
use crate::request::{Code, Rejection, TARGETS_MAX, Target};
use crate::spec::{Ask, Deadlines, Group, Kind, OnFailure, list};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

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
    /// A digest of all that was read: another one as soon as something that the plan rests on has changed.
    pub digest: String,
}

/// One member taking one edge.
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
    /// Steps and barriers that come directly before it.
    pub after: Vec<StepId>,
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
        self.steps.is_empty() && self.goals.is_empty()
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
        groups.into_iter().collect()
    }

    /// The groups for which members of `group` are asked in this way.
    pub fn asked_for(&self, group: &GroupName, ask: Ask) -> Vec<GroupName> {
        let asked =
            self.relations.iter().filter(|relation| relation.from == *group && relation.ask == Some(ask));
        asked.map(|relation| relation.to.clone()).collect::<BTreeSet<_>>().into_iter().collect()
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
    if targets.len() > TARGETS_MAX {
        let message = format!("{} targets, at most {TARGETS_MAX}", targets.len());
        return Err(Rejection::new(Code::TooLarge, message, "split the request"));
    }
    let mut planner = Planner { cluster, scores, wanted: BTreeMap::new(), whole: BTreeSet::new() };
    for target in targets {
        planner.resolve(target)?;
    }
    planner.displace()?;
    planner.check_members()?;
    planner.check_limits()?;
    planner.check_requires()?;
    planner.finish()
}

struct Planner<'a> {
    cluster: &'a Cluster,
    scores: &'a Scores,
    /// Where members are to end, those that are there already included.
    wanted: BTreeMap<MemberId, StateName>,
    /// Groups that the request names whole.
    whole: BTreeSet<GroupName>,
}

impl<'a> Planner<'a> {
    fn group(&self, name: &GroupName) -> Result<&'a Group, Rejection> {
        self.cluster.spec.groups.get(name).ok_or_else(|| {
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

    fn resolve(&mut self, target: &Target) -> Result<(), Rejection> {
        match target {
            Target::Group(group, state) => {
                known_state(group, self.group(group)?, state)?;
                self.whole.insert(group.clone());
                let is_lowest = self.group(group)?.lifecycle.lowest() == state;
                // A member that has left the group's labels only ever goes down.
                let stays = |id: &&MemberId| is_lowest || !self.cluster.members[*id].leaving;
                let members: Vec<_> = self.cluster.members_of(group).filter(stays).collect();
                members.into_iter().try_for_each(|member| self.want(member, state))
            }
            Target::Down(group) => {
                let lowest = self.group(group)?.lifecycle.lowest();
                self.resolve(&Target::Group(group.clone(), lowest.clone()))
            }
            Target::Up(group) => self.resolve_up(group),
            Target::Member(member, state) => {
                known_state(&member.group, self.group(&member.group)?, state)?;
                if !self.cluster.hosts.contains_key(&member.host) {
                    let message = format!("there is no host {}", member.host);
                    let help = "`lockstep host list` shows those that have joined";
                    return Err(Rejection::new(Code::UnknownHost, message, help));
                }
                if !self.cluster.members.contains_key(member) {
                    let message = format!("host {} is not in group {}", member.host, member.group);
                    let help = "a group's members are the hosts whose labels match its `select`";
                    return Err(Rejection::new(Code::UnknownMember, message, help));
                }
                self.want(member, state)
            }
            Target::Setting(group, key, _) => {
                if !self.group(group)?.settings.contains_key(key) {
                    let message = format!("group {group} has no setting {key}");
                    let help = format!("declare it under [groups.{group}.settings]");
                    return Err(Rejection::new(Code::UnknownSetting, message, help));
                }
                let message = format!("{target}: changing settings is not available in this version");
                Err(Rejection::new(Code::NotAllowed, message, "name states: GROUP=STATE"))
            }
            Target::Drain(host) => {
                let message = format!("{target}: draining is not available in this version");
                let help = format!("name the members that are to go down: GROUP@{host}=STATE");
                Err(Rejection::new(Code::NotAllowed, message, help))
            }
        }
    }

    /// Fills states from the highest, each to its `max`. Who is there already stays, then the best score, then
    /// the name decides.
    fn resolve_up(&mut self, name: &GroupName) -> Result<(), Rejection> {
        let group = self.group(name)?;
        self.whole.insert(name.clone());
        let lifecycle = &group.lifecycle;
        let rank = |id: &MemberId| {
            let actual = self.cluster.members[id].actual.as_ref();
            actual.and_then(|state| lifecycle.rank(state)).unwrap_or(0)
        };
        let can_rise = |id: &&MemberId| self.cluster.can_act(id) && !self.cluster.members[*id].leaving;
        let mut members: Vec<_> = self.cluster.members_of(name).filter(can_rise).collect();
        if members.is_empty() {
            // Nobody can: what stands in the way of the first is the answer, rather than "nothing to do".
            members.extend(self.cluster.members_of(name).take(1));
        }
        let count = self.cluster.members_of(name).count();
        members.sort_by_key(|id| {
            (std::cmp::Reverse(rank(id)), std::cmp::Reverse(self.score(id)), (*id).clone())
        });
        let mut members = members.into_iter();
        for state in lifecycle.states.iter().rev() {
            // Those that cannot be moved keep the places that they may have.
            let others = self.cluster.members_of(name).filter(|id| !can_rise(id));
            let taken = others.filter(|id| self.cluster.may_be_in(id, state)).count();
            let room = group.max(state, count).map_or(usize::MAX, |max| max.saturating_sub(taken));
            for member in members.by_ref().take(room) {
                self.want(member, state)?;
            }
        }
        Ok(())
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

    /// Makes room: a member that was not named and is in a full state takes the nearest state with room, ties
    /// going to the higher rank.
    fn displace(&mut self) -> Result<(), Rejection> {
        let groups: BTreeSet<_> = self.wanted.keys().map(|member| member.group.clone()).collect();
        for name in groups {
            let group = self.group(&name)?;
            let states = &group.lifecycle.states;
            let count = self.cluster.members_of(&name).count();
            let mut counts: BTreeMap<&StateName, usize> =
                states.iter().map(|state| (state, self.count_at_end(&name, state))).collect();
            // From the highest state down: who is displaced from one may fill up the next.
            for state in states.iter().rev() {
                let Some(max) = group.max(state, count) else { continue };
                let mut free: Vec<_> = self
                    .cluster
                    .members_of(&name)
                    .filter(|id| !self.wanted.contains_key(id))
                    .filter(|id| self.cluster.members[id].actual.as_ref() == Some(state))
                    .filter(|id| self.cluster.can_act(id))
                    .cloned()
                    .collect();
                free.sort_by_key(|id| (std::cmp::Reverse(self.score(id)), id.clone()));
                while counts[state] > max
                    && let Some(member) = free.pop()
                {
                    let refuge = refuge(group, state, count, &counts).ok_or_else(|| {
                        let message =
                            format!("{member} would have to leave {state}, and no other state has room");
                        let help = format!("raise a max in [groups.{name}.limits]");
                        Rejection::new(Code::LimitBroken, message, help)
                    })?;
                    for (other, counted) in &mut counts {
                        *counted -= usize::from(self.cluster.may_be_in(&member, other));
                        *counted += usize::from(**other == refuge);
                    }
                    self.wanted.insert(member, refuge);
                }
            }
        }
        Ok(())
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

    /// Only members whose state is known, on hosts that answer, and that no other transition drives can move.
    fn check_members(&self) -> Result<(), Rejection> {
        for (id, state) in &self.wanted {
            let member = &self.cluster.members[id];
            let host = &self.cluster.hosts[&id.host];
            let moves = member.actual.as_ref() != Some(state);
            if moves && !host.is_reachable() {
                let message = format!("{id} would have to move, and host {} is {}", id.host, host.liveness);
                let help = "bring the host back, or ask for less";
                return Err(Rejection::new(Code::HostLost, message, help));
            }
            // Not only when it would have to move: it may be elsewhere, and a goal that it seems to have reached
            // would take the doubt away without evidence.
            if member.is_in_doubt() {
                let message = format!("{id} is in doubt since its last transition");
                let help = "it is settled when its status is reported: see `lockstep status`";
                return Err(Rejection::new(Code::MemberInDoubt, message, help));
            }
            if member.actual.is_none() {
                let message = format!("the state of {id} is not known");
                let help =
                    "its agent asks the handler's `status` and reports; see `lockstep status` for the reason";
                return Err(Rejection::new(Code::ActualUnknown, message, help));
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), Rejection> {
        let groups: BTreeSet<_> = self.wanted.keys().map(|member| &member.group).collect();
        for name in groups {
            let group = self.group(name)?;
            let count = self.cluster.members_of(name).count();
            for state in &group.lifecycle.states {
                let after = self.count_at_end(name, state);
                // What is above its max already, because running software was adopted so, may stay so; nobody
                // may join it.
                let enters = |(id, wanted): (&MemberId, &StateName)| {
                    id.group == *name
                        && wanted == state
                        && self.cluster.members[id].actual.as_ref() != Some(state)
                };
                if let Some(max) = group.max(state, count)
                    && after > max
                    && self.wanted.iter().any(enters)
                {
                    return Err(self.too_many(name, state, after, max));
                }
                let declared = group.limits.get(state).and_then(|limit| limit.min);
                let Some(min) = declared.map(|min| min.as_min(count)) else { continue };
                let surely_after = self.surely(name, state, true);
                if surely_after < min && self.surely(name, state, false) >= min && !self.whole.contains(name)
                {
                    let message =
                        format!("{surely_after} members of {name} would be {state}, at least {min} must be");
                    let help = format!("name the whole group ({name}=STATE) if that is meant");
                    return Err(Rejection::new(Code::LimitBroken, message, help));
                }
            }
        }
        Ok(())
    }

    /// Too many would be in a state: because of a member that may be there and cannot be moved away, if there is
    /// one. Telling the operator to raise `max` would then be telling them to run two primaries.
    fn too_many(&self, name: &GroupName, state: &StateName, after: usize, max: usize) -> Rejection {
        let stays = |id: &&MemberId| {
            !self.wanted.contains_key(*id) && self.cluster.may_be_in(id, state) && !self.cluster.can_act(id)
        };
        let Some(id) = self.cluster.members_of(name).find(stays) else {
            let message = format!("{after} members of {name} would be {state}, at most {max} may be");
            let help = format!("ask for fewer, or raise max in [groups.{name}.limits.{state}]");
            return Rejection::new(Code::LimitBroken, message, help);
        };
        let host = &self.cluster.hosts[&id.host];
        let (code, why) = if !host.is_reachable() {
            (Code::HostLost, format!("its host is {}", host.liveness))
        } else if self.cluster.members[id].is_in_doubt() {
            (Code::MemberInDoubt, "it is in doubt since its last transition".to_owned())
        } else {
            (Code::ActualUnknown, "its state is not known".to_owned())
        };
        let message = format!("{id} may still be {state}, where at most {max} may be: {why}");
        let help = "bring it back: its next status settles where it is; see `lockstep status`";
        Rejection::new(code, message, help)
    }

    /// How many members are surely in a state, before or at the end.
    fn surely(&self, group: &GroupName, state: &StateName, at_end: bool) -> usize {
        let members = self.cluster.members_of(group);
        members
            .filter(|id| match self.wanted.get(id) {
                Some(wanted) if at_end => wanted == state,
                Some(_) | None => self.cluster.is_surely_in(id, state),
            })
            .count()
    }

    /// Whether every serving state's `min` is met.
    fn serves(&self, name: &GroupName, at_end: bool) -> bool {
        let group = &self.cluster.spec.groups[name];
        let count = self.cluster.members_of(name).count();
        group
            .lifecycle
            .serving
            .iter()
            .all(|state| self.surely(name, state, at_end) >= group.min(state, count))
    }

    fn check_requires(&self) -> Result<(), Rejection> {
        let moved: BTreeSet<_> = self.wanted.keys().map(|member| &member.group).collect();
        // Many relations may lead to one large group.
        let mut known: BTreeMap<(&GroupName, bool), bool> = BTreeMap::new();
        let mut serves = |name: &'a GroupName, at_end: bool| {
            *known.entry((name, at_end)).or_insert_with(|| self.serves(name, at_end))
        };
        for relation in &self.cluster.spec.relations {
            let Relation { from, to, kind, .. } = relation;
            let concerned = moved.contains(from) || moved.contains(to);
            if *kind != Kind::Requires || !concerned || !serves(from, true) || serves(to, true) {
                continue;
            }
            if serves(to, false) {
                let message = format!("{from} requires {to}, which would stop serving while {from} serves");
                let help = format!("take {from} down in the same request: {from}=down");
                return Err(Rejection::new(Code::WouldBreakRequires, message, help));
            }
            if !serves(from, false) {
                let message = format!("{from} requires {to}, which does not serve");
                let help = format!("bring {to} up first, or in the same request: {to}=up");
                return Err(Rejection::new(Code::RequirementDown, message, help));
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Plan, Rejection> {
        let mut plan = Plan::default();
        let mut paths: BTreeMap<(&GroupName, &StateName, &StateName), Vec<StateName>> = BTreeMap::new();
        for (id, to) in &self.wanted {
            let member = &self.cluster.members[id];
            let from = member.actual.as_ref().expect("check_members refuses unknown states");
            if from == to && member.goal.as_ref() == Some(to) {
                continue;
            }
            let path = match paths.entry((&id.group, from, to)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    let path = self.group(&id.group)?.lifecycle.path(from, to).ok_or_else(|| {
                        let message = format!("no edges lead {id} from {from} to {to}");
                        Rejection::new(
                            Code::NoPath,
                            message,
                            "`lockstep group show` lists the lifecycle's edges",
                        )
                    })?;
                    place.insert(path)
                }
            };
            let mut from = from;
            for to in path.iter() {
                let step = StepId(u32::try_from(plan.steps.len()).expect("STEPS_MAX fits"));
                let after = Vec::new();
                plan.steps.push(Step {
                    id: step,
                    member: id.clone(),
                    from: from.clone(),
                    to: to.clone(),
                    after,
                });
                from = to;
                if plan.steps.len() > STEPS_MAX {
                    let message = format!("more than {STEPS_MAX} steps");
                    return Err(Rejection::new(Code::TooLarge, message, "split the request"));
                }
            }
            plan.goals.insert(id.clone(), to.clone());
            plan.goals_before.insert(id.clone(), member.goal.clone());
        }
        let dips = order::order(self.cluster, &mut plan)?;
        self.add_participants(&mut plan);
        self.add_gaps(&mut plan, &dips);
        self.add_no_return(&mut plan);
        plan.digest = digest(self.cluster, &plan);
        let written = serde_json::to_vec(&plan).expect("a plan is plain data");
        if written.len() > PLAN_BYTES_MAX {
            let message = format!("a plan of {} bytes, at most {PLAN_BYTES_MAX}", written.len());
            return Err(Rejection::new(Code::TooLarge, message, "split the request"));
        }
        // Over all of the plan, its digest included.
        plan.hash = hex(&Sha256::digest(&written));
        Ok(plan)
    }

    fn add_participants(&self, plan: &mut Plan) {
        let moving: BTreeSet<GroupName> = plan.moving().into_iter().cloned().collect();
        let actors: BTreeSet<MemberId> = plan.goals.keys().cloned().collect();
        let mut roles: BTreeSet<Participant> = BTreeSet::new();
        let mut add = |member: &MemberId, role| roles.insert(Participant { member: member.clone(), role });
        for member in &actors {
            add(member, Role::Actor);
        }
        let stops_serving: BTreeSet<&GroupName> = plan
            .steps
            .iter()
            .filter(|step| {
                let lifecycle = &self.cluster.spec.groups[&step.member.group].lifecycle;
                lifecycle.serves(&step.from) && !lifecycle.serves(&step.to)
            })
            .map(|step| &step.member.group)
            .collect();
        plan.exclusive = moving.clone();
        // Whoever shares a group with one that moves learns of it: a third replica has to follow a new primary.
        for group in &moving {
            for member in self.cluster.members_of(group).filter(|member| !actors.contains(*member)) {
                add(member, Role::Observer);
            }
        }
        for relation in self.told(&moving) {
            for member in self.cluster.members_of(&relation.from) {
                add(member, Role::Observer);
                // An actor's own check and prepare speak for it; asking it twice could give two answers.
                if !stops_serving.contains(&relation.to) || actors.contains(member) {
                    continue;
                }
                match relation.ask {
                    Some(Ask::Vote) => add(member, Role::Voter),
                    Some(Ask::Hold) => add(member, Role::Holder),
                    None => false,
                };
            }
            plan.relations.push(relation.clone());
        }
        let holders: BTreeSet<MemberId> =
            roles.iter().filter(|who| who.role == Role::Holder).map(|who| who.member.clone()).collect();
        // Who holds has been asked; a vote of its own would be a second answer.
        plan.participants = roles
            .into_iter()
            .filter(|who| who.role != Role::Voter || !holders.contains(&who.member))
            .collect();
        plan.exclusive.extend(holders.iter().map(|member| member.group.clone()));
        let concerns =
            |relation: &&Relation| moving.contains(&relation.from) || moving.contains(&relation.to);
        plan.relations.extend(self.cluster.spec.relations.iter().filter(concerns).cloned());
        plan.relations.sort();
        plan.relations.dedup();
        let related = plan.relations.iter().flat_map(|relation| [&relation.from, &relation.to]);
        plan.shared = related.filter(|group| !plan.exclusive.contains(*group)).cloned().collect();
        let asked: BTreeSet<&GroupName> = plan.asked().map(|who| &who.member.group).collect();
        let deadlines = || asked.iter().map(|group| self.cluster.spec.groups[*group].deadlines);
        // With nobody to ask they bound nothing, and still must not have passed already.
        let none = Deadlines::default();
        let check = deadlines().map(|deadlines| deadlines.check).max().unwrap_or(none.check);
        let prepare = deadlines().map(|deadlines| deadlines.prepare).max().unwrap_or(none.prepare);
        (plan.check_ms, plan.prepare_ms) = (check, prepare);
    }

    /// The relations whose `from` is told when these groups move: all that lead to them directly, and along
    /// `requires` those that lead to their dependants.
    fn told(&self, moving: &BTreeSet<GroupName>) -> Vec<&'a Relation> {
        let mut leading: BTreeMap<&GroupName, Vec<&'a Relation>> = BTreeMap::new();
        for relation in &self.cluster.spec.relations {
            leading.entry(&relation.to).or_default().push(relation);
        }
        let mut told: BTreeSet<&Relation> = BTreeSet::new();
        let mut seen: BTreeSet<&GroupName> = moving.iter().collect();
        let mut frontier: Vec<&GroupName> = moving.iter().collect();
        while let Some(group) = frontier.pop() {
            let is_direct = moving.contains(group);
            let follows = |relation: &&&'a Relation| is_direct || relation.kind == Kind::Requires;
            for relation in leading.get(group).into_iter().flatten().filter(follows) {
                told.insert(relation);
                if relation.kind == Kind::Requires && seen.insert(&relation.from) {
                    frontier.push(&relation.from);
                }
            }
        }
        told.into_iter().collect()
    }

    fn add_gaps(&self, plan: &mut Plan, dips: &order::Dips) {
        let moving: BTreeSet<GroupName> = plan.moving().into_iter().cloned().collect();
        for name in moving {
            if !self.serves(&name, false) || !self.serves(&name, true) {
                continue;
            }
            let group = &self.cluster.spec.groups[&name];
            let count = self.cluster.members_of(&name).count();
            let is_gap = group.lifecycle.serving.iter().any(|state| {
                let dip = dips.get(&(name.clone(), state.clone())).copied().unwrap_or(0);
                self.surely(&name, state, false).saturating_sub(dip) < group.min(state, count)
            });
            if is_gap {
                plan.gaps.push(name);
            }
        }
    }

    fn add_no_return(&self, plan: &mut Plan) {
        let held: BTreeSet<&GroupName> = plan
            .with_role(Role::Holder)
            .flat_map(|holder| plan.relations.iter().filter(|relation| relation.from == holder.group))
            .filter(|relation| relation.ask == Some(Ask::Hold))
            .map(|relation| &relation.to)
            .collect();
        let no_return = plan.steps.iter().filter(|step| {
            let group = &self.cluster.spec.groups[&step.member.group];
            let is_limited = group.limits.get(&step.to).is_some_and(|limit| limit.max.is_some());
            group.lifecycle.serves(&step.to) && is_limited && !held.contains(&step.member.group)
        });
        let no_return = no_return.map(|step| step.id).collect();
        plan.no_return = no_return;
    }
}

/// The nearest state with room, ties to the higher rank.
fn refuge(
    group: &Group,
    from: &StateName,
    count: usize,
    counts: &BTreeMap<&StateName, usize>,
) -> Option<StateName> {
    let lifecycle = &group.lifecycle;
    let rank = lifecycle.rank(from)?;
    let mut others: Vec<_> =
        lifecycle.states.iter().enumerate().filter(|(other, _)| *other != rank).collect();
    others.sort_by_key(|(other, _)| (other.abs_diff(rank), std::cmp::Reverse(*other)));
    let has_room = |state: &&StateName| group.max(state, count).is_none_or(|max| counts[*state] < max);
    others.into_iter().map(|(_, state)| state).find(has_room).cloned()
}

fn known_state(name: &GroupName, group: &Group, state: &StateName) -> Result<(), Rejection> {
    if group.lifecycle.rank(state).is_some() {
        return Ok(());
    }
    let message = format!("group {name} has no state {state}");
    Err(Rejection::new(
        Code::UnknownState,
        message,
        format!("its states are {}", list(&group.lifecycle.states)),
    ))
}

/// What happens to a group's steps that fail for good.
pub fn on_failure(cluster: &Cluster, asked: Option<OnFailure>, group: &GroupName) -> OnFailure {
    asked.or(cluster.spec.groups.get(group).map(|group| group.on_failure)).unwrap_or_default()
}

/// A digest of what a plan rests on: the members, limits and relations of its footprint. Facts, scores and the
/// journal's index are left out, so that it changes only with what matters.
pub fn digest(cluster: &Cluster, plan: &Plan) -> String {
    let mut digest = Sha256::new();
    let mut line = Vec::new();
    for name in plan.exclusive.iter().chain(&plan.shared) {
        let Some(group) = cluster.spec.groups.get(name) else {
            digest.update(format!("{name} gone\n"));
            continue;
        };
        // The derived Debug form covers every field, so a new one cannot be forgotten here.
        digest.update(format!(
            "{name} {:?} {:?} {} {}\n",
            group.lifecycle, group.limits, group.handler, group.hold_ms
        ));
        for id in cluster.members_of(name) {
            let member = &cluster.members[id];
            let reachable = cluster.hosts[&id.host].is_reachable();
            // Written out by hand: formatting took most of the time of a small plan. No name has a space in it.
            let state = |state: &Option<StateName>| state.as_ref().map_or("?", StateName::as_str).to_owned();
            let (goal, actual) = (state(&member.goal), state(&member.actual));
            let flags =
                [b'0' + member.mark as u8, b'0' + u8::from(reachable), b'0' + u8::from(member.leaving)];
            line.clear();
            for word in [id.host.as_str(), &goal, &actual] {
                line.extend_from_slice(word.as_bytes());
                line.push(b' ');
            }
            line.extend_from_slice(&flags);
            line.push(b'\n');
            digest.update(&line);
        }
    }
    let footprint = |name: &GroupName| plan.exclusive.contains(name) || plan.shared.contains(name);
    for relation in &cluster.spec.relations {
        if footprint(&relation.from) || footprint(&relation.to) {
            digest.update(format!("{relation:?}\n"));
        }
    }
    hex(&digest.finalize())
}

/// The first 16 bytes in hexadecimal: far beyond chance and guessing, and still one line in a terminal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(16).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

/// The fewest characters of a hash that name a plan.
const HASH_PREFIX_MIN: usize = 8;

/// Whether what an operator typed names the plan of that hash: all of it, or its first characters.
pub fn names(typed: &str, hash: &str) -> bool {
    typed.len() >= HASH_PREFIX_MIN && hash.starts_with(typed)
}
