//! The end of the lease: whom it stops, and the guard that makes sure of that when the agent cannot.

use super::{AgentEngine, AgentOutput, Job, Why};
use crate::id::{MemberId, StateName};
use crate::message::{Assignment, Call, Findings, Phase, Report};
use crate::mutant::{self, Mutant};
use crate::spec::HANDLER_NONE;
use crate::time::Time;
use crate::vote::Answer;
use std::collections::{BTreeMap, BTreeSet};

/// The pause before another guard takes the place of one that has just taken another's.
const GUARD_PAUSE_MS: u64 = 1_000;

/// What a guard is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Watched {
    /// When it was told this first.
    pub(super) at: Time,
    pub(super) until: Time,
    pub(super) pids: BTreeMap<MemberId, BTreeSet<u32>>,
}

impl AgentEngine {
    /// Whether another guard is told at once what one that ends now was told, and not after a pause: none has taken the place
    /// of a lost one lately.
    pub fn may_replace_guard(&self) -> bool {
        self.replaced_at.is_none_or(|at| at.plus(GUARD_PAUSE_MS) <= self.now)
    }

    /// The members that may be in some states only while the lease lasts.
    pub(super) fn leased(&self) -> impl Iterator<Item = &Assignment> {
        self.state.members.values().filter(|assignment| !assignment.leased.is_empty())
    }

    /// Whether a call leads into a state that needs the lease, and that has ended or is about to.
    pub(super) fn needs_lease(&self, call: &Call) -> bool {
        let leads = matches!(call.phase, Phase::Commit | Phase::Undo);
        let leased = self.state.members.get(&call.member).map(|assignment| &assignment.leased);
        let is_leased = leased.zip(call.to.as_ref()).is_some_and(|(leased, to)| leased.contains(to));
        let is_heeded = !mutant::is(Mutant::LeaseUnheeded);
        leads && is_leased && self.lease.stops_at() <= self.now && is_heeded
    }

    /// The lease ends: whoever needs it is stopped, prepared or not, before anybody else may take its place. The server
    /// that was connected may have given this host up, so its orders count no more.
    pub(super) fn lapse(&mut self) {
        if self.has_lapsed || self.lease.stops_at() > self.now {
            return;
        }
        self.has_lapsed = true;
        // Who is told later that it needs a lease runs on until it has one.
        if self.leased().next().is_none() {
            return;
        }
        if mutant::is(Mutant::LeaseUnheeded) {
            return;
        }
        self.guarded.clear();
        let leased: Vec<Assignment> = self.leased().cloned().collect();
        for Assignment { member, lowest, leased, .. } in leased {
            let state = self.state.states.get(&member).cloned();
            let is_surely_elsewhere = self.is_surely_elsewhere(&member, &leased);
            let queue = self.queues.entry(member.clone()).or_default();
            let is_at_work = queue.running.as_ref().is_some_and(|(_, job)| acts(job.call.phase));
            // What waits was ordered by a server that may count on none of it any more.
            queue.waiting.retain(|job| !(job.why == Why::Ordered && acts(job.call.phase)));
            if is_surely_elsewhere && !is_at_work {
                continue;
            }
            if let Some((call, job)) = &mut queue.running {
                self.outbox.emit(AgentOutput::Kill(*call));
                // Clients wait for it, and whoever ordered it hears no answer: it is the agent's own from here on.
                if job.call.phase == Phase::Release {
                    job.why = Why::HoldEnd;
                }
            }
            let within_ms = self.lease.until.since(self.now).max(1);
            let call =
                Call { from: state, to: Some(lowest), within_ms, ..self.own_call(&member, Phase::Stop) };
            let (received, deadline) = (self.now, self.lease.until);
            let queue = self.queues.entry(member).or_default();
            queue.waiting.push_front(Job { call, why: Why::Lapse, received, deadline, tries: 0 });
        }
        if self.is_connected {
            self.is_connected = false;
            self.is_welcome = false;
            self.outbox.emit(AgentOutput::Disconnect("the lease has ended".to_owned()));
        }
    }

    /// Whether a member is in none of these states: by its last step, with none that was cut off since, and by what it
    /// said last. A person may have moved it meanwhile, or a step that failed.
    fn is_surely_elsewhere(&self, member: &MemberId, leased: &BTreeSet<StateName>) -> bool {
        let is_there = |state: Option<&StateName>| state.is_some_and(|state| leased.contains(state));
        let confirmed = self.state.states.get(member);
        let is_said_there = match self.queues.get(member).and_then(|queue| queue.reported.as_ref()) {
            Some(Report::State { state, .. }) => is_there(state.as_ref()),
            Some(
                Report::Hello(_)
                | Report::Renew { .. }
                | Report::Done(_)
                | Report::HoldEnded { .. }
                | Report::Guarded { .. }
                | Report::Noticed { .. }
                | Report::Goodbye,
            )
            | None => false,
        };
        let mut steps = self.state.open.values().flat_map(|open| open.steps.values());
        // A handler that failed, or died with the agent, may have done all of it.
        let is_cut_off = steps.any(|taken| {
            let is_taken = taken.done.as_ref().is_some_and(|done| done.answer == Answer::Yes);
            taken.member == *member && !is_taken
        });
        confirmed.is_some() && !is_there(confirmed) && !is_said_there && !is_cut_off
    }

