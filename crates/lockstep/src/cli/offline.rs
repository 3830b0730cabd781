//! A cluster from two files instead of a journal: for reviews, CI and tests.
//!
//! The state is turned into the records that would have led to it, and folded by the same fold that a server uses. What
//! only transitions lead to is put in its place afterwards. A server's state is written the same way ([`exported`]), and
//! plans as the server does.

use crate::api::object::{Freeze, Group, Host, Member as Shown};
use crate::spec_file::{File, FileError, Problem, Refused};
use lockstep_core::cluster::{Cluster, Mark, Member};
use lockstep_core::id::{AgentId, Capability, GroupName, HostName, Index, MemberId, SettingKey, StateName};
use lockstep_core::plan::Scores;
use lockstep_core::record::{Body, HostChange, Liveness, Record};
use lockstep_core::relation::Published;
use lockstep_core::request::{Code, REASON_LEN_MAX};
use lockstep_core::spec::{SettingValue, Settings, Spec, SpecFile, characters_problem, text_problem};
use lockstep_core::time::WallTime;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// The kind of refusal when a state is wrong in a way that has no rejection code.
pub const STATE_INVALID: &str = "state-invalid";

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateFile {
    /// The hosts.
    pub hosts: Vec<HostEntry>,
    /// The members that are not alive and well in their lowest state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberEntry>,
    /// The settings that differ from the declared ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<GroupName, BTreeMap<SettingKey, SettingValue>>,
    /// The freezes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freezes: Vec<FreezeEntry>,
}

/// A freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeEntry {
    /// The groups; none: the whole cluster.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub groups: BTreeSet<GroupName>,
    /// Why.
    pub reason: String,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// Its name.
    pub name: HostName,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How it is seen; alive by default.
    #[serde(default)]
    pub liveness: Liveness,
    /// Whether it has been drained.
    #[serde(default, skip_serializing_if = "is_default")]
    pub drained: bool,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberEntry {
    /// Its group.
    pub group: GroupName,
    /// Its host.
    pub host: HostName,
    /// Its state; the lowest by default.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub state: Option<StateName>,
    /// Its state cannot be told.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unknown: bool,
    /// The state it should have; the one it is in by default.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub goal: Option<StateName>,
    /// Its last transition has left it elsewhere than planned.
    #[serde(default, skip_serializing_if = "is_default")]
    pub failed: bool,
    /// Its last transition has left it in doubt: the states that it may be in.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub may_be: BTreeSet<StateName>,
    /// Its host no longer matches the group's labels.
    #[serde(default, skip_serializing_if = "is_default")]
    pub leaving: bool,
    /// The settings that it has taken; those in force by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Settings>,
    /// Capabilities that it says it provides, beside those that its group declares.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub provides: BTreeSet<Capability>,
    /// Capabilities that it says it consumes.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub consumes: BTreeSet<Capability>,
    /// How fit it is to be chosen; 0 by default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub score: i64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A value that is there: a null is refused rather than read as the default.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<StateName>, D::Error> {
    StateName::deserialize(deserializer).map(Some)
}

/// Reads `state.json` and builds the cluster that it describes.
///
/// # Errors
/// If it cannot be read, or does not fit the spec.
pub fn load(path: &Path, written: SpecFile, spec: &Spec) -> Result<(Cluster, Scores), FileError> {
    let file = File::read(path, STATE_INVALID)?;
    let help = "a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid";
    let state: StateFile = file.parse(STATE_INVALID, help).map_err(FileError::Refused)?;
    let refused = |(path, problem): Misplaced| {
        FileError::Refused(Box::new(Refused::new(&file, file.locate(&path), problem)))
    };
    check(&state, spec).map_err(refused)?;
    let built = build(state, written);
    // What members publish may relate groups in a circle, which a server would not have taken.
    built.0.relations.check_circles(&[], &[]).map_err(|circle| {
        let problem = Problem::new(Code::Cycle.as_str(), circle.message, circle.help);
        refused((vec!["members".to_owned()], problem))
    })?;
    Ok(built)
}

/// The state of a server's cluster, as [`load`] reads it. Transitions under way are not in it.
///
/// # Errors
/// If the server answers with names that this version does not take.
pub fn exported(
    hosts: &[Host],
    groups: &[Group],
    members: &[Shown],
    freezes: &[Freeze],
) -> Result<StateFile, serde_json::Error> {
    let is_some = |value: &Value| !value.is_null();
    let host = |host: &Host| json!({"name": host.name, "labels": host.labels, "liveness": host.liveness, "drained": host.drained});
    let member = |member: &Shown| {
        // One whose group is not declared any more is in no plan.
        let group = groups.iter().find(|group| group.name == member.group)?;
        let is_idle = member.transition.is_none();
        let entry = json!({
            "group": member.group, "host": member.host, "state": member.actual, "unknown": member.actual.is_none(),
            "goal": member.goal.as_ref().filter(|goal| member.actual.as_ref() != Some(*goal)),
            "failed": is_idle && member.mark.as_deref() == Some("failed"), "may_be": member.may_be,
            "leaving": member.leaving,
            "settings": Some(&member.settings).filter(|taken| **taken != group.settings),
            "provides": member.provides, "consumes": member.consumes, "score": member.score.unwrap_or_default(),
        });
        let Value::Object(fields) = entry else { unreachable!("it is written as one") };
        Some(Value::Object(fields.into_iter().filter(|(_, value)| is_some(value)).collect()))
    };
    let settings = groups.iter().filter(|group| !group.settings.is_empty());
    let settings: Map<_, _> =
        settings.map(|group| (group.name.clone(), group.settings.clone().into())).collect();
    serde_json::from_value(json!({
        "hosts": hosts.iter().map(host).collect::<Vec<_>>(),
        "members": members.iter().filter_map(member).collect::<Vec<_>>(),
        "settings": settings,
        "freezes": freezes.iter().map(|freeze| json!({"groups": freeze.groups, "reason": freeze.reason})).collect::<Vec<_>>(),
    }))
}

