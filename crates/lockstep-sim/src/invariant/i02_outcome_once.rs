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
        match &record.body {
            Body::Decision { transition, .. } if !self.decided.insert(*transition) => {
                Err(format!("{transition} is decided twice"))
            }
            Body::Outcome { transition, .. } if !self.decided.contains(transition) => {
                Err(format!("{transition} ends without a decision"))
            }
            Body::Outcome { transition, .. } if !self.ended.insert(*transition) => {
                Err(format!("{transition} ends twice"))
            }
            _ => Ok(()),
        }
    }
}
