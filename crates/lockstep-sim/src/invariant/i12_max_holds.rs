//! A `max` is never exceeded, and groups that exclude each other never serve together: counted in the software itself,
//! wherever its agents and servers are.

use super::{Invariant, Verdict};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::{GroupName, MemberId, StateName};
use lockstep_core::message::Decision;
use lockstep_core::record::{Body, HostChange};
use lockstep_core::relation::Relation;
use lockstep_core::spec::Kind;
use lockstep_core::world::{Happened, Name, World};
use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct MaxHolds {
    /// Relations that are bound to hold: those that came while both groups served, a decided transition was moving one
    /// of them, or a handler of one may have been at work still, are so only once that is over.
    bound: BTreeSet<Arc<Relation>>,
    /// Hosts on which nothing stops members.
    released: BTreeSet<Name>,
    /// Software that ran where any number may when its host was forgotten: it is adopted as it is when that comes back, and
    /// counts again once it has been down.
    adopted: BTreeSet<MemberId>,
    /// Hosts whose agent has run twice at once: what one of the two says is not what a handler of the other is at.
    doubled: BTreeSet<Name>,
}

impl MaxHolds {
    fn counts(&self, member: &MemberId) -> bool {
        let host = member.host.as_str();
        !self.released.contains(host) && !self.doubled.contains(host) && !self.adopted.contains(member)
    }
}

/// The members of the groups at both ends that serve, where a relation pairs them; none: it holds.
fn together(
    world: &World,
    cluster: &Cluster,
    relation: &Relation,
    counts: impl Fn(&MemberId) -> bool,
) -> Option<(MemberId, MemberId)> {
    let serving = |group: &GroupName| {
        let lifecycle = &cluster.spec.groups[group].lifecycle;
        let is_in = |(member, state): &(&MemberId, &_)| {
            let is_there = cluster.members.contains_key(*member) && counts(member);
            is_there && member.group == *group && lifecycle.serves(state)
        };
        world.software().iter().filter(is_in).map(|(member, _)| member.clone()).collect::<Vec<_>>()
    };
    let is_paired = |one: &MemberId, other: &MemberId| match &relation.scope {
        Some(label) => cluster.place(one, label).is_some_and(|place| cluster.is_at(other, place)),
        None => true,
    };
    let others: Vec<_> = relation.to.iter().flat_map(serving).collect();
    serving(&relation.from).into_iter().find_map(|one| {
        let other = others.iter().find(|other| is_paired(&one, other))?;
        Some((one.clone(), other.clone()))
    })
}

fn is_moving(cluster: &Cluster, relation: &Relation) -> bool {
    cluster.open.iter().any(|id| {
        let transition = &cluster.transitions[id];
        let moves = |group| transition.plan.as_ref().is_some_and(|plan| plan.moving().contains(group));
        transition.decision == Some(Decision::Commit) && relation.groups().any(moves)
    })
}

/// Whether a transition has left a member where nobody knows it to be: what it started may come to its end yet.
fn is_in_doubt(cluster: &Cluster, relation: &Relation) -> bool {
    let members = relation.groups().flat_map(|group| cluster.members_of(group));
    members.into_iter().any(|member| cluster.members[member].is_in_doubt())
}

impl Invariant for MaxHolds {
    const NAME: &'static str = "12 max-holds";

    fn release(&mut self, name: &Name) {
        self.released.insert(name.clone());
    }

    fn double(&mut self, name: &Name) {
        self.doubled.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        if let Happened::Recorded { record, .. } = what
            && let Body::Host { host, change: HostChange::Forgotten } = &record.body
            && let Some(cluster) = world.cluster()
        {
            let is_free = |(member, state): &(&MemberId, &StateName)| {
                let group = cluster.spec.groups.get(&member.group);
                group.is_none_or(|group| cluster.limited(&member.group, group).all(|limited| limited != *state))
            };
            let here = world.software().iter().filter(|(member, _)| member.host == *host).filter(is_free);
            self.adopted.extend(here.map(|(member, _)| member.clone()));
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Verdict {
        let Some(cluster) = world.cluster() else { return Ok(()) };
        self.adopted.retain(|member| {
            let lowest = cluster.spec.groups.get(&member.group).map(|group| group.lifecycle.lowest());
            world.software().get(member).is_some_and(|state| Some(state) != lowest)
        });
        for (name, group) in &cluster.spec.groups {
            let members = cluster.members_of(name).count();
            for state in &group.lifecycle.states {
                let Some(max) = group.max(state, members) else { continue };
                let software = world.software().iter();
                let there: Vec<_> = software
                    .filter(|(member, known)| member.group == *name && *known == state)
                    .filter(|(member, _)| self.counts(member))
                    .map(|(member, _)| member.to_string())
                    .collect();
                if there.len() > max {
                    return Err(format!("{} are {state}, at most {max} may be", there.join(" and ")));
                }
            }
        }
        let excludes = |relation: &&Arc<Relation>| relation.kind == Kind::Excludes && !relation.moving;
        let relations: BTreeSet<_> = cluster.relations.iter().filter(excludes).cloned().collect();
        self.bound.retain(|relation| relations.contains(relation));
        for relation in relations {
            match together(world, cluster, &relation, |member| self.counts(member)) {
                Some((one, other)) if self.bound.contains(&relation) => {
                    return Err(format!("{one} and {other} serve, and their groups exclude each other"));
                }
                None if !is_moving(cluster, &relation) && !is_in_doubt(cluster, &relation) => _ = self.bound.insert(relation),
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}
