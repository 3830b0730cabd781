//! What is true of a cluster, read from its bare data: the second definition of limits, relations and serving,
//! beside the planner's.

use lockstep_core::cluster::{Cluster, Mark};
use lockstep_core::id::{GroupName, MemberId, StateName};
use lockstep_core::lifecycle::Amount;
use lockstep_core::plan::Scores;
use lockstep_core::record::Liveness;
use lockstep_core::relation::{Origin, Relation};
use lockstep_core::request::Code;
use lockstep_core::spec::{Ask, Kind, SettingValue, Settings};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A set of states, one bit each.
pub(crate) type States = u32;

pub(crate) struct Group {
    pub(crate) name: GroupName,
    pub(crate) states: Vec<StateName>,
    pub(crate) serving: States,
    pub(crate) edges: BTreeSet<(usize, usize)>,
    pub(crate) max: Vec<Option<usize>>,
    /// The declared ones.
    pub(crate) min: Vec<Option<usize>>,
    declared_min: Vec<Option<Amount>>,
    pub(crate) parallel: usize,
    pub(crate) drained: usize,
    pub(crate) members: Vec<usize>,
}

pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) group: usize,
    /// Where it may be.
    pub(crate) places: States,
    /// Where it surely is, and can be ordered from.
    pub(crate) surely: Option<usize>,
    /// Where it was last seen.
    pub(crate) actual: Option<usize>,
    pub(crate) is_in_doubt: bool,
    pub(crate) is_reachable: bool,
    pub(crate) is_leaving: bool,
    /// On a drained host.
    pub(crate) is_drained: bool,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) score: i64,
    /// The settings that it has taken.
    has: Settings,
}

impl Member {
    /// Why it cannot be ordered to move.
    pub(crate) fn unsure(&self) -> Vec<Code> {
        let mut codes = Vec::new();
        codes.extend(self.is_in_doubt.then_some(Code::MemberInDoubt));
        codes.extend((!self.is_reachable).then_some(Code::HostLost));
        codes.extend(self.actual.is_none().then_some(Code::ActualUnknown));
        codes
    }
}

/// A relation, with groups by number.
pub(crate) struct Link {
    pub(crate) from: usize,
    pub(crate) to: Vec<usize>,
    pub(crate) kind: Kind,
    pub(crate) ask: Option<Ask>,
    pub(crate) need: usize,
    pub(crate) scope: Option<String>,
    pub(crate) cascade: bool,
    pub(crate) moving: bool,
    pub(crate) relation: Relation,
}

impl Link {
    /// Whether it orders.
    pub(crate) fn orders(&self) -> bool {
        matches!(self.kind, Kind::Requires | Kind::After)
    }

    pub(crate) fn ends(&self) -> impl Iterator<Item = usize> + '_ {
        std::iter::once(self.from).chain(self.to.iter().copied())
    }
}

pub(crate) struct Model {
    pub(crate) groups: Vec<Group>,
    pub(crate) members: Vec<Member>,
    pub(crate) composites: BTreeMap<GroupName, BTreeSet<usize>>,
    /// The settings in force, and as they are to be.
    pub(crate) settings: [BTreeMap<GroupName, Settings>; 2],
    /// The relations with them.
    pub(crate) links: [Vec<Link>; 2],
}

/// Before a transition, and after it.
pub(crate) const BEFORE: usize = 0;
pub(crate) const AFTER: usize = 1;

fn bit(state: usize) -> States {
    1 << state
}

