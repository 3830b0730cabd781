//! Once the faults have ended everything resolves, also when a few hosts stay broken: transitions end, agents hear of
//! it, software is where readers see it and has forgotten what it prepared and held.

use super::{Invariant, Verdict};
use lockstep_core::id::{HostName, MemberId};
use lockstep_core::record::Liveness;
use lockstep_core::world::{Name, World, unsettled};
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Heals {
    excused: BTreeSet<Name>,
}

impl Invariant for Heals {
    const NAME: &'static str = "19 heals";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn end(&mut self, world: &World) -> Verdict {
        let Some(server) = world.server() else { return Err("no server runs".to_owned()) };
        let cluster = server.acknowledged();
        let is_whole = |host: &HostName| world.agent(host.as_str()).is_some() && !self.excused.contains(host.as_str());
        if let Some(id) = cluster.open.first() {
            return Err(format!("{id} has not ended"));
        }
        if let Some(host) = unsettled(world).into_iter().find(is_whole) {
            let open = world.agent(host.as_str()).map(|agent| &agent.state().open);
            return Err(format!("{host} waits for an outcome: {open:?}"));
        }
        let kept = |(member, _): &&(MemberId, _)| is_whole(&member.host);
        if let Some((member, phase)) = world.promises().iter().find(kept) {
            return Err(format!("{member} is left in {phase}"));
        }
        for (host, known) in &cluster.hosts {
            if is_whole(host) && known.liveness != Liveness::Alive {
                return Err(format!("{host} is {}", known.liveness));
            }
        }
        for (member, known) in &cluster.members {
            let really = world.software().get(member);
            // New software is in its lowest state.
            if is_whole(&member.host) && really.is_some() && known.actual.as_ref() != really {
                return Err(format!("{member} is shown {:?} and is {really:?}", known.actual));
            }
        }
        Ok(())
    }
}
