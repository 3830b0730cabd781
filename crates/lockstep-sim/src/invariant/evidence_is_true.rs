//! What is taken for evidence is true: when a lease's end, or a fence handler, counts as evidence that members have
//! stopped, their software has. (The ground that invariant 12 stands on; it has no number of its own. What persons say is
//! their own promise.)

use super::{Invariant, Verdict};
use lockstep_core::record::{Body, Evidence};
use lockstep_core::world::{Happened, Name, World};
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct EvidenceIsTrue {
    excused: BTreeSet<Name>,
}

impl Invariant for EvidenceIsTrue {
    const NAME: &'static str = "evidence-is-true";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn release(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        let Happened::Recorded { record, .. } = what else { return Ok(()) };
        let Body::Evidence { members, by: by @ (Evidence::Lease | Evidence::Fence { .. }) } = &record.body else {
            return Ok(());
        };
        let expected = members.iter().filter(|(member, _)| !self.excused.contains(member.host.as_str()));
        for (member, state) in expected {
            // Software that was never started is in its lowest state.
            if let Some(really) = world.software().get(member).filter(|really| *really != state) {
                return Err(format!("{member} counts as {state} because of {by:?}, and is {really}"));
            }
        }
        Ok(())
    }
}
