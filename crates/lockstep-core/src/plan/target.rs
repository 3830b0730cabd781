//! What targets ask for: which members are to end where, which settings change, which hosts are drained, and which
//! relations come and go with the settings. Whether all of that can be is checked once everybody is known who moves.

use super::Planner;
use crate::id::{GroupName, HostName, MemberId, SettingId, SettingKey, StateName};
use crate::relation::{Relation, setting_in};
use crate::request::{Code, Rejection, Target};
use crate::spec::{Group, SettingValue, list};
use std::collections::BTreeSet;

impl<'a> Planner<'a> {
    pub(super) fn resolve(&mut self, target: &Target) -> Result<(), Rejection> {
        match target {
            Target::Group(name, state) => {
                for group in self.leaves(name)? {
                    known_state(group, self.group(group)?, state)?;
                    self.want_all(group, state)?;
                }
                Ok(())
            }
            Target::Down(name) => {
                for group in self.leaves(name)? {
                    self.want_all(group, self.group(group)?.lifecycle.lowest())?;
                }
                Ok(())
            }
            Target::Up(name) => self.leaves(name)?.into_iter().try_for_each(|group| self.resolve_up(group)),
            Target::Member(member, state) => {
                known_state(&member.group, self.group(&member.group)?, state)?;
                self.known_host(&member.host)?;
                if !self.cluster.members.contains_key(member) {
                    let message = format!("host {} is not in group {}", member.host, member.group);
                    let help = "a group's members are the hosts whose labels match its `select`";
                    return Err(Rejection::new(Code::UnknownMember, message, help));
                }
                self.want(member, state)
            }
            Target::Setting(group, key, value) => self.resolve_setting(group, key, value),
            Target::Repair(name) => {
                self.leaves(name)?.into_iter().try_for_each(|group| self.resolve_repair(group))
            }
            Target::Drain(host) => {
                self.known_host(host)?;
                for (name, group) in &self.cluster.spec.groups {
                    let member = MemberId::new(name, host);
                    if self.cluster.members.contains_key(&member) {
                        self.want(&member, &group.lifecycle.drained)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// A group of members itself, or the groups that a composite is made of.
    fn leaves(&self, name: &GroupName) -> Result<Vec<&'a GroupName>, Rejection> {
        match self.cluster.spec.leaves(name) {
            Some(leaves) => Ok(leaves),
            None => self.group(name).map(|_| Vec::new()),
        }
    }

    fn known_host(&self, host: &HostName) -> Result<(), Rejection> {
        if self.cluster.hosts.contains_key(host) {
            return Ok(());
        }
        let message = format!("there is no host {host}");
        Err(Rejection::new(Code::UnknownHost, message, "`lockstep host list` shows those that have joined"))
    }

    fn want_all(&mut self, name: &GroupName, state: &StateName) -> Result<(), Rejection> {
        self.whole.insert(name.clone());
        let is_lowest = self.group(name)?.lifecycle.lowest() == state;
        // A member that has left the group's labels, or whose host is drained, only ever goes down.
        let stays =
            |id: &&MemberId| is_lowest || !(self.cluster.members[*id].leaving || self.is_drained(&id.host));
        let members: Vec<_> = self.cluster.members_of(name).filter(stays).collect();
        let present = members.into_iter().filter(|id| !self.is_left_out(id)).collect::<Vec<_>>();
        present.into_iter().try_for_each(|member| self.want(member, state))
    }

    /// Fills states from the highest, each to its `max`. Who is there already stays, then the best score, then
    /// the name decides.
    fn resolve_up(&mut self, name: &GroupName) -> Result<(), Rejection> {
        let group = self.group(name)?;
        self.whole.insert(name.clone());
        let lifecycle = &group.lifecycle;
        let rank = |id: &MemberId| {
            let actual = self.cluster.members[id].actual.as_ref();
            actual.and_then(|state| lifecycle.rank(state)).unwrap_or(0)
        };
        let is_staying = |id: &&MemberId| self.cluster.members[*id].leaving || self.is_drained(&id.host);
        let can_rise = |id: &&MemberId| self.cluster.can_act(id) && !is_staying(id);
        let mut members: Vec<_> = self.cluster.members_of(name).filter(can_rise).collect();
        if members.is_empty() {
            // Nobody can: what stands in the way of the first is the answer, rather than "nothing to do".
            members.extend(self.cluster.members_of(name).filter(|id| !is_staying(id)).take(1));
        }
        let count = self.cluster.members_of(name).count();
        members.sort_by_key(|id| {
            (std::cmp::Reverse(rank(id)), std::cmp::Reverse(self.score(id)), (*id).clone())
        });
        let (mut fills, mut alike) = (Vec::new(), BTreeSet::new());
        let mut members = members.as_slice();
        for state in lifecycle.states.iter().rev() {
            // Those that cannot be moved keep the places that they may have.
            let others = self.cluster.members_of(name).filter(|id| !can_rise(id));
            let stays_in = |id: &&MemberId| match self.drains.contains(&id.host) {
                true => group.lifecycle.drained == *state,
                false => self.cluster.may_be_in(id, state),
            };
            let taken = others.filter(stays_in).count();
            let room = group.max(state, count).map_or(usize::MAX, |max| max.saturating_sub(taken));
            let (taken, rest) = members.split_at(room.min(members.len()));
            fills.extend(taken.iter().map(|member| (*member, state)));
            if let (Some(last), Some(next)) = (taken.last(), rest.first())
                && rank(last) == rank(next)
            {
                alike.extend(members.iter().filter(|id| rank(id) == rank(next)).map(|id| (*id).clone()));
            }
            members = rest;
        }
        self.candidates.extend(alike);
        fills.into_iter().try_for_each(|(member, state)| self.want(member, state))
    }

    fn resolve_setting(&mut self, name: &GroupName, key: &SettingKey, text: &str) -> Result<(), Rejection> {
        let group = match self.cluster.spec.composites.get(name) {
            // It has none, which is what there is to say of it here.
            Some(_) => None,
            None => Some(self.group(name)?),
        };
        let Some(declared) = group.and_then(|group| group.settings.get(key)) else {
            let message = format!("group {name} has no setting {key}");
            let help = format!("declare it under [groups.{name}.settings]");
            return Err(Rejection::new(Code::UnknownSetting, message, help));
        };
        let value = declared.parse_alike(text).map_err(|kind| {
            let message = format!("{name}.{key} takes {kind}, not {text:?}");
            Rejection::new(Code::UnknownSetting, message, "its kind is that of its value in the spec")
        })?;
        match self.set.entry(name.clone()).or_default().insert(key.clone(), value.clone()) {
            Some(other) if other != value => {
                let message = format!("{name}.{key} is asked to be both {other} and {value}");
                return Err(Rejection::new(Code::LimitBroken, message, "name each setting once"));
            }
            Some(_) | None => {}
        }
        let lifecycle = &self.group(name)?.lifecycle;
        // One whose state is not known may serve: it is in the way rather than forgotten.
        let may_serve = |id: &&MemberId| {
            self.cluster.members[*id].actual.as_ref().is_none_or(|state| lifecycle.serves(state))
        };
        let members = self.cluster.members_of(name).filter(|id| !self.is_left_out(id)).filter(may_serve);
        let takes: Vec<MemberId> = members.cloned().collect();
        self.takes.extend(takes);
        Ok(())
    }

    /// Relations may come and go with the settings.
    pub(super) fn switch_relations(&mut self) -> Result<(), Rejection> {
        let now = setting_in(&self.cluster.settings);
        let at_end = |id: &SettingId| -> Option<SettingValue> {
            let set = self.set.get(&id.group).and_then(|set| set.get(&id.key)).cloned();
            set.or_else(|| now(id))
        };
        let relations = &self.cluster.relations;
        let (come, gone) = relations.with_settings(&self.cluster.spec, self.set.keys(), at_end);
        if come.iter().any(|relation| relation.orders()) {
            let new: Vec<Relation> = come.iter().map(|relation| (**relation).clone()).collect();
            relations.check_circles(&new, &gone)?;
        }
        (self.come, self.gone) = (come, gone.into_iter().collect());
        Ok(())
    }
}

/// The host that a target drains.
pub(super) fn drained(target: &Target) -> Option<&HostName> {
    match target {
        Target::Drain(host) => Some(host),
        Target::Group(..) | Target::Member(..) | Target::Up(_) | Target::Down(_) => None,
        Target::Setting(..) | Target::Repair(_) => None,
    }
}

fn known_state(name: &GroupName, group: &Group, state: &StateName) -> Result<(), Rejection> {
    if group.lifecycle.rank(state).is_some() {
        return Ok(());
    }
    let message = format!("group {name} has no state {state}");
    Err(Rejection::new(
        Code::UnknownState,
        message,
        format!("its states are {}", list(&group.lifecycle.states)),
    ))
}
