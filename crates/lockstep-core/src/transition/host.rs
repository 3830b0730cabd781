//! Hosts that come and go: whose votes end with them, and what is sent again to those that are back.

use super::{Run, Stage};
use crate::engine::Engine;
use crate::id::{HostName, MemberId, RunId, TransitionId};
use crate::message::{Hello, Order};
use crate::mutant::{self, Mutant};
use crate::record::Cause;
use crate::vote::{Answer, Round, Vote};
use std::collections::BTreeSet;

impl Engine {
    fn undecided(&self) -> Vec<TransitionId> {
        self.runs.iter().filter(|(_, run)| run.is_undecided()).map(|(id, _)| *id).collect()
    }

    /// A new run of an agent has introduced itself. What the old one had answered before the decision no
    /// longer counts: it may have lost what the yes promised.
    pub(crate) fn new_run(&mut self, host: &HostName, new: &RunId) {
        if mutant::is(Mutant::OlderRunCounts) {
            return;
        }
        for id in self.undecided() {
            let Some(run) = self.runs.get(&id) else { continue };
            let poll = match &run.stage {
                Stage::Check(poll) | Stage::Prepare { poll, .. } => poll,
                Stage::Queued | Stage::Status { .. } | Stage::Abort { .. } | Stage::Commit(_) => continue,
            };
            let counts = |member: &MemberId| !run.overridden.contains(member);
            let voted = run.votes.iter().chain(poll.ballot.votes()).filter(|vote| counts(&vote.member));
            let is_stale = |vote: &&Vote| vote.member.host == *host && vote.run != *new;
            let stale = voted.filter(|vote| vote.answer == Answer::Yes).filter(is_stale);
            let asked =
                poll.roles.keys().filter(|member| poll.round == Round::Prepare && member.host == *host);
            let asked = asked.filter(|member| counts(member));
            let member = stale.map(|vote| &vote.member).chain(asked).next().cloned();
            if let Some(member) = member {
                let message = format!("the agent of {member} restarted after it was asked");
                self.abort(id, Cause { code: "vote-no".to_owned(), message, member: Some(member) });
            }
        }
    }

    /// A host has seen more than this server knows. What is not decided in its groups is not going to be.
    pub(crate) fn fall_behind(&mut self, hello: &Hello) {
        let host = &hello.host;
        let of_labels = self.head.spec.groups.iter().filter(|(_, group)| group.selects(&hello.labels));
        let of_members = self.head.members.keys().filter(|member| member.host == *host);
        let groups: BTreeSet<_> =
            of_labels.map(|(name, _)| name).chain(of_members.map(|member| &member.group)).cloned().collect();
        let ahead = self.ahead.entry(host.clone()).or_default();
        ahead.token = ahead.token.max(hello.token);
        ahead.reign = ahead.reign.max(hello.reign);
        ahead.groups.extend(groups);
        let mut undecided = self.undecided();
        undecided
            .retain(|id| self.runs[id].plan.asked().any(|who| self.ahead_in(&who.member.group).is_some()));
        for id in undecided {
            let message = format!("host {host} has seen a later server than this one");
            self.abort(id, Cause { code: "server-behind".to_owned(), message, member: None });
        }
    }

    /// A host's lease has run out: its votes no longer count.
    pub(crate) fn host_lost(&mut self, host: &HostName) {
        if mutant::is(Mutant::LostHostCounts) {
            return;
        }
        for id in self.undecided() {
            let Some(run) = self.runs.get(&id) else { continue };
            if matches!(run.stage, Stage::Queued | Stage::Status { .. }) {
                continue;
            }
            let asked = run.plan.asked().map(|who| &who.member);
            let member =
                asked.filter(|who| !run.overridden.contains(*who)).find(|who| who.host == *host).cloned();
            if let Some(who) = member {
                let message = format!("host {host} was lost before the decision");
                self.abort(id, Cause { code: "vote-missing".to_owned(), message, member: Some(who) });
            }
        }
    }

    /// Gives a host that has come back what it missed: outcomes first, then notices, then what is under way.
    pub(crate) fn catch_up(&mut self, host: &HostName, hello: &Hello) {
        if mutant::is(Mutant::OrdersBeforeOutcomes) {
            self.send_open(host);
        }
        for &id in &hello.open {
            match self.head.transition(&id).cloned() {
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
        let known = self.head.notices_of(host, hello.noticed);
        let (notices, from) = (known.kept.len(), known.after(hello.noticed));
        if hello.noticed < known.dropped {
            self.send_gap(host, known.dropped);
        }
        let from = if mutant::is(Mutant::NoticeSkipped) { from.saturating_add(1).min(notices) } else { from };
        (from..notices).for_each(|place| self.send_notice(host, place));
        self.send_open(host);
    }

    fn send_open(&mut self, host: &HostName) {
        let ids: Vec<_> = self.runs.keys().copied().collect();
        for id in ids {
            let run = self.runs.remove(&id).expect("it was listed");
            self.send_again(id, &run, host);
            self.runs.insert(id, run);
        }
    }

    /// Sends a host again what was ordered and not answered. The agent knows what it has done already.
    fn send_again(&mut self, id: TransitionId, run: &Run, host: &HostName) {
        match &run.stage {
            // Its candidates are waited for no longer than a moment, and asked no second time.
            Stage::Queued | Stage::Status { .. } => {}
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
}
