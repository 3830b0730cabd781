//! Drives what was requested: queue, check, prepare, decide, commit or undo, release, outcome.
//!
//! What must survive is in the journal ([`crate::cluster::Transition`]); a [`Run`] is what this reign adds to it:
//! who has been asked, until when, how often. [`Engine::advance`] looks at where a transition stands and does
//! whatever has become possible, so a wake-up that is lost or comes twice costs time and nothing else.
//!
//! This file goes as far as the decision, and to the outcome. What follows a decision to commit is in `commit.rs`;
//! `hold.rs`, `call.rs` and `host.rs` are what all stages need of holds, calls and hosts that come and go.

mod call;
mod commit;
mod hold;
mod host;

use crate::engine::{Engine, Event};
use crate::flow::Flow;
use crate::id::{GroupName, HostName, Index, MemberId, StepId, TransitionId};
use crate::message::{Call, Decision, Done, Gap, Notice, Order, Outcome, Phase, Role};
use crate::mutant::{self, Mutant};
use crate::plan::{self, Plan};
use crate::record::{Body, Cause, Direction, HoldEnd, Left};
use crate::request::Rejection;
use crate::spec::{self, Deadlines};
use crate::time::{Time, pause_ms};
use crate::vote::{Answer, Ballot, Round, Tally, Vote};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// The pause before something is tried again, in milliseconds, doubled with the first try already: from the first to the
/// last of these.
const PAUSE_MS: (u64, u64) = (50, 5000);

/// How long candidates are waited for that are asked how fit they are, in milliseconds. Too low: the best may not be
/// heard. Too high: one that hangs keeps a repair waiting.
const STATUS_MS: u64 = 2000;

const STALE: &str = "something that the plan rests on has changed";

/// What all members of a transition may hand on together, in bytes of JSON.
const OUT_BYTES_MAX: usize = 4 << 20;

/// A plan that was never begun is recorded with the abort if it has no more steps and participants than that: a
/// megabyte or so. What was to be done is for people to read, and a no to a large plan, again and again, must not fill
/// the journal.
const UNBEGUN_PARTS_MAX: usize = 5000;

/// What this reign knows of an open transition beside the journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    plan: Arc<Plan>,
    /// The groups that it moves.
    moving: Vec<GroupName>,
    /// The plan just made for it, and the revision that it is of.
    fresh: Option<(Index, Arc<Plan>)>,
    stage: Stage,
    /// What it was last said to wait for in the queue.
    blocker: Option<TransitionId>,
    /// No decision by then aborts.
    decide_by: Option<Time>,
    /// The votes of rounds that are over.
    votes: Vec<Vote>,
    /// What the votes hand on, in bytes of JSON.
    out_bytes: usize,
    holds: BTreeMap<MemberId, Hold>,
    /// The members whose no, or silence, does not count.
    overridden: BTreeSet<MemberId>,
    /// It repairs, and goes before what operators ask for.
    is_automatic: bool,
    /// Its candidates have been asked.
    has_asked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    /// Waits for its footprint.
    Queued,
    /// Asks those among whom is to be chosen how fit they are.
    Status { asked: BTreeSet<MemberId>, deadline: Time },
    /// Asks, without side effects.
    Check(Poll),
    /// Holds and prepares, wave by wave.
    Prepare { poll: Poll, waves: Vec<Vec<(MemberId, Role)>> },
    /// Decided no: lets everyone go.
    Abort { cancels: BTreeMap<MemberId, Try> },
    /// Decided yes: takes the steps, or takes them back.
    Commit(Box<Course>),
}

/// A round of questions with one deadline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Poll {
    round: Round,
    roles: BTreeMap<MemberId, Role>,
    ballot: Ballot,
    tries: BTreeMap<MemberId, Try>,
    deadline: Time,
}

impl Poll {
    /// Nobody is asked: the wave before is over, and what has been said stands in the run.
    fn over(deadline: Time) -> Self {
        let (roles, ballot, tries) = (BTreeMap::new(), Ballot::default(), BTreeMap::new());
        Self { round: Round::Prepare, roles, ballot, tries, deadline }
    }
}

/// A call that is made until it succeeds or its time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Try {
    pub(crate) attempt: u32,
    failures: u32,
    pub(crate) deadline: Time,
    /// It has ended, and is made again then; none: it is under way.
    pub(crate) again_at: Option<Time>,
}

impl Try {
    /// Made now.
    pub(crate) fn first(deadline: Time) -> Self {
        Self { attempt: 1, failures: 0, deadline, again_at: None }
    }

    /// To be made as soon as somebody looks.
    fn due(now: Time, deadline: Time) -> Self {
        Self { attempt: 0, failures: 0, deadline, again_at: Some(now) }
    }

    /// To be made again after a pause that grows with each try.
    pub(crate) fn again(&mut self, now: Time) {
        self.again_at = Some(now.plus(pause_ms(PAUSE_MS, self.attempt)).min(self.deadline));
    }

    pub(crate) fn wake(&self) -> Time {
        self.again_at.unwrap_or(self.deadline).min(self.deadline)
    }

    /// Whether it is to be made again now; if so, counts the new try.
    pub(crate) fn is_due(&mut self, now: Time) -> bool {
        let due = self.again_at.is_some_and(|at| at <= now);
        if due {
            self.attempt += 1;
            self.again_at = None;
        }
        due
    }
}

