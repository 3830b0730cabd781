//! Whether what is wanted can be: the members that would have to move, the limits of their groups, and `requires`
//! between groups. Nothing is made to fit here, which is what `displace` is for; `excludes` is checked once there are
//! steps, in `rule`.

use super::{Planner, rule};
use crate::cluster::{Cluster, Place};
use crate::id::{GroupName, MemberId, StateName};
use crate::relation::Relation;
use crate::request::{Code, Rejection};
use crate::spec::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Planner<'_> {
    /// Only members whose state is known, on hosts that answer, and that no other transition drives can move.
    pub(super) fn check_members(&self) -> Result<(), Rejection> {
        let stays = self.takes.iter().filter(|id| !self.wanted.contains_key(*id)).map(|id| (id, None));
        for (id, state) in self.wanted.iter().map(|(id, state)| (id, Some(state))).chain(stays) {
            let member = &self.cluster.members[id];
            let host = &self.cluster.hosts[&id.host];
            // It may be where it should be, and have settings to take there.
            let takes = || state.is_none_or(|state| !self.set_of(id, state).is_empty());
            let moves = member.actual.as_ref() != state || takes();
            if moves && !host.is_reachable() {
                let message = format!("{id} would have to move, and host {} is {}", id.host, host.liveness);
                let help = "bring the host back, ask for less, or go on without lost hosts: --exclude-lost";
                return Err(Rejection::new(Code::HostLost, message, help));
            }
            // Not only when it would have to move: it may be elsewhere, and a goal that it seems to have reached
            // would take the doubt away without evidence.
            if member.is_in_doubt() {
                let message = format!("{id} is in doubt since its last transition");
                let help = format!(
                    "its next status settles it; or look, and say where it is: lockstep resolve {id}=STATE --reason TEXT"
                );
                return Err(Rejection::new(Code::MemberInDoubt, message, help));
            }
            if member.actual.is_none() {
                let message = format!("the state of {id} is not known");
                let help =
                    "its agent asks the handler's `status` and reports; see `lockstep status` for the reason";
                return Err(Rejection::new(Code::ActualUnknown, message, help));
            }
        }
        Ok(())
    }

    pub(super) fn check_limits(&self) -> Result<(), Rejection> {
        let groups: BTreeSet<_> = self.wanted.keys().map(|member| &member.group).collect();
        for name in groups {
            let group = self.group(name)?;
            let count = self.cluster.members_of(name).count();
            for state in &group.lifecycle.states {
                let after = self.count_at_end(name, state);
                // What is above its max already, because running software was adopted so, may stay so; nobody
                // may join it.
                if let Some(max) = group.max(state, count)
                    && after > max
                    && self.is_entered(name, state)
                {
                    return Err(self.too_many(name, state, after, max));
                }
                let declared = group.limits.get(state).and_then(|limit| limit.min);
                let Some(min) = declared.map(|min| min.as_min(count)) else { continue };
                let surely_after = self.surely(name, state, true);
                if surely_after < min && self.surely(name, state, false) >= min && !self.whole.contains(name)
                {
                    let message =
                        format!("{surely_after} members of {name} would be {state}, at least {min} must be");
                    let help = format!("name the whole group ({name}=STATE) if that is meant");
                    return Err(Rejection::new(Code::LimitBroken, message, help));
                }
            }
        }
        Ok(())
    }

    /// Too many would be in a state: because of a member that may be there and cannot be moved away, if there is
    /// one. Telling the operator to raise `max` would then be telling them to run two primaries.
    fn too_many(&self, name: &GroupName, state: &StateName, after: usize, max: usize) -> Rejection {
        let stays = |id: &&MemberId| {
            !self.wanted.contains_key(*id) && self.cluster.may_be_in(id, state) && !self.cluster.can_act(id)
        };
        let Some(id) = self.cluster.members_of(name).find(stays) else {
            let message = format!("{after} members of {name} would be {state}, at most {max} may be");
            let help = format!("ask for fewer, or raise max in [groups.{name}.limits.{state}]");
            return Rejection::new(Code::LimitBroken, message, help);
        };
        let host = &id.host;
        let help = if self.cluster.hosts[host].is_reachable() {
            format!(
                "its next status settles where it is; or look, and say where it is: lockstep resolve {id}=STATE --reason TEXT"
            )
        } else {
            format!(
                "bring it back: its next status settles where it is; or make sure that the host has stopped, and say so: \
                 lockstep fence {host} --confirm --reason TEXT; if it is gone for good: lockstep host forget {host} --stopped"
            )
        };
        let message = format!("{id} may still be {state}, where at most {max} may be:");
        stuck(self.cluster, id, &message, help)
    }

    pub(super) fn check_requires(&self) -> Result<(), Rejection> {
        let relations = self.relations_beside(&self.moved());
        // Many relations may lead to one large group.
        let mut known: BTreeMap<(&GroupName, bool), bool> = BTreeMap::new();
        let demands =
            |relation: &&Arc<Relation>| relation.kind == Kind::Requires && self.exists(relation, true);
        for relation in relations.iter().filter(demands) {
            let is_new = !self.exists(relation, false);
            if relation.scope.is_some() {
                for pair in rule::pairs(self.cluster, relation) {
                    let serves = |at_end| self.pair_serves(relation, &pair, at_end);
                    let is_met = |at_end| self.is_pair_met(relation, &pair, at_end);
                    let (now, at_end) = ((serves(false), is_met(false)), (serves(true), is_met(true)));
                    check_pair(relation, pair.place, is_new, now, at_end)?;
                }
                continue;
            }
            let mut at = |at_end: bool| {
                let mut serves =
                    |name| *known.entry((name, at_end)).or_insert_with(|| self.serves(name, at_end));
                let needed = relation.need.as_min(relation.to.count());
                let serving = relation.to.iter().filter(|to| serves(*to)).count();
                (serves(&relation.from), serving >= needed)
            };
            check_pair(relation, None, is_new, at(false), at(true))?;
        }
        Ok(())
    }
}

