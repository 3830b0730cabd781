//! Random small clusters with a request, as data: so that one that fails can be printed and made smaller.

use lockstep_core::cluster::Cluster;
use lockstep_core::id::{AgentId, Capability, GroupName, HostName, Index, MemberId, StateName, StepId};
use lockstep_core::lifecycle::{Amount, Limit};
use lockstep_core::message::{Decision, Outcome};
use lockstep_core::plan::{Plan, Scores, Step};
use lockstep_core::record::{Body, HostChange, Left, Liveness, Record};
use lockstep_core::relation::{GroupList, Published};
use lockstep_core::request::{Request, Target};
use lockstep_core::spec::{
    Ask, GroupFile, Kind, LifecycleFile, RelationFile, Selector, SettingValue, Settings, SpecFile,
};
use lockstep_core::time::WallTime;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// SplitMix64: the same numbers from the same seed, everywhere and always.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xA24B_AED4_963E_E407))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True so often in a hundred.
    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// A cluster as it came to be, and what is asked of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Case {
    pub(crate) spec: SpecFile,
    pub(crate) hosts: Vec<HostCase>,
    pub(crate) members: BTreeMap<MemberId, MemberCase>,
    /// Settings that were changed after members had taken the declared ones.
    pub(crate) settings: BTreeMap<GroupName, Settings>,
    pub(crate) request: Request,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostCase {
    pub(crate) name: HostName,
    pub(crate) labels: BTreeMap<String, String>,
    /// Labels that it has lost since its members were seen.
    pub(crate) lost_labels: BTreeSet<String>,
    pub(crate) liveness: Liveness,
    pub(crate) is_drained: bool,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct MemberCase {
    /// Where it was first seen, which became its goal; none: it never said.
    pub(crate) first: Option<StateName>,
    /// What it said later, if that was another thing.
    pub(crate) later: Option<Option<StateName>>,
    /// The edge of which it is not known whether it was taken.
    pub(crate) doubt: Option<(StateName, StateName)>,
    pub(crate) published: Published,
    pub(crate) score: i64,
}

fn name<T: std::str::FromStr<Err: fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn state(text: &str) -> StateName {
    name(text)
}

/// The lifecycles that are drawn from; the first two are built in.
const LIFECYCLES: [&str; 7] = ["service", "primary-standby", "cache", "sync", "idle", "ring", "mesh"];

fn lifecycle(of: &str) -> Option<LifecycleFile> {
    let text = match of {
        // Two states serve, one of them for one member only.
        "cache" => {
            r#"{"states":["offline","replica","primary"],"serving":["primary","replica"],
                "limits":{"primary":{"max":1}},
                "edges":[["offline","replica"],["replica","primary"],["primary","replica"],["replica","offline"]]}"#
        }
        // On the way up there is room for one.
        "sync" => {
            r#"{"states":["off","sync","on"],"serving":["on"],"limits":{"sync":{"max":1}},
                "edges":[["off","sync"],["sync","on"],["on","off"],["sync","off"]]}"#
        }
        // Drained is not the lowest.
        "idle" => {
            r#"{"states":["gone","idle","busy"],"serving":["busy"],"drained":"idle",
                "edges":[["gone","idle"],["idle","busy"],["busy","idle"],["idle","gone"]]}"#
        }
        // One way around, through all of them.
        "ring" => {
            r#"{"states":["a","b","c"],"serving":["c"],"limits":{"c":{"max":2}},
                "edges":[["a","b"],["b","c"],["c","a"]]}"#
        }
        // From each state to most others.
        "mesh" => {
            r#"{"states":["down","cold","warm","hot"],"serving":["warm","hot"],
                "limits":{"hot":{"max":"50%"},"warm":{"min":1}},"drained":"cold",
                "edges":[["down","cold"],["cold","warm"],["cold","hot"],["warm","hot"],["hot","warm"],
                         ["warm","down"],["hot","cold"],["cold","down"]]}"#
        }
        _ => return None,
    };
    Some(serde_json::from_str(text).unwrap())
}

/// The states of a lifecycle, lowest first.
fn states(of: &str) -> Vec<StateName> {
    match of {
        "service" => vec![state("offline"), state("online")],
        "primary-standby" => vec![state("offline"), state("standby"), state("primary")],
        own => lifecycle(own).unwrap().states,
    }
}

