//! The planner against a second definition of what a valid plan is, over random small clusters and requests.
//!
//! The planner searches; this looks at every state that a plan can come to, one step at a time and all that may be
//! under way at once, and at every edge of its graph: does something go wrong without it? Rejections have to be
//! justified by a search through all orders. What is not looked at here: large plans, and what the engine makes of them.
//!
//! `LOCKSTEP_ORACLE_CASES=1000000 cargo test --release -p lockstep-core --test oracle` for a long run, and
//! `LOCKSTEP_ORACLE_SEED=17` for where it begins. A case that fails is made smaller and printed.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod case;
mod found;
mod judge;
mod model;
mod refusal;
mod rule;

use case::Case;
use judge::{Fault, Looked, judge};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::{AgentId, HostName, Index, MemberId};
use lockstep_core::lifecycle::Amount;
use lockstep_core::message::Role;
use lockstep_core::plan::{self, Plan};
use lockstep_core::record::{Body, HostChange, Liveness, Record};
use lockstep_core::relation::{Origin, Published};
use lockstep_core::request::{Code, Target};
use lockstep_core::spec::Kind;
use lockstep_core::time::WallTime;
use model::{AFTER, BEFORE, Model};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

enum Ending {
    Planned(Box<Plan>, Looked),
    Refused(Code),
    /// The spec itself.
    Invalid {
        is_cycle: bool,
    },
}

/// Plans a case and judges what comes of it.
fn verdict(case: &Case) -> (Ending, Vec<Fault>) {
    let judged = catch_unwind(AssertUnwindSafe(|| {
        let (cluster, scores) = match case.build() {
            Ok(built) => built,
            Err(error) => return (Ending::Invalid { is_cycle: error.is_cycle }, Vec::new()),
        };
        if model::has_cycle(
            &Model::new(&cluster, &scores, &BTreeMap::new()).links[BEFORE],
            cluster.spec.groups.len(),
        ) {
            // By what members publish, which a server would not have recorded.
            return (Ending::Invalid { is_cycle: true }, Vec::new());
        }
        let (changes, _) = refusal::changes(&cluster, &case.request);
        let model = Model::new(&cluster, &scores, &changes);
        let mut faults = Vec::new();
        let derived: Vec<_> = model.links[BEFORE].iter().map(|link| &link.relation).collect();
        if !cluster.relations.iter().map(|relation| &**relation).eq(derived) {
            faults.push(Fault { rule: "relations", text: "are not what they should be".to_owned() });
        }
        let planned = plan::plan_request(&cluster, &case.request, &scores);
        if planned != plan::plan_request(&cluster, &case.request, &scores) {
            faults.push(Fault { rule: "same-plan", text: "two plans".to_owned() });
        }
        let mut turned = case.request.clone();
        turned.targets.reverse();
        let turned = plan::plan_request(&cluster, &turned, &scores);
        if planned.as_ref().ok() != turned.as_ref().ok() {
            faults.push(Fault { rule: "order-of-targets", text: format!("{turned:?}") });
        }
        match planned {
            Ok(plan) => {
                let (found, looked) = judge(&model, &cluster, &case.request, &plan);
                faults.extend(found);
                let changes = plan.settings.clone();
                let wanted = refusal::changes(&cluster, &case.request).0;
                if changes != wanted {
                    faults.push(Fault { rule: "settings", text: format!("{changes:?}, not {wanted:?}") });
                }
                faults.extend(digest(&cluster, &plan));
                (Ending::Planned(Box::new(plan), looked), faults)
            }
            Err(rejection) => {
                faults.extend(refusal::refusal(&model, &cluster, &case.request, &rejection));
                (Ending::Refused(rejection.code), faults)
            }
        }
    }));
    judged.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        let fault = Fault { rule: "panic", text: text.unwrap_or_default() };
        (Ending::Invalid { is_cycle: false }, vec![fault])
    })
}

