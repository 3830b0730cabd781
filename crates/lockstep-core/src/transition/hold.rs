//! Holds: how long they may last, when they are let go, and how they end by themselves.

use super::{Course, Hold, Poll, Run, Try};
use crate::cluster::{Place, Transition};
use crate::engine::Engine;
use crate::id::{GroupName, HostName, MemberId, TransitionId};
use crate::message::{Call, Done, Phase, Role};
use crate::mutant::{self, Mutant};
use crate::record::{Cause, Direction, HoldEnd, StepResult};
use crate::relation::Relation;
use crate::spec::Ask;
use crate::vote::Answer;

/// How many of those that were waited for a message names. The others are counted; the transition has all votes.
const NAMED_MAX: usize = 3;

impl Engine {
    /// A hold of which less than half is left: it might run out before the steps are taken, and let clients in
    /// between two states. No decision can follow any more, so nobody is kept waiting for one.
    pub(super) fn short_hold(
        &self,
        run: &Run,
        poll: &Poll,
    ) -> Option<(&'static str, String, Option<MemberId>)> {
        if mutant::is(Mutant::LateHoldDecided) {
            return None;
        }
        let counts = |member: &MemberId| !run.overridden.contains(member);
        let mut holds = run.holds.iter().filter(|(member, _)| counts(member));
        let (member, hold) = holds.find(|(_, hold)| hold.too_short_at() <= self.now.time)?;
        let left = hold.end.since(self.now.time);
        let mut message = format!("the hold of {member} has {left} ms left of {}", hold.hold_ms);
        if let Some(waited) = self.waits_for_members(run, poll) {
            message = format!("{message}, and {waited}");
        }
        Some(("hold-too-short", message, Some(member.clone())))
    }

    /// Whom a round still waits for, as a person is told: a hold that gets short is seldom its holder's doing.
    fn waits_for_members(&self, run: &Run, poll: &Poll) -> Option<String> {
        let (unready, silent): (Vec<_>, Vec<_>) =
            poll.ballot.missing().partition(|member| poll.ballot.vote(member).is_some());
        let absent: Vec<_> = self.absent(run, poll).into_iter().collect();
        named(&silent, "has not answered", "have not answered")
            .or_else(|| named(&unready, "is not ready", "are not ready"))
            .or_else(|| named(&absent, "has lost its connection", "have lost their connections"))
    }

    /// Whether the groups that a holder holds for serve again, with nothing to come that could change that.
    pub(super) fn may_release(
        &self,
        run: &Run,
        course: &Course,
        id: TransitionId,
        holder: &MemberId,
    ) -> bool {
        if course.back.is_some() {
            return false;
        }
        let transition = &self.head.transitions[&id];
        run.plan.asked_for(&holder.group, Ask::Hold).iter().all(|group| {
            let Some(declared) = self.head.spec.groups.get(group) else { return true };
            let serves = |state| declared.lifecycle.serves(state);
            let place = self.hold_place(run, holder, group);
            let here = |member: &MemberId| place.is_none_or(|place| self.head.is_at(member, place));
            let mut steps =
                run.plan.steps.iter().filter(|step| step.member.group == *group && here(&step.member));
            let is_through = steps.all(|step| {
                !(serves(&step.from) || serves(&step.to))
                    || transition.is_confirmed(step.id, Direction::Forward)
                    || transition.stopped.contains(&step.member)
            });
            is_through && self.head.serves_at(group, place)
        })
    }

    /// Where a holder is paired with members of a group, if not everywhere: by a relation with a scope, and no other.
    fn hold_place<'a>(&'a self, run: &'a Run, holder: &MemberId, group: &GroupName) -> Option<Place<'a>> {
        let holds = |relation: &&Relation| relation.from == holder.group && relation.to.contains(group);
        let mut asks =
            run.plan.relations.iter().filter(holds).filter(|relation| relation.ask == Some(Ask::Hold));
        let (first, others) = (asks.next()?, asks.next());
        let label = first.scope.as_ref().filter(|_| others.is_none())?;
        self.head.place(holder, label)
    }

    pub(super) fn release(&mut self, id: TransitionId, run: &mut Run, holders: &[MemberId]) {
        let now = self.now.time;
        let mut send = Vec::new();
        for holder in holders {
            let hold = run.holds.get_mut(holder).expect("only holders are released");
            let deadline = hold.end.max(now.plus(hold.hold_ms));
            let release = hold.release.get_or_insert(Try::due(now, deadline));
            if release.is_due(now) && !(hold.is_over && release.attempt > 1) {
                send.push((holder.clone(), *release));
            }
        }
        for (holder, release) in send {
            let call = self.release_call(id, run, &holder, &release);
            self.send_call(call);
        }
    }

    pub(super) fn release_call(
        &mut self,
        id: TransitionId,
        run: &Run,
        holder: &MemberId,
        release: &Try,
    ) -> Call {
        let mut call = self.call(id, run, holder, Phase::Release, Role::Holder);
        call.attempt = release.attempt;
        call.within_ms = release.deadline.since(self.now.time).max(1);
        call
    }

