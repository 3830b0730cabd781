//! Repair is damped: nothing is moved onto a host that comes and goes until it has stood for a while, longer each time; a
//! group is not repaired over and over while nothing happens; and nobody who is where it should be is taken down for it.

use super::{Invariant, Verdict};
use lockstep_core::id::{GroupName, HostName, TransitionId};
use lockstep_core::plan::Plan;
use lockstep_core::record::{Body, HostChange, Liveness};
use lockstep_core::request::Target;
use lockstep_core::time::Time;
use lockstep_core::world::{Happened, World};
use std::collections::{BTreeMap, BTreeSet};

/// Losses of a host so close to each other, in milliseconds, make it one that comes and goes.
const FLAP_MS: u64 = 600_000;
/// What a server's clock, and a disk that is slow or full for a while, make of a pause, in milliseconds.
const SLACK_MS: u64 = 6000;
/// The longest pause, in milliseconds.
const PAUSE_MS_MAX: u64 = 300_000;
/// How often a group is repaired in vain while nothing else happens: pauses double from one second to five minutes, and
/// a run is shorter than ten minutes.
const IN_VAIN_MAX: u32 = 12;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct RepairsAreBounded {
    /// How often each host was lost in this reign, and when last.
    losses: BTreeMap<HostName, (u32, Time)>,
    /// The repairs that servers have asked for by themselves.
    repairs: BTreeSet<TransitionId>,
    /// How often each group was to be repaired since something else happened.
    in_vain: BTreeMap<GroupName, u32>,
}

impl RepairsAreBounded {
    /// A repair begins. When it was asked for says nothing: it may have been planned anew since, with other members.
    fn check(&self, world: &World, id: TransitionId, plan: &Plan) -> Verdict {
        let Some(server) = world.server() else { return Ok(()) };
        let cluster = server.acknowledged();
        let mut seen = BTreeSet::new();
        for step in plan.steps.iter().filter(|step| seen.insert(&step.member)) {
            let member = &step.member;
            let Some(group) = cluster.spec.groups.get(&member.group) else { continue };
            let rises = group.lifecycle.rank(&step.to) > group.lifecycle.rank(&step.from);
            let (count, last) = self.losses.get(&member.host).copied().unwrap_or_default();
            let lost_ms = world.now().since(last);
            let stands_ms = cluster.lease_ms().saturating_mul((1 << count.saturating_sub(1).min(16)) - 1);
            if rises && lost_ms + SLACK_MS < stands_ms.min(PAUSE_MS_MAX) {
                let host = &member.host;
                return Err(format!("{id} moves {member}, and {host} was lost {count} times, {lost_ms} ms ago"));
            }
            let is_in_place = plan.goals_before.get(member).and_then(Option::as_ref) == Some(&step.from);
            let may_fall = cluster.relations.required_by(&member.group).next().is_some();
            if step.moves() && !rises && is_in_place && !may_fall {
                return Err(format!("{id} repairs, and takes {member} down from where it should be"));
            }
        }
        Ok(())
    }
}

impl Invariant for RepairsAreBounded {
    const NAME: &'static str = "20 repairs-are-bounded";

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        let Happened::Recorded { index, record } = what else { return Ok(()) };
        match &record.body {
            Body::Request { request } if request.is_automatic => {
                self.repairs.insert(TransitionId(index.0));
                if let Some(Target::Repair(group)) = request.targets.first() {
                    let count = self.in_vain.entry(group.clone()).or_default();
                    *count += 1;
                    if *count > IN_VAIN_MAX {
                        return Err(format!("{group} is repaired {count} times while nothing else happens"));
                    }
                }
            }
            Body::Begin { transition, plan } => {
                if self.repairs.contains(transition) {
                    self.check(world, *transition, plan)?;
                } else {
                    self.in_vain.clear();
                }
            }
            Body::Outcome { transition, .. } => _ = self.repairs.remove(transition),
            Body::Host { host, change } => {
                self.in_vain.clear();
                // One that comes under the name of a forgotten one is another.
                if *change == HostChange::Forgotten {
                    self.losses.remove(host);
                }
                if let HostChange::Liveness { liveness: Liveness::Lost } = change {
                    let (count, last) = self.losses.get(host).copied().unwrap_or_default();
                    let is_recent = count > 0 && world.now().since(last) < FLAP_MS;
                    let count = if is_recent { count + 1 } else { 1 };
                    self.losses.insert(host.clone(), (count, world.now()));
                }
            }
            Body::Reign { .. } => {
                self.losses.clear();
                self.in_vain.clear();
            }
            Body::Spec { .. } | Body::Evidence { .. } | Body::Away { .. } | Body::Report { .. } => {
                self.in_vain.clear();
            }
            Body::Request { .. }
            | Body::Decision { .. }
            | Body::Step { .. }
            | Body::Turn { .. }
            | Body::Lease { .. }
            | Body::Freeze { .. }
            | Body::Thaw { .. }
            | Body::Acknowledged { .. } => {}
        }
        Ok(())
    }
}
