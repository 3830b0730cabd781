//! Each server reigns under a number of its own, higher than any before; the store takes no write of one that was
//! deposed; each token is given once.

use super::{Invariant, Verdict};
use lockstep_core::id::{Reign, Token, TransitionId};
use lockstep_core::message::Order;
use lockstep_core::record::Body;
use lockstep_core::world::{Happened, Name, ServerId, StoreEvent, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct ReignsGrow {
    /// Of each server, by its name: the index of the record that its take-over has written.
    reigns: BTreeMap<String, Reign>,
    tokens: BTreeMap<Token, TransitionId>,
    /// Whom a store that servers share has let reign last, and as what.
    leader: Option<(ServerId, Reign)>,
    followed: BTreeMap<Name, Reign>,
    excused: BTreeSet<Name>,
}

impl Invariant for ReignsGrow {
    const NAME: &'static str = "11 reigns-grow";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        if let Happened::Recorded { index, record } = what
            && let Body::Begin { transition, .. } | Body::Turn { transition, .. } = &record.body
        {
            self.tokens.insert(Token(index.0), *transition);
        }
        if let Happened::Recorded { index, record } = what
            && let Body::Reign { server, .. } = &record.body
        {
            self.reigns.insert(server.clone(), Reign(index.0));
        }
        if let Happened::Store(StoreEvent::Won { server, reign }) = what
            && let Some((_, before)) = self.leader.replace((*server, *reign))
            && before >= *reign
        {
            return Err(format!("{server:?} reigns as {reign} after {before}"));
        }
        if let Happened::Store(StoreEvent::Wrote { server, .. }) = what
            && self.leader.is_none_or(|(leader, _)| leader != *server)
        {
            return Err(format!("the store takes a write of {server:?}, and {:?} reigns", self.leader));
        }
        if let Happened::Joined(name) = what
            && let Some(agent) = world.agent(name).filter(|_| !self.excused.contains(name))
        {
            let reign = agent.state().reign;
            if self.followed.insert(name.clone(), reign).is_some_and(|before| before > reign) {
                return Err(format!("{name} follows reign {reign} after a higher one"));
            }
        }
        if let Happened::Ordered { agent, order: Order::Call(call), .. } = what
            && let Some(token) = call.token
            && self.tokens.get(&token) != call.transition.as_ref()
        {
            return Err(format!("{agent} is ordered under {token}, which was not given to {:?}", call.transition));
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Verdict {
        let Some((id, server)) = world.active().zip(world.server()) else { return Ok(()) };
        let cluster = server.acknowledged();
        // Before its first record is durable a server does not reign yet.
        let Some(own) = self.reigns.get(&format!("server-{}", id.0)).filter(|own| own.0 <= cluster.revision.0) else {
            return Ok(());
        };
        if cluster.reign == *own { Ok(()) } else { Err(format!("{id:?} reigns under {}, not {own}", cluster.reign)) }
    }
}
