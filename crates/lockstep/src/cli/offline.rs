//! A cluster from two files instead of a journal: for reviews, CI and tests.
//!
//! The state is turned into the records that would have led to it, and folded by the same fold that a server uses.

use crate::spec_file::{File, FileError, Problem, Refused};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::{AgentId, GroupName, HostName, Index, MemberId, SettingKey, StateName};
use lockstep_core::plan::Scores;
use lockstep_core::record::{Body, HostChange, Liveness, Record};
use lockstep_core::request::Code;
use lockstep_core::spec::{SettingValue, Spec, SpecFile, text_problem};
use lockstep_core::time::WallTime;
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// The kind of refusal when a state is wrong in a way that has no rejection code.
pub const STATE_INVALID: &str = "state-invalid";

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateFile {
    /// The hosts.
    pub hosts: Vec<HostEntry>,
    /// The members that are not alive and well in their lowest state.
    #[serde(default)]
    pub members: Vec<MemberEntry>,
    /// The settings that differ from the declared ones.
    #[serde(default)]
    pub settings: BTreeMap<GroupName, BTreeMap<SettingKey, SettingValue>>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberEntry {
    /// Its group.
    pub group: GroupName,
    /// Its host.
    pub host: HostName,
    /// Its state; the lowest by default.
    #[serde(default, deserialize_with = "given")]
    pub state: Option<StateName>,
    /// How fit it is to be chosen; 0 by default.
    #[serde(default)]
    pub score: i64,
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
    let help = "a state has `hosts`, `members` and `settings`; see the page of state-invalid";
    let state: StateFile = file.parse(STATE_INVALID, help).map_err(FileError::Refused)?;
    check(&state, spec).map_err(|(path, problem)| {
        FileError::Refused(Box::new(Refused::new(&file, file.locate(&path), problem)))
    })?;
    Ok(build(state, written))
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
        if !group.selects(&entry.labels) {
            let message = format!("host {host} is not in group {name}: its labels do not match");
            let help = format!("see `select` of [groups.{name}], and the host's `labels`");
            return wrong("host", Code::UnknownMember, message, help);
        }
        if let Some(state) = &member.state
            && group.lifecycle.rank(state).is_none()
        {
            let states: Vec<_> = group.lifecycle.states.iter().map(StateName::as_str).collect();
            let help = format!("its states are {}", states.join(", "));
            return wrong("state", Code::UnknownState, format!("group {name} has no state {state}"), help);
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
            let problem = match (declared, value) {
                (SettingValue::Text(_), SettingValue::Text(text)) => text_problem(text).map(str::to_owned),
                (SettingValue::Flag(_), SettingValue::Flag(_))
                | (SettingValue::Number(_), SettingValue::Number(_)) => None,
                _ => Some(format!("{name}.{key} is declared as {declared}, which is another kind of value")),
            };
            if let Some(problem) = problem {
                let help = "give a value of the kind that the spec declares";
                let problem = Problem::new(STATE_INVALID, problem, help);
                return Err((at(&["settings", name.as_str(), key.as_str()]), problem));
            }
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
    for member in state.members {
        let id = MemberId { group: member.group, host: member.host };
        scores.insert(id.clone(), member.score);
        given.insert(id, member.state);
    }
    let members: Vec<MemberId> = fold.cluster.members.keys().cloned().collect();
    for member in members {
        let lowest = fold.cluster.spec.groups[&member.group].lifecycle.lowest().clone();
        let actual = Some(given.get(&member).cloned().flatten().unwrap_or(lowest));
        fold.add(Body::Report { member, actual });
    }
    for host in state.hosts {
        if host.liveness != Liveness::Alive {
            let change = HostChange::Liveness { liveness: host.liveness };
            fold.add(Body::Host { host: host.name, change });
        }
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
}
