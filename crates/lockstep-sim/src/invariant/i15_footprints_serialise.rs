//! Transitions that touch the same groups are never under way together.

use super::{Invariant, Verdict};
use lockstep_core::id::TransitionId;
use lockstep_core::plan::Plan;
use lockstep_core::record::Body;
use lockstep_core::world::{Happened, World};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct FootprintsSerialise {
    under_way: BTreeMap<TransitionId, Arc<Plan>>,
}

impl Invariant for FootprintsSerialise {
    const NAME: &'static str = "15 footprints-serialise";

    fn happened(&mut self, _: &World, what: &Happened) -> Verdict {
        let Happened::Recorded { record, .. } = what else { return Ok(()) };
        if let Body::Outcome { transition, .. } = &record.body {
            self.under_way.remove(transition);
        }
        let Body::Begin { transition, plan } = &record.body else { return Ok(()) };
        for (other, theirs) in &self.under_way {
            let is_touched = |a: &Plan, b: &Plan| {
                a.exclusive.iter().any(|group| b.exclusive.contains(group) || b.shared.contains(group))
            };
            if is_touched(plan, theirs) || is_touched(theirs, plan) {
                return Err(format!("{transition} is begun while {other} is under way in its groups"));
            }
        }
        self.under_way.insert(*transition, plan.clone());
        Ok(())
    }
}
