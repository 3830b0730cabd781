//! What relations demand of a plan: who is paired with whom, who is concerned and asked, and that groups which exclude
//! each other never serve together.

use super::Plan;
use super::check::{at_place, stuck};
use crate::cluster::{Cluster, Place};
use crate::id::{GroupName, MemberId, StateName};
use crate::mutant::{self, Mutant};
use crate::plan::order::Bond;
use crate::relation::Relation;
use crate::request::{Code, Rejection};
use crate::spec::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The members that a relation pairs: all of both ends, or those at one place.
pub(super) struct Pair<'a> {
    pub place: Option<Place<'a>>,
    pub from: Vec<&'a MemberId>,
    /// Of each group that the relation leads to, in its order.
    pub to: Vec<Vec<&'a MemberId>>,
}

/// Each place where a relation pairs members of `from` with others; without a scope everywhere is one place. Members
/// on hosts without the label are paired with nobody.
pub(super) fn pairs<'a>(cluster: &'a Cluster, relation: &'a Relation) -> Vec<Pair<'a>> {
    let Some(label) = &relation.scope else {
        let all = |group: &'a GroupName| cluster.members_of(group).collect();
        return vec![Pair {
            place: None,
            from: all(&relation.from),
            to: relation.to.iter().map(all).collect(),
        }];
    };
    let split = |group: &'a GroupName| -> BTreeMap<Place<'a>, Vec<&'a MemberId>> {
        let mut parts: BTreeMap<Place<'a>, Vec<&'a MemberId>> = BTreeMap::new();
        for id in cluster.members_of(group) {
            if let Some(place) = cluster.place(id, label) {
                parts.entry(place).or_default().push(id);
            }
        }
        parts
    };
    let mut to: Vec<_> = relation.to.iter().map(split).collect();
    let pair = |(place, from): (Place<'a>, Vec<&'a MemberId>)| {
        let to = to.iter_mut().map(|parts| parts.remove(&place).unwrap_or_default()).collect();
        Pair { place: Some(place), from, to }
    };
    split(&relation.from).into_iter().map(pair).collect()
}

/// What a plan touches, for those who are told and asked.
pub(super) struct Touched<'a> {
    cluster: &'a Cluster,
    /// The groups whose members are told because of what they require.
    reached: BTreeSet<GroupName>,
    plan_settings: BTreeMap<GroupName, BTreeSet<crate::id::SettingKey>>,
    /// The members that move or take settings, those that stop serving, and those that take settings, by group.
    moved: BTreeMap<GroupName, Vec<MemberId>>,
    stopped: BTreeMap<GroupName, Vec<MemberId>>,
    places: BTreeMap<(GroupName, String, Which), BTreeSet<String>>,
}

/// Which members of a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    All,
    Moved,
    Stopped,
}

impl<'a> Touched<'a> {
    pub(super) fn new(cluster: &'a Cluster, plan: &Plan, told: &BTreeSet<Arc<Relation>>) -> Self {
        let along = told.iter().filter(|relation| relation.kind == Kind::Requires);
        let reached = along.map(|relation| relation.from.clone()).collect();
        let mut moved: BTreeMap<GroupName, Vec<MemberId>> = BTreeMap::new();
        for member in plan.goals.keys() {
            moved.entry(member.group.clone()).or_default().push(member.clone());
        }
        let mut stopped: BTreeMap<GroupName, Vec<MemberId>> = BTreeMap::new();
        for step in &plan.steps {
            let lifecycle = &cluster.spec.groups[&step.member.group].lifecycle;
            if lifecycle.serves(&step.from) && !lifecycle.serves(&step.to) {
                stopped.entry(step.member.group.clone()).or_default().push(step.member.clone());
            }
        }
        let keys = plan.settings.iter().map(|(group, set)| (group.clone(), set.keys().cloned().collect()));
        Self { cluster, reached, plan_settings: keys.collect(), moved, stopped, places: BTreeMap::new() }
    }

    /// Whether a member of `from` is told: with a scope, when somebody moves where it is. Where nobody of the other end
    /// moves, it is told along `requires`, and by the same label.
    pub(super) fn concerns(&mut self, relation: &Relation, member: &MemberId) -> bool {
        let Some(label) = &relation.scope else { return true };
        let Some(place) = self.cluster.place(member, label).map(|place| place.value.to_owned()) else {
            return false;
        };
        relation.to.iter().any(|to| {
            // A setting is the whole group's, also where nobody takes it now.
            let is_whole = self.reached.contains(to) || self.plan_settings.contains_key(to);
            let which = if is_whole { Which::All } else { Which::Moved };
            self.places(to, label, which).contains(&place)
        })
    }

