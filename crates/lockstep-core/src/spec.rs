//! The declared cluster: as it is written ([`SpecFile`]), and as it is once checked ([`Spec`]), a type that
//! cannot be wrong.

use crate::id::{Capability, GroupName, HandlerName, LifecycleName, SettingId, SettingKey, StateName};
use crate::lifecycle::{Amount, Lifecycle, Limit, STATES_MAX};
use crate::relation::{self, GroupList, Relation};
use crate::window::{WINDOWS_MAX, Windows};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// The most groups a cluster may have; ten times what we have seen one team run.
pub const GROUPS_MAX: usize = 10_000;
/// The most relations, declared and derived: ten for each of the most groups. Every plan looks at all of them.
pub const RELATIONS_MAX: usize = 100_000;
/// The longest text of a label, a setting or the cluster's name, in bytes.
pub const TEXT_LEN_MAX: usize = 255;
/// The lease of hosts unless the spec or the record of a reign says otherwise, in milliseconds.
pub const LEASE_MS_DEFAULT: u64 = 3000;
/// How long a lease may be, in milliseconds. Too low: hosts are lost when a network hiccups. Too high: nobody notices that
/// one is.
pub(crate) const LEASE_MS: std::ops::RangeInclusive<u64> = 300..=600_000;
/// No deadline or hold is longer than a day: one that is was mistyped.
pub const DURATION_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// The declared cluster as it is written in `cluster.toml`, or the same as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The cluster's name.
    pub cluster: String,
    /// The lease of every host, in milliseconds; that of the reign by default: 3000, or 6000 on a shared store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// The groups by name.
    #[serde(default)]
    pub groups: BTreeMap<GroupName, GroupFile>,
    /// The declared relations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relations: Vec<RelationFile>,
    /// The cluster's own lifecycles.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lifecycles: BTreeMap<LifecycleName, LifecycleFile>,
}

/// A group as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupFile {
    /// Labels that must all match.
    #[serde(default)]
    pub select: BTreeMap<String, Selector>,
    /// The groups of a composite.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupName>,
    /// The lifecycle: `service` by default.
    #[serde(default = "service")]
    pub lifecycle: LifecycleName,
    /// Limits of states, over those of the lifecycle.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<StateName, Limit>,
    /// Durable key-values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<SettingKey, SettingValue>,
    /// Capabilities it offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub provides: Vec<Capability>,
    /// Capabilities it cannot serve without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consumes: Vec<Capability>,
    /// The name of the handler that the hosts' own configuration explains; `none` by default.
    #[serde(default = "none")]
    pub handler: HandlerName,
    /// How many of its members may be on their way at once; all by default.
    #[serde(default = "all", skip_serializing_if = "is_all")]
    pub parallel: Amount,
    /// What happens when a step fails for good after the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// What moves by itself when members fail.
    #[serde(default, skip_serializing_if = "Recover::is_off")]
    pub recover: Recover,
    /// How long the phases may take.
    #[serde(default)]
    pub deadlines_ms: Deadlines,
    /// How long a member of this group may be held, in milliseconds. Too low: the decision does not come in
    /// time and the transition aborts with `hold-too-short`. Too high: clients wait that long when all fails.
    #[serde(default = "hold_ms")]
    pub hold_ms: u64,
    /// How often a failed step is tried again.
    #[serde(default = "retries")]
    pub retries: u32,
    /// When planned transitions may move it, by the wall clock in UTC, such as `mon-fri 22:00-04:00`; always when there
    /// are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<String>,
}

fn service() -> LifecycleName {
    LifecycleName::new("service").expect("a constant that is a valid name")
}

/// The handler that needs no entry on the host: its members are in whatever state they were last asked to be.
pub const HANDLER_NONE: &str = "none";

/// The handler of a host that can make sure that others have stopped; no member's.
pub const HANDLER_FENCE: &str = "fence";

fn none() -> HandlerName {
    HandlerName::new(HANDLER_NONE).expect("a constant that is a valid name")
}

pub(crate) fn all() -> Amount {
    Amount::All
}

pub(crate) fn is_all(amount: &Amount) -> bool {
    *amount == Amount::All
}

pub(crate) fn hold_ms() -> u64 {
    5000
}

fn retries() -> u32 {
    3
}

