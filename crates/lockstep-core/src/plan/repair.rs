//! Repair: what brings a group back to where its goals want it, with the members that can act. Nobody asked for it by
//! name, so it does no more than that: it gives away the places of those that are known to be gone, brings back those
//! that are below their goals, and takes down with `cascade` those whose requirement has failed.

use super::check::stuck;
use super::displace::refuge;
use super::{Planner, rule};
use crate::cluster::group_serves;
use crate::id::{GroupName, MemberId, StateName};
use crate::record::Liveness;
use crate::relation::Relation;
use crate::request::{Code, Rejection};
use crate::spec::Group;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

impl<'a> Planner<'a> {
    pub(super) fn resolve_repair(&mut self, name: &GroupName) -> Result<(), Rejection> {
        let group = self.group(name)?;
        let (held_down, down) = self.unmet(name);
        if !down.is_empty() {
            // Who serves without what it requires goes first; the rest is repaired once that is so.
            for id in down {
                let lowest = group.lifecycle.lowest();
                let goal = self.cluster.members[&id].goal.clone();
                self.returns.extend(goal.filter(|goal| goal != lowest).map(|goal| (id.clone(), goal)));
                self.whole.insert(name.clone());
                self.want(&id, lowest)?;
            }
            return Ok(());
        }
        let can_rise = |id: &MemberId| {
            let member = &self.cluster.members[id];
            let stays_down = member.leaving || self.is_drained(&id.host) || held_down.contains(id);
            // One whose connection is closed is back in a moment, or lost.
            let is_alive = self.cluster.hosts[&id.host].liveness == Liveness::Alive;
            is_alive && self.cluster.can_act(id) && member.transition.is_none() && !stays_down
        };
        let free: BTreeSet<MemberId> =
            self.cluster.members_of(name).filter(|id| can_rise(id)).cloned().collect();
        for state in group.lifecycle.states.iter().skip(1).rev() {
            let count = self.cluster.members_of(name).count();
            match group.max(state, count) {
                Some(max) => self.fill(name, group, state, max, &free)?,
                None => {
                    let below =
                        free.iter().filter(|id| self.is_steady(id) && self.is_below(group, id, state));
                    below.cloned().collect::<Vec<_>>().iter().try_for_each(|id| self.want(id, state))?;
                }
            }
        }
        match self.wanted.keys().any(|id| id.group == *name) || !held_down.is_empty() {
            true => Ok(()),
            false => self.check_awaited(name, group),
        }
    }

    /// Whom a repair leaves where it is, until another one, may be moved by another target of the same request: then that
    /// is where it goes, and it is asked as any other that moves.
    pub(super) fn forget_overruled(&mut self) {
        let (wanted, returns) = (&self.wanted, &mut self.returns);
        self.goals_only.retain(|id, _| {
            let is_overruled = wanted.contains_key(id);
            if is_overruled {
                returns.remove(id);
            }
            !is_overruled
        });
    }

    /// Nobody is to be moved. A group that does not serve all the same, and should by its goals, waits for somebody.
    fn check_awaited(&self, name: &GroupName, group: &Group) -> Result<(), Rejection> {
        let count = self.cluster.members_of(name).count();
        for state in &group.lifecycle.serving {
            let should_be = self.cluster.members_of(name).filter(|id| self.should_be(id) == Some(state));
            let (there, away): (Vec<_>, Vec<_>) = should_be.partition(|id| self.is_there(id, state));
            let min = group.min(state, count);
            let Some(id) = away.iter().find(|id| !self.cluster.can_act(id)) else { continue };
            if there.len() < min && there.len() + away.len() >= min {
                let message = format!("{id} should be {state}, and");
                let help = "bring it back, or see that another member takes its place";
                return Err(stuck(self.cluster, id, &message, help));
            }
        }
        Ok(())
    }

