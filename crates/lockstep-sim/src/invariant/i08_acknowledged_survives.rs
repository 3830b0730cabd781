//! What was acknowledged is there for ever, in its place, at the servers' store and at each agent; and nothing is
//! answered or ordered before its record is durable. (That disks give back what they took,
//! [`super::i22_disks_keep_their_word`] sees.)

use super::{Invariant, Verdict};
use lockstep_core::agent::AgentRecord;
use lockstep_core::engine::Accepted;
use lockstep_core::id::{Index, TransitionId};
use lockstep_core::message::{Order, Phase};
use lockstep_core::record::{Body, Record};
use lockstep_core::world::{Happened, Name, ServerId, World};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AcknowledgedSurvives {
    durable: Vec<Record>,
    active: Option<ServerId>,
    agents: BTreeMap<Name, Vec<AgentRecord>>,
    excused: BTreeSet<Name>,
    begun: BTreeSet<TransitionId>,
    decided: BTreeSet<TransitionId>,
}

/// The records are compared with the world's own, and are the same until that fails: how many there are says all.
impl Hash for AcknowledgedSurvives {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { durable, active, agents, excused, begun, decided } = self;
        (durable.len(), active, excused, begun, decided).hash(state);
        agents.values().for_each(|records| records.len().hash(state));
    }
}

impl AcknowledgedSurvives {
    fn recorded(&mut self, index: Index, record: &Record) -> Verdict {
        self.durable.push(record.clone());
        if let Body::Begin { transition, .. } = &record.body {
            self.begun.insert(*transition);
        }
        if let Body::Decision { transition, .. } = &record.body {
            self.decided.insert(*transition);
        }
        if index.0 == self.durable.len() as u64 {
            return Ok(());
        }
        Err(format!("a record is written at {index}, {} are there already", self.durable.len() - 1))
    }
}

impl Invariant for AcknowledgedSurvives {
    const NAME: &'static str = "8 acknowledged-survives";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        if let Happened::Recorded { index, record } = what {
            self.recorded(*index, record)?;
        }
        if let Happened::AgentRecorded { agent, record } = what {
            self.agents.entry(agent.clone()).or_default().push(record.clone());
        }
        if let Happened::Reported { agent, .. } = what
            && !self.excused.contains(agent)
        {
            let known = self.agents.get(agent).map_or(0, Vec::len);
            if world.agent_journal(agent).len() < known {
                return Err(format!("{agent} has forgotten what it wrote"));
            }
        }
        if let Happened::Answered { answer: Ok(Accepted::Transition(id)), .. } = what
            && !matches!(self.durable.get(id.0 as usize - 1).map(|record| &record.body), Some(Body::Request { .. }))
        {
            return Err(format!("{id} is accepted, and its request is not durable"));
        }
        if let Happened::Ordered { agent, order: Order::Call(call), .. } = what
            && let Some(id) = call.transition
        {
            let needs = match call.phase {
                Phase::Check | Phase::Status | Phase::Notice | Phase::Fence => None,
                Phase::Prepare | Phase::Hold => Some(&self.begun),
                Phase::Commit | Phase::Undo | Phase::Cancel | Phase::Release | Phase::Stop => Some(&self.decided),
            };
            if needs.is_some_and(|durable| !durable.contains(&id)) {
                return Err(format!("{agent} is ordered to {} for {id} before that is durable", call.phase));
            }
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Verdict {
        if world.active() == self.active {
            return Ok(());
        }
        self.active = world.active();
        if world.journal().get(..self.durable.len()) == Some(&self.durable[..]) {
            return Ok(());
        }
        Err("a server starts without something that was acknowledged".to_owned())
    }
}