impl Model {
    pub(crate) fn new(cluster: &Cluster, scores: &Scores, changes: &BTreeMap<GroupName, Settings>) -> Self {
        let spec = &cluster.spec;
        let number: BTreeMap<&GroupName, usize> = spec.groups.keys().zip(0..).collect();
        let mut groups: Vec<Group> = spec
            .groups
            .iter()
            .map(|(name, group)| {
                let states = group.lifecycle.states.clone();
                let place = |state: &StateName| states.iter().position(|known| known == state).unwrap();
                let limit = |state: &StateName| group.limits.get(state).copied().unwrap_or_default();
                Group {
                    name: name.clone(),
                    serving: group.lifecycle.serving.iter().map(|state| bit(place(state))).sum(),
                    edges: group.lifecycle.edges.iter().map(|(from, to)| (place(from), place(to))).collect(),
                    max: Vec::new(),
                    min: Vec::new(),
                    declared_min: states.iter().map(|state| limit(state).min).collect(),
                    parallel: usize::MAX,
                    drained: place(&group.lifecycle.drained),
                    members: Vec::new(),
                    states,
                }
            })
            .collect();
        let mut members = Vec::new();
        for (id, member) in &cluster.members {
            let Some(&group) = number.get(&id.group) else { continue };
            let host = &cluster.hosts[&id.host];
            let place = |state: &StateName| groups[group].states.iter().position(|known| known == state);
            let actual = member.actual.as_ref().and_then(place);
            let is_in_doubt = member.mark == Mark::InDoubt;
            let is_reachable = matches!(host.liveness, Liveness::Alive | Liveness::Suspect);
            let places = match actual {
                None => (1 << groups[group].states.len()) - 1,
                Some(actual) if is_in_doubt => {
                    bit(actual)
                        | member.may_be.iter().map(|state| bit(place(state).unwrap())).fold(0, |a, b| a | b)
                }
                Some(actual) => bit(actual),
            };
            groups[group].members.push(members.len());
            members.push(Member {
                id: id.clone(),
                group,
                places,
                surely: actual.filter(|_| is_reachable && !is_in_doubt),
                actual,
                is_in_doubt,
                is_reachable,
                is_leaving: member.leaving,
                is_drained: host.is_drained,
                labels: host.labels.clone(),
                score: scores.get(id).copied().unwrap_or(0),
                has: member.settings.as_deref().cloned().unwrap_or_default(),
            });
        }
        for group in &mut groups {
            let declared = &spec.groups[&group.name];
            let count = group.members.len();
            group.min = group.declared_min.iter().map(|min| min.map(|min| at_least(min, count))).collect();
            group.max = group
                .states
                .iter()
                .map(|state| {
                    declared.limits.get(state).and_then(|limit| limit.max).map(|max| at_most(max, count))
                })
                .collect();
            group.parallel = at_most(declared.parallel, count).max(1);
        }
        let before: BTreeMap<GroupName, Settings> =
            cluster.settings.iter().map(|(name, settings)| (name.clone(), (**settings).clone())).collect();
        let mut after = before.clone();
        for (name, changed) in changes {
            after.entry(name.clone()).or_default().extend(changed.clone());
        }
        let links = [&before, &after].map(|settings| {
            derive(cluster, settings)
                .into_iter()
                .map(|relation| Link {
                    from: number[&relation.from],
                    to: relation.to.iter().map(|to| number[to]).collect(),
                    kind: relation.kind,
                    ask: relation.ask,
                    need: at_least(relation.need, relation.to.count()),
                    scope: relation.scope.clone(),
                    cascade: relation.cascade,
                    moving: relation.moving,
                    relation,
                })
                .collect()
        });
        let composites = spec
            .composites
            .iter()
            .map(|(name, leaves)| (name.clone(), leaves.iter().map(|leaf| number[leaf]).collect()))
            .collect();
        Self { groups, members, composites, settings: [before, after], links }
    }

    pub(crate) fn group(&self, name: &GroupName) -> Option<usize> {
        self.groups.iter().position(|group| group.name == *name)
    }

    pub(crate) fn member(&self, id: &MemberId) -> Option<usize> {
        self.members.iter().position(|member| member.id == *id)
    }

    pub(crate) fn serves_in(&self, member: usize, state: usize) -> bool {
        self.groups[self.members[member].group].serving & bit(state) != 0
    }

    /// The settings that a member has not taken, as they are to be.
    pub(crate) fn missing(&self, member: usize) -> Settings {
        let known = &self.members[member];
        let wanted = self.settings[AFTER].get(&known.id.group).cloned().unwrap_or_default();
        wanted.into_iter().filter(|(key, value)| known.has.get(key) != Some(value)).collect()
    }

    /// Whether a relation concerns these two members with each other.
    pub(crate) fn is_paired(&self, link: &Link, a: usize, b: usize) -> bool {
        let Some(label) = &link.scope else { return true };
        let (a, b) = (self.members[a].labels.get(label), self.members[b].labels.get(label));
        a.is_some() && a == b
    }

    /// The parts in which a relation holds: everything, or where its label has each of its values.
    pub(crate) fn parts(&self, link: &Link) -> Vec<Option<(String, String)>> {
        let Some(label) = &link.scope else { return vec![None] };
        let values: BTreeSet<_> = self.groups[link.from]
            .members
            .iter()
            .filter_map(|&member| self.members[member].labels.get(label).cloned())
            .collect();
        values.into_iter().map(|value| Some((label.clone(), value))).collect()
    }

    pub(crate) fn members_in(&self, group: usize, part: &Option<(String, String)>) -> Vec<usize> {
        let here = |member: &usize| match part {
            Some((label, value)) => self.members[*member].labels.get(label) == Some(value),
            None => true,
        };
        self.groups[group].members.iter().copied().filter(here).collect()
    }

    /// Whether a group, or its part, serves: each serving state's `min`, or one, is surely there. In a part a `min`
    /// that is a number is meant for the whole group, and asks for one.
    pub(crate) fn serves(
        &self,
        group: usize,
        part: &Option<(String, String)>,
        at: &dyn Fn(usize) -> Option<usize>,
    ) -> bool {
        let here = self.members_in(group, part);
        let group = &self.groups[group];
        (0..group.states.len()).filter(|&state| group.serving & bit(state) != 0).all(|state| {
            let min = match group.declared_min[state] {
                Some(Amount::Count(count)) if part.is_some() => usize::from(count > 0),
                Some(min) => at_least(min, here.len()),
                None => 1,
            };
            here.iter().filter(|&&member| at(member) == Some(state)).count() >= min
        })
    }

