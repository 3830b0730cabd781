//! Nothing that a plan rests on has changed when it is decided: its members are where its steps begin and had the
//! goals that it would go back to, its footprint is what it was when it was begun, and nothing that it moves is frozen,
//! unless that was overridden.

use super::{Invariant, Verdict};
use lockstep_core::cluster::{Cluster, Mark};
use lockstep_core::id::{GroupName, Index, MemberId, StateName, TransitionId};
use lockstep_core::lifecycle::{Lifecycle, Limit};
use lockstep_core::message::Decision;
use lockstep_core::plan::Plan;
use lockstep_core::record::Body;
use lockstep_core::relation::Relation;
use lockstep_core::spec::Group;
use lockstep_core::world::{Happened, World};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct DecisionIsCurrent {
    /// All that is durable.
    cluster: Cluster,
    begun: BTreeMap<TransitionId, (Arc<Plan>, Footprint)>,
}

type Place = (Option<StateName>, Option<StateName>, Option<TransitionId>, Mark, bool);

/// What says whether a group serves.
type Serving = (Lifecycle, BTreeMap<StateName, Limit>);

/// What a plan rests on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Footprint {
    members: BTreeMap<MemberId, Place>,
    moving: BTreeMap<GroupName, Option<Group>>,
    /// Of the other groups, what says whether they serve.
    others: BTreeMap<GroupName, Option<Serving>>,
    relations: Vec<Arc<Relation>>,
}

impl Footprint {
    fn of(cluster: &Cluster, plan: &Plan) -> Self {
        let names = || plan.exclusive.iter().chain(&plan.shared);
        let members = names().flat_map(|group| cluster.members_of(group)).map(|id| {
            let member = &cluster.members[id];
            let (actual, goal) = (member.actual.clone(), member.goal.clone());
            (id.clone(), (actual, goal, member.transition, member.mark, member.leaving))
        });
        let group = |name: &GroupName| cluster.spec.groups.get(name).cloned();
        let limits = |group: Group| (group.lifecycle, group.limits);
        let touches = |relation: &&Arc<Relation>| names().any(|group| relation.from == *group);
        Self {
            members: members.collect(),
            moving: plan.exclusive.iter().map(|name| (name.clone(), group(name))).collect(),
            others: plan.shared.iter().map(|name| (name.clone(), group(name).map(limits))).collect(),
            relations: cluster.relations.iter().filter(touches).cloned().collect(),
        }
    }
}

impl DecisionIsCurrent {
    fn check(&self, id: TransitionId) -> Verdict {
        let Some((plan, before)) = self.begun.get(&id) else {
            return Err(format!("{id} is decided and was never begun"));
        };
        if *before != Footprint::of(&self.cluster, plan) {
            return Err(format!("what {id} rests on has changed since it was begun"));
        }
        if !self.cluster.transitions[&id].request.passes_freezes() {
            let frozen = |group: &&GroupName| {
                let mut freezes = self.cluster.freezes.values();
                freezes.any(|freeze| freeze.groups.is_empty() || freeze.groups.contains(*group))
            };
            if let Some(group) = plan.moving().into_iter().find(frozen) {
                return Err(format!("{id} moves {group}, which is frozen"));
            }
        }
        for (member, goal) in &plan.goals_before {
            let known = &self.cluster.members[member];
            let from = plan.steps_of(member).next().map(|step| &step.from);
            if known.goal != *goal || from.is_some_and(|from| known.actual.as_ref() != Some(from)) {
                return Err(format!("{member} is not where {id} takes it from"));
            }
        }
        Ok(())
    }
}

impl Invariant for DecisionIsCurrent {
    const NAME: &'static str = "4 decision-is-current";

    fn happened(&mut self, _: &World, what: &Happened) -> Verdict {
        let Happened::Recorded { index, record } = what else { return Ok(()) };
        if let Body::Decision { transition, decision: Decision::Commit, .. } = &record.body {
            self.check(*transition)?;
        }
        // What is not in its place is seen by the invariant that looks for that.
        if *index == Index(self.cluster.revision.0 + 1) {
            self.cluster.apply(*index, record);
        }
        if let Body::Begin { transition, plan } = &record.body {
            let footprint = Footprint::of(&self.cluster, plan);
            self.begun.insert(*transition, (plan.clone(), footprint));
        }
        Ok(())
    }
}
