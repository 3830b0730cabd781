//! What is not as it should be, and what to do about it: for `status` and `apply`.

use crate::api::object::{Group, Host, Member, Relation};
use lockstep_core::lifecycle::Amount;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

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

impl Finding {
    /// A run mends it, unless something is in its way.
    fn mended_by(problem: String, run: Result<String, String>) -> Self {
        match run {
            Ok(run) => Self { problem, next: format!("lockstep run {run}"), run: Some(run) },
            Err(next) => Self { problem, next, run: None },
        }
    }
}

/// What has to serve before others may.
struct Required<'a> {
    groups: &'a [Group],
    relations: &'a [Relation],
    /// Groups that no run brings up as they are: somebody has to be seen to first.
    stuck: BTreeSet<&'a str>,
}

impl<'a> Required<'a> {
    fn of(groups: &'a [Group], by_group: &BTreeMap<&str, Vec<&Member>>, relations: &'a [Relation]) -> Self {
        let is_stuck = |group: &&Group| {
            let members = by_group.get(group.name.as_str());
            group.waits.is_some()
                || members.is_none_or(|members| members.iter().any(|member| is_untold(member)))
        };
        let stuck = groups.iter().filter(is_stuck).map(|group| group.name.as_str()).collect();
        Self { groups, relations, stuck }
    }

    fn serves(&self, name: &str) -> bool {
        self.groups.iter().any(|group| group.name == name && group.serves)
    }

    /// Whether enough of the groups that a relation leads to serve.
    fn is_met(&self, relation: &Relation) -> bool {
        let need = relation.need.clone().and_then(|need| serde_json::from_value::<Amount>(need).ok());
        match need {
            Some(need) => {
                let serving = relation.among.iter().filter(|name| self.serves(name)).count();
                serving >= need.as_min(relation.among.len())
            }
            None => self.serves(&relation.to),
        }
    }

    /// A run that makes members of a group serve, together with all that has to serve before them: alone it is refused.
    /// Else what is to be done first.
    fn bring_up(&self, group: &'a str, target: &str) -> Result<String, String> {
        let mut found = BTreeSet::from([group]);
        let mut open = vec![group];
        while let Some(from) = open.pop() {
            let requires =
                self.relations.iter().filter(|known| known.kind == "requires" && known.from == from);
            for relation in requires.filter(|known| !self.is_met(known) && !self.serves(&known.to)) {
                if self.stuck.contains(relation.to.as_str()) {
                    return Err(format!(
                        "see to {} first: {from} requires it, and it does not serve",
                        relation.to
                    ));
                }
                if found.insert(&relation.to) {
                    open.push(&relation.to);
                }
            }
        }
        let others = found.iter().filter(|name| **name != group).map(|name| format!("{name}=up"));
        Ok(others.chain([target.to_owned()]).collect::<Vec<_>>().join(" "))
    }
}

/// Whether nobody can tell for sure where a member is.
fn is_untold(member: &Member) -> bool {
    member.actual.is_none() || member.is_last_known() || member.mark.as_deref() == Some("in-doubt")
}

/// Looks through the cluster.
pub fn findings(
    hosts: &[Host],
    groups: &[Group],
    members: &[Member],
    relations: &[Relation],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for host in hosts.iter().filter(|host| host.liveness != "alive") {
        let here: Vec<_> = members.iter().filter(|member| member.host == host.name).collect();
        let settled = here.iter().filter(|member| member.evidence.is_some()).count();
        let next = match host.liveness.as_str() {
            "suspect" => "wait: it is back or lost within its lease".to_owned(),
            "left" => "start its agent when it is to take part again".to_owned(),
            "fenced" => {
                "its members count as stopped: start its agent when it is to take part again".to_owned()
            }
            "lost" if settled > 0 && settled == here.len() => format!(
                "it is known where its members are: start its agent when it is to take part again; if it is gone for good: \
                 {}",
                forget(host, &here, groups, relations)
            ),
            _ => format!(
                "see whether it runs and its agent reaches the server; until then its {0} count as anywhere; if \
                 nothing of it runs any more: lockstep fence {1} --confirm --reason TEXT; if it is gone for good: \
                 {2}",
                if settled > 0 { "other members" } else { "members" },
                host.name,
                forget(host, &here, groups, relations)
            ),
        };
        let since = host.since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
        let problem = format!("host {} is {}{since} ({} members)", host.name, host.liveness, here.len());
        findings.push(Finding { problem, next, run: None });
    }
    let mut by_group: BTreeMap<&str, Vec<&Member>> = BTreeMap::new();
    for member in members {
        by_group.entry(&member.group).or_default().push(member);
    }
    let required = Required::of(groups, &by_group, relations);
    for group in groups {
        let members = by_group.get(group.name.as_str()).map_or(&[][..], Vec::as_slice);
        findings.extend(of_group(group, members, &required));
        findings.extend(members.iter().filter_map(|member| of_member(hosts, group, member, &required)));
    }
    // Members of groups that are no longer declared.
    let is_declared = |member: &Member| groups.iter().any(|group| group.name == member.group);
    for member in members.iter().filter(|member| !is_declared(member)) {
        let problem = format!("{} belongs to a group that is not declared any more", member.id());
        findings.push(Finding { problem, next: "nothing manages it: stop it by hand".to_owned(), run: None });
    }
    findings
}