type Misplaced = (Vec<String>, Problem);

fn check(state: &StateFile, spec: &Spec) -> Result<(), Misplaced> {
    let at = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>();
    let mut hosts: BTreeMap<&HostName, &HostEntry> = BTreeMap::new();
    for (place, host) in state.hosts.iter().enumerate() {
        let place = place.to_string();
        let texts = host.labels.iter().flat_map(|(key, value)| [(key, key), (key, value)]);
        for (key, text) in texts {
            if let Some(problem) = text_problem(text) {
                let problem = Problem::new(STATE_INVALID, problem, "use plain text of at most 255 bytes");
                return Err((at(&["hosts", &place, "labels", key]), problem));
            }
        }
        if hosts.insert(&host.name, host).is_some() {
            let message = format!("host {} is there twice", host.name);
            let problem = Problem::new(STATE_INVALID, message, "list each host once");
            return Err((at(&["hosts", &place, "name"]), problem));
        }
    }
    let mut members = BTreeSet::new();
    for (place, member) in state.members.iter().enumerate() {
        let place = place.to_string();
        let wrong = |key: &str, code: Code, message: String, help: String| {
            Err((at(&["members", &place, key]), Problem::new(code.as_str(), message, help)))
        };
        let MemberEntry { group: name, host, .. } = member;
        let Some(group) = spec.groups.get(name) else {
            return wrong("group", Code::UnknownGroup, format!("there is no group {name}"), known(spec));
        };
        let Some(entry) = hosts.get(host) else {
            let help = "list it under `hosts`".to_owned();
            return wrong("host", Code::UnknownHost, format!("there is no host {host}"), help);
        };
        if group.selects(&entry.labels) && member.leaving {
            let message = format!("host {host} is in group {name}: its labels match");
            return wrong("leaving", Code::UnknownMember, message, "leave this key out".to_owned());
        }
        if !group.selects(&entry.labels) && !member.leaving {
            let message = format!("host {host} is not in group {name}: its labels do not match");
            let help = format!("see `select` of [groups.{name}], and the host's `labels`");
            return wrong("host", Code::UnknownMember, message, help);
        }
        let named = [("state", &member.state), ("goal", &member.goal)];
        let named = named.into_iter().flat_map(|(key, state)| state.iter().map(move |state| (key, state)));
        for (key, state) in named.chain(member.may_be.iter().map(|state| ("may_be", state))) {
            if group.lifecycle.rank(state).is_none() {
                let states: Vec<_> = group.lifecycle.states.iter().map(StateName::as_str).collect();
                let help = format!("its states are {}", states.join(", "));
                return wrong(key, Code::UnknownState, format!("group {name} has no state {state}"), help);
            }
        }
        if member.unknown && member.state.is_some() {
            let message = format!("the state of {name}@{host} is given, and not known");
            let problem = Problem::new(STATE_INVALID, message, "leave one of both keys out");
            return Err((at(&["members", &place, "unknown"]), problem));
        }
        if !members.insert((name, host)) {
            let message = format!("member {name}@{host} is there twice");
            let problem = Problem::new(STATE_INVALID, message, "list each member once");
            return Err((at(&["members", &place]), problem));
        }
    }
    for (name, settings) in &state.settings {
        let Some(group) = spec.groups.get(name) else {
            let message = format!("there is no group {name}");
            let problem = Problem::new(Code::UnknownGroup.as_str(), message, known(spec));
            return Err((at(&["settings", name.as_str()]), problem));
        };
        for (key, value) in settings {
            let Some(declared) = group.settings.get(key) else {
                let message = format!("group {name} has no setting {key}");
                let help = format!("declare it under [groups.{name}.settings]");
                let problem = Problem::new(Code::UnknownSetting.as_str(), message, help);
                return Err((at(&["settings", name.as_str(), key.as_str()]), problem));
            };
            let problem = match value {
                other if !declared.is_alike(other) => {
                    Some(format!("{name}.{key} is declared as {declared}, which is another kind of value"))
                }
                SettingValue::Text(text) => text_problem(text).map(str::to_owned),
                SettingValue::Flag(_) | SettingValue::Number(_) => None,
            };
            if let Some(problem) = problem {
                let help = "give a value of the kind that the spec declares";
                let problem = Problem::new(STATE_INVALID, problem, help);
                return Err((at(&["settings", name.as_str(), key.as_str()]), problem));
            }
        }
    }
    for (place, freeze) in state.freezes.iter().enumerate() {
        if let Some(name) = freeze.groups.iter().find(|name| spec.leaves(name).is_none()) {
            let message = format!("there is no group {name}");
            let problem = Problem::new(Code::UnknownGroup.as_str(), message, known(spec));
            return Err((at(&["freezes", &place.to_string(), "groups"]), problem));
        }
        let is_long = freeze.reason.len() > REASON_LEN_MAX;
        let problem = if is_long { Some("the text is too long") } else { characters_problem(&freeze.reason) };
        if let Some(problem) = problem {
            let help = format!("use plain text of at most {REASON_LEN_MAX} bytes");
            let problem = Problem::new(STATE_INVALID, problem, help);
            return Err((at(&["freezes", &place.to_string(), "reason"]), problem));
        }
    }
    Ok(())
}

