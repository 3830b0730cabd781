//! A step counts as confirmed only after its handler has said so, in its own words: not because it was started, and
//! not because somebody thinks so. A step is taken back only after its forward handler has ended.

use super::{Invariant, Verdict};
use lockstep_core::id::{MemberId, StepId, TransitionId};
use lockstep_core::message::{Order, Phase};
use lockstep_core::record::{Body, Direction, StepResult};
use lockstep_core::vote::Answer;
use lockstep_core::world::{Happened, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct KilledIsNotDone {
    confirmed: BTreeSet<(TransitionId, StepId, Phase)>,
    stopped: BTreeSet<(TransitionId, MemberId)>,
    /// How many forward handlers of a step have been started and have not ended, by agent deaths neither.
    at_work: BTreeMap<(TransitionId, StepId), BTreeSet<lockstep_core::world::Name>>,
}

impl Invariant for KilledIsNotDone {
    const NAME: &'static str = "13 killed-is-not-done";

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        if let Happened::Started { agent, call, .. } = what
            && let (Phase::Commit, Some(id), Some(step)) = (call.phase, call.transition, call.step)
        {
            self.at_work.entry((id, step)).or_default().insert(agent.clone());
        }
        if let Happened::Ended { agent, call, answer } = what
            && let Some(id) = call.transition
        {
            if let (Some(step), Answer::Yes) = (call.step, answer) {
                self.confirmed.insert((id, step, call.phase));
            }
            if let (Phase::Stop, Answer::Yes) = (call.phase, answer) {
                self.stopped.insert((id, call.member.clone()));
            }
            if let (Phase::Commit, Some(step)) = (call.phase, call.step)
                && let Some(agents) = self.at_work.get_mut(&(id, step))
            {
                agents.remove(agent);
            }
        }
        if let Happened::Ordered { agent, order: Order::Call(call) } = what
            && let (Phase::Undo, Some(id), Some(step)) = (call.phase, call.transition, call.step)
            && self.at_work.get(&(id, step)).is_some_and(|agents| agents.contains(agent))
            && world.running(agent).any(|(_, running)| {
                running.call.phase == Phase::Commit
                    && running.call.transition == Some(id)
                    && running.call.step == Some(step)
            })
        {
            return Err(format!("{agent} is to take step {step} of {id} back while it is at work on it"));
        }
        let Happened::Recorded { record, .. } = what else { return Ok(()) };
        let Body::Step { transition, results } = &record.body else { return Ok(()) };
        for result in results {
            match result {
                StepResult::Confirmed { step, direction } => {
                    let phase = match direction {
                        Direction::Forward => Phase::Commit,
                        Direction::Back => Phase::Undo,
                    };
                    if !self.confirmed.contains(&(*transition, *step, phase)) {
                        return Err(format!("step {step} of {transition} counts as done, and no handler said so"));
                    }
                }
                StepResult::Stopped { member } if !self.stopped.contains(&(*transition, member.clone())) => {
                    return Err(format!("{member} counts as stopped in {transition}, and no handler said so"));
                }
                StepResult::Stopped { .. }
                | StepResult::Failed { .. }
                | StepResult::Unknown { .. }
                | StepResult::HoldEnded { .. } => {}
            }
        }
        Ok(())
    }
}
