//! Relations: directed, typed edges between groups, as a pure function of spec, labels, capabilities and settings.
//!
//! What a spec declares is in [`Spec::declared`]; which relations exist now, and since when, is in [`Relations`]. It
//! is brought up to date piece by piece as capabilities and settings change, and comes to the same as when it is
//! derived anew.

mod declared;

pub(crate) use declared::declared;

use crate::id::{Capability, GroupName, Index, SettingId};
use crate::lifecycle::Amount;
use crate::mutant::{self, Mutant};
use crate::spec::{self, Ask, Kind, RELATIONS_MAX, SettingValue, Settings, Spec, SpecError, list};
use crate::time::WallTime;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Which rule made a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The spec says so.
    Declared,
    /// `from` consumes what `to` provides.
    Capability,
}

/// One group or several, written as a name or as a list of names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupList(Vec<GroupName>);

impl GroupList {
    /// The groups; none: there has to be one.
    pub fn new(groups: Vec<GroupName>) -> Option<Self> {
        (!groups.is_empty()).then_some(Self(groups))
    }

    /// The groups, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, GroupName> {
        self.0.iter()
    }

    /// Whether a group is among them.
    pub fn contains(&self, group: &GroupName) -> bool {
        self.0.contains(group)
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl<'a> IntoIterator for &'a GroupList {
    type Item = &'a GroupName;
    type IntoIter = std::slice::Iter<'a, GroupName>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<GroupName> for GroupList {
    fn from(group: GroupName) -> Self {
        Self(vec![group])
    }
}

impl fmt::Display for GroupList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.0))
    }
}

impl Serialize for GroupList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for GroupList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = GroupList;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a group's name, or a list of names")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<GroupList, E> {
                name.parse::<GroupName>().map(GroupList::from).map_err(E::custom)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut names: A) -> Result<GroupList, A::Error> {
                let mut groups = Vec::new();
                while let Some(group) = names.next_element()? {
                    groups.push(group);
                }
                GroupList::new(groups).ok_or_else(|| de::Error::invalid_length(0, &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A directed edge from one group to another, or to several of which some must serve.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Relation {
    /// The group that depends, or is told.
    pub from: GroupName,
    /// The groups that it depends on, or is told of.
    pub to: GroupList,
    /// What it demands.
    pub kind: Kind,
    /// Whether members of `from` are asked before members of `to` stop serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
    /// Settings of `to` before whose change they are asked too.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub on: BTreeSet<crate::id::SettingKey>,
    /// How many of the groups in `to` must serve.
    #[serde(default = "spec::all", skip_serializing_if = "spec::is_all")]
    pub need: Amount,
    /// The label in which paired members are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// It exists while these settings have these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub when: BTreeMap<SettingId, SettingValue>,
    /// Whether `from` is taken down rather than a request refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cascade: bool,
    /// Of `excludes`: both may serve, and never move at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moving: bool,
    /// Which rule made it.
    pub origin: Origin,
    /// The capability that one end consumes and the other provides, when that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<Capability>,
}

impl Relation {
    /// Whether it orders the groups: `requires` and `after`.
    pub fn orders(&self) -> bool {
        match self.kind {
            Kind::Requires | Kind::After => true,
            Kind::Excludes | Kind::Watches => false,
        }
    }

    /// Whether a plan that moves one end rests on the other.
    pub fn binds(&self) -> bool {
        match self.kind {
            Kind::Requires | Kind::After | Kind::Excludes => true,
            Kind::Watches => false,
        }
    }

    /// The groups at both ends.
    pub fn groups(&self) -> impl Iterator<Item = &GroupName> {
        std::iter::once(&self.from).chain(&self.to)
    }

    /// Whether it exists with these settings.
    pub fn holds(&self, settings: impl Fn(&SettingId) -> Option<SettingValue>) -> bool {
        self.when.iter().all(|(id, wanted)| settings(id).as_ref() == Some(wanted))
    }
}

/// When a relation came into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Since {
    /// The record that brought it.
    pub revision: Index,
    /// When that was proposed.
    pub at: WallTime,
}

/// Which groups provide or consume a capability, each with how many say so: its declaration, its members.
type Sources = BTreeMap<Capability, BTreeMap<GroupName, u32>>;

/// What a group, or one of its members, publishes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Published {
    /// Capabilities that it offers.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub provides: BTreeSet<Capability>,
    /// Capabilities that it cannot serve without.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub consumes: BTreeSet<Capability>,
}

/// The relations that exist now.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Relations {
    /// Each with when its edge to each of its groups came.
    active: BTreeMap<Arc<Relation>, BTreeMap<GroupName, Since>>,
    by_group: BTreeMap<GroupName, BTreeSet<Arc<Relation>>>,
    providers: Sources,
    consumers: Sources,
    /// How many pairs of groups they relate.
    pairs: usize,
}

