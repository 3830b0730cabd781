//! Drives what was requested: queue, check, prepare, decide, commit or undo, release, outcome.
//!
//! What must survive is in the journal ([`crate::cluster::Transition`]); a [`Run`] is what this reign adds to it:
//! who has been asked, until when, how often. [`Engine::advance`] looks at where a transition stands and does
//! whatever has become possible, so a wake-up that is lost or comes twice costs time and nothing else.

use crate::cluster::{StepState, Transition};
use crate::engine::{Engine, Event};
use crate::flow::Flow;
use crate::id::{GroupName, HostName, Index, MemberId, RunId, StepId, TransitionId};
use crate::message::{
    Call, Context, ContextMember, Decision, Done, Hello, Notice, Order, Outcome, Phase, Role,
};
use crate::plan::{self, Plan};
use crate::record::{Body, Cause, Direction, HoldEnd, Left, StepResult, Turn};
use crate::request::Rejection;
use crate::spec::{Ask, OnFailure};
use crate::time::Time;
use crate::vote::{Answer, Ballot, Round, Tally, Vote};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The wait before something is tried again: doubled each time, from the first to the last of these.
const BACKOFF_MS: (u64, u64) = (50, 5000);

const STALE: &str = "something that the plan rests on has changed";

/// What this reign knows of an open transition beside the journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    plan: Arc<Plan>,
    /// The groups that it moves.
    moving: Vec<GroupName>,
    /// The plan just made for it, and the revision that it is of.
    fresh: Option<(Index, Arc<Plan>)>,
    stage: Stage,
    /// No decision by then aborts.
    decide_by: Option<Time>,
    /// The votes of rounds that are over.
    votes: Vec<Vote>,
    holds: BTreeMap<MemberId, Hold>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    /// Waits for its footprint.
    Queued,
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

/// A call that is made until it succeeds or its time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Try {
    attempt: u32,
    failures: u32,
    deadline: Time,
    /// It has ended, and is made again then; none: it is under way.
    again_at: Option<Time>,
}

impl Try {
    fn first(deadline: Time) -> Self {
        Self { attempt: 1, failures: 0, deadline, again_at: None }
    }

    /// To be made again after a pause that grows with each try.
    fn again(&mut self, now: Time) {
        let (first, last) = BACKOFF_MS;
        let pause = first.saturating_mul(1 << self.attempt.min(16)).min(last);
        self.again_at = Some(now.plus(pause).min(self.deadline));
    }

    fn wake(&self) -> Time {
        self.again_at.unwrap_or(self.deadline).min(self.deadline)
    }