fn known(spec: &Spec) -> String {
    let known: Vec<_> = spec.groups.keys().take(20).map(GroupName::as_str).collect();
    format!("the groups are {}", known.join(", "))
}

/// Folds the records that lead to a state which [`check`] accepts.
fn build(state: StateFile, mut written: SpecFile) -> (Cluster, Scores) {
    for (group, settings) in state.settings {
        if let Some(declared) = written.groups.get_mut(&group) {
            declared.settings.extend(settings);
        }
    }
    let mut fold = Fold::default();
    for host in &state.hosts {
        let agent = AgentId::new(host.name.as_str()).expect("a host's name is fit for an agent's");
        let change = HostChange::Joined { agent, address: None, labels: host.labels.clone() };
        fold.add(Body::Host { host: host.name.clone(), change });
    }
    fold.add(Body::Spec { spec: Arc::new(written), principal: "file".to_owned() });
    let mut given = BTreeMap::new();
    let mut scores = Scores::new();
    for entry in state.members {
        let id = MemberId { group: entry.group.clone(), host: entry.host.clone() };
        scores.insert(id.clone(), entry.score);
        if entry.leaving {
            let leaving = Member { leaving: true, ..Member::default() };
            fold.cluster.members.insert(id.clone(), Arc::new(leaving));
        }
        given.insert(id, entry);
    }
    let members: Vec<MemberId> = fold.cluster.members.keys().cloned().collect();
    for member in members {
        fold.add_member(&member, given.remove(&member));
    }
    for host in state.hosts {
        if host.liveness != Liveness::Alive {
            let change = HostChange::Liveness { liveness: host.liveness };
            fold.add(Body::Host { host: host.name.clone(), change });
        }
        if host.drained
            && let Some(known) = fold.cluster.hosts.get_mut(&host.name)
        {
            Arc::make_mut(known).is_drained = true;
        }
    }
    for FreezeEntry { groups, reason } in state.freezes {
        let leaves = groups.iter().flat_map(|name| fold.cluster.spec.leaves(name).unwrap_or_default());
        let groups = leaves.cloned().collect();
        fold.add(Body::Freeze { groups, until: None, reason, principal: "file".to_owned() });
    }
    (fold.cluster, scores)
}

#[derive(Default)]
struct Fold {
    cluster: Cluster,
}

impl Fold {
    fn add(&mut self, body: Body) {
        let index = Index(self.cluster.revision.0 + 1);
        self.cluster.apply(index, &Record { at: WallTime::default(), body });
    }

    /// What a member has reported, and then what transitions have made of it.
    fn add_member(&mut self, id: &MemberId, entry: Option<MemberEntry>) {
        let lowest = self.cluster.spec.groups[&id.group].lifecycle.lowest().clone();
        let mut report = |actual| self.add(Body::Report { member: id.clone(), actual });
        let Some(entry) = entry else { return report(Some(lowest)) };
        let MemberEntry {
            state,
            unknown,
            goal,
            failed,
            may_be,
            leaving: _,
            settings,
            provides,
            consumes,
            ..
        } = entry;
        if unknown {
            // One that has a goal has reported once.
            goal.iter().for_each(|goal| report(Some(goal.clone())));
            report(None);
        } else {
            report(Some(state.unwrap_or(lowest)));
        }
        if !provides.is_empty() || !consumes.is_empty() {
            let published = Arc::new(Published { provides, consumes });
            let change = HostChange::Published { group: id.group.clone(), published };
            self.add(Body::Host { host: id.host.clone(), change });
        }
        // It has left its group, and is where it may be forgotten.
        let Some(member) = self.cluster.members.get_mut(id).map(Arc::make_mut) else { return };
        member.goal = goal.or(member.goal.take());
        member.settings = settings.map(Arc::new).or(member.settings.take());
        member.mark = match (may_be.is_empty(), failed) {
            (false, _) => Mark::InDoubt,
            (true, true) => Mark::Failed,
            (true, false) => Mark::None,
        };
        member.may_be = may_be;
    }
}