/// Relations as a snapshot has them: what can be looked up in them follows from that.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    active: Vec<(Arc<Relation>, BTreeMap<GroupName, Since>)>,
    providers: Sources,
    consumers: Sources,
}

impl From<Relations> for Stored {
    fn from(relations: Relations) -> Self {
        let Relations { active, providers, consumers, .. } = relations;
        Self { active: active.into_iter().collect(), providers, consumers }
    }
}

impl From<Stored> for Relations {
    fn from(Stored { active, providers, consumers }: Stored) -> Self {
        let mut relations = Self { providers, consumers, ..Self::default() };
        active.into_iter().for_each(|(relation, edges)| relations.put(relation, edges));
        relations
    }
}

impl Relations {
    /// Derives all of them anew. What was there before keeps the time at which it came.
    pub fn derive<'a>(
        spec: &Spec,
        published: impl Iterator<Item = (&'a GroupName, &'a Published)>,
        settings: &BTreeMap<GroupName, Arc<Settings>>,
        before: &Self,
        since: Since,
    ) -> Self {
        let mut relations = Self::default();
        for (name, group) in &spec.groups {
            let provides = group.provides.iter().map(|capability| (true, capability));
            let consumes = group.consumes.iter().map(|capability| (false, capability));
            provides.chain(consumes).for_each(|(offers, capability)| {
                relations.count(name, offers, capability, 1);
            });
        }
        // A member of a group that is not declared any more is on its way out, and relates nothing.
        for (name, published) in published.filter(|(name, _)| spec.groups.contains_key(*name)) {
            relations.count_published(name, published, 1);
        }
        let declared = spec.declared.iter().filter(|relation| relation.holds(setting_in(settings)));
        declared.for_each(|relation| relations.add(relation.clone(), before, since));
        let consumed: Vec<_> = relations.consumers.keys().cloned().collect();
        for capability in consumed {
            let made = relations.made_by(&capability);
            made.into_iter().for_each(|relation| relations.add(Arc::new(relation), before, since));
        }
        relations
    }

    /// Those that a spec alone makes, with its settings as they are declared.
    pub fn declared(spec: &Spec) -> Self {
        let settings =
            spec.groups.iter().map(|(name, group)| (name.clone(), Arc::new(group.settings.clone())));
        let published = std::iter::empty();
        Self::derive(spec, published, &settings.collect(), &Self::default(), Since::default())
    }

    /// Every relation, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Relation>> {
        self.active.keys()
    }

    /// The relations that a group is an end of.
    pub fn of<'a>(&'a self, group: &GroupName) -> impl Iterator<Item = &'a Arc<Relation>> + use<'a> {
        self.by_group.get(group).into_iter().flatten()
    }

    /// The relations by which a group requires others.
    pub fn required_by<'a>(
        &'a self,
        group: &'a GroupName,
    ) -> impl Iterator<Item = &'a Arc<Relation>> + use<'a> {
        self.of(group).filter(|relation| relation.from == *group && relation.kind == Kind::Requires)
    }

    /// Since when a relation has led to one of its groups.
    pub fn since(&self, relation: &Relation, to: &GroupName) -> Option<Since> {
        self.active.get(relation)?.get(to).copied()
    }

    /// How many pairs of groups are related.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// A member publishes something else than before.
    pub fn publish(&mut self, group: &GroupName, was: &Published, is: &Published, since: Since) {
        self.count_published(group, was, -1);
        self.count_published(group, is, 1);
        for capability in differing(was, is) {
            self.refresh(&capability, since);
        }
    }

    /// The relations that would come, were a member to publish something else.
    pub fn would_come(&self, group: &GroupName, was: &Published, is: &Published) -> Vec<Relation> {
        let mut changed = Self { providers: BTreeMap::new(), consumers: BTreeMap::new(), ..Self::default() };
        for capability in differing(was, is) {
            let copy = |sources: &Sources| sources.get(&capability).cloned().unwrap_or_default();
            changed.providers.insert(capability.clone(), copy(&self.providers));
            changed.consumers.insert(capability.clone(), copy(&self.consumers));
        }
        let only_differing = |capabilities: &BTreeSet<Capability>| -> BTreeSet<Capability> {
            capabilities.iter().filter(|one| changed.providers.contains_key(*one)).cloned().collect()
        };
        let only = |published: &Published| Published {
            provides: only_differing(&published.provides),
            consumes: only_differing(&published.consumes),
        };
        let (was, is) = (only(was), only(is));
        changed.count_published(group, &was, -1);
        changed.count_published(group, &is, 1);
        let capabilities: Vec<_> = changed.consumers.keys().cloned().collect();
        let made = capabilities.iter().flat_map(|capability| changed.made_by(capability));
        made.filter(|relation| !self.active.contains_key(relation)).collect()
    }

    /// Settings of these groups have changed: relations with a `when` on them come and go.
    pub fn settings_changed<'a>(
        &mut self,
        spec: &Spec,
        groups: impl Iterator<Item = &'a GroupName>,
        settings: impl Fn(&SettingId) -> Option<SettingValue>,
        since: Since,
    ) {
        let (come, gone) = self.with_settings(spec, groups, settings);
        gone.iter().for_each(|relation| self.remove(relation));
        let before = Self::default();
        come.into_iter().for_each(|relation| self.add(relation, &before, since));
    }

    /// The relations that come and those that go when settings of these groups have changed.
    pub fn with_settings<'a>(
        &self,
        spec: &Spec,
        groups: impl Iterator<Item = &'a GroupName>,
        settings: impl Fn(&SettingId) -> Option<SettingValue>,
    ) -> (Vec<Arc<Relation>>, Vec<Arc<Relation>>) {
        let groups: BTreeSet<_> = groups.collect();
        let (mut come, mut gone) = (Vec::new(), Vec::new());
        let is_touched =
            |relation: &&Arc<Relation>| relation.when.keys().any(|id| groups.contains(&id.group));
        for relation in spec.declared.iter().filter(is_touched) {
            match (self.active.contains_key(relation), relation.holds(&settings)) {
                (false, true) => come.push(relation.clone()),
                (true, false) => gone.push(relation.clone()),
                (true, true) | (false, false) => {}
            }
        }
        (come, gone)
    }

    /// Refuses what would go in a circle if some relations came and others went.
    ///
    /// # Errors
    /// The circle, as a spec that would make it is refused.
    pub fn check_circles(&self, come: &[Relation], gone: &[Arc<Relation>]) -> Result<(), SpecError> {
        let gone: BTreeSet<&Relation> = gone.iter().map(|relation| &**relation).collect();
        let mut next: BTreeMap<&GroupName, Vec<&GroupName>> = BTreeMap::new();
        let stays =
            self.active.keys().map(|relation| &**relation).filter(|relation| !gone.contains(relation));
        for relation in stays.chain(come).filter(|relation| relation.orders()) {
            next.entry(&relation.from).or_default().extend(&relation.to);
        }
        cycle(&next).map_or(Ok(()), |cycle| Err(circle(&cycle)))
    }

    fn count(&mut self, group: &GroupName, offers: bool, capability: &Capability, by: i32) {
        let sources = if offers { &mut self.providers } else { &mut self.consumers };
        let groups = sources.entry(capability.clone()).or_default();
        let count = groups.entry(group.clone()).or_default();
        *count = count.checked_add_signed(by).expect("nothing is withdrawn that was not published");
        if *count == 0 {
            groups.remove(group);
        }
        if groups.is_empty() {
            sources.remove(capability);
        }
    }

    fn count_published(&mut self, group: &GroupName, published: &Published, by: i32) {
        published.provides.iter().for_each(|capability| self.count(group, true, capability, by));
        published.consumes.iter().for_each(|capability| self.count(group, false, capability, by));
    }

    /// The relations that a capability makes: each consumer requires one of its providers.
    fn made_by(&self, capability: &Capability) -> Vec<Relation> {
        let (Some(consumers), Some(providers)) =
            (self.consumers.get(capability), self.providers.get(capability))
        else {
            return Vec::new();
        };
        let made = consumers.keys().filter_map(|from| {
            let others: Vec<_> = providers.keys().filter(|to| *to != from).cloned().collect();
            let need = if others.len() > 1 { Amount::Count(1) } else { Amount::All };
            Some(Relation {
                from: from.clone(),
                to: GroupList::new(others)?,
                kind: Kind::Requires,
                ask: None,
                on: BTreeSet::new(),
                need,
                scope: None,
                when: BTreeMap::new(),
                cascade: false,
                moving: false,
                origin: Origin::Capability,
                capability: Some(capability.clone()),
            })
        });
        made.collect()
    }

    /// Makes a capability's relations what they should be.
    fn refresh(&mut self, capability: &Capability, since: Since) {
        let is_made = |relation: &&Arc<Relation>| relation.capability.as_ref() == Some(capability);
        let ends = |sources: &Sources| {
            sources.get(capability).map(|groups| groups.keys().cloned().collect::<Vec<_>>())
        };
        // A capability that nobody consumes or provides any more still has the relations it had.
        let mut groups: BTreeSet<GroupName> = ends(&self.consumers).into_iter().flatten().collect();
        groups.extend(ends(&self.providers).into_iter().flatten());
        let made: BTreeSet<Relation> = self.made_by(capability).into_iter().collect();
        let known: Vec<_> = if groups.is_empty() || made.is_empty() {
            self.active.keys().filter(is_made).cloned().collect()
        } else {
            let known = groups.iter().flat_map(|group| self.of(group)).filter(is_made).cloned();
            known.collect::<BTreeSet<_>>().into_iter().collect()
        };
        let mut before = Self::default();
        for relation in known.iter().filter(|relation| !made.contains(&***relation)) {
            before.active.insert(relation.clone(), self.active[relation].clone());
            if !mutant::is(Mutant::RelationLeftOver) {
                self.remove(relation);
            }
        }
        for relation in made {
            if !self.active.contains_key(&relation) {
                self.add(Arc::new(relation), &before, since);
            }
        }
    }

    fn add(&mut self, relation: Arc<Relation>, before: &Self, since: Since) {
        if self.active.contains_key(&relation) {
            return;
        }
        // An edge that led there before, by the same rule, has been there since then.
        let earlier = before.active.get(&relation);
        let alike = || {
            let known = relation.capability.as_ref();
            let same =
                |other: &&Arc<Relation>| other.from == relation.from && other.capability.as_ref() == known;
            before.active.keys().filter(|_| known.is_some()).find(same).map(|known| &before.active[known])
        };
        let earlier = earlier.or_else(alike);
        let came = |to: &GroupName| earlier.and_then(|earlier| earlier.get(to)).copied().unwrap_or(since);
        let edges: BTreeMap<_, _> = relation.to.iter().map(|to| (to.clone(), came(to))).collect();
        self.put(relation, edges);
    }

    fn put(&mut self, relation: Arc<Relation>, edges: BTreeMap<GroupName, Since>) {
        self.pairs += edges.len();
        for group in relation.groups() {
            self.by_group.entry(group.clone()).or_default().insert(relation.clone());
        }
        self.active.insert(relation, edges);
    }

    fn remove(&mut self, relation: &Arc<Relation>) {
        let Some(edges) = self.active.remove(relation) else { return };
        self.pairs -= edges.len();
        for group in relation.groups() {
            if let Some(known) = self.by_group.get_mut(group) {
                known.remove(relation);
                if known.is_empty() {
                    self.by_group.remove(group);
                }
            }
        }
    }
}