/// How a lost host is forgotten: where one of its members may hold a place, whoever forgets it has to know that nothing
/// of it runs.
fn forget(host: &Host, here: &[&Member], groups: &[Group], relations: &[Relation]) -> String {
    let holds = |member: &&&Member| {
        let group = groups.iter().find(|group| group.name == member.group);
        group.is_some_and(|group| limited(group, relations).any(|state| may_be_in(member, state)))
    };
    match here.iter().find(holds) {
        Some(_) => format!("lockstep host forget {} --stopped", host.name),
        None => format!("lockstep host forget {}", host.name),
    }
}

/// The states of a group that only so many may be in, because of a `max` or of what it excludes.
fn limited<'a>(group: &'a Group, relations: &'a [Relation]) -> impl Iterator<Item = &'a String> {
    let excludes = relations.iter().any(|relation| {
        let is_end = [&relation.from, &relation.to].contains(&&group.name);
        is_end && relation.kind == "excludes" && !relation.moving && relation.unmet.is_empty()
    });
    group.states.iter().skip(1).filter(move |state| {
        let has_max = group.limits.get(*state).is_some_and(|limits| limits.max.is_some());
        has_max || (excludes && group.serving.contains(state))
    })
}

/// Whether a member may be in a state. One that is on its way may be anywhere.
fn may_be_in(member: &Member, state: &String) -> bool {
    let is_there = member.actual.as_ref().is_none_or(|actual| actual == state);
    is_there || member.transition.is_some() || member.may_be.contains(state)
}

/// What a group that is repaired needs: nothing, unless that fails.
fn by_itself(group: &Group, run: Result<String, String>) -> Result<String, String> {
    match run {
        Ok(run) if matches!(group.recover.as_str(), "fence" | "lease") => {
            Err(format!("wait: it is repaired by itself; if it stays so: lockstep run {run}"))
        }
        run => run,
    }
}

