//! Who moves without having been named: a role goes over from a host that is drained, a state that is full makes
//! room, and `cascade` pulls along. Whoever was named stays where the request wants it.

use super::check::check_pair;
use super::{Planner, rule};
use crate::id::{GroupName, MemberId, StateName};
use crate::mutant::{self, Mutant};
use crate::relation::Relation;
use crate::request::{Code, Rejection};
use crate::spec::{Group, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Planner<'_> {
    /// Of a host that is drained, roles are moved first: where a group would stop serving, the best of the others
    /// takes the place.
    pub(super) fn move_roles(&mut self) -> Result<(), Rejection> {
        if self.drains.is_empty() {
            return Ok(());
        }
        let leaving: BTreeSet<GroupName> = self
            .wanted
            .keys()
            .filter(|id| self.drains.contains(&id.host))
            .map(|id| id.group.clone())
            .collect();
        for name in leaving {
            if self.whole.contains(&name) || !self.serves(&name, false) || self.serves(&name, true) {
                continue;
            }
            let group = self.group(&name)?;
            let count = self.cluster.members_of(&name).count();
            for state in group.lifecycle.states.iter().rev().filter(|state| group.lifecycle.serves(state)) {
                let missing = group.min(state, count).saturating_sub(self.surely(&name, state, true));
                for _ in 0..missing {
                    let Some(best) = self.best_for(&name, state) else {
                        let message =
                            format!("draining would leave {name} without {state}, and nobody can take over");
                        let help = format!(
                            "add a member of {name} elsewhere, or let it stop: lockstep run \"drain HOST\" {name}=down"
                        );
                        return Err(Rejection::new(Code::NoCandidate, message, help));
                    };
                    self.want(&best, state)?;
                }
            }
        }
        Ok(())
    }

    /// Who takes a place in a serving state over: the best score, then the name, among those that are not missed where
    /// they are.
    fn best_for(&mut self, name: &GroupName, state: &StateName) -> Option<MemberId> {
        let group = &self.cluster.spec.groups[name];
        let count = self.cluster.members_of(name).count();
        let is_missed = |actual: &StateName| {
            group.lifecycle.serves(actual) && self.surely(name, actual, true) <= group.min(actual, count)
        };
        let missed: BTreeSet<&StateName> = group.lifecycle.states.iter().filter(|at| is_missed(at)).collect();
        let can_take = self
            .cluster
            .members_of(name)
            .filter(|id| !self.wanted.contains_key(id) && self.cluster.can_act(id))
            .filter(|id| !self.cluster.members[*id].leaving && !self.is_drained(&id.host))
            .filter(|id| {
                let actual = self.cluster.members[*id].actual.as_ref();
                actual.is_some_and(|actual| actual != state && !missed.contains(actual))
            });
        let can_take: BTreeSet<MemberId> = can_take.cloned().collect();
        let best = can_take.iter().min_by_key(|id| (std::cmp::Reverse(self.score(id)), *id)).cloned();
        if can_take.len() > 1 {
            self.candidates.extend(can_take);
        }
        best
    }

    /// Pulls along, where a relation says `cascade`, whoever could not stay as it is. Tells whether anybody was.
    pub(super) fn cascade(&mut self) -> Result<bool, Rejection> {
        let mut has_pulled = false;
        let mut moved = self.moved();
        loop {
            // Of the others nothing has changed since they were looked at.
            let relations = self.relations_beside(&moved);
            let mut down: Vec<MemberId> = Vec::new();
            for relation in
                relations.iter().filter(|relation| relation.cascade && self.exists(relation, true))
            {
                down.extend(self.pulled_along(relation));
            }
            down.retain(|id| !self.wanted.contains_key(id) && !self.is_left_out(id));
            if down.is_empty() {
                return Ok(has_pulled);
            }
            has_pulled = true;
            moved = down.iter().map(|id| id.group.clone()).collect();
            for id in down {
                self.whole.insert(id.group.clone());
                let lowest = self.group(&id.group)?.lifecycle.lowest();
                self.wanted.insert(id, lowest.clone());
            }
        }
    }

    /// The members that a relation with `cascade` takes down.
    fn pulled_along(&self, relation: &Arc<Relation>) -> Vec<MemberId> {
        let mut down: Vec<&MemberId> = Vec::new();
        for pair in rule::pairs(self.cluster, relation) {
            let to = &pair.to[0];
            match relation.kind {
                Kind::Requires => {
                    let is_new = !self.exists(relation, false);
                    let now =
                        (self.pair_serves(relation, &pair, false), self.is_pair_met(relation, &pair, false));
                    let at_end =
                        (self.pair_serves(relation, &pair, true), self.is_pair_met(relation, &pair, true));
                    // Who would not be refused without it is not pulled along either; nor is who begins to serve.
                    if now.0 && check_pair(relation, pair.place, is_new, now, at_end).is_err() {
                        down.extend(&pair.from);
                    }
                }
                // Two groups that exclude each other and are both to serve would take each other down for ever.
                Kind::Excludes if self.repairs && !mutant::is(Mutant::RepairDisplaces) => {}
                Kind::Excludes => {
                    let may_serve =
                        |members: &[&MemberId]| members.iter().any(|id| self.may_serve_at_end(id));
                    let enters = |members: &[&MemberId]| members.iter().any(|id| self.enters_serving(id));
                    if !may_serve(&pair.from) || !may_serve(to) {
                        continue;
                    }
                    // Whoever comes up was asked for; the other one gives way.
                    match (enters(&pair.from), enters(to)) {
                        (true, false) => down.extend(to),
                        (false, true) => down.extend(&pair.from),
                        (true, true) | (false, false) => {}
                    }
                }
                Kind::After | Kind::Watches => {}
            }
        }
        down.into_iter().cloned().collect()
    }

    /// Whether a member may serve at the end.
    fn may_serve_at_end(&self, id: &MemberId) -> bool {
        let lifecycle = &self.cluster.spec.groups[&id.group].lifecycle;
        match self.wanted.get(id) {
            Some(wanted) => lifecycle.serves(wanted),
            None => lifecycle.serving.iter().any(|state| self.cluster.may_be_in(id, state)),
        }
    }

    /// Whether a member that does not serve is asked to.
    fn enters_serving(&self, id: &MemberId) -> bool {
        let lifecycle = &self.cluster.spec.groups[&id.group].lifecycle;
        let actual = self.cluster.members[id].actual.as_ref();
        let serves_now = actual.is_some_and(|state| lifecycle.serves(state));
        !serves_now && self.wanted.get(id).is_some_and(|state| lifecycle.serves(state))
    }

    /// Makes room: a member that was not named and is in a full state takes the nearest state with room, ties
    /// going to the higher rank. For repair nobody does who should be where it is.
    pub(super) fn displace(&mut self) -> Result<(), Rejection> {
        let displaces = mutant::is(Mutant::RepairDisplaces);
        let groups: BTreeSet<_> = self.wanted.keys().map(|member| member.group.clone()).collect();
        for name in groups {
            let group = self.group(&name)?;
            let states = &group.lifecycle.states;
            let count = self.cluster.members_of(&name).count();
            let mut counts: BTreeMap<&StateName, usize> =
                states.iter().map(|state| (state, self.count_at_end(&name, state))).collect();
            // From the highest state down: who is displaced from one may fill up the next.
            for state in states.iter().rev() {
                let Some(max) = group.max(state, count) else { continue };
                // What was adopted beyond a limit is only shown: room is made for those who come, and for nobody else.
                if !self.is_entered(&name, state) {
                    continue;
                }
                let mut free: Vec<_> = self
                    .cluster
                    .members_of(&name)
                    .filter(|id| !self.wanted.contains_key(id))
                    .filter(|id| self.cluster.members[id].actual.as_ref() == Some(state))
                    .filter(|id| self.cluster.can_act(id))
                    .filter(|id| !self.repairs || self.should_be(id) != Some(state) || displaces)
                    .cloned()
                    .collect();
                free.sort_by_key(|id| (std::cmp::Reverse(self.score(id)), id.clone()));
                while counts[state] > max
                    && let Some(member) = free.pop()
                {
                    let lowest = group.lifecycle.lowest();
                    let is_leaving = self.cluster.members[&member].leaving || self.is_drained(&member.host);
                    let refuge =
                        if is_leaving { Some(lowest.clone()) } else { refuge(group, state, count, &counts) };
                    let refuge = refuge.ok_or_else(|| {
                        let message =
                            format!("{member} would have to leave {state}, and no other state has room");
                        let help = format!("raise a max in [groups.{name}.limits]");
                        Rejection::new(Code::LimitBroken, message, help)
                    })?;
                    for (other, counted) in &mut counts {
                        *counted -= usize::from(self.cluster.may_be_in(&member, other));
                        *counted += usize::from(**other == refuge);
                    }
                    self.wanted.insert(member, refuge);
                }
            }
            self.give_places_up(&name, group)?;
        }
        Ok(())
    }

    /// Whoever is asked for by name has the place from then on: one that should be there too, and is not, gives its goal
    /// up as one that is displaced gives up where it is. Else two would be meant to be where only one may, and whoever
    /// follows what is said of the other would move the place back.
    fn give_places_up(&mut self, name: &GroupName, group: &Group) -> Result<(), Rejection> {
        let count = self.cluster.members_of(name).count();
        for state in group.lifecycle.states.iter().rev() {
            let Some(max) = group.max(state, count) else { continue };
            let is_named = |id: &MemberId| self.wanted.get(id) == Some(state);
            if !self.cluster.members_of(name).any(is_named) {
                continue;
            }
            let owners = || self.cluster.members_of(name).filter(|id| self.should_end(id) == Some(state));
            let surplus = owners().count().saturating_sub(max);
            let away = owners().filter(|id| !self.wanted.contains_key(*id) && self.is_away(id, state));
            let mut away: Vec<MemberId> = away.cloned().collect();
            away.sort_by_key(|id| (self.score(id), std::cmp::Reverse(id.clone())));
            away.truncate(surplus);
            // It is not asked for anything: what has taken it away may not be mended yet.
            self.make_way(name, group, state, away, &BTreeSet::new())?;
        }
        Ok(())
    }
}

/// The nearest state with room, ties to the higher rank.
pub(super) fn refuge(
    group: &Group,
    from: &StateName,
    count: usize,
    counts: &BTreeMap<&StateName, usize>,
) -> Option<StateName> {
    let lifecycle = &group.lifecycle;
    let rank = lifecycle.rank(from)?;
    let mut others: Vec<_> =
        lifecycle.states.iter().enumerate().filter(|(other, _)| *other != rank).collect();
    others.sort_by_key(|(other, _)| (other.abs_diff(rank), std::cmp::Reverse(*other)));
    let has_room = |state: &&StateName| group.max(state, count).is_none_or(|max| counts[*state] < max);
    others.into_iter().map(|(_, state)| state).find(has_room).cloned()
}
