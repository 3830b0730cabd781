//! Random clusters and random requests.

use lockstep_core::id::{Capability, GroupName, HostName, MemberId};
use lockstep_core::relation::Published;
use lockstep_core::request::{Request, Target};
use lockstep_core::spec::{OnFailure, SpecFile};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A cluster to try things on: what is declared, and the hosts with their labels.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    groups: Vec<Group>,
    relations: Vec<Value>,
    lease_ms: u64,
    pub(crate) hosts: Vec<HostName>,
}

#[derive(Debug, Clone)]
struct Group {
    name: String,
    lifecycle: &'static str,
    states: &'static [&'static str],
    on_failure: Option<&'static str>,
    retries: u32,
    hold_ms: u64,
    /// Of `check` and of `prepare`: sometimes longer than a lease, so that hosts are lost before the decision.
    vote_ms: u64,
    commit_ms: u64,
    /// Whether it has a setting, `v`, a number.
    has_setting: bool,
    parallel: Option<u32>,
    recover: &'static str,
    /// Of a service: how many may be online at once.
    max: Option<u32>,
    hosts: Vec<usize>,
}

/// What settings are set to when no other request sets them to it.
const SET_LAST: i64 = 7;

/// What a group may do when hosts fail.
const RECOVERS: [&str; 5] = ["off", "fence", "fence", "lease", "lease"];

const LIFECYCLES: [(&str, &[&str]); 3] = [
    ("primary-standby", &["offline", "standby", "primary"]),
    ("service", &["offline", "online"]),
    ("cache", &["offline", "replica", "primary"]),
];

impl Shape {
    /// One to four groups over three to eight hosts, and relations among them.
    pub(crate) fn random(rng: &mut ChaCha8Rng) -> Self {
        let host_count = rng.random_range(3..=8);
        let hosts =
            (0..host_count).map(|at| HostName::new(&format!("h{at}")).expect("a valid name")).collect();
        let groups: Vec<_> = (0..rng.random_range(1..=4))
            .map(|at| {
                let (lifecycle, states) = *LIFECYCLES.choose(rng).expect("there are some");
                let members = rng.random_range(1..=4.min(host_count));
                let first = rng.random_range(0..host_count);
                Group {
                    name: format!("g{at}"),
                    lifecycle,
                    states,
                    on_failure: *[None, Some("undo"), Some("exclude")].choose(rng).expect("there are some"),
                    retries: rng.random_range(0..=2),
                    hold_ms: *[1500, 3000, 5000, 15_000].choose(rng).expect("there are some"),
                    vote_ms: *[2000, 2000, 8000].choose(rng).expect("there are some"),
                    commit_ms: *[2000, 5000, 15_000].choose(rng).expect("there are some"),
                    has_setting: rng.random_ratio(1, 2),
                    parallel: *[None, None, Some(1), Some(2)].choose(rng).expect("there are some"),
                    recover: RECOVERS.choose(rng).expect("there are some"),
                    max: *[None, None, Some(1), Some(2)].choose(rng).expect("there are some"),
                    hosts: (0..members).map(|next| (first + next) % host_count).collect(),
                }
            })
            .collect();
        let mut shape = Self { groups, relations: Vec::new(), lease_ms: 3000, hosts };
        shape.relate(rng);
        shape
    }

    /// Relations lead from later groups to earlier ones, so that there is no cycle.
    fn relate(&mut self, rng: &mut ChaCha8Rng) {
        self.relations.clear();
        for from in 1..self.groups.len() {
            for to in 0..from {
                if rng.random_ratio(1, 2) {
                    let relation = self.relation(from, to, rng);
                    self.relations.push(relation);
                }
            }
            if from > 1 && rng.random_ratio(1, 6) {
                let to: Vec<_> = self.groups[..from].iter().map(|group| &group.name).collect();
                let relation =
                    json!({"from": self.groups[from].name, "to": to, "kind": "requires", "need": 1});
                self.relations.push(relation);
            }
        }
    }

