//! Vacant places: what a host that is forgotten leaves behind of the states that only so many may be in. A goal says that
//! somebody is to be primary, and it would go with its member: then nobody would know that a place is to be filled.

use super::Cluster;
use crate::id::{GroupName, HostName, StateName};
use crate::message::Outcome;
use crate::plan::Plan;
use crate::request::Target;

impl Cluster {
    /// How many places of a state nobody is to take, since the hosts are gone whose they were.
    pub fn vacant(&self, group: &GroupName, state: &StateName) -> usize {
        self.vacant_in(group).iter().filter(|vacant| *vacant == state).count()
    }

    /// The states of a group's vacant places, each as often as there are some.
    pub fn vacant_in(&self, group: &GroupName) -> &[StateName] {
        self.vacant.get(group).map_or(&[], Vec::as_slice)
    }

    /// The places of a host's members are vacant from here on. With the last member of a group they are gone: whoever joins
    /// it then begins anew.
    pub(super) fn vacate(&mut self, host: &HostName) {
        for (id, member) in self.members.iter().filter(|(id, _)| id.host == *host) {
            if self.members_of(&id.group).all(|other| other.host == *host) {
                self.vacant.remove(&id.group);
                continue;
            }
            let limits = self.spec.groups.get(&id.group).map(|group| &group.limits);
            let is_limited = |state: &&StateName| {
                limits.and_then(|limits| limits.get(*state)).is_some_and(|limit| limit.max.is_some())
            };
            if let Some(state) = member.should_be().filter(is_limited) {
                self.vacant.entry(id.group.clone()).or_default().push(state.clone());
            }
        }
    }

    /// Somebody has got one.
    pub(super) fn occupy(&mut self, group: &GroupName, state: &StateName) {
        let Some(states) = self.vacant.get_mut(group) else { return };
        if let Some(place) = states.iter().position(|vacant| vacant == state) {
            states.remove(place);
        }
        if states.is_empty() {
            self.vacant.remove(group);
        }
    }

    /// A transition has moved groups. Whoever asked for a whole group has said who is to be where; a repair, and whoever
    /// named a member, have filled the places that members have got. What else moves says nothing of them. One that is
    /// undone or aborted has changed nothing.
    pub(super) fn occupy_by(&mut self, targets: &[Target], plan: &Plan, outcome: Outcome) {
        match outcome {
            Outcome::Aborted | Outcome::Undone => return,
            Outcome::Committed | Outcome::Degraded => {}
        }
        let spec = self.spec.clone();
        let has = |name: &GroupName, group: &GroupName| {
            spec.leaves(name).is_some_and(|leaves| leaves.contains(&group))
        };
        for (id, before) in &plan.goals_before {
            let (mut is_whole, mut is_meant) = (false, false);
            for target in targets {
                match target {
                    Target::Group(name, _) | Target::Up(name) | Target::Down(name) => {
                        is_whole |= has(name, &id.group);
                    }
                    Target::Repair(name) => is_meant |= has(name, &id.group),
                    Target::Member(member, _) => is_meant |= member == id,
                    Target::Setting(..) | Target::Drain(_) => {}
                }
            }
            if is_whole {
                self.vacant.remove(&id.group);
                continue;
            }
            let before = plan.returns_before.get(id).or(before.as_ref());
            let now = self.members.get(id).and_then(|member| member.should_be()).cloned();
            if let Some(state) = now.filter(|now| is_meant && Some(now) != before) {
                self.occupy(&id.group, &state);
            }
        }
    }
}