/// The capabilities that one publishes and the other does not.
fn differing(was: &Published, is: &Published) -> BTreeSet<Capability> {
    let provides = was.provides.symmetric_difference(&is.provides);
    provides.chain(was.consumes.symmetric_difference(&is.consumes)).cloned().collect()
}

/// A look into the settings of all groups.
pub fn setting_in(
    settings: &BTreeMap<GroupName, Arc<Settings>>,
) -> impl Fn(&SettingId) -> Option<SettingValue> + '_ {
    |id| settings.get(&id.group)?.get(&id.key).cloned()
}

/// Checks what follows from a spec alone: capabilities that nobody else provides, the number of relations, circles
/// with the settings as they are declared.
pub(crate) fn check(spec: &Spec) -> Result<(), SpecError> {
    for (name, group) in &spec.groups {
        for capability in group.consumes.intersection(&group.provides) {
            if !spec.groups.iter().any(|(other, group)| other != name && group.provides.contains(capability))
            {
                let message = format!("{name} consumes {capability}, which it provides itself");
                let path = ["groups", name.as_str(), "consumes"];
                return Err(spec::invalid(&path, message, "take it out of one of the two lists"));
            }
        }
    }
    // Before they are derived: a capability may relate every group to every other one.
    let mut pairs: usize = spec.declared.iter().map(|relation| relation.to.count()).sum();
    let mut ends: BTreeMap<&Capability, (usize, usize)> = BTreeMap::new();
    for group in spec.groups.values() {
        group.provides.iter().for_each(|capability| ends.entry(capability).or_default().0 += 1);
        group.consumes.iter().for_each(|capability| ends.entry(capability).or_default().1 += 1);
    }
    pairs += ends.values().map(|(providers, consumers)| providers * consumers).sum::<usize>();
    check_count(pairs)?;
    Relations::declared(spec).check_circles(&[], &[])
}

