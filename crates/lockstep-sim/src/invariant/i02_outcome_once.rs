//! A transition is decided once, and ends once, also in the journal.

use super::{Invariant, Verdict};
use lockstep_core::id::TransitionId;
use lockstep_core::record::Body;
use lockstep_core::world::{Happened, World};
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct OutcomeOnce {
    decided: BTreeSet<TransitionId>,
    ended: BTreeSet<TransitionId>,
}

impl Invariant for OutcomeOnce {
    const NAME: &'static str = "2 outcome-once";

    fn happened(&mut self, _: &World, what: &Happened) -> Verdict {
        let Happened::Recorded { record, .. } = what else { return Ok(()) };
        if let Body::Decision { transition, .. } = &record.body
            && !self.decided.insert(*transition)
        {
            return Err(format!("{transition} is decided twice"));
        }
        if let Body::Outcome { transition, .. } = &record.body {
            if !self.decided.contains(transition) {
                return Err(format!("{transition} ends without a decision"));
            }
            if !self.ended.insert(*transition) {
                return Err(format!("{transition} ends twice"));
            }
        }
        Ok(())
    }
}