fn of_group<'a>(group: &'a Group, members: &[&Member], required: &Required<'a>) -> Vec<Finding> {
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
    if let Some(waits) = &group.waits {
        let since = waits.host.as_ref().zip(waits.since.as_ref());
        let since = since.map(|(host, since)| format!(" (host {host}: since {since})")).unwrap_or_default();
        let problem = format!("{name} waits to be repaired: {}{since}", waits.message);
        findings.push(Finding { problem, next: waits.help.clone(), run: None });
    }
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
    let is_down = is_down(group, members);
    for state in &group.states {
        let limits = group.limits.get(state);
        let count = members.iter().filter(|member| member.actual.as_ref() == Some(state)).count();
        let default = usize::from(group.serving.contains(state));
        let min = limits.and_then(|limits| amount(&limits.min));
        let min = min.map_or(default, |min| min.as_min(members.len()));
        if count < min && !is_down {
            let what = if group.serving.contains(state) { "does not serve: " } else { "is short: " };
            let problem = format!("{name} {what}{count} {state}, at least {min} must be");
            let up = required.bring_up(name, &format!("{name}=up"));
            // A repair goes by what members should be. Where nobody should, nobody waits for it.
            let is_missed = |member: &&Member| {
                member.goal.as_ref() == Some(state) && member.actual.as_ref() != Some(state)
            };
            let run = match &group.waits {
                Some(_) => Err("it is repaired once it waits no more".to_owned()),
                None if group.vacant.contains(state)
                    || members.iter().copied().any(|member| is_missed(&member)) =>
                {
                    by_itself(group, up)
                }
                None => up,
            };
            findings.push(Finding::mended_by(problem, run));
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

/// Members whose places nobody takes over by itself if their hosts are lost, although their groups ask for that, by what
/// is wrong with each. One that has just started is among them for a moment.
pub fn unguarded(groups: &[Group], members: &[Member], relations: &[Relation]) -> BTreeMap<String, Finding> {
    let leases: BTreeMap<&str, &Group> = groups
        .iter()
        .filter(|group| group.recover == "lease")
        .map(|group| (group.name.as_str(), group))
        .collect();
    let found = members.iter().filter_map(|member| {
        let group = leases.get(member.group.as_str())?;
        let actual = member.actual.as_ref()?;
        let is_settled = member.liveness == "alive" && member.transition.is_none() && !is_left(member);
        let is_open = !member.guarded.contains(actual) && limited(group, relations).any(|state| state == actual);
        (is_settled && is_open).then(|| {
            let id = member.id();
            let problem = format!(
                "{id} is {actual} and not guarded: its handler's `status` names no pids, or one that cannot be guarded; \
                 if its host is lost, its place waits for a person"
            );
            (id, Finding { problem, next: "docs/handlers.md#the-guard".to_owned(), run: None })
        })
    });
    found.collect()
}

/// Whether all of a group is meant to be where it does nothing. Members that a transition has failed, or left in
/// doubt, were given goals that nobody has asked for.
pub fn is_down(group: &Group, members: &[&Member]) -> bool {
    let is_meant = |member: &&Member| {
        member.goal.as_ref() == group.states.first() && !is_left(member) && member.goal.is_some()
    };
    !members.is_empty() && members.iter().all(is_meant)
}

/// Whether its last transition has left it elsewhere than planned.
fn is_left(member: &Member) -> bool {
    member.mark.as_deref().is_some_and(|mark| mark != "pending")
}

/// What is known of a member that its last transition has left elsewhere than planned, and what to do.
fn of_left(hosts: &[Host], member: &Member) -> Finding {
    let (id, actual) = (member.id(), member.actual.as_deref().unwrap_or("in no known state"));
    let goal = member.goal.as_deref().unwrap_or("STATE");
    let host = hosts.iter().find(|host| host.name == member.host);
    let is_there = host.is_some_and(|host| matches!(host.liveness.as_str(), "alive" | "suspect"));
    let settles = if is_there {
        "its next status settles it: see that its handler answers `status`".to_owned()
    } else {
        format!("its next status settles it: start host {} and its agent", member.host)
    };
    let (problem, next) = match (member.mark.as_deref(), &member.transition, member.may_be.as_slice()) {
        (Some("in-doubt"), Some(transition), _) => {
            let way = format!("{transition} was taking it from {actual} to {goal}");
            (format!("{id} is in doubt: {way} when its host was lost"), settles)
        }
        (Some("in-doubt"), None, may_be) => {
            let may_be = if may_be.is_empty() { "anywhere".to_owned() } else { may_be.join(" or ") };
            let since = "nobody could tell how its last transition ended there";
            let next =
                format!("{settles}; or look, and say where it is: lockstep resolve {id}=STATE --reason TEXT");
            (format!("{id} is in doubt: {since}; it may be {may_be}, and should be {goal}"), next)
        }
        (Some(_) | None, _, _) if member.actual == member.goal => {
            let next = format!("mend it, then bring it where it belongs: lockstep run {id}=STATE");
            (format!("{id} has failed in its last transition, and was left out: it is {actual}"), next)
        }
        (Some(_) | None, _, _) => {
            let next = format!("mend it, then lockstep run {id}={goal}");
            (format!("{id} has failed in its last transition: it is {actual}, should be {goal}"), next)
        }
    };
    Finding { problem, next, run: None }
}

fn of_member<'a>(
    hosts: &[Host],
    group: &'a Group,
    member: &Member,
    required: &Required<'a>,
) -> Option<Finding> {
    let id = member.id();
    if is_left(member) {
        return Some(of_left(hosts, member));
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
    if let Some(evidence) = &member.evidence {
        let problem = format!("{id} counts as {actual}, should be {goal}: {evidence}");
        let by_itself = if group.recover == "off" { "" } else { ", and is brought back then" };
        let next = format!("its own host says where it is once it is back{by_itself}");
        return Some(Finding { problem, next, run: None });
    }
    let target = format!("{id}={goal}");
    let problem = format!("{id} is {actual}, should be {goal}");
    let serves = group.serving.contains(goal);
    let run = if serves { required.bring_up(&group.name, &target) } else { Ok(target) };
    let run = if serves && group.waits.is_none() { by_itself(group, run) } else { run };
    Some(Finding::mended_by(problem, run))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::object::Limits;
    use expect_test::expect;
    use serde_json::json;
    use std::slice::from_ref;

    fn told(liveness: &str, members: Value) -> String {
        told_of("off", liveness, members)
    }

    fn told_of(recover: &str, liveness: &str, members: Value) -> String {
        let host = |name| json!({"name": name, "liveness": liveness, "labels": {}, "address": null});
        let hosts: Vec<Host> = serde_json::from_value(json!([host("h1"), host("h2")])).unwrap();
        let group = Group {
            name: "app".to_owned(),
            states: ["offline", "online"].map(str::to_owned).to_vec(),
            serving: vec!["online".to_owned()],
            recover: recover.to_owned(),
            ..Group::default()
        };
        let base = json!({"group": "app", "host": "h1", "goal": "online", "actual": "online", "transition": null,
                          "settings": {}, "mark": null, "leaving": false, "facts": {}, "score": null, "reason": null});
        let member = |changes: &Value| {
            let mut member = base.clone();
            member.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            serde_json::from_value::<Member>(member).unwrap()
        };
        let members: Vec<Member> = members.as_array().unwrap().iter().map(member).collect();
        let findings = findings(&hosts, &[group], &members, &[]).into_iter();
        findings.map(|Finding { problem, next, .. }| format!("{problem}\n  {next}\n")).collect()
    }

    #[test]
    fn what_is_down_on_purpose_is_not_wrong_and_what_has_fallen_is() {
        let down = json!({"goal": "offline", "actual": "offline"});
        assert_eq!(told("alive", json!([down])), "");
        let short = "app does not serve: 0 online, at least 1 must be\n  lockstep run app=up\n";
        let fallen = "app@h1 is offline, should be online\n  lockstep run app@h1=online\n";
        let members = json!([{"goal": "online", "actual": "offline"}]);
        assert_eq!(told("alive", members), format!("{short}{fallen}"));
        // Left out, a member has a goal that nobody has asked for.
        let excluded = json!({"goal": "offline", "actual": "offline", "mark": "failed"});
        let left = "app@h1 has failed in its last transition, and was left out: it is offline\n  \
                    mend it, then bring it where it belongs: lockstep run app@h1=STATE\n";
        assert_eq!(told("alive", json!([excluded])), format!("{short}{left}"));
    }

    #[test]
    fn what_is_repaired_by_itself_is_waited_for() {
        let fallen = json!([{"goal": "online", "actual": "offline"}]);
        assert_eq!(
            told_of("fence", "alive", fallen),
            "app does not serve: 0 online, at least 1 must be\n  \
             wait: it is repaired by itself; if it stays so: lockstep run app=up\n\
             app@h1 is offline, should be online\n  \
             wait: it is repaired by itself; if it stays so: lockstep run app@h1=online\n"
        );
    }

    #[test]
    fn what_nobody_should_be_is_not_repaired_by_itself() {
        let adopted =
            json!([{"goal": null, "actual": "offline"}, {"host": "h2", "goal": null, "actual": "offline"}]);
        let said = told_of("lease", "alive", adopted);
        assert!(said.contains("at least 1 must be\n  lockstep run app=up\n"), "{said}");
        assert!(!said.contains("by itself"), "{said}");
    }

    #[test]
    fn a_lost_host_whose_members_are_settled_is_only_missed() {
        let settled = json!({"liveness": "lost", "goal": "offline", "actual": "offline", "evidence": "its lease has ended"});
        let elsewhere = json!({"host": "h2", "liveness": "lost"});
        expect![[r#"
            host h1 is lost (1 members)
              it is known where its members are: start its agent when it is to take part again; if it is gone for good: lockstep host forget h1
            host h2 is lost (1 members)
              see whether it runs and its agent reaches the server; until then its members count as anywhere; if nothing of it runs any more: lockstep fence h2 --confirm --reason TEXT; if it is gone for good: lockstep host forget h2
        "#]]
        .assert_eq(&told("lost", json!([settled, elsewhere])));
    }

    #[test]
    fn of_a_lost_host_those_that_are_settled_do_not_count_as_anywhere() {
        let settled = json!({"group": "db", "liveness": "lost", "evidence": "its lease has ended"});
        let said = told("lost", json!([settled, {"liveness": "lost"}]));
        assert!(said.contains("until then its other members count as anywhere"), "{said}");
    }

    #[test]
    fn a_lost_host_that_may_hold_a_place_is_forgotten_only_by_who_knows_that_it_has_stopped() {
        let host = json!({"name": "h1", "liveness": "lost", "labels": {}, "address": null});
        let host: Host = serde_json::from_value(host).unwrap();
        let app = Group {
            name: "app".to_owned(),
            states: ["offline", "standby", "online"].map(str::to_owned).to_vec(),
            serving: vec!["online".to_owned()],
            ..Group::default()
        };
        let max = Limits { min: None, max: Some(json!(1)) };
        let one = Group { limits: [("online".to_owned(), max)].into(), ..app.clone() };
        let excludes = Relation {
            from: "batch".to_owned(),
            to: "app".to_owned(),
            kind: "excludes".to_owned(),
            ..Relation::default()
        };
        let said = |group: &Group, relations: &[Relation], changes: Value| {
            let mut member = json!({"group": "app", "host": "h1", "liveness": "lost", "goal": "online",
                "actual": "online", "transition": null, "settings": {}, "mark": null, "leaving": false, "facts": {},
                "score": null, "reason": null});
            member.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let member: Member = serde_json::from_value(member).unwrap();
            let found = findings(from_ref(&host), from_ref(group), &[member], relations);
            let (_, said) = found[0].next.rsplit_once("for good: ").unwrap();
            said.to_owned()
        };
        let (plain, stopped) = ("lockstep host forget h1", "lockstep host forget h1 --stopped");
        assert_eq!(said(&app, &[], json!({})), plain, "any number may be there");
        assert_eq!(said(&app, from_ref(&excludes), json!({})), stopped);
        assert_eq!(said(&app, &[Relation { moving: true, ..excludes }], json!({})), plain);
        assert_eq!(said(&one, &[], json!({})), stopped);
        assert_eq!(said(&one, &[], json!({"actual": null})), stopped);
        assert_eq!(said(&one, &[], json!({"actual": "standby"})), plain);
        assert_eq!(said(&one, &[], json!({"actual": "standby", "transition": "t7"})), stopped);
        let doubt = json!({"actual": "standby", "mark": "in-doubt", "may_be": ["online"]});
        assert_eq!(said(&one, &[], doubt), stopped);
        let settled = |actual| json!({"actual": actual, "evidence": "somebody said so"});
        assert_eq!(said(&one, &[], settled("online")), stopped);
        assert_eq!(said(&one, &[], settled("offline")), plain);
    }

    #[test]
    fn a_place_that_a_lost_lease_does_not_free_is_wrong_before_the_host_is_lost() {
        let said = |recover: &str, changes: Value| {
            let group = Group {
                name: "queue".to_owned(),
                states: ["offline", "standby", "primary"].map(str::to_owned).to_vec(),
                serving: vec!["primary".to_owned()],
                limits: [("primary".to_owned(), Limits { min: None, max: Some(json!(1)) })].into(),
                recover: recover.to_owned(),
                ..Group::default()
            };
            let mut member = json!({"group": "queue", "host": "q-1", "liveness": "alive", "goal": "primary",
                "actual": "primary", "transition": null, "settings": {}, "mark": null, "leaving": false, "facts": {},
                "score": null, "reason": null});
            member.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let member = serde_json::from_value(member).unwrap();
            let found = unguarded(&[group], &[member], &[]).into_values();
            found.map(|Finding { problem, next, .. }| format!("{problem}\n  {next}\n")).collect::<String>()
        };
        expect![[r#"
            queue@q-1 is primary and not guarded: its handler's `status` names no pids, or one that cannot be guarded; if its host is lost, its place waits for a person
              docs/handlers.md#the-guard
        "#]]
        .assert_eq(&said("lease", json!({})));
        assert_eq!(said("fence", json!({})), "");
        for fine in [
            json!({"guarded": ["primary"]}),
            json!({"actual": "standby"}),
            json!({"transition": "t7"}),
            json!({"liveness": "lost"}),
        ] {
            assert_eq!(said("lease", fine.clone()), "", "{fine}");
        }
    }

    #[test]
    fn a_run_brings_up_what_is_required_too() {
        let group = |name: &str, serves| Group {
            name: name.to_owned(),
            states: ["offline", "online"].map(str::to_owned).to_vec(),
            serving: vec!["online".to_owned()],
            serves,
            ..Group::default()
        };
        let member = |group: &str, liveness: &str, actual: &str| {
            let member = json!({"group": group, "host": "h", "liveness": liveness, "goal": "online", "actual": actual,
                                "transition": null, "settings": {}, "mark": null, "leaving": false, "facts": {},
                                "score": null, "reason": null});
            serde_json::from_value::<Member>(member).unwrap()
        };
        let requires = |from: &str, to: &str| Relation {
            from: from.to_owned(),
            to: to.to_owned(),
            kind: "requires".to_owned(),
            ..Relation::default()
        };
        let runs = |db: (bool, Option<Member>), relations: &[Relation]| {
            let groups = [group("app", false), group("db", db.0), group("pool", false)];
            let mut members = vec![member("app", "alive", "offline"), member("pool", "alive", "offline")];
            members.extend(db.1);
            let findings = findings(&[], &groups, &members, relations).into_iter();
            findings
                .filter(|finding| finding.problem.starts_with("app"))
                .map(|finding| finding.next)
                .collect::<Vec<_>>()
        };
        let both = |next: &str| vec![format!("{next}=up"), format!("{next}@h=online")];
        let chain = [requires("app", "pool"), requires("pool", "db")];
        let (up, down) = (member("db", "alive", "online"), member("db", "alive", "offline"));
        assert_eq!(runs((false, Some(down.clone())), &[]), both("lockstep run app"));
        assert_eq!(runs((false, Some(down.clone())), &chain), both("lockstep run db=up pool=up app"));
        assert_eq!(runs((true, Some(up)), &chain), both("lockstep run pool=up app"));
        // Nothing that is asked for brings these up.
        let first = "see to db first: pool requires it, and it does not serve".to_owned();
        for stuck in [None, Some(member("db", "lost", "online"))] {
            assert_eq!(runs((false, stuck), &chain), [first.clone(), first.clone()]);
        }
        let any = ["db", "pool"].map(|to| Relation {
            need: Some(json!(1)),
            among: vec!["db".to_owned(), "pool".to_owned()],
            ..requires("app", to)
        });
        assert_eq!(runs((true, Some(down)), &any), both("lockstep run app"), "one of them is enough");
    }

    #[test]
    fn what_is_known_of_a_member_in_doubt_is_said() {
        let doubt = json!({"mark": "in-doubt", "may_be": ["offline", "online"]});
        expect![[r#"
            app@h1 is in doubt: nobody could tell how its last transition ended there; it may be offline or online, and should be online
              its next status settles it: see that its handler answers `status`; or look, and say where it is: lockstep resolve app@h1=STATE --reason TEXT
        "#]].assert_eq(&told("alive", json!([doubt])));
        let under_way = json!({"mark": "in-doubt", "actual": "offline", "transition": "t7"});
        expect![[r#"
            host h1 is lost (1 members)
              see whether it runs and its agent reaches the server; until then its members count as anywhere; if nothing of it runs any more: lockstep fence h1 --confirm --reason TEXT; if it is gone for good: lockstep host forget h1
            host h2 is lost (1 members)
              see whether it runs and its agent reaches the server; until then its members count as anywhere; if nothing of it runs any more: lockstep fence h2 --confirm --reason TEXT; if it is gone for good: lockstep host forget h2
            app@h1 is in doubt: t7 was taking it from offline to online when its host was lost
              its next status settles it: start host h1 and its agent
        "#]].assert_eq(&told("lost", json!([under_way, {"host": "h2"}])));
    }
}