/// The deadlines of a group's phases, in milliseconds. `check` and `prepare` bound the phase; `commit` bounds
/// each step together with its retries. Too low: healthy members vote too late. Too high: a hung one is noticed
/// late, in `prepare` while clients wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// Check, 5,000 by default.
    pub check: u64,
    /// Prepare, 5,000 by default.
    pub prepare: u64,
    /// Commit and undo, 60,000 by default.
    pub commit: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { check: 5000, prepare: 5000, commit: 60_000 }
    }
}

/// What happens when a step fails for good after the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Every step taken is taken back.
    #[default]
    Undo,
    /// The member is left out, the rest goes on.
    Exclude,
}

/// What a group does by itself when its members fail, and on what evidence a place limited by `max` or `excludes` is
/// given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recover {
    /// Nothing moves by itself; members run on while the server is away.
    #[default]
    Off,
    /// It is repaired. Limited places are given away once a fence handler, the member's own host or a person says that
    /// the member is not there any more.
    Fence,
    /// It is repaired. The end of a host's lease is evidence too, for members that are surely stopped by then.
    Lease,
}

impl Recover {
    fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

/// What a label must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Selector {
    /// This value; one that starts with `<`, `<=`, `>`, `>=` and a number compares.
    One(String),
    /// One of these values.
    OneOf(Vec<String>),
}

impl Selector {
    /// Whether a label's value matches. A comparison holds only for values that are whole numbers.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::One(wanted) => match comparison(wanted) {
                Some((operator, bound)) => {
                    value.parse::<i64>().is_ok_and(|value| operator.holds(value, bound))
                }
                None => wanted == value,
            },
            Self::OneOf(values) => values.iter().any(|wanted| wanted == value),
        }
    }
}

#[derive(Clone, Copy)]
enum Operator {
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

impl Operator {
    fn holds(self, value: i64, bound: i64) -> bool {
        match self {
            Self::Less => value < bound,
            Self::LessOrEqual => value <= bound,
            Self::More => value > bound,
            Self::MoreOrEqual => value >= bound,
        }
    }
}

fn comparison(text: &str) -> Option<(Operator, i64)> {
    let (operator, bound) = if let Some(bound) = text.strip_prefix("<=") {
        (Operator::LessOrEqual, bound)
    } else if let Some(bound) = text.strip_prefix(">=") {
        (Operator::MoreOrEqual, bound)
    } else if let Some(bound) = text.strip_prefix('<') {
        (Operator::Less, bound)
    } else {
        (Operator::More, text.strip_prefix('>')?)
    };
    bound.trim().parse().ok().map(|bound| (operator, bound))
}

/// The settings of one group.
pub type Settings = BTreeMap<SettingKey, SettingValue>;

/// The value of a setting.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SettingValue {
    /// True or false.
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// Text.
    Text(String),
}

impl SettingValue {
    /// Reads a value of the same kind as this one: what was declared as a number stays a number.
    ///
    /// # Errors
    /// What it should have been.
    pub fn parse_alike(&self, text: &str) -> Result<Self, &'static str> {
        match self {
            Self::Flag(_) => text.parse().map(Self::Flag).map_err(|_| "true or false"),
            Self::Number(_) => text.parse().map(Self::Number).map_err(|_| "a whole number"),
            Self::Text(_) => Ok(Self::Text(text.to_owned())),
        }
    }

    /// Whether both are flags, numbers, or texts.
    pub fn is_alike(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// A relation as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelationFile {
    /// The group that depends, or is told.
    pub from: GroupName,
    /// The group it depends on, or is told of; or several.
    pub to: GroupList,
    /// What the relation demands; `watches` by default.
    #[serde(default)]
    pub kind: Kind,
    /// Whether members of `from` are asked before members of `to` stop serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
    /// Settings of `to` before whose change they are asked too.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub on: BTreeSet<SettingKey>,
    /// How many of the groups in `to` must serve; all by default.
    #[serde(default = "all", skip_serializing_if = "is_all")]
    pub need: Amount,
    /// A label: members are paired only where it is equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The relation exists while these settings have these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub when: BTreeMap<SettingId, SettingValue>,
    /// Of `requires`: `from` is taken down rather than the request refused. Of `excludes`: likewise the one of both
    /// that was not asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cascade: bool,
    /// Of `excludes`: both may serve, and never move at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moving: bool,
}