fn highest_limited(of: &str) -> bool {
    matches!(of, "primary-standby" | "cache" | "mesh" | "ring")
}

fn amount(dice: &mut Dice) -> Amount {
    match dice.below(8) {
        0 => Amount::Majority,
        1 => Amount::All,
        2 => Amount::Percent(50),
        3 => Amount::Percent(34),
        4 | 5 => Amount::Count(1),
        6 => Amount::Count(2),
        _ => Amount::Count(3),
    }
}

impl Case {
    /// The case of that number.
    pub(crate) fn random(seed: u64) -> Self {
        let dice = &mut Dice::new(seed);
        let count = 2 + dice.below(4);
        let names: Vec<GroupName> = (0..count).map(|number| name(&format!("g{number}"))).collect();
        let mut spec: SpecFile = serde_json::from_str(r#"{"cluster":"c"}"#).unwrap();
        let mut kinds = BTreeMap::new();
        let has_settings = dice.percent(45);
        for group in &names {
            let kind = if dice.percent(40) { "service" } else { dice.pick::<&str>(&LIFECYCLES) };
            kinds.insert(group.clone(), kind);
            spec.groups.insert(group.clone(), group_file(dice, group, kind, has_settings));
            if let Some(file) = lifecycle(kind) {
                spec.lifecycles.insert(name(kind), file);
            }
        }
        let mut ends = names.clone();
        if dice.percent(20) {
            let mut file: GroupFile = serde_json::from_str("{}").unwrap();
            file.groups = vec![names[0].clone(), names[1].clone()];
            spec.groups.insert(name("both"), file);
            ends.push(name("both"));
        }
        for _ in 0..dice.below(7) {
            let relation = relation_file(dice, &ends, &names, &spec);
            // Most lead one way, so that few go in a circle.
            let is_back = relation.to.iter().all(|to| *to < relation.from);
            if is_back && dice.percent(85) && !matches!(relation.kind, Kind::Excludes | Kind::Watches) {
                continue;
            }
            spec.relations.push(relation);
        }
        let hosts = hosts(dice, &names);
        let mut members = BTreeMap::new();
        let is_orderly = dice.percent(70);
        for group in &names {
            let states = states(kinds[group]);
            let (top, rest) = (states.len() - 1, dice.below(states.len()));
            let mut is_first = true;
            for host in hosts.iter().filter(|host| host.labels.contains_key(group.as_str())) {
                let at = match (is_orderly, is_first && highest_limited(kinds[group])) {
                    (true, true) if rest > 0 => top,
                    (true, true) => 0,
                    (true, false) if highest_limited(kinds[group]) => rest.min(top - 1),
                    (true, false) if dice.percent(85) => rest,
                    (true | false, _) => dice.below(states.len()),
                };
                is_first = false;
                let member = member(dice, &states, at);
                members.insert(MemberId::new(group, &host.name), member);
            }
        }
        let mut settings = BTreeMap::new();
        for group in names.iter().filter(|group| !spec.groups[*group].settings.is_empty()) {
            if dice.percent(8) {
                settings.insert(group.clone(), Settings::from([(name("live"), value("green"))]));
            }
        }
        let with_settings: Vec<GroupName> =
            names.iter().filter(|group| !spec.groups[*group].settings.is_empty()).cloned().collect();
        let mut targets = Vec::new();
        for _ in 0..1 + dice.below(4) {
            targets.push(target(dice, &ends, &kinds, &hosts, &with_settings));
        }
        let mut case = Self { spec, hosts, members, settings, request: Request::default() };
        if names.len() > 2
            && case.spec.groups[&names[0]].settings.contains_key(&name("live"))
            && dice.percent(40)
        {
            targets = case.cut_over(dice, &names);
        }
        let Self { spec, hosts, members, settings, .. } = case;
        let request = Request { targets, exclude_lost: dice.percent(20), ..Request::default() };
        Self { spec, hosts, members, settings, request }
    }

    /// From blue to green, or back: one group rests on another while a setting has one value, and on a third while it has
    /// the other.
    fn cut_over(&mut self, dice: &mut Dice, names: &[GroupName]) -> Vec<Target> {
        let kind = *dice.pick(&[Kind::Requires, Kind::Requires, Kind::After, Kind::Excludes]);
        for (to, colour) in [(&names[1], "blue"), (&names[2], "green")] {
            let when = BTreeMap::from([(name(&format!("{}.live", names[0])), value(colour))]);
            let mut relation: RelationFile =
                serde_json::from_value(serde_json::json!({"from": names[0], "to": to, "kind": kind}))
                    .unwrap();
            relation.when = when;
            relation.scope = dice.percent(20).then(|| "zone".to_owned());
            self.spec.relations.push(relation);
        }
        let colour = (*dice.pick(&["blue", "green"])).to_owned();
        let mut targets = vec![Target::Setting(names[0].clone(), name("live"), colour.clone())];
        let (old, new) = if colour == "green" { (1, 2) } else { (2, 1) };
        if dice.percent(80) {
            targets.push(Target::Up(names[new].clone()));
        }
        if dice.percent(60) {
            targets.push(Target::Down(names[old].clone()));
        }
        targets
    }

    /// The cluster, folded from the records that lead to it; none: the spec is refused.
    pub(crate) fn build(&self) -> Result<(Cluster, Scores), lockstep_core::spec::SpecError> {
        self.spec.check()?;
        let mut fold = Fold(Cluster::default());
        for host in &self.hosts {
            fold.join(host, host.labels.clone());
        }
        fold.add(Body::Spec { spec: Arc::new(self.spec.clone()), principal: "oracle".to_owned() });
        let mut scores = Scores::new();
        let known: Vec<MemberId> = fold.0.members.keys().cloned().collect();
        for id in &known {
            let Some(member) = self.members.get(id) else { continue };
            scores.insert(id.clone(), member.score);
            if let Some(actual) = &member.first {
                fold.add(Body::Report { member: id.clone(), actual: Some(actual.clone()) });
            }
            if let Some(actual) = &member.later {
                fold.add(Body::Report { member: id.clone(), actual: actual.clone() });
            }
            if member.published != Published::default() {
                let published = Arc::new(member.published.clone());
                let change = HostChange::Published { group: id.group.clone(), published };
                fold.add(Body::Host { host: id.host.clone(), change });
            }
        }
        let drains: BTreeSet<HostName> =
            self.hosts.iter().filter(|host| host.is_drained).map(|host| host.name.clone()).collect();
        let known_groups = |group: &GroupName| fold.0.spec.groups.contains_key(group);
        let settings: BTreeMap<_, _> =
            self.settings.clone().into_iter().filter(|(group, _)| known_groups(group)).collect();
        if !drains.is_empty() || !settings.is_empty() {
            fold.transition(Plan { drains, settings, ..Plan::default() }, BTreeMap::new());
        }
        for id in &known {
            if let Some((from, to)) = self.members.get(id).and_then(|member| member.doubt.clone()) {
                fold.leave_in_doubt(id, from, to);
            }
        }
        for host in self.hosts.iter().filter(|host| !host.lost_labels.is_empty()) {
            let mut labels = host.labels.clone();
            labels.retain(|label, _| !host.lost_labels.contains(label));
            fold.join(host, labels);
        }
        for host in self.hosts.iter().filter(|host| host.liveness != Liveness::Alive) {
            let change = HostChange::Liveness { liveness: host.liveness };
            fold.add(Body::Host { host: host.name.clone(), change });
        }
        fold.0.assert_invariants();
        Ok((fold.0, scores))
    }

    /// Cases with one thing less in them.
    pub(crate) fn smaller(&self) -> Vec<Self> {
        let mut smaller = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut case = self.clone();
            change(&mut case);
            if case != *self {
                smaller.push(case);
            }
        };
        for place in 0..self.request.targets.len() {
            add(&|case| drop(case.request.targets.remove(place)));
        }
        for place in 0..self.spec.relations.len() {
            add(&|case| drop(case.spec.relations.remove(place)));
            add(&|case| case.spec.relations[place].when.clear());
            add(&|case| case.spec.relations[place].on.clear());
            add(&|case| case.spec.relations[place].ask = None);
            add(&|case| case.spec.relations[place].scope = None);
            add(&|case| case.spec.relations[place].cascade = false);
        }
        for place in 0..self.hosts.len() {
            add(&|case| drop(case.hosts.remove(place)));
            add(&|case| case.hosts[place].liveness = Liveness::Alive);
            add(&|case| case.hosts[place].is_drained = false);
            add(&|case| case.hosts[place].lost_labels.clear());
        }
        for group in self.spec.groups.keys() {
            add(&|case| drop(case.spec.groups.remove(group)));
            let file = |change: &dyn Fn(&mut GroupFile), case: &mut Self| {
                change(case.spec.groups.get_mut(group).unwrap());
            };
            add(&|case| file(&|file| file.limits.clear(), case));
            add(&|case| file(&|file| file.provides.clear(), case));
            add(&|case| file(&|file| file.consumes.clear(), case));
            add(&|case| file(&|file| file.settings.clear(), case));
            add(&|case| file(&|file| file.parallel = Amount::All, case));
        }
        for id in self.members.keys() {
            add(&|case| drop(case.members.remove(id)));
            let one = |change: &dyn Fn(&mut MemberCase), case: &mut Self| {
                change(case.members.get_mut(id).unwrap());
            };
            add(&|case| one(&|member| member.doubt = None, case));
            add(&|case| one(&|member| member.later = None, case));
            add(&|case| one(&|member| member.published = Published::default(), case));
            add(&|case| one(&|member| member.score = 0, case));
            // A host that is in one group less.
            add(&|case| {
                for host in case.hosts.iter_mut().filter(|host| host.name == id.host) {
                    host.labels.remove(id.group.as_str());
                }
                case.members.remove(id);
            });
        }
        for name in self.spec.lifecycles.keys() {
            add(&|case| drop(case.spec.lifecycles.remove(name)));
        }
        add(&|case| case.settings.clear());
        add(&|case| case.request.exclude_lost = false);
        smaller
    }
}