/// The digest changes with what the plan rests on, and with nothing else.
fn digest(cluster: &Cluster, plan: &Plan) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut differs = |what: String, is_expected: bool, bodies: Vec<Body>| {
        let mut changed = cluster.clone();
        for body in bodies {
            let index = Index(changed.revision.0 + 1);
            changed.apply(index, &Record { at: WallTime(7), body });
        }
        if (plan::digest(&changed, plan) != plan.digest) != is_expected {
            let text = format!("{what}: changed {}", !is_expected);
            faults.push(Fault { rule: "digest", text });
        }
    };
    differs("nothing".to_owned(), false, Vec::new());
    let host: HostName = "stranger".parse().unwrap();
    let agent: AgentId = "stranger".parse().unwrap();
    let change = HostChange::Joined { agent, address: None, labels: BTreeMap::new() };
    let reign = Body::Reign { server: "another".to_owned(), lease_ms: None, cluster: None };
    differs("a reign, a host".to_owned(), false, vec![reign, Body::Host { host, change }]);
    let moving = plan.moving();
    for name in cluster.spec.groups.keys() {
        let (groups, reason, principal) = ([name.clone()].into(), String::new(), String::new());
        let freeze = Body::Freeze { groups, until: None, reason, principal };
        differs(format!("{name} is frozen"), moving.contains(name), vec![freeze.clone()]);
        let thaw = Body::Thaw {
            freezes: [Index(cluster.revision.0 + 1)].into(),
            groups: Default::default(),
            principal: None,
        };
        differs(format!("{name} was frozen"), false, vec![freeze, thaw]);
    }
    for (id, member) in &cluster.members {
        let is_inside = plan.exclusive.contains(&id.group) || plan.shared.contains(&id.group);
        let Some(group) = cluster.spec.groups.get(&id.group) else { continue };
        let Some(other) = group.lifecycle.states.iter().find(|state| member.actual.as_ref() != Some(state))
        else {
            continue;
        };
        if member.leaving {
            continue;
        }
        let report = Body::Report { member: id.clone(), actual: Some(other.clone()) };
        differs(format!("{id} is {other}"), is_inside, vec![report]);
        if plan.exclusive.contains(&id.group) && cluster.hosts[&id.host].liveness == Liveness::Alive {
            let change = HostChange::Liveness { liveness: Liveness::Lost };
            differs(format!("{} is lost", id.host), true, vec![Body::Host { host: id.host.clone(), change }]);
        }
    }
    if let (Some(spec), Some(name)) = (&cluster.spec_file, plan.exclusive.first()) {
        let mut spec = (**spec).clone();
        if let Some(group) = spec.groups.get_mut(name) {
            let state = cluster.spec.groups[name].lifecycle.states[1].clone();
            group.limits.entry(state).or_default().max = Some(Amount::Count(77));
            let spec = std::sync::Arc::new(spec);
            differs(format!("a limit of {name}"), true, vec![Body::Spec { spec, principal: String::new() }]);
        }
    }
    faults
}

/// The smallest case found that breaks the same rule.
fn shrink(case: Case, rule: &str) -> Case {
    let mut case = case;
    'smaller: loop {
        for smaller in case.smaller() {
            if verdict(&smaller).1.iter().any(|fault| fault.rule == rule) {
                case = smaller;
                continue 'smaller;
            }
        }
        return case;
    }
}