/// What a relation demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `from` serves only while `to` serves.
    Requires,
    /// The order of `requires`, nothing else.
    After,
    /// They never serve together; or, with `moving`, are never in transition together.
    Excludes,
    /// Told only.
    #[default]
    Watches,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requires => "requires",
            Self::After => "after",
            Self::Excludes => "excludes",
            Self::Watches => "watches",
        })
    }
}

/// How members of a related group are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// They vote.
    Vote,
    /// They vote, hold before the decision and release after it.
    Hold,
}

/// A lifecycle as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LifecycleFile {
    /// The states, lowest first.
    pub states: Vec<StateName>,
    /// Which of them serve.
    pub serving: Vec<StateName>,
    /// Limits of states.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<StateName, Limit>,
    /// The edges a member may take.
    pub edges: Vec<(StateName, StateName)>,
    /// Where a member goes when its host is drained; the lowest state by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<StateName>,
}

/// The declared cluster, checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Spec {
    /// The cluster's name; empty until the first spec is applied.
    pub cluster: String,
    /// The lease of every host, in milliseconds; none: [`crate::cluster::Cluster::lease_ms`] knows which.
    pub lease_ms: Option<u64>,
    /// The groups that have members.
    pub groups: BTreeMap<GroupName, Group>,
    /// The groups of groups, each with all the groups of members in it, however deep.
    pub composites: BTreeMap<GroupName, BTreeSet<GroupName>>,
    /// The declared relations, composites taken apart; those with a `when` exist only while it holds.
    pub declared: Vec<Arc<Relation>>,
}

impl Spec {
    /// The groups of members that a name stands for: itself, or those of a composite; none: it is not known.
    pub fn leaves(&self, name: &GroupName) -> Option<Vec<&GroupName>> {
        match (self.groups.get_key_value(name), self.composites.get(name)) {
            (Some((name, _)), _) => Some(vec![name]),
            (None, Some(leaves)) => Some(leaves.iter().collect()),
            (None, None) => None,
        }
    }
}

/// A group, checked: its lifecycle is known and its limits fit it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Group {
    /// Labels that must all match; nothing matches an empty one.
    pub select: BTreeMap<String, Selector>,
    /// The lifecycle.
    pub lifecycle: Lifecycle,
    /// The limits in force: the lifecycle's, overlaid by the group's own.
    pub limits: BTreeMap<StateName, Limit>,
    /// The settings it was declared with.
    pub settings: BTreeMap<SettingKey, SettingValue>,
    /// Capabilities it offers.
    pub provides: BTreeSet<Capability>,
    /// Capabilities it cannot serve without.
    pub consumes: BTreeSet<Capability>,
    /// The handler's name.
    pub handler: HandlerName,
    /// How many of its members may be on their way at once.
    pub parallel: Amount,
    /// What happens when a step fails for good.
    pub on_failure: OnFailure,
    /// What moves by itself when members fail.
    pub recover: Recover,
    /// How long the phases may take.
    pub deadlines: Deadlines,
    /// How long a member may be held, in milliseconds.
    pub hold_ms: u64,
    /// How often a failed step is tried again.
    pub retries: u32,
    /// When planned transitions may move it.
    pub windows: Windows,
}

impl Group {
    /// Whether a host with these labels belongs to the group.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.select.is_empty()
            && self
                .select
                .iter()
                .all(|(key, wanted)| labels.get(key).is_some_and(|value| wanted.matches(value)))
    }

    /// The declared `min` of a state, else 1 for a serving one and 0 for any other.
    pub fn min(&self, state: &StateName, members: usize) -> usize {
        let declared = self.limits.get(state).and_then(|limit| limit.min);
        declared.map_or(usize::from(self.lifecycle.serves(state)), |min| min.as_min(members))
    }

    /// The `max` of a state; `None` when it has no bound.
    pub fn max(&self, state: &StateName, members: usize) -> Option<usize> {
        self.limits.get(state).and_then(|limit| limit.max).map(|max| max.as_max(members))
    }
}

/// A spec that was refused: where, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", path.join("."))]
pub struct SpecError {
    /// The keys that lead to the place; numbers count in arrays.
    pub path: Vec<String>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
    /// Whether it is a cycle of relations, which has a code of its own.
    pub is_cycle: bool,
}

pub(crate) fn invalid(path: &[&str], message: impl Into<String>, help: impl Into<String>) -> SpecError {
    let path = path.iter().map(|&key| key.to_owned()).collect();
    SpecError { path, message: message.into(), help: help.into(), is_cycle: false }
}