fn value(text: &str) -> SettingValue {
    SettingValue::Text(text.to_owned())
}

fn group_file(dice: &mut Dice, group: &GroupName, kind: &str, has_settings: bool) -> GroupFile {
    let mut file: GroupFile = serde_json::from_str("{}").unwrap();
    let has_label = Selector::One("y".to_owned());
    file.select.insert(group.to_string(), has_label);
    file.lifecycle = name(kind);
    for state in &states(kind)[1..] {
        if dice.percent(25) {
            let mut limit = Limit::default();
            if dice.percent(60) {
                limit.max = Some(amount(dice));
            }
            if dice.percent(45) {
                limit.min = Some(amount(dice));
            }
            file.limits.insert(state.clone(), limit);
        }
    }
    if has_settings && dice.percent(60) {
        file.settings.insert(name("live"), value(dice.pick::<&str>(&["blue", "green"])));
        if dice.percent(30) {
            file.settings.insert(name("epoch"), SettingValue::Number(41));
        }
    }
    let capability: [Capability; 2] = [name("sql"), name("cache")];
    if dice.percent(15) {
        file.provides.push(dice.pick(&capability).clone());
    }
    if dice.percent(10) {
        file.consumes.push(dice.pick(&capability).clone());
    }
    if dice.percent(20) {
        file.parallel =
            *dice.pick(&[Amount::Count(1), Amount::Count(2), Amount::Percent(50), Amount::Majority]);
    }
    file
}