    /// Where a member should be: its goal, or what it goes back to by itself.
    pub(super) fn should_be(&self, id: &MemberId) -> Option<&'a StateName> {
        self.cluster.members[id].should_be()
    }

    /// Whether a member should be in a state, is not wanted anywhere yet, and is in a lower one.
    fn is_below(&self, group: &Group, id: &MemberId, state: &StateName) -> bool {
        let actual = self.cluster.members[id].actual.as_ref();
        let is_lower =
            actual.is_some_and(|actual| group.lifecycle.rank(actual) < group.lifecycle.rank(state));
        is_lower && self.should_be(id) == Some(state) && !self.wanted.contains_key(id)
    }

    /// Gives the places of a limited state to those that can take them, as many as goals want there and limits ask for.
    fn fill(
        &mut self,
        name: &GroupName,
        group: &Group,
        state: &StateName,
        max: usize,
        free: &BTreeSet<MemberId>,
    ) -> Result<(), Rejection> {
        let count = self.cluster.members_of(name).count();
        let owners: Vec<&MemberId> =
            self.cluster.members_of(name).filter(|id| self.should_be(id) == Some(state)).collect();
        let present = owners.iter().filter(|id| self.is_there(id, state)).count();
        let is_able = |id: &MemberId| free.contains(id) && self.is_steady(id) && !self.is_there(id, state);
        let able = owners.iter().filter(|id| is_able(id)).count();
        let vacant = self.cluster.vacant(name, state);
        let needed = (present + able).max(group.min(state, count)).min(owners.len() + vacant).min(max);
        let missing = needed.saturating_sub(present);
        let chosen = match missing {
            0 => Vec::new(),
            _ => self.nearest(name, group, state, missing, &owners, free)?,
        };
        let replaced = chosen.iter().filter(|id| !owners.contains(id)).count();
        let ousted = owners.iter().filter(|id| self.is_away(id, state) && !chosen.contains(id));
        let room = vacant.min(max.saturating_sub(owners.len()));
        // More may be meant to be there than may be: those who are there, or come, are enough then.
        let surplus = owners.len().saturating_sub(max);
        let ousted: Vec<MemberId> =
            ousted.take(replaced.saturating_sub(room) + surplus).map(|id| (*id).clone()).collect();
        chosen.iter().try_for_each(|id| self.want(id, state))?;
        self.make_way(name, group, state, ousted, free)
    }

    /// Whether a member is in a state, and may stay: those of a host that left run on there.
    fn is_there(&self, id: &MemberId, state: &StateName) -> bool {
        let has_left = self.cluster.hosts[&id.host].has_left();
        self.cluster.members[id].actual.as_ref() == Some(state) && (self.cluster.can_act(id) || has_left)
    }

    /// Whether a member is known not to be in a state. One in doubt is not: a new goal would take the doubt away without
    /// evidence.
    pub(super) fn is_away(&self, id: &MemberId, state: &StateName) -> bool {
        !self.cluster.may_be_in(id, state) && !self.cluster.members[id].is_in_doubt()
    }

    /// Where a member should be once all is done that is wanted so far.
    pub(super) fn should_end(&self, id: &MemberId) -> Option<&StateName> {
        let planned =
            self.returns.get(id).or_else(|| self.wanted.get(id)).or_else(|| self.goals_only.get(id));
        planned.or_else(|| self.should_be(id))
    }

    /// Whether a member's host does not come and go.
    fn is_steady(&self, id: &MemberId) -> bool {
        !self.unsteady.contains(&id.host)
    }

    fn rank(&self, group: &Group, id: &MemberId) -> Option<usize> {
        self.cluster.members[id].actual.as_ref().and_then(|actual| group.lifecycle.rank(actual))
    }

    /// Who takes the missing places of a limited state. Who is nearest comes first, then whose place it is, then the best
    /// score, then the name. Nobody is taken down from where it serves for it.
    fn nearest(
        &mut self,
        name: &GroupName,
        group: &Group,
        state: &StateName,
        missing: usize,
        owners: &[&MemberId],
        free: &BTreeSet<MemberId>,
    ) -> Result<Vec<MemberId>, Rejection> {
        let place = |id: &MemberId| (self.rank(group, id), owners.contains(&id));
        let is_candidate = |id: &&MemberId| {
            let is_lower = self.rank(group, id) < group.lifecycle.rank(state);
            is_lower && self.is_steady(id) && !self.wanted.contains_key(*id)
        };
        let mut candidates: Vec<&MemberId> = free.iter().filter(is_candidate).collect();
        if candidates.is_empty() {
            let message = format!("nobody can be {state} in {name} in place of those that are gone");
            let mut help = "bring a host of the group back, or add one".to_owned();
            let mut hosts = self.cluster.members_of(name).map(|id| &id.host);
            if let Some(host) = hosts.find(|host| self.is_drained(host)) {
                help.push_str(&format!("; or lockstep undrain {host}"));
            }
            return Err(Rejection::new(Code::NoCandidate, message, help));
        }
        candidates.sort_by_key(|id| (Reverse(place(id)), Reverse(self.score(id)), (*id).clone()));
        let mut alike = Vec::new();
        if let Some(next) =
            candidates.get(missing).filter(|next| place(next) == place(candidates[missing - 1]))
        {
            alike.extend(candidates.iter().filter(|id| place(id) == place(next)).map(|id| (*id).clone()));
        }
        let chosen = candidates.into_iter().take(missing).cloned().collect();
        self.candidates.extend(alike);
        Ok(chosen)
    }

    /// Those whose places have been given to others get the next state below that has room.
    pub(super) fn make_way(
        &mut self,
        name: &GroupName,
        group: &Group,
        state: &StateName,
        ousted: Vec<MemberId>,
        free: &BTreeSet<MemberId>,
    ) -> Result<(), Rejection> {
        let count = self.cluster.members_of(name).count();
        let mut counts: BTreeMap<&StateName, usize> =
            group.lifecycle.states.iter().map(|state| (state, 0)).collect();
        for id in self.cluster.members_of(name).filter(|id| !ousted.contains(id)) {
            self.should_end(id)
                .and_then(|ends| counts.get_mut(ends))
                .into_iter()
                .for_each(|count| *count += 1);
        }
        for id in ousted {
            let stays_down = self.cluster.members[&id].leaving || self.is_drained(&id.host);
            let refuge = refuge(group, state, count, &counts).filter(|_| !stays_down);
            let refuge = refuge.unwrap_or_else(|| group.lifecycle.lowest().clone());
            *counts.get_mut(&refuge).expect("it is a state of the lifecycle") += 1;
            let Some(actual) = self.cluster.members[&id].actual.as_ref().filter(|_| free.contains(&id))
            else {
                // It is not asked. It is where evidence says, or it itself, and comes back to there.
                self.goals_only.insert(id, refuge);
                continue;
            };
            let is_taken = group.min(&refuge, count) == 0 && self.is_entered(name, state);
            let can_wait = is_taken || !self.is_steady(&id);
            if self.rank(group, &id) < group.lifecycle.rank(&refuge) && can_wait {
                // It only comes back. That may take long, and those who follow whoever takes its place are told at the
                // outcome: so another repair sees to it.
                self.goals_only.insert(id.clone(), actual.clone());
                self.returns.insert(id, refuge);
            } else {
                self.want(&id, &refuge)?;
            }
        }
        Ok(())
    }

    /// Whether what a relation needs at a place would serve if members of hosts that have left run on there, and those that
    /// cannot tell where they are do: before its first status nothing has failed that is only not known yet.
    fn may_be_met(&self, relation: &Relation, pair: &rule::Pair<'_>) -> bool {
        let may_be_there = |id: &MemberId, state: &StateName| {
            let is_untold =
                self.cluster.members[id].actual.is_none() && self.cluster.hosts[&id.host].is_reachable();
            self.is_there(id, state) || is_untold
        };
        let ends = relation.to.iter().zip(&pair.to);
        let serving = ends.filter(|(to, members)| {
            group_serves(&self.cluster.spec.groups[*to], members, pair.place.is_some(), may_be_there)
        });
        serving.count() >= relation.need.as_min(relation.to.count())
    }

    /// The members of a group that may not come up because what they require does not serve, and those that serve all
    /// the same and are taken down with `cascade`.
    fn unmet(&self, name: &GroupName) -> (BTreeSet<MemberId>, BTreeSet<MemberId>) {
        let (mut held_down, mut down) = (BTreeSet::new(), BTreeSet::new());
        let serves = |id: &&MemberId| {
            let actual = self.cluster.members[*id].actual.as_ref();
            actual.is_some_and(|state| self.cluster.spec.groups[name].lifecycle.serves(state))
        };
        for relation in self.cluster.relations.required_by(name) {
            for pair in rule::pairs(self.cluster, relation) {
                if self.is_pair_met(relation, &pair, false) {
                    continue;
                }
                held_down.extend(pair.from.iter().map(|id| (*id).clone()));
                if relation.cascade && !self.may_be_met(relation, &pair) {
                    let here = pair.from.iter().filter(|id| serves(id) && self.cluster.can_act(id));
                    down.extend(here.map(|id| (*id).clone()));
                }
            }
        }
        (held_down, down)
    }
}
