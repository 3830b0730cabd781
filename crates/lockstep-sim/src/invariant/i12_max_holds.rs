//! A `max` is never exceeded: counted in the software itself, wherever its agents and servers are.

use super::{Invariant, Verdict};
use lockstep_core::world::World;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct MaxHolds;

impl Invariant for MaxHolds {
    const NAME: &'static str = "12 max-holds";

    fn look(&mut self, world: &World) -> Verdict {
        let Some(server) = world.server() else { return Ok(()) };
        let cluster = server.acknowledged();
        for (name, group) in &cluster.spec.groups {
            let members = cluster.members_of(name).count();
            for state in &group.lifecycle.states {
                let Some(max) = group.max(state, members) else { continue };
                let software = world.software().iter();
                let there: Vec<_> = software
                    .filter(|(member, known)| member.group == *name && *known == state)
                    .map(|(member, _)| member.to_string())
                    .collect();
                if there.len() > max {
                    return Err(format!("{} are {state}, at most {max} may be", there.join(" and ")));
                }
            }
        }
        Ok(())
    }
}