    /// Whether the outcome has to wait: until each holder has let go, or its hold's end has come.
    pub(super) fn waits_for_release(&mut self, id: TransitionId, run: &mut Run) -> bool {
        for (member, hold) in &mut run.holds {
            if hold.end <= self.now.time && !hold.is_over {
                hold.is_over = true;
                if !self.head.transitions[&id].holds.contains_key(member) {
                    self.note_step(
                        id,
                        StepResult::HoldEnded { member: member.clone(), end: HoldEnd::Presumed },
                    );
                }
            }
        }
        run.holds.values().any(|hold| !hold.is_over)
    }

    pub(crate) fn release_done(&mut self, done: Done) {
        let Some(id) = done.transition else { return };
        let hold = self.runs.get_mut(&id).and_then(|run| run.holds.get_mut(&done.member));
        if hold.as_ref().is_some_and(|hold| hold.release.is_none()) {
            // Nobody has ordered it; taken for a release it would let the decision go without this hold.
            return;
        }
        match (done.answer, hold) {
            (Answer::Yes, _) => {
                if let Some(run) = self.runs.get_mut(&id) {
                    run.holds.remove(&done.member);
                }
                let is_holder = self.head.transitions.get(&id).is_some_and(|transition| {
                    let plan = transition.plan.as_ref();
                    plan.is_some_and(|plan| plan.with_role(Role::Holder).any(|holder| *holder == done.member))
                        && transition.holds.get(&done.member) != Some(&HoldEnd::Released)
                });
                if is_holder {
                    self.note_step(id, StepResult::HoldEnded { member: done.member, end: HoldEnd::Released });
                }
            }
            (Answer::No | Answer::Again, Some(Hold { release: Some(release), .. })) => {
                release.again(self.now.time)
            }
            (Answer::No | Answer::Again, Some(_) | None) => {}
        }
    }

    /// A holder has let go by itself, at its hold's end or because its agent restarted.
    pub(crate) fn hold_ended(&mut self, id: TransitionId, member: &MemberId) {
        let Some(transition) = self.head.transitions.get(&id) else { return };
        // One whose end was presumed is heard of after all, perhaps after the outcome.
        let was_presumed = transition.holds.get(member) == Some(&HoldEnd::Presumed);
        let is_unknown = !transition.holds.contains_key(member);
        if let Some(run) = self.runs.get_mut(&id)
            && let Some(hold) = run.holds.get_mut(member)
            && is_unknown
        {
            hold.end = self.now.time;
            self.stirred.insert(id);
            if run.is_undecided() {
                let message = format!("the hold of {member} ended before the decision");
                let cause =
                    Cause { code: "hold-too-short".to_owned(), message, member: Some(member.clone()) };
                return self.abort(id, cause);
            }
            self.note_step(id, StepResult::HoldEnded { member: member.clone(), end: HoldEnd::Ended });
        } else if was_presumed {
            self.note_step(id, StepResult::HoldEnded { member: member.clone(), end: HoldEnd::Ended });
            // It let go without knowing the decision, and the release that told it has failed: nobody else is going
            // to tell it after the outcome.
            let transition = self.head.transitions[&id].clone();
            if transition.outcome.is_some() {
                self.final_release(id, &transition, &member.host);
            }
        }
    }

    /// A hold that ended by itself still gets its release: the holder has to learn where its group went.
    pub(super) fn final_release(&mut self, id: TransitionId, transition: &Transition, host: &HostName) {
        let Some(plan) = transition.plan.clone() else { return };
        let run = Run::queued(plan.clone(), None);
        let holders = plan.with_role(Role::Holder).filter(|member| member.host == *host);
        for holder in holders.filter(|holder| transition.holds.get(*holder) != Some(&HoldEnd::Released)) {
            let release = Try::first(self.now.time.plus(self.hold_ms(&holder.group)));
            let call = self.release_call(id, &run, holder, &release);
            self.send_call(call);
        }
    }
}

/// Names some of the members that something is said of, and counts the others; none: there are no members.
fn named(members: &[&MemberId], one: &str, many: &str) -> Option<String> {
    let names: Vec<_> = members.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    Some(match (names.as_slice(), members.len() - names.len()) {
        ([], _) => return None,
        ([name], _) => format!("{name} {one}"),
        ([first @ .., last], 0) => format!("{} and {last} {many}", first.join(", ")),
        (names, more) => format!("{} and {more} more {many}", names.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_three_are_named() {
        let members: Vec<MemberId> = ["a@1", "a@2", "a@3", "a@4", "a@5"].map(|id| id.parse().unwrap()).into();
        for (count, said) in [
            (0, None),
            (1, Some("a@1 waits")),
            (2, Some("a@1 and a@2 wait")),
            (3, Some("a@1, a@2 and a@3 wait")),
            (5, Some("a@1, a@2, a@3 and 2 more wait")),
        ] {
            let members: Vec<_> = members.iter().take(count).collect();
            assert_eq!(named(&members, "waits", "wait").as_deref(), said);
        }
    }
}