/// A holder that was told to hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Hold {
    /// When it ends by itself, counted from sending.
    end: Time,
    hold_ms: u64,
    /// The release, once it has been ordered.
    release: Option<Try>,
    /// Its end has come. Nobody waits for the release any more, and it still comes: the holder has to learn
    /// where its group went.
    is_over: bool,
}

impl Hold {
    fn begin(now: Time, hold_ms: u64) -> Self {
        Self { end: now.plus(hold_ms), hold_ms, release: None, is_over: false }
    }

    /// From then on less than half of it is left.
    fn too_short_at(&self) -> Time {
        Time((self.end.0 + 1).saturating_sub(self.hold_ms.div_ceil(2)))
    }
}

/// A decided transition under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Course {
    forward: Flow,
    back: Option<Flow>,
    tries: BTreeMap<(StepId, Direction), Try>,
    /// Excluded members that are being stopped.
    stops: BTreeMap<MemberId, Try>,
    /// Forward steps that an earlier reign may have ordered.
    maybe_taken: BTreeSet<StepId>,
    /// A forward step has failed, and nothing has been done about it yet.
    is_unanswered: bool,
    /// No further step is taken: without the excluded members a limit would break.
    is_halted: bool,
}

impl Run {
    fn queued(plan: Arc<Plan>, decide_by: Option<Time>) -> Self {
        let moving = plan.moving().into_iter().cloned().collect();
        Self {
            plan,
            moving,
            fresh: None,
            stage: Stage::Queued,
            blocker: None,
            decide_by,
            votes: Vec::new(),
            out_bytes: 0,
            holds: BTreeMap::new(),
            overridden: BTreeSet::new(),
            is_automatic: false,
            has_asked: false,
        }
    }

    /// Whether it has, or waits for, a claim on the group.
    pub(crate) fn claims(&self, group: &GroupName) -> bool {
        self.plan.exclusive.contains(group) || self.plan.shared.contains(group)
    }

    /// Whether it is decided, or repairs, and moves a group.
    pub(crate) fn moves(&self, group: &GroupName) -> bool {
        (self.is_automatic || !self.is_undecided()) && self.plan.exclusive.contains(group)
    }

    /// Whether it is aborted because a repair needs what it has claimed.
    pub(crate) fn gives_way_to(&self, repair: &Self) -> bool {
        let has_claimed = self.is_undecided() && !matches!(self.stage, Stage::Queued);
        has_claimed && !self.is_automatic && self.conflicts_with(repair)
    }

    /// Whether it has to wait for another one that is not done.
    fn waits_for(&self, id: TransitionId, other_id: TransitionId, other: &Self) -> bool {
        let is_before = match (self.is_automatic, other.is_automatic) {
            (true, false) => false,
            (false, true) => true,
            (true, true) | (false, false) => other_id < id,
        };
        (is_before || !matches!(other.stage, Stage::Queued)) && self.conflicts_with(other)
    }

    fn conflicts_with(&self, other: &Self) -> bool {
        if mutant::is(Mutant::FootprintsIgnored) {
            return false;
        }
        let (a, b) = (&self.plan, &other.plan);
        !a.exclusive.is_disjoint(&b.exclusive)
            || !a.exclusive.is_disjoint(&b.shared)
            || !a.shared.is_disjoint(&b.exclusive)
    }

    /// Gives steps that are under way more time.
    pub(crate) fn postpone_steps(&mut self, ms: u64) {
        if let Stage::Commit(course) = &mut self.stage {
            let tries = course.tries.values_mut().chain(course.stops.values_mut());
            tries.for_each(|step| step.deadline = step.deadline.plus(ms));
        }
    }

    fn is_undecided(&self) -> bool {
        matches!(self.stage, Stage::Queued | Stage::Status { .. } | Stage::Check(_) | Stage::Prepare { .. })
    }

    /// When something is due at the latest.
    pub(crate) fn wake(&self) -> Option<Time> {
        let is_ignored = self.is_undecided() && mutant::is(Mutant::LateHoldDecided);
        let holds = self.holds.iter().filter(|(_, hold)| !hold.is_over && !is_ignored);
        let holds = holds.flat_map(|(member, hold)| {
            let end = match self.is_undecided() {
                true => (!self.overridden.contains(member)).then(|| hold.too_short_at()),
                false => Some(hold.end),
            };
            [end, hold.release.and_then(|release| release.again_at)]
        });
        let poll = |poll: &Poll| {
            let tries = poll.tries.values().map(Try::wake);
            tries.chain([poll.deadline]).min()
        };
        let stage = match &self.stage {
            Stage::Queued => self.decide_by,
            Stage::Status { deadline, .. } => Some(*deadline),
            Stage::Check(asked) | Stage::Prepare { poll: asked, .. } => poll(asked),
            Stage::Abort { cancels } => cancels.values().map(Try::wake).min(),
            Stage::Commit(course) => course.tries.values().chain(course.stops.values()).map(Try::wake).min(),
        };
        let decide_by = self.decide_by.filter(|_| self.is_undecided());
        holds.flatten().chain(stage).chain(decide_by).min()
    }

    fn phase(&self) -> &'static str {
        match &self.stage {
            Stage::Queued | Stage::Status { .. } => "queued",
            Stage::Check(_) => "check",
            Stage::Prepare { .. } => "prepare",
            Stage::Abort { .. } => "release",
            Stage::Commit(_) => "commit",
        }
    }
}