/// What a case has that was planned: each of these has to occur.
fn features(case: &Case, plan: &Plan) -> BTreeSet<&'static str> {
    let mut features = BTreeSet::new();
    let (cluster, scores) = case.build().unwrap();
    let model = Model::new(&cluster, &scores, &plan.settings);
    let mut see = |name: &'static str, is_there: bool| {
        if is_there {
            features.insert(name);
        }
    };
    see("empty", plan.is_empty());
    let moving: BTreeSet<_> = plan.moving().into_iter().cloned().collect();
    let named: BTreeSet<MemberId> = judge::asked(&model, &case.request)
        .named
        .keys()
        .map(|&member| model.members[member].id.clone())
        .collect();
    for relation in &plan.relations {
        let both = relation.groups().filter(|group| moving.contains(*group)).count() > 1;
        see("requires, both move", both && relation.kind == Kind::Requires);
        see("after, both move", both && relation.kind == Kind::After);
        see("excludes, both move", both && relation.kind == Kind::Excludes && !relation.moving);
        see("moving, both move", both && relation.moving);
        see("watches", relation.kind == Kind::Watches);
        see("need", relation.need != Amount::All);
        see("scope, both move", both && relation.scope.is_some());
        see("capability", relation.origin == Origin::Capability);
        let others = || plan.goals.keys().filter(|id| !named.contains(*id));
        see("cascade of requires", {
            relation.cascade
                && relation.kind == Kind::Requires
                && others().any(|id| id.group == relation.from)
        });
        see("cascade of excludes", {
            relation.cascade
                && relation.kind == Kind::Excludes
                && others().any(|id| relation.groups().any(|group| *group == id.group))
        });
    }
    let known =
        |side: usize, of: &model::Link| model.links[side].iter().any(|link| link.relation == of.relation);
    see("a relation comes", model.links[AFTER].iter().any(|link| !known(BEFORE, link)));
    see("a relation goes", model.links[BEFORE].iter().any(|link| !known(AFTER, link)));
    see("a member takes settings", plan.steps.iter().any(|step| !step.moves()));
    see("barrier", !plan.barriers.is_empty());
    see("gap", !plan.gaps.is_empty());
    see("no return", !plan.no_return.is_empty());
    see("several edges", plan.goals.keys().any(|id| plan.steps_of(id).count() > 1));
    see("voter", plan.with_role(Role::Voter).count() > 0);
    see("holder", plan.with_role(Role::Holder).count() > 0);
    see("observer", plan.with_role(Role::Observer).count() > 0);
    for target in &case.request.targets {
        let is_composite = target.group().is_some_and(|name| cluster.spec.composites.contains_key(name));
        see("composite", is_composite && !plan.steps.is_empty());
        match target {
            Target::Up(_) => see("up", !plan.steps.is_empty()),
            Target::Down(_) => see("down", !plan.steps.is_empty()),
            Target::Group(_, _) => see("group", !plan.steps.is_empty()),
            Target::Member(_, _) => see("member", !plan.steps.is_empty()),
            Target::Setting(_, _, _) => see("setting", !plan.settings.is_empty()),
            Target::Repair(_) => unreachable!("none is asked for: the simulator judges repairs"),
            Target::Drain(_) => see("drain", !plan.drains.is_empty() && !plan.steps.is_empty()),
        }
    }
    let is_drain = case.request.targets.iter().any(|target| matches!(target, Target::Drain(_)));
    see("a role moves", is_drain && plan.goals.keys().any(|id| !named.contains(id)));
    for (id, goal) in &plan.goals {
        let group = &cluster.spec.groups[&id.group];
        let rank = |state| group.lifecycle.rank(state);
        let is_lower = rank(goal) < cluster.members[id].actual.as_ref().and_then(rank);
        see("displaced", !named.contains(id) && is_lower && *goal != *group.lifecycle.lowest());
        see("gives a place up", plan.steps_of(id).next().is_none() && !named.contains(id));
        see("leaving", cluster.members[id].leaving);
        see("suspect", cluster.hosts[&id.host].liveness == Liveness::Suspect);
        see("parallel", group.parallel != Amount::All);
        see("min", group.limits.values().any(|limit| limit.min.is_some()));
        see("max", group.limits.get(goal).is_some_and(|limit| limit.max.is_some()));
    }
    for member in model.members.iter().filter(|member| moving.contains(&member.id.group)) {
        see("beside a lost member", !member.is_reachable);
        see("beside a member in doubt", member.is_in_doubt);
        see("beside an unknown member", member.actual.is_none());
        see("beside a drained host", member.is_drained);
        let is_named = named.contains(&member.id);
        see("exclude-lost", case.request.exclude_lost && is_named && !member.is_reachable);
    }
    see("published", case.members.values().any(|member| member.published != Published::default()));
    features
}

const FEATURES: [&str; 41] = [
    "empty",
    "requires, both move",
    "after, both move",
    "excludes, both move",
    "moving, both move",
    "watches",
    "need",
    "scope, both move",
    "capability",
    "cascade of requires",
    "cascade of excludes",
    "a relation comes",
    "a relation goes",
    "a member takes settings",
    "barrier",
    "gap",
    "no return",
    "several edges",
    "voter",
    "holder",
    "observer",
    "composite",
    "up",
    "down",
    "group",
    "member",
    "setting",
    "drain",
    "a role moves",
    "displaced",
    "leaving",
    "suspect",
    "parallel",
    "min",
    "max",
    "beside a lost member",
    "beside a member in doubt",
    "beside an unknown member",
    "beside a drained host",
    "exclude-lost",
    "published",
];

