//! Every hold ends: its holder is released, or lets go by itself at the stated end, and it hears the decision
//! afterwards. No decision to commit is taken when half of a hold is over.

use super::{Invariant, Verdict};
use lockstep_core::agent::AgentRecord;
use lockstep_core::id::{Index, MemberId, TransitionId};
use lockstep_core::message::{Decision, Phase};
use lockstep_core::time::Time;
use lockstep_core::world::{Happened, Name, ServerId, World};
use std::collections::{BTreeMap, BTreeSet};

/// How much longer than stated a hold may be seen, in milliseconds: what slow disks and slow agents make of it here.
const SLACK_MS: u64 = 12_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct HoldsEnd {
    holds: BTreeMap<(TransitionId, MemberId), Hold>,
    excused: BTreeSet<Name>,
    /// Since when each agent runs, and is not stopped.
    running_since: BTreeMap<Name, Time>,
    seen: BTreeMap<ServerId, Index>,
    decided: BTreeSet<TransitionId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Hold {
    agent: Name,
    /// By the world's clock.
    began: Time,
    hold_ms: u64,
    /// The release has been tried since.
    is_released: bool,
    /// Its handler has heard the decision.
    is_told: bool,
}

impl Invariant for HoldsEnd {
    const NAME: &'static str = "14 holds-end";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        if let Happened::AgentRecorded { agent, record: AgentRecord::Held { transition, member, hold_ms, .. } } = what {
            let hold = Hold {
                agent: agent.clone(),
                began: world.now(),
                hold_ms: *hold_ms,
                is_released: false,
                is_told: false,
            };
            self.holds.insert((*transition, member.clone()), hold);
        }
        if let Happened::Started { call, .. } = what
            && let (Phase::Release, Some(id)) = (call.phase, call.transition)
            && let Some(hold) = self.holds.get_mut(&(id, call.member.clone()))
        {
            hold.is_released = true;
            hold.is_told |= call.decision.is_some();
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Verdict {
        let now = world.now();
        for (server, engine) in world.servers() {
            let cluster = engine.proposed();
            if self.seen.insert(server, cluster.revision) == Some(cluster.revision) {
                continue;
            }
            for id in &cluster.open {
                let is_new = cluster.transitions[id].decision == Some(Decision::Commit) && self.decided.insert(*id);
                // The server counts from sending, which was earlier; its clock may be a little slow.
                let is_late = |hold: &Hold| hold.began.plus(hold.hold_ms / 2 + hold.hold_ms / 40 + 2) < now;
                let mut holds = self.holds.iter().filter(|((of, _), _)| of == id);
                if is_new && let Some(((_, member), _)) = holds.find(|(_, hold)| is_late(hold)) {
                    return Err(format!("{id} is decided, and the hold of {member} is half over"));
                }
            }
        }
        if self.holds.values().all(|hold| hold.is_released) {
            return Ok(());
        }
        for name in world.agents() {
            if world.agent(name).is_some() && !world.is_paused(name) {
                self.running_since.entry(name.clone()).or_insert(now);
            } else {
                self.running_since.remove(name);
            }
        }
        for ((id, member), hold) in &self.holds {
            let Some(since) = self.running_since.get(&hold.agent) else { continue };
            let end = hold.began.plus(hold.hold_ms).max(*since).plus(SLACK_MS);
            if !hold.is_released && end < now && !self.excused.contains(&hold.agent) {
                return Err(format!("{member} holds for {id}, {} ms after its end", now.since(end) + SLACK_MS));
            }
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Verdict {
        let is_there = |hold: &&Hold| world.agent(&hold.agent).is_some() && !self.excused.contains(&hold.agent);
        for ((id, member), hold) in &self.holds {
            if is_there(&hold) && !hold.is_told {
                return Err(format!("{member} held for {id} and was never told the decision"));
            }
        }
        Ok(())
    }
}
