//! Once the faults have ended, every group that repairs itself and whose goals make it serve does serve, or the server
//! says for whom it waits.

use super::{Invariant, Verdict};
use lockstep_core::id::{GroupName, MemberId};
use lockstep_core::spec::Recover;
use lockstep_core::world::{Name, World};
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct GroupsAreRepaired {
    excused: BTreeSet<Name>,
}

impl Invariant for GroupsAreRepaired {
    const NAME: &'static str = "19 groups-are-repaired";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
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
                if should.count() >= min && really < min {
                    return Err(format!("{name} has {really} members that are {state}, and waits for nobody"));
                }
            }
        }
        Ok(())
    }
}
