//! The declared cluster: as it is written ([`SpecFile`]), and as it is once checked ([`Spec`]), a type that
//! cannot be wrong.

use crate::id::{Capability, GroupName, HandlerName, LifecycleName, SettingKey, StateName};
use crate::lifecycle::{Lifecycle, Limit, STATES_MAX};
use crate::relation::{self, Relation};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The most groups a cluster may have; ten times what we have seen one team run.
pub const GROUPS_MAX: usize = 10_000;
/// The most relations, declared and derived: ten for each of the most groups. Every plan looks at all of them.
pub const RELATIONS_MAX: usize = 100_000;
/// The longest text of a label, a setting or the cluster's name, in bytes.
pub const TEXT_LEN_MAX: usize = 255;
/// The lease of hosts unless the spec says otherwise, in milliseconds.
pub const LEASE_MS_DEFAULT: u64 = 3000;
/// No deadline or hold is longer than a day: one that is was mistyped.
pub const DURATION_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// The declared cluster as it is written in `cluster.toml`, or the same as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// The cluster's name.
    pub cluster: String,
    /// The lease of every host, in milliseconds; 3000 by default.
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
    /// What happens when a step fails for good after the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
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
}

fn service() -> LifecycleName {
    LifecycleName::new("service").expect("a constant that is a valid name")
}

/// The handler that needs no entry on the host: its members are in whatever state they were last asked to be.
pub const HANDLER_NONE: &str = "none";

fn none() -> HandlerName {
    HandlerName::new(HANDLER_NONE).expect("a constant that is a valid name")
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

/// The value of a setting.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SettingValue {
    /// True or false.
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// Text.
    Text(String),
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
    /// The group it depends on, or is told of.
    pub to: GroupName,
    /// What the relation demands; `watches` by default.
    #[serde(default)]
    pub kind: Kind,
    /// Whether members of `from` are asked before members of `to` stop serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
}

/// What a relation demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `from` serves only while `to` serves.
    Requires,
    /// The order of `requires`, nothing else.
    After,
    /// Told only.
    #[default]
    Watches,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requires => "requires",
            Self::After => "after",
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
}

/// The declared cluster, checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Spec {
    /// The cluster's name; empty until the first spec is applied.
    pub cluster: String,
    /// The lease of every host, in milliseconds.
    pub lease_ms: u64,
    /// The groups.
    pub groups: BTreeMap<GroupName, Group>,
    /// The relations, declared and derived, in order.
    pub relations: Vec<Relation>,
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
    /// What happens when a step fails for good.
    pub on_failure: OnFailure,
    /// How long the phases may take.
    pub deadlines: Deadlines,
    /// How long a member may be held, in milliseconds.
    pub hold_ms: u64,
    /// How often a failed step is tried again.
    pub retries: u32,
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

fn invalid(path: &[&str], message: impl Into<String>, help: impl Into<String>) -> SpecError {
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
        let lease_ms = self.lease_ms.unwrap_or(LEASE_MS_DEFAULT);
        if !(300..=600_000).contains(&lease_ms) {
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
        for (name, file) in &self.groups {
            groups.insert(name.clone(), file.check(name, &lifecycles)?);
        }
        let relations = relation::derive(&self.relations, &groups)?;
        Ok(Spec { cluster: self.cluster.clone(), lease_ms, groups, relations })
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
        let lifecycle = Lifecycle {
            states: self.states.clone(),
            serving: self.serving.iter().cloned().collect(),
            edges: self.edges.iter().cloned().collect(),
            limits: self.limits.clone(),
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
    fn check(
        &self,
        name: &GroupName,
        lifecycles: &BTreeMap<LifecycleName, Lifecycle>,
    ) -> Result<Group, SpecError> {
        let at = |key: &'static str| ["groups", name.as_str(), key];
        if !self.groups.is_empty() {
            let message = "groups of groups are not available in this version";
            return Err(invalid(&at("groups"), message, "select the hosts by label"));
        }
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
        if self.retries > 1000 {
            let help = "at most 1000; deadlines_ms.commit bounds a step with its retries";
            return Err(invalid(&at("retries"), format!("{} retries", self.retries), help));
        }
        Ok(Group {
            select: self.select.clone(),
            lifecycle,
            limits,
            settings: self.settings.clone(),
            provides: self.provides.iter().cloned().collect(),
            consumes: self.consumes.iter().cloned().collect(),
            handler: self.handler.clone(),
            on_failure: self.on_failure.unwrap_or_default(),
            deadlines: self.deadlines_ms,
            hold_ms: self.hold_ms,
            retries: self.retries,
        })
    }
}

fn check_limit(path: &[&str], limit: &Limit) -> Result<(), SpecError> {
    use crate::lifecycle::Amount::Count;
    if let (Some(Count(min)), Some(Count(max))) = (limit.min, limit.max)
        && min > max
    {
        return Err(invalid(path, format!("min {min} is more than max {max}"), "lower min or raise max"));
    }
    Ok(())
}

/// Text that people will read in a terminal: short, and without characters that move the cursor or turn the
/// line around.
fn check_text(path: &[&str], text: &str) -> Result<(), SpecError> {
    match text_problem(text) {
        Some(problem) => Err(invalid(path, problem, "use plain text of at most 255 bytes")),
        None => Ok(()),
    }
}

/// What is wrong with a text that people will read, if anything.
pub fn text_problem(text: &str) -> Option<&'static str> {
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if text.len() > TEXT_LEN_MAX {
        Some("the text is longer than 255 bytes")
    } else if text.chars().any(char::is_control) {
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