/// The refusal of relations that go in a circle.
fn circle(cycle: &[GroupName]) -> SpecError {
    let path = cycle.iter().map(GroupName::as_str).collect::<Vec<_>>().join(" -> ");
    let help = "requires and after must not lead back to where they start: remove one of these";
    let error = spec::invalid(&["relations"], format!("{path} go in a circle"), help);
    SpecError { is_cycle: true, ..error }
}

pub(crate) fn check_count(pairs: usize) -> Result<(), SpecError> {
    if pairs <= RELATIONS_MAX {
        return Ok(());
    }
    let message = format!("more than {RELATIONS_MAX} relations, declared and derived");
    let help = "relate fewer groups: one group in the middle replaces many edges";
    Err(spec::invalid(&["relations"], message, help))
}

/// A cycle among ordering edges, closed, if there is one.
fn cycle(next: &BTreeMap<&GroupName, Vec<&GroupName>>) -> Option<Vec<GroupName>> {
    let mut done: BTreeSet<&GroupName> = BTreeSet::new();
    for &start in next.keys() {
        // An explicit stack: ten thousand groups in a row must not end the process.
        let mut path: Vec<(&GroupName, usize)> = vec![(start, 0)];
        let mut on_path = BTreeSet::from([start]);
        while let Some((group, tried)) = path.last_mut() {
            let group = *group;
            let Some(&to) = next.get(group).and_then(|targets| targets.get(*tried)) else {
                path.pop();
                on_path.remove(group);
                done.insert(group);
                continue;
            };
            *tried += 1;
            if on_path.contains(to) {
                let from = path.iter().position(|(group, _)| *group == to).expect("it is on the path");
                let mut cycle: Vec<_> = path[from..].iter().map(|(group, _)| (*group).clone()).collect();
                cycle.push(to.clone());
                return Some(cycle);
            }
            if !done.contains(to) {
                path.push((to, 0));
                on_path.insert(to);
            }
        }
    }
    None
}
