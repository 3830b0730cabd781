//! Once the faults have ended, every group that repairs itself and whose goals make it serve does serve, or the server
//! says for whom it waits. Its goals are those of hosts that are forgotten too, until somebody asks for the whole group.

use super::{Invariant, Verdict};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::{GroupName, HostName, MemberId, StateName, TransitionId};
use lockstep_core::message::Outcome;
use lockstep_core::record::{Body, HostChange};
use lockstep_core::request::Target;
use lockstep_core::spec::Recover;
use lockstep_core::world::{Happened, Name, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct GroupsAreRepaired {
    /// The members that should be in a serving state that only so many may be in.
    owners: BTreeMap<MemberId, StateName>,
    /// The places of hosts that were forgotten since, for each that nobody else has got.
    orphaned: BTreeMap<GroupName, Vec<StateName>>,
    excused: BTreeSet<Name>,
}

impl GroupsAreRepaired {
    fn forget(&mut self, cluster: &Cluster, host: &HostName) {
        for (id, state) in self.owners.iter().filter(|(id, _)| id.host == *host) {
            if cluster.members_of(&id.group).any(|other| other.host != *host) {
                self.orphaned.entry(id.group.clone()).or_default().push(state.clone());
            } else {
                // Whoever joins it now begins anew.
                self.orphaned.remove(&id.group);
            }
        }
        self.owners.retain(|id, _| id.host != *host);
    }

    /// Who has asked for a whole group has said who is to be where.
    fn moved(&mut self, cluster: &Cluster, id: TransitionId) {
        let known = cluster.transitions.get(&id);
        let Some((plan, request)) = known.and_then(|known| Some((known.plan.as_ref()?, &known.request))) else {
            return self.orphaned.clear();
        };
        let is_asked_for = |group: &GroupName| {
            request.targets.iter().any(|target| match target {
                Target::Group(name, _) | Target::Up(name) | Target::Down(name) => {
                    cluster.spec.leaves(name).is_some_and(|leaves| leaves.contains(&group))
                }
                Target::Member(..) | Target::Setting(..) | Target::Drain(_) | Target::Repair(_) => false,
            })
        };
        self.orphaned.retain(|group, _| {
            !is_asked_for(group) || !plan.goals_before.keys().any(|member| member.group == *group)
        });
    }

    /// Looks at who should be where now: who has come to a place has got one.
    fn note(&mut self, cluster: &Cluster) {
        let owner = |id: &MemberId, should: &StateName| {
            let group = cluster.spec.groups.get(&id.group)?;
            (group.lifecycle.serves(should) && group.max(should, 1).is_some()).then(|| (id.clone(), should.clone()))
        };
        let members = cluster.members.iter();
        let owners = members.filter_map(|(id, member)| owner(id, member.should_be()?)).collect();
        let before = std::mem::replace(&mut self.owners, owners);
        for (id, state) in self.owners.iter().filter(|(id, state)| before.get(*id) != Some(*state)) {
            if let Some(states) = self.orphaned.get_mut(&id.group)
                && let Some(place) = states.iter().position(|orphaned| orphaned == state)
            {
                states.remove(place);
            }
        }
        self.orphaned.retain(|group, states| !states.is_empty() && cluster.spec.groups.contains_key(group));
    }
}

impl Invariant for GroupsAreRepaired {
    const NAME: &'static str = "19 groups-are-repaired";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        let Happened::Recorded { record, .. } = what else { return Ok(()) };
        let Some(cluster) = world.cluster() else { return Ok(()) };
        match &record.body {
            Body::Host { host, change: HostChange::Forgotten } => self.forget(cluster, host),
            Body::Outcome { transition, outcome: Outcome::Committed | Outcome::Degraded, .. } => {
                self.moved(cluster, *transition);
            }
            Body::Outcome { outcome: Outcome::Aborted | Outcome::Undone, .. }
            | Body::Host { .. }
            | Body::Spec { .. }
            | Body::Reign { .. }
            | Body::Request { .. }
            | Body::Begin { .. }
            | Body::Decision { .. }
            | Body::Step { .. }
            | Body::Turn { .. }
            | Body::Acknowledged { .. }
            | Body::Evidence { .. }
            | Body::Away { .. }
            | Body::Freeze { .. }
            | Body::Thaw { .. }
            | Body::Lease { .. }
            | Body::Report { .. } => {}
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Verdict {
        if let Some(cluster) = world.cluster() {
            self.note(cluster);
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Verdict {
        let Some(server) = world.server() else { return Ok(()) };
        let cluster = server.acknowledged();
        let repairs = cluster.spec.groups.iter().filter(|(_, group)| group.recover != Recover::Off);
        for (name, group) in repairs {
            let members: Vec<&MemberId> = cluster.members_of(name).collect();
            let is_excused = members.iter().any(|id| self.excused.contains(id.host.as_str()));
            let is_required = |to: &GroupName| cluster.serves(to);
            let mut required = cluster.relations.required_by(name);
            // What it requires may be nobody's to repair.
            let is_held_down = required.any(|known| {
                known.scope.is_some() || !known.to.iter().all(is_required)
            });
            if is_excused || is_held_down || server.waits().contains_key(name) {
                continue;
            }
            for state in &group.lifecycle.serving {
                let min = group.min(state, members.len());
                let should = members.iter().filter(|id| {
                    let member = &cluster.members[**id];
                    let may_rise = !member.leaving && !cluster.hosts[&id.host].is_drained;
                    may_rise && member.should_be() == Some(state)
                });
                let really = members.iter().filter(|id| world.software().get(id) == Some(state)).count();
                let orphaned = self.orphaned.get(name).into_iter().flatten().filter(|orphaned| *orphaned == state);
                if should.count() + orphaned.count() >= min && really < min {
                    return Err(format!("{name} has {really} members that are {state}, and waits for nobody"));
                }
            }
        }
        Ok(())
    }
}
