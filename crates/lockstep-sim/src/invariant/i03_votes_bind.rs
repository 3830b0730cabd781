//! A server decides commit only with the yes of everybody who is asked, in each round, on the plan that it commits,
//! durable where it was given, from the agent run that the server hears now.
//!
//! It is looked at when the decision is taken, before it is durable: what comes between is too late to count.

use super::{Invariant, Verdict};
use lockstep_core::agent::AgentRecord;
use lockstep_core::cluster::Cluster;
use lockstep_core::engine::SessionId;
use lockstep_core::id::{HostName, Index, MemberId, RunId, TransitionId};
use lockstep_core::message::{Decision, Phase, Report, Role};
use lockstep_core::plan::Participant;
use lockstep_core::record::{Body, Liveness};
use lockstep_core::vote::Answer;
use lockstep_core::world::{Happened, ServerId, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct VotesBind {
    /// What is durable at hosts: who has said yes to what.
    promised: BTreeSet<(TransitionId, MemberId, Phase)>,
    /// The agent run that speaks on each connection.
    speaks: BTreeMap<SessionId, RunId>,
    /// The agent runs that each server has heard the greetings of.
    greeted: BTreeSet<(ServerId, HostName, RunId)>,
    /// Those that live: a new one has taken the place of those before it. One that comes back after that lives beside it.
    live: BTreeMap<(ServerId, HostName), BTreeSet<RunId>>,
    /// The yes that has reached a server, by its plan and the run that said it.
    said: BTreeSet<(ServerId, TransitionId, MemberId, Phase, Option<String>, RunId)>,
    /// Decisions that are durable: who reads them has not taken them.
    durable: BTreeSet<TransitionId>,
    decided: BTreeSet<(ServerId, TransitionId)>,
    /// How far each server's proposals have been looked at.
    seen: BTreeMap<ServerId, Index>,
}

impl VotesBind {
    fn check(&self, server: ServerId, id: TransitionId, cluster: &Cluster) -> Verdict {
        let transition = &cluster.transitions[&id];
        let Some(plan) = &transition.plan else { return Err(format!("{id} is decided without a plan")) };
        // Whom an operator has overridden is asked for his word, and nobody waits for it. Never one that moves.
        let counts = |asked: &&Participant| {
            asked.role == Role::Actor || !transition.request.overrides.contains(&asked.member)
        };
        for asked in plan.asked().filter(counts) {
            let member = &asked.member;
            let phases: &[Phase] = match asked.role {
                // It is where it should be already, and only its goal changes.
                Role::Actor if plan.steps_of(member).next().is_none() => &[Phase::Check],
                Role::Actor => &[Phase::Check, Phase::Prepare],
                Role::Holder => &[Phase::Check, Phase::Hold],
                Role::Voter => &[Phase::Check],
                Role::Observer => &[],
            };
            let host = cluster.hosts.get(&member.host);
            if host.is_none_or(|host| host.liveness != Liveness::Alive) {
                return Err(format!("{id} is decided while nobody hears the host of {member}"));
            }
            let Some(live) = self.live.get(&(server, member.host.clone())) else {
                return Err(format!("{id} is decided without a word of {member}"));
            };
            for &phase in phases {
                if !self.promised.contains(&(id, member.clone(), phase)) {
                    return Err(format!("{id} is decided, and no yes to {phase} of {member} is durable"));
                }
                let is_said = |run: &RunId| {
                    let plan = Some(plan.hash.clone());
                    self.said.contains(&(server, id, member.clone(), phase, plan, run.clone()))
                };
                if !live.iter().any(is_said) {
                    return Err(format!("{id} is decided without the yes to {phase} of {member} in a run of {live:?}"));
                }
            }
        }
        Ok(())
    }
}

impl Invariant for VotesBind {
    const NAME: &'static str = "3 votes-bind";

    fn happened(&mut self, _: &World, what: &Happened) -> Verdict {
        if let Happened::AgentRecorded { record: AgentRecord::Voted { transition, member, phase }, .. } = what {
            self.promised.insert((*transition, member.clone(), *phase));
        }
        if let Happened::Recorded { record, .. } = what
            && let Body::Decision { transition, .. } = &record.body
        {
            self.durable.insert(*transition);
        }
        if let Happened::Reported { server, session, report: Report::Hello(hello), .. } = what {
            self.speaks.insert(*session, hello.run.clone());
            let live = self.live.entry((*server, hello.host.clone())).or_default();
            if self.greeted.insert((*server, hello.host.clone(), hello.run.clone())) {
                live.clear();
            }
            live.insert(hello.run.clone());
        }
        if let Happened::Reported { server, session, report: Report::Done(done), .. } = what
            && let (Some(id), Answer::Yes) = (done.transition, done.answer)
            && let Some(run) = self.speaks.get(session)
        {
            let run = run.clone();
            self.said.insert((*server, id, done.member.clone(), done.phase, done.plan.clone(), run));
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Verdict {
        for (server, engine) in world.servers() {
            let cluster = engine.proposed();
            if self.seen.insert(server, cluster.revision) == Some(cluster.revision) {
                continue;
            }
            for (id, transition) in &cluster.transitions {
                let is_new = transition.decision == Some(Decision::Commit) && self.decided.insert((server, *id));
                // What it has read of another's time was looked at then.
                if is_new && !self.durable.contains(id) {
                    self.check(server, *id, cluster)?;
                }
            }
        }
        Ok(())
    }
}
