//! Handlers of one member never run side by side, also not beside one that has outlived its agent. (DESIGN's contract
//! with handlers; it has no number of its own.)

use super::{Invariant, Verdict};
use lockstep_core::world::{Happened, Name, World};
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct CallsNeverOverlap {
    excused: BTreeSet<Name>,
}

impl Invariant for CallsNeverOverlap {
    const NAME: &'static str = "calls-never-overlap";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        let Happened::Started { agent, id, call } = what else { return Ok(()) };
        let beside = world.running(agent).find(|(other, running)| other != id && running.call.member == call.member);
        match beside {
            Some((_, running)) if !self.excused.contains(agent) => {
                let (phase, other) = (call.phase, running.call.phase);
                Err(format!("{agent} runs {phase} of {} beside its {other}", call.member))
            }
            Some(_) | None => Ok(()),
        }
    }
}
