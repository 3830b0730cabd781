//! The plan itself, from what is wanted and checked: its steps, who takes part and as what, the groups that stop serving
//! on the way, and the points of no return. What cannot be put in order, or is too large, is refused here.

use super::digest::{digest, hash};
use super::{PLAN_BYTES_MAX, Participant, Plan, Planner, STEPS_MAX, Step, order, rule};
use crate::freeze;
use crate::id::{GroupName, MemberId, StateName, StepId};
use crate::message::Role;
use crate::relation::Relation;
use crate::request::{Code, Rejection};
use crate::spec::{Ask, Deadlines, Kind, Settings};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Planner<'_> {
    pub(super) fn finish(self) -> Result<Plan, Rejection> {
        let mut plan = Plan::default();
        self.add_settings(&mut plan);
        self.add_steps(&mut plan)?;
        plan.drains =
            self.drains.iter().filter(|host| !self.cluster.hosts[*host].is_drained).cloned().collect();
        for (id, goal) in &self.goals_only {
            plan.goals.insert(id.clone(), goal.clone());
            plan.goals_before.insert(id.clone(), self.cluster.members[id].goal.clone());
        }
        plan.returns_to.clone_from(&self.returns);
        plan.candidates.clone_from(&self.candidates);
        plan.returns_before = plan
            .goals
            .keys()
            .filter_map(|id| Some((id.clone(), self.cluster.members[id].returns_to.clone()?)))
            .collect();
        let mut relations = Vec::new();
        for relation in self.relations_beside(plan.moving()) {
            let (now, at_end) = (self.exists(&relation, false), self.exists(&relation, true));
            relations.push(order::Bond { relation, now, at_end });
        }
        rule::check_excludes(self.cluster, &plan, &relations)?;
        let dips = order::order(self.cluster, &mut plan, &relations)?;
        self.add_participants(&mut plan);
        self.add_gaps(&mut plan, &dips);
        self.add_no_return(&mut plan);
        plan.frozen = freeze::check_frozen(self.cluster, self.request, &plan)?;
        plan.digest = digest(self.cluster, &plan);
        let written = serde_json::to_vec(&plan).expect("a plan is plain data");
        if written.len() > PLAN_BYTES_MAX {
            let message = format!("a plan of {} bytes, at most {PLAN_BYTES_MAX}", written.len());
            return Err(Rejection::new(Code::TooLarge, message, "split the request"));
        }
        // Over all of the plan, its digest included.
        plan.hash = hash(&written);
        Ok(plan)
    }

    /// The settings that are not yet in force as they are asked for.
    fn add_settings(&self, plan: &mut Plan) {
        for (group, set) in &self.set {
            let now = self.cluster.settings(group);
            let (mut to, mut from) = (Settings::new(), Settings::new());
            for (key, value) in set.iter().filter(|(key, value)| now.get(*key) != Some(value)) {
                to.insert(key.clone(), value.clone());
                from.extend(now.get(key).map(|value| (key.clone(), value.clone())));
            }
            if !to.is_empty() {
                plan.settings.insert(group.clone(), to);
                plan.settings_before.insert(group.clone(), from);
            }
        }
    }

    fn add_steps(&self, plan: &mut Plan) -> Result<(), Rejection> {
        let mut paths: BTreeMap<(&GroupName, &StateName, &StateName), Vec<StateName>> = BTreeMap::new();
        let stays = self.takes.iter().filter(|id| !self.wanted.contains_key(*id)).map(|id| (id, None));
        let mut all: Vec<_> = self.wanted.iter().map(|(id, state)| (id, Some(state))).chain(stays).collect();
        all.sort();
        for (id, wanted) in all {
            let member = &self.cluster.members[id];
            let from = member.actual.as_ref().expect("check_members refuses unknown states");
            let to = wanted.unwrap_or(from);
            let set = if from == to { self.set_of(id, to) } else { Settings::new() };
            // One that was taken down because what it requires has failed comes back by itself, unless it is to stay there.
            let stays = member.goal.as_ref() == Some(to) && member.returns_to.is_none();
            if from == to && set.is_empty() && (wanted.is_none() || stays) {
                continue;
            }
            let path = match paths.entry((&id.group, from, to)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    let path = self.group(&id.group)?.lifecycle.path(from, to).ok_or_else(|| {
                        let message = format!("no edges lead {id} from {from} to {to}");
                        let help = "`lockstep group show` lists the lifecycle's edges";
                        Rejection::new(Code::NoPath, message, help)
                    })?;
                    place.insert(path)
                }
            };
            let takes = (!set.is_empty()).then(|| to.clone());
            let has = member.settings.clone().unwrap_or_default();
            let was = |set: &Settings| -> Settings {
                has.iter()
                    .filter(|(key, _)| set.contains_key(*key))
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect()
            };
            let mut from = from;
            for to in path.iter().chain(&takes) {
                let step = StepId(u32::try_from(plan.steps.len()).expect("STEPS_MAX fits"));
                let set = if takes.is_some() { set.clone() } else { Settings::new() };
                let (member, was) = (id.clone(), was(&set));
                let (from_state, to_state, after) = (from.clone(), to.clone(), Vec::new());
                plan.steps.push(Step { id: step, member, from: from_state, to: to_state, set, was, after });
                from = to;
                if plan.steps.len() > STEPS_MAX {
                    let message = format!("more than {STEPS_MAX} steps");
                    return Err(Rejection::new(Code::TooLarge, message, "split the request"));
                }
            }
            plan.goals.insert(id.clone(), to.clone());
            plan.goals_before.insert(id.clone(), member.goal.clone());
        }
        Ok(())
    }

    fn add_participants(&self, plan: &mut Plan) {
        let moving: BTreeSet<GroupName> = plan.moving().into_iter().cloned().collect();
        // One that is where it should be, and whose goal was another, has nothing to do: if nobody answers there, nobody
        // is asked.
        let answers = |id: &&MemberId| self.cluster.hosts[&id.host].is_reachable();
        // Nor one that stays where it is, and only gets another goal: what it says of itself now is in nobody's way.
        let stays = |id: &&MemberId| self.goals_only.contains_key(*id);
        let actors = plan.goals.keys().filter(answers).filter(|id| !stays(id));
        let actors: BTreeSet<MemberId> = actors.cloned().collect();
        let mut roles: BTreeSet<Participant> = BTreeSet::new();
        let mut add = |member: &MemberId, role| roles.insert(Participant { member: member.clone(), role });
        for member in &actors {
            add(member, Role::Actor);
        }
        // Whoever shares a group with one that moves learns of it: a third replica has to follow a new primary.
        for group in &moving {
            for member in self.cluster.members_of(group).filter(|member| !actors.contains(*member)) {
                add(member, Role::Observer);
            }
        }
        let told = self.told(&moving);
        let mut touched = rule::Touched::new(self.cluster, plan, &told);
        for relation in &told {
            for member in self.cluster.members_of(&relation.from) {
                if !touched.concerns(relation, member) {
                    continue;
                }
                add(member, Role::Observer);
                // An actor's own check and prepare speak for it; asking it twice could give two answers.
                let is_asked = relation.ask.is_some() && touched.asks(relation, member);
                if !is_asked || actors.contains(member) || self.is_left_out(member) {
                    continue;
                }
                match relation.ask {
                    Some(Ask::Vote) => add(member, Role::Voter),
                    Some(Ask::Hold) => add(member, Role::Holder),
                    None => false,
                };
            }
            plan.relations.push((**relation).clone());
        }
        let holders: BTreeSet<MemberId> =
            roles.iter().filter(|who| who.role == Role::Holder).map(|who| who.member.clone()).collect();
        // Who holds has been asked; a vote of its own would be a second answer.
        plan.participants = roles
            .into_iter()
            .filter(|who| who.role != Role::Voter || !holders.contains(&who.member))
            .collect();
        plan.exclusive = moving.clone();
        plan.exclusive.extend(holders.iter().map(|member| member.group.clone()));
        let beside = self.relations_beside(&moving);
        plan.relations.extend(beside.iter().map(|relation| (**relation).clone()));
        plan.relations.sort();
        plan.relations.dedup();
        let bound = beside.iter().filter(|relation| relation.binds()).flat_map(|relation| relation.groups());
        let voters = plan.with_role(Role::Voter).map(|member| &member.group);
        plan.shared = bound.chain(voters).filter(|group| !plan.exclusive.contains(*group)).cloned().collect();
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
    fn told(&self, moving: &BTreeSet<GroupName>) -> BTreeSet<Arc<Relation>> {
        let mut told: BTreeSet<Arc<Relation>> = BTreeSet::new();
        let mut seen: BTreeSet<GroupName> = moving.clone();
        let mut frontier: Vec<GroupName> = moving.iter().cloned().collect();
        while let Some(group) = frontier.pop() {
            let is_direct = moving.contains(&group);
            let follows = |relation: &Arc<Relation>| {
                relation.to.contains(&group) && (is_direct || relation.kind == Kind::Requires)
            };
            for relation in self.relations_of([&group]).into_iter().filter(follows) {
                if relation.kind == Kind::Requires && seen.insert(relation.from.clone()) {
                    frontier.push(relation.from.clone());
                }
                told.insert(relation);
            }
        }
        told
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
            .flat_map(|relation| &relation.to)
            .collect();
        let no_return = plan.steps.iter().filter(|step| {
            let group = &self.cluster.spec.groups[&step.member.group];
            let is_limited = group.limits.get(&step.to).is_some_and(|limit| limit.max.is_some());
            let enters = step.moves() && group.lifecycle.serves(&step.to);
            enters && is_limited && !held.contains(&step.member.group)
        });
        let no_return = no_return.map(|step| step.id).collect();
        plan.no_return = no_return;
    }
}
