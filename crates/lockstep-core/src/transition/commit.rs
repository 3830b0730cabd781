//! What follows a decision to commit: steps in the order of the plan's graph, what is done about those that fail
//! (undo, or exclude), and where members are left.

use super::{Course, Next, Run, Stage, Try};
use crate::cluster::{StepState, Transition};
use crate::engine::Engine;
use crate::flow::Flow;
use crate::id::{GroupName, MemberId, StateName, StepId, TransitionId};
use crate::message::{Done, Outcome, Phase, Role};
use crate::mutant::{self, Mutant};
use crate::plan::{self, Plan};
use crate::record::{Body, Direction, HoldEnd, Left, StepResult, Turn};
use crate::relation::Relation;
use crate::spec::{Kind, OnFailure};
use crate::vote::Answer;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Engine {
    pub(super) fn course(&self, transition: &Transition, plan: &Plan) -> Course {
        let mut forward = Flow::new(plan, Direction::Forward);
        let mut back = transition.undo.is_some().then(|| Flow::new(plan, Direction::Back));
        for step in &plan.steps {
            if transition.is_confirmed(step.id, Direction::Forward) {
                forward.finish_when_ready(step.id);
            }
            if transition.is_confirmed(step.id, Direction::Back)
                && let Some(back) = &mut back
            {
                back.finish_when_ready(step.id);
            }
        }
        let deadline = self.now.time;
        let stops =
            transition.excluded.keys().filter(|member| !transition.stopped.contains(*member)).map(|member| {
                let deadline = deadline.plus(self.commit_ms(&member.group));
                (member.clone(), Try::due(self.now.time, deadline))
            });
        let stops = stops.collect();
        let maybe_taken = forward.ready().clone();
        let is_halted = self.would_break_limits(transition, plan);
        Course { forward, back, tries: BTreeMap::new(), stops, maybe_taken, is_unanswered: true, is_halted }
    }

    pub(super) fn advance_commit(&mut self, id: TransitionId, run: &mut Run) -> Next {
        let Stage::Commit(mut course) = std::mem::replace(&mut run.stage, Stage::Queued) else {
            unreachable!("advance dispatches by stage")
        };
        self.time_out(id, run, &mut course);
        self.answer_failures(id, run, &mut course);
        self.stop_excluded(id, run, &mut course);
        self.order_steps(id, run, &mut course);
        let is_idle = course.tries.is_empty() && course.stops.is_empty();
        let holders: Vec<_> = run
            .holds
            .keys()
            .filter(|holder| is_idle || self.may_release(run, &course, id, holder))
            .filter(|_| course.back.is_none() || !mutant::is(Mutant::UndoForgetsHolder))
            .cloned()
            .collect();
        self.release(id, run, &holders);
        run.stage = Stage::Commit(course);
        if self.waits_for_release(id, run) || !is_idle {
            return Next::Wait;
        }
        let transition = self.head.transitions[&id].clone();
        let left = self.left(&transition, &run.plan);
        let outcome = match (left.is_empty(), &transition.undo) {
            (false, _) => Outcome::Degraded,
            (true, Some(_)) => Outcome::Undone,
            (true, None) => Outcome::Committed,
        };
        // What it shares is copied when it changes.
        drop(transition);
        self.end(id, run, outcome, left);
        Next::Ended
    }

    /// Steps whose handler has not ended in time: nobody knows what came of them.
    fn time_out(&mut self, id: TransitionId, run: &Run, course: &mut Course) {
        let now = self.now.time;
        let late: Vec<_> = course
            .tries
            .iter()
            .filter(|(_, step)| step.deadline <= now)
            .map(|(key, step)| (*key, *step))
            .collect();
        for ((step, direction), tried) in late {
            course.tries.remove(&(step, direction));
            let result = match tried.again_at {
                // It has ended and failed, and there is no time for another try.
                Some(_) => {
                    let group = &run.plan.steps[step.0 as usize].member.group;
                    let reason = "no time left to try again".to_owned() + &self.tries_of(group, &tried);
                    StepResult::Failed { step, direction, reason }
                }
                None => StepResult::Unknown { step, direction },
            };
            self.note_step(id, result);
            self.failed(course, step, direction);
        }
        let due: Vec<_> = course
            .tries
            .iter_mut()
            .filter_map(|(key, tried)| tried.is_due(now).then_some((*key, *tried)))
            .collect();
        for ((step, direction), tried) in due {
            self.send_step(id, run, step, direction, &tried);
        }
        course.stops.retain(|_, stop| stop.deadline > now);
    }

    /// Answers each forward failure that has no answer yet: undo, or exclude its member.
    fn answer_failures(&mut self, id: TransitionId, run: &mut Run, course: &mut Course) {
        if !std::mem::replace(&mut course.is_unanswered, false) || course.back.is_some() {
            return;
        }
        let transition = self.head.transitions[&id].clone();
        let failed = transition.steps.iter().find_map(|((step, direction), state)| {
            let member = &run.plan.steps[step.0 as usize].member;
            let reason = match state {
                StepState::Confirmed => return None,
                StepState::Failed(reason) => reason.clone(),
                StepState::Unknown => "it did not end in time".to_owned(),
            };
            let is_open = *direction == Direction::Forward && !transition.excluded.contains_key(member);
            is_open.then(|| (member.clone(), reason))
        });
        let Some((member, reason)) = failed else { return };
        let asked = transition.request.on_failure;
        let may_undo = !self.is_past_return(&transition, run);
        match plan::on_failure(&self.head, asked, &member.group) {
            OnFailure::Undo if may_undo => {
                self.propose(Body::Turn { transition: id, turn: Turn::Undo, member, reason });
                course.back = Some(Flow::new(&run.plan, Direction::Back));
                // Who was left out is taken back like everybody else; a stop after that would undo the undo.
                course.stops.clear();
                // What waits to be tried again has ended; what runs is waited for.
                let ended: Vec<_> = course
                    .tries
                    .iter()
                    .filter(|(_, step)| step.again_at.is_some())
                    .map(|(key, _)| *key)
                    .collect();
                for (step, direction) in ended {
                    course.tries.remove(&(step, direction));
                    let reason = "given up when the transition turned back".to_owned();
                    self.note_step(id, StepResult::Failed { step, direction, reason });
                }
                for gone in &transition.stopped {
                    if !self.is_reachable(&gone.host) {
                        self.give_up_steps(id, &run.plan, course, gone);
                    }
                }
            }
            OnFailure::Undo | OnFailure::Exclude => {
                self.propose(Body::Turn {
                    transition: id,
                    turn: Turn::Exclude,
                    member: member.clone(),
                    reason,
                });
                // One that is known to have stopped already is asked for nothing.
                if !transition.stopped.contains(&member) {
                    let deadline = self.now.time.plus(self.commit_ms(&member.group));
                    course.stops.insert(member.clone(), Try::due(self.now.time, deadline));
                }
                let transition = self.head.transitions[&id].clone();
                course.is_halted = self.would_break_limits(&transition, &run.plan);
                course.is_unanswered = true;
                self.answer_failures(id, run, course);
            }
        }
    }

    /// Whether undo would lose something: a hold has been let go, or a limited serving state for which nobody
    /// holds has been entered.
    fn is_past_return(&self, transition: &Transition, run: &Run) -> bool {
        let is_confirmed = |step: &StepId| transition.is_confirmed(*step, Direction::Forward);
        // A hold that has ended by itself holds for nobody: what was entered since has clients.
        let has_ended = transition.holds.values().any(|end| *end != HoldEnd::Released);
        run.holds.values().any(|hold| hold.release.is_some())
            || transition.holds.values().any(|end| *end == HoldEnd::Released)
            || run.plan.no_return.iter().any(is_confirmed)
            || (has_ended && self.limited_entries(&run.plan).any(|step| is_confirmed(&step)))
    }

    /// The steps that enter a serving state limited by `max`.
    fn limited_entries(&self, plan: &Plan) -> impl Iterator<Item = StepId> {
        let entries = plan.steps.iter().filter(|step| {
            self.head.spec.groups.get(&step.member.group).is_some_and(|group| {
                let has_max = group.limits.get(&step.to).is_some_and(|limit| limit.max.is_some());
                has_max && step.moves() && group.lifecycle.serves(&step.to)
            })
        });
        entries.map(|step| step.id)
    }

    fn stop_excluded(&mut self, id: TransitionId, run: &Run, course: &mut Course) {
        for (member, stop) in &mut course.stops {
            if stop.is_due(self.now.time) {
                self.send_stop(id, run, member, stop);
            }
        }
    }

    pub(super) fn send_stop(&mut self, id: TransitionId, run: &Run, member: &MemberId, stop: &Try) {
        let mut call = self.call(id, run, member, Phase::Stop, Role::Actor);
        call.attempt = stop.attempt;
        call.from = self.head.members[member].actual.clone();
        call.to = self.head.spec.groups.get(&member.group).map(|group| group.lifecycle.lowest().clone());
        call.within_ms = stop.deadline.since(self.now.time);
        self.send_call(call);
    }

    pub(crate) fn stop_done(&mut self, done: Done) {
        let Some(id) = done.transition else { return };
        let Some(Run { stage: Stage::Commit(course), plan, .. }) = self.runs.get_mut(&id) else { return };
        let Some(stop) = course.stops.get_mut(&done.member) else { return };
        match done.answer {
            Answer::Yes => {
                course.stops.remove(&done.member);
                // Whoever waited for its failed step knows now that it is out of the way.
                let transition = &self.head.transitions[&id];
                let failed = plan.steps_of(&done.member).map(|step| step.id);
                failed
                    .filter(|step| transition.steps.contains_key(&(*step, Direction::Forward)))
                    .for_each(|step| course.forward.finish(step));
                self.note_step(id, StepResult::Stopped { member: done.member });
            }
            Answer::No | Answer::Again => stop.again(self.now.time),
        }
    }

    /// There is evidence that a member has stopped, on a host that does not answer: nothing of it is waited for.
    pub(crate) fn stopped_for_sure(&mut self, member: &MemberId) {
        let Some(id) = self.head.members.get(member).and_then(|known| known.transition) else { return };
        let Some(mut run) = self.runs.remove(&id) else { return };
        let plan = run.plan.clone();
        if let Stage::Commit(course) = &mut run.stage {
            course.stops.remove(member);
            self.note_step(id, StepResult::Stopped { member: member.clone() });
            self.give_up_steps(id, &plan, course, member);
            self.stirred.insert(id);
        }
        self.runs.insert(id, run);
    }

    /// What is left of a member's steps, in the direction that the course takes, is not going to be taken.
    fn give_up_steps(&mut self, id: TransitionId, plan: &Plan, course: &mut Course, member: &MemberId) {
        let direction = if course.back.is_some() { Direction::Back } else { Direction::Forward };
        for step in plan.steps_of(member).map(|step| step.id) {
            let known = &self.head.transitions[&id].steps;
            let is_open = |direction| !known.contains_key(&(step, direction));
            let was_under_way = course.tries.remove(&(step, Direction::Forward)).is_some();
            let open: Vec<Direction> = [Direction::Forward, Direction::Back]
                .into_iter()
                .filter(|way| is_open(*way) && (*way == direction || was_under_way))
                .collect();
            course.tries.remove(&(step, Direction::Back));
            for direction in open {
                let reason = format!("host {} is gone, and its members have stopped", member.host);
                self.note_step(id, StepResult::Failed { step, direction, reason });
                self.failed(course, step, direction);
            }
        }
    }

    fn order_steps(&mut self, id: TransitionId, run: &Run, course: &mut Course) {
        loop {
            let direction = if course.back.is_some() { Direction::Back } else { Direction::Forward };
            let flow = course.back.as_ref().unwrap_or(&course.forward);
            let ready: Vec<_> = flow.ready().iter().copied().collect();
            let mut has_finished = false;
            for step in ready {
                let action = match direction {
                    Direction::Forward => self.forward_action(id, run, course, step),
                    Direction::Back => self.back_action(id, run, course, step),
                };
                match action {
                    Action::Order => {
                        let member = &run.plan.steps[step.0 as usize].member;
                        let tried = Try::first(self.now.time.plus(self.commit_ms(&member.group)));
                        course.tries.insert((step, direction), tried);
                        course.back.as_mut().unwrap_or(&mut course.forward).take(step);
                        self.send_step(id, run, step, direction, &tried);
                    }
                    Action::Skip => {
                        self.finish(course, step);
                        has_finished = true;
                    }
                    Action::Wait => {}
                }
            }
            if !has_finished {
                return;
            }
        }
    }

    fn forward_action(&self, id: TransitionId, run: &Run, course: &Course, step: StepId) -> Action {
        let transition = &self.head.transitions[&id];
        let member = &run.plan.steps[step.0 as usize].member;
        if transition.steps.contains_key(&(step, Direction::Forward))
            || transition.excluded.contains_key(member)
        {
            // Its member is left out: whoever waits for it may go on once it is known to be out of the way.
            return if transition.stopped.contains(member) { Action::Skip } else { Action::Wait };
        }
        let is_untroubled = transition.excluded.is_empty();
        if course.is_halted
            || !(is_untroubled || self.has_room(transition, run, course, step, Direction::Forward))
        {
            return Action::Wait;
        }
        Action::Order
    }

    /// A step is taken back only after its forward handler has ended. One whose end is not known is not taken
    /// back: its handler may still be at work.
    fn back_action(&self, id: TransitionId, run: &Run, course: &Course, step: StepId) -> Action {
        let transition = &self.head.transitions[&id];
        if course.tries.contains_key(&(step, Direction::Forward)) {
            if mutant::is(Mutant::UndoWaitsForNobody) {
                return Action::Order;
            }
            return Action::Wait;
        }
        if transition.steps.contains_key(&(step, Direction::Back)) {
            return Action::Skip;
        }
        let was_taken = match transition.steps.get(&(step, Direction::Forward)) {
            Some(StepState::Confirmed | StepState::Failed(_)) => true,
            Some(StepState::Unknown) => false,
            None => course.maybe_taken.contains(&step),
        };
        if !was_taken {
            return Action::Skip;
        }
        if self.has_room(transition, run, course, step, Direction::Back) {
            Action::Order
        } else {
            Action::Wait
        }
    }

    /// Whether the state that a step enters has room, with every other member counted wherever it may be, and no group
    /// serves that excludes this one. The plan's order sees to that by itself while nothing fails.
    fn has_room(
        &self,
        transition: &Transition,
        run: &Run,
        course: &Course,
        step: StepId,
        direction: Direction,
    ) -> bool {
        let step = &run.plan.steps[step.0 as usize];
        let into = match direction {
            Direction::Forward => &step.to,
            Direction::Back => &step.from,
        };
        let Some(group) = self.head.spec.groups.get(&step.member.group) else { return false };
        let count = self.head.members_of(&step.member.group).count();
        let mut others = self.head.members_of(&step.member.group).filter(|other| **other != step.member);
        let has_room = group.max(into, count).is_none_or(|max| {
            others.by_ref().filter(|other| self.may_be_in(transition, run, course, other, into)).count() < max
        });
        has_room && (!group.lifecycle.serves(into) || self.is_alone(transition, run, course, &step.member))
    }

    /// Whether nobody may serve in the groups that exclude a member's, as far as its plan knew of them and they still do.
    fn is_alone(&self, transition: &Transition, run: &Run, course: &Course, member: &MemberId) -> bool {
        let excludes = |relation: &&Arc<Relation>| {
            let is_bound = relation.kind == Kind::Excludes && !relation.moving;
            is_bound && run.plan.relations.contains(relation)
        };
        let mut relations = self.head.relations.of(&member.group).filter(excludes);
        let may_serve = |relation: &Relation, other: &MemberId| {
            let label = relation.scope.as_ref();
            let is_paired = label.is_none_or(|label| {
                let place = self.head.place(member, label);
                place.is_some_and(|place| self.head.is_at(other, place))
            });
            let serving = self.head.spec.groups.get(&other.group).map(|group| &group.lifecycle.serving);
            let mut serving = serving.into_iter().flatten();
            is_paired && serving.any(|state| self.may_be_in(transition, run, course, other, state))
        };
        relations.all(|relation| {
            let mut others = relation.groups().filter(|group| **group != member.group);
            others.all(|group| !self.head.members_of(group).any(|other| may_serve(relation, other)))
        })
    }

    /// Whether a member may be in a state: where it is, or either end of a step of unknown or unfinished end.
    fn may_be_in(
        &self,
        transition: &Transition,
        run: &Run,
        course: &Course,
        member: &MemberId,
        state: &StateName,
    ) -> bool {
        if !run.plan.goals.contains_key(member) {
            return self.head.may_be_in(member, state);
        }
        let is_going_back = course.back.is_some();
        let is_gone = !is_going_back || !self.is_reachable(&member.host);
        if transition.stopped.contains(member) && is_gone {
            return self.head.members[member].actual.as_ref() == Some(state);
        }
        let is_open = |step: &plan::Step, direction| {
            let is_running = course.tries.contains_key(&(step.id, direction));
            let known = transition.steps.get(&(step.id, direction));
            is_running || matches!(known, Some(StepState::Failed(_) | StepState::Unknown))
        };
        let may_be_between = run.plan.steps_of(member).any(|step| {
            let is_back = transition.is_confirmed(step.id, Direction::Back);
            let is_unsettled = !is_back
                && (is_open(step, Direction::Forward)
                    || is_open(step, Direction::Back)
                    || (course.maybe_taken.contains(&step.id)
                        && !transition.steps.contains_key(&(step.id, Direction::Forward))));
            is_unsettled && (step.from == *state || step.to == *state)
        });
        may_be_between || self.head.may_be_in_now(member, state)
    }

    pub(super) fn send_step(
        &mut self,
        id: TransitionId,
        run: &Run,
        step: StepId,
        direction: Direction,
        tried: &Try,
    ) {
        let planned = &run.plan.steps[step.0 as usize];
        let (phase, from, to) = match direction {
            Direction::Forward => (Phase::Commit, &planned.from, &planned.to),
            Direction::Back => (Phase::Undo, &planned.to, &planned.from),
        };
        let mut call = self.call(id, run, &planned.member, phase, Role::Actor);
        call.step = Some(step);
        call.attempt = tried.attempt;
        call.from = Some(from.clone());
        call.to = Some(to.clone());
        // The handler gets less time than the server waits, so that its end is heard of and the step can be taken
        // back; were both the same, every handler that hangs would end as a step of unknown end.
        let left = tried.deadline.since(self.now.time);
        call.within_ms = left - left / 10;
        self.send_call(call);
    }

    /// How often and how long a step was tried that has failed: the reason is that of the last try, which may have had
    /// little of the step's time left.
    fn tries_of(&self, group: &GroupName, tried: &Try) -> String {
        if tried.attempt < 2 {
            return String::new();
        }
        let left = tried.deadline.since(self.now.time);
        let spent = self.commit_ms(group).saturating_sub(left);
        format!("; tried {} times in {} ms", tried.attempt, spent)
    }

    pub(crate) fn step_done(&mut self, done: Done) {
        let (Some(id), Some(step)) = (done.transition, done.step) else { return };
        let direction = if done.phase == Phase::Undo { Direction::Back } else { Direction::Forward };
        let Some(mut run) = self.runs.remove(&id) else { return };
        if let Stage::Commit(course) = &mut run.stage
            && let Some(tried) = course.tries.get(&(step, direction)).copied()
            && run.plan.steps.get(step.0 as usize).is_some_and(|planned| planned.member == done.member)
            && done.attempt == tried.attempt
            && tried.again_at.is_none()
        {
            self.step_ended(id, &run.plan.clone(), course, (step, direction), tried, done);
        }
        self.runs.insert(id, run);
    }

    fn step_ended(
        &mut self,
        id: TransitionId,
        plan: &Plan,
        course: &mut Course,
        (step, direction): (StepId, Direction),
        mut tried: Try,
        done: Done,
    ) {
        let planned = &plan.steps[step.0 as usize];
        let into = match direction {
            Direction::Forward => &planned.to,
            Direction::Back => &planned.from,
        };
        let (answer, reason) = match (done.answer, &done.findings.state) {
            (Answer::Yes, Some(state)) if state != into => {
                (Answer::No, format!("its handler reports {state}, not {into}"))
            }
            (answer, _) => (answer, done.reason.unwrap_or_else(|| "no reason given".to_owned())),
        };
        let group = self.head.spec.groups.get(&planned.member.group);
        let retries = group.map_or(0, |group| group.retries);
        // Once the course has turned back there is no point in trying the way forward again.
        let is_moot = direction == Direction::Forward && course.back.is_some();
        match answer {
            Answer::Yes => {
                course.tries.remove(&(step, direction));
                self.note_step(id, StepResult::Confirmed { step, direction });
                if direction == Direction::Back || course.back.is_none() {
                    self.finish(course, step);
                }
            }
            Answer::No if tried.failures >= retries || is_moot => {
                course.tries.remove(&(step, direction));
                let reason = reason + &self.tries_of(&planned.member.group, &tried);
                self.note_step(id, StepResult::Failed { step, direction, reason });
                self.failed(course, step, direction);
            }
            Answer::Again if is_moot => {
                course.tries.remove(&(step, direction));
                self.note_step(id, StepResult::Failed { step, direction, reason });
            }
            Answer::No | Answer::Again => {
                tried.failures += u32::from(answer == Answer::No);
                tried.again(self.now.time);
                course.tries.insert((step, direction), tried);
            }
        }
    }

    /// A step is over in the direction that the course takes now.
    fn finish(&self, course: &mut Course, step: StepId) {
        course.back.as_mut().unwrap_or(&mut course.forward).finish(step);
    }

    /// A step has failed for good: backwards the rest goes on as far as `max` allows, forwards it is answered.
    fn failed(&self, course: &mut Course, step: StepId, direction: Direction) {
        match direction {
            Direction::Forward => course.is_unanswered = true,
            Direction::Back => self.finish(course, step),
        }
    }

    /// Whether a limit that the plan would have kept is missed without the excluded members.
    fn would_break_limits(&self, transition: &Transition, plan: &Plan) -> bool {
        if transition.excluded.is_empty() || transition.undo.is_some() {
            return false;
        }
        let groups: BTreeSet<&GroupName> = transition.excluded.keys().map(|member| &member.group).collect();
        groups.into_iter().any(|name| {
            let Some(group) = self.head.spec.groups.get(name) else { return true };
            let count = self.head.members_of(name).count();
            group.lifecycle.states.iter().any(|state| {
                // Where members will be, whether or not their hosts are seen now.
                let ends = |id: &MemberId| match plan.goals.get(id) {
                    Some(goal) => goal == state,
                    None => self.head.is_surely_in(id, state),
                };
                let planned = self.head.members_of(name).filter(|id| ends(id)).count();
                let stays = |id: &&MemberId| !transition.excluded.contains_key(*id);
                let without = self.head.members_of(name).filter(stays).filter(|id| ends(id)).count();
                let is_lowest = state == group.lifecycle.lowest();
                let min = group.min(state, count);
                !is_lowest && planned >= min && without < min
            })
        })
    }

    /// The members that are not where they should be at the end, or of which nobody knows.
    fn left(&self, transition: &Transition, plan: &Plan) -> BTreeMap<MemberId, Left> {
        let mut left = BTreeMap::new();
        for (id, goal) in &plan.goals {
            if transition.stopped.contains(id) && transition.undo.is_none() {
                if self.would_break_limits(transition, plan) {
                    let problem = format!("it was stopped, and {} misses a limit without it", id.group);
                    left.insert(id.clone(), Left { problem, next: next_action(id), in_doubt: false });
                }
                continue;
            }
            let steps = || plan.steps_of(id);
            let taken_back = transition.undo.is_some();
            let should = match steps().next() {
                Some(first) if taken_back => &first.from,
                Some(_) | None => goal,
            };
            let unsettled = steps().find_map(|step| {
                let forward = transition.steps.get(&(step.id, Direction::Forward));
                let back = transition.steps.get(&(step.id, Direction::Back));
                let state = match (forward, back) {
                    (_, Some(StepState::Confirmed)) | (Some(StepState::Confirmed) | None, None) => {
                        return None;
                    }
                    (_, Some(state)) | (Some(state), None) => state,
                };
                let problem = match state {
                    StepState::Failed(reason) => {
                        format!("step {} -> {} failed: {reason}", step.from, step.to)
                    }
                    StepState::Unknown | StepState::Confirmed => {
                        format!("nobody knows whether step {} -> {} was taken", step.from, step.to)
                    }
                };
                Some(problem)
            });
            let actual = self.head.members.get(id).and_then(|member| member.actual.as_ref());
            let is_elsewhere = actual != Some(should);
            let has_stopped = transition.stopped.contains(id);
            let in_doubt = unsettled.is_some() && !has_stopped;
            // Nobody was asked to move it: its host was gone before the plan was made, or it has only lost its place to
            // another, and its goal waits for it.
            let is_actor = || plan.with_role(Role::Actor).any(|actor| actor == id);
            let is_absent = steps().next().is_none() && (!self.is_reachable(&id.host) || !is_actor());
            let problem = match (unsettled, actual) {
                _ if is_absent => continue,
                (Some(_), _) if has_stopped && !is_elsewhere => continue,
                (Some(problem), _) => problem,
                (None, Some(actual)) if is_elsewhere => format!("it is {actual}, not {should}"),
                (None, Some(_)) => continue,
                (None, None) => "its state is not known".to_owned(),
            };
            left.insert(id.clone(), Left { problem, next: next_action(id), in_doubt });
        }
        left
    }
}

/// What a person has to do about a member that was left somewhere.
fn next_action(id: &MemberId) -> String {
    format!("see why on host {}, then ask for the state it should have: {id}=STATE", id.host)
}

/// What is to be done about a step that may go.
enum Action {
    Order,
    Skip,
    Wait,
}