fn relation_file(dice: &mut Dice, ends: &[GroupName], leaves: &[GroupName], spec: &SpecFile) -> RelationFile {
    let kind = *dice.pick(&[
        Kind::Requires,
        Kind::Requires,
        Kind::Requires,
        Kind::After,
        Kind::Excludes,
        Kind::Excludes,
        Kind::Watches,
    ]);
    let from = dice.pick(ends).clone();
    let several = dice.percent(25);
    let to = if several { leaves } else { ends };
    let mut to: Vec<GroupName> = to.iter().filter(|to| **to != from && dice.percent(60)).cloned().collect();
    if !several {
        to.truncate(1);
    }
    if to.is_empty() {
        to.push(leaves.iter().find(|to| **to != from).unwrap().clone());
    }
    let count = to.len();
    let mut when = BTreeMap::new();
    let set: Vec<&GroupName> =
        leaves.iter().filter(|group| spec.groups[*group].settings.contains_key(&name("live"))).collect();
    let mut on = BTreeSet::new();
    let ask = dice.percent(45).then(|| *dice.pick(&[Ask::Vote, Ask::Hold]));
    if !set.is_empty() {
        if dice.percent(45) {
            let of = if set.contains(&&from) && dice.percent(70) { &from } else { *dice.pick(&set) };
            when.insert(name(&format!("{of}.live")), value(dice.pick::<&str>(&["blue", "green"])));
        }
        if ask.is_some() && dice.percent(50) {
            on.insert(name("live"));
        }
    }
    RelationFile {
        from,
        to: GroupList::new(to).unwrap(),
        kind,
        ask,
        on,
        need: match (kind, dice.below(3)) {
            (Kind::Requires, 0) => Amount::Count(1 + dice.below(count) as u32),
            (Kind::Requires, 1) if count > 1 => Amount::Majority,
            (Kind::Requires | Kind::After | Kind::Excludes | Kind::Watches, _) => Amount::All,
        },
        scope: dice.percent(25).then(|| "zone".to_owned()),
        when,
        cascade: matches!(kind, Kind::Requires | Kind::Excludes) && dice.percent(30),
        moving: false,
    }
    .with_moving(dice)
}