    pub(super) fn note_pids(&mut self, member: &MemberId, findings: &Findings) {
        if let Some(pids) = &findings.pids {
            self.pids.insert(member.clone(), pids.clone());
        }
    }

    /// Tells the guard when the lease ends, and whom it has to stop then, when that is not what it was told last.
    pub(super) fn watch(&mut self) {
        let members: Vec<_> = self.leased().map(|assignment| assignment.member.clone()).collect();
        let pids: BTreeMap<_, _> = members
            .into_iter()
            .map(|member| (member.clone(), self.pids.get(&member).cloned().unwrap_or_default()))
            .collect();
        if pids.is_empty() && self.watched.is_none() {
            return;
        }
        // A guard acts at once on a lease that is over, or has not begun: whoever was started since is not named to it.
        // One that takes a lost one's place has to do what that was told to.
        let is_due = self.replace_at.is_some_and(|at| at <= self.now);
        let watched = if self.has_lapsed && !pids.is_empty() {
            self.watched.clone().filter(|_| is_due)
        } else {
            let until = self.lease.until;
            let is_known = |watched: &&Watched| watched.until == until && watched.pids == pids;
            match self.watched.as_ref().filter(is_known) {
                Some(watched) => Some(watched.clone()).filter(|_| is_due),
                None => Some(Watched { at: self.now, until, pids }),
            }
        };
        let Some(watched) = watched else { return };
        if is_due {
            self.replaced_at = Some(self.now);
        }
        self.replace_at = None;
        let Watched { at, until, pids } = watched.clone();
        self.outbox.emit(AgentOutput::Guard { at, until, pids });
        self.watched = Some(watched);
    }

    /// Another one takes its place, at once: the lease may end at any moment, and the stop of a member may hang. One that
    /// cannot be started is tried again after a pause.
    pub(super) fn guard_lost(&mut self) {
        self.note_guarded(BTreeSet::new());
        let is_needed = self.watched.as_ref().is_some_and(|watched| !watched.pids.is_empty());
        if is_needed && !mutant::is(Mutant::GuardNotReplaced) {
            let paused = self.replaced_at.map(|at| at.plus(GUARD_PAUSE_MS));
            self.replace_at = Some(paused.map_or(self.now, |at| at.max(self.now)));
        }
    }

    pub(super) fn note_guarded(&mut self, mut members: BTreeSet<MemberId>) {
        // What is told to one that stands in for another is of a lease that is over.
        if self.has_lapsed {
            members.clear();
        }
        if self.guarded == members {
            return;
        }
        let lost: Vec<_> = self.guarded.difference(&members).cloned().collect();
        let changed: Vec<_> = self.guarded.symmetric_difference(&members).cloned().collect();
        self.guarded = members;
        lost.iter().for_each(|member| self.report_unguarded(member));
        // It is told with a status of now: what was said last may be of before a step.
        for member in changed {
            if self.state.members.contains_key(&member) {
                self.ask_status_now(&member);
            }
        }
    }

    /// A place may be given away because of a guard, so the server is told at once that there is none any more: the handler
    /// that is at work may hang, and no status is asked meanwhile.
    fn report_unguarded(&mut self, member: &MemberId) {
        let states = self.guarded_in(member);
        let queue = self.queues.entry(member.clone()).or_default();
        let Some(Report::State { guarded, .. }) = &mut queue.reported else { return };
        if *guarded != states {
            guarded.clone_from(&states);
            if self.is_welcome {
                self.send(Report::Guarded { member: member.clone(), states });
            }
        }
    }

    /// The states in which a member is surely stopped when the lease ends.
    pub(super) fn guarded_in(&self, member: &MemberId) -> BTreeSet<StateName> {
        let Some(assignment) = self.state.members.get(member) else { return BTreeSet::new() };
        let checks = self.rules.get(&assignment.handler).is_some_and(|rules| rules.checks_tokens);
        // A watchdog resets the host, whatever runs there. A guard stops the processes that it was told of under the lease that
        // stands: what was started after its end is none of them, and what it was told of a member that went down is gone.
        let is_known = self.guard_early_ms > 0 || self.pids.get(member).is_some_and(|pids| !pids.is_empty());
        let is_watched = self.guarded.contains(member) && !self.has_lapsed && is_known;
        let is_guarded = checks || is_watched || assignment.handler.as_str() == HANDLER_NONE;
        if is_guarded { assignment.leased.clone() } else { BTreeSet::new() }
    }
}

/// Whether a handler that is called for this may change where its software is.
fn acts(phase: Phase) -> bool {
    match phase {
        Phase::Prepare | Phase::Commit | Phase::Undo | Phase::Hold | Phase::Check | Phase::Stop => true,
        Phase::Cancel | Phase::Release | Phase::Status | Phase::Notice | Phase::Fence => false,
    }
}