/// Whether what a relation pairs at a place is refused. Before and at the end: whether `from` serves, and whether what
/// it requires does.
pub(super) fn check_pair(
    relation: &Relation,
    place: Option<Place<'_>>,
    is_new: bool,
    (served, was_met): (bool, bool),
    (serves, is_met): (bool, bool),
) -> Result<(), Rejection> {
    if !serves || is_met {
        return Ok(());
    }
    if was_met && !is_new {
        return Err(would_break(relation, place));
    }
    // What was broken before the plan, and stays as it was, is not the plan's doing.
    if is_new || !served { Err(requirement_down(relation, place)) } else { Ok(()) }
}

fn would_break(relation: &Relation, place: Option<Place<'_>>) -> Rejection {
    let Relation { from, to, .. } = relation;
    let message = match to.count() {
        1 => format!("{from} requires {to}, which would stop serving while {from} serves{}", at_place(place)),
        _ => format!("{from} requires {} of {to}, and fewer would serve{}", relation.need, at_place(place)),
    };
    let help = match place {
        None => format!("take {from} down in the same request: {from}=down"),
        Some(_) => format!("take the members of {from} there down in the same request: {from}@HOST=STATE"),
    };
    Rejection::new(Code::WouldBreakRequires, message, help)
}

fn requirement_down(relation: &Relation, place: Option<Place<'_>>) -> Rejection {
    let Relation { from, to, .. } = relation;
    let message = match to.count() {
        1 => format!("{from} requires {to}, which does not serve{}", at_place(place)),
        _ => format!("{from} requires {} of {to}, and fewer serve{}", relation.need, at_place(place)),
    };
    let first = to.iter().next().expect("a relation leads somewhere");
    let help = match place {
        None if to.count() > 1 => {
            format!("bring more of {to} up first, or in the same request, such as {first}=up")
        }
        None => format!("bring {to} up first, or in the same request: {first}=up"),
        Some(_) => {
            format!("bring members of {to} up there first, or in the same request: {first}@HOST=STATE")
        }
    };
    Rejection::new(Code::RequirementDown, message, help)
}

/// ` in zone a`, or nothing.
pub(super) fn at_place(place: Option<Place<'_>>) -> String {
    place.map(|Place { label, value }| format!(" where {label} is {value}")).unwrap_or_default()
}

/// A refusal because of a member that cannot act: the message with why it cannot.
pub(super) fn stuck(cluster: &Cluster, id: &MemberId, message: &str, help: impl Into<String>) -> Rejection {
    let host = &cluster.hosts[&id.host];
    if !host.is_reachable() {
        let message = format!("{message} host {} is {}", id.host, host.liveness);
        Rejection::new(Code::HostLost, message, help).because_of(&id.host)
    } else if cluster.members[id].is_in_doubt() {
        let message = format!("{message} it is in doubt since its last transition");
        Rejection::new(Code::MemberInDoubt, message, help)
    } else {
        Rejection::new(Code::ActualUnknown, format!("{message} its state is not known"), help)
    }
}