    fn relation(&self, from: usize, to: usize, rng: &mut ChaCha8Rng) -> Value {
        let kinds = ["requires", "requires", "watches", "watches", "after", "excludes"];
        let kind = *kinds.choose(rng).expect("there are some");
        let (from, to) = (&self.groups[from], &self.groups[to]);
        let mut relation = json!({"from": from.name, "to": to.name, "kind": kind});
        if let Some(ask) = [None, Some("vote"), Some("hold")].choose(rng).expect("there are some") {
            relation["ask"] = json!(ask);
            if to.has_setting && rng.random_ratio(1, 2) {
                relation["on"] = json!(["v"]);
            }
        }
        if rng.random_ratio(1, 4) {
            relation["scope"] = json!("zone");
        }
        match kind {
            "requires" | "excludes" if rng.random_ratio(1, 3) => relation["cascade"] = json!(true),
            "excludes" if rng.random_ratio(1, 2) => relation["moving"] = json!(true),
            _ => {}
        }
        if let Some(setting) = self.groups.iter().find(|group| group.has_setting)
            && rng.random_ratio(1, 5)
        {
            relation["when"] = json!({format!("{}.v", setting.name): rng.random_range(0..2)});
        }
        relation
    }

    /// Changes something that is declared.
    pub(crate) fn change(&mut self, rng: &mut ChaCha8Rng) {
        match rng.random_range(0..5) {
            0 => self.relate(rng),
            1 => self.lease_ms = *[2000, 3000, 6000].choose(rng).expect("there are some"),
            2 => {
                let group = rng.random_range(0..self.groups.len());
                self.groups[group].retries = rng.random_range(0..=2);
            }
            3 => {
                let group = rng.random_range(0..self.groups.len());
                self.groups[group].hold_ms = *[1500, 3000, 5000].choose(rng).expect("there are some");
            }
            4 => {
                let group = rng.random_range(0..self.groups.len());
                self.groups[group].recover = RECOVERS.choose(rng).expect("there are some");
            }
            _ => unreachable!("there are five changes"),
        }
    }

    /// What is declared now.
    pub(crate) fn spec(&self) -> SpecFile {
        let groups: BTreeMap<_, _> =
            self.groups.iter().map(|group| (&group.name, group.declared())).collect();
        let written = json!({
            "cluster": "sim",
            "lease_ms": self.lease_ms,
            "groups": groups,
            "relations": self.relations,
            "lifecycles": {"cache": {
                "states": ["offline", "replica", "primary"],
                "serving": ["primary"],
                "limits": {"primary": {"max": 1}},
                "edges": [["offline", "replica"], ["replica", "primary"], ["primary", "replica"], ["replica", "offline"]],
            }},
        });
        serde_json::from_value(written).expect("it is written as specs are")
    }

    /// The labels of a host: the groups that it is in.
    pub(crate) fn labels(&self, host: usize) -> BTreeMap<String, String> {
        let groups = self.groups.iter().filter(|group| group.hosts.contains(&host));
        let zone = ("zone".to_owned(), format!("z{}", host % 2));
        groups.map(|group| (group.name.clone(), "y".to_owned())).chain([zone]).collect()
    }

    /// Takes a host out of a group, or puts it in.
    pub(crate) fn relabel(&mut self, host: usize, rng: &mut ChaCha8Rng) {
        let group = rng.random_range(0..self.groups.len());
        let hosts = &mut self.groups[group].hosts;
        match hosts.iter().position(|member| *member == host) {
            Some(place) if hosts.len() > 1 => drop(hosts.remove(place)),
            Some(_) => {}
            None => hosts.push(host),
        }
    }

    /// A group or none, which stands for all of them.
    pub(crate) fn some_groups(&self, rng: &mut ChaCha8Rng) -> BTreeSet<GroupName> {
        let group = self.groups.choose(rng).filter(|_| rng.random_ratio(2, 3));
        group.map(|group| group.name.parse().expect("a valid name")).into_iter().collect()
    }

    /// Any of the members.
    pub(crate) fn member(&self, rng: &mut ChaCha8Rng) -> Option<MemberId> {
        let group = self.groups.choose(rng)?;
        let host = &self.hosts[*group.hosts.choose(rng)?];
        Some(format!("{}@{host}", group.name).parse().expect("it is written as members are"))
    }

    /// A member, and what its software says that it provides and consumes from now on. Who consumes what an earlier
    /// group consumes from it goes in a circle, which is to be refused.
    pub(crate) fn published(&self, rng: &mut ChaCha8Rng) -> Option<(MemberId, Published)> {
        let member = self.member(rng)?;
        let mut some = || -> BTreeSet<Capability> {
            let count = rng.random_range(0..2);
            (0..count)
                .map(|_| format!("c{}", rng.random_range(0..2)).parse().expect("a valid name"))
                .collect()
        };
        Some((member, Published { provides: some(), consumes: some() }))
    }