impl SpecFile {
    /// Checks the whole, and derives what follows from it.
    pub fn check(&self) -> Result<Spec, SpecError> {
        check_text(&["cluster"], &self.cluster)?;
        if self.cluster.is_empty() {
            return Err(invalid(&["cluster"], "the cluster has no name", "give it one, such as \"shop\""));
        }
        if let Some(lease_ms) = self.lease_ms.filter(|lease_ms| !LEASE_MS.contains(lease_ms)) {
            let help = "a lease is between 300 ms and 10 minutes; 3000 is a good start";
            return Err(invalid(&["lease_ms"], format!("a lease of {lease_ms} ms"), help));
        }
        if self.groups.len() > GROUPS_MAX {
            let message = format!("{} groups, at most {GROUPS_MAX}", self.groups.len());
            return Err(invalid(&["groups"], message, "split the cluster"));
        }
        let mut lifecycles = BTreeMap::new();
        for (name, file) in &self.lifecycles {
            if Lifecycle::built_in(name).is_some() {
                let message = format!("{name} is built in");
                return Err(invalid(&["lifecycles", name.as_str()], message, "choose another name"));
            }
            lifecycles.insert(name.clone(), file.check(name)?);
        }
        let mut groups = BTreeMap::new();
        for (name, file) in self.groups.iter().filter(|(_, file)| file.groups.is_empty()) {
            groups.insert(name.clone(), file.check(name, &lifecycles)?);
        }
        let composites = self.composites()?;
        let mut spec = Spec {
            cluster: self.cluster.clone(),
            lease_ms: self.lease_ms,
            groups,
            composites,
            declared: Vec::new(),
        };
        spec.declared = relation::declared(&self.relations, &spec)?;
        relation::check(&spec)?;
        Ok(spec)
    }

    /// The groups of groups, each with the groups of members in it.
    fn composites(&self) -> Result<BTreeMap<GroupName, BTreeSet<GroupName>>, SpecError> {
        let mut composites = BTreeMap::new();
        for (name, file) in self.groups.iter().filter(|(_, file)| !file.groups.is_empty()) {
            let at = ["groups", name.as_str(), "groups"];
            file.check_composite(name)?;
            let mut leaves = BTreeSet::new();
            let mut seen = BTreeSet::from([name]);
            let mut open: Vec<&GroupName> = file.groups.iter().collect();
            while let Some(part) = open.pop() {
                let Some(inner) = self.groups.get(part) else {
                    let message = format!("there is no group {part}");
                    return Err(invalid(&at, message, "list groups that are declared"));
                };
                if part == name {
                    let message = format!("{name} is part of itself");
                    return Err(invalid(&at, message, "take it out of the groups that it is made of"));
                }
                if !seen.insert(part) {
                    continue;
                }
                if inner.groups.is_empty() {
                    leaves.insert(part.clone());
                }
                open.extend(&inner.groups);
            }
            composites.insert(name.clone(), leaves);
        }
        Ok(composites)
    }
}

impl LifecycleFile {
    fn check(&self, name: &LifecycleName) -> Result<Lifecycle, SpecError> {
        let at = |key: &'static str| ["lifecycles", name.as_str(), key];
        if self.states.len() < 2 || self.states.len() > STATES_MAX {
            let message = format!("{} states", self.states.len());
            return Err(invalid(&at("states"), message, format!("list 2 to {STATES_MAX}, lowest first")));
        }
        let known: BTreeSet<_> = self.states.iter().cloned().collect();
        if known.len() < self.states.len() {
            return Err(invalid(&at("states"), "a state is listed twice", "list each once, lowest first"));
        }
        let unknown = |key, state: &StateName| {
            let message = format!("{state} is not a state of {name}");
            invalid(&at(key), message, format!("its states are {}", list(&self.states)))
        };
        if self.serving.is_empty() {
            let help = "list the states in which a member does its work";
            return Err(invalid(&at("serving"), "no state serves", help));
        }
        for state in &self.serving {
            if !known.contains(state) {
                return Err(unknown("serving", state));
            }
            if *state == self.states[0] {
                let help = "the lowest state is where everything is off; put another one below it";
                return Err(invalid(&at("serving"), format!("{state} is the lowest state and serves"), help));
            }
        }
        for (from, to) in &self.edges {
            if let Some(state) = [from, to].into_iter().find(|state| !known.contains(*state)) {
                return Err(unknown("edges", state));
            }
            if from == to {
                let help = "an edge leads from one state to another";
                return Err(invalid(&at("edges"), format!("an edge from {from} to itself"), help));
            }
        }
        for (state, limit) in &self.limits {
            if !known.contains(state) {
                return Err(unknown("limits", state));
            }
            check_limit(&["lifecycles", name.as_str(), "limits", state.as_str()], limit)?;
        }
        let drained = self.drained.as_ref().unwrap_or(&self.states[0]);
        if !known.contains(drained) {
            return Err(unknown("drained", drained));
        }
        if self.serving.contains(drained) {
            let help = "a drained member does no work: name a state that does not serve";
            return Err(invalid(&at("drained"), format!("{drained} serves"), help));
        }
        let lifecycle = Lifecycle {
            states: self.states.clone(),
            serving: self.serving.iter().cloned().collect(),
            edges: self.edges.iter().cloned().collect(),
            limits: self.limits.clone(),
            drained: drained.clone(),
        };
        let lowest = lifecycle.lowest();
        for state in &lifecycle.states[1..] {
            for (from, to) in [(lowest, state), (state, lowest)] {
                if lifecycle.path(from, to).is_none() {
                    let help = "every state needs a way up from the lowest state and a way back down";
                    return Err(invalid(&at("edges"), format!("no edges lead from {from} to {to}"), help));
                }
            }
        }
        Ok(lifecycle)
    }
}