/// What became of a look at a transition.
enum Next {
    /// Look again: something has changed.
    Again,
    /// It waits.
    Wait,
    /// It has ended.
    Ended,
}

impl Engine {
    // ---- beginnings

    /// Puts a request in the queue, with the plan that was just made for it, if one could be made.
    pub(crate) fn enqueue(&mut self, id: TransitionId, fresh: Option<Plan>) {
        let request = self.head.transitions[&id].request.clone();
        let mut plan = fresh.clone().unwrap_or_default();
        // Also when there is nothing to do for them now: whoever is before it may change that.
        plan.exclusive.extend(request.targets.iter().flat_map(|target| self.head.groups_of(target)));
        let decide_by = request.deadline_ms.map(|ms| self.now.time.plus(ms));
        let fresh = fresh.map(|plan| (self.head.revision, Arc::new(plan)));
        let (overridden, is_automatic) = (request.overrides.clone(), request.is_automatic);
        let queued = Run::queued(Arc::new(plan), decide_by);
        self.runs.insert(id, Run { fresh, overridden, is_automatic, ..queued });
        self.stirred.insert(id);
        self.event(Event::Phase { transition: id, phase: Some("queued") });
    }

    /// Takes over what an earlier reign left open. Nothing is presumed: what was begun and not decided is
    /// aborted, because votes do not outlive the server that counted them; what was decided is carried on.
    pub(crate) fn resume(&mut self) {
        let open: Vec<_> = self.head.open.iter().copied().collect();
        for id in open {
            let transition = self.head.transitions[&id].clone();
            let Some(plan) = transition.plan.clone() else {
                if transition.decision.is_some() {
                    // The abort was durable when that reign ended, and the outcome, its next record, was not.
                    let plan = transition.unbegun.clone().unwrap_or_default();
                    self.end(id, &Run::queued(plan, None), Outcome::Aborted, BTreeMap::new());
                    continue;
                }
                let request = &transition.request;
                let plan = self.plan(request).ok();
                self.enqueue(id, plan);
                continue;
            };
            let mut run = Run::queued(plan.clone(), None);
            run.is_automatic = transition.request.is_automatic;
            run.votes = transition.votes.to_vec();
            for holder in plan.with_role(Role::Holder) {
                let hold = Hold::begin(self.now.time, self.hold_ms(&holder.group));
                let hold = match transition.holds.get(holder) {
                    Some(HoldEnd::Released) => continue,
                    // Its holder has let go, and is still to learn where its group went.
                    Some(HoldEnd::Ended | HoldEnd::Presumed) => {
                        Hold { end: self.now.time, is_over: true, ..hold }
                    }
                    None => hold,
                };
                run.holds.insert(holder.clone(), hold);
            }
            match transition.decision {
                Some(Decision::Commit) => {
                    run.stage = Stage::Commit(Box::new(self.course(&transition, &plan)))
                }
                Some(Decision::Abort) => run.stage = self.abort_stage(&plan),
                None if mutant::is(Mutant::BegunIsCommitted) => {
                    run.stage = Stage::Prepare { poll: Poll::over(self.now.time), waves: Vec::new() };
                    self.decide(id, &mut run);
                }
                None => {
                    let message = "the server restarted before the decision".to_owned();
                    let cause = Cause { code: "new-reign".to_owned(), message, member: None };
                    self.decide_no(id, cause, Vec::new(), None);
                    run.stage = self.abort_stage(&plan);
                }
            }
            self.runs.insert(id, run);
        }
    }

    // ---- the loop

    pub(crate) fn advance(&mut self, id: TransitionId) {
        while let Some(mut run) = self.runs.remove(&id) {
            let before = run.phase();
            let next = match run.stage {
                Stage::Queued => self.advance_queued(id, &mut run),
                Stage::Status { .. } => self.advance_status(&mut run),
                Stage::Check(_) => self.advance_check(id, &mut run),
                Stage::Prepare { .. } => self.advance_prepare(id, &mut run),
                Stage::Abort { .. } => self.advance_abort(id, &mut run),
                Stage::Commit(_) => self.advance_commit(id, &mut run),
            };
            match next {
                Next::Ended => return self.over(id, &run),
                Next::Again | Next::Wait => {
                    if run.phase() != before {
                        self.event(Event::Phase { transition: id, phase: Some(run.phase()) });
                    }
                    self.runs.insert(id, run);
                }
            }
            if matches!(next, Next::Wait) {
                return;
            }
        }
    }

    /// It has ended: others may have waited for its groups.
    fn over(&mut self, id: TransitionId, run: &Run) {
        self.stirred.insert(id);
        self.stir_queued(run);
        self.repair_ended(id);
        self.stir_recovery();
        self.event(Event::Phase { transition: id, phase: None });
    }

    /// Those that may have waited for what a transition claimed, or queued for, until now.
    fn stir_queued(&mut self, run: &Run) {
        let queued = self.runs.iter().filter(|(_, theirs)| matches!(theirs.stage, Stage::Queued));
        let waited = queued.filter(|(_, theirs)| theirs.conflicts_with(run));
        self.stirred.extend(waited.map(|(id, _)| *id));
    }