    /// A request for each group that it may serve, under ids that begin so.
    pub(crate) fn all_up(&self, id: &str) -> Vec<Request> {
        let groups = self.groups.iter();
        groups.map(|group| group.request(id, Target::Up(group.name.parse().expect("a valid name")))).collect()
    }

    /// A request for each group that has a setting, of another value than any before.
    pub(crate) fn all_set(&self, id: &str) -> Vec<Request> {
        let groups = self.groups.iter().filter(|group| group.has_setting);
        let requests = groups.map(|group| {
            let target = format!("{}.v={SET_LAST}", group.name);
            group.request(id, target.parse().expect("it is written as targets are"))
        });
        requests.collect()
    }

    /// A request that is mostly possible.
    pub(crate) fn request(&self, id: String, rng: &mut ChaCha8Rng) -> Request {
        let mut targets = Vec::new();
        for _ in 0..*[1, 1, 1, 2].choose(rng).expect("there are some") {
            let group = self.groups.choose(rng).expect("there are some");
            let state = group.states.choose(rng).expect("there are some");
            if group.has_setting && rng.random_ratio(1, 4) {
                let setting = format!("{}.v={}", group.name, rng.random_range(0..3));
                targets.push(setting.parse().expect("it is written as targets are"));
                continue;
            }
            if rng.random_ratio(1, 12) {
                targets.push(Target::Drain(self.hosts.choose(rng).expect("there are some").clone()));
                continue;
            }
            if rng.random_ratio(1, 16) {
                targets.push(Target::Repair(group.name.parse().expect("a valid name")));
                continue;
            }
            let whole = match rng.random_range(0..8) {
                0 => Some("up".to_owned()),
                1 => Some("down".to_owned()),
                2 => Some((*state).to_owned()),
                _ => None,
            };
            let host = &self.hosts[*group.hosts.choose(rng).expect("groups have members")];
            let target: Target = match whole {
                Some(state) => format!("{}={state}", group.name),
                None => format!("{}@{host}={state}", group.name),
            }
            .parse()
            .expect("it is written as targets are");
            targets.push(target);
        }
        let deadlines = [None, None, None, Some(500), Some(4000)];
        Request {
            request_id: id,
            principal: "operator".to_owned(),
            targets,
            reason: None,
            on_failure: *[None, None, Some(OnFailure::Undo), Some(OnFailure::Exclude)]
                .choose(rng)
                .expect("there are some"),
            deadline_ms: *deadlines.choose(rng).expect("there are some"),
            plan_hash: rng.random_ratio(1, 40).then(|| "no-such-plan".to_owned()),
            overrides: if rng.random_ratio(1, 10) {
                self.member(rng).into_iter().collect()
            } else {
                BTreeSet::new()
            },
            exclude_lost: rng.random_ratio(1, 8),
            is_automatic: false,
            override_freeze: rng.random_ratio(1, 8),
        }
    }
}

impl Group {
    fn request(&self, id: &str, target: Target) -> Request {
        Request {
            request_id: format!("{id}-{}", self.name),
            principal: "operator".to_owned(),
            targets: vec![target],
            ..Request::default()
        }
    }

    fn declared(&self) -> Value {
        let mut declared = json!({
            "select": {&self.name: "y"},
            "lifecycle": self.lifecycle,
            "handler": "sim",
            "retries": self.retries,
            "recover": self.recover,
            "hold_ms": self.hold_ms,
            "deadlines_ms": {"check": self.vote_ms, "prepare": self.vote_ms, "commit": self.commit_ms},
        });
        if self.has_setting {
            declared["settings"] = json!({"v": 0});
        }
        if let Some(parallel) = self.parallel {
            declared["parallel"] = json!(parallel);
        }
        if let Some(max) = self.max.filter(|_| self.lifecycle == "service") {
            declared["limits"] = json!({"online": {"max": max}});
        }
        if let Some(policy) = self.on_failure {
            declared["on_failure"] = json!(policy);
        }
        declared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn random_clusters_are_declared_well() {
        for seed in 0..200 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut shape = Shape::random(&mut rng);
            for _ in 0..10 {
                shape.spec().check().unwrap_or_else(|rejection| panic!("seed {seed}: {rejection:?}"));
                shape.change(&mut rng);
                shape.relabel(0, &mut rng);
            }
        }
    }
}