trait WithMoving {
    fn with_moving(self, dice: &mut Dice) -> Self;
}

impl WithMoving for RelationFile {
    fn with_moving(mut self, dice: &mut Dice) -> Self {
        self.moving = self.kind == Kind::Excludes && !self.cascade && dice.percent(50);
        self
    }
}

fn hosts(dice: &mut Dice, groups: &[GroupName]) -> Vec<HostCase> {
    let sizes: Vec<usize> = groups.iter().map(|_| *dice.pick(&[0, 1, 2, 2, 2, 3, 3, 3, 4, 4])).collect();
    let is_shared = dice.percent(60);
    let mut hosts: Vec<HostCase> = Vec::new();
    for (group, size) in groups.iter().zip(sizes) {
        for number in 0..size {
            let host = if is_shared { format!("h{number}") } else { format!("{group}-{number}") };
            let host: HostName = name(&host);
            let place = hosts.iter().position(|known| known.name == host).unwrap_or_else(|| {
                let mut labels = BTreeMap::new();
                if dice.percent(90) {
                    labels.insert("zone".to_owned(), (*dice.pick(&["n", "s"])).to_owned());
                }
                let liveness = match dice.below(60) {
                    0 | 1 => Liveness::Lost,
                    2 => Liveness::Left,
                    3 => Liveness::Suspect,
                    4 => Liveness::Fenced,
                    _ => Liveness::Alive,
                };
                let is_drained = dice.percent(3);
                hosts.push(HostCase {
                    name: host,
                    labels,
                    lost_labels: BTreeSet::new(),
                    liveness,
                    is_drained,
                });
                hosts.len() - 1
            });
            hosts[place].labels.insert(group.to_string(), "y".to_owned());
            if dice.percent(3) {
                hosts[place].lost_labels.insert(group.to_string());
            }
        }
    }
    hosts
}

fn member(dice: &mut Dice, states: &[StateName], at: usize) -> MemberCase {
    let mut member = MemberCase { first: Some(states[at].clone()), ..MemberCase::default() };
    match dice.below(90) {
        0 => member.first = None,
        1 => member.later = Some(None),
        2..=7 => member.later = Some(Some(dice.pick(states).clone())),
        8 => {
            let to = states[(at + 1) % states.len()].clone();
            member.doubt = Some((states[at].clone(), to));
        }
        9 => drop(member.published.provides.insert(name("sql"))),
        10 => drop(member.published.consumes.insert(name("cache"))),
        _ => {}
    }
    member.score = dice.below(3) as i64;
    member
}