impl GroupFile {
    /// A group of groups has no members of its own, so nothing may be said of them.
    fn check_composite(&self, name: &GroupName) -> Result<(), SpecError> {
        let plain: GroupFile = serde_json::from_str("{}").expect("every key of a group has a default");
        let own = [
            ("select", self.select == plain.select),
            ("lifecycle", self.lifecycle == plain.lifecycle),
            ("limits", self.limits == plain.limits),
            ("settings", self.settings == plain.settings),
            ("provides", self.provides == plain.provides),
            ("consumes", self.consumes == plain.consumes),
            ("handler", self.handler == plain.handler),
            ("parallel", self.parallel == plain.parallel),
            ("on_failure", self.on_failure == plain.on_failure),
            ("recover", self.recover == plain.recover),
            ("deadlines_ms", self.deadlines_ms == plain.deadlines_ms),
            ("hold_ms", self.hold_ms == plain.hold_ms),
            ("retries", self.retries == plain.retries),
            ("windows", self.windows == plain.windows),
        ];
        match own.into_iter().find(|(_, is_plain)| !is_plain) {
            Some((key, _)) => {
                let message = format!("{name} is made of groups, and has no {key} of its own");
                let help = "say it of the groups in it, or select hosts instead of listing groups";
                Err(invalid(&["groups", name.as_str(), key], message, help))
            }
            None => Ok(()),
        }
    }