    fn advance_queued(&mut self, id: TransitionId, run: &mut Run) -> Next {
        if run.decide_by.is_some_and(|by| by <= self.now.time) {
            return self.give_up(id, run, "vote-missing", "it was not decided within its deadline", None);
        }
        // In order of arrival: one that is blocked blocks those behind it that overlap it, so none starves.
        let mut blockers = self.runs.iter().filter(|(other, theirs)| run.waits_for(id, **other, theirs));
        if let Some((&blocker, _)) = blockers.next() {
            return self.blocked(id, run, blocker);
        }
        let request = self.head.transitions[&id].request.clone();
        let plan = match run.fresh.take() {
            Some((at, plan)) if at == self.head.revision => plan,
            Some(_) | None => match self.plan(&request) {
                Ok(plan) => Arc::new(plan),
                Err(Rejection { code, message, .. }) => {
                    return self.give_up(id, run, code.as_str(), &message, None);
                }
            },
        };
        if let Some(wanted) = &request.plan_hash
            && !plan::names(wanted, &plan.hash)
        {
            let message = format!("the plan is {} now, not {wanted}", plan.hash);
            return self.give_up(id, run, "plan-changed", &message, None);
        }
        // Planned anew it may claim less than it queued for.
        self.stir_queued(run);
        run.moving = plan.moving().into_iter().cloned().collect();
        run.plan = plan.clone();
        // Its footprint may have grown with the new plan.
        let claimed = |(_, theirs): &(&TransitionId, &Run)| {
            !matches!(theirs.stage, Stage::Queued) && run.conflicts_with(theirs)
        };
        if let Some((&blocker, _)) = self.runs.iter().find(claimed) {
            return self.blocked(id, run, blocker);
        }
        if !std::mem::replace(&mut run.has_asked, true) && !plan.candidates.is_empty() {
            return self.ask_candidates(id, run, &plan);
        }
        let checked = self.check_overrides(&request, &plan);
        let checked = checked.and_then(|()| self.check_windows(&request, &plan));
        // Planned anew it may move others: a host that is back just now was not in the plan before.
        let checked = checked.and_then(|()| self.check_steady(&request, &plan));
        if let Err(Rejection { code, message, .. }) = checked {
            return self.give_up(id, run, code.as_str(), &message, None);
        }
        let mut roles: BTreeMap<_, _> = plan.asked().map(|who| (who.member.clone(), who.role)).collect();
        roles.retain(|member, _| !run.overridden.contains(member) || self.is_reachable(&member.host));
        if let Some(member) = roles.keys().find(|member| !self.is_reachable(&member.host)) {
            let message = format!("{member} has to be asked, and host {} is lost", member.host);
            return self.give_up(id, run, "vote-missing", &message, Some(member.clone()));
        }
        let poll = self.ask(id, run, Round::Check, roles, self.now.time.plus(plan.check_ms));
        run.stage = Stage::Check(poll);
        Next::Again
    }

    /// Scores have to be of now where they decide who is chosen: what was last said may be old, and a server that has
    /// just started has heard nothing.
    fn ask_candidates(&mut self, id: TransitionId, run: &mut Run, plan: &Plan) -> Next {
        let connected = plan.candidates.iter().filter(|member| self.sessions.contains_key(&member.host));
        let asked: BTreeSet<MemberId> = connected.cloned().collect();
        for member in &asked {
            let mut call = self.call(id, run, member, Phase::Status, Role::Actor);
            call.within_ms = STATUS_MS;
            self.send_call(call);
        }
        run.stage = Stage::Status { asked, deadline: self.now.time.plus(STATUS_MS) };
        Next::Again
    }

    fn advance_status(&mut self, run: &mut Run) -> Next {
        let Stage::Status { asked, deadline } = &mut run.stage else {
            unreachable!("advance dispatches by stage")
        };
        asked.retain(|member| self.sessions.contains_key(&member.host));
        let is_late = |by: Time| by <= self.now.time;
        if !asked.is_empty() && !is_late(*deadline) && !run.decide_by.is_some_and(is_late) {
            return Next::Wait;
        }
        // Who has not answered by now is chosen by what is known of it.
        run.stage = Stage::Queued;
        run.fresh = None;
        Next::Again
    }

    /// A member has said how fit it is, because it was asked.
    pub(crate) fn status_done(&mut self, done: Done) {
        let findings = done.findings;
        if done.answer == Answer::Yes {
            self.note_state(&done.member, findings.state, findings.score, done.reason, findings.facts);
        }
        let Some(run) = done.transition.and_then(|id| self.runs.get_mut(&id)) else { return };
        if let Stage::Status { asked, .. } = &mut run.stage {
            asked.remove(&done.member);
        }
    }

    fn blocked(&mut self, transition: TransitionId, run: &mut Run, blocker: TransitionId) -> Next {
        if run.blocker.replace(blocker) != Some(blocker) {
            self.event(Event::Blocked { transition, blocker });
        }
        Next::Wait
    }

    fn advance_check(&mut self, id: TransitionId, run: &mut Run) -> Next {
        let Stage::Check(mut poll) = std::mem::replace(&mut run.stage, Stage::Queued) else {
            unreachable!("advance dispatches by stage")
        };
        if let Some((code, message, member)) = self.refused(run, &poll) {
            run.stage = Stage::Check(poll);
            return self.give_up(id, run, code, &message, member);
        }
        match poll.ballot.tally() {
            Tally::Carried => self.begin(id, run, poll),
            Tally::Open | Tally::Refused(_) => {
                self.ask_again(id, run, &mut poll);
                run.stage = Stage::Check(poll);
                Next::Wait
            }
        }
    }

