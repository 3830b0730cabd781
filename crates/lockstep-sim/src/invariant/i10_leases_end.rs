//! No member that runs by its host's lease is in a limited state after the end of the last lease that its host was given,
//! where a guard makes sure of it; nothing leads there after that end; and no renewal is answered that came to a server
//! when another had taken over already.

use super::{Invariant, Verdict};
use lockstep_core::agent::AgentEngine;
use lockstep_core::cluster::Cluster;
use lockstep_core::id::{MemberId, StateName};
use lockstep_core::message::{Assignment, Order, Phase, Report};
use lockstep_core::spec::Recover;
use lockstep_core::time::Time;
use lockstep_core::world::{Happened, Name, ServerId, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct LeasesEnd {
    /// What each agent was last told of its members.
    assigned: BTreeMap<Name, Vec<Assignment>>,
    /// The lease that each agent was told to go by, in milliseconds.
    lengths: BTreeMap<Name, u64>,
    /// When the lease of each host ends by its own clock, and what that has read since.
    leases: BTreeMap<Name, (Time, Time)>,
    /// Renewals that have come to a server that was deposed, by when they were sent.
    late: BTreeSet<(ServerId, Name, Time)>,
    excused: BTreeSet<Name>,
}

/// The limited states of a member, if a guard makes sure that it is in none of them when its lease ends.
fn guarded(cluster: &Cluster, id: &MemberId) -> BTreeSet<StateName> {
    let Some(group) = cluster.spec.groups.get(&id.group) else { return BTreeSet::new() };
    let limited: BTreeSet<_> = cluster.limited(&id.group, group).cloned().collect();
    let is_guarded = group.recover == Recover::Lease && limited.is_subset(&cluster.members[id].guarded);
    if is_guarded { limited } else { BTreeSet::new() }
}

impl Invariant for LeasesEnd {
    const NAME: &'static str = "10 leases-end";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn release(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        // What reaches an agent that has given the connection up tells it nothing.
        if let Happened::Ordered { agent, .. } = what
            && !world.agent(agent).is_some_and(AgentEngine::is_connected)
        {
            return Ok(());
        }
        match what {
            Happened::Reported { agent, server, report: Report::Renew { sent, .. }, .. } => {
                if world.active() != Some(*server) {
                    self.late.insert((*server, agent.clone(), *sent));
                }
            }
            Happened::Ordered { agent, order: Order::Welcome { lease_ms, members, .. }, .. } => {
                self.assigned.insert(agent.clone(), members.clone());
                self.lengths.insert(agent.clone(), *lease_ms);
            }
            Happened::Ordered { agent, order: Order::Assign { members }, .. } => {
                self.assigned.insert(agent.clone(), members.clone());
            }
            Happened::Ordered { agent, server, order: Order::Renewed { sent, lease_ms }, .. } => {
                if self.late.contains(&(*server, agent.clone(), *sent)) {
                    return Err(format!("{agent} gets a renewal of a server that was deposed before it asked"));
                }
                self.lengths.extend(lease_ms.map(|ms| (agent.clone(), ms)));
                let length = self.lengths.get(agent).copied().unwrap_or_default();
                // One that comes when its lease is over says nothing of now.
                if sent.plus(length - length / 10) > world.clock(agent) {
                    self.leases.insert(agent.clone(), (sent.plus(length), Time(0)));
                }
            }
            Happened::Started { agent, call, .. } => {
                let leads = matches!(call.phase, Phase::Commit | Phase::Undo);
                let assigned = self.assigned.get(agent).into_iter().flatten();
                let mut own = assigned.filter(|known| known.member == call.member);
                let is_leased = own.any(|known| call.to.as_ref().is_some_and(|to| known.leased.contains(to)));
                let is_over = self.leases.get(agent).is_some_and(|(until, _)| *until <= world.clock(agent));
                if leads && is_leased && is_over && !self.excused.contains(agent) {
                    let (phase, member) = (call.phase, &call.member);
                    return Err(format!("{agent} starts {phase} of {member} when its lease has ended"));
                }
            }
            Happened::Ordered { .. }
            | Happened::Recorded { .. }
            | Happened::AgentRecorded { .. }
            | Happened::Asked { .. }
            | Happened::Answered { .. }
            | Happened::Reported { .. }
            | Happened::Joined(_)
            | Happened::TurnedAway { .. }
            | Happened::Ended { .. }
            | Happened::ServerWarned(_)
            | Happened::Store(_)
            | Happened::Guarded { .. }
            | Happened::AgentWarned { .. } => {}
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Verdict {
        let mut is_over = false;
        self.leases.retain(|name, (until, last)| {
            let now = if world.agents().any(|agent| agent == name) { world.clock(name) } else { Time(0) };
            // A host that has started anew counts from the beginning again, and its lease is void.
            let goes_on = now >= *last;
            *last = now;
            is_over |= goes_on && now >= *until;
            goes_on
        });
        let Some(cluster) = world.cluster().filter(|_| is_over) else { return Ok(()) };
        for (id, known) in &cluster.members {
            let host = id.host.as_str();
            let is_over = self.leases.get(host).is_some_and(|(until, now)| now >= until);
            if !is_over || known.guarded.is_empty() || self.excused.contains(host) {
                continue;
            }
            if let Some(state) = world.software().get(id).filter(|state| guarded(cluster, id).contains(*state)) {
                return Err(format!("{id} is {state}, and the lease of its host has ended"));
            }
        }
        Ok(())
    }
}