    /// Whether a member of `from` is asked: somebody that it is paired with stops serving, or takes a setting that it
    /// wants to be asked for.
    pub(super) fn asks(&mut self, relation: &Relation, member: &MemberId) -> bool {
        let is_set = |to: &GroupName| {
            let keys = self.plan_settings.get(to);
            keys.is_some_and(|keys| !keys.is_disjoint(&relation.on))
        };
        let set: Vec<_> = relation.to.iter().filter(|to| is_set(to)).collect();
        let Some(label) = &relation.scope else {
            return !set.is_empty() || relation.to.iter().any(|to| self.stopped.contains_key(to));
        };
        let Some(place) = self.cluster.place(member, label).map(|place| place.value.to_owned()) else {
            return false;
        };
        set.into_iter().any(|to| self.places(to, label, Which::All).contains(&place))
            || relation.to.iter().any(|to| self.places(to, label, Which::Stopped).contains(&place))
    }

    /// The values of a label where these members of a group are.
    fn places(&mut self, group: &GroupName, label: &str, which: Which) -> &BTreeSet<String> {
        let key = (group.clone(), label.to_owned(), which);
        self.places.entry(key).or_insert_with(|| {
            let some = |members: &'_ BTreeMap<GroupName, Vec<MemberId>>| -> BTreeSet<String> {
                let members = members.get(group).into_iter().flatten();
                values(self.cluster, members, label)
            };
            match which {
                Which::All => values(self.cluster, self.cluster.members_of(group), label),
                Which::Moved => some(&self.moved),
                Which::Stopped => some(&self.stopped),
            }
        })
    }
}

/// The values of a label where members are.
fn values<'a>(
    cluster: &Cluster,
    members: impl Iterator<Item = &'a MemberId>,
    label: &str,
) -> BTreeSet<String> {
    members.filter_map(|id| cluster.place(id, label)).map(|place| place.value.to_owned()).collect()
}

/// Groups that exclude each other: nobody may begin to serve while a member of the other one serves and stays.
pub(super) fn check_excludes(cluster: &Cluster, plan: &Plan, bonds: &[Bond]) -> Result<(), Rejection> {
    let serves = |id: &MemberId, state: &StateName| cluster.spec.groups[&id.group].lifecycle.serves(state);
    let enters =
        |id: &MemberId| plan.steps_of(id).any(|step| !serves(id, &step.from) && serves(id, &step.to));
    let leaves =
        |id: &MemberId| plan.steps_of(id).any(|step| serves(id, &step.from) && !serves(id, &step.to));
    let stays = |id: &MemberId| {
        let lifecycle = &cluster.spec.groups[&id.group].lifecycle;
        !leaves(id) && lifecycle.serving.iter().any(|state| cluster.may_be_in(id, state))
    };
    let ends_serving = |id: &MemberId| plan.goals.get(id).is_some_and(|goal| serves(id, goal));
    let excludes = |bond: &&Bond| {
        bond.at_end
            && bond.relation.kind == Kind::Excludes
            && !bond.relation.moving
            && !mutant::is(Mutant::ExcludesIgnored)
    };
    for bond in bonds.iter().filter(excludes) {
        let relation = &*bond.relation;
        let to = relation.to.iter().next().expect("a relation leads somewhere");
        // With the settings comes a rule that what serves already may break.
        let comes = !bond.now;
        for pair in pairs(cluster, relation) {
            let other = &pair.to[0];
            let clash = |(entering, coming): (&GroupName, &[&MemberId]),
                         (standing, there): (&GroupName, &[&MemberId])| {
                let comes_up = coming.iter().any(|id| enters(id) || (comes && stays(id)));
                if !comes_up {
                    return None;
                }
                let in_the_way = *there.iter().find(|id| stays(id))?;
                let place = at_place(pair.place);
                let message = format!(
                    "{entering} and {standing} exclude each other, and {in_the_way} may serve{place}"
                );
                if !cluster.can_act(in_the_way) {
                    let help = "bring it back: its next status settles where it is; see `lockstep status`";
                    return Some(stuck(cluster, in_the_way, &format!("{message}:"), help));
                }
                let help = format!("take it down in the same request: {standing}=down");
                Some(Rejection::new(Code::Excluded, message, help))
            };
            let from = (&relation.from, pair.from.as_slice());
            let to = (to, other.as_slice());
            if let Some(rejection) = clash(from, to).or_else(|| clash(to, from)) {
                return Err(rejection);
            }
            if from.1.iter().any(|id| ends_serving(id) && enters(id))
                && to.1.iter().any(|id| ends_serving(id) && enters(id))
            {
                let place = at_place(pair.place);
                let message =
                    format!("{} and {} exclude each other, and both would serve{place}", from.0, to.0);
                return Err(Rejection::new(
                    Code::Excluded,
                    message,
                    "ask for one of them, or take the other one down",
                ));
            }
        }
    }
    Ok(())
}