    /// Whether any member of a part is in a serving state.
    pub(crate) fn any_serves(
        &self,
        group: usize,
        part: &Option<(String, String)>,
        at: &dyn Fn(usize) -> Option<usize>,
    ) -> bool {
        self.members_in(group, part)
            .into_iter()
            .any(|member| at(member).is_some_and(|state| self.serves_in(member, state)))
    }

    /// Whether a `requires` is broken in a part: A serves, and too few of B do.
    pub(crate) fn is_broken(
        &self,
        link: &Link,
        part: &Option<(String, String)>,
        at: &dyn Fn(usize) -> Option<usize>,
        is_strict: bool,
    ) -> bool {
        let serves = if is_strict {
            self.any_serves(link.from, part, at) || self.serves(link.from, part, at)
        } else {
            self.any_serves(link.from, part, at) && self.serves(link.from, part, at)
        };
        serves && link.to.iter().filter(|&&to| self.serves(to, part, at)).count() < link.need
    }

    /// The fewest edges from one state to another, lower ranks first.
    pub(crate) fn path(&self, group: usize, from: usize, to: usize) -> Option<Vec<usize>> {
        let group = &self.groups[group];
        let mut paths: BTreeMap<usize, Vec<usize>> = BTreeMap::from([(from, Vec::new())]);
        let mut queue = VecDeque::from([from]);
        while let Some(state) = queue.pop_front() {
            for next in 0..group.states.len() {
                if group.edges.contains(&(state, next)) && !paths.contains_key(&next) {
                    let mut path = paths[&state].clone();
                    path.push(next);
                    paths.insert(next, path);
                    queue.push_back(next);
                }
            }
        }
        paths.remove(&to)
    }
}

fn at_least(amount: Amount, of: usize) -> usize {
    match amount {
        Amount::Count(count) => count as usize,
        Amount::Percent(percent) => (of * percent as usize).div_ceil(100),
        Amount::Majority => of / 2 + 1,
        Amount::All => of,
    }
}

fn at_most(amount: Amount, of: usize) -> usize {
    match amount {
        Amount::Count(count) => count as usize,
        Amount::Percent(percent) => of * percent as usize / 100,
        Amount::Majority => of / 2 + 1,
        Amount::All => of,
    }
}

/// The relations: a pure function of spec, capabilities and settings.
fn derive(cluster: &Cluster, settings: &BTreeMap<GroupName, Settings>) -> Vec<Relation> {
    let spec = &cluster.spec;
    let value =
        |group: &GroupName, key| -> Option<&SettingValue> { settings.get(group).and_then(|of| of.get(key)) };
    let mut relations: BTreeSet<Relation> = spec
        .declared
        .iter()
        .filter(|relation| relation.when.iter().all(|(id, wanted)| value(&id.group, &id.key) == Some(wanted)))
        .map(|relation| (**relation).clone())
        .collect();
    let mut provides: BTreeMap<_, BTreeSet<GroupName>> = BTreeMap::new();
    let mut consumes: BTreeMap<_, BTreeSet<GroupName>> = BTreeMap::new();
    let mut says = |group: &GroupName, offers: Vec<_>, wants: Vec<_>| {
        offers.into_iter().for_each(|one| _ = provides.entry(one).or_default().insert(group.clone()));
        wants.into_iter().for_each(|one| _ = consumes.entry(one).or_default().insert(group.clone()));
    };
    for (name, group) in &spec.groups {
        says(name, group.provides.iter().cloned().collect(), group.consumes.iter().cloned().collect());
    }
    for (id, member) in cluster.members.iter().filter(|(id, _)| spec.groups.contains_key(&id.group)) {
        let published = &member.published;
        says(
            &id.group,
            published.provides.iter().cloned().collect(),
            published.consumes.iter().cloned().collect(),
        );
    }
    for (capability, froms) in consumes {
        for from in froms {
            let to: Vec<GroupName> =
                provides.get(&capability).into_iter().flatten().filter(|to| **to != from).cloned().collect();
            if to.is_empty() {
                continue;
            }
            let relation = serde_json::json!({
                "from": from, "to": to, "kind": "requires", "origin": Origin::Capability,
                "need": if to.len() > 1 { Amount::Count(1) } else { Amount::All }, "capability": capability,
            });
            relations.insert(serde_json::from_value(relation).unwrap());
        }
    }
    relations.into_iter().collect()
}

/// A circle of `requires` and `after` among these links.
pub(crate) fn has_cycle(links: &[Link], groups: usize) -> bool {
    let mut reach = vec![vec![false; groups]; groups];
    for link in links.iter().filter(|link| link.orders()) {
        link.to.iter().for_each(|&to| reach[link.from][to] = true);
    }
    for via in 0..groups {
        for from in 0..groups {
            for to in 0..groups {
                if reach[from][via] && reach[via][to] {
                    reach[from][to] = true;
                }
            }
        }
    }
    (0..groups).any(|group| reach[group][group])
}
