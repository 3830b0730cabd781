//! No handler starts to act under a token when its agent has learned of a higher one for the group.

use super::{Invariant, Verdict};
use lockstep_core::agent::AgentEngine;
use lockstep_core::id::{GroupName, Token};
use lockstep_core::message::{Order, Phase};
use lockstep_core::world::{Happened, Name, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct TokensFence {
    learned: BTreeMap<(Name, GroupName), Token>,
    excused: BTreeSet<Name>,
}

impl Invariant for TokensFence {
    const NAME: &'static str = "10 tokens-fence";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        // What reaches an agent that has given the connection up tells it nothing.
        if let Happened::Ordered { agent, order: Order::Call(call), .. } = what
            && let Some(token) = call.token
            && world.agent(agent).is_some_and(AgentEngine::is_connected)
        {
            let known = self.learned.entry((agent.clone(), call.member.group.clone())).or_default();
            *known = (*known).max(token);
        }
        let Happened::Started { agent, call, .. } = what else { return Ok(()) };
        let acts = match call.phase {
            Phase::Prepare | Phase::Commit | Phase::Undo | Phase::Stop | Phase::Hold => true,
            // They only take back.
            Phase::Cancel | Phase::Release => false,
            Phase::Check | Phase::Status | Phase::Notice | Phase::Fence => false,
        };
        let known = self.learned.get(&(agent.clone(), call.member.group.clone())).copied().unwrap_or_default();
        match call.token {
            Some(token) if acts && token < known && !self.excused.contains(agent) => Err(format!(
                "{agent} starts {} of {} under {token}, and knows {known}",
                call.phase, call.member
            )),
            Some(_) | None => Ok(()),
        }
    }
}