fn target(
    dice: &mut Dice,
    ends: &[GroupName],
    kinds: &BTreeMap<GroupName, &str>,
    hosts: &[HostCase],
    with_settings: &[GroupName],
) -> Target {
    let group = dice.pick(ends).clone();
    let states = kinds.get(&group).map_or_else(|| states("service"), |kind| states(kind));
    if dice.percent(2) {
        return match dice.below(6) {
            0 => Target::Up(name("nowhere")),
            1 => Target::Group(group, state("nowhere")),
            2 => Target::Member(MemberId::new(&group, &name("nowhere")), states[0].clone()),
            3 => Target::Setting(group, name("nowhere"), "x".to_owned()),
            4 => Target::Drain(name("nowhere")),
            _ => Target::Setting(group, name("epoch"), "x".to_owned()),
        };
    }
    if hosts.is_empty() {
        return Target::Down(group);
    }
    let here: Vec<&HostCase> = hosts.iter().filter(|host| host.labels.contains_key(group.as_str())).collect();
    match dice.below(if with_settings.is_empty() { 11 } else { 16 }) {
        0..=2 => Target::Up(group),
        3 => Target::Down(group),
        4 => Target::Group(group, dice.pick(&states).clone()),
        5 => Target::Drain(dice.pick(hosts).name.clone()),
        6..=10 => {
            if here.is_empty() {
                return Target::Up(group);
            }
            let host = if dice.percent(1) { dice.pick(hosts) } else { *dice.pick(&here) };
            Target::Member(MemberId::new(&group, &host.name), dice.pick(&states).clone())
        }
        _ => {
            let set: Vec<_> = ends.iter().filter(|group| with_settings.contains(group)).collect();
            let group = if set.is_empty() || dice.percent(2) { dice.pick(ends) } else { *dice.pick(&set) };
            let value = dice.pick::<&str>(&["blue", "green"]);
            Target::Setting(group.clone(), name("live"), (*value).to_owned())
        }
    }
}

struct Fold(Cluster);

impl Fold {
    fn add(&mut self, body: Body) {
        let index = Index(self.0.revision.0 + 1);
        self.0.apply(index, &Record { at: WallTime(0), body });
    }

    fn join(&mut self, host: &HostCase, labels: BTreeMap<String, String>) {
        let agent: AgentId = name(host.name.as_str());
        let change = HostChange::Joined { agent, address: None, labels };
        self.add(Body::Host { host: host.name.clone(), change });
    }

    /// A transition that was, with this plan.
    fn transition(&mut self, plan: Plan, left: BTreeMap<MemberId, Left>) {
        let request = Request { request_id: self.0.revision.0.to_string(), ..Request::default() };
        self.add(Body::Request { request: Arc::new(request) });
        let transition = lockstep_core::id::TransitionId(self.0.revision.0);
        self.add(Body::Begin { transition, plan: Arc::new(plan) });
        let votes = Arc::default();
        self.add(Body::Decision { transition, decision: Decision::Commit, cause: None, votes, plan: None });
        let outcome = if left.is_empty() { Outcome::Committed } else { Outcome::Degraded };
        let untold = Default::default();
        self.add(Body::Outcome { transition, outcome, left, untold });
    }

    fn leave_in_doubt(&mut self, id: &MemberId, from: StateName, to: StateName) {
        let step = Step {
            id: StepId(0),
            member: id.clone(),
            from,
            to: to.clone(),
            set: Settings::new(),
            was: Settings::new(),
            after: Vec::new(),
        };
        let left = Left { problem: "in doubt".to_owned(), next: String::new(), in_doubt: true };
        let goals = BTreeMap::from([(id.clone(), to)]);
        let goals_before = BTreeMap::from([(id.clone(), self.0.members[id].goal.clone())]);
        let plan = Plan { steps: vec![step], goals, goals_before, ..Plan::default() };
        self.transition(plan, BTreeMap::from([(id.clone(), left)]));
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "spec {}", serde_json::to_string(&self.spec).unwrap())?;
        for host in &self.hosts {
            write!(f, "host {} {:?} {}", host.name, host.labels, host.liveness)?;
            if host.is_drained {
                write!(f, " drained")?;
            }
            if !host.lost_labels.is_empty() {
                write!(f, " without {:?}", host.lost_labels)?;
            }
            writeln!(f)?;
        }
        for (id, member) in &self.members {
            write!(f, "member {id} {:?}", member.first)?;
            if let Some(later) = &member.later {
                write!(f, " later {later:?}")?;
            }
            if let Some((from, to)) = &member.doubt {
                write!(f, " in doubt {from} -> {to}")?;
            }
            if member.published != Published::default() {
                write!(f, " publishes {}", serde_json::to_string(&member.published).unwrap())?;
            }
            writeln!(f, " score {}", member.score)?;
        }
        if !self.settings.is_empty() {
            writeln!(f, "settings {}", serde_json::to_string(&self.settings).unwrap())?;
        }
        let targets: Vec<String> = self.request.targets.iter().map(ToString::to_string).collect();
        write!(f, "run {}", targets.join(" "))?;
        if self.request.exclude_lost {
            write!(f, " --exclude-lost")?;
        }
        writeln!(f)
    }
}