    /// Whether it is to be made again now; if so, counts the new try.
    fn is_due(&mut self, now: Time) -> bool {
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
            decide_by,
            votes: Vec::new(),
            holds: BTreeMap::new(),
        }
    }

    /// Whether it has, or waits for, a claim on the group.
    pub(crate) fn claims(&self, group: &GroupName) -> bool {
        self.plan.exclusive.contains(group) || self.plan.shared.contains(group)
    }

    fn conflicts_with(&self, other: &Self) -> bool {
        let (a, b) = (&self.plan, &other.plan);
        !a.exclusive.is_disjoint(&b.exclusive)
            || !a.exclusive.is_disjoint(&b.shared)
            || !a.shared.is_disjoint(&b.exclusive)
    }

    fn is_undecided(&self) -> bool {
        matches!(self.stage, Stage::Queued | Stage::Check(_) | Stage::Prepare { .. })
    }

    /// When something is due at the latest.
    pub(crate) fn wake(&self) -> Option<Time> {
        let holds = self.holds.values().filter(|hold| !hold.is_over);
        let holds = holds.flat_map(|hold| {
            let end = if self.is_undecided() { hold.too_short_at() } else { hold.end };
            [Some(end), hold.release.and_then(|release| release.again_at)]
        });
        let poll = |poll: &Poll| {
            let tries = poll.tries.values().map(Try::wake);
            tries.chain([poll.deadline]).min()
        };
        let stage = match &self.stage {
            Stage::Queued => self.decide_by,
            Stage::Check(asked) | Stage::Prepare { poll: asked, .. } => poll(asked),
            Stage::Abort { cancels } => cancels.values().map(Try::wake).min(),
            Stage::Commit(course) => course.tries.values().chain(course.stops.values()).map(Try::wake).min(),
        };
        let decide_by = self.decide_by.filter(|_| self.is_undecided());
        holds.flatten().chain(stage).chain(decide_by).min()
    }

    fn phase(&self) -> &'static str {
        match &self.stage {
            Stage::Queued => "queued",
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
        plan.exclusive.extend(request.targets.iter().filter_map(|target| target.group().cloned()));
        let decide_by = request.deadline_ms.map(|ms| self.now.time.plus(ms));
        let fresh = fresh.map(|plan| (self.head.revision, Arc::new(plan)));
        self.runs.insert(id, Run { fresh, ..Run::queued(Arc::new(plan), decide_by) });
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
                let request = &transition.request;
                let plan = plan::plan(&self.head, &request.targets, &self.scores).ok();
                self.enqueue(id, plan);
                continue;
            };
            let mut run = Run::queued(plan.clone(), None);
            run.votes.clone_from(&transition.votes);
            for holder in plan.with_role(Role::Holder) {
                if !transition.holds.contains_key(holder) {
                    let hold_ms = self.hold_ms(&holder.group);
                    let end = self.now.time.plus(hold_ms);
                    run.holds.insert(holder.clone(), Hold { end, hold_ms, release: None, is_over: false });
                }
            }
            match transition.decision {
                Some(Decision::Commit) => {
                    run.stage = Stage::Commit(Box::new(self.course(&transition, &plan)))
                }
                Some(Decision::Abort) => run.stage = self.abort_stage(&plan),
                None => {
                    let message = "the server restarted before the decision".to_owned();
                    let cause = Cause { code: "new-reign".to_owned(), message, member: None };
                    self.decide_no(id, cause, Vec::new());
                    run.stage = self.abort_stage(&plan);
                }
            }
            self.runs.insert(id, run);
        }
    }

    fn course(&self, transition: &Transition, plan: &Plan) -> Course {
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
                (member.clone(), Try { attempt: 0, failures: 0, deadline, again_at: Some(self.now.time) })
            });
        let stops = stops.collect();
        let maybe_taken = forward.ready().clone();
        let is_halted = self.would_break_limits(transition, plan);
        Course { forward, back, tries: BTreeMap::new(), stops, maybe_taken, is_unanswered: true, is_halted }
    }

    // ---- the loop

    pub(crate) fn advance(&mut self, id: TransitionId) {
        while let Some(mut run) = self.runs.remove(&id) {
            let before = run.phase();
            let next = match run.stage {
                Stage::Queued => self.advance_queued(id, &mut run),
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
        let blocked = self.runs.iter().any(|(other, theirs)| {
            (*other < id || !matches!(theirs.stage, Stage::Queued)) && run.conflicts_with(theirs)
        });
        if blocked {
            return Next::Wait;
        }
        let request = self.head.transitions[&id].request.clone();
        let plan = match run.fresh.take() {
            Some((at, plan)) if at == self.head.revision => plan,
            Some(_) | None => match plan::plan(&self.head, &request.targets, &self.scores) {
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
        let claimed = |theirs: &Run| !matches!(theirs.stage, Stage::Queued) && run.conflicts_with(theirs);
        if self.runs.values().any(claimed) {
            return Next::Wait;
        }
        let asked = plan.participants.iter().filter(|who| who.role != Role::Observer);
        let roles: BTreeMap<_, _> = asked.map(|who| (who.member.clone(), who.role)).collect();
        if let Some(member) = roles.keys().find(|member| !self.is_reachable(&member.host)) {
            let message = format!("{member} has to be asked, and host {} is lost", member.host);
            return self.give_up(id, run, "vote-missing", &message, Some(member.clone()));
        }
        let poll = self.ask(id, run, Round::Check, roles, self.now.time.plus(plan.check_ms));
        run.stage = Stage::Check(poll);
        Next::Again
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
            if let Some(member) = self.absent(run, poll) {
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

    /// A hold of which less than half is left: it might run out before the steps are taken, and let clients in
    /// between two states. No decision can follow any more, so nobody is kept waiting for one.
    fn short_hold(&self, run: &Run) -> Option<(&'static str, String, Option<MemberId>)> {
        let (member, hold) = run.holds.iter().find(|(_, hold)| hold.too_short_at() <= self.now.time)?;
        let left = hold.end.since(self.now.time);
        let message = format!("the hold of {member} has {left} ms left of {}", hold.hold_ms);
        Some(("hold-too-short", message, Some(member.clone())))
    }

    /// A member that has said yes and whose agent is not connected now, if there is one.
    fn absent(&self, run: &Run, poll: &Poll) -> Option<MemberId> {
        let mut voters = run.votes.iter().chain(poll.ballot.votes()).map(|vote| &vote.member);
        voters.find(|member| !self.sessions.contains_key(&member.host)).cloned()
    }

    fn begin(&mut self, id: TransitionId, run: &mut Run, poll: Poll) -> Next {
        let plan = run.plan.clone();
        if plan::digest(&self.head, &plan) != plan.digest {
            // The decision would find it out, when clients have been waiting.
            run.stage = Stage::Check(poll);
            return self.give_up(id, run, "plan-stale", STALE, None);
        }
        run.votes.extend(poll.ballot.votes().cloned());
        self.propose(Body::Begin { transition: id, plan: plan.clone() });
        self.send_notices(id);
        let deadline = self.now.time.plus(plan.prepare_ms);
        let mut waves = self.waves(&plan);
        waves.reverse();
        run.stage = Stage::Prepare {
            poll: Poll {
                round: Round::Prepare,
                roles: BTreeMap::new(),
                ballot: Ballot::default(),
                tries: BTreeMap::new(),
                deadline,
            },
            waves,
        };
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
        let refused = self.refused(run, &poll).or_else(|| self.short_hold(run));
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
            Tally::Carried if waves.is_empty() && self.absent(run, &poll).is_some() => {
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
                        run.stage = Stage::Prepare {
                            poll: Poll {
                                roles: BTreeMap::new(),
                                ballot: Ballot::default(),
                                tries: BTreeMap::new(),
                                ..poll
                            },
                            waves,
                        };
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
        if plan::digest(&self.head, &plan) != plan.digest {
            return self.give_up(id, run, "plan-stale", STALE, None);
        }
        let votes = std::mem::take(&mut run.votes);
        self.propose(Body::Decision {
            transition: id,
            decision: Decision::Commit,
            cause: None,
            votes: votes.clone(),
        });
        run.votes = votes;
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

    // ---- questions

    fn ask(
        &mut self,
        id: TransitionId,
        run: &mut Run,
        round: Round,
        roles: BTreeMap<MemberId, Role>,
        deadline: Time,
    ) -> Poll {
        let ballot = Ballot::new(roles.keys().cloned());
        let tries = roles.keys().map(|member| (member.clone(), Try::first(deadline))).collect();
        let poll = Poll { round, roles, ballot, tries, deadline };
        for (member, role) in &poll.roles {
            if round == Round::Prepare && *role == Role::Holder {
                let hold_ms = self.hold_ms(&member.group);
                let end = self.now.time.plus(hold_ms);
                run.holds.insert(member.clone(), Hold { end, hold_ms, release: None, is_over: false });
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
        self.decide_no(id, cause, votes);
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

    fn decide_no(&mut self, id: TransitionId, cause: Cause, votes: Vec<Vote>) {
        self.propose(Body::Decision { transition: id, decision: Decision::Abort, cause: Some(cause), votes });
    }

    fn abort_stage(&self, plan: &Plan) -> Stage {
        let until = self.now.time.plus(plan.prepare_ms);
        let cancel = Try { attempt: 0, failures: 0, deadline: until, again_at: Some(self.now.time) };
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

    // ---- steps

    fn advance_commit(&mut self, id: TransitionId, run: &mut Run) -> Next {
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
                    StepResult::Failed { step, direction, reason: "no time left to try again".to_owned() }
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
            }
            OnFailure::Undo | OnFailure::Exclude => {
                self.propose(Body::Turn {
                    transition: id,
                    turn: Turn::Exclude,
                    member: member.clone(),
                    reason,
                });
                let deadline = self.now.time.plus(self.commit_ms(&member.group));
                let stop = Try { attempt: 0, failures: 0, deadline, again_at: Some(self.now.time) };
                course.stops.insert(member.clone(), stop);
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
                has_max && group.lifecycle.serves(&step.to)
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

    fn send_stop(&mut self, id: TransitionId, run: &Run, member: &MemberId, stop: &Try) {
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

    /// Whether the state that a step enters has room, with every other member counted wherever it may be. The
    /// plan's order sees to that by itself while nothing fails.
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
        let Some(max) = group.max(into, count) else { return true };
        let others = self.head.members_of(&step.member.group).filter(|other| **other != step.member);
        others.filter(|other| self.may_be_in(transition, run, course, other, into)).count() < max
    }

    /// Whether a member may be in a state: where it is, or either end of a step of unknown or unfinished end.
    fn may_be_in(
        &self,
        transition: &Transition,
        run: &Run,
        course: &Course,
        member: &MemberId,
        state: &crate::id::StateName,
    ) -> bool {
        if !run.plan.goals.contains_key(member) {
            return self.head.may_be_in(member, state);
        }
        let is_going_back = course.back.is_some();
        if transition.stopped.contains(member) && !is_going_back {
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

    fn send_step(&mut self, id: TransitionId, run: &Run, step: StepId, direction: Direction, tried: &Try) {
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

    fn note_step(&mut self, id: TransitionId, result: StepResult) {
        self.propose(Body::Step { transition: id, results: vec![result] });
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
            let in_doubt = unsettled.is_some();
            let problem = match (unsettled, actual) {
                (Some(problem), _) => problem,
                (None, Some(actual)) if is_elsewhere => format!("it is {actual}, not {should}"),
                (None, Some(_)) => continue,
                (None, None) => "its state is not known".to_owned(),
            };
            left.insert(id.clone(), Left { problem, next: next_action(id), in_doubt });
        }
        left
    }

    // ---- holds

    /// Whether the groups that a holder holds for serve again, with nothing to come that could change that.
    fn may_release(&self, run: &Run, course: &Course, id: TransitionId, holder: &MemberId) -> bool {
        if course.back.is_some() {
            return false;
        }
        let transition = &self.head.transitions[&id];
        run.plan.asked_for(&holder.group, Ask::Hold).iter().all(|group| {
            let Some(declared) = self.head.spec.groups.get(group) else { return true };
            let serves = |state| declared.lifecycle.serves(state);
            let mut steps = run.plan.steps.iter().filter(|step| step.member.group == *group);
            let is_through = steps.all(|step| {
                !(serves(&step.from) || serves(&step.to))
                    || transition.is_confirmed(step.id, Direction::Forward)
                    || transition.stopped.contains(&step.member)
            });
            is_through && self.head.serves(group)
        })
    }

    fn release(&mut self, id: TransitionId, run: &mut Run, holders: &[MemberId]) {
        let now = self.now.time;
        let mut send = Vec::new();
        for holder in holders {
            let hold = run.holds.get_mut(holder).expect("only holders are released");
            let release = hold.release.get_or_insert(Try {
                attempt: 0,
                failures: 0,
                deadline: hold.end.max(now.plus(hold.hold_ms)),
                again_at: Some(now),
            });
            if release.is_due(now) && !(hold.is_over && release.attempt > 1) {
                send.push((holder.clone(), *release));
            }
        }
        for (holder, release) in send {
            let call = self.release_call(id, run, &holder, &release);
            self.send_call(call);
        }
    }

    fn release_call(&mut self, id: TransitionId, run: &Run, holder: &MemberId, release: &Try) -> Call {
        let mut call = self.call(id, run, holder, Phase::Release, Role::Holder);
        call.attempt = release.attempt;
        call.within_ms = release.deadline.since(self.now.time).max(1);
        call
    }

    /// Whether the outcome has to wait: until each holder has let go, or its hold's end has come.
    fn waits_for_release(&mut self, id: TransitionId, run: &mut Run) -> bool {
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
        }
    }

    // ---- ends

    fn end(&mut self, id: TransitionId, run: &Run, outcome: Outcome, left: BTreeMap<MemberId, Left>) {
        self.propose(Body::Outcome { transition: id, outcome, left: left.clone() });
        let asked = run.plan.participants.iter().filter(|who| who.role != Role::Observer);
        let hosts: BTreeSet<_> = asked.map(|who| who.member.host.clone()).collect();
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

    /// Members that had left their groups' labels may be gone for good now.
    fn reassign_after(&mut self, run: &Run) {
        if run.plan.goals.keys().any(|member| !self.head.members.contains_key(member)) {
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
            .filter(|(_, notices)| notices.last().is_some_and(|last| *last == (newest, id)))
            .map(|(host, notices)| (host.clone(), notices.len() - 1))
            .collect();
        for (host, place) in hosts {
            self.send_notice(&host, place);
        }
    }

    fn send_notice(&mut self, host: &HostName, place: usize) {
        let notices = &self.head.notices[host];
        let (index, id) = notices[place];
        let previous = place.checked_sub(1).map(|before| notices[before].0).unwrap_or_default();
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

    // ---- hosts that come and go

    /// A new run of an agent has introduced itself. What the old one had answered before the decision no
    /// longer counts: it may have lost what the yes promised.
    pub(crate) fn new_run(&mut self, host: &HostName, new: &RunId) {
        let undecided: Vec<_> =
            self.runs.iter().filter(|(_, run)| run.is_undecided()).map(|(id, _)| *id).collect();
        for id in undecided {
            let Some(run) = self.runs.get(&id) else { continue };
            let poll = match &run.stage {
                Stage::Check(poll) | Stage::Prepare { poll, .. } => poll,
                Stage::Queued | Stage::Abort { .. } | Stage::Commit(_) => continue,
            };
            let voted = run.votes.iter().chain(poll.ballot.votes());
            let is_stale = |vote: &&Vote| vote.member.host == *host && vote.run != *new;
            let stale = voted.filter(|vote| vote.answer == Answer::Yes).filter(is_stale);
            let asked =
                poll.roles.keys().filter(|member| poll.round == Round::Prepare && member.host == *host);
            let member = stale.map(|vote| &vote.member).chain(asked).next().cloned();
            if let Some(member) = member {
                let message = format!("the agent of {member} restarted after it was asked");
                self.abort(id, Cause { code: "vote-no".to_owned(), message, member: Some(member) });
            }
        }
    }

    /// A host's lease has run out: its votes no longer count.
    pub(crate) fn host_lost(&mut self, host: &HostName) {
        let undecided: Vec<_> =
            self.runs.iter().filter(|(_, run)| run.is_undecided()).map(|(id, _)| *id).collect();
        for id in undecided {
            let Some(run) = self.runs.get(&id) else { continue };
            if matches!(run.stage, Stage::Queued) {
                continue;
            }
            let asked = run.plan.participants.iter().filter(|who| who.role != Role::Observer);
            let member = asked.map(|who| &who.member).find(|member| member.host == *host).cloned();
            if let Some(who) = member {
                let message = format!("host {host} was lost before the decision");
                self.abort(id, Cause { code: "vote-missing".to_owned(), message, member: Some(who) });
            }
        }
    }

    /// Gives a host that has come back what it missed: outcomes first, then notices, then what is under way.
    pub(crate) fn catch_up(&mut self, host: &HostName, hello: &Hello) {
        for &id in &hello.open {
            match self.head.transitions.get(&id).cloned() {
                None => {
                    self.order(host, Order::Outcome { transition: id, outcome: None });
                }
                Some(transition) if transition.outcome.is_some() => {
                    self.final_release(id, &transition, host);
                    self.order(host, Order::Outcome { transition: id, outcome: transition.outcome });
                }
                Some(_) => {}
            }
        }
        let notices = self.head.notices.get(host).map_or(0, Vec::len);
        let from = self
            .head
            .notices
            .get(host)
            .map_or(0, |list| list.partition_point(|(index, _)| *index <= hello.noticed));
        (from..notices).for_each(|place| self.send_notice(host, place));
        let ids: Vec<_> = self.runs.keys().copied().collect();
        for id in ids {
            let run = self.runs.remove(&id).expect("it was listed");
            self.send_again(id, &run, host);
            self.runs.insert(id, run);
        }
    }

    /// A hold that ended by itself still gets its release: the holder has to learn where its group went.
    fn final_release(&mut self, id: TransitionId, transition: &Transition, host: &HostName) {
        let Some(plan) = transition.plan.clone() else { return };
        let run = Run::queued(plan.clone(), None);
        let holders = plan.with_role(Role::Holder).filter(|member| member.host == *host);
        for holder in holders.filter(|holder| transition.holds.get(*holder) != Some(&HoldEnd::Released)) {
            let release = Try::first(self.now.time.plus(self.hold_ms(&holder.group)));
            let call = self.release_call(id, &run, holder, &release);
            self.send_call(call);
        }
    }

    /// Sends a host again what was ordered and not answered. The agent knows what it has done already.
    fn send_again(&mut self, id: TransitionId, run: &Run, host: &HostName) {
        match &run.stage {
            Stage::Queued => {}
            Stage::Check(poll) | Stage::Prepare { poll, .. } => {
                let open = poll
                    .tries
                    .iter()
                    .filter(|(member, tried)| member.host == *host && tried.again_at.is_none());
                let open: Vec<_> = open.map(|(member, _)| member.clone()).collect();
                for member in open.iter().filter(|member| poll.ballot.awaits(member)) {
                    self.send_question(id, run, poll, member);
                }
            }
            Stage::Abort { cancels } => {
                let open =
                    cancels.iter().filter(|(member, tried)| member.host == *host && tried.again_at.is_none());
                open.for_each(|(member, cancel)| self.send_cancel(id, run, member, cancel));
            }
            Stage::Commit(course) => {
                for ((step, direction), tried) in
                    course.tries.iter().filter(|(_, tried)| tried.again_at.is_none())
                {
                    if run.plan.steps[step.0 as usize].member.host == *host {
                        self.send_step(id, run, *step, *direction, tried);
                    }
                }
                let stops = course
                    .stops
                    .iter()
                    .filter(|(member, stop)| member.host == *host && stop.again_at.is_none());
                stops.for_each(|(member, stop)| self.send_stop(id, run, member, stop));
            }
        }
        for (member, hold) in run.holds.iter().filter(|(member, _)| member.host == *host) {
            if let Some(release) = &hold.release {
                let call = self.release_call(id, run, member, release);
                self.send_call(call);
            }
        }
    }

    // ---- calls

    fn call(&mut self, id: TransitionId, run: &Run, member: &MemberId, phase: Phase, role: Role) -> Call {
        let context = self.context(id, run, member);
        let transition = &self.head.transitions[&id];
        let ask = match role {
            Role::Holder => Some(Ask::Hold),
            Role::Voter => Some(Ask::Vote),
            Role::Actor | Role::Observer => None,
        };
        let subject = match ask {
            Some(ask) => run.plan.asked_for(&member.group, ask),
            None => run.moving.clone(),
        };
        Call {
            member: member.clone(),
            phase,
            role,
            transition: Some(id),
            step: None,
            attempt: 1,
            token: transition.current_token,
            plan: None,
            subject,
            from: None,
            to: None,
            decision: transition.decision,
            within_ms: 0,
            hold_ms: None,
            context,
        }
    }

    /// What a handler is told; nothing when there is none to tell.
    fn context(&mut self, id: TransitionId, run: &Run, member: &MemberId) -> Option<Context> {
        let group = self.head.spec.groups.get(&member.group)?;
        if group.handler.as_str() == crate::spec::HANDLER_NONE {
            return None;
        }
        let key = (id, member.group.clone(), self.head.revision);
        let members = match &self.told {
            Some((known, members)) if *known == key => members.clone(),
            Some(_) | None => {
                let members = Arc::new(self.context_members(id, &run.plan, &member.group));
                self.told = Some((key, members.clone()));
                members
            }
        };
        let open = match &run.stage {
            Stage::Check(poll) | Stage::Prepare { poll, .. } => Some(&poll.ballot),
            Stage::Queued | Stage::Abort { .. } | Stage::Commit(_) => None,
        };
        let transition = &self.head.transitions[&id];
        let votes = transition.votes.iter().chain(&run.votes).chain(open.into_iter().flat_map(Ballot::votes));
        let out =
            votes.filter(|vote| !vote.out.is_empty()).map(|vote| (vote.member.clone(), vote.out.clone()));
        let settings = self.head.settings(&member.group);
        Some(Context { was: settings.clone(), settings, members, out: out.collect() })
    }

    /// The members of the groups that move, of `group`, and of those that are related to it.
    fn context_members(&self, id: TransitionId, plan: &Plan, group: &GroupName) -> Vec<ContextMember> {
        let transition = &self.head.transitions[&id];
        let mut groups: BTreeSet<&GroupName> = plan.moving();
        groups.insert(group);
        for relation in &plan.relations {
            if relation.from == *group {
                groups.insert(&relation.to);
            } else if relation.to == *group {
                groups.insert(&relation.from);
            }
        }
        let befores: BTreeMap<_, _> =
            plan.steps.iter().rev().map(|step| (&step.member, &step.from)).collect();
        let members = groups.into_iter().flat_map(|group| self.head.members_of(group)).map(|id| {
            let known = &self.head.members[id];
            ContextMember {
                member: id.clone(),
                address: self.head.hosts[&id.host].address.clone(),
                from: befores.get(id).map(|state| (*state).clone()).or_else(|| known.actual.clone()),
                goal: match transition.decision {
                    Some(_) => known.goal.clone(),
                    None => plan.goals.get(id).cloned().or_else(|| known.goal.clone()),
                },
                actual: known.actual.clone(),
            }
        });
        members.collect()
    }

    fn is_reachable(&self, host: &HostName) -> bool {
        self.head.hosts.get(host).is_some_and(|host| host.is_reachable())
    }

    fn hold_ms(&self, group: &GroupName) -> u64 {
        self.head.spec.groups.get(group).map_or(5000, |group| group.hold_ms)
    }

    fn commit_ms(&self, group: &GroupName) -> u64 {
        self.head.spec.groups.get(group).map_or(60_000, |group| group.deadlines.commit)
    }
}

/// How many ordering relations lead from a group down to one that nothing of the plan lies below. Each group is
/// looked at once: the ways down may be many more than the groups.
fn depth<'a>(plan: &'a Plan, group: &'a GroupName, known: &mut BTreeMap<&'a GroupName, usize>) -> usize {
    if let Some(depth) = known.get(group) {
        return *depth;
    }
    let orders = |relation: &&crate::relation::Relation| crate::relation::orders(relation);
    let below = plan.relations.iter().filter(|relation| relation.from == *group).filter(orders);
    let depth = below.map(|relation| 1 + depth(plan, &relation.to, known)).max().unwrap_or(0);
    known.insert(group, depth);
    depth
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
