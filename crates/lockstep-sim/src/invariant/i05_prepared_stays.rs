//! Whoever has said yes stays prepared, and holds no other opinion, until the decision is durable: nothing is
//! cancelled and nothing forgotten before.

use super::{Invariant, Verdict};
use lockstep_core::agent::AgentRecord;
use lockstep_core::id::TransitionId;
use lockstep_core::message::Phase;
use lockstep_core::record::Body;
use lockstep_core::world::{Happened, Name, World};
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct PreparedStays {
    decided: BTreeSet<TransitionId>,
    ended: BTreeSet<TransitionId>,
}

impl PreparedStays {
    fn forgets(&self, agent: &Name, id: TransitionId, what: &str) -> Verdict {
        if self.decided.contains(&id) { Ok(()) } else { Err(format!("{agent} {what} {id}, which is not decided")) }
    }
}

impl Invariant for PreparedStays {
    const NAME: &'static str = "5 prepared-stays";

    fn happened(&mut self, _: &World, what: &Happened) -> Verdict {
        match what {
            Happened::Recorded { record, .. } => {
                if let Body::Decision { transition, .. } = &record.body {
                    self.decided.insert(*transition);
                }
                if let Body::Outcome { transition, .. } = &record.body {
                    self.ended.insert(*transition);
                }
            }
            Happened::AgentRecorded { agent, record: AgentRecord::Cancelled { transition, .. } } => {
                self.forgets(agent, *transition, "cancels")?;
            }
            Happened::AgentRecorded { agent, record: AgentRecord::Closed { transition } } => {
                if !self.ended.contains(transition) {
                    return Err(format!("{agent} forgets {transition}, which has not ended"));
                }
            }
            Happened::Started { agent, call, .. } => {
                if let (Phase::Cancel, Some(id)) = (call.phase, call.transition) {
                    self.forgets(agent, id, "cancels")?;
                }
                if let (Phase::Commit | Phase::Undo | Phase::Stop, Some(id)) = (call.phase, call.transition) {
                    self.forgets(agent, id, "acts for")?;
                }
            }
            Happened::AgentRecorded { .. }
            | Happened::Asked { .. }
            | Happened::Answered { .. }
            | Happened::Ordered { .. }
            | Happened::Reported { .. }
            | Happened::Joined(_)
            | Happened::TurnedAway { .. }
            | Happened::Ended { .. }
            | Happened::ServerWarned(_)
            | Happened::Store(_)
            | Happened::Guarded { .. }
            | Happened::AgentWarned { .. } => {}
        }
        Ok(())
    }
}