    /// Why a round has failed, if it has.
    fn refused(&self, run: &Run, poll: &Poll) -> Option<(&'static str, String, Option<MemberId>)> {
        if let Tally::Refused(member) = poll.ballot.tally() {
            let reason = poll.ballot.vote(&member).and_then(|vote| vote.reason.clone()).unwrap_or_default();
            return Some(("vote-no", format!("{member} said no: {reason}"), Some(member)));
        }
        let is_late = poll.deadline <= self.now.time || run.decide_by.is_some_and(|by| by <= self.now.time);
        if !is_late {
            return None;
        }
        let Some(member) = poll.ballot.missing().next().cloned() else {
            if let Some(member) = self.absent(run, poll).pop_first().cloned() {
                return Some((
                    "vote-missing",
                    format!("the agent of {member} did not come back in time"),
                    Some(member),
                ));
            }
            // The last yes came with the deadline: what follows would come after it.
            return Some(("vote-missing", "it was not decided within its deadline".to_owned(), None));
        };
        Some(match poll.ballot.vote(&member) {
            Some(Vote { reason, .. }) => {
                let reason = reason.clone().unwrap_or_default();
                ("vote-no", format!("{member} was not ready in time: {reason}"), Some(member))
            }
            None => ("vote-missing", format!("{member} did not answer in time"), Some(member)),
        })
    }

    /// The members that have said yes and whose agents are not connected now, or late.
    fn absent<'a>(&self, run: &'a Run, poll: &'a Poll) -> BTreeSet<&'a MemberId> {
        if mutant::is(Mutant::LostHostCounts) {
            return BTreeSet::new();
        }
        let voters = run.votes.iter().chain(poll.ballot.votes()).map(|vote| &vote.member);
        let counts = voters.filter(|member| !run.overridden.contains(*member));
        counts.filter(|member| !self.is_heard(&member.host)).collect()
    }

    fn begin(&mut self, id: TransitionId, run: &mut Run, poll: Poll) -> Next {
        let plan = run.plan.clone();
        if self.is_stale(&plan) {
            // The decision would find it out, when clients have been waiting.
            run.stage = Stage::Check(poll);
            return self.give_up(id, run, "plan-stale", STALE, None);
        }
        if let Err(Rejection { code, message, .. }) =
            self.check_windows(&self.head.transitions[&id].request, &plan)
        {
            run.stage = Stage::Check(poll);
            return self.give_up(id, run, code.as_str(), &message, None);
        }
        run.votes.extend(poll.ballot.votes().cloned());
        self.propose(Body::Begin { transition: id, plan: plan.clone() });
        self.send_notices(id);
        let deadline = self.now.time.plus(plan.prepare_ms);
        let mut waves = self.waves(&plan);
        waves.reverse();
        run.stage = Stage::Prepare { poll: Poll::over(deadline), waves };
        Next::Again
    }

    /// Who prepares when: holders, outermost dependants first; members that leave a state; those that enter one.
    fn waves(&self, plan: &Plan) -> Vec<Vec<(MemberId, Role)>> {
        let mut holders: BTreeMap<std::cmp::Reverse<usize>, Vec<(MemberId, Role)>> = BTreeMap::new();
        let mut depths = BTreeMap::new();
        for member in plan.with_role(Role::Holder) {
            let depth = std::cmp::Reverse(depth(plan, &member.group, &mut depths));
            holders.entry(depth).or_default().push((member.clone(), Role::Holder));
        }
        let (mut leaving, mut entering) = (Vec::new(), Vec::new());
        let mut seen: BTreeSet<&MemberId> = BTreeSet::new();
        for step in plan.steps.iter().filter(|step| seen.insert(&step.member)) {
            let rank = |state| {
                self.head.spec.groups.get(&step.member.group).and_then(|group| group.lifecycle.rank(state))
            };
            let wave = if rank(&step.to) < rank(&step.from) { &mut leaving } else { &mut entering };
            wave.push((step.member.clone(), Role::Actor));
        }
        holders.into_values().chain([leaving, entering]).filter(|wave| !wave.is_empty()).collect()
    }

    fn advance_prepare(&mut self, id: TransitionId, run: &mut Run) -> Next {
        let Stage::Prepare { mut poll, mut waves } = std::mem::replace(&mut run.stage, Stage::Queued) else {
            unreachable!("advance dispatches by stage")
        };
        let refused = self.refused(run, &poll).or_else(|| self.short_hold(run, &poll));
        if let Some((code, message, member)) = refused {
            run.stage = Stage::Prepare { poll, waves };
            return self.give_up(id, run, code, &message, member);
        }
        match poll.ballot.tally() {
            Tally::Open | Tally::Refused(_) => {
                self.ask_again(id, run, &mut poll);
                run.stage = Stage::Prepare { poll, waves };
                Next::Wait
            }
            // A yes counts while the run that cast it keeps its session. One whose connection is gone may be dead,
            // and what its yes promised with it: that shows when it comes back, or is lost.
            Tally::Carried if waves.is_empty() && !self.absent(run, &poll).is_empty() => {
                run.stage = Stage::Prepare { poll, waves };
                Next::Wait
            }
            Tally::Carried => {
                run.votes.extend(poll.ballot.votes().cloned());
                match waves.pop() {
                    Some(wave) => {
                        let poll =
                            self.ask(id, run, Round::Prepare, wave.into_iter().collect(), poll.deadline);
                        run.stage = Stage::Prepare { poll, waves };
                    }
                    None => {
                        run.stage = Stage::Prepare { poll: Poll::over(poll.deadline), waves };
                        return self.decide(id, run);
                    }
                }
                Next::Again
            }
        }
    }

