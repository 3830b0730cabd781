//! Nobody ever learns of another outcome, or another decision, than anybody else: the journal, readers at every
//! server, agents, their handlers.

use super::{Invariant, Verdict};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::{Index, TransitionId};
use lockstep_core::message::{Decision, Order, Outcome};
use lockstep_core::record::Body;
use lockstep_core::world::{Happened, ServerId, World};
use std::collections::BTreeMap;
use std::fmt::Debug;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct OneOutcome {
    decisions: BTreeMap<TransitionId, Decision>,
    outcomes: BTreeMap<TransitionId, Outcome>,
    /// How far what each server that stands by shows has been looked at.
    seen: BTreeMap<ServerId, Index>,
}

fn learn<T: Copy + PartialEq + Debug>(
    known: &mut BTreeMap<TransitionId, T>,
    id: TransitionId,
    said: T,
    who: &str,
) -> Verdict {
    let first = *known.entry(id).or_insert(said);
    if first == said { Ok(()) } else { Err(format!("{who} learns that {id} is {said:?}, it was {first:?}")) }
}

impl OneOutcome {
    fn look_at_outcomes(&mut self, cluster: &Cluster) -> Verdict {
        for (id, transition) in &cluster.transitions {
            if let Some(outcome) = transition.outcome {
                learn(&mut self.outcomes, *id, outcome, "a reader")?;
            }
        }
        Ok(())
    }
}

impl Invariant for OneOutcome {
    const NAME: &'static str = "1 one-outcome";

    fn happened(&mut self, _: &World, what: &Happened) -> Verdict {
        if let Happened::Recorded { record, .. } = what {
            if let Body::Decision { transition, decision, .. } = &record.body {
                learn(&mut self.decisions, *transition, *decision, "the journal")?;
            }
            if let Body::Outcome { transition, outcome, .. } = &record.body {
                learn(&mut self.outcomes, *transition, *outcome, "the journal")?;
            }
        }
        if let Happened::Ordered { agent, order, .. } = what {
            if let Order::Outcome { transition, outcome: Some(outcome) } = order {
                learn(&mut self.outcomes, *transition, *outcome, agent)?;
            }
            if let Order::Notice(notice) = order
                && let Some(outcome) = notice.outcome
            {
                learn(&mut self.outcomes, notice.transition, outcome, agent)?;
            }
        }
        if let Happened::Started { agent, call, .. } = what
            && let (Some(id), Some(decision)) = (call.transition, call.decision)
        {
            learn(&mut self.decisions, id, decision, agent)?;
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Verdict {
        for (_, server) in world.servers() {
            // What is open changes; what has ended was looked at when it did.
            for id in &server.acknowledged().open {
                if let Some(decision) = server.acknowledged().transitions[id].decision {
                    learn(&mut self.decisions, *id, decision, "a reader")?;
                }
            }
        }
        for (id, cluster) in world.standbys() {
            if self.seen.insert(id, cluster.revision) == Some(cluster.revision) {
                continue;
            }
            for id in &cluster.open {
                if let Some(decision) = cluster.transitions[id].decision {
                    learn(&mut self.decisions, *id, decision, "a reader of one that stands by")?;
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Verdict {
        let shown = world.server().map(|server| &**server.acknowledged());
        for cluster in shown.into_iter().chain(world.standbys().map(|(_, cluster)| cluster)) {
            self.look_at_outcomes(cluster)?;
        }
        Ok(())
    }
}