/// The codes that the planner gives.
const CODES: [Code; 14] = [
    Code::Cycle,
    Code::UnknownGroup,
    Code::UnknownHost,
    Code::UnknownMember,
    Code::UnknownState,
    Code::UnknownSetting,
    Code::LimitBroken,
    Code::WouldBreakRequires,
    Code::RequirementDown,
    Code::Excluded,
    Code::NoCandidate,
    Code::ActualUnknown,
    Code::MemberInDoubt,
    Code::HostLost,
];

#[expect(clippy::disallowed_methods, reason = "how long it runs is for whoever starts it to say")]
fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn plans_are_valid_and_rejections_justified() {
    let first = number("LOCKSTEP_ORACLE_SEED", 0);
    let count = number("LOCKSTEP_ORACLE_CASES", 5000);
    let mut codes: BTreeMap<Code, usize> = BTreeMap::new();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut broken: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut hashes: BTreeMap<String, String> = BTreeMap::new();
    let (mut planned, mut invalid, mut steps, mut points, mut edges, mut capped) = (0, 0, 0, 0, 0, 0);
    std::panic::set_hook(Box::new(|_| {}));
    for seed in first..first + count {
        let case = Case::random(seed);
        let (ending, faults) = verdict(&case);
        for fault in &faults {
            let seeds = broken.entry(fault.rule).or_default();
            if seeds.last() != Some(&seed) {
                seeds.push(seed);
            }
        }
        match ending {
            Ending::Planned(plan, looked) => {
                planned += 1;
                steps += plan.steps.len();
                points += looked.points;
                edges += looked.edges;
                capped += usize::from(looked.is_capped);
                for feature in features(&case, &plan) {
                    *seen.entry(feature).or_default() += 1;
                }
                if count <= 20_000 {
                    let mut written = (*plan).clone();
                    let hash = std::mem::take(&mut written.hash);
                    let written = serde_json::to_string(&written).unwrap();
                    let known = hashes.entry(hash).or_insert_with(|| written.clone());
                    assert_eq!(*known, written, "two plans of one hash");
                }
            }
            Ending::Refused(code) => *codes.entry(code).or_default() += 1,
            Ending::Invalid { is_cycle } => {
                invalid += 1;
                if is_cycle {
                    *codes.entry(Code::Cycle).or_default() += 1;
                }
            }
        }
    }
    drop(std::panic::take_hook());
    println!("{count} cases: {planned} planned, {invalid} specs refused");
    println!("{steps} steps, {points} points, {edges} edges; {capped} plans too wide to look at all of");
    codes.iter().for_each(|(code, count)| println!("{count:7} {code}"));
    seen.iter().for_each(|(feature, count)| println!("{count:7} {feature}"));
    std::panic::set_hook(Box::new(|_| {}));
    let mut report = String::new();
    for (rule, seeds) in &broken {
        let case = shrink(Case::random(seeds[0]), rule);
        let (ending, faults) = verdict(&case);
        report += &format!(
            "\n{rule}: {} cases, first seeds {:?}\n{case}",
            seeds.len(),
            &seeds[..seeds.len().min(5)]
        );
        if let Ending::Planned(plan, _) = ending {
            for step in &plan.steps {
                let after: Vec<String> = step.after.iter().map(ToString::to_string).collect();
                let set =
                    if step.moves() { String::new() } else { serde_json::to_string(&step.set).unwrap() };
                report += &format!(
                    "  {} {} {} -> {} {set} after [{}]\n",
                    step.id,
                    step.member,
                    step.from,
                    step.to,
                    after.join(" ")
                );
            }
            for barrier in &plan.barriers {
                let after: Vec<String> = barrier.after.iter().map(ToString::to_string).collect();
                report += &format!("  {} after [{}]\n", barrier.id, after.join(" "));
            }
            for who in plan.participants.iter().filter(|who| who.role != Role::Actor) {
                report += &format!("  {} {}\n", who.member, who.role);
            }
            report += &format!(
                "  gaps {:?} no return {:?} exclusive {:?} shared {:?}\n",
                plan.gaps, plan.no_return, plan.exclusive, plan.shared
            );
        }
        for fault in faults {
            report += &format!("  {}: {}\n", fault.rule, fault.text);
        }
    }
    drop(std::panic::take_hook());
    assert!(broken.is_empty(), "{report}");
    if count >= 5000 {
        for feature in FEATURES {
            assert!(seen.contains_key(feature), "no plan has: {feature}");
        }
        for code in CODES {
            assert!(codes.contains_key(&code), "no request is refused with {code}");
        }
    }
}