    fn check(
        &self,
        name: &GroupName,
        lifecycles: &BTreeMap<LifecycleName, Lifecycle>,
    ) -> Result<Group, SpecError> {
        let at = |key: &'static str| ["groups", name.as_str(), key];
        for (key, selector) in &self.select {
            let place = ["groups", name.as_str(), "select", key.as_str()];
            check_text(&place, key)?;
            match selector {
                Selector::One(value) => check_text(&place, value)?,
                Selector::OneOf(values) => values.iter().try_for_each(|value| check_text(&place, value))?,
            }
            if let Selector::One(value) = selector
                && value.starts_with(['<', '>'])
                && comparison(value).is_none()
            {
                let help = "compare with a whole number, such as \">100\"";
                return Err(invalid(&place, format!("{value:?} compares with no number"), help));
            }
        }
        let Some(lifecycle) =
            lifecycles.get(&self.lifecycle).cloned().or(Lifecycle::built_in(&self.lifecycle))
        else {
            let known: Vec<_> = lifecycles.keys().map(LifecycleName::as_str).collect();
            let help = format!("there are {}", list(["service", "primary-standby"].iter().chain(&known)));
            let message = format!("there is no lifecycle {}", self.lifecycle);
            return Err(invalid(&at("lifecycle"), message, help));
        };
        let mut limits = lifecycle.limits.clone();
        for (state, own) in &self.limits {
            let place = ["groups", name.as_str(), "limits", state.as_str()];
            if lifecycle.rank(state).is_none() {
                let message = format!("{state} is not a state of lifecycle {}", self.lifecycle);
                return Err(invalid(&place, message, format!("its states are {}", list(&lifecycle.states))));
            }
            let limit = limits.entry(state.clone()).or_default();
            limit.min = own.min.or(limit.min);
            limit.max = own.max.or(limit.max);
            check_limit(&place, limit)?;
        }
        for (key, value) in &self.settings {
            if let SettingValue::Text(text) = value {
                check_text(&["groups", name.as_str(), "settings", key.as_str()], text)?;
            }
            if key.as_str().bytes().any(|byte| byte.is_ascii_uppercase()) {
                let place = ["groups", name.as_str(), "settings", key.as_str()];
                let help = "write it in lower case: handlers see it in upper case, as LOCKSTEP_SET_<KEY>";
                return Err(invalid(&place, format!("setting {key} has upper case letters"), help));
            }
        }
        let Deadlines { check, prepare, commit } = self.deadlines_ms;
        let durations = [
            ("deadlines_ms", check),
            ("deadlines_ms", prepare),
            ("deadlines_ms", commit),
            ("hold_ms", self.hold_ms),
        ];
        for (key, ms) in durations {
            if !(1..=DURATION_MAX_MS).contains(&ms) {
                let help = format!("between 1 and {DURATION_MAX_MS} (a day)");
                return Err(invalid(&at(key), format!("{ms} ms"), help));
            }
        }
        if self.handler.as_str() == HANDLER_FENCE {
            let help = "it turns other hosts off: give the group's own handler another name";
            return Err(invalid(&at("handler"), "the handler fence is no member's", help));
        }
        if matches!(self.parallel, Amount::Count(0) | Amount::Percent(0)) {
            let help = "at least 1: nobody could move";
            return Err(invalid(&at("parallel"), format!("parallel = {}", self.parallel), help));
        }
        if self.retries > 1000 {
            let help = "at most 1000; deadlines_ms.commit bounds a step with its retries";
            return Err(invalid(&at("retries"), format!("{} retries", self.retries), help));
        }
        if self.windows.len() > WINDOWS_MAX {
            let message = format!("{} windows, at most {WINDOWS_MAX}", self.windows.len());
            return Err(invalid(&at("windows"), message, "write days and times that are alike as one"));
        }
        let windows = Windows::parse(&self.windows).map_err(|(place, problem)| {
            let help =
                "write days and times in UTC, such as \"mon-fri 22:00-04:00\" or \"sat,sun 00:00-24:00\"";
            invalid(&["groups", name.as_str(), "windows", &place.to_string()], problem, help)
        })?;
        Ok(Group {
            select: self.select.clone(),
            lifecycle,
            limits,
            settings: self.settings.clone(),
            provides: self.provides.iter().cloned().collect(),
            consumes: self.consumes.iter().cloned().collect(),
            handler: self.handler.clone(),
            parallel: self.parallel,
            on_failure: self.on_failure.unwrap_or_default(),
            recover: self.recover,
            deadlines: self.deadlines_ms,
            hold_ms: self.hold_ms,
            retries: self.retries,
            windows,
        })
    }
}

fn check_limit(path: &[&str], limit: &Limit) -> Result<(), SpecError> {
    use Amount::Count;
    if let (Some(Count(min)), Some(Count(max))) = (limit.min, limit.max)
        && min > max
    {
        return Err(invalid(path, format!("min {min} is more than max {max}"), "lower min or raise max"));
    }
    Ok(())
}

/// Text that people will read in a terminal: short, and without characters that move the cursor or turn the
/// line around.
pub(crate) fn check_text(path: &[&str], text: &str) -> Result<(), SpecError> {
    match text_problem(text) {
        Some(problem) => Err(invalid(path, problem, "use plain text of at most 255 bytes")),
        None => Ok(()),
    }
}

/// What is wrong with a text that people will read, if anything.
pub fn text_problem(text: &str) -> Option<&'static str> {
    if text.len() > TEXT_LEN_MAX {
        return Some("the text is longer than 255 bytes");
    }
    characters_problem(text)
}

/// What is wrong with the characters of a text that people will read, however long it is.
pub fn characters_problem(text: &str) -> Option<&'static str> {
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if text.chars().any(char::is_control) {
        Some("the text has control characters")
    } else if text.chars().any(turns) {
        Some("the text has marks that turn its direction")
    } else {
        None
    }
}

/// `a, b and c`.
pub(crate) fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    match items.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
