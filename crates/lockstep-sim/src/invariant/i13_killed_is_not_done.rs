//! A step counts as confirmed only after its handler has said so, in its own words: not because it was started, and
//! not because somebody thinks so. A server has a step taken back only after it has heard how the forward handler
//! that it asked for has ended.

use super::{Invariant, Verdict};
use lockstep_core::id::{MemberId, StepId, TransitionId};
use lockstep_core::message::{Order, Phase, Report};
use lockstep_core::record::{Body, Direction, StepResult};
use lockstep_core::vote::Answer;
use lockstep_core::world::{Happened, ServerId, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct KilledIsNotDone {
    confirmed: BTreeSet<(TransitionId, StepId, Phase)>,
    stopped: BTreeSet<(TransitionId, MemberId)>,
    /// Members of which there is evidence that they have stopped (that it is true is looked at elsewhere).
    evident: BTreeSet<MemberId>,
    /// Forward orders of each server: the latest try that was ordered, and the latest that was answered.
    tries: BTreeMap<(ServerId, TransitionId, StepId), (u32, u32)>,
}

impl Invariant for KilledIsNotDone {
    const NAME: &'static str = "13 killed-is-not-done";

    fn happened(&mut self, _: &World, what: &Happened) -> Verdict {
        if let Happened::Ordered { agent, server, order: Order::Call(call), .. } = what
            && let (Some(id), Some(step)) = (call.transition, call.step)
        {
            let (ordered, answered) = self.tries.entry((*server, id, step)).or_default();
            if call.phase == Phase::Commit {
                *ordered = call.attempt.max(*ordered);
            }
            if call.phase == Phase::Undo && *ordered > *answered {
                return Err(format!("{agent} is to take step {step} of {id} back, and has not answered for it"));
            }
        }
        if let Happened::Reported { server, report: Report::Done(done), .. } = what
            && let (Phase::Commit, Some(id), Some(step)) = (done.phase, done.transition, done.step)
        {
            let (_, answered) = self.tries.entry((*server, id, step)).or_default();
            *answered = done.attempt.max(*answered);
        }
        if let Happened::Ended { call, answer, .. } = what
            && let Some(id) = call.transition
        {
            if let (Some(step), Answer::Yes) = (call.step, answer) {
                self.confirmed.insert((id, step, call.phase));
            }
            if let (Phase::Stop, Answer::Yes) = (call.phase, answer) {
                self.stopped.insert((id, call.member.clone()));
            }
        }
        let Happened::Recorded { record, .. } = what else { return Ok(()) };
        if let Body::Evidence { members, .. } = &record.body {
            self.evident.extend(members.keys().cloned());
        }
        if let Body::Begin { plan, .. } = &record.body {
            self.evident.retain(|member| !plan.goals.contains_key(member));
        }
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
                StepResult::Stopped { member }
                    if !self.stopped.contains(&(*transition, member.clone())) && !self.evident.contains(member) =>
                {
                    return Err(format!("{member} counts as stopped in {transition}, and nobody said so"));
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
