//! A member of a host that comes back does not stay above its goal: what was decided while it was away counts.

use super::{Invariant, Verdict};
use lockstep_core::id::{HostName, MemberId};
use lockstep_core::record::{Body, HostChange, Liveness};
use lockstep_core::world::{Happened, Name, World};
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct ReturnsAreJudged {
    away: BTreeSet<HostName>,
    /// Members of hosts that have come back, whom no transition has moved since.
    returned: BTreeSet<MemberId>,
    excused: BTreeSet<Name>,
}

impl Invariant for ReturnsAreJudged {
    const NAME: &'static str = "18 returns-are-judged";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        let Happened::Recorded { record, .. } = what else { return Ok(()) };
        if let Body::Begin { plan, .. } = &record.body {
            self.returned.retain(|member| !plan.goals.contains_key(member));
        }
        let Body::Host { host, change } = &record.body else { return Ok(()) };
        let is_back = match change {
            HostChange::Liveness { liveness: Liveness::Lost | Liveness::Fenced | Liveness::Left } => {
                self.away.insert(host.clone());
                false
            }
            HostChange::Forgotten => {
                self.away.remove(host);
                self.returned.retain(|member| member.host != *host);
                false
            }
            HostChange::Joined { .. } | HostChange::Liveness { liveness: Liveness::Alive } => self.away.remove(host),
            HostChange::Liveness { liveness: Liveness::Suspect } => false,
            HostChange::Labelled { .. }
            | HostChange::Published { .. }
            | HostChange::Guarded { .. }
            | HostChange::Undrained => false,
        };
        if let Some(server) = world.server().filter(|_| is_back) {
            // What a transition drives is that transition's to see to.
            let here = server.acknowledged().members.iter();
            let here = here.filter(|(id, member)| id.host == *host && member.transition.is_none());
            self.returned.extend(here.map(|(id, _)| id.clone()));
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Verdict {
        let Some(server) = world.server() else { return Ok(()) };
        let cluster = server.acknowledged();
        for id in self.returned.iter().filter(|id| !self.excused.contains(id.host.as_str())) {
            let (Some(member), Some(group)) = (cluster.members.get(id), cluster.spec.groups.get(&id.group)) else {
                continue;
            };
            let rank = |state| group.lifecycle.rank(state);
            let (Some(goal), Some(really)) = (&member.goal, world.software().get(id)) else { continue };
            let is_here = cluster.hosts[&id.host].is_reachable() && world.agent(id.host.as_str()).is_some();
            if is_here && member.transition.is_none() && rank(really) > rank(goal) {
                return Err(format!("{id} has come back and is {really}, and should be {goal}"));
            }
        }
        Ok(())
    }
}
