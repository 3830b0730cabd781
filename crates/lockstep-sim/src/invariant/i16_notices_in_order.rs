//! A host is told every intent and every outcome that concerns it, in order and without a gap, or that there is one.

use super::{Invariant, Verdict};
use lockstep_core::id::Index;
use lockstep_core::message::Order;
use lockstep_core::world::{Happened, Name, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct NoticesInOrder {
    last: BTreeMap<Name, Index>,
    excused: BTreeSet<Name>,
}

impl Invariant for NoticesInOrder {
    const NAME: &'static str = "16 notices-in-order";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, _: &World, what: &Happened) -> Verdict {
        if let Happened::Ordered { agent, order: Order::Gap(gap), .. } = what {
            let last = self.last.entry(agent.clone()).or_default();
            *last = (*last).max(gap.index);
            // What is kept covers far more than a host misses here: one that has what it took needs no such marker.
            return if self.excused.contains(agent) {
                Ok(())
            } else {
                Err(format!("{agent} is told of a gap up to {}", gap.index))
            };
        }
        let Happened::Ordered { agent, order: Order::Notice(notice), .. } = what else { return Ok(()) };
        let last = self.last.entry(agent.clone()).or_default();
        if notice.previous > *last && !self.excused.contains(agent) {
            let previous = notice.previous;
            return Err(format!("{agent} gets notice {} after {last}, and {previous} lies between", notice.index));
        }
        *last = (*last).max(notice.index);
        Ok(())
    }

    fn end(&mut self, world: &World) -> Verdict {
        let Some(server) = world.server() else { return Ok(()) };
        for (host, notices) in &server.acknowledged().notices {
            let Some(agent) = world.agent(host.as_str()) else { continue };
            let newest = notices.kept.back().map_or(notices.dropped, |(index, _)| *index);
            if agent.state().noticed < newest && !self.excused.contains(host.as_str()) {
                return Err(format!("{host} has taken notices up to {}, not {newest}", agent.state().noticed));
            }
        }
        Ok(())
    }
}