    /// The one durable decision. Whatever it rests on is looked at once more, at this instant.
    fn decide(&mut self, id: TransitionId, run: &mut Run) -> Next {
        let plan = run.plan.clone();
        if self.is_stale(&plan) {
            return self.give_up(id, run, "plan-stale", STALE, None);
        }
        if let Err(Rejection { code, message, .. }) =
            self.check_windows(&self.head.transitions[&id].request, &plan)
        {
            return self.give_up(id, run, code.as_str(), &message, None);
        }
        // From here on they are the transition's own.
        let votes = Arc::new(std::mem::take(&mut run.votes));
        let decision = Decision::Commit;
        self.propose(Body::Decision { transition: id, decision, cause: None, votes, plan: None });
        run.stage = Stage::Commit(Box::new(Course {
            forward: Flow::new(&plan, Direction::Forward),
            back: None,
            tries: BTreeMap::new(),
            stops: BTreeMap::new(),
            maybe_taken: BTreeSet::new(),
            is_unanswered: false,
            is_halted: false,
        }));
        Next::Again
    }

    /// Whether something that a plan rests on is no longer as it was when the plan was made.
    fn is_stale(&self, plan: &Plan) -> bool {
        plan::digest(&self.head, plan) != plan.digest && !mutant::is(Mutant::StalePlanDecided)
    }

    // ---- questions

    fn ask(
        &mut self,
        id: TransitionId,
        run: &mut Run,
        round: Round,
        roles: BTreeMap<MemberId, Role>,
        deadline: Time,
    ) -> Poll {
        let ballot = Ballot::new(roles.keys().cloned(), &run.overridden);
        let tries = roles.keys().map(|member| (member.clone(), Try::first(deadline))).collect();
        let poll = Poll { round, roles, ballot, tries, deadline };
        for (member, role) in &poll.roles {
            if round == Round::Prepare && *role == Role::Holder {
                let hold = Hold::begin(self.now.time, self.hold_ms(&member.group));
                run.holds.insert(member.clone(), hold);
            }
            self.send_question(id, run, &poll, member);
        }
        poll
    }

    fn ask_again(&mut self, id: TransitionId, run: &Run, poll: &mut Poll) {
        let due: Vec<_> = poll
            .tries
            .iter_mut()
            .filter_map(|(member, again)| again.is_due(self.now.time).then(|| member.clone()))
            .collect();
        due.iter().for_each(|member| self.send_question(id, run, poll, member));
    }

    fn send_question(&mut self, id: TransitionId, run: &Run, poll: &Poll, member: &MemberId) {
        let role = poll.roles[member];
        let phase = match (poll.round, role) {
            (Round::Check, _) => Phase::Check,
            (Round::Prepare, Role::Holder) => Phase::Hold,
            (Round::Prepare, Role::Actor | Role::Voter | Role::Observer) => Phase::Prepare,
        };
        let mut call = self.call(id, run, member, phase, role);
        call.attempt = poll.tries[member].attempt;
        call.within_ms = poll.deadline.since(self.now.time);
        call.plan = Some(run.plan.hash.clone());
        if let Some(first) = run.plan.steps_of(member).next() {
            call.from = Some(first.from.clone());
            call.to = run.plan.goals.get(member).cloned();
        }
        if poll.round == Round::Prepare {
            // What is left of it, also when it is asked again: a hold's end does not move.
            let left = |hold: &Hold| hold.end.since(self.now.time).max(1);
            let own = run.holds.get(member).map(left);
            let least = run.holds.values().map(left).min();
            call.hold_ms = Some(own.or(least).unwrap_or_else(|| self.hold_ms(&member.group)));
        }
        self.send_call(call);
    }

    pub(crate) fn vote(&mut self, done: Done) {
        let Some(id) = done.transition else { return };
        let Some(run) = self.runs.get_mut(&id) else { return };
        let (Stage::Check(poll) | Stage::Prepare { poll, .. }) = &mut run.stage else { return };
        let round = match done.phase {
            Phase::Check => Round::Check,
            Phase::Prepare | Phase::Hold | Phase::Commit | Phase::Undo | Phase::Cancel | Phase::Release => {
                Round::Prepare
            }
            Phase::Status | Phase::Notice | Phase::Fence | Phase::Stop => return,
        };
        // A vote on another plan, round or question is no answer to this one.
        let (Some(role), Some(asked)) = (poll.roles.get(&done.member), poll.tries.get_mut(&done.member))
        else {
            return;
        };
        if round != poll.round || done.plan.as_ref() != Some(&run.plan.hash) || done.attempt != asked.attempt
        {
            return;
        }
        let Some(session) = self.sessions.get(&done.member.host) else { return };
        // The decision records every vote with what it hands on, and has to fit a record itself.
        let out_bytes = serde_json::to_string(&done.findings.out).map_or(usize::MAX, |out| out.len());
        run.out_bytes = run.out_bytes.saturating_add(out_bytes);
        let mut done = done;
        if run.out_bytes > OUT_BYTES_MAX {
            done.answer = Answer::No;
            done.reason = Some(format!("the members' out comes to more than {OUT_BYTES_MAX} bytes"));
            done.findings.out.clear();
        }
        let vote = Vote {
            member: done.member,
            role: *role,
            round,
            answer: done.answer,
            reason: done.reason,
            run: session.run.clone(),
            out: done.findings.out,
        };
        if let Some(score) = done.findings.score {
            self.scores.insert(vote.member.clone(), score);
        }
        if poll.ballot.cast(vote.clone()) {
            if vote.answer == Answer::Again {
                asked.again(self.now.time);
            }
            self.event(Event::Voted { transition: id, vote });
        }
    }

