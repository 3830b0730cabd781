//! What is not as it should be, and what to do about it: for `status` and `apply`.

use crate::api::object::{Group, Host, Member};
use lockstep_core::lifecycle::Amount;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub problem: String,
    /// What to do next: a command, or words.
    pub next: String,
    /// The targets of the run that would change it, where one would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
}

/// Looks through the cluster.
pub fn findings(hosts: &[Host], groups: &[Group], members: &[Member]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for host in hosts.iter().filter(|host| host.liveness != "alive") {
        let here = members.iter().filter(|member| member.host == host.name).count();
        let next = match host.liveness.as_str() {
            "suspect" => "wait: it is back or lost within its lease".to_owned(),
            "left" => "start its agent when it is to take part again".to_owned(),
            _ => format!(
                "see whether it runs and its agent reaches the server; until then its members count as anywhere; \
                 if it is gone for good: lockstep host forget {}",
                host.name
            ),
        };
        let problem = format!("host {} is {} ({here} members)", host.name, host.liveness);
        findings.push(Finding { problem, next, run: None });
    }
    let mut by_group: BTreeMap<&str, Vec<&Member>> = BTreeMap::new();
    for member in members {
        by_group.entry(&member.group).or_default().push(member);
    }
    for group in groups {
        let members = by_group.get(group.name.as_str()).map_or(&[][..], Vec::as_slice);
        findings.extend(of_group(group, members));
        findings.extend(members.iter().filter_map(|member| of_member(group, member)));
    }
    // Members of groups that are no longer declared.
    let is_declared = |member: &Member| groups.iter().any(|group| group.name == member.group);
    for member in members.iter().filter(|member| !is_declared(member)) {
        let problem = format!("{} belongs to a group that is not declared any more", member.id());
        findings.push(Finding { problem, next: "nothing manages it: stop it by hand".to_owned(), run: None });
    }
    findings
}

fn of_group(group: &Group, members: &[&Member]) -> Vec<Finding> {
    let name = &group.name;
    if !group.groups.is_empty() {
        return Vec::new();
    }
    if members.is_empty() {
        let labels: Vec<_> = group.select.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let next = if labels.is_empty() {
            format!("say which hosts are in it: [groups.{name}] select = {{ KEY = \"VALUE\" }}")
        } else {
            format!("start an agent whose labels match {}", labels.join(" "))
        };
        return vec![Finding { problem: format!("{name} has no members"), next, run: None }];
    }
    let amount = |value: &Option<serde_json::Value>| {
        value.clone().and_then(|value| serde_json::from_value::<Amount>(value).ok())
    };
    let mut findings = Vec::new();
    for (key, declared) in &group.declared {
        let now = group.settings.get(key);
        if now.is_some_and(|now| now != declared) {
            let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let (now, declared) = (now.map(shown).unwrap_or_default(), shown(declared));
            let run = format!("{name}.{key}={declared}");
            let problem = format!("{name}.{key} is {now}, declared as {declared}");
            findings.push(Finding { problem, next: format!("lockstep run {run}"), run: Some(run) });
        }
    }
    for state in &group.states {
        let limits = group.limits.get(state);
        let count = members.iter().filter(|member| member.actual.as_ref() == Some(state)).count();
        let default = usize::from(group.serving.contains(state));
        let min = limits.and_then(|limits| amount(&limits.min));
        let min = min.map_or(default, |min| min.as_min(members.len()));
        if count < min {
            let what = if group.serving.contains(state) { "does not serve: " } else { "is short: " };
            let problem = format!("{name} {what}{count} {state}, at least {min} must be");
            let run = format!("{name}=up");
            findings.push(Finding { problem, next: format!("lockstep run {run}"), run: Some(run) });
        }
        let max = limits.and_then(|limits| amount(&limits.max)).map(|max| max.as_max(members.len()));
        if let Some(max) = max.filter(|max| count > *max) {
            let problem = format!("{name} is over its limit: {count} {state}, at most {max} may be");
            let next = format!("move {} of them: lockstep run {name}@HOST=STATE", count - max);
            findings.push(Finding { problem, next, run: None });
        }
    }
    findings
}

fn of_member(group: &Group, member: &Member) -> Option<Finding> {
    let id = member.id();
    let actual = member.actual.as_deref().unwrap_or("unknown");
    if let Some(mark) = member.mark.as_deref().filter(|mark| *mark != "pending") {
        let problem =
            format!("{id} is {mark}: {actual}, should be {}", member.goal.as_deref().unwrap_or("?"));
        let next = match mark {
            "in-doubt" => "its next status settles it: see that its host and agent run".to_owned(),
            _ => format!("mend it, then lockstep run {id}={}", member.goal.as_deref().unwrap_or("STATE")),
        };
        return Some(Finding { problem, next, run: None });
    }
    if member.transition.is_some() {
        return None;
    }
    let Some(actual) = &member.actual else {
        let why = member.reason.as_deref().unwrap_or("it has not reported yet");
        let problem = format!("the state of {id} is not known: {why}");
        let next = "see that its agent runs and its handler answers `status`".to_owned();
        return Some(Finding { problem, next, run: None });
    };
    if member.leaving {
        let lowest = group.states.first().map_or("", String::as_str);
        let run = format!("{id}={lowest}");
        let problem = format!("{id} is leaving: its host no longer matches, and it is {actual}");
        return Some(Finding { problem, next: format!("lockstep run {run}"), run: Some(run) });
    }
    let stale = group.settings.iter().find(|(key, value)| member.settings.get(*key) != Some(value));
    if let Some((key, value)) = stale.filter(|_| group.serving.contains(actual)) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let run = format!("{}.{key}={value}", group.name);
        let problem = format!("{id} has not taken {key} = {value}");
        return Some(Finding { problem, next: format!("lockstep run {run}"), run: Some(run) });
    }
    let goal = member.goal.as_ref().filter(|goal| *goal != actual)?;
    let run = format!("{id}={goal}");
    let problem = format!("{id} is {actual}, should be {goal}");
    Some(Finding { problem, next: format!("lockstep run {run}"), run: Some(run) })
}
