//! A host that comes back hears what it missed before it is asked for anything new.

use super::{Invariant, Verdict};
use lockstep_core::engine::SessionId;
use lockstep_core::id::TransitionId;
use lockstep_core::message::{Order, Phase, Report};
use lockstep_core::record::Body;
use lockstep_core::world::{Happened, Name, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct MissedOutcomesFirst {
    ended: BTreeSet<TransitionId>,
    /// What has to be heard of first on a connection. Greetings of one host overtake each other: what it is asked on a
    /// newer connection counts on what it has been told there.
    missed: BTreeMap<SessionId, BTreeSet<TransitionId>>,
    excused: BTreeSet<Name>,
}

impl Invariant for MissedOutcomesFirst {
    const NAME: &'static str = "18 missed-outcomes-first";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        if let Happened::Recorded { record, .. } = what
            && let Body::Outcome { transition, .. } = &record.body
        {
            self.ended.insert(*transition);
        }
        if let Happened::Reported { server, session, report: Report::Hello(hello), .. } = what
            && world.active() == Some(*server)
        {
            let missed = hello.open.iter().copied().filter(|id| self.ended.contains(id));
            self.missed.insert(*session, missed.collect());
        }
        let Happened::Ordered { agent, order, session, .. } = what else { return Ok(()) };
        let Some(missed) = self.missed.get_mut(session) else { return Ok(()) };
        match order {
            Order::Outcome { transition, .. } => _ = missed.remove(transition),
            Order::Call(call) if !missed.is_empty() && !self.excused.contains(agent) => match call.phase {
                Phase::Check | Phase::Prepare | Phase::Commit | Phase::Undo | Phase::Hold | Phase::Stop => {
                    return Err(format!(
                        "{agent} is asked to {} for {:?} before it hears of {missed:?}",
                        call.phase, call.transition
                    ));
                }
                Phase::Cancel | Phase::Release | Phase::Status | Phase::Notice | Phase::Fence => {}
            },
            Order::Call(_)
            | Order::Welcome { .. }
            | Order::Refused { .. }
            | Order::Assign { .. }
            | Order::Notice(_)
            | Order::Gap(_)
            | Order::Renewed { .. } => {}
        }
        Ok(())
    }
}