    // ---- no

    fn give_up(
        &mut self,
        id: TransitionId,
        run: &mut Run,
        code: &str,
        message: &str,
        member: Option<MemberId>,
    ) -> Next {
        let cause = Cause { code: code.to_owned(), message: message.to_owned(), member };
        let mut votes = std::mem::take(&mut run.votes);
        let was_begun = self.head.transitions[&id].token.is_some();
        if let Stage::Check(poll) | Stage::Prepare { poll, .. } = &run.stage {
            votes.extend(poll.ballot.votes().cloned());
        }
        // What nobody was asked about may never have been meant: it is planned anew when its turn comes.
        let asked = matches!(run.stage, Stage::Check(_)).then(|| run.plan.clone());
        self.decide_no(id, cause, votes, asked.filter(|plan| plan.parts() <= UNBEGUN_PARTS_MAX));
        if !was_begun {
            self.end(id, run, Outcome::Aborted, BTreeMap::new());
            return Next::Ended;
        }
        let mut stage = self.abort_stage(&run.plan);
        if let (Stage::Abort { cancels }, Stage::Prepare { waves, .. }) = (&mut stage, &run.stage) {
            // They were not asked to prepare yet.
            waves.iter().flatten().for_each(|(member, _)| _ = cancels.remove(member));
        }
        run.stage = stage;
        Next::Again
    }

    /// Aborts a transition that is not decided, whatever stage it is in.
    pub(crate) fn abort(&mut self, id: TransitionId, cause: Cause) {
        let Some(mut run) = self.runs.remove(&id) else { return };
        debug_assert!(run.is_undecided(), "{id} is decided");
        let next = self.give_up(id, &mut run, &cause.code, &cause.message, cause.member);
        match next {
            Next::Ended => self.over(id, &run),
            Next::Again | Next::Wait => {
                self.stirred.insert(id);
                self.event(Event::Phase { transition: id, phase: Some(run.phase()) });
                self.runs.insert(id, run);
            }
        }
    }

    fn decide_no(
        &mut self,
        transition: TransitionId,
        cause: Cause,
        votes: Vec<Vote>,
        plan: Option<Arc<Plan>>,
    ) {
        let (decision, cause, votes) = (Decision::Abort, Some(cause), Arc::new(votes));
        self.propose(Body::Decision { transition, decision, cause, votes, plan });
    }

    fn abort_stage(&self, plan: &Plan) -> Stage {
        let until = self.now.time.plus(plan.prepare_ms);
        let cancel = Try::due(self.now.time, until);
        Stage::Abort { cancels: plan.with_role(Role::Actor).map(|member| (member.clone(), cancel)).collect() }
    }

    fn advance_abort(&mut self, id: TransitionId, run: &mut Run) -> Next {
        let Stage::Abort { mut cancels } = std::mem::replace(&mut run.stage, Stage::Queued) else {
            unreachable!("advance dispatches by stage")
        };
        let now = self.now.time;
        for (member, cancel) in &mut cancels {
            if cancel.is_due(now) {
                self.send_cancel(id, run, member, cancel);
            }
        }
        // Actors that cannot be reached now hear of the abort when they come back; nobody waits for them.
        cancels.retain(|member, cancel| cancel.deadline > now && self.sessions.contains_key(&member.host));
        let waits_for_cancel = !cancels.is_empty();
        run.stage = Stage::Abort { cancels };
        let holders: Vec<_> = run.holds.keys().cloned().collect();
        self.release(id, run, &holders);
        if self.waits_for_release(id, run) || waits_for_cancel {
            return Next::Wait;
        }
        self.end(id, run, Outcome::Aborted, BTreeMap::new());
        Next::Ended
    }

    fn send_cancel(&mut self, id: TransitionId, run: &Run, member: &MemberId, cancel: &Try) {
        let mut call = self.call(id, run, member, Phase::Cancel, Role::Actor);
        call.attempt = cancel.attempt;
        call.within_ms = cancel.deadline.since(self.now.time);
        self.send_call(call);
    }

    pub(crate) fn cancel_done(&mut self, done: Done) {
        let Some(run) = done.transition.and_then(|id| self.runs.get_mut(&id)) else { return };
        let Stage::Abort { cancels } = &mut run.stage else { return };
        match done.answer {
            Answer::Yes => {
                cancels.remove(&done.member);
            }
            Answer::No | Answer::Again => {
                if let Some(cancel) = cancels.get_mut(&done.member) {
                    cancel.again(self.now.time);
                }
            }
        }
    }

    // ---- ends

    fn end(&mut self, id: TransitionId, run: &Run, outcome: Outcome, left: BTreeMap<MemberId, Left>) {
        let untold = self.untold(id);
        let body = Body::Outcome { transition: id, outcome, left: left.clone(), untold };
        if mutant::is(Mutant::OutcomeTwice) {
            self.propose(body.clone());
        }
        self.propose(body);
        let mut hosts: BTreeSet<_> = run.plan.asked().map(|who| who.member.host.clone()).collect();
        // An earlier reign may have asked others about another plan.
        let waiting = self.sessions.iter_mut().filter_map(|(host, session)| {
            let has_waited = session.waits_for.remove(&id);
            has_waited.then(|| host.clone())
        });
        hosts.extend(waiting);
        if mutant::is(Mutant::OutcomeUntold) {
            hosts.clear();
        }
        let mut hosts = Vec::from_iter(hosts);
        if mutant::is(Mutant::Unordered) {
            let order = RandomState::new();
            hosts.sort_by_key(|host| order.hash_one(host));
        }
        for host in hosts {
            self.order(&host, Order::Outcome { transition: id, outcome: Some(outcome) });
        }
        self.send_notices(id);
        self.reassign_after(run);
        // What an agent said of a member before it got the order whose end is not known may still be on its way,
        // and would settle the doubt with the state of before. What it says on a new connection is said after it.
        let in_doubt = left.iter().filter(|(_, left)| left.in_doubt);
        let hosts: BTreeSet<_> = in_doubt.map(|(member, _)| member.host.clone()).collect();
        hosts.iter().for_each(|host| self.drop_session(host));
    }

    /// The observers that have not acknowledged the intent by now. Nobody waits for them; the record names them.
    fn untold(&self, id: TransitionId) -> BTreeSet<MemberId> {
        let transition = &self.head.transitions[&id];
        let (Some(plan), Some(token)) = (&transition.plan, transition.token) else { return BTreeSet::new() };
        let is_untold = |member: &&MemberId| self.noticed(&member.host).0 < token.0;
        plan.with_role(Role::Observer).filter(is_untold).cloned().collect()
    }

    /// Members that had left their groups' labels may be gone for good now, and what is excluded only under a setting
    /// decides who runs by a lease.
    fn reassign_after(&mut self, run: &Run) {
        let is_gone = |member: &MemberId| !self.head.members.contains_key(member);
        if !run.plan.settings.is_empty() || run.plan.goals.keys().any(is_gone) {
            self.assign_all();
        }
    }

    /// Sends the newest notice of a transition to every host that is to have it.
    fn send_notices(&mut self, id: TransitionId) {
        let newest = self.head.revision;
        let hosts: Vec<_> = self
            .head
            .notices
            .iter()
            .filter(|(_, notices)| notices.kept.back().is_some_and(|last| *last == (newest, id)))
            .map(|(host, notices)| (host.clone(), notices.kept.len() - 1))
            .collect();
        for (host, place) in hosts {
            self.send_notice(&host, place);
        }
    }

    fn send_notice(&mut self, host: &HostName, place: usize) {
        let notices = &self.head.notices[host];
        let (index, id) = notices.kept[place];
        let previous = notices.previous(place);
        let transition = self.head.transitions[&id].clone();
        let Some(plan) = transition.plan.clone() else { return };
        let is_intent = transition.token.is_some_and(|token| token.0 == index.0);
        let run = Run::queued(plan.clone(), None);
        let members = plan.with_role(Role::Observer).filter(|member| member.host == *host);
        let calls = members.map(|member| {
            let mut call = self.call(id, &run, member, Phase::Notice, Role::Observer);
            call.within_ms = self.commit_ms(&member.group);
            call.decision = if is_intent { None } else { transition.decision };
            call
        });
        let outcome = if is_intent { None } else { transition.outcome };
        let notice = Notice { index, previous, transition: id, outcome, calls: calls.collect() };
        self.order(host, Order::Notice(notice));
    }

    /// Tells a host that notices up to there are no longer kept, and its members, how things around them are now.
    pub(crate) fn send_gap(&mut self, host: &HostName, index: Index) {
        let relations = self.head.relations.clone();
        let observes = |group: &GroupName| relations.of(group).any(|relation| relation.from == *group);
        let members = self.head.assignments(host).into_iter().map(|assignment| assignment.member);
        let calls = members.filter(|member| observes(&member.group)).map(|member| Call {
            role: Role::Observer,
            within_ms: self.commit_ms(&member.group),
            context: self.context_of(&member.group),
            ..Call::bare(member, Phase::Notice)
        });
        let gap = Gap { index, calls: calls.collect() };
        self.order(host, Order::Gap(gap));
    }

    // ---- shared

    pub(crate) fn is_reachable(&self, host: &HostName) -> bool {
        self.head.hosts.get(host).is_some_and(|host| host.is_reachable())
    }

    fn hold_ms(&self, group: &GroupName) -> u64 {
        self.head.spec.groups.get(group).map_or_else(spec::hold_ms, |group| group.hold_ms)
    }

    pub(crate) fn commit_ms(&self, group: &GroupName) -> u64 {
        let declared = self.head.spec.groups.get(group);
        declared.map_or_else(Deadlines::default, |group| group.deadlines).commit
    }
}

/// How many ordering relations lead from a group down to one that nothing of the plan lies below. Each group is
/// looked at once: the ways down may be many more than the groups.
fn depth<'a>(plan: &'a Plan, group: &'a GroupName, known: &mut BTreeMap<&'a GroupName, usize>) -> usize {
    if let Some(depth) = known.get(group) {
        return *depth;
    }
    let below = plan.relations.iter().filter(|relation| relation.from == *group && relation.orders());
    let below = below.flat_map(|relation| &relation.to);
    let depth = below.map(|to| 1 + depth(plan, to, known)).max().unwrap_or(0);
    known.insert(group, depth);
    depth
}
